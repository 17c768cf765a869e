"""Sequences that begin with a picture and go on side by side, of several pictures of one grid at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..pictures import Picture, patchify
from ..states.layout import TokenLayout
from .forward import KeyValues, branch_mask, heads_per_group, picture_spans, prefix_length, run_blocks
from .kernels import MERGED
from .prefix import filled_rows
from .vision import run_vision

if TYPE_CHECKING:
    from .reader import Reader


def branch(
    reader: Reader, asked: Sequence[tuple[Sequence[TokenLayout], Picture]], dtype: torch.dtype, device: torch.device,
    check: Callable[[], None],
) -> Tensor:
    """See :meth:`Reader.branch`."""
    last, opening = (reader.num_layers,), asked[0][0][0]
    length = prefix_length(opening)
    tails = [[layout.token_ids[length:] for layout in layouts] for layouts, _ in asked]
    lengths = [[len(tail) for tail in each] for each in tails]
    # A width in eights is what masked attention takes without a copy of the mask for every block.
    padded = max(map(sum, lengths))
    padded += -(length + padded) % 8
    # All that travels to the device does so first: each copy waits for what runs there.
    hidden = reader.embed(filled_rows(tails, padded), dtype, device)
    mask = branch_mask(length, lengths, padded, heads_per_group(reader.language), hidden)
    rotary = _tail_rotary(reader, [layouts for layouts, _ in asked], length, padded)
    ends = [at * padded + end - 1 for at, each in enumerate(lengths) for end in itertools.accumulate(each)]
    places = torch.tensor(ends).to(device)
    past = _openings(reader, opening, [picture for _, picture in asked], dtype, device, check)
    states, _ = run_blocks(
        reader.language, hidden, rotary, last, reader.num_layers, past=past, mask=mask, count=len(asked),
        kernels=MERGED, check=check,
    )
    return states[reader.num_layers][places]


def _openings(
    reader: Reader, layout: TokenLayout, pictures: Sequence[Picture], dtype: torch.dtype, device: torch.device,
    check: Callable[[], None],
) -> KeyValues:
    """Keys and values of everything up to the end of a picture, for several pictures of one grid at once."""
    length, count, grid = prefix_length(layout), len(pictures), pictures[0].grid
    pixels = torch.stack([picture.pixels for picture in pictures]).to(device)
    patches = torch.stack([patchify(Picture(one))[0] for one in pixels]).to(dtype)
    embeddings, deepstack = run_vision(reader.visual, patches, reader.tables(grid, device), MERGED, check)
    ((start, stop),) = picture_spans(layout)
    hidden = reader.embed(layout.token_ids[:length], dtype, device).repeat(count, 1)
    hidden.unflatten(0, (count, length))[:, start:stop] = embeddings
    cos, sin = (part.repeat(count, 1, 1) for part in reader.first_rotary(layout, length))
    _, pairs = run_blocks(
        reader.language, hidden, (cos, sin), (reader.num_layers,), reader.num_layers, count=count, keep=True,
        spans=[(at + start, at + stop) for at in range(0, count * length, length)],
        deepstack=[level.flatten(0, 1) for level in deepstack], capture_before=reader.capture_before,
        kernels=MERGED, check=check,
    )
    return pairs


def _tail_rotary(
    reader: Reader, layouts: Sequence[Sequence[TokenLayout]], start: int, padded: int
) -> tuple[Tensor, Tensor]:
    """Of sequences that go on from one place, side by side: words count on alike, so the longest has them all."""
    longest = max(itertools.chain.from_iterable(layouts), key=len)
    places = filled_rows([[torch.arange(len(one) - start) for one in each] for each in layouts], padded)
    cos, sin = reader.rotary(longest, start)
    places = places.to(cos.device)
    return cos[places], sin[places]
