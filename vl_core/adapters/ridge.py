"""Ridge regression from sums that can be merged, saved and resumed, with its penalty and rank chosen by held-out error.

Every pair (x, t) of weight w becomes one row √w·[1 | x | t]. While there are fewer rows than inputs the rows are the
cheapest form that knows everything (the normal equations of 15 000 inputs and 60 000 targets would take 9 GB); with
more, they are folded into float64 sums. Where the sums would not fit, rows are replaced by fewer rows of nearly the
same products (a merge-and-reduce sketch, Ghashami et al., arXiv 1501.01711). All of it is kept per fold, so the error
on each fold of the map fitted on the others is exact, and no pair has to be read twice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .outliers import to_dtype
from .storage import read_tensors, write_tensors

FOLDS = 5
BUDGET = 512 * 2**20  # bytes of rows or sums that are kept
BLOCK = 256  # rows that wait before they are folded into the sums
COLUMNS = 4096  # columns of the rows that are in float64 at one time
MAX_RANK = 512  # directions a map keeps unless told otherwise: at full size they take 160 MB
PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(-12, 5))  # in units of the mean eigenvalue
TRUST = (0.05, 0.999)  # held-out R² is taken to lie in here when parts are put together
ROUNDS = 4  # on the miniature a mixed tail's error is .255 after none, .224, .214 after two, .204, and .198 after 8
SMALL_STD = 1e-3  # of the median std: narrower inputs are not blown up any further
NEGLIGIBLE = 1e-10  # of the largest eigenvalue: rounding, not a direction

Groups = Mapping[str, slice]  # names of parts of the targets


@dataclass(eq=False)
class _Fold:
    """What one fold knows: rows that wait, ``(n, 1 + inputs + targets)`` each, and sums of the others."""

    count: int = 0
    rows: list[Tensor] = field(default_factory=list)
    gram: Tensor | None = None  # float64 (1 + inputs, 1 + inputs)
    cross: Tensor | None = None  # float64 (1 + inputs, targets)
    squares: Tensor | None = None  # float64 (targets,)

    @property
    def waiting(self) -> int:
        return sum(len(block) for block in self.rows)


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Training and held-out products in the eigenbasis of the training inputs.

    Attributes:
        values: eigenvalues ``(r,)`` of XᵀX, X centred and scaled; V its eigenvectors.
        energy: per group VᵀXᵀT·TᵀXV ``(r, r)``.
        gram: VᵀX'ᵀX'V ``(r, r)`` of the held-out X'. ``cross``: per group VᵀX'ᵀT'·TᵀXV.
        total: per group the held-out targets' summed squares about the training mean.
    """

    values: Tensor
    energy: dict[str, Tensor]
    gram: Tensor
    cross: dict[str, Tensor]
    total: dict[str, float]

    def error(self, group: str, penalty: float) -> float:
        """Summed squared held-out error of the ridge map."""
        shrink = 1 / (self.values + penalty)
        fitted = torch.einsum("a,ab,ab,b->", shrink, self.gram, self.energy[group], shrink)
        return float(self.total[group] - 2 * (shrink * self.cross[group].diagonal()).sum() + fitted)

    def error_within(self, group: str, basis: Tensor) -> float:
        """The same of the map restricted to the first columns of :func:`_basis`."""
        fitted = ((basis.T @ self.gram @ basis) * (basis.T @ self.energy[group] @ basis)).sum()
        return float(self.total[group] - 2 * ((basis.T @ self.cross[group]) * basis.T).sum() + fitted)


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
            grams = [_products([self.right], each, self.right.device) for each in columns]
            low, high = TRUST
            trust = min(max(self.report.r2, low), high) if math.isfinite(self.report.r2) else low
            numbers = sum(map(len, columns))
            noise = float(sum(grams).trace()) * (1 - trust) / (trust * numbers) or 1.0  # n·σ²
            one = torch.eye(len(grams[0]), dtype=torch.float64, device=self.right.device)
            heard = grams
            for _ in range(ROUNDS):
                shares = torch.linalg.solve(sum(heard) + noise * one, torch.stack(heard))
                rest = one - shares
                context = rest @ rest.mT / noise
                heard = [gram @ torch.linalg.inv(one + each @ gram) for gram, each in zip(grams, context, strict=True)]
            self._spoken[key] = torch.linalg.solve(sum(heard) + noise * one, torch.stack(heard))
        return self._spoken[key]

    def tensors(self) -> dict[str, Tensor]:
        return {"center": self.center, "left": self.left, "right": self.right, "offset": self.offset}


