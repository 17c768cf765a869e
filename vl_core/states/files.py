"""Text and JSON from files that anybody may have written: read as what they say, or an error that names the file."""

from __future__ import annotations

import codecs
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import BaseModel, TypeAdapter, ValidationError

DEEPEST = 100  # brackets within brackets: nothing that people write needs more, and Python's own stack is finite
WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds for another program to let go of a file
LONGEST_STEM = 60  # letters of a name that a half-written file keeps: file systems take 255 bytes, four a letter
LONGEST_NAME = 200  # bytes of a name that people give: a number and a suffix come after it
UNFIT = '" * : < > ? |'  # no file name on Windows may hold them, nor control characters
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}  # Windows' own
ORPHANED = 3600.0  # seconds without a write after which a half-written file belongs to a program that is gone
ORPHAN = re.compile(r"[0-9a-f]{32}\.part")  # its name after that of the file
MARKS = (  # UTF-32's begins with UTF-16's, so it comes first
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)
FOREIGN_RUN = 3  # letters beyond ASCII in a row: Western words have two at most, other scripts have nothing else
Checked = TypeVar("Checked")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, with a byte-order mark or without, or in Windows' cp1252.

    Lines end in ``\\n``, whatever they end in there.

    Raises:
        ValueError: if it is none of these, or cannot be told from another encoding; the message names the file.
        OSError: if it cannot be read.
    """
    return decode_text(path.read_bytes(), path.name).replace("\r\n", "\n").replace("\r", "\n")


def decode_text(content: bytes, name: str) -> str:
    """:func:`read_text` of what was read; ``name`` is what errors call the file."""
    for mark, encoding in MARKS:
        if content.startswith(mark):
            return _decoded(content, encoding, name)
    zeros = content[:4096].count(0)
    if zeros > len(content[:4096]) // 4:  # words with a zero beside every letter are UTF-16 without its mark
        return _decoded(content, "utf-16-le" if content[1:2] == b"\0" else "utf-16-be", name)
    if zeros:
        raise ValueError(f"{name}: expected a text, got a file with zero bytes. Save it as UTF-8.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return _western(content, name)


def _decoded(content: bytes, encoding: str, name: str) -> str:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: expected a text in {encoding}, got a damaged one. Save it as UTF-8.") from error
    if "\0" in text:
        raise ValueError(f"{name}: expected a text, got a file with zero bytes. Save it as UTF-8.")
    return text


def _western(content: bytes, name: str) -> str:
    """cp1252, unless so many letters beyond ASCII stand together that it is rather another code page."""
    text = _decoded(content, "cp1252", name)
    run = longest = 0
    for letter in text:
        run = run + 1 if ord(letter) > 127 else 0
        longest = max(longest, run)
    if longest >= FOREIGN_RUN:
        raise ValueError(
            f"{name}: expected a text in UTF-8, got one in an older encoding that it does not name. Save it as UTF-8."
        )
    return text


def parse_json(text: str, name: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: if it is not JSON, or nested deeper than 100; the message begins with ``name``.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        told = "brackets within brackets without end" if isinstance(error, RecursionError) else error
        raise ValueError(f"{name}: expected JSON, got a damaged file ({told}).") from error
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"{name}: expected JSON at most {DEEPEST} brackets deep, got more. The file is damaged.")
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [item for items in inside for item in items]
    return content


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: if it holds anything else; the message begins with the file's name.
        OSError: if it cannot be read.
    """
    content = parse_json(read_text(path), path.name)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: expected a JSON object, got {type(content).__name__}.")
    return content


def check_content(kind: type[Checked], content: Mapping[str, Any], name: str) -> Checked:
    """``content`` as ``kind``: a pydantic model, or a dataclass of plain values, whose types are taken as they are.

    Raises:
        ValueError: if something is missing or of another type; the message begins with ``name``, and says what and
            where.
    """
    try:
        if issubclass(kind, BaseModel):
            return kind.model_validate(content)
        return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)  # as JSON a list may be a tuple
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{name}: the header lacks or garbles {where!r} ({first['msg']}).") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; what is there when the block ends takes the place of ``path``, which is whole or not at all.

    Raises:
        OSError: if it cannot be written. Windows lets nobody replace a file that another program, a virus scanner or
            an indexer, has open: that is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name[:LONGEST_STEM]}.{uuid4().hex}.part")
    try:
        yield partial
        for wait in WAITS:
            try:
                os.replace(partial, path)
                return
            except PermissionError:
                time.sleep(wait)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Text in UTF-8 with the same line ends on every system, in a file that appears whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def fits_a_file(name: str) -> bool:
    """Whether every system takes ``name``, slashes and all, as a path below a folder, a number and a suffix added."""
    parts = name.replace("\\", "/").split("/")
    stems = (part.split(".")[0].strip().lower() for part in parts)
    short = all(len(part.encode(errors="replace")) <= LONGEST_NAME for part in parts) and len(name) <= 4 * LONGEST_NAME
    letters = {*UNFIT[::2], *map(chr, range(32))} & {*name}
    return bool(name.strip()) and short and not letters and DEVICES.isdisjoint(stems)


def clear_orphans(path: Path) -> None:
    """Remove what writers of ``path`` left half written when they were killed, an hour ago or longer."""
    for partial in files_named(path.parent, f"{path.name[:LONGEST_STEM]}.", ORPHAN):
        try:
            if time.time() - partial.stat().st_mtime > ORPHANED:
                partial.unlink()
        except OSError:  # another program was faster
            continue


def files_named(folder: Path, start: str, rest: re.Pattern[str]) -> list[Path]:
    """Files of a folder whose name is ``start``, and then what ``rest`` matches whole; none if there is no such folder.

    ``Path.glob`` makes an expression of every name that is looked for, of which Python keeps 512: 4 KiB for each fit.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    begins = os.path.normcase(start)  # as the system tells names apart
    found = (name for name in names if os.path.normcase(name).startswith(begins))
    return [folder / name for name in found if rest.fullmatch(name[len(start) :])]
