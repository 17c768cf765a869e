"""What a study has found, to look at: labelled grids as PNG, a summary, and one HTML page that needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...reports.artifacts import Artifacts
from ...reports.fidelity import Fidelity
from ...reports.grid import draw_grid
from ...states.files import write_whole
from ...steering.sweep import Plan
from ...zimage.files import save_png
from ..pages import write_page
from .nulls import NULLS
from .runner import Controls, Rows, nulls_in
from .study import Study
from .summary import Line, in_words, markdown, summarize, to_csv

LIKENESS = [field.name for field in fields(Fidelity)]
ARTIFACTS = [field.name for field in fields(Artifacts)]
PAGE, GRIDS, REFERENCES = "index.html", "grids", "references"
WIDEST = 320  # pixels of a picture on the page; small ones are shown at their own size


def write_report(
    study: Study, rows: Rows, pictures: Mapping[str, Sequence[Tensor]], folder: Path
) -> tuple[Path, list[Path]]:
    """The page; the grids, those of nulls among them, and the summary, beside ``results.jsonl``."""
    from PIL import Image

    controls = nulls_in(rows)
    grids: dict[str, list[str]] = {}
    shown: dict[str, list[str]] = {}
    for number, group in enumerate(study.groups, 1):
        references = pictures[group.key]
        for kind in ("", *study.nulls):
            name = f"{number:03}-{_plain(group.name)}" + (f"-null-{kind}" if kind else "")
            title = f"{group.prompt} (null control: {NULLS[kind]})" if kind else group.prompt
            files = {
                cell.id: folder / controls.get((cell.id, kind), rows[cell.id])["picture"] for cell in group.plan.unique
            }
            grids.setdefault(group.name, []).extend(_save_grid(folder, name, title, group.plan, files, references))
        for index, reference in enumerate(references):
            name = f"{REFERENCES}/{group.key}-{index}.png"
            if not (folder / name).is_file():
                save_png(folder / name, Image.fromarray(reference.numpy()), {})
            if name not in shown.setdefault(group.key, []):
                shown[group.key].append(name)
    lines, found = summarize(study, rows), {"summary.csv": to_csv, "summary.md": _markdown}
    for name, write in found.items():
        write_whole(folder / name, write(lines))
    page = write_page(
        folder / PAGE, "compare/report.html",
        title=f"{study.title}: {', '.join(dict.fromkeys(group.prompt for group in study.groups))}"[:120],
        study=study, models=_models(study), side=min(WIDEST, max(study.models.width, 128)), names=NULLS, rows=rows,
        controls=controls, shown=shown, grids=grids, figures=_names(lines), settings=_settings(lines),
        scores=list(dict.fromkeys(name for row in rows.values() for name in row.get("scores", {}))),
        script=_script_rows(rows, controls),
    )
    return page, [folder / name for names in (*grids.values(), found) for name in names]


def _save_grid(
    folder: Path, name: str, title: str, plan: Plan, files: Mapping[str, Path], references: Sequence[Tensor]
) -> list[str]:
    """A plan's pictures, from files by cell id, as PNGs; their names."""
    from PIL import Image

    painted = {id: _pixels(file) for id, file in files.items()}
    pages, names = draw_grid(plan, painted, references, title=title).pages, []
    for number, pixels in enumerate(pages, 1):
        names.append(f"{GRIDS}/{name}" + (f"-{number}" if len(pages) > 1 else "") + ".png")
        save_png(folder / names[-1], Image.fromarray(pixels), {"plan": plan.as_dict()})
    return names


def _markdown(lines: Sequence[Line]) -> str:
    """Scores if there are any, else the likeness to the reference."""
    scores = [name for name in _names(lines) if name not in ARTIFACTS and name not in LIKENESS]
    return markdown(lines, scores or LIKENESS)


def _names(lines: Sequence[Line]) -> list[str]:
    """Figures in the order of tables: scores, likeness, artifacts."""
    found = dict.fromkeys(line.figure for line in lines)
    return sorted(found, key=lambda name: (name in ARTIFACTS, name in LIKENESS))


def _settings(lines: Sequence[Line]) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Of every setting its name, its pairs, and a cell per figure: the mean, its words, and those of its nulls."""
    found = []
    for setting in dict.fromkeys(line.setting for line in lines):
        own = [line for line in lines if line.setting == setting]
        cells = []
        for name in _names(lines):
            of = [line for line in own if line.figure == name]
            first, *nulls = in_words(of) if of else [""]
            named = [(NULLS[line.null], null) for line, null in zip(of, nulls, strict=False) if line.null]
            cells.append({"mean": of[0].mean if of else float("nan"), "words": first, "nulls": named})
        found.append((setting, max(line.pairs for line in own), cells))
    return found


def _models(study: Study) -> str:
    known = {name: value for name, value in study.models.identity().items() if value not in ("", None)}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in known.items())


def _script_rows(rows: Rows, controls: Controls) -> dict[str, Any]:
    """What the page's script shows of each cell."""
    def nulls(id: str) -> list[dict[str, str]]:
        own = [(name, controls.get((id, kind))) for kind, name in NULLS.items()]
        return [{"picture": null["picture"], "label": f"null: {name}"} for name, null in own if null]

    return {
        id: {
            "nulls": nulls(id),
            "picture": row["picture"], "baseline": rows.get(row["baseline"], row)["picture"], "label": row["label"],
            "words": f"{row['report']}\n\n{json.dumps(row['settings'], ensure_ascii=False)}, seed {row['seed']}"
            + "".join(f"\n{name} {value:.3g}" for name, value in row.get("scores", {}).items()),
        }
        for id, row in rows.items()
    }


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def _plain(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name).strip("-")[:60]
