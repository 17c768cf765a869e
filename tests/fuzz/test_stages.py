"""Stages on values and options of every kind: what comes back is finite and of its shape, or the error says why."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from vl_core.adapters.familiarity import FamiliarSpan
from vl_core.adapters.space_adapter import SpaceFit
from vl_core.pictures import check_picture, crop_to_mask, fit_size, prepare_picture
from vl_core.stages.blend import blend
from vl_core.stages.description import lead_in, read_description, spread
from vl_core.stages.normalize import normalize
from vl_core.stages.resample import downsample_grid, resample_tokens
from vl_core.stages.select import SELECTIONS, select_tokens
from vl_core.states.layout import insert_pictures, text_layout

WIDTH = 8
ODD = st.sampled_from([float("nan"), float("inf"), float("-inf")])
NUMBERS = st.one_of(st.floats(-3, 3), st.floats(allow_nan=True, allow_infinity=True), ODD)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


@st.composite
def tokens(draw, width: int = WIDTH, least: int = 1):
    """``(L, D)`` or ``(B, L, D)``: normal, constant, denormal, huge, with a sink, or with one value not finite."""
    shape = (*draw(st.sampled_from([(), (1,), (2,)])), draw(st.integers(least, 12)), width)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    values = torch.randn(shape, generator=generator)
    kind = draw(st.sampled_from(["plain", "constant", "zero", "scaled", "sink", "odd"]))
    if kind in ("constant", "zero"):
        values = torch.full(shape, draw(st.floats(-50, 50)) if kind == "constant" else 0.0)
    if kind == "scaled":
        values = values * 10.0 ** draw(st.integers(-44, 37))
    if kind == "sink":
        values[..., 0, :] *= 1000
    if kind == "odd":
        values.flatten()[draw(st.integers(0, values.numel() - 1))] = draw(ODD)
    return values.to(draw(DTYPES))


@st.composite
def seen(draw):
    """States of a sequence with up to two pictures, and their layout."""
    ids = [151644, 872, 198, *draw(st.lists(st.integers(10, 99), max_size=6)), 151645, 198, 151644, 77091, 198]
    grids = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=2))
    layout = insert_pictures(text_layout(ids), grids)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    return torch.randn(len(layout), WIDTH, generator=generator), layout


@st.composite
def masks(draw):
    kind = draw(st.sampled_from(["none", "random", "box", "empty", "odd", "shape"]))
    if kind == "none":
        return None
    mask = torch.rand(draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    if kind == "box":
        return (mask > 0.5).float()
    if kind == "empty":
        return torch.zeros_like(mask)
    if kind == "odd":
        mask[0, 0] = draw(ODD)
    return mask[None, None] if kind == "shape" else mask


def holds(act, *, like: torch.Tensor | None = None):
    """What ``act`` gives, checked to be finite; None if it refuses with a message that says something."""
    try:
        found = act()
    except (ValueError, TypeError) as error:
        assert (len(str(error)) > 15 and ":" in str(error)) or "expected" in str(error).lower(), f"bare: {error!r}"
        return None
    for one in found if isinstance(found, tuple) else (found,):
        if isinstance(one, torch.Tensor) and one.is_floating_point():
            assert one.isfinite().all(), "NaN or infinity"
            assert like is None or (one.dtype, one.shape[-1]) == (like.dtype, like.shape[-1])
    return found


@given(tokens(), st.sampled_from(["none", "global"]), st.tuples(NUMBERS, NUMBERS, NUMBERS), st.booleans())
def test_normalize(x, mode, numbers, include):
    (target, weight, clip), sinks = numbers, "include" if include else "exclude"
    holds(lambda: normalize(x, mode, target_std=target, weight=weight, clip=clip, sinks=sinks), like=x)


@given(
    tokens(), tokens(), NUMBERS, st.sampled_from(["aligned", "resample", "truncate", "append", "adain", "adain_per_dim",
    "style_dims", "none"]), st.sampled_from(["dit", "raw", "slerp"]), st.booleans(),
)  # fmt: skip
def test_blend(text, vl, alpha, method, space, antialias):
    text_is_finite = bool(text.isfinite().all())
    found = holds(lambda: blend(text, vl, alpha, method, space, antialias=antialias), like=text)
    if found is not None and alpha == 0 and method not in ("truncate", "append"):
        assert torch.equal(found[0], text) and text_is_finite  # strength 0 is the words alone


BUDGETS = st.none() | st.integers(-1, 30)


@given(seen(), seen(), st.integers(-1, 9), st.sampled_from(["end", "before_tail"]), BUDGETS, masks())
def test_append_with_a_mask(text, vl, factor, position, budget, mask):
    """A mask first, then the pooling of an append: something of the picture arrives, or the error says why."""

    def act():
        states, layout = select_tokens(*vl, "image", mask=mask)
        return blend(
            text[0], states, 1.0, "append", text_layout=text[1], vl_layout=layout, append_downsample=factor,
            append_position=position, append_budget=budget,
        )

    found = holds(act)
    if found is not None:
        assert len(found[0]) > len(text[0]) and len(found[1].layout) == len(found[0])


@given(seen(), st.sampled_from([*SELECTIONS, "nothing"]), st.integers(-1, 9), masks(), BUDGETS)
def test_select(whole, kind, factor, mask, budget):
    found = holds(lambda: select_tokens(*whole, kind, downsample=factor, mask=mask, budget=budget))
    if found is not None:
        assert len(found[0]) == len(found[1]) > 0


@given(tokens(), st.integers(-2, 40), st.booleans())
def test_resample(x, length, antialias):
    found = holds(lambda: resample_tokens(x, length, antialias=antialias), like=x)
    assert found is None or found.shape[-2] == length


@given(st.integers(1, 6), st.integers(1, 6), st.integers(-1, 9), masks())
def test_downsample(rows, columns, factor, mask):
    holds(lambda: downsample_grid(torch.randn(rows * columns, WIDTH), (rows, columns), factor, mask))


@given(tokens(), st.floats(-3, 3))
def test_lead_in(words, strength):
    words = words.float().reshape(-1, WIDTH)
    if words.isfinite().all():
        led = lead_in(words, words.flip(0)[None], spread(strength))
        assert led.isfinite().all()


@given(st.text(max_size=200))
def test_descriptions(text):
    try:
        assert all(read_description(text).values())
    except ValueError as error:
        assert str(error).startswith("description: expected")


@given(st.lists(tokens(least=3), min_size=1, max_size=8), st.data())
def test_space_maps(prompts, data):
    """Finite in, finite out, a constant source and denormal features among them."""
    fit = SpaceFit(WIDTH, WIDTH)
    for prompt in prompts:
        x = prompt.float().reshape(-1, WIDTH)
        target = torch.randn(len(x), WIDTH)
        if x.isfinite().all():
            fit.add(x, target)
        else:
            holds(lambda x=x, target=target: fit.add(x, target))
    method = data.draw(st.sampled_from(["per_dimension", "procrustes", "whitening"]))
    found = holds(lambda: fit.solve(method))
    if found is not None:
        parts = (found.center, found.offset, found.gain, found.left, found.right)
        assert all(part is None or part.isfinite().all() for part in parts)
        assert found.apply(torch.randn(3, WIDTH)).isfinite().all()


@given(tokens(least=10))
def test_familiarity(rows):
    rows = rows.float().reshape(-1, WIDTH)
    if rows.isfinite().all():
        span = FamiliarSpan.of(rows)
        found = span(torch.randn(WIDTH) * float(rows.abs().max()))
        assert math.isfinite(found.distance) and math.isfinite(found.limit)


@st.composite
def pictures(draw):
    sides = [draw(st.integers(0, 40)) for _ in range(2)]
    shape = (*draw(st.sampled_from([(), (1,), (2,), (1, 1)])), *sides, draw(st.integers(0, 5)))
    dtype = draw(st.sampled_from([torch.float32, torch.uint8, torch.int64, torch.float16, torch.bool]))
    picture = (torch.rand(shape) * draw(st.sampled_from([1, 3, 255, 1e30]))).to(dtype)
    if dtype.is_floating_point and picture.numel() and draw(st.booleans()):
        picture.flatten()[0] = draw(ODD)
    return picture


@given(pictures(), st.integers(-1, 40))
def test_pictures(picture, budget):
    found = holds(lambda: prepare_picture(picture, budget))
    if found is not None:
        assert found[0].pixels.dtype == torch.uint8 and found[0].tokens <= budget
    holds(lambda: check_picture(picture))


@given(st.integers(-5, 10**6), st.integers(-5, 10**6), st.integers(-1, 4096))
def test_sizes(height, width, budget):
    found = holds(lambda: fit_size(height, width, budget))
    assert found is None or (found[0] % 32 == found[1] % 32 == 0 and 0 < found[0] * found[1] <= budget * 1024)


@given(masks())
def test_crops(mask):
    if mask is not None:
        found = holds(lambda: crop_to_mask(torch.rand(30, 40, 3), mask))
        assert found is None or found.numel()
