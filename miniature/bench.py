"""The bench: methods × settings on prompts and reference pictures that disagree, read off by the judge.

Adherence: is there an object of the prompt's colour (and of its shape). Transfer: background, style and mood of the
reference, 0 = what words alone give, 1 = what the same words with a caption of the look give. Leak: the reference's
own object, shape and colour, shows up. Every figure is a mean over pairs, each pair a mean over seeds; standard errors
are over pairs.

Null controls: the best setting of each family is measured again on the wrong picture (another pair's) and on noise
with the picture states' own mean and std per dimension and RMS per token. What a null reaches is no effect.

To add a method: one line in :data:`METHODS` if ``blend`` or ``recipe`` can say it, else a function in :data:`WAYS`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vl_core import (
    Artifacts,
    ReferenceStatistics,
    TokenLayout,
    VLStates,
    blend,
    calibrate,
    condition,
    find_sinks,
    image_delta,
    mask_outlier_dimensions,
    measure_artifacts,
    normalize,
    select_tokens,
)
from vl_core.adapter import PictureAdapter
from vl_core.statistics import token_rms

from . import adapters, assemble, sheet, world
from .chain import Chain, answers, as_image
from .training import Options, begin, log, measured_with, write_json

FAMILIES = ("published", "training_free", "adapter", "caption")
ADHERENCE_GOAL = 0.85
ALPHAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
ARTIFACTS = tuple(each.name for each in fields(Artifacts))
TEXT_ONLY, CAPTION = "text only", "caption in words"


@dataclass(frozen=True)
class Method:
    """One row of the table. ``way`` names a function in :data:`WAYS`, ``setting`` its keywords."""

    name: str
    family: str
    way: str
    layer: int | None = None
    setting: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return json.dumps([self.name, self.layer, self.setting], sort_keys=True)


@dataclass(frozen=True, eq=False)
class Sight:
    """What a method may know of a reference.

    Attributes:
        seen: the VL's states of picture and prompt; ``blind``: the same with the picture muted in place.
        look: words for its background, style and mood; ``said``: the VL's own answer to that request.
        seen_said: the VL's states of picture and prompt with ``said`` appended.
    """

    seen: VLStates
    blind: VLStates
    look: str
    said: str
    seen_said: VLStates


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt and its references: the right one, and another pair's."""

    prompt: str
    states: Tensor
    layout: TokenLayout
    right: Sight
    wrong: Sight


@dataclass(frozen=True, eq=False)
class Bench:
    """What all methods share."""

    chain: Chain
    reference: ReferenceStatistics
    pairs: world.Pairs
    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    adapter: PictureAdapter | None = None
    pool: Executor | None = None


@dataclass(frozen=True)
class Switches:
    """What is asked.

    Attributes:
        pairs, seeds: how many. ``steps``, ``guidance``: of the sampler.
        hold_out: references come from the part of the world that it keeps for testing.
        other_words: prompts in words no model was trained with.
        described: looks are described by the VL itself instead of the truth.
        only: of the training-free methods, only those whose name contains this.
        shard: "0/2" measures half of the methods, by name, and writes no report: for two GPUs side by side. Join their
            ``bench_rows.jsonl`` and go on with --resume.
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

    def describe(self) -> dict[str, Any]:
        hold = self.hold_out
        return {
            "pairs": self.pairs, "seeds": self.seeds, "steps": self.steps, "guidance": self.guidance,
            "unseen_combinations": hold.combinations, "left_out_style": hold.style,
            "left_out_background": hold.background, "other_words": self.other_words, "described": self.described,
        }


TOY = Switches(pairs=4, seeds=1, steps=2, only="aligned")

# ------------------------------------------------------------------------------------------------------------- ways

Way = Callable[..., Tensor]  # (bench, case, sight, layer, **setting) -> states for the DiT


def by_words(bench: Bench, case: Case, sight: Sight, layer: None) -> Tensor:
    """The look in words, appended to the prompt."""
    return bench.chain.words(f"{case.prompt}, {sight.look}")[0]


def by_description(bench: Bench, case: Case, sight: Sight, layer: int | None, *, alpha: float = 0.0) -> Tensor:
    """What the VL says of the look, appended to the prompt; alpha mixes in its states of these very tokens."""
    words, layout = bench.chain.words(f"{case.prompt}, {sight.said}")
    if alpha == 0:
        return words
    states, seen_layout = sight.seen_said.at(layer)
    return blend(words, states, alpha, text_layout=layout, vl_layout=seen_layout)[0]


def by_adapter(bench: Bench, case: Case, sight: Sight, layer: None, *, strength: float, **slots: float) -> Tensor:
    """The picture adapter's description states, appended; with ``slots`` only those."""
    return bench.adapter.apply(case.states, case.layout, sight.seen, strength, slots=slots or None)[0]


