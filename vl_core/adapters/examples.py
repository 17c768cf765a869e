"""A folder of pictures and their descriptions, and a picture adapter fitted on them, picture by picture.

A fit that is stopped goes on where it was: what is known so far is kept in one file beside the adapter, under a name
that stands for the very same examples and spec. Words that a model writes for the pictures are kept line by line in
a second file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..pictures import read_picture
from ..stages.description import SLOTS, Slot, describe_prompt, read_description
from ..states.files import files_named, read_text
from ..states.layout import TokenLayout
from ..states.statistics import calibration_prompts
from ..states.vl_states import VLStates
from .fit import PictureAdapterFit
from .picture_adapter import PictureAdapter
from .spec import AdapterSpec
from .watch import watched

log = logging.getLogger(__name__)

SAME = 0.02  # relative difference of two readings by one encoder: bfloat16 rounds to .004 in each of its blocks
PICTURE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FREE_TEXT = (Slot("description", 16),)  # where captions name no slots
LEAST = 10  # pictures; fewer than the folds of the fit can tell nothing
PART = re.compile(r"[0-9a-f]{16}\.part")  # after the adapter's name, see examples_key
KEEP_EVERY = 16  # pictures between two writes of what is known so far


@dataclass(frozen=True)
class Example:
    """One picture file and what it is like in words; no words yet if None."""

    picture: Path
    words: str | None = None

    def pixels(self) -> Tensor:
        """uint8 ``(H, W, 3)``, turned as the camera noted.

        Raises:
            ValueError: if the file cannot be read as a picture.
        """
        return read_picture(self.picture)


def find_examples(folder: Path, captions: bool = True) -> list[Example]:
    """Pictures of a folder by name, and the ``.txt`` file of the same name beside each.

    Args:
        captions: whether the words are read, and needed.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for fewer than 10 pictures, or pictures without words, or words in an unknown encoding; the
            message names them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder: expected a folder of pictures, found none at {folder}. Make it and put pictures into it."
        )
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_FILES)
    if len(files) < LEAST:
        raise ValueError(f"folder: expected at least {LEAST} pictures, better 200, found {len(files)} in {folder}.")
    if not captions:
        return [Example(path) for path in files]
    found, missing = [], []
    for path in files:
        note = path.with_suffix(".txt")
        words = read_text(note).strip() if note.is_file() else ""
        found.append(Example(path, words))
        if not words:
            missing.append(note.name)
    if missing:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ValueError(
            f"folder: expected words for each picture in a .txt file of its name, {len(missing)} of {len(files)} are "
            f"missing or empty: {shown}. Write them, or let Qwen3-VL describe the pictures."
        )
    return found


def describe_examples(
    examples: Sequence[Example],
    write: Callable[[Tensor], str],
    *,
    asked: str = "",
    kept: Path | None = None,
    step: Callable[[], None] = lambda: None,
) -> tuple[list[Example], int]:
    """The examples with words that a model writes, picture by picture.

    Args:
        write: the words of a picture, uint8 ``(H, W, 3)``.
        asked: all that the words depend on beside the picture: who writes, what was asked, with which settings.
        kept: file of JSON lines to which each answer is added at once. Pictures that it has words for, by their
            content and ``asked``, are not described again. The caller removes it.
        step: called after each example; what it raises stops the writing, and ``kept`` has what was written.

    Returns:
        the examples in their order, and how many of them were described before this call.

    Raises:
        ValueError: for a picture that cannot be read, or what ``write`` refuses; it names the picture.
    """
    known = _read_answers(kept) if kept is not None else {}
    before, found, resumed = frozenset(known), [], 0
    for example in examples:
        key = _answer_key(example, asked)
        if key not in known:
            pixels = example.pixels()
            try:
                known[key] = write(pixels)
            except ValueError as error:
                raise ValueError(f"{example.picture.name}: {error}") from error
            if kept is not None:
                _add_answer(kept, key, known[key])
        resumed += key in before
        found.append(replace(example, words=known[key]))
        step()
    return found, resumed


def _answer_key(example: Example, asked: str) -> str:
    content = hashlib.sha256(example.picture.read_bytes()).digest()
    return hashlib.sha256(content + asked.encode()).hexdigest()


def _read_answers(path: Path) -> dict[str, str]:
    """Words by key; a line that was cut off in the middle of writing counts as not there."""
    if not path.is_file():
        return {}
    answers = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            answers[str(entry["key"])] = str(entry["words"])
        except (ValueError, KeyError, TypeError):
            continue
    return answers


def _add_answer(path: Path, key: str, words: str) -> None:
    # The line break goes first: after a line that was cut off, this one still stands alone.
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write("\n" + json.dumps({"key": key, "words": words}))


def slots_of(examples: Sequence[Example]) -> tuple[Slot, ...]:
    """The slots of the examples' words: style, palette … if every one names them, else a single free description."""
    try:
        for example in examples:
            read_description(example.words or "", SLOTS)
    except ValueError:
        return FREE_TEXT
    return SLOTS


