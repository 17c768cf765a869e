"""What a study has found, to look at: labelled grids as PNG, a summary, and one HTML page that needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from torch import Tensor

from ...reports.artifacts import Artifacts
from ...reports.fidelity import Fidelity
from ...reports.grid import draw_grid
from ...steering.sweep import Cell, Plan
from ...zimage.files import save_png
from .nulls import NULLS
from .runner import Controls, Rows, nulls_in
from .study import Group, Study
from .summary import Line, in_words, markdown, summarize, to_csv

LIKENESS = [field.name for field in fields(Fidelity)]
ARTIFACTS = [field.name for field in fields(Artifacts)]
PAGE, GRIDS, REFERENCES = "index.html", "grids", "references"
TEMPLATE, STYLE = "report.html", "style.css"
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
        (folder / name).write_text(write(lines), encoding="utf-8")
    page = folder / PAGE
    own, style = (
        resources.files(__package__ or "").joinpath(name).read_text(encoding="utf-8") for name in (TEMPLATE, STYLE)
    )
    side = min(WIDEST, max(study.models.width, 128))
    page.write_text(
        Template(own).substitute(
            title=escape(f"{study.title}: {', '.join(dict.fromkeys(group.prompt for group in study.groups))}"[:120]),
            summary=escape(study.describe()), models=escape(_models(study)), side=side, style=style,
            settings=_settings(lines), nulls=escape(", ".join(NULLS[kind] for kind in study.nulls) or "none"),
            groups="\n".join(
                _group(group, rows, controls, shown[group.key], grids[group.name]) for group in study.groups
            ),
            table=_table(rows), rows=_script_rows(rows, controls),
        ),
        encoding="utf-8",
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
    return list(dict.fromkeys(line.figure for line in lines))


def _settings(lines: Sequence[Line]) -> str:
    """The summary as a table: scores, likeness, artifacts; a figure above those of its nulls."""
    names = sorted(_names(lines), key=lambda name: (name in ARTIFACTS, name in LIKENESS))
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in ("setting", "pairs", *names))
    body = []
    for setting in dict.fromkeys(line.setting for line in lines):
        own = {name: [line for line in lines if (line.setting, line.figure) == (setting, name)] for name in names}
        pairs = max(line.pairs for found in own.values() for line in found)
        cells = [f'<td class="label">{escape(setting)}</td>', _number(pairs, "d")]
        for found in own.values():
            first, *nulls = in_words(found) if found else [""]
            words = "".join(
                f'<br><span class="dim">{escape(NULLS[line.null])} {null}</span>'
                for line, null in zip(found, nulls, strict=True) if line.null
            ) if nulls else ""
            value = found[0].mean if found else float("nan")
            cells.append(f'<td class="num" data-value="{value}"><strong>{escape(first)}</strong>{words}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"


def _models(study: Study) -> str:
    known = {name: value for name, value in study.models.identity().items() if value not in ("", None)}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in known.items())


def _group(group: Group, rows: Rows, controls: Controls, references: Sequence[str], grids: Sequence[str]) -> str:
    """A heading, the references, the words alone, and every cell where its axes put it, its nulls beside it."""
    head = [f"<h2>{escape(group.prompt)}</h2>"]
    links = ", ".join(f'<a href="{escape(name)}">{escape(Path(name).name)}</a>' for name in grids)
    head.append(f'<p class="dim">{escape(", ".join(group.files))} · as one picture: {links}</p>')
    plain = "".join(
        f'<figure><img src="{escape(name)}" alt="reference" loading="lazy"><figcaption>reference</figcaption></figure>'
        for name in references
    )
    plain += "".join(_figure(rows[cell.id], cell.label) for cell in group.plan.baselines)
    return "\n".join([*head, f'<div class="row">{plain}</div>', *_pages(group.plan, rows, controls)])


def _pages(plan: Plan, rows: Rows, controls: Controls) -> list[str]:
    parts = []
    for title, table in plan.pages():
        parts += [f"<h3>{escape(title)}</h3>"] if title else []
        if len(plan.axes) < 2:
            found = "".join(_beside(cell, rows, cell.label, controls) for cell in table[0])
            parts.append(f'<div class="row">{found}</div>')
            continue
        across, down = plan.axes[:2]
        head = "".join(f"<th>{escape(across.label(value))}</th>" for value in across.values)
        body = "".join(
            f"<tr><th>{escape(down.label(value))}</th>"
            + "".join(f"<td>{_beside(cell, rows, '', controls)}</td>" for cell in cells) + "</tr>"
            for value, cells in zip(down.values, table, strict=True)
        )
        parts.append(f'<div class="scroll"><table class="grid"><tr><th></th>{head}</tr>{body}</table></div>')
    return parts


def _beside(cell: Cell, rows: Rows, label: str, controls: Controls) -> str:
    """A cell, and its nulls in one frame with it."""
    nulls = [(name, controls[cell.id, kind]) for kind, name in NULLS.items() if (cell.id, kind) in controls]
    if not nulls:
        return _figure(rows[cell.id], label)
    shown = "".join(f'<div class="null">{_figure(null, f"null: {name}")}</div>' for name, null in nulls)
    return f'<div class="beside">{_figure(rows[cell.id], label or "the picture itself")}{shown}</div>'


def _figure(row: Mapping[str, Any], label: str) -> str:
    worse = f'<br><span class="worse">more {escape(_worse(row))}</span>' if row["worse"] else ""
    text = f"{escape(label)}<br>" if label else ""
    return (
        f'<figure><button data-id="{row["id"]}" aria-label="{escape(row["label"])}">'
        f'<img src="{escape(row["picture"])}" alt="{escape(row["label"])}" loading="lazy"></button>'
        f"<figcaption>{text}palette "
        f'{row["fidelity"]["palette_distance"]:.2f}, layout {row["fidelity"]["lightness_layout"]:.2f}{worse}'
        "</figcaption></figure>"
    )


def _worse(row: Mapping[str, Any]) -> str:
    return ", ".join(name.replace("_", " ") for name in row["worse"])


def _table(rows: Rows) -> str:
    scores = list(dict.fromkeys(name for row in rows.values() for name in row.get("scores", {})))
    heads = ["prompt", "cell", "null", "seed", "palette", "light and dark", "colours", "worse", *scores, "seconds"]
    lines = []
    for row in rows.values():
        fidelity = row["fidelity"]
        figures = [fidelity[name] for name in ("palette_distance", "lightness_layout", "chroma_layout")]
        cells = [
            f"<td>{escape(row['prompt'])}</td>", f'<td class="label">{escape(row["label"])}</td>',
            f"<td>{escape(NULLS.get(row.get('null', ''), ''))}</td>", _number(row["seed"], "d"),
            *(_number(value, ".3f") for value in figures), f'<td class="worse">{escape(_worse(row))}</td>',
            *(_number(row.get("scores", {}).get(name, float("nan")), ".3f") for name in scores),
            _number(sum(row["seconds"].values()), ".2f"),
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"


def _number(value: float, form: str) -> str:
    return f'<td class="num" data-value="{value}">{value:{form}}</td>'


def _script_rows(rows: Rows, controls: Controls) -> str:
    def nulls(id: str) -> list[dict[str, str]]:
        own = [(name, controls.get((id, kind))) for kind, name in NULLS.items()]
        return [{"picture": null["picture"], "label": f"null: {name}"} for name, null in own if null]

    content = {
        id: {
            "nulls": nulls(id),
            "picture": row["picture"], "baseline": rows.get(row["baseline"], row)["picture"], "label": row["label"],
            "words": f"{row['report']}\n\n{json.dumps(row['settings'], ensure_ascii=False)}, seed {row['seed']}"
            + "".join(f"\n{name} {value:.3g}" for name, value in row.get("scores", {}).items()),
        }
        for id, row in rows.items()
    }
    return json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")  # no tag may end the script


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def _plain(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name).strip("-")[:60]
