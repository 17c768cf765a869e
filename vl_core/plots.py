"""Figures for people, drawn with matplotlib without a display."""

from __future__ import annotations

import numpy as np

from .layout import TokenRole
from .metrics import Inspection

# Okabe and Ito's colours, told apart with any kind of colour vision (jfly.uni-koeln.de/color).
ROLE_COLOURS = {
    TokenRole.TEMPLATE: "#999999",
    TokenRole.TEXT: "#0072B2",
    TokenRole.MARKER: "#CC79A7",
    TokenRole.IMAGE: "#E69F00",
}
OUTLIER_COLOUR = "#D55E00"
LABELLED_OUTLIERS = 8


def inspection_figure(inspection: Inspection, title: str = "") -> np.ndarray:
    """Token RMS coloured by role, and per-dimension std ratio with outliers named.

    Returns:
        uint8 ``(height, width, 3)``, legible at node size. The second panel is there only if there is a reference.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 1 if inspection.ratio is None else 2
    figure = Figure(figsize=(9, 3.6 * panels), dpi=120, layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    _draw_token_rms(axes[0], inspection)
    if panels == 2:
        _draw_ratios(axes[1], inspection)
    if title:
        figure.suptitle(title, fontsize=13)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_token_rms(axes, inspection: Inspection) -> None:
    positions, rms = np.arange(inspection.tokens), inspection.rms.numpy()
    if inspection.layout is None:
        axes.plot(positions, rms, ".", color=ROLE_COLOURS[TokenRole.TEXT], label="token")
    else:
        for role, colour in ROLE_COLOURS.items():
            chosen = inspection.layout.mask(role).numpy()
            if chosen.any():
                label = f"{role.name.lower()} ({chosen.sum()})"
                axes.plot(positions[chosen], rms[chosen], ".", color=colour, label=label, markersize=5)
    if inspection.sinks:
        sinks = list(inspection.sinks)
        label = f"attention sink ({len(sinks)})"
        axes.plot(sinks, rms[sinks], "o", mfc="none", mec=OUTLIER_COLOUR, ms=10, label=label)
    if np.nanmax(rms, initial=0) > 0:
        _logarithmic(axes)
    axes.set(title="Token RMS by role", xlabel="position", ylabel="RMS")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_ratios(axes, inspection: Inspection) -> None:
    ratio = inspection.ratio.numpy()
    axes.plot(np.arange(inspection.width), ratio, ".", color=ROLE_COLOURS[TokenRole.TEXT], markersize=3)
    axes.axhline(1, color="black", linewidth=0.8)
    for bound in (inspection.threshold, 1 / inspection.threshold):
        axes.axhline(bound, color=OUTLIER_COLOUR, linewidth=0.8, linestyle="--")
    for dimension, _ in inspection.outliers[:LABELLED_OUTLIERS]:
        axes.plot(dimension, ratio[dimension], "o", mfc="none", mec=OUTLIER_COLOUR, ms=7)
        axes.annotate(
            str(dimension), (dimension, ratio[dimension]), xytext=(5, 5), textcoords="offset points",
            color=OUTLIER_COLOUR, fontsize=9,
        )
    axes.margins(y=0.12)
    _logarithmic(axes)
    axes.set(
        title=f"Std per dimension over the reference's ({len(inspection.outliers)} beyond {inspection.threshold:g}×)",
        xlabel="dimension", ylabel="ratio",
    )
    axes.grid(alpha=0.3)


def _logarithmic(axes) -> None:
    """A log axis with plain numbers at its ticks (0.06, not 6 × 10⁻²), at every tick if it spans less than a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")
