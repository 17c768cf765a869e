"""Several references, weights, masks, image delta, timing and mixed layers on tiny models, through either encoder."""

from __future__ import annotations

import pytest
import torch

PROMPT = "a cat in a red hat"
LAYOUT = "vl_layout"
MODES = ["aligned blend", "research: as published", "appended tokens", "research: image delta", "blend and append"]
ALONE = ["average", "add", "subtract", "norm average", "max weight per token"]
WAYS = ["concat", *ALONE]
MASK_USES = ["crop to the box", "keep covered tokens"]


@pytest.fixture(scope="module")
def text(core_text):
    return core_text(PROMPT)


@pytest.fixture(scope="module")
def other(shuffled) -> torch.Tensor:
    """A second picture, of another size."""
    return shuffled[:, :, :64].contiguous()


@pytest.fixture
def encode(run, vision):
    """States and layout of Qwen3-VL Encode."""

    def states(images: dict, **options) -> tuple[torch.Tensor, object]:
        ((found, extra),) = run("Encode", vision, PROMPT, layer=-2, images=images, **options)[0]
        return found, extra[LAYOUT]

    return states


@pytest.fixture
def condition(run, text_clip, vision):
    """States of Z-Image Vision Conditioning."""

    def states(images: dict, strength: float = 0.5, mode: str = "aligned blend", **options) -> torch.Tensor:
        return run("Condition", text_clip, vision, PROMPT, strength, mode, images=images, **options)[0][0][0]

    return states


def outside(states: torch.Tensor, layout) -> torch.Tensor:
    """The positions that hold no picture."""
    return states[:, layout.roles < 2]


# --- what changes nothing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_weights_one_and_zero_are_one_picture_bit_for_bit(way, encode, picture, other):
    both = encode({"image0": picture, "image1": other}, weights="1, 0", combine=way)
    one = encode({"image0": picture})
    assert torch.equal(both[0], one[0])
    assert torch.equal(both[1].token_ids, one[1].token_ids) and both[1].grids == one[1].grids


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["concat", "average", "max weight per token"])
def test_in_every_mode_weights_one_and_zero_are_one_picture(way, mode, condition, picture, other):
    images = {"image0": other, "image1": picture}
    both = condition(images, mode=mode, weights="0, 1", combine=way)
    assert torch.equal(both, condition({"image0": picture}, mode=mode))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("use", MASK_USES)
def test_a_full_mask_is_none(use, way, encode, picture, other):
    images = {"image0": picture, "image1": other}
    masks = {"mask0": torch.ones(1, 64, 96), "mask1": torch.ones(1, 5, 7)}
    masked, plain = encode(images, combine=way, masks=masks, mask_use=use), encode(images, combine=way)
    assert torch.equal(masked[0], plain[0]) and masked[1].grids == plain[1].grids


@pytest.mark.parametrize("way", ["average", "max weight per token"])
def test_the_same_picture_twice_is_the_picture_once(way, encode, picture):
    twice, once = encode({"image0": picture, "image1": picture.clone()}, combine=way), encode({"image0": picture})
    assert torch.equal(outside(*twice), outside(*once))


@pytest.mark.parametrize("options", [{}, {"weights": "", "combine": "concat", "masks": {"mask0": None}}])
def test_two_pictures_are_read_one_after_another_as_ever_unless_told_otherwise(options, encode, part, vision, picture):
    images = {"image0": picture, "image1": picture[:, :33]}
    with torch.inference_mode():
        seen, _ = part("nodes.host.encoders").encode_vision(vision, images, PROMPT, [-2])
    assert torch.equal(encode(images, **options)[0][0], seen.at(-2)[0].float())


