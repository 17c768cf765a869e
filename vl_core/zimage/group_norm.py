"""Group norms of few pictures on a GPU: torch's own gives a group to one block, so 32 of them leave most of it idle.

At 1024² that is half of what decoding takes. Here each group is looked through in parts, which fill the GPU, by the
kernels that torch has for batch norms over several GPUs. Sums and results are float32's, rounded once at the end, as
torch's.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from .stand_in import stand_in

PARTS = 64  # of a group: 32 groups in so many parts are some sixteen blocks for each multiprocessor
PIECES = 16  # of a channel: 128 channels and more in so many are as many blocks
FILLING = 256  # groups from which on torch's own kernel has a block for every multiprocessor, twice over
HALVES = (torch.float16, torch.bfloat16)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """``torch.nn.functional.group_norm`` of contiguous ``(N, C, …)`` in half precision."""
    count, width = x.shape[:2]
    parts = math.gcd(x[0].numel() // groups, PARTS)
    # The few figures of parts are put together in float64: a variance is the mean of the parts' own and the variance of
    # their means.
    means, within = (one.view(count, groups, parts) for one in _moments(x, count * groups * parts))
    mean, variance = means.mean(-1), within.mean(-1) + means.var(-1, correction=0)
    pieces, inverse = math.gcd(x[0, 0].numel(), PIECES), (variance + epsilon).rsqrt()
    of_groups = (one.float().repeat_interleave(width // groups * pieces) for one in (mean, inverse))
    of_channels = (one.float().repeat_interleave(pieces).repeat(count) for one in (weight, bias))
    return _normalised(x, *of_groups, *of_channels)


def _moments(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``count`` equal parts of contiguous values, summed in float32, as float64."""
    parts = x.view(1, count, -1)
    if x.is_cuda:
        means, inverses = torch.batch_norm_stats(parts, 0.0)  # in one pass; 1/√variance, 0 where there is none
        return means.double(), torch.where(inverses > 0, inverses.double() ** -2, 0.0)
    variances, means = torch.var_mean(parts[0].float(), -1, correction=0)
    return means.double(), variances.double()


def _normalised(x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``(x - mean) * inverse * weight + bias`` of as many equal parts as there are figures of each, in float32."""
    parts = x.view(1, len(mean), -1)
    if x.is_cuda:
        return torch.batch_norm_elemt(parts, weight, bias, mean, inverse, 0.0).view(x.shape)
    scale = inverse * weight
    return ((parts[0].float() - mean[:, None]) * scale[:, None] + bias[:, None]).to(x.dtype).view(x.shape)


def _forward(norm: nn.GroupNorm, input: Tensor) -> Tensor:
    """What ``norm`` does, this file's way where that is faster."""
    ours = input.is_cuda and input.dtype in HALVES and input.is_contiguous() and norm.affine
    if not ours or torch.is_grad_enabled() or input.shape[0] * norm.num_groups >= FILLING:
        return nn.GroupNorm.forward(norm, input)
    return group_norm(input, norm.num_groups, norm.weight, norm.bias, norm.eps)


def quick_group_norms(module: nn.Module) -> AbstractContextManager[None]:
    """Those below ``module`` are computed this file's way while the block lasts."""
    return stand_in(module, nn.GroupNorm, _forward)
