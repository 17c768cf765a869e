"""Attention sinks, streaming per-dimension statistics, and the reference that VL states are brought onto.

A sink is a token that attention parks on: its state is hundreds of times larger than any other's in a few dimensions
("massive activations", arXiv 2402.17762). One sink among 22 tokens holds 98 % of the variance of Qwen3-4B's states at
layer -2, so statistics that include it describe that one token. Here sinks are found and counted apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from .counts import counted
from .files import check_content
from .headers import ReferenceHeader
from .sinks import Sinks, check_sinks, sinks_among
from .storage import read_tensors, take, write_tensors
from .tensors import ROWS_AT_A_TIME, all_finite, median, sum_tensors, token_rms, unit_rms

PUBLISHED_TARGET_STD = 61.0  # the research note's global std of Qwen3-4B at layer -2
PUBLISHED_CLIP = 3.0  # the note clips per-dimension z-scores here
ENCODER_LAYER = -2  # the hidden state Z-Image reads
BATCH_TOKENS = 2048  # texts read together, padding included: more gains nothing, a GPU is busy with these


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and summed squared deviations per dimension, in float64, merged exactly.

    The update is Chan, Golub and LeVeque's pairwise formula (Stanford STAN-CS-79-773), so the result does not depend
    on how tokens are grouped beyond rounding, and large means cost no precision.
    """

    count: int
    mean: Tensor  # float64 (D,)
    squares: Tensor  # float64 (D,): sum of (x - mean)^2

    @classmethod
    def empty(cls, width: int) -> Moments:
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    @classmethod
    def of(cls, tokens: Tensor) -> Moments:
        """Of ``(N, D)`` tokens, N may be 0."""
        if not len(tokens):
            return cls.empty(tokens.shape[-1])
        tokens = tokens.detach().cpu()
        mean = tokens.sum(0, dtype=torch.float64) / len(tokens)
        squares = torch.zeros_like(mean)
        for part in tokens.split(ROWS_AT_A_TIME):
            deviations = part.to(torch.float64, copy=True).sub_(mean)
            squares += deviations.mul_(deviations).sum(0)
        return cls(len(tokens), mean, squares)

    @classmethod
    def centring(cls, tokens: Tensor, left_out: Tensor | None = None) -> Moments:
        """Of float32 ``(N, D)`` on any device, of which only the deviations from the mean remain: **in place**.

        For a stage, which has one sequence and computes in float32; what is merged over many texts is summed by
        :meth:`of`. The mean is found twice, the second time of the deviations from the first, so a large mean costs no
        precision and a constant dimension has exactly its value as the mean and practically no std.

        Args:
            left_out: int64 rows that do not count; they become 0.
        """
        own = tokens.detach()
        left_out = torch.empty(0, dtype=torch.int64, device=own.device) if left_out is None else left_out
        count = len(own) - len(left_out)
        if not count:
            return cls.empty(own.shape[-1])
        mean = own.index_fill_(0, left_out, 0).sum(0) / count
        missed = own.sub_(mean).index_fill_(0, left_out, 0).sum(0) / count
        own.sub_(missed).index_fill_(0, left_out, 0)
        # A CPU waits longer for new memory as large as the states than for many small sums; a GPU for each call.
        parts = own.split(ROWS_AT_A_TIME) if own.device.type == "cpu" else [own]
        squares = sum_tensors(part.square().sum(0) for part in parts)
        mean, missed, squares = torch.stack([mean, missed, squares]).cpu().double()
        return cls(count, mean + missed, squares)

    def merge(self, other: Moments) -> Moments:
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        squares = self.squares + other.squares + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, squares)

    @property
    def std(self) -> Tensor:
        """Unbiased std per dimension, float64 ``(D,)``; NaN for fewer than 2 tokens, as in torch."""
        return (self.squares / (self.count - 1 if self.count > 1 else float("nan"))).sqrt()

    @property
    def global_mean(self) -> float:
        return float(self.mean.mean())

    @property
    def global_std(self) -> float:
        """Unbiased std over all ``count × D`` elements."""
        elements = self.count * self.mean.numel()
        between = self.count * (self.mean - self.mean.mean()).square().sum()
        return float(((self.squares.sum() + between) / (elements - 1)).sqrt()) if elements > 1 else float("nan")


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """What the states of Z-Image's own text encoder look like: the target that VL states are brought onto.

    Ordinary tokens and sinks are kept apart; ``"include"`` merges them, which reproduces published statistics.

    Attributes:
        ordinary, sinks: moments of the two groups over the width ``D``.
        rms: float32 ``(ordinary.count,)``, each ordinary token's RMS (kept, so that the median survives merging).
        encoder: identity of the encoder that was measured; ``layer`` its hidden-state index from the end.
        prompts: how many texts were read.
        unit_ordinary, unit_sinks: moments of the two groups after each token was divided by its RMS, as Z-Image sees
            them; both None in older files and published figures, from which they cannot be had.
    """

    ordinary: Moments
    sinks: Moments
    rms: Tensor
    encoder: str = ""
    layer: int | None = None
    prompts: int = 0
    unit_ordinary: Moments | None = None
    unit_sinks: Moments | None = None

    @classmethod
    def empty(cls, width: int, encoder: str = "", layer: int | None = None) -> ReferenceStatistics:
        none = Moments.empty(width)
        return cls(none, none, torch.zeros(0), encoder, layer, 0, none, none)

    @classmethod
    def of(cls, embeddings: Tensor, encoder: str = "", layer: int | None = None) -> ReferenceStatistics:
        """Of one text's states ``(L, D)`` or ``(1, L, D)``.

        Raises:
            ValueError: if the shape is another, or a value is not finite.
        """
        if embeddings.ndim == 3 and embeddings.shape[0] == 1:
            embeddings = embeddings[0]
        if embeddings.ndim != 2:
            raise ValueError(f"embeddings: expected shape (tokens, width), got {tuple(embeddings.shape)}.")
        if not all_finite(embeddings):
            raise ValueError("embeddings: expected finite values, got NaN or infinity; the encoder overflowed.")
        rms = token_rms(embeddings.detach()).cpu()
        is_sink = sinks_among(rms)
        ordinary, sinks = (embeddings[rows.nonzero().flatten().to(embeddings.device)] for rows in (~is_sink, is_sink))
        units = (Moments.of(unit_rms(group.detach().cpu().double())) for group in (ordinary, sinks))
        return cls(Moments.of(ordinary), Moments.of(sinks), rms[~is_sink], encoder, layer, 1, *units)

    @classmethod
    def from_published(
        cls, mean: Tensor, std: Tensor, count: int, encoder: str = "", layer: int | None = None
    ) -> ReferenceStatistics:
        """From per-dimension mean and std ``(D,)`` that somebody measured over ``count`` tokens, sinks mixed in.

        Nothing can take the sinks out again: both ``"exclude"`` and ``"include"`` give these numbers, and the median
        token RMS is unknown.
        """
        mean, std = mean.double(), std.double()
        ordinary = Moments(count, mean, std.square() * (count - 1))
        return cls(ordinary, Moments.empty(mean.numel()), torch.zeros(0), encoder, layer, 0)

    @property
    def width(self) -> int:
        return self.ordinary.mean.numel()

    def moments(self, sinks: Sinks = "exclude") -> Moments:
        """Of the ordinary tokens, or of all.

        Raises:
            ValueError: if ``sinks`` is neither "exclude" nor "include".
        """
        check_sinks(sinks)
        return self.ordinary if sinks == "exclude" else self.ordinary.merge(self.sinks)

    @property
    def median_rms(self) -> float:
        """Median RMS of the ordinary tokens; NaN if unknown."""
        return float(median(self.rms)) if len(self.rms) else float("nan")

    def merge(self, other: ReferenceStatistics) -> ReferenceStatistics:
        """Statistics of both sets of tokens.

        Raises:
            ValueError: if they come from different encoders, layers or widths.
        """
        ours, theirs = (self.encoder, self.layer, self.width), (other.encoder, other.layer, other.width)
        if ours != theirs:
            raise ValueError(f"Expected statistics of one (encoder, layer, width) to merge, got {ours} and {theirs}.")
        return ReferenceStatistics(
            self.ordinary.merge(other.ordinary), self.sinks.merge(other.sinks), torch.cat([self.rms, other.rms]),
            self.encoder, self.layer, self.prompts + other.prompts,
            _merged(self.unit_ordinary, other.unit_ordinary), _merged(self.unit_sinks, other.unit_sinks),
        )

    def check_width(self, width: int) -> None:
        """Raise ValueError unless embeddings of ``width`` can be compared with this reference."""
        if width != self.width:
            raise ValueError(
                f"reference: expected statistics of width {width}, got {self.width}. The reference was measured on "
                "another encoder; measure it on the text encoder of this workflow."
            )

    def describe(self) -> str:
        """Two lines for people: what was measured and what came out."""
        return (
            f"{counted(self.prompts, 'prompt')}, {counted(self.ordinary.count, 'token')} and "
            f"{counted(self.sinks.count, 'attention sink')}, width {self.width}, layer {self.layer}\n"
            f"median token RMS {self.median_rms:.2f}, std {self.moments().global_std:.2f} without attention sinks, "
            f"{self.moments('include').global_std:.2f} with them"
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write to a safetensors file."""
        tensors = {"rms": self.rms}
        groups = {"ordinary": self.ordinary, "sinks": self.sinks}
        if self.unit_ordinary is not None and self.unit_sinks is not None:
            groups |= {"unit_ordinary": self.unit_ordinary, "unit_sinks": self.unit_sinks}
        for name, moments in groups.items():
            tensors |= {f"{name}.mean": moments.mean, f"{name}.squares": moments.squares}
        header = {
            "encoder": self.encoder, "layer": self.layer, "prompts": self.prompts,
            "counts": [self.ordinary.count, self.sinks.count],
        }
        return write_tensors(path, "reference", tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike) -> ReferenceStatistics:
        """Read what :meth:`save` wrote; older files lack the moments of unit-RMS tokens.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_tensors`; also for shapes that disagree.
        """
        tensors, content = read_tensors(path, "reference")
        header = check_content(ReferenceHeader, content, Path(path).name)
        names = ["ordinary", "sinks"]
        if any(one.startswith("unit_") for one in tensors):
            names += ["unit_ordinary", "unit_sinks"]
        groups = [
            Moments(count, take(tensors, f"{name}.mean", path, 1), take(tensors, f"{name}.squares", path, 1))
            for name, count in zip(names, header.counts * (len(names) // 2), strict=True)
        ]
        rms = take(tensors, "rms", path, 1)
        reference = cls(groups[0], groups[1], rms, header.encoder, header.layer, header.prompts, *groups[2:])
        widths = {part.numel() for group in groups for part in (group.mean, group.squares)}
        if len(widths) != 1:
            raise ValueError(f"{Path(path).name}: expected one width throughout, got {sorted(widths)}.")
        return reference


def _merged(ours: Moments | None, theirs: Moments | None) -> Moments | None:
    """Of both; None if one is not known."""
    return None if ours is None or theirs is None else ours.merge(theirs)


def calibration_prompts() -> list[str]:
    """The built-in texts a reference is measured on: diverse in subject, length and language."""
    text = resources.files(__package__ or "").joinpath("calibration_prompts.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def length_batches(lengths: Sequence[int], most: int = BATCH_TOKENS) -> list[list[int]]:
    """Which texts to read together: indices of like lengths, so that little is padding.

    Args:
        lengths: tokens of each text.
        most: tokens a batch may hold once its texts are padded to the longest; one text always fits.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= most:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def calibrate(
    encode: Callable[[str], Tensor],
    prompts: Iterable[str] | None = None,
    *,
    encoder: str = "",
    layer: int | None = ENCODER_LAYER,
    progress: Callable[[], None] = lambda: None,
    encode_many: Callable[[list[str]], Iterable[Tensor]] | None = None,
) -> ReferenceStatistics:
    """Measure a text encoder.

    Args:
        encode: text -> its states ``(L, D)`` or ``(1, L, D)`` as Z-Image would get them.
        prompts: texts to read; the built-in ones by default.
        progress: called after each text; may raise to interrupt.
        encode_many: texts -> the states of each in their order; used in place of ``encode``, to read them in batches
            (:func:`length_batches`).

    Raises:
        ValueError: if there are no prompts, or the encoder gives values that are not finite.
    """
    total = None
    texts = calibration_prompts() if prompts is None else list(prompts)
    for states in map(encode, texts) if encode_many is None else encode_many(texts):
        part = ReferenceStatistics.of(states, encoder, layer)
        total = part if total is None else total.merge(part)
        progress()
    if total is None:
        raise ValueError("prompts: expected at least one text to measure the encoder on, got none.")
    return total
