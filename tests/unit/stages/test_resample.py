"""Resampling, held against written-out weights, a repeat-and-mean oracle and numpy loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl_core.stages.resample import downsample_grid, resample_tokens

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tokens(count: int, width: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def linear_at_half_pixels(x: np.ndarray, length: int) -> np.ndarray:
    """align_corners=False by numpy's own interpolation, which holds the ends."""
    at = (np.arange(length) + 0.5) * len(x) / length - 0.5
    return np.stack([np.interp(at, np.arange(len(x)), column) for column in x.T], 1)


def area(x: np.ndarray, length: int) -> np.ndarray:
    """Every token repeated ``length`` times, then means over blocks of L: exact areas without any fraction."""
    return x.repeat(length, axis=0).reshape(length, len(x), -1).mean(1)


# --- sequences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "source"),
    [
        ([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], 4),
        ([[0.25, 0.75, 0, 0, 0], [0, 0, 0, 0.75, 0.25]], 5),
        ([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], 2),
    ],
)
def test_the_published_resampling_has_these_weights(weights, source):
    ours = resample_tokens(torch.eye(source), len(weights), antialias=False)
    assert torch.equal(ours, torch.tensor(weights, dtype=torch.float32))


def test_antialiasing_counts_tokens_at_the_ends_by_the_fraction_covered():
    assert torch.allclose(
        resample_tokens(torch.eye(5), 2), torch.tensor([[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]])
    )


@pytest.mark.parametrize(("source", "target"), [(4, 2), (5, 2), (7, 3), (64, 13), (1034, 22), (9, 8), (6, 1)])
def test_going_down_averages_areas(source, target):
    x = tokens(source)
    assert np.allclose(resample_tokens(x, target).numpy(), area(x.double().numpy(), target), atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(2, 4), (3, 7), (1, 5), (22, 64)])
def test_going_up_is_linear_with_and_without_antialiasing(source, target):
    x = tokens(source)
    oracle = linear_at_half_pixels(x.double().numpy(), target)
    assert np.allclose(resample_tokens(x, target).numpy(), oracle, atol=1e-5)
    assert torch.equal(resample_tokens(x, target), resample_tokens(x, target, antialias=False))


@pytest.mark.parametrize(("source", "target"), [(7, 3), (64, 13), (1034, 22)])
def test_the_published_way_down_only_looks_at_two_neighbours(source, target):
    x = tokens(source)
    ours = resample_tokens(x, target, antialias=False).double().numpy()
    oracle = linear_at_half_pixels(x.double().numpy(), target)
    assert np.abs(ours - oracle).max() < 1e-4  # positions near 1000 carry 1e-4 of a token in float32


def test_the_right_length_is_left_alone_bit_for_bit():
    x = tokens(7).double() + 1e-12
    assert torch.equal(resample_tokens(x, 7), x)


def test_a_batch_is_its_sequences_one_by_one():
    x = torch.stack([tokens(9, seed=1), tokens(9, seed=2)])
    for length in (4, 20):
        one_by_one = torch.stack([resample_tokens(x[0], length), resample_tokens(x[1], length)])
        assert torch.allclose(resample_tokens(x, length), one_by_one, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(0, 4), (4, 0)])
def test_no_tokens_on_either_side_is_an_error(source, target):
    with pytest.raises(ValueError, match=f"at least 1 token.*got {source} and {target}"):
        resample_tokens(tokens(source), target)


