"""docs/methods.md names what there is: every mode, method, way to combine, setting and recipe, with its numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from miniature.show import tables
from vl_core.stages.blend import BlendMethod
from vl_core.stages.combine import COMBINATIONS
from vl_core.steering.modes import MODES, ModeSettings
from vl_core.steering.recipes import PictureUse, load_recipes, parse_recipe

ROOT = Path(__file__).parents[2]
SHOWN = (("transfer", "stderr"), ("control", "control_stderr"), ("shows", "shows_stderr"))
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def rows(heading: str, page: str = PAGE) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    table = re.search(r"(?:^\|.*\n)+", page.split(f"\n{heading}\n")[1], re.MULTILINE)[0]
    cells = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in cells]


def test_every_mode_has_its_row_with_its_layer_and_strengths():
    found = {row[0].strip("`"): (row[2], row[3]) for row in rows("## Modes of the simple node")}
    assert found == {
        name: (str(mode.layer), f"{mode.low:g} to {mode.high:g}") for name, mode in MODES.items() if name in found
    }
    assert set(found) >= {"blend aligned", "blend as published", "append picture", "image delta"}


def test_every_method_of_blend_and_every_way_to_combine_has_its_row():
    assert [row[0].strip("`") for row in rows("## Blend and append")] == list(get_args(BlendMethod))
    assert [row[0].strip("`") for row in rows("## Several references")] == list(COMBINATIONS)


def test_the_built_in_recipes_are_shown_with_their_numbers():
    found = {}
    for name, mode, scale, picture, rank, steps, told in rows("## Recipes"):
        found[name.strip("`")] = (mode, float(scale), picture, int(rank or 0), steps, told)
    assert found == {
        name: (
            recipe.mode, recipe.scale, recipe.picture, recipe.settings.rank,
            f"{recipe.start_percent:g} to {recipe.end_percent:g}", recipe.system_prompt,
        )
        for name, recipe in load_recipes()[0].items()
    }  # fmt: skip
    assert {recipe.layer for recipe in load_recipes()[0].values()} == {-2}


def test_what_recipes_do_on_the_miniature_is_what_was_measured():
    report = json.loads((ROOT / "miniature" / "recipes.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in report["recipes"]] == list(load_recipes()[0])
    for entry, cells in zip(report["recipes"], rows("### On the miniature"), strict=True):
        pairs = [(entry[value], entry[error]) for value, error in SHOWN]
        measured = [f"{value:.2f} ± {error:.2f}".replace("-0.00", "0.00") for value, error in pairs]
        value, error = pairs[-1]
        shows = "yes" if abs(value) > 2 * error else "nothing"
        kept = [f"{entry[name]:.2f}" for name in ("adherence", "leak")]
        assert cells == [f"`{entry['name']}`", *measured, shows, *kept]
    assert f"{report['asked']['pairs']}, three seeds each" in PAGE
    assert report["asked"]["seeds"] == 3
    assert report["measured"]["date"] in PAGE


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
    for name, kind in get_type_hints(ModeSettings).items():
        assert f"`{name}`" in explained
        assert all(f"`{choice}`" in explained for choice in get_args(kind) if isinstance(choice, str))
    assert all(f"`{use}`" in PAGE for use in get_args(PictureUse))


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
