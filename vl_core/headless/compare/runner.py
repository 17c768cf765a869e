"""Runs a study: paints what is not there yet, measures it, and keeps a line per cell and null in ``results.jsonl``.

A cell's picture is written first and its line after, each whole or not at all, so a run that is killed goes on where it
was. Lines are never written anew: what a finished cell says stays byte for byte.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...pictures import read_picture
from ...reports.artifacts import compare_artifacts
from ...reports.fidelity import measure_fidelity
from ...states.files import check_content, parse_json, write_whole
from ...states.headers import Header
from ...steering.sweep import Cell
from ...zimage.files import SETTINGS_KEY, save_png
from ...zimage.progress import progress
from .nulls import NULLS
from .painter import Painted, Painter
from .study import PLAINLY, Control, Group, Study, baseline_of

log = logging.getLogger(__name__)

RESULTS, CELLS = "results.jsonl", "cells"
LEAST_SIDE = 64  # pixels: artifacts need as many to be told

Rows = dict[str, dict[str, Any]]
Controls = dict[tuple[str, str], dict[str, Any]]  # rows of nulls by the cell they belong to and their kind
Paint = Callable[[Sequence[Cell]], Iterable[Painted]]
Score = Callable[[Tensor, Tensor, str], Mapping[str, float]]  # picture, reference, prompt -> figures


def run_study(
    study: Study, pictures: Mapping[str, Sequence[Tensor]], folder: Path, paint: Paint, score: Score | None = None
) -> Rows:
    """Paint and measure every cell that ``folder`` lacks.

    Args:
        pictures: by a group's key.
        paint: turns cells into pictures, in any order.
        score: further figures of a picture beside its reference.

    Returns:
        the study's rows by id, in its order, a cell's nulls behind it. ``results.jsonl`` then holds them in that
        order, rows of other studies in the same folder behind.
    """
    (folder / CELLS).mkdir(parents=True, exist_ok=True)
    ledger = folder / RESULTS
    rows = read_rows(ledger)
    known = {id: row for id, row in rows.items() if _is_whole(row) and (folder / row["picture"]).is_file()}
    owners = {cell.id: (group, cell) for group, cell in study.cells}
    # A null's picture has no line of its own before it is compared; a file that is there is whole.
    todo = [
        cell for cell in study.painted
        if cell.id not in known and (cell.id in owners or not _file(folder, cell).is_file())
    ]
    waiting: dict[str, list[Painted]] = {}  # by the baseline they are compared with

    def keep(painted: Painted) -> None:
        group, cell = owners[painted.id]
        baseline = baseline_of(group.plan, cell)
        if baseline.id != cell.id and baseline.id not in known:
            waiting.setdefault(baseline.id, []).append(painted)
            return
        row = _keep(folder, ledger, study, group, cell, baseline, painted, pictures[group.key], score)
        known[cell.id] = row
        for other in waiting.pop(cell.id, ()):
            keep(other)

    with progress("Painting", len(study.painted)) as move:
        move(len(study.painted) - len(todo), len(study.painted))
        for painted in paint(todo) if todo else ():
            if painted.id in owners:
                keep(painted)
            else:
                _save(folder / CELLS / f"{painted.id}.png", painted, study)
            move()
    with progress("Measuring nulls", len(study.controls)) as move:
        for control in study.controls:
            if control.id not in known:
                known[control.id] = _keep_null(folder, ledger, study, control, known, pictures, score)
            move()
    ids = [cell.id for _, cell in study.cells]
    nulls: dict[str, list[str]] = {}
    for control in study.controls:
        nulls.setdefault(control.cell.id, []).append(control.id)
    ordered = {id: known[id] for cell in ids for id in (cell, *nulls.get(cell, ()))}
    _reorder(ledger, list(ordered))
    return ordered


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """All that was measured of a picture, by name."""
    return {**(row["artifacts"] or {}), **row["fidelity"], **row.get("scores", {})}


def nulls_in(rows: Rows) -> Controls:
    """Those of the rows that are nulls."""
    return {(row["of"], row["null"]): row for row in rows.values() if "null" in row}


def local(study: Study, pictures: Mapping[str, Sequence[Tensor]]) -> Paint:
    """Paints one cell after the other, in this process."""

    def paint(cells: Sequence[Cell]) -> Iterable[Painted]:
        painter = Painter(study.models, pictures, study.settings)
        return map(painter.paint, cells)

    return paint


class Line(Header):
    """What every line of the results has."""

    id: Annotated[str, Field(pattern=r"^[\w.-]+$")]


class Row(Line):
    """A line that says all that was measured of a cell or null, so that it need not be painted again."""

    picture: Annotated[str, Field(pattern=rf"^{CELLS}/[\w.-]+\.png$")]
    prompt: str
    settings: dict[str, Any]
    artifacts: dict[str, float] | None
    fidelity: dict[str, float]
    scores: dict[str, float] = Field(default_factory=dict)
    seconds: dict[str, float]
    report: str


def read_rows(ledger: Path) -> Rows:
    """The finished cells by id; what was being written when a run was killed is cut off the file.

    A line that is damaged, or is no row, is passed over with a warning; the rows behind it are kept.
    """
    return {id: row for id, (row, _) in _lines_of(ledger).items()}


def _is_whole(row: Mapping[str, Any]) -> bool:
    try:
        check_content(Row, row, "it")
    except ValueError:
        return False
    return True


def _lines_of(ledger: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Rows by id, each with the line that it is."""
    if not ledger.is_file():
        return {}
    content, found = ledger.read_bytes(), {}
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with ledger.open("r+b") as file:
            file.truncate(end)
    for number, line in enumerate(content[:end].split(b"\n")[:-1], 1):
        try:
            text = line.decode("utf-8")
            row = parse_json(text, "it")
            found[check_content(Line, row, "it").id] = row, text + "\n"
        except ValueError as error:
            log.warning("%s: line %d is passed over (%s)", ledger, number, error)
    return found


