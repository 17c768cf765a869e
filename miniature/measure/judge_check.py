"""Stage ``judge-check``: the judge that asks the VL, beside the judge that was trained.

``python -m miniature judge-check --out F --models miniature/models`` paints settings taken evenly from all that the
bench has, and lets both judges read every painting. The trained one knows the truth about a reference; the VL's judge
knows only what the VL said of it. Asked: do both put the settings in the same order, do they agree on a painting, where
do they differ on the average, and does the VL's judge see mistakes that were made on purpose.

How far two orders can agree at all is asked beside it: of many settings the true means are so near one another that
other paintings put them in another order, whoever judges. The pairs are halved at random, many times over; one half is
judged by the trained judge, the other by itself once more (``itself``) and by the VL's (``across``).

``--shard 0/4`` paints a quarter of the settings; after all shards the same command with ``--resume`` and none reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vl_core.encoder.judging import answer_each, ready
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.encoder.writing import describe_each
from vl_core.pictures import check_picture
from vl_core.reports.judge import LONGEST, SHOWS, Query, figure, questions_of, say_parts, shares_of
from vl_core.reports.trust import ranks, right_before_wrong

from .. import world
from ..train.training import Options, log, write_json
from .bench import TOY, Painting, Switches, begun, mixed, prepare
from .chain import Chain, as_image
from .rows import METHODS, TEXT_ONLY, Method, key_of
from .vl_judge import NAMES, WorldForm, thing_of

REPORT = "judge_check.json"
SETTINGS = 40
ASKED = 100  # paintings that are asked about in the same passes
SPLITS = 200
COUNTED = "counted "
ORDERS = {  # of settings, by what is compared
    "order": "yeses beside probabilities", "counted": "yeses beside yeses", "by_shares": "probabilities beside "
    "probabilities", "itself": "half of the pairs: the trained judge beside itself", "across": "the VL's beside it",
    "vl_itself": "the VL's beside itself", "corrected": "corrected",
}
THING, LEAK = "thing", "leak"
FIGURES = (THING, *world.LOOK, LEAK)
ORDER_GOAL, AGREEMENT_GOAL, PLANTED_GOAL = 0.95, 0.9, 0.95
SURE = 2.0  # standard errors
APART = 0.1  # settings have to differ by so much, by the trained judge, before their order means anything
FORM = WorldForm()


def run(options: Options, switches: Switches | None = None) -> dict[str, Any]:
    """Paint, read twice, write ``judge_check.json``."""
    asked = switches or (TOY if options.toy else Switches())
    switches = replace(asked, pairs=TOY.pairs if options.toy else asked.pairs, seeds=1)
    chain, ledger, form = begun(options, switches, "judge-check", judge=asked_by())
    bench = prepare(chain, switches, options.seed)
    painting = Painting(bench, (0,), switches.steps, switches.guidance)
    chosen = settings(3 if options.toy else SETTINGS)
    told = describe_all(chain.encoder, bench.images)
    index, count = map(int, (switches.shard or "0/1").split("/"))
    rows = []
    for method in chosen[index::count]:
        found = ledger.measured(method.key, lambda method=method: both(painting, told, method))
        rows.append(row_of(method, found))
        log(options, "judge-check", name=method.name, setting=method.setting, look=rows[-1]["vl"]["look"])
    planted_found = ledger.measured("planted", lambda: planted(painting, told)) if index == count - 1 else {}
    if switches.shard:
        return {}
    report = {
        "measured": ledger.mostly_with(), "asked": form, "paintings": len(rows) * len(bench.cases),
        "described": described(bench.pairs.references, told), **compare(rows),
        "planted": {name: float(value) for name, value in planted_found.items()}, "settings": [
            {name: value for name, value in row.items() if name != "each"} for row in rows
        ],
    }
    report["verdict"] = verdict(report)
    write_json(options.report(REPORT), report)
    print("\n".join(table(report)))
    return report


def describe_all(encoder: Qwen3VLEncoder, pictures: Sequence[Tensor]) -> list[dict[str, str]]:
    """:func:`~vl_core.reports.judge.describe_parts` of each picture, many written at a time."""
    written = {
        ask: [one.words for one in describe_each(encoder, pictures, ask, max_tokens=LONGEST)]
        for ask in dict.fromkeys(FORM.describe(part) for part in (*FORM.parts, SHOWS))
    }
    return [
        say_parts(FORM, {ask: words[number] for ask, words in written.items()}.__getitem__)
        for number in range(len(pictures))
    ]


def asked_by() -> list[str]:
    """How the VL is asked, by the example of one painting."""
    words = {SHOWS: "blue ring", **{part: names[0] for part, names in NAMES.items()}}
    return [query.key for each in queries_of("red star", words).values() for query in each]


def settings(count: int) -> list[Method]:
    """So many of the bench's rows, evenly over the whole list, words alone and the caption among them."""
    plain = [method for method in METHODS if "two pictures" not in method.name]
    step = (len(plain) - 1) / (count - 2)
    picked = [plain[round(index * step)] for index in range(count - 1)]
    return [Method(TEXT_ONLY, "none", "words"), *picked]


