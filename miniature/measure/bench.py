"""The bench: methods × settings on prompts and reference pictures that disagree, read off by the judge.

Adherence: is there an object of the prompt's colour (and of its shape). Transfer: background, style and mood of the
reference, 0 = what words alone give, 1 = what the same words with a caption of the look give. Leak: the reference's
own object, shape and colour, shows up. Every figure is a mean over pairs, each pair a mean over seeds; standard errors
are over pairs.

Null controls: the best setting of each family is measured again on the wrong picture (another pair's) and on noise
with the picture states' own mean and std per dimension and RMS per token. What a null reaches is no effect.

The rows are in :mod:`methods`. ``transfer_next`` is transfer from the reference after the right one, for rows that
take two pictures.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vl_core import Artifacts, calibrate, measure_artifacts
from vl_core.reports.controls import matched_noise

from .. import world
from ..train import assemble
from ..train.training import Options, begin, log, write_json
from . import adapters, sheet
from .chain import Chain, answers, as_image
from .frontier import draw
from .ledger import Ledger
from .methods import WAYS, Bench
from .rows import ADHERENCE_GOAL, FAMILIES, METHODS, TEXT_ONLY, Method, key_of

ARTIFACTS = tuple(each.name for each in fields(Artifacts))
CONTROLS = ("another picture", "matched noise")


@dataclass(frozen=True)
class Switches:
    """What is asked.

    Attributes:
        pairs, seeds: how many. ``steps``, ``guidance``: of the sampler.
        hold_out: references come from the part of the world that it keeps for testing.
        other_words: prompts in words no model was trained with.
        described: looks are described by the VL itself instead of the truth.
        only: of the training-free methods, only those whose name contains this.
        shard: "0/2" measures half of the methods, by name, and writes no report: for processes side by side. After all
            of them the same command with --resume and no shard writes it from their ledgers.
        few, lookalikes: of the stage ``looks``, see :mod:`looks`.
    """

    pairs: int = 200
    seeds: int = 3
    steps: int = 8
    guidance: float = 1.0
    hold_out: world.HoldOut = field(default_factory=world.HoldOut)
    other_words: bool = False
    described: bool = False
    only: str = ""
    shard: str = ""
    few: int | None = None
    lookalikes: int | None = None

    def describe(self) -> dict[str, Any]:
        hold = self.hold_out
        return {
            "pairs": self.pairs, "seeds": self.seeds, "steps": self.steps, "guidance": self.guidance,
            "unseen_combinations": hold.combinations, "left_out_style": hold.style,
            "left_out_background": hold.background, "other_words": self.other_words, "described": self.described,
        }


TOY = Switches(pairs=4, seeds=1, steps=2, only="aligned")

# ------------------------------------------------------------------------------------------------------------ running


def run(options: Options, switches: Switches | None = None) -> dict[str, Any]:
    """Measure, write ``frontier.json`` and ``frontier.png`` beside the models; rows already measured are kept."""
    switches = switches or (TOY if options.toy else Switches())
    chain, ledger, asked = begun(options, switches, "bench")
    bench = prepare(chain, switches, options.seed)
    log(options, "bench", prepared=len(bench.cases))
    pool = workers()
    painting = Painting(bench, tuple(range(switches.seeds)), switches.steps, switches.guidance, pool)
    text_only, caption = Method(TEXT_ONLY, "none", "words"), METHODS[0]
    floor = ledger.measured("text", lambda: painting.hits([case.states for case in bench.cases]))
    ceiling = ledger.measured(caption.key, lambda: painting.measure(caption))
    methods = [
        method for method in share(METHODS, switches.shard)
        if not (switches.only and method.family == "training_free" and switches.only not in method.name)
        and not (method.family == "adapter" and bench.adapter is None)
    ]
    rows, nulls = [], []
    # Two at a time: one row is painted while the pictures of the other are measured.
    with ThreadPoolExecutor(1 if pool is None else 2) as threads:
        found = threads.map(lambda method: ledger.measured(method.key, lambda: painting.measure(method)), methods)
        for method, hits in zip(methods, found, strict=True):
            rows.append(row_of(method, hits, floor, ceiling))
            shown = {name: rows[-1][name] for name in ("layer", "setting", "adherence", "transfer", "stderr")}
            log(options, "bench", name=method.name, **shown)
        controlled = [(method, control) for method in null_candidates(rows) for control in CONTROLS]
        keys = [f"{control}: {method.key}" for method, control in controlled]
        found = threads.map(lambda key, pair: ledger.measured(key, lambda: painting.measure(*pair)), keys, controlled)
        for (method, control), hits in zip(controlled, found, strict=True):
            nulls.append({"control": control, "family": method.family, **row_of(method, hits, floor, ceiling)})
    if pool is not None:
        pool.shutdown()
    if switches.shard:
        return {}
    for key, row in zip([*(method.key for method in methods), *keys], [*rows, *nulls], strict=True):
        row |= ledger.elsewhere(key)
    report = {
        "measured": ledger.mostly_with(),
        "asked": asked,
        "methods": rows,
        "baselines": [row_of(text_only, floor, floor, ceiling), row_of(caption, ceiling, floor, ceiling)],
        "nulls": nulls,
        "best": best(rows),
    }
    write_json(options.report("frontier.json"), report)
    draw(report, options.report("frontier.png"))
    reached = {family: row and row["transfer"] for family, row in report["best"].items()}
    log(options, "bench", rows=len(rows), nulls=len(nulls), best=reached)
    return report


def begun(options: Options, switches: Switches, stage: str, **more: Any) -> tuple[Chain, Ledger, dict[str, Any]]:
    """The models, the rows of a stage that are measured already, and what is asked, ``more`` besides."""
    device = begin(options)
    folder = assemble.models_folder(options)
    asked = {**switches.describe(), "seed": options.seed, "weights": assemble.weight_bytes(folder), **more}
    return Chain.load(folder, device), Ledger.of_stage(options, stage, asked, device, switches.shard), asked


def workers() -> Executor | None:
    """Processes that measure pictures; None where there are no cores to spare."""
    cores = os.cpu_count() or 1  # spawned: a process that has used a GPU must not be forked
    return ProcessPoolExecutor(cores - 1, get_context("spawn"), torch.set_num_threads, (1,)) if cores > 2 else None


def share(methods: Sequence[Method], shard: str) -> list[Method]:
    """The methods whose names fall to a shard; all of them for none."""
    if not shard:
        return list(methods)
    index, count = map(int, shard.split("/"))
    names = list(dict.fromkeys(method.name for method in methods))[index::count]
    return [method for method in methods if method.name in names]


def draw_pairs(
    chain: Chain, switches: Switches, seed: int, placed: bool = False
) -> tuple[world.Pairs, Tensor]:
    """Prompts and references that disagree, and the references' pictures ``(N, 3, 128, 128)`` in [-1, 1].

    ``placed``: the references' objects are smaller and stand off the middle, so that a place can be taken.
    """
    pairs = world.conflict_pairs(
        switches.pairs, 4242 + seed, other_words=switches.other_words, hold_out=switches.hold_out, testing=True
    )
    if placed:
        drawn = torch.Generator().manual_seed(4343 + seed)
        position = torch.randint(1, len(world.POSITIONS), (len(pairs),), generator=drawn)
        scenes = replace(pairs.references, position=position, size=torch.ones_like(pairs.references.size))
        pairs = replace(pairs, references=scenes)
    references = pairs.references.to(chain.device)
    return pairs, world.render(references, torch.Generator(chain.device).manual_seed(seed))[0]


def looks_in_words(pairs: world.Pairs) -> list[str]:
    """True words for the look of every reference."""
    return [", ".join(world.look_phrases(scene)) for scene in pairs.references.records()]


def prepare(chain: Chain, switches: Switches, seed: int, placed: bool = False) -> Bench:
    """Pairs, their states, and the text encoder's statistics; ``placed`` as :func:`draw_pairs` has it."""
    pairs, pictures = draw_pairs(chain, switches, seed, placed)
    said = answers(chain, pictures, world.DESCRIBE_LOOK[1])
    looks = said if switches.described else looks_in_words(pairs)
    adapter = adapters.load(chain.folder) if (chain.folder / adapters.ADAPTER).is_file() else None
    reference = calibrate(lambda text: chain.words(text)[0], sheet.captions(64), encoder="miniature")
    return Bench(chain, reference, pairs, as_image(pictures), adapter=adapter).with_cases(looks, said)


