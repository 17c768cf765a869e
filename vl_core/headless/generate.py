"""``generate``: a picture painted by Z-Image from words and what Qwen3-VL saw."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from ..adapters.picture_adapter import PictureAdapter
from ..encoder.qwen3vl import Qwen3VLEncoder
from ..looks.look import Look
from ..stages.blend import BlendMethod, BlendSpace, blend
from ..states.layout import TokenLayout
from ..states.vl_states import LAYOUT_KEY, load_conditioning, resolve_layer, save_conditioning
from ..steering.desk import needed_layers
from ..steering.recipes import Recipe, load_recipes, read_recipe
from ..steering.references import Reference
from ..steering.settings import AUTOMATIC, FIELDS, Settings
from ..steering.steer import steer
from ..steering.takes import DEFAULT_TAKE, TAKES, take_names
from ..steering.way import Given, find_way, ways
from ..zimage import checks
from ..zimage.files import load_picture, save_png
from ..zimage.host import PipelineHost
from ..zimage.pipeline import ZImageFolder, encode_text, load_pipeline, load_tokenizer, paint, prompt_layout
from ..zimage.progress import progress
from .folders import OR_DEMO, questions_of, vision_or_demo, zimage_or_demo
from .vision import add_picture_arguments, load_encoder

if TYPE_CHECKING:
    from ..zimage.pipeline import ZImagePipeline

SUMMARY = "paint with Z-Image, steered by a saved CONDITIONING file or directly by pictures"


def add_arguments(parser) -> None:
    parser.add_argument(
        "-m", "--model", required=True, type=zimage_or_demo, metavar="FOLDER",
        help=f"diffusers folder of Z-Image{OR_DEMO}",
    )
    parser.add_argument("-p", "--prompt", required=True, metavar="TEXT", help="what to paint")
    parser.add_argument("-o", "--output", default="zimage-vl.png", metavar="FILE", help="where to write, *.png")
    parser.add_argument(
        "--save-conditioning", action="store_true",
        help="also write what was painted from, beside the picture as *.safetensors",
    )
    parser.add_argument(
        "--negative", default="", metavar="TEXT", help="what to stay away from; needs --guidance above 0"
    )
    directly = parser.add_argument_group("steer by pictures")
    directly.add_argument(
        "--vision", type=vision_or_demo, metavar="FOLDER", help=f"Hugging Face folder of a Qwen3-VL-4B{OR_DEMO}"
    )
    add_picture_arguments(directly, " (needs --vision)")
    directly.add_argument(
        "--way", default=AUTOMATIC, metavar="WAY",
        help="how it travels: " + "; ".join(f"{name}: {way.meaning}" for name, way in ways().items()),
    )
    directly.add_argument(
        "--take", choices=take_names(), default=DEFAULT_TAKE, metavar="TAKE",
        help="what to take from the picture: " + "; ".join(f"{take.name}: {take.meaning}" for take in TAKES),
    )
    directly.add_argument("--mode", dest="way", default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # its name in 0.1
    directly.add_argument("--strength", type=float, default=1.0, metavar="X", help=FIELDS["strength"].meaning)
    directly.add_argument("--words", metavar="TEXT", help="words about the picture; then Qwen3-VL writes none")
    directly.add_argument("--adapter", metavar="FILE", help="a picture adapter, from `fit`")
    directly.add_argument("--look", metavar="FILE", action="append", default=[], help="a learned look, from `learn`")
    directly.add_argument("--recipe", metavar="FILE", help="a recipe file *.json, in place of --way and --take")
    directly.add_argument("--layer", type=int, default=0, metavar="K", help=FIELDS["layer"].meaning)
    saved = parser.add_argument_group("or steer by a saved conditioning")
    saved.add_argument("-e", "--embeddings", metavar="FILE", help="from `extract`")
    saved.add_argument(
        "--alpha", type=float, default=0.5, metavar="X", help="how much it counts, 0 (words only) to 1"
    )
    saved.add_argument(
        "--method", choices=get_args(BlendMethod), default="aligned",
        help="how its tokens meet those of the prompt; aligned needs the same prompt in both",
    )
    saved.add_argument(
        "--space", choices=get_args(BlendSpace), default="dit",
        help="dit mixes what Z-Image sees, raw is the research note's",
    )
    saved.add_argument(
        "--downsample", type=int, default=1, metavar="N",
        help="with --method append: average pictures over N × N tokens",
    )
    painting = parser.add_argument_group("painting")
    painting.add_argument("--seed", type=int, default=0, help="the same seed gives the same picture")
    painting.add_argument("--steps", type=int, default=9, help="9 suits Z-Image-Turbo, 28 to 50 Z-Image")
    painting.add_argument("--guidance", type=float, default=0.0, help="0 suits Z-Image-Turbo, 3 to 5 Z-Image")
    painting.add_argument("--width", type=int, default=1024, help="in pixels")
    painting.add_argument("--height", type=int, default=1024, help="in pixels")
    checks.add_device_arguments(parser)


def run(arguments) -> None:
    checks.require_packages("accelerate", "diffusers", "transformers", "PIL", "tqdm")
    output = checks.output_file(arguments.output, "--output", ".png")
    if arguments.save_conditioning:
        checks.output_file(str(output.with_suffix(".safetensors")), "--save-conditioning", ".safetensors")
    folder = ZImageFolder.check(arguments.model, "--model")
    folder.check_size(arguments.width, arguments.height)
    checks.in_range(arguments.steps, "--steps", 1)
    checks.in_range(arguments.guidance, "--guidance", 0, 100)
    checks.in_range(arguments.seed, "--seed", 0, 2**63 - 1)
    device, dtype = checks.pick_device(arguments.device), checks.DTYPES[arguments.dtype]
    layout = prompt_layout(load_tokenizer(folder.tokenizer), arguments.prompt)
    folder.check_caption(len(layout))

    job = choose(arguments, folder.width, device, dtype)
    pipeline = load_pipeline(folder.path, device, dtype)
    plain, states, mixed_layout, report, window = job.run(pipeline)
    folder.check_caption(len(states))
    with progress("Painting", arguments.steps) as move:
        image = paint(
            pipeline, states, negative=arguments.negative, steps=arguments.steps, guidance=arguments.guidance,
            width=arguments.width, height=arguments.height, seed=arguments.seed, progress=move, outside=plain,
            window=window,
        )
    save_png(output, image, {**common_settings(arguments, folder), **job.noted})
    print(report)
    if arguments.negative and arguments.guidance == 0:
        print("note: --negative has no effect at --guidance 0.")
    print(f"picture: {output}")
    if arguments.save_conditioning:
        options = {} if mixed_layout is None else {LAYOUT_KEY: mixed_layout}
        path = output.with_suffix(".safetensors")
        save_conditioning(path, [(states[None].float().cpu(), options)])
        print(f"conditioning: {path}")


def common_settings(arguments, folder: ZImageFolder) -> dict[str, Any]:
    """What every picture notes about how it was made; names instead of paths, which are nobody else's business."""
    chosen = ("prompt", "negative", "seed", "steps", "guidance", "width", "height", "dtype")
    return {"model": folder.path.resolve().name, **{name: getattr(arguments, name) for name in chosen}}


