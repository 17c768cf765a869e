"""Other numbers of tokens: sequences resampled to a length, picture grids averaged to coarser ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..states.tensors import EPSILON, as_batch, check_embeddings, to_dtype

KEPT_COVERAGE = 0.5  # a cell stays if the mask covers at least this share of it


def resample_tokens(x: Tensor, length: int, *, antialias: bool = True) -> Tensor:
    """Resample a sequence to ``length`` tokens.

    Going down with ``antialias``, output i is the mean of the input over [i, i+1)·L/length, tokens at the ends counted
    by the fraction covered (an exact box filter: torch has no antialiased 1-D interpolation). Going up, and always
    without ``antialias``, linear interpolation at half-pixel centres (``align_corners=False``), the research note's.

    >>> resample_tokens(torch.tensor([[0.0], [2.0], [4.0], [6.0]]), 2).tolist()
    [[1.0], [5.0]]

    Args:
        x: ``(L, D)`` or ``(B, L, D)``, any float dtype.
        length: at least 1.

    Returns:
        ``(length, D)`` or ``(B, length, D)`` in the dtype that came in, computed in float32; x itself if the length
        is right already.

    Raises:
        ValueError: if either length is 0, or for a bad shape or values that are not finite.
    """
    check_embeddings(x, "x")
    if x.shape[-2] < 1 or length < 1:
        raise ValueError(f"Expected at least 1 token to resample from and to, got {x.shape[-2]} and {length}.")
    if x.shape[-2] == length:
        return x
    tokens = as_batch(x).float()
    if antialias and length < tokens.shape[1]:
        resampled = _box_weights(tokens.shape[1], length).float().to(tokens.device) @ tokens
    else:
        resampled = F.interpolate(tokens.transpose(1, 2), length, mode="linear", align_corners=False).transpose(1, 2)
    return to_dtype(resampled, x.dtype).reshape(*x.shape[:-2], length, x.shape[-1])


def _box_weights(source: int, target: int) -> Tensor:
    """float64 ``(target, source)``: the share of source token j in output i; rows sum to 1."""
    step = source / target
    start = torch.arange(target, dtype=torch.float64).unsqueeze(1) * step
    token = torch.arange(source, dtype=torch.float64)
    return (torch.minimum(start + step, token + 1) - torch.maximum(start, token)).clamp_min(0) / step


def downsample_grid(
    x: Tensor, grid: tuple[int, int], factor: int, mask: Tensor | None = None
) -> tuple[Tensor, tuple[int, int], Tensor]:
    """Average a picture's tokens over cells of ``factor`` × ``factor``; cells at a ragged edge average what they have.

    Args:
        x: ``(rows · columns, D)`` in raster order, any float dtype.
        grid: (rows, columns). ``factor``: at least 1; 1 returns x itself.
        mask: optional ``(rows, columns)``, 0 to 1. Tokens weigh by it in their cell's average.

    Returns:
        ``pooled``: ``(rows' · columns', D)``, *every* cell of the coarser grid, in the dtype that came in (computed in
        float32; a cell that the mask leaves empty is averaged without it); ``(rows', columns')``, each
        ceil(side / factor); ``keep``: boolean ``(rows' · columns',)``, cells the mask covers by half or more on
        average. ``pooled[keep]`` is what a mask selects.

    Raises:
        ValueError: if the shapes contradict each other, the mask leaves 0 to 1, or factor < 1.
    """
    rows, columns = grid
    if x.ndim != 2 or len(x) != rows * columns or not len(x):
        raise ValueError(
            f"x: expected the tokens of a {rows}×{columns} grid, ({rows * columns}, width), got {tuple(x.shape)}."
        )
    check_embeddings(x, "x")
    if factor < 1 or factor != int(factor):
        raise ValueError(f"factor: expected a whole number of at least 1, got {factor}.")
    weights = torch.ones(rows, columns, device=x.device) if mask is None else _checked_mask(mask, grid).to(x.device)
    cell = (min(int(factor), rows), min(int(factor), columns))
    coarse = (-(-rows // cell[0]), -(-columns // cell[1]))
    coverage = _average_cells(weights[None], cell).flatten()
    keep = coverage >= KEPT_COVERAGE
    if factor == 1:
        return x, coarse, keep
    planes = x.float().T.reshape(-1, rows, columns)
    pooled = _average_cells(planes, cell).flatten(1)
    if mask is not None:
        weighted = _average_cells(planes * weights, cell).flatten(1) / coverage.clamp_min(EPSILON)
        pooled = torch.where(coverage > EPSILON, weighted, pooled)
    return to_dtype(pooled.T.contiguous(), x.dtype), coarse, keep


def _average_cells(planes: Tensor, cell: tuple[int, int]) -> Tensor:
    """``(C, rows, columns)`` -> ``(C, rows', columns')``; edge cells divide by the tokens they have."""
    return F.avg_pool2d(planes.unsqueeze(0), cell, ceil_mode=True)[0]


def _checked_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    if tuple(mask.shape) != tuple(grid):
        raise ValueError(f"mask: expected a value per token of the {grid[0]}×{grid[1]} grid, got {tuple(mask.shape)}.")
    mask = mask.float()
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError("mask: expected values from 0 (leave out) to 1 (keep), got some outside or NaN.")
    return mask