class NormalEquations:
    """A ridge regression that is still being fed; see the module's docstring.

    Args:
        inputs, targets: widths of x and t.
        folds: pairs are dealt to that many folds in turn, unless :meth:`add` is told; each is held out once.
        budget: bytes that rows or sums may take.
    """

    def __init__(self, inputs: int, targets: int, *, folds: int = FOLDS, budget: int = BUDGET) -> None:
        if min(inputs, targets) < 1 or folds < 2:
            raise ValueError(f"Expected at least 1 input, 1 target and 2 folds, got {inputs}, {targets} and {folds}.")
        self.inputs, self.targets, self.budget = inputs, targets, budget
        self.lost = self.kept = 0.0  # energy given up, and energy there was when it was
        self._folds = [_Fold() for _ in range(folds)]

    @property
    def folds(self) -> int:
        return len(self._folds)

    @property
    def pairs(self) -> int:
        return sum(part.count for part in self._folds)

    @property
    def nbytes(self) -> int:
        """Memory that rows and sums take now."""
        blocks = [block for part in self._folds for block in (*part.rows, part.gram, part.cross, part.squares)]
        return sum(block.nbytes for block in blocks if block is not None)

    def add(self, x: Tensor, t: Tensor, weight: float | Tensor = 1.0, fold: int | None = None) -> None:
        """Take in pairs.

        Args:
            x: ``(n, inputs)``, or one pair ``(inputs,)``; ``t`` likewise. Kept in float32.
            weight: 0 or more, one number or one per pair ``(n,)``: a pair of weight 2 counts as two.
            fold: where all of them go: pairs that belong together (one text's tokens, one picture's copies) must
                share a fold, or the held-out error is flattered. In turn if None.

        Raises:
            ValueError: for other shapes, a negative weight, values that are not finite.
        """
        x, t = (part.detach().unsqueeze(0) if part.ndim == 1 else part.detach() for part in (x, t))
        if x.ndim != 2 or t.ndim != 2 or x.shape != (len(t), self.inputs) or t.shape[1] != self.targets:
            raise ValueError(
                f"Expected pairs of shape (n, {self.inputs}) and (n, {self.targets}), got {tuple(x.shape)} and "
                f"{tuple(t.shape)}."
            )
        weights = torch.as_tensor(weight, dtype=torch.float64).cpu().expand(len(x))
        if not (weights.isfinite() & (weights >= 0)).all():
            raise ValueError(f"weight: expected 0 or more, got {float(weights.nan_to_num(-1.0).min())}.")
        for name, part in (("x", x), ("t", t)):
            if not part.isfinite().all():
                raise ValueError(f"{name}: expected finite values, got NaN or infinity; the encoder overflowed.")
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        rows = torch.cat([ones, x.cpu().double(), t.cpu().double()], 1) * weights.sqrt().unsqueeze(1)
        rows = to_dtype(rows, torch.float32)
        places = torch.arange(len(x)) + self.pairs if fold is None else torch.full((len(x),), fold)
        for place in (places % self.folds).unique().tolist():
            chosen = (places % self.folds == place) & (weights > 0)
            if chosen.any():
                self._folds[place].count += int(chosen.sum())
                self._folds[place].rows.append(rows[chosen])
        self._settle()

    def merge(self, other: NormalEquations) -> None:
        """Take in all that another one knows, fold by fold.

        Raises:
            ValueError: if it has other widths or another number of folds.
        """
        ours, theirs = (self.inputs, self.targets, self.folds), (other.inputs, other.targets, other.folds)
        if ours != theirs:
            raise ValueError(f"Expected sums of the same (inputs, targets, folds), got {ours} and {theirs}.")
        for part, extra in zip(self._folds, other._folds, strict=True):
            part.count += extra.count
            part.rows += extra.rows
            for name in ("gram", "cross", "squares"):
                mine, new = getattr(part, name), getattr(extra, name)
                if new is not None:
                    setattr(part, name, new.clone() if mine is None else mine + new)
        self.lost, self.kept = self.lost + other.lost, self.kept + other.kept
        self._settle()

    # ------------------------------------------------------------------------------------------------ memory

    @property
    def _summed(self) -> bool:
        return any(part.gram is not None for part in self._folds)

    def _settle(self) -> None:
        """Fold waiting rows into sums once these are smaller, or reduce them once they fill the budget."""
        waiting = sum(part.waiting for part in self._folds)
        width = 1 + self.inputs + self.targets
        sums = 8 * self.folds * (1 + self.inputs) * width
        if sums <= self.budget or self._summed:
            enough = BLOCK if self._summed else max(BLOCK, self.inputs + 1)
            if waiting > enough:
                self._fold_in()
        elif 4 * waiting * width > self.budget:
            self._reduce(self.budget // (8 * width))

    def _fold_in(self) -> None:
        for part in self._folds:
            if part.rows:
                part.gram, part.cross, part.squares = self._sums(part)
                part.rows = []

    def _sums(self, part: _Fold) -> tuple[Tensor, Tensor, Tensor]:
        """gram, cross and squares of a fold, its waiting rows included."""
        split, width = 1 + self.inputs, 1 + self.inputs + self.targets
        zeros = torch.zeros(split, width, dtype=torch.float64)
        gram, cross = (zeros[:, :split], zeros[:, split:]) if part.gram is None else (part.gram, part.cross)
        squares = zeros[0, split:] if part.squares is None else part.squares
        if part.rows:
            rows = torch.cat(part.rows).double()
            x, t = rows[:, :split], rows[:, split:]
            gram, cross, squares = gram + x.T @ x, cross + x.T @ t, squares + t.square().sum(0)
        return gram, cross, squares

    def _reduce(self, total: int) -> None:
        """Keep ``total`` rows whose products are nearest to those of all.

        The row along the column of ones stays, so counts and means stay exact; of the others the principal
        directions of [x | t] stay, both sides weighed to equal energy.
        """
        total = max(total, 4 * self.folds)
        everything = sum(part.waiting for part in self._folds)
        for part in self._folds:
            room = total * part.waiting // everything
            if not room or part.waiting <= room:
                continue
            ones = torch.cat([block[:, 0] for block in part.rows]).double()
            along = ones / ones.norm()
            products = []
            for columns in (range(1, 1 + self.inputs), range(1 + self.inputs, 1 + self.inputs + self.targets)):
                side = _products(part.rows, columns)
                side = side - torch.outer(along, along @ side)
                side = side - torch.outer(side @ along, along)
                products.append(side / side.trace().clamp_min(torch.finfo(side.dtype).tiny))
            values, vectors = torch.linalg.eigh(sum(products))
            self.lost += float(values[: len(values) + 1 - room].clamp_min(0).sum()) * part.count
            self.kept += float(values.sum()) * part.count
            keep = torch.cat([along.unsqueeze(1), vectors[:, 1 - room :]], 1) if room > 1 else along.unsqueeze(1)
            part.rows = [torch.cat([chunk.float() for chunk in _combined(keep.T, part.rows)], 1)]

    # ----------------------------------------------------------------------------------------------- solving

    def solve(
        self,
        penalty: float | Literal["auto"] = "auto",
        rank: int | Literal["auto"] | None = None,
        *,
        groups: Groups | None = None,
        device: str | torch.device = "cpu",
        progress: Callable[[], None] = lambda: None,
    ) -> RidgeMap:
        """min Σ w·|t − b − x·W|² + λ·|S·W|², S the inputs' std: inputs count alike whatever their scale.

        A lower rank is reduced-rank ridge regression (Mukherjee and Zhu 2011): of W the part that spans the principal
        directions of the fitted values.

        Args:
            penalty: λ for standardised inputs, or "auto": of 17 between 1e-6 and 1e2 mean eigenvalues the one of
                lowest held-out error.
            rank: how many directions to keep; "auto" for the number of lowest held-out error; None for all, at most
                :data:`MAX_RANK`.
            groups: parts of the targets that are scored apart; they must not overlap.
            device: where to compute.
            progress: called after each fold; may raise to interrupt.

        Raises:
            ValueError: for a penalty below 0, a rank below 1, fewer than 2 pairs, or "auto" with a single fold.
        """
        if self.pairs < 2:
            raise ValueError(f"Expected at least 2 pairs to fit a map on, got {self.pairs}.")
        if penalty != "auto" and not penalty >= 0:
            raise ValueError(f"penalty: expected auto, or 0 and more, got {penalty}.")
        if rank not in (None, "auto") and rank < 1:
            raise ValueError(f"rank: expected auto, none, or 1 and more, got {rank}.")
        known = _Summed(self, device) if self._summed else _Rows(self, device)
        parts = {"": slice(0, self.targets)} if groups is None else dict(groups)
        filled = [index for index, part in enumerate(self._folds) if part.count]
        if "auto" in (penalty, rank) and len(filled) < 2:
            raise ValueError("Expected pairs in at least 2 folds to choose by held-out error, got 1. Give more pairs.")
        tried = tuple(known.mean_eigenvalue() * ratio for ratio in PENALTIES) if penalty == "auto" else (penalty,)
        curve, errors, totals = (), None, {}
        if len(filled) > 1:
            errors, totals = self._held_out(known, parts, filled, tried, progress)
            curve = _scores(tried, errors, totals)
        best = max(range(len(curve)), key=lambda index: curve[index][1], default=0)
        penalty, rank_curve = tried[best], ()
        most = min(self.pairs - 1, self.inputs)
        if rank is None and most > MAX_RANK:
            rank = MAX_RANK
        if rank is not None:
            asked = _ranks(most) if rank == "auto" else (int(rank),)
            if len(filled) > 1:
                errors, totals = self._held_out(known, parts, filled, (penalty,), progress, asked)
                rank_curve = _scores(asked, errors, totals)
            best = max(range(len(rank_curve)), key=lambda index: rank_curve[index][1], default=0)
            rank = asked[best]
        found = known.map(penalty, rank, parts)
        score = (rank_curve or curve or ((0, float("nan")),))[best][1]
        by = {}
        if errors is not None and groups is not None:
            by = {name: 1 - errors[name][best] / totals[name] if totals[name] else float("nan") for name in parts}
        report = RidgeReport(
            self.pairs, float(penalty), found.left.shape[1], score, by, curve, rank_curve,
            self.lost / self.kept if self.kept else 0.0,
        )
        return replace(found, report=report)

    def _held_out(
        self, known: _Summed | _Rows, groups: Groups, filled: Sequence[int], penalties: Sequence[float],
        progress: Callable[[], None], ranks: Sequence[int] | None = None,
    ) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Per group the summed held-out errors, one per penalty (or per rank, at one penalty), and the spread."""
        errors, totals = {name: [0.0] * len(ranks or penalties) for name in groups}, dict.fromkeys(groups, 0.0)
        for fold in filled:
            spectrum = known.spectrum(groups, fold)
            basis = _basis(spectrum.values, sum(spectrum.energy.values()), penalties[0]) if ranks else None
            for name in groups:
                totals[name] += spectrum.total[name]
                if ranks:
                    found = [spectrum.error_within(name, basis[:, :rank]) for rank in ranks]
                else:
                    found = [spectrum.error(name, penalty) for penalty in penalties]
                errors[name] = [sum(pair) for pair in zip(errors[name], found, strict=True)]
            progress()
        return errors, totals

    def centred_cross(self) -> Tensor:
        """Σ w·(x − x̄)(t − t̄)ᵀ, float64 ``(inputs, targets)``; for widths that a matrix of both can be held of."""
        sums = [self._sums(part) for part in self._folds]
        gram, cross = sum(each[0] for each in sums), sum(each[1] for each in sums)
        return cross[1:] - torch.outer(gram[0, 1:], cross[0]) / gram[0, 0]

    # ----------------------------------------------------------------------------------------------- storage

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All it knows, for a safetensors file: tensors, and a header of plain numbers."""
        tensors = {}
        for index, part in enumerate(self._folds):
            if part.rows:
                tensors[f"{index}.rows"] = torch.cat(part.rows)
            for name in ("gram", "cross", "squares"):
                if getattr(part, name) is not None:
                    tensors[f"{index}.{name}"] = getattr(part, name)
        header = {
            "inputs": self.inputs, "targets": self.targets, "budget": self.budget, "lost": self.lost,
            "kept": self.kept, "counts": [part.count for part in self._folds],
        }
        return tensors, header

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> NormalEquations:
        """What :meth:`tensors` gave.

        Raises:
            ValueError: if the header lacks something or the shapes contradict it.
        """
        try:
            counts = header["counts"]
            made = cls(header["inputs"], header["targets"], folds=len(counts), budget=header["budget"])
            made.lost, made.kept = float(header["lost"]), float(header["kept"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"ridge sums: the header lacks or garbles {error}.") from error
        split, width = 1 + made.inputs, 1 + made.inputs + made.targets
        shapes = {"gram": (split, split), "cross": (split, made.targets), "squares": (made.targets,)}
        for index, (part, count) in enumerate(zip(made._folds, counts, strict=True)):
            part.count = int(count)
            rows = tensors.get(f"{index}.rows")
            found = {name: tensors.get(f"{index}.{name}") for name in shapes}
            right = (rows is None or rows.shape[1:] == (width,)) and len({each is None for each in found.values()}) == 1
            if not right or any(each is not None and each.shape != shapes[name] for name, each in found.items()):
                raise ValueError(f"ridge sums: expected {made.inputs} inputs and {made.targets} targets, got others.")
            part.rows = [] if rows is None else [rows]
            part.gram, part.cross, part.squares = found.values()
        return made

    def save(self, path: str | os.PathLike) -> Path:
        """Write to a safetensors file, to be resumed or merged elsewhere."""
        return write_tensors(path, "ridge sums", *self.tensors())

    @classmethod
    def load(cls, path: str | os.PathLike) -> NormalEquations:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: see :func:`~.storage.read_tensors` and :meth:`from_tensors`.
        """
        return cls.from_tensors(*read_tensors(path, "ridge sums"))


def _scores(settings: Sequence, errors: Mapping[str, list[float]], totals: Mapping[str, float]) -> tuple:
    """(setting, R²) over all groups."""
    total = sum(totals.values())
    summed = [sum(column) for column in zip(*errors.values(), strict=True)]
    return tuple(
        (setting, 1 - error / total if total else float("nan")) for setting, error in zip(settings, summed, strict=True)
    )


def _ranks(most: int) -> tuple[int, ...]:
    """1, 2, 4 … up to the most there can be."""
    return tuple(sorted({min(2**power, most, MAX_RANK) for power in range(10)}))


class _Summed:
    """What can be known from sums: for more pairs than inputs."""

    def __init__(self, equations: NormalEquations, device: str | torch.device) -> None:
        sums = [equations._sums(part) for part in equations._folds]
        self.grams, self.crosses, self.squares = (
            [each.to(device) for each in kind] for kind in zip(*sums, strict=True)
        )
        gram = sum(self.grams)
        self.scale = _floored_std(gram.diagonal()[1:] / gram[0, 0] - (gram[0, 1:] / gram[0, 0]).square())

    def mean_eigenvalue(self) -> float:
        gram, _ = self._centred(sum(self.grams), sum(self.crosses), self._means(range(len(self.grams))))
        return _mean_eigenvalue(gram.trace(), len(gram))

    def _means(self, folds: Sequence[int]) -> tuple[Tensor, Tensor]:
        weight = sum(self.grams[fold][0, 0] for fold in folds)
        return (
            sum(self.grams[fold][0, 1:] for fold in folds) / weight,
            sum(self.crosses[fold][0] for fold in folds) / weight,
        )

    def _centred(self, gram: Tensor, cross: Tensor, means: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Sums of products about given means, inputs scaled."""
        weight, x, t, (mean, offset) = gram[0, 0], gram[0, 1:], cross[0], means
        about = gram[1:, 1:] - torch.outer(x, mean) - torch.outer(mean, x) + weight * torch.outer(mean, mean)
        both = cross[1:] - torch.outer(x, offset) - torch.outer(mean, t) + weight * torch.outer(mean, offset)
        return about / torch.outer(self.scale, self.scale), both / self.scale.unsqueeze(1)

    def _decompose(self, folds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        means = self._means(folds)
        gram, cross = (sum(kind[fold] for fold in folds) for kind in (self.grams, self.crosses))
        gram, cross = self._centred(gram, cross, means)
        values, vectors = _eigen(gram)
        return values, vectors, vectors.T @ cross, means

    def spectrum(self, groups: Groups, fold: int) -> _Spectrum:
        values, vectors, inner, means = self._decompose([other for other in range(len(self.grams)) if other != fold])
        gram, cross = self._centred(self.grams[fold], self.crosses[fold], means)
        weight, offset = self.grams[fold][0, 0], means[1]
        total = self.squares[fold] - 2 * offset * self.crosses[fold][0] + weight * offset.square()
        outer = vectors.T @ cross
        return _Spectrum(
            values, {name: inner[:, part] @ inner[:, part].T for name, part in groups.items()},
            vectors.T @ gram @ vectors, {name: outer[:, part] @ inner[:, part].T for name, part in groups.items()},
            {name: float(total[part].sum()) for name, part in groups.items()},
        )

    def map(self, penalty: float, rank: int | None, groups: Groups) -> RidgeMap:
        values, vectors, inner, (mean, offset) = self._decompose(range(len(self.grams)))
        from_values, to_values = _factors(values, inner @ inner.T, penalty, rank)
        left, right = vectors @ from_values / self.scale.unsqueeze(1), to_values @ inner
        return _as_map(mean, left, right, offset)


class _Rows:
    """What can be known from rows: for fewer pairs than inputs. Everything is said by the pairs' products."""

    def __init__(self, equations: NormalEquations, device: str | torch.device) -> None:
        self.device = device
        self.rows = [block for part in equations._folds for block in part.rows]
        self.fold = torch.tensor([index for index, part in enumerate(equations._folds) for _ in range(part.waiting)])
        self.ones = torch.cat([block[:, 0] for block in self.rows]).double().to(device)
        self.inputs = range(1, 1 + equations.inputs)
        self.targets = range(1 + equations.inputs, 1 + equations.inputs + equations.targets)
        weight = self.ones.square().sum()
        self.mean = torch.cat([self.ones @ chunk for chunk in _chunks(self.rows, self.inputs, device)]) / weight
        squares = torch.cat([
            (chunk - torch.outer(self.ones, mean)).square().sum(0)
            for chunk, mean in zip(_chunks(self.rows, self.inputs, device), self.mean.split(COLUMNS), strict=True)
        ])
        self.scale = _floored_std(squares / weight)
        self.products = sum(chunk @ chunk.T for chunk in self._standardised())
        self._target_products: dict[tuple[int, int], Tensor] = {}

    def _standardised(self) -> Iterator[Tensor]:
        chunks = _chunks(self.rows, self.inputs, self.device)
        for chunk, mean, scale in zip(chunks, self.mean.split(COLUMNS), self.scale.split(COLUMNS), strict=True):
            yield (chunk - torch.outer(self.ones, mean)) / scale

    def mean_eigenvalue(self) -> float:
        return _mean_eigenvalue(self.products.trace(), min(len(self.inputs), len(self.ones) - 1))

    def _target(self, part: slice) -> Tensor:
        """Products of the targets' columns of a group."""
        columns = self.targets[part]
        key = (columns.start, columns.stop)
        if key not in self._target_products:
            self._target_products[key] = _products(self.rows, columns, self.device)
        return self._target_products[key]

    def spectrum(self, groups: Groups, fold: int) -> _Spectrum:
        train, test = (self.fold != fold).to(self.device), (self.fold == fold).to(self.device)
        center = self._centring(train)
        products = center @ self.products @ center.T
        values, vectors = _eigen(products[train][:, train])
        root = values.sqrt()
        held = products[test][:, train] @ vectors / root  # X'V
        energy, cross, total = {}, {}, {}
        for name, part in groups.items():
            targets = center @ self._target(part) @ center.T
            inside = targets[train][:, train] @ (vectors * root)  # T·TᵀXV
            energy[name] = (vectors * root).T @ inside
            cross[name] = held.T @ (targets[test][:, train] @ (vectors * root))
            total[name] = float(targets[test][:, test].trace())
        return _Spectrum(values, energy, held.T @ held, cross, total)

    def _centring(self, train: Tensor) -> Tensor:
        """I − 1·1ᵀ/n over the training rows: what it is applied to is measured from the training mean."""
        ones = self.ones * train
        return torch.eye(len(ones), dtype=ones.dtype, device=self.device) - torch.outer(self.ones, ones / (ones @ ones))

    def map(self, penalty: float, rank: int | None, groups: Groups) -> RidgeMap:
        center = self._centring(torch.ones_like(self.ones, dtype=torch.bool))
        values, vectors = _eigen(center @ self.products @ center.T)
        weights = center.T @ (vectors * values.sqrt())  # of the rows' targets in XᵀT along each eigenvector
        energy = weights.T @ self._target(slice(0, len(self.targets))) @ weights
        from_values, to_values = _factors(values, energy, penalty, rank)
        inward = center.T @ (vectors / values.sqrt()) @ from_values
        left = torch.cat([
            (chunk.T @ inward) / scale.unsqueeze(1)
            for chunk, scale in zip(self._standardised(), self.scale.split(COLUMNS), strict=True)
        ])
        outward = (weights @ to_values.T).T
        right = torch.cat([outward @ chunk for chunk in _chunks(self.rows, self.targets, self.device)], 1)
        weight = self.ones.square().sum()
        offset = torch.cat([self.ones @ chunk for chunk in _chunks(self.rows, self.targets, self.device)]) / weight
        return _as_map(self.mean, left, right, offset)


def _factors(values: Tensor, energy: Tensor, penalty: float, rank: int | None) -> tuple[Tensor, Tensor]:
    """(r, k) and (k, r) whose product is diag(1/(λ + values)), restricted to the k directions that are kept."""
    if rank is None or rank >= len(values):
        root = torch.diag((1 / (values + penalty)).sqrt())
        return root, root  # one half on each side, as below: the inputs' coordinates have covariance I/n or less
    basis = _basis(values, energy, penalty)[:, :rank]
    return basis, basis.T


def _basis(values: Tensor, energy: Tensor, penalty: float) -> Tensor:
    """Where the fitted values lie, the largest part first: columns B with B·Bᵀ = diag(1/(λ + values))."""
    root = (1 / (values + penalty)).sqrt()
    return root.unsqueeze(1) * torch.linalg.eigh(root.unsqueeze(1) * energy * root)[1].flip(1)


def _as_map(center: Tensor, left: Tensor, right: Tensor, offset: Tensor) -> RidgeMap:
    parts = (part.float().cpu().contiguous() for part in (center, left, right, offset))
    return RidgeMap(*parts, RidgeReport(0, 0.0, 0, float("nan")))


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors above rounding, largest first; at least one."""
    values, vectors = torch.linalg.eigh(gram)
    keep = values > NEGLIGIBLE * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    if not keep.any():  # all pairs have the same inputs: any direction will do, it predicts nothing
        return values[-1:].clamp_min(1.0), torch.zeros_like(vectors[:, -1:])
    return values[keep].flip(0), vectors[:, keep].flip(1)


def _mean_eigenvalue(trace: Tensor, count: int) -> float:
    return float(trace) / max(count, 1) or 1.0


def _floored_std(variance: Tensor) -> Tensor:
    """Std per input, held above a small part of the median one: a dead input must not be blown up."""
    std = variance.clamp_min(0).sqrt()
    floor = SMALL_STD * std.median()
    return std.clamp_min(float(floor)) if floor > 0 else torch.where(std > 0, std, 1.0)


def _chunks(rows: Sequence[Tensor], columns: range, device: str | torch.device = "cpu") -> Iterator[Tensor]:
    """The rows' columns in float64, :data:`COLUMNS` at a time."""
    for start in range(columns.start, columns.stop, COLUMNS):
        stop = min(start + COLUMNS, columns.stop)
        yield torch.cat([block[:, start:stop] for block in rows]).to(device).double()


def _products(rows: Sequence[Tensor], columns: range, device: str | torch.device = "cpu") -> Tensor:
    """Scalar products of all rows with each other over some columns, float64."""
    return sum(chunk @ chunk.T for chunk in _chunks(rows, columns, device))


def _combined(weights: Tensor, rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Weighted sums of rows ``(k, n)·(n, columns)``, chunk by chunk over all columns."""
    for chunk in _chunks(rows, range(0, rows[0].shape[1])):
        yield weights @ chunk