@settings(max_examples=60, deadline=None)
@given(
    source=st.integers(1, 40), target=st.integers(1, 40), width=st.integers(1, 4), batch=st.sampled_from([None, 1, 2]),
    dtype=st.sampled_from(DTYPES), antialias=st.booleans(), value=st.sampled_from([0.0, -3.0, 1e4]),
)
def test_constants_survive_any_resampling(source, target, width, batch, dtype, antialias, value):
    shape = (source, width) if batch is None else (batch, source, width)
    ours = resample_tokens(torch.full(shape, value, dtype=dtype), target, antialias=antialias)
    assert ours.shape == (*shape[:-2], target, width) and ours.dtype == dtype
    assert torch.allclose(ours, torch.full((), value, dtype=dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-3)


@settings(max_examples=40, deadline=None)
@given(source=st.integers(1, 60), target=st.integers(1, 60), seed=st.integers(0, 99))
def test_area_averaging_keeps_the_mean_of_the_sequence(source, target, seed):
    x = tokens(source, seed=seed)
    if target <= source:
        assert torch.allclose(resample_tokens(x, target).mean(0), x.mean(0), atol=1e-5)


# --- picture grids ----------------------------------------------------------------------------------------------------


def pooled_by_loops(x: np.ndarray, grid, factor, mask=None):
    """Cell by cell, as the sentence says it."""
    rows, columns = grid
    x, mask = x.reshape(rows, columns, -1), np.ones(grid) if mask is None else mask
    cells, coverage = [], []
    for top in range(0, rows, factor):
        for left in range(0, columns, factor):
            cell = (slice(top, top + factor), slice(left, left + factor))
            weights = mask[cell].reshape(-1, 1)
            values = x[cell].reshape(len(weights), -1)
            cells.append((values * weights).sum(0) / weights.sum() if weights.sum() else values.mean(0))
            coverage.append(weights.mean())
    return np.stack(cells), np.array(coverage) >= 0.5


@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 9), (3, 2), (1, 1)])
@pytest.mark.parametrize("factor", [2, 3, 100])
def test_cells_are_averaged_and_ragged_ones_average_what_they_have(grid, factor):
    x = tokens(grid[0] * grid[1])
    pooled, coarse, keep = downsample_grid(x, grid, factor)
    oracle, _ = pooled_by_loops(x.double().numpy(), grid, factor)
    assert coarse == (-(-grid[0] // factor), -(-grid[1] // factor))
    assert np.allclose(pooled.numpy(), oracle, atol=1e-6)
    assert keep.all() and keep.shape == (coarse[0] * coarse[1],)


@pytest.mark.parametrize("grid", [(4, 6), (5, 7)])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_mask_weighs_tokens_and_drops_cells_it_covers_by_less_than_half(grid, factor):
    x = tokens(grid[0] * grid[1])
    mask = torch.rand(grid, generator=torch.Generator().manual_seed(3)).sqrt()
    mask[:3, :3] = 0
    pooled, _, keep = downsample_grid(x, grid, factor, mask)
    oracle, kept = pooled_by_loops(x.double().numpy(), grid, factor, mask.double().numpy())
    assert np.allclose(pooled.numpy(), oracle, atol=1e-5)
    assert keep.tolist() == kept.tolist()
    assert keep.any() and not keep.all()


def test_half_coverage_is_enough_and_an_empty_cell_is_averaged_without_the_mask():
    x = tokens(8)
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    pooled, coarse, keep = downsample_grid(x, (2, 4), 2, mask)
    assert coarse == (1, 2)
    assert keep.tolist() == [True, False]
    assert torch.allclose(pooled[0], x[:2].mean(0), atol=1e-6)
    assert torch.allclose(pooled[1], x[[2, 3, 6, 7]].mean(0), atol=1e-6)


def test_factor_one_is_the_identity_and_the_mask_still_chooses():
    x = tokens(6).double() + 1e-12
    mask = torch.tensor([[0.0, 0.5, 1.0], [0.49, 1.0, 0.0]])
    pooled, coarse, keep = downsample_grid(x, (2, 3), 1, mask)
    assert torch.equal(pooled, x) and coarse == (2, 3)
    assert keep.tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_grids_keep_the_type_that_came_in_and_large_values_stay_finite(dtype):
    x = torch.full((16, 2), 6e4, dtype=dtype)
    pooled, _, _ = downsample_grid(x, (4, 4), 4)
    assert pooled.dtype == dtype and torch.equal(pooled, x[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": tokens(5)}, r"x: expected the tokens of a 2×3 grid, \(6, width\), got \(5, 3\)"),
        ({"factor": 0}, "factor"),
        ({"factor": 1.5}, "factor"),
        ({"mask": torch.ones(3, 2)}, r"mask.*2×3.*\(3, 2\)"),
        ({"mask": torch.full((2, 3), 2.0)}, "mask.*0.*1"),
        ({"mask": torch.full((2, 3), float("nan"))}, "mask.*NaN"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        downsample_grid(**{"x": tokens(6), "grid": (2, 3), "factor": 2, **change})
