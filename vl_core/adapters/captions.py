"""A text for every picture of a folder, as a fit reads them. What is there stays; what was stopped goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..pictures import read_picture
from ..states.files import write_whole
from .examples import PICTURE_FILES

# pictures, uint8 (H, W, 3) -> the words of each; ValueError if one of them cannot be told
Tell = Callable[[Sequence[Tensor]], Sequence[str]]


def find_pictures(folder: Path, name: str = "folder") -> list[Path]:
    """Pictures of a folder by name.

    Args:
        name: what the input is called.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no picture, or two that would share a text.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name}: expected a folder of pictures, found none at {folder}. Make it and put pictures into it."
        )
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_FILES)
    if not files:
        raise ValueError(f"{name}: expected pictures ({', '.join(PICTURE_FILES)}) in {folder}, found none.")
    names: dict[str, Path] = {}
    for file in files:
        other = names.setdefault(file.stem, file)
        if other is not file:
            raise ValueError(
                f"{name}: expected one text a picture, {other.name} and {file.name} would share {file.stem}.txt. "
                "Rename one of them."
            )
    return files


def text_files(pictures: Sequence[Path], folder: Path | None = None) -> dict[Path, Path]:
    """Where the text of each picture belongs: beside it, or in a folder of its own."""
    return {
        picture: picture.with_suffix(".txt") if folder is None else folder / f"{picture.stem}.txt"
        for picture in pictures
    }


def without_text(texts: Mapping[Path, Path]) -> list[Path]:
    """The pictures whose text is not there yet, or is empty."""
    return [picture for picture, text in texts.items() if not (text.is_file() and text.read_bytes().strip())]


def tell_group(
    files: Sequence[Path], tell: Tell, load: Callable[[Path], Tensor] = read_picture
) -> list[str | Exception]:
    """The words of each picture, or why there are none: one that cannot be read or told does not cost the others."""
    pictures: dict[int, Tensor] = {}
    told: dict[int, str | Exception] = {}
    for number, file in enumerate(files):
        try:
            pictures[number] = load(file)
        except ValueError as error:
            told[number] = error
    try:
        told.update(zip(pictures, tell([*pictures.values()]) if pictures else [], strict=True))
    except ValueError:  # one of them: the others shall have their words
        for number, picture in pictures.items():
            try:
                told[number] = tell([picture])[0]
            except ValueError as error:
                told[number] = error
    return [told[number] for number in range(len(files))]


def groups(files: Sequence[Path], together: int) -> list[list[Path]]:
    """The files in their order, so many at a time."""
    return [[*files[at : at + together]] for at in range(0, len(files), together)]


def write_texts(
    texts: Mapping[Path, Path], told: Iterator[tuple[Sequence[Path], Sequence[str | Exception]]],
    step: Callable[[], None] = lambda: None,
) -> list[str]:
    """Write down what is told, as it comes, so that a run that is stopped goes on where it was.

    Args:
        told: groups of pictures, and what :func:`tell_group` gave for them.
        step: called after each picture.

    Returns:
        one line for each picture that has no text, and why.
    """
    failed = []
    for group, words in told:
        for picture, one in zip(group, words, strict=True):
            if isinstance(one, str):
                write_whole(texts[picture], one + "\n")
            else:
                failed.append(f"{picture.name}: {one}")
            step()
    return failed
