"""Weights that ComfyUI lends from layer to layer, held where they are for as long as a whole answer needs them.

With dynamic memory a layer asks for its weight at every call, and the host brings it if it is not on the GPU. What was
brought stays at its address until somebody else needs the room. Holding it keeps that from happening meanwhile: the
layers then have plain weights on their device, which a captured step may read.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ops
import torch
from torch import nn

log = logging.getLogger(__name__)

# layer -> the host's tensors and the parameters around them: the same ones as long as the host's are, so that graphs
# which read them stay good
_parameters: weakref.WeakKeyDictionary[nn.Module, tuple[Any, dict[str, nn.Parameter]]] = weakref.WeakKeyDictionary()
_FUNCTIONS = ("weight_function", "bias_function", "weight_lowvram_function", "bias_lowvram_function")


@contextmanager
def held(module: nn.Module, device: torch.device) -> Iterator[bool]:
    """Have every layer below ``module`` whose weights are lent keep them on ``device`` while this lasts.

    Yields:
        whether all weights are there. If not there is no room for them, or a layer's weights are patched as they are
        brought, and everything is as it was.
    """
    lent = [layer for layer in module.modules() if hasattr(layer, "_v")] if device.type != "cpu" else []
    taken: list[tuple[nn.Module, dict[str, Any], tuple]] = []
    try:
        whole = all(_take(layer, device, taken) for layer in lent)
        if not whole:
            _return(taken)
        yield whole
    finally:
        _return(taken)


def _take(layer: nn.Module, device: torch.device, taken: list) -> bool:
    """Have one layer's weight and bias brought and put in place; False if they do not stay, or are not as they lie."""
    if any(getattr(layer, name, None) for name in _FUNCTIONS):
        return False
    weight: Any = layer.weight
    dtypes = {"dtype": weight.dtype, "bias_dtype": weight.dtype}
    lent = comfy.ops.cast_bias_weight(layer, device=device, offloadable=True, **dtypes)
    taken.append((layer, {}, lent))
    if getattr(layer, "_v_signature", None) is None:
        return False
    there = {"weight": getattr(layer, "_v_weight", None), "bias": getattr(layer, "_v_bias", None)}
    if there["weight"] is None or (there["bias"] is None) != (layer._parameters.get("bias") is None):
        return False
    known = _parameters.get(layer)
    if known is None or known[0] is not there["weight"]:
        made = {
            name: nn.Parameter(one, requires_grad=False) for name, one in there.items() if one is not None
        }
        known = _parameters[layer] = there["weight"], made
    before = taken[-1][1]
    for name, parameter in known[1].items():
        before[name] = layer._parameters[name]
        layer._parameters[name] = parameter
    return True


def _return(taken: list) -> None:
    while taken:
        layer, before, (weight, bias, offload) = taken.pop()
        layer._parameters.update(before)
        comfy.ops.uncast_bias_weight(layer, weight, bias, offload)
