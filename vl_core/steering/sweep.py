"""Sweeps: which settings vary over which values, and the cells that makes.

A plan is a value: the same axes in the same order give the same cells, ids and hash on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from ..states.fields import Value, quoted
from .axes import MAX_CELLS, SEED, SWEPT, Axis
from .settings import AUTOMATIC, FIELDS, OPEN_BLEND, WORDS_ONLY, Settings, rename
from .way import find_way

VERSION = 1  # of the JSON
DEFAULTS = Settings()


@dataclass(frozen=True)
class Cell:
    """One picture to paint.

    Attributes:
        place: its index on every axis, in the plan's order; empty for a baseline.
        settings, seed: how to paint it; ``extra`` what the plan carries besides, such as a prompt.
        label: its values on the axes in words, ``"alpha 0.3, layer -2"``.
    """

    place: tuple[int, ...]
    settings: Settings
    seed: int
    label: str
    extra: tuple[tuple[str, Value], ...] = ()

    @cached_property
    def id(self) -> str:
        """16 hex digits from everything that makes a difference to the picture: cells of one id are one picture."""
        return _digest({"settings": self.settings.effective(), SEED: self.seed, "extra": dict(self.extra)})[:16]

    @property
    def words_only(self) -> bool:
        """Whether no picture steers it: the baseline all others are compared with."""
        return self.settings.words_only


@dataclass(frozen=True)
class Plan:
    """Axes, and what holds where no axis says otherwise. Build it with :func:`make_plan`.

    Attributes:
        axes: the first goes along columns, the second along rows, all further ones over pages.
        base: settings that no axis names; ``seed`` and ``extra`` likewise.
        baseline: whether the words alone are painted as well, once per seed and value of ``extra``.
    """

    axes: tuple[Axis, ...]
    base: Settings = DEFAULTS
    seed: int = 0
    extra: tuple[tuple[str, Value], ...] = ()
    baseline: bool = True

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell: the first axis moves fastest, the last slowest."""
        ranges = [range(len(axis.values)) for axis in reversed(self.axes)]
        return tuple(self._cell(tuple(reversed(place))) for place in product(*ranges))

    @cached_property
    def baselines(self) -> tuple[Cell, ...]:
        """The words alone, for each seed and value of ``extra``; none if the plan does without."""
        if not self.baseline:
            return ()
        found: dict[str, Cell] = {}
        for cell in self.cells:
            words = replace(cell, place=(), settings=_without_picture(cell.settings), label=WORDS_ONLY)
            found.setdefault(words.id, words)
        if len(found) == 1:
            return tuple(found.values())
        varied = [axis for axis in self.axes if axis.name == SEED or axis.name in dict(self.extra)]
        return tuple(
            replace(cell, label=", ".join([WORDS_ONLY, *(axis.label(_value(cell, axis.name)) for axis in varied)]))
            for cell in found.values()
        )

    @cached_property
    def unique(self) -> tuple[Cell, ...]:
        """What has to be painted: baselines and cells, each picture once, in order."""
        found: dict[str, Cell] = {}
        for cell in (*self.baselines, *self.cells):
            found.setdefault(cell.id, cell)
        return tuple(found.values())

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(pages, rows, columns)``."""
        columns, rows, *rest = [*(len(axis.values) for axis in self.axes), 1, 1][: max(2, len(self.axes))]
        pages = 1
        for count in rest:
            pages *= count
        return pages, rows, columns

    def pages(self) -> list[tuple[str, list[list[Cell]]]]:
        """Cells as tables: for each page its title ("" if there is one only) and its rows of cells."""
        pages, rows, columns = self.shape
        tables = []
        for page in range(pages):
            start = page * rows * columns
            table = [list(self.cells[start + row * columns :][:columns]) for row in range(rows)]
            place = table[0][0].place
            names = [axis.label(axis.values[index]) for axis, index in zip(self.axes[2:], place[2:], strict=True)]
            tables.append((", ".join(names), table))
        return tables

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The words alone with this cell's seed and extra; None if the plan does without."""
        words = replace(cell, settings=_without_picture(cell.settings))
        return next((one for one in self.baselines if one.id == words.id), None)

    @property
    def hash(self) -> str:
        """64 hex digits of the plan's JSON."""
        return _digest(self.as_dict())

    def describe(self) -> str:
        """One line: the axes, how many cells, how many pictures."""
        axes = " × ".join(f"{len(axis.values)} {axis.title}" for axis in self.axes) or "no axis"
        same = len(self.cells) + len(self.baselines) - len(self.unique)
        alike = f", {_count(same, 'cell')} being the same as another" if same else ""
        return f"{axes}: {_count(len(self.cells), 'cell')}, {_count(len(self.unique), 'picture')} to paint{alike}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {
            "version": VERSION, "axes": [{"name": axis.name, "values": list(axis.values)} for axis in self.axes],
            "base": self.base.as_dict(), SEED: self.seed, "extra": dict(self.extra), "baseline": self.baseline,
        }

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, limit: int = MAX_CELLS) -> Plan:
        """What :meth:`to_json` gave.

        Args:
            limit: most cells; counted before anything is built, for a plan may come from anybody's workflow.

        Raises:
            ValueError: for anything else, and see :func:`make_plan`.
        """
        try:
            content = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"plan: expected the plan of a sweep as JSON, got {str(text)[:40]!r}.") from error
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError(f"plan: expected the plan of a sweep, version {VERSION}, got {str(text)[:40]!r}.")
        try:
            count = math.prod(len(axis["values"]) for axis in content["axes"])
            if count > limit:
                raise ValueError(f"plan: expected at most {limit} cells, got {count}. Shorten an axis.")
            axes = [Axis(axis["name"], tuple(axis["values"])) for axis in content["axes"]]
            return make_plan(
                axes, content["base"], content[SEED], extra=content["extra"], baseline=content["baseline"], limit=limit
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"plan: lacks or garbles {error}.") from error

    def _cell(self, place: tuple[int, ...]) -> Cell:
        chosen = {axis.name: axis.values[index] for axis, index in zip(self.axes, place, strict=True)}
        label = ", ".join(axis.label(chosen[axis.name]) for axis in self.axes)
        settings = {name: value for name, value in chosen.items() if name in SWEPT and name != SEED}
        try:
            merged = self.base.with_values(settings)
        except ValueError as error:
            raise ValueError(f"{error} In the cell {label or 'without axes'}.") from error
        extra = tuple((name, chosen.get(name, value)) for name, value in self.extra)
        return Cell(place, merged, int(chosen.get(SEED, self.seed)), label or "base", extra)


