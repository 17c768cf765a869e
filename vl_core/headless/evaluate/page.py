"""The page of an evaluation: pictures first, then what they say in figures and words, tables last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from ...reports.artifacts import NAMES
from ...reports.trust import ranks
from ..compare.nulls import NOISE
from ..compare.report import PAGE, STYLE
from .claims import artifacts_by_way, claims_of, shown
from .evidence import ArmSaid, Evidence, Figures
from .figures import ANOTHER, TRANSFER, beats_nulls, keeps
from .figures import NOISE as NOISED
from .outcome import finalists
from .plan import Trial
from .plot import frontier
from .runner import Evaluation

WIDEST = 240  # pixels of a picture on the page
Best = Sequence[tuple[ArmSaid, Figures]]
PACKAGE = __package__ or ""


def write_page(evaluation: Evaluation, evidence: Evidence, recipes: Mapping[str, Mapping[str, Any]]) -> Path:
    """``index.html``, which needs no network."""
    best = finalists(evidence)
    own, theirs = (
        resources.files(package).joinpath(name).read_text(encoding="utf-8")
        for package, name in ((PACKAGE, "page.html"), (f"{PACKAGE.rpartition('.')[0]}.compare", STYLE))
    )
    made = evidence.made
    side = min(WIDEST, max(evaluation.sheet.models.width, 140))
    path = evaluation.folder / PAGE
    path.write_text(
        Template(own).substitute(
            title=escape(f"What arrives of a picture: {made['zimage']} with {made['vision']}"), style=theirs,
            side=side, summary=escape(summary(best)), facts=escape(facts(evidence)), doubt=doubt(evidence),
            pictures=pictures(evaluation, best), frontier=frontier([
                (arm.group, figures) for arm, figures in best
            ]),
            words="".join(f"<li>{line}</li>" for line in map(in_words, best)), recipes=escape(told(recipes)),
            claims=note_says(evidence), artifacts=artifacts(evidence, best), layers=escape(evidence.layers.strip()),
            judge=escape(judge(evidence)), second=second_judge(evidence, best),
            settings=settings(evidence), asked=asked(evidence),
        ),
        encoding="utf-8",
    )
    return path


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
    )


def facts(evidence: Evidence) -> str:
    asked, machine = evidence.asked, evidence.machine
    painted = len(evidence.records)
    size = f"{asked.painting['width']}×{asked.painting['height']}, {asked.painting['steps']} steps"
    return (
        f"{painted} paintings, {size}, of {len(asked.pictures)} pictures and {len(asked.prompts)} prompts that "
        f"disagree with them; {len(evidence.arms)} settings tried. {machine['device']}, {evidence.made['date']}."
    )


def doubt(evidence: Evidence) -> str:
    lines = evidence.trust.get("verdict", [])
    if not lines:
        return ""
    return f'<div class="doubt"><strong>Do not rely on these figures.</strong> {escape(" ".join(lines))}</div>'


def in_words(both: tuple[ArmSaid, Figures]) -> str:
    arm, one = both
    if one.transfer is None:
        return f"<strong>{escape(arm.group)}</strong>: nothing to measure, the captions move no part of any look."
    nulls = ", ".join(f"{name} {shown(*values)}" for name, values in one.nulls.items())
    parts = ", ".join(f"{part} {shown(value)}" for part, value in one.parts.items())
    worse = [NAMES[name] for name, times in one.artifacts.items() if times >= 1.25]
    sure = "above its nulls" if beats_nulls(one) else "not above its nulls: no effect was shown"
    prompt = "keeps to the prompt" if keeps(one) else "loses the prompt"
    return (
        f"<strong>{escape(arm.group)}</strong>, {escape(arm.label)}: {shown(one.transfer, one.transfer_error)} of what "
        f"a caption brings ({escape(parts)}), {sure} ({escape(nulls)}). It {prompt}: {shown(one.adherence)}, words "
        f"alone {shown(one.words_adherence)}. The reference's own thing comes along by "
        f"{shown(one.leak, one.leak_error)} more. "
        + (f"More {escape(', '.join(worse))} than the words alone. " if worse else "")
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
        "a judge that was trained stands in docs/evidence.md."
    )


def second_judge(evidence: Evidence, best: Best) -> str:
    """What a CLIP or a DINO makes of it, beside Qwen3-VL; nothing if none was asked."""
    if not evidence.asked.score:
        return ""
    name = escape(evidence.asked.score.rpartition(" ")[0])
    both = [(one.transfer, one.second[TRANSFER][0]) for one in evidence.figures if one.second]
    known = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    order = ranks(*zip(*known, strict=True)) if len(known) > 2 else None
    said = f"Over {len(known)} settings its order agrees with Qwen3-VL's to {shown(order)} (rank correlation). "
    rows = [
        f"<tr><td>{escape(arm.group)}</td>{_number(one.transfer, '.2f')}"
        + "".join(_number(one.second.get(key, [None])[0], ".2f") for key in (TRANSFER, ANOTHER, NOISED)) + "</tr>"
        for arm, one in best
    ]
    return (
        f"<h3>A second judge: {name}</h3><p class=\"dim\">Transfer by how like its reference each painting is to it: 0 "
        f"the words alone, 1 the picture's own caption. {said}It was held against no judge that knows the truth, so it "
        "is a second opinion and no proof; a dash stands where captions do not bring paintings nearer to their "
        f'pictures by it.</p><div class="scroll"><table class="list">'
        f"{_table(('way', 'Qwen3-VL', name, ANOTHER, NOISED), rows)}</table></div>"
    )


# --- pictures -------------------------------------------------------------------------------------------------------


def pictures(evaluation: Evaluation, best: Best) -> str:
    """Some trials as columns: the reference, the words alone, its caption, and every way beside its nulls."""
    trials = evaluation.examples()
    sheet, told_of = evaluation.sheet, evaluation.told
    rows = [row("", "", [
        f'<th class="head">{escape(sheet.prompts[one.prompt].text)}</th>' for one in trials
    ])]
    plain = {
        "the picture": ("what is lent", [f"references/{sheet.references[one.picture].key}.png" for one in trials]),
        "words alone": ("the same seed", [_file(sheet.words_alone(one.prompt, one.seed)) for one in trials]),
        "its own caption": (
            "all of its look that words carry, without your prompt",
            [_file(sheet.bound(told_of[one.picture].caption, one.seed)) for one in trials],
        ),
    }
    for name, (meaning, files) in plain.items():
        rows.append(row(name, meaning, [f'<td><div class="cell">{image(file, name)}</div></td>' for file in files]))
    for arm, figures in best:
        meaning = f"{arm.label}: {shown(figures.transfer, figures.transfer_error)}"
        rows.append(row(arm.group, meaning, [beside(evaluation, arm.id, one) for one in trials]))
    return f'<table class="show">{"".join(rows)}</table>'


def beside(evaluation: Evaluation, arm: str, trial: Trial) -> str:
    """A way's picture with its nulls."""
    chosen, sheet = evaluation.by_id[arm], evaluation.sheet
    nulls = [(ANOTHER, evaluation.another(chosen, trial)), (NOISED, sheet.of(chosen, trial, NOISE))]
    small = "".join(
        f"<div>{image(_file(cell), name)}<span>{name.split()[-1 if name == NOISED else 0]}</span></div>"
        for name, cell in nulls if evaluation.file(cell.id).is_file()
    )
    cell = sheet.of(chosen, trial)
    return f'<td><div class="cell">{image(_file(cell), chosen.label)}<div class="nulls">{small}</div></div></td>'


