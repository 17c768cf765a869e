"""Z-Image's text encoder by itself, without the rest of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..states.statistics import ENCODER_LAYER, length_batches
from .pipeline import load_tokenizer, prompt_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def open_text_encoder(
    model: Path, tokenizer: Path, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, Any]:
    """The encoder and its tokenizer, from their folders."""
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(model, dtype=dtype, local_files_only=True, trust_remote_code=False)
    return encoder.to(device).eval(), load_tokenizer(tokenizer)


def text_reader(encoder: PreTrainedModel, tokenizer: Any) -> Callable[[str], Tensor]:
    """A function from text to its states ``(L, D)`` at layer -2, as diffusers' ZImagePipeline reads them.

    The pipeline pads behind the text and cuts the padding off again: with causal attention that is no padding.
    """

    @torch.inference_mode()
    def read(text: str) -> Tensor:
        ids = prompt_layout(tokenizer, text).token_ids.to(encoder.device)
        return encoder(input_ids=ids[None], output_hidden_states=True).hidden_states[ENCODER_LAYER][0]

    return read


def batch_reader(encoder: PreTrainedModel, tokenizer: Any) -> Callable[[list[str]], Iterable[Tensor]]:
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
