"""Weights in 8 bits, as ComfyUI's fp8 files have them: the step multiplies with them as they lie."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vl_core.encoder import decoding, stored
from vl_core.encoder.decoding import project
from vl_core.encoder.stored import Stored

FLOAT8 = torch.float8_e4m3fn
KINDS = torch.float8_e4m3fn, torch.float8_e5m2
# Rows, sizes that fill no block, types, and every number that 8 bits can be, beside numpy in float64.
TRIED = """
import numpy as np, torch
from vl_core.encoder.stored_kernel import product
draw = torch.Generator().manual_seed(0)
for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
    for dtype, rounding in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)):
        for rows, outputs, width in ((1, 70, 1100), (3, 7, 1024), (8, 2, 30)):
            values = torch.randn(outputs, width, generator=draw).to(kind)
            x = torch.randn(rows, width, generator=draw).to(dtype)
            expected = x.double().numpy() @ values.double().numpy().T * 0.03
            found = product(x, values, 0.03)
            assert found.dtype == dtype and found.shape == (rows, outputs)
            assert np.abs(found.double().numpy() - expected).max() < rounding * np.abs(expected).max()
    every = torch.arange(256, dtype=torch.uint8)
    every = every[every.view(kind).float().isfinite()][:, None].view(kind)
    assert torch.equal(product(torch.ones(1, 1), every, 1.0)[0], every[:, 0].float())
print("as numpy")
"""


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


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_gives_what_numpy_gives():
    """In Triton's interpreter, which a process has from its start or not at all."""
    ran = subprocess.run(
        [sys.executable, "-c", TRIED], cwd=Path(__file__).parents[3], env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False,
    )
    if "only 0-dimensional arrays can be converted to Python scalars" in ran.stderr:
        pytest.skip("this Triton's interpreter does not know numpy 2.4 and newer")
    assert ran.stdout.strip() == "as numpy", ran.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 8, 9])
def test_the_kernel_gives_the_same_on_a_gpu(kind, rows):
    draw = torch.Generator("cuda").manual_seed(2)
    values = torch.randn(700, 2560, device="cuda", generator=draw).to(kind)
    x = torch.randn(rows, 2560, device="cuda", generator=draw).bfloat16()
    expected = x.double() @ values.double().t() * 0.03
    quick = stored.kernel(x.device, x.dtype, kind, rows)
    assert (quick is None) == (rows > 8)
    assert (Stored(values, 0.03).project(x).double() - expected).abs().max() < 0.01 * expected.abs().max()


def test_a_kernel_that_is_wrong_is_not_used():
    def right(x, values, scale):
        return x @ values.to(x.dtype).t() * scale

    where = torch.device("cpu"), torch.float32, FLOAT8, 3
    assert stored.is_right(right, *where)
    assert not stored.is_right(lambda *given: right(*given) * 1.1, *where)
    assert not stored.is_right(lambda *given: right(*given).roll(1, 0), *where)
    assert stored.kernel(*where) is None  # on a CPU there is none


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


def test_a_weight_that_holds_nan_is_not_taken():
    values = weight()
    values[3, 4] = torch.nan
    layer = Layer(values, 0.5)
    assert decoding._projection(layer, torch.empty(0)) is layer


def test_a_scale_for_every_block_is_not_known():
    layer = Layer(weight(), 0.5)
    layer.weight._params.scale = torch.ones(70)
    assert decoding._projection(layer, torch.empty(0)) is layer
