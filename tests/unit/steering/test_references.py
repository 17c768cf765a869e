"""Pictures that somebody gave: boxes of masks, weights, and one reading of several."""

from __future__ import annotations

import pytest
import torch

from vl_core.stages.combine import combine
from vl_core.stages.select import select_tokens
from vl_core.steering.references import (
    Reference,
    check_joined,
    cropped,
    read_alone,
    read_as_one,
    whole_pictures,
)
from vl_core.steering.settings import COVERED, CROP, Settings

PROMPT = "a cat"


@pytest.fixture
def mask() -> torch.Tensor:
    """The upper half of a picture."""
    found = torch.zeros(64, 96)
    found[:32] = 1
    return found


@pytest.fixture
def reader(host):
    def read(pictures, muted=False):
        return host.read(pictures, PROMPT, [-2], muted=muted, budget=64)

    return read


def test_a_mask_crops_to_its_box_and_that_is_said(picture, mask):
    pictures, lines = cropped([Reference(picture, mask), Reference(picture)], Settings(mask_use=CROP))
    assert torch.equal(pictures[0].reshape(32, 96, 3), picture[0, :32]) and pictures[1] is picture
    assert lines == ["image 1: cropped to 96×32 of 96×64"]
    assert cropped([Reference(picture, mask)], Settings(mask_use=COVERED)) == ([picture], [])


def test_masks_that_pick_tokens_are_refused_where_a_whole_picture_is_told(picture, mask):
    with pytest.raises(ValueError, match=f"mask_use: {COVERED} .* Choose {CROP}"):
        whole_pictures([Reference(picture, mask)], Settings(mask_use=COVERED))
    assert whole_pictures([Reference(picture)], Settings(mask_use=COVERED)) == ([picture], [])


def test_pictures_that_are_seen_together_take_no_weights(picture):
    check_joined([Reference(picture), Reference(picture)], "words")
    with pytest.raises(ValueError, match=r"weights: expected 0 or 1 with words, .* got 0\.5"):
        check_joined([Reference(picture, weight=0.5)], "words")


def test_together_is_one_reading_and_muted_one_more(picture, other, host, reader):
    both = [Reference(picture), Reference(other)]
    seen, silent, _ = read_as_one(both, Settings("aligned blend"), reader, True)
    assert [(one.pictures, one.muted) for one in host.called("read")] == [(2, False), (2, True)]
    assert torch.equal(seen.states, reader([picture, other])[0].states) and len(seen.layout.grids) == 2
    assert silent is not None and torch.equal(silent.states, reader([picture, other], muted=True)[0].states)


def test_alone_is_one_reading_each_combined_by_their_weights(picture, other, host, reader):
    both = [Reference(picture, weight=1.0), Reference(other, weight=0.5)]
    seen, silent, lines = read_as_one(both, Settings("aligned blend", combine="average"), reader, False)
    assert [one.pictures for one in host.called("read")] == [1, 1] and silent is None
    expected = combine([reader([one])[0] for one in (picture, other)], [1.0, 0.5], "average")
    assert torch.equal(seen.states, expected.seen.states)
    assert "2 encodes" in lines and any(line.startswith("image 2: read") for line in lines)


def test_a_weight_below_0_needs_the_muted_reading(picture, host, reader):
    seen, silent, lines = read_as_one(
        [Reference(picture, weight=-1.0)], Settings("aligned blend", combine="average"), reader, False
    )
    assert [one.muted for one in host.called("read")] == [False, True]
    assert silent is not None and not seen.layout.grids
    assert "2 encodes, half of them with the picture muted" in lines


def test_a_mask_that_picks_tokens_keeps_those_it_covers(picture, mask, reader):
    seen, _, lines = read_as_one(
        [Reference(picture, mask)], Settings("aligned blend", mask_use=COVERED), reader, False
    )
    whole = reader([picture])[0]
    expected, layout = select_tokens(whole.states, whole.layout, "all", mask=[mask])
    assert torch.equal(seen.states, expected) and seen.layout.grids == layout.grids == ((1, 3),)
    assert "masks: they pick picture tokens; the words have seen the whole pictures" in lines
    with pytest.raises(ValueError, match=r"masks: one covers no image token .* Paint a larger area"):
        read_as_one(
            [Reference(picture, torch.zeros(64, 96))], Settings("aligned blend", mask_use=COVERED), reader, False
        )


def test_a_broken_picture_is_named_by_its_place(picture, reader):
    with pytest.raises(ValueError, match=r"image 2: .*NaN"):
        read_alone([picture, picture * float("nan")], reader)
