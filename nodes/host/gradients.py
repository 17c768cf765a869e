"""Gradients through an image model of ComfyUI, whose weights stay as they are, wherever and however they are stored.

ComfyUI brings a weight to the device and to its type when a layer runs: from the CPU, out of fp8 or GGUF, with a LoRA
on it. None of these copies may wait for the backward pass: some are overwritten by the next layer's, and weights that
were loaded in inference mode cannot be kept for it at all. So a linear layer here keeps nothing and fetches its weight
anew on the way back, which is all that its gradient needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.ldm.lumina import model as lumina
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

KEPT_PER_TOKEN = 30  # values of the model's width that a block keeps per token for its backward pass, at the most
SPARED = 0.1  # of the device's memory is left alone
LONG_CAPTION = 512  # tokens
STREAMS = ("img", "txt")  # what FLUX blocks call the hidden states that they change in place


def _is_flux(dit: nn.Module) -> bool:
    """Whether it is a DiT of FLUX, which is looked for only where something is learned."""
    from comfy.ldm.flux.model import Flux

    return isinstance(dit, Flux)


@contextmanager
def gradients_through(dit: nn.Module) -> Iterator[None]:
    """While it is entered, gradients pass through a DiT to its inputs, and its blocks are run again where memory is
    short. Afterwards everything is as it was.

    Raises:
        ValueError: see :func:`check_gradients`.
    """
    check_gradients(dit)
    with ExitStack() as stack:
        stack.callback(setattr, comfy.model_management, "in_training", _in_training())
        comfy.model_management.in_training = True  # the host's fused kernels know no way back
        tracked = [weight for weight in dit.parameters() if weight.requires_grad]
        stack.callback(_track, tracked, True)
        _track(tracked, False)
        for module in dit.modules():
            forward = _forward_of(module)
            if forward is not None:
                _replace(module, partial(forward, module, module.forward), stack)
        changes_in_place = _is_flux(dit)
        for block in _blocks(dit):
            _replace(block, partial(_run_block, block.forward, changes_in_place), stack)
        yield


def check_gradients(dit: nn.Module) -> None:
    """Refuse a DiT with weights that only a kernel of somebody else's can read: nothing is known of its way back.

    Raises:
        ValueError: naming the layer and the form of its weight.
    """
    for name, module in dit.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or _is_cast(module):
            continue
        if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point() or weight.itemsize < 2:
            raise ValueError(
                f"model: no gradient passes through the quantised kernel of {name} ({type(module).__module__}."
                f"{type(module).__name__}, {str(weight.dtype).removeprefix('torch.')}). Load the model in bf16, fp16, "
                "fp8 or as GGUF to learn on it; the look then works with this one too."
            )


def differentiable_attention(_: Callable, *args: Any, **options: Any) -> Tensor:
    """Attention with a way back in place of whichever was chosen; see ComfyUI's ``optimized_attention_override``."""
    return attention_pytorch(*args, **options)


def _in_training() -> bool:
    return getattr(comfy.model_management, "in_training", False)


@torch.inference_mode()  # weights that were made in it can be changed back in it alone
def _track(weights: Sequence[Tensor], tracked: bool) -> None:
    for weight in weights:
        weight.requires_grad_(tracked)


def _replace(module: nn.Module, forward: Callable, stack: ExitStack) -> None:
    """Another forward until the stack is left; one that somebody else has put there is put back."""
    before = vars(module).get("forward")
    module.forward = forward
    if before is None:
        stack.callback(vars(module).pop, "forward", None)
    else:
        stack.callback(setattr, module, "forward", before)


# --- layers -----------------------------------------------------------------------------------------------------------


def _is_cast(module: nn.Module) -> bool:
    """Whether a layer's weight can be had as ComfyUI's own layers have theirs, or ComfyUI-GGUF's."""
    if hasattr(type(module), "cast_bias_weight"):
        return True
    if not isinstance(module, comfy.ops.CastWeightBiasOp):
        return False
    names = ("forward", "forward_comfy_cast_weights")
    return all(getattr(type(module), name).__module__ == comfy.ops.__name__ for name in names)


def _forward_of(module: nn.Module) -> Callable | None:
    """What runs in place of a layer's forward; None where autograd may have its way."""
    plain = type(module) is nn.Linear
    if "forward" in vars(module) or not (plain or _is_cast(module)):
        return None
    if hasattr(module, "in_features"):
        return _linear
    return _norm if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) else None


