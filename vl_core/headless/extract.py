"""``extract``: what Qwen3-VL makes of pictures and a prompt, as a CONDITIONING file."""

from __future__ import annotations

from typing import get_args

from ..reports.inspection import inspect
from ..stages.extract import DEFAULT_LAYER, check_options, extract
from ..stages.normalize import NormalizeMode
from ..stages.outliers import Direction, MaskMode
from ..stages.select import SELECTIONS
from ..states.statistics import ReferenceStatistics
from ..states.vl_states import LAYOUT_KEY, resolve_layer, save_conditioning
from ..zimage import checks
from ..zimage.files import load_picture
from ..zimage.progress import progress
from .folders import OR_DEMO, vision_or_demo
from .vision import add_picture_arguments, load_encoder, steps_of_encode

SUMMARY = "save what Qwen3-VL makes of pictures and a prompt, cleaned and scaled, as a CONDITIONING file"


def add_arguments(parser) -> None:
    parser.add_argument(
        "-m", "--model", required=True, type=vision_or_demo, metavar="FOLDER",
        help=f"Hugging Face folder of a Qwen3-VL{OR_DEMO}",
    )
    parser.add_argument("-p", "--prompt", default="", metavar="TEXT", help="the words, read together with the pictures")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where to write, *.safetensors")
    add_picture_arguments(parser, "; none reads the prompt alone")
    parser.add_argument("--system-prompt", default="", metavar="TEXT", help="tells Qwen3-VL what to look for")
    parser.add_argument(
        "--layer", type=int, default=DEFAULT_LAYER, metavar="K",
        help="which hidden state, counted from the end; -2 is what Z-Image was trained on",
    )
    parser.add_argument(
        "--tokens", choices=list(SELECTIONS), default="text",
        help="which tokens to keep; text is the prompt with its chat template",
    )
    cleaning = parser.add_argument_group("cleaning")
    cleaning.add_argument(
        "--reference", metavar="FILE", help="statistics of Z-Image's text encoder, from `calibrate`; outlier masking "
        "and most normalizations need them",
    )
    cleaning.add_argument(
        "--outlier-masking", choices=get_args(MaskMode), default="none",
        help="what to do with dimensions whose spread is far from the reference's; on image tokens only, if any, "
        "before tokens are chosen",
    )
    cleaning.add_argument(
        "--outlier-threshold", type=float, default=10.0, metavar="X", help="how many times off counts as far"
    )
    cleaning.add_argument(
        "--direction", choices=get_args(Direction), default="over",
        help="over: wider than the reference, the research note's; under: narrower",
    )
    cleaning.add_argument(
        "--normalization", choices=get_args(NormalizeMode), default="none",
        help="how to bring the scale onto the reference's",
    )
    cleaning.add_argument(
        "--target-std", type=float, metavar="X", help="std for --normalization global instead of the reference's "
        "(61.0 in the research note)",
    )
    cleaning.add_argument(
        "--sinks", choices=["exclude", "include"], default="exclude",
        help="exclude: attention sinks are left alone and kept out of the statistics; include: as the research note",
    )
    checks.add_device_arguments(parser)


def run(arguments) -> None:
    checks.require_packages("transformers", "PIL", "tqdm")
    output = checks.output_file(arguments.output, "--output", ".safetensors")
    width, blocks = checks.vision_folder(arguments.model, "--model")
    resolve_layer(arguments.layer, blocks)
    checks.in_range(arguments.image_tokens, "--image-tokens", 1)
    pictures = [load_picture(path, "--image", arguments.image_tokens) for path in arguments.image]
    if not pictures and not arguments.prompt:
        raise ValueError("nothing to encode: give --prompt, --image or both.")
    reference = None
    if arguments.reference is not None:
        reference = ReferenceStatistics.load(checks.readable_file(arguments.reference, "--reference"))
        reference.check_width(width)
    check_options(
        len(pictures), arguments.tokens, arguments.normalization, arguments.outlier_masking,
        arguments.outlier_threshold, reference, arguments.sinks, arguments.direction, arguments.target_std,
    )
    device = checks.pick_device(arguments.device)

    encoder = load_encoder(arguments.model, device, checks.DTYPES[arguments.dtype], arguments.layer)
    with progress("Encoding", steps_of_encode(encoder, len(pictures), arguments.layer)) as move:
        result = extract(
            encoder, pictures, arguments.prompt, arguments.layer, arguments.tokens, arguments.normalization,
            arguments.outlier_masking, arguments.outlier_threshold, reference, arguments.sinks, arguments.direction,
            arguments.system_prompt, arguments.image_tokens, arguments.target_std, check=move,
        )
    save_conditioning(output, [(result.embeddings[None].cpu(), {LAYOUT_KEY: result.layout})])
    print("\n".join(result.notes))
    print(inspect(result.embeddings, result.layout, reference, arguments.outlier_threshold).describe())
    print(f"conditioning: {output}")
