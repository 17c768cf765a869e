"""The picture adapter: planted maps come back, strength 0 is the text, merged and resumed fits equal one pass."""

from __future__ import annotations

import pytest
import torch

from vl_core.adapter import AdapterSpec, PictureAdapter, PictureAdapterFit, PictureFeatures
from vl_core.description import Slot, describe_prompt, read_description, slot_positions, slot_request, slot_targets
from vl_core.layout import SpecialTokens, insert_pictures, text_layout
from vl_core.states import VLStates

WIDTH, BLOCKS, PAIRS = 12, 6, 260
SLOTS = (Slot("style", 2), Slot("light", 3))
SPECIAL = SpecialTokens()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(ids: tuple[int, ...]):
    """The layout of a prompt of these ids, in Z-Image's template."""
    user, tail = [SPECIAL.im_start, 872, 198], [SPECIAL.im_end, 198, SPECIAL.im_start, 77091, 198]
    return text_layout([*user, *ids, *tail], special=SPECIAL)


def seen(seed: int, ids: tuple[int, ...] = (11, 12, 13)) -> VLStates:
    """An encode of a 2 × 2 picture and a prompt, its states drawn."""
    layout = insert_pictures(words(ids), [(2, 2)], SPECIAL)
    return VLStates(random(2, len(layout), WIDTH, seed=seed), (BLOCKS - 2, BLOCKS - 1), BLOCKS, layout, model="vl")


def spec(pool: str = "grid2", **options) -> AdapterSpec:
    return AdapterSpec(PictureFeatures(pool), SLOTS, WIDTH, BLOCKS, WIDTH, vl_model="vl", text_model="text", **options)


@pytest.fixture(scope="module")
def planted():
    """A spec, a map of rank 4, pairs that follow it, and the adapter fitted on them."""
    made = spec()
    left, right = random(made.inputs, 4, seed=1), random(4, made.targets, seed=2)
    offset = random(made.targets, seed=3)
    x = random(PAIRS, made.inputs, seed=4)
    t = (x @ left @ right + offset).unflatten(1, (-1, WIDTH))
    fit = PictureAdapterFit(made)
    for features, target in zip(x, t, strict=True):
        fit.add(features, target)
    return made, x, t, fit.solve(), (left, right, offset)


def test_a_planted_map_comes_back(planted):
    made, _, _, adapter, (left, right, offset) = planted
    fresh = random(5, made.inputs, seed=9)
    expected = (fresh.double() @ left.double() @ right.double() + offset.double()).unflatten(1, (-1, WIDTH))
    torch.testing.assert_close(adapter.predict(fresh).double(), expected, rtol=2e-3, atol=2e-2)
    assert adapter.report.r2 > 0.999
    assert set(adapter.report.r2_by) == {"style", "light", "tail"}


def test_targets_that_do_not_depend_on_the_picture_have_no_held_out_score(planted):
    made, x, t, _, _ = planted
    fit = PictureAdapterFit(made)
    for features, target in zip(x, t[torch.randperm(PAIRS, generator=torch.Generator().manual_seed(5))], strict=True):
        fit.add(features, target)
    assert fit.solve().report.r2 < 0.1


def test_merged_and_resumed_fits_equal_one_pass(planted, tmp_path):
    made, x, t, adapter, _ = planted
    halves = PictureAdapterFit(made), PictureAdapterFit(made)
    for index, (features, target) in enumerate(zip(x, t, strict=True)):
        halves[index >= 100].add(features, target, fold=index % 5)
    halves[0].save(tmp_path / "part.safetensors")
    resumed = PictureAdapterFit.load(tmp_path / "part.safetensors")
    resumed.merge(halves[1])
    assert resumed.pairs == PAIRS
    torch.testing.assert_close(resumed.solve().predict(x[:3]), adapter.predict(x[:3]), rtol=1e-3, atol=1e-3)


def test_strength_0_is_the_text_bit_for_bit_and_others_only_append_and_move_the_tail(planted):
    adapter, layout = planted[3], words((11, 12, 13))
    text = random(len(layout), WIDTH, seed=20)
    still, same_layout, _ = adapter.apply(text, layout, seen(21), 0.0)
    assert still is text or torch.equal(still, text)
    assert same_layout is layout
    moved, longer, info = adapter.apply(text, layout, seen(21), 0.7)
    at = len(layout) - 5
    assert torch.equal(moved[:at], text[:at])
    assert moved.shape == (len(layout) + 5, WIDTH)
    assert len(longer) == len(moved)
    assert info.tokens == 5
    assert not torch.equal(moved[-5:], text[-5:])


