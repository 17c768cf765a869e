"""What a picture adapter reads from Qwen3-VL's states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..states.families import tail_length
from ..states.headers import MOST_LAYERS
from ..states.layout import TAIL_TOKENS, TokenLayout, TokenRole
from ..states.sinks import Sinks, check_sinks, find_sinks
from ..states.statistics import ENCODER_LAYER
from ..states.tensors import EPSILON
from ..states.vl_states import VLStates


@dataclass(frozen=True)
class PictureFeatures:
    """What of the VL's states a picture is known by.

    Attributes:
        pool: "mean" of the picture's tokens; "gridN" for their means over N × N fields; "none".
        tail: how many of the template's 5 tokens after the words, which have read picture and prompt. A think block
            behind them is left out: with one or without, the states before it are the same.
        layers: Hugging Face ``hidden_states`` indices from the end; each gives all of the above.
        sinks: "exclude" keeps attention sinks out of the means.
    """

    pool: Annotated[str, Field(max_length=8)] = "grid2"
    tail: int = TAIL_TOKENS
    layers: Annotated[tuple[int, ...], Field(max_length=MOST_LAYERS)] = (ENCODER_LAYER,)
    sinks: Sinks = "exclude"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        side = self.pool.removeprefix("grid")
        known = self.pool in ("none", "mean") or (self.pool != side and side.isdigit() and int(side) > 0)
        if not known:
            raise ValueError(f"pool: expected none, mean or grid1, grid2 …, got {self.pool!r}.")
        if not 0 <= self.tail <= TAIL_TOKENS or not self.layers or not self.vectors:
            raise ValueError(
                f"features: expected at least one layer, and a pool or 1 to {TAIL_TOKENS} tail tokens, got {self}."
            )
        check_sinks(self.sinks)

    @property
    def fields(self) -> int:
        """Vectors that the picture is pooled to, per layer."""
        plain = {"none": 0, "mean": 1}
        return plain[self.pool] if self.pool in plain else int(self.pool[4:]) ** 2

    @property
    def vectors(self) -> int:
        return (self.fields + self.tail) * len(self.layers)

    def picture_size(self, width: int) -> int:
        """How many leading numbers are the picture's alone: states before the words do not depend on them."""
        return self.fields * len(self.layers) * width

    def of(self, seen: VLStates) -> Tensor:
        """Pooled pictures, then tail tokens, of all layers: float32 ``(vectors · width,)`` on the states' device.

        Several pictures in one sequence are averaged.

        Raises:
            ValueError: if a layer was not captured, there is no picture, a mask has cut it, or the tail is not there.
        """
        layout = seen.layout
        if not layout.grids and self.fields:
            raise ValueError("seen: expected a picture, got words only. Give the encoder a picture.")
        if layout.cut and self.fields > 1:
            raise ValueError(
                f"seen: a mask has cut the picture, so what is where in it is lost, but pool is {self.pool}. Use pool "
                "mean, or no mask."
            )
        length = tail_length(layout)
        if length < TAIL_TOKENS or (layout.roles[-length:] != TokenRole.TEMPLATE).any():
            raise ValueError(
                f"seen: expected a sequence that ends with the template's {TAIL_TOKENS} tail tokens, got "
                f"{layout.describe()}. Give the whole sequence."
            )
        stop = len(layout) - length + TAIL_TOKENS
        pooled, ends = [], []
        for layer in self.layers:
            states = seen.at(layer)[0].float()
            if self.fields:
                pooled.append(self._pooled(states, layout))
            if self.tail:
                ends.append(states[stop - self.tail : stop])
        found = torch.cat([*pooled, *ends]).flatten()
        if not found.isfinite().all():
            raise ValueError("seen: expected finite states, got NaN or infinity; the encoder overflowed.")
        return found

    def _pooled(self, states: Tensor, layout: TokenLayout) -> Tensor:
        """``(fields, D)``: means over fields of each picture, averaged over pictures."""
        side = 1 if self.pool == "mean" else int(self.pool[4:])
        kept = ~find_sinks(states, layout) if self.sinks == "exclude" else torch.ones(len(states), dtype=torch.bool)
        found = []
        for (rows, columns), positions in zip(layout.grids, layout.picture_positions(), strict=True):
            tokens, weight = states[positions.to(states.device)], kept.to(states.device)[positions.to(states.device)]
            if not weight.any():
                weight = torch.ones_like(weight)
            planes = torch.cat([tokens * weight.unsqueeze(1), weight.unsqueeze(1)], 1).T.reshape(1, -1, rows, columns)
            cells = F.adaptive_avg_pool2d(planes, side)[0].flatten(1).T
            whole = cells.mean(0)  # stands in for a field that holds nothing but sinks
            cells = torch.where(cells[:, -1:] > EPSILON, cells, whole)
            found.append(cells[:, :-1] / cells[:, -1:])
        return torch.stack(found).mean(0)
