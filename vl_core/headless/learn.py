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
from .embedded import embedded
from .folders import DEMO, add_folder_arguments, folders_of, vision_blocks
from .learn_each import Job, files_for, keyed, learn_each, left_to_do
from .vision import load_encoder

SUMMARY = "learn the look of a picture that words cannot say, as a small file that goes with any prompt"
LONGEST_ANSWER = 160  # tokens of a description
DEMO_SIZE = 128  # pixels: what the miniature paints


def add_arguments(parser) -> None:
    parser.add_argument(
        "-i", "--image", action="extend", nargs="+", required=True, metavar="FILE",
        help=f"1 to {MOST_PICTURES} pictures of one look; any number with --each",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to write: look.safetensors, or with --each the folder looks"
    )
    parser.add_argument("--each", action="store_true", help="a look of its own for every picture, named like it")
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
    cluster = parser.add_argument_group("cluster", "with --each: several looks side by side")
    cluster.add_argument("--ray", metavar="ADDRESS", help="learn on a Ray cluster; local, auto, or its address")
    cluster.add_argument("--workers", type=int, default=0, metavar="N", help="how many; 0 is one per GPU")
    checks.add_device_arguments(parser)
    parser.set_defaults(dtype=None)


def run(arguments: argparse.Namespace) -> None:
    checks.require_packages("accelerate", "diffusers", "transformers", "PIL", "tqdm")
    checks.in_range(arguments.image_tokens, "--image-tokens", 1)
    checks.in_range(arguments.workers, "--workers", 0)
    if arguments.ray is not None and not arguments.each:
        raise ValueError("--ray: expected --each with it: one look is learned on one device.")
    if arguments.each:
        outputs = files_for(arguments.image, Path(arguments.output or "looks"))
    else:
        outputs = [checks.output_file(arguments.output or "look.safetensors", "--output", ".safetensors")]
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
    dtype, path = checks.DTYPES[kind], folder.path.resolve()
    groups = [[picture] for picture in pictures] if arguments.each else [pictures]
    each = words_for(arguments, vision, groups, device, dtype)
    for words in each:
        print(f"begins as: {words.look}")
    for name, shows in zip(arguments.image, [one for words in each for one in words.shows], strict=True):
        print(f"{Path(name).name} shows: {shows or 'nothing that is told'}")
    keys = [learning_key(path.name, *told, options) for told in zip(groups, each, strict=True)]
    if arguments.each:
        every = zip(pictures, each, outputs, keys, strict=True)
        jobs = [Job(picture, words, options, output, key) for picture, words, output, key in every]
        left = left_to_do(jobs)
        if len(left) < len(jobs):
            print(f"{len(jobs) - len(left)} of {len(jobs)} looks are there already")
        learn_each(left, str(path), arguments.device, kind, ray=arguments.ray, workers=arguments.workers)
        print("\n".join(f"look: {output}" for output in outputs))
        return
    painter = PipelinePainter(load_pipeline(folder.path, device, dtype), path.name)
    look = keyed(learn_here(painter, pictures, each[0], options, outputs[0], keys[0]), keys[0])
    look.save(outputs[0])
    print("\n".join([look.describe(), *look.origin.notes]))
    print(f"look: {outputs[0]}")


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
    arguments: argparse.Namespace, vision: str | None, groups: Sequence[Sequence[Tensor]], device: torch.device,
    dtype: torch.dtype,
) -> list[Words]:
    """The words that are given, and what was not given, written by Qwen3-VL; for each look's pictures."""
    given, look = arguments.shows, arguments.words
    pictures = [picture for group in groups for picture in group]
    shows: list[str] = list(given or ())
    looks = [look] * len(groups)
    if vision is not None and (given is None or look is None):
        ask_look, ask_shows, things_of = INSTRUCTIONS["look"], INSTRUCTIONS["shows"], str
        most = None
        if arguments.model == DEMO:
            ask_look, ask_shows, things_of = embedded("look questions")
            most = 1  # the miniature's VL has only ever seen one picture at a time
        encoder = load_encoder(vision, device, dtype, -1)

        def write(shown: Sequence[Tensor], ask: str) -> str:
            return describe(encoder, list(shown), ask, max_tokens=LONGEST_ANSWER, budget=arguments.image_tokens).words

        with progress("Describing", (given is None) * len(pictures) + (look is None) * len(groups)) as move:
            for picture in pictures if given is None else ():
                shows.append(things_of(write([picture], ask_shows)))
                move()
            for index, group in enumerate(groups if look is None else ()):
                looks[index] = write(group[:most], ask_look)
                move()
    told = iter(shows)
    return [Words(tuple(next(told) for _ in group), one) for group, one in zip(groups, looks, strict=True)]


def learn_here(
    painter: PipelinePainter, pictures: Sequence[Tensor], words: Words, options: LearnOptions, output: Path, key: str
) -> Look:
    """Learn in this process; stopped, it goes on from a ``.part`` file beside the output."""
    part = part_of(output, key)
    state = stopped_at(part, key)
    if state is not None:
        print(f"goes on after {state.step} steps of a learning that was stopped")
    output.parent.mkdir(parents=True, exist_ok=True)
    with progress("Learning", options.steps) as move:

        def told(state: LearnState) -> None:
            move(state.step, options.steps, note=f"loss {state.losses[-1][0]:.4f}")

        return learn_resumed(painter, pictures, words, options, part, key, on_step=told, state=state)


def learning_key(model: str, pictures: Sequence[Tensor], words: Words, options: LearnOptions) -> str:
    """A name for one learning: the same only for a model of the same name, pictures, words and options."""
    asked = [model, [hash_picture(one) for one in pictures], words.shows, words.look, options.header()]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
