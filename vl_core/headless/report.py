"""What a study has found, to look at: labelled grids as PNG, and one HTML page that needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from torch import Tensor

from ..grid import draw_grid
from ..sweep import Cell, Plan
from .picture import save_png
from .runner import Rows
from .study import Group, Study

PAGE, GRIDS, REFERENCES = "index.html", "grids", "references"
WIDEST = 320  # pixels of a picture on the page; small ones are shown at their own size


def write_report(
    study: Study, rows: Rows, pictures: Mapping[str, Sequence[Tensor]], folder: Path
) -> tuple[Path, list[Path]]:
    """The page and the grids, beside ``results.jsonl``."""
    from PIL import Image

    grids: dict[str, list[str]] = {}
    shown: dict[str, list[str]] = {}
    for number, group in enumerate(study.groups, 1):
        references = pictures[group.key]
        painted = {cell.id: _pixels(folder / rows[cell.id]["picture"]) for cell in group.plan.unique}
        grid = draw_grid(group.plan, painted, references, title=group.prompt)
        for page, pixels in enumerate(grid.pages, 1):
            name = f"{GRIDS}/{number:03}-{_plain(group.name)}" + (f"-{page}" if len(grid.pages) > 1 else "") + ".png"
            save_png(folder / name, Image.fromarray(pixels), {"plan": group.plan.as_dict()})
            grids.setdefault(group.name, []).append(name)
        for index, reference in enumerate(references):
            name = f"{REFERENCES}/{group.key}-{index}.png"
            if not (folder / name).is_file():
                save_png(folder / name, Image.fromarray(reference.numpy()), {})
            if name not in shown.setdefault(group.key, []):
                shown[group.key].append(name)
    page = folder / PAGE
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    side = min(WIDEST, max(study.models.width, 128))
    page.write_text(
        Template(template).substitute(
            title=escape(f"{study.title}: {', '.join(dict.fromkeys(group.prompt for group in study.groups))}"[:120]),
            summary=escape(study.describe()), models=escape(_models(study)), side=side,
            groups="\n".join(_group(group, rows, shown[group.key], grids[group.name]) for group in study.groups),
            table=_table(rows), rows=_script_rows(rows),
        ),
        encoding="utf-8",
    )
    return page, [folder / name for names in grids.values() for name in names]


def _models(study: Study) -> str:
    known = {name: value for name, value in study.models.identity().items() if value not in ("", None)}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in known.items())


def _group(group: Group, rows: Rows, references: Sequence[str], grids: Sequence[str]) -> str:
    """A heading, the references, the words alone, and every cell where its axes put it."""
    head = [f"<h2>{escape(group.prompt)}</h2>"]
    links = ", ".join(f'<a href="{escape(name)}">{escape(Path(name).name)}</a>' for name in grids)
    head.append(f'<p class="dim">{escape(", ".join(group.files))} · as one picture: {links}</p>')
    plain = "".join(
        f'<figure><img src="{escape(name)}" alt="reference" loading="lazy"><figcaption>reference</figcaption></figure>'
        for name in references
    )
    plain += "".join(_figure(cell, rows, cell.label) for cell in group.plan.baselines)
    return "\n".join([*head, f'<div class="row">{plain}</div>', *_pages(group.plan, rows)])


def _pages(plan: Plan, rows: Rows) -> list[str]:
    parts = []
    for title, table in plan.pages():
        parts += [f"<h3>{escape(title)}</h3>"] if title else []
        if len(plan.axes) < 2:
            parts.append('<div class="row">' + "".join(_figure(cell, rows, cell.label) for cell in table[0]) + "</div>")
            continue
        across, down = plan.axes[:2]
        head = "".join(f"<th>{escape(across.label(value))}</th>" for value in across.values)
        body = "".join(
            f"<tr><th>{escape(down.label(value))}</th>"
            + "".join(f"<td>{_figure(cell, rows, '')}</td>" for cell in cells) + "</tr>"
            for value, cells in zip(down.values, table, strict=True)
        )
        parts.append(f'<div class="scroll"><table class="grid"><tr><th></th>{head}</tr>{body}</table></div>')
    return parts


def _figure(cell: Cell, rows: Rows, label: str) -> str:
    row = rows[cell.id]
    worse = f'<br><span class="worse">more {escape(_worse(row))}</span>' if row["worse"] else ""
    text = f"{escape(label)}<br>" if label else ""
    return (
        f'<figure><button data-id="{cell.id}" aria-label="{escape(row["label"])}"><img src="{escape(row["picture"])}" '
        f'alt="{escape(row["label"])}" loading="lazy"></button><figcaption>{text}palette '
        f'{row["fidelity"]["palette_distance"]:.2f}, layout {row["fidelity"]["lightness_layout"]:.2f}{worse}'
        "</figcaption></figure>"
    )


def _worse(row: Mapping[str, Any]) -> str:
    return ", ".join(name.replace("_", " ") for name in row["worse"])


def _table(rows: Rows) -> str:
    scores = list(dict.fromkeys(name for row in rows.values() for name in row.get("scores", {})))
    heads = ["prompt", "cell", "seed", "palette", "light and dark", "colours", "worse", *scores, "seconds"]
    lines = []
    for row in rows.values():
        fidelity = row["fidelity"]
        figures = [fidelity[name] for name in ("palette_distance", "lightness_layout", "chroma_layout")]
        cells = [
            f"<td>{escape(row['prompt'])}</td>", f'<td class="label">{escape(row["label"])}</td>',
            _number(row["seed"], "d"), *(_number(value, ".3f") for value in figures),
            f'<td class="worse">{escape(_worse(row))}</td>',
            *(_number(row.get("scores", {}).get(name, float("nan")), ".3f") for name in scores),
            _number(sum(row["seconds"].values()), ".2f"),
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"


def _number(value: float, form: str) -> str:
    return f'<td class="num" data-value="{value}">{value:{form}}</td>'


def _script_rows(rows: Rows) -> str:
    content = {
        id: {
            "picture": row["picture"], "baseline": rows.get(row["baseline"], row)["picture"], "label": row["label"],
            "words": f"{row['report']}\n\n{json.dumps(row['settings'], ensure_ascii=False)}, seed {row['seed']}",
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
