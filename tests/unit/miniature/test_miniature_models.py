"""The trained miniature: its folders load, it paints what captions say, and it has what the real chain has."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("diffusers", reason="the DiT and the VAE are diffusers classes")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")
pytest.importorskip("miniature", reason="the package is installed from a clone: pip install -e .")

from miniature import world
from miniature.measure import check
from miniature.measure.chain import Chain, answers, as_image, look_of
from miniature.train import assemble, dit, judge
from vl_core import condition, find_sinks

COUNT = 64
GOALS = {figure: goal for figure, sign, goal in check.GOALS if sign == ">="}


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain.load(assemble.MODELS)


@pytest.fixture(scope="module")
def scenes() -> world.Scenes:
    return world.sample_scenes(COUNT, torch.Generator().manual_seed(20_261))


def least(goal: float, count: int) -> float:
    """What a sample of that size may show at worst, three standard errors under the goal."""
    return goal - 3 * (goal * (1 - goal) / count) ** 0.5


def test_it_paints_what_captions_say_and_not_what_others_say(chain, scenes):
    states = [chain.words(world.canonical_caption(scene))[0] for scene in scenes.records()]
    readings = judge.read(chain.judge, chain.paint(states, range(COUNT), steps=dit.STEPS, guidance=dit.GUIDANCE))
    found = judge.agreement(readings, scenes)
    for name in ("background", "style", "mood", "shape", "pair"):
        assert found[name] >= least(GOALS[name], COUNT), (name, found)
    others = judge.agreement({name: logits.roll(1, 0) for name, logits in readings.items()}, scenes)
    for name, chance in (("background", 1 / 10), ("style", 1 / 8), ("mood", 1 / 5), ("pair", 0.05)):
        assert others[name] <= chance + 3 * (chance * (1 - chance) / COUNT) ** 0.5, (name, others)


def test_the_judge_reads_the_worlds_pictures(chain, scenes):
    floor = judge.floor_figures(chain.judge, chain.pipeline.vae, COUNT, 20_262)
    for name, goal in judge.FLOOR.items():
        assert floor[name] >= least(goal, COUNT), (name, floor)


def test_the_vls_only_sink_beside_a_picture_is_the_first_token(chain, scenes):
    pictures, _ = world.render(scenes[:4], torch.Generator().manual_seed(20_263))
    prompts = ["a red star", "", "draw a blue triangle", "a cross"]
    seen = chain.look_many(as_image(pictures), prompts, layers=(-12, -8, -6, -2))
    for reading in seen:
        for layer in (-12, -8, -6, -2):
            assert find_sinks(*reading.at(layer)).nonzero().flatten().tolist() == [0]


def test_the_vl_tells_the_look_of_pictures(chain, scenes):
    pictures, _ = world.render(scenes[:24], torch.Generator().manual_seed(20_263))
    said = answers(chain, pictures, world.DESCRIBE_LOOK[1])
    truth = [world.look_answer(scene) for scene in scenes[:24].records()]
    words = [word for text in truth for word in text.replace(",", "").split()]
    right = [
        word in answer.replace(",", "").split() for text, answer in zip(truth, said, strict=True)
        for word in text.replace(",", "").split()
    ]
    assert sum(right) / len(words) >= least(0.97, len(words))


def test_a_look_is_told_in_its_form_of_any_picture_and_as_the_vl_tells_it_by_itself(chain, scenes):
    pictures, _ = world.render(scenes[:24], torch.Generator().manual_seed(20_263))
    told = look_of(chain, pictures)
    assert sum(map(str.__eq__, told, answers(chain, pictures, world.DESCRIBE_LOOK[1]))) >= 23
    strange = torch.rand(6, 3, world.SIDE, world.SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for text in look_of(chain, strange):
        style, background, mood = (part.split() for part in text.split(", "))
        assert style[0] in world.STYLES and background[0] in world.COLORS and mood[0] in world.MOODS
        assert [style[1:], background[1:], mood[1:]] == [["style"], ["background"], ["colors"]]


def test_of_two_shapes_the_vl_tells_which_has_which_colour_and_the_text_encoder_does_not(chain):
    """The VL learnt it last, by itself: the text encoder that it started as does no better than to guess."""
    drawn = world.sample_scenes(200, torch.Generator().manual_seed(20_265), two_shapes=1.0)
    differ = (drawn.shape[:, 0] != drawn.shape[:, 1]) & (drawn.color[:, 0] != drawn.color[:, 1])
    scenes = drawn[differ]
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(20_266))
    truth = [world.COLORS[color] for color in scenes.color[:, 0]]
    asked = [f"what color is the {world.SHAPES[shape]}?" for shape in scenes.shape[:, 0]]
    seen = [""] * len(truth)
    for question in set(asked):
        rows = [index for index, one in enumerate(asked) if one == question]
        for index, answer in zip(rows, answers(chain, pictures[rows], question, longest=2), strict=True):
            seen[index] = answer
    told = [f"{world.canonical_caption(scene)}. {one}" for scene, one in zip(scenes.records(), asked, strict=True)]
    last = torch.stack([states[-1] for states, _ in chain.words_many(told, layer=-1)])
    guessed = chain.pipeline.tokenizer.batch_decode(
        (last @ chain.pipeline.text_encoder.get_input_embeddings().weight.T).argmax(-1)[:, None]
    )
    right = [sum(one.strip() == word for one, word in zip(said, truth, strict=True)) for said in (seen, guessed)]
    assert right[0] / len(truth) >= least(0.85, len(truth)), right
    assert right[1] / len(truth) <= 0.5 + 3 * 0.5 / len(truth) ** 0.5, right


def test_words_and_pictures_have_one_sink_where_the_real_models_have_it(chain):
    figures = check.sinks(chain, 6)
    for name in ("text", "vl"):
        assert figures[f"{name}_sink_ratio"] >= GOALS["text_sink_ratio"]
        assert figures[f"{name}_sink_share"] >= GOALS["text_sink_share"]
        assert figures[f"{name}_sink_exact"] == 1
        assert figures[f"{name}_sink_after_norm"] == 0


def test_the_words_of_both_encoders_are_the_same_tokens(chain):
    assert check.aligned(chain, 6) == 1


def test_a_picture_moves_the_painting_and_strength_0_does_not(chain, scenes):
    pictures, _ = world.render(scenes[:2], torch.Generator().manual_seed(20_264))
    words, layout = chain.words("a red star")
    seen = chain.look((pictures[0].permute(1, 2, 0) + 1) / 2, "a red star")
    still, _, _ = condition(words, layout, seen, -8, "blend aligned", 0.0)
    moved, _, _ = condition(words, layout, seen, -8, "blend aligned", 0.7)
    plain, same, other = chain.paint([words, still, moved], [0, 0, 0])
    torch.testing.assert_close(plain, same, atol=1e-4, rtol=0)
    assert (plain - other).abs().mean() > 0.02


def test_every_goal_stands_in_the_figures_with_where_it_was_measured():
    report = json.loads((assemble.MODELS / "figures.json").read_text(encoding="utf-8"))
    assert [goal["figure"] for goal in report["goals"]] == [figure for figure, _, _ in check.GOALS]
    assert {"command", "machine", "date"} <= set(report["measured"])


def test_all_files_stay_small_enough_to_clone():
    assert assemble.weight_bytes(assemble.MODELS) <= 40e6
