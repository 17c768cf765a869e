"""Cut a sequence to the tokens we want."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..states.layout import TokenLayout, TokenRole
from .resample import KEPT_COVERAGE, downsample_grid

TokenSelection = Literal["all", "text", "prompt", "image", "image_no_markers"]

# "text" is what Z-Image's own encoder reads; "prompt" leaves the chat template out as well.
SELECTIONS: dict[str, tuple[TokenRole, ...]] = {
    "all": tuple(TokenRole),
    "text": (TokenRole.TEMPLATE, TokenRole.TEXT),
    "prompt": (TokenRole.TEXT,),
    "image": (TokenRole.MARKER, TokenRole.IMAGE),
    "image_no_markers": (TokenRole.IMAGE,),
}


def select_tokens(
    embeddings: Tensor,
    layout: TokenLayout,
    tokens: TokenSelection = "all",
    *,
    downsample: int = 1,
    mask: Tensor | Sequence[Tensor | None] | None = None,
    budget: int | None = None,
    pool_cut: bool = False,
) -> tuple[Tensor, TokenLayout]:
    """Keep the positions of some roles, in order; optionally pool pictures and keep only what a mask covers.

    Args:
        embeddings: ``(L, D)`` or ``(B, L, D)``, any float dtype.
        layout: of the ``L`` positions.
        tokens: which roles stay, see ``SELECTIONS``.
        downsample: each picture's ``(rows, columns, D)`` grid is area-averaged over n × n tokens.
        mask: float ``(H, W)`` in [0, 1], laid over every picture; image tokens covered less than half are dropped. A
            list has one per picture, None for a picture that stays whole. Pooled, a mask that covers some token keeps
            at least the cell that it covers most.
        budget: most tokens of each picture, None for no limit: a picture of more is averaged over the least n × n,
            n at least ``downsample``, that leaves as many.
        pool_cut: pool a picture that a mask has cut before over the tokens that stayed, where its layout says which
            (:attr:`TokenLayout.masks`): the same as mask and pooling in one call, for a mask of whole tokens.

    Returns:
        the states that stay and their layout.

    Raises:
        ValueError: for an unknown selection, a layout of another length, a picture that a mask has cut before
            (but see ``pool_cut``), another number of masks than pictures, a mask with NaN or
            infinity, a budget below 1, or if no token stays.
    """
    if tokens not in SELECTIONS:
        raise ValueError(f"tokens: expected one of {', '.join(SELECTIONS)}, got {tokens!r}.")
    if embeddings.shape[-2] != len(layout):
        raise ValueError(f"Expected a layout of {embeddings.shape[-2]} positions, got one of {len(layout)}.")
    if downsample < 1:
        raise ValueError(f"downsample: expected 1 or more, got {downsample}.")
    kept = layout.mask(*SELECTIONS[tokens])
    if not kept.any():
        present = ", ".join(role.name for role in layout.counts())
        raise ValueError(
            f"tokens: {tokens!r} leaves nothing, the sequence holds only {present} tokens. "
            "Choose another selection, or give the encoder a picture or a prompt."
        )
    if budget is not None and budget < 1:
        raise ValueError(f"budget: expected at least 1 token per picture, got {budget}.")
    each = [mask] * len(layout.grids) if mask is None or isinstance(mask, Tensor) else mask
    masks: list[Tensor | None] = list(each)
    if len(masks) != len(layout.grids):
        raise ValueError(f"mask: expected one for each of {len(layout.grids)} pictures, got {len(masks)}.")
    over = budget is not None and any(rows * columns > budget for rows, columns in layout.grids)
    masked = any(one is not None for one in masks)
    if downsample > 1 or over or masked:
        if layout.cut and (masked or not (pool_cut and layout.places_known)):
            raise ValueError(
                "mask, downsample: a mask was laid over this picture before, and what is where in it is lost. Use both "
                "in one Select VL Tokens, and leave downsample at 1 and the budget open after it."
            )
        embeddings, layout = _pool_pictures(embeddings, layout, downsample, masks, budget)
        kept = layout.mask(*SELECTIONS[tokens])
        if not kept.any():
            raise ValueError("mask: covers no image token. Paint a larger area, or select text tokens as well.")
    positions = kept.nonzero().flatten().to(embeddings.device)
    return embeddings.index_select(-2, positions), layout.select(kept)


def _pool_pictures(
    x: Tensor, layout: TokenLayout, least: int, masks: list[Tensor | None], budget: int | None
) -> tuple[Tensor, TokenLayout]:
    """Each picture's tokens averaged over n × n cells, cells outside its mask dropped, the rest as it was."""
    batch = x if x.ndim == 3 else x[None]
    states, roles, ids, grids, stayed, done = [], [], [], [], [], 0
    pictures = zip(layout.picture_positions(), layout.grids, layout.masks, masks, strict=True)
    for positions, grid, before, mask in pictures:
        start, stop = int(positions[0]), int(positions[-1]) + 1
        tokens, grid, cover = _whole(batch[:, start:stop], grid, before, mask)
        factor = _factor_within(grid, least, budget, cover)
        pooled = [downsample_grid(one, grid, factor, cover) for one in tokens]
        coarse = pooled[0][1]
        keep = _kept_cells(pooled[0][2], grid, factor, cover)
        kept = int(keep.sum())
        states += [batch[:, done:start], torch.stack([one[keep.to(one.device)] for one, _, _ in pooled])]
        roles += [layout.roles[done:start], torch.full((kept,), TokenRole.IMAGE, dtype=torch.uint8)]
        ids += [layout.token_ids[done:start], layout.token_ids[start].repeat(kept)]
        if kept:
            grids.append(coarse if kept == keep.numel() else (1, kept))
            stayed.append(None if kept == keep.numel() else keep.reshape(coarse))
        done = stop
    tokens = torch.cat([*states, batch[:, done:]], 1)
    roles, ids = torch.cat([*roles, layout.roles[done:]]), torch.cat([*ids, layout.token_ids[done:]])
    pooled_layout = replace(
        layout, roles=roles, token_ids=ids, grids=tuple(grids), masks=tuple(stayed),
        cut=any(mask is not None for mask in stayed),
    )
    return tokens.reshape(*x.shape[:-2], *tokens.shape[1:]), pooled_layout


