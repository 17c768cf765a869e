"""The two models of a comparison: folders that are given, or the trained miniature's."""

from __future__ import annotations

from ..zimage import checks
from .embedded import embedded

DEMO = "demo"


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
        return model, vision
    if vision is not None:
        raise ValueError("--vision: the demo has its own Qwen3-VL. Give --model as well, or leave it out.")
    return embedded("folders")()


def vision_blocks(vision: str, width: int) -> int:
    """Blocks of the Qwen3-VL in a folder, which has to be as wide as Z-Image's text encoder.

    Raises:
        FileNotFoundError, ValueError: if it is no Qwen3-VL, or of another width.
    """
    found, blocks = checks.vision_folder(vision, "--vision")
    if found != width:
        raise ValueError(f"--vision: expected width {width} for this Z-Image, got {found}. Z-Image needs the 4B.")
    return blocks
