"""``describe``: a text for every picture of a folder, as *Fit Picture Adapter* and ``fit`` read them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from torch import Tensor

from ..adapters.examples import PICTURE_FILES
from ..encoder.qwen3vl import Qwen3VLEncoder
from ..encoder.writing import MAX_TOKENS, TOGETHER, Description, check_request, describe_each
from ..steering.takes import find_take, take_names
from ..zimage import checks
from ..zimage.files import load_picture
from ..zimage.progress import progress
from .vision import load_encoder

SUMMARY = "have Qwen3-VL write a text for every picture of a folder"
BESIDE = "beside"


def add_arguments(parser) -> None:
    parser.add_argument("-f", "--folder", required=True, metavar="FOLDER", help="of pictures")
    parser.add_argument("-m", "--model", required=True, metavar="FOLDER", help="Hugging Face folder of a Qwen3-VL")
    parser.add_argument(
        "-o", "--output", default=BESIDE, metavar="FOLDER",
        help="where photo.txt of photo.png is written; beside is next to the picture. Texts that are there stay",
    )
    parser.add_argument("--take", choices=take_names(), default="everything", help="what to write about")
    parser.add_argument("--instruction", metavar="TEXT", help="what to ask Qwen3-VL, in place of --take")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="most tokens of a text")
    parser.add_argument("--image-tokens", type=int, default=1024, metavar="N", help="most tokens of a picture")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0 writes the likeliest words")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the words, where they are drawn")
    parser.add_argument(
        "--together", type=int, default=TOGETHER, metavar="N", help="pictures at a time; fewer take less memory"
    )
    checks.add_device_arguments(parser)


def run(arguments) -> None:
    checks.require_packages("transformers", "tqdm", "PIL")
    pictures = find_pictures(Path(arguments.folder))
    if arguments.output == BESIDE:
        texts = {picture: picture.with_suffix(".txt") for picture in pictures}
    else:
        folder = checks.output_folder(arguments.output, "--output")
        folder.mkdir(parents=True, exist_ok=True)
        texts = {picture: folder / f"{picture.stem}.txt" for picture in pictures}
    instruction = find_take(arguments.take).instruction if arguments.instruction is None else arguments.instruction
    check_request(instruction, arguments.max_tokens)
    checks.in_range(arguments.together, "--together", 1)
    left = [picture for picture, text in texts.items() if not (text.is_file() and text.read_bytes().strip())]
    if len(left) < len(pictures):
        print(f"{len(pictures) - len(left)} of {len(pictures)} pictures have a text already, which stays")
    if not left:
        return
    _, blocks = checks.vision_folder(arguments.model, "--model")
    device = checks.pick_device(arguments.device)
    encoder = load_encoder(arguments.model, device, checks.DTYPES[arguments.dtype], blocks)
    options = {
        "max_tokens": arguments.max_tokens, "budget": arguments.image_tokens, "temperature": arguments.temperature,
        "seed": arguments.seed, "together": arguments.together,
    }
    failed: list[str] = []
    with progress("Describing", len(left)) as move:
        for at in range(0, len(left), arguments.together):
            group = left[at : at + arguments.together]
            for picture, told in zip(group, _tell(encoder, group, instruction, options), strict=True):
                if isinstance(told, Description):
                    _write(texts[picture], told.words)
                else:
                    failed.append(f"{picture.name}: {told}")
                move()
    print(f"{len(left) - len(failed)} texts: {next(iter(texts.values())).parent}")
    for line in failed:
        print(line, file=sys.stderr)
    if failed:
        raise ValueError(f"{len(failed)} of {len(left)} pictures have no text; the others do. Mend them and run again.")


def find_pictures(folder: Path) -> list[Path]:
    """Pictures of a folder by name.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no picture, or two that would share a text.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--folder: expected a folder of pictures, found none at {folder}.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_FILES)
    if not files:
        raise ValueError(f"--folder: expected pictures ({', '.join(PICTURE_FILES)}) in {folder}, found none.")
    names: dict[str, Path] = {}
    for file in files:
        other = names.setdefault(file.stem, file)
        if other is not file:
            raise ValueError(
                f"--folder: expected one text a picture, {other.name} and {file.name} would share {file.stem}.txt. "
                "Rename one of them."
            )
    return files


def _tell(
    encoder: Qwen3VLEncoder, files: Sequence[Path], instruction: str, options: dict
) -> list[Description | ValueError]:
    """A description of each picture, or why there is none."""
    pictures: dict[int, Tensor] = {}
    told: dict[int, Description | ValueError] = {}
    for number, file in enumerate(files):
        try:
            pictures[number] = load_picture(str(file), "--folder", options["budget"])
        except ValueError as error:
            told[number] = error
    try:
        found = describe_each(encoder, list(pictures.values()), instruction, **options) if pictures else []
        told.update(zip(pictures, found, strict=True))
    except ValueError:  # one of them: the others shall have their words
        for number, picture in pictures.items():
            try:
                told[number] = describe_each(encoder, [picture], instruction, **options)[0]
            except ValueError as error:
                told[number] = error
    return [told[number] for number in range(len(files))]


def _write(path: Path, words: str) -> None:
    """The file appears whole or not at all, so that a run that is stopped goes on where it was."""
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        part.write_text(words + "\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
