"""Several references: each picture read alone with the prompt, then one reading made of all of them.

Readings of one prompt hold the same words, so they are combined word by word. The zero that weights are counted from
is the same reading with its picture muted in place. Without a zero, weight -1 would negate whole states, the words'
meaning with them, and weights that sum to zero would leave nothing to divide by. Counted from there, weight 0 is the
prompt beside an empty place and -1 the step opposite to the one that the picture made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..states.fields import quoted
from ..states.layout import TokenLayout, TokenRole, concatenate_layouts
from ..states.tensors import EPSILON, check_choice, to_dtype
from ..states.vl_states import VLStates
from .delta import MAX_WEIGHT
from .select import select_tokens

Combination = Literal["average", "add", "subtract", "norm average", "max weight per token"]
COMBINATIONS: tuple[str, ...] = get_args(Combination)


@dataclass(frozen=True, eq=False)
class Combined:
    """Several readings as one.

    Attributes:
        seen: words combined, template included; before them the tokens of every picture of positive weight.
        muted: the words of the muted readings by the weights' share, the zero of the combination; None if no muted
            readings were given.
        method, weights: as given. ``pooled``: per picture the n of the n × n tokens averaged, None if it has none.
        chosen: "max weight per token" only: how many words each picture decides.
    """

    seen: VLStates
    muted: VLStates | None
    method: Combination
    weights: tuple[float, ...]
    pooled: tuple[int | None, ...]
    chosen: tuple[int, ...] | None

    def describe(self) -> str:
        """One line: how, with which weights, and what became of the pictures' own tokens."""
        weights = ", ".join(f"{weight:g}" for weight in self.weights)
        line = f"{len(self.weights)} pictures, each read alone: {self.method}, weights {weights}"
        if any(factor is not None and factor > 1 for factor in self.pooled):
            factors = ", ".join("none" if factor is None else f"{factor}×{factor}" for factor in self.pooled)
            line += f"; their own tokens averaged over {factors}"
        if self.chosen is not None:
            line += f"; words decided by each: {', '.join(map(str, self.chosen))}"
        return line + "."


def parse_weights(text: str, count: int) -> list[float]:
    """Weights as people write them: ``"1, 0.5, -0.3"``, one per picture; nothing written is 1 for each.

    Raises:
        ValueError: for something that is no number, a number outside -3 to 3, or another count.
    """
    written = [part for part in re.split(r"[,;\s]+", text.strip()) if part]
    if not written:
        return [1.0] * count
    try:
        weights = [float(part) for part in written]
    except ValueError as error:
        raise ValueError(
            f"weights: expected numbers with commas between them, such as 1, 0.5, -0.3, got {quoted(text)}."
        ) from error
    if len(weights) != count:
        raise ValueError(
            f"weights: expected {count}, one for each picture (a batch counts as several), got {len(weights)}: "
            f"{quoted(text)}. Add or remove some, or leave the field empty to weigh all alike."
        )
    _check_weights(weights)
    return weights


def needs_muted(method: Combination, weights: Sequence[float]) -> bool:
    """Whether :func:`combine` has to know the muted readings: not for an average in which nothing is pushed away.

    Raises:
        ValueError: see :func:`combine`.
    """
    signed, zeros = _coefficients(method, weights)
    if method == "max weight per token":
        return sum(weight != 0 for weight in signed) > 1 or min(signed) < 0
    return any(zeros)


