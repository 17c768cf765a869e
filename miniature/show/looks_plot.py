"""Stage ``looks-plot``: the curves of ``looks.json`` as one picture. Nothing is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vl_core.reports.plots import figure_pixels

from .. import world
from ..measure.look_units import CHANGES
from ..train.training import Options

NAME = "looks_curves.png"
COLOURS, WIDTH, DPI = 256, 12.0, 100
# Told apart by the colour-blind.
FIGURES = {
    "transfer": ("#0072B2", "o"), "adherence": ("#009E73", "^"), "adherence_shape": ("#CC79A7", "s"),
    "between": ("#D55E00", "D"),
}
LABELS = {"adherence": "prompt's colour", "adherence_shape": "prompt's shape", "between": "distance between names"}
TITLES = {
    "lowest": "lowest noise level", "tokens": "tokens at least", "keep": "weight of other prompts",
    "average": "share averaged", "draws": "noisy pictures per step", "size": "size of the picture, pixels",
    "strength": "strength",
}


def run(options: Options) -> Path:
    """Draw the picture into the run's folder from the report beside the models.

    Raises:
        ValueError: if the report holds no curve.
    """
    report = json.loads(options.report("looks.json").read_text(encoding="utf-8"))
    if not report["curves"]:
        raise ValueError(f"{options.report('looks.json')}: expected curves, got none. Measure them without --only.")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(report, options.out / NAME)
    return options.out / NAME


def points(report: dict[str, Any], name: str) -> list[tuple[float, dict[str, Any]]]:
    """Rows by the value of one number, in order; the plain one among them. No picture is larger than the world's."""
    plain = report["curves"][0]
    if name == "strength":
        found = [(row["strength"], row) for row in report["strengths"]] + [(1.0, plain)]
    else:
        rows = [row for row in report["curves"] if row["name"].startswith(f"{name} ")]
        largest = world.SIDE if name == "size" else float("inf")
        found = [(min(float(row["options"][name]), largest), row) for row in (plain, *rows)]
    return sorted(found, key=lambda pair: pair[0])


def draw(report: dict[str, Any], path: Path) -> None:
    """A panel per number: transfer, what is kept of the prompt, and the distance from colours between names."""
    from matplotlib.figure import Figure
    from PIL import Image

    names = [name for name in (*CHANGES, "strength") if len(points(report, name)) > 1]
    columns = 4
    figure = Figure(figsize=(WIDTH, 2.9 * -(-len(names) // columns)), dpi=DPI, layout="constrained", facecolor="white")
    grid = figure.subplots(-(-len(names) // columns), columns, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        found = points(report, name)
        for figure_name, (colour, marker) in FIGURES.items():
            values = [row[figure_name]["mean"] if figure_name == "between" else row[figure_name] for _, row in found]
            axes.plot(
                range(len(found)), values, color=colour, marker=marker, markersize=4,
                label=LABELS.get(figure_name, figure_name),
            )
        axes.set_xticks(range(len(found)), [f"{value:g}" for value, _ in found])
        axes.set(title=TITLES.get(name, name), ylim=(-0.05, 1.1))
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    lines = grid[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper center", ncols=len(FIGURES), frameon=False)
    asked, measured = report["curves_asked"], report["measured"]
    figure.supxlabel(
        f"one number changed at a time; {asked['pairs']} pairs, {asked['seeds']} seeds each. "
        f"{measured['machine'].split(',')[0]}, {measured['date']}", fontsize=9,
    )
    drawn = Image.fromarray(figure_pixels(figure))
    drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
