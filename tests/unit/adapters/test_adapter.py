"""The picture adapter: planted maps come back, strength 0 is the text, merged and resumed fits equal one pass."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from vl_core.adapters.features import PictureFeatures
from vl_core.adapters.fit import PictureAdapterFit
from vl_core.adapters.picture_adapter import PictureAdapter
from vl_core.adapters.spec import AdapterSpec
from vl_core.stages.description import (
    Slot,
    describe_prompt,
    read_description,
    slot_positions,
    slot_request,
    slot_targets,
)
from vl_core.states.layout import SpecialTokens, insert_pictures, pad_layout, text_layout
from vl_core.states.vl_states import VLStates

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


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_text_without_a_layout_that_is_no_longer_than_the_tail_is_refused(planted, tokens):
    adapter = planted[3]
    with pytest.raises(ValueError, match=f"whole text of Z-Image, which ends with 5 template tokens, got {tokens} tok"):
        adapter.apply(random(tokens, WIDTH), None, seen(21))
    longer, _, info = adapter.apply(random(6, WIDTH), None, seen(21))
    assert longer.isfinite().all() and len(longer) == 6 + info.tokens


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


# --- FLUX.2 klein: three layers side by side, a longer tail, padding --------------------------------------------------

PADDED = 24  # klein's own texts have 512 tokens


def klein_words(ids: tuple[int, ...], padded_to: int = PADDED):
    """The layout of a prompt of these ids in klein's template, an empty think block and padding included."""
    user, tail = [SPECIAL.im_start, 872, 198], [SPECIAL.im_end, 198, SPECIAL.im_start, 77091, 198]
    layout = text_layout([*user, *ids, *tail, 151667, 271, 151668, 271], tail_tokens=9)
    return pad_layout(layout, max(0, padded_to - len(layout)))


def klein_seen(seed: int, ids: tuple[int, ...] = (11, 12, 13)) -> VLStates:
    layout = insert_pictures(klein_words(ids, 0), [(2, 2)], SPECIAL)
    return VLStates(random(2, len(layout), WIDTH, seed=seed), (BLOCKS - 2, BLOCKS - 1), BLOCKS, layout, model="vl")


def klein_spec(**options) -> AdapterSpec:
    return AdapterSpec(
        PictureFeatures("grid2"), SLOTS, WIDTH, BLOCKS, 3 * WIDTH, vl_model="vl", text_model="text",
        family="FLUX.2 klein", **options,
    )


@pytest.fixture(scope="module")
def stacked():
    """klein's spec, a map of rank 4 whose layers have sizes of their own, and the adapter fitted on pairs of it."""
    made = klein_spec()
    left, right = random(made.inputs, 4, seed=1), random(4, made.targets, seed=2)
    right = (right.unflatten(1, (-1, 3, WIDTH)) * torch.tensor([0.2, 1.0, 5.0]).view(1, 1, 3, 1)).flatten(1)
    offset = random(made.targets, seed=3)
    fit = PictureAdapterFit(made)
    for features in random(PAIRS, made.inputs, seed=4):
        fit.add(features, (features @ left @ right + offset).unflatten(0, (-1, 3 * WIDTH)))
    return made, fit.solve(), (left, right, offset)


def rms(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).mean(-1, keepdims=True))


def test_kleins_planted_map_comes_back_in_every_layer(stacked):
    made, adapter, (left, right, offset) = stacked
    assert made.tokens == 5 + 9 and made.targets == 14 * 3 * WIDTH and made.text_layer is None
    fresh = random(5, made.inputs, seed=9)
    expected = (fresh.double() @ left.double() @ right.double() + offset.double()).unflatten(1, (-1, 3 * WIDTH))
    found = adapter.predict(fresh).double()
    for at in range(0, 3 * WIDTH, WIDTH):
        layer, goal = found[..., at : at + WIDTH], expected[..., at : at + WIDTH]
        assert (layer - goal).norm() < 2e-3 * goal.norm()
    assert adapter.report.r2 > 0.999 and set(adapter.report.r2_by) == {"style", "light", "tail"}


