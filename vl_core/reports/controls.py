"""Null controls: noise of the same size, and pictures of somebody else."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from ..states.layout import TokenLayout
from ..states.sinks import find_sinks
from ..states.tensors import token_rms
from ..states.vl_states import VLStates


def shuffled(picture: Tensor, key: str) -> Tensor:
    """The pixels of ``(H, W, 3)`` in an order that only the key decides."""
    order = torch.randperm(picture.shape[0] * picture.shape[1], generator=seeded_generator(key))
    return picture.flatten(0, 1)[order].view_as(picture)


def noisy(seen: VLStates, seed: int) -> VLStates:
    """The same sequence with every layer's states replaced by matched noise."""
    generator = torch.Generator().manual_seed(seed)
    layers = [matched_noise(layer, generator, seen.layout) for layer in seen.states]
    return replace(seen, states=torch.stack(layers))


def matched_noise(states: Tensor, generator: torch.Generator, layout: TokenLayout | None = None) -> Tensor:
    """Noise with the mean and std per dimension and the RMS per token of states ``(L, D)``; sinks stay as they are.

    ``layout``: of the ``L`` positions, which tells sinks (:func:`find_sinks`).
    """
    is_sink = find_sinks(states, layout)
    ordinary = states[~is_sink].float()
    drawn = torch.randn(states.shape, generator=generator).to(states.device)
    drawn = drawn * ordinary.std(0).nan_to_num(0.0) + ordinary.mean(0)
    drawn = drawn * (token_rms(states) / token_rms(drawn).clamp_min(1e-6)).unsqueeze(-1)
    return torch.where(is_sink.unsqueeze(-1), states, drawn.to(states.dtype))


def seeded_generator(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))
