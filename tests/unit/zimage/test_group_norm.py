"""Group norms in parts are torch's, held against float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from vl_core.zimage.group_norm import group_norm, quick_group_norms

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the GPU's way")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


@pytest.mark.parametrize("shape", [(1, 32, 7, 5), (2, 64, 16, 24), (1, 96, 33, 1), (3, 128, 1, 1), (1, 64, 40)])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (40.0, 1.0), (-3.0, 1e-3), (0.0, 300.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_values_are_those_of_float64_rounded_once(shape, mean, spread, dtype, device):
    drawn = torch.Generator().manual_seed(0)
    x = (mean + spread * torch.randn(shape, generator=drawn)).to(dtype)
    weight, bias = (torch.randn(shape[1], generator=drawn).to(dtype) for _ in range(2))
    exact = functional.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-6)
    ours = group_norm(x.to(device), 32, weight.to(device), bias.to(device), 1e-6).cpu()
    assert ours.dtype == dtype
    # Half a step of rounding, and what float32 loses of a mean that lies far from 0 beside the spread.
    far = 2e-7 * (1 + x.double().abs().amax() / spread)
    allowed = 0.51 * torch.finfo(dtype).eps * exact.abs() + far * weight.double().abs().max() + 1e-7
    assert ((ours.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("device", DEVICES)
def test_a_flat_group_is_its_bias(device):
    x = torch.full((1, 64, 8, 8), 5.0, dtype=torch.bfloat16, device=device)
    weight, bias = torch.ones(64, dtype=torch.bfloat16).to(device), torch.linspace(-1, 1, 64).bfloat16().to(device)
    assert torch.allclose(group_norm(x, 32, weight, bias, 1e-6)[0, :, 0, 0].float(), bias.float(), atol=0.02)


def test_a_cpu_computes_torchs_bits():
    norm, x = nn.GroupNorm(8, 32).bfloat16(), torch.randn(1, 32, 4, 4).bfloat16()
    with torch.no_grad(), quick_group_norms(norm):
        assert torch.equal(norm(x), functional.group_norm(x, 8, norm.weight, norm.bias, norm.eps))


@needs_gpu
def test_a_gpu_computes_the_same():
    norm = nn.GroupNorm(32, 128, eps=1e-6).to("cuda", torch.bfloat16)
    x = torch.randn(1, 128, 160, 96, device="cuda").bfloat16()
    exact = functional.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    with torch.no_grad(), quick_group_norms(norm):
        assert (norm(x).double() - exact).abs().max() <= torch.finfo(torch.bfloat16).eps * exact.abs().max()
