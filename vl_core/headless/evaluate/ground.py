"""The folder of an evaluation: its sheet, its lines, its files, and what cells are painted from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ...encoder.writing import INSTRUCTIONS
from ...reports.judge import Form, Query
from ...states.files import parse_json
from ...steering.desk import Desk, Outcome
from ...steering.references import Reference as Shown
from ...steering.sweep import Cell
from ...steering.way import Given
from ...zimage.files import save_png
from ...zimage.host import Noised
from ..compare.nulls import NULL, noise_seed
from ..compare.runner import append_row, read_rows
from .arms import Arm
from .beside import Shares
from .judging import Told, queries_for
from .kept import Kept
from .plan import Rung, Sheet, Trial
from .turns import Turns

CELLS, REFERENCES, KEPT = "cells", "references", "kept"
PAINTED, MEASURED, JUDGED = "painted.jsonl", "measured.jsonl", "judged.jsonl"
SCORED = "scored.jsonl"  # by a second judge, if there is one
PLAN, TOLD = "plan.json", "told.json"
EXAMPLES = 4
DESKS = 16  # prompts and pictures whose readings are in memory at a time


@dataclass(frozen=True)
class Fleet:
    """Where painting and asking are done: "" for this process, else Ray's address and how many workers."""

    ray: str = ""
    workers: int = 0


