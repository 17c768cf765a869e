"""``calibrate``: measure Z-Image's text encoder, the reference that VL states are brought onto."""

from __future__ import annotations

from pathlib import Path

from ..states.statistics import ENCODER_LAYER, calibrate, calibration_prompts
from ..states.vl_states import resolve_layer
from ..zimage import checks
from ..zimage.progress import progress
from ..zimage.text import batch_reader, open_text_encoder, text_reader
from .folders import OR_DEMO, zimage_or_demo

SUMMARY = "measure Z-Image's text encoder; `extract --reference` compares with the result"


def add_arguments(parser) -> None:
    parser.add_argument(
        "-m", "--model", required=True, type=zimage_or_demo, metavar="FOLDER",
        help=f"diffusers folder of Z-Image, or of its text encoder (Qwen3) alone{OR_DEMO}",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where to write, *.safetensors")
    parser.add_argument(
        "--prompts", metavar="FILE", help="texts to read, one per line (UTF-8, # starts a comment) instead of the "
        "built-in ones",
    )
    checks.add_device_arguments(parser)


def run(arguments) -> None:
    checks.require_packages("transformers", "tqdm")
    output = checks.output_file(arguments.output, "--output", ".safetensors")
    model, tokenizer, _, blocks = checks.text_encoder_folder(arguments.model, "--model")
    resolve_layer(ENCODER_LAYER, blocks)
    prompts = calibration_prompts() if arguments.prompts is None else read_prompts(arguments.prompts)
    device = checks.pick_device(arguments.device)

    encoder, tokens = open_text_encoder(model, tokenizer, device, checks.DTYPES[arguments.dtype])
    read, read_many = text_reader(encoder, tokens), batch_reader(encoder, tokens)
    with progress("Reading prompts", len(prompts)) as move:
        reference = calibrate(
            read, prompts, encoder=Path(arguments.model).resolve().name, progress=move, encode_many=read_many
        )
    reference.save(output)
    print(reference.describe())
    print(f"reference: {output}")


def read_prompts(path: str) -> list[str]:
    """The texts of a file, one per line; blank lines and those that start with # are left out.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read, is in an unknown encoding, or holds no text.
    """
    text = checks.readable_text(path, "--prompts")
    prompts = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise ValueError(f"--prompts: expected at least one text in {path}, got none.")
    return prompts
