"""Convolutions of large pictures on a GPU in strips of rows, which take less memory.

In half precision cuDNN lays the whole input and output out anew, beside both: at 1024² the last upsampling of Z-Image's
decoder takes 1.3 GB for that, which is when painting takes the most. Strips are laid out one after the other, and each
value is summed as before.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from .stand_in import stand_in

LARGE = 1 << 29  # bytes of input and output together above which they are convolved in strips
STRIP = 1 << 27  # bytes of both that one strip has


def convolve(conv: nn.Conv2d, x: Tensor, strips: int) -> Tensor:
    """What ``conv``, with a stride of 1, makes of ``(N, C, H, W)`` in about so many strips."""
    reach, (above, beside) = conv.kernel_size[0], _padding(conv)
    height = x.shape[2] + 2 * above - reach + 1
    out = x.new_empty(len(x), conv.out_channels, height, x.shape[3] + 2 * beside - conv.kernel_size[1] + 1)
    rows = -(-height // strips)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        top, bottom = first - above, last - above + reach - 1
        seen = x[:, :, max(0, top) : bottom]
        missing = max(0, -top), max(0, bottom - x.shape[2])
        seen = functional.pad(seen, (0, 0, *missing)) if any(missing) else seen
        out[:, :, first:last] = functional.conv2d(seen, conv.weight, conv.bias, padding=(0, beside), groups=conv.groups)
    return out


def convolutions_in_strips(module: nn.Module) -> AbstractContextManager[None]:
    """Large ones below ``module`` are computed so while the block lasts."""
    return stand_in(module, nn.Conv2d, _forward)


def _forward(conv: nn.Conv2d, input: Tensor) -> Tensor:
    """What ``conv`` does, this file's way where that takes less memory."""
    taken = input.element_size() * (input.numel() + input[:, 0].numel() * conv.out_channels)
    if not input.is_cuda or torch.is_grad_enabled() or taken <= LARGE or not _is_plain(conv):
        return nn.Conv2d.forward(conv, input)
    return convolve(conv, input, -(-taken // STRIP))


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether it reaches over neighbours of the same size; one that looks at single pixels needs no other layout."""
    plain = conv.stride == (1, 1) == conv.dilation and conv.padding_mode == "zeros"
    return plain and conv.kernel_size[0] > 1 and not isinstance(conv.padding, str)


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(conv.padding, str)
    return conv.padding[0], conv.padding[1]
