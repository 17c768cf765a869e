"""What a way is: how a picture reaches Z-Image. One row and one function each, in :mod:`~vl_core.steering.ways`.

A way says what it needs and does one thing with it; it fetches nothing itself. :func:`~vl_core.steering.steer.steer`
asks it, gets what it needs from the host once, and lets it act.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..adapters.picture_adapter import PictureAdapter
from ..states.families import ZIMAGE, Family
from ..states.fields import quoted
from ..states.layout import TokenLayout
from ..states.statistics import ReferenceStatistics
from ..states.vl_states import VLStates

if TYPE_CHECKING:
    from .settings import Settings

RESEARCH = "research: "  # what the name of a way begins with that showed next to nothing on the miniature


@dataclass(frozen=True, eq=False)
class Text:
    """What the text encoder makes of a prompt: one entry, of several where it is scheduled.

    Attributes:
        states: ``(L, S·D)`` or ``(B, L, S·D)``, S layers of width D side by side; S is 1 for Z-Image.
        layout: what the tokens are, None if they are not known.
        words: how many tokens come before the padding, where the layout is unknown and the family pads.
        origin: what the host made it from, for itself.
    """

    states: Tensor
    layout: TokenLayout | None
    words: int | None = None
    origin: Any = None


@dataclass(frozen=True, eq=False)
class Given:
    """What is there besides pictures and settings, and is no plain value.

    Attributes:
        adapter: a fitted picture adapter. ``look``: a learned look.
        words: a description that somebody wrote or kept; then nothing is written.
        statistics: of the text encoder, one for each layer the family reads; measured if needed and not given.
        family: the text encoder's.
    """

    adapter: PictureAdapter | None = None
    look: Any = None
    words: str | None = None
    statistics: tuple[ReferenceStatistics | None, ...] | None = None
    family: Family = ZIMAGE


@dataclass(frozen=True)
class Needs:
    """What a way has to have before it can act.

    Attributes:
        layers: hidden states of Qwen3-VL of all pictures read as one, negative from the end; none for no reading.
        muted: the same reading with its pictures muted as well.
        alone: hidden states of each picture read by itself, beside ``beside`` (None for the prompt itself).
        words: whether Qwen3-VL's words are needed.
        statistics: whether the text encoder's statistics are needed.
        neutral: the same reading with grey pictures in the places of the others as well.
    """

    layers: tuple[int, ...] = ()
    muted: bool = False
    alone: tuple[int, ...] = ()
    beside: str | None = None
    words: bool = False
    statistics: bool = False
    neutral: bool = False


@dataclass(frozen=True, eq=False)
class Readings:
    """What a way asked for.

    Attributes:
        seen: all pictures as one reading. ``muted``: the same with its pictures muted.
        alone: each picture read by itself. ``weights``: of the pictures, in the same order.
        words: what Qwen3-VL wrote, or somebody in its place; ``described``: the prompt with these words after it, the
            entry that belongs to the text.
        statistics: of the text encoder, one for each layer the family reads.
        neutral: the reading of grey pictures.
    """

    seen: VLStates | None = None
    muted: VLStates | None = None
    alone: tuple[VLStates, ...] = ()
    weights: tuple[float, ...] = ()
    words: str = ""
    described: Text | None = None
    statistics: tuple[ReferenceStatistics | None, ...] = (None,)
    neutral: VLStates | None = None


@dataclass(frozen=True, eq=False)
class Steered:
    """States that a picture has steered.

    Attributes:
        states, layout, words: as in :class:`Text`.
        lines: what was done, the first one for people.
        text: the entry whose options hold for it: the prompt's own, or the described one.
    """

    states: Tensor
    layout: TokenLayout | None
    lines: tuple[str, ...]
    text: Text
    words: int | None = None


Act = Callable[[Text, Readings, "Settings", Given], Steered]


@dataclass(frozen=True, eq=False)
class Way:
    """One way a picture can act.

    Attributes:
        name, meaning: for people. ``act``: what it does, at any strength but 0, which is the words alone bit for bit.
        needs: what it has to have. ``low``, ``high``: the strengths it takes.
        uses: names of the settings that make a difference to it, besides take and strength.
        layer: the hidden state it reads unless one is named; 0 if it reads none.
        takes: whether the take makes a difference to it.
        missing: why it cannot act with what is given; "" if it can.
        doubts: why *automatic* should go on to the next way, after the readings; "" if there is no doubt.
        tries: names of ways that are tried in turn in its place.
        stacked: whether it can act on layers that lie side by side.
        rank: where it stands in lists. quiet: *automatic* does not say that it is missing.
        also: other names it has had.
    """

    name: str
    meaning: str
    act: Act
    needs: Callable[[Settings, Given], Needs]
    low: float = 0.0
    high: float = 1.0
    uses: tuple[str, ...] = ()
    layer: int = 0
    missing: Callable[[Given], str] = lambda given: ""
    doubts: Callable[[Readings, Settings, Given], str] = lambda readings, settings, given: ""
    tries: tuple[str, ...] = ()
    stacked: bool = True
    rank: int = 50
    quiet: bool = False
    also: tuple[str, ...] = field(default=())

    @property
    def research(self) -> bool:
        """Whether it showed next to nothing where it was measured."""
        return self.name.startswith(RESEARCH)


@cache
def _registry() -> dict[str, Way]:
    package = import_module(".ways", __package__)
    found = [
        way
        for module in iter_modules(package.__path__)
        for way in import_module(f".ways.{module.name}", __package__).WAYS
    ]
    return {way.name: way for way in sorted(found, key=lambda way: (way.rank, way.name))}


def ways() -> dict[str, Way]:
    """Every way by its name, in the order of lists: each file of the folder ``ways`` has some."""
    return dict(_registry())


def way_names() -> tuple[str, ...]:
    return tuple(_registry())


def find_way(name: str) -> Way:
    """The way of a name, or of one that it has had.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    known = _registry()
    if name in known:
        return known[name]
    for way in known.values():
        if name in way.also:
            return way
    raise ValueError(f"way: expected one of {', '.join(known)}, got {quoted(name)}.")


def candidates(way: Way) -> list[Way]:
    """The ways that are tried in a way's place, those of them that there are; else the way itself."""
    return [_registry()[name] for name in way.tries if name in _registry()] or [way]


def check_strength(way: Way, strength: float) -> None:
    """Refuse a strength that a way does not take.

    Raises:
        ValueError: naming what was expected, what was got, and ways that take it.
    """
    if way.low <= strength <= way.high:
        return
    others = [other.name for other in _registry().values() if other.low <= strength <= other.high]
    hint = f" {' and '.join(others)} {'takes' if len(others) == 1 else 'take'} it." if others else ""
    least = "0 (words only)" if way.low == 0 else f"{way.low:g}"
    raise ValueError(f"strength: expected {least} to {way.high:g} with {way.name}, got {strength:g}.{hint}")


