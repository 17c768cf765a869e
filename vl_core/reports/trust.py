"""How far a judge can be trusted: the order it puts things in, and whether it tells right from wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ranks(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> float | None:
    """Spearman's rank correlation, equal values sharing the mean of their ranks; None if one does not vary."""
    first, second = _ranked(one), _ranked(other)
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def right_before_wrong(right: Sequence[float], wrong: Sequence[float]) -> float:
    """The share of couples in which the right one's figure is larger, a tie counting half: the area under the ROC."""
    good, bad = np.asarray(right, float)[:, None], np.asarray(wrong, float)[None]
    return float(((good > bad) + 0.5 * (good == bad)).mean())


def _ranked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum()
    return (last - (count - 1) / 2)[place]
