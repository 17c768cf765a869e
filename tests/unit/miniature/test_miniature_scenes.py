"""Scenes as files for the commands, and the judge as a score: what is drawn disagrees, what is read is true."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from miniature import world
from miniature.__main__ import main
from miniature.measure.score import load_score, wish_of
from miniature.show.scenes import draw
from miniature.train.assemble import MODELS

Image = pytest.importorskip("PIL.Image", reason="pictures are written with Pillow")


def test_no_scene_has_what_the_prompts_ask_for_and_neighbours_share_nothing_of_the_look():
    for seed in range(5):
        scenes, prompts = draw(9, seed)
        records = scenes.records()
        wishes = [wish_of(prompt) for prompt in prompts]
        assert len(records) == 9 and len(set(wishes)) == len(prompts) == 2
        for scene in records:
            ((shape, color, _),) = scene.objects
            assert shape not in [wish[0] for wish in wishes]
            assert not {color, scene.background} & {wish[1] for wish in wishes}
        for one, other in zip(records, records[1:] + records[:1], strict=True):
            assert all(getattr(one, name) != getattr(other, name) for name in world.LOOK)


def test_the_command_writes_what_the_others_take(tmp_path):
    main(["scenes", "--out", str(tmp_path), "--count", "3", "--seed", "2"])
    scenes, prompts = draw(3, 2)
    assert json.loads((tmp_path / "prompts.json").read_text(encoding="utf-8")) == list(prompts)
    assert len((tmp_path / "captions.txt").read_text(encoding="utf-8").splitlines()) == 64
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 3
    for path, scene in zip(files, scenes.records(), strict=True):
        assert all(name in path.stem for name in (world.COLORS[scene.background], world.STYLES[scene.style]))
        with Image.open(path) as image:
            assert image.size == (128, 128)
    with pytest.raises(ValueError, match="--count: expected 2"):
        draw(1, 0)


def test_the_judge_reads_rendered_scenes_as_they_are():
    scenes, _ = draw(8, 1)
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(0))
    shown = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    score, records = load_score(MODELS), scenes.records()
    own, other = [], []
    for index, (picture, scene) in enumerate(zip(shown, records, strict=True)):
        shape, color, _ = scene.objects[0]
        prompt = f"a {world.COLORS[color]} {world.SHAPES[shape]}"
        own.append(score(picture, picture, prompt))
        other.append(score(picture, shown[(index + 1) % 8], prompt))
        assert own[-1]["judge look"] == 1
    assert np.mean([one["judge colour"] + one["judge shape"] for one in own]) > 1.8
    assert np.mean([one["judge look"] for one in other]) < 0.1  # neighbours share nothing
    assert all("judge leak" not in one for one in own if one["judge colour"] * one["judge shape"])


def test_the_references_object_in_a_picture_is_a_leak_unless_the_prompt_asks_for_it():
    scenes, _ = draw(2, 2)
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(0))
    shown = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    score = load_score(MODELS)
    found = score(shown[0], shown[0], "something else")
    assert found["judge leak"] == 1
    assert "judge colour" not in found  # the prompt names none
    assert score(shown[1], shown[0], "something else")["judge leak"] == 0


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red star", (3, 0)), ("Draw a Blue ring!", (6, 5)), ("a fox", None), ("a red star and a blue ring", None),
    ],
)
def test_a_wish_is_one_shape_in_one_colour(prompt, expected):
    assert wish_of(prompt) == expected
