"""Every setting of a study in figures: means over pictures, prompts and seeds, each beside its nulls.

Seeds of one picture and prompt are averaged first, because they are no independent findings: a mean is over the pairs
of a picture and a prompt, and ± is its standard error over them. A difference is taken pair by pair and has its own
error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...states.fields import to_csv as rows_to_csv
from ...steering.axes import SEED
from ...steering.sweep import Cell
from .nulls import NULLS
from .runner import Rows, figures_of, nulls_in
from .study import Study

SURE = 2.0  # standard errors from 0
LEAST_PAIRS = 5  # fewer say too little about their own error


@dataclass(frozen=True)
class Line:
    """One figure of one setting; None where there is nothing to tell.

    Attributes:
        pairs: of a picture and a prompt.
        mean, error: of the figure. ``over_words``, ``over_words_error``: what is more than with the words alone.
        null: which control, "" for none; ``null_mean``, ``null_error`` of the figure there.
        difference, difference_error: what the setting has more than the control.
    """

    setting: str
    figure: str
    pairs: int
    mean: float
    error: float | None
    over_words: float
    over_words_error: float | None
    null: str = ""
    null_mean: float | None = None
    null_error: float | None = None
    difference: float | None = None
    difference_error: float | None = None

    @property
    def is_shown(self) -> bool:
        """Whether setting and control differ by two standard errors of the difference, over five pairs or more."""
        if self.pairs < LEAST_PAIRS or self.difference is None or self.difference_error is None:
            return False
        return abs(self.difference) > SURE * self.difference_error


def summarize(study: Study, rows: Rows) -> list[Line]:
    """A line per setting, figure and null, in the study's order."""
    cells: dict[str, dict[int, list[str]]] = {}  # setting -> pair -> ids of its seeds
    for pair, group in enumerate(study.groups):
        for cell in group.plan.unique:
            cells.setdefault(setting_of(cell), {}).setdefault(pair, []).append(cell.id)
    lines, controls = [], nulls_in(rows)
    for setting, pairs in cells.items():
        names = dict.fromkeys(name for ids in pairs.values() for id in ids for name in figures_of(rows[id]))
        kinds = [kind for kind in study.nulls if all((id, kind) in controls for ids in pairs.values() for id in ids)]
        for name in names:
            own = _means(pairs, name, lambda id: rows[id])
            words = _means(pairs, name, lambda id: rows[rows[id]["baseline"]])
            if not np.isfinite(own).any():
                continue
            first = (setting, name, int(np.isfinite(own).sum()), *_mean(own), *_mean(own - words))
            for kind in kinds:
                null = _means(pairs, name, lambda id, kind=kind: controls[id, kind])
                lines.append(Line(*first, kind, *_mean(null), *_mean(own - null)))
            if not kinds:
                lines.append(Line(*first))
    return lines


def setting_of(cell: Cell) -> str:
    """A cell's values on its axes in words, whatever its seed."""
    parts = [part for part in cell.label.split(", ") if not part.startswith(f"{SEED} ")]
    return ", ".join(parts) or "base"


def to_csv(lines: Sequence[Line]) -> str:
    """Comma separated, a head line first; empty where there is nothing to tell."""
    return rows_to_csv(Line, lines, 6)


def markdown(lines: Sequence[Line], figures: Sequence[str]) -> str:
    """A table: a row per setting, the figures one after the other, each with its nulls behind a slash.

    A star says that the figure differs from every one of its nulls: :attr:`Line.is_shown`.
    """
    kinds = list(dict.fromkeys(line.null for line in lines if line.null))
    rows = ["| setting | " + " | ".join(figures) + " |", "|---|" + "---|" * len(figures)]
    for setting in dict.fromkeys(line.setting for line in lines):
        cells = []
        for figure in figures:
            found = [line for line in lines if (line.setting, line.figure) == (setting, figure)]
            cells.append(" / ".join(in_words(found)) if found else "")
        rows.append(f"| {setting} | " + " | ".join(cells) + " |")
    if kinds:
        rows += ["", f"Behind a slash: the null controls, {', '.join(NULLS[kind] for kind in kinds)}."]
    return "\n".join(rows) + "\n"


def in_words(found: Sequence[Line]) -> list[str]:
    """One setting's figure, then its nulls: "0.25 ± 0.02*", "0.11"."""
    star = "*" if all(line.null and line.is_shown for line in found) else ""
    own = found[0]
    first = _shown(own.mean) + (f" ± {_shown(own.error)}" if own.error is not None else "") + star
    return [first, *(_shown(line.null_mean) for line in found if line.null_mean is not None)]


def _shown(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")


def _means(pairs: Mapping[int, list[str]], name: str, row_of: Callable[[str], Mapping[str, Any]]) -> np.ndarray:
    """Per pair the mean of a figure over the rows of its cells, NaN where one lacks it."""
    return np.array([np.mean([figures_of(row_of(id)).get(name, math.nan) for id in ids]) for ids in pairs.values()])


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    """Mean and standard error of those that are finite."""
    kept = values[np.isfinite(values)]
    error = float(kept.std(ddof=1) / math.sqrt(len(kept))) if len(kept) > 1 else None
    return float(kept.mean()), error
