"""The procedural world: pictures show what captions say, answers are right, hold-outs hold out."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
import torch

from miniature import world
from vl_core.states.layout import USER_TURN


def scenes(count=64, seed=0, **options) -> world.Scenes:
    return world.sample_scenes(count, torch.Generator().manual_seed(seed), **options)


def plain_square(color: str, background: str, mood: str = "neutral", count: int = 1) -> world.Scenes:
    """Large flat squares in the centre."""
    return replace(
        scenes(count, two_shapes=0.0),
        shape=torch.full((count, 2), world.SHAPES.index("square")),
        color=torch.full((count, 2), world.COLORS.index(color)),
        size=torch.full((count, 2), 2), background=torch.full((count,), world.COLORS.index(background)),
        style=torch.zeros(count, dtype=torch.long), position=torch.zeros(count, dtype=torch.long),
        mood=torch.full((count,), world.MOODS.index(mood)),
    )


def test_the_same_seed_gives_the_same_scenes_and_pictures():
    first, again = (world.render(scenes(4), torch.Generator().manual_seed(1))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, world.render(scenes(4), torch.Generator().manual_seed(2))[0])
    assert float(first.min()) >= -1
    assert float(first.max()) <= 1


def test_a_flat_neutral_square_has_its_colours():
    picture, covers = world.render(plain_square("red", "cyan"), torch.Generator().manual_seed(3))
    rgb = (picture[0] + 1) / 2
    for place, name in (((64, 64), "red"), ((3, 3), "cyan"), ((124, 124), "cyan")):
        expected = torch.tensor(world.RGB[world.COLORS.index(name)])
        torch.testing.assert_close(rgb[:, place[0], place[1]], expected, atol=0.04, rtol=0)
    assert float(covers[0, 0, 64, 64]) > 0.99
    assert float(covers[0, 1].max()) == 0  # there is no second object


def test_dark_is_darker_and_warm_has_less_blue():
    neutral, dark, warm = (
        (world.render(plain_square("green", "white", mood), torch.Generator().manual_seed(3))[0] + 1) / 2
        for mood in ("neutral", "dark", "warm")
    )
    assert float(dark.mean()) < 0.5 * float(neutral.mean())
    assert float(warm[0, 2].mean()) < 0.75 * float(neutral[0, 2].mean())


@pytest.mark.parametrize("shape", world.SHAPES)
def test_shapes_look_different_from_each_other(shape):
    index = world.SHAPES.index(shape)
    every = replace(plain_square("red", "blue", count=8), shape=torch.arange(8)[:, None].expand(8, 2))
    _, covers = world.render(every, torch.Generator().manual_seed(4))
    masks = (covers[:, 0] > 0.5).float().flatten(1)
    both = (masks[index] * masks).sum(1) / torch.maximum(masks[index], masks).sum(1)
    both[index] = 0
    assert float(both.max()) < 0.9  # intersection over union with the most similar one


def test_patch_labels_name_the_object_in_the_middle_and_the_ground_outside():
    square = plain_square("red", "blue")
    _, covers = world.render(square, torch.Generator().manual_seed(5))
    shape, color = world.patch_labels(square, covers)[0].view(2, 8, 8)
    assert int(shape[4, 4]) == 1 + world.SHAPES.index("square")
    assert int(color[4, 4]) == 1 + world.COLORS.index("red")
    assert int(shape[0, 0]) == int(color[0, 0]) == 0


def test_no_object_has_the_colour_of_its_ground():
    drawn = scenes(2000)
    assert bool((drawn.color != drawn.background[:, None]).all())


def test_full_captions_name_everything():
    for scene in scenes(100).records():
        text = world.canonical_caption(scene)
        for shape, color, size in scene.objects:
            assert f"{world.SIZES[size]} {world.COLORS[color]} {world.SHAPES[shape]}" in text
        assert f"{world.COLORS[scene.background]} background" in text
        assert f"in {world.STYLES[scene.style]} style" in text
        assert f"with {world.MOODS[scene.mood]} colors" in text


def test_captions_name_what_they_tell_and_nothing_else():
    rng = random.Random(0)
    words = {"style": world.STYLES, "mood": world.MOODS}
    for scene in scenes(400).records():
        text, told = world.caption(scene, rng)
        said = re.findall(r"[a-z]+", text)
        for name, names in words.items():
            found = [word for word in said if word in names]
            assert found == [names[getattr(scene, name)]] * getattr(told, name), text
        shapes = sorted(word for word in said if word in world.SHAPES)
        assert shapes == sorted(world.SHAPES[shape] for shape, _, _ in scene.objects) * told.shape, text
        assert ("background" in said) == told.background, text


def test_articles_follow_the_next_word():
    rng = random.Random(1)
    for scene in scenes(300).records():
        text = world.caption(scene, rng)[0]
        assert not re.search(r"\ba [aeiou]", text), text
        assert not re.search(r"\ban [^aeiou]", text), text


def test_answers_are_true():
    rng = random.Random(2)
    seen = set()
    for scene in scenes(600).records():
        asked, answer = world.question(scene, rng)
        pairs = {(world.COLORS[color], world.SHAPES[shape]) for shape, color, _ in scene.objects}
        if match := re.fullmatch(r"what color is the (\w+)\?", asked):
            assert {color for color, shape in pairs if shape == match[1]} == {answer}
        elif match := re.fullmatch(r"what shape is (\w+)\?", asked):
            assert {shape for color, shape in pairs if color == match[1]} == {answer}
        elif match := re.fullmatch(r"is there an? (\w+) (\w+)\?", asked):
            assert ((match[1], match[2]) in pairs) == (answer == "yes")
        elif asked == "how many shapes?":
            assert answer == ("one", "two")[len(scene.objects) - 1]
        seen.add(asked.split()[0] + asked.split()[1])
    assert len(seen) >= 5


def test_prompts_are_filled_into_the_template_of_the_real_chain():
    assert world.prompt_turn("a {} cat") == USER_TURN.replace("{}", "a {} cat", 1)


def test_a_conflicting_request_takes_from_the_picture_what_it_leaves_open():
    rng = random.Random(3)
    scene, other = scenes(2).records()
    for _ in range(200):
        request, answer = world.request_about(scene, rng, other)
        if request in (*world.DESCRIBE, *world.DESCRIBE_LOOK) or request.endswith("?"):
            continue
        style = next(name for name in world.STYLES if f"{name} style" in answer)
        named = [name for name in world.STYLES if name in request.split(",")[0].split() + re.findall(r"\w+", request)]
        assert style == (named[0] if named else world.STYLES[scene.style])


@pytest.mark.parametrize(
    ("hold_out", "is_kept"),
    [
        (world.HoldOut(style="striped"), lambda s: s.style == world.STYLES.index("striped")),
        (world.HoldOut(background="red"), lambda s: s.background == world.COLORS.index("red")),
        (world.HoldOut(combinations=True), None),
    ],
)
def test_hold_outs_split_the_world_in_two(hold_out, is_kept):
    fitting, testing = (scenes(500, hold_out=hold_out, testing=testing) for testing in (False, True))
    assert len(fitting) == len(testing) == 500
    looks = [
        set(zip(*(getattr(part, name).tolist() for name in world.LOOK), strict=True)) for part in (fitting, testing)
    ]
    assert not looks[0] & looks[1]
    if is_kept is not None:
        assert bool(is_kept(testing).all())
        assert not bool(is_kept(fitting).any())
    else:  # every single value is still there to fit on
        assert {style for _, style, _ in looks[0]} == set(range(8))
        assert {ground for ground, _, _ in looks[0]} == set(range(10))


def test_an_unknown_name_to_hold_out_is_refused():
    with pytest.raises(ValueError, match="style: expected one of flat"):
        scenes(4, hold_out=world.HoldOut(style="cubist"))


def test_pairs_conflict_and_their_prompts_ask_for_what_they_say():
    pairs = world.conflict_pairs(200, 1)
    assert bool((pairs.shape != pairs.references.shape[:, 0]).all())
    assert bool((pairs.color != pairs.references.color[:, 0]).all())
    assert bool((pairs.color != pairs.references.background).all())
    assert bool((pairs.references.count == 1).all())
    for prompt, shape, color in zip(pairs.prompts, pairs.shape.tolist(), pairs.color.tolist(), strict=True):
        assert f"{world.COLORS[color]} {world.SHAPES[shape]}" in prompt
    assert len({re.sub(r"an? \w+ \w+$", "", prompt) for prompt in pairs.prompts}) >= 3


def test_other_words_share_no_opening_with_training():
    trained = {opening.split("{")[0] for opening in world.PROMPTS if opening != "{}"}
    for prompt in world.conflict_pairs(12, 1, other_words=True).prompts:
        assert not any(prompt.startswith(opening) for opening in trained)
