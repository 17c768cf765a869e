"""``generate``: a picture painted by Z-Image from words and what Qwen3-VL saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ..stages.blend import BlendMethod, BlendSpace, blend
from ..states.layout import TokenLayout
from ..states.vl_states import LAYOUT_KEY, load_conditioning, resolve_layer, save_conditioning
from ..steering.modes import DEFAULT_LAYERS, MODES, ModeSettings, check_recipe, condition
from ..steering.recipes import Recipe, load_recipes, read_recipe
from ..zimage import checks
from ..zimage.files import load_picture, save_png
from ..zimage.pipeline import ZImageFolder, encode_text, load_pipeline, load_tokenizer, paint, prompt_layout
from ..zimage.progress import progress
from .vision import add_picture_arguments, load_encoder, steps_of_encode

SUMMARY = "paint with Z-Image, steered by a saved CONDITIONING file or directly by pictures"

# Text states (L, D) and their layout -> the states to paint from, their layout, a report.
Mix = Callable[[Tensor, TokenLayout], tuple[Tensor, TokenLayout | None, str]]


def add_arguments(parser) -> None:
    parser.add_argument("-m", "--model", required=True, metavar="FOLDER", help="diffusers folder of Z-Image")
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
    directly.add_argument("--vision", metavar="FOLDER", help="Hugging Face folder of a Qwen3-VL-4B")
    add_picture_arguments(directly, " (needs --vision)")
    directly.add_argument(
        "--mode", choices=list(DEFAULT_LAYERS), default="blend aligned",
        help="blend aligned tints each word, gentle; append picture puts the picture's tokens after the words, "
        "stronger; blend as published is the research note's arithmetic; image delta adds to each word what the "
        "picture did to it",
    )
    directly.add_argument(
        "--strength", type=float, default=0.5, metavar="X", help="how much the picture counts, 0 (words only) to 1; -3 "
        "to 3 for image delta"
    )
    directly.add_argument(
        "--recipe", metavar="NAME", help="what to take from the picture, in place of --mode and --layer: "
        f"{', '.join(load_recipes()[0])}, or a recipe file *.json"
    )
    directly.add_argument(
        "--layer", type=int, metavar="K", help="which hidden state of Qwen3-VL, counted from the end (default: -6 "
        "for the blends, else -2)",
    )
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

    mix, settings = choose_mix(arguments, folder.width, device, dtype)
    # A rehearsal on zeros finds what does not fit before Z-Image is loaded.
    folder.check_caption(len(mix(torch.zeros(len(layout), folder.width), layout)[0]))
    pipeline = load_pipeline(folder.path, device, dtype)
    states, text_layout = encode_text(pipeline, arguments.prompt, folder.path.resolve().name)
    states, mixed_layout, report = mix(states, text_layout)
    with progress("Painting", arguments.steps) as move:
        image = paint(
            pipeline, states, negative=arguments.negative, steps=arguments.steps, guidance=arguments.guidance,
            width=arguments.width, height=arguments.height, seed=arguments.seed, progress=move,
        )
    save_png(output, image, {**common_settings(arguments, folder), **settings})
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


def choose_mix(arguments, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Mix, dict[str, Any]]:
    """What is to be mixed into the prompt, from the options, and its settings. Runs Qwen3-VL if that is needed.

    Raises:
        FileNotFoundError, ValueError: for options, files and models that do not fit.
    """
    if arguments.embeddings is not None and (arguments.vision is not None or arguments.image):
        raise ValueError("--embeddings and --vision/--image: give one or the other.")
    if arguments.embeddings is not None:
        return mix_saved(arguments, width)
    if (arguments.vision is None) != (not arguments.image):
        missing = "--vision, a Qwen3-VL folder" if arguments.vision is None else "--image, a picture"
        raise ValueError(f"to steer by pictures, {missing} is missing.")
    if arguments.vision is not None:
        return mix_seen(arguments, width, device, dtype)
    return words_only("Nothing to steer by: words only.")


def words_only(report: str) -> tuple[Mix, dict[str, Any]]:
    return lambda states, layout: (states, layout, report), {}


def mix_saved(arguments, width: int) -> tuple[Mix, dict[str, Any]]:
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
    settings = {"embeddings": path.name} | {
        name: getattr(arguments, name) for name in ("alpha", "method", "space", "downsample")
    }
    if arguments.alpha == 0:  # appending and truncating know no alpha, but 0 means words only everywhere
        return words_only("Alpha 0: words only.")[0], settings

    def mix(states: Tensor, layout: TokenLayout) -> tuple[Tensor, TokenLayout | None, str]:
        mixed, info = blend(
            states, vl, arguments.alpha, arguments.method, arguments.space, text_layout=layout,
            vl_layout=options.get(LAYOUT_KEY), append_downsample=arguments.downsample,
        )
        return mixed, info.layout, info.describe()

    return mix, settings


def mix_seen(arguments, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Mix, dict[str, Any]]:
    recipe = None if arguments.recipe is None else find_recipe(arguments.recipe)
    mode = arguments.mode if recipe is None else recipe.mode
    strength = arguments.strength if recipe is None else recipe.scale * arguments.strength
    check_recipe(mode, strength)
    checks.in_range(arguments.image_tokens, "--image-tokens", 1)
    pictures = [load_picture(path, "--image", arguments.image_tokens) for path in arguments.image]
    vision_width, blocks = checks.vision_folder(arguments.vision, "--vision")
    if vision_width != width:
        raise ValueError(
            f"--vision: expected width {width} for this Z-Image, got {vision_width}. Z-Image needs the 4B."
        )
    layer = DEFAULT_LAYERS[mode] if arguments.layer is None else arguments.layer
    if recipe is not None:
        layer, pictures = recipe.layer, [recipe.show(picture) for picture in pictures]
    layers = MODES[mode].layers(layer)
    depth = max(resolve_layer(one, blocks) for one in layers)
    settings = {
        "vision": Path(arguments.vision).resolve().name, "images": [Path(path).name for path in arguments.image],
        "mode": mode, "strength": strength, "layer": layer, "image_tokens": arguments.image_tokens,
    } | ({} if recipe is None else {"recipe": recipe.name})
    if strength == 0:
        return words_only("Strength 0: words only.")[0], settings
    encoder = load_encoder(arguments.vision, device, dtype, max(layers))
    notes: list[str] = [] if recipe is None else [recipe.describe(arguments.strength)]
    needs_muted = MODES[mode].needs_muted
    with progress("Looking", steps_of_encode(encoder, len(pictures), max(layers)) + needs_muted * depth) as move:
        read = (pictures, arguments.prompt, layers, recipe.system_prompt if recipe else None)
        seen = encoder.encode(*read, budget=arguments.image_tokens, check=move, notes=notes)
        muted = None
        if needs_muted:
            muted = encoder.encode(*read, budget=arguments.image_tokens, check=move, mute=True)

    def mix(states: Tensor, layout: TokenLayout) -> tuple[Tensor, TokenLayout | None, str]:
        mixed, mixed_layout, report = condition(
            states, layout, seen, layer, mode, strength, muted=muted,
            settings=recipe.settings if recipe else ModeSettings(),
        )
        return mixed, mixed_layout, "\n".join([*notes, report])

    return mix, settings


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or from a file.

    Raises:
        FileNotFoundError, ValueError: if there is none, or it asks for what only the ComfyUI nodes do.
    """
    recipes, _ = load_recipes()
    if name.endswith(".json"):
        recipe = read_recipe(checks.readable_file(name, "--recipe"))
    elif name in recipes:
        recipe = recipes[name]
    else:
        raise ValueError(f"--recipe: expected one of {', '.join(recipes)}, or a file *.json, got {name!r}.")
    if (recipe.start_percent, recipe.end_percent) != (0, 1):
        raise ValueError(
            f"--recipe: {recipe.name} acts from {recipe.start_percent:.0%} to {recipe.end_percent:.0%} of the steps, "
            "which only the ComfyUI node can do. Choose another, or a copy of its file without start and end."
        )
    if recipe.settings.needs_reference:
        raise ValueError(
            f"--recipe: {recipe.name} compares with the text encoder's statistics, which only the ComfyUI node "
            "measures. Set its normalization and outliers to none, or use `extract` and --embeddings."
        )
    return recipe
