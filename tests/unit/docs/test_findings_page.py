"""docs/findings.md: every table is what the commands wrote, kept beside it as CSV."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from vl_core.headless.compare.summary import Line, markdown

ROOT = Path(__file__).parents[3] / "docs"
PAGE = (ROOT / "findings.md").read_text(encoding="utf-8")
LAYERS = (-1, -2, -4, -6, -8, -12)
# A mark before each table: whose figures it shows, and which.
MARK = re.compile(r"<!-- (\w+): (.*?) -->\n+((?:\|.*\n)+)")


def summary_table(lines: list[Line], figures: list[str]) -> str:
    return markdown(lines, figures).split("\n\n")[0].strip()


def layer_table(figures: list[str]) -> str:
    """Rows such as "text raw include cosine": every layer's mean ± error, and behind a slash with pictures muted."""
    files = {
        name: {
            (row["group"], row["space"], row["sinks"], int(row["layer"])): row
            for row in csv.DictReader((ROOT / "findings" / f"{name}.csv").read_text(encoding="utf-8").splitlines())
        }
        for name in ("layers", "layers_errors", "layers_muted")
    }
    rows = ["| | " + " | ".join(map(str, LAYERS)) + " |", "|---|" + "---|" * len(LAYERS)]
    for figure in figures:
        *way, metric = figure.split()
        cells = [
            "{} ± {} / {}".format(*(shown(float(file[(*way, layer)][metric])) for file in files.values()))
            for layer in LAYERS
        ]
        rows.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def shown(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


@pytest.mark.parametrize(("name", "figures", "table"), MARK.findall(PAGE))
def test_a_table_shows_the_figures_that_were_measured(name, figures, table, from_csv):
    names = [figure.strip() for figure in figures.split(",")]
    if name == "layers":
        expected = layer_table(names)
    else:
        lines = from_csv((ROOT / "findings" / f"{name}.csv").read_text(encoding="utf-8"))
        expected = summary_table(lines, names)
    assert table.strip() == expected


def test_every_file_of_figures_is_shown():
    shown = {name for name, _, _ in MARK.findall(PAGE)}
    assert shown == {path.stem for path in (ROOT / "findings").glob("*.csv") if "layers_" not in path.stem}
