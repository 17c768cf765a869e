"""A block of Z-Image with fewer launches and less kept for its backward pass, for learning on frozen weights.

The same sums as diffusers' ``ZImageTransformerBlock`` takes: norms are torch's own, which round once at the end and
keep their input alone; the gate keeps its two inputs and computes its product again. ``test_look_painters.py`` holds
values and gradients to the block's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEPT_PER_TOKEN = 16  # values of the model's width that are kept per token for the backward pass


def fits(block: nn.Module, *rest: Any) -> bool:
    """Whether a block and what it is given are those that :func:`run` knows: another processor may do anything."""
    from diffusers.models.transformers.transformer_z_image import (
        RMSNorm,  # pyright: ignore[reportPrivateImportUsage] (this very name is what its blocks are made of)
        ZImageTransformerBlock,
        ZSingleStreamAttnProcessor,
    )

    if type(block) is not ZImageTransformerBlock or any(one is not None for one in rest):
        return False
    attention = block.attention
    norms = (block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2, attention.norm_q,
             attention.norm_k)
    return type(attention.processor) is ZSingleStreamAttnProcessor and all(
        type(norm) is RMSNorm and norm.weight is not None and norm.bias is None for norm in norms
    )


def run(block: Any, hidden: Tensor, mask: Tensor | None, turns: Tensor, condition: Tensor | None = None) -> Tensor:
    """``block(hidden, mask, turns, condition)``.

    Args:
        hidden: ``(B, L, D)``. ``mask``: of tokens that are there, bool ``(B, L)``; None for all.
        turns: rotary factors, complex ``(B, L, d/2)``. ``condition``: of the noise level, ``(B, C)``.
    """
    scales: tuple[Any, ...] = (None, None)
    gates: tuple[Any, ...] = (None, None)
    if block.modulation:
        parts = block.adaLN_modulation(condition).unsqueeze(1).chunk(4, dim=2)
        scales, gates = (1 + parts[0], 1 + parts[2]), (parts[1].tanh(), parts[3].tanh())
    given = _norm(hidden, block.attention_norm1, scales[0])
    hidden = _add(hidden, _norm(_attend(block.attention, given, mask, turns), block.attention_norm2), gates[0])
    feed = block.feed_forward
    given = _norm(hidden, block.ffn_norm1, scales[1])
    made = feed.w2(Gate.apply(feed.w1(given), feed.w3(given)))
    return _add(hidden, _norm(made, block.ffn_norm2), gates[1])


class Gate(torch.autograd.Function):
    """silu(a)·b, which keeps nothing but a and b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return F.silu(a) * b

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (torch says *gradients, and gives one an output)
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * b, a), grad * F.silu(a)


def _attend(attention: Any, given: Tensor, mask: Tensor | None, turns: Tensor) -> Tensor:
    q, k, v = (
        project(given).unflatten(-1, (attention.heads, -1))
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    q, k = (
        _turned(_norm(each, norm), turns).transpose(1, 2)
        for each, norm in ((q, attention.norm_q), (k, attention.norm_k))
    )
    where = None if mask is None else mask[:, None, None, :]
    found = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), attn_mask=where)
    found = found.transpose(1, 2).flatten(2)
    for layer in attention.to_out:
        found = layer(found)
    return found


def _norm(x: Tensor, norm: Any, scale: Tensor | None = None) -> Tensor:
    found = F.rms_norm(x, norm.weight.shape, norm.weight.to(x.dtype), norm.eps)
    return found if scale is None else found * scale


def _add(x: Tensor, change: Tensor, gate: Tensor | None) -> Tensor:
    return x + change if gate is None else torch.addcmul(x, gate, change)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary turns of ``(B, L, H, d)``, in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns.unsqueeze(2)).flatten(3).to(x.dtype)
