"""Stage ``takes``: what each take brings of a picture, and what it leaves alone.

``python -m miniature takes --out F --models miniature/models`` measures every take by words, every take that the
adapter has a part for, and the ways at their default, each beside two null controls: another picture, and noise in the
place of what was seen or said. A part of the look counts as the bench counts it; where the object is painted is read by
geometry, the centroid of what has the colour that the prompt asks for.

Transfer of a part: 0 is what words alone give, 1 what a caption that tells all of the reference gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vl_core.steering.takes import TAKES
from vl_core.steering.way import ways

from .. import world
from ..train import assemble
from ..train.training import Options, begin, measured_with, write_json
from . import adapters
from .bench import TOY, Painting, Switches, mixed, prepare
from .chain import Chain
from .host import QUESTIONS
from .rows import Method

REPORT = "takes.json"
ANOTHER, NOISE = "another picture", "matched noise"
PARTS = ("background", "style", "mood", "place", "object")
NAMES = {  # the parts that a take names
    "the look": ("background", "style", "mood"), "style": ("style",), "colours": ("background",),
    "light and mood": ("mood",), "composition": ("place",), "everything": PARTS,
}
NEAR = 0.22  # RGB distance within which a pixel has the prompt's colour
LEAST = 0.3  # by which a take has to beat both nulls, in units of a caption's transfer
SURE = 24  # pixels that are enough to say where something is
FIT_SIZES = (25, 50, 100, 200, 500, 1500)
PUSHES = (-0.5, -1.0, -1.5, -2.0, -3.0)


@dataclass(frozen=True)
class Row:
    """One setting of the engine, with true words where the VL knows no question for the take."""

    take: str
    way: str
    strength: float = 1.0
    true_words: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        settings = {"way": self.way, "take": self.take, "strength": self.strength, **self.more}
        name = f"{self.take}, {self.way}" + (", true words" if self.true_words else "")
        if self.true_words:
            settings["words"] = self.take
        return Method(name, "takes", "engine", None, settings)


def rows() -> list[Row]:
    """Every take by words, by true words, and by the adapter; the look by every other way."""
    found = [Row(take.name, "words") for take in TAKES if take.name in QUESTIONS]
    found += [Row(take.name, "words", true_words=True) for take in TAKES]
    own = {slot.name for slot in adapters.SLOTS}
    found += [Row(take.name, "picture adapter") for take in TAKES if not take.slots or own & set(take.slots)]
    others = [name for name, way in ways().items() if not way.tries and name not in ("words", "picture adapter")]
    return [*found, *(Row("the look", name) for name in others if name != "open blend")]


def run(options: Options, switches: Switches | None = None) -> dict[str, Any]:
    """Measure and write ``takes.json``."""
    switches = switches or (TOY if options.toy else Switches())
    device = begin(options)
    folder = assemble.models_folder(options)
    bench = prepare(Chain.load(folder, device), switches, options.seed, placed=True)
    painting = Painting(bench, tuple(range(switches.seeds)), switches.steps, switches.guidance)
    report = {
        "measured": measured_with("takes", device),
        "asked": {**switches.describe(), "seed": options.seed, "weights": assemble.weight_bytes(folder)},
        **measure(painting), "pushing": pushing(painting), "fits": fits(painting, options),
    }
    write_json(options.report(REPORT), report)
    print("\n".join(table(report)))
    return report


def measure(painting: Painting) -> dict[str, Any]:
    """Words alone, the caption, and every row beside its nulls."""
    bench = painting.bench
    floor = parts_of(painting, [case.states for case in bench.cases])
    caption = Row("everything", "words", true_words=True).method
    ceiling = parts_of(painting, mixed(bench, caption))
    entries = []
    for row in rows():
        method = row.method
        by = {kind: parts_of(painting, mixed(bench, method, kind), method.act) for kind in ("", ANOTHER, NOISE)}
        entries.append(entry_of(row, by, floor, ceiling))
        print(table({"rows": entries[-1:]})[-1], flush=True)
    return {"words": {name: float(values.mean()) for name, values in floor.items()}, "rows": entries}


def parts_of(
    painting: Painting, states: Sequence[Tensor], act: tuple[float, float] = (0.0, 1.0)
) -> dict[str, Tensor]:
    """Per pair ``(N,)``: the parts of the reference that are there, and the prompt's own colour and shape."""
    pictures = painting.paint(states, act)
    hits, repeat, pairs = painting.read(pictures, with_artifacts=False), len(painting.seeds), painting.bench.pairs
    mood = painting.bench.chain.read(pictures)["mood"].argmax(1).cpu()
    colors = torch.tensor(world.RGB)[pairs.color].repeat(repeat, 1)
    colors = (colors * torch.tensor(world.MOOD_GAIN)[mood] + torch.tensor(world.MOOD_LIFT)[mood]).clamp(0, 1)
    there = pairs.references.position.repeat(repeat)
    place = (place_of(pictures.cpu(), colors) == there).float().view(repeat, -1).mean(0)
    return {
        **{name: hits[name] for name in world.LOOK}, "place": place, "object": hits["leak"], "colour": hits["color"],
        "shape": hits["shape"],
    }


