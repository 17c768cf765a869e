"""What a block does between its matrix products, as one kernel each where torch can compile them.

At 1024 image tokens a GPU spends a third of an encode on these: each operation reads and writes everything for a few
multiplications. Compiled (``torch.compile``, which needs Triton and a C compiler), every function here is one pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the last axis: ``x cos + rotate_half(x) sin``, the sign of rotate_half being in ``sin``."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def norm_and_rotate(
    query: Tensor, keys: Tensor, weights: tuple[Tensor, Tensor], epsilon: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """RMS norm of each head ``(L, H, d)``, then :func:`rotate`. Together: as calls of one function their numbers of
    heads would count as varying, and kernels for varying sizes are slower."""
    size = query.shape[-1:]
    query, keys = (
        functional.rms_norm(x, size, weight, epsilon) for x, weight in zip((query, keys), weights, strict=True)
    )
    return rotate(query, cos, sin), rotate(keys, cos, sin)


def rotate_patches(mixed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of ``(B, N, 3, H, d)``, rotated, as ``(B, H, N, d)``.

    In float32, as transformers has it: the angles of a large grid are too fine for bf16.
    """
    turned = mixed[:, :, :2] * cos
    turned.addcmul_(mixed[:, :, :2].roll(mixed.shape[-1] // 2, -1), sin)
    query, keys = turned.to(mixed.dtype).unbind(2)
    return query.transpose(1, 2), keys.transpose(1, 2)


def gate(x: Tensor, up: Tensor) -> Tensor:
    """``silu(x) up``, in place of ``x``."""
    return functional.silu(x, inplace=True).mul_(up)


@dataclass(frozen=True)
class Kernels:
    """The functions of this file, compiled or as they are."""

    norm_and_rotate: Callable[..., tuple[Tensor, Tensor]] = norm_and_rotate
    rotate_patches: Callable[..., tuple[Tensor, Tensor]] = rotate_patches
    gate: Callable[..., Tensor] = gate


PLAIN = Kernels()


def compiled_kernels(device: torch.device) -> Kernels:
    """:class:`Kernels` compiled for whatever sizes they meet; where nothing compiles :data:`PLAIN`, and a log line."""
    try:
        _compiled(_trial)(torch.ones(8, device=device))  # not one of ours: what its sizes were would stick
    except Exception as error:  # no compiler, no Triton, an unknown GPU: whatever it is, the model runs without
        log.warning("compile: running without compiled kernels: %s.", str(error).strip().partition("\n")[0])
        return PLAIN
    return Kernels(*map(_compiled, (norm_and_rotate, rotate_patches, gate)))


def _compiled(function: Callable) -> Callable:
    return torch.compile(function, options={"compile_threads": 1})  # else as many processes as the machine has cores


def _trial(x: Tensor) -> Tensor:
    return 2 * x + 1
