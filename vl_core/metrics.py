"""What a sequence of states looks like: token scale by role, sinks, and how its dimensions compare with a reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import TokenLayout, TokenRole
from .outliers import get_outlier_dimensions
from .statistics import EPSILON, ReferenceStatistics, counted_tokens, find_sinks, median, token_rms

CAPTION_MULTIPLE = 32  # Z-Image pads captions to a multiple of this (diffusers and ComfyUI)
CAPTION_LIMIT = 1504  # most caption tokens diffusers' ZImageTransformer2DModel has positions for


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
        padded = -(-self.tokens // CAPTION_MULTIPLE) * CAPTION_MULTIPLE
        lines = [f"{self.tokens} tokens × {self.width} (Z-Image pads them to {padded})"]
        if self.tokens > CAPTION_LIMIT:
            lines.append(f"Longer than the {CAPTION_LIMIT} caption tokens Z-Image has positions for: downsample.")
        if self.layout is not None:
            layer = "unknown" if self.layout.layer is None else str(self.layout.layer)
            lines.append(f"{self.layout.describe()}; layer {layer}, from {self.layout.source}")
        if self.non_finite:
            lines.append(f"{self.non_finite} values are NaN or infinite: the sampler would paint black.")
        if medians := self.rms_by_role():
            lines.append("median RMS: " + ", ".join(f"{name} {rms:.4g}" for name, rms in medians.items()))
        shown = ", ".join(f"{index} (RMS {self.rms[index]:.4g})" for index in self.sinks[:4])
        more = f" and {len(self.sinks) - 4} more" if len(self.sinks) > 4 else ""
        lines.append(f"attention sinks at: {shown}{more}" if self.sinks else "no attention sinks")
        if self.ratio is not None:
            lines.append(
                f"against the reference: correlation of means {self.mean_correlation:.3f}, "
                f"of log std {self.log_std_correlation:.3f}, median std ratio {float(median(self.ratio)):.3g}"
            )
            worst = ", ".join(f"{index} ({_times(float(self.ratio[index]))})" for index, _ in self.outliers[:4])
            lines.append(
                f"{len(self.outliers)} dimensions beyond {self.threshold:g}×" + (f", worst {worst}" if worst else "")
            )
        return "\n".join(lines)


def inspect(
    embeddings: Tensor,
    layout: TokenLayout | None = None,
    reference: ReferenceStatistics | None = None,
    threshold: float = 10.0,
) -> Inspection:
    """Look at one sequence.

    Args:
        embeddings: ``(L, D)`` or ``(1, L, D)``, any float dtype; may hold NaN (that is reported, not refused).
        layout: of the ``L`` positions, if known.
        reference: what the encoder of Z-Image gives; without it nothing is compared.
        threshold: std ratio from which a dimension counts as an outlier, in either direction.

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
    sinks = rows.nonzero().flatten()[find_sinks(clean)] if len(clean) else torch.empty(0, dtype=torch.int64)
    figures = dict(
        tokens=tokens, width=width, layout=layout, rms=rms, sinks=tuple(sinks.tolist()),
        non_finite=int((~finite).sum()), threshold=threshold,
    )
    if reference is None:
        return Inspection(**figures)
    reference.check_width(width)
    ordinary = clean[counted_tokens(clean, "exclude")] if len(clean) else clean
    if len(ordinary) < 2:
        return Inspection(**figures)
    ours, theirs = ordinary.std(0).clamp_min(EPSILON), reference.moments().std.float().clamp_min(EPSILON)
    return Inspection(
        **figures,
        ratio=ours / theirs,
        outliers=tuple(get_outlier_dimensions(clean, threshold, reference=reference)),
        mean_correlation=_pearson(ordinary.mean(0), reference.moments().mean.float()),
        log_std_correlation=_pearson(ours.log(), theirs.log()),
    )


def _pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def _times(ratio: float) -> str:
    """A std ratio in words people can compare: ``"42× larger"``, ``"617× smaller"``."""
    return f"{ratio:.3g}× larger" if ratio >= 1 else f"{1 / ratio:.3g}× smaller"
