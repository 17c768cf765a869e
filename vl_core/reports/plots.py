"""Figures for people, drawn with matplotlib without a display."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..states.layout import TokenRole
from ..states.tensors import check_choice
from .inspection import Inspection
from .layer_report import SINKS, LayerReport, Metric

# Okabe and Ito's colours, told apart with any kind of colour vision (jfly.uni-koeln.de/color).
ROLE_COLOURS = {
    TokenRole.TEMPLATE: "#999999",
    TokenRole.TEXT: "#0072B2",
    TokenRole.MARKER: "#CC79A7",
    TokenRole.IMAGE: "#E69F00",
}
OUTLIER_COLOUR = "#D55E00"
LABELLED_OUTLIERS = 8
COSINE_COLOURS = "viridis"  # perceptually uniform, also in grey and without red or green

Plots = Literal["token sizes", "spread per dimension", "means and spreads", "token likeness", "overview", "all"]
SINGLE: Plots = "token sizes"  # one plot can be read on a node
ThemeName = Literal["light", "dark"]


@dataclass(frozen=True)
class Theme:
    """Colours of a figure: behind it, behind the curves, of lines and words, of what stands out, and per role."""

    background: str
    panel: str
    ink: str
    accent: str
    roles: dict[TokenRole, str]


THEMES = {
    "light": Theme("#FFFFFF", "#FFFFFF", "#000000", OUTLIER_COLOUR, ROLE_COLOURS),
    # Text takes Okabe and Ito's sky blue: their blue drowns in the dark.
    "dark": Theme("#1B1B1B", "#262626", "#E0E0E0", "#FF7F2A", ROLE_COLOURS | {TokenRole.TEXT: "#56B4E9"}),
}


def inspection_figure(
    inspection: Inspection, title: str = "", *, plots: Plots = "overview", theme: ThemeName = "light"
) -> np.ndarray:
    """What one sequence looks like.

    Args:
        plots: "token sizes" is token RMS coloured by role; "spread per dimension" the std ratio per dimension with
            outliers named; "means and spreads" means and stds against the reference's; "token likeness" the cosine of
            every token with every other. "overview" is the first two, "all" is all. Without a reference, those that
            compare with it are left out, or give way to token sizes.

    Returns:
        uint8 ``(height, width, 3)``, legible at node size. Panels that compare are there only if there is a reference.

    Raises:
        ValueError: for another choice of plots or theme.
    """
    check_choice("plots", plots, Plots)
    check_choice("theme", theme, ThemeName)
    colours, compared = THEMES[theme], inspection.ratio is not None
    if plots in PANELS:
        chosen = plots if compared or plots not in COMPARING else SINGLE
        width, height, paint = PANELS[chosen]
        figure = _new_figure(width, height, title, colours)
        paint(figure, inspection, colours)
        return _pixels(figure, colours)
    panels = 1 + compared
    heights = [3.6 * panels]
    if plots == "all":
        heights += [4.4] * compared + [7.0]
    figure = _new_figure(9, sum(heights), title, colours)
    parts = [figure]
    if len(heights) > 1:
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    first, *more = parts
    axes = first.subplots(panels, 1, squeeze=False)[:, 0]
    _draw_token_rms(axes[0], inspection, colours)
    if inspection.ratio is not None:
        _draw_ratios(axes[1], inspection, colours)
    if more:
        *scatters, cosines = more
        for part in scatters:
            _draw_scatters(part, inspection, colours)
        _draw_cosines(cosines, inspection, colours)
    return _pixels(figure, colours)


def layer_figure(
    report: LayerReport, title: str = "", *, sinks: str = "exclude", theme: ThemeName = "light", only: str = ""
) -> np.ndarray:
    """A small panel per metric, its figure at every layer: text and image tokens apart, after x/rms(x) drawn through,
    raw dashed; a star is the best layer.

    Args:
        sinks: draw the figures without attention sinks ("exclude") or with them ("include").
        only: the title of the one metric that is drawn, large; all of them if it was not measured, or for "".

    Returns:
        uint8 ``(height, width, 3)``.

    Raises:
        ValueError: for another theme, or another choice of sinks.
    """
    check_choice("theme", theme, ThemeName)
    if sinks not in SINKS:
        raise ValueError(f"sinks: expected one of {', '.join(SINKS)}, got {sinks!r}.")
    colours, metrics = THEMES[theme], report.metrics()
    if one := [metric for metric in metrics if metric.title == only]:
        figure = _new_figure(6, 4.5, title, colours)
        axes = figure.subplots()
        _draw_metric(axes, report, one[0], sinks, colours)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=9)
        return _pixels(figure, colours)
    rows = -(-(len(metrics) + 1) // 2)
    figure = _new_figure(9, 2.7 * rows, title, colours)
    panels = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes, metric in zip(panels, metrics, strict=False):
        _draw_metric(axes, report, metric, sinks, colours)
    key, *empty = panels[len(metrics) :]
    for axes in (key, *empty):
        axes.axis("off")
    handles = {
        label: line for axes in panels[: len(metrics)]
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        legend = key.legend(handles.values(), handles.keys(), loc="center", frameon=False, title=SINKS[sinks])
        legend.get_title().set_color(colours.ink)
    return _pixels(figure, colours)


def stack_figures(figures: Sequence[np.ndarray]) -> np.ndarray:
    """Figures ``(h, w, 3)`` of any heights and widths as one uint8 ``(N, H, W, 3)``, filled up with their corner's
    colour below and to the right.

    Raises:
        ValueError: if there are none.
    """
    if not figures:
        raise ValueError("figures: expected at least one, got none.")
    height, width = (max(figure.shape[axis] for figure in figures) for axis in (0, 1))
    stacked = np.stack([np.broadcast_to(figure[-1, -1], (height, width, 3)) for figure in figures])
    for place, figure in zip(stacked, figures, strict=True):
        place[: figure.shape[0], : figure.shape[1]] = figure
    return stacked


def _new_figure(width: float, height: float, title: str, colours: Theme):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor=colours.background)
    if title:
        figure.suptitle(title, fontsize=13, color=colours.ink)
    return figure


def _pixels(figure, colours: Theme) -> np.ndarray:

    for part in (figure, *figure.subfigs):
        part.set_facecolor(colours.background)
        for axes in part.axes:
            _recolour(axes, colours)
    return figure_pixels(figure)


def figure_pixels(figure) -> np.ndarray:
    """A matplotlib figure as uint8 ``(H, W, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _recolour(axes, colours: Theme) -> None:
    """Everything that is ink on these axes; settings of matplotlib's own would be seen by others that draw."""
    axes.set_facecolor(colours.panel)
    axes.tick_params(which="both", colors=colours.ink)
    legend = axes.get_legend()
    for words in (axes.title, axes.xaxis.label, axes.yaxis.label, *(legend.get_texts() if legend else ())):
        words.set_color(colours.ink)
    for spine in axes.spines.values():
        spine.set_edgecolor(colours.ink)


def _alone(draw: Callable[..., None]) -> Callable[..., None]:
    """Something that draws on axes, on a figure that has no others."""

    def paint(figure, inspection: Inspection, colours: Theme) -> None:
        axes = figure.subplots()
        draw(axes, inspection, colours)
        if axes.get_legend():
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)

    return paint