def combine(
    readings: Sequence[VLStates],
    weights: Sequence[float],
    method: Combination = "average",
    *,
    muted: Sequence[VLStates] | None = None,
    masks: Sequence[Tensor | None] | None = None,
) -> Combined:
    """One reading out of several of the same prompt, each with one picture, x_i, and that picture muted, n_i.

    With shares p_i = \\|w_i\\| / Σ\\|w\\| and the zero n̄ = Σ p_i·n_i, at every word and template token:

    ====================  ==========================================================================================
    average               n̄ + Σ w_i·(x_i − n_i) / Σ\\|w\\|; for weights above 0 this is Σ w_i·x_i / Σ w_i
    add                   n̄ + Σ w_i·(x_i − n_i): two pictures of weight 1 both act in full
    subtract              the same with every sign but the first turned: the first picture less the others
    norm average          average of x_i/rms(x_i) and n_i/rms(n_i), times Σ p_i·rms(x_i): no reading is louder
    max weight per token  n_k + w_k/max\\|w\\|·(x_k − n_k) with the picture k of the largest \\|w_k\\|·rms(x_k − n_k)
    ====================  ==========================================================================================

    A picture of weight 0 counts as absent: weights (1, 0) give the first reading's words bit for bit. Pictures' own
    tokens share no places and cannot be averaged: those of positive weight stay, one picture after another, each
    averaged over n × n tokens with n = round(max w / w_i), since only their number counts for Z-Image.

    Args:
        readings: of one prompt by one encoder, each with one picture and the same layers captured.
        weights: one per reading, -3 to 3; below 0 pushes away from that picture.
        muted: the same readings with their pictures muted in place, needed where :func:`needs_muted` says so.
        masks: per picture float ``(H, W)`` or None: only picture tokens covered by half or more stay.

    Raises:
        ValueError: for readings that do not fit together, another number of weights, weights that are not finite,
            outside -3 to 3 or all 0, muted readings that are needed and not given, or a mask that covers no token.
    """
    readings, weights = list(readings), [float(weight) for weight in weights]
    if not readings or len(readings) != len(weights):
        raise ValueError(f"weights: expected one per picture, got {len(weights)} for {len(readings)} pictures.")
    signed, zeros = _coefficients(method, weights)
    if muted is None and needs_muted(method, weights):
        raise ValueError(f"muted: {method} with weights {weights} is counted from the muted readings, got none.")
    words = [_words(reading, f"picture {number}") for number, reading in enumerate(readings, 1)]
    zero_words = None if muted is None else [_words(one, f"muted {n}") for n, one in enumerate(muted, 1)]
    _check_fit(readings, words, list(muted or ()), zero_words or [])

    # On the CPU: not every device has float64, and it makes one reading of weight 1 come out as it went in.
    x = [states.cpu().double() for states, _ in words]
    n = None if zero_words is None else [states.cpu().double() for states, _ in zero_words]
    shares = [abs(weight) / math.fsum(map(abs, weights)) for weight in weights]
    zero = None if n is None else _sum(shares, n)
    chosen = None
    if method == "max weight per token":
        mixed, zero, chosen = _strongest(x, n, signed)
    elif method == "norm average" and sum(weight != 0 for weight in weights) > 1:
        mixed = _sum(signed, [_unit(side) for side in x])
        if n is not None and any(zeros):
            mixed = mixed + _sum(zeros, [_unit(side) for side in n])
        mixed = mixed * _sum(shares, [_rms(side) for side in x])
    else:
        mixed = _sum(signed, x)
        if n is not None and any(zeros):
            mixed = mixed + _sum(zeros, n)

    first = readings[0]
    pooled = _pooling(signed)
    seen = _assemble(readings, to_dtype(mixed, first.states.dtype).to(first.states), words[0][1], pooled, masks)
    if zero is not None:
        zero = replace(first, states=to_dtype(zero, first.states.dtype).to(first.states), layout=words[0][1])
    return Combined(seen, zero, method, tuple(weights), tuple(pooled), chosen)


def _check_weights(weights: Sequence[float]) -> None:
    outside = [weight for weight in weights if not abs(weight) <= MAX_WEIGHT]  # NaN is outside too
    if outside:
        raise ValueError(f"weights: expected -{MAX_WEIGHT:g} (push away) to {MAX_WEIGHT:g}, got {outside[0]}.")


def _coefficients(method: Combination, weights: Sequence[float]) -> tuple[list[float], list[float]]:
    """What each x_i and each n_i is multiplied by in the methods that are sums."""
    check_choice("combine", method, Combination)
    _check_weights(weights)
    total = math.fsum(map(abs, weights))
    if not total:
        raise ValueError("weights: expected at least one that is not 0, or no picture counts.")
    if method == "add":
        signed = list(weights)
    elif method == "subtract":
        signed = [weight if index == 0 else -weight for index, weight in enumerate(weights)]
    elif method == "max weight per token":
        largest = max(map(abs, weights))
        signed = [weight / largest for weight in weights]
    else:
        signed = [weight / total for weight in weights]
    return signed, [abs(weight) / total - one for weight, one in zip(weights, signed, strict=True)]


def _words(reading: VLStates, name: str) -> tuple[Tensor, TokenLayout]:
    """States ``(K, T, D)`` outside the picture and its markers, and their layout."""
    if len(reading.layout.grids) != 1:
        raise ValueError(f"{name}: expected a reading of one picture, got {reading.layout.describe()}.")
    keep = reading.layout.mask(TokenRole.TEMPLATE, TokenRole.TEXT)
    return reading.states[:, keep.to(reading.states.device)], reading.layout.select(keep)


