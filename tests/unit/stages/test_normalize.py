"""Normalisation, held against a numpy float64 transcription of the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl_core.stages.normalize import (
    normalize,
    normalize_hybrid,
    normalize_per_dimension,
    normalize_rms,
    scale_embeddings,
)
from vl_core.states.sinks import find_sinks
from vl_core.states.statistics import ReferenceStatistics

WIDTH = 6
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def states(tokens: int = 40, seed: int = 0, sink: bool = False) -> torch.Tensor:
    """Tokens with a mean and a spread of their own in each dimension; optionally a sink in front."""
    x = torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))
    x = x * torch.tensor([1.0, 7.0, 0.1, 3.0, 3.0, 12.0]) + torch.tensor([0.0, 5.0, 1.0, -2.0, 0.0, 9.0])
    if sink:
        x[0] = torch.tensor([0.0, 9e3, 0.0, 0.0, -4e3, 0.0])
    return x


def reference(sink: bool = True) -> ReferenceStatistics:
    return ReferenceStatistics.of(states(70, seed=9, sink=sink) * 2 + 1)


def numbers(x: torch.Tensor) -> np.ndarray:
    return x.double().numpy()


def transcribed(x: np.ndarray, mode, mean=None, std=None, target=None, weight=0.5, clip=3.0) -> np.ndarray:
    """mathematics, section 3, over all tokens of ``x`` in float64; ``target`` is a std, or an RMS for rms."""
    if mode == "global":
        return x * (target / x.std(ddof=1))
    if mode == "per_dim":
        z = np.clip((x - x.mean(0)) / np.maximum(x.std(0, ddof=1), 1e-6), -clip, clip)
        return z * np.maximum(std, 1e-6) + mean
    if mode == "hybrid":
        per_dim = transcribed(x, "per_dim", mean, std, clip=clip)
        return weight * per_dim + (1 - weight) * transcribed(x, "global", target=target)
    if mode == "rms":
        return x * (target / np.sqrt((x**2).mean(1, keepdims=True)))
    return x


def assert_close(ours: torch.Tensor, oracle: np.ndarray) -> None:
    assert np.abs(numbers(ours) - oracle).max() <= 1e-5 * np.abs(oracle).max()


def reference_numbers(measured: torch.Tensor, sinks: str):
    """Mean, std, global std and median token RMS in numpy, sinks cut out by hand where they are excluded."""
    tokens = numbers(measured)[1:] if sinks == "exclude" else numbers(measured)
    rms = np.median(np.sqrt((numbers(measured)[1:] ** 2).mean(1)))
    return tokens.mean(0), tokens.std(0, ddof=1), tokens.std(ddof=1), rms


@pytest.mark.parametrize("sinks", ["exclude", "include"])
@pytest.mark.parametrize("mode", ["none", "global", "per_dim", "hybrid", "rms"])
def test_every_mode_follows_the_formula_with_and_without_sinks(mode, sinks):
    x, measured = states(sink=True), states(70, seed=9, sink=True) * 2 + 1
    assert find_sinks(x).nonzero().flatten().tolist() == [0] == find_sinks(measured).nonzero().flatten().tolist()
    mean, std, global_std, rms = reference_numbers(measured, sinks)
    scaled, info = normalize(x, mode, ReferenceStatistics.of(measured), sinks=sinks)
    first = 1 if sinks == "exclude" else 0
    oracle = transcribed(numbers(x)[first:], mode, mean, std, rms if mode == "rms" else global_std)
    assert_close(scaled[first:], oracle)
    assert torch.equal(scaled[:first], x[:first])
    assert info.sinks == first
    assert info.original_std == pytest.approx(numbers(x)[first:].std(ddof=1), rel=1e-5)
    assert info.scaled_std == pytest.approx(oracle.std(ddof=1), rel=1e-5)
    assert info.original_rms == pytest.approx(np.median(np.sqrt((numbers(x)[first:] ** 2).mean(1))), rel=1e-5)
    assert info.scaled_rms == pytest.approx(np.median(np.sqrt((oracle**2).mean(1))), rel=1e-5)
    assert info.notes == ()


def test_the_published_profile_is_target_61_and_clip_3_over_all_tokens():
    x = states(22, sink=True)
    mean, std = np.linspace(-200, 900, WIDTH), np.linspace(50, 2700, WIDTH)
    published = ReferenceStatistics.from_published(torch.from_numpy(mean), torch.from_numpy(std), count=220)
    assert_close(scale_embeddings(x, 61.0, sinks="include"), transcribed(numbers(x), "global", target=61.0))
    ours = normalize_per_dimension(x, published, clip=3.0, sinks="include")
    assert_close(ours, transcribed(numbers(x), "per_dim", mean, std))
    ours = normalize_hybrid(x, published, weight=0.3, target_std=61.0, sinks="include")
    assert_close(ours, transcribed(numbers(x), "hybrid", mean, std, 61.0, weight=0.3))


def test_clipping_acts_at_the_number_of_stds_given():
    x = states(400)
    wide, narrow = (normalize_per_dimension(x, reference(), clip=clip) for clip in (float("inf"), 1.0))
    mean, std, *_ = reference_numbers(states(70, seed=9, sink=True) * 2 + 1, "exclude")
    assert np.allclose(numbers(wide).std(0, ddof=1), std, rtol=1e-5)
    assert np.abs((numbers(narrow) - mean) / std).max() == pytest.approx(1, abs=1e-4)
    assert torch.equal(normalize_per_dimension(x, reference(), clip=1e300), wide)  # more than float32 holds


def test_hybrid_at_its_ends_is_global_and_per_dim():
    x, target = states(sink=True), reference()
    assert torch.equal(normalize_hybrid(x, target, weight=0.0), normalize(x, "global", target)[0])
    assert torch.equal(normalize_hybrid(x, target, weight=1.0), normalize_per_dimension(x, target))


def test_rms_gives_every_ordinary_token_one_size_and_leaves_the_sink():
    x = states(sink=True)
    scaled = normalize_rms(x, 11.0)
    assert torch.equal(scaled[0], x[0])
    assert scaled[1:].double().square().mean(1).sqrt().tolist() == pytest.approx([11.0] * 39, rel=1e-5)
    assert normalize_rms(x, 11.0, sinks="include")[0].double().square().mean().sqrt() == pytest.approx(11.0, rel=1e-5)


def test_only_the_positions_asked_for_are_measured_and_changed():
    x = states(sink=True)
    inside = torch.arange(40) < 20
    scaled, info = normalize(x, "global", target_std=61.0, positions=inside)
    assert_close(scaled[1:20], transcribed(numbers(x)[1:20], "global", target=61.0))
    assert torch.equal(scaled[20:], x[20:]) and torch.equal(scaled[0], x[0])
    assert info.sinks == 1
    assert normalize(x, "global", target_std=61.0, positions=~inside)[1].sinks == 0  # the sink is elsewhere


def test_no_positions_at_all_changes_nothing_and_says_so():
    x = states()
    scaled, info = normalize(x, "per_dim", reference(), positions=torch.zeros(40, dtype=torch.bool))
    assert torch.equal(scaled, x)
    assert "No tokens" in info.describe()
    assert (info.original_std, info.scaled_rms) == (0.0, 0.0)


@pytest.mark.parametrize("mode", ["per_dim", "hybrid"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_tokens_without_variety_fall_back_to_their_global_std(mode, tokens):
    x = states(1).repeat(tokens, 1)
    scaled, info = normalize(x, mode, reference(), target_std=61.0)
    assert_close(scaled, transcribed(numbers(x), "global", target=61.0))
    assert f"({tokens} counted)" in info.describe() and "global std instead" in info.describe()


def test_one_ordinary_token_beside_sinks_or_in_the_scope_is_one_token():
    x = states()
    only = torch.arange(40) == 7
    scaled, info = normalize(x, "per_dim", reference(), target_std=61.0, positions=only)
    assert_close(scaled[only], transcribed(numbers(x[only]), "global", target=61.0))
    assert info.notes


@pytest.mark.parametrize("mode", ["global", "per_dim", "hybrid"])
@pytest.mark.parametrize("value", [0.0, 4.0, 1e4])
def test_values_that_do_not_vary_stay_and_a_note_says_so(mode, value):
    x = torch.full((5, WIDTH), value)
    scaled, info = normalize(x, mode, reference())
    assert torch.equal(scaled, x)
    assert "std 0" in info.describe()


def test_a_single_constant_dimension_becomes_the_reference_mean():
    x, target = states(), reference()
    x[:, 3] = 1e4  # so large that a float32 mean of it would be off
    scaled = normalize_per_dimension(x, target)
    assert scaled[:, 3].tolist() == pytest.approx([float(target.ordinary.mean[3])] * 40, rel=1e-5)


def test_tokens_that_are_all_zero_keep_no_rms():
    x = states()
    x[5] = 0
    scaled, info = normalize(x, "rms", reference())
    assert (scaled[5] == 0).all() and scaled.isfinite().all()
    assert "1 tokens are all zero" in info.describe()


def test_a_batch_is_its_sequences_one_by_one():
    first, second = states(seed=1, sink=True), states(seed=2)
    for mode in ("global", "per_dim", "hybrid", "rms"):
        scaled, info = normalize(torch.stack([first, second]), mode, reference())
        assert torch.equal(scaled[0], normalize(first, mode, reference())[0])
        assert torch.equal(scaled[1], normalize(second, mode, reference())[0])
        assert info.sinks == 1


def test_none_and_sinks_keep_their_bits_in_float64():
    x = states(sink=True).double() + 1e-12
    assert torch.equal(normalize(x, "none")[0], x)
    assert torch.equal(normalize(x, "rms", reference())[0][0], x[0])


def test_a_number_too_large_for_float16_is_held_at_its_largest():
    x = torch.tensor([[1.0, 2.0], [3.0, 60000.0]], dtype=torch.float16)
    assert scale_embeddings(x, 1e6, sinks="include").max() == 65504


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: normalize(x, "per_dim"), "reference: mode per_dim needs.*Connect Text Encoder Statistics"),
        (lambda x: normalize(x, "hybrid", target_std=61.0), "reference: mode hybrid needs"),
        (lambda x: normalize(x, "rms"), "reference: mode rms needs"),
        (lambda x: normalize(x, "global"), "reference: mode global needs.*target_std"),
        (
            lambda x: normalize(x, "rms", ReferenceStatistics.from_published(torch.ones(6), torch.ones(6), 9)),
            "median token RMS, got nan",
        ),
        (lambda x: normalize(x, "global", ReferenceStatistics.of(torch.randn(9, 7))), "reference.*width 6, got 7"),
        (lambda x: normalize(x, "global", ReferenceStatistics.of(torch.randn(1, 6))), "reference.*at least 2 tokens"),
        (lambda x: normalize(x, "layer"), "mode: expected one of none, global, per_dim, hybrid, rms, got 'layer'"),
        (lambda x: normalize(x, "global", target_std=0.0), "target_std"),
        (lambda x: normalize_rms(x, float("nan")), "target_rms"),
        (lambda x: normalize_hybrid(x, reference(), weight=1.2), "weight"),
        (lambda x: normalize_per_dimension(x, reference(), clip=0.0), "clip"),
        (lambda x: normalize(x, "none", sinks="yes"), "sinks"),
        (lambda x: normalize(x[0], "none"), "embeddings"),
        (lambda x: normalize(x * float("inf"), "none"), "finite"),
    ],
)
def test_bad_input_is_named_and_the_way_out_told(call, message):
    with pytest.raises(ValueError, match=message):
        call(states())


@settings(max_examples=60, deadline=None)
@given(
    shape=st.one_of(st.tuples(st.integers(0, 6)), st.tuples(st.integers(1, 3), st.integers(1, 6))),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["noise", "zeros", "constant", "huge", "tiny"]),
    mode=st.sampled_from(["none", "global", "per_dim", "hybrid", "rms"]),
    sinks=st.sampled_from(["exclude", "include"]),
    seed=st.integers(0, 99),
)
def test_any_input_keeps_its_shape_and_type_and_stays_finite(shape, dtype, kind, mode, sinks, seed):
    x = torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))
    x = {"noise": x, "zeros": x * 0, "constant": x * 0 + 3, "huge": x.clone(), "tiny": x * 1e-7}[kind]
    if kind == "huge" and x.numel():
        x[..., 0, :] = 1e4
        x[..., 0, 1] = -1e4
    x = x.to(dtype)
    before = x.clone()
    scaled, info = normalize(x, mode, reference(), sinks=sinks)
    assert scaled.shape == x.shape and scaled.dtype == dtype
    assert scaled.isfinite().all()
    assert torch.equal(x, before)
    if sinks == "exclude":
        assert torch.equal(scaled[find_sinks(x)], x[find_sinks(x)])
    assert "nan" not in info.describe()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["none", "global", "per_dim", "hybrid", "rms"])
def test_states_that_carry_a_gradient_or_come_from_inference_mode_pass(mode):
    with torch.inference_mode():
        inferred = states()
    learned = states().requires_grad_()
    expected = normalize(states(), mode, reference())[0]
    for x in (inferred, learned, learned * 1):
        assert torch.equal(normalize(x, mode, reference())[0], expected)


@pytest.mark.parametrize("mode", ["none", "global", "per_dim", "hybrid", "rms"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_out_of_scope_keep_their_bits_and_a_batch_may_be_empty(mode, dtype):
    x = (states(sink=True).double() / 3).to(dtype)
    inside = torch.arange(40) % 3 > 0
    scaled, _ = normalize(x, mode, reference(), positions=inside)
    assert torch.equal(scaled[~inside], x[~inside]) and torch.equal(scaled[0], x[0])
    assert normalize(x[None][:0], mode, reference())[0].shape == (0, 40, WIDTH)


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf"), 1.9760989058126943e38])
def test_a_target_that_no_float_would_hold_is_refused(target):
    """Found by the nightly flood: finite values times it were infinite."""
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    for act in (lambda: normalize(x, "global", target_std=target), lambda: normalize_rms(x, target)):
        with pytest.raises(ValueError, match=r"target_(std|rms): expected a number above 0 and at most 1e\+06"):
            act()
    assert normalize(x, "global", target_std=1e6)[0].isfinite().all()
