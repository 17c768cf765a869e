"""Cutting sequences by role, mask and pooling, against numpy on the picture's grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vl_core.stages.select import select_tokens
from vl_core.states.layout import TokenLayout, TokenRole

WIDTH = 5
TEMPLATE, TEXT, MARKER, IMAGE = (int(role) for role in TokenRole)
# Header, a 4 × 6 picture and a 2 × 2 one between their markers, three words, tail.
PICTURES = [MARKER, *[IMAGE] * 24, MARKER, MARKER, *[IMAGE] * 4, MARKER]
ROLES = [TEMPLATE] * 3 + PICTURES + [TEXT] * 3 + [TEMPLATE] * 5
LAYOUT = TokenLayout(torch.tensor(ROLES), torch.arange(len(ROLES)) + 100, ((4, 6), (2, 2)), layer=-6)
STATES = torch.randn(len(ROLES), WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("tokens", "roles"),
    [
        ("all", [TEMPLATE, TEXT, MARKER, IMAGE]),
        ("text", [TEMPLATE, TEXT]),
        ("prompt", [TEXT]),
        ("image", [MARKER, IMAGE]),
        ("image_no_markers", [IMAGE]),
    ],
)
def test_a_selection_keeps_its_roles_in_order(tokens, roles):
    states, layout = select_tokens(STATES, LAYOUT, tokens)
    kept = np.flatnonzero(np.isin(ROLES, roles))
    assert np.array_equal(states.numpy(), STATES.numpy()[kept])
    assert layout.token_ids.tolist() == (kept + 100).tolist()
    assert layout.layer == -6
    assert layout.grids == (LAYOUT.grids if IMAGE in roles else ())


def test_lengths_of_a_prompt_with_a_picture():
    """T words, n image tokens: full n+T+10, text T+8, image n+2, image without markers n."""
    words, grid = 7, (16, 16)
    count = grid[0] * grid[1]
    roles = [TEMPLATE] * 3 + [MARKER] + [IMAGE] * count + [MARKER] + [TEXT] * words + [TEMPLATE] * 5
    layout = TokenLayout(torch.tensor(roles), torch.zeros(len(roles), dtype=torch.int64), (grid,))
    lengths = {
        tokens: len(select_tokens(torch.zeros(len(roles), 1), layout, tokens)[0])
        for tokens in ("all", "text", "image", "image_no_markers")
    }
    assert lengths == {"all": count + words + 10, "text": words + 8, "image": count + 2, "image_no_markers": count}


def test_a_batch_is_cut_like_its_sequences():
    batch = torch.stack([STATES, STATES * 2])
    for options in ({}, {"downsample": 2}):
        together, layout = select_tokens(batch, LAYOUT, "image", **options)
        for one, states in zip(batch, together, strict=True):
            alone, alone_layout = select_tokens(one, LAYOUT, "image", **options)
            assert torch.equal(alone, states)
            assert alone_layout.grids == layout.grids


def test_downsampling_averages_squares_of_the_grid():
    states, layout = select_tokens(STATES, LAYOUT, "image_no_markers", downsample=2)
    first = STATES.double().numpy()[4:28].reshape(2, 2, 3, 2, WIDTH).mean((1, 3)).reshape(6, WIDTH)
    second = STATES.double().numpy()[30:34].mean(0, keepdims=True)
    np.testing.assert_allclose(states.numpy(), np.concatenate([first, second]), atol=1e-6)
    assert layout.grids == ((2, 3), (1, 1))
    assert layout.counts() == {TokenRole.IMAGE: 7}


def test_downsampling_leaves_other_tokens_alone():
    states, layout = select_tokens(STATES, LAYOUT, "all", downsample=2)
    others = np.flatnonzero(np.array(ROLES) != IMAGE)
    assert np.array_equal(states.numpy()[layout.roles.numpy() != IMAGE], STATES.numpy()[others])


def test_downsampling_text_only_changes_nothing():
    assert torch.equal(select_tokens(STATES, LAYOUT, "text", downsample=4)[0], select_tokens(STATES, LAYOUT, "text")[0])


def test_a_mask_keeps_the_tokens_it_covers():
    mask = torch.zeros(64, 96)  # 16 pixels per token of the first grid, 32 × 48 of the second
    mask[:32, :48] = 1  # the first picture's upper left 2 × 3 tokens, the second's upper left one
    states, layout = select_tokens(STATES, LAYOUT, "image_no_markers", mask=mask)
    first = STATES.numpy()[4:28].reshape(4, 6, WIDTH)[:2, :3].reshape(6, WIDTH)
    assert np.array_equal(states.numpy(), np.concatenate([first, STATES.numpy()[30:31]]))
    assert layout.grids == ((1, 6), (1, 1))


def test_a_token_covered_by_half_stays_and_by_less_goes():
    for covered, kept in ((8, 1), (7, 0)):  # of 16 columns
        mask = torch.zeros(64, 96)
        mask[:16, :covered] = 1
        states, layout = select_tokens(STATES, LAYOUT, "all", mask=mask)
        assert layout.counts().get(TokenRole.IMAGE, 0) == kept
        assert len(states) == len(ROLES) - 28 + kept


def test_a_mask_that_covers_everything_changes_nothing():
    states, layout = select_tokens(STATES, LAYOUT, "all", mask=torch.ones(1, 50, 70))
    assert torch.equal(states, STATES)
    assert layout.grids == LAYOUT.grids


def test_a_mask_weighs_the_tokens_it_pools():
    mask = torch.zeros(4, 6)
    mask[0, :2] = 1  # upper half of the first 2 × 2 cell
    states, _ = select_tokens(STATES, LAYOUT, "image_no_markers", downsample=2, mask=mask)
    np.testing.assert_allclose(states[0].numpy(), STATES.numpy()[4:6].mean(0), atol=1e-6)


def test_half_precision_stays_half_precision():
    assert select_tokens(STATES.bfloat16(), LAYOUT, "image", downsample=2)[0].dtype == torch.bfloat16


def test_a_selection_that_leaves_nothing_names_what_is_there():
    words, layout = select_tokens(STATES, LAYOUT, "text")
    with pytest.raises(ValueError, match="'image' leaves nothing, the sequence holds only TEMPLATE, TEXT"):
        select_tokens(words, layout, "image")


def test_a_mask_that_covers_nothing_says_so():
    with pytest.raises(ValueError, match="mask: covers no image token"):
        select_tokens(STATES, LAYOUT, "image_no_markers", mask=torch.zeros(8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "words"}, "tokens: expected one of all, text"),
        ({"downsample": 0}, "downsample: expected 1 or more"),
        ({"tokens": "image", "mask": torch.ones(2, 3, 3)}, "mask: expected one mask"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        select_tokens(STATES, LAYOUT, **options)


def test_a_layout_of_another_length_is_refused():
    with pytest.raises(ValueError, match="layout of 10 positions"):
        select_tokens(STATES[:10], LAYOUT)


def test_a_second_mask_or_pooling_of_a_cut_picture_is_refused():
    left = torch.zeros(4, 6)
    left[:, :3] = 1
    states, layout = select_tokens(STATES, LAYOUT, "image_no_markers", mask=left)
    assert layout.cut
    for options in ({"mask": left}, {"downsample": 2}):
        with pytest.raises(ValueError, match=r"a mask was laid over this picture before.*one Select VL Tokens"):
            select_tokens(states, layout, "all", **options)
    assert torch.equal(select_tokens(states, layout, "image")[0], states)


# --- budgets and a mask for each picture ------------------------------------------------------------------------------


@pytest.mark.parametrize("budget, grids", [
    (24, ((4, 6), (2, 2))), (23, ((2, 3), (2, 2))), (6, ((2, 3), (2, 2))), (5, ((2, 2), (2, 2))), (3, ((1, 2), (1, 1))),
    (1, ((1, 1), (1, 1))),
])
def test_a_picture_over_its_budget_is_averaged_over_the_least_cells_that_fit(budget, grids):
    states, layout = select_tokens(STATES, LAYOUT, "image", budget=budget)
    assert layout.grids == grids
    for number, (grid, pooled) in enumerate(zip(LAYOUT.grids, grids, strict=True)):
        factor = next(n for n in range(1, 7) if (-(-grid[0] // n), -(-grid[1] // n)) == pooled)
        alone = select_tokens(STATES, LAYOUT, "image_no_markers", downsample=factor)
        ours, theirs = layout.picture_positions()[number], alone[1].picture_positions()[number]
        assert torch.equal(states[ours], alone[0][theirs])


def test_downsampling_is_the_least_a_budget_may_average():
    assert select_tokens(STATES, LAYOUT, "image", downsample=2, budget=24)[1].grids == ((2, 3), (1, 1))
    with pytest.raises(ValueError, match="budget: expected at least 1"):
        select_tokens(STATES, LAYOUT, budget=0)


def test_a_budget_counts_what_a_mask_keeps():
    left = torch.zeros(4, 6)
    left[:, :3] = 1
    assert select_tokens(STATES, LAYOUT, "image", mask=[left, None], budget=12)[1].grids == ((1, 12), (2, 2))


def test_every_picture_can_have_a_mask_of_its_own():
    left = torch.zeros(4, 6)
    left[:, :3] = 1
    both = select_tokens(STATES, LAYOUT, "image", mask=[left, None])
    one = select_tokens(STATES, LAYOUT, "image", mask=left)
    assert both[1].grids == ((1, 12), (2, 2)) and one[1].grids == ((1, 12), (1, 2))
    assert torch.equal(both[0][:14], one[0][:14])
    assert torch.equal(both[0][14:], select_tokens(STATES, LAYOUT, "image")[0][26:])
    none = select_tokens(STATES, LAYOUT, "image", mask=[None, None])
    assert torch.equal(none[0], select_tokens(STATES, LAYOUT, "image")[0])
    with pytest.raises(ValueError, match="mask: expected one for each of 2 pictures, got 1"):
        select_tokens(STATES, LAYOUT, mask=[left])


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
def test_pooling_what_a_mask_left_is_mask_and_pooling_in_one_step(factor):
    """The oracle is the call that does both at once, on a mask that covers whole tokens."""
    generator = torch.Generator().manual_seed(factor)
    mask = [(torch.rand(grid, generator=generator) < 0.6).float() for grid in LAYOUT.grids]
    at_once = select_tokens(STATES, LAYOUT, "all", mask=mask, downsample=factor)
    cut = select_tokens(STATES, LAYOUT, "all", mask=mask)
    one_by_one = select_tokens(*cut, "all", downsample=factor, pool_cut=True)
    torch.testing.assert_close(one_by_one[0], at_once[0], rtol=0, atol=0)
    assert one_by_one[1].grids == at_once[1].grids and torch.equal(one_by_one[1].roles, at_once[1].roles)


def test_a_mask_of_few_tokens_leaves_one_cell_however_much_is_pooled():
    mask = [torch.zeros(grid) for grid in LAYOUT.grids]
    for each in mask:
        each[-1, -1] = 1
    tokens = select_tokens(STATES, LAYOUT, "image_no_markers", mask=mask)[0]
    for factor in range(1, 8):
        pooled, layout = select_tokens(STATES, LAYOUT, "image_no_markers", mask=mask, downsample=factor)
        torch.testing.assert_close(pooled, tokens, rtol=1e-6, atol=1e-6)
        assert len(layout) == len(LAYOUT.grids)


def test_a_mask_that_is_not_finite_is_refused():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"mask: expected values from 0"):
            select_tokens(STATES, LAYOUT, "all", mask=torch.full((4, 6), value))
