"""How a look is learned.

The qualities follow curves of single numbers about ``LearnOptions()`` and a search on other pictures (docs/looks.md):
the style is learned at middle noise levels; more tokens than the words have bring colours nearer; the mean of half of
the steps keeps the style; what other prompts differ by is kept (``keep``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

LARGEST_SIDE = 2048


@dataclass(frozen=True)
class LearnOptions:
    """Numbers of one learning, plain ones unless told; ``QUALITIES`` has the named sets.

    Attributes:
        steps: of Adam. ``draws``: noisy pictures per step.
        rate: of Adam, falling with the root of what is left of the steps.
        anchor: pull to the words that the look began as, times the mean square distance from them.
        lowest: the least noise level that is drawn. A look is decided where the noise is strong.
        size: pictures are brought to about size × size pixels; smaller ones are not enlarged.
        keep: weight of leaving other prompts what they differ by, beside the loss on the pictures; 0 for none. Of
            several pictures each counts as much, up to ``draws`` of them.
        average: share of the steps, at their end, over which the look is averaged.
        seed: of noise and noise levels.
        tokens: of the look, at the least; of fewer words each is several tokens.

    Raises:
        ValueError: naming what is out of range.
    """

    steps: int = 100
    draws: int = 4
    rate: float = 0.1
    anchor: float = 0.02
    lowest: float = 0.85
    size: int = 512
    keep: float = 0.1
    average: float = 0.25
    seed: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "steps": (1, 10_000), "draws": (1, 64), "rate": (1e-6, 1.0), "anchor": (0.0, 100.0), "lowest": (0.0, 0.99),
            "size": (32, LARGEST_SIDE), "keep": (0.0, 100.0), "average": (0.0, 1.0), "seed": (0, 2**31 - 1),
            "tokens": (0, 256),
        }
        for each in fields(self):
            value, (low, high) = getattr(self, each.name), bounds[each.name]
            if not low <= value <= high:
                raise ValueError(f"{each.name}: expected {low:g} to {high:g}, got {value}.")

    def header(self) -> dict[str, int | float | str]:
        """Plain values by name."""
        return asdict(self)

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> LearnOptions:
        """From :meth:`header`, an older one too: before ``keep`` was there nothing was kept."""
        known = {each.name for each in fields(cls)}
        return cls(**{"keep": 0.0, **{name: value for name, value in header.items() if name in known}})


QUALITIES = {
    "quick": LearnOptions(steps=50, draws=2, lowest=0.75, tokens=16, keep=0.25),
    "good": LearnOptions(anchor=0.01, lowest=0.5, average=0.5, tokens=16, keep=0.25),
    "best": LearnOptions(steps=300, lowest=0.5, average=0.5, tokens=24, keep=0.25),
}
