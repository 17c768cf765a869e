"""Figures of every setting from the records of its cells: transfer by part, adherence, leak, nulls, artifacts.

Transfer of a part: 0 is what the words alone show of a reference by chance, 1 what its own caption shows of it when
that is all that is painted. Seeds of a picture and a prompt are averaged first, ± is the standard error over pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...reports.artifacts import FLOORS
from .evidence import PROMPT, Figures, Record

KEPT = 0.85  # of the words alone's adherence, to count as keeping to the prompt
LEAST_SPAN = 0.05  # by which a caption has to show more of a part than the words alone
SURE = 2.0  # standard errors
ANOTHER, NOISE = "another picture", "matched noise"
TRANSFER, SECOND = "transfer", "second judge"


@dataclass(frozen=True)
class Ground:
    """What every cell is compared with: the words alone by prompt and seed, captions by picture and seed."""

    words: Mapping[tuple[int, int], Record]
    captions: Mapping[tuple[int, int], Record]
    pictures: int

    @classmethod
    def of(cls, records: Sequence[Record], pictures: int) -> Ground:
        return cls(
            {(one.prompt, one.seed): one for one in records if one.kind == "words"},
            {(one.picture, one.seed): one for one in records if one.kind == "caption"}, pictures,
        )


def figures_of(arm: str, records: Sequence[Record], ground: Ground) -> Figures | None:
    """One setting's figures; None if nothing of it was painted."""
    own = [one for one in records if one.arm == arm and not one.null]
    if not own:
        return None
    noise = [one for one in records if one.arm == arm and one.null]
    transfer, error, parts = _transfer(own, ground, 0)
    pairs = len({(one.picture, one.prompt) for one in own})
    kept = _over_pairs(own, [one.adherence for one in own])
    words = [ground.words[one.prompt, one.seed] for one in own]
    leak = _over_pairs(own, [
        _less(one.leak.get(str(one.picture)), plain.leak.get(str(one.picture)))
        for one, plain in zip(own, words, strict=True)
    ])
    nulls = {ANOTHER: _transfer(own, ground, -1)[:2]} | ({NOISE: _transfer(noise, ground, 0)[:2]} if noise else {})
    return Figures(
        arm=arm, cells=len(own), pairs=pairs, transfer=transfer, transfer_error=error, parts=parts,
        adherence=kept[0], adherence_error=kept[1],
        words_adherence=_over_pairs(own, [one.adherence for one in words])[0], leak=leak[0], leak_error=leak[1],
        nulls={name: list(both) for name, both in nulls.items()}, artifacts=_artifacts(own, words),
        artifacts_log=list(_over_pairs(own, _artifact_logs(own, words))),
        seconds=_mean([sum(one.seconds.values()) for one in own]) or 0.0, second=_second(own, noise, ground),
    )


def score(found: Figures) -> tuple[bool, float]:
    """Which setting is better: one that keeps to the prompt, then by transfer."""
    return keeps(found), -math.inf if found.transfer is None else found.transfer


def keeps(found: Figures) -> bool:
    """Whether a setting keeps to the prompt nearly as the words alone do."""
    if found.adherence is None or found.words_adherence is None:
        return False
    return found.adherence >= KEPT * found.words_adherence


def beats_nulls(found: Figures) -> bool:
    """Whether the transfer lies above every null's by two standard errors of the difference."""
    if found.transfer is None or not found.nulls:
        return False
    return all(
        null is not None and found.transfer - null > SURE * math.hypot(found.transfer_error or 0.0, error or 0.0)
        for null, error in found.nulls.values()
    )


def _transfer(
    records: Sequence[Record], ground: Ground, shift: int
) -> tuple[float | None, float | None, dict[str, float]]:
    """Mean transfer of the parts that a caption moves, its error, and each part's.

    Args:
        shift: 0 for a cell's own reference; -1 for the one before it, to which the cell is another picture's.
    """
    gains: dict[str, list[float]] = {}
    spans: dict[str, list[float]] = {}
    for one in records:
        place = (one.picture + shift) % ground.pictures
        plain, caption = ground.words[one.prompt, one.seed], ground.captions[place, one.seed]
        theirs = plain.look.get(str(place), {})
        for part, bound in caption.look.get(str(place), {}).items():
            seen = one.look.get(str(place), {}).get(part)
            gains.setdefault(part, []).append(math.nan if seen is None else seen - theirs[part])
            spans.setdefault(part, []).append(bound - theirs[part])
    moved = {part: float(np.nanmean(each)) for part, each in spans.items()}
    rows = [np.array(gains[part]) / span for part, span in moved.items() if span > LEAST_SPAN]
    if not rows or any(len(row) != len(records) for row in rows):
        return None, None, {}
    each = np.nanmean(np.stack(rows), 0)
    mean, error = _over_pairs(records, each.tolist())
    parts = {
        part: float(np.nanmean(gains[part]) / span) for part, span in moved.items() if span > LEAST_SPAN
    }
    return mean, error, parts


def _second(own: Sequence[Record], noise: Sequence[Record], ground: Ground) -> dict[str, list[float | None]]:
    """The same by a second judge, to whom a look is of one part; nothing if there is none."""
    if not all(one.scores for one in own):
        return {}

    def seen(one: Record) -> Record:
        return one.model_copy(update={"look": {
            place: {SECOND: value} for place, value in one.scores.items() if place != PROMPT
        }})

    ground = Ground(
        {key: seen(one) for key, one in ground.words.items()}, {key: seen(one) for key, one in ground.captions.items()},
        ground.pictures,
    )
    asked = [(TRANSFER, own, 0), (ANOTHER, own, -1)] + [(NOISE, noise, 0)] * bool(noise)
    return {name: list(_transfer([seen(one) for one in some], ground, shift)[:2]) for name, some, shift in asked}


def _artifacts(own: Sequence[Record], words: Sequence[Record]) -> dict[str, float]:
    """How many times the words alone's each artifact is: the geometric mean over cells."""
    both = list(zip(own, words, strict=True))
    logs = {name: [_log_ratio(name, *pair) for pair in both] for name in FLOORS}
    kept = {name: [one for one in each if one is not None] for name, each in logs.items()}
    return {name: math.exp(sum(each) / len(each)) for name, each in kept.items() if each}


def _artifact_logs(own: Sequence[Record], words: Sequence[Record]) -> list[float | None]:
    """Per cell the mean over kinds of the logarithm."""
    found: list[float | None] = []
    for pair in zip(own, words, strict=True):
        each = [one for name in FLOORS if (one := _log_ratio(name, *pair)) is not None]
        found.append(sum(each) / len(each) if each else None)
    return found


def _log_ratio(name: str, own: Record, words: Record) -> float | None:
    if not own.artifacts or not words.artifacts:
        return None
    floor = FLOORS[name]
    return math.log(max(own.artifacts[name], floor) / max(words.artifacts[name], floor))


def _over_pairs(
    records: Sequence[Record], values: Sequence[float | None]
) -> tuple[float | None, float | None]:
    """Mean and standard error over pairs of a picture and a prompt, seeds averaged first."""
    pairs: dict[tuple[int, int], list[float]] = {}
    for one, value in zip(records, values, strict=True):
        if value is not None and math.isfinite(value):
            pairs.setdefault((one.picture, one.prompt), []).append(value)
    means = np.array([np.mean(each) for each in pairs.values()])
    if not len(means):
        return None, None
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return float(means.mean()), error


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
