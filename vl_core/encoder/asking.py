"""What Qwen3-VL is asked: pictures, then words, up to where its answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ..pictures import DEFAULT_BUDGET, Picture, prepare_picture, split_batch
from ..states.families import THINK_BLOCK
from ..states.layout import TokenLayout

if TYPE_CHECKING:
    from .qwen3vl import Qwen3VLEncoder

MAX_TOKENS = 96  # of an answer


def check_request(instruction: str, max_tokens: int) -> None:
    """Refuse what nothing can be written from.

    Raises:
        TypeError: if the instruction is not a string.
        ValueError: naming what is empty or out of range.
    """
    if not isinstance(instruction, str):
        raise TypeError(f"instruction: expected a string, got {type(instruction).__name__}.")
    if not instruction.strip():
        raise ValueError("instruction: expected words that say what to describe, got none.")
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}.")


@dataclass(frozen=True, eq=False)
class Asked:
    """One sequence to be answered, and what was changed in its pictures."""

    layout: TokenLayout
    pictures: list[Picture]
    notes: list[str]


def ask(
    encoder: Qwen3VLEncoder, images: Tensor | Sequence[Tensor], instruction: str, system_prompt: str = "",
    budget: int = DEFAULT_BUDGET, max_tokens: int = MAX_TOKENS, first: int = 1,
) -> Asked:
    """Pictures, then the instruction, up to where the answer begins.

    Args:
        first: the number of the first picture in errors and notes; all else as :func:`~.writing.describe` takes it.

    Raises:
        TypeError, ValueError: see there.
    """
    pictures, notes = prepare_pictures(images, budget, first)
    grids = [one.grid for one in pictures]
    return Asked(lay_out_request(encoder, grids, instruction, system_prompt, max_tokens), pictures, notes)


def prepare_pictures(
    images: Tensor | Sequence[Tensor], budget: int = DEFAULT_BUDGET, first: int = 1
) -> tuple[list[Picture], list[str]]:
    """Pictures to be asked about, and what was changed in them; arguments and errors are those of :func:`ask`."""
    pictures, notes = [], []
    for number, image in enumerate(split_batch(images), first):
        picture, changes = prepare_picture(image, budget, f"image {number}")
        pictures.append(picture)
        notes += changes
    if not pictures:
        raise ValueError("images: expected at least one picture to describe, got none. Connect an image.")
    return pictures, notes


def lay_out_request(
    encoder: Qwen3VLEncoder, grids: Sequence[tuple[int, int]], instruction: str, system_prompt: str = "",
    max_tokens: int = MAX_TOKENS,
) -> TokenLayout:
    """Pictures of these merged ``(rows, columns)``, then the instruction; everything else as :func:`ask` has it."""
    if encoder.loaded_layers < encoder.num_layers:
        raise ValueError(
            f"encoder: describing needs all {encoder.num_layers} blocks of {encoder.name}, {encoder.loaded_layers} are "
            "loaded. Load it again with `deepest layer` -1."
        )
    layout = encoder.lay_out(instruction, grids, system_prompt)
    if encoder.variant == "Thinking":
        layout = lengthen(layout, ids_of(encoder, THINK_BLOCK))
    config: Any = encoder.model.config
    limit = config.text_config.max_position_embeddings
    if len(layout) + max_tokens > limit:
        raise ValueError(
            f"max_tokens: expected at most {limit - len(layout)} after {len(layout)} tokens of pictures and "
            f"instruction, got {max_tokens}. Use fewer pictures, a smaller token budget or fewer max_tokens."
        )
    return layout


def lengthen(layout: TokenLayout, ids: Sequence[int]) -> TokenLayout:
    """The layout with more tokens of the template after it."""
    roles = functional.pad(layout.roles, (0, len(ids)))
    return replace(layout, roles=roles, token_ids=torch.cat([layout.token_ids, torch.tensor(ids)]))


def ids_of(encoder: Qwen3VLEncoder, text: str) -> list[int]:
    """The tokens of a text that stands by itself."""
    return encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
