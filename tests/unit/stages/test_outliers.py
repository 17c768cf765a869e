"""Outlier dimensions, held against closed forms and a numpy float64 transcription of the formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl_core.stages.outliers import get_outlier_dimensions, mask_outlier_dimensions
from vl_core.states.sinks import find_sinks
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.tensors import check_all_embeddings, put_back

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "qwen3_4b_layer-2_stats.npz"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def with_std(std, tokens: int = 50, mean=0.0, seed: int = 0) -> torch.Tensor:
    """``(tokens, D)`` whose unbiased std and mean per dimension are exactly (to rounding) those asked for."""
    std = np.asarray(std, dtype=np.float64)
    noise = np.random.default_rng(seed).standard_normal((tokens, len(std)))
    noise = (noise - noise.mean(0)) / noise.std(0, ddof=1)
    return torch.from_numpy(noise * std + mean).float()


def with_sink(tokens: torch.Tensor, size: float = 1e4) -> torch.Tensor:
    """The same with an attention sink put in front."""
    sink = torch.zeros(1, tokens.shape[1])
    sink[0, 0] = size
    return torch.cat([sink, tokens])


def transcribed(x, reference, threshold, mode, direction, gamma=0.5):
    """mathematics, section 3, in numpy float64, over all tokens."""
    x = x.double().numpy()
    s = np.maximum(x.std(0, ddof=1), 1e-6)
    r = np.maximum(np.asarray(reference, dtype=np.float64), 1e-6)
    sides = {"over": s / r, "under": r / s, "both": np.maximum(s / r, r / s)}
    out = x.copy()
    for d in np.flatnonzero(sides[direction] > threshold):
        is_over = s[d] / r[d] > threshold if direction == "both" else direction == "over"
        clamp = threshold * r[d] / s[d] if is_over else r[d] / (threshold * s[d])
        about = 0.0 if is_over or mode == "zero" else x[:, d].mean()
        out[:, d] = about + (x[:, d] - about) * {"none": 1.0, "zero": 0.0, "clamp": clamp, "scale": clamp**gamma}[mode]
    return out


def relative_error(ours: torch.Tensor, oracle: np.ndarray) -> float:
    return float(np.abs(ours.double().numpy() - oracle).max() / np.abs(oracle).max())


@pytest.mark.parametrize("sinks", ["exclude", "include"])
@pytest.mark.parametrize("direction", ["over", "under", "both"])
@pytest.mark.parametrize("mode", ["none", "zero", "clamp", "scale"])
def test_every_mode_and_direction_follows_the_formula(mode, direction, sinks):
    x = with_std([1, 40, 0.02, 3, 11, 0.0999], mean=2.0)
    reference = torch.ones(6)
    masked, info = mask_outlier_dimensions(x, mode=mode, reference=reference, direction=direction, sinks=sinks)
    assert relative_error(masked, transcribed(x, reference, 10, mode, direction)) < 1e-5
    found = {"over": (1, 4), "under": (2, 5), "both": (2, 1, 4, 5)}[direction]
    assert info.masked_dimensions == found
    assert info.tokens == 50


def test_the_published_profile_is_over_with_sinks_included():
    x = with_sink(with_std([1, 40, 0.02, 3]))
    for mode in ("zero", "clamp"):
        published = {"direction": "over", "sinks": "include"}
        masked, info = mask_outlier_dimensions(x, 10.0, mode, reference=torch.ones(4), **published)
        assert relative_error(masked, transcribed(x, np.ones(4), 10, mode, "over")) < 1e-5
        assert info.masked_dimensions == (0, 1)  # dimension 0 only because the sink is in it
        assert info.tokens == 51


def test_sinks_are_neither_measured_nor_changed_unless_included():
    x = with_sink(with_std([1, 40, 0.02, 3]))
    assert find_sinks(x).nonzero().flatten().tolist() == [0]
    x[0, 1] = 7.0
    masked, info = mask_outlier_dimensions(x, mode="zero", reference=torch.ones(4))
    assert info.masked_dimensions == (2, 1)
    assert (info.tokens, info.sinks) == (50, 1)
    assert torch.equal(masked[0], x[0])
    assert (masked[1:, [1, 2]] == 0).all()
    assert torch.equal(masked[:, [0, 3]], x[:, [0, 3]])


def test_ratios_come_largest_first_with_their_sides():
    found = get_outlier_dimensions(with_std([20, 1, 0.01, 50]), reference=torch.ones(4))
    assert [dimension for dimension, _ in found] == [2, 3, 0]
    assert [ratio for _, ratio in found] == pytest.approx([100, 50, 20], rel=1e-5)
    info = mask_outlier_dimensions(with_std([20, 1, 0.01, 50]), reference=torch.ones(4))[1]
    assert info.sides == ("under", "over", "over")
    text = info.describe()
    assert "3 of 4 dimensions" in text and "2 (100× under)" in text and "set to zero" in text


def test_a_ratio_that_equals_the_threshold_is_no_outlier():
    x = torch.tensor([[-5.0, -5.5], [5.0, 5.5]])  # std 5·√2 and 5.5·√2
    reference = torch.full((2,), 0.5 * 2**0.5, dtype=torch.float64)
    assert [dimension for dimension, _ in get_outlier_dimensions(x, 10.0, reference=reference)] == [1]


@pytest.mark.parametrize("direction", ["over", "under", "both"])
def test_clamp_leaves_the_ratio_at_the_threshold(direction):
    x, reference = with_std([40, 0.02, 1], mean=3.0), torch.ones(3)
    masked = mask_outlier_dimensions(x, 10.0, "clamp", reference=reference, direction=direction)[0]
    expected = {"over": [10, 0.02, 1], "under": [40, 0.1, 1], "both": [10, 0.1, 1]}[direction]
    assert masked.double().std(0).tolist() == pytest.approx(expected, rel=1e-5)


def test_scale_with_gamma_one_is_clamp_and_with_less_is_gentler():
    x, reference = with_std([40, 0.02, 1]), torch.ones(3)
    clamp = mask_outlier_dimensions(x, mode="clamp", reference=reference)[0]
    assert torch.equal(mask_outlier_dimensions(x, mode="scale", gamma=1.0, reference=reference)[0], clamp)
    halfway = mask_outlier_dimensions(x, mode="scale", gamma=0.5, reference=reference)[0]
    assert halfway.double().std(0).tolist() == pytest.approx([20, 0.02 * 5**0.5, 1], rel=1e-5)


def test_none_reports_what_it_finds_and_changes_nothing():
    x = with_std([40, 1]).to(torch.float64) + 1e-12
    masked, info = mask_outlier_dimensions(x, mode="none", reference=torch.ones(2))
    assert torch.equal(masked, x)
    assert info.masked_dimensions == (0,)
    assert "left unchanged" in info.describe()


def test_statistics_and_change_stay_within_the_positions():
    x = with_std([1, 1, 1], tokens=40)
    x[30:, 1] *= 100  # an outlier only outside of the scope
    inside = torch.arange(40) < 30
    x[:30, 2] *= 50
    masked, info = mask_outlier_dimensions(x, mode="zero", reference=torch.ones(3), positions=inside)
    assert info.masked_dimensions == (2,)
    assert info.tokens == 30
    assert torch.equal(masked[30:], x[30:])
    assert (masked[:30, 2] == 0).all()
    assert torch.equal(masked[:30, :2], x[:30, :2])


def test_sinks_are_found_on_the_whole_sequence_even_where_the_scope_is_small():
    x = with_sink(with_std([1, 1]))
    first_three = torch.arange(51) < 3
    info = mask_outlier_dimensions(x, reference=torch.ones(2), positions=first_three)[1]
    assert (info.tokens, info.sinks) == (2, 1)


@pytest.mark.parametrize("scope", [None, [True, False, False], [False] * 3])
def test_with_fewer_than_two_tokens_nothing_changes_and_a_note_says_so(scope):
    x = torch.full((3, 4), 1e3)[: 1 if scope is None else 3]
    positions = None if scope is None else torch.tensor(scope)
    masked, info = mask_outlier_dimensions(x, reference=torch.ones(4), positions=positions)
    assert torch.equal(masked, x)
    assert info.masked_dimensions == ()
    assert "Fewer than 2 tokens" in info.describe()


def test_a_constant_dimension_can_be_zeroed_but_not_clamped():
    x = with_std([1, 1])
    x[:, 1] = 5.0
    assert (mask_outlier_dimensions(x, mode="zero", reference=torch.ones(2))[0][:, 1] == 0).all()
    for mode in ("clamp", "scale"):
        masked, info = mask_outlier_dimensions(x, mode=mode, reference=torch.ones(2))
        assert torch.equal(masked, x)  # 5 · 1/(10 · 1e-6) would be half a million
        assert info.masked_dimensions == (1,)
        assert "constant" in info.describe()


def test_a_dead_reference_dimension_counts_as_a_std_of_a_millionth():
    found = get_outlier_dimensions(with_std([1.0, 1.0]), reference=torch.tensor([0.0, 1.0]))
    assert found == [(0, pytest.approx(1e6, rel=1e-5))]


def test_a_batch_is_its_sequences_one_by_one():
    first, second = with_sink(with_std([1, 40, 1], seed=1)), with_sink(with_std([1, 60, 0.01], seed=2))
    masked, info = mask_outlier_dimensions(torch.stack([first, second]), reference=torch.ones(3))
    assert torch.equal(masked[0], mask_outlier_dimensions(first, reference=torch.ones(3))[0])
    assert torch.equal(masked[1], mask_outlier_dimensions(second, reference=torch.ones(3))[0])
    assert info.masked_dimensions == (2, 1)
    assert info.ratios == pytest.approx((100, 60), rel=1e-5)
    assert (info.tokens, info.sinks) == (100, 2)


def test_reference_statistics_leave_their_sinks_out_unless_included():
    reference = ReferenceStatistics.of(with_sink(with_std([1.0, 1.0]), size=1e4))
    x = with_std([1.0, 1.0])
    assert get_outlier_dimensions(x, reference=reference) == []
    assert [d for d, _ in get_outlier_dimensions(x, reference=reference, sinks="include")] == [0]


def test_the_617_times_outlier_is_reference_over_picture():
    if not PUBLISHED.is_file():
        pytest.skip("the published statistics are not beside the repository")
    with np.load(PUBLISHED) as published:
        mean, std = published["per_dim_mean"], published["per_dim_std"]
    reference = ReferenceStatistics.from_published(torch.from_numpy(mean), torch.from_numpy(std), count=220)
    own = std.astype(np.float64).copy()
    own[396], own[4] = 1.5376, 65.5
    x = with_std(own, tokens=64)
    assert not find_sinks(x).any()
    for direction in ("both", "under"):
        found = dict(get_outlier_dimensions(x, reference=reference, direction=direction))
        assert list(found) == [396, 4]
        assert found[396] == pytest.approx(948.698 / 1.5376, rel=1e-4)  # 617
        assert found[4] == pytest.approx(2752.569 / 65.5, rel=1e-4)  # 42
    assert get_outlier_dimensions(x, reference=reference, direction="over") == []
    assert get_outlier_dimensions(x, reference=torch.from_numpy(std)) == get_outlier_dimensions(x, reference=reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.5}, "threshold.*at least 1, got 0.5"),
        ({"threshold": float("nan")}, "threshold"),
        ({"gamma": 0.0}, "gamma.*above 0"),
        ({"gamma": 1.5}, "gamma.*up to 1"),
        ({"mode": "mask"}, "mode: expected one of none, zero, clamp, scale, got 'mask'"),
        ({"direction": "sideways"}, "direction"),
        ({"sinks": "maybe"}, "sinks"),
        ({"reference": torch.ones(5)}, r"reference.*\(4,\).*\(5,\)"),
        ({"reference": -torch.ones(4)}, "reference.*negative"),
        ({"reference": ReferenceStatistics.of(torch.randn(9, 5))}, "reference.*width 4, got 5"),
        ({"reference": ReferenceStatistics.of(torch.randn(1, 4))}, "reference.*at least 2 tokens, got 1"),
        ({"positions": torch.ones(7, dtype=torch.bool)}, r"positions.*\(3,\).*\(7,\)"),
        ({"positions": torch.tensor([0, 1, 2])}, "positions.*booleans"),
        ({"embeddings": torch.ones(4)}, "embeddings"),
        ({"embeddings": torch.ones(3, 4, dtype=torch.int64)}, "embeddings.*int64"),
        ({"embeddings": torch.full((3, 4), float("nan"))}, "embeddings.*finite"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"embeddings": torch.randn(3, 4), "reference": torch.ones(4), **change}
    with pytest.raises(ValueError, match=message):
        mask_outlier_dimensions(arguments.pop("embeddings"), **arguments)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.one_of(st.tuples(st.integers(0, 6), st.integers(1, 5)),
                    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5))),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["noise", "zeros", "constant", "huge", "tiny"]),
    mode=st.sampled_from(["none", "zero", "clamp", "scale"]),
    direction=st.sampled_from(["over", "under", "both"]),
    sinks=st.sampled_from(["exclude", "include"]),
    seed=st.integers(0, 99),
)
def test_any_input_keeps_its_shape_and_type_and_stays_finite(shape, dtype, kind, mode, direction, sinks, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x = {"noise": x, "zeros": x * 0, "constant": x * 0 + 3, "huge": x.clone(), "tiny": x * 1e-7}[kind]
    if kind == "huge" and x.numel():
        x[..., 0, :] = 1e4
    x = x.to(dtype)
    before = x.clone()
    reference = torch.ones(shape[-1])
    masked, info = mask_outlier_dimensions(x, mode=mode, reference=reference, direction=direction, sinks=sinks)
    assert masked.shape == x.shape and masked.dtype == dtype
    assert masked.isfinite().all()
    assert torch.equal(x, before)
    assert list(info.ratios) == sorted(info.ratios, reverse=True)
    untouched = [d for d in range(shape[-1]) if d not in info.masked_dimensions]
    assert torch.equal(masked[..., untouched], x[..., untouched])
    info.describe()


@pytest.mark.filterwarnings("error")
def test_states_that_carry_a_gradient_or_come_from_inference_mode_pass():
    with torch.inference_mode():
        inferred = with_std([1, 40])
    learned = with_std([1, 40]).requires_grad_()
    expected = mask_outlier_dimensions(with_std([1, 40]), mode="clamp", reference=torch.ones(2))[0]
    for x in (inferred, learned, learned * 1):
        assert torch.equal(mask_outlier_dimensions(x, mode="clamp", reference=torch.ones(2))[0], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_put_back_have_their_bits(dtype):
    original = (torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)) / 3).to(dtype)
    kept = torch.tensor([[True, False, False, True, False], [False] * 5])
    result = put_back(original, torch.zeros_like(original), kept)
    assert torch.equal(result[kept], original[kept]) and (result[~kept] == 0).all()


def test_of_several_embeddings_the_one_that_is_not_finite_is_named():
    fine, broken = torch.ones(2, 3), torch.tensor([[1.0, float("inf")]])
    check_all_embeddings({"text": fine, "vl": fine})
    with pytest.raises(ValueError, match="vl: expected finite"):
        check_all_embeddings({"text": fine, "vl": broken})
    with pytest.raises(ValueError, match="vl: expected floats of shape"):
        check_all_embeddings({"text": broken, "vl": fine[0]})


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_finite_values_are_not_taken_for_infinite_ones(dtype):
    x = torch.full((4, 8), torch.finfo(dtype if dtype != torch.float64 else torch.float32).max, dtype=dtype)
    assert torch.equal(mask_outlier_dimensions(x, mode="none", reference=torch.ones(8))[0], x)


@pytest.mark.parametrize("mode", ["clamp", "scale"])
def test_a_narrow_column_is_widened_about_its_mean(mode):
    x = with_std([1.5, 900.0], mean=[100.0, 0.0])
    masked, info = mask_outlier_dimensions(x, 10.0, mode, reference=torch.tensor([927.6, 927.6]))
    assert info.sides == ("under",)
    assert float(masked[:, 0].double().mean()) == pytest.approx(100.0, rel=1e-4)
    factor = 927.6 / 1.5 / 10
    widened = 1.5 * (factor if mode == "clamp" else factor**0.5)
    assert float(masked[:, 0].double().std()) == pytest.approx(widened, rel=1e-4)
