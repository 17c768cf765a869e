"""What the stage ``looks`` measures, in units that can be measured side by side: each learns once and paints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vl_core import Look
from vl_core.looks.options import QUALITIES, LearnOptions
from vl_core.looks.others import OTHERS

from .. import world
from .look_ground import FOUR, Figures, Ground, learn
from .look_rivals import RIVALS, Rival

PLAIN = LearnOptions()  # what the curves change a number of
CHANGES: dict[str, tuple[float, ...]] = {
    "steps": (20, 50, 100, 200, 300), "draws": (1, 2, 4, 8), "rate": (0.02, 0.05, 0.1, 0.2),
    "anchor": (0.0, 0.02, 0.1), "lowest": (0.0, 0.3, 0.5, 0.75, 0.85, 0.95), "tokens": (16, 32), "size": (64, 96),
    "keep": (0.0, 0.03, 0.1, 0.25, 1.0, 3.0), "average": (0.0, 0.25, 0.5),
}
LONGER: tuple[dict[str, Any], ...] = ({"lowest": 0.75}, {"tokens": 32}, {"keep": 0.0}, {"keep": 1.0})  # of the best
THINGS, EVERYDAY = "things of the world", "the pack's own prompts"
LEFT_ALONE = {THINGS: world.other_things(), EVERYDAY: OTHERS}
TOLD = ("all", "object", "nothing")
STRENGTHS = (0.1, 0.25, 0.5, 0.75, 1.25, 1.5, 2.0)
WEIGHTS = ((1.0, 1.0), (3.0, 1.0), (1.0, 3.0))  # of two looks at once
AHEAD = 7  # places between a look and the picture whose look is its null
OWN, ANOTHER, NOISE = "own", "another picture", "noise"
START, WORDS = "start", "words"
Key = tuple[str, str]  # of a row: ground, and what was done there
FULL = ("pairs", "between")  # grounds of qualities and rivals, beside those of styles
SMALL = ("some pairs", "some between")  # grounds of curves


@dataclass(frozen=True)
class Row:
    """How looks are learned.

    Attributes:
        pictures: per look. ``told``: see :meth:`Ground.lessons`. ``others``: what is left alone, of ``LEFT_ALONE``.
    """

    name: str
    options: LearnOptions
    pictures: int = 1
    told: str = "things"
    others: str = THINGS

    @property
    def key(self) -> str:
        return f"{self.pictures} pictures, told {self.told}, beside {self.others}: {self.options.header()}"


@dataclass(frozen=True)
class Unit:
    """Rows that are measured together.

    Attributes:
        keys: of the rows. ``cost``: of learning, in noisy pictures, to share units out by.
        measure: the rows' figures in turn. ``first``: before all others, as nothing can be reported without.
    """

    name: str
    keys: tuple[Key, ...]
    cost: float
    measure: Callable[[], Iterator[Figures]]
    first: bool = False


def qualities(toy: bool = False) -> list[Row]:
    """The named qualities, and one with nothing kept, each from one picture and from four of one look."""
    rows = [Row(name, options) for name, options in QUALITIES.items()]
    rows.append(Row("good, nothing kept", replace(QUALITIES["good"], keep=0.0)))
    found = []
    for row in rows:
        row = replace(row, options=replace(row.options, steps=2, draws=1)) if toy else row
        found += [row, replace(row, name=f"{row.name}, {FOUR} pictures", pictures=FOUR)]
    return found


def curves(toy: bool = False) -> list[Row]:
    """What each number does about plain ones; the plain row itself first."""
    plain = replace(PLAIN, steps=2, draws=1) if toy else PLAIN
    found = [Row("plain", plain)]
    for name, values in CHANGES.items():
        found += [
            Row(f"{name} {value:g}", replace(plain, **{name: type(getattr(plain, name))(value)}))
            for value in values if value != getattr(plain, name)
        ]
    found += [Row(f"told: {told}", plain, told=told) for told in TOLD]
    found.append(Row(f"kept: {EVERYDAY}", plain, others=EVERYDAY))
    for change in LONGER:
        long = replace(QUALITIES["best"], **change, **({"steps": 2, "draws": 1} if toy else {}))
        found.append(Row(f"best: {', '.join(f'{name} {value:g}' for name, value in change.items())}", long))
    return found[:: 8 if toy else 1]


def units(grounds: dict[str, Ground], toy: bool) -> list[Unit]:
    """All of them."""
    styles = [name for name in grounds if name not in (*FULL, *SMALL)]
    found = [_bounds("bounds and start", {name: one for name, one in grounds.items() if name not in SMALL})]
    for row in qualities(toy):
        found.append(_quality(row, grounds, ("pairs",) if row.pictures > 1 else (*FULL, *styles)))
        if row.pictures == 1:
            found.append(_noise(row, grounds["pairs"]))
    found += [_rival(rival, grounds, (*FULL, *styles)) for rival in RIVALS]
    found.append(_bounds("bounds of the curves", {name: grounds[name] for name in SMALL}, begun=False))
    found += [_curve(row, grounds) for row in curves(toy)]
    return [*found, _plain(curves(toy)[0], grounds)]


def share(found: Sequence[Unit], shard: str) -> list[Unit]:
    """The units of a shard such as "0/4": what is needed first, then the dearest, each to whom has least to do.

    All for no shard.
    """
    if not shard:
        return list(found)
    index, count = map(int, shard.split("/"))
    loads, mine = [0.0] * count, []
    for unit in sorted(found, key=lambda unit: (not unit.first, -unit.cost)):
        lightest = loads.index(min(loads))
        loads[lightest] += unit.cost
        if lightest == index:
            mine.append(unit)
    return mine


# --- kinds ------------------------------------------------------------------------------------------------------------


def cost_of(options: LearnOptions, looks: int) -> float:
    return options.steps * options.draws * looks


def learn_each(row: Row, grounds: Sequence[Ground]) -> dict[str, list[Look]]:
    """The row's looks of several grounds, all learned side by side."""
    lessons = [
        ground.lessons_of_four(row.told) if row.pictures > 1 else ground.lessons(row.told) for ground in grounds
    ]
    every = [lesson for part in lessons for lesson in part]
    looks = iter(learn(grounds[0].painter, every, row.options, LEFT_ALONE[row.others]))
    return {ground.name: [next(looks) for _ in part] for ground, part in zip(grounds, lessons, strict=True)}