def both(painting: Painting, told: Sequence[Mapping[str, str]], method: Method) -> dict[str, Tensor]:
    """Per painting ``(N,)`` every figure by the trained judge, and with ``vl `` before its name by the VL's."""
    bench = painting.bench
    plain = method.name == TEXT_ONLY
    pictures = painting.paint([case.states for case in bench.cases] if plain else mixed(bench, method), method.act)
    logits, pairs = bench.chain.read(pictures), bench.pairs
    row, scenes = torch.arange(len(pictures)), pairs.references
    each = {
        THING: logits["pair"][row, pairs.shape * len(world.COLORS) + pairs.color].sigmoid(),
        LEAK: logits["pair"][row, scenes.shape[:, 0] * len(world.COLORS) + scenes.color[:, 0]].sigmoid(),
    }
    found = {name: value > 0.5 for name, value in each.items()}
    for name in world.LOOK:
        truth = getattr(scenes, name)
        each[name] = logits[name].softmax(1)[row, truth]
        found[name] = logits[name].argmax(1) == truth
    ours = read_all(bench.chain, as_image(pictures.cpu()), [case.prompt for case in bench.cases], told)
    return (
        {name: value.float() for name, value in found.items()}
        | {f"sure {name}": value.float() for name, value in each.items()}
        | {f"vl {name}": torch.tensor([one[name] for one in ours]) for name in FIGURES}
    )


def read_all(
    chain: Chain, pictures: Sequence[Tensor], prompts: Sequence[str], told: Sequence[Mapping[str, str]]
) -> list[dict[str, float]]:
    """The VL's figures of paintings, many at a time.

    Args:
        prompts: what each was to show. told: what the VL said of its reference.
    """
    wanted = [queries_of(*both) for both in zip(prompts, told, strict=True)]
    queries = [[query for each in one.values() for query in each] for one in wanted]
    found = []
    for at in range(0, len(pictures), ASKED):
        some = [
            ready(chain.encoder, check_picture(picture)[0], questions_of(asked))  # to bytes once, not once a question
            for picture, asked in zip(pictures[at : at + ASKED], queries[at : at + ASKED], strict=True)
        ]
        for number, answers in enumerate(answer_each(chain.encoder, some), at):
            shares = shares_of(queries[number], lambda _, answers=answers: answers)
            found.append({name: figure(shares, each) for name, each in wanted[number].items()})
    return found


def queries_of(prompt: str, words: Mapping[str, str]) -> dict[str, tuple[Query, ...]]:
    return {
        THING: FORM.thing(prompt), LEAK: FORM.thing(words[SHOWS]),
        **{part: FORM.part(part, words[part]) for part in world.LOOK},
    }


def planted(painting: Painting, told: Sequence[Mapping[str, str]]) -> dict[str, Tensor]:
    """How surely a figure of what is right lies above one of what is wrong: the share of couples, ½ is chance.

    The paintings are the caption's, in which everything is. Wrong: another pair's reference or prompt, and in the
    painting's place noise, or its own pixels in another order, which still have the reference's colours.
    """
    bench, generator = painting.bench, torch.Generator().manual_seed(0)
    pictures = as_image(painting.paint(mixed(bench, METHODS[0])).cpu())
    prompts = [case.prompt for case in bench.cases]

    def looks(
        pictures: Sequence[Tensor], prompts: Sequence[str], told: Sequence[Mapping[str, str]]
    ) -> tuple[list[float], list[float]]:
        found = read_all(bench.chain, pictures, prompts, told)
        return [one[THING] for one in found], [
            sum(one[name] for name in world.LOOK) / len(world.LOOK) for one in found
        ]

    def other_shape(prompt: str) -> str:
        shape, color = thing_of(prompt)
        return f"{world.COLORS[color]} {world.SHAPES[(shape + 1) % len(world.SHAPES)]}"

    def shuffled(picture: Tensor) -> Tensor:
        order = torch.randperm(picture.shape[0] * picture.shape[1], generator=generator)
        return picture.flatten(0, 1)[order].view_as(picture)

    right = looks(pictures, prompts, told)
    wrong = looks(pictures, [*prompts[1:], prompts[0]], [*told[1:], told[0]])
    noise = looks([torch.rand(picture.shape, generator=generator) for picture in pictures], prompts, told)
    shape = looks(pictures, [other_shape(prompt) for prompt in prompts], told)
    mixed_up = looks([shuffled(picture) for picture in pictures], prompts, told)
    bad = {
        "another prompt": (wrong, 0), "the prompt's colour, another shape": (shape, 0), "another reference": (wrong, 1),
        "noise, by the prompt": (noise, 0), "noise, by the reference": (noise, 1),
        "pixels shuffled, by the prompt": (mixed_up, 0),
    }
    return {
        name: torch.tensor([right_before_wrong(right[place], figures[place])])
        for name, (figures, place) in bad.items()
    }


