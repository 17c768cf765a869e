"""Several references as one reading, against numpy float64 and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vl_core.pictures import crop_to_mask
from vl_core.stages.combine import COMBINATIONS, combine, needs_muted, parse_weights
from vl_core.states.layout import TokenRole, insert_pictures, text_layout
from vl_core.states.vl_states import VLStates

WIDTH, LAYERS, BLOCKS = 16, (3, 7), 8
IDS = [151644, 872, 198, 64, 8251, 304, 151645, 198, 151644, 77091, 198]  # user header, three words, tail
GRIDS = [(2, 3), (4, 4), (1, 5)]


def reading(grid: tuple[int, int], seed: int, dtype: torch.dtype = torch.float32, ids=IDS) -> VLStates:
    layout = insert_pictures(text_layout(ids), [grid])
    states = torch.randn(len(LAYERS), len(layout), WIDTH, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    return VLStates(states.to(dtype), LAYERS, BLOCKS, layout)


def words(states: VLStates) -> np.ndarray:
    """float64 ``(K, T, D)`` outside the pictures."""
    keep = states.layout.mask(TokenRole.TEMPLATE, TokenRole.TEXT)
    return states.states[:, keep].double().numpy()


def rms(side: np.ndarray) -> np.ndarray:
    return np.sqrt((side**2).mean(-1, keepdims=True))


@pytest.fixture
def seen() -> list[VLStates]:
    return [reading(grid, seed) for seed, grid in enumerate(GRIDS)]


@pytest.fixture
def muted() -> list[VLStates]:
    return [reading(grid, 10 + seed) for seed, grid in enumerate(GRIDS)]


def expected(method: str, weights, x, n) -> np.ndarray:
    """The formulas of the docstring, written out."""
    w = np.array(weights, dtype=np.float64)
    share = np.abs(w) / np.abs(w).sum()
    zero = sum(p * b for p, b in zip(share, n, strict=True))
    if method == "average":
        return zero + sum(c * (a - b) for c, a, b in zip(w / np.abs(w).sum(), x, n, strict=True))
    if method == "add":
        return zero + sum(c * (a - b) for c, a, b in zip(w, x, n, strict=True))
    if method == "subtract":
        return zero + w[0] * (x[0] - n[0]) - sum(c * (a - b) for c, a, b in zip(w[1:], x[1:], n[1:], strict=True))
    if method == "norm average":
        u, v = [a / rms(a) for a in x], [b / rms(b) for b in n]
        loud = sum(p * rms(a) for p, a in zip(share, x, strict=True))
        middle = sum(p * b for p, b in zip(share, v, strict=True))
        return loud * (middle + sum(c * (a - b) for c, a, b in zip(w / np.abs(w).sum(), u, v, strict=True)))
    result = np.empty_like(x[0])
    for place in np.ndindex(result.shape[:2]):
        pull = [abs(c) * rms(a[place] - b[place])[0] for c, a, b in zip(w, x, n, strict=True)]
        k = int(np.argmax(pull))
        result[place] = n[k][place] + w[k] / np.abs(w).max() * (x[k][place] - n[k][place])
    return result


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 0.5, -0.3), (-1, -2, -0.1), (3, 0.01, 1)])
@pytest.mark.parametrize("method", COMBINATIONS)
def test_every_method_is_the_formula_of_its_docstring(method, weights, seen, muted):
    combined = combine(seen, weights, method, muted=muted)
    x, n = [words(one) for one in seen], [words(one) for one in muted]
    np.testing.assert_allclose(words(combined.seen), expected(method, weights, x, n), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("method", COMBINATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_one_and_zero_are_the_first_picture_bit_for_bit(method, dtype):
    seen, muted = ([reading(grid, seed, dtype) for seed, grid in enumerate(GRIDS)] for _ in range(2))
    combined = combine(seen, (1, 0, 0), method, muted=muted)
    assert torch.equal(combined.seen.states, seen[0].states) and combined.seen.states.dtype == dtype
    assert torch.equal(combined.seen.layout.token_ids, seen[0].layout.token_ids)
    assert combined.seen.layout.grids == (GRIDS[0],)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("method", ["average", "max weight per token"])
def test_identical_pictures_are_one_picture(method, count, seen, muted):
    combined = combine([seen[0]] * count, [1] * count, method, muted=[muted[0]] * count)
    np.testing.assert_array_equal(words(combined.seen), words(seen[0]))


def test_identical_pictures_are_one_picture_for_the_norm_average_but_for_rounding(seen):
    combined = combine([seen[0]] * 3, [1] * 3, "norm average")
    np.testing.assert_allclose(words(combined.seen), words(seen[0]), rtol=1e-6)


def test_a_picture_less_itself_is_the_prompt_beside_an_empty_place(seen, muted):
    combined = combine([seen[0]] * 2, (1, 1), "subtract", muted=[muted[0]] * 2)
    np.testing.assert_allclose(words(combined.seen), words(muted[0]), atol=1e-6)
    opposite = combine([seen[0]] * 2, (1, -1), "add", muted=[muted[0]] * 2)
    np.testing.assert_allclose(words(opposite.seen), words(muted[0]), atol=1e-6)


def test_a_picture_that_shows_nothing_adds_nothing(seen, muted):
    """Read as if it were muted, beside a first picture whose empty place reads the same."""
    both = combine([seen[0], muted[0]], (1, 1), "add", muted=[muted[0]] * 2)
    np.testing.assert_allclose(words(both.seen), words(seen[0]), atol=1e-5)


def test_minus_one_is_the_mirror_image_at_the_muted_reading(seen, muted):
    there, back = (combine(seen[:1], (sign,), "average", muted=muted[:1]) for sign in (1, -1))
    np.testing.assert_allclose((words(there.seen) + words(back.seen)) / 2, words(muted[0]), atol=1e-5)


def test_the_zero_is_the_muted_readings_by_the_weights_shares(seen, muted):
    combined = combine(seen, (1, -3, 0), "average", muted=muted)
    np.testing.assert_allclose(
        words(combined.muted), 0.25 * words(muted[0]) + 0.75 * words(muted[1]), rtol=1e-5, atol=1e-5
    )
    assert combine(seen, (1, 1, 1), "average").muted is None


def test_only_pictures_of_positive_weight_leave_tokens_pooled_by_their_share(seen, muted):
    combined = combine(seen, (1, 0.5, -1), "average", muted=muted)
    assert combined.pooled == (1, 2, None)
    assert combined.seen.layout.grids == ((2, 3), (2, 2))
    first, second = combined.seen.layout.picture_positions()
    assert torch.equal(combined.seen.states[:, first], seen[0].states[:, seen[0].layout.picture_positions()[0]])
    grid = seen[1].states[:, seen[1].layout.picture_positions()[0]].reshape(len(LAYERS), 2, 2, 2, 2, WIDTH)
    cells = grid.double().numpy().mean((2, 4)).reshape(len(LAYERS), 4, WIDTH)
    np.testing.assert_allclose(combined.seen.states[:, second].numpy(), cells, atol=1e-5)
    assert "averaged over 1×1, 2×2, none" in combined.describe()


def test_nothing_is_left_of_pictures_that_are_all_pushed_away_but_the_words(seen, muted):
    combined = combine(seen, (-1, -1, -1), "average", muted=muted)
    assert combined.seen.layout.grids == () and len(combined.seen.layout) == len(IDS)


def test_the_second_picture_of_a_subtraction_leaves_no_tokens(seen, muted):
    assert combine(seen[:2], (1, 1), "subtract", muted=muted[:2]).seen.layout.grids == (GRIDS[0],)


@pytest.mark.parametrize("level, kept", [(1.0, 16), (0.0, None)])
def test_a_full_mask_is_none_and_an_empty_one_is_refused(level, kept, seen):
    masks = [None, torch.full((8, 8), level), None]
    if kept is None:
        with pytest.raises(ValueError, match="the mask of picture 2 covers no image token"):
            combine(seen, (1, 1, 1), masks=masks)
        return
    masked, plain = combine(seen, (1, 1, 1), masks=masks), combine(seen, (1, 1, 1))
    assert torch.equal(masked.seen.states, plain.seen.states) and masked.seen.layout.grids == plain.seen.layout.grids


def test_a_mask_keeps_the_tokens_it_covers(seen):
    mask = torch.zeros(8, 8)
    mask[:4] = 1  # the upper two rows of four
    combined = combine(seen, (1, 1, 1), masks=[None, mask, None])
    assert combined.seen.layout.grids == ((2, 3), (1, 8), (1, 5)) and combined.seen.layout.cut
    places = seen[1].layout.picture_positions()[0][:8]
    assert torch.equal(
        combined.seen.states[:, combined.seen.layout.picture_positions()[1]], seen[1].states[:, places]
    )


def test_the_strongest_picture_decides_a_word_and_the_report_counts_them(seen, muted):
    x = [words(one) for one in muted]
    planted = [VLStates(one.states.clone(), LAYERS, BLOCKS, one.layout) for one in muted[:2]]
    keep = [one.layout.mask(TokenRole.TEMPLATE, TokenRole.TEXT).nonzero().flatten() for one in planted]
    planted[0].states[:, keep[0][:4]] += 5  # moves the first four words only
    planted[1].states[:, keep[1][3:6]] += 1  # and a little of what comes after
    combined = combine(planted, (1, 1), "max weight per token", muted=muted[:2])
    result = words(combined.seen)
    np.testing.assert_allclose(result[:, :4], x[0][:, :4] + 5, rtol=1e-6)
    np.testing.assert_allclose(result[:, 4:6], x[1][:, 4:6] + 1, rtol=1e-6)
    assert combined.chosen == (len(IDS) - 2, 2)
    assert "words decided by each: 9, 2" in combined.describe()


@given(
    weights=st.lists(st.floats(-3, 3).filter(lambda w: w == 0 or abs(w) > 1e-3), min_size=1, max_size=3).filter(any),
    method=st.sampled_from(COMBINATIONS), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_any_weights_give_finite_words_of_the_prompts_length(weights, method, dtype):
    seen = [reading(grid, seed, dtype) for seed, grid in enumerate(GRIDS)][: len(weights)]
    muted = [reading(grid, 10 + seed, dtype) for seed, grid in enumerate(GRIDS)][: len(weights)]
    combined = combine(seen, weights, method, muted=muted)
    assert combined.seen.states.isfinite().all() and combined.seen.states.dtype == dtype
    assert words(combined.seen).shape == (len(LAYERS), len(IDS), WIDTH)
    if not needs_muted(method, weights):
        assert torch.equal(combine(seen, weights, method).seen.states, combined.seen.states)


@given(order=st.permutations(range(3)))
def test_the_order_of_pictures_does_not_matter_to_the_words(order):
    weights = (1, 0.5, -0.7)
    seen, muted = ([reading(grid, seed + at) for seed, grid in enumerate(GRIDS)] for at in (0, 10))
    for method in set(COMBINATIONS) - {"subtract"}:
        one = combine(seen, weights, method, muted=muted)
        other = combine(
            [seen[i] for i in order], [weights[i] for i in order], method, muted=[muted[i] for i in order]
        )
        np.testing.assert_allclose(words(one.seen), words(other.seen), rtol=1e-5, atol=1e-5)


def test_inputs_stay_as_they_were(seen, muted):
    before = [one.states.clone() for one in (*seen, *muted)]
    for method in COMBINATIONS:
        combine(seen, (1, -1, 0.5), method, muted=muted)
    assert all(torch.equal(one.states, old) for one, old in zip((*seen, *muted), before, strict=True))


@pytest.mark.parametrize("method, weights, needed", [
    ("average", (1, 1), False), ("average", (1, 0), False), ("average", (1, -1), True), ("average", (-1,), True),
    ("norm average", (2, 1), False), ("norm average", (2, -1), True), ("add", (1,), False), ("add", (1, 1), True),
    ("add", (2,), True), ("subtract", (1, 1), True), ("subtract", (1, 0), False),
    ("max weight per token", (0.5,), False), ("max weight per token", (1, 1), True),
    ("max weight per token", (-1,), True),
])  # fmt: skip
def test_muted_readings_are_needed_where_something_is_counted_from_them(method, weights, needed, seen):
    assert needs_muted(method, weights) is needed
    if needed:
        with pytest.raises(ValueError, match="is counted from the muted readings"):
            combine(seen[: len(weights)], weights, method)
    else:
        combine(seen[: len(weights)], weights, method)


@pytest.mark.parametrize("weights, message", [
    ((1, 1), "expected one per picture, got 2 for 3"), ((0, 0, 0), "at least one that is not 0"),
    ((1, float("nan"), 1), "expected -3"), ((1, 3.1, 1), "expected -3.*got 3.1"),
])
def test_weights_that_cannot_be_are_refused(weights, message, seen):
    with pytest.raises(ValueError, match=message):
        combine(seen, weights)


def test_readings_that_do_not_fit_together_are_refused(seen, muted):
    other = reading(GRIDS[1], 5, ids=[*IDS[:3], 1, *IDS[4:]])
    with pytest.raises(ValueError, match="the same words in all"):
        combine([seen[0], other], (1, 1))
    deeper = VLStates(seen[1].states, (3, 6), BLOCKS, seen[1].layout)
    with pytest.raises(ValueError, match="the same layers"):
        combine([seen[0], deeper], (1, 1))
    with pytest.raises(ValueError, match="picture 2: expected a reading of one picture"):
        blind = VLStates(torch.zeros(2, len(IDS), WIDTH), LAYERS, BLOCKS, text_layout(IDS))
        combine([seen[0], blind], (1, 1))
    with pytest.raises(ValueError, match="muted: expected one per picture, got 1 for 3"):
        combine(seen, (1, 1, 1), muted=muted[:1])
    with pytest.raises(ValueError, match="masks: expected one per picture"):
        combine(seen, (1, 1, 1), masks=[None])
    with pytest.raises(ValueError, match="combine: expected one of average"):
        combine(seen, (1, 1, 1), "mean")
    broken = VLStates(seen[1].states * float("inf"), LAYERS, BLOCKS, seen[1].layout)
    with pytest.raises(ValueError, match="finite"):
        combine([seen[0], broken], (1, 1))


# --- weights in words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, count, weights", [
    ("", 3, [1, 1, 1]), ("  ", 0, []), ("1, 0.5, -0.3", 3, [1, 0.5, -0.3]), ("1 .5\n-3", 3, [1, 0.5, -3]),
    ("2;0", 2, [2, 0]), ("1e-1,", 1, [0.1]),
])
def test_weights_are_read_as_people_write_them(text, count, weights):
    assert parse_weights(text, count) == weights


@pytest.mark.parametrize("text, count, message", [
    ("1, 2", 3, r"expected 3, one for each picture .*got 2: '1, 2'"), ("1", 0, "expected 0"),
    ("one", 1, "expected numbers with commas"), ("1, nan", 2, "expected -3"), ("4", 1, "expected -3.*got 4"),
    ("1:2", 1, "expected numbers"),
])
def test_weights_that_are_none_or_too_many_are_refused(text, count, message):
    with pytest.raises(ValueError, match=f"weights: {message}"):
        parse_weights(text, count)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_a_full_mask_gives_the_picture_itself():
    picture = torch.rand(1, 20, 30, 3)
    for size in ((20, 30), (7, 3), (1, 1)):
        assert crop_to_mask(picture, torch.ones(size)) is picture


@given(box=st.tuples(*[st.integers(0, 9)] * 4).filter(lambda b: b[0] < b[1] and b[2] < b[3]))
def test_a_box_is_cut_out_exactly_at_the_masks_own_size_and_outward_at_another(box):
    top, bottom, left, right = box
    picture = torch.arange(9 * 9 * 3).reshape(9, 9, 3) / 243
    mask = torch.zeros(1, 9, 9)
    mask[:, top:bottom, left:right] = 1
    assert torch.equal(crop_to_mask(picture, mask), picture[top:bottom, left:right])
    large = torch.rand(1, 18, 27, 3)
    expected = large[:, 2 * top : 2 * bottom, 3 * left : 3 * right]
    assert torch.equal(crop_to_mask(large, mask), expected)
    small = crop_to_mask(torch.rand(4, 5, 3), mask)
    assert small.shape[0] >= (bottom - top) * 4 / 9 and small.shape[1] >= (right - left) * 5 / 9


@pytest.mark.parametrize("mask, message", [
    (torch.zeros(4, 4), "covers nothing"), (torch.full((4, 4), 0.4), "covers nothing"),
    (torch.ones(2, 4, 4), "expected one mask"), (torch.ones(0, 4), "expected one mask"),
])
def test_masks_that_mask_nothing_are_refused(mask, message):
    with pytest.raises(ValueError, match=f"mask of picture 2: {message}"):
        crop_to_mask(torch.rand(8, 8, 3), mask, "mask of picture 2")


def test_the_methods_differ(seen, muted):
    results = [words(combine(seen, (1, 0.5, -0.5), method, muted=muted).seen) for method in COMBINATIONS]
    for one, other in itertools.combinations(results, 2):
        assert not np.allclose(one, other, atol=1e-2)
