"""Stage ``tables``: the frontier in ``miniature.md``, the takes in ``methods.md``, all settings in ``parameters.md``.

``python -m miniature tables --out docs --models miniature/models`` rewrites what stands between the marks, from the
reports and the settings alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from vl_core.looks.options import QUALITIES
from vl_core.states.fields import Field
from vl_core.steering.settings import FIELDS, Settings
from vl_core.steering.way import ways

from ..measure import judge_check, takes
from ..measure.bench import CONTROLS
from ..measure.frontier import figure
from ..measure.rows import key_of
from ..train.training import Options
from . import evaluated

PAGE, REPORT = "miniature.md", "frontier.json"
TAKES_PAGE, EVIDENCE_PAGE = "methods.md", "evidence.md"
LOOKS_PAGE, LOOKS_REPORT = "looks.md", "looks.json"
SETTINGS_PAGE = "parameters.md"
HEAD = ("method", "setting", "transfer", "background / style / mood", "colour", "shape", "leak")


def run(options: Options) -> None:
    """Write anew each page that stands in the folder; its report has to be there, but that of looks."""
    for name, report, filled in (
        (PAGE, REPORT, fill), (TAKES_PAGE, takes.REPORT, fill_takes), (EVIDENCE_PAGE, judge_check.REPORT, fill_judge),
        (EVIDENCE_PAGE, evaluated.REPORT, fill_order), (LOOKS_PAGE, LOOKS_REPORT, fill_looks),
        (SETTINGS_PAGE, None, lambda page, _: fill_settings(page)),
    ):
        page, file = options.out / name, report and options.report(report)
        if page.is_file():
            absent = file is None or (report == LOOKS_REPORT and not file.is_file())
            read = None if absent else json.loads(file.read_text(encoding="utf-8"))
            page.write_text(filled(page.read_text(encoding="utf-8"), read), encoding="utf-8")


def filled_in(page: str, mark: str, lines: Sequence[str]) -> str:
    """The page with lines between ``<!-- mark -->`` and ``<!-- end -->``."""
    block = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda found: found[1] + "".join(f"{line}\n" for line in lines) + found[2], page)


def markdown(lines: Iterable[Sequence[str]]) -> list[str]:
    """Rows of a table in Markdown, the first of them its head."""
    head, *rows = lines
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def fill_looks(page: str, report: dict[str, Any] | None) -> str:
    """The page with the named qualities, what was measured how, and the report's tables if there is one."""
    page = filled_in(page, "qualities", qualities_lines())
    page = filled_in(page, "sample", sample_lines(report))
    page = filled_in(page, "looks", looks_table(report) if report else [])
    return filled_in(page, "geometry", geometry_table(report) if report else [])


def qualities_lines() -> list[str]:
    return [
        f"| {name} | {one.steps} × {one.draws} | {one.lowest:g} to 1 |" for name, one in QUALITIES.items()
    ]


def sample_lines(report: dict[str, Any] | None) -> list[str]:
    """How many pairs, seeds, colours and pictures the report is of, where and when it was made, what it leaves out."""
    if report is None:
        return ["**The two tables below are empty: the command has not been run on these models.**"]
    asked, found = report["asked"], report["measured"]
    options = {name: asked[name] for name in ("matmul", "pairs", "seeds", "few", "lookalikes") if asked[name]}
    command = " ".join(
        ["python -m miniature looks --out F --models miniature/models", *(f"--{k} {v}" for k, v in options.items())]
    )
    colours, pictures = report["colours"], ", ".join(f"{one['pictures']}" for one in report["geometry"][:1])
    lines = [
        f"{asked['pairs']} pairs, {asked['seeds']} seeds each; {colours} colours between names; {pictures} references "
        f"per style for geometry. Standard errors are over pairs, colours and references. {found['machine']}, torch "
        f"{found['torch']}, {found['date']}:", "", f"    {command}", "    python -m miniature tables --out docs "
        "--models miniature/models",
    ]
    said = {name: figure(one["mean"], one["stderr"]) for name, one in report["between_words"].items()}
    lines += [
        "", f"In words, the nearer of the two names leaves a background {said['nearer name']} off; a colour that has a "
        f"name comes out {said['colour with a name']} off when it is told by that name.",
    ]
    if earlier := report.get("rivals_measured"):
        lines += [
            "", "Rivals learn nothing; theirs are the figures of an earlier run of the same command, "
            f"{earlier['machine']}, {earlier['date']}.",
        ]
    if report["left_out"]:
        kinds = dict.fromkeys(re.sub(r" [\d.]+$", "", name) for name in report["left_out"])
        lines += ["", f"Not measured in that run, or not for every value: {', '.join(kinds)}."]
    return lines


