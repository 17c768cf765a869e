"""``evaluate --check``: whether evidence was changed or mixes weights, and its line for the table of what was found."""

from __future__ import annotations

from collections.abc import Sequence

from ...states.files import parse_json
from ...zimage import checks
from .evidence import Evidence, check
from .figures import keeps

HEAD = ("weights", "machine", "cells", "best way", "setting", "transfer", "adherence (words alone)", "judge", "id")


def check_files(paths: Sequence[str]) -> None:
    """Check each file, print its row, and refuse the first that is not right.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    rows = []
    for path in paths:
        name = checks.readable_file(path, "--check").name
        rows.append(row_of(check(parse_json(checks.readable_text(path, "--check"), name), name)))
    for line in (HEAD, ["---"] * len(HEAD), *rows):
        print(f"| {' | '.join(line)} |")


def row_of(evidence: Evidence) -> list[str]:
    """One evaluation in a line: its best way beside the words alone."""
    arms = {arm.id: arm for arm in evidence.arms}
    sure = [one for one in evidence.figures if "matched noise" in one.nulls and one.transfer is not None]
    best = max(sure, key=lambda one: (keeps(one), one.transfer), default=None)
    if best is None:
        said = ["none was finished", "", "", ""]
    else:
        error = f" ± {best.transfer_error:.2f}" if best.transfer_error is not None else ""
        said = [
            arms[best.arm].group, arms[best.arm].label, f"{best.transfer:.2f}{error}",
            f"{best.adherence or 0:.2f} ({best.words_adherence or 0:.2f})",
        ]
    trusted = "not good enough" if evidence.trust.get("verdict") else "good"
    return [
        evidence.made.get("zimage", ""), str(evidence.machine.get("device", "")), str(len(evidence.records)), *said,
        trusted, evidence.weights_id,
    ]