def described(scenes: world.Scenes, told: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """How often what the VL said of a reference is true, by part; of what it shows the shape and the colour."""
    found = {}
    for name, names in (("background", world.COLORS), ("style", world.STYLES), ("mood", world.MOODS)):
        truth = [names[index] for index in getattr(scenes, name).tolist()]
        found[name] = float(np.mean([one[name] == each for one, each in zip(told, truth, strict=True)]))
    things = [
        f"{world.COLORS[color]} {world.SHAPES[shape]}" for (shape, color, _), *_ in (
            scene.objects for scene in scenes.records()
        )
    ]
    found[SHOWS] = float(np.mean([thing in one[SHOWS] for one, thing in zip(told, things, strict=True)]))
    return found


def row_of(method: Method, found: Mapping[str, Tensor]) -> dict[str, Any]:
    """A setting's means by both judges, and the single paintings."""
    ways = {"trained": "", "vl": "vl "}
    means = {judge: {name: float(found[mark + name].mean()) for name in FIGURES} for judge, mark in ways.items()}
    for each in means.values():
        each["look"] = sum(each[name] for name in world.LOOK) / len(world.LOOK)
    return {"name": method.name, "key": key_of({"name": method.name, "layer": method.layer, "setting": method.setting}),
            "layer": method.layer, "setting": method.setting, **means, "each": found}


def compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per figure: order of the settings, agreement on single paintings, and bias."""
    found = {}
    for name in (*FIGURES, "look"):
        theirs, ours = (np.array([row[judge][name] for row in rows]) for judge in ("trained", "vl"))
        entry = {"order": ranks(theirs, ours), "span": float(theirs.max() - theirs.min()),
                 "bias": float((ours - theirs).mean()), "largest": float(np.abs(ours - theirs).max())}
        kept, couples = sure_order(rows, name)
        entry |= {"sure_order": kept, "couples": couples, **reach(rows, name)}
        if name != "look":
            truth = torch.cat([row["each"][name] for row in rows]) > 0.5
            said = torch.cat([row["each"][f"vl {name}"] for row in rows]) > 0.5
            entry |= {
                "agreement": float((truth == said).float().mean()), "there": float(truth.float().mean()),
                "missed": _share(~said, truth), "invented": _share(said, ~truth),
            }
        found[name] = entry
    own = [row for row in rows if "described" in row["name"]]
    rest = [row for row in rows if "described" not in row["name"]]
    bias = {
        name: float(np.mean([row["vl"]["look"] - row["trained"]["look"] for row in some])) if some else None
        for name, some in (("its own words", own), ("all else", rest))
    }
    return {"figures": found, "bias_by_words": bias}


def _each(row: Mapping[str, Any], mark: str, name: str) -> np.ndarray:
    """A figure of every painting of a setting; ``mark`` "counted " takes the VL's as yes or no."""
    names = world.LOOK if name == "look" else (name,)
    if mark == COUNTED:
        return np.mean([row["each"][f"vl {one}"].numpy() > 0.5 for one in names], 0, dtype=np.float64)
    return np.mean([row["each"][mark + one].numpy() for one in names], 0, dtype=np.float64)


def reach(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    """How far an order of these settings can be told from so many paintings.

    Returns:
        ``counted``: the rank correlation of both judges' yeses, so that what is equal for the one can be equal for the
        other; ``by_shares``: of both judges' mean probabilities.
        ``itself``: its order from one half of the pairs, with its own from the other half; ``across``: with the VL's
        from the other half; ``vl_itself``: the VL's with its own; the mean over halvings. ``corrected``: ``across``
        over the geometric mean of the other two, Spearman's correction for attenuation.
    """
    theirs, sure, ours = (np.stack([_each(row, mark, name) for row in rows]) for mark in ("", "sure ", "vl "))
    rng, count = np.random.default_rng(0), theirs.shape[1]
    halvings = []
    for _ in range(SPLITS):
        order = rng.permutation(count)
        one, other = order[: count // 2], order[count // 2 :]
        halvings.append([
            ranks(left[:, one].mean(1), right[:, other].mean(1))
            for left, right in ((theirs, theirs), (theirs, ours), (ours, ours))
        ])
    counted = np.stack([_each(row, COUNTED, name) for row in rows])
    found: dict[str, float | None] = {
        "counted": ranks(theirs.mean(1), counted.mean(1)), "by_shares": ranks(sure.mean(1), ours.mean(1)),
    }
    for place, key in enumerate(("itself", "across", "vl_itself")):
        known = [each[place] for each in halvings if each[place] is not None]
        found[key] = float(np.mean(known)) if known else None
    itself, across, vl_itself = (found[key] for key in ("itself", "across", "vl_itself"))
    possible = itself is not None and across is not None and vl_itself is not None and min(itself, vl_itself) > 0
    found["corrected"] = across / math.sqrt(itself * vl_itself) if possible else None
    return found


def sure_order(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float | None, int]:
    """Of the couples of settings that the trained judge tells apart, how many the VL's puts in the same order.

    Told apart: by two standard errors of the difference over the same pairs. A rank correlation counts couples that
    differ by one painting, or by none, as much as those that differ in all.
    """
    theirs, ours = ([_each(row, mark, name) for row in rows] for mark in ("", "vl "))
    same = couples = 0
    for index in range(len(rows)):
        for other in range(index):
            difference = theirs[index] - theirs[other]
            error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
            if abs(difference.mean()) > SURE * error and difference.mean():
                couples += 1
                same += difference.mean() * (ours[index] - ours[other]).mean() > 0
    return (float(same / couples) if couples else None), couples


def _share(of: Tensor, among: Tensor) -> float:
    return float((of & among).sum() / among.sum().clamp_min(1))


def verdict(report: Mapping[str, Any]) -> list[str]:
    """What is not good enough, a line each; none if all goals are reached."""
    lines = [line for name, entry in report["figures"].items() for line in faults(name, entry)]
    for name, share in report["planted"].items():
        if share < PLANTED_GOAL:
            lines.append(f"{name}: told apart in {share:.3f} of the couples, wanted is {PLANTED_GOAL}.")
    return lines


def faults(name: str, entry: Mapping[str, Any]) -> list[str]:
    """What is not good enough of one figure."""
    lines = []
    if entry["span"] >= APART and (entry["order"] or 0.0) < ORDER_GOAL:
        lines.append(f"{name}: the settings' order agrees to {shown(entry['order'])}, wanted is {ORDER_GOAL}.")
    if "agreement" in entry and entry["agreement"] < AGREEMENT_GOAL:
        share = entry["agreement"]
        lines.append(f"{name}: {share:.3f} of the paintings are read alike, wanted is {AGREEMENT_GOAL}.")
    return lines


def good_enough(name: str, entry: Mapping[str, Any]) -> str:
    """In a word; settings that hardly differ say nothing."""
    return "no" if faults(name, entry) else "yes" if entry["span"] >= APART else "cannot tell"


def table(report: Mapping[str, Any]) -> list[str]:
    """The report as lines of Markdown."""
    lines = [
        "| figure | good enough | order of settings | couples told apart | span | agreement | there | missed | "
        "invented | bias | largest |", "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in report["figures"].items():
        single = [f"{entry[one]:.3f}" if one in entry else "" for one in ("agreement", "there", "missed", "invented")]
        means = f"{entry['bias']:+.3f} | {entry['largest']:.3f}"
        sure = f"{shown(entry['sure_order'])} of {entry['couples']}" if "couples" in entry else "not counted"
        cells = [name, good_enough(name, entry), shown(entry["order"]), sure, f"{entry['span']:.2f}", *single, means]
        lines.append(f"| {' | '.join(cells)} |")
    known = {name: entry for name, entry in report["figures"].items() if ORDERS.keys() <= entry.keys()}
    if known:
        lines += ["", f"| figure | {' | '.join(ORDERS.values())} |", f"|{'---|' * (len(ORDERS) + 1)}"]
    lines += [f"| {name} | {' | '.join(shown(entry[one]) for one in ORDERS)} |" for name, entry in known.items()]
    lines += ["", "| mistake made on purpose | told apart |", "|---|---|"]
    lines += [f"| {name} | {share:.3f} |" for name, share in report["planted"].items()]
    told = [f"{name} {value:+.3f}" for name, value in report["bias_by_words"].items() if value is not None]
    lines += ["", f"Bias of look, by what a setting brings into the prompt: {', '.join(told)}.", ""]
    lines += [f"* {line}" for line in report["verdict"]] or ["All goals are reached."]
    return lines


def shown(order: float | None) -> str:
    return "none" if order is None else f"{order:.3f}"
