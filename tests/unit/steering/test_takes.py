"""Takes: what each asks for, and how a picture is shown to the encoder."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from vl_core.steering.takes import DEFAULT_TAKE, PICTURE_USES, TAKES, find_take, show, take_names


def test_the_takes_and_their_order():
    assert take_names() == ("the look", "style", "colours", "light and mood", "everything", "composition")
    assert DEFAULT_TAKE == "the look"
    with pytest.raises(ValueError, match=r"take: expected one of the look, .* got 'hats'"):
        find_take("hats")


def test_each_take_asks_its_own_question_and_says_what_it_is():
    assert all(a.instruction != b.instruction and a.meaning != b.meaning for a, b in combinations(TAKES, 2))
    assert all(take.instruction.endswith("without an introduction or a list.") and take.meaning for take in TAKES)
    assert all(0 < take.until <= 1 and take.picture in PICTURE_USES for take in TAKES)
    assert "what it shows" in find_take("everything").meaning and "Leave out what it shows" not in (
        find_take("everything").instruction
    )
    assert all("Leave out what it shows" in find_take(name).instruction for name in take_names()[:4])


def test_a_picture_as_it_is_is_left_alone():
    picture = torch.rand(1, 8, 8, 3)
    assert show(picture, "as it is") is picture


def test_a_colourless_picture_keeps_its_light_and_loses_its_colours():
    picture = torch.tensor([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], dtype=torch.uint8)
    shown = show(picture, "colourless")
    assert shown[..., 0].tolist() == [[76, 150, 29, 90]]  # 255 × .299, .587, .114, rounded
    assert torch.equal(shown, shown[..., :1].expand(-1, -1, 3))


def test_a_blurred_picture_keeps_its_mean_and_loses_its_shapes():
    picture = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(3)) * 255).to(torch.uint8)
    shown = show(picture, "blurred").float()
    assert shown.shape == picture.shape
    assert (shown.mean((0, 1)) - picture.float().mean((0, 1))).abs().max() < 3
    assert shown.diff(dim=0).abs().mean() < 0.05 * picture.float().diff(dim=0).abs().mean()


def test_an_unknown_use_is_refused():
    with pytest.raises(ValueError, match="picture: expected one of as it is, blurred, colourless, got 'upside down'"):
        show(torch.rand(1, 8, 8, 3), "upside down")  # type: ignore[arg-type]
