"""Stage ``evaluated``: the ways as ``python -m vl_core evaluate`` puts them in order, beside the frontier's order.

``python -m miniature evaluated --out RESULT --models miniature/models`` reads ``RESULT/evidence.json`` and the
frontier, whose judge was trained and whose pairs are others, and writes ``evaluated.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vl_core.headless.evaluate.evidence import check
from vl_core.headless.evaluate.outcome import finalists
from vl_core.reports.trust import ranks
from vl_core.states.files import read_json_object

from ..measure.frontier import figure
from ..measure.rows import ADHERENCE_GOAL
from ..train.training import Options, write_json

REPORT = "evaluated.json"
SURE = 2.0  # standard errors from which two ways of the frontier differ
NAMES = {  # a way's row in the frontier
    "words": "described by the VL", "picture adapter": "picture adapter", "blend and append": "blend and append",
    "aligned blend": "aligned", "appended tokens": "append picture", "research: image delta": "image delta",
    "research: as published": "published",
}


def run(options: Options) -> dict[str, Any]:
    """Write the report.

    Raises:
        FileNotFoundError, ValueError: if there is no evidence in the folder, or it was changed.
    """
    evidence = check(read_json_object(options.out / "evidence.json"), "evidence.json")
    frontier = json.loads(options.report("frontier.json").read_text(encoding="utf-8"))
    rows = []
    for arm, figures in finalists(evidence):
        if arm.group in NAMES:
            there = best_of(frontier["methods"], NAMES[arm.group])
            rows.append({
                "way": arm.group, "setting": arm.label, "transfer": figures.transfer, "error": figures.transfer_error,
                "adherence": figures.adherence, "nulls": figures.nulls, "pairs": figures.pairs,
                "frontier": there["transfer"], "frontier_error": there["stderr"],
            })
    report = {
        "measured": {**evidence.made, "machine": str(evidence.machine["device"])}, "paintings": len(evidence.records),
        "minutes": evidence.asked.minutes, "ways": rows, "order": ranks(
            [row["transfer"] for row in rows], [row["frontier"] for row in rows]
        ), "turned": turned(rows),
    }
    write_json(options.report(REPORT), report)
    print("\n".join(table(report)))
    return report


def best_of(methods: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """A method's best row, as the frontier's table has it."""
    rows = [row for row in methods if row["name"] == name]
    return max(rows, key=lambda row: (row["adherence"] >= ADHERENCE_GOAL, row["transfer"]))


def turned(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Couples of ways that the frontier tells apart and that stand the other way round here."""
    found = []
    for one in rows:
        for other in rows:
            apart = one["frontier"] - other["frontier"]
            sure = apart > SURE * math.hypot(one["frontier_error"], other["frontier_error"])
            if sure and one["transfer"] < other["transfer"]:
                found.append([one["way"], other["way"]])
    return found


def table(report: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"{report['paintings']} paintings, `--minutes {report['minutes']:g}`, {report['measured']['machine']}, "
        f"{report['measured']['date']}; rank correlation with the frontier's order of ways {report['order']:.2f}:", "",
        "| way | best setting | transfer, VL's judge | prompt | another picture | matched noise | frontier |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["ways"]:
        nulls = [figure(*row["nulls"].get(name, (None, None))) for name in ("another picture", "matched noise")]
        cells = [
            row["way"], row["setting"], figure(row["transfer"], row["error"]), figure(row["adherence"]), *nulls,
            figure(row["frontier"], row["frontier_error"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    pairs = "; ".join(f"{one} above {other}" for one, other in report["turned"])
    told = f"Turned round: {pairs}." if pairs else "No two ways that the frontier tells apart are turned round."
    return [*lines, "", told]