def _keep(
    folder: Path, ledger: Path, study: Study, group: Group, cell: Cell, baseline: Cell, painted: Painted,
    references: Sequence[Tensor], score: Score | None,
) -> dict[str, Any]:
    row = _head(group, cell, baseline) | {"report": painted.report, "seconds": dict(painted.seconds)}
    picture = torch.from_numpy(np.array(painted.pixels))
    beside = picture if baseline.id == cell.id else _read(_file(folder, baseline))
    row |= measure(picture, beside, references[0], group.prompt, score)
    _save(folder / row["picture"], painted, study, row)
    append_row(ledger, row)
    return row


def _keep_null(
    folder: Path, ledger: Path, study: Study, control: Control, known: Rows,
    pictures: Mapping[str, Sequence[Tensor]], score: Score | None,
) -> dict[str, Any]:
    """A null beside the same words alone and the same reference as its cell; what the cell has more than it."""
    group, cell = control.group, control.cell
    file, baseline = _file(folder, control.painted), baseline_of(group.plan, cell)
    noted = _noted(file)
    row = _head(group, cell, baseline) | {
        "id": control.id, "null": control.kind, "of": cell.id, "label": f"{cell.label}, null: {NULLS[control.kind]}",
        "picture": f"{CELLS}/{file.name}", "report": noted["report"], "seconds": noted["seconds"],
    }
    row |= measure(_read(file), _read(_file(folder, baseline)), pictures[group.key][0], group.prompt, score)
    theirs = figures_of(row)
    row["difference"] = rounded({
        name: value - theirs[name] for name, value in figures_of(known[cell.id]).items() if name in theirs
    })
    append_row(ledger, row)
    return row


def _head(group: Group, cell: Cell, baseline: Cell) -> dict[str, Any]:
    """What is known of a cell before it is painted."""
    extra = dict(cell.extra)
    return {
        "id": cell.id, "label": cell.label, "group": group.name, "prompt": group.prompt, "pictures": list(group.files),
        "settings": cell.settings.effective(), "seed": cell.seed, **{name: extra[name] for name in PLAINLY},
        "picture": f"{CELLS}/{cell.id}.png", "baseline": baseline.id,
    }


def _file(folder: Path, cell: Cell) -> Path:
    return folder / CELLS / f"{cell.id}.png"


def _save(path: Path, painted: Painted, study: Study, row: Mapping[str, Any] | None = None) -> None:
    from PIL import Image

    noted = row or {"id": painted.id, "report": painted.report, "seconds": dict(painted.seconds)}
    save_png(path, Image.fromarray(painted.pixels), {**noted, "models": study.models.identity()})


def append_row(ledger: Path, row: Mapping[str, Any]) -> None:
    """A line more, on disk before this returns."""
    with ledger.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def measure(
    picture: Tensor, baseline: Tensor, reference: Tensor, prompt: str = "", score: Score | None = None
) -> dict[str, Any]:
    """Artifacts of a picture, what is worse than in its baseline, how much of the reference is in it, and scores."""
    found: dict[str, Any] = {"artifacts": None, "worse": [], "fidelity": None}
    if min(picture.shape[:2]) >= LEAST_SIDE:
        compared = compare_artifacts(picture, baseline)
        found["artifacts"] = rounded(asdict(compared.picture))
        found["worse"] = list(compared.worse())
    found["fidelity"] = rounded(asdict(measure_fidelity(picture, reference)))
    if score is not None:
        found["scores"] = dict(score(picture, reference, prompt))
    return found


def _read(path: Path) -> Tensor:
    try:
        return read_picture(path)
    except ValueError as error:
        raise ValueError(f"{error} It lies in {path.parent}; run again after removing it.") from error


class Noted(Header):
    """What a null's picture says of itself."""

    report: str
    seconds: dict[str, float]


def _noted(path: Path) -> dict[str, Any]:
    """What was noted in a PNG's text chunk."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = dict(image.text).get(SETTINGS_KEY, "")
    except Exception as error:  # PIL's readers raise whatever damaged bytes lead them to
        raise ValueError(f"{path.name}: cannot be read as a picture. Remove {path}, and run again.") from error
    return check_content(Noted, parse_json(text, path.name), path.name).model_dump()


def _reorder(ledger: Path, ids: Sequence[str]) -> None:
    """Lines in the study's order, as they are; all others behind."""
    by_id = {id: line for id, (_, line) in _lines_of(ledger).items()}
    ordered = [by_id[id] for id in ids] + [line for id, line in by_id.items() if id not in set(ids)]
    write_whole(ledger, "".join(ordered))


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Figures to six digits, as lines hold them."""
    return {name: float(f"{value:.6g}") for name, value in values.items()}