def _draw_token_rms(axes, inspection: Inspection, colours: Theme) -> None:
    positions, rms = np.arange(inspection.tokens), inspection.rms.numpy()
    if inspection.layout is None:
        axes.plot(positions, rms, ".", color=colours.roles[TokenRole.TEXT], label="token")
    else:
        for role, colour in colours.roles.items():
            chosen = inspection.layout.mask(role).numpy()
            if chosen.any():
                label = f"{role.name.lower()} ({chosen.sum()})"
                axes.plot(positions[chosen], rms[chosen], ".", color=colour, label=label, markersize=5)
    if inspection.sinks:
        sinks = list(inspection.sinks)
        label = f"attention sink ({len(sinks)})"
        axes.plot(sinks, rms[sinks], "o", mfc="none", mec=colours.accent, ms=10, label=label)
    if np.nanmax(rms, initial=0) > 0:
        _logarithmic(axes)
    axes.set(title="Token RMS by role", xlabel="position", ylabel="RMS")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_ratios(axes, inspection: Inspection, colours: Theme) -> None:
    assert inspection.ratio is not None, "drawn only where there is a reference"
    ratio = inspection.ratio.numpy()
    axes.plot(np.arange(inspection.width), ratio, ".", color=colours.roles[TokenRole.TEXT], markersize=3)
    axes.axhline(1, color=colours.ink, linewidth=0.8)
    for bound in (inspection.threshold, 1 / inspection.threshold):
        axes.axhline(bound, color=colours.accent, linewidth=0.8, linestyle="--")
    _name_outliers(axes, inspection, np.arange(inspection.width), ratio, colours)
    axes.margins(y=0.12)
    _logarithmic(axes)
    axes.set(
        title=f"Std per dimension over the reference's ({len(inspection.outliers)} beyond {inspection.threshold:g}×)",
        xlabel="dimension", ylabel="ratio",
    )
    axes.grid(alpha=0.3)


