"""Recipe files: the pack's own, good and broken ones, and what they resolve to."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl_core.steering import recipes as recipe_files
from vl_core.steering.recipes import Recipe, load_recipes, parse_recipe, read_recipe
from vl_core.steering.settings import Settings
from vl_core.steering.takes import take_names
from vl_core.steering.way import find_way, ways
from vl_core.steering.ways.blends import needs_statistics

RETIRED = [
    "style hint", "colour palette", "light and mood (0.1)", "composition (0.1)", "variation of the picture",
    "push away",
]
GOOD = {"name": "my look", "meaning": "Looks like mine.", "mode": "blend aligned"}


def write(folder, name: str, content) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")


def test_the_packs_recipes_are_all_there_and_right():
    recipes, problems = load_recipes()
    assert list(recipes) == RETIRED and problems == []
    for recipe in recipes.values():
        for strength in (0.01, 0.5, 1.0):
            assert recipe.at(strength).strength == recipe.settings.strength * strength
        assert not needs_statistics(recipe.settings)  # nobody waits for a measurement unasked
        assert recipe.instead and recipe.instead in recipe.describe(1.0)
        assert recipe.instead.removeprefix("take ") in take_names() or recipe.instead == "a negative prompt"


def test_pushing_away_is_negative_and_composition_ends_early():
    recipes, _ = load_recipes()
    away, composition = recipes["push away"].settings, recipes["composition (0.1)"].settings
    assert away.strength < 0 and find_way(away.way).low < 0
    assert composition.end_percent < 1 and composition.picture == "colourless"
    assert recipes["colour palette"].settings.picture == "blurred"


def test_a_recipe_says_its_numbers():
    line = load_recipes()[0]["push away"].describe(0.5)
    assert line.startswith(
        "Recipe push away: strength -1 × 0.5 = -0.5, way research: image delta, layer -2, picture as it is."
    )
    assert "choose a negative prompt" in line


def test_the_smallest_recipe_has_its_modes_layer_and_plain_settings():
    recipe = parse_recipe(GOOD, "mine.json")
    assert recipe == Recipe(
        "my look", "Looks like mine.", Settings("aligned blend", picture="as it is"), source="mine.json"
    )
    assert recipe.settings.read_layer == parse_recipe({**GOOD, "mode": "blend as published"}).settings.read_layer == -6


def test_a_recipe_of_this_version_names_any_setting():
    recipe = parse_recipe({"name": "mine", "meaning": "Mine.", "settings": {
        "way": "words", "take": "style", "strength": 0.5, "longest": 60}})  # fmt: skip
    assert recipe.settings == Settings("words", "style", 0.5, longest=60)
    assert recipe.at(0.5).strength == 0.25


def test_everything_a_recipe_can_say_is_taken():
    content = {
        **GOOD, "scale": 0.5, "layer": -4, "picture": "blurred", "system_prompt": "Look.", "start_percent": 0.1,
        "end_percent": 0.9, "settings": {
            "tokens": "prompt", "curve": "ease_in", "curve_end": 0.25, "normalization": "per_dim", "outliers": "clamp",
            "outlier_threshold": 4,
        },
    }  # fmt: skip
    recipe = parse_recipe(content)
    assert recipe.settings == Settings(
        "aligned blend", strength=0.5, layer=-4, picture="blurred", attend="Look.", start_percent=0.1, end_percent=0.9,
        changed="prompt", curve="ease_in", curve_end=0.25, normalization="per_dim", outlier_mode="clamp",
        outlier_threshold=4.0,
    )


@pytest.mark.parametrize("change, message", [
    ({"name": ""}, "name: expected 1 to 60"), ({"name": "none"}, "name: expected 1 to 60.*not 'none'"),
    ({"name": "two\nlines"}, "name: expected 1 to 60"), ({"name": 3}, "name: expected text, got a number"),
    ({"name": "x" * 61}, "name: expected 1 to 60"), ({"meaning": " "}, "meaning: expected one line"),
    ({"mode": "telepathy"}, "way: expected one of automatic"), ({"mode": None}, "way: expected one of .* got None"),
    ({"scale": 0}, "scale: expected a number other than 0"), ({"scale": -1}, "strength: expected 0"),
    ({"scale": "1"}, "strength: expected a number from -3 to 3, got '1'"), ({"scale": True}, "strength: expected a n"),
    ({"layer": -2.5}, "layer: expected a whole number from -37 to 0, got -2.5"), ({"layer": 1}, "layer: expected"),
    ({"picture": "upside down"}, "picture: expected one of by the take, as it is"),
    ({"system_prompt": 1}, "attend: expected text"),
    ({"scale": 10**400}, "strength: expected a number"), ({"scale": float("nan")}, "strength: expected a number"),
    ({"start_percent": 0.5, "end_percent": 0.5}, "start_percent: expected less than"),
    ({"end_percent": 1.1}, "end_percent: expected a number from 0 to 1"),
    ({"strength": 1}, "expected only name, .*got 'strength'"), ({"source": "x"}, "got 'source'"),
    ({"settings": []}, "settings: expected a JSON object, got a list"),
    ({"settings": {"rank": 2}}, "settings: aligned blend does not use rank. Leave them out"),
    ({"settings": {"curve": "zigzag"}}, "curve: expected one of flat"),
    ({"settings": {"curve": []}}, "curve: expected one of flat"),
    ({"settings": {"curve_end": 2}}, "curve_end: expected a number from 0 to 1"),
    ({"mode": "image delta", "settings": {"rank": 1.5}}, "rank: expected a whole number"),
    ({"mode": "image delta", "settings": {"remove_prompt_direction": 1}}, "expected true or false"),
    ({"mode": "blend as published", "settings": {"tokens": "prompt"}}, "as published does not use changed"),
])  # fmt: skip
def test_what_is_wrong_with_a_recipe_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe({**GOOD, **change})


@pytest.mark.parametrize("missing", ["name", "meaning"])
def test_what_is_missing_is_said(missing):
    with pytest.raises(ValueError, match=f"{missing} missing"):
        parse_recipe({key: value for key, value in GOOD.items() if key != missing})


NESTED = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3), max_leaves=5,
)


@given(content=NESTED | st.fixed_dictionaries(
    {"name": NESTED, "meaning": NESTED, "mode": st.sampled_from([*ways()]) | NESTED},
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
    assert list(recipes) == [*RETIRED, "my look"]
    assert [line.split(":")[0] for line in problems] == [f"Recipe {name}.json skipped" for name in "bcdfgh"]
    reasons = "\n".join(problems)
    for reason in (
        "b.json skipped: expected JSON, got a damaged file", "'style hint' is taken by 1_style_hint.json",
        "way: expected one of", "f.json skipped: expected a text in utf-16, got a damaged one",
        "brackets within brackets",
    ):
        assert reason in reasons
    assert [record.getMessage() for record in caplog.records] == problems  # each once, though looked at twice


def test_a_recipe_can_be_read_from_any_path(tmp_path):
    write(tmp_path, "mine.json", GOOD)
    assert read_recipe(tmp_path / "mine.json").name == "my look"
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "other.json")
