"""``calibrate``: measure Z-Image's text encoder, the reference that VL states are brought onto."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..states.statistics import ENCODER_LAYER, calibrate, calibration_prompts, length_batches
from ..states.vl_states import resolve_layer
from ..zimage import checks
from ..zimage.pipeline import load_tokenizer, prompt_layout
from ..zimage.progress import progress

SUMMARY = "measure Z-Image's text encoder; `extract --reference` compares with the result"


def add_arguments(parser) -> None:
    parser.add_argument(
        "-m", "--model", required=True, metavar="FOLDER",
        help="diffusers folder of Z-Image, or of its text encoder (Qwen3) alone",
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
        FileNotFoundError, ValueError: if it cannot be read, is not UTF-8, or holds no text.
    """
    try:
        text = checks.readable_file(path, "--prompts").read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts: expected a text file in UTF-8, got {path}.") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise ValueError(f"--prompts: expected at least one text in {path}, got none.")
    return prompts


def load_text_encoder(
    model: Path, tokenizer: Path, device: torch.device, dtype: torch.dtype
) -> Callable[[str], Tensor]:
    """Both from their folders, as :func:`text_reader`."""
    return text_reader(*open_text_encoder(model, tokenizer, device, dtype))


def open_text_encoder(
    model: Path, tokenizer: Path, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, Any]:
    """The encoder and its tokenizer, from their folders."""
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(model, dtype=dtype, local_files_only=True).to(device).eval()
    return encoder, load_tokenizer(tokenizer)


def text_reader(encoder: nn.Module, tokenizer: Any) -> Callable[[str], Tensor]:
    """A function from text to its states ``(L, D)`` at layer -2, as diffusers' ZImagePipeline reads them.

    The pipeline pads behind the text and cuts the padding off again: with causal attention that is no padding.
    """

    @torch.inference_mode()
    def read(text: str) -> Tensor:
        ids = prompt_layout(tokenizer, text).token_ids.to(encoder.device)
        return encoder(input_ids=ids[None], output_hidden_states=True).hidden_states[ENCODER_LAYER][0]

    return read


def batch_reader(encoder: nn.Module, tokenizer: Any) -> Callable[[list[str]], Iterable[Tensor]]:
    """As :func:`text_reader` for many texts at a time, those of like length in one forward; states on the CPU.

    Shorter texts are padded behind: with causal attention nothing of theirs sees that.
    """

    @torch.inference_mode()
    def read(texts: list[str]) -> list[Tensor]:
        ids = [prompt_layout(tokenizer, text).token_ids for text in texts]
        states: list[Tensor] = [torch.empty(0)] * len(texts)
        for batch in length_batches([len(one) for one in ids]):
            padded = nn.utils.rnn.pad_sequence([ids[index] for index in batch], batch_first=True)
            hidden = encoder(input_ids=padded.to(encoder.device), output_hidden_states=True).hidden_states
            together = hidden[ENCODER_LAYER].cpu()
            for row, index in enumerate(batch):
                states[index] = together[row, : len(ids[index])]
        return states

    return read