def _bounds(unit: str, grounds: dict[str, Ground], begun: bool = True) -> Unit:
    """Words alone and words for the look; looks before the first step."""
    keys = [(name, case) for name, ground in grounds.items() for case in ground.captions]
    starts = list(grounds) if begun else []

    def measure() -> Iterator[Figures]:
        for name, case in keys:
            yield grounds[name].painted(grounds[name].captions[case])
        for name in starts:
            yield grounds[name].measure(grounds[name].begun())

    return Unit(unit, (*keys, *((name, START) for name in starts)), 50_000.0, measure, first=True)


def _quality(row: Row, grounds: dict[str, Ground], names: Sequence[str]) -> Unit:
    cases = {OWN: 0, ANOTHER: AHEAD}
    keys = [(name, f"{case}: {row.key}") for name in names for case in cases]

    def measure() -> Iterator[Figures]:
        looks = learn_each(row, [grounds[name] for name in names])
        for name in names:
            for shift in cases.values():
                yield grounds[name].measure(looks[name], shift)

    count = sum(len(grounds[name].texts) for name in names)
    return Unit(row.name, tuple(keys), cost_of(row.options, count), measure)


def _noise(row: Row, ground: Ground) -> Unit:
    def measure() -> Iterator[Figures]:
        lessons = ground.lessons_of_noise(row.options.seed, row.told)
        yield ground.measure(learn(ground.painter, lessons, row.options, LEFT_ALONE[row.others]))

    cost = cost_of(row.options, len(ground.texts))
    return Unit(f"{row.name}: noise", ((ground.name, f"{NOISE}: {row.key}"),), cost, measure)


def rival_key(rival: Rival, case: str) -> str:
    return f"{case}: rival {rival}"


def _rival(rival: Rival, grounds: dict[str, Ground], names: Sequence[str]) -> Unit:
    cases = {OWN: 0, ANOTHER: AHEAD}

    def measure() -> Iterator[Figures]:
        for name in names:
            for shift in cases.values():
                yield grounds[name].measure_rival(rival, shift)

    keys = tuple((name, rival_key(rival, case)) for name in names for case in cases)
    return Unit(rival.name, keys, 20_000.0, measure)


def _curve(row: Row, grounds: dict[str, Ground]) -> Unit:
    def measure() -> Iterator[Figures]:
        looks = learn_each(row, [grounds[name] for name in SMALL])
        for name in SMALL:
            yield grounds[name].measure(looks[name])

    count = sum(len(grounds[name].texts) for name in SMALL)
    return Unit(row.name, tuple((name, f"{OWN}: {row.key}") for name in SMALL), cost_of(row.options, count), measure)


def plain_keys(row: Row) -> tuple[list[tuple[float, Key]], list[tuple[tuple[float, float], Key]]]:
    """Rows of strengths on both small grounds, and of two looks at once on the pairs."""
    strengths = [(one, (name, f"strength {one:g}: {row.key}")) for one in STRENGTHS for name in SMALL]
    return strengths, [(one, (SMALL[0], f"two looks {one}: {row.key}")) for one in WEIGHTS]


def _plain(row: Row, grounds: dict[str, Ground]) -> Unit:
    """What plain looks show by their strength, and two of them at once."""
    strengths, several = plain_keys(row)

    def measure() -> Iterator[Figures]:
        looks = learn_each(row, [grounds[name] for name in SMALL])
        for strength, (name, _) in strengths:
            yield grounds[name].measure(looks[name], 0, strength)
        for weights, (name, _) in several:
            yield grounds[name].measure_two(looks[name], weights)

    cost = 1.5 * cost_of(row.options, sum(len(grounds[name].texts) for name in SMALL))
    return Unit("strengths and two looks", tuple(key for _, key in (*strengths, *several)), cost, measure)
