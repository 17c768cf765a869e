"""What is measured of one layer's tokens: their own spread, and likeness with a reference or with the text, token by
token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..stages.alignment import align
from ..states.layout import TokenLayout
from ..states.sinks import find_sinks
from ..states.statistics import Moments, ReferenceStatistics
from ..states.tensors import EPSILON, check_layout, median, paired_batches, to_float64, unit_rms
from ..states.vl_states import VLStates
from .inspection import pearson


def effective_rank(tokens: Tensor) -> float:
    """How many directions the tokens spread along: ``exp(−Σ p ln p)``, ``p = σ²/Σσ²``.

    σ are the singular values of ``(N, D)`` after each dimension's mean is taken off, so it runs from 1 (all on a line)
    to min(N − 1, D) (evenly spread). Roy and Vetterli, EUSIPCO 2007, there with σ in place of σ². NaN for fewer than 2
    tokens or no spread.
    """
    if len(tokens) < 2:
        return math.nan
    centred = to_float64(tokens) - to_float64(tokens).mean(0)
    gram = centred @ centred.T if len(centred) <= centred.shape[1] else centred.T @ centred
    energy = torch.linalg.eigvalsh(gram).clamp_min(0)
    total = energy.sum()
    if not total > EPSILON**2:
        return math.nan
    share = energy / total
    return float(torch.special.entr(share).sum().exp())


def frechet_distance(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians of diagonal covariance: ``Σ (m − m')² + (s − s')²`` over ``(D,)``.

    Dowson and Landau 1982, as in FID (arXiv 1706.08500), which squares it too; what dimensions have to do with one
    another is left out, because a prompt has far fewer tokens than dimensions.
    """
    means, stds = mean.double() - other_mean.double(), std.double() - other_std.double()
    return float(means.square().sum() + stds.square().sum())


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Likeness of two representations of the same tokens, ``(N, D)`` and ``(N, D')``: 1 if one is the other rotated,
    scaled or shifted, near 0 (a little below, too) if they have nothing in common.

    Linear centred kernel alignment (arXiv 1905.00414) with the unbiased estimator of Song et al. (JMLR 13, 2012): the
    plain one comes out near 1 for any two sets of fewer tokens than dimensions. NaN for fewer than 4 tokens or no
    spread.
    """
    if len(x) < 4:
        return math.nan
    first, second = (_unbiased_centred(side) for side in (x, y))
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return float((first * second).sum() / scale) if scale > 0 else math.nan


class Pairs(NamedTuple):
    """The text's states and where the VL sequence carries the same tokens."""

    text: Tensor  # float64 (T, D)
    is_sink: Tensor
    positions: Tensor  # int64 (T,)


def pair_tokens(seen: VLStates, text: Tensor, text_layout: TokenLayout | None) -> Pairs:
    """Which VL token carries which token of the text, ``(T, D)`` or ``(1, T, D)``.

    Raises:
        ValueError: for a batch, another width, or other words.
    """
    if text.ndim == 3 and len(text) != 1:
        raise ValueError(f"text: expected one sequence, got a batch of {len(text)}.")
    y = paired_batches(text, seen.states[:1], "states")[0][0]
    check_layout("text", text_layout, y)
    indices = torch.arange(len(seen.layout)).view(1, -1, 1)  # aligning the indices tells where tokens come from
    positions = align(indices, len(y), text_layout, seen.layout, otherwise="").flatten()
    y = to_float64(y)
    return Pairs(y, find_sinks(y, text_layout), positions)


def targets_of(reference: ReferenceStatistics | None, pairs: Pairs | None) -> dict[tuple[str, str], Moments]:
    """What to compare with by space and sinks: the reference, else the paired text; empty without anything."""
    parts = {}
    if reference is not None:
        parts["raw"] = reference.ordinary, reference.sinks
        if reference.unit_ordinary is not None and reference.unit_sinks is not None:
            parts["dit"] = (reference.unit_ordinary, reference.unit_sinks)
    elif pairs is not None:
        for space, tokens in (("raw", pairs.text), ("dit", unit_rms(pairs.text))):
            parts[space] = Moments.of(tokens[~pairs.is_sink]), Moments.of(tokens[pairs.is_sink])
    targets = {}
    for space, (ordinary, sinks) in parts.items():
        targets |= {(space, "exclude"): ordinary, (space, "include"): ordinary.merge(sinks)}
    return {key: moments for key, moments in targets.items() if moments.count > 1}


def against(mean: Tensor, std: Tensor, target: Moments, threshold: float) -> dict[str, float | int]:
    """Figures of moments ``(D,)`` beside the target's; ``threshold`` is the std ratio of an outlier."""
    std, expected = std.clamp_min(EPSILON), target.std.clamp_min(EPSILON)
    ratio = std / expected
    return {
        "mean_correlation": pearson(mean, target.mean),
        "log_std_correlation": pearson(std.log(), expected.log()),
        "std_ratio": float(median(ratio)),
        "wider": int((ratio > threshold).sum()),
        "narrower": int((1 / ratio > threshold).sum()),
        "frechet": frechet_distance(mean, std, target.mean, expected),
    }


def token_by_token(tokens: Tensor, is_sink: Tensor, pairs: Pairs, space: str, sinks: str) -> dict[str, float]:
    """Linear CKA and mean cosine with the text, over the tokens that both have."""
    positions = pairs.positions.to(tokens.device)
    x = tokens[positions]
    y = (pairs.text if space == "raw" else unit_rms(pairs.text)).to(x.device)
    if sinks == "exclude":
        keep = ~(is_sink[positions] | pairs.is_sink.to(x.device))
        x, y = x[keep], y[keep]
    cosine = torch.cosine_similarity(x, y, dim=-1).mean() if len(x) else torch.tensor(math.nan)
    return {"cka": linear_cka(x, y), "cosine": float(cosine)}


def _unbiased_centred(tokens: Tensor) -> Tensor:
    """The U-centred Gram matrix (Székely and Rizzo 2014), whose inner products are the unbiased HSIC."""
    tokens = to_float64(tokens) - to_float64(tokens).mean(0)
    gram = tokens @ tokens.T
    gram.fill_diagonal_(0)
    count = len(gram)
    means = gram.sum(0) / (count - 2)
    means -= means.sum() / (2 * (count - 1))
    gram = gram - means[:, None] - means[None]
    return gram.fill_diagonal_(0)
