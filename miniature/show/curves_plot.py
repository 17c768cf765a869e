"""Stage ``curves-plot``: the figures of ``adapter_curves.json`` as one picture. Nothing is measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vl_core.reports.plots import figure_pixels

from ..measure.curves import NEW_STYLES
from ..train.training import Options

COLOURS = 256  # of the file, which is a quarter of the size so and looks the same
WIDTH, DPI = 12.0, 100
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # told apart by the colour-blind
LOOKS = {"background": (BLUE, "o"), "style": (ORANGE, "s"), "mood": (GREEN, "^")}
Rows = Sequence[dict[str, Any]]


def run(options: Options) -> Path:
    """Draw ``adapter_curves.png`` into the run's folder from the report beside the models."""
    report = json.loads(options.report("adapter_curves.json").read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "adapter_curves.png"
    draw(report, path)
    return path


def draw(report: dict[str, Any], path: Path) -> None:
    """Six panels of transfer, each between its bounds: 0 words alone, 1 a caption in words."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(WIDTH, 7.4), dpi=DPI, layout="constrained", facecolor="white")
    for axes, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for level, place, name in ((0.0, -0.09, "words alone"), (1.0, 1.13, "a caption in words")):
            axes.axhline(level, color="#444444", linewidth=1, linestyle="--", zorder=1)
            axes.text(0.99, place, name, transform=axes.get_yaxis_transform(), fontsize=9, ha="right", color="#444444")
        panel(axes, report["rows"])
        axes.set_ylim(-0.15, 1.22)
        axes.margins(x=0.08)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=9, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.12))
    asked, measured = report["asked"], report["measured"]
    figure.supylabel("transfer of background, style and mood", fontsize=11)
    figure.supxlabel(
        f"{asked['pairs']} pairs of a prompt and a picture that disagree, {asked['seeds']} seeds; bars are one "
        f"standard error over pairs. {measured['machine'].split(',')[0]}, {measured['date']}", fontsize=9,
    )
    drawn = Image.fromarray(figure_pixels(figure))
    drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def _of(rows: Rows, what: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["what"] == what]


def _line(axes, x: Sequence[float], rows: Rows) -> None:
    """Transfer with its error, and thin lines for its three parts."""
    for name, (colour, marker) in LOOKS.items():
        axes.plot(
            x, [row["transfer_by"][name] for row in rows], color=colour, marker=marker, markersize=4, linewidth=0.9,
            alpha=0.8, label=name,
        )
    _points(axes, x, rows, "black", label="all three", fmt="o-", linewidth=2)


def _points(axes, x: Sequence[float], rows: Rows, colour: str, **options: Any) -> None:
    axes.errorbar(
        x, [row["transfer"] for row in rows], [row["stderr"] or 0.0 for row in rows], color=colour, capsize=3,
        markersize=5, **{"fmt": "o", **options},
    )


def _by_pairs(axes, rows: Rows) -> None:
    found = _of(rows, "pairs")
    sizes = [row["value"] for row in found]
    _line(axes, sizes, found)
    axes.set(title="how many pairs the fit has", xscale="log")
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


def _by_strength(axes, rows: Rows) -> None:
    one = [{**row, "value": 1.0} for row in _of(rows, "pairs") if row["pairs"] == _of(rows, "strength")[0]["pairs"]]
    found = sorted([*_of(rows, "strength"), *one[-1:]], key=lambda row: row["value"])
    _line(axes, [row["value"] for row in found], found)
    axes.set(title=f"strength ({found[0]['pairs']} pairs)")


def _by_rank(axes, rows: Rows) -> None:
    found = _of(rows, "rank")
    full = [row for row in _of(rows, "pairs") if row["pairs"] == found[0]["pairs"]][-1:]
    _line(axes, range(len(found) + len(full)), [*found, *full])
    axes.set_xticks(range(len(found) + len(full)), [*(str(row["value"]) for row in found), *["full"] * len(full)])
    axes.set(title=f"rank of the map ({found[0]['pairs']} pairs)")


def _by_look(axes, rows: Rows) -> None:
    """Styles left out of the fit, then shown in a few pictures of more and more weight."""
    looks = [style for style in NEW_STYLES if _of(rows, f"{style} left out")]
    labels: list[str] = []
    for index, (style, colour, marker) in enumerate(zip(looks, (BLUE, ORANGE, GREEN), "os^", strict=False)):
        found = _of(rows, f"{style} left out")
        labels = [row["value"].replace(", ", ",\n") for row in found]
        by_style = [row["transfer_by"]["style"] for row in found]
        x = [at + 0.12 * (index - 1) for at in range(len(found))]
        _points(axes, x, found, colour, label=style, fmt=marker)
        axes.plot(x, by_style, marker, markerfacecolor="none", color=colour, markersize=8)
    axes.plot([], [], "o", markerfacecolor="none", color="#444444", markersize=8, label="the style alone")
    axes.set_xticks(range(len(labels)), labels, fontsize=8.5)
    axes.set(title="a style left out of the fit, then added")


def _by_words(axes, rows: Rows) -> None:
    """What is read beside the picture, for prompts in words that the models know, and in others."""
    beside = {
        "the prompt\nitself": (
            _of(rows, "pairs")[-1:], [row for row in _of(rows, "prompt") if row["value"] == "other words"],
        ),
        "nothing": _pair(rows, "always '' beside the picture"),
        "a fixed\nrequest": _pair(rows, "always 'describe the look.' beside the picture"),
        "the prompt, but\nno tail tokens": _pair(rows, "none beside the picture: no tail tokens"),
    }
    for side, (name, colour, marker) in enumerate((("known words", BLUE, "o"), ("other words", ORANGE, "s"))):
        found = [both[side][0] for both in beside.values()]
        _points(axes, [at + 0.16 * side - 0.08 for at in range(len(found))], found, colour, label=name, fmt=marker)
    axes.set_xticks(range(len(beside)), list(beside), fontsize=8.5)
    axes.set(title="words that the VL reads beside the picture")


def _pair(rows: Rows, value: str) -> tuple[list, list]:
    found = [row for row in _of(rows, "prompt") if row["value"] == value]
    return [row for row in found if row["where"] == "all"], [row for row in found if row["where"] == "other words"]


def _by_input(axes, rows: Rows) -> None:
    """What the map reads and predicts."""
    named = [
        *((f"tokens {row['value']}", row) for row in _of(rows, "picture tokens")),
        *((f"layer {row['value']}", row) for row in _of(rows, "layer")),
        *(("with sinks", row) for row in _of(rows, "sinks")),
        *(("tail as state", row) for row in _of(rows, "tail")),
        *(("words by the VL", row) for row in _of(rows, "words")),
        *(("unseen combinations", row) for row in _of(rows, "looks")),
    ]
    _points(axes, range(len(named)), [row for _, row in named], BLUE)
    axes.set_xticks(range(len(named)), [name for name, _ in named], rotation=40, ha="right", fontsize=9)
    axes.set(title="what makes no difference")


PANELS: tuple[Callable[..., None], ...] = (_by_pairs, _by_strength, _by_rank, _by_look, _by_words, _by_input)
