"""Words brought in by a strength: 0 is the prompt, 1 the described prompt, and only words and tail move between."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vl_core.stages.description import SPREAD, bring_in, lead_in, spread
from vl_core.states.layout import SpecialTokens, TokenLayout, pad_layout, text_layout

WIDTH, HEAD, TAIL = 8, 3, 5
SPECIAL = SpecialTokens()


def words(*ids: int) -> TokenLayout:
    head = [SPECIAL.im_start, 872, 198]
    tail = [SPECIAL.im_end, 198, SPECIAL.im_start, 77091, 198]
    return text_layout([*head, *ids, *tail], layer=-2)


def states(length: int, seed: int, *batch: int) -> torch.Tensor:
    return torch.randn(*batch, length, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def both():
    """A prompt and the same with three words after it; causal, so what comes before is the same."""
    text, described = words(11, 12), words(11, 12, 13, 14, 15)
    long = states(len(described), 1)
    short = torch.cat([long[: HEAD + 2], states(TAIL, 2)])
    return short, text, long, described


def test_strength_0_is_the_text_and_1_the_described_states_themselves(both):
    short, text, long, described = both
    assert bring_in(short, text, long, described, 0.0) == (short, text)
    assert bring_in(short, text, long, described, 1.0) == (long, described)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.2, 0.7, 1.3])
def test_only_words_and_tail_move_and_they_move_as_the_formula_says(both, strength, dtype):
    short, text, long, described = both
    short, long = short.to(dtype), long.to(dtype)
    mixed, layout = bring_in(short, text, long, described, strength)
    assert layout is described and mixed.dtype == dtype
    start, at = HEAD + 2, HEAD + 5
    assert torch.equal(mixed[:start], long[:start])
    share = strength**0.6 if strength <= 1 else strength
    p, n = long[start:at].double(), long[start - 1].double()
    n = n * (p.square().mean(-1, keepdim=True) / n.square().mean()).sqrt()
    tail = short[-TAIL:].double() + share * (long[at:].double() - short[-TAIL:].double())
    expected = torch.cat([n + share * (p - n), tail])
    torch.testing.assert_close(mixed[start:].double(), expected, **tolerance(dtype))


def tolerance(dtype) -> dict:
    return {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}


def test_a_batch_is_its_rows(both):
    short, text, long, described = both
    other = torch.stack([short, short * 2]), torch.stack([long, long * 2])
    mixed, _ = bring_in(other[0], text, other[1], described, 0.5)
    for row in range(2):
        alone, _ = bring_in(other[0][row], text, other[1][row], described, 0.5)
        torch.testing.assert_close(mixed[row], alone)


def test_a_prompt_that_ends_with_punctuation_loses_it_as_the_described_one_does(both):
    _, _, long, described = both
    dotted = words(11, 12, 99)  # "a cat." against "a cat, …"
    short = torch.cat([long[: HEAD + 2], states(1 + TAIL, 2)])
    mixed, layout = bring_in(short, dotted, long, described, 0.5)
    assert len(mixed) == len(layout) == len(described)


def test_what_is_no_continuation_is_refused(both):
    short, text, long, described = both
    with pytest.raises(ValueError, match="described: expected the text's prompt with words after it"):
        bring_in(short, text, short, text, 0.5)
    broken = long.clone()
    broken[4, 0] = float("nan")
    with pytest.raises(ValueError, match="described"):
        bring_in(short, text, broken, described, 0.5)


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_the_slider_rises_without_a_jump_and_is_itself_from_1_on(one, other):
    assert spread(0) == 0 and spread(1) == 1 and spread(-one) == -spread(one)
    if abs(one) > 1:
        assert spread(one) == one
    if one < other:
        assert spread(one) <= spread(other)
    assert abs(spread(1 + 1e-9) - spread(1 - 1e-9)) < 1e-6 and spread(1e-9) < 1e-5
    assert 0 < SPREAD < 1


def test_a_share_per_token_moves_each_by_its_own():
    target, neutral = states(3, 3), states(3, 4, 1)
    moved = lead_in(target, neutral, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(moved[0, 2], target[2])
    scale = (target[0].square().mean() / neutral[0, 0].square().mean()).sqrt()
    torch.testing.assert_close(moved[0, 0], neutral[0, 0] * scale)


THINK = [151667, 271, 151668, 271]


def test_a_padded_text_with_a_think_block_moves_to_its_end_by_the_same_formula():
    head = [SPECIAL.im_start, 872, 198]
    tail = [SPECIAL.im_end, 198, SPECIAL.im_start, 77091, 198, *THINK]
    text, described = (
        pad_layout(text_layout([*head, *ids, *tail], tail_tokens=9), 30 - 12 - len(ids))
        for ids in ([11, 12], [11, 12, 13, 14, 15])
    )
    assert len(text) == len(described) == 30
    long, short = states(30, 1), states(30, 2)
    short[:5] = long[:5]
    mixed, layout = bring_in(short, text, long, described, 0.4)
    share, p, n = 0.4**0.6, long[5:8].double(), long[4].double()
    n = n * (p.square().mean(-1, keepdim=True) / n.square().mean()).sqrt()
    expected = torch.cat([
        long[:5].double(), n + share * (p - n), torch.lerp(short[5:14].double(), long[8:17].double(), share),
        torch.lerp(short[17:].double(), long[17:].double(), share),  # padding, place by place
    ])
    assert layout is described
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-4, atol=1e-4)
    nearly, _ = bring_in(short, text, long, described, 1 - 1e-6)
    torch.testing.assert_close(nearly, long, rtol=1e-4, atol=1e-4)


def test_a_text_that_the_words_make_longer_than_its_padding_has_none_left():
    tail = [SPECIAL.im_end, 198, SPECIAL.im_start, 77091, 198, *THINK]
    text = pad_layout(text_layout([SPECIAL.im_start, 872, 198, 11, *tail], tail_tokens=9), 1)
    described = text_layout([SPECIAL.im_start, 872, 198, 11, 12, 13, *tail], tail_tokens=9)
    mixed, layout = bring_in(states(len(text), 1), text, states(len(described), 2), described, 0.5)
    assert len(mixed) == len(layout) == len(described)
