"""Ridge regression from mergeable sums against numpy's closed form, planted maps, and itself interrupted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl_core.adapters.ridge import NormalEquations
from vl_core.adapters.ridge_map import RidgeMap
from vl_core.adapters.ridge_solve import _floored_std


def drawn(pairs: int, inputs: int, targets: int, seed: int = 0, noise: float = 0.1, rank: int | None = None):
    """Pairs of a planted map with an offset, inputs of very different scales and means."""
    g = torch.Generator().manual_seed(seed)
    scale = 10 ** torch.linspace(-1, 2, inputs)
    x = torch.randn(pairs, inputs, generator=g) * scale + 3 * scale
    inner = min(inputs, targets) if rank is None else rank
    planted = torch.randn(inputs, inner, generator=g) @ torch.randn(inner, targets, generator=g) / scale.unsqueeze(1)
    t = 5 + x @ planted + noise * torch.randn(pairs, targets, generator=g)
    return x, t, planted


def fed(x, t, **options) -> NormalEquations:
    equations = NormalEquations(x.shape[1], t.shape[1], **options)
    equations.add(x, t)
    return equations


def closed_form(x, t, penalty: float, weights=None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centre, map in raw units, offset and std by numpy in float64."""
    x, t = x.double().numpy(), t.double().numpy()
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    center, offset = np.average(x, 0, w), np.average(t, 0, w)
    std = np.sqrt(np.average((x - center) ** 2, 0, w))
    z = (x - center) / std
    inner = z.T @ (w[:, None] * z) + penalty * np.eye(x.shape[1])
    return center, np.linalg.solve(inner, z.T @ (w[:, None] * (t - offset))) / std[:, None], offset, std


def assert_is_the_closed_form(found: RidgeMap, x, t, penalty, weights=None, tolerance: float = 2e-3):
    center, matrix, offset, std = closed_form(x, t, penalty, weights)
    np.testing.assert_allclose(found.center, center, rtol=1e-5)
    np.testing.assert_allclose(found.offset, offset, rtol=1e-4, atol=1e-4)
    mine = (found.left.double() @ found.right.double()).numpy() * std[:, None]
    np.testing.assert_allclose(mine, matrix * std[:, None], atol=tolerance * np.abs(matrix * std[:, None]).max())


@pytest.mark.parametrize("pairs, inputs", [(40, 90), (400, 12)], ids=["as rows", "as sums"])
@pytest.mark.parametrize("penalty", [0.5, 30.0, 1000.0])
def test_the_map_is_the_closed_form(pairs, inputs, penalty):
    x, t, _ = drawn(pairs, inputs, 7)
    equations = fed(x, t)
    assert equations._summed == (pairs > inputs)
    assert_is_the_closed_form(equations.solve(penalty), x, t, penalty)