def place_of(pictures: Tensor, colors: Tensor) -> Tensor:
    """Which place the object's centroid is nearest to, int64 ``(N,)`` as ``world.POSITIONS``; -1 if there is no object.

    Args:
        pictures: ``(N, 3, H, W)`` in [-1, 1]. colors: what the object is painted in, ``(N, 3)`` in [0, 1].
    """
    distance = ((pictures + 1) / 2 - colors[:, :, None, None]).square().sum(1).sqrt()
    mask = (distance < NEAR).float()
    count, axis = mask.sum((1, 2)), torch.arange(mask.shape[-1], dtype=torch.float32) + 0.5
    centroid = torch.stack([(mask.sum(1) * axis).sum(1), (mask.sum(2) * axis).sum(1)], 1)
    nearest = torch.cdist(centroid / count.clamp_min(1)[:, None], torch.tensor(world.CENTRES)).argmin(1)
    return torch.where(count >= SURE, nearest, -1)


def entry_of(row: Row, by: dict[str, dict[str, Tensor]], floor: dict[str, Tensor], ceiling: dict[str, Tensor]) -> dict:
    """A row of the report."""
    spans = {part: float((ceiling[part] - floor[part]).mean()) for part in PARTS}

    def transfer(found: dict[str, Tensor]) -> dict[str, float]:
        return {part: float((found[part] - floor[part]).mean()) / spans[part] for part in PARTS if spans[part] > 0.05}

    own, another, noise = (transfer(by[kind]) for kind in ("", ANOTHER, NOISE))
    named = [part for part in NAMES[row.take] if part in own]
    margin = min((own[part] - max(another[part], noise[part]) for part in named), default=None)
    return {
        "take": row.take, "way": row.way, "strength": row.strength, "true_words": row.true_words, "transfer": own,
        ANOTHER: another, NOISE: noise, "names": named, "margin": margin,
        "colour": float(by[""]["colour"].mean()), "shape": float(by[""]["shape"].mean()),
    }


def pushing(painting: Painting) -> list[dict[str, Any]]:
    """What a strength below 0 takes away, on pairs where words alone show a part of the reference.

    ``share``: how often the part is still there; 1 is as often as with words alone, and a null is another picture.
    """
    bench, found = painting.bench, []
    floor = parts_of(painting, [case.states for case in bench.cases])
    shown = {part: floor[part] > 0 for part in world.LOOK}
    for way in ("picture adapter", "research: image delta", "words"):
        for strength in PUSHES:
            method = Row("the look", way, strength).method
            if way == "words":  # the engine takes none below 0: this says whether it should
                method = Method("words pushed away", "takes", "words at", None, {"strength": strength})
            shares = {}
            for kind in ("", ANOTHER):
                seen = parts_of(painting, mixed(bench, method, kind))
                shares[kind or "own"] = {
                    part: float(seen[part][which].sum() / floor[part][which].sum())
                    for part, which in shown.items() if which.any()
                }
                adherence = float(seen["colour"].mean()), float(seen["shape"].mean())
            found.append({"way": way, "strength": strength, **shares, "colour": adherence[0], "shape": adherence[1]})
    return found


def fits(painting: Painting, options: Options) -> list[dict[str, Any]]:
    """What a picture adapter brings by the pairs it was fitted on, beside what its report says of it.

    Both kinds: read beside the user's prompt, and beside none, as the nodes fit it.
    """
    chain, found = painting.bench.chain, []
    floor = parts_of(painting, [case.states for case in painting.bench.cases])
    ceiling = parts_of(painting, mixed(painting.bench, Row("the look", "words", true_words=True).method))
    spans = {part: float((ceiling[part] - floor[part]).mean()) for part in world.LOOK}
    sizes = [options.size(size, 12) for size in FIT_SIZES]
    examples = adapters.Examples.draw(chain, max(sizes), adapters.SEED + options.seed)
    for own_prompt in (True, False):
        spec = adapters.spec_of(chain, own_prompt=own_prompt)
        features = examples.features(chain, spec.features, None if own_prompt else spec.prompt)
        targets = examples.targets(chain, spec)
        for size in dict.fromkeys(sizes):
            adapter = adapters.fit(spec, features[:size], targets[:size])
            fitted = replace(painting, bench=replace(painting.bench, adapter=adapter))
            seen = parts_of(fitted, mixed(fitted.bench, Row("the look", "picture adapter").method))
            gains = [float((seen[part] - floor[part]).mean()) / spans[part] for part in spans if spans[part] > 0.05]
            found.append({
                "own_prompt": own_prompt, "pairs": size, "r2": adapter.report.r2, "r2_by": adapter.report.r2_by,
                "transfer": sum(gains) / len(gains) if gains else None, "colour": float(seen["colour"].mean()),
            })
    return found


def table(report: dict[str, Any]) -> list[str]:
    """Lines of Markdown: a row each with the transfer of every part, and by how much it beats its nulls."""
    head = ("take", "way", *PARTS, "margin over nulls", "colour", "shape")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in report["rows"]:
        way = row["way"] + (", true words" if row["true_words"] else "")
        parts = [_shown(row["transfer"].get(part), part in row["names"]) for part in PARTS]
        kept = [f"{row[name]:.2f}" for name in ("colour", "shape")]
        cells = [row["take"], way, *parts, _shown(row["margin"], False), *kept]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _shown(value: float | None, bold: bool) -> str:
    if value is None:
        return "–"
    return f"**{value:.2f}**" if bold else f"{value:.2f}"
