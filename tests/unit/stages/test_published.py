"""The published method against its own arithmetic, transcribed in numpy float64 with plain loops over tokens."""

from __future__ import annotations

import inspect
import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vl_core.headless.compare.presets import AS_PUBLISHED
from vl_core.headless.compare.presets import PRESETS as COMPARISONS
from vl_core.headless.compare.study import choose_axes
from vl_core.stages import published as ours
from vl_core.stages.published import PRESETS, PublishedSettings
from vl_core.states.layout import TokenLayout, TokenRole
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.vl_states import VLStates
from vl_core.steering.settings import OPEN_BLEND, Settings
from vl_core.steering.ways.blends import mix_openly

settings.register_profile(
    "published", parent=settings.get_profile("no deadline"), max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
pytestmark = pytest.mark.usefixtures("one_thread")
STEADY = settings.get_profile("published")

# ------------------------------------------------------------------------------------------------ values that are nasty

VALUES = st.one_of(
    st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, -1.0, 13510.0, -4544.0, 1e-8, 3e-5, 65504.0, 1e15]),
)


@st.composite
def states(draw, width: int, least: int = 1, most: int = 9) -> np.ndarray:
    """``(L, width)``; sometimes a constant column, equal tokens, or all zeros."""
    x = draw(arrays(np.float32, (draw(st.integers(least, most)), width), elements=VALUES))
    kind = draw(st.sampled_from(["plain", "plain", "column", "equal", "zero"]))
    if kind == "column":
        x[:, draw(st.integers(0, width - 1))] = draw(VALUES)
    elif kind == "equal":
        x[:] = x[0]
    elif kind == "zero":
        x[:] = 0
    return x


@st.composite
def pairs(draw, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    width = draw(st.integers(3, 12))
    return draw(states(width, least)), draw(states(width, least))


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    """To 1e-5, relative, element by element; the last digits of float64 are free where large values cancel."""
    assert found.dtype == torch.float32
    assert tuple(found.shape) == expected.shape
    assert found.isfinite().all()
    expected = np.clip(expected, -np.finfo(np.float32).max, np.finfo(np.float32).max)
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-5, atol=1e-12 * np.abs(expected).max() + 1e-12)


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def wide(*sides: np.ndarray) -> list[np.ndarray]:
    return [side.astype(np.float64) for side in sides]


# ------------------------------------------------------------------------------------- the published code, transcribed


