"""Takes and recipes on the simple node: what is listed, retired recipes, a user's own, and broken files."""

from __future__ import annotations

import json

import pytest
import torch

PROMPT = "a cat in a red hat"
TAKES = ["the look", "style", "colours", "light and mood", "everything", "composition"]
RETIRED = {  # recipes of version 0.1: what their reports say to choose instead
    "style hint": "take style", "colour palette": "take colours", "light and mood (0.1)": "take light and mood",
    "composition (0.1)": "take composition", "variation of the picture": "take everything",
    "push away": "a negative prompt",
}


@pytest.fixture(scope="module")
def text(core_text):
    return core_text(PROMPT)


@pytest.fixture
def steer(run, text_clip, native, picture):
    """The output of Z-Image Vision Conditioning."""

    def output(strength: float = 0.5, image=picture, **options):
        return run("Condition", text_clip, native, PROMPT, strength, images={"image0": image}, **options)

    return output


@pytest.fixture
def own(part):
    """Write files into the folder of a user's own recipes, which is empty again afterwards."""
    folder = part("nodes.host.folders").recipe_folder()
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, content) -> None:
        content = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(content, encoding="utf-8")

    yield write
    for path in folder.iterdir():
        path.unlink()


def as_pixels(picture: torch.Tensor) -> torch.Tensor:
    """A picture of bytes as the host's IMAGE has it."""
    pixels = picture if picture.is_floating_point() else picture / 255
    return pixels if pixels.ndim == 4 else pixels[None]


def options_shown(part) -> list[str]:
    inputs = part("nodes.condition").ZImageVLCondition.GET_SCHEMA().inputs
    return next(one for one in inputs if one.id == "recipe").options


def test_the_list_holds_every_take_and_no_retired_recipe(part):
    assert options_shown(part) == TAKES


def test_no_recipe_of_version_0_1_is_the_first_take(steer):
    ours, theirs = (steer(recipe=name, mode="aligned blend")[0] for name in ("none", "the look"))
    assert len(ours) == len(theirs) == 1 and torch.equal(ours[0][0], theirs[0][0])


@pytest.mark.parametrize("take", TAKES)
def test_a_take_decides_what_is_written_and_how_the_picture_is_shown(
    take, steer, part, run, native, picture, core_text, monkeypatch
):
    chosen, asked = part("vl_core.steering.takes").find_take(take), []
    found = part("vl_core.encoder.writing").Description("blue dusk", "blue dusk", 2, False)
    with monkeypatch.context() as patch:
        patch.setattr(part("nodes.host.memory"), "fast_allowed", lambda: False)  # keeps no words for other tests
        patch.setattr(part("nodes.steering"), "write_words", lambda *a, **_: asked.append(a[2]) or found)
        spoken = steer(1.0, recipe=take, mode="words")[0]
    assert asked == [chosen.instruction]
    assert torch.equal(spoken[0][0], core_text(f"{PROMPT}, blue dusk")[0][0])
    (mixed, options), *_ = steer(1.0, recipe=take, mode="appended tokens")[0]
    shown = part("vl_core.steering.takes").show(picture, chosen.picture)
    seen = run("Encode", native, PROMPT, layer=-2, images={"image0": as_pixels(shown)}, system_prompt=chosen.attend,
               tokens="image_no_markers")[0]
    torch.testing.assert_close(mixed[:, -seen[0][0].shape[1] :], seen[0][0], rtol=1e-4, atol=1e-4)
    assert (options.get("end_percent", 1.0) < 1) == (take == "composition")


@pytest.mark.parametrize("recipe", RETIRED)
def test_every_retired_recipe_paints_something_else_and_says_its_numbers(recipe, steer, sample, text, told):
    output = steer(recipe=recipe)
    painted = sample(output[0])
    assert painted.isfinite().all() and not torch.allclose(painted, sample(text), atol=1e-3)
    assert f"Recipe {recipe}: strength " in told(output) and "layer -2" in told(output)
    assert f"It showed nothing where it was measured: choose {RETIRED[recipe]}" in told(output)


@pytest.mark.parametrize("recipe", [*TAKES, *RETIRED])
def test_strength_zero_is_the_words_in_every_recipe(recipe, steer, text, told):
    output = steer(0.0, recipe=recipe)
    assert torch.equal(output[0][0][0], text[0][0]) and "Words only: strength 0." in told(output)


def test_a_recipe_takes_the_place_of_mode_layer_and_timing(steer):
    plain = steer(recipe="push away")[0]
    other = steer(recipe="push away", mode="appended tokens", layer=-5, start_percent=0.5)[0]
    assert len(other) == 1 and torch.equal(plain[0][0], other[0][0])


def test_pushing_away_is_image_delta_below_zero(steer):
    assert torch.equal(steer(0.5, recipe="push away")[0][0][0], steer(-0.5, mode="research: image delta")[0][0][0])


def test_a_variation_appends_all_of_the_picture(steer):
    assert torch.equal(
        steer(1.0, recipe="variation of the picture")[0][0][0],
        steer(1.0, mode="appended tokens", recipe="everything")[0][0][0],
    )