def _draw_scatters(part, inspection: Inspection, colours: Theme) -> None:
    """Mean against mean and std against std, a dot per dimension; on the diagonal both are equal."""
    left, right = part.subplots(1, 2)
    pairs = (
        (left, inspection.reference_mean, inspection.mean, "Mean", inspection.mean_correlation, "r"),
        (right, inspection.reference_std, inspection.std, "Std", inspection.log_std_correlation, "r of logs"),
    )
    for axes, theirs, ours, name, correlation, r in pairs:
        assert theirs is not None and ours is not None, "drawn only where there is a reference"
        x, y = theirs.numpy(), ours.numpy()
        axes.plot(x, y, ".", color=colours.roles[TokenRole.TEXT], markersize=3, alpha=0.6)
        _name_outliers(axes, inspection, x, y, colours)
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        axes.plot([low, high], [low, high], color=colours.ink, linewidth=0.8)
        if name == "Std":
            axes.set(xscale="log", yscale="log")
        else:
            # Straight in the middle, where most means are, so that the few large ones do not press them together.
            near = float(np.quantile(np.abs(np.concatenate([x, y])), 0.8)) or 1.0
            for which in ("x", "y"):
                getattr(axes, f"set_{which}scale")("symlog", linthresh=_one_digit(near))
                _few_symlog_ticks(getattr(axes, f"{which}axis"))
        axes.margins(0.12)
        axes.set(title=f"{name} per dimension ({r} = {correlation:.2f})", xlabel="reference", ylabel="here")
        axes.grid(alpha=0.3)


def _one_digit(value: float) -> float:
    """Rounded to one digit: 0.0734 -> 0.07."""
    return float(f"{value:.0e}")


def _few_symlog_ticks(axis) -> None:
    """At zero and at powers of ten beyond the straight part, few enough not to overlap."""
    from matplotlib.ticker import SymmetricalLogLocator

    locator = SymmetricalLogLocator(axis.get_transform(), subs=[1.0])
    locator.set_params(numticks=7)
    axis.set_major_locator(locator)


