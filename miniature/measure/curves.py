"""Stage ``curves``: what decides the picture adapter's worth, a fit for each point, its pictures read by the judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vl_core.adapters.features import PictureFeatures
from vl_core.adapters.picture_adapter import PictureAdapter

from .. import world
from ..train.training import Options, log, write_json
from . import adapters
from .adapters import ALL_SEEN, Examples, fit, spec_of
from .bench import Painting, Switches, begun, prepare, row_of, workers
from .between import BetweenColours
from .chain import Chain
from .ledger import Ledger
from .rows import METHODS, TEXT_ONLY, Method

FIT_SIZES = (50, 100, 200, 500, 1500)
STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.25, 1.5)
SOME = 500  # pairs of the points that vary something else
NEW_STYLES = ("striped", "checkered", "gradient")  # each is left out of a fit, then shown in a few pictures
FEW = 10
NEW_SEED = 88_000  # far from the fit's pictures and the bench's
FIXED_PROMPTS = ("", world.DESCRIBE_LOOK[1])  # read in place of the user's


@dataclass(frozen=True, eq=False)
class Point:
    """One row: what is varied, its value, the adapter, and how it is asked; ``hold_out`` and ``other_words`` too."""

    what: str
    value: Any
    adapter: PictureAdapter
    strength: float = 1.0
    way: str = "adapter"
    setting: dict[str, Any] | None = None
    hold_out: world.HoldOut = ALL_SEEN
    other_words: bool = False

    @property
    def where(self) -> str:
        """The part of the world it is asked in."""
        held = "unseen combinations" if self.hold_out.combinations else self.hold_out.style
        return "other words" if self.other_words else held or "all"

    @property
    def method(self) -> Method:
        return Method(self.what, "adapter", self.way, None, self.setting or {"strength": self.strength})


def run(options: Options, switches) -> dict[str, Any]:
    """Measure on the bench's pairs and write ``adapter_curves.json`` beside the models."""
    chain, ledger, _ = begun(options, switches, "curves")
    pool = workers()
    grounds: dict[str, Ground] = {}
    rows, widest = [], None
    for point in points(chain, options):
        if point.where not in grounds:
            there = replace(switches, hold_out=point.hold_out, other_words=point.other_words)
            grounds[point.where] = Ground.of(chain, there, options.seed, pool, ledger, point.where)
            rows += grounds[point.where].bounds()
        rows.append(grounds[point.where].row(point))
        shown = ("what", "value", "r2", "transfer", "stderr", "adherence", "parts_of_both")
        log(options, "curves", **{name: rows[-1][name] for name in shown})
        widest = point.adapter if point.what == "pairs" else widest
    between = between_colours(chain, widest, range(switches.seeds), switches.steps, switches.guidance, options)
    log(options, "curves", **{name: row["error"] for name, row in between.items()})
    if pool is not None:
        pool.shutdown()
    report = {
        "measured": ledger.mostly_with(), "asked": switches.describe(), "rows": rows, "between": between,
    }
    write_json(options.report("adapter_curves.json"), report)
    return report


@dataclass(frozen=True, eq=False)
class Ground:
    """What one part of the world is measured against."""

    where: str
    painting: Painting
    ledger: Ledger
    floor: dict[str, Tensor]
    ceiling: dict[str, Tensor]

    @classmethod
    def of(cls, chain: Chain, switches: Switches, seed: int, pool, ledger: Ledger, where: str) -> Ground:
        bench = prepare(chain, switches, seed)
        painting = Painting(bench, tuple(range(switches.seeds)), switches.steps, switches.guidance, pool)
        floor = ledger.measured(f"{where}: text", lambda: painting.hits([case.states for case in bench.cases]))
        ceiling = ledger.measured(f"{where}: caption", lambda: painting.measure(METHODS[0]))
        return cls(where, painting, ledger, floor, ceiling)

    def row(self, point: Point) -> dict[str, Any]:
        """One entry of the report."""
        painting = replace(self.painting, bench=replace(self.painting.bench, adapter=point.adapter))
        key = f"{self.where}: {point.what} {point.value}"
        figures = self._figures(point.method, self.ledger.measured(key, lambda: painting.measure(point.method)))
        report = point.adapter.report
        return {"what": point.what, "value": point.value, "pairs": report.pairs, "r2": report.r2, **figures}

    def bounds(self) -> list[dict[str, Any]]:
        """Words alone, and a caption in words."""
        named = ((Method(TEXT_ONLY, "none", "words"), self.floor), (METHODS[0], self.ceiling))
        return [
            {"what": "bound", "value": method.name, "pairs": None, "r2": None, **self._figures(method, found)}
            for method, found in named
        ]

    def _figures(self, method: Method, found: dict[str, Tensor]) -> dict[str, Any]:
        row = row_of(method, found, self.floor, self.ceiling)
        names = ("transfer", "stderr", "transfer_by", "transfer_next", "adherence", "adherence_shape", "leak")
        figures = {name: row[name] for name in names}
        return {"where": self.where, **figures, "parts_of_both": float(found["parts_of_both"].mean())}