@contextmanager
def _weights(layer: Any, like: Tensor) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """Weight and bias of a layer where ``like`` lies and in its type, whatever is patched in on them."""
    if hasattr(layer, "cast_bias_weight"):  # ComfyUI-GGUF
        weight, bias = layer.cast_bias_weight(like)[:2]
        yield weight, bias
    elif issubclass(type(layer), comfy.ops.CastWeightBiasOp) and layer.weight is not None:
        weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
        try:
            yield weight.dequantize() if hasattr(weight, "_qdata") else weight, bias
        finally:
            comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    else:
        yield layer.weight, getattr(layer, "bias", None)


class _Linear(torch.autograd.Function):
    """x·Wᵀ + b for a W that is fixed; nothing is kept for the way back."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, layer: nn.Module) -> Tensor:
        context.layer = layer
        with _weights(layer, hidden) as (weight, bias):
            assert weight is not None, "a linear layer has one"
            return F.linear(hidden, weight, bias)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (torch says *gradients, and gives one an output)
        context: Any, gradient: Tensor
    ) -> tuple[Tensor, None]:
        with _weights(context.layer, gradient) as (weight, _):
            assert weight is not None, "a linear layer has one"
            return gradient @ weight, None


def _linear(layer: nn.Module, own: Callable, hidden: Tensor) -> Tensor:
    if not hidden.requires_grad:
        return own(hidden)
    comfy.model_management.throw_exception_if_processing_interrupted()
    return cast(Tensor, _Linear.apply(hidden, layer))


def _norm(layer: Any, own: Callable, hidden: Tensor) -> Tensor:
    """A norm of copies: of its weight, which is small, and of its input, which FLUX changes in place afterwards."""
    if not hidden.requires_grad:
        return own(hidden)
    with _weights(layer, hidden) as (weight, bias):
        weight, bias = (None if part is None else part.detach().clone() for part in (weight, bias))
    if isinstance(layer, nn.RMSNorm):
        return F.rms_norm(hidden.clone(), layer.normalized_shape, weight, layer.eps)
    return F.layer_norm(hidden.clone(), layer.normalized_shape, weight, bias, layer.eps)


# --- blocks -----------------------------------------------------------------------------------------------------------


def _blocks(dit: nn.Module) -> list[nn.Module]:
    """The blocks that a caption's gradient passes."""
    lists = ("context_refiner", "layers") if isinstance(dit, lumina.NextDiT) else ("double_blocks", "single_blocks")
    return [block for name in lists for block in getattr(dit, name)]


def checkpoint_bytes(dit: Any, dtype: torch.dtype, pictures: int, sides: Sequence[int]) -> int:
    """What is kept at the least between both ways: each block's input, for latents of ``sides`` and a long caption."""
    tokens = math.prod(sides) // dit.patch_size**2 + LONG_CAPTION
    width = dit.dim if isinstance(dit, lumina.NextDiT) else dit.hidden_size
    return len(_blocks(dit)) * pictures * tokens * width * dtype.itemsize


def _run_block(own: Callable, changes_in_place: bool, *args: Any, **options: Any) -> Any:
    """A block that no gradient reaches, or for which there is room, runs as it is; others run again on the way back."""
    hidden = [part for part in (*args[:1], *(options.get(name) for name in STREAMS)) if isinstance(part, Tensor)]
    tracked = torch.is_grad_enabled() and any(part.requires_grad for part in hidden)
    if not tracked or sum(part.nbytes for part in hidden) * KEPT_PER_TOKEN < _room(hidden[0].device):
        return own(*args, **options)
    if "transformer_options" in options:  # the model writes the next block's number into it
        options["transformer_options"] = dict(options["transformer_options"])

    def run(*args: Any, **options: Any) -> Any:
        if changes_in_place:
            args = tuple(part.clone() if index == 0 else part for index, part in enumerate(args))
            options |= {name: options[name].clone() for name in STREAMS if name in options}
        return own(*args, **options)

    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **options)


def _room(device: torch.device) -> float:
    """Bytes that a block may keep: what the device has free, less a part of it. On the CPU all it wants."""
    if device.type == "cpu":
        return float("inf")
    total: Any = comfy.model_management.get_total_memory(device)  # these give tuples if asked for more
    free: Any = comfy.model_management.get_free_memory(device)
    return free - SPARED * total