def test_without_noise_a_planted_map_comes_back():
    x, t, planted = drawn(600, 15, 9, noise=0.0)
    found = fed(x, t).solve("auto")
    torch.testing.assert_close(found.left @ found.right, planted, rtol=1e-3, atol=1e-3)
    assert found.report.r2 > 0.99999
    torch.testing.assert_close(found(x), t, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("pairs, inputs", [(60, 90), (900, 30)], ids=["as rows", "as sums"])
def test_a_planted_rank_is_found_and_is_what_numpy_gives(pairs, inputs):
    x, t, _ = drawn(pairs, inputs, 20, rank=4, noise=0.3)
    equations = fed(x, t)
    found = equations.solve("auto", "auto")
    assert found.report.rank == 4 if pairs > inputs else found.report.rank <= 8
    penalty = 2.0
    reduced = equations.solve(penalty, 4)
    center, matrix, _, std = closed_form(x, t, penalty)
    fitted = np.concatenate([(x.double().numpy() - center) / std, np.sqrt(penalty) * np.eye(inputs)])
    fitted = fitted @ (matrix * std[:, None])
    directions = np.linalg.svd(fitted, full_matrices=False)[2][:4]
    expected = matrix @ directions.T @ directions * std[:, None]
    mine = (reduced.left.double() @ reduced.right.double()).numpy() * std[:, None]
    np.testing.assert_allclose(mine, expected, atol=3e-3 * np.abs(expected).max())


@pytest.mark.parametrize("pairs, inputs", [(43, 90), (200, 12)], ids=["as rows", "as sums"])
@pytest.mark.parametrize("rank", [None, 3])
def test_the_held_out_error_is_that_of_fitting_five_times(pairs, inputs, rank):
    x, t, _ = drawn(pairs, inputs, 6, noise=1.0)
    penalty, groups = 20.0, {"first": slice(0, 2), "rest": slice(2, 6)}
    found = fed(x, t).solve(penalty, rank, groups=groups)
    fold, std = torch.arange(pairs) % 5, closed_form(x, t, 1.0)[3]
    error, total = np.zeros(6), np.zeros(6)
    for held in range(5):
        train = (fold != held).numpy()
        z, y = (x.double().numpy() / std), t.double().numpy()
        center, offset = z[train].mean(0), y[train].mean(0)
        inner = z[train] - center
        matrix = np.linalg.solve(inner.T @ inner + penalty * np.eye(inputs), inner.T @ (y[train] - offset))
        if rank:
            fitted = np.concatenate([inner, np.sqrt(penalty) * np.eye(inputs)]) @ matrix
            directions = np.linalg.svd(fitted, full_matrices=False)[2][:rank]
            matrix = matrix @ directions.T @ directions
        error += ((y[~train] - offset - (z[~train] - center) @ matrix) ** 2).sum(0)
        total += ((y[~train] - offset) ** 2).sum(0)
    assert found.report.r2 == pytest.approx(1 - error.sum() / total.sum(), abs=2e-4)
    for name, part in groups.items():
        assert found.report.r2_by[name] == pytest.approx(1 - error[part].sum() / total[part].sum(), abs=2e-4)


def test_the_penalty_is_the_one_of_lowest_held_out_error():
    x, t, _ = drawn(60, 90, 6, noise=3.0)
    report = fed(x, t).solve("auto").report
    assert report.r2 == max(score for _, score in report.curve) and len(report.curve) == 17
    assert report.penalty == max(report.curve, key=lambda point: point[1])[0]


def test_a_weight_of_two_is_a_pair_given_twice():
    x, t, _ = drawn(50, 8, 3)
    weights = torch.ones(50)
    weights[:20] = 2.0
    weights[20:30] = 0.0
    equations = NormalEquations(8, 3)
    equations.add(x, t, weights)
    assert equations.pairs == 40
    assert_is_the_closed_form(equations.solve(3.0), x, t, 3.0, weights.numpy())


@pytest.mark.parametrize("pairs, inputs", [(60, 90), (700, 12)], ids=["as rows", "as sums"])
def test_merged_parts_are_one_pass(pairs, inputs):
    x, t, _ = drawn(pairs, inputs, 5)
    whole, parts = fed(x, t), []
    for start in range(0, pairs, 20):
        part = NormalEquations(inputs, 5)
        for index in range(start, min(start + 20, pairs)):
            part.add(x[index], t[index], fold=index % 5)
        parts.append(part)
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    assert merged.pairs == whole.pairs == pairs
    one, other = whole.solve("auto"), merged.solve("auto")
    torch.testing.assert_close(other.left @ other.right, one.left @ one.right, rtol=1e-4, atol=1e-5)
    assert other.report.r2 == pytest.approx(one.report.r2, abs=1e-8)


@pytest.mark.parametrize("pairs, inputs", [(60, 90), (700, 12)], ids=["as rows", "as sums"])
def test_a_killed_fit_that_goes_on_is_one_pass_bit_for_bit(pairs, inputs, tmp_path):
    x, t, _ = drawn(pairs, inputs, 5)
    whole, resumed = NormalEquations(inputs, 5), NormalEquations(inputs, 5)
    for index in range(pairs):
        whole.add(x[index], t[index])
        resumed.add(x[index], t[index])
        if index in (7, pairs // 2):
            resumed = NormalEquations.load(resumed.save(tmp_path / "sums.safetensors"))
    one, other = whole.solve("auto"), resumed.solve("auto")
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    assert one.report == other.report


def test_memory_stays_within_the_budget_and_what_is_given_up_is_small():
    x, t, _ = drawn(3000, 200, 100, rank=5, noise=0.05)
    x = x[:, :5] @ torch.randn(5, 200, generator=torch.Generator().manual_seed(3)) + 0.1 * x[:, :1]
    t = x @ torch.randn(200, 100, generator=torch.Generator().manual_seed(4)) / 200
    equations, most = NormalEquations(200, 100, budget=200_000), 0
    for start in range(0, 3000, 50):
        equations.add(x[start : start + 50], t[start : start + 50])
        most = max(most, equations.nbytes)
    assert not equations._summed and most <= 200_000 and equations.pairs == 3000
    found = equations.solve("auto")
    assert found.report.lost < 1e-6
    center, offset = x.double().mean(0), t.double().mean(0)
    torch.testing.assert_close(found.center, center.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found(x), t, rtol=0, atol=float(1e-2 * (t - offset).abs().max()))


@settings(max_examples=25)
@given(
    pairs=st.integers(2, 30), inputs=st.integers(1, 12), targets=st.integers(1, 6), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    penalty=st.sampled_from(["auto", 0.0, 1.0]), rank=st.sampled_from([None, "auto", 1, 4]), dead=st.booleans(),
)
def test_any_shape_and_type_gives_finite_maps(pairs, inputs, targets, seed, dtype, penalty, rank, dead):
    g = torch.Generator().manual_seed(seed)
    x, t = torch.randn(pairs, inputs, generator=g).to(dtype), torch.randn(pairs, targets, generator=g).to(dtype)
    if dead:
        x[:, 0] = 3.0
    found = fed(x, t).solve(penalty, rank)
    assert found.left.shape == (inputs, found.report.rank) and found.right.shape == (found.report.rank, targets)
    assert all(tensor.isfinite().all() and tensor.dtype == torch.float32 for tensor in found.tensors().values())
    assert found(x).shape == (pairs, targets)


def test_noise_has_nothing_to_tell():
    g = torch.Generator().manual_seed(1)
    report = fed(torch.randn(300, 20, generator=g), torch.randn(300, 5, generator=g)).solve("auto").report
    assert report.r2 < 0.02


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e.add(torch.ones(3, 5), torch.ones(3, 2)), "Expected pairs of shape"),
        (lambda e: e.add(torch.ones(3, 4), torch.ones(2, 2)), "Expected pairs of shape"),
        (lambda e: e.add(torch.ones(3, 4), torch.ones(3, 2), -1.0), "weight: expected 0 or more"),
        (lambda e: e.add(torch.ones(3, 4), torch.ones(3, 2), float("nan")), "weight: expected 0 or more"),
        (lambda e: e.add(torch.full((3, 4), torch.nan), torch.ones(3, 2)), "x: expected finite"),
        (lambda e: e.merge(NormalEquations(4, 3)), "same .inputs, targets, folds."),
        (lambda e: e.solve(), "at least 2 pairs"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change(NormalEquations(4, 2))


def test_a_single_fold_cannot_choose_but_can_fit():
    equations = NormalEquations(4, 2)
    x, t, _ = drawn(9, 4, 2)
    equations.add(x, t, fold=3)
    with pytest.raises(ValueError, match="2 folds"):
        equations.solve()
    assert np.isnan(equations.solve(1.0).report.r2)
    with pytest.raises(ValueError, match="penalty"):
        equations.solve(-1.0)
    with pytest.raises(ValueError, match="rank"):
        equations.solve(1.0, 0)


def test_a_dead_input_is_not_blown_up():
    std = _floored_std(torch.tensor([4.0, 1.0, 0.0, 9.0], dtype=torch.float64))
    assert float(std[2]) == pytest.approx(1e-3)


def test_what_a_part_speaks_of_is_the_likeliest_by_numpy_in_target_space():
    """The covariances of the parts written out and inverted, where the code stays among the coordinates."""
    x, t, _ = drawn(300, 6, 20, noise=2.0)
    found = fed(x, t).solve()
    parts, right = (slice(0, 5), slice(5, 13)), found.right.double().numpy()
    r2, n, one = found.report.r2, 300, np.eye(right.shape[0])
    assert 0.05 < r2 < 0.999
    sigma = (1 - r2) / r2 * np.square(right[:, :13]).sum() / 13 / n  # variance per target
    shares = [None, None]
    for step in range(5):
        heard = []
        for part, share in zip(parts, shares, strict=True):
            written = right[:, part]
            noise = sigma * np.eye(written.shape[1])
            if step:
                noise += written.T @ (one - share) @ (one - share).T @ written / n
            heard.append(written @ np.linalg.inv(noise) @ written.T)
        shares = [np.linalg.inv(sum(heard) + n * one) @ each for each in heard]
    np.testing.assert_allclose(found.spoken(parts).numpy(), np.stack(shares), rtol=1e-6, atol=1e-9)
    assert found.spoken(parts) is found.spoken(parts)


def test_parts_of_different_inputs_speak_of_different_coordinates():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(400, 6, generator=g, dtype=torch.float64)
    planted = torch.block_diag(*(torch.randn(3, 7, generator=g, dtype=torch.float64) for _ in range(2)))
    found = fed(x, x @ planted + 0.05 * torch.randn(400, 14, generator=g)).solve()
    one, two = found.spoken((slice(0, 7), slice(7, 14))).numpy()
    own = found.left.double().numpy()
    for half, share, other in ((slice(0, 3), one, two), (slice(3, 6), two, one)):
        read = own[half]  # coordinates that the half's inputs write
        np.testing.assert_allclose(read @ share.T, read, atol=0.02 * np.abs(read).max())
        np.testing.assert_allclose(read @ other.T, 0 * read, atol=0.02 * np.abs(read).max())


@pytest.mark.parametrize("pairs", [150, 300, 600])
def test_the_held_out_score_of_a_sketch_is_that_of_fresh_pairs(pairs):
    """Inputs and targets share a few strong directions and each has noise of its own, which the sketch throws away."""
    rng = np.random.default_rng(0)
    inputs, targets, hidden, fresh = 400, 800, 8, 2000
    into, out = rng.standard_normal((hidden, inputs)), rng.standard_normal((hidden, targets))

    def draw(count: int):
        z = rng.standard_normal((count, hidden))
        x = z @ into + 1.5 * rng.standard_normal((count, inputs))
        t = z @ out + 1.7 * rng.standard_normal((count, targets))
        return torch.from_numpy(x).float(), torch.from_numpy(t).float()

    equations = NormalEquations(inputs, targets, budget=4 * 120 * (1 + inputs + targets))
    x, t = draw(pairs)
    for start in range(0, pairs, 30):
        equations.add(x[start : start + 30], t[start : start + 30])
    assert equations.lost > 0
    found = equations.solve("auto")
    x, t = draw(fresh)
    error = (t.double() - found(x).double()).square().sum()
    truth = 1 - float(error / (t.double() - t.double().mean(0)).square().sum())
    assert found.report.r2 == pytest.approx(truth, abs=0.03)
    again = NormalEquations.from_tensors(*equations.tensors()).solve("auto")
    assert again.report.r2 == found.report.r2
