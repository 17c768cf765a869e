"""A linear map with its report, and how it is applied."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..states.tensors import sum_tensors

COLUMNS = 4096  # columns of the rows that are in float64 at one time
TRUST = (0.05, 0.999)  # held-out R² is taken to lie in here when parts are put together
ROUNDS = 4  # on the miniature a mixed tail's error is .255 after none, .224, .214 after two, .204, and .198 after 8
Groups = Mapping[str, slice]  # names of parts of the targets


@dataclass(frozen=True)
class RidgeReport:
    """How a map was chosen and how it does on pairs that it was not fitted on.

    Attributes:
        pairs: how many were added.
        penalty: λ. ``rank``: directions kept.
        r2: 1 − held-out error / held-out spread about the training mean; NaN if nothing could be held out.
        r2_by: the same per group of targets.
        curve: (penalty, r2) of all penalties tried, at full rank. ``rank_curve``: (rank, r2) at the penalty chosen.
        lost: share of the pairs' energy given up to stay within the memory.
    """

    pairs: int
    penalty: float
    rank: int
    r2: float
    r2_by: dict[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    rank_curve: tuple[tuple[int, float], ...] = ()
    lost: float = 0.0

    def describe(self) -> str:
        """One line for people."""
        parts = "".join(f", {name} {value:.2f}" for name, value in self.r2_by.items())
        lost = f"; {self.lost:.1%} of the pairs' energy was given up to save memory" if self.lost > 0.0005 else ""
        return (
            f"{self.pairs} pairs, penalty {self.penalty:.3g}, rank {self.rank}, held-out R² {self.r2:.3f}{parts}{lost}"
        )


@dataclass(frozen=True, eq=False)
class RidgeMap:
    """t ≈ ``offset`` + (x − ``center``)·``left``·``right``.

    Attributes:
        center: float32 ``(inputs,)``; ``left`` ``(inputs, r)``; ``right`` ``(r, targets)``; ``offset`` ``(targets,)``.
    """

    center: Tensor
    left: Tensor
    right: Tensor
    offset: Tensor
    report: RidgeReport
    _spoken: dict[tuple, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, x: Tensor) -> Tensor:
        """``(n, inputs)`` or ``(inputs,)`` -> float32 ``(n, targets)`` or ``(targets,)``."""
        if x.shape[-1] != len(self.center):
            raise ValueError(f"x: expected {len(self.center)} inputs, got {x.shape[-1]}.")
        parts = (part.to(x.device) for part in (self.center, self.left, self.right, self.offset))
        center, left, right, offset = parts
        return offset + (x.float() - center) @ left @ right

    def coordinates(self, x: Tensor) -> Tensor:
        """(x − ``center``)·``left``, float32 ``(…, r)``: all of x that the map reads."""
        return (x.float() - self.center.to(x.device)) @ self.left.to(x.device)

    def spoken(self, parts: Sequence[slice]) -> Tensor:
        """Which share of the coordinates each part of the targets speaks of: M_s, float64 ``(parts, r, r)``.

        Parts of different x, each out of its own context, are put together to z = Σ M_s·z_s. The coordinates have
        about the covariance I/n over the fit's n pairs, and a part is t_s = R_sᵀz + ε_s, so the most likely z is
        (Σ A_s + n·σ²·I)⁻¹ Σ A_s·z_s with A_s = σ²·R_s·N_s⁻¹·R_sᵀ. N_s is the covariance of ε_s: σ², which is what
        held-out R² leaves, and what the rest of its own x has written into the part, R_sᵀ(I − M_s)(I − M_s)ᵀR_s/n,
        since a word's state depends on the words before it. N_s needs M_s, so this is repeated.

        Kept once found: at full size it takes a few seconds.

        Raises:
            ValueError: for no part.
        """
        key = tuple((part.start, part.stop) for part in parts)
        if not key:
            raise ValueError("parts: expected at least one, got none.")
        if key not in self._spoken:
            columns = [range(*part.indices(self.right.shape[1])) for part in parts]
            grams = [sum_products([self.right], each, self.right.device) for each in columns]
            low, high = TRUST
            trust = min(max(self.report.r2, low), high) if math.isfinite(self.report.r2) else low
            numbers = sum(map(len, columns))
            noise = float(sum_tensors(grams).trace()) * (1 - trust) / (trust * numbers) or 1.0  # n·σ²
            one = torch.eye(len(grams[0]), dtype=torch.float64, device=self.right.device)
            heard = grams
            for _ in range(ROUNDS):
                shares = torch.linalg.solve(sum_tensors(heard) + noise * one, torch.stack(heard))
                rest = one - shares
                context = rest @ rest.mT / noise
                heard = [gram @ torch.linalg.inv(one + each @ gram) for gram, each in zip(grams, context, strict=True)]
            self._spoken[key] = torch.linalg.solve(sum_tensors(heard) + noise * one, torch.stack(heard))
        return self._spoken[key]

    def tensors(self) -> dict[str, Tensor]:
        return {"center": self.center, "left": self.left, "right": self.right, "offset": self.offset}


def in_chunks(rows: Sequence[Tensor], columns: range, device: str | torch.device = "cpu") -> Iterator[Tensor]:
    """The rows' columns in float64, :data:`COLUMNS` at a time."""
    for start in range(columns.start, columns.stop, COLUMNS):
        stop = min(start + COLUMNS, columns.stop)
        yield torch.cat([block[:, start:stop] for block in rows]).to(device).double()


def sum_products(rows: Sequence[Tensor], columns: range, device: str | torch.device = "cpu") -> Tensor:
    """Scalar products of all rows with each other over some columns, float64."""
    return sum_tensors(chunk @ chunk.T for chunk in in_chunks(rows, columns, device))


def combine_maps(weights: Tensor, rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Weighted sums of rows ``(k, n)·(n, columns)``, chunk by chunk over all columns."""
    for chunk in in_chunks(rows, range(0, rows[0].shape[1])):
        yield weights @ chunk