@pytest.mark.parametrize("mode", MODES)
def test_acting_all_the_time_is_no_timing(mode, run, text_clip, native, picture):
    plain, timed = (
        run("Condition", text_clip, native, PROMPT, mode=mode, images={"image0": picture}, **options)[0]
        for options in ({}, {"start_percent": 0.0, "end_percent": 1.0})
    )
    assert len(timed) == 1 and torch.equal(timed[0][0], plain[0][0])
    assert "start_percent" not in timed[0][1]


@pytest.mark.parametrize("way", WAYS)
def test_without_a_picture_it_is_the_plain_text_encode(way, run, text_clip, native, text, told):
    output = run("Condition", text_clip, native, PROMPT, 1.0, combine=way, mode="aligned blend")
    assert torch.equal(output[0][0][0], text[0][0]) and "no picture connected" in told(output)
    assert torch.equal(
        run("Encode", native, PROMPT, combine=way)[0][0][0], run("Encode", native, PROMPT)[0][0][0]
    )


def test_weights_that_are_all_zero_leave_the_words(run, text_clip, native, picture, text, told):
    output = run("Condition", text_clip, native, PROMPT, 1.0, weights="0", images={"image0": picture})
    assert torch.equal(output[0][0][0], text[0][0]) and "every weight is 0" in told(output)


# --- several pictures -------------------------------------------------------------------------------------------------


def test_the_average_is_the_mean_of_what_each_picture_alone_makes_of_the_words(encode, picture, other):
    a, b = (outside(*encode({"image0": image})) for image in (picture, other))
    mixed = outside(*encode({"image0": picture, "image1": other}, weights="3, 1", combine="average"))
    torch.testing.assert_close(mixed, 0.75 * a + 0.25 * b, rtol=1e-5, atol=1e-5)


def test_below_zero_is_the_other_side_of_the_picture_muted_in_place(encode, part, vision, picture):
    with torch.inference_mode():
        muted, _ = part("nodes.host.encoders").encode_vision(vision, {"image0": picture}, PROMPT, [-2], mute=True)
    zero = outside(muted.at(-2)[0][None].float(), muted.layout)
    there = outside(*encode({"image0": picture}))
    back, layout = encode({"image0": picture}, weights="-1", combine="average")
    torch.testing.assert_close(back, 2 * zero - there, rtol=1e-4, atol=1e-4)
    assert layout.grids == ()