@dataclass(frozen=True, eq=False)
class Job:
    """What to do once Z-Image is loaded, and what the picture notes about it.

    Attributes:
        run: from the pipeline to the prompt's own states, those to paint from, their layout, a report, and the shares
            of the steps in which they rule.
    """

    run: Callable[[ZImagePipeline], tuple[Tensor, Tensor, TokenLayout | None, str, tuple[float, float]]]
    noted: dict[str, Any]


def choose(arguments, width: int, device: torch.device, dtype: torch.dtype) -> Job:
    """What is to be done, from the options; everything is checked that can be before a model is loaded.

    Raises:
        FileNotFoundError, ValueError: for options, files and models that do not fit.
    """
    if arguments.embeddings is not None and (arguments.vision is not None or arguments.image):
        raise ValueError("--embeddings and --vision/--image: give one or the other.")
    if arguments.embeddings is not None:
        return saved_job(arguments, width)
    if arguments.words is None and not arguments.look and (arguments.vision is None) != (not arguments.image):
        missing = "--vision, a Qwen3-VL folder" if arguments.vision is None else "--image, a picture"
        raise ValueError(f"to steer by pictures, {missing} is missing.")
    return steered_job(arguments, width, device, dtype)


def saved_job(arguments, width: int) -> Job:
    """Blending the prompt with a saved conditioning."""
    checks.in_range(arguments.alpha, "--alpha", 0, 1)
    checks.in_range(arguments.downsample, "--downsample", 1)
    path = checks.readable_file(arguments.embeddings, "--embeddings")
    entries = load_conditioning(path)
    if len(entries) != 1 or entries[0][0].shape[0] != 1:
        count = sum(len(states) for states, _ in entries)
        raise ValueError(f"--embeddings: expected one sequence, got {count} in {path}.")
    (vl,), options = entries[0]
    if vl.shape[-1] != width:
        raise ValueError(f"--embeddings: expected width {width} for this Z-Image, got {vl.shape[-1]} in {path}.")

    def blended(states: Tensor, layout: TokenLayout) -> tuple[Tensor, TokenLayout | None, str]:
        if arguments.alpha == 0:  # appending and truncating know no alpha, but 0 means words only everywhere
            return states, layout, "Alpha 0: words only."
        mixed, info = blend(
            states, vl, arguments.alpha, arguments.method, arguments.space, text_layout=layout,
            vl_layout=options.get(LAYOUT_KEY), append_downsample=arguments.downsample,
        )
        return mixed, info.layout, info.describe()

    folder = ZImageFolder.check(arguments.model, "--model")
    layout = prompt_layout(load_tokenizer(folder.tokenizer), arguments.prompt)
    # A rehearsal on zeros finds what does not fit before Z-Image is loaded.
    folder.check_caption(len(blended(torch.zeros(len(layout), width), layout)[0]))

    def run(pipeline: ZImagePipeline):
        states, own = encode_text(pipeline, arguments.prompt, Path(arguments.model).resolve().name)
        return states, *blended(states, own), (0.0, 1.0)

    chosen = ("alpha", "method", "space", "downsample")
    return Job(run, {"embeddings": path.name, **{name: getattr(arguments, name) for name in chosen}})