@pytest.mark.parametrize("strength", [0.4, 1.0, 1.7, -1.0])
def test_kleins_layers_are_led_in_as_numpy_says(stacked, strength):
    made, adapter, _ = stacked
    layout, look = klein_words((11, 12, 13)), klein_seen(21)
    text = random(len(layout), 3 * WIDTH, seed=20) * torch.tensor([1.0, 4.0, 20.0]).repeat_interleave(WIDTH)
    moved, longer, info = adapter.apply(text, layout, look, strength)
    predicted = adapter.predict(made.features.of(look)).double().numpy()
    own, at, share = text.double().numpy(), 6, np.sign(strength) * abs(strength) ** (0.6 if abs(strength) <= 1 else 1)
    for index in range(3):
        of = slice(index * WIDTH, (index + 1) * WIDTH)
        goal, neutral = predicted[:5, of], own[at - 1 : at, of]
        scaled = neutral * rms(goal) / rms(neutral)  # in this layer alone
        np.testing.assert_allclose(moved[at : at + 5, of], scaled + share * (goal - scaled), rtol=1e-4, atol=1e-4)
        tail = own[at : at + 9, of] + share * predicted[5:, of]
        np.testing.assert_allclose(moved[at + 5 : at + 14, of], tail, rtol=1e-4, atol=1e-4)
    assert torch.equal(moved[:at], text[:at])
    assert moved.shape == text.shape and torch.equal(moved[20:], text[20:])  # padding, whose first 5 places are taken
    assert longer.roles[at : at + 5].tolist() == [1] * 5 and longer.token_ids[at + 5 : at + 14].tolist() == (
        layout.token_ids[at : at + 9].tolist()
    )
    assert longer.padding().sum() == layout.padding().sum() - 5 and info.tokens == 5


def test_what_finds_no_padding_makes_kleins_text_longer(stacked):
    layout = klein_words((11, 12, 13), 17)  # 2 places of padding, 5 tokens come in
    text = random(len(layout), 3 * WIDTH, seed=20)
    moved, longer, _ = stacked[1].apply(text, layout, klein_seen(21))
    assert len(moved) == len(longer) == 15 + 5 and not longer.padding().any()
    assert torch.equal(moved[:6], text[:6])


def test_kleins_text_at_strength_0_is_itself_and_without_a_layout_words_say_where_it_ends(stacked):
    layout = klein_words((11, 12, 13))
    text = random(2, len(layout), 3 * WIDTH, seed=20)
    still, same, _ = stacked[1].apply(text, layout, klein_seen(21), 0.0)
    assert still is text and same is layout
    known = stacked[1].apply(text, layout, klein_seen(21), neutral="mean")[0]
    found, none, info = stacked[1].apply(text, None, klein_seen(21), neutral="mean", words=15)
    assert torch.equal(found, known) and none is None
    assert "the last 9 tokens before the padding" in info.describe()


