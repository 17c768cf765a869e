"""What was computed from a tensor is found again while it is the same tensor with the same values, and no longer."""

from __future__ import annotations

import gc

import pytest
import torch

from vl_core.encoder.cache import digest
from vl_core.pictures import prepare_picture
from vl_core.states.remembered import Remembered


def picture(seed: int = 0, inference: bool = False) -> torch.Tensor:
    with torch.inference_mode(inference):
        return torch.rand(1, 160, 150, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def memory():
    return Remembered(most=3)


@pytest.fixture
def count(memory):
    """Calls it; gives how often something was made."""
    made = []

    def ask(tensor, name="a"):
        memory(tensor, name, lambda: made.append(1) or len(made))
        return len(made)

    return ask


def test_the_same_tensor_and_its_views_are_known_again(count):
    one = picture()
    assert count(one) == count(one) == count(one.split(1)[0]) == count(one[0:1]) == 1
    assert count(one, "another name") == 2
    assert count(one.clone()) == 3


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("at", [0, 1, 777, 160 * 150 * 3 - 1])
def test_one_step_of_one_value_is_noticed_wherever_it_is(count, inference, at):
    one = picture(inference=inference)
    assert count(one) == 1
    with torch.inference_mode(inference):
        one.view(-1)[at] += (1 if one.view(-1)[at] < 0.5 else -1) / 255
    assert count(one) == 2 == count(one)


def test_values_in_other_places_are_noticed(count):
    one = picture()
    count(one)
    one.copy_(one.flip(2).clone())
    assert count(one) == 2
    one[0, 0, :2] = one[0, 0, :2].flip(0).clone()
    assert count(one) == 3


def test_a_new_tensor_where_an_old_one_lay_is_a_new_one(memory, count):
    gc.freeze()  # what other tests left behind need not be searched each time
    for seed in range(6):
        assert count(picture(seed)) == seed + 1
        gc.collect()
    gc.unfreeze()
    assert len(memory) <= 1


def test_no_more_are_kept_than_asked_for(memory, count):
    many = [picture(seed) for seed in range(5)]
    for one in many:
        count(one)
    assert len(memory) == 3 and count(many[-1]) == 5 and count(many[0]) == 6


@pytest.mark.parametrize("change", [torch.Tensor.double, lambda x: x[:, ::2], lambda x: x[:, :4], lambda x: x.half()])
def test_what_it_does_not_know_is_made_each_time(count, change):
    one = change(picture())
    assert count(one) == 1 and count(one) == 2


def test_a_picture_changed_in_place_is_prepared_anew():
    one = picture()
    before = prepare_picture(one)[0]
    assert prepare_picture(one)[0] is before
    one.mul_(0.5)
    after = prepare_picture(one)[0]
    assert after is not before and after.digest != before.digest
    assert torch.equal(after.pixels, prepare_picture(one.clone())[0].pixels)


def test_notes_are_each_callers_own():
    one = picture() * 2
    notes = prepare_picture(one)[1]
    assert notes
    notes.clear()
    assert prepare_picture(one)[1]


def test_a_digest_says_the_values_and_nothing_else():
    one = picture()
    before = digest(one)
    assert digest(one) == before == digest(one.clone()) != digest(one.reshape(160, 150, 3))
    one[0, 0, 0, 0] += 0.5
    assert digest(one) != before