def steered_job(arguments, width: int, device: torch.device, dtype: torch.dtype) -> Job:
    """Steering the prompt by pictures, or by words about one."""
    settings, notes = settings_of(arguments)
    pictures = [load_picture(path, "--image", arguments.image_tokens) for path in arguments.image]
    adapter = None
    if arguments.adapter is not None:
        adapter = PictureAdapter.load(checks.readable_file(arguments.adapter, "--adapter"))
    looks = tuple(Look.load(checks.readable_file(path, "--look")) for path in arguments.look)
    given = Given(adapter=adapter, words=arguments.words, look=looks or None)
    layers = needed_layers([settings], given) if pictures and settings.strength else ()
    if arguments.vision is not None:
        vision_width, blocks = checks.vision_folder(arguments.vision, "--vision")
        if vision_width != width:
            raise ValueError(
                f"--vision: expected width {width} for this Z-Image, got {vision_width}. Z-Image needs the 4B."
            )
        for layer in layers:
            resolve_layer(layer, blocks)

    def run(pipeline: ZImagePipeline):
        def load() -> Qwen3VLEncoder:
            return load_encoder(arguments.vision, device, dtype, max(layers, default=-1))

        host = PipelineHost(
            pipeline, load, model=Path(arguments.model).resolve().name, questions=questions_of(arguments.vision)
        )
        references = [Reference(picture) for picture in pictures]
        outcome = steer(host, arguments.prompt, references, settings, given)
        (steered,), (text,) = outcome.entries, outcome.texts
        report = "\n".join([*notes, outcome.report()])
        return text.states, steered.states, steered.layout, report, settings.window

    noted = {"images": [Path(path).name for path in arguments.image], **settings.effective()}
    noted |= {} if arguments.recipe is None else {"recipe": find_recipe(arguments.recipe).name}
    return Job(run, noted | ({} if arguments.vision is None else {"vision": Path(arguments.vision).resolve().name}))


def settings_of(arguments) -> tuple[Settings, list[str]]:
    """The settings that the options name, and a line about a recipe.

    Raises:
        FileNotFoundError, ValueError: for a recipe that cannot be read, or a value out of range.
    """
    checks.in_range(arguments.image_tokens, "--image-tokens", 1)
    if arguments.recipe is None:
        settings = Settings(
            way=find_way(arguments.way).name, take=arguments.take, strength=arguments.strength, layer=arguments.layer,
            image_tokens=arguments.image_tokens,
        )
        return settings, []
    recipe = find_recipe(arguments.recipe)
    return replace(recipe.at(arguments.strength), image_tokens=arguments.image_tokens), [
        recipe.describe(arguments.strength)
    ]


def find_recipe(name: str) -> Recipe:
    """A recipe from a file, or one of version 0.1 by its name.

    Raises:
        FileNotFoundError, ValueError: if there is none.
    """
    recipes, _ = load_recipes()
    if name.endswith(".json"):
        return read_recipe(checks.readable_file(name, "--recipe"))
    if name in recipes:
        return recipes[name]
    raise ValueError(f"--recipe: expected a file *.json, got {name!r}. What to take is chosen with --take.")