def row(name: str, meaning: str, cells: Sequence[str]) -> str:
    head = f'<th class="way"><strong>{escape(name)}</strong><span>{escape(meaning)}</span></th>'
    return f"<tr>{head}{''.join(cells)}</tr>"


def image(file: str, name: str) -> str:
    return f'<img src="{escape(file)}" alt="{escape(name)}" loading="lazy">'


def _file(cell: Any) -> str:
    return f"cells/{cell.id}.png"


# --- tables ---------------------------------------------------------------------------------------------------------


def note_says(evidence: Evidence) -> str:
    """The section about the note; nothing where its comparisons were not painted."""
    rows = [
        f'<tr><td class="words">{escape(one.says)}</td><td class="words">{escape(one.found)}</td>'
        f"<td>{escape(one.verdict)}</td></tr>" for one in claims_of(evidence)
    ]
    if not rows:
        return ""
    return (
        '<h2>The note says, and here</h2><p class="dim">The research note\'s sentences beside its own arithmetic on '
        "these weights. A difference below two standard errors tells nothing.</p>"
        f'<div class="scroll"><table class="list">{_table(("the note says", "here", "so"), rows)}</table></div>'
    )


def artifacts(evidence: Evidence, best: Best) -> str:
    note = [arm.id for arm in evidence.arms if arm.about]
    rows = [
        f'<tr><td class="label">{escape(name)}</td>'
        + "".join(_number(found.get(kind), ".2f") for kind in NAMES) + "</tr>"
        for name, found in artifacts_by_way(evidence, [arm.id for arm, _ in best] + note)
    ]
    return _table(("setting", *NAMES.values()), rows)


