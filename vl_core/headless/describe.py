"""``describe``: a text for every picture of a folder, as *Fit Picture Adapter* and ``fit`` read them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..adapters.captions import find_pictures, groups, tell_group, text_files, without_text, write_texts
from ..encoder.asking import MAX_TOKENS, check_request
from ..encoder.writing import INSTRUCTIONS, TOGETHER, describe_each, rewrite_request
from ..steering.takes import find_take, take_names
from ..zimage import checks
from ..zimage.files import load_picture
from ..zimage.progress import progress
from .compare.fleet import on_ray
from .folders import OR_DEMO, questions_of, vision_or_demo
from .vision import load_encoder

SUMMARY = "have Qwen3-VL write a text for every picture of a folder"
BESIDE = "beside"
SLOTS = "slots"


def add_arguments(parser) -> None:
    parser.add_argument("-f", "--folder", required=True, metavar="FOLDER", help="of pictures")
    parser.add_argument(
        "-m", "--model", required=True, type=vision_or_demo, metavar="FOLDER",
        help=f"Hugging Face folder of a Qwen3-VL{OR_DEMO}",
    )
    parser.add_argument(
        "-o", "--output", default=BESIDE, metavar="FOLDER",
        help="where photo.txt of photo.png is written; beside is next to the picture. Texts that are there stay",
    )
    parser.add_argument(
        "--take", choices=[*take_names(), SLOTS], default="everything",
        help="what to write about; slots: a line for each part of the look, which `fit` learns best from",
    )
    parser.add_argument("--instruction", metavar="TEXT", help="what to ask Qwen3-VL, in place of --take")
    parser.add_argument(
        "--rewrite", metavar="PROMPT", help="rewrite this prompt with each picture in view, in place of --take"
    )
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="most tokens of a text")
    parser.add_argument("--image-tokens", type=int, default=1024, metavar="N", help="most tokens of a picture")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0 writes the likeliest words")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the words, where they are drawn")
    parser.add_argument(
        "--together", type=int, default=TOGETHER, metavar="N", help="pictures at a time; fewer take less memory"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="describe on a Ray cluster; local, auto, or its address")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="of the cluster; 0 is one per GPU")
    checks.add_device_arguments(parser)


@dataclass(frozen=True)
class Asked:
    """What is asked about each picture, and who is. Plain values: they travel to other machines."""

    model: str
    blocks: int
    device: str
    dtype: str
    instruction: str
    max_tokens: int
    image_tokens: int
    temperature: float
    seed: int
    together: int


class Teller:
    """Qwen3-VL, loaded, telling groups of pictures."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        device, dtype = checks.pick_device(asked.device), checks.DTYPES[asked.dtype]
        self.encoder = load_encoder(asked.model, device, dtype, asked.blocks)

    def tell(self, files: Sequence[Path]) -> list[str | Exception]:
        """See :func:`tell_group`."""
        asked = self.asked

        def words(pictures) -> list[str]:
            told = describe_each(
                self.encoder, pictures, asked.instruction, max_tokens=asked.max_tokens, budget=asked.image_tokens,
                temperature=asked.temperature, seed=asked.seed, together=asked.together,
            )
            return [one.words for one in told]

        return tell_group(files, words, partial(_load, budget=asked.image_tokens))


def run(arguments) -> None:
    checks.require_packages("transformers", "tqdm", "PIL")
    pictures = find_pictures(Path(arguments.folder), "--folder")
    folder = None if arguments.output == BESIDE else checks.output_folder(arguments.output, "--output")
    texts = text_files(pictures, folder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    instruction = _instruction(arguments)
    check_request(instruction, arguments.max_tokens)
    checks.in_range(arguments.together, "--together", 1)
    checks.in_range(arguments.workers, "--workers", 0)
    left = without_text(texts)
    if len(left) < len(pictures):
        print(f"{len(pictures) - len(left)} of {len(pictures)} pictures have a text already, which stays")
    if not left:
        return
    _, blocks = checks.vision_folder(arguments.model, "--model")
    asked = Asked(
        os.path.abspath(arguments.model), blocks, arguments.device, arguments.dtype, instruction,
        arguments.max_tokens, arguments.image_tokens, arguments.temperature, arguments.seed, arguments.together,
    )
    found = tell_here(asked, left) if arguments.ray is None else tell_on_ray(
        asked, left, arguments.ray, arguments.workers
    )
    with progress("Describing", len(left)) as move:
        failed = write_texts(texts, found, move)
    print(f"{len(left) - len(failed)} texts: {next(iter(texts.values())).parent}")
    for line in failed:
        print(line, file=sys.stderr)
    if failed:
        raise ValueError(f"{len(failed)} of {len(left)} pictures have no text; the others do. Mend them and run again.")


def tell_here(asked: Asked, left: Sequence[Path]) -> Iterator[tuple[Sequence[Path], list[str | Exception]]]:
    """Groups of pictures and their words, in this process."""
    teller = Teller(asked)
    for group in groups(left, asked.together):
        yield group, teller.tell(group)


def tell_on_ray(
    asked: Asked, left: Sequence[Path], address: str, workers: int
) -> Iterator[tuple[Sequence[Path], list[str | Exception]]]:
    """The same by workers, each with a Qwen3-VL of its own; the folders must lie in the same places everywhere."""
    whole = groups([Path(os.path.abspath(picture)) for picture in left], asked.together)
    found = on_ray(
        address, workers, Teller, (asked,), lambda worker, group: worker.tell.remote(group), whole, ordered=True,
    )
    yield from zip(groups(left, asked.together), found, strict=True)


def _instruction(arguments) -> str:
    if arguments.rewrite is not None:
        return rewrite_request(arguments.rewrite)
    if arguments.instruction is not None:
        return arguments.instruction
    own = questions_of(arguments.model)
    if arguments.take in own:
        return own[arguments.take].ask
    return INSTRUCTIONS[SLOTS] if arguments.take == SLOTS else find_take(arguments.take).instruction


def _load(file: Path, budget: int):
    return load_picture(str(file), "--folder", budget)
