"""``learn``: a look from one picture or several of one look, on Z-Image itself."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..encoder.writing import INSTRUCTIONS, describe
from ..looks.lesson import MOST_PICTURES
from ..looks.look import Look, hash_picture
from ..looks.options import QUALITIES, LearnOptions
from ..looks.resumed import learn_resumed, part_of, stopped_at
from ..looks.start import Words
from ..looks.state import LearnState
from ..zimage import checks
from ..zimage.files import load_picture
from ..zimage.look_painter import PipelinePainter
from ..zimage.pipeline import ZImageFolder, load_pipeline
from ..zimage.progress import progress
from .embedded import embedded_look_questions
from .folders import DEMO, add_folder_arguments, folders_of, vision_blocks
from .vision import load_encoder

SUMMARY = "learn the look of a picture that words cannot say, as a small file that goes with any prompt"
LONGEST_ANSWER = 160  # tokens of a description
DEMO_SIZE = 128  # pixels: what the miniature paints


def add_arguments(parser) -> None:
    parser.add_argument(
        "-i", "--image", action="extend", nargs="+", required=True, metavar="FILE",
        help=f"1 to {MOST_PICTURES} pictures of one look",
    )
    parser.add_argument("-o", "--output", default="look.safetensors", metavar="FILE", help="where to write")
    parser.add_argument(
        "--quality", choices=list(QUALITIES), default="good",
        help="; ".join(f"{name}: {options.steps} steps" for name, options in QUALITIES.items()),
    )
    add_folder_arguments(parser, reference=False)
    told = parser.add_argument_group("words", "written by Qwen3-VL unless given; with both --vision is not needed")
    told.add_argument("--words", metavar="TEXT", help="how the pictures look: where learning begins")
    told.add_argument(
        "--shows", nargs="+", metavar="TEXT", help="what each picture shows, one text per picture: what is told here "
        "stays out of the look",
    )
    told.add_argument("--image-tokens", type=int, default=1024, metavar="N", help="most tokens of a picture")
    numbers = parser.add_argument_group("numbers", "in place of the quality's own")
    numbers.add_argument("--steps", type=int, metavar="N", help="of learning")
    numbers.add_argument("--size", type=int, metavar="N", help="learn at about N × N pixels")
    numbers.add_argument("--seed", type=int, default=0, help="of the noise that is learned on")
    checks.add_device_arguments(parser)
    parser.set_defaults(dtype=None)


def run(arguments: argparse.Namespace) -> None:
    checks.require_packages("accelerate", "diffusers", "transformers", "PIL", "tqdm")
    output = checks.output_file(arguments.output, "--output", ".safetensors")
    checks.in_range(arguments.image_tokens, "--image-tokens", 1)
    checks.in_range(len(arguments.image), "--image, pictures", 1, MOST_PICTURES)
    pictures = [load_picture(path, "--image", arguments.image_tokens) for path in arguments.image]
    options = options_of(arguments)
    model, vision = models_of(arguments)
    folder = ZImageFolder.check(model, "--model")
    check_words(arguments, len(pictures))
    if vision is not None:
        vision_blocks(vision, folder.width)
    device = checks.pick_device(arguments.device)
    # The miniature is small enough for float32 anywhere, and bfloat16 is slow on many CPUs.
    kind = arguments.dtype or ("float32" if arguments.model == DEMO else "bfloat16")
    dtype = checks.DTYPES[kind]
    words = words_for(arguments, vision, pictures, device, dtype)
    print(f"begins as: {words.look}")
    for path, shows in zip(arguments.image, words.shows, strict=True):
        print(f"{Path(path).name} shows: {shows or 'nothing that is told'}")
    painter = PipelinePainter(load_pipeline(folder.path, device, dtype), folder.path.resolve().name)
    look = learn_here(painter, pictures, words, options, output)
    look.save(output)
    print("\n".join([look.describe(), *look.origin.notes]))
    print(f"look: {output}")


def options_of(arguments: argparse.Namespace) -> LearnOptions:
    """The quality's numbers, those that are given in their place.

    Raises:
        ValueError: for a number out of range.
    """
    given = {name: getattr(arguments, name) for name in ("steps", "size", "seed")}
    if arguments.model == DEMO and given["size"] is None:
        given["size"] = DEMO_SIZE
    try:
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(QUALITIES[arguments.quality], **chosen)
    except ValueError as error:
        raise ValueError(f"--{error}") from error


def models_of(arguments: argparse.Namespace) -> tuple[str, str | None]:
    """Folders of Z-Image and of Qwen3-VL; None for the latter where all words are given."""
    if arguments.words is not None and arguments.shows is not None and arguments.model != DEMO:
        return arguments.model, None
    model, vision = folders_of(arguments.model, arguments.vision)
    return model, vision


def check_words(arguments: argparse.Namespace, pictures: int) -> None:
    """Raise ValueError for another number of texts than of pictures, or empty words for the look."""
    if arguments.shows is not None and len(arguments.shows) != pictures:
        raise ValueError(f"--shows: expected {pictures} texts, one per picture, got {len(arguments.shows)}.")
    if arguments.words is not None and not arguments.words.strip():
        raise ValueError("--words: expected words for the look, got none. Leave it out to have them written.")


def words_for(
    arguments: argparse.Namespace, vision: str | None, pictures: Sequence[Tensor], device: torch.device,
    dtype: torch.dtype,
) -> Words:
    """The words that are given, and what was not given, written by Qwen3-VL."""
    shows, look = arguments.shows, arguments.words
    if vision is None or (shows is not None and look is not None):
        return Words(tuple(shows), look)
    ask_look, ask_shows, end = INSTRUCTIONS["look"], INSTRUCTIONS["shows"], ""
    seen = list(pictures)
    if arguments.model == DEMO:
        ask_look, ask_shows, end = embedded_look_questions()
        seen = seen[:1]  # the miniature's VL has only ever seen one picture at a time
    encoder = load_encoder(vision, device, dtype, -1)

    def write(shown: list[Tensor], ask: str) -> str:
        return describe(encoder, shown, ask, max_tokens=LONGEST_ANSWER, budget=arguments.image_tokens).words

    with progress("Describing", (shows is None) * len(pictures) + (look is None)) as move:
        if shows is None:
            shows = []
            for picture in pictures:
                said = write([picture], ask_shows)
                shows.append(said.split(end)[0] if end else said)
                move()
        if look is None:
            look = write(seen, ask_look)
            move()
    return Words(tuple(shows), look)


def learn_here(
    painter: PipelinePainter, pictures: Sequence[Tensor], words: Words, options: LearnOptions, output: Path
) -> Look:
    """Learn in this process; stopped, it goes on from a ``.part`` file beside the output."""
    key = learning_key(painter, pictures, words, options)
    part = part_of(output, key)
    state = stopped_at(part, key)
    if state is not None:
        print(f"goes on after {state.step} steps of a learning that was stopped")
    output.parent.mkdir(parents=True, exist_ok=True)
    with progress("Learning", options.steps) as move:

        def told(state: LearnState) -> None:
            move(state.step, options.steps, note=f"loss {state.losses[-1][0]:.4f}")

        return learn_resumed(painter, pictures, words, options, part, key, on_step=told, state=state)


def learning_key(
    painter: PipelinePainter, pictures: Sequence[Tensor], words: Words, options: LearnOptions
) -> str:
    """A name for one learning: the same only for the same model, pictures, words and options."""
    asked = [painter.name, [hash_picture(one) for one in pictures], words.shows, words.look, options.header()]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