def _check_fit(
    readings: list[VLStates], words: list[tuple[Tensor, TokenLayout]], muted: list[VLStates],
    zero_words: list[tuple[Tensor, TokenLayout]],
) -> None:
    if muted and len(muted) != len(readings):
        raise ValueError(f"muted: expected one per picture, got {len(muted)} for {len(readings)} pictures.")
    first, layout = readings[0], words[0][1]
    for reading, (states, other) in zip([*readings, *muted], [*words, *zero_words], strict=True):
        ours, theirs = (
            (one.layers, one.num_layers, one.states.shape[-1]) for one in (first, reading)
        )
        if ours != theirs:
            raise ValueError(f"readings: expected the same layers, blocks and width in all, got {ours} and {theirs}.")
        if not torch.equal(layout.token_ids, other.token_ids):
            raise ValueError(
                f"readings: expected the same words in all, got {layout.describe()} and {other.describe()}. Read every "
                "picture with the same prompt."
            )
        if not states.isfinite().all():
            raise ValueError("readings: expected finite values, got NaN or infinity; the encoder overflowed.")


def _strongest(
    x: list[Tensor], n: list[Tensor] | None, signed: list[float]
) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
    """Per word the picture that moved it most by its weight: ``(mixed, zero, words decided by each)``."""
    if n is None:  # one picture, and it pushes nothing away
        index = signed.index(1.0)
        decided = [0] * len(x)
        decided[index] = x[index].shape[1]
        return x[index], None, tuple(decided)
    deltas = torch.stack([a - b for a, b in zip(x, n, strict=True)])  # (N, K, T, D)
    factor = torch.tensor(signed, dtype=torch.float64)[:, None, None]
    pull = factor.abs() * deltas.square().mean(-1).sqrt()
    pull[factor.flatten() == 0] = -1  # absent: not even the words that no picture moved are theirs
    strongest = pull.argmax(0)  # (K, T)
    at = strongest[None, ..., None].expand(1, *x[0].shape)
    ours, zero = (torch.stack(side).gather(0, at)[0] for side in (x, n))
    weight = factor.flatten()[strongest].unsqueeze(-1)
    mixed = torch.where(weight == 1, ours, zero + weight * (ours - zero))
    decided = torch.bincount(strongest[-1], minlength=len(x))
    return mixed, zero, tuple(decided.tolist())


def _pooling(signed: list[float]) -> list[int | None]:
    """Per picture the n of n × n tokens to average, None for pictures that are not there or pushed away."""
    largest = max(signed)
    return [max(1, round(largest / weight)) if weight > 0 else None for weight in signed]


def _assemble(
    readings: list[VLStates], words: Tensor, layout: TokenLayout, pooled: list[int | None],
    masks: Sequence[Tensor | None] | None,
) -> VLStates:
    """The combined words with every picture that stays put where pictures stand: before the user's words."""
    masks = [None] * len(readings) if masks is None else list(masks)
    if len(masks) != len(readings):
        raise ValueError(f"masks: expected one per picture or None, got {len(masks)} for {len(readings)} pictures.")
    blocks = []
    for number, (reading, factor, mask) in enumerate(zip(readings, pooled, masks, strict=True), 1):
        if factor is None:
            continue
        block = select_tokens(reading.states, reading.layout, "image", downsample=factor, mask=mask)
        if not block[1].grids:
            raise ValueError(f"masks: the mask of picture {number} covers no image token. Paint a larger area.")
        blocks.append(block)
    at = int(readings[0].layout.mask(TokenRole.MARKER).nonzero()[0])
    before = torch.arange(len(layout)) < at
    states = torch.cat([words[:, :at], *(block.to(words) for block, _ in blocks), words[:, at:]], 1)
    layouts = [layout.select(before), *(one for _, one in blocks), layout.select(~before)]
    return replace(readings[0], states=states, layout=concatenate_layouts(layouts, layout.source))


def _sum(factors: Sequence[float], sides: Sequence[Tensor]) -> Tensor:
    """Σ f_i·side_i, sides of factor 0 left out."""
    return torch.stack([factor * side for factor, side in zip(factors, sides, strict=True) if factor]).sum(0)


def _rms(side: Tensor) -> Tensor:
    return side.square().mean(-1, keepdim=True).sqrt()


def _unit(side: Tensor) -> Tensor:
    return side / _rms(side).clamp_min(EPSILON)