def test_strength_1_is_what_the_map_predicts(planted):
    made, _, _, adapter, _ = planted
    layout = words((11, 12, 13))
    text, look = random(len(layout), WIDTH, seed=20), seen(21)
    moved, _, _ = adapter.apply(text, layout, look, 1.0)
    predicted = adapter.predict(made.features.of(look))
    at = len(layout) - 5
    torch.testing.assert_close(moved[at : at + 5], predicted[:5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved[at + 5 :], text[-5:] + predicted[5:], rtol=1e-4, atol=1e-4)


def test_weights_of_1_and_0_equal_one_picture_and_one_slot_appends_its_tokens_alone(planted):
    adapter, layout = planted[3], words((11, 12, 13))
    text = random(len(layout), WIDTH, seed=20)
    alone, _, _ = adapter.apply(text, layout, seen(21))
    both, _, _ = adapter.apply(text, layout, [seen(21), seen(22)], weights=[1.0, 0.0])
    torch.testing.assert_close(both, alone)
    one, _, info = adapter.apply(text, layout, seen(21), slots=["light"])
    assert len(one) == len(text) + 3
    assert list(info.slots) == ["light"]


@pytest.mark.parametrize("neutral", ["prompt", "last word", "tail", "mean"])
def test_strength_leads_in_a_straight_line_from_the_neutral_tokens_to_the_predicted(planted, neutral):
    made, _, _, adapter, _ = planted
    layout = words((11, 12, 13))
    text, at = random(len(layout), WIDTH, seed=20), len(layout) - 5
    half, full, twice = (
        adapter.apply(text, layout, seen(21), strength, neutral=neutral)[0] for strength in (0.5 ** (1 / 0.6), 1.0, 2.0)
    )
    # linear in the share that the strength stands for, and at 1 the neutral point is gone
    torch.testing.assert_close(full, (2 * half + twice) / 3, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(full[at : at + 5], adapter.predict(made.features.of(seen(21)))[:5], rtol=1e-4, atol=1e-4)


def test_pictures_can_be_appended_one_after_the_other(planted):
    adapter, layout = planted[3], words((11, 12, 13))
    text = random(len(layout), WIDTH, seed=20)
    both, longer, info = adapter.apply(text, layout, [seen(21), seen(22)], combine="append")
    one, two = (adapter.apply(text, layout, seen(seed))[0] for seed in (21, 22))
    at = len(layout) - 5
    assert info.tokens == 10 and len(longer) == len(both)
    torch.testing.assert_close(both[at : at + 10], torch.cat([one[at : at + 5], two[at : at + 5]]))


@pytest.fixture(scope="module")
def in_context():
    """Style is of one half of the features; light of the other and, as later words are, of style; the tail of both."""
    made = spec()
    half, width = made.inputs // 2, WIDTH
    planted = {
        name: random(*shape, seed=30 + seed).double()
        for seed, (name, shape) in enumerate({
            "of style": (half, 3), "of light": (made.inputs - half, 3), "style": (3, 2 * width),
            "light": (3, 3 * width), "light after style": (3, 3 * width), "tail of style": (3, 5 * width),
            "tail of light": (3, 5 * width),
            "offset": (made.targets,),
        }.items())
    }

    def described(styled: torch.Tensor, lit: torch.Tensor) -> torch.Tensor:
        """What the planted map says of a picture with the one's style and the other's light, in float64."""
        style, light = styled.double()[..., :half] @ planted["of style"], lit.double()[..., half:] @ planted["of light"]
        written = [
            style @ planted["style"], light @ planted["light"] + 0.5 * style @ planted["light after style"],
            style @ planted["tail of style"] + light @ planted["tail of light"],
        ]
        return (torch.cat(written, -1) + planted["offset"]).unflatten(-1, (-1, width))

    fit, x = PictureAdapterFit(made), random(PAIRS, made.inputs, seed=40)
    for features, target in zip(x, described(x, x), strict=True):
        fit.add(features, (target + 0.3 * random(*target.shape, seed=int(1e6 * features[0].abs()))).float())
    return made, fit.solve(), described


def test_parts_of_two_pictures_are_those_of_a_picture_that_has_both(in_context):
    made, adapter, described = in_context
    layout = words((11, 12, 13))
    text, at = random(len(layout), WIDTH, seed=20), len(layout) - 5
    one, two = seen(21), seen(22)
    mixed, _, info = adapter.apply(text, layout, [one, two], combine="parts")
    assert info.tokens == 5
    first, second = (made.features.of(look) for look in (one, two))
    expected = described(first, second)
    expected[5:] += text[-5:].double()
    average = adapter.apply(text, layout, [one, two])[0]
    for part in (slice(at, at + 2), slice(at + 2, at + 5), slice(at + 5, None)):  # style, light, tail
        there = slice(part.start - at, None if part.stop is None else part.stop - at)
        error, spread = ((found[part].double() - expected[there]).norm() for found in (mixed, average))
        assert error < 0.3 * spread, part


def test_pictures_that_agree_are_no_other_in_parts_and_a_slot_in_which_they_do_takes_no_turn(in_context):
    made, adapter, described = in_context
    layout = words((11, 12, 13))
    text = random(len(layout), WIDTH, seed=20)
    alone = adapter.apply(text, layout, seen(21))[0]
    assert torch.equal(adapter.apply(text, layout, [seen(21)], combine="parts")[0], alone)
    same, _, _ = adapter.apply(text, layout, [seen(21), seen(21)], combine="parts")
    torch.testing.assert_close(same, alone, rtol=1e-4, atol=1e-4)
    left, _, _ = adapter.apply(text, layout, [seen(21), seen(22)], combine="parts", weights=[1.0, 0.0])
    torch.testing.assert_close(left, alone, rtol=1e-4, atol=1e-4)
    # of the same style: light is the first in which they differ, so it is the first picture's
    first, second = made.features.of(seen(21)), made.features.of(seen(22))
    second = torch.cat([first[: made.inputs // 2], second[made.inputs // 2 :]])
    both, shares = torch.stack([first, second]), torch.tensor([0.5, 0.5])
    found = adapter._dealt(both, shares, adapter.predict(both).mean(0)).double()
    expected, other = described(first, first), described(second, second)
    assert (found - expected).norm() < 0.1 * (other - expected).norm()


def test_a_saved_adapter_is_the_same(planted, tmp_path):
    made, x, _, adapter, _ = planted
    adapter.save(tmp_path / "a.safetensors")
    again = PictureAdapter.load(tmp_path / "a.safetensors")
    assert again.spec == made
    assert torch.equal(again.predict(x[:2]), adapter.predict(x[:2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 9.0}, "strength: expected -3 to 3"),
        ({"slots": ["mood"]}, "slots: expected some of style, light"),
        ({"weights": [0.0]}, "weights: expected 1 numbers"),
        ({"text": torch.zeros(11, WIDTH + 1)}, "width"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(planted, change, message):
    layout = words((11, 12, 13))
    given = {"text": random(len(layout), WIDTH), "layout": layout, "seen": seen(21)} | change
    with pytest.raises(ValueError, match=message):
        planted[3].apply(**given)


def test_a_strange_picture_is_recognised(planted):
    made, x, _, adapter, _ = planted
    usual = [adapter.familiarity(features) for features in x[:20]]
    assert sum(each.familiar for each in usual) >= 18
    assert not adapter.familiarity(20 + 30 * random(made.inputs, seed=99)).familiar


def test_the_places_of_slots_are_found_by_their_tokens():
    prompts = [words((11, 12)), words((11, 12, 7, 21, 22)), words((11, 12, 7, 21, 22, 7, 31))]
    style, light = slot_positions(prompts)
    assert style.tolist() == [5, 6, 7]
    assert light.tolist() == [8, 9]
    states = random(len(prompts[-1]), WIDTH, seed=7)
    found = slot_targets(states, prompts, SLOTS)
    torch.testing.assert_close(found[2:5].mean(0), states[8:10].mean(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[5:], states[-5:])


def test_descriptions_grow_slot_by_slot_and_are_read_back():
    said = {"style": "ink wash.", "light": "dim, ", "other": "no"}
    assert describe_prompt("a fox.", said, SLOTS) == ("a fox", "a fox, ink wash", "a fox, ink wash, dim")
    assert read_description("- **Style**: ink wash\nLight: dim.\n", SLOTS) == {"style": "ink wash", "light": "dim"}
    form = slot_request(SLOTS)
    assert read_description(form.replace("…", "soft"), SLOTS) == {"style": "soft", "light": "soft"}
    with pytest.raises(ValueError, match="light is missing"):
        read_description("style: ink", SLOTS)