def looks_table(report: dict[str, Any]) -> list[str]:
    """Lines of Markdown: bounds, the start, every quality beside its nulls, what others do."""
    nulls = {(row["of"], row["control"]): figure(row["transfer"], row["stderr"]) for row in report["nulls"]}
    heads = ("row", "transfer", "background / style / mood", "colour", "shape", "leak", "between names",
             "nearer than the start", "another picture", "noise")
    rows = [(row, "", "") for row in (*report["bounds"], report["start"])]
    rows += [
        (row, nulls[row["name"], "another picture"], nulls.get((row["name"], "noise"), "")) for row in report["rows"]
    ]
    rows += [(row, figure(row["null"]["transfer"], row["null"]["stderr"]), "") for row in report["rivals"]]
    lines = [list(heads)]
    for row, another, noise in rows:
        places = (row.get(name) for name in ("between", "nearer_than_start"))
        lines.append([
            row["name"], figure(row["transfer"], row["stderr"]), " / ".join(map(figure, row["transfer_by"].values())),
            *(figure(row[name]) for name in ("adherence", "adherence_shape", "leak")),
            *(figure(place["mean"], place["stderr"]) if place else "" for place in places), another, noise,
        ])
    return markdown(lines)


def geometry_table(report: dict[str, Any]) -> list[str]:
    """Lines of Markdown: a property a column, what the picture was painted by a line."""
    found = report["geometry"]
    lines = [["painted by", *(f"{one['property']}, {one['unit']}" for one in found)]]
    for case in found[0]["error"]:
        errors = [one["error"][case] for one in found]
        lines.append([case, *(f"{one['mean']:.2f} ± {one['stderr']:.2f}" for one in errors)])
    return markdown(lines)


def fill_settings(page: str) -> str:
    """The page with all settings between ``<!-- settings -->`` and ``<!-- end -->``."""
    return filled_in(page, "settings", settings_table())


def settings_table() -> list[str]:
    """A line of Markdown per setting: its default, what it may be, its sentence, the ways that use it."""
    rows, defaults = ways().values(), Settings()
    lines = ["| setting | default | may be | what it does | used by |", "|---|---|---|---|---|"]
    for name, field in FIELDS.items():
        users = [row.name for row in rows if name in row.uses]
        default = getattr(defaults, name)
        if field.kind is bool:
            default = "on" if default else "off"
        shown = "" if default == "" else f"`{default}`"
        lines.append(f"| `{name}` | {shown} | {may_be(field)} | {field.meaning} | {', '.join(users) or 'all'} |")
    return lines


def may_be(field: Field) -> str:
    """Its choices or bounds, for people."""
    if field.kind is str:
        return ", ".join(f"`{one}`" for one in field.choices()) or "text"
    return "on, off" if field.kind is bool else f"{field.low:g} to {field.high:g}"


def fill_takes(page: str, report: dict[str, Any]) -> str:
    """The page with the takes' table between ``<!-- takes -->`` and ``<!-- end -->``."""
    return filled_in(page, "takes", takes.table(report))


def fill_judge(page: str, report: dict[str, Any]) -> str:
    """The page with the judges' table between ``<!-- judge -->`` and ``<!-- end -->``."""
    found = report["measured"]
    head = f"{report['paintings']} paintings, {found['machine']}, torch {found['torch']}, {found['date']}:"
    return filled_in(page, "judge", [head, "", *judge_check.table(report)])


def fill_order(page: str, report: dict[str, Any]) -> str:
    """The page with both orders of ways between ``<!-- miniature -->`` and ``<!-- end -->``."""
    return filled_in(page, "miniature", evaluated.table(report))


def fill(page: str, report: dict[str, Any]) -> str:
    """The page with the report's table between ``<!-- frontier -->`` and ``<!-- end -->``."""
    return filled_in(page, "frontier", table(report))


def table(report: dict[str, Any]) -> list[str]:
    """Lines of Markdown: words alone, then every method at its best setting beside its null controls.

    The best are those that the bench measured controls of, the highest transfer first.
    """
    nulls: dict[str, dict[str, str]] = {}
    for row in report["nulls"]:
        nulls.setdefault(key_of(row), {})[row["control"]] = figure(row["transfer"], row["stderr"])
    best = [row for row in report["methods"] if key_of(row) in nulls]
    best.sort(key=lambda row: -(row["transfer"] or 0.0))
    shown = [(report["baselines"][0], {}), *((row, nulls[key_of(row)]) for row in best)]
    lines = [[*HEAD, *CONTROLS]]
    for row, controls in shown:
        by = " / ".join(map(figure, row["transfer_by"].values()))
        kept = [figure(row[name]) for name in ("adherence", "adherence_shape", "leak")]
        transfer = figure(row["transfer"], row["stderr"])
        lines.append([row["name"], setting(row), transfer, by, *kept, *(controls.get(one, "") for one in CONTROLS)])
    return markdown(lines)


def setting(row: dict[str, Any]) -> str:
    """Layer and numbers of a row; its words are in its name."""
    shown = []
    for name, value in {"layer": row["layer"], **row["setting"]}.items():
        if isinstance(value, int | float | list) and not isinstance(value, bool):
            numbers = value if isinstance(value, list) else [value]
            shown.append(f"{name.replace('_', ' ')} {' and '.join(f'{one:g}' for one in numbers)}")
    return ", ".join(shown)
