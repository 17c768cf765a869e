"""Figures about a sequence, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vl_core.reports.inspection import cosine_map, inspect
from vl_core.states.layout import TokenLayout, TokenRole
from vl_core.states.statistics import ReferenceStatistics

TOKENS, WIDTH = 40, 12


def random(seed: int, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def text_layout(length: int = TOKENS) -> TokenLayout:
    roles = torch.full((length,), int(TokenRole.TEXT))
    roles[:3] = roles[-5:] = int(TokenRole.TEMPLATE)
    return TokenLayout(roles, torch.zeros(length, dtype=torch.int64), layer=-2, source="text")


def test_token_rms_is_the_root_of_the_mean_square():
    states = random(0)
    expected = np.sqrt((states.double().numpy() ** 2).mean(1))
    np.testing.assert_allclose(inspect(states).rms.numpy(), expected, rtol=1e-6)


def test_median_rms_per_role_leaves_sinks_out():
    states = random(0)
    states[0] *= 500
    found = inspect(states, text_layout())
    rms = np.sqrt((states.double().numpy() ** 2).mean(1))
    assert found.sinks == (0,)
    by_role = found.rms_by_role()
    assert by_role == pytest.approx(
        {"template": np.median(np.r_[rms[1:3], rms[-5:]]), "text": np.median(rms[3:-5])}, rel=1e-6
    )
    assert inspect(states).rms_by_role() == pytest.approx({"tokens": np.median(rms[1:])}, rel=1e-6)


def test_comparison_with_a_reference_follows_its_definition():
    states, other = random(1), random(2, 200) * torch.linspace(0.5, 2, WIDTH)
    states[:, 7] *= 100
    states[:, 3] /= 400
    found = inspect(states, reference=ReferenceStatistics.of(other))
    ours, theirs = states.double().numpy(), other.double().numpy()
    ratio = ours.std(0, ddof=1) / theirs.std(0, ddof=1)
    np.testing.assert_allclose(found.ratio.numpy(), ratio, rtol=1e-5)
    either_way = np.maximum(ratio, 1 / ratio)
    largest_first = sorted(np.flatnonzero(either_way > 10), key=lambda dimension: -either_way[dimension])
    assert [dimension for dimension, _ in found.outliers] == largest_first
    assert set(largest_first) == {3, 7}
    assert found.mean_correlation == pytest.approx(np.corrcoef(ours.mean(0), theirs.mean(0))[0, 1], abs=1e-5)
    log_correlation = np.corrcoef(np.log(ours.std(0, ddof=1)), np.log(theirs.std(0, ddof=1)))[0, 1]
    assert found.log_std_correlation == pytest.approx(log_correlation, abs=1e-5)


def test_sinks_count_neither_here_nor_in_the_reference():
    states, other = random(1), random(2, 200)
    with_sinks, other_with_sinks = states.clone(), other.clone()
    with_sinks[0], other_with_sinks[0] = 9000, 7000
    found = inspect(with_sinks, reference=ReferenceStatistics.of(other_with_sinks))
    expected = states[1:].double().numpy().std(0, ddof=1) / other[1:].double().numpy().std(0, ddof=1)
    np.testing.assert_allclose(found.ratio.numpy(), expected, rtol=1e-5)


def test_values_that_are_not_finite_are_reported_not_refused():
    states = random(3)
    states[4, 2], states[4, 5], states[9, 0] = float("nan"), float("inf"), float("-inf")
    found = inspect(states, text_layout(), ReferenceStatistics.of(random(4)))
    assert found.non_finite == 3
    assert found.rms.isnan().nonzero().flatten().tolist() == [4, 9]
    assert "3 values are NaN or infinite" in found.describe()
    kept = np.delete(states.double().numpy(), [4, 9], 0)
    expected = kept.std(0, ddof=1) / random(4).double().numpy().std(0, ddof=1)
    np.testing.assert_allclose(found.ratio.numpy(), expected, rtol=1e-5)
    by_role = found.rms_by_role()
    rms = np.sqrt((states.double().numpy() ** 2).mean(1))
    assert by_role["text"] == pytest.approx(np.nanmedian(np.where(np.isfinite(rms), rms, np.nan)[3:-5]), rel=1e-6)


def test_nothing_but_nan_is_reported_too():
    found = inspect(torch.full((6, WIDTH), float("nan")), reference=ReferenceStatistics.of(random(4)))
    assert found.non_finite == 6 * WIDTH
    assert found.ratio is None
    assert f"{6 * WIDTH} values are NaN" in found.describe()


def test_one_token_has_no_spread_to_compare():
    found = inspect(random(0)[:1], reference=ReferenceStatistics.of(random(1)))
    assert (found.tokens, found.ratio, found.outliers) == (1, None, ())


@pytest.mark.parametrize(("tokens", "padded"), [(1, 32), (32, 32), (33, 64)])
def test_the_report_tells_what_z_image_pads_to(tokens, padded):
    assert f"{tokens} tokens × {WIDTH} (Z-Image pads them to {padded})" in inspect(random(0, tokens)).describe()


def test_the_report_warns_of_a_caption_too_long_for_z_image():
    assert "Longer than" not in inspect(random(0, 1504)).describe()
    assert "Longer than the 1504 caption tokens" in inspect(random(0, 1505)).describe()


def test_the_report_names_layer_source_sinks_and_outliers():
    states = random(1)
    states[0] = 9000
    states[1:, 7] *= 100
    states[1:, 2] /= 300
    text = inspect(states, text_layout(), ReferenceStatistics.of(random(1))).describe()
    assert "8 template, 32 text; layer -2, from text" in text
    assert "attention sinks at: 0 (RMS 9000)" in text
    assert "2 dimensions beyond 10×\n  1 wider than the reference: 7 (99×)" in text
    assert "\n  1 narrower than the reference: 2 (297×)" in text


def test_the_report_names_the_worst_outliers_and_hints_at_the_rest():
    states = random(1)
    states[:, :6] *= torch.tensor([50.0, 100, 150, 200, 250, 300])
    named = inspect(states, reference=ReferenceStatistics.of(random(1))).describe().splitlines()[-1]
    assert named == "  6 wider than the reference: 5 (300×), 4 (250×), 3 (200×), 2 (150×) …"


def test_means_and_stds_of_both_sides_are_kept_without_sinks():
    states, other = random(1), random(2, 200)
    with_sinks, other_with_sinks = states.clone(), other.clone()
    with_sinks[0], other_with_sinks[0] = 9000, 7000
    found = inspect(with_sinks, reference=ReferenceStatistics.of(other_with_sinks))
    for ours, theirs in (
        (found.mean, states[1:].double().numpy().mean(0)),
        (found.std, states[1:].double().numpy().std(0, ddof=1)),
        (found.reference_mean, other[1:].double().numpy().mean(0)),
        (found.reference_std, other[1:].double().numpy().std(0, ddof=1)),
    ):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)
    assert inspect(states).mean is None


def cosines(states: torch.Tensor) -> np.ndarray:
    unit = states.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


def test_the_cosine_map_is_the_cosine_of_every_pair():
    found, step = cosine_map(random(0))
    assert step == 1 and inspect(random(0)).cosine_step == 1
    np.testing.assert_allclose(found.numpy(), cosines(random(0)), atol=1e-6)
    assert torch.equal(inspect(random(0)).cosine, found)


@pytest.mark.parametrize(("side", "step"), [(40, 1), (39, 2), (20, 2), (12, 4), (3, 14)])
def test_a_pooled_cosine_map_holds_the_mean_cosine_of_each_block(side, step):
    found, taken = cosine_map(random(0), side)
    assert taken == step and len(found) == -(-TOKENS // step) <= side
    whole = cosines(random(0))
    starts = range(0, TOKENS, step)
    expected = [[whole[a : a + step, b : b + step].mean() for b in starts] for a in starts]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_more_than_512_tokens_are_pooled():
    assert inspect(random(0, 512)).cosine.shape == (512, 512)
    found = inspect(random(0, 513))
    assert (found.cosine_step, tuple(found.cosine.shape)) == (2, (257, 257))


def test_tokens_without_a_direction_have_no_cosine():
    states = random(0)
    states[3], states[5, 1], states[7, 2] = 0, float("nan"), float("inf")
    found = cosine_map(states)[0].numpy()
    aimless = [3, 5, 7]
    assert np.isnan(found[aimless]).all() and np.isnan(found[:, aimless]).all()
    rest = np.delete(np.arange(TOKENS), aimless)
    np.testing.assert_allclose(found[np.ix_(rest, rest)], cosines(states[rest]), atol=1e-6)


def test_a_batch_of_one_is_a_sequence():
    assert torch.equal(inspect(random(0)[None]).rms, inspect(random(0)).rms)


@pytest.mark.parametrize("shape", [(2, 4, WIDTH), (0, WIDTH), (WIDTH,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"embeddings: expected shape \(tokens, width\)"):
        inspect(torch.zeros(shape))


def test_a_layout_or_reference_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="layout: expected 40 positions, got 30"):
        inspect(random(0), text_layout(30))
    with pytest.raises(ValueError, match="expected statistics of width 12, got 3"):
        inspect(random(0), reference=ReferenceStatistics.of(torch.randn(9, 3)))