def _draw_cosines(part, inspection: Inspection, colours: Theme) -> None:
    """The cosine map, with a band of the tokens' roles along both axes."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    grid = part.add_gridspec(2, 2, width_ratios=[0.035, 1], height_ratios=[0.035, 1], wspace=0, hspace=0)
    axes = part.add_subplot(grid[1, 1])
    assert inspection.cosine is not None, "every inspection of an encode has it"
    cosine, tokens = inspection.cosine.numpy(), inspection.tokens
    extent = (-0.5, len(cosine) * inspection.cosine_step - 0.5, len(cosine) * inspection.cosine_step - 0.5, -0.5)
    known = cosine[np.isfinite(cosine)]
    lowest = min(0.0, np.floor(known.min() * 10) / 10) if known.size else 0.0
    shades = matplotlib.colormaps[COSINE_COLOURS].with_extremes(bad=colours.roles[TokenRole.TEMPLATE])
    image = axes.imshow(cosine, cmap=shades, vmin=lowest, vmax=1, extent=extent, interpolation="nearest", aspect="auto")
    axes.set(xlim=(-0.5, tokens - 0.5), ylim=(tokens - 0.5, -0.5), xlabel="position")
    bar = part.colorbar(image, ax=axes, shrink=0.8, label="cosine")
    bar.outline.set_edgecolor(colours.ink)
    step = inspection.cosine_step
    pooled = f" (mean over {step}×{step} tokens)" if step > 1 else ""
    top = part.add_subplot(grid[0, 1], sharex=axes)
    side = part.add_subplot(grid[1, 0], sharey=axes)
    top.set_title("Cosine of every token with every other" + pooled)
    side.set_ylabel("position")
    axes.tick_params(labelleft=False, left=False)
    top.tick_params(labelbottom=False, bottom=False, left=False, labelleft=False)
    side.tick_params(bottom=False, labelbottom=False)
    if inspection.layout is None:
        top.set_yticks([])
        return
    bands = ListedColormap([colours.roles[role] for role in TokenRole])
    roles = inspection.layout.roles.numpy()
    options = dict(cmap=bands, vmin=-0.5, vmax=len(TokenRole) - 0.5, interpolation="nearest", aspect="auto")
    top.imshow(roles[None], extent=(-0.5, tokens - 0.5, 0, 1), **options)
    side.imshow(roles[:, None], extent=(0, 1, tokens - 0.5, -0.5), **options)
    axes.set(xlim=(-0.5, tokens - 0.5), ylim=(tokens - 0.5, -0.5))


def _draw_metric(axes, report: LayerReport, metric: Metric, sinks: str, colours: Theme) -> None:
    drawn = []
    for group in report.groups:
        colour = colours.roles[TokenRole[group.upper()]]
        for space, line in (("dit", "-"), ("raw", "--")):
            rows = [row for row in report.select(group, space, sinks) if getattr(row, metric.name) is not None]
            if not rows:
                continue
            layers, values = [row.layer for row in rows], [getattr(row, metric.name) for row in rows]
            name = f"{group} tokens, " + ("after x/rms(x)" if space == "dit" else "raw")
            axes.plot(layers, values, line, color=colour, linewidth=1.6, marker=".", markersize=4, label=name)
            drawn += values
            if len(best := report.best(metric, group, space, sinks)) == 1:
                value = values[layers.index(best[0])]
                star = dict(markersize=11, markerfacecolor=colour, markeredgecolor=colours.ink)
                axes.plot(best[0], value, "*", clip_on=False, zorder=3, **star)
    if metric.logarithmic and drawn and min(drawn) > 0:
        _logarithmic(axes)
    if drawn and metric.best == "fewest":  # counts, or means of counts
        axes.set_ylim(bottom=-0.05 * max(1, *drawn), top=1.1 * max(1, *drawn))
        axes.yaxis.get_major_locator().set_params(integer=True)
    if metric.name == "std_ratio":
        axes.axhline(1, color=colours.ink, linewidth=0.8)
    axes.set_title(f"{metric.title} ({metric.best})", fontsize=9)
    axes.set_xlabel("layer, from the end")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def _name_outliers(axes, inspection: Inspection, x: np.ndarray, y: np.ndarray, colours: Theme) -> None:
    """A ring and a number at the worst outlier dimensions."""
    for dimension, _ in inspection.outliers[:LABELLED_OUTLIERS]:
        place = (x[dimension], y[dimension])
        axes.plot(*place, "o", mfc="none", mec=colours.accent, ms=7)
        axes.annotate(
            str(dimension), place, xytext=(5, 5), textcoords="offset points", color=colours.accent, fontsize=9
        )


def _logarithmic(axes) -> None:
    """A log axis with plain numbers at its ticks (0.06, not 6 × 10⁻²), at every tick if it spans less than a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")


COMPARING = ("spread per dimension", "means and spreads")
# One plot each: width and height in inches, small, so that words are large where it is shown, and what draws it.
PANELS: dict[str, tuple[float, float, Callable[..., None]]] = {
    "token sizes": (6, 4.5, _alone(_draw_token_rms)),
    "spread per dimension": (6, 4.5, _alone(_draw_ratios)),
    "means and spreads": (8, 4.5, _draw_scatters),
    "token likeness": (6, 5.5, _draw_cosines),
}
