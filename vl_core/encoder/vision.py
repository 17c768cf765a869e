"""The vision tower's forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..pictures import MERGE
from .forward import bare, layer_norm, linear, linear_gelu, signed
from .kernels import MERGED, Kernels
from .modules import PatchEmbedding, Vision


@dataclass(frozen=True, eq=False)
class VisionTables:
    """What the vision tower needs to know of a grid of ``N`` patches.

    Attributes:
        corners: int64 ``(N, 4)``, the learned positions around each patch; ``weights`` float32 ``(N, 4, 1)``.
        cos, sin: float32 ``(N, 1, 1, d)``, sines signed.
    """

    corners: Tensor
    weights: Tensor
    cos: Tensor
    sin: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.corners, self.weights, self.cos, self.sin]


def vision_tables(grid: tuple[int, int], side: int, frequencies: Tensor, device: torch.device) -> VisionTables:
    """Of a picture of merged ``(rows, columns)``, patches in the order of :func:`patchify`.

    Learned positions are a ``side`` × ``side`` grid that is stretched over the picture and read bilinearly; the first
    half of a head turns with the patch's row, the second with its column.

    Args:
        frequencies: ``(d / 4,)``, the tower's ``inv_freq``.
    """
    rows, columns = (MERGE * count for count in grid)
    order = torch.arange(rows * columns, device=device).view(grid[0], MERGE, grid[1], MERGE).transpose(1, 2).flatten()
    row, column = order // columns, order % columns
    at_rows, vertical = _taps(row, rows, side)
    at_columns, horizontal = _taps(column, columns, side)
    corners = (at_rows[:, :, None] * side + at_columns[:, None]).flatten(1)
    weights = (vertical[:, :, None] * horizontal[:, None]).flatten(1)
    frequencies = frequencies.to(device, torch.float32)
    angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], -1)
    angles = torch.cat([angles, angles], -1)[:, None, None]
    return VisionTables(corners, weights[..., None], angles.cos(), signed(angles.sin()))


def _taps(place: Tensor, places: int, side: int) -> tuple[Tensor, Tensor]:
    """Where on an axis of ``side`` learned positions each of ``places`` reads, and how much: int64, float32 ``(N, 2)``.

    Divided by a tensor, since CUDA multiplies by the reciprocal of a number, which is another last bit.
    """
    at = place[:, None] * (side - 1.0)
    at /= at.new_full((), max(places - 1, 1))
    taps = at.floor().long() + torch.arange(2, device=at.device)
    return taps.clamp(max=side - 1), 1 - (at - taps).abs()


def run_vision(
    visual: Vision, patches: Tensor, tables: VisionTables, kernels: Kernels = MERGED,
    check: Callable[[], None] = lambda: None,
) -> tuple[Tensor, list[Tensor]]:
    """Pictures of one grid through the vision tower.

    Args:
        patches: ``(B, N, 1536)`` in the dtype to compute in, on its device.
        tables: of their grid.
        check: called before each block; may raise, to stop.

    Returns:
        embeddings ``(B, N / 4, D)`` and deepstack features of the same shape, one per level.
    """
    count, length = patches.shape[:2]
    places = visual.pos_embed(tables.corners.to(visual.pos_embed.weight.device)).to(patches.device)
    places = (places * tables.weights).sum(1).to(patches.dtype)
    embedded = embed_patches(visual.patch_embed, patches.flatten(0, 1), kernels.merges)
    hidden = (embedded.view(count, length, -1) + places).flatten(0, 1)
    deepstack = []
    for index, block in enumerate(visual.blocks):
        check()
        attention, mlp = block.attn, block.mlp
        x = layer_norm(block.norm1, hidden)
        mixed = linear(attention.qkv, x).view(count, length, 3, attention.num_heads, -1)
        query, keys = kernels.rotate_patches(mixed, tables.cos, tables.sin)
        seen = functional.scaled_dot_product_attention(query, keys, mixed[:, :, 2].transpose(1, 2))
        hidden.add_(linear(attention.proj, seen.transpose(1, 2).reshape(count * length, -1)))
        del x, mixed, query, keys, seen  # tens of megabytes that the next lines need
        x = linear_gelu(mlp.linear_fc1, layer_norm(block.norm2, hidden), kernels.merges)
        hidden.add_(linear(mlp.linear_fc2, x))
        if index in visual.deepstack_visual_indexes:
            level = list(visual.deepstack_visual_indexes).index(index)
            deepstack.append(visual.deepstack_merger_list[level](hidden).view(count, length // MERGE**2, -1))
    return visual.merger(hidden).view(count, length // MERGE**2, -1), deepstack


def embed_patches(module: PatchEmbedding, patches: Tensor, merge: bool) -> Tensor:
    """``(N, 1536)`` -> ``(N, C)``: the convolution over whole patches, merged as the matrix product that it is."""
    parts = bare(module.proj, patches) if merge else None
    return module(patches) if parts is None else functional.linear(patches, parts[0].flatten(1), parts[1])