def points(chain: Chain, options: Options) -> Iterator[Point]:
    """Every row, cheapest readings first."""
    seed, spec = adapters.SEED + options.seed, spec_of(chain)
    sizes = [options.size(size, 12) for size in FIT_SIZES]
    many, some = max(sizes), options.size(SOME, 12)
    examples = Examples.draw(chain, many, seed)
    features, targets = examples.features(chain, spec.features), examples.targets(chain, spec)
    for size in sizes:
        widest = fit(spec, features[:size], targets[:size])
        yield Point("pairs", size, widest)
    yield Point("prompt", "other words", widest, other_words=True)
    for combining in ("average", "append", "parts"):
        yield Point("two pictures", combining, widest, way="two adapted", setting={"combining": combining})
    setting = {"combining": "average", "strength": 1.5}
    yield Point("two pictures", "average, strength 1.5", widest, way="two adapted", setting=setting)
    blind = spec_of(chain, PictureFeatures(tail=0))
    seen_alone = fit(blind, examples.features(chain, blind.features), targets)
    for beside in FIXED_PROMPTS:
        fixed = spec_of(chain, own_prompt=False, prompt=beside)
        apart = fit(fixed, examples.features(chain, fixed.features, beside), targets)
        for other in (False, True):
            yield Point("prompt", f"always {beside!r} beside the picture", apart, other_words=other)
    for other in (False, True):
        yield Point("prompt", "none beside the picture: no tail tokens", seen_alone, other_words=other)
    for rank in (4, 16, 64):
        yield Point("rank", rank, fit(spec, features[:some], targets[:some], rank=rank))
    adapter = fit(spec, features[:some], targets[:some])
    for strength in STRENGTHS:
        yield Point("strength", strength, adapter, strength)
    few = Examples(examples.images[:some], examples.prompts[:some], examples.texts[:some])
    for pool in ("none", "mean", "grid4"):
        other = spec_of(chain, PictureFeatures(pool))
        yield Point("picture tokens", pool, fit(other, few.features(chain, other.features), targets[:some]))
    for layer in (-8, -4):
        other = spec_of(chain, PictureFeatures(layers=(layer,)))
        yield Point("layer", layer, fit(other, few.features(chain, other.features), targets[:some]))
    included = spec_of(chain, PictureFeatures(sinks="include"))
    yield Point("sinks", "include", fit(included, few.features(chain, included.features), targets[:some]))
    state = spec_of(chain, tail="state")
    yield Point("tail", "state", fit(state, features[:some], few.targets(chain, state)))
    told = Examples.draw(chain, some, seed, described=True)
    yield Point("words", "by the VL", fit(spec, told.features(chain, spec.features), told.targets(chain, spec)))
    held = world.HoldOut(combinations=True)
    seen = Examples.draw(chain, many, seed, held)
    unseen = fit(spec, seen.features(chain, spec.features), seen.targets(chain, spec))
    yield Point("looks", "unseen combinations", unseen, hold_out=held)
    for style in NEW_STYLES[: 1 if options.toy else None]:
        yield from new_look(chain, spec, style, many, seed)


def new_look(chain: Chain, spec, style: str, count: int, seed: int) -> Iterator[Point]:
    """A style left out of the fit, then shown in a few pictures that count more or less."""
    held = world.HoldOut(style=style)
    known, added = (
        (examples.features(chain, spec.features), examples.targets(chain, spec))
        for examples in (
            Examples.draw(chain, count, seed, held), Examples.draw(chain, FEW, NEW_SEED, held, testing=True),
        )
    )
    yield Point(f"{style} left out", "none shown", fit(spec, *known), hold_out=held)
    both = [first + more for first, more in zip(known, added, strict=True)]
    for weight in (1.0, 10.0, 30.0):
        weights = [1.0] * count + [weight] * FEW
        yield Point(f"{style} left out", f"{FEW} shown, weight {weight:g}", fit(spec, *both, weights), hold_out=held)


def between_colours(
    chain: Chain, adapter: PictureAdapter, seeds, steps: int, guidance: float, options: Options
) -> dict[str, dict[str, float]]:
    """RGB distance of the painted background from one that lies halfway between two named colours.

    The adapter against the caption of the nearer of the two names, and the adapter on another picture; each a mean
    over all pairs of names and seeds, with its standard error over pairs.
    """
    colours = BetweenColours.draw(chain, 3 if options.toy else None)
    texts, images = chain.words_many(colours.prompts), colours.images

    def adapted(shift: int) -> list[Tensor]:
        order = [(index + shift) % len(images) for index in range(len(images))]
        looks = chain.look_many(
            [images[which] for which in order], colours.prompts, layers=adapter.spec.features.layers
        )
        return [
            adapter.apply(states, layout, seen)[0] for (states, layout), seen in zip(texts, looks, strict=True)
        ]

    def error(states: Sequence[Tensor]) -> Tensor:
        return colours.error(chain, states, seeds, steps, guidance)

    words = ([states for states, _ in chain.words_many(colours.captions(side))] for side in (0, 1))
    found = {
        "picture adapter": error(adapted(0)), "nearest word": torch.stack([error(each) for each in words]).amin(0),
        "another picture": error(adapted(7 % len(images))),
    }
    return {
        name: {"error": float(values.mean()), "stderr": float(values.std() / len(values) ** 0.5)}
        for name, values in found.items()
    }
