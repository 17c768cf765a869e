"""``compare``: paint every combination of settings from one reading of each picture and prompt, and lay them out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from ...adapters.picture_adapter import PictureAdapter
from ...states.files import write_whole
from ...states.vl_states import resolve_layer
from ...steering.axes import SWEPT, Axis, parse_axis
from ...steering.desk import needed_layers
from ...steering.way import Given, ways
from ...zimage import checks
from ...zimage.pipeline import ZImageFolder, load_tokenizer, prompt_layout
from ..embedded import embedded
from ..folders import DEMO, add_folder_arguments, folders_of, vision_blocks
from .fleet import paint_on_ray
from .nulls import NULLS
from .presets import PRESETS
from .report import write_report
from .runner import Paint, local, run_study
from .scores import load_score
from .study import EXTRA, Models, Study, choose_axes, make_study, read_prompts

SUMMARY = "paint a grid of settings from one reading of each picture, measure it, and write a report to browse"

JUDGE = "judge"
# How Z-Image-Turbo, and the trained miniature, are meant to be sampled.
DEFAULTS = {"steps": 9, "guidance": 0.0, "width": 1024, "height": 1024}
DEMO_DEFAULTS = {"steps": 8, "guidance": 1.0, "width": 128, "height": 128}
# Options by the names the settings have.
OPTIONS = {
    "ways": "way", "takes": "take", "strengths": "strength", "alphas": "strength",
    "layers": "layer", "token_modes": "tokens", "normalization": "normalization",
    "outlier_masking": "outlier_mode", "outlier_threshold": "outlier_threshold", "methods": "method",
    "spaces": "space", "downsample": "downsample", "target_std": "target_std", "denoise": "denoise", "think": "think",
    "describe": "described",
}
# What is worth more words than the setting's own.
HELP = {
    "alphas": "the same as --strengths", "methods": "of the open blend: aligned, resample, append …",
    "token_modes": "full, text, image, image_no_markers",
}


def help_of(option: str) -> str:
    """The words that a setting may be, or else its sentence."""
    if option == "ways":
        return ", ".join(ways())  # names of 0.1 still work, and are not for new commands
    field = (SWEPT | EXTRA)[OPTIONS[option]]
    return HELP.get(option) or ", ".join(field.choices()) or field.meaning


def add_arguments(parser) -> None:
    parser.add_argument(
        "-i", "--image", action="extend", nargs="+", required=True, metavar="FILE",
        help="reference pictures; several are compared one after the other, or read together with --together",
    )
    parser.add_argument("-p", "--prompt", action="append", default=[], metavar="TEXT", help="once for each prompt")
    parser.add_argument("--prompts", metavar="FILE", help="more prompts, *.yaml or *.json: a list, or names and texts")
    parser.add_argument("-o", "--output", default="comparison", metavar="FOLDER", help="what is there is taken over")
    parser.add_argument("--together", action="store_true", help="read all pictures at once")
    presets = "; ".join(f"{name}: {preset.meaning}" for name, preset in PRESETS.items())
    parser.add_argument("--sweep", choices=list(PRESETS), metavar="PRESET", help=presets)
    parser.add_argument("--dry-run", action="store_true", help="say what would be painted, and end")
    axes = parser.add_argument_group(
        "axes", "several values make an axis, one holds throughout; both win over the preset. 0:1:0.25 is a range; "
        "write --layers=-2:-8 where the first value is negative."
    )
    for option in OPTIONS:
        axes.add_argument(f"--{option.replace('_', '-')}", nargs="+", default=[], metavar="X", help=help_of(option))
    axes.add_argument("--seeds", nargs="+", default=[], metavar="N", help="the same seed gives the same noise")
    axes.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUES", help="any other setting, such as sinks=include"
    )
    parser.add_argument(
        "--null", nargs="*", choices=list(NULLS), metavar="KIND",
        help="null controls of every cell. another: the next picture; shuffled: its pixels in random order; noise: in "
        "place of Qwen3-VL's states. No KIND: another, or shuffled for one picture",
    )
    models = parser.add_argument_group("models")
    add_folder_arguments(models)
    models.add_argument("--adapter", metavar="FILE", help="a picture adapter")
    models.add_argument("--instruction", metavar="TEXT", help="what Qwen3-VL is asked for, in place of the take")
    models.add_argument(
        "--score", action="append", default=[], metavar="FOLDER",
        help="a CLIP or DINO on disk to score pictures with; judge: the miniature's, for the demo",
    )
    painting = parser.add_argument_group("painting")
    painting.add_argument("--steps", type=int, help="9 suits Z-Image-Turbo, 28 to 50 Z-Image")
    painting.add_argument("--guidance", type=float, help="0 suits Z-Image-Turbo, 3 to 5 Z-Image")
    painting.add_argument("--negative", default="", metavar="TEXT", help="what to stay away from; needs --guidance")
    painting.add_argument("--width", type=int, help="in pixels")
    painting.add_argument("--height", type=int, help="in pixels")
    painting.add_argument("--image-tokens", type=int, default=1024, metavar="N", help="most tokens of a picture")
    cluster = parser.add_argument_group("more than one machine")
    cluster.add_argument("--ray", metavar="ADDRESS", help="paint on a Ray cluster; local, auto, or its address")
    cluster.add_argument("--workers", type=int, default=0, metavar="N", help="painters; 0 is one per GPU")
    checks.add_device_arguments(parser)


def run(arguments) -> None:
    checks.require_packages("accelerate", "diffusers", "transformers", "PIL", "tqdm")
    folder = checks.output_folder(arguments.output, "--output")
    checks.in_range(arguments.workers, "--workers", 0)
    study, pictures = study_of(arguments)
    print(study.describe())
    if arguments.dry_run:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "study.json", json.dumps(study.as_dict(), ensure_ascii=False, indent=1) + "\n")
    rows = run_study(study, pictures, folder, painter_of(arguments, study, pictures), score_of(arguments))
    page, others = write_report(study, rows, pictures, folder)
    for path in (*others, folder / "results.jsonl", page):
        print(path)


def study_of(arguments):
    """The study that the options ask for, and its pictures; everything is checked, no model is loaded."""
    given: dict[str, list[str]] = {}
    for option, name in OPTIONS.items():
        given[name] = [*given.get(name, []), *getattr(arguments, option)]
    for text in arguments.set:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--set: expected NAME=VALUES, got {text!r}.")
        given[name.strip()] = [values]
    axes, base, title = choose_axes(arguments.sweep, given, arguments.seeds)
    base |= {"instruction": arguments.instruction} if arguments.instruction else {}
    base |= {"image_tokens": arguments.image_tokens}
    prompts = {text: text for text in arguments.prompt}
    if arguments.prompts is not None:
        prompts |= read_prompts(arguments.prompts)
    if not prompts:
        raise ValueError("--prompt: expected at least one, or a file with --prompts, got none.")
    models = models_of(arguments)
    if JUDGE in arguments.score and arguments.model != DEMO:
        raise ValueError("--score judge: reads pictures of the demo's world only. Give a CLIP or DINO instead.")
    zimage = ZImageFolder.check(models.zimage, "--model")
    blocks = vision_blocks(models.vision, zimage.width)
    axes = [within_model(axis, arguments.sweep, blocks) for axis in axes]
    pictures = [arguments.image] if arguments.together else [[path] for path in arguments.image]
    study, shown = make_study(models, pictures, prompts, axes, base, title, arguments.null)
    zimage.check_size(models.width, models.height)
    for layer in layers_of(study):
        resolve_layer(layer, blocks)
    tokenizer = load_tokenizer(zimage.tokenizer)
    for prompt in prompts.values():
        zimage.check_caption(len(prompt_layout(tokenizer, prompt)))
    return replace(study, models=replace(models, layer=deepest(study))), shown


def within_model(axis: Axis, preset: str | None, blocks: int) -> Axis:
    """A preset's own layers without those that a smaller Qwen3-VL has not got; layers that somebody asked for stay."""
    own = PRESETS[preset].axes.get("layer") if preset else None
    if axis.name != "layer" or own is None or axis != parse_axis("layer", own):
        return axis
    there = tuple(layer for layer in axis.values if -blocks - 1 <= int(layer))
    if there != axis.values:
        left_out = ", ".join(str(layer) for layer in axis.values if layer not in there)
        print(f"left out, since this Qwen3-VL has {blocks} blocks: layer {left_out}")
    return Axis("layer", there)


