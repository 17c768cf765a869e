"""Paints the cells of a study: models loaded once, every picture and prompt read once for all cells of a group."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...adapters.picture_adapter import PictureAdapter
from ...encoder.qwen3vl import Qwen3VLEncoder
from ...states.statistics import ReferenceStatistics
from ...steering.desk import Desk, Outcome
from ...steering.host import Host
from ...steering.references import Reference
from ...steering.settings import Settings
from ...steering.sweep import Cell
from ...steering.way import Given
from ...zimage import checks
from ...zimage.host import Noised, PipelineHost, Question
from ...zimage.pipeline import load_pipeline, paint
from ..vision import load_encoder
from .nulls import NULL, noise_seed
from .study import DENOISE, THINK, Models


@dataclass(frozen=True)
class Painted:
    """A cell's picture, uint8 ``(H, W, 3)``, what was done, and how long each part took in seconds."""

    id: str
    pixels: np.ndarray
    report: str
    seconds: Mapping[str, float]


class Painter:
    """All that is needed to paint any cell of one study; parts are loaded when the first cell needs them.

    Args:
        models: what paints. pictures: by the key of their set.
        together: settings of all cells, so that one reading holds what all of them need.
    """

    def __init__(
        self, models: Models, pictures: Mapping[str, Sequence[Tensor]], together: Sequence[Settings]
    ) -> None:
        self.models, self.pictures, self.together = models, pictures, together
        self.device, self.dtype = checks.pick_device(models.device), checks.DTYPES[models.dtype]
        self.pipeline = load_pipeline(Path(models.zimage), self.device, self.dtype)
        self._hosts: dict[bool, PipelineHost] = {}
        self._kept: dict[str, tuple[Any, Any]] = {}  # one value of each kind: cells come group by group
        self._plain: dict[tuple, np.ndarray] = {}  # words alone, which are the same beside every picture

    def paint(self, cell: Cell) -> Painted:
        """One picture."""
        extra: dict[str, Any] = dict(cell.extra)
        models, seconds = self.models, {}
        start = time.perf_counter()
        outcome = self.steer(cell)
        seconds["states"] = time.perf_counter() - start
        start = time.perf_counter()
        is_plain = cell.words_only and extra[DENOISE] == 1
        where = extra["prompt"], extra[THINK], cell.seed
        if is_plain and where in self._plain:
            pixels = self._plain[where]
        else:
            pixels = np.asarray(paint(
                self.pipeline, outcome.entries[0].states, negative=models.negative, steps=models.steps,
                guidance=models.guidance, width=models.width, height=models.height, seed=cell.seed,
                over=self.pictures[extra["pictures"]][0], denoise=extra[DENOISE],
                outside=outcome.texts[0].states, window=cell.settings.window,
            ))
            if is_plain:
                self._plain[where] = pixels
        seconds["paint"] = time.perf_counter() - start
        report = "words only" if cell.words_only else outcome.report()
        return Painted(cell.id, pixels, report, {name: round(spent, 4) for name, spent in seconds.items()})

    def steer(self, cell: Cell) -> Outcome:
        """What a cell is painted from."""
        extra: dict[str, Any] = dict(cell.extra)
        where = extra["pictures"], extra["prompt"], extra[THINK]
        if NULL not in extra:
            return self._keep("desk", where, lambda: self._desk(self.host(extra[THINK]), where)).run(cell.settings)
        seed = noise_seed(cell)
        noised = self._keep(
            "noise", (where, seed), lambda: self._desk(Noised(self.host(extra[THINK]), seed), where)
        )
        outcome = noised.run(cell.settings)
        return outcome.remarked("matched noise in place of what was seen")

    def host(self, think: bool = False) -> PipelineHost:
        """The models as a place that steers; ``think``: with an empty think block after every prompt."""
        if think not in self._hosts:
            reference = self.models.reference
            self._hosts[think] = PipelineHost(
                self.pipeline, lambda: self.encoder, think=think,
                statistics=ReferenceStatistics.load(reference) if reference else None,
                questions={take: Question(ask, form) for take, ask, form in self.models.questions},
            )
        return self._hosts[think]

    @property
    def encodes(self) -> int:
        """Forwards of Qwen3-VL over pictures and a prompt."""
        return sum(host.encodes for host in self._hosts.values())

    @cached_property
    def encoder(self) -> Qwen3VLEncoder:
        return load_encoder(self.models.vision, self.device, self.dtype, self.models.layer)

    @cached_property
    def adapter(self) -> PictureAdapter | None:
        return PictureAdapter.load(self.models.adapter) if self.models.adapter else None

    def _desk(self, host: Host, where: tuple[str, str, bool]) -> Desk:
        references = [Reference(picture) for picture in self.pictures[where[0]]]
        return Desk(host, where[1], references, Given(adapter=self.adapter), self.together)

    def _keep(self, kind: str, key: Any, make: Any) -> Any:
        """The last value of a kind if it is the one asked for, else a new one."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept[kind] = key, make()
        return self._kept[kind][1]
