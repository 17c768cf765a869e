"""Stage ``looks``: what a learned look carries, on the bench's pairs, and of what no word says.

Every look is learned as a user would have it learned: the VL says what the picture shows and how it looks. Rows are the
named qualities, each from one picture and from four of one look, then what a single number of *good* does. Beside
transfer, adherence and leak (:mod:`bench`) rows of one picture have the RGB distance of a painted background from one
between two colour names (:mod:`between`).

Null controls of each quality: another picture's look, and a look learned on noise, begun with what the VL says of the
noise. The start is the look before the first step. Properties that vary in the world and are told by no caption are
read off by geometry (:mod:`look_geometry`) and compared with the reference's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vl_core import Look
from vl_core.looks.options import QUALITIES

from .. import world
from ..train import assemble
from ..train.training import Options, begin, log, measured_with, write_json
from .bench import Painting, Switches, prepare, row_of, workers
from .chain import Chain
from .ledger import Ledger
from .look_geometry import PROPERTIES, STYLES, lookalikes
from .look_ground import FOUR, Ground, Learned, Row, with_looks
from .look_painter import words_of
from .methods import METHODS, TEXT_ONLY, Method

GOOD = QUALITIES["good"]
CHANGES: dict[str, tuple[float, ...]] = {
    "steps": (20, 60, 200), "draws": (1, 2, 8), "rate": (0.03, 0.05, 0.1, 0.2), "anchor": (0.0, 0.005, 0.02, 0.1),
    "lowest": (0.0, 0.3, 0.5, 0.7), "tail_first": (0.0, 0.3, 0.6, 1.0), "spare": (0.0, 0.5, 0.8, 1.0),
    "average": (0.0, 0.25, 0.5),
}
STRENGTHS = (0.1, 0.25, 0.5, 0.75, 1.25, 1.5, 2.0)
WEIGHTS = ((1.0, 1.0), (3.0, 1.0), (1.0, 3.0))  # of two looks at once
GEOMETRY = 40  # pictures per style
NOTHING = Learned([], [])  # in place of looks where all rows of theirs are in the ledger
AHEAD = 7  # places between a look and the picture whose look is its null
KEPT = (
    "transfer", "stderr", "transfer_by", "transfer_next", "adherence", "adherence_stderr", "adherence_shape", "leak",
)


def rows() -> Iterator[Row]:
    """Qualities first, then what each number does."""
    for name, options in QUALITIES.items():
        yield Row(name, options)
        yield Row(f"{name}, {FOUR} pictures", options, FOUR)
    for name, values in CHANGES.items():
        for value in values:
            if value != getattr(GOOD, name):
                yield Row(f"{name} {value:g}", replace(GOOD, **{name: value}))
    yield Row("told: the object", GOOD, told="object")
    yield Row("told: nothing", GOOD, told="nothing")


def run(options: Options, switches: Switches) -> dict[str, Any]:
    """Measure and write ``looks.json`` beside the models; with ``--resume`` rows already measured are kept."""
    device = begin(options)
    chain = Chain.load(assemble.models_folder(options), device)
    pool = workers()
    asked = {**switches.describe(), "seed": options.seed, "weights": assemble.weight_bytes(chain.folder)}
    ledger = Ledger(options.out / "looks_rows.jsonl", asked, options.resume, measured_with("looks", device))
    bench = prepare(chain, switches, options.seed)
    painting = Painting(bench, tuple(range(switches.seeds)), switches.steps, switches.guidance, pool)
    study = Study.of(Ground.of(painting, 3 if options.toy else None), ledger, options)
    report = {
        "asked": asked,
        "bounds": [study.figures(TEXT_ONLY, study.floor), study.figures(METHODS[0].name, study.ceiling)],
        "between_words": _means(ledger.measured("between words", study.ground.measure_words_between)),
        "start": study.figures("start", ledger.measured("start", lambda: study.ground.measure(study.ground.begun()))),
        "rows": [], "nulls": [],
    }
    for row in rows():
        if switches.only in row.name:
            found, nulls = study.row(row)
            report["rows"].append(found)
            report["nulls"] += nulls
    if not switches.only:
        report |= study.of_good()
        report["geometry"] = [found for style in STYLES for found in study.geometry(style, switches)]
    if pool is not None:
        pool.shutdown()
    report = {"measured": ledger.mostly_with(), **report}
    write_json(options.report("looks.json"), report)
    return report


@dataclass(frozen=True, eq=False)
class Study:
    """Rows of the report; ``floor`` and ``ceiling`` are the bench's: words alone, and a caption of the look."""

    ground: Ground
    ledger: Ledger
    options: Options
    floor: dict[str, Tensor]
    ceiling: dict[str, Tensor]

    @classmethod
    def of(cls, ground: Ground, ledger: Ledger, options: Options) -> Study:
        painting = ground.painting
        texts = [case.states for case in painting.bench.cases]
        floor = ledger.measured("text", lambda: painting.hits(texts))
        return cls(ground, ledger, options, floor, ledger.measured("caption", lambda: painting.measure(METHODS[0])))

    def missing(self, *keys: str) -> bool:
        return any(key not in self.ledger.rows for key in keys)

    def figures(self, name: str, found: dict[str, Tensor]) -> dict[str, Any]:
        """One entry of the report, logged."""
        row = row_of(Method(name, "look", "look"), found, self.floor, self.ceiling)
        shown = {"name": name, **{key: row[key] for key in KEPT}}
        if "between" in found:
            shown["between"] = _mean(found["between"])
        figures = {key: shown[key] for key in ("name", "transfer", "adherence", "adherence_shape", "leak")}
        log(self.options, "looks", **figures, between=shown.get("between", {}).get("mean"))
        return shown

    def row(self, row: Row) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A row, and the null controls of a quality."""
        ground, ledger, named = self.ground, self.ledger, row.name in QUALITIES
        keys = [row.key, *[f"another picture: {row.key}"] * named]
        looks = ground.learned(row) if self.missing(*keys) else NOTHING
        found = self.figures(row.name, ledger.measured(row.key, partial(ground.measure, looks)))
        found |= {"options": row.options.header(), "pictures": row.pictures, "told": row.told}
        if not named:
            return found, []
        other = ledger.measured(keys[1], partial(ground.measure, looks, AHEAD))
        key = f"noise: {row.key}"
        looks = ground.of_noise(row) if self.missing(key) else NOTHING
        noise = ledger.measured(key, partial(ground.measure, looks))
        nulls = {"another picture": other, "noise": noise}
        return found, [
            {"control": control, **self.figures(f"{row.name}: {control}", hits)} for control, hits in nulls.items()
        ]

    def of_good(self) -> dict[str, list[dict[str, Any]]]:
        """What *good* looks show by their strength, and two of them at once."""
        ground, ledger, key = self.ground, self.ledger, Row("good", GOOD).key
        at = {f"strength {strength:g}: {key}": strength for strength in STRENGTHS}
        two = {f"two looks {weights}: {key}": weights for weights in WEIGHTS}
        looks = ground.learned(Row("good", GOOD)) if self.missing(*at, *two) else NOTHING
        several = []
        for one, weights in two.items():
            hits = ledger.measured(one, partial(ground.measure_two, looks, weights))
            name = f"two looks, {weights[0]:g} to {weights[1]:g}"
            several.append({**self.figures(name, hits), "parts_of_both": float(hits["parts_of_both"].mean())})
        strengths = [
            self.figures(f"strength {strength:g}", ledger.measured(one, partial(ground.measure_at, looks, strength)))
            for one, strength in at.items()
        ]
        return {"two_looks": several, "strengths": strengths}

    def geometry(self, style: str, switches: Switches) -> list[dict[str, Any]]:
        """Per property of a style: how far what is painted is from the reference, in words, learned, with another's."""
        scene = Lookalikes.draw(self.ground.chain, style, min(GEOMETRY, switches.pairs), self.options.seed, switches)
        measured = {"words": self.ledger.measured(f"{style}: words", scene.measure_words)}
        for name, quality in QUALITIES.items():
            keys = {
                case: f"{style}: {case}: {quality.header()}" for case in (name, f"{name}: another picture")
            }
            looks: list[Look] = []
            if self.missing(*keys.values()):
                looks = self.ground.each(scene.references, words_of(scene.chain, scene.references), quality)
            for shift, (case, key) in enumerate(keys.items()):
                measured[case] = self.ledger.measured(key, partial(scene.measure, looks, shift))
        found = []
        for each in PROPERTIES:
            if each.style == style:
                errors = {case: _mean(values[each.name]) for case, values in measured.items()}
                found.append({
                    "property": each.name, "unit": each.unit, "pictures": len(scene.references), "error": errors,
                })
                log(self.options, "looks", property=each.name, **{case: one["mean"] for case, one in errors.items()})
        return found


