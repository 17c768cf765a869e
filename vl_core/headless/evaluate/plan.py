"""What is asked, and how the time is spent: pictures × prompts that disagree, seeds, rungs of fewer and surer settings.

Every way competes with itself only: of its settings one in three goes on to the next rung, and the last one is painted
most often, beside its nulls. So each way ends with its best setting, and most time goes where two ways are compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ...steering.settings import Settings
from ...steering.sweep import Cell
from ..compare.nulls import NOISE, NULL
from ..compare.study import Models
from .arms import NOTE, Arm

LEAST_TRIALS = 4  # fewer say too little to choose by
ON = 3  # one setting in so many goes on to the next rung
SHARES = {"first": 0.3, "note": 0.1, "second": 0.2}  # of the time; the rest is the last rung's and its nulls'


@dataclass(frozen=True)
class Prompt:
    """What to paint.

    Attributes:
        things: what has to be there, as the judge is asked for it. builtin: whether it comes with this pack.
    """

    name: str
    text: str
    things: tuple[str, ...]
    language: str = ""
    builtin: bool = False


@dataclass(frozen=True)
class Reference:
    """A picture: its name, and ``key`` for its content."""

    name: str
    key: str
    builtin: bool = False


@dataclass(frozen=True)
class Trial:
    """A picture beside a prompt, by their places in the lists, and a seed."""

    picture: int
    prompt: int
    seed: int


def builtin_prompts() -> list[Prompt]:
    """Prompts in several languages and lengths."""
    content = json.loads(resources.files(__package__ or "").joinpath("prompts.json").read_text(encoding="utf-8"))
    return [Prompt(one["name"], one["text"], tuple(one["things"]), one["language"], True) for one in content]


def trials_of(pictures: int, prompts: int, seeds: int) -> list[Trial]:
    """All of them, in an order whose every beginning is spread over pictures and prompts as evenly as can be."""
    block = math.lcm(pictures, prompts)  # after so many steps along both lists the same couples would come again
    return [
        Trial(step % pictures, (step + step // block) % prompts, seed)
        for seed in range(seeds) for step in range(pictures * prompts)
    ]


# --- cells ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """All that cells are made of.

    Attributes:
        weights: what the weights are, so that cells of others are other cells.
    """

    models: Models
    references: tuple[Reference, ...]
    prompts: tuple[Prompt, ...]
    weights: str

    def words_alone(self, prompt: int, seed: int) -> Cell:
        return self._cell(Settings(strength=0.0), self.prompts[prompt].text, "", seed, "words alone")

    def bound(self, caption: str, seed: int) -> Cell:
        """A picture's own caption, painted by itself: all of its look that words can carry."""
        return self._cell(Settings(strength=0.0), caption, "", seed, "its own caption")

    def of(self, arm: Arm, trial: Trial, null: str = "") -> Cell:
        prompt, key = self.prompts[trial.prompt].text, self.references[trial.picture].key
        return self._cell(arm.settings, prompt, key, trial.seed, f"{arm.group}, {arm.label}", null)

    def _cell(self, settings: Settings, prompt: str, key: str, seed: int, label: str, null: str = "") -> Cell:
        extra = {**self.models.identity(), "prompt": prompt, "pictures": key, "weights": self.weights}
        if null:
            extra[NULL] = null
        return Cell((), settings, seed, label, tuple(extra.items()))


# --- rungs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rung:
    """Arms by id, the first so many trials of each, and whether their nulls of noise are painted too."""

    name: str
    arms: tuple[str, ...]
    trials: int
    noise: bool = False

    def cells(self, sheet: Sheet, arms: Mapping[str, Arm], trials: Sequence[Trial]) -> list[list[Cell]]:
        """Arm by arm."""
        found = [[sheet.of(arms[id], trial) for trial in trials[: self.trials]] for id in self.arms]
        if self.noise:
            found += [[sheet.of(arms[id], trial, NOISE) for trial in trials[: self.trials]] for id in self.arms]
        return found

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "arms": list(self.arms), "trials": self.trials, "noise": self.noise}


def first_rungs(arms: Sequence[Arm], cells: float, trials: int) -> list[Rung]:
    """All settings of all ways, and the note's, or those that there is time for: for so many cells."""
    chosen = fitting(arms, cells)
    competing = [arm.id for arm in chosen if arm.group != NOTE]
    note = [arm.id for arm in chosen if arm.group == NOTE]
    found = [Rung("first", tuple(competing), _trials(SHARES["first"] * cells, len(competing), trials))]
    if note:
        found.append(Rung("note", tuple(note), _trials(SHARES["note"] * cells, len(note), trials)))
    return found


def fitting(arms: Sequence[Arm], cells: float) -> list[Arm]:
    """Arms for whose least trials, and as many nulls of one of each way, there is time.

    First the note's comparisons are left out, then of each way's settings all but its own and every second, third, and
    so on; the way's own is always tried.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.group, []).append(arm)
    groups.pop(NOTE, None)

    def there_is_time(many: int) -> bool:
        return LEAST_TRIALS * (many + len(groups)) <= cells

    if there_is_time(len(arms)) or not groups:
        return list(arms)
    step, kept = 1, [arm for own in groups.values() for arm in own]
    while len(kept) > len(groups) and not there_is_time(len(kept)):
        step += 1
        kept = [arm for own in groups.values() for arm in _every(own, step)]
    return kept


def _every(arms: Sequence[Arm], step: int) -> list[Arm]:
    """Of a way's settings its own and every so manieth other, in their order."""
    plain = Settings(way=arms[0].settings.way)
    own = min(arms, key=lambda arm: (arm.settings.read_layer != plain.read_layer, arm.settings.strength != 1.0))
    others = [arm for arm in arms if arm is not own][step // 2 :: step]
    return [arm for arm in arms if arm is own or arm in others]


def next_rung(
    before: Rung, arms: Mapping[str, Arm], scores: Mapping[str, tuple[bool, float]], cells: float, trials: int
) -> Rung:
    """What goes on from a rung.

    Args:
        scores: of each arm that was painted, the better the larger.
        cells: that there is time for, all in all, without what is painted already.
    """
    groups: dict[str, list[str]] = {}
    for id in before.arms:
        groups.setdefault(arms[id].group, []).append(id)
    last = before.name == "second" or all(len(ids) <= ON for ids in groups.values())
    chosen = []
    for ids in groups.values():
        ranked = sorted(ids, key=lambda id: (scores[id], id), reverse=True)
        chosen += ranked[: 1 if last else math.ceil(len(ids) / ON)]
    chosen.sort(key=list(before.arms).index)
    if last:  # each trial is painted twice, once of noise, which no earlier rung has
        most = (cells + before.trials * len(chosen)) / 2
        return Rung("last", tuple(chosen), max(before.trials, _trials(most, len(chosen), trials)), True)
    more = SHARES["second"] / (1 - SHARES["first"] - SHARES["note"]) * cells
    return Rung("second", tuple(chosen), max(before.trials, _trials(
        more + before.trials * len(chosen), len(chosen), trials
    )))


def _trials(cells: float, arms: int, most: int) -> int:
    return min(most, max(LEAST_TRIALS, int(cells / max(1, arms))))