@pytest.mark.parametrize("way", ALONE)
def test_both_encoders_combine_alike(way, run, native, loaded, picture, other):
    ours, theirs = (
        run(
            "Encode", encoder, PROMPT, layer=-2, weights="1, 0.5", combine=way,
            images={"image0": picture, "image1": other},
        )[0][0][0]
        for encoder in (native, loaded)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_every_mode_paints_something_else_than_the_words(
    way, mode, run, text_clip, native, picture, other, text, sample
):
    images = {"image0": picture, "image1": other}
    output = run("Condition", text_clip, native, PROMPT, 0.7, mode, images=images, combine=way)[0]
    painted = sample(output)
    assert painted.isfinite().all() and not torch.allclose(painted, sample(text), atol=1e-3)


def test_the_second_picture_counts_in_every_way(encode, picture, other):
    first = outside(*encode({"image0": picture}))
    for way in WAYS:
        both = outside(*encode({"image0": picture, "image1": other}, combine=way))
        assert not torch.allclose(both, first, atol=1e-3)


@pytest.mark.parametrize("way, weights, encodes", [
    ("concat", "", 1), ("average", "", 2), ("average", "1, 0", 1), ("average", "1, -1", 4), ("add", "", 4),
])
def test_reading_each_alone_takes_an_encode_per_picture_and_another_where_zero_is_needed(
    way, weights, encodes, run, native, picture, other, part, monkeypatch, told
):
    host, done = part("nodes.host.encoders"), []
    encode = host.encode_vision
    monkeypatch.setattr(host, "encode_vision", lambda *a, **k: done.append(k.get("mute", False)) or encode(*a, **k))
    images = {"image0": picture, "image1": other}
    shown = told(run("Encode", native, PROMPT, images=images, weights=weights, combine=way))
    assert len(done) == encodes
    assert (f"{encodes} encodes" in shown) == (way != "concat")
    assert ("half of them with the picture muted" in shown) == any(done)


def test_a_batch_counts_as_several_pictures(encode, picture, shuffled):
    batch = encode({"image0": torch.cat([picture, shuffled])}, weights="1, 0.5", combine="average")[0]
    single = encode({"image0": picture, "image1": shuffled}, weights="1, 0.5", combine="average")[0]
    assert torch.equal(batch, single)


def test_remarks_and_errors_name_the_picture_they_are_about(run, native, picture, told):
    small = torch.rand(1, 10, 40, 3)
    images = {"image0": picture, "image1": small}
    shown = told(run("Encode", native, PROMPT, images=images, combine="average"))
    assert "image 2 40×10 enlarged" in shown and "image 1 " not in shown
    with pytest.raises(ValueError, match=r"image 2: .*NaN"):
        images["image1"] = small * float("nan")
        run("Encode", native, PROMPT, images=images, combine="average")
    with pytest.raises(ValueError, match="image 2: expected sides at most 200:1"):
        images["image1"] = torch.rand(1, 1, 300, 3)
        run("Encode", native, PROMPT, images=images, combine="average")


@pytest.mark.parametrize("options, message", [
    ({"weights": "1"}, r"weights: expected 2, one for each picture .*got 1"),
    ({"weights": "1, 2, 3"}, "weights: expected 2"), ({"weights": "a, b"}, "weights: expected numbers"),
    ({"weights": "1, 9"}, "weights: expected -3"),
    ({"weights": "1, 0.5"}, "expected 0 or 1 with combine = concat.*got 0.5"),
    ({"weights": "1, -1"}, "expected 0 or 1 with combine = concat.*got -1"),
    ({"combine": "mean"}, "combine: expected one of concat"), ({"mask_use": "paint"}, "mask_use: expected one of crop"),
    ({"masks": {"mask5": torch.ones(1, 4, 4)}}, "masks: mask5 has no image5"),
    ({"masks": {"mask0": torch.ones(2, 4, 4)}}, r"masks: mask0 expected one mask.*\(2, 4, 4\)"),
    ({"masks": {"mask1": torch.zeros(1, 4, 4)}}, "mask of picture 2: covers nothing"),
    ({"masks": {"mask1": torch.zeros(1, 4, 4)}, "mask_use": "keep covered tokens"}, "covers no image token"),
])
def test_what_does_not_fit_is_refused_in_words(options, message, run, text_clip, native, picture, other):
    images = {"image0": picture, "image1": other}
    with pytest.raises(ValueError, match=message):
        run("Encode", native, PROMPT, images=images, **options)
    with pytest.raises(ValueError, match=message):
        run("Condition", text_clip, native, PROMPT, images=images, **{"mode": "aligned blend", **options})


def test_a_picture_that_is_pushed_away_cannot_be_appended(run, text_clip, native, picture):
    with pytest.raises(ValueError, match="appended tokens has nothing to add"):
        run(
            "Condition", text_clip, native, PROMPT, 0.5, "appended tokens", images={"image0": picture}, weights="-1",
            combine="average",
        )


# --- masks ------------------------------------------------------------------------------------------------------------


def test_cropping_is_reading_the_cut_out_picture(encode, picture):
    mask = torch.zeros(1, 64, 96)
    mask[:, 10, 32:] = mask[:, :, 40] = 1  # a cross has a box as well
    cropped, layout = encode({"image0": picture}, masks={"mask0": mask})
    cut, cut_layout = encode({"image0": picture[:, :, 32:]})
    assert torch.equal(cropped, cut) and layout.grids == cut_layout.grids == ((2, 2),)


def test_keeping_covered_tokens_is_what_select_tokens_does(encode, run, vision, picture):
    mask = torch.zeros(1, 64, 96)
    mask[:, :32] = 1  # the upper of two rows of tokens
    whole = run("Encode", vision, PROMPT, layer=-2, images={"image0": picture})[0]
    expected = run("SelectTokens", whole, "all", mask=mask)[0]
    for way in ("concat", "average"):
        kept, layout = encode({"image0": picture}, masks={"mask0": mask}, mask_use=MASK_USES[1], combine=way)
        assert torch.equal(kept, expected[0][0])
        assert layout.grids == ((1, 3),) and layout.cut


def test_a_mask_belongs_to_the_picture_of_its_number(encode, picture, other):
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    images = {"image0": picture, "image1": other}
    kept = encode(images, masks={"mask1": mask}, mask_use=MASK_USES[1])[1]
    assert kept.grids == ((2, 3), (1, 2))


def test_a_batch_can_have_one_mask_or_one_for_each(encode, picture, shuffled):
    batch = torch.cat([picture, shuffled])
    masks = torch.ones(2, 64, 96)
    masks[1, 32:] = 0
    for given, grids in ((masks, ((2, 3), (1, 3))), (masks[1:], ((1, 3), (1, 3))), (masks[1], ((1, 3), (1, 3)))):
        assert encode({"image0": batch}, masks={"mask0": given}, mask_use=MASK_USES[1])[1].grids == grids


def test_what_a_mask_did_is_said(run, text_clip, native, picture, told):
    mask = torch.zeros(1, 64, 96)
    mask[:, 32:, 32:] = 1
    options = {"images": {"image0": picture}, "masks": {"mask0": mask}}
    options = {"mode": "aligned blend", **options}
    assert "image 1: cropped to 64×32 of 96×64" in told(run("Condition", text_clip, native, PROMPT, **options))
    shown = told(run("Condition", text_clip, native, PROMPT, mask_use=MASK_USES[1], **options))
    assert "the words have seen the whole pictures" in shown


# --- image delta as a mode --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [-3.0, -0.5, 1.0, 3.0])
def test_image_delta_is_what_the_image_delta_node_gives(strength, condition, run, vision, text, picture):
    node = run("Delta", vision, PROMPT, text, strength, images={"image0": picture})[0][0][0]
    assert torch.equal(condition({"image0": picture}, strength, "research: image delta"), node)


def test_a_picture_added_and_subtracted_leaves_the_words_where_they_were(condition, picture, text):
    images = {"image0": picture, "image1": picture.clone()}
    states = condition(images, 1.0, "research: image delta", weights="1, -1", combine="add")
    torch.testing.assert_close(states, text[0][0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(condition(images, 1.0, "research: image delta", combine="add"), text[0][0], atol=1e-2)


def test_a_negative_weight_in_image_delta_is_a_negative_strength(condition, picture, text):
    pushed = condition({"image0": picture}, 1.0, "research: image delta", weights="-1", combine="average") - text[0][0]
    turned = condition({"image0": picture}, -1.0, "research: image delta") - text[0][0]
    # Alike, not equal: states are mirrored before they are brought to unit size, a strength turns what comes after.
    cosine = torch.cosine_similarity(pushed[0, 3:], turned[0, 3:], dim=-1)
    assert (cosine > 0.7).all()


@pytest.mark.parametrize("mode", MODES[:3])
@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_a_strength_the_way_does_not_take_is_brought_into_its_range(mode, strength, run, native, text_clip, told):
    shown = told(run("Condition", text_clip, native, PROMPT, strength, mode))
    used = max(0, min(1, strength))
    assert f"Strength {strength:g} is outside 0 to 1, which {mode} takes: {used:g} was used." in shown


def test_the_host_is_told_before_anything_runs(part):
    """By its lists, which take more names than they show: a value in none of them marks its own input alone."""
    inputs = {one.id: one for one in part("nodes.condition").ZImageVLCondition.GET_SCHEMA().inputs}
    ways, takes = inputs["mode"].options, inputs["recipe"].options
    for name in ("describe", "blend aligned", "append picture", "image delta", "blend as published"):
        assert name in ways and name not in list(ways)
    assert "push away" in takes and "none" in takes and "automatic" in ways
    for wrong in ("telepathy", "", None, 7, ["words"], {}):
        assert wrong not in ways and wrong not in takes


# --- timing -----------------------------------------------------------------------------------------------------------


def test_a_picture_can_act_part_of_the_time(run, text_clip, native, picture, text, sample, told):
    options = {"images": {"image0": picture}, "start_percent": 0.25, "end_percent": 0.75}
    output = run("Condition", text_clip, native, PROMPT, **{"mode": "aligned blend", **options})
    ranges = [(one[1]["start_percent"], round(one[1]["end_percent"], 4)) for one in output[0]]
    assert ranges == [(0.0, 0.25), (0.25, 0.75), (0.75, 1.0)]
    assert torch.equal(output[0][0][0], text[0][0]) and not torch.equal(output[0][1][0], text[0][0])
    assert "acts from 25% to 75% of the steps" in told(output)
    assert sample(output[0]).isfinite().all()
    with pytest.raises(ValueError, match="start_percent: expected less than end_percent"):
        run("Condition", text_clip, native, PROMPT, start_percent=0.5, end_percent=0.5, mode="aligned blend")


# --- layers -----------------------------------------------------------------------------------------------------------


def test_one_layer_in_the_mix_is_that_layer(encode, picture):
    for mix in ("-2", "-2, -4:0", "-2:0.3"):
        assert torch.equal(encode({"image0": picture}, mix_layers=mix)[0], encode({"image0": picture})[0])


def test_a_mix_of_layers_is_their_mean_at_unit_size(run, encode, vision, picture):
    mixed = encode({"image0": picture}, mix_layers="-2, -4:0.5")[0]
    two, four = (run("Encode", vision, PROMPT, layer=k, images={"image0": picture})[0][0][0] for k in (-2, -4))
    rms = [side.square().mean(-1, keepdim=True).sqrt() for side in (two, four)]
    expected = rms[0] * (two / rms[0] + 0.5 * four / rms[1]) / 1.5
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)


def test_the_mix_is_told_and_works_with_several_pictures(run, native, picture, other, told):
    output = run(
        "Encode", native, PROMPT, images={"image0": picture, "image1": other}, combine="average",
        mix_layers="-2, -4:0.5", tokens="text",
    )
    assert "layer -2 × 1, -4 × 0.5" in told(output) and output[0][0][1][LAYOUT].layer is None


@pytest.mark.parametrize("mix, message", [
    ("-2, two", "mix_layers: expected a layer or a range"), ("-2, -2", "every layer once"),
    ("-9", "layer: expected -7 to -1"), ("-2, -4:-1", "sum is not zero"),
])
def test_layers_that_cannot_be_mixed_are_refused(mix, message, run, native, picture):
    with pytest.raises(ValueError, match=message):
        run("Encode", native, PROMPT, images={"image0": picture}, mix_layers=mix)


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_a_budget_limits_what_each_picture_keeps_or_appends(run, native, text, picture):
    images = {"image0": picture, "image1": picture[:, :32, :32].contiguous()}
    seen = run("Encode", native, PROMPT, layer=-2, tokens="image_no_markers", images=images)[0]
    selected = run("SelectTokens", seen, "image_no_markers", budget=2)[0]
    grids = selected[0][1][LAYOUT].grids
    assert grids[0] == (1, 2) and all(rows * columns <= 2 for rows, columns in grids)
    appended = run("Blend", text, seen, {"method": "append", "downsample": 1}, budget=2)[0]
    assert torch.equal(appended[0][0], torch.cat([text[0][0], selected[0][0]], 1))
    free = run("Blend", text, seen, {"method": "append", "downsample": 1})[0]
    assert torch.equal(free[0][0], torch.cat([text[0][0], seen[0][0]], 1))
    with pytest.raises(ValueError, match="budget: only append"):
        run("Blend", text, seen, {"method": "resample", "alpha": 0.5}, budget=2)


# --- alpha on chosen words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["aligned", "resample", "adain", "adain_per_dim", "style_dims"])
def test_only_the_chosen_words_are_mixed(method, run, native, text, picture, told):
    seen = run("Encode", native, PROMPT, layer=-2, images={"image0": picture})[0]
    value = {"method": method, "alpha": 0.6}
    whole = run("Blend", text, seen, value)[0][0][0]
    output = run("Blend", text, seen, value, words="red hat")
    # user header, then: a cat in a red hat
    chosen = [7, 8]
    kept = [place for place in range(text[0][0].shape[1]) if place not in chosen]
    assert torch.equal(output[0][0][0][:, kept], text[0][0][:, kept])
    assert torch.equal(output[0][0][0][:, chosen], whole[:, chosen])
    assert not torch.allclose(output[0][0][0][:, chosen], text[0][0][:, chosen], atol=1e-3)
    assert "only on 2 tokens: red hat" in told(output)


def test_words_with_a_minus_are_kept_and_all_others_mixed(run, native, text, picture, told):
    seen = run("Encode", native, PROMPT, images={"image0": picture})[0]
    value = {"method": "aligned", "alpha": 0.6}
    whole, only, kept = (run("Blend", text, seen, value, words=words) for words in ("", "red hat", "-red hat"))
    chosen = (only[0][0][0] != text[0][0]).any(-1)[0]
    assert torch.equal(kept[0][0][0][:, chosen], text[0][0][:, chosen])
    assert torch.equal(kept[0][0][0][:, ~chosen], whole[0][0][0][:, ~chosen])
    assert "not on 2 tokens: red hat" in told(kept)


def test_words_go_with_a_curve_and_with_text_that_knows_its_words(run, text_clip, native, picture):
    words = run("Condition", text_clip, native, PROMPT, 0.0, mode="aligned blend")[0]
    seen = run("Encode", native, PROMPT, layer=-2, tokens="text", images={"image0": picture})[0]
    value = {"method": "aligned", "alpha": 0.0, "curve": "linear", "alpha_end": 1.0}
    curved, chosen = (run("Blend", words, seen, value, words=w)[0][0][0] for w in ("", "cat, hat"))
    assert torch.equal(chosen[:, [4, 8]], curved[:, [4, 8]])
    assert torch.equal(chosen[:, [5, 6, 7, 9]], words[0][0][:, [5, 6, 7, 9]])


@pytest.mark.parametrize("words, message", [
    ("a", r"'a' is in the prompt 2 times, at its tokens 1, 4 \("), ("dog", "'dog' is not in the prompt; its words are"),
    ('"cat', "double quotes in pairs"),
])
def test_words_that_are_ambiguous_or_not_there_are_refused_with_the_places(words, message, run, native, text, picture):
    seen = run("Encode", native, PROMPT, layer=-2, images={"image0": picture})[0]
    with pytest.raises(ValueError, match=message):
        run("Blend", text, seen, {"method": "aligned", "alpha": 0.5}, words=words)


def test_words_need_someone_who_knows_them_and_a_method_that_mixes(run, native, text, picture):
    seen = run("Encode", native, PROMPT, layer=-2, tokens="image_no_markers", images={"image0": picture})[0]
    with pytest.raises(ValueError, match="which token is which word, which neither side says"):
        run("Blend", text, seen, {"method": "resample", "alpha": 0.5}, words="cat")
    with pytest.raises(ValueError, match="words: append leaves all words"):
        run("Blend", text, seen, {"method": "append"}, words="cat")
