"""Covariances that are gathered prompt by prompt, and their roots: what whitening and colouring take."""

from __future__ import annotations

import torch
from torch import Tensor

from ..states.tensors import EPSILON

SHRINKAGE = 0.1  # of a covariance towards a multiple of the identity


class Covariance:
    """Streaming count, mean and centred products of ``(n, D)`` tokens, float64 (Chan, Golub and LeVeque)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.squares = torch.zeros(width, width, dtype=torch.float64)

    def add(self, tokens: Tensor) -> None:
        if not len(tokens):
            return
        tokens = tokens.double()
        mean = tokens.mean(0)
        total, delta = self.count + len(tokens), mean - self.mean
        centred = tokens - mean
        self.squares += centred.T @ centred + torch.outer(delta, delta) * (self.count * len(tokens) / total)
        self.mean = self.mean + delta * (len(tokens) / total)
        self.count = total

    def shrunk(self) -> Tensor:
        """The covariance, shrunk towards its mean variance."""
        covariance = self.squares / (self.count - 1)
        level = covariance.trace() / len(covariance)
        return (1 - SHRINKAGE) * covariance + SHRINKAGE * level * torch.eye(len(covariance), dtype=covariance.dtype)


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """A symmetric ``(D, D)`` to a power, by its eigenvalues, the tiniest raised to a floor."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = EPSILON * values[-1].clamp_min(EPSILON)
    return (vectors * values.clamp_min(float(floor)).pow(power)) @ vectors.T