def mixed(bench: Bench, method: Method, control: str = "") -> list[Tensor]:
    """The method's states for every case; a control swaps what it sees."""
    way, states = WAYS[method.way], []
    for index, case in enumerate(bench.cases):
        sight = case.wrong if control == "another picture" else case.right
        if control == "matched noise":
            sight = replace(sight, is_noise=True)
        found = way(bench, case, sight, method.layer, **method.setting)
        if control == "matched noise" and method.way in ("words", "description"):  # the words are the effect here
            at = len(case.states) - 5  # the template's tail comes after the appended words
            found = torch.cat([found[:at], matched_noise(found[at:], torch.Generator().manual_seed(index))])
        states.append(found)
    return states


# ------------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, eq=False)
class Painting:
    """How states become pictures and figures; ``pool`` measures artifacts beside it."""

    bench: Bench
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    pool: Executor | None = None

    def measure(self, method: Method, control: str = "") -> dict[str, Tensor]:
        """What the judge reads of a method or a control of it."""
        return self.hits(mixed(self.bench, method, control), method.act)

    def hits(self, states: Sequence[Tensor], act: tuple[float, float] = (0.0, 1.0)) -> dict[str, Tensor]:
        """What the judge reads, per pair ``(N,)`` as a mean over seeds."""
        return self.read(self.paint(states, act))

    @property
    def numbers(self) -> list[int]:
        """Seeds of :meth:`paint`'s pictures."""
        return [1000 * seed + index for seed in self.seeds for index in range(len(self.bench.cases))]

    def paint(self, states: Sequence[Tensor], act: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """Every pair with every seed: ``(S·N, 3, 128, 128)`` in [-1, 1], all pairs of a seed before the next."""
        cases, repeat = self.bench.cases, len(self.seeds)
        return self.bench.chain.paint(
            list(states) * repeat, self.numbers, steps=self.steps, guidance=self.guidance,
            outside=[case.states for case in cases] * repeat, act=act,
        )

    def read(self, pictures: Tensor, with_artifacts: bool = True) -> dict[str, Tensor]:
        """What the judge reads of :meth:`paint`'s pictures, per pair ``(N,)`` as a mean over seeds."""
        cases, pairs, repeat = self.bench.cases, self.bench.pairs, len(self.seeds)
        logits, scenes = self.bench.chain.read(pictures), pairs.references
        row = torch.arange(len(pictures))
        thing = (scenes.shape[:, 0] * 10 + scenes.color[:, 0]).repeat(repeat)
        looks = {name: getattr(scenes, name) for name in world.LOOK}
        shown = {name: logits[name].argmax(1) for name in looks}
        ahead = {name: look.roll(-1).repeat(repeat) for name, look in looks.items()}
        looks = {name: look.repeat(repeat) for name, look in looks.items()}
        found = {
            "color": logits["color"][row, pairs.color.repeat(repeat)] > 0,
            "shape": logits["shape"][row, pairs.shape.repeat(repeat)] > 0,
            "leak": logits["pair"][row, thing] > 0,
            **{name: shown[name] == look for name, look in looks.items()},
            **{f"next_{name}": shown[name] == ahead[name] for name in looks},
            "parts_of_both": _shows_one(shown, looks, ahead) & _shows_one(shown, ahead, looks),
            **(artifacts(pictures, self.pool) if with_artifacts else {}),
        }
        return {name: values.float().view(repeat, len(cases)).mean(0) for name, values in found.items()}


def _shows_one(shown: dict[str, Tensor], of: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
    """Boolean ``(N,)``: some part of one look is there which is not the other's too."""
    return torch.stack([(shown[name] == of[name]) & (of[name] != other[name]) for name in shown]).any(0)


def artifacts(pictures: Tensor, pool: Executor | None = None) -> dict[str, Tensor]:
    """Figures of :func:`vl_core.measure_artifacts` per picture; ``pictures`` are ``(N, 3, H, W)`` in [-1, 1]."""
    painted = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    parts = [painted[at : at + 40] for at in range(0, len(painted), 40)]
    measured = list((pool.map if pool else map)(_artifact_rows, parts))
    return dict(zip(ARTIFACTS, torch.tensor([row for rows in measured for row in rows]).unbind(1), strict=True))


def _artifact_rows(pictures: np.ndarray) -> list[list[float]]:
    return [list(asdict(measure_artifacts(torch.from_numpy(picture))).values()) for picture in pictures]


def row_of(
    method: Method, found: dict[str, Tensor], floor: dict[str, Tensor], ceiling: dict[str, Tensor]
) -> dict[str, Any]:
    """One method's entry of the report; None where there is nothing to compare with."""

    def error(values: Tensor) -> float | None:
        return float(values.std() / len(values) ** 0.5) if len(values) > 1 else None

    spans = {name: float((ceiling[name] - floor[name]).mean()) for name in world.LOOK}
    # Per pair, in units of what words gain; an attribute that words do not move says nothing about transfer.
    gains = {name: (found[name] - floor[name]) / span for name, span in spans.items() if span > 0.05}
    transfer = torch.stack(list(gains.values())).mean(0) if gains else None
    # A caption of the next reference would gain what one of this does: the pairs are drawn alike.
    nexts = [float((found[f"next_{name}"] - floor[f"next_{name}"]).mean()) / spans[name] for name in gains]
    transfer_next = sum(nexts) / len(nexts) if nexts else None
    return {
        "name": method.name, "family": method.family, "layer": method.layer, "setting": method.setting,
        "adherence": float(found["color"].mean()), "adherence_stderr": error(found["color"]),
        "adherence_shape": float(found["shape"].mean()),
        "transfer": None if transfer is None else float(transfer.mean()),
        "stderr": None if transfer is None else error(transfer),
        "transfer_by": {name: float(values.mean()) for name, values in gains.items()},
        "transfer_next": transfer_next,
        "leak": float(found["leak"].mean()),
        "artifacts": {name: float(found[name].mean()) for name in ARTIFACTS if name in found},
    }


def best(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """Per family the row of highest transfer among those that keep to the prompt; None if none does."""
    chosen = {}
    for family in FAMILIES:
        kept = [row for row in rows if row["family"] == family and row["adherence"] >= ADHERENCE_GOAL]
        chosen[family] = max(kept, key=_transfer, default=None)
    return chosen


def _transfer(row: dict[str, Any]) -> float:
    return -math.inf if row["transfer"] is None else row["transfer"]


def null_candidates(rows: Sequence[dict[str, Any]]) -> list[Method]:
    """Per method name the setting of highest transfer at the adherence goal, or of highest transfer if none is."""
    chosen = {}
    for row in rows:
        rank = (row["adherence"] >= ADHERENCE_GOAL, _transfer(row))
        if row["name"] not in chosen or rank > chosen[row["name"]][0]:
            chosen[row["name"]] = rank, row
    keys = {key_of(row) for _, row in chosen.values()}
    return [method for method in METHODS if method.key in keys]


