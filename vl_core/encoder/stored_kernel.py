"""A few rows times a weight in 8 bits, as a kernel of Triton's: each number of the weight travels once, as it lies.

PyTorch has no such product: one must make the weight wide first, which moves five times as many bytes.
"""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]: PyTorch brings it where there is an NVIDIA GPU
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

MOST_ROWS = 8  # all weights of 36 blocks take 2.5, 3.2, 5.1 and 9.4 ms for 1, 2, 4 and 8 rows on an H100, and on so
OUTPUTS, ALONG, WARPS = 2, 1024, 2  # of a program: outputs, and inputs at once; the quickest on an H100 by a little
BIAS = {torch.float8_e4m3fn: 256.0, torch.float8_e5m2: 1.0}  # what half precision makes of the same exponent
ONE, TWO = 7, 8  # places by which the bits lie higher in half precision


@triton.jit
def _product(
    x, values, found, count, outputs, width, scale,
    ROWS: tl.constexpr, SHIFT: tl.constexpr, OUTPUTS: tl.constexpr, ALONG: tl.constexpr,
):
    """``found`` (count, outputs): x (count, width) times values (outputs, width), bytes, transposed, times scale.

    The bits of both 8 bit types are those of half precision with fewer places: moved there they are the number, up to
    a power of two that is part of ``scale``.
    """
    out = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in range(0, width, ALONG):
        along = (start + tl.arange(0, ALONG))[None, :]
        places = out[:, None].to(tl.int64) * width + along
        bits = tl.load(values + places, (out < outputs)[:, None] & (along < width), other=0).to(tl.int16)
        bits = ((bits & 0x80) << 8) | ((bits & 0x7F) << SHIFT)
        weight = bits.to(tl.float16, bitcast=True).to(tl.float32)
        for row in tl.static_range(ROWS):  # pyright: ignore[reportGeneralTypeIssues]
            states = tl.load(x + row * width + along, (along < width) & (row < count), other=0.0).to(tl.float32)
            part = tl.sum(weight * states, 1)[None, :]  # pyright: ignore[reportArgumentType]
            total += tl.where(rows[:, None] == row, part, 0.0)
    places = rows[:, None] * outputs + out[None, :]
    tl.store(found + places, total * scale, (rows < count)[:, None] & (out < outputs)[None, :])


def product(x: Tensor, values: Tensor, scale: float) -> Tensor:
    """x ``(B, in)`` times values ``(out, in)`` transposed, and scale: ``(B, out)`` in its dtype, summed in float32."""
    outputs, width = values.shape
    x = x.contiguous()
    found = x.new_empty(len(x), outputs)
    shift = ONE if values.dtype == torch.float8_e4m3fn else TWO
    _product[(triton.cdiv(outputs, OUTPUTS),)](
        x, values.view(torch.uint8), found, len(x), outputs, width, scale * BIAS[values.dtype],
        triton.next_power_of_2(len(x)), shift, OUTPUTS, ALONG,
        num_warps=WARPS,  # pyright: ignore[reportCallIssue]
    )
    return found