@dataclass
class Ground:
    """One evaluation in its folder.

    Args:
        pictures: uint8 ``(H, W, 3)``, in the order of the sheet's references. given: what ways
            may use besides, of each picture, and last of all what stands in its place where that is to be noise.
        minutes: that it may take. batch: pictures painted together.
        pool: measures beside the painting, see :func:`~.work.measuring`.
        look_questions: what is asked for a look's words, what for what a picture shows, and what takes from that
            answer what is told.

    Attributes:
        rows: the lines of each file by id. rungs: those that were begun. settled: ids that are done.
        measured: what other processes are measuring, by id. hashes: of the weights' files. shares: of its time.
        crew: the cluster's workers, while there are some.
        looks_said, looks_seconds: how looks are learned here, and how long that takes. scored_by: a second judge.
    """

    folder: Path
    sheet: Sheet
    arms: Sequence[Arm]
    trials: Sequence[Trial]
    pictures: Sequence[Tensor]
    form: Form
    given: Sequence[Given]
    kept: Kept
    turns: Turns
    minutes: float
    batch: int = 1
    fleet: Fleet = field(default_factory=Fleet)
    pool: Executor | None = None
    look_questions: tuple[str, str, Callable[[str], str]] = (INSTRUCTIONS["look"], INSTRUCTIONS["shows"], str)

    def __post_init__(self) -> None:
        self.by_id = {arm.id: arm for arm in self.arms}
        self.looks_said, self.looks_seconds, self.scored_by = "", 0.0, ""
        self.rows = {name: read_rows(self.folder / name) for name in (PAINTED, MEASURED, JUDGED, SCORED)}
        self.rungs: list[Rung] = []
        self.settled: set[str] = set()
        self.hashes: dict[str, dict[str, str]] = {}
        self.measured: dict[str, Future] = {}
        self.crew: list[Any] = []
        self.shares = Shares()
        self.desk = lru_cache(DESKS)(self._new_desk)

    def give(self, given: Sequence[Given]) -> None:
        """What ways may use from now on."""
        self.given = given
        self.desk.cache_clear()

    def leave_out(self, way: str, why: str) -> None:
        """Go on without a way.

        Raises:
            ValueError: if no other one is left.
        """
        self.arms = [arm for arm in self.arms if arm.group != way]
        self.by_id = {arm.id: arm for arm in self.arms}
        if not self.arms:
            raise ValueError(f"--ways {way}: {why}. Give more --minutes, or another way besides.")

    # --- files and lines ----------------------------------------------------------------------------------------------

    def file(self, id: str) -> Path:
        """A cell's picture."""
        return self.folder / CELLS / f"{id}.png"

    def reference(self, key: str) -> Path:
        return self.folder / REFERENCES / f"{key}.png"

    def save(self, cell: Cell, pixels: Any) -> None:
        from PIL import Image

        save_png(self.file(cell.id), Image.fromarray(pixels), {"id": cell.id, **self.head(cell)})

    def head(self, cell: Cell) -> dict[str, Any]:
        """What a line says of its cell."""
        extra = dict(cell.extra)
        return {
            "label": cell.label, "settings": cell.settings.effective(), "prompt": extra["prompt"],
            "picture": extra["pictures"], "seed": cell.seed, "null": extra.get(NULL, ""),
            "weights": self.sheet.weights,
        }

    def line(self, name: str, row: dict[str, Any]) -> None:
        """A line more in a file, unless there is one of that cell."""
        row["seconds"] = float(f"{row['seconds']:.4g}")
        if row["id"] not in self.rows[name]:
            append_row(self.folder / name, row)
            self.rows[name][row["id"]] = row

    def unpainted(self, cell: Cell) -> bool:
        """Whether nobody has painted a cell, or its picture was removed before all was told of it: a damaged one."""
        if cell.id not in self.rows[PAINTED]:
            return True
        told = (MEASURED, JUDGED, SCORED) if self.turns.loaders.judge else (MEASURED, JUDGED)
        return any(cell.id not in self.rows[name] for name in told) and not self.file(cell.id).is_file()

    # --- what was said of the references ------------------------------------------------------------------------------

    @cached_property
    def _said(self) -> dict[str, Any]:
        return parse_json((self.folder / TOLD).read_text(encoding="utf-8"), TOLD)

    @cached_property
    def told(self) -> list[Told]:
        """What Qwen3-VL said of each reference."""
        return [Told(**one) for one in self._said["references"]]

    @property
    def trust(self) -> dict[str, Any]:
        """How far it can be trusted as a judge, see :func:`~.judging.trust`."""
        return self._said["trust"]

    # --- cells --------------------------------------------------------------------------------------------------------

    def places(self, cell: Cell) -> tuple[int, int]:
        """Where the picture and the prompt of a cell stand in the sheet."""
        extra: dict[str, Any] = dict(cell.extra)
        keys, texts = ([one.key for one in self.sheet.references], [one.text for one in self.sheet.prompts])
        return keys.index(extra["pictures"]), texts.index(extra["prompt"])

    def examples(self) -> list[Trial]:
        """What a page shows: the first trials of different pictures and, if there are enough, different prompts."""
        found: list[Trial] = []
        for fresh in (True, False):
            for trial in self.trials[: self.rungs[-1].trials]:
                pictures, prompts = {one.picture for one in found}, {one.prompt for one in found}
                new = trial.picture not in pictures and (trial.prompt not in prompts or not fresh)
                if new and len(found) < EXAMPLES:
                    found.append(trial)
        return found

    def another(self, arm: Arm, trial: Trial) -> Cell:
        """The same setting, prompt and seed with the next picture."""
        return self.sheet.of(arm, replace(trial, picture=(trial.picture + 1) % len(self.sheet.references)))

    def outcome(self, cell: Cell) -> Outcome:
        """What a cell is painted from."""
        picture, prompt = self.places(cell)
        return self.desk(picture, prompt, noise_seed(cell) if NULL in dict(cell.extra) else 0).run(cell.settings)

    def queries(self, cell: Cell) -> list[Query]:
        """What is asked of a painting.

        Of the words alone about every reference, of a cell about its own and the one whose null it is, of a caption
        about its own.
        """
        extra = dict(cell.extra)
        texts = [prompt.text for prompt in self.sheet.prompts]
        things = self.sheet.prompts[texts.index(extra["prompt"])].things if extra["prompt"] in texts else ()
        if not extra["pictures"]:
            shown = [one for one in self.told if things or one.caption == extra["prompt"]]
            return queries_for(self.form, things, shown)
        own = self.places(cell)[0]
        shown = [self.told[own]] + [self.told[own - 1]] * (NULL not in extra)
        return queries_for(self.form, things, shown)

    def _new_desk(self, picture: int, prompt: int, noise: int) -> Desk:
        host = Noised(self.kept, noise) if noise else self.kept
        shown, given = [Shown(self.pictures[picture])], self.given[-1 if noise else picture]
        return Desk(host, self.sheet.prompts[prompt].text, shown, given, [arm.settings for arm in self.arms])