def _whole(
    tokens: Tensor, grid: tuple[int, int], before: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, tuple[int, int], Tensor | None]:
    """A picture's tokens ``(B, n, D)`` on its whole grid, that grid, and how much of each place is covered."""
    if before is None:
        return tokens, grid, None if mask is None else _cover(mask, grid)
    places = before.flatten().nonzero().flatten().to(tokens.device)
    whole = tokens.new_zeros(len(tokens), before.numel(), tokens.shape[-1])
    rows, columns = before.shape
    return whole.index_copy(1, places, tokens), (rows, columns), before.float()


def _kept_cells(keep: Tensor, grid: tuple[int, int], factor: int, cover: Tensor | None) -> Tensor:
    """The cells that are covered by half, or the one covered most if there is none but some token is."""
    keep = keep.cpu()
    if cover is None or keep.any() or not (cover >= KEPT_COVERAGE).any():
        return keep
    cell = (min(factor, grid[0]), min(factor, grid[1]))
    most = F.avg_pool2d(cover[None, None].cpu(), cell, ceil_mode=True).flatten().argmax()
    return torch.arange(len(keep)) == most


def _factor_within(grid: tuple[int, int], least: int, budget: int | None, cover: Tensor | None) -> int:
    """The least n ≥ ``least`` at which n × n cells of a picture, those that its mask keeps, are within the budget."""
    blank = torch.zeros(grid[0] * grid[1], 1)
    coarsest = max(*grid, least)
    for factor in range(least, coarsest):
        if budget is None or int(downsample_grid(blank, grid, factor, cover)[2].sum()) <= budget:
            return factor
    return coarsest


def _cover(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each token a mask covers: ``(H, W)`` or ``(1, H, W)`` -> float32 ``(rows, columns)``."""
    if mask.ndim == 3 and mask.shape[0] == 1:
        mask = mask[0]
    if mask.ndim != 2 or not mask.numel():
        raise ValueError(f"mask: expected one mask of shape (height, width), got {tuple(mask.shape)}.")
    if not mask.isfinite().all():
        raise ValueError("mask: expected values from 0 (leave out) to 1 (keep), got NaN or infinity.")
    return F.adaptive_avg_pool2d(mask.float()[None, None], grid)[0, 0].clamp(0, 1)