def make_plan(
    axes: Sequence[Axis],
    base: Settings | Mapping[str, Value] = DEFAULTS,
    seed: int = 0,
    *,
    extra: Mapping[str, Value] | None = None,
    baseline: bool = True,
    limit: int = MAX_CELLS,
) -> Plan:
    """The plan of a sweep, checked to the last cell before anything runs.

    Args:
        axes: none is a plan of one cell.
        base: settings that no axis names; as a mapping it need not hold together without the axes' values, each within
            its own bounds.
        extra: further values that cells carry, such as a prompt or a strength of img2img; an axis may vary them.
        limit: most cells.

    Raises:
        ValueError: for an axis that there is not or that is there twice, too many cells, settings that do not go
            together in some cell (named), or an axis that makes no difference to any picture.
    """
    extra = dict(extra or {})
    names = [axis.name for axis in axes]
    for name in names:
        if name not in SWEPT and name not in extra:
            raise ValueError(f"axis: expected one of {', '.join([*SWEPT, *extra])}, got {quoted(name)}.")
        if names.count(name) > 1:
            raise ValueError(f"axis: expected every setting on one axis, got {name} on {names.count(name)}.")
    if taken := sorted(set(extra) & set(SWEPT)):
        raise ValueError(f"extra: expected names that no setting has, got {', '.join(taken)}.")
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > limit:
        sizes = " × ".join(str(len(axis.values)) for axis in axes)
        raise ValueError(f"axes: expected at most {limit} cells, got {sizes} = {count}. Use fewer values.")
    given: dict[str, Any] = base.as_dict() if isinstance(base, Settings) else dict(base)
    first = {axis.name: axis.values[0] for axis in axes if axis.name in SWEPT and axis.name != SEED}
    given, first = rename(given), rename(first, given.get("way", AUTOMATIC))
    for name in given:
        if name in first:  # nobody else would look at the base's own
            FIELDS[name].check(name, find_way(given[name]).name if name == "way" else given[name])
    base = Settings.from_dict({**given, **first})
    plan = Plan(tuple(axes), base, int(SWEPT[SEED].check(SEED, seed)), tuple(extra.items()), baseline)
    for number, axis in enumerate(plan.axes):
        if len(axis.values) > 1 and not _matters(plan, number):
            raise ValueError(
                f"{axis.title}: makes no difference to any cell, because {_why_not(plan, axis.name)}. Change that, or "
                "choose another axis."
            )
    return plan


def _matters(plan: Plan, number: int) -> bool:
    """Whether two cells that differ on this axis alone are ever two pictures."""
    first: dict[tuple, str] = {}
    for cell in plan.cells:
        others = cell.place[:number] + cell.place[number + 1 :]
        if first.setdefault(others, cell.id) != cell.id:
            return True
    return False


def _why_not(plan: Plan, name: str) -> str:
    settings = [cell.settings for cell in plan.cells]
    if all(one.strength == 0 for one in settings):
        return "every strength is 0, which is the words alone"
    using = [one for one in settings if name in one.row.uses]
    if using and name.startswith("outlier_"):
        modes = ", ".join(dict.fromkeys(one.outlier_mode for one in using))
        if any(one.outlier_mode != "none" for one in using) and name != "outlier_gamma":
            return "outliers are changed in image tokens only and the method mixes words only"
        return f"the outlier mode is {modes}"
    ways = ", ".join(dict.fromkeys(one.method if one.way == OPEN_BLEND else one.way for one in settings))
    return f"{ways} does not use it"


def _value(cell: Cell, name: str) -> Value:
    return cell.seed if name == SEED else dict(cell.extra)[name]


def _without_picture(settings: Settings) -> Settings:
    return replace(settings, strength=0.0, described=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _digest(content: dict) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
