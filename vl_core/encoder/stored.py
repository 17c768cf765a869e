"""Weights in 8 bits, as ComfyUI's fp8 files have them, multiplied as they lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

EIGHT_BITS = torch.float8_e4m3fn, torch.float8_e5m2
STORED_BYTES = 24 << 20  # that are made wide at a time: half of what an H100 keeps beside its memory


class Stored(NamedTuple):
    """``values`` ``(out, in)`` times ``scale``."""

    values: Tensor
    scale: float

    def project(self, x: Tensor) -> Tensor:
        """``(B, in)`` to ``(B, out)``, in the dtype of ``x``.

        Made wide in parts that the product finds where they were just written: what travels is 8 bits a number.
        """
        rows = max(1, STORED_BYTES // (x.element_size() * x.shape[-1]))
        found = [
            torch.addmm(x.new_empty(1, len(values)), x, values.to(x.dtype).t(), beta=0, alpha=self.scale)
            for values in self.values.split(rows)
        ]
        return found[0] if len(found) == 1 else torch.cat(found, -1)


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
    return Stored(values, float(scale))
