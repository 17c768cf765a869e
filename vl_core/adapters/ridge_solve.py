"""Solving ridge regressions from sums or from rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..states.tensors import sum_tensors
from .ridge_map import COLUMNS, Groups, RidgeMap, RidgeReport, in_chunks, sum_products

SMALL_STD = 1e-3  # of the median std: narrower inputs are not blown up any further
NEGLIGIBLE = 1e-10  # of the largest eigenvalue: rounding, not a direction


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
        """The same of the map restricted to the first columns of :func:`find_basis`."""
        fitted = ((basis.T @ self.gram @ basis) * (basis.T @ self.energy[group] @ basis)).sum()
        return float(self.total[group] - 2 * ((basis.T @ self.cross[group]) * basis.T).sum() + fitted)


class Summed:
    """What can be known from sums: for more pairs than inputs."""

    def __init__(self, sums: Sequence[tuple[Tensor, Tensor, Tensor]], device: str | torch.device) -> None:
        """Of each fold's gram, cross and squares, all float64."""
        self.grams, self.crosses, self.squares = (
            [each.to(device) for each in kind] for kind in zip(*sums, strict=True)
        )
        gram = sum_tensors(self.grams)
        self.scale = _floored_std(gram.diagonal()[1:] / gram[0, 0] - (gram[0, 1:] / gram[0, 0]).square())

    def mean_eigenvalue(self) -> float:
        gram, _ = self._centred(sum_tensors(self.grams), sum_tensors(self.crosses), self._means(range(len(self.grams))))
        return _mean_eigenvalue(gram.trace(), len(gram))

    def _means(self, folds: Sequence[int]) -> tuple[Tensor, Tensor]:
        weight = sum_tensors(self.grams[fold][0, 0] for fold in folds)
        return (
            sum_tensors(self.grams[fold][0, 1:] for fold in folds) / weight,
            sum_tensors(self.crosses[fold][0] for fold in folds) / weight,
        )

    def _centred(self, gram: Tensor, cross: Tensor, means: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Sums of products about given means, inputs scaled."""
        weight, x, t, (mean, offset) = gram[0, 0], gram[0, 1:], cross[0], means
        about = gram[1:, 1:] - torch.outer(x, mean) - torch.outer(mean, x) + weight * torch.outer(mean, mean)
        both = cross[1:] - torch.outer(x, offset) - torch.outer(mean, t) + weight * torch.outer(mean, offset)
        return about / torch.outer(self.scale, self.scale), both / self.scale.unsqueeze(1)

    def _decompose(self, folds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        means = self._means(folds)
        gram, cross = (sum_tensors(kind[fold] for fold in folds) for kind in (self.grams, self.crosses))
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


class Rows:
    """What can be known from rows: for fewer pairs than inputs. Everything is said by the pairs' products."""

    def __init__(
        self, folds: Sequence[Sequence[Tensor]], inputs: int, targets: int, device: str | torch.device
    ) -> None:
        """Of each fold's blocks of rows ``(n, 1 + inputs + targets)``."""
        self.device = device
        self.rows = [block for blocks in folds for block in blocks]
        self.fold = torch.tensor([index for index, blocks in enumerate(folds) for block in blocks for _ in block])
        self.ones = torch.cat([block[:, 0] for block in self.rows]).double().to(device)
        self.inputs = range(1, 1 + inputs)
        self.targets = range(1 + inputs, 1 + inputs + targets)
        weight = self.ones.square().sum()
        self.mean = torch.cat([self.ones @ chunk for chunk in in_chunks(self.rows, self.inputs, device)]) / weight
        squares = torch.cat([
            (chunk - torch.outer(self.ones, mean)).square().sum(0)
            for chunk, mean in zip(in_chunks(self.rows, self.inputs, device), self.mean.split(COLUMNS), strict=True)
        ])
        self.scale = _floored_std(squares / weight)
        self.products = sum_tensors(chunk @ chunk.T for chunk in self._standardised())
        self._target_products: dict[tuple[int, int], Tensor] = {}

    def _standardised(self) -> Iterator[Tensor]:
        chunks = in_chunks(self.rows, self.inputs, self.device)
        for chunk, mean, scale in zip(chunks, self.mean.split(COLUMNS), self.scale.split(COLUMNS), strict=True):
            yield (chunk - torch.outer(self.ones, mean)) / scale

    def mean_eigenvalue(self) -> float:
        return _mean_eigenvalue(self.products.trace(), min(len(self.inputs), len(self.ones) - 1))

    def _target(self, part: slice) -> Tensor:
        """Products of the targets' columns of a group."""
        columns = self.targets[part]
        key = (columns.start, columns.stop)
        if key not in self._target_products:
            self._target_products[key] = sum_products(self.rows, columns, self.device)
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
        right = torch.cat([outward @ chunk for chunk in in_chunks(self.rows, self.targets, self.device)], 1)
        weight = self.ones.square().sum()
        offset = torch.cat([self.ones @ chunk for chunk in in_chunks(self.rows, self.targets, self.device)]) / weight
        return _as_map(self.mean, left, right, offset)


def _factors(values: Tensor, energy: Tensor, penalty: float, rank: int | None) -> tuple[Tensor, Tensor]:
    """(r, k) and (k, r) whose product is diag(1/(λ + values)), restricted to the k directions that are kept."""
    if rank is None or rank >= len(values):
        root = torch.diag((1 / (values + penalty)).sqrt())
        return root, root  # one half on each side, as below: the inputs' coordinates have covariance I/n or less
    basis = find_basis(values, energy, penalty)[:, :rank]
    return basis, basis.T


def find_basis(values: Tensor, energy: Tensor, penalty: float) -> Tensor:
    """Where the fitted values lie, the largest part first: columns B with B·Bᵀ = diag(1/(λ + values))."""
    root = (1 / (values + penalty)).sqrt()
    return root.unsqueeze(1) * torch.linalg.eigh(root.unsqueeze(1) * energy * root)[1].flip(1)


def _as_map(center: Tensor, left: Tensor, right: Tensor, offset: Tensor) -> RidgeMap:
    center, left, right, offset = (part.float().cpu().contiguous() for part in (center, left, right, offset))
    return RidgeMap(center, left, right, offset, RidgeReport(0, 0.0, 0, float("nan")))


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
