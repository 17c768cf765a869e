"""docs/methods.md names what there is: every way, method, way to combine, setting and recipe, with its numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from miniature.show import tables
from vl_core.stages.blend import BlendMethod
from vl_core.stages.combine import COMBINATIONS
from vl_core.steering.recipes import load_recipes, parse_recipe
from vl_core.steering.settings import FIELDS
from vl_core.steering.takes import PICTURE_USES
from vl_core.steering.way import ways

ROOT = Path(__file__).parents[3]
LATER = ("description", "as published")  # other names by which commands call a way
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def rows(heading: str, page: str = PAGE) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    table = re.search(r"(?:^\|.*\n)+", page.split(f"\n{heading}\n")[1], re.MULTILINE)[0]
    cells = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in cells]


def test_every_way_has_its_line_with_its_layer_and_strengths():
    section = PAGE.split("\n## Ways\n")[1].split("\n## ")[0]
    found = re.findall(r"^- `([^`]+)` \((?:layer (-?\d+), )?strength (\S+ to \S+)\): ", section, re.MULTILINE)
    assert {name: (layer, strengths) for name, layer, strengths in found} == {
        name: (str(way.layer or ""), f"{way.low:g} to {way.high:g}") for name, way in ways().items()
    }
    assert all(f"`{old}`" in section for way in ways().values() for old in way.also if old not in LATER)


def test_every_method_of_blend_and_every_way_to_combine_has_its_row():
    assert [row[0].strip("`") for row in rows("## Blend and append")] == list(get_args(BlendMethod))
    assert [row[0].strip("`") for row in rows("## Several references")] == list(COMBINATIONS)


def test_the_built_in_recipes_are_shown_with_their_numbers():
    found = {}
    for name, mode, scale, picture, rank, steps, told in rows("## Recipes"):
        found[name.strip("`")] = (mode, float(scale), picture, int(rank or 0), steps, told)
    assert found == {
        name: (
            recipe.settings.way, recipe.settings.strength, recipe.settings.picture, recipe.settings.rank,
            f"{recipe.settings.start_percent:g} to {recipe.settings.end_percent:g}", recipe.settings.attend,
        )
        for name, recipe in load_recipes()[0].items()
    }  # fmt: skip
    assert {recipe.settings.layer for recipe in load_recipes()[0].values()} == {-2}


def test_what_two_pictures_show_through_the_adapter_is_what_was_measured():
    page = (ROOT / "docs" / "adapter.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "miniature" / "two_pictures.json").read_text(encoding="utf-8"))
    measured = {
        (
            f"{row['parts_of_both']:.2f} ± {row['parts_of_both_stderr']:.2f}",
            f"{row['transfer']:.2f} / {row['transfer_next']:.2f}".replace("-0.00", "0.00"), f"{row['adherence']:.2f}",
        )
        for row in report["rows"]
    }
    shown = rows("## Two pictures", page)
    assert {tuple(cells[1:]) for cells in shown} == measured
    assert len(shown) == len(report["rows"])
    section = page.split("## Two pictures")[1]
    assert f"--pairs {report['asked']['pairs']} --seeds {report['asked']['seeds']}`" in section
    assert all(report["measured"][name] in section for name in ("date", "machine", "torch"))


def test_every_setting_of_a_recipe_and_every_choice_is_explained():
    explained = next(row[1] for row in rows("### Your own") if row[0] == "`settings`")
    inside = {
        "tokens": "changed", "curve": "curve", "curve_end": "curve_end", "normalization": "normalization",
        "outliers": "outlier_mode", "outlier_threshold": "outlier_threshold", "rank": "rank",
        "remove_prompt_direction": "remove_prompt_direction", "position": "append_position",
    }  # as files of version 0.1 call them
    for name, setting in inside.items():
        assert f"`{name}`" in explained
        assert all(f"`{choice}`" in explained for choice in FIELDS[setting].choices())
    assert all(f"`{use}`" in PAGE for use in PICTURE_USES)


def test_the_example_of_a_recipe_is_one():
    parse_recipe(json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1]))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|vl_core)/[\w/]+(?:\.py|/)?)[:`]", PAGE))))
def test_what_the_page_points_to_is_there(path):
    assert (ROOT / path).exists()


def test_the_frontier_is_what_was_measured():
    page = (ROOT / "docs" / "miniature.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "miniature" / "frontier.json").read_text(encoding="utf-8"))
    assert "<!-- frontier -->" in page
    assert tables.fill(page, report) == page
    section = " ".join(page.split("## The frontier")[1].split("###")[0].split())
    assert f"{len(report['methods'])} settings" in section
    assert f"{len(report['nulls'])} null controls" in section
    assert f"{report['asked']['pairs']} pairs" in section
    assert report["measured"]["date"] in section
    highest = max(row["transfer"] for row in report["nulls"])
    assert f"No null control reaches more than {highest:.2f}".replace(" 0.", " .") in section
