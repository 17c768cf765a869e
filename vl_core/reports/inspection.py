"""What a sequence of states looks like: token scale by role, sinks, and how its dimensions compare with a reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..stages.outliers import get_outlier_dimensions
from ..states.families import ZIMAGE, Family
from ..states.layout import TokenLayout, TokenRole
from ..states.sinks import find_sinks
from ..states.statistics import ReferenceStatistics
from ..states.tensors import EPSILON, median, token_rms

CAPTION_MULTIPLE = 32  # Z-Image pads captions to a multiple of this (diffusers and ComfyUI)
CAPTION_LIMIT = 1504  # most caption tokens diffusers' ZImageTransformer2DModel has positions for
WORST_SHOWN = 4  # sinks, and outlier dimensions of each direction, named in a report; the rest are counted
MAP_SIDE = 512  # most rows of a cosine map: more tokens are pooled


@dataclass(frozen=True, eq=False)
class Inspection:
    """Figures about one sequence ``(L, D)``.

    Attributes:
        rms: float32 ``(L,)`` token RMS; NaN where a token is not finite.
        sinks: positions of attention sinks.
        non_finite: how many of the ``L·D`` values are NaN or infinite.
        ratio: float32 ``(D,)`` std of the sequence over std of the reference, sinks left out of both; None without a
            reference or with fewer than 2 ordinary tokens.
        outliers: ``(dimension, ratio)`` beyond ``threshold`` in either direction, largest first.
        mean_correlation, log_std_correlation: Pearson over dimensions with the reference; None as for ``ratio``.
        mean, std, reference_mean, reference_std: float32 ``(D,)``, sinks left out of both; None as for ``ratio``.
        cosine: float32 ``(P, P)``, see :func:`cosine_map`; ``cosine_step`` the tokens one of its rows stands for.
        family: whose image model reads these states.
    """

    tokens: int
    width: int
    layout: TokenLayout | None
    rms: Tensor
    sinks: tuple[int, ...]
    non_finite: int
    threshold: float
    ratio: Tensor | None = None
    outliers: tuple[tuple[int, float], ...] = ()
    mean_correlation: float | None = None
    log_std_correlation: float | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    reference_mean: Tensor | None = None
    reference_std: Tensor | None = None
    cosine: Tensor | None = None
    cosine_step: int = 1
    family: Family = ZIMAGE

    def rms_by_role(self) -> dict[str, float]:
        """Median token RMS per role without sinks and tokens that are not finite; only "tokens" without a layout."""
        ordinary = ~self.rms.isnan()
        ordinary[list(self.sinks)] = False
        groups = {"tokens": ordinary}
        if self.layout is not None:
            groups = {role.name.lower(): ordinary & self.layout.mask(role) for role in TokenRole}
        return {name: float(median(self.rms[chosen])) for name, chosen in groups.items() if chosen.any()}

    def describe(self) -> str:
        """The report, one finding a line."""
        padded = self.family.padded_to or -(-self.tokens // CAPTION_MULTIPLE) * CAPTION_MULTIPLE
        lines = [f"{self.tokens} tokens × {self.width} ({self.family.group} pads them to {max(padded, self.tokens)})"]
        if self.tokens > CAPTION_LIMIT and not self.family.padded_to:
            lines.append(f"Longer than the {CAPTION_LIMIT} caption tokens Z-Image has positions for: downsample.")
        if self.layout is not None:
            layer = "unknown" if self.layout.layer is None else str(self.layout.layer)
            lines.append(f"{self.layout.describe()}; layer {layer}, from {self.layout.source}")
        if self.non_finite:
            lines.append(f"{self.non_finite} values are NaN or infinite: the sampler would paint black.")
        if medians := self.rms_by_role():
            lines.append("median RMS: " + ", ".join(f"{name} {rms:.4g}" for name, rms in medians.items()))
        shown = ", ".join(f"{index} (RMS {self.rms[index]:.4g})" for index in self.sinks[:WORST_SHOWN])
        hidden = len(self.sinks) - WORST_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        lines.append(f"attention sinks at: {shown}{more}" if self.sinks else "no attention sinks")
        if self.ratio is not None:
            lines.append(
                f"against the reference: correlation of means {self.mean_correlation:.3f}, "
                f"of log std {self.log_std_correlation:.3f}, median std ratio {float(median(self.ratio)):.3g}"
            )
            lines.append(f"{len(self.outliers)} dimensions beyond {self.threshold:g}×" + self._outliers_by_direction())
        return "\n".join(lines)

    def _outliers_by_direction(self) -> str:
        """A line per direction: ``"2 narrower than the reference: 396 (617×), 4 (60×)"``; empty without outliers."""
        assert self.ratio is not None, "outliers are told beside the ratios"
        wider = [(index, ratio) for index, ratio in self.outliers if self.ratio[index] >= 1]
        narrower = [(index, ratio) for index, ratio in self.outliers if self.ratio[index] < 1]
        parts = []
        for found, how in ((wider, "wider than the reference"), (narrower, "narrower than the reference")):
            if found:
                named = ", ".join(f"{index} ({ratio:.3g}×)" for index, ratio in found[:WORST_SHOWN])
                parts.append(f"{len(found)} {how}: {named}" + (" …" if len(found) > WORST_SHOWN else ""))
        return "".join(f"\n  {part}" for part in parts)


def inspect(
    embeddings: Tensor,
    layout: TokenLayout | None = None,
    reference: ReferenceStatistics | None = None,
    threshold: float = 10.0,
    family: Family = ZIMAGE,
) -> Inspection:
    """Look at one sequence.

    Args:
        embeddings: ``(L, D)`` or ``(1, L, D)``, any float dtype; may hold NaN (that is reported, not refused).
        layout: of the ``L`` positions, if known.
        reference: what the encoder of Z-Image gives; without it nothing is compared.
        threshold: std ratio from which a dimension counts as an outlier, in either direction.
        family: whose states they are; of those that read several layers, one layer without padding.

    Raises:
        ValueError: for another shape, no tokens, a layout of another length, or a reference of another width.
    """
    if embeddings.ndim == 3 and embeddings.shape[0] == 1:
        embeddings = embeddings[0]
    if embeddings.ndim != 2 or not embeddings.shape[0]:
        raise ValueError(f"embeddings: expected shape (tokens, width), got {tuple(embeddings.shape)}.")
    tokens, width = embeddings.shape
    if layout is not None and len(layout) != tokens:
        raise ValueError(f"layout: expected {tokens} positions, got {len(layout)}.")
    x = embeddings.detach().float().cpu()
    finite = x.isfinite()
    rows = finite.all(-1)
    rms = token_rms(x)
    rms[~rows] = float("nan")
    clean = x[rows]
    own = layout and layout.select(rows)
    is_sink = find_sinks(clean, own)
    sinks = rows.nonzero().flatten()[is_sink]
    cosine, step = cosine_map(x)
    alone = Inspection(
        tokens=tokens, width=width, layout=layout, rms=rms, sinks=tuple(sinks.tolist()),
        non_finite=int((~finite).sum()), threshold=threshold, cosine=cosine, cosine_step=step, family=family,
    )
    if reference is None:
        return alone
    reference.check_width(width)
    ordinary = clean[~is_sink]
    if len(ordinary) < 2:
        return alone
    moments = reference.moments()
    ours, theirs = ordinary.std(0).clamp_min(EPSILON), moments.std.float().clamp_min(EPSILON)
    return replace(
        alone,
        ratio=ours / theirs,
        outliers=tuple(get_outlier_dimensions(clean, threshold, reference=reference, layout=own)),
        mean_correlation=pearson(ordinary.mean(0), moments.mean),
        log_std_correlation=pearson(ours.log(), theirs.log()),
        mean=ordinary.mean(0),
        std=ours,
        reference_mean=moments.mean.float(),
        reference_std=theirs,
    )


def cosine_map(tokens: Tensor, side: int = MAP_SIDE) -> tuple[Tensor, int]:
    """Cosine of every token with every other.

    Args:
        tokens: ``(L, D)``, any float dtype; a token that is all zero or not finite has no direction.
        side: most rows of the map.

    Returns:
        float32 ``(P, P)`` with ``P = ceil(L / step)``, NaN where there is no direction, and ``step``: how many
        consecutive tokens a row stands for, 1 up to ``side`` tokens. A pooled cell is the mean of its cosines.
    """
    unit = tokens.float().cpu()
    unit = unit / unit.norm(dim=-1, keepdim=True)  # 0/0 and NaN stay NaN
    unit[~unit.isfinite().all(-1)] = float("nan")
    step = max(1, -(-len(unit) // side))
    # The mean of a block's cosines is the product of its two means of unit vectors.
    pooled = torch.stack([block.nanmean(0) for block in unit.split(step)]) if step > 1 else unit
    return (pooled @ pooled.T).clamp(-1, 1), step


def pearson(a: Tensor, b: Tensor) -> float:
    """Correlation of two ``(D,)`` in float64; NaN if one of them is constant."""
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])
