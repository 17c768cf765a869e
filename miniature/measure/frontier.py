"""Transfer against adherence as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .rows import ADHERENCE_GOAL, FAMILIES


def draw(report: dict[str, Any], path: Path) -> None:
    """Transfer over adherence, a colour per family; the best row of each name that shows anything is named."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(FAMILIES, ("#D55E00", "#0072B2", "#009E73", "#CC79A7"), strict=True))
    rows = [row for row in report["methods"] if row["transfer"] is not None]
    for family, colour in colours.items():
        of = [row for row in rows if row["family"] == family]
        axes.errorbar(
            [row["adherence"] for row in of], [row["transfer"] for row in of], [row["stderr"] or 0.0 for row in of],
            fmt="o", color=colour, alpha=0.6, markersize=5, elinewidth=0.8, label=family.replace("_", " "),
        )
    nulls = [row for row in report["nulls"] if row["transfer"] is not None]
    axes.plot(
        [row["adherence"] for row in nulls], [row["transfer"] for row in nulls], "x", color="#777777", markersize=6,
        label="null controls", linestyle="none",
    )
    named: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["adherence"] >= ADHERENCE_GOAL, row["transfer"])):
        named[row["name"]] = row
    shown = sorted((row for row in named.values() if row["transfer"] > 0.1), key=lambda row: -row["transfer"])
    for number, row in enumerate(shown, 1):
        layer = "" if row["layer"] is None else f", layer {row['layer']}"
        label = f"{number:2d}  {row['name']}{layer}: {row['transfer']:.2f} at {row['adherence']:.2f}"
        place = (row["adherence"], row["transfer"])
        axes.annotate(str(number), place, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.plot([], [], linestyle="none", label=label)
    axes.axvline(ADHERENCE_GOAL, color="black", linewidth=0.8, linestyle="--")
    for level in (0, 1):
        axes.axhline(level, color="black", linewidth=0.5)
    axes.set(
        xlabel="adherence: the prompt's colour is there", title="The miniature's frontier",
        ylabel="transfer of background, style, mood (0 words alone, 1 caption)", ylim=(-0.08, 1.08),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def figure(value: float | None, error: float | None = None) -> str:
    """Two decimals, with the standard error where there is one."""
    if value is None:
        return "none"
    shown = f"{value:.2f}".replace("-0.00", "0.00")
    return shown if error is None else f"{shown} ± {error:.2f}"
