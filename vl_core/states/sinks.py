"""Attention sinks: tokens hundreds of times larger than the rest, found and kept out of statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from .layout import TokenLayout, TokenRole
from .tensors import median, overall_std, token_rms

Sinks = Literal["exclude", "include"]
SINK_FACTOR = 8.0  # a sink's RMS exceeds this many medians; ordinary tokens stay within about 3
FEWEST = 3  # of two tokens neither is the ordinary one


def find_sinks(embeddings: Tensor, layout: TokenLayout | None = None) -> Tensor:
    """Which tokens are attention sinks: RMS > 8 × the median token RMS of their own kind (:func:`kinds_of_tokens`).

    Tokens of pictures are several times smaller than words, and most of a sequence: beside their median every word
    would be a sink.

    >>> find_sinks(torch.tensor([[900.0, 0.0], [3.0, 4.0], [4.0, 3.0], [5.0, 0.0]])).tolist()
    [True, False, False, False]

    Args:
        embeddings: ``(L, D)`` or ``(B, L, D)``, any float dtype.
        layout: of the ``L`` positions; without one all tokens are of one kind.

    Returns:
        boolean ``(L,)`` or ``(B, L)`` on the same device. Fewer than 3 tokens of a kind have no sinks: of two tokens
        neither is the ordinary one.

    Raises:
        ValueError: if the layout is of another length.
    """
    return sinks_among(token_rms(embeddings), layout)


def sinks_among(rms: Tensor, layout: TokenLayout | None = None) -> Tensor:
    """:func:`find_sinks` of tokens whose RMS ``(…, L)`` is known."""
    if layout is None:
        return _beyond_median(rms)
    if len(layout) != rms.shape[-1]:
        raise ValueError(f"layout: expected {rms.shape[-1]} positions, one per token, got {len(layout)}.")
    found = torch.zeros_like(rms, dtype=torch.bool)
    for places in _places_of_kinds(layout):
        places = places.to(rms.device)
        found[..., places] = _beyond_median(rms[..., places])
    return found


@lru_cache(maxsize=64)  # a layout never changes, and one sequence goes through many stages
@torch.inference_mode(False)  # what is kept may meet gradients later
def _places_of_kinds(layout: TokenLayout) -> list[Tensor]:
    """Indices of the tokens of each kind that is large enough to have sinks."""
    return [kind.nonzero().flatten() for kind in kinds_of_tokens(layout) if int(kind.sum()) >= FEWEST]


def kinds_of_tokens(layout: TokenLayout) -> list[Tensor]:
    """Tokens whose sizes can be compared: boolean ``(L,)`` masks that share no position.

    Words, the template with the markers, pictures, and padding. Markers are two to a picture, too few for a median of
    their own, and belong to the template. Of fewer than 3 words, or 3 template tokens, both are one kind.
    """
    padding = layout.padding()
    template = layout.mask(TokenRole.TEMPLATE, TokenRole.MARKER) & ~padding
    words = layout.mask(TokenRole.TEXT)
    apart = [words, template] if min(int(words.sum()), int(template.sum())) >= FEWEST else [words | template]
    return [*apart, layout.mask(TokenRole.IMAGE), padding]


def _beyond_median(rms: Tensor) -> Tensor:
    if rms.shape[-1] < FEWEST:
        return torch.zeros_like(rms, dtype=torch.bool)
    return rms > SINK_FACTOR * median(rms).unsqueeze(-1)


def check_sinks(sinks: str) -> None:
    """Raise ValueError unless ``sinks`` is "exclude" or "include"."""
    if sinks not in ("exclude", "include"):
        raise ValueError(f"sinks: expected 'exclude' or 'include', got {sinks!r}.")


def counted_tokens(embeddings: Tensor, sinks: Sinks, layout: TokenLayout | None = None) -> Tensor:
    """Which tokens statistics run over: boolean ``(L,)`` or ``(B, L)``, all or all but the sinks.

    Args:
        layout: see :func:`find_sinks`.

    Raises:
        ValueError: if ``sinks`` is neither "exclude" nor "include", or the layout is of another length.
    """
    return counted_among(token_rms(embeddings), sinks, layout)


def counted_among(rms: Tensor, sinks: Sinks, layout: TokenLayout | None = None) -> Tensor:
    """:func:`counted_tokens` of tokens whose RMS ``(…, L)`` is known."""
    check_sinks(sinks)
    return torch.ones_like(rms, dtype=torch.bool) if sinks == "include" else ~sinks_among(rms, layout)


@dataclass(frozen=True, eq=False)
class TokenSizes:
    """Mean and RMS of every token, float32 ``(B, L)`` on the CPU.

    All that a stage decides and reports by sinks, scope, global std and median RMS follows from these few numbers, so
    the tokens are read once and a GPU is waited for once.
    """

    mean: Tensor
    rms: Tensor

    @classmethod
    def of(cls, batch: Tensor) -> TokenSizes:
        """Of ``(B, L, D)``, any float dtype."""
        values = batch.detach().float()
        return cls(*torch.stack([values.mean(-1), token_rms(values)]).cpu())

    def global_std(self, batch: Tensor, counted: Tensor) -> float:
        """Unbiased std over all elements of the tokens ``counted`` ``(B, L)``; 0 for fewer than 2 elements.

        The mean square less the squared mean. Where the mean outweighs the spread that difference is rounding, and
        ``batch``, which these are the sizes of, is read again (:func:`overall_std`).
        """
        elements = int(counted.sum()) * batch.shape[-1]
        if elements < 2:
            return 0.0
        squared_mean = float(self.mean[counted].double().mean()) ** 2
        mean_square = float(self.rms[counted].double().square().mean())
        if squared_mean > mean_square / 2:
            return overall_std(batch[counted.to(batch.device)])
        return math.sqrt((mean_square - squared_mean) * elements / (elements - 1))

    def median_rms(self, counted: Tensor) -> float:
        """Median RMS of the tokens ``counted`` ``(B, L)``; 0 if there are none."""
        return float(median(self.rms[counted])) if counted.any() else 0.0
