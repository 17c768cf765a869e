"""Recipe files: the pack's own, good and broken ones, and what they resolve to."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vl_core.steering import recipes as recipe_files
from vl_core.steering.modes import MODES, ModeSettings, check_recipe
from vl_core.steering.recipes import Recipe, load_recipes, parse_recipe, read_recipe

BUILT_IN = [
    "style hint", "colour palette", "light and mood", "composition", "variation of the picture", "push away",
]
GOOD = {"name": "my look", "meaning": "Looks like mine.", "mode": "blend aligned"}


def write(folder, name: str, content) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")


def test_the_packs_recipes_are_all_there_and_right():
    recipes, problems = load_recipes()
    assert list(recipes) == BUILT_IN and problems == []
    for recipe in recipes.values():
        for strength in (0.01, 0.5, 1.0):
            check_recipe(recipe.mode, recipe.scale * strength)
        assert not recipe.settings.needs_reference  # nobody waits for a measurement unasked


def test_pushing_away_is_negative_and_composition_ends_early():
    recipes, _ = load_recipes()
    assert recipes["push away"].scale < 0 and MODES[recipes["push away"].mode].low < 0
    assert recipes["composition"].end_percent < 1 and recipes["composition"].picture == "colourless"
    assert recipes["colour palette"].picture == "blurred"


def test_a_recipe_says_its_numbers():
    line = load_recipes()[0]["push away"].describe(0.5)
    assert "image delta at -1 × 0.5 = -0.5, layer -2, picture as it is" in line
    assert "tokens text" in line and "curve flat" in line and "steps 0% to 100%" in line


def test_the_smallest_recipe_has_its_modes_layer_and_plain_settings():
    recipe = parse_recipe(GOOD, "mine.json")
    assert recipe == Recipe("my look", "Looks like mine.", "blend aligned", layer=-6, source="mine.json")
    assert recipe.settings == ModeSettings()
    assert parse_recipe({**GOOD, "mode": "blend as published"}).layer == -6


def test_everything_a_recipe_can_say_is_taken():
    content = {
        **GOOD, "scale": 0.5, "layer": -4, "picture": "blurred", "system_prompt": "Look.", "start_percent": 0.1,
        "end_percent": 0.9, "settings": {
            "tokens": "prompt", "curve": "ease_in", "curve_end": 0.25, "normalization": "per_dim", "outliers": "clamp",
            "outlier_threshold": 4,
        },
    }  # fmt: skip
    recipe = parse_recipe(content)
    assert (recipe.scale, recipe.layer, recipe.picture, recipe.system_prompt) == (0.5, -4, "blurred", "Look.")
    assert (recipe.start_percent, recipe.end_percent) == (0.1, 0.9)
    assert recipe.settings == ModeSettings("prompt", "ease_in", 0.25, "per_dim", "clamp", 4.0)


@pytest.mark.parametrize("change, message", [
    ({"name": ""}, "name: expected 1 to 60"), ({"name": "none"}, "name: expected 1 to 60.*not 'none'"),
    ({"name": "two\nlines"}, "name: expected 1 to 60"), ({"name": 3}, "name: expected text, got a number"),
    ({"name": "x" * 61}, "name: expected 1 to 60"), ({"meaning": " "}, "meaning: expected one line"),
    ({"mode": "telepathy"}, "mode: expected one of blend aligned"), ({"mode": None}, "mode: expected text, got null"),
    ({"scale": 0}, "scale: expected a number other than 0"), ({"scale": -1}, "scale: expected a number from 0 to 1"),
    ({"scale": "1"}, "scale: expected a number from 0 to 1, got text"), ({"scale": True}, "scale: expected a number"),
    ({"layer": -2.5}, "layer: expected a whole number from -37 to -1, got -2.5"), ({"layer": 0}, "layer: expected"),
    ({"picture": "upside down"}, "picture: expected one of as it is"), ({"system_prompt": 1}, "system_prompt: expec"),
    ({"scale": 10**400}, "scale: expected a number from 0 to 1"), ({"scale": float("nan")}, "scale: expected a number"),
    ({"start_percent": 0.5, "end_percent": 0.5}, "start_percent: expected less than"),
    ({"end_percent": 1.1}, "end_percent: expected a number from 0 to 1"),
    ({"strength": 1}, "expected only name, .*got 'strength'"), ({"source": "x"}, "got 'source'"),
    ({"settings": []}, "settings: expected a JSON object, got a list"),
    ({"settings": {"rank": 2}}, "settings of blend aligned: expected only tokens, .*got 'rank'"),
    ({"settings": {"curve": "zigzag"}}, "curve: expected one of flat"),
    ({"settings": {"curve": []}}, "curve: expected one of flat"),
    ({"settings": {"curve_end": 2}}, "curve_end: expected a number from 0 to 1"),
    ({"mode": "image delta", "settings": {"rank": 1.5}}, "rank: expected a whole number"),
    ({"mode": "image delta", "settings": {"remove_prompt_direction": 1}}, "expected true or false"),
    ({"mode": "blend as published", "settings": {"tokens": "text"}}, "expected none, got 'tokens'"),
])  # fmt: skip
def test_what_is_wrong_with_a_recipe_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe({**GOOD, **change})


@pytest.mark.parametrize("missing", ["name", "meaning", "mode"])
def test_what_is_missing_is_said(missing):
    with pytest.raises(ValueError, match=f"{missing} missing"):
        parse_recipe({key: value for key, value in GOOD.items() if key != missing})


NESTED = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3), max_leaves=5,
)


@given(content=NESTED | st.fixed_dictionaries(
    {"name": NESTED, "meaning": NESTED, "mode": st.sampled_from([*MODES]) | NESTED},
    optional={key: NESTED for key in ("scale", "layer", "picture", "system_prompt", "start_percent", "settings")},
))
def test_nothing_but_a_recipe_or_a_reason_comes_of_any_json(content):
    try:
        recipe = parse_recipe(content)
    except ValueError as error:
        assert str(error).endswith(".")
    else:
        assert recipe.describe(0.5)


def test_a_users_recipes_join_and_broken_files_are_skipped_with_their_reason(tmp_path, caplog):
    recipe_files._warn_once.cache_clear()
    write(tmp_path, "a.json", GOOD)
    write(tmp_path, "b.json", "{not json")
    write(tmp_path, "c.json", {**GOOD, "name": "style hint"})
    write(tmp_path, "d.json", {**GOOD, "name": "other", "mode": "x"})
    write(tmp_path, "e.txt", "no recipe")
    (tmp_path / "f.json").write_bytes(b"\xff\xfe{")
    (tmp_path / "g.json").mkdir()
    write(tmp_path, "h.json", "[" * 100_000)
    with caplog.at_level(logging.WARNING):
        recipes, problems = load_recipes(tmp_path, tmp_path / "not there")
        load_recipes(tmp_path)
    assert list(recipes) == [*BUILT_IN, "my look"]
    assert [line.split(":")[0] for line in problems] == [f"Recipe {name}.json skipped" for name in "bcdfgh"]
    reasons = "\n".join(problems)
    for reason in (
        "error in line 1", "'style hint' is taken by 1_style_hint.json", "mode: expected one of", "expected UTF-8",
    ):
        assert reason in reasons
    assert [record.getMessage() for record in caplog.records] == problems  # each once, though looked at twice


def test_a_recipe_can_be_read_from_any_path(tmp_path):
    write(tmp_path, "mine.json", GOOD)
    assert read_recipe(tmp_path / "mine.json").name == "my look"
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "other.json")


# --- what the encoder gets to see -------------------------------------------------------------------------------------


def test_a_picture_as_it_is_is_left_alone():
    picture = torch.rand(1, 8, 8, 3)
    assert parse_recipe(GOOD).show(picture) is picture


def test_a_colourless_picture_keeps_its_light_and_loses_its_colours():
    picture = torch.tensor([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], dtype=torch.uint8)
    shown = parse_recipe({**GOOD, "picture": "colourless"}).show(picture)
    assert shown[..., 0].tolist() == [[76, 150, 29, 90]]  # 255 × .299, .587, .114, rounded
    assert torch.equal(shown, shown[..., :1].expand(-1, -1, 3))


def test_a_blurred_picture_keeps_its_mean_and_loses_its_shapes():
    picture = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(3)) * 255).to(torch.uint8)
    shown = parse_recipe({**GOOD, "picture": "blurred"}).show(picture).float()
    assert shown.shape == picture.shape
    assert (shown.mean((0, 1)) - picture.float().mean((0, 1))).abs().max() < 3
    assert shown.diff(dim=0).abs().mean() < 0.05 * picture.float().diff(dim=0).abs().mean()