def examples_key(examples: Sequence[Example], spec: AdapterSpec, prompts: Sequence[str], read_with: str = "") -> str:
    """16 hex digits that stand for the pictures, their words, the prompts, the spec and how they are read.

    Args:
        read_with: all else that the encoders' states depend on: the token budget, the precision.
    """
    digest = hashlib.sha256(repr((spec, tuple(prompts), read_with)).encode())
    for example in examples:
        stat = example.picture.stat()
        digest.update(repr((example.picture.name, stat.st_size, stat.st_mtime_ns, example.words)).encode())
    return digest.hexdigest()[:16]


def probe_of(seen: VLStates, text: Tensor) -> Tensor:
    """What both encoders say of one thing, to know them again by: float32, flat.

    Args:
        seen: of a picture of the fit, as it is read for the fit. ``text``: of any words.
    """
    return torch.cat([part.detach().float().cpu().flatten() for part in (seen.states, text)])


def _same_encoders(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two probes are of the same encoders, up to rounding; unknown ones count as the same."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and float((one - other).norm()) <= SAME * float(one.norm())


def add_example(
    fit: PictureAdapterFit, example: Example, prompt: str, fold: int, look: Callable[[Tensor, str], VLStates],
    read: Callable[[str], Tensor], tokenize: Callable[[str], TokenLayout],
) -> None:
    """Take one example into a fit, its words after ``prompt``; see :func:`fit_examples` for the rest."""
    spec = fit.spec
    try:
        texts = describe_prompt(prompt, read_description(example.words or "", spec.slots), spec.slots)
        beside = texts[0] if spec.own_prompt else spec.prompt
        seen, layouts = look(example.pixels(), beside), [tokenize(text) for text in texts]
        fit.add_pair(seen, read(texts[-1]), layouts, read(texts[0]), fold=fold)
    except ValueError as error:
        raise ValueError(f"{example.picture.name}: {error}") from error


def fit_examples(
    examples: Sequence[Example],
    spec: AdapterSpec,
    look: Callable[[Tensor, str], VLStates],
    read: Callable[[str], Tensor],
    tokenize: Callable[[str], TokenLayout],
    *,
    prompts: Sequence[str] | None = None,
    part: Path | None = None,
    probe: Tensor | None = None,
    step: Callable[[], None] = lambda: None,
    check: Callable[[], None] | None = None,
) -> tuple[PictureAdapter, int]:
    """Fit on every example, each beside another prompt, so that the map learns what is the picture's and what is not.

    Args:
        look: the VL's states of a picture (uint8 ``(H, W, 3)``) and a prompt, the spec's layers captured.
        read: the text encoder's states ``(L, D)`` of a text; ``tokenize``: what its tokens are.
        prompts: taken in turn; the built-in ones if None.
        part: file that keeps what is known so far, written every 16 pictures and removed at the end; the examples in
            it are not read again. It must belong to the same examples and spec (:func:`examples_key`).
        probe: :func:`probe_of` the encoders as they are now. A part that other encoders were read for, the same ones
            with a LoRA among them, is not gone on with: the fit begins anew.
        step: called after each example; what it raises stops the fit, and ``part`` keeps what was done.
        check: called five times a second while the map is solved; what it raises stops that, and ``part`` keeps all.

    Returns:
        the adapter, and how many of the examples were taken from ``part``.

    Raises:
        ValueError: for a picture that cannot be read, words that do not fit the slots, other encoders than the
            spec's, or a damaged ``part``; each names the file.
    """
    prompts = list(prompts or calibration_prompts())
    fit = PictureAdapterFit(spec)
    if part is not None and part.is_file():
        try:
            kept = PictureAdapterFit.load(part)
        except ValueError as error:
            raise ValueError(f"{error} It keeps a fit that was stopped: remove {part}, and fit again.") from error
        if kept.spec != spec or kept.pairs > len(examples):
            raise ValueError(f"{part.name}: belongs to another fit. Remove it.")
        if _same_encoders(kept.probe, probe):
            fit = kept
        else:
            log.warning("%s was read with other encoders: the fit begins anew.", part.name)
    fit.probe = probe
    resumed = fit.pairs
    for index in range(resumed, len(examples)):
        add_example(fit, examples[index], prompts[index % len(prompts)], index, look, read, tokenize)
        step()
        if part is not None and ((index + 1) % KEEP_EVERY == 0 or (check and index + 1 == len(examples))):
            fit.save(part)
    adapter = watched(lambda step: fit.solve(progress=step), check)
    if part is not None:
        part.unlink(missing_ok=True)
    return adapter, resumed


def clear_parts(output: Path) -> None:
    """Remove what stopped fits of this adapter left, whatever they were fitted on: it is there now."""
    for part in files_named(output.parent, f"{output.stem}_", PART):
        part.unlink(missing_ok=True)
