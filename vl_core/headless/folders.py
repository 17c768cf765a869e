"""Folders of models that commands are given, or the trained miniature's."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..zimage import checks
from ..zimage.host import Question
from .embedded import embedded

DEMO = "demo"
OR_DEMO = f"; {DEMO} is the trained miniature's"


def add_folder_arguments(group, reference: bool = True) -> None:
    group.add_argument(
        "-m", "--model", default=DEMO, metavar="FOLDER",
        help="diffusers folder of Z-Image; demo is the trained miniature of this repository",
    )
    group.add_argument("--vision", metavar="FOLDER", help="Hugging Face folder of a Qwen3-VL-4B")
    if reference:
        group.add_argument(
            "--reference", metavar="FILE", help="from `calibrate`; measured if it is needed and not given"
        )


def folders_of(model: str, vision: str | None) -> tuple[str, str]:
    """Folders of Z-Image and of Qwen3-VL, from ``--model`` and ``--vision``.

    Raises:
        ValueError: if only one of them is given, or the miniature is asked for and not there.
    """
    if model != DEMO:
        if vision is None:
            raise ValueError("--vision: expected a Qwen3-VL folder beside --model, got none.")
        return model, embedded("folders")()[1] if _is_demo(vision) else vision
    if vision is not None and not _is_demo(vision):
        raise ValueError("--vision: the demo has its own Qwen3-VL. Give --model as well, or leave it out.")
    return embedded("folders")()


class Embedded(str):
    """The path of a folder of the miniature's, for which "demo" was said."""


def zimage_or_demo(text: str) -> str:
    """A type of an option that names a folder of Z-Image."""
    return _or_demo(text, 0)


def vision_or_demo(text: str) -> str:
    """A type of an option that names a folder of Qwen3-VL."""
    return _or_demo(text, 1)


def _or_demo(text: str, place: int) -> str:
    if not _is_demo(text):
        return text
    try:
        return Embedded(embedded("folders")()[place])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _is_demo(text: str) -> bool:
    return text == DEMO and not Path(text).is_dir()


def questions_of(vision: str | None) -> dict[str, Question]:
    """What is asked for a take in place of its own words: the miniature's Qwen3-VL knows forty."""
    if not isinstance(vision, Embedded):
        return {}
    return {take: Question(ask, form) for take, ask, form in embedded("questions")}


def vision_blocks(vision: str, width: int) -> int:
    """Blocks of the Qwen3-VL in a folder, which has to be as wide as Z-Image's text encoder.

    Raises:
        FileNotFoundError, ValueError: if it is no Qwen3-VL, or of another width.
    """
    found, blocks = checks.vision_folder(vision, "--vision")
    if found != width:
        raise ValueError(f"--vision: expected width {width} for this Z-Image, got {found}. Z-Image needs the 4B.")
    return blocks
