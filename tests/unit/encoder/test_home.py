"""Weights go to a device and are forgotten there; here torch's meta device stands for a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vl_core.encoder.home import Home, parts

AWAY = torch.device("meta")


@pytest.fixture(params=[False, True], ids=["plain", "inference"])
def module(request):
    """Weights as ``load_state_dict(assign=True)`` leaves them, made in inference mode as a node does, or not."""
    with torch.inference_mode(request.param):
        made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).requires_grad_(False)
        yield made


def places(module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}


def test_giving_back_puts_the_very_same_memory_in_place(module):
    before, values = places(module), {name: one.clone() for name, one in module.state_dict().items()}
    home = Home(module)
    assert home.send(AWAY) == home.bytes == sum(one.nbytes for one in values.values())
    assert all(one.device == AWAY for one in module.state_dict().values())
    assert home.give_back() == home.bytes
    assert places(module) == before
    assert all(torch.equal(one, values[name]) for name, one in module.state_dict().items())
    assert home.give_back() == 0


def test_nothing_is_copied_on_the_way_back(module, monkeypatch):
    home = Home(module)
    home.send(AWAY)
    monkeypatch.setattr(torch.Tensor, "to", lambda *_, **__: pytest.fail("a copy"))
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *_, **__: pytest.fail("a copy"))
    home.give_back()


def test_a_part_is_given_back_and_sent_again(module):
    home = Home(module)
    home.send(AWAY)
    freed = home.give_back(most=40)
    assert 40 <= freed < home.bytes
    assert {one.device.type for one in module.state_dict().values()} == {"cpu", "meta"}
    assert home.send(AWAY) == freed


def test_what_is_named_stays_where_it_is(module):
    home = Home(module)
    home.send(AWAY, leave={"0.weight"})
    assert module[0].weight.device.type == "cpu" and module[2].weight.device == AWAY
    home.give_back(leave={"2.weight"})
    assert module[2].weight.device == AWAY and module[0].bias.device.type == "cpu"


def test_what_lies_elsewhere_at_first_is_left_alone():
    module = nn.Linear(2, 2, device=AWAY)
    home = Home(module)
    assert home.bytes == home.send(torch.device("cpu")) == home.give_back() == 0
    assert module.weight.device == AWAY


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("staged", [False, True])
def test_a_gpu_gets_the_same_values_and_what_was_changed_there_comes_home(staged):
    module = nn.Sequential(nn.Linear(3000, 5000, dtype=torch.bfloat16), nn.Linear(4, 2)).requires_grad_(False)
    values = {name: one.clone() for name, one in module.state_dict().items()}
    home = Home(module)
    home.send(torch.device("cuda"), staged=staged)
    assert all(torch.equal(one.cpu(), values[name]) for name, one in module.state_dict().items())
    module[1].weight.mul_(2)
    home.give_back()
    assert torch.equal(module[1].weight, values["1.weight"] * 2)
    assert torch.equal(module[0].weight, values["0.weight"])


def test_parts_cover_everything_once():
    assert list(parts(10, 4)) == [(0, 4), (4, 8), (8, 10)]
    assert list(parts(0, 4)) == []
