"""Weights in 8 bits, as ComfyUI's fp8 files have them: the step multiplies with them as they lie."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vl_core.encoder import decoding, stored
from vl_core.encoder.decoding import project
from vl_core.encoder.stored import Stored

FLOAT8 = torch.float8_e4m3fn


class Layer(nn.Module):
    """Looks like a layer of ComfyUI's that holds an fp8 weight."""

    def __init__(self, values: torch.Tensor, scale: float, **more) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(values.shape), requires_grad=False)
        self.weight._qdata = values
        self.weight._params = SimpleNamespace(scale=torch.tensor(scale))
        self._full_precision_mm = True
        self.weight_function = self.bias_function = ()
        for name, value in more.items():
            setattr(self, name, value)


def weight(rows: int = 70, columns: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(FLOAT8)


@pytest.mark.parametrize("bytes_at_a_time", [1, 24 * 4 * 16, 1 << 20])
@pytest.mark.parametrize("count", [1, 3])
def test_a_product_is_that_of_the_wide_weight(bytes_at_a_time, count, monkeypatch):
    monkeypatch.setattr(stored, "STORED_BYTES", bytes_at_a_time)
    values, x = weight(), torch.randn(count, 24, generator=torch.Generator().manual_seed(1))
    expected = x.double().numpy() @ (values.double().numpy() * 0.03).T
    found = project(Stored(values, 0.03), x)
    assert found.shape == (count, 70) and found.dtype == x.dtype
    assert np.abs(found.double().numpy() - expected).max() < 1e-5


def test_a_layer_that_keeps_8_bits_is_taken_as_it_lies():
    found = decoding._projection(Layer(weight(), 0.5), torch.empty(0))
    assert isinstance(found, Stored) and found.scale == 0.5 and found.values.dtype == FLOAT8


@pytest.mark.parametrize(
    "more",
    [{"_full_precision_mm": False}, {"weight_function": [abs]}, {"bias": nn.Parameter(torch.zeros(70))}],
    ids=["rounds its input too", "patched", "with a bias"],
)
def test_a_layer_that_does_more_is_called(more):
    layer = Layer(weight(), 0.5, **more)
    assert decoding._projection(layer, torch.empty(0)) is layer


def test_a_scale_for_every_block_is_not_known():
    layer = Layer(weight(), 0.5)
    layer.weight._params.scale = torch.ones(70)
    assert decoding._projection(layer, torch.empty(0)) is layer
