"""Ridge regression from sums that can be merged, saved and resumed, with its penalty and rank chosen by held-out error.

Every pair (x, t) of weight w becomes one row √w·[1 | x | t]. While there are fewer rows than inputs the rows are the
cheapest form that knows everything (the normal equations of 15 000 inputs and 60 000 targets would take 9 GB); with
more, they are folded into float64 sums. Where the sums would not fit, rows are replaced by fewer rows of nearly the
same products (a merge-and-reduce sketch, Ghashami et al., arXiv 1501.01711). All of it is kept per fold, so the error
on each fold of the map fitted on the others is exact, and no pair has to be read twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..states.storage import read_tensors, write_tensors
from ..states.tensors import sum_tensors, to_dtype
from .ridge_map import Groups, RidgeMap, RidgeReport, combine_maps, in_chunks, sum_products
from .ridge_solve import Rows, Summed, find_basis

FOLDS = 5
BUDGET = 512 * 2**20  # bytes of rows or sums that are kept
SUMS = ("gram", "cross", "squares", "dropped")  # of a fold, each None until there is something in it
BLOCK = 256  # rows that wait before they are folded into the sums
MAX_RANK = 512  # directions a map keeps unless told otherwise: at full size they take 160 MB
PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(-12, 5))  # in units of the mean eigenvalue


@dataclass(eq=False)
class _Fold:
    """What one fold knows: rows that wait, ``(n, 1 + inputs + targets)`` each, and sums of the others."""

    count: int = 0
    rows: list[Tensor] = field(default_factory=list)
    gram: Tensor | None = None  # float64 (1 + inputs, 1 + inputs)
    cross: Tensor | None = None  # float64 (1 + inputs, targets)
    squares: Tensor | None = None  # float64 (targets,)
    dropped: Tensor | None = None  # float64 (targets,): squares of the targets that the sketch has given up

    @property
    def waiting(self) -> int:
        return sum(len(block) for block in self.rows)


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
        blocks = [block for part in self._folds for block in (*part.rows, *(getattr(part, name) for name in SUMS))]
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
            for name in SUMS:
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
        gram = zeros[:, :split] if part.gram is None else part.gram
        cross = zeros[:, split:] if part.cross is None else part.cross
        squares = zeros[0, split:] if part.squares is None else part.squares
        if part.rows:
            rows = torch.cat(part.rows).double()
            x, t = rows[:, :split], rows[:, split:]
            gram, cross, squares = gram + x.T @ x, cross + x.T @ t, squares + t.square().sum(0)
        return gram, cross, squares

    def _reduce(self, total: int) -> None:
        """Keep ``total`` rows whose products are nearest to those of all.

        The row along the column of ones stays, so counts and means stay exact; of the others the principal
        directions of [x | t] stay, both sides weighed to equal energy. The rows that go are the ones no map predicts,
        so their targets' squares are remembered: held-out error and spread both have them (see :meth:`_held_out`).
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
                side = sum_products(part.rows, columns)
                side = side - torch.outer(along, along @ side)
                side = side - torch.outer(side @ along, along)
                products.append(side / side.trace().clamp_min(torch.finfo(side.dtype).tiny))
            values, vectors = torch.linalg.eigh(sum_tensors(products))
            self.lost += float(values[: len(values) + 1 - room].clamp_min(0).sum()) * part.count
            self.kept += float(values.sum()) * part.count
            keep = torch.cat([along.unsqueeze(1), vectors[:, 1 - room :]], 1) if room > 1 else along.unsqueeze(1)
            before = sum_squares(part.rows, self.inputs)
            part.rows = [torch.cat([chunk.float() for chunk in combine_maps(keep.T, part.rows)], 1)]
            dropped = (before - sum_squares(part.rows, self.inputs)).clamp_min(0)
            part.dropped = dropped if part.dropped is None else part.dropped + dropped

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
        known: Summed | Rows
        if self._summed:
            known = Summed([self._sums(part) for part in self._folds], device)
        else:
            known = Rows([part.rows for part in self._folds], self.inputs, self.targets, device)
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
        self, known: Summed | Rows, groups: Groups, filled: Sequence[int], penalties: Sequence[float],
        progress: Callable[[], None], ranks: Sequence[int] | None = None,
    ) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Per group the summed held-out errors, one per penalty (or per rank, at one penalty), and the spread.

        What the sketch dropped counts in full in both: a row that was dropped is taken to be predicted as the mean.
        """
        errors, totals = {name: [0.0] * len(ranks or penalties) for name in groups}, dict.fromkeys(groups, 0.0)
        for fold in filled:
            spectrum = known.spectrum(groups, fold)
            basis = find_basis(spectrum.values, sum_tensors(spectrum.energy.values()), penalties[0]) if ranks else None
            for name in groups:
                totals[name] += spectrum.total[name]
                if ranks and basis is not None:
                    found = [spectrum.error_within(name, basis[:, :rank]) for rank in ranks]
                else:
                    found = [spectrum.error(name, penalty) for penalty in penalties]
                dropped = self._folds[fold].dropped
                lost = 0.0 if dropped is None else float(dropped[groups[name]].sum())
                totals[name] += lost
                errors[name] = [before + own + lost for before, own in zip(errors[name], found, strict=True)]
            progress()
        return errors, totals

    def centred_cross(self) -> Tensor:
        """Σ w·(x − x̄)(t − t̄)ᵀ, float64 ``(inputs, targets)``; for widths that a matrix of both can be held of."""
        sums = [self._sums(part) for part in self._folds]
        gram, cross = sum_tensors(each[0] for each in sums), sum_tensors(each[1] for each in sums)
        return cross[1:] - torch.outer(gram[0, 1:], cross[0]) / gram[0, 0]

    # ----------------------------------------------------------------------------------------------- storage

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All it knows, for a safetensors file: tensors, and a header of plain numbers."""
        tensors = {}
        for index, part in enumerate(self._folds):
            if part.rows:
                tensors[f"{index}.rows"] = torch.cat(part.rows)
            for name in SUMS:
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
            part.dropped = tensors.get(f"{index}.dropped")
            if part.dropped is not None and part.dropped.shape != (made.targets,):
                raise ValueError(f"ridge sums: expected dropped squares of {made.targets} targets, got others.")
        return made

    def save(self, path: str | os.PathLike) -> Path:
        """Write to a safetensors file, to be resumed or merged elsewhere."""
        return write_tensors(path, "ridge sums", *self.tensors())

    @classmethod
    def load(cls, path: str | os.PathLike) -> NormalEquations:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_tensors` and :meth:`from_tensors`.
        """
        return cls.from_tensors(*read_tensors(path, "ridge sums"))


def _scores(settings: Sequence, errors: Mapping[str, list[float]], totals: Mapping[str, float]) -> tuple:
    """(setting, R²) over all groups."""
    total = sum(totals.values())
    summed = [sum(column) for column in zip(*errors.values(), strict=True)]
    return tuple(
        (setting, 1 - error / total if total else float("nan")) for setting, error in zip(settings, summed, strict=True)
    )


def sum_squares(rows: Sequence[Tensor], inputs: int) -> Tensor:
    """Summed squares per target of rows ``(n, 1 + inputs + targets)``, float64 ``(targets,)``."""
    columns = range(1 + inputs, rows[0].shape[1])
    return torch.cat([chunk.square().sum(0) for chunk in in_chunks(rows, columns)])


def _ranks(most: int) -> tuple[int, ...]:
    """1, 2, 4 … up to the most there can be."""
    return tuple(sorted({min(2**power, most, MAX_RANK) for power in range(10)}))


