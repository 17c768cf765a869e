"""An attention sink, made to order.

Large language models park attention on the first token: from an early block on its state is hundreds of times larger
than any other, in a few fixed dimensions ("massive activations", arXiv 2402.17762). Z-Image's encoder has one: dims 4
and 396 of Qwen3-4B at layer −2 are 13510 and −4544 in the first token, 326 and 0.1 elsewhere, and hold 97.7 % of the
variance. So small a model as ours grows none by itself, so an auxiliary loss asks for it from the first step on.

The loss looks at the output of an early block: the first token's two dimensions are driven to two large constants,
every other token's stay ordinary. The residual stream carries the values past all later blocks. Each block's RMSNorm
turns that token into one constant vector with two entries, a fixed key that attention can park on, and the final
RMSNorm brings it back to the size of the others, so the sink is gone at layer −1. Left alone, later blocks answer that
vector with large outputs in other dimensions (7 % of the variance after 240 steps, and growing), so what the first
token holds there is also bounded at the last block but one.

Distances are taken after asinh, which is linear near 0 and logarithmic far out: the pull is strong while the values
are small, and a relative error counts the same at any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vl_core import find_sinks
from vl_core.states.tensors import median, token_rms

DIMENSIONS = (4, 39)  # which two
WRITER = 1  # index of the block whose output is asked; hidden_states[WRITER + 1]
ORDINARY = 4.0  # other tokens' values there may be this large for free
DRIFT = 40.0  # late blocks may add this much to the first token's other dimensions
WEIGHT = 0.05  # of the loss beside the language model's
CHECKED_LAYERS = tuple(range(-8, -1))


def sink_loss(hidden: Tensor, targets: tuple[float, float], real: Tensor | None = None) -> Tensor:
    """How far a block's output is from having the sink.

    Args:
        hidden: ``(B, L, D)``. ``targets``: the first token's values at :data:`DIMENSIONS`.
        real: boolean ``(B, L)``, tokens that are not padding.

    Returns:
        scalar: mean over sequences of the squared asinh distance at the first token's two dimensions, plus the
        squared excess over :data:`ORDINARY` in its other dimensions (their mean) and in the two dimensions of other
        tokens (summed over tokens).
    """
    squeezed = hidden.float().asinh()
    values = squeezed[..., list(DIMENSIONS)]  # (B, L, 2)
    first = (values[:, 0] - torch.tensor(targets, device=hidden.device).asinh()).square().mean()
    spilt = _excess(squeezed[:, 0, _rest(hidden)]).mean()
    others = _excess(values[:, 1:]).mean(-1)
    if real is not None:
        others = others * real[:, 1:]
    return first + spilt + others.sum(1).mean()  # a sum: one token that follows the first must not get away with it


def _excess(squeezed: Tensor, limit: float = ORDINARY) -> Tensor:
    """Squared asinh distance beyond a limit."""
    return (squeezed.abs() - math.asinh(limit)).clamp_min(0).square()


def _rest(hidden: Tensor) -> list[int]:
    """All dimensions but the sink's two."""
    return [index for index in range(hidden.shape[-1]) if index not in DIMENSIONS]


def drift_loss(hidden: Tensor) -> Tensor:
    """How much a late block's output ``(B, L, D)`` holds of the first token outside the two dimensions: mean squared
    asinh excess over :data:`DRIFT`."""
    return _excess(hidden[:, 0, _rest(hidden)].float().asinh(), DRIFT).mean()


@contextmanager
def block_outputs(blocks: nn.ModuleList, *indices: int) -> Iterator[dict[int, Tensor]]:
    """While open, every forward leaves the outputs of some blocks in the dict, by index."""
    kept: dict[int, Tensor] = {}

    def keeper(index: int):
        def keep(_module, _inputs, output) -> None:
            kept[index] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [blocks[index].register_forward_hook(keeper(index)) for index in indices]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def sink_figures(layers: Sequence[int], sequences: Sequence[Sequence[Tensor]]) -> dict[int, dict[str, float]]:
    """What the states look like at each layer.

    Args:
        layers: names of the layers. ``sequences``: per text, its states ``(L, D)`` at each of them.

    Returns:
        per layer: ``ratio`` (smallest first-token RMS over its sequence's median), ``share`` (of the two largest
        dimensions in the variance of each sequence, the smallest), ``exact`` (share of sequences in which
        ``find_sinks`` finds position 0 and nothing else), ``found`` (mean number of sinks found).
    """
    figures = {}
    for index, layer in enumerate(layers):
        ratios, shares, exact, found = [], [], 0, 0
        for states in (sequence[index].float().cpu() for sequence in sequences):
            rms, is_sink = token_rms(states), find_sinks(states)
            variance = states.double().var(0)
            ratios.append(float(rms[0] / median(rms)))
            shares.append(float(variance.topk(2).values.sum() / variance.sum()))
            exact += bool(is_sink[0]) and int(is_sink.sum()) == 1
            found += int(is_sink.sum())
        count = len(sequences)
        figures[layer] = {
            "ratio": min(ratios), "share": min(shares), "exact": exact / count, "found": found / count
        }
    return figures
