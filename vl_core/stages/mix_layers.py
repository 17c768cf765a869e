"""One set of states from several layers of one encode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..states.fields import quoted
from ..states.layers import read_layers
from ..states.layout import TokenLayout
from ..states.tensors import EPSILON, to_dtype, token_rms
from ..states.vl_states import VLStates, resolve_layer

SMALLEST_SUM = 1e-6  # of weights, as a share of the largest: below, the mean is noise


def parse_layers(text: str) -> tuple[list[int], list[float]]:
    """Layers and their weights as people write them: ``"-2, -4 * 0.5"`` or ``"-2, -4:0.5"``.

    Raises:
        ValueError: see :func:`read_layers`; for a layer named twice.
    """
    found = [(layer, weight) for span, weight in read_layers(text, "mix_layers", weighted=True) for layer in span]
    layers = [layer for layer, _ in found]
    twice = sorted({layer for layer in layers if layers.count(layer) > 1})
    if twice:
        raise ValueError(f"mix_layers: expected every layer once, got {twice[0]} more often in {quoted(text)}.")
    return layers, [weight for _, weight in found]


def mix_layers(seen: VLStates, layers: Sequence[int], weights: Sequence[float]) -> tuple[Tensor, TokenLayout]:
    """Weighted mean of several captured layers, each token in units of its RMS, at the scale of the deepest layer.

    ``rms(x_deepest)·Σ w_k·x_k/rms(x_k) / Σ w_k`` per token. Layers differ in scale (an ordinary token's RMS doubles
    over the last blocks), so without the division the deepest would win. A layer of weight 0 counts as not named:
    weights (1, 0) give the first layer bit for bit.

    Args:
        seen: an encode in which every layer was captured.
        layers: ``hidden_states`` indices, negative from the end.
        weights: one per layer, any sign; only their ratios matter.

    Returns:
        states ``(L, D)`` in the encoder's dtype, computed in float32, and their layout, which names the layer if there
        is one and None for a mixture.

    Raises:
        ValueError: for another number of weights than layers, none, weights that are not finite or sum to zero, or a
            layer that was not captured.
    """
    layers, weights = list(layers), [float(weight) for weight in weights]
    if not layers or len(layers) != len(weights):
        raise ValueError(f"weights: expected one per layer, got {len(weights)} for {len(layers)} layers.")
    total = math.fsum(weights)
    if not math.isfinite(total) or abs(total) <= SMALLEST_SUM * max(map(abs, weights)):
        raise ValueError(f"weights: expected finite numbers whose sum is not zero, got {weights}.")
    captured = [seen.at(layer) for layer in layers]  # a layer of weight 0 has to exist as well
    depths = [resolve_layer(layer, seen.num_layers) for layer in layers]
    named = sorted((depth, index) for index, depth in enumerate(depths) if weights[index])
    deepest, layout = captured[named[-1][1]]
    if named[0][0] == named[-1][0]:  # one layer, perhaps named twice
        return deepest, layout
    scale, mixed = token_rms(deepest).unsqueeze(-1), torch.zeros_like(deepest, dtype=torch.float32)
    for _, index in named:
        tokens = captured[index][0].float()
        share = scale * (weights[index] / total) / token_rms(tokens).unsqueeze(-1).clamp_min(EPSILON)
        mixed.addcmul_(share, tokens)
    return to_dtype(mixed, deepest.dtype), layout.with_layer(None)
