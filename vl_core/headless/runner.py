"""Runs a study: paints what is not there yet, measures it, and keeps one line per cell in ``results.jsonl``.

A cell's picture is written first and its line after, each whole or not at all, so a run that is killed goes on where it
was. Lines are never written anew: what a finished cell says stays byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..artifacts import compare_artifacts, measure_fidelity
from ..sweep import Cell
from .painter import Needs, Painted, Painter
from .picture import save_png
from .progress import progress
from .study import UNSTEERED, Group, Study, baseline_of

RESULTS, CELLS = "results.jsonl", "cells"
LEAST_SIDE = 64  # pixels: artifacts need as many to be told

Rows = dict[str, dict[str, Any]]
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
        the study's rows by cell id, in its order. ``results.jsonl`` then holds them in that order, rows of other
        studies in the same folder behind.
    """
    (folder / CELLS).mkdir(parents=True, exist_ok=True)
    ledger = folder / RESULTS
    rows = read_rows(ledger)
    known = {id: row for id, row in rows.items() if (folder / row["picture"]).is_file()}
    todo = [(group, cell) for group, cell in study.cells if cell.id not in known]
    owners = {cell.id: (group, cell) for group, cell in study.cells}
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

    with progress("Painting", len(study.cells)) as move:
        move(len(study.cells) - len(todo), len(study.cells))
        for painted in paint([cell for _, cell in todo]) if todo else ():
            keep(painted)
            move()
    ordered = {cell.id: known[cell.id] for _, cell in study.cells}
    _reorder(ledger, list(ordered))
    return ordered


def local(study: Study, pictures: Mapping[str, Sequence[Tensor]]) -> Paint:
    """Paints one cell after the other, in this process."""

    def paint(cells: Sequence[Cell]) -> Iterable[Painted]:
        painter = Painter(study.models, pictures, needs_of(study))
        return map(painter.paint, cells)

    return paint


def needs_of(study: Study) -> Needs:
    return Needs(study.layers, study.needs_muted, study.needs_reference)


def read_rows(ledger: Path) -> Rows:
    """The finished cells by id; what was being written when a run was killed is cut off the file."""
    if not ledger.is_file():
        return {}
    content, found, end = ledger.read_bytes(), {}, 0
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        found[row["id"]] = row
        end += len(line)
    if end < len(content):
        with ledger.open("r+b") as file:
            file.truncate(end)
    return found


def _keep(
    folder: Path, ledger: Path, study: Study, group: Group, cell: Cell, baseline: Cell, painted: Painted,
    references: Sequence[Tensor], score: Score | None,
) -> dict[str, Any]:
    from PIL import Image

    settings, extra = cell.settings.effective(), dict(cell.extra)
    row: dict[str, Any] = {
        "id": cell.id, "label": cell.label, "group": group.name, "prompt": group.prompt, "pictures": list(group.files),
        "settings": settings, "seed": cell.seed, **{name: extra[name] for name in UNSTEERED},
        "picture": f"{CELLS}/{cell.id}.png", "baseline": baseline.id, "report": painted.report,
        "seconds": dict(painted.seconds),
    }
    path = folder / row["picture"]
    picture = torch.from_numpy(np.array(painted.pixels))
    beside = picture if baseline.id == cell.id else _read(folder / CELLS / f"{baseline.id}.png")
    row |= measure(picture, beside, references[0])
    if score is not None:
        row["scores"] = dict(score(picture, references[0], group.prompt))
    noted = {**row, "models": study.models.identity()}
    save_png(path, Image.fromarray(painted.pixels), noted)
    with ledger.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return row


def measure(picture: Tensor, baseline: Tensor, reference: Tensor) -> dict[str, Any]:
    """Artifacts of a picture, what is worse than in its baseline, and how much of the reference is in it."""
    found: dict[str, Any] = {"artifacts": None, "worse": [], "fidelity": None}
    if min(picture.shape[:2]) >= LEAST_SIDE:
        compared = compare_artifacts(picture, baseline)
        found["artifacts"] = _rounded(asdict(compared.picture))
        found["worse"] = list(compared.worse())
    found["fidelity"] = _rounded(asdict(measure_fidelity(picture, reference)))
    return found


def _read(path: Path) -> Tensor:
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def _reorder(ledger: Path, ids: Sequence[str]) -> None:
    """Lines in the study's order, as they are; all others behind."""
    lines = ledger.read_text(encoding="utf-8").splitlines(keepends=True) if ledger.is_file() else []
    by_id = {json.loads(line)["id"]: line for line in lines}
    ordered = [by_id[id] for id in ids] + [line for id, line in by_id.items() if id not in set(ids)]
    partial = ledger.with_suffix(".part")
    partial.write_text("".join(ordered), encoding="utf-8")
    os.replace(partial, ledger)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in values.items()}
