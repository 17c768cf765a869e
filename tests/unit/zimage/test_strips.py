"""Convolutions in strips are torch's; what stands in for torch's own modules does so for a while."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vl_core.zimage import strips as in_strips
from vl_core.zimage.stand_in import stand_in
from vl_core.zimage.strips import convolutions_in_strips, convolve

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the GPU's way")


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (1, 0), (5, 2), (3, 0), ((3, 5), (1, 2)), ((5, 3), (1, 0))])
@pytest.mark.parametrize("strips", [1, 2, 5, 36, 37, 100])
@pytest.mark.parametrize("groups", [1, 2])
def test_strips_are_the_whole(kernel, padding, strips, groups):
    conv = nn.Conv2d(8, 6, kernel, padding=padding, groups=groups, bias=groups == 1).double()
    x = torch.randn(2, 8, 37, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(convolve(conv, x, strips), conv(x), rtol=0, atol=1e-12)


class Other(nn.Conv2d):
    pass


def test_only_torchs_own_are_stood_in_for_and_only_while_it_lasts():
    own, other, hooked = (kind(4, 4, 3, padding=1) for kind in (nn.Conv2d, Other, nn.Conv2d))
    hooked.forward = lambda x: x  # type: ignore[method-assign]
    theirs = hooked.forward
    whole = nn.Sequential(own, nn.Sequential(other), hooked)
    called = []

    def forward(conv, x):
        called.append(conv)
        return nn.Conv2d.forward(conv, x)

    x = torch.randn(1, 4, 5, 5)
    before = whole(x)
    with pytest.raises(RuntimeError, match="on the way"), stand_in(whole, nn.Conv2d, forward):
        assert torch.equal(whole(x), before)
        raise RuntimeError("on the way")
    assert called == [own] and "forward" not in own.__dict__ and hooked.forward is theirs
    whole(x)
    assert called == [own]


@pytest.mark.parametrize("conv", [
    nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 1),
    nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
])
def test_others_are_torchs(conv):
    assert not in_strips._is_plain(conv)


def test_a_cpu_computes_torchs_bits(monkeypatch):
    monkeypatch.setattr(in_strips, "LARGE", 0)
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 9, 9)
    with torch.no_grad(), convolutions_in_strips(conv):
        assert torch.equal(conv(x), nn.Conv2d.forward(conv, x))


@needs_gpu
def test_a_gpu_takes_less_memory_for_the_same():
    conv = nn.Conv2d(256, 256, 3, padding=1).to("cuda", torch.bfloat16)
    x = torch.randn(1, 256, 1024, 768, device="cuda", dtype=torch.bfloat16)

    def made():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            return conv(x), torch.cuda.max_memory_allocated() - before

    made()
    whole, most = made()
    with convolutions_in_strips(conv):
        ours, less = made()
    assert (ours - whole).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * whole.abs().max()
    assert less < 0.6 * most
