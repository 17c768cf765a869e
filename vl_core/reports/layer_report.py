"""Every layer of one encode against Z-Image's own text encoder: which of them looks most like it, and in what respect.

A figure here is about numbers, not pictures: the layer closest to the reference need not be the one that paints best.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from ..stages.alignment import doubts_about_words
from ..states.fields import to_csv
from ..states.layout import TokenLayout, TokenRole
from ..states.sinks import find_sinks
from ..states.statistics import Moments, ReferenceStatistics
from ..states.tensors import check_embeddings, to_float64, unit_rms
from ..states.vl_states import VLStates
from .layer_figures import Pairs, against, effective_rank, pair_tokens, targets_of, token_by_token

GROUPS = {"text": (TokenRole.TEMPLATE, TokenRole.TEXT), "image": (TokenRole.IMAGE,)}
SPACES = {"raw": "as they come", "dit": "after x/rms(x), as Z-Image sees them"}
SINKS = {"include": "with attention sinks", "exclude": "without attention sinks"}
SEEN_BY_DIT = ("dit", "exclude")  # the variant the short summary is about
TIES_NAMED = 3
WITHOUT_UNIT_MOMENTS = (
    "The reference lacks the moments of tokens after x/rms(x) (an older file or published figures), so those rows are "
    "not compared with it: measure it again on the text encoder."
)


class Metric(NamedTuple):
    """One column: a field of :class:`LayerFigures`, what it is called, and how good a value is (more is better)."""

    name: str
    column: str
    title: str
    goodness: Callable[[float], float]
    best: str
    logarithmic: bool = False


METRICS = (
    Metric("mean_correlation", "mean r", "Correlation of means with the reference", float, "highest"),
    Metric("log_std_correlation", "logstd r", "Correlation of log std with the reference", float, "highest"),
    Metric(
        "std_ratio", "std ratio", "Median std over the reference's",
        lambda ratio: -abs(math.log(ratio)) if ratio > 0 else -math.inf, "nearest 1", True,
    ),
    Metric("wider", "wider", "Outlier dimensions wider than the reference", lambda count: -count, "fewest"),
    Metric("narrower", "narrower", "Outlier dimensions narrower than the reference", lambda count: -count, "fewest"),
    Metric("effective_rank", "eff. rank", "Effective rank", float, "highest"),
    Metric("frechet", "Fréchet", "Fréchet distance to the reference", lambda value: -value, "smallest", True),
    Metric("cka", "CKA", "Linear CKA with the text", float, "highest"),
    Metric("cosine", "cosine", "Mean cosine with the text", float, "highest"),
)  # fmt: skip


@dataclass(frozen=True)
class LayerFigures:
    """One layer, one group of tokens, in one space, with or without sinks. A figure that cannot be had is None.

    Attributes:
        layer: ``hidden_states`` index counted from the end.
        group: "text" (template and words) or "image"; ``space``: "raw" or "dit"; ``sinks``: "include" or "exclude".
        tokens: how many were measured; ``left_out`` how many more are attention sinks.
        mean_correlation, log_std_correlation: Pearson over dimensions, per-dimension mean and log std with the target.
        std_ratio: median over dimensions of std over the target's.
        wider, narrower: dimensions whose std is more than ``threshold`` times, or less than a ``threshold``-th of,
            the target's.
        effective_rank: see :func:`effective_rank`.
        frechet: see :func:`frechet_distance`.
        cka, cosine: :func:`linear_cka` and mean cosine with the text's states, token by token; group "text" only.
    """

    layer: int
    group: str
    space: str
    sinks: str
    tokens: int
    left_out: int
    mean_correlation: float | None = None
    log_std_correlation: float | None = None
    std_ratio: float | None = None
    wider: float | None = None  # whole in one reading, as narrower is
    narrower: float | None = None
    effective_rank: float | None = None
    frechet: float | None = None
    cka: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class LayerReport:
    """Figures of every captured layer.

    Attributes:
        figures: by group, space, sinks, then layer from the shallowest.
        target: in words, what the layers are compared with.
    """

    figures: tuple[LayerFigures, ...]
    threshold: float
    target: str
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(row.group for row in self.figures))

    def metrics(self) -> list[Metric]:
        """Those that have a figure anywhere."""
        return [one for one in METRICS if any(getattr(row, one.name) is not None for row in self.figures)]

    def select(self, group: str, space: str, sinks: str) -> list[LayerFigures]:
        """One variant, a row per layer, shallowest first."""
        return [row for row in self.figures if (row.group, row.space, row.sinks) == (group, space, sinks)]

    def best(self, metric: Metric, group: str, space: str, sinks: str) -> tuple[int, ...]:
        """Layers with the best figure: several if they tie, none if nothing was measured or all are equal."""
        rows = self.select(group, space, sinks)
        goodness = {
            row.layer: metric.goodness(value) for row in rows if (value := getattr(row, metric.name)) is not None
        }
        winners = tuple(layer for layer, good in goodness.items() if good == max(goodness.values()))
        return () if len(winners) == len(goodness) > 1 else winners

    def summary(self) -> str:
        """The best layer by each metric, as Z-Image sees the tokens, a line per group; then target and notes."""
        space, sinks = SEEN_BY_DIT
        lines = [f"Best layer by metric, tokens {SPACES[space]}, {SINKS[sinks]}:"]
        for group in self.groups:
            values = {row.layer: row for row in self.select(group, space, sinks)}
            found = []
            for metric in self.metrics():
                layers = self.best(metric, group, space, sinks)
                if layers:
                    named = f"{len(layers)} layers" if len(layers) > TIES_NAMED else ", ".join(map(str, layers))
                    found.append(f"{metric.column} {named} ({_short(getattr(values[layers[0]], metric.name))})")
            lines.append(f"{group} tokens: " + ("; ".join(found) or "no difference between layers"))
        return "\n".join([*lines, f"Compared with {self.target}.", *self.notes])

    def table(self) -> str:
        """A table of fixed width per group, space and sinks; * marks the best layer of a column."""
        metrics = self.metrics()
        rules = ", ".join(f"{metric.column} {metric.best}" for metric in metrics)
        parts = [
            f"Compared with {self.target}.\nOutliers: beyond {self.threshold:g}×. * is the best layer: {rules}.",
            *self.notes,
        ]
        for group in self.groups:
            no_sinks = not any(row.left_out for row in self.figures if row.group == group)
            for space, in_space in SPACES.items():
                for sinks, with_sinks in SINKS.items():
                    head = f"{group} tokens, {in_space}, {with_sinks}"
                    parts.append(head + "\n" + self._block(group, space, sinks, metrics))
            if no_sinks:
                parts.append(f"No layer has attention sinks among the {group} tokens.")
        return "\n\n".join(parts)

    def csv(self) -> str:
        """Every figure, comma separated, a head line first; empty where there is none."""
        return to_csv(LayerFigures, self.figures, 8)

    def _block(self, group: str, space: str, sinks: str, metrics: list[Metric]) -> str:
        rows = self.select(group, space, sinks)
        best = {metric.name: self.best(metric, group, space, sinks) for metric in metrics}
        lines = [["layer", "tokens", *(metric.column for metric in metrics)]]
        for row in rows:
            cells = [str(row.layer), str(row.tokens)]
            for metric in metrics:
                value = getattr(row, metric.name)
                cells.append("-" if value is None else _short(value) + "*" * (row.layer in best[metric.name]))
            lines.append(cells)
        # The star hangs to the right of its column, so that digits stay below one another.
        lines = [[cell if cell.endswith("*") else cell + " " for cell in cells] for cells in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in lines
        )


def layer_report(
    seen: VLStates,
    reference: ReferenceStatistics | None = None,
    text: Tensor | None = None,
    text_layout: TokenLayout | None = None,
    *,
    threshold: float = 10.0,
    progress: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> LayerReport:
    """Measure every captured layer, text and image tokens apart, raw and after x/rms(x), with sinks and without.

    Sinks are found on each layer's whole sequence, among tokens of their own kind (:func:`find_sinks`). The target is
    ``reference`` if given, else ``text``'s own tokens.
    A reference without the moments of unit-RMS tokens (an older file, published figures) is no target after x/rms(x):
    those figures are left out, and a note says so.

    Args:
        seen: an encode with one layer or more.
        reference: statistics of Z-Image's text encoder.
        text: its states of the same prompt, ``(T, D)`` or ``(1, T, D)``, any float dtype, for CKA and cosine.
        text_layout: of ``text``; without one, tokens are paired by count.
        threshold: std ratio from which a dimension counts as an outlier, at least 1.
        progress: called after each layer. check: called before each kind of token in it. Both may raise to stop.

    Raises:
        ValueError: for states or text that are not finite, another width, other words, or a threshold below 1.
    """
    check_embeddings(seen.states, "states")
    if not threshold >= 1:
        raise ValueError(f"threshold: expected a ratio of at least 1, got {threshold}. Below 1 all are outliers.")
    if reference is not None:
        reference.check_width(seen.states.shape[-1])
    pairs = None if text is None else pair_tokens(seen, text, text_layout)
    groups = {name: seen.layout.mask(*roles) for name, roles in GROUPS.items()}
    groups = {name: where.nonzero().flatten() for name, where in groups.items() if where.any()}
    targets = targets_of(reference, pairs)

    figures = []
    for index, states in zip(seen.layers, seen.states, strict=True):
        x = to_float64(states)
        is_sink = find_sinks(x, seen.layout)
        for space in SPACES:
            tokens = x if space == "raw" else unit_rms(x)
            for group, where in groups.items():
                check()
                figures += _measure(
                    index - seen.num_layers - 1, group, space, tokens, is_sink, where.to(x.device), targets,
                    pairs if group == "text" else None, threshold,
                )
        progress()
    ways = {name: place for place, name in enumerate([*GROUPS, *SPACES, *SINKS])}
    figures.sort(key=lambda row: (ways[row.group], ways[row.space], ways[row.sinks], row.layer))

    notes = []
    if reference is not None and reference.unit_ordinary is None:
        notes.append(WITHOUT_UNIT_MOMENTS)
    cosines = [row.cosine for row in figures if row.cosine is not None]
    if cosines and text_layout is None:
        notes += doubts_about_words(max(cosines))
    return LayerReport(tuple(figures), threshold, _target_in_words(reference, pairs), tuple(notes))


def mean_report(reports: Sequence[LayerReport]) -> LayerReport:
    """The mean of every figure over several readings; of one reading the report itself.

    ``tokens`` and ``left_out`` are added up. A figure that some reading lacks is a mean over the others.

    Raises:
        ValueError: if there are none, or not all are of the same layers and groups of tokens.
    """
    figures = over_readings(reports, lambda values: math.fsum(values) / len(values) if values else None)
    if len(reports) == 1:
        return reports[0]
    notes = tuple(dict.fromkeys(note for report in reports for note in report.notes))
    target = f"{reports[0].target}; means over {len(reports)} readings"
    return LayerReport(figures, reports[0].threshold, target, notes)


def standard_errors(reports: Sequence[LayerReport]) -> LayerReport:
    """The standard error of every mean of :func:`mean_report`, in its place; None for fewer than 2 readings."""
    figures = over_readings(
        reports, lambda values: statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    )
    target = f"{reports[0].target}; standard errors over {len(reports)} readings"
    return LayerReport(figures, reports[0].threshold, target)


def over_readings(
    reports: Sequence[LayerReport], figure: Callable[[list[float]], float | None]
) -> tuple[LayerFigures, ...]:
    """One figure from those of several readings, row by row; counts of tokens are added up."""
    if not reports:
        raise ValueError("reports: expected at least one, got none.")
    ways = [[(row.layer, row.group, row.space, row.sinks) for row in report.figures] for report in reports]
    if any(one != ways[0] for one in ways):
        raise ValueError("reports: expected the same layers and groups of tokens in all of them, got different ones.")
    found = []
    for rows in zip(*(report.figures for report in reports), strict=True):
        own = {one.name: [value for row in rows if (value := getattr(row, one.name)) is not None] for one in METRICS}
        counts = {name: sum(getattr(row, name) for row in rows) for name in ("tokens", "left_out")}
        found.append(replace(rows[0], **counts, **{name: figure(values) for name, values in own.items()}))
    return tuple(found)


def join_reports(parts: Mapping[str, str]) -> str:
    """Reports below one another, each under its title; one without a title is that report itself."""
    return "\n\n".join(f"== {title} ==\n{text}" if title else text for title, text in parts.items())


def join_csv(tables: Mapping[int, str]) -> str:
    """Tables of :meth:`LayerReport.csv` by the layer they compare with, a first column ``target_layer`` in front; a
    single table is that table itself."""
    if len(tables) == 1:
        return next(iter(tables.values()))
    lines = [f"target_layer,{next(iter(tables.values())).splitlines()[0]}"]
    for layer, table in tables.items():
        lines += [f"{layer},{line}" for line in table.splitlines()[1:]]
    return "\n".join(lines) + "\n"


def _target_in_words(reference: ReferenceStatistics | None, pairs: Pairs | None) -> str:
    if reference is not None:
        against = f"the reference ({reference.prompts} prompts, {reference.ordinary.count} tokens)"
        return against + (" and, token by token, with the text" if pairs is not None else "")
    if pairs is not None:
        return f"the text's own {len(pairs.text)} tokens; few, so spreads are rough: a reference tells more"
    return "nothing: without a reference or the text only the effective rank can be told"


def _measure(
    layer: int, group: str, space: str, tokens: Tensor, is_sink: Tensor, where: Tensor,
    targets: dict[tuple[str, str], Moments], pairs: Pairs | None, threshold: float,
) -> list[LayerFigures]:
    """One layer, group and space, with sinks and without."""
    rows, rank = [], None
    for sinks in SINKS:
        kept = where if sinks == "include" else where[~is_sink[where]]
        x = tokens[kept]
        if rank is None or len(kept) < len(where):
            rank = effective_rank(x)
        found = {"effective_rank": rank}
        target = targets.get((space, sinks))
        if target is not None and len(x) > 1:
            found |= against(x.mean(0).cpu(), x.std(0).cpu(), target, threshold)
        if pairs is not None:
            found |= token_by_token(tokens, is_sink, pairs, space, sinks)
        rows.append(LayerFigures(
            layer, group, space, sinks, len(kept), int(is_sink[where].sum()),
            **{name: None if isinstance(value, float) and not math.isfinite(value) else value
               for name, value in found.items()},
        ))
    return rows


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
