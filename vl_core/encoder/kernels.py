"""What a block does around its matrix products, in three ways.

========  ==============================================================================================================
EXACT     rounds where transformers rounds and sums in its order: states in bf16 are its states bit for bit
MERGED    as few operations as torch has: in bf16 a rounding fewer here and there, so nearer to float32, and 2 % from
          EXACT after 31 blocks, where every difference in a last bit has spread
compiled  MERGED with one kernel for each function (``torch.compile``, which needs Triton and a C compiler)
========  ==============================================================================================================

At 1024 image tokens a GPU spends a third of an encode on these: each operation reads and writes everything for a few
multiplications.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)


Norm = Callable[[Tensor, Tensor, float], Tensor]
Turn = Callable[[Tensor, Tensor, Tensor], Tensor]


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm of the last axis, times ``weight``."""
    return functional.rms_norm(x, x.shape[-1:], weight, epsilon)


def exact_rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The same, rounded before the weight as well, the squares summed as ``mean`` does it."""
    scale = x.float().square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return torch.mul(x, scale, out=torch.empty_like(x)).mul_(weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the last axis: ``x cos + rotate_half(x) sin``, the sign of rotate_half being in ``sin``."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


def exact_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same, both products rounded."""
    return (x * cos).add_(x.roll(x.shape[-1] // 2, -1) * sin)


def norm_and_rotate(
    query: Tensor, keys: Tensor, weights: tuple[Tensor, Tensor], epsilon: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """RMS norm of each head ``(L, H, d)``, then :func:`rotate`. Together: as calls of one function their numbers of
    heads would count as varying, and kernels for varying sizes are slower."""
    query, keys = (rms_norm(x, weight, epsilon) for x, weight in zip((query, keys), weights, strict=True))
    return rotate(query, cos, sin), rotate(keys, cos, sin)


def exact_norm_and_rotate(
    query: Tensor, keys: Tensor, weights: tuple[Tensor, Tensor], epsilon: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """The same; rotated as one tensor, which takes half the operations. Of so few values a head, torch's norm takes the
    squares in ``mean``'s order."""
    heads, size = query.shape[-2:]
    both = query.new_empty(len(query), heads + keys.shape[1], size)
    places = both[:, :heads], both[:, heads:]
    for x, weight, place in zip((query, keys), weights, places, strict=True):
        torch.mul(functional.rms_norm(x, (size,), None, epsilon), weight, out=place)
    both = exact_rotate(both, cos, sin)
    return both[:, :heads], both[:, heads:]


def rotate_patches(mixed: Tensor, cos: Tensor, sin: Tensor, *, turn: Turn = rotate) -> tuple[Tensor, Tensor]:
    """Queries and keys of ``(B, N, 3, H, d)``, rotated, as ``(B, H, N, d)``.

    In float32, as transformers has it: the angles of a large grid are too fine for bf16.
    """
    query, keys = turn(mixed[:, :, :2], cos, sin).to(mixed.dtype).unbind(2)
    return query.transpose(1, 2), keys.transpose(1, 2)


def gate(x: Tensor, up: Tensor) -> Tensor:
    """``silu(x) up``, in place of ``x``."""
    return functional.silu(x, inplace=True).mul_(up)


@dataclass(frozen=True)
class Kernels:
    """The functions of this file, one way of them.

    ``merges``: a matrix product may do what comes after it: add to the residual, apply gelu. It may be the product
    that a convolution over whole patches is.
    """

    rms_norm: Norm
    norm_and_rotate: Callable[..., tuple[Tensor, Tensor]]
    rotate_patches: Callable[..., tuple[Tensor, Tensor]]
    gate: Callable[[Tensor, Tensor], Tensor]
    merges: bool


EXACT = Kernels(
    exact_rms_norm, exact_norm_and_rotate, functools.partial(rotate_patches, turn=exact_rotate), gate, merges=False
)
MERGED = Kernels(rms_norm, norm_and_rotate, rotate_patches, gate, merges=True)


def compiles(device: torch.device) -> bool:
    """Whether ``torch.compile`` works here; where it does not a line in the log says why."""
    try:
        _compiled(_trial)(torch.ones(8, device=device))  # not one of ours: what its sizes were would stick
    except Exception as error:  # no compiler, no Triton, an unknown GPU: whatever it is, the model runs without
        log.warning("compile: running without compiled kernels: %s.", str(error).strip().partition("\n")[0])
        return False
    return True


def compiled_kernels(device: torch.device) -> Kernels:
    """:data:`MERGED` compiled for whatever sizes they meet, or as they are where nothing compiles."""
    if not compiles(device):
        return MERGED
    return Kernels(rms_norm, *map(_compiled, (norm_and_rotate, rotate_patches, gate)), merges=True)


def _compiled(function: Callable) -> Callable:
    return torch.compile(function, options={"compile_threads": 1})  # else as many processes as the machine has cores


def _trial(x: Tensor) -> Tensor:
    return 2 * x + 1


@contextmanager
def quick_attention(device: torch.device) -> Iterator[None]:
    """torch's own attention on a GPU while this lasts, not cuDNN's.

    cuDNN makes a plan for every new length, which takes most of a second on an H100: longer than all else together
    where each prompt is as long as its words.
    """
    before = device.type == "cuda" and torch.backends.cuda.cudnn_sdp_enabled()
    if before:
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        if before:
            torch.backends.cuda.enable_cudnn_sdp(True)
