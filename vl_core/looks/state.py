"""How far a learning has come, and its file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..states.storage import read_tensors, take, write_tensors
from ..states.tensors import all_finite

FILE_KIND = "look being learned"
TENSORS = ("values", "first", "second", "total")


@dataclass(frozen=True, eq=False)
class LearnState:
    """How far the learning of N looks has come; going on from it gives what an undisturbed run gives.

    Attributes:
        step: steps done. ``losses``: per step one loss per look.
        values: float32 ``(N, T + K, S·D)``: each look's change of the tail, then its tokens, the shorter ones padded.
        first, second: Adam's moments of them. ``total``: sum of the values over the steps that are averaged.
    """

    step: int
    values: Tensor
    first: Tensor
    second: Tensor
    total: Tensor
    losses: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def fresh(cls, values: Tensor) -> LearnState:
        """Before the first step."""
        return cls(0, values, torch.zeros_like(values), torch.zeros_like(values), torch.zeros_like(values))

    def save(self, path: str | os.PathLike, key: str) -> Path:
        """Write to a safetensors file; ``key`` says what is being learned."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        return write_tensors(path, FILE_KIND, tensors, {"key": key, "step": self.step, "losses": self.losses})

    @classmethod
    def load(cls, path: str | os.PathLike, key: str) -> LearnState:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_tensors`; also for a damaged file, or one of another key.
        """
        tensors, header = read_tensors(path, FILE_KIND)
        parts = {name: take(tensors, name, path, 3) for name in TENSORS}
        name = Path(path).name
        try:
            said = _Header.model_validate({part: header.get(part) for part in ("key", "step", "losses")})
        except ValidationError as error:
            raise ValueError(f"{name}: expected a learning's step and losses, got a damaged header.") from error
        if len({tuple(part.shape) for part in parts.values()}) > 1 or not all_finite(*parts.values()):
            raise ValueError(f"{name}: expected finite tensors of one shape, got others. Delete it and begin anew.")
        if said.key != key:
            raise ValueError(f"{name}: expected the learning of these pictures, words and options, got another's.")
        return cls(losses=tuple(tuple(row) for row in said.losses), step=said.step, **parts)


class _Header(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    key: str
    step: int = Field(ge=0)
    losses: list[list[float]]