def test_the_retired_composition_knows_no_colours_and_ends_early(steer, picture):
    output = steer(1.0, recipe="composition (0.1)")[0]
    ranges = [(one["start_percent"], round(one["end_percent"], 3)) for _, one in output]
    assert ranges == [(0.0, 0.4), (0.4, 1.0)]
    luma = picture @ torch.tensor([0.299, 0.587, 0.114])
    grey = steer(1.0, luma[..., None].expand(-1, -1, -1, 3), recipe="composition (0.1)")[0]
    torch.testing.assert_close(output[0][0], grey[0][0], rtol=0, atol=0.1)  # 8 bits, rounded once more
    coloured = steer(1.0, mode="appended tokens")[0]
    assert not torch.allclose(output[0][0], coloured[0][0], rtol=0, atol=0.1)


def test_a_palette_knows_no_shapes(steer):
    plain = torch.full((1, 64, 96, 3), 128 / 255)
    chequered = plain + 0.2 * (1 - 2 * ((torch.arange(64)[:, None] + torch.arange(96)) % 2))[..., None]
    ours, theirs = (steer(1.0, image, recipe="colour palette")[0][0][0] for image in (plain, chequered))
    assert torch.equal(ours, theirs)
    ours, theirs = (steer(1.0, image, recipe="style hint")[0][0][0] for image in (plain, chequered))
    assert not torch.allclose(ours, theirs, atol=1e-3)
    redder = steer(1.0, plain * torch.tensor([1.2, 0.9, 0.9]), recipe="colour palette")[0][0][0]
    assert not torch.allclose(redder, steer(1.0, plain, recipe="colour palette")[0][0][0], atol=1e-3)


def test_an_instruction_of_a_recipe_reaches_the_encoder(steer, own):
    recipe = {"name": "told", "meaning": "Is told what to look for.", "mode": "blend aligned"}
    own("told.json", {**recipe, "system_prompt": "Attend to the hat."})
    own("untold.json", {**recipe, "name": "untold"})
    assert not torch.allclose(steer(recipe="told")[0][0][0], steer(recipe="untold")[0][0][0], atol=1e-3)
    assert torch.equal(steer(recipe="untold")[0][0][0], steer(mode="aligned blend")[0][0][0])


def test_a_users_recipe_joins_the_list_and_measures_the_text_encoder_if_it_needs_to(part, steer, own, told):
    own("mine.json", {
        "name": "my look", "meaning": "Mine.", "mode": "append picture", "scale": 0.5,
        "settings": {"normalization": "rms", "outliers": "clamp", "outlier_threshold": 1.5},
    })
    assert options_shown(part) == [*TAKES, "my look"]
    shown = told(steer(1.0, recipe="my look"))
    assert "strength 0.5 × 1 = 0.5, way appended tokens" in shown and "normalization rms" in shown
    assert "reference statistics" in shown


def test_a_broken_file_is_skipped_and_its_reason_is_on_the_node(part, steer, own, told):
    own("broken.json", "{")
    own("odd.json", {"name": "odd", "meaning": "Odd.", "mode": "telepathy"})
    assert options_shown(part) == TAKES
    shown = told(steer())
    assert "Recipe broken.json skipped: expected JSON, got a damaged file (Expecting property name" in shown
    assert "Recipe odd.json skipped: way: expected one of automatic, words" in shown
    with pytest.raises(ValueError, match=r"recipe: expected one of the look, style.*got 'odd'.*odd\.json skipped"):
        steer(recipe="odd")


def test_an_edited_recipe_counts_as_another_input(part, own):
    fingerprint = part("nodes.condition").ZImageVLCondition.fingerprint_inputs
    seen = []
    for scale in (0.5, 0.5, 0.25):
        own("mine.json", {"name": "mine", "meaning": "Mine.", "mode": "blend aligned", "scale": scale})
        seen.append(fingerprint(recipe="mine", strength=0.5, images={}))
    assert seen[0] == seen[1] != seen[2]
    assert fingerprint() == fingerprint(recipe="the look", mode="appended tokens")


def test_a_strength_that_a_recipe_cannot_have_is_brought_into_its_range_and_said(steer, text, told):
    output = steer(-0.5, recipe="composition (0.1)")
    assert "Strength -0.5 is outside 0 to 1, which appended tokens takes: 0 was used." in told(output)
    assert torch.equal(output[0][0][0], text[0][0]) and "Words only: strength 0." in told(output)


def test_a_recipe_of_ones_own_cannot_bear_the_name_of_a_take(part, own, steer, told):
    own("colours.json", {"name": "colours", "meaning": "Mine.", "settings": {"way": "aligned blend"}})
    assert options_shown(part) == TAKES
    shown = told(steer(recipe="colours", mode="aligned blend"))
    assert "Recipe colours.json skipped: name: 'colours' is what can be taken" in shown


def test_several_references_go_through_a_recipe(steer, run, text_clip, native, picture, shuffled):
    images = {"image0": picture, "image1": shuffled}
    both = run(
        "Condition", text_clip, native, PROMPT, 0.5, images=images, recipe="style hint", weights="1, 0",
        combine="average",
    )[0]
    assert torch.equal(both[0][0], steer(recipe="style hint")[0][0][0])
