"""docs/evidence.md: its tables are those of the reports, and what it names is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from miniature.measure import judge_check
from miniature.show import evaluated
from miniature.show.tables import fill_judge, fill_order
from vl_core.headless.cli import build_parser
from vl_core.headless.evaluate.collect import HEAD

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "fill"), [(judge_check.REPORT, fill_judge), (evaluated.REPORT, fill_order)])
def test_the_tables_are_those_of_the_reports(name, fill):
    report = json.loads((ROOT / "miniature" / name).read_text(encoding="utf-8"))
    assert fill(PAGE, report) == PAGE, "run python -m miniature tables --out docs --models miniature/models"


def test_the_order_of_ways_is_the_frontiers():
    """By the VL's judge on other pairs; of two ways that the frontier tells apart none is turned round."""
    report = json.loads((ROOT / "miniature" / evaluated.REPORT).read_text(encoding="utf-8"))
    assert len(report["ways"]) >= 7 and report["turned"] == [] and report["order"] >= 0.9


def test_the_verdict_on_the_judge_is_that_of_its_figures():
    report = json.loads((ROOT / "miniature" / judge_check.REPORT).read_text(encoding="utf-8"))
    assert report["paintings"] >= 2000 and report["verdict"] == judge_check.verdict(report)
    assert report["figures"]["look"]["order"] >= judge_check.ORDER_GOAL
    for line in report["verdict"]:
        assert line in PAGE


def test_every_option_that_the_page_names_is_there():
    own = re.sub(r"`python -m (miniature|benchmarks|pytest)[^`]*`|^hf download .*$", "", PAGE, flags=re.MULTILINE)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", own))
    commands = next(a for a in build_parser()._subparsers._group_actions if a.choices)
    known = commands.choices["evaluate"].format_help()
    assert options - {"--device"} <= set(re.findall(r"--[a-z][a-z-]*", known))


def test_the_table_of_what_came_in_has_the_columns_that_the_check_prints():
    assert f"| {' | '.join(HEAD)} |" in PAGE