def spread(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Unbiased; where the published code has NaN, for one value, 0. Of equal values 0 too, which rounding may miss."""
    if axis is None and x.size and (x == x.flat[0]).all():
        return np.zeros(())
    count = x.size if axis is None else x.shape[axis]
    return np.zeros(()) if axis is None and count < 2 else (
        x.std(axis, ddof=1) if count > 1 else np.zeros(np.delete(x.shape, axis))
    )


def cut(y, x):
    n = min(len(y), len(x))
    return y[:n], x[:n]


def np_scale(x, target=61.0):
    s = spread(x)
    return x * (target / s) if s > 0 else x


def np_per_dim(x, mean, std, clip=3.0):
    out = np.empty_like(x)
    for d in range(x.shape[1]):
        z = (x[:, d] - x[:, d].mean()) / max(float(spread(x[:, d])), 1e-6)
        out[:, d] = (z if clip is None else np.clip(z, -clip, clip)) * max(std[d], 1e-6) + mean[d]
    return out


def np_mask(x, std, threshold, mode):
    out, ratios = x.copy(), {}
    for d in range(x.shape[1]):
        s = float(spread(x[:, d]))
        ratio = s / max(std[d], 1e-6)
        if ratio > threshold:
            ratios[d] = ratio
            out[:, d] = 0 if mode == "zero" else x[:, d] * (threshold * max(std[d], 1e-6) / s)
    return out, ratios


def np_stretch(x, n):
    """Half-pixel centres, held at the ends."""
    if len(x) == n:
        return x
    out = np.empty((n, x.shape[1]))
    for i in range(n):
        at = max((i + 0.5) * len(x) / n - 0.5, 0.0)
        low = min(int(at), len(x) - 1)
        high = min(low + 1, len(x) - 1)
        share = at - low
        out[i] = (1 - share) * x[low] + share * x[high]
    return out


def np_interpolate(y, x, alpha):
    return y if alpha == 0 else alpha * np_stretch(x, len(y)) + (1 - alpha) * y


def np_linear(y, x, alpha):
    if alpha in (0.0, 1.0):
        return x if alpha else y
    y, x = cut(y, x)
    return alpha * x + (1 - alpha) * y


def np_style_only(y, x, alpha, dims=None):
    y, x = cut(y, x)
    start, end = dims or (y.shape[1] * 2 // 3, y.shape[1])
    out = y.copy()
    for d in range(start, min(end, y.shape[1])):
        out[:, d] = alpha * x[:, d] + (1 - alpha) * y[:, d]
    return out


def np_per_token(y, x, alphas):
    y, x = cut(y, x)
    return np.stack([a * u + (1 - a) * v for a, u, v in zip(alphas, x, y)])  # noqa: B905


def np_graduated(n, start, end, curve):
    t = np.linspace(0, 1, n) if n > 1 else np.zeros(1)
    return start + {"linear": t, "ease_in": t**2, "ease_out": 1 - (1 - t) ** 2}[curve] * (end - start)


def np_attention(y, x, alpha, weights):
    n = min(len(y), len(x))
    w = weights[:n]
    w = (w - w.min()) / (w.max() - w.min() + 1e-8)
    return np_per_token(y, x, alpha * (1 - 0.8 * w))


def np_delta(x, n, unit):
    x, n = cut(x, n)
    delta = x - n
    s = spread(delta)
    return delta / s if unit and s > 0 else delta


def np_add_delta(y, delta, alpha, to_text):
    delta = np_stretch(delta, len(y))
    s = spread(delta)
    if to_text and s > 0:
        delta = delta * (spread(y) / s)
    return y + alpha * delta


def np_adain(y, x, alpha, kind):
    y, x = cut(y, x)
    out = np.empty_like(y)
    if kind == "global":
        out = (y - y.mean()) / max(spread(y), 1e-6) * max(spread(x), 1e-6) + x.mean()
    elif kind == "token":
        for i in range(len(y)):
            out[i] = (y[i] - y[i].mean()) / max(spread(y[i]), 1e-6) * max(spread(x[i]), 1e-6) + x[i].mean()
    else:
        for d in range(y.shape[1]):
            own, other = y[:, d], x[:, d]
            out[:, d] = (own - own.mean()) / max(spread(own), 1e-6) * max(spread(other), 1e-6) + other.mean()
    return alpha * out + (1 - alpha) * y


def np_slerp(y, x, alpha):
    out = []
    for a, b in zip(*cut(y, x)):  # noqa: B905
        u, v = a / max(np.linalg.norm(a), 1e-12), b / max(np.linalg.norm(b), 1e-12)
        omega = np.arccos(np.clip(u @ v, -1, 1))
        if omega < 1e-6 or omega > np.pi - 1e-6:
            out.append((1 - alpha) * a + alpha * b)
            continue
        arc = (np.sin((1 - alpha) * omega) * u + np.sin(alpha * omega) * v) / np.sin(omega)
        out.append(arc * ((1 - alpha) * np.linalg.norm(a) + alpha * np.linalg.norm(b)))
    return np.stack(out)


def np_surgical(y, x, alpha, dims):
    y, x = cut(y, x)
    out = alpha * x + (1 - alpha) * y
    for d in dims:
        if d < y.shape[1]:
            out[:, d] = y[:, d]
    return out


def np_gram(y, grams, alpha, steps, rate):
    """Adam on (1 − α)·mse(f, y) + α·mse(fᵀf/n, S), the gradient of each term from its own matrix."""
    f, s = y.copy(), np.mean(grams, axis=0)
    m, v = np.zeros_like(y), np.zeros_like(y)
    for t in range(1, steps + 1):
        content = 2 * (f - y) / f.size
        excess = f.T @ f / len(f) - s
        style = f @ (excess + excess.T) * 2 / (s.size * len(f))
        g = (1 - alpha) * content + alpha * style
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        f = f - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return f


# ------------------------------------------------------------------------------------------------------ every function

ALPHAS = st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9, 1.0])


@STEADY
@given(pairs(), ALPHAS)
def test_blends(sides, alpha):
    y, x = sides
    wy, wx = wide(y, x)
    close(ours.blend_interpolate(tensor(y), tensor(x), alpha), np_interpolate(wy, wx, alpha))
    close(ours.blend_embeddings(tensor(y), tensor(x), alpha), np_linear(wy, wx, alpha))
    close(ours.blend_style_only(tensor(y), tensor(x), alpha), np_style_only(wy, wx, alpha))
    close(ours.blend_style_only(tensor(y), tensor(x), alpha, (1, 3)), np_style_only(wy, wx, alpha, (1, 3)))
    close(ours.surgical_dimension_fix(tensor(y), tensor(x), alpha, (0, 2, 99)), np_surgical(wy, wx, alpha, (0, 2, 99)))
    close(ours.surgical_dimension_fix(tensor(y), tensor(x), alpha), np_surgical(wy, wx, alpha, ()))


@STEADY
@given(pairs(), ALPHAS)
def test_adain(sides, alpha):
    y, x = sides
    wy, wx = wide(y, x)
    close(ours.blend_adain(tensor(y), tensor(x), alpha), np_adain(wy, wx, alpha, "token"))
    close(ours.blend_adain(tensor(y), tensor(x), alpha, per_token=False), np_adain(wy, wx, alpha, "global"))
    close(ours.blend_adain_per_dim(tensor(y), tensor(x), alpha), np_adain(wy, wx, alpha, "dimension"))


@STEADY
@given(pairs(), ALPHAS)
def test_slerp(sides, alpha):
    y, x = sides
    close(ours.slerp_blend(tensor(y), tensor(x), alpha), np_slerp(*wide(y, x), alpha))


@STEADY
@given(pairs(), st.lists(st.floats(-2, 2), min_size=9, max_size=9), ALPHAS)
def test_an_alpha_for_each_token(sides, numbers, alpha):
    y, x = sides
    wy, wx = wide(y, x)
    close(ours.blend_per_token(tensor(y), tensor(x), numbers), np_per_token(wy, wx, numbers))
    weighted = ours.blend_attention_weighted(tensor(y), tensor(x), alpha, numbers)
    close(weighted, np_attention(wy, wx, alpha, np.array(numbers)))
    close(ours.blend_attention_weighted(tensor(y), tensor(x), alpha), np_linear(wy, wx, alpha))


@given(st.integers(1, 40), st.floats(-1, 2), st.floats(-1, 2), st.sampled_from(["linear", "ease_in", "ease_out"]))
def test_graduated_alpha(n, start, end, curve):
    found = ours.create_graduated_alpha(n, start, end, curve)
    np.testing.assert_allclose(found.numpy(), np_graduated(n, start, end, curve), rtol=1e-12, atol=1e-12)


@STEADY
@given(pairs(), st.data())
def test_style_delta(sides, data):
    x, n = sides
    y = data.draw(states(x.shape[1]))
    unit, to_text, alpha = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.floats(-1, 2))
    delta = ours.compute_style_delta(tensor(x), tensor(n), unit)
    close(delta, np_delta(*wide(x, n), unit))
    given_delta = data.draw(states(x.shape[1]))
    found = ours.blend_with_style_delta(tensor(y), tensor(given_delta), alpha, to_text)
    close(found, np_add_delta(*wide(y, given_delta), alpha, to_text))


@st.composite
def measured(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """VL states, and the mean and std per dimension of a reference; stds of 0 among them."""
    width = draw(st.integers(3, 10))
    x = draw(states(width))
    mean = draw(arrays(np.float64, width, elements=st.floats(-1000, 1000)))
    std = draw(arrays(np.float64, width, elements=st.one_of(st.floats(1e-3, 3000), st.just(0.0))))
    return x, mean, std


def reference_of(mean: np.ndarray, std: np.ndarray) -> ReferenceStatistics:
    return ReferenceStatistics.from_published(tensor(mean), tensor(std), 220)


@STEADY
@given(measured(), st.floats(0.1, 500), st.floats(0, 1))
def test_normalising(given_states, target, weight):
    x, mean, std = given_states
    (wx,) = wide(x)
    reference = reference_of(mean, std)
    close(ours.scale_embeddings(tensor(x)), np_scale(wx))
    close(ours.scale_embeddings(tensor(x), target), np_scale(wx, target))
    close(ours.normalize_per_dimension(tensor(x), reference), np_per_dim(wx, mean, std))
    close(ours.normalize_per_dimension(tensor(x), reference, None), np_per_dim(wx, mean, std, None))
    hybrid = weight * np_per_dim(wx, mean, std) + (1 - weight) * np_scale(wx)
    close(ours.normalize_hybrid(tensor(x), reference, weight), hybrid)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_clipped_on_either_side(sign):
    """Fewer than 11 tokens have no z beyond 3, so here are more."""
    x = np.random.default_rng(2).normal(size=(40, 5)).astype(np.float32)
    x[7] = sign * 50
    mean, std = np.arange(5.0), np.arange(1.0, 6.0)
    (wx,) = wide(x)
    reference = reference_of(mean, std)
    for clip in (3.0, 1.5, None):
        close(ours.normalize_per_dimension(tensor(x), reference, clip), np_per_dim(wx, mean, std, clip))
    assert not np.allclose(np_per_dim(wx, mean, std, 3.0), np_per_dim(wx, mean, std, None))
    close(ours.normalize_hybrid(tensor(x), reference), 0.5 * np_per_dim(wx, mean, std) + 0.5 * np_scale(wx))


@STEADY
@given(pairs(least=2))
def test_matching_this_very_text(sides):
    y, x = sides
    wy, wx = wide(y, x)
    s = spread(wx)
    close(ours.match_text_std(tensor(x), tensor(y)), wx * (spread(wy) / s) if s > 0 else wx)
    z = (wx - wx.mean(0)) / (spread(wx, 0) + 1e-8)
    close(ours.match_text_per_dimension(tensor(x), tensor(y)), z * spread(wy, 0) + wy.mean(0))
    z = (wx - wx.mean()) / s if s > 0 else np.zeros_like(wx)
    close(ours.match_text_mean_and_std(tensor(x), tensor(y)), z * spread(wy) + wy.mean())


@STEADY
@given(measured(), st.sampled_from([0.5, 1.0, 10.0]), st.sampled_from(["zero", "clamp", "scale"]))
def test_outlier_dimensions(given_states, threshold, mode):
    x, mean, std = given_states
    expected, ratios = np_mask(*wide(x, std), threshold, mode)
    found = ours.get_outlier_dimensions(tensor(x), reference_of(mean, std), threshold)
    assert dict(found) == pytest.approx(ratios, rel=1e-9)
    # Largest first, by its own ratios: two that differ only by rounding may stand in either order.
    assert [ratio for _, ratio in found] == sorted(dict(found).values(), reverse=True)
    masked, same = ours.mask_outlier_dimensions(tensor(x), reference_of(mean, std), threshold, mode)
    assert same == found
    close(masked, expected)


@settings(STEADY, max_examples=25)
@given(st.integers(3, 8), ALPHAS, st.integers(0, 30), st.integers(0, 10**6))
def test_gram_style_transfer(width, alpha, steps, seed):
    random = np.random.default_rng(seed)
    y, *sides = (
        (random.normal(size=(int(random.integers(1, 8)), width)) * size).astype(np.float32) for size in (3, 20, 5)
    )
    wy, *wides = wide(y, *sides)
    grams = [x.T @ x / len(x) for x in wides]
    for x, gram in zip(sides, grams, strict=True):
        close(ours.gram_matrix(tensor(x)), gram)
    one = ours.gram_style_transfer(tensor(y), tensor(sides[0]), alpha, steps)
    close(one, np_gram(wy, grams[:1], alpha, steps, 0.1))
    both = ours.gram_style_transfer(tensor(y), [tensor(x) for x in sides], alpha, steps, 0.05)
    close(both, np_gram(wy, grams, alpha, steps, 0.05))


def test_the_gram_descent_is_torch_s_own_adam():
    generator = torch.Generator().manual_seed(0)
    y, x = torch.randn(5, 12, generator=generator) * 4, torch.randn(9, 12, generator=generator) * 20
    moved = y.double().requires_grad_(True)
    optimizer = torch.optim.Adam([moved], lr=0.1)
    gram = x.double().T @ x.double() / len(x)
    for _ in range(100):
        optimizer.zero_grad()
        content, style = (moved - y).square().mean(), (moved.T @ moved / len(y) - gram).square().mean()
        (0.7 * content + 0.3 * style).backward()
        optimizer.step()
    close(ours.gram_style_transfer(y, x, 0.3), moved.detach().numpy())


@STEADY
@given(pairs())
def test_statistics_of_both_sides(sides):
    y, x = sides
    found = ours.compute_blend_stats(tensor(y), tensor(x))
    for name, side in (("text", y), ("vl", x)):
        (values,) = wide(side)
        expected = [values.mean(), float(spread(values)), values.min(), values.max()]
        kinds = ("mean", "std", "min", "max")
        assert [found[f"{name}_{kind}"] for kind in kinds] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear_decay", [0.5, 0.375, 0.25, 0.125, 0.0]),
        ("cosine_decay", [0.5, 0.25 * (1 + math.sqrt(0.5)), 0.25, 0.25 * (1 - math.sqrt(0.5)), 0.0]),
        ("step", [0.5, 0.5, 0.0, 0.0, 0.0]),
    ],
)
def test_alpha_over_the_steps(schedule, expected):
    assert [ours.alpha_at_step(step, 5, schedule) for step in range(5)] == pytest.approx(expected)
    assert ours.alpha_at_step(0, 1, schedule, 0.5, 0.1) == pytest.approx(0.1)


def test_published_numbers():
    """2·width/3 with the width of Z-Image; token counts and curves the note prints."""
    assert PublishedSettings().style_dims(2560) == (1706, 2560)
    assert [ours.estimate_token_count(side, side) for side in (256, 512, 1024, 2048)] == [64, 256, 1024, 4096]
    np.testing.assert_allclose(ours.create_graduated_alpha(5, curve="ease_in"), [0, 0.03125, 0.125, 0.28125, 0.5])
    assert ours.neutral_picture(3).tolist() == [[[128] * 3] * 3] * 3
    stretched = ours.interpolate_sequence(torch.arange(5.0)[:, None], 2)
    assert stretched.flatten().tolist() == pytest.approx([0.75, 3.25])


# ------------------------------------------------------------------------------------------------- limits and messages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ours.FIELDS["method"].choices())
def test_finite_in_finite_out_at_the_edges_of_the_dtype(method, dtype):
    largest = torch.finfo(dtype).max
    y = torch.full((4, 6), largest, dtype=dtype)
    y[1::2] = -largest
    x = torch.full((7, 6), -largest, dtype=dtype)
    x[2] = torch.finfo(dtype).tiny
    chosen = PublishedSettings(method=method, alpha=0.7, tokens="full", normalization="none")
    for text in (y, y[:1], y[None].repeat(2, 1, 1)):
        mixed, _, _ = ours.published(text, None, x, vl_layout(2, 3), chosen, neutral=x / 2)
        assert mixed.dtype == dtype
        assert mixed.ndim == text.ndim
        assert mixed.isfinite().all()


def test_opposite_and_zero_tokens_on_the_arc():
    y = torch.tensor([[1.0, 0, 0], [1, 2, 3], [0, 0, 0]])
    mixed = ours.slerp_blend(y, torch.tensor([[-1.0, 0, 0], [2, 4, 6], [1, 0, 0]]), 0.25)
    assert mixed[0].tolist() == pytest.approx([0.5, 0, 0])
    assert mixed[1].tolist() == pytest.approx([1.25, 2.5, 3.75])
    assert mixed.isfinite().all()


ONES = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.blend_interpolate(ONES, torch.ones(3, 5), 0.5), "text and vl: expected equal widths"),
        (lambda: ours.blend_interpolate(ONES, ONES, 1.5), "alpha: expected 0"),
        (lambda: ours.blend_adain(ONES, ONES, math.inf), "alpha: expected a finite number"),
        (lambda: ours.blend_adain(ONES, ONES * math.nan, 0.5), "vl: expected finite values"),
        (lambda: ours.blend_adain(torch.ones(0, 4), ONES, 0.5), "text: expected at least 1 token"),
        (lambda: ours.blend_per_token(ONES, ONES, [0.1]), "alphas: expected at least 3 numbers"),
        (lambda: ours.blend_attention_weighted(ONES, ONES, 0.5, [1, 2, math.nan]), "importance: expected finite"),
        (lambda: ours.blend_style_only(ONES, ONES, 0.5, (3, 1)), "dims: expected a start"),
        (lambda: ours.surgical_dimension_fix(ONES, ONES, 0.5, [-1]), "dimensions: expected numbers from 0"),
        (lambda: ours.compute_style_delta(ONES, ONES * math.inf), "neutral: expected finite values"),
        (lambda: ours.create_graduated_alpha(3, curve="steep"), "curve: expected one of linear"),
        (lambda: ours.gram_style_transfer(ONES, []), "vl: expected states of at least one layer"),
        (lambda: ours.gram_style_transfer(ONES, ONES, steps=-1), "steps: expected 0 or more"),
        (lambda: ours.scale_embeddings(ONES, 0.0), "target_std: expected a finite number above 0"),
        (lambda: ours.get_outlier_dimensions(ONES, reference_of(np.ones(5), np.ones(5))), "reference: expected stat"),
        (lambda: ours.mask_outlier_dimensions(ONES, reference_of(np.ones(4), np.ones(4)), mode="cut"), "mode: expec"),
        (lambda: ours.alpha_at_step(5, 5, "step"), "step: expected 0 to 4"),
        (lambda: ours.alpha_at_step(0, 5, "sudden"), "schedule: expected one of"),
        (lambda: ours.neutral_picture(0), "width: expected at least 1 pixel"),
        (lambda: PublishedSettings(method="mix"), "method: expected one of interpolate"),
        (lambda: PublishedSettings(style_start=5, style_end=3), "style_end: expected at least style_start"),
        (lambda: PublishedSettings(dimensions="4, x"), "dimensions: expected whole numbers"),
    ],
)
def test_errors_name_the_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ----------------------------------------------------------------------------------------------------- the whole method


def vl_layout(rows: int = 3, columns: int = 2, words: int = 4) -> TokenLayout:
    """A header token, a picture between its markers, words and a tail token, as far as there is room."""
    if (rows, columns, words) == (2, 3, 4):  # 7 tokens in all
        words = -1
    image = rows * columns
    if words < 0:
        roles = [TokenRole.TEMPLATE, *[TokenRole.IMAGE] * image]
    else:
        roles = [TokenRole.TEMPLATE, TokenRole.MARKER, *[TokenRole.IMAGE] * image, TokenRole.MARKER]
        roles += [*[TokenRole.TEXT] * words, TokenRole.TEMPLATE]
    return TokenLayout(torch.tensor(roles), torch.arange(len(roles)), ((rows, columns),))


@pytest.fixture
def reading():
    random = np.random.default_rng(5)
    layout, text_layout = vl_layout(), TokenLayout(torch.ones(6), torch.arange(6))
    x, n = (random.normal(size=(len(layout), 12)).astype(np.float32) * 7 for _ in range(2))
    y = random.normal(size=(6, 12)).astype(np.float32) * 11
    x[2:8, 4] *= 300  # an outlier at image tokens
    mean, std = random.normal(size=12), random.uniform(1, 10, 12)
    return y, text_layout, x, n, layout, mean, std


SELECTED = {"full": slice(0, 14), "text_only": [0, 9, 10, 11, 12, 13], "image_only": slice(1, 9),
            "image_no_markers": slice(2, 8)}  # fmt: skip


def np_clean(x, y, mean, std, chosen: PublishedSettings):
    """The published extraction: masked on the picture's tokens, then selected, then scaled."""
    x = x.copy()
    if chosen.outlier_masking != "none":
        x[2:8] = np_mask(x[2:8], std, chosen.outlier_threshold, chosen.outlier_masking)[0]
    x = x[SELECTED[chosen.tokens]]
    return {
        "none": lambda: x,
        "global": lambda: np_scale(x, chosen.target_std),
        "per_dim": lambda: np_per_dim(x, mean, std),
        "hybrid": lambda: 0.5 * np_per_dim(x, mean, std) + 0.5 * np_scale(x),
        "text_std": lambda: np_scale(x, spread(y)),
        "text_per_dim": lambda: (x - x.mean(0)) / (spread(x, 0) + 1e-8) * spread(y, 0) + y.mean(0),
        "text_mean_std": lambda: (x - x.mean()) / spread(x) * spread(y) + y.mean(),
    }[chosen.normalization]() * chosen.scale_factor


METHODS = {
    "interpolate": np_interpolate, "linear": np_linear, "adain": lambda y, x, a: np_adain(y, x, a, "token"),
    "adain_global": lambda y, x, a: np_adain(y, x, a, "global"),
    "adain_per_dim": lambda y, x, a: np_adain(y, x, a, "dimension"), "style_only": np_style_only,
    "graduated": lambda y, x, a: np_per_token(y, x, np_graduated(min(len(y), len(x)), 0, 2 * a, "linear")),
    "attention_weighted": np_linear, "slerp": np_slerp,
    "surgical_fix": lambda y, x, a: np_surgical(y, x, a, (1, 4)),
    "gram_style": lambda y, x, a: np_gram(y, [x.T @ x / len(x)], a, 100, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("masking", ["none", "zero", "clamp", "scale"])
@pytest.mark.parametrize("normalization", ours.FIELDS["normalization"].choices())
@pytest.mark.parametrize("tokens", list(SELECTED))
def test_the_states_that_are_mixed(reading, tokens, normalization, masking):
    y, text_layout, x, _, layout, mean, std = reading
    chosen = PublishedSettings(
        method="linear", alpha=0.4, tokens=tokens, normalization=normalization, outlier_masking=masking,
        scale_factor=1.5,
    )
    mixed, found, lines = ours.published(tensor(y), text_layout, tensor(x), layout, chosen, reference_of(mean, std))
    wy, wx = wide(y, x)
    close(mixed, np_linear(wy, np_clean(wx, wy, mean, std, chosen), 0.4))
    assert len(found) == len(mixed)
    assert any("4 (" in line for line in lines) == (masking != "none")


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_through_the_one_call(reading, method, alpha):
    y, text_layout, x, _, layout, mean, std = reading
    chosen = PublishedSettings(method=method, alpha=alpha, tokens="full", dimensions="1, 4")
    mixed, found, _ = ours.published(tensor(y), text_layout, tensor(x), layout, chosen)
    wy, wx = wide(y, x)
    close(mixed, METHODS[method](wy, np_clean(wx, wy, mean, std, chosen), alpha))
    assert len(found) == len(mixed)
    assert found.source == "blend"
    assert ours.published(tensor(y), None, tensor(x), layout, chosen)[1] is None or len(mixed) == len(layout)


def test_the_style_delta_reads_a_neutral_picture(reading):
    y, text_layout, x, n, layout, mean, std = reading
    chosen = PublishedSettings(method="style_delta", alpha=0.6, tokens="full")
    with pytest.raises(ValueError, match="neutral: style_delta needs"):
        ours.published(tensor(y), text_layout, tensor(x), layout, chosen)
    mixed, _, _ = ours.published(tensor(y), text_layout, tensor(x), layout, chosen, neutral=tensor(n))
    wy, wx, wn = wide(y, x, n)
    delta = np_delta(np_clean(wx, wy, mean, std, chosen), np_clean(wn, wy, mean, std, chosen), True)
    close(mixed, np_add_delta(wy, delta, 0.6, True))


def test_gram_matrices_of_several_layers_are_averaged(reading):
    y, _, x, n, layout, mean, std = reading
    chosen = PublishedSettings(method="gram_style", alpha=0.15, tokens="full")
    mixed, _, _ = ours.published(tensor(y), None, tensor(x), layout, chosen, more_layers=[tensor(n)])
    wy, wx, wn = wide(y, x, n)
    sides = [np_clean(side, wy, mean, std, chosen) for side in (wx, wn)]
    close(mixed, np_gram(wy, [side.T @ side / len(side) for side in sides], 0.15, 100, 0.1))


def test_words_alone_are_not_touched_by_masks_on_the_picture(reading):
    """The published extraction masks before it selects."""
    y, text_layout, x, _, layout, mean, std = reading
    x[:, 4] *= 50  # an outlier at the words as well
    plain = PublishedSettings(alpha=1.0, normalization="none")
    masked = PublishedSettings(alpha=1.0, normalization="none", outlier_masking="zero")
    given_states = tensor(y), text_layout, tensor(x), layout
    expected = ours.published(*given_states, plain)[0]
    assert torch.equal(ours.published(*given_states, masked, reference_of(mean, std))[0], expected)


@pytest.mark.parametrize("method", ours.FIELDS["method"].choices())
def test_alpha_0_is_the_text_bit_for_bit(reading, method):
    y, text_layout, x, _, layout, *_ = reading
    mixed, found, _ = ours.published(tensor(y), text_layout, tensor(x), layout, PublishedSettings(method, 0.0))
    assert torch.equal(mixed, tensor(y))
    assert found is text_layout


def test_statistics_that_are_missing_are_asked_for(reading):
    y, _, x, _, layout, *_ = reading
    chosen = PublishedSettings(normalization="per_dim")
    assert chosen.needs_statistics
    with pytest.raises(ValueError, match="reference: normalization per_dim"):
        ours.published(tensor(y), None, tensor(x), layout, chosen)


# ------------------------------------------------------------------------------------------------- settings and presets


def test_every_setting_says_what_it_is():
    for name, field in ours.FIELDS.items():
        assert field.meaning.endswith("."), name
        assert field.choices() or field.kind is not str or name == "dimensions", name
        assert field.kind not in (int, float) or None not in (field.low, field.high), name


def test_settings_of_one_effect_are_equal():
    assert PublishedSettings(style_start=3).effective() == PublishedSettings().effective()
    assert PublishedSettings("style_only", style_start=3).effective() != PublishedSettings("style_only").effective()
    assert PublishedSettings(alpha=0, tokens="full").effective() == PublishedSettings("adain", 0).effective()


def grid(name: str) -> list[tuple]:
    return [
        (run.settings.alpha, run.layer, run.settings.tokens, run.settings.method) for run in PRESETS[name].runs()
    ]


def test_presets_are_the_published_comparisons():
    text = (0.0, -8, "text_only", "interpolate")
    assert grid("layer") == [text, *[(1.0, layer, "text_only", "interpolate") for layer in (-2, -4, -8, -16, -24)]]
    alphas = [0.0, 0.1, 0.3, 0.5, 0.7, 1.0]
    assert grid("alpha") == [(alpha, -8, "text_only", "interpolate") for alpha in alphas]
    outlier = [run.settings for run in PRESETS["outlier"].runs()[1:]]
    assert [one.outlier_masking for one in outlier] == ["none", "zero", "clamp", "scale"]
    assert {(one.tokens, one.outlier_threshold, one.normalization) for one in outlier} == {("full", 10.0, "global")}
    assert len(PRESETS["full"].runs()) == 1 + 3 * 3 * 2
    assert [entry[:3] for entry in grid("vl_only_vs_qwen3")[1:]] == [
        (1.0, -6, "text_only"), (1.0, -6, "full"), (0.3, -6, "full"),
    ]  # fmt: skip
    assert [run.denoise for run in PRESETS["strength_sweep"].runs()] == [0.5, 0.7, 0.9]
    assert [run.think for run in PRESETS["think_comparison"].runs()] == [False, True]
    assert grid("blend_comparison") == [
        (0.3, -6, "full", method) for method in ("adain_per_dim", "adain", "linear")
    ]


def test_every_preset_runs(reading):
    y, text_layout, x, n, layout, mean, std = reading
    for name, preset in PRESETS.items():
        assert preset.meaning, name
        for run in preset.runs():
            mixed, _, _ = ours.published(
                tensor(y), text_layout, tensor(x), layout, run.settings, reference_of(mean, std), neutral=tensor(n)
            )
            assert mixed.isfinite().all(), name


@pytest.mark.parametrize("name", PRESETS)
def test_compare_paints_what_the_note_painted(name):
    axes, base, _ = choose_axes(name, {})
    cells = set()
    for values in product(*(axis.values for axis in axes)):
        chosen = {**base, **{axis.name: value for axis, value in zip(axes, values, strict=True)}}
        denoise, think = chosen.pop("denoise"), chosen.pop("think")
        cell = Settings.from_dict(chosen)
        assert cell.way == AS_PUBLISHED
        cells.add((cell.of_note(), cell.layer, denoise, think))
    runs = {(run.settings, run.layer, run.denoise, run.think) for run in PRESETS[name].runs() if run.settings.alpha}
    assert runs and runs <= cells
    assert PRESETS[name].only or runs == cells


def test_settings_are_written_as_they_are_read():
    chosen = PublishedSettings(
        tokens="full", normalization="hybrid", per_dim_weight=0.25, unit_delta=False, gram_steps=7
    )
    written = ours.write_settings(chosen)
    assert written == "tokens full + normalization hybrid + per_dim_weight 0.25 + unit_delta False + gram_steps 7"
    assert PublishedSettings(**ours.read_settings(written)) == chosen
    assert ours.read_settings("clip=0+ unit_delta off") == {"clip": 0.0, "unit_delta": False}
    for wrong in ("tokens", "colour red", "clip 3 tokens full"):
        with pytest.raises(ValueError, match="published: "):
            Settings(AS_PUBLISHED, published=wrong)


@pytest.mark.parametrize("mode", ["none", "zero", "clamp", "scale"])
def test_masking_by_this_packs_stages_is_the_published_arithmetic(reading, mode):
    y, text_layout, x, _, layout, mean, std = reading
    base = COMPARISONS["masking"].base
    open_blend = Settings.from_dict({"way": OPEN_BLEND, **base, "outlier_mode": mode, "layer": -8})
    seen = VLStates(tensor(x)[None], (29,), 36, layout)
    reference = reference_of(mean, std)
    mixed, _, _ = mix_openly(tensor(y), text_layout, seen, -8, -8, reference, open_blend)
    run = next(run for run in PRESETS["outlier"].runs()[1:] if run.settings.outlier_masking == mode)
    assert run.layer == -8
    expected, _, _ = ours.published(tensor(y), text_layout, tensor(x), layout, run.settings, reference)
    np.testing.assert_allclose(mixed.numpy(), expected.numpy(), rtol=1e-5, atol=1e-4)


def test_every_public_name_has_a_docstring():
    for name in ours.__all__:
        thing = getattr(ours, name)
        assert not (inspect.isfunction(thing) or inspect.isclass(thing)) or inspect.getdoc(thing), name