def models_of(arguments) -> Models:
    """What paints, from the options.

    Raises:
        FileNotFoundError, ValueError: for folders, files and numbers that do not fit.
    """
    demo = arguments.model == DEMO
    zimage, vision = folders_of(arguments.model, arguments.vision)
    adapter = arguments.adapter or (str(Path(zimage).with_name("adapter.safetensors")) if demo else "")
    for option, path in (("--reference", arguments.reference), ("--adapter", adapter)):
        if path:
            checks.readable_file(path, option)
    files = [os.path.abspath(path) if path else "" for path in (zimage, vision, arguments.reference, adapter)]
    defaults = DEMO_DEFAULTS if demo else DEFAULTS
    chosen = {
        name: default if getattr(arguments, name) is None else getattr(arguments, name)
        for name, default in defaults.items()
    }
    found = Models(
        *files, **chosen, questions=embedded("questions") if demo else (), device=arguments.device,
        dtype=arguments.dtype, negative=arguments.negative, image_tokens=arguments.image_tokens,
    )
    checks.in_range(found.steps, "--steps", 1)
    checks.in_range(found.guidance, "--guidance", 0, 100)
    checks.in_range(found.image_tokens, "--image-tokens", 1)
    checks.pick_device(found.device)
    return found


def layers_of(study: Study) -> tuple[int, ...]:
    """All hidden states that some cell may need."""
    adapter = PictureAdapter.load(study.models.adapter) if study.models.adapter else None
    return needed_layers(study.settings, Given(adapter=adapter))


def deepest(study: Study) -> int:
    """The deepest hidden state that any cell needs: blocks above it are not loaded."""
    return max(layers_of(study), default=-1)


def painter_of(arguments, study: Study, pictures) -> Paint:
    if arguments.ray is None:
        return local(study, pictures)

    def paint(cells):
        return paint_on_ray(arguments.ray, arguments.workers, study.models, pictures, study.settings, cells)

    return paint


def score_of(arguments):
    """All the scores asked for as one function; None for none."""
    if not arguments.score:
        return None
    device = checks.pick_device(arguments.device)
    scores = [
        embedded("judge")(embedded("models"), device) if one == JUDGE else load_score(one, "--score", device)
        for one in arguments.score
    ]
    return lambda *both: {name: value for score in scores for name, value in score(*both).items()}
