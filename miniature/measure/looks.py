"""Stage ``looks``: what a learned look carries, on the bench's pairs, and of what no word says.

Every look is learned as a user would have it learned: the VL says what the picture shows and how it looks. The table
has the named qualities, each from one picture and from four of one look; what others do with a reference
(:mod:`look_rivals`); and curves of what a single number does, on fewer pairs. Beside transfer, adherence and
leak (:mod:`bench`) rows of one picture have the RGB distance of a painted background from one between two colour names
(:mod:`between`).

Null controls: another picture's look, and a look learned on noise, begun with what the VL says of the noise. The start
is the look before the first step. Properties that vary in the world and are told by no caption are read off by geometry
(:mod:`look_geometry`) and compared with the reference's own.

``--shard 0/4`` measures a quarter of it, for processes side by side; after all of them the same command with
``--resume`` and no shard writes the report from their ledgers. ``--only "good;quick"`` measures the units whose names
contain one of these, in their order, and writes no report. ``--stop-after S`` begins no unit after so many seconds; the
report then holds what was measured and names what was ``left_out``. A processor has time for fewer: ``--pairs`` and
``--seeds``, ``--few`` for the pairs of curves and the colours between names, ``--lookalikes`` for geometry.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..train import assemble
from ..train.training import Options, begin, log, write_json
from .bench import Painting, Switches, prepare, row_of
from .chain import Chain
from .ledger import Ledger
from .look_geometry import PROPERTIES, STYLES
from .look_ground import Figures, Ground, between_of, lookalikes_of, pairs_of
from .look_painter import MiniaturePainter
from .look_rivals import RIVALS
from .look_units import (
    ANOTHER,
    CHANGES,
    FULL,
    NOISE,
    OWN,
    PLAIN,
    SMALL,
    START,
    Key,
    Row,
    Unit,
    curves,
    plain_keys,
    qualities,
    rival_key,
    share,
    units,
)
from .rows import Method

REPORT = "looks.json"
SOME = 60  # pairs of the curves
GEOMETRY = 40  # pictures per style
KEPT = (
    "transfer", "stderr", "transfer_by", "transfer_next", "adherence", "adherence_stderr", "adherence_shape", "leak",
)
__all__ = ["CHANGES", "PLAIN", "Row", "curves", "qualities", "run"]


def run(options: Options, switches: Switches) -> dict[str, Any]:
    """Measure and write ``looks.json`` beside the models; with ``--resume`` rows already measured are kept."""
    device = begin(options)
    chain = Chain.load(assemble.models_folder(options), device)
    asked = {
        **switches.describe(), "few": switches.few, "lookalikes": switches.lookalikes, "matmul": options.matmul,
        "seed": options.seed, "weights": assemble.weight_bytes(chain.folder),
    }
    ledger = Ledger.of_stage(options, "looks", asked, device, switches.shard)
    bench = prepare(chain, switches, options.seed)
    painting = Painting(bench, tuple(range(switches.seeds)), switches.steps, switches.guidance)
    grounds = grounds_of(painting, switches, options.toy)
    log(options, "looks", prepared=len(grounds))
    every = units(grounds, options.toy)
    for unit in wanted(share(every, switches.shard), "" if options.toy else switches.only):
        missing = [key for key in unit.keys if "/".join(key) not in ledger.rows]
        if missing and options.stop_after is not None and time.monotonic() - options.started > options.stop_after:
            continue
        for key, figures in zip(unit.keys, unit.measure() if missing else (), strict=bool(missing)):
            ledger.measured("/".join(key), lambda figures=figures: figures)
        found = ledger.rows["/".join(unit.keys[0])]
        shown = {name: float(values.mean()) for name, values in found.items() if name in ("color", "style", "distance")}
        log(options, "looks", unit=unit.name, measured=bool(missing), **shown)
    if switches.shard or (switches.only and not options.toy):
        return {}
    study, path = Study(ledger, options), options.report(REPORT)
    if not study.has(*every[0].keys):
        raise ValueError(f"--stop-after: expected time for {every[0].name} at least, got {options.stop_after:g} s.")
    report = study.report(asked, grounds, every)
    if path.is_file():
        take_over_rivals(report, json.loads(path.read_text(encoding="utf-8")))
    write_json(path, report)
    return report


def take_over_rivals(report: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Rivals that were not measured come from an earlier report of the same sample: they know nothing of learning."""
    if report["asked"] != earlier["asked"]:
        return
    missing = [row for row in earlier["rivals"] if row["name"] in report["left_out"]]
    if not missing:
        return
    names = [row["name"] for row in missing]
    report["rivals"] += missing
    report["rivals_measured"] = {"names": names, **earlier.get("rivals_measured", earlier["measured"])}
    report["left_out"] = [name for name in report["left_out"] if name not in names]
    for one, before in zip(report["geometry"], earlier["geometry"], strict=True):
        for part in ("error", "leak"):
            one[part] |= {case: value for case, value in before[part].items() if case.partition(":")[0] in names}