def by_recipe(bench: Bench, case: Case, sight: Sight, layer: int, *, mode: str, strength: float) -> Tensor:
    """What the simple node and the command line do."""
    return condition(case.states, case.layout, sight.seen, layer, mode, strength)[0]


def by_blend(
    bench: Bench, case: Case, sight: Sight, layer: int, *, alpha: float, tokens: str = "all", scale: str = "none",
    mask: str = "none", sinks: str = "exclude", **options: Any,
) -> Tensor:
    """Select, mask outliers, normalise, blend: the open pipeline of nodes."""
    states, layout = select_tokens(*sight.seen.at(layer), tokens)
    if mask != "none":
        states, _ = mask_outlier_dimensions(states, mode=mask, reference=bench.reference, sinks=sinks)
    states, _ = normalize(states, scale, bench.reference, sinks=sinks)
    return blend(
        case.states, states, alpha, text_layout=case.layout, vl_layout=layout, sinks=sinks, **options
    )[0]


def by_delta(bench: Bench, case: Case, sight: Sight, layer: int, *, weight: float, **options: Any) -> Tensor:
    """What the picture did to the words, added to the text's states."""
    (plus, layout), (zero, _) = sight.seen.at(layer), sight.blind.at(layer)
    return image_delta(case.states, plus, zero, weight, text_layout=case.layout, vl_layout=layout, **options)[0]


WAYS: dict[str, Way] = {
    "words": by_words, "adapter": by_adapter, "description": by_description, "recipe": by_recipe, "blend": by_blend,
    "delta": by_delta,
}


def _methods() -> tuple[Method, ...]:
    rows = [Method(CAPTION, "caption", "words"), Method("described by the VL", "caption", "description")]
    for alpha in (0.3, 0.5, 0.7, 1.0):
        rows.append(Method("described tokens", "training_free", "description", -2, {"alpha": alpha}))
    for strength in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
        rows.append(Method("picture adapter", "adapter", "adapter", None, {"strength": strength}))
    for name in world.LOOK:
        rows.append(Method(f"picture adapter, {name} only", "adapter", "adapter", None, {"strength": 1.0, name: 1.0}))
    for layer in (-6, -2):
        for alpha in ALPHAS:
            setting = {"mode": "blend as published", "strength": alpha}
            rows.append(Method("published", "published", "recipe", layer, setting))
    for alpha in (0.1, 0.3, 0.5):
        # the same with the scale of this text encoder, its sink included, in place of the real one's 61
        setting = {"alpha": alpha, "tokens": "text", "method": "resample", "space": "raw", "sinks": "include",
                   "antialias": False, "scale": "global"}
        rows.append(Method("published, own scale", "published", "blend", -6, setting))
    for alpha in (0.3, 1.0):
        # the note's other variant: every token, the picture's included, squeezed onto the text's length
        setting = {"alpha": alpha, "method": "resample", "space": "raw", "sinks": "include", "antialias": False,
                   "scale": "global"}
        rows.append(Method("published, all tokens", "published", "blend", -2, setting))
    for layer in range(-8, 0):
        for alpha in ALPHAS if layer == -2 else (0.5, 0.7, 0.85, 1.0):
            setting = {"mode": "blend aligned", "strength": alpha}
            rows.append(Method("aligned", "training_free", "recipe", layer, setting))
    for layer in (-8, -4, -2):
        for strength in (1.0, 0.5, 0.25):
            setting = {"mode": "append picture", "strength": strength}
            rows.append(Method("append picture", "training_free", "recipe", layer, setting))
    for layer in (-6, -2):
        for weight in (0.5, 1.0, 1.5, 2.0):
            rows.append(Method("image delta", "training_free", "delta", layer, {"weight": weight}))
    for factor in (1, 2, 4):
        setting = {"alpha": 1.0, "method": "append", "tokens": "image_no_markers", "append_downsample": factor,
                   "append_position": "before_tail"}
        rows.append(Method("append before the tail", "training_free", "blend", -2, setting))
    for alpha in (0.5, 0.7, 1.0):
        for name, setting in {
            "aligned, slerp": {"space": "slerp"},
            "aligned, sinks mixed": {"sinks": "include"},
            "aligned, per dimension": {"scale": "per_dim"},
            "aligned, outliers clamped": {"mask": "clamp"},
            "adain": {"method": "adain"},
            "adain per dimension": {"method": "adain_per_dim", "tokens": "image"},
            "style dimensions": {"method": "style_dims"},
            "resample, per dimension": {"method": "resample", "scale": "per_dim"},
        }.items():
            rows.append(Method(name, "training_free", "blend", -2, {"alpha": alpha, **setting}))
    return tuple(rows)


