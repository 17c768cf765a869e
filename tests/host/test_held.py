"""Weights lent layer by layer stay in place while they are held. ComfyUI's own needs a GPU: here it is played."""

from __future__ import annotations

import pytest
import torch
from torch import nn

DEVICE = torch.device("cuda")  # only named: the tensors lie on the CPU


class Lender:
    """Plays comfy.ops and its address space: layers that are ``full`` find no room."""

    def __init__(self) -> None:
        self.lent: list[nn.Module] = []
        self.full: set[nn.Module] = set()

    def cast_bias_weight(self, layer, dtype, device, bias_dtype, offloadable):
        assert offloadable and dtype == layer.weight.dtype
        self.lent.append(layer)
        if layer in self.full:
            layer._v_signature = None
            return layer.weight.clone(), layer.bias.clone(), (None, None, None)
        if getattr(layer, "_v_signature", None) is None:
            layer._v_signature, layer._v_weight, layer._v_bias = object(), layer.weight.clone(), layer.bias.clone()
        return layer._v_weight, layer._v_bias, (None, device, None)

    def uncast_bias_weight(self, layer, weight, bias, offload):
        self.lent.remove(layer)


@pytest.fixture
def lender(part, monkeypatch):
    lender = Lender()
    ops = part("nodes.host.held").comfy.ops
    monkeypatch.setattr(ops, "cast_bias_weight", lender.cast_bias_weight)
    monkeypatch.setattr(ops, "uncast_bias_weight", lender.uncast_bias_weight)
    return lender


@pytest.fixture
def model():
    made = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 2)).requires_grad_(False)
    for layer in (made[0], made[2]):  # the last one is small, and the host has it on the device by itself
        layer._v, layer.weight_function, layer.bias_function = object(), [], []
    return made


@pytest.fixture
def hold(part):
    return part("nodes.host.held").held


def test_lent_weights_are_in_place_while_they_are_held_and_no_longer(model, lender, hold):
    before = dict(model.named_parameters())
    with hold(model, DEVICE) as whole:
        assert whole and lender.lent == [model[0], model[2]]
        assert model[0].weight.data_ptr() == model[0]._v_weight.data_ptr()
        assert model[2].bias.data_ptr() == model[2]._v_bias.data_ptr()
        assert model[3].weight is before["3.weight"]
    assert not lender.lent
    assert all(one is before[name] for name, one in model.named_parameters())


def test_they_are_the_same_parameters_until_the_host_brings_others(model, lender, hold):
    def weights():
        with hold(model, DEVICE):
            return model[0].weight

    first = weights()
    assert weights() is first
    model[0]._v_signature = None  # the host needed the room in between
    assert weights() is not first


def test_without_room_or_with_patches_everything_stays_as_it_is(model, lender, hold):
    before = dict(model.named_parameters())
    lender.full = {model[2]}
    with hold(model, DEVICE) as whole:
        assert not whole and not lender.lent
        assert all(one is before[name] for name, one in model.named_parameters())
    lender.full = set()
    model[2].weight_lowvram_function = object()
    with hold(model, DEVICE) as whole:
        assert not whole and not lender.lent


def test_an_error_gives_them_back(model, lender, hold):
    before = dict(model.named_parameters())
    with pytest.raises(RuntimeError, match="stop"), hold(model, DEVICE):
        raise RuntimeError("stop")
    assert not lender.lent and all(one is before[name] for name, one in model.named_parameters())


def test_on_a_cpu_nothing_is_lent(model, lender, hold):
    with hold(model, torch.device("cpu")) as whole:
        assert whole and not lender.lent
