"""Whether something resembles what a map was fitted on: its distance from a sample, next to the sample's own."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE = 1024  # rows kept to measure distances by
EXPLAINED = 0.95  # of the sample's variance lies along the leading directions
MAX_DIRECTIONS = 64
ROWS_PER_DIRECTION = 4  # a variance needs so many rows to be known
FOLDS = 5
LIMIT_QUANTILE, MARGIN = 0.99, 1.25  # further than this quantile of the held-out distances times this is unfamiliar
SMALL_STD = 1e-3  # of the median std
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Familiarity:
    """How far something is from a sample.

    Attributes:
        distance: 2 is ordinary: 1 for each of the two parts that :class:`FamiliarSpan` adds.
        quantile: share of the sample's own held-out distances below it.
        limit: the distance from which on it counts as unfamiliar.
    """

    distance: float
    quantile: float
    limit: float

    @property
    def familiar(self) -> bool:
        return self.distance <= self.limit

    def describe(self) -> str:
        """One line for people."""
        if self.familiar:
            return f"Picture like those of the fit (further out than {self.quantile:.0%} of them)."
        return (
            f"Picture unlike those of the fit: distance {self.distance:.1f}, {self.limit:.1f} would still be familiar. "
            "What the adapter says of it is a guess among the looks it knows; describe the picture in words instead, "
            "or add pictures like it to the fit."
        )


class Sample:
    """Up to ``size`` distinct rows of all that were shown, the same ones in whatever order and parts they came.

    The rows of lowest checksum stay (bottom-k sampling), so that merging two samples is sampling both.
    """

    def __init__(self, size: int = SAMPLE) -> None:
        self.size = size
        self._rows: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Tensor) -> None:
        """Show a row ``(width,)``; kept in float32."""
        row = row.detach().to("cpu", torch.float32, copy=True)
        self._rows[zlib.crc32(row.numpy().tobytes())] = row
        self._trim()

    def merge(self, other: Sample) -> None:
        self._rows.update(other._rows)
        self._trim()

    def _trim(self) -> None:
        while len(self._rows) > self.size:
            del self._rows[max(self._rows)]

    def rows(self) -> Tensor:
        """``(n, width)``, in the order of their checksums."""
        return torch.stack([self._rows[key] for key in sorted(self._rows)])

    @classmethod
    def of(cls, rows: Tensor, size: int = SAMPLE) -> Sample:
        sample = cls(size)
        for row in rows:
            sample.add(row)
        return sample


@dataclass(frozen=True, eq=False)
class FamiliarSpan:
    """A sample's leading principal directions, and how far its own rows are when they are left out.

    The distance is the mean over directions of (coordinate)²/variance, a Mahalanobis distance, plus what is left
    outside the directions over what is left of an ordinary row.

    Attributes:
        center, scale: float32 ``(width,)``: rows are standardised. ``directions``: ``(width, p)``.
        variances: ``(p,)``. ``residual``: the median held-out rest. ``distances``: of the sample's rows, ascending.
    """

    center: Tensor
    scale: Tensor
    directions: Tensor
    variances: Tensor
    residual: float
    distances: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> FamiliarSpan | None:
        """Of a sample ``(n, width)``; None for fewer than 10 rows, which say nothing about a next one."""
        if len(rows) < 2 * FOLDS:
            return None
        exact = rows.double()
        center, std = exact.mean(0), exact.std(0, correction=0)
        floor = float(SMALL_STD * std.median())
        # What varies less than float32 can hold apart counts as constant.
        scale = std.clamp_min(floor) if floor > TINY else torch.where(std > TINY, std, 1.0)
        exact = (exact - center) / scale
        fold, parts = torch.arange(len(rows)) % FOLDS, []
        for held in range(FOLDS):
            mean = exact[fold != held].mean(0)
            directions, variances = _leading(exact[fold != held] - mean)
            parts.append(_parts(exact[fold == held] - mean, directions, variances))
        along, rest = (torch.cat(kind) for kind in zip(*parts, strict=True))
        residual = float(rest.median())
        residual = residual if residual > TINY else 1.0
        directions, variances = _leading(exact)
        return cls(
            center.float(), scale.float(), directions.float(), variances.float(), residual,
            (along + rest / residual).sort().values.float(),
        )

    def __call__(self, row: Tensor) -> Familiarity:
        """Of one row ``(width,)``."""
        row = ((row.detach().cpu().double() - self.center) / self.scale)[None]
        along, rest = _parts(row, self.directions.double(), self.variances.double())
        distance = float(along + rest / self.residual)
        limit = MARGIN * float(torch.quantile(self.distances, LIMIT_QUANTILE))
        return Familiarity(distance, float((self.distances < distance).float().mean()), limit)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {name: getattr(self, name) for name in ("center", "scale", "directions", "variances", "distances")}
        return {**tensors, "residual": torch.tensor([self.residual], dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> FamiliarSpan:
        """What :meth:`tensors` gave.

        Raises:
            KeyError: if something is missing. ValueError: if the shapes contradict each other, or a scale or variance
                is not above 0.
        """
        names = ("center", "scale", "directions", "variances")
        center, scale, directions, variances = (tensors[name] for name in names)
        fits = center.shape == scale.shape and directions.shape == (len(center), len(variances))
        if not fits or not len(tensors["distances"]) or tensors["residual"].numel() != 1:
            raise ValueError("span: expected parts of one shape, got some that disagree.")
        if not (scale > 0).all() or not (variances > 0).all() or not float(tensors["residual"]) > 0:
            raise ValueError("span: expected scales and variances above 0, got others.")
        return cls(center, scale, directions, variances, float(tensors["residual"]), tensors["distances"])


def _leading(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Principal directions of centred rows ``(width, p)`` and the variances along them."""
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = values.sum()
    if not total > TINY:
        return rows.new_zeros(rows.shape[1], 0), rows.new_zeros(0)
    enough = int((values.cumsum(0) < EXPLAINED * total).sum()) + 1
    count = max(1, min(enough, MAX_DIRECTIONS, len(rows) // ROWS_PER_DIRECTION, int((values > 1e-10 * total).sum())))
    values, vectors = values[:count], vectors[:, :count]
    return rows.T @ vectors / values.sqrt(), values / len(rows)


def _parts(rows: Tensor, directions: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Per row its mean squared coordinate in units of the variance, and the energy outside the directions."""
    inside = rows @ directions
    along = (inside.square() / variances).mean(1) if len(variances) else rows.new_zeros(len(rows))
    return along, (rows.square().sum(1) - inside.square().sum(1)).clamp_min(0)