METHODS = _methods()

# ------------------------------------------------------------------------------------------------------------ running


def run(options: Options, switches: Switches | None = None) -> dict[str, Any]:
    """Measure, write ``frontier.json`` and ``frontier.png`` beside the models; rows already measured are kept."""
    switches = switches or (TOY if options.toy else Switches())
    device = begin(options)
    folder = assemble.models_folder(options)
    chain = Chain.load(folder, device)
    asked = {**switches.describe(), "seed": options.seed, "weights": assemble.weight_bytes(folder)}
    ledger = Ledger(options.out / "bench_rows.jsonl", asked, options.resume)
    bench = prepare(chain, switches, options.seed)
    if (os.cpu_count() or 1) > 2:  # spawned: a process that has used a GPU must not be forked
        pool = ProcessPoolExecutor(os.cpu_count() - 1, get_context("spawn"), torch.set_num_threads, (1,))
        bench = replace(bench, pool=pool)
    text_only, caption = Method(TEXT_ONLY, "none", "words"), METHODS[0]
    floor = ledger.measured("text", lambda: hits(bench, [case.states for case in bench.cases]))
    ceiling = ledger.measured(caption.key, lambda: hits(bench, mixed(bench, caption)))
    rows = []
    for method in share(METHODS, switches.shard):
        if switches.only and method.family == "training_free" and switches.only not in method.name:
            continue
        if method.way == "adapter" and bench.adapter is None:
            continue
        found = ledger.measured(method.key, lambda method=method: hits(bench, mixed(bench, method)))
        rows.append(row_of(method, found, floor, ceiling))
        shown = {name: rows[-1][name] for name in ("layer", "setting", "adherence", "transfer", "stderr")}
        log(options, "bench", name=method.name, **shown)
    nulls = []
    for method in null_candidates(rows):
        for control in CONTROLS:
            key = f"{control}: {method.key}"
            found = ledger.measured(key, lambda m=method, c=control: hits(bench, mixed(bench, m, c)))
            nulls.append({"control": control, "family": method.family, **row_of(method, found, floor, ceiling)})
    if bench.pool is not None:
        bench.pool.shutdown()
    if switches.shard:
        return {}
    report = {
        "measured": measured_with("bench", device),
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


def share(methods: Sequence[Method], shard: str) -> list[Method]:
    """The methods whose names fall to a shard; all of them for none."""
    if not shard:
        return list(methods)
    index, count = map(int, shard.split("/"))
    names = list(dict.fromkeys(method.name for method in methods))[index::count]
    return [method for method in methods if method.name in names]


class Ledger:
    """Rows measured so far, one line each, so that a bench that was stopped goes on where it was."""

    def __init__(self, path: Path, asked: dict[str, Any], resume: bool) -> None:
        self.path, self.rows = path, {}
        self.asked = json.dumps(asked, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines() if resume and path.is_file() else []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the line that was being written when the bench was stopped
            if row["asked"] == self.asked:
                self.rows[row["key"]] = {name: torch.tensor(values) for name, values in row["hits"].items()}
        if not resume:
            path.unlink(missing_ok=True)

    def measured(self, key: str, measure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The row under ``key``, measured if it is not there."""
        if key not in self.rows:
            self.rows[key] = measure()
            plain = {name: [round(value, 6) for value in values.tolist()] for name, values in self.rows[key].items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"asked": self.asked, "key": key, "hits": plain}) + "\n")
        return self.rows[key]


def prepare(chain: Chain, switches: Switches, seed: int) -> Bench:
    """Pairs, their states, and the reference statistics of the text encoder."""
    pairs = world.conflict_pairs(
        switches.pairs, 4242 + seed, other_words=switches.other_words, hold_out=switches.hold_out, testing=True
    )
    references = pairs.references.to(chain.device)
    pictures, _ = world.render(references, torch.Generator(chain.device).manual_seed(seed))
    said = answers(chain, pictures, world.DESCRIBE_LOOK[1])
    looks = said if switches.described else [
        ", ".join(world.look_phrases(scene)) for scene in pairs.references.records()
    ]
    images = as_image(pictures)
    cases = []
    for index, prompt in enumerate(pairs.prompts):
        blind = chain.look(images[index], prompt, mute=True)  # the same whatever the picture is
        sights = [
            Sight(
                chain.look(images[which], prompt), blind, looks[which], said[which],
                chain.look(images[which], f"{prompt}, {said[which]}", layers=(-2,)),
            )
            for which in (index, (index + 1) % len(pairs))
        ]
        cases.append(Case(prompt, *chain.words(prompt), *sights))
    reference = calibrate(lambda text: chain.words(text)[0], sheet.captions(64), encoder="miniature")
    seeds = tuple(range(switches.seeds))
    adapter = adapters.load(chain.folder) if (chain.folder / adapters.ADAPTER).is_file() else None
    return Bench(chain, reference, pairs, tuple(cases), seeds, switches.steps, switches.guidance, adapter)


CONTROLS = ("another picture", "matched noise")


def mixed(bench: Bench, method: Method, control: str = "") -> list[Tensor]:
    """The method's states for every case; a control swaps what it sees."""
    way, states = WAYS[method.way], []
    for index, case in enumerate(bench.cases):
        sight = case.wrong if control == "another picture" else case.right
        if control == "matched noise":
            sight = replace(sight, seen=noisy(sight.seen, index), seen_said=noisy(sight.seen_said, index))
        found = way(bench, case, sight, method.layer, **method.setting)
        if control == "matched noise" and method.way in ("words", "description"):  # the words are the effect here
            at = len(case.states) - 5  # the template's tail comes after the appended words
            found = torch.cat([found[:at], matched_noise(found[at:], torch.Generator().manual_seed(index))])
        states.append(found)
    return states


def noisy(seen: VLStates, seed: int) -> VLStates:
    """The same sequence with every layer's states replaced by matched noise."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.stack([matched_noise(layer, generator) for layer in seen.states])
    return VLStates(states, seen.layers, seen.num_layers, seen.layout, seen.prompt, seen.system_prompt, seen.model)


def matched_noise(states: Tensor, generator: torch.Generator) -> Tensor:
    """Noise with the states' mean and std per dimension and RMS per token; sinks stay as they are."""
    is_sink = find_sinks(states)
    ordinary = states[~is_sink].float()
    drawn = torch.randn(states.shape, generator=generator).to(states.device)
    drawn = drawn * ordinary.std(0).nan_to_num(0.0) + ordinary.mean(0)
    drawn = drawn * (token_rms(states) / token_rms(drawn).clamp_min(1e-6)).unsqueeze(-1)
    return torch.where(is_sink.unsqueeze(-1), states, drawn.to(states.dtype))


# ------------------------------------------------------------------------------------------------------------ reading


def hits(bench: Bench, states: Sequence[Tensor]) -> dict[str, Tensor]:
    """What the judge reads, per pair ``(N,)`` as a mean over seeds."""
    count, pairs = len(bench.cases), bench.pairs
    numbers = [1000 * seed + index for seed in bench.seeds for index in range(count)]
    pictures = bench.chain.paint(
        list(states) * len(bench.seeds), numbers, steps=bench.steps, guidance=bench.guidance
    )
    logits, scenes = bench.chain.read(pictures), pairs.references
    row, repeat = torch.arange(len(numbers)), len(bench.seeds)
    thing = (scenes.shape[:, 0] * 10 + scenes.color[:, 0]).repeat(repeat)
    found = {
        "color": logits["color"][row, pairs.color.repeat(repeat)] > 0,
        "shape": logits["shape"][row, pairs.shape.repeat(repeat)] > 0,
        "leak": logits["pair"][row, thing] > 0,
        **{name: logits[name].argmax(1) == getattr(scenes, name).repeat(repeat) for name in world.LOOK},
        **artifacts(pictures, bench.pool),
    }
    return {name: values.float().view(repeat, count).mean(0) for name, values in found.items()}


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
    return {
        "name": method.name, "family": method.family, "layer": method.layer, "setting": method.setting,
        "adherence": float(found["color"].mean()), "adherence_stderr": error(found["color"]),
        "adherence_shape": float(found["shape"].mean()),
        "transfer": None if transfer is None else float(transfer.mean()),
        "stderr": None if transfer is None else error(transfer),
        "transfer_by": {name: float(values.mean()) for name, values in gains.items()},
        "leak": float(found["leak"].mean()),
        "artifacts": {name: float(found[name].mean()) for name in ARTIFACTS},
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
    keys = {Method(row["name"], row["family"], "", row["layer"], row["setting"]).key for _, row in chosen.values()}
    return [method for method in METHODS if method.key in keys]


def draw(report: dict[str, Any], path: Path) -> None:
    """Transfer over adherence: one line per method and layer, nulls as crosses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), dpi=120, layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(FAMILIES, ("#D55E00", "#0072B2", "#009E73", "#CC79A7"), strict=True))
    lines: dict[tuple, list[dict]] = {}
    for row in (row for row in report["methods"] if row["transfer"] is not None):
        lines.setdefault((row["family"], row["name"], row["layer"]), []).append(row)
    markers = "osD^v<>pP*h8d"
    names = list(dict.fromkeys(name for _, name, _ in lines))
    for (family, name, layer), rows in lines.items():
        rows = sorted(rows, key=lambda row: -row["adherence"])
        label = name if layer is None else f"{name}, {layer}"
        axes.errorbar(
            [row["adherence"] for row in rows], [row["transfer"] for row in rows],
            [row["stderr"] or 0.0 for row in rows],
            marker=markers[names.index(name) % len(markers)], color=colours[family], alpha=0.75, linewidth=0.8,
            markersize=5, label=label,
        )
    for row in (row for row in report["nulls"] if row["transfer"] is not None):
        axes.plot(row["adherence"], row["transfer"], "x", color="#999999", markersize=6)
    axes.plot([], [], "x", color="#999999", label="null controls")
    axes.axvline(ADHERENCE_GOAL, color="black", linewidth=0.8, linestyle="--")
    for level in (0, 1):
        axes.axhline(level, color="black", linewidth=0.5)
    axes.set(
        xlabel="adherence: the prompt's colour is there", title="The miniature's frontier",
        ylabel="transfer of background, style, mood (0 words alone, 1 caption)",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
