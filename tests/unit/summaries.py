"""Summaries of compare, read again from what was written."""

from __future__ import annotations

import csv
import io

from vl_core.headless.compare.summary import Line


def from_csv(text: str) -> list[Line]:
    """What ``to_csv`` wrote."""
    rows = csv.DictReader(io.StringIO(text))
    return [Line(**{name: _value(name, value) for name, value in row.items()}) for row in rows]


def _value(name: str, text: str) -> str | float | None:
    if name in ("setting", "figure", "null"):
        return text
    if name == "pairs":
        return int(text)
    return float(text) if text else None