def test_kleins_targets_are_found_before_the_padding():
    """What a fit is fed: descriptions resampled by layer, and what they change at all nine tokens of the tail."""
    texts = [klein_words(ids) for ids in ((11, 12), (11, 12, 7, 21, 22), (11, 12, 7, 21, 22, 7, 31))]
    described, own = random(PADDED, 3 * WIDTH, seed=5), random(PADDED, 3 * WIDTH, seed=6)
    fit = PictureAdapterFit(klein_spec())
    taken = []
    fit.add = lambda features, target, weight, fold: taken.append(target)
    fit.add_pair(klein_seen(21, ()), described, texts, own)
    (target,) = taken
    assert target.shape == (5 + 9, 3 * WIDTH)
    torch.testing.assert_close(target[2:5].mean(0), described[8:10].mean(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(target[5:], described[10:19] - own[5:14])


def test_a_think_block_changes_nothing_of_what_a_picture_is_known_by():
    """The states before it are the same, since attention is causal."""
    short, long = seen(21), klein_seen(21)
    same = dataclasses.replace(short, states=long.states[:, : short.states.shape[1]])
    assert torch.equal(PictureFeatures().of(long), PictureFeatures().of(same))


def test_a_saved_klein_adapter_is_the_same_and_a_file_without_a_family_is_zimages(stacked, planted, tmp_path):
    made, adapter, _ = stacked
    adapter.save(tmp_path / "k.safetensors")
    again = PictureAdapter.load(tmp_path / "k.safetensors")
    x = random(2, made.inputs, seed=8)
    assert again.spec == made and torch.equal(again.predict(x), adapter.predict(x))
    assert "for FLUX.2 klein, layers 9, 18, 27 side by side" in again.describe()
    header = {name: value for name, value in planted[0].header().items() if name != "family"}
    assert AdapterSpec.from_header(header) == planted[0] and planted[0].family == "Z-Image"


def test_the_miniatures_adapter_whose_file_is_older_than_families_acts_as_numpy_says():
    adapter = PictureAdapter.load(Path(__file__).parents[3] / "miniature" / "models" / "adapter.safetensors")
    made, layout = adapter.spec, words((11, 12, 13))
    vl = insert_pictures(layout, [(4, 4)], SPECIAL)
    states = random(1, len(vl), made.vl_width, seed=1)
    look = VLStates(states, (made.vl_blocks - 1,), made.vl_blocks, vl)
    assert (made.family, made.text_layer, made.tokens) == ("Z-Image", -2, made.words + 5)
    fields = states[0, vl.picture_positions()[0]].double().numpy().reshape(2, 2, 2, 2, -1).mean((1, 3)).reshape(4, -1)
    x = np.concatenate([fields, states[0, -5:].double().numpy()]).ravel()
    center, left, right, offset = (part.double().numpy() for part in adapter.map.tensors().values())
    predicted = (offset + (x - center) @ left @ right).reshape(made.tokens, -1)
    text = random(len(layout), made.text_width, seed=2)
    moved = adapter.apply(text, layout, look)[0].double().numpy()
    expected = np.concatenate([text[:6], predicted[: made.words], text[6:].double() + predicted[made.words :]])
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-3 * rms(expected).max())


def test_adapters_and_texts_of_two_families_are_refused_in_words(stacked, planted):
    ours, theirs = words((11, 12, 13)), klein_words((11, 12, 13))
    with pytest.raises(ValueError, match=r"text: the adapter predicts layer -2 of text for Z-Image, width 12, got "
                       r"width 36 \(FLUX.2 klein 4B, layers 9, 18, 27 side by side\)\. Use the text encoder"):
        planted[3].apply(random(len(theirs), 3 * WIDTH), theirs, klein_seen(21))
    with pytest.raises(ValueError, match=r"predicts layers 9, 18, 27 side by side of text for FLUX.2 klein, width 36, "
                       r"got width 12 \(Z-Image"):
        stacked[1].apply(random(len(ours), WIDTH), ours, seen(21))
    # of one width, the template tells
    with pytest.raises(ValueError, match=r"whole text of FLUX.2 klein, which ends with 9 template tokens"):
        stacked[1].apply(random(len(ours), 3 * WIDTH), ours, klein_seen(21))
    with pytest.raises(ValueError, match="whole text of Z-Image, which ends with 5 template tokens"):
        planted[3].apply(random(len(theirs), WIDTH), theirs, seen(21))
    with pytest.raises(ValueError, match=r"for FLUX.2 klein, got layer -2"):
        stacked[1].apply(random(len(theirs), 3 * WIDTH), theirs.with_layer(-2), klein_seen(21))
    with pytest.raises(ValueError, match="layer -2 of text for Z-Image, got layer -3"):
        planted[3].apply(random(len(ours), WIDTH), ours.with_layer(-3), seen(21))
    with pytest.raises(ValueError, match=r"text_width: expected 3 equal parts .*, got 35"):
        AdapterSpec(PictureFeatures(), SLOTS, WIDTH, BLOCKS, 35, family="FLUX.2 klein")
    with pytest.raises(ValueError, match=r"family: expected one of Z-Image, FLUX.2 klein"):
        AdapterSpec(PictureFeatures(), SLOTS, WIDTH, BLOCKS, 36, family="SDXL")


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf"), 1e30, -3.5])
def test_factors_of_slots_beyond_reason_are_refused(planted, factor):
    adapter, layout = planted[3], words((11, 12, 13))
    with pytest.raises(ValueError, match=r"slots: expected factors of at most 3, got light:"):
        adapter.apply(random(len(layout), WIDTH, seed=20), layout, seen(21), slots={"light": factor})


@pytest.mark.parametrize("scale", [1e-30, 1e-42])
def test_denormal_features_make_a_finite_adapter(planted, scale):
    made, x, t, _, _ = planted
    fit = PictureAdapterFit(made)
    for features, target in zip(x, t, strict=True):
        fit.add(features * scale, target)
    adapter = fit.solve()
    assert adapter.predict(x[:4] * scale).isfinite().all() and adapter.predict(x[:4]).isfinite().all()


def test_an_adapter_that_is_not_finite_or_does_not_fit_itself_is_refused(planted, tmp_path):
    from vl_core.states.storage import read_tensors, write_tensors

    path = tmp_path / "odd.safetensors"
    planted[3].save(path)
    tensors, header = read_tensors(path, "picture adapter")
    odd = {
        "nan": tensors | {"map.right": tensors["map.right"] * float("nan")},
        "rank": tensors | {"map.right": tensors["map.right"][:-1]},
        "span": tensors | {"span.center": tensors["span.center"][:-1]},
        "zero": tensors | {"span.scale": torch.zeros_like(tensors["span.scale"])},
        "whole": tensors | {"map.offset": tensors["map.offset"].long()},
    }
    for changed in odd.values():
        write_tensors(path, "picture adapter", changed, header)
        with pytest.raises(ValueError, match=r"odd\.safetensors: "):
            PictureAdapter.load(path)
