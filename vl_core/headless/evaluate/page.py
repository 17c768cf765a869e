"""The page of an evaluation: pictures first, then what they say in figures and words, tables last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...reports.artifacts import NAMES
from ...reports.trust import ranks
from .. import pages
from ..compare.nulls import NOISE
from ..compare.report import PAGE
from .claims import artifacts_by_way, claims_of, shown
from .evidence import ArmSaid, Evidence, Figures
from .figures import ANOTHER, TRANSFER, beats_nulls, keeps
from .figures import NOISE as NOISED
from .judging import TRUSTED
from .outcome import finalists
from .plan import Trial
from .plot import frontier
from .runner import Evaluation

WIDEST = 240  # pixels of a picture on the page
DOUBT = "†"  # beside a part that the judge does not know well enough
ENOUGH = 12  # pairs from which on an error says something
FEW = " From {} pairs of a picture and a prompt only: the errors themselves are uncertain, more --minutes tell more."
Best = Sequence[tuple[ArmSaid, Figures]]


def write_page(evaluation: Evaluation, evidence: Evidence, recipes: Mapping[str, Mapping[str, Any]]) -> Path:
    """``index.html``, which needs no network."""
    best, made = finalists(evidence), evidence.made
    note = [arm.id for arm in evidence.arms if arm.about]
    return pages.write_page(
        evaluation.folder / PAGE, "evaluate/page.html",
        title=f"What arrives of a picture: {made['zimage']} with {made['vision']}",
        side=min(WIDEST, max(evaluation.sheet.models.width, 140)), summary=summary(best), facts=facts(evidence),
        doubt=" ".join(evidence.trust.get("verdict", [])), prompts=[
            evaluation.sheet.prompts[trial.prompt].text for trial in evaluation.examples()
        ],
        pictures=pictures(evaluation, best), frontier=frontier([(arm.group, one) for arm, one in best]),
        words=[(arm, figures, in_words(arm, figures, marked(evidence))) for arm, figures in best],
        recipes=told(recipes), parts=marked(evidence),
        claims=claims_of(evidence), kinds=NAMES,
        artifacts=artifacts_by_way(evidence, [arm.id for arm, _ in best] + note), layers=evidence.layers.strip(),
        judge=judge(evidence), second=second_judge(evidence), seconds=(TRANSFER, ANOTHER, NOISED), best=best,
        arms={arm.id: arm for arm in evidence.arms}, evidence=evidence, nulls=(ANOTHER, NOISED),
        asked=asked(evidence),
    )


# --- in words -------------------------------------------------------------------------------------------------------


def summary(best: Best) -> str:
    """The whole in two sentences."""
    good = [(arm, one) for arm, one in best if keeps(one) and beats_nulls(one)]
    if not good:
        return (
            "No way was shown to bring anything of a picture: none lies above its nulls by two standard errors while "
            "it keeps to the prompt. More time, or more pictures, may tell."
        )
    arm, one = good[0]
    others = ", ".join(f"{other.group} {shown(each.transfer)}" for other, each in good[1:4])
    return (
        f"Most arrives by the way “{arm.group}” ({arm.label}): {shown(one.transfer, one.transfer_error)} of what a "
        f"picture's own caption brings, with the prompt's things there to {shown(one.adherence)} "
        f"({shown(one.words_adherence)} with the words alone)." + (f" Then: {others}." if others else "")
        + (FEW.format(one.pairs) if one.pairs < ENOUGH else "")
    )


def facts(evidence: Evidence) -> str:
    asked, machine = evidence.asked, evidence.machine
    painted = len(evidence.records)
    many = len(evidence.arms) - len(evidence.figures)
    left = f", {many} left out for want of time" if many else ""
    size = f"{asked.painting['width']}×{asked.painting['height']}, {asked.painting['steps']} steps"
    return (
        f"{painted} paintings, {size}, of {len(asked.pictures)} pictures and {len(asked.prompts)} prompts that "
        f"disagree with them; {len(evidence.figures)} settings tried{left}. {machine['device']}, "
        f"{evidence.made['date']}."
    )


def marked(evidence: Evidence) -> dict[str, str]:
    """What each part of a look is called: with a mark where the judge does not know it well enough."""
    known = evidence.trust.get("parts", {})
    return {
        part: part + DOUBT * (known.get(part) is not None and known[part] < TRUSTED) for part in evidence.asked.parts
    }


def in_words(arm: ArmSaid, one: Figures, called: Mapping[str, str]) -> str:
    """What a way's best setting does, after its name.

    Args:
        called: parts of a look by what they are called here.
    """
    if one.transfer is None:
        return ": nothing to measure, the captions move no part of any look."
    nulls = ", ".join(f"{name} {shown(*values)}" for name, values in one.nulls.items())
    parts = ", ".join(f"{called[part]} {shown(value)}" for part, value in one.parts.items())
    worse = [NAMES[name] for name, times in one.artifacts.items() if times >= 1.25]
    sure = "above its nulls" if beats_nulls(one) else "not above its nulls: no effect was shown"
    prompt = "keeps to the prompt" if keeps(one) else "loses the prompt"
    return (
        f", {arm.label}: {shown(one.transfer, one.transfer_error)} of what a caption brings ({parts}), {sure} "
        f"({nulls}). It {prompt}: {shown(one.adherence)}, words alone {shown(one.words_adherence)}. The reference's "
        f"own thing comes along by {shown(one.leak, one.leak_error)} more. "
        + (f"More {', '.join(worse)} than the words alone. " if worse else "")
        + f"{one.pairs} pairs, {one.cells} paintings."
    )


def told(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    if not recipes:
        return "No recipe was written: no way keeps to the prompt and lies above its nulls."
    names = " and ".join(f"recipes/{name}" for name in recipes)
    return (
        f"{names}: put into ComfyUI's folder user/zimage_vl/recipes (or run with --recipes FOLDER), and Z-Image "
        "Vision Conditioning lists it."
    )


def judge(evidence: Evidence) -> str:
    trust = evidence.trust
    if "another picture" not in trust:
        return " ".join(trust.get("verdict", []))
    return (
        "Qwen3-VL itself reads every painting, by questions with one-token answers. Shown the references, it puts each "
        f"before another picture in {trust['another picture']:.2f} of the couples, before noise in "
        f"{trust['noise']:.2f}; {trust['mass']:.2f} of its probability is on the answers it was offered. It also said "
        "what the references look like, so a way that uses its words is judged by the same eyes. How it compares with "
        "a judge that was trained stands in docs/evidence.md. "
    ) + (by_parts(evidence) if trust.get("parts") else "") + by_things(trust.get("things"))


def by_parts(evidence: Evidence) -> str:
    """How well the judge knows each part of a look alone."""
    called = marked(evidence)
    known = {part: share for part, share in evidence.trust.get("parts", {}).items() if share is not None}
    listed = ", ".join(f"{called[part]} {share:.2f}" for part, share in known.items())
    doubted = any(called[part] != part for part in known)
    weak = f" {DOUBT} Not good enough: figures of this part alone mean little." if doubted else ""
    return f"By a part alone it puts a reference before another one that it described otherwise: {listed}.{weak}"


def by_things(known: float | None) -> str:
    """How well the judge knows what is there; nothing where that was not asked."""
    if known is None:
        return ""
    weak = " Not good enough: what is said of the prompt's things means little." if known < TRUSTED else ""
    return f" Asked for what a reference shows, it puts it before one that shows something else: {known:.2f}.{weak}"


def second_judge(evidence: Evidence) -> tuple[str, str] | None:
    """The name of a CLIP or a DINO that was asked beside Qwen3-VL, and how far both agree; None if none was."""
    if not evidence.asked.score:
        return None
    both = [(one.transfer, one.second[TRANSFER][0]) for one in evidence.figures if one.second]
    known = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    order = ranks(*zip(*known, strict=True)) if len(known) > 2 else None
    said = f"Over {len(known)} settings its order agrees with Qwen3-VL's to {shown(order)} (rank correlation)."
    return evidence.asked.score.rpartition(" ")[0], said


# --- pictures and tables --------------------------------------------------------------------------------------------


def pictures(evaluation: Evaluation, best: Best) -> list[tuple[str, str, list[tuple[str, str, list]]]]:
    """Rows of some trials: a name, what it means, and in every column a file, what it shows, and its nulls likewise."""
    trials, sheet, told_of = evaluation.examples(), evaluation.sheet, evaluation.told
    plain = {
        "the picture": ("what is lent", [f"references/{sheet.references[one.picture].key}.png" for one in trials]),
        "words alone": ("the same seed", [_file(sheet.words_alone(one.prompt, one.seed)) for one in trials]),
        "its own caption": (
            "all of its look that words carry, without your prompt",
            [_file(sheet.bound(told_of[one.picture].caption, one.seed)) for one in trials],
        ),
    }
    rows: list[tuple[str, str, list[tuple[str, str, list]]]] = [
        (name, meaning, [(file, name, []) for file in files]) for name, (meaning, files) in plain.items()
    ]
    for arm, figures in best:
        meaning = f"{arm.label}: {shown(figures.transfer, figures.transfer_error)}"
        rows.append((arm.group, meaning, [beside(evaluation, arm.id, one) for one in trials]))
    return rows


def beside(evaluation: Evaluation, arm: str, trial: Trial) -> tuple[str, str, list[tuple[str, str, str]]]:
    """A way's picture with its nulls: of each the file, its name, and that in a word."""
    chosen, sheet = evaluation.by_id[arm], evaluation.sheet
    nulls = [
        (ANOTHER, ANOTHER.split()[0], evaluation.another(chosen, trial)),
        (NOISED, NOISED.split()[-1], sheet.of(chosen, trial, NOISE)),
    ]
    small = [(_file(cell), name, word) for name, word, cell in nulls if evaluation.file(cell.id).is_file()]
    return _file(sheet.of(chosen, trial)), chosen.label, small


def _file(cell: Any) -> str:
    return f"cells/{cell.id}.png"


def asked(evidence: Evidence) -> dict[str, str]:
    """Prompts, pictures, weights, versions, rungs."""
    said = evidence.asked
    rungs = "; ".join(
        f"{one['name']}: {len(one['arms'])} settings, {one['trials']} trials" + ", and of noise" * one["noise"]
        for one in said.rungs
    )
    files = "; ".join(
        f"{role}/{name} {digest[:12]}" for role, each in evidence.weights.items() for name, digest in each.items()
        if name.endswith(("safetensors", "gguf", "bin"))
    )
    return {
        "prompts": "; ".join(str(one.get("text", one["name"])) for one in said.prompts),
        "pictures": ", ".join(str(one["name"]) for one in said.pictures), "rungs": rungs,
        **({"learned looks": said.looks} if said.looks else {}),
        "painting": ", ".join(f"{name} {value}" for name, value in said.painting.items() if value not in ("", None)),
        "machine": ", ".join(f"{name} {value}" for name, value in evidence.machine.items() if value not in ({}, None)),
        "made": ", ".join(f"{name} {value}" for name, value in evidence.made.items()), "weights (SHA-256)": files,
    }
