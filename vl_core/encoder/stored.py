"""Weights in 8 bits, as ComfyUI's fp8 files have them, multiplied as they lie."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

EIGHT_BITS = torch.float8_e4m3fn, torch.float8_e5m2
STORED_BYTES = 24 << 20  # that are made wide at a time: half of what an H100 keeps beside its memory


class Stored(NamedTuple):
    """``values`` ``(out, in)`` times ``scale``."""

    values: Tensor
    scale: float

    def project(self, x: Tensor) -> Tensor:
        """``(B, in)`` to ``(B, out)``, in the dtype of ``x``.

        By a kernel where there is one. Else made wide in parts that the product finds where they were just written:
        what travels is 8 bits a number.
        """
        quick = None if torch.compiler.is_compiling() else kernel(x.device, x.dtype, self.values.dtype, len(x))
        if quick is not None:
            return quick(x, self.values, self.scale)
        rows = max(1, STORED_BYTES // (x.element_size() * x.shape[-1]))
        found = [
            torch.addmm(x.new_empty(1, len(values)), x, values.to(x.dtype).t(), beta=0, alpha=self.scale)
            for values in self.values.split(rows)
        ]
        return found[0] if len(found) == 1 else torch.cat(found, -1)


Product = Callable[[Tensor, Tensor, float], Tensor]  # (x, values, scale) -> x valuesᵀ scale


@functools.lru_cache(maxsize=64)
def kernel(device: torch.device, dtype: torch.dtype, kind: torch.dtype, rows: int) -> Product | None:
    """A product of so many rows by 8 bits as they lie; None where it does not work, or is not right, or is slower.

    It is Triton's, which not every PyTorch brings, and is built when first used, for which it needs a C compiler.
    """
    if device.type != "cuda":
        return None
    try:
        from .stored_kernel import MOST_ROWS, product

        return product if rows <= MOST_ROWS and is_right(product, device, dtype, kind, rows) else None
    except Exception as error:  # no Triton, no compiler, another version, another GPU: there is another way
        why = str(error).strip().partition("\n")[0]
        log.info("Weights in 8 bits are made wide before they are multiplied: %s", why)
        return None


def is_right(product: Product, device: torch.device, dtype: torch.dtype, kind: torch.dtype, rows: int) -> bool:
    """Whether a product gives what the wide weight gives."""
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, 1100, device=device, dtype=dtype, generator=generator)
    values = torch.randn(70, 1100, device=device, generator=generator).to(kind)
    expected = x.float() @ values.float().t() * 0.5
    return torch.allclose(product(x, values, 0.5).float(), expected, atol=0.5, rtol=2e-2)


def stored_weight(module: nn.Module, like: Tensor) -> Stored | None:
    """The weight of a linear layer of ComfyUI's that keeps it in 8 bits and computes in the dtype of ``like``."""
    weight: Any = module._parameters.get("weight")
    values, settings = getattr(weight, "_qdata", None), getattr(weight, "_params", None)
    scale = getattr(settings, "scale", None)
    if not isinstance(values, Tensor) or values.dtype not in EIGHT_BITS or not isinstance(scale, Tensor):
        return None
    if scale.numel() != 1 or values.shape != weight.shape or values.ndim != 2 or values.device != like.device:
        return None
    if not getattr(module, "_full_precision_mm", False) or module._parameters.get("bias") is not None:
        return None  # it also rounds what comes in
    if any(getattr(module, f"{name}_function", None) for name in ("weight", "bias")):
        return None
    if values.dtype == torch.float8_e4m3fn and (values.view(torch.uint8) & 0x7F == 0x7F).any():
        return None  # a NaN, which the kernel would read as 480
    return Stored(values, float(scale))