def grounds_of(painting: Painting, switches: Switches, toy: bool) -> dict[str, Ground]:
    """Those of the table, then those of the curves, then one per style."""
    painter = MiniaturePainter(painting.bench.chain)
    count, seeds = len(painting.bench.pairs), switches.seeds
    some, between = (3, 3) if toy else (switches.few or SOME, switches.few)
    found = [
        pairs_of(painting, painter, FULL[0], count, seeds), between_of(painter, FULL[1], between, seeds, switches),
        pairs_of(painting, painter, SMALL[0], min(some, count), seeds),
        between_of(painter, SMALL[1], between, seeds, switches),
        *(lookalikes_of(painter, style, min(switches.lookalikes or GEOMETRY, count), seeds, switches)
          for style in STYLES),
    ]
    return {ground.name: ground for ground in found}


def wanted(found: Sequence[Unit], only: str) -> list[Unit]:
    """Units whose names contain one of the parts of ``only`` between ";", in the parts' order; all for ""."""
    order = {unit.keys: unit for part in only.split(";") for unit in found if part in unit.name}
    return list(order.values())


class Study:
    """The report from rows that are there: bounds and the start have to be."""

    def __init__(self, ledger: Ledger, options: Options) -> None:
        self.ledger, self.options = ledger, options

    def found(self, ground: str, key: str) -> Figures:
        return self.ledger.rows[f"{ground}/{key}"]

    def has(self, *keys: Key) -> bool:
        return all("/".join(key) in self.ledger.rows for key in keys)

    def report(self, asked: dict[str, Any], grounds: dict[str, Ground], every: Sequence[Unit]) -> dict[str, Any]:
        """What ``looks.json`` holds; ``every``: the units that there are."""
        named, curve_rows = qualities(self.options.toy), curves(self.options.toy)
        some = grounds[SMALL[0]]
        first, second = (self.found(FULL[1], f"{which} name")["distance"] for which in ("first", "second"))
        nulls = [
            {"of": row.name, "control": control, **self.row(f"{row.name}: {control}", FULL, f"{control}: {row.key}")}
            for row in named for control in (ANOTHER, NOISE) if self.has((FULL[0], f"{control}: {row.key}"))
        ]
        rivals = [
            {**self.row(rival.name, FULL, rival_key(rival, OWN)),
             "null": self.row(f"{rival.name}: {ANOTHER}", FULL, rival_key(rival, ANOTHER))}
            for rival in RIVALS if self.has((FULL[0], rival_key(rival, ANOTHER)))
        ]
        strengths, several = plain_keys(curve_rows[0])
        by_strength = {strength: key.partition(": ")[2] for strength, (_, key) in strengths}
        return {
            "measured": self.ledger.mostly_with(), "asked": asked,
            "curves_asked": {"pairs": len(some.texts), "seeds": len(some.numbers) // len(some.texts)},
            "bounds": [self.row("text only", FULL[:1], "text"), self.row("caption in words", FULL[:1], "caption")],
            "between_words": {"first name": _mean(first), "second name": _mean(second),
                              "nearer name": _mean(first.minimum(second)),
                              "colour with a name": _mean(self.found(FULL[1], "first name")["from_first"])},
            "colours": len(grounds[FULL[1]].texts),
            "start": self.row("start", FULL, START),
            "rows": [
                {**self.row(row.name, FULL, f"{OWN}: {row.key}"), **_how(row)} for row in named
                if self.has((FULL[0], f"{ANOTHER}: {row.key}"))
            ],
            "nulls": nulls, "rivals": rivals,
            "curves": [
                {**self.row(row.name, SMALL, f"{OWN}: {row.key}"), **_how(row)} for row in curve_rows
                if self.has((SMALL[0], "caption"), *((name, f"{OWN}: {row.key}") for name in SMALL))
            ],
            "strengths": [
                {"strength": strength, **self.row(f"strength {strength:g}", SMALL, f"strength {strength:g}: {rest}")}
                for strength, rest in by_strength.items()
                if self.has((SMALL[1], f"strength {strength:g}: {rest}"))
            ],
            "two_looks": [
                {"weights": weights, **self.row(f"two looks, {weights[0]:g} to {weights[1]:g}", SMALL[:1], key),
                 "parts_of_both": float(self.found(ground, key)["parts_of_both"].mean())}
                for weights, (ground, key) in several if self.has((ground, key))
            ],
            "left_out": [unit.name for unit in every if not self.has(*unit.keys)],
            "geometry": [self.geometry(one.name, one.style, one.unit, grounds[one.style]) for one in PROPERTIES],
        }

    def row(self, name: str, grounds: tuple[str, ...], key: str) -> dict[str, Any]:
        """One entry: the judge's figures, and the distance between colours where it was measured; logged."""
        found = self.found(grounds[0], key)
        floor, ceiling = (self.found(grounds[0], bound) for bound in ("text", "caption"))
        row = row_of(Method(name, "look", "look"), found, floor, ceiling)
        shown = {"name": name, **{kept: row[kept] for kept in KEPT}}
        if len(grounds) > 1 and f"{grounds[1]}/{key}" in self.ledger.rows:
            distance = self.found(grounds[1], key)["distance"]
            shown["between"] = _mean(distance)
            if key != START and self.has((grounds[1], START)):  # colour by colour, which says more than two means do
                shown["nearer_than_start"] = _mean(self.found(grounds[1], START)["distance"] - distance)
        figures = {kept: shown[kept] for kept in ("name", "transfer", "adherence", "adherence_shape", "leak")}
        log(self.options, "looks", **figures, between=shown.get("between", {}).get("mean"))
        return shown

    def geometry(self, name: str, style: str, unit: str, ground: Ground) -> dict[str, Any]:
        """How far what is painted is from the reference in a property: in words, learned, with another's, by rivals."""
        keys = {"words": "words", "start": START}
        for row in qualities(self.options.toy):
            if row.pictures == 1:
                keys |= {row.name: f"{OWN}: {row.key}", f"{row.name}: {ANOTHER}": f"{ANOTHER}: {row.key}"}
        for rival in RIVALS:
            keys |= {rival.name: rival_key(rival, OWN), f"{rival.name}: {ANOTHER}": rival_key(rival, ANOTHER)}
        found = {case: self.found(style, key) for case, key in keys.items() if self.has((style, key))}
        return {
            "property": name, "unit": unit, "style": style, "pictures": len(ground.texts),
            "error": {case: _mean(values[name]) for case, values in found.items()},
            "leak": {case: float(values["leak"].mean()) for case, values in found.items()},
        }


def _how(row: Row) -> dict[str, Any]:
    return {"options": row.options.header(), "pictures": row.pictures, "told": row.told, "others": row.others}


def _mean(values: Tensor) -> dict[str, float]:
    """Mean and standard error over pairs."""
    return {"mean": float(values.mean()), "stderr": float(values.std() / max(len(values), 2) ** 0.5)}