def settings(evidence: Evidence) -> str:
    arms = {arm.id: arm for arm in evidence.arms}
    heads = ("way", "setting", "pairs", "paintings", "transfer", "±", *evidence.asked.parts, "prompt", "words alone",
             "leak", ANOTHER, NOISED, "seconds")
    rows = []
    for one in evidence.figures:
        arm = arms[one.arm]
        cells = [
            f"<td>{escape(arm.group)}</td>", f'<td class="label">{escape(arm.label)}</td>', _number(one.pairs, "d"),
            _number(one.cells, "d"), _number(one.transfer, ".3f"), _number(one.transfer_error, ".3f"),
            *(_number(one.parts.get(part), ".2f") for part in evidence.asked.parts), _number(one.adherence, ".3f"),
            _number(one.words_adherence, ".3f"), _number(one.leak, ".3f"),
            *(_number(one.nulls.get(name, [None])[0], ".3f") for name in (ANOTHER, NOISED)),
            _number(one.seconds, ".2f"),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return _table(heads, rows)


def asked(evidence: Evidence) -> str:
    """Prompts, pictures, weights, versions, rungs."""
    said = evidence.asked
    prompts = "; ".join(str(one.get("text", one["name"])) for one in said.prompts)
    rungs = "; ".join(
        f"{one['name']}: {len(one['arms'])} settings, {one['trials']} trials" + ", and of noise" * one["noise"]
        for one in said.rungs
    )
    files = "; ".join(
        f"{role}/{name} {digest[:12]}" for role, each in evidence.weights.items() for name, digest in each.items()
        if name.endswith(("safetensors", "gguf", "bin"))
    )
    rows = {
        "prompts": prompts, "pictures": ", ".join(str(one["name"]) for one in said.pictures), "rungs": rungs,
        **({"learned looks": said.looks} if said.looks else {}),
        "painting": ", ".join(f"{name} {value}" for name, value in said.painting.items() if value not in ("", None)),
        "machine": ", ".join(f"{name} {value}" for name, value in evidence.machine.items() if value not in ({}, None)),
        "made": ", ".join(f"{name} {value}" for name, value in evidence.made.items()), "weights (SHA-256)": files,
    }
    return _table(("", ""), [
        f'<tr><td>{escape(name)}</td><td class="words">{escape(value)}</td></tr>' for name, value in rows.items()
    ])


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _number(value: float | None, form: str) -> str:
    if value is None:
        return '<td class="num" data-value="-1e9">–</td>'
    return f'<td class="num" data-value="{value}">{value:{form}}</td>'
