"""Recipes on the simple node: what each resolves to, a user's own, and broken files."""

from __future__ import annotations

import json

import pytest
import torch

PROMPT = "a cat in a red hat"
BUILT_IN = ["style hint", "colour palette", "light and mood", "composition", "variation of the picture", "push away"]


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


def options_shown(part) -> list[str]:
    inputs = part("nodes.condition").ZImageVLCondition.GET_SCHEMA().inputs
    return next(one for one in inputs if one.id == "recipe").options


def test_the_list_begins_with_none_and_holds_every_recipe(part):
    assert options_shown(part) == ["none", *BUILT_IN]


@pytest.mark.parametrize("recipe", BUILT_IN)
def test_every_recipe_paints_something_else_than_the_words_and_says_its_numbers(recipe, steer, sample, text, told):
    output = steer(recipe=recipe)
    painted = sample(output[0])
    assert painted.isfinite().all() and not torch.allclose(painted, sample(text), atol=1e-3)
    assert f"recipe {recipe}: " in told(output) and "layer -2" in told(output)


@pytest.mark.parametrize("recipe", BUILT_IN)
def test_strength_zero_is_the_words_in_every_recipe(recipe, steer, text, told):
    output = steer(0.0, recipe=recipe)
    assert torch.equal(output[0][0][0], text[0][0]) and "Words only: strength 0." in told(output)


def test_a_recipe_takes_the_place_of_mode_layer_and_timing(steer):
    plain = steer(recipe="push away")[0]
    other = steer(recipe="push away", mode="append picture", layer=-5, start_percent=0.5)[0]
    assert len(other) == 1 and torch.equal(plain[0][0], other[0][0])


def test_pushing_away_is_image_delta_below_zero(steer):
    assert torch.equal(steer(0.5, recipe="push away")[0][0][0], steer(-0.5, mode="image delta")[0][0][0])


def test_a_variation_appends_all_of_the_picture(steer):
    assert torch.equal(
        steer(1.0, recipe="variation of the picture")[0][0][0], steer(1.0, mode="append picture")[0][0][0]
    )


def test_a_composition_knows_no_colours_and_ends_early(steer, picture):
    output = steer(1.0, recipe="composition")[0]
    ranges = [(one["start_percent"], round(one["end_percent"], 3)) for _, one in output]
    assert ranges == [(0.0, 0.4), (0.4, 1.0)]
    luma = picture @ torch.tensor([0.299, 0.587, 0.114])
    grey = steer(1.0, luma[..., None].expand(-1, -1, -1, 3), recipe="composition")[0]
    torch.testing.assert_close(output[0][0], grey[0][0], rtol=0, atol=0.1)  # 8 bits, rounded once more
    coloured = steer(1.0, mode="append picture")[0]
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
    assert torch.equal(steer(recipe="untold")[0][0][0], steer(mode="blend aligned")[0][0][0])


def test_a_users_recipe_joins_the_list_and_measures_the_text_encoder_if_it_needs_to(part, steer, own, told):
    own("mine.json", {
        "name": "my look", "meaning": "Mine.", "mode": "append picture", "scale": 0.5,
        "settings": {"normalization": "rms", "outliers": "clamp", "outlier_threshold": 1.5},
    })
    assert options_shown(part) == ["none", *BUILT_IN, "my look"]
    shown = told(steer(1.0, recipe="my look"))
    assert "append picture at 0.5 × 1 = 0.5" in shown and "normalization rms" in shown
    assert "reference statistics" in shown


def test_a_broken_file_is_skipped_and_its_reason_is_on_the_node(part, steer, own, told):
    own("broken.json", "{")
    own("odd.json", {"name": "odd", "meaning": "Odd.", "mode": "telepathy"})
    assert options_shown(part) == ["none", *BUILT_IN]
    shown = told(steer())
    assert "Recipe broken.json skipped: expected JSON, got an error in line 1" in shown
    assert "Recipe odd.json skipped: mode: expected one of blend aligned" in shown
    with pytest.raises(ValueError, match=r"recipe: expected one of none, style hint.*got 'odd'.*odd\.json skipped"):
        steer(recipe="odd")


def test_an_edited_recipe_counts_as_another_input(part, own):
    fingerprint = part("nodes.condition").ZImageVLCondition.fingerprint_inputs
    seen = []
    for scale in (0.5, 0.5, 0.25):
        own("mine.json", {"name": "mine", "meaning": "Mine.", "mode": "blend aligned", "scale": scale})
        seen.append(fingerprint(recipe="mine", strength=0.5, images={}))
    assert seen[0] == seen[1] != seen[2]
    assert fingerprint() == fingerprint(recipe="none", mode="append picture")


def test_a_strength_that_a_recipe_cannot_have_is_refused(steer):
    with pytest.raises(ValueError, match="strength: expected 0"):
        steer(-0.5, recipe="composition")


def test_several_references_go_through_a_recipe(steer, run, text_clip, native, picture, shuffled):
    images = {"image0": picture, "image1": shuffled}
    both = run(
        "Condition", text_clip, native, PROMPT, 0.5, images=images, recipe="style hint", weights="1, 0",
        combine="average",
    )[0]
    assert torch.equal(both[0][0], steer(recipe="style hint")[0][0][0])