@dataclass(frozen=True, eq=False)
class Lookalikes:
    """Prompts and references of one style, and how far what is painted is from the references by geometry."""

    chain: Chain
    style: str
    pairs: world.Pairs
    references: Tensor
    switches: Switches

    @classmethod
    def draw(cls, chain: Chain, style: str, count: int, seed: int, switches: Switches) -> Lookalikes:
        pairs = lookalikes(max(count, 2), style, 77_000 + seed)
        generator = torch.Generator(chain.device).manual_seed(seed)
        return cls(chain, style, pairs, world.render(pairs.references.to(chain.device), generator)[0], switches)

    def measure(self, looks: list[Look], shift: int) -> dict[str, Tensor]:
        """With the references' own looks, or those ``shift`` places on."""
        return self._errors(with_looks(self.chain.words_many(self.pairs.prompts), looks, shift))

    def measure_words(self) -> dict[str, Tensor]:
        """With the true look in words."""
        phrases = [", ".join(world.look_phrases(scene)) for scene in self.pairs.references.records()]
        words = [f"{prompt}, {look}" for prompt, look in zip(self.pairs.prompts, phrases, strict=True)]
        return self._errors([states for states, _ in self.chain.words_many(words)])

    def _errors(self, states: list[Tensor]) -> dict[str, Tensor]:
        """By property a mean over seeds, ``(N,)``."""
        asked, count = self.switches, len(self.pairs)
        numbers = [1000 * seed + index for seed in range(asked.seeds) for index in range(count)]
        painted = self.chain.paint(states * asked.seeds, numbers, steps=asked.steps, guidance=asked.guidance)
        return {
            each.name: each.error(each.read(painted), each.read(self.references).repeat(asked.seeds))
            .view(asked.seeds, count).mean(0)
            for each in PROPERTIES if each.style == self.style
        }


def _means(found: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: Tensor) -> dict[str, float]:
    """Mean and standard error over pairs."""
    return {"mean": float(values.mean()), "stderr": float(values.std() / max(len(values), 2) ** 0.5)}
