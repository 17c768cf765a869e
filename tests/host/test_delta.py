"""Image Delta on tiny models: what a picture adds to the words, through either encoder."""

from __future__ import annotations

import pytest
import torch

PROMPT = "a cat in a red hat"
BLOCKS = 6
EVERY_LAYER = tuple(range(BLOCKS + 1))
BASELINES = ["muted", "absent", "grey", "blurred"]
LAYOUT = "vl_layout"


@pytest.fixture(scope="module")
def text(core_text):
    return core_text(PROMPT)


@pytest.fixture
def encode(part):
    """States of an encode through any encoder."""

    def read(encoder, images, prompt=PROMPT, layers=EVERY_LAYER, **options):
        with torch.inference_mode():
            return part("nodes.host.encoders").encode_vision(encoder, images, prompt, layers, **options)[0]

    return read


@pytest.fixture
def delta(run, vision, text, picture):
    """The node's states; the picture unless another is named."""

    def states(weight=1.0, image=picture, **options) -> torch.Tensor:
        return run("Delta", vision, PROMPT, text, weight, images={"image0": image}, **options)[0][0][0]

    return states


# --- muted pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [((64, 96),), ((61, 107),), ((64, 96), (33, 127)), ((96, 96), (64, 64), (71, 65))],
    ids=lambda sizes: " and ".join(f"{h}×{w}" for h, w in sizes),
)
def test_both_encoders_read_a_muted_picture_alike(sizes, encode, native, loaded):
    images = {f"image{n}": torch.rand(1, *size, 3) for n, size in enumerate(sizes)}
    ours, theirs = (encode(encoder, images, mute=True) for encoder in (native, loaded))
    assert torch.equal(ours.layout.token_ids, theirs.layout.token_ids) and ours.layout.grids == theirs.layout.grids
    for k, a, b in zip(ours.layers, ours.states, theirs.states, strict=True):
        error = float((a - b).norm() / b.norm())
        assert error < 1e-3, f"hidden_states[{k}] differ by {error:.1e}"


def test_muting_keeps_the_layout_and_what_comes_before_the_picture_bit_for_bit(encode, vision, picture):
    seen, muted = (encode(vision, {"image0": picture}, mute=mute) for mute in (False, True))
    assert torch.equal(muted.layout.roles, seen.layout.roles) and muted.layout.grids == seen.layout.grids == ((2, 3),)
    assert torch.equal(muted.layout.token_ids, seen.layout.token_ids)
    assert torch.equal(muted.states[:, :4], seen.states[:, :4])
    assert (muted.states[0, 4:10] == 0).all()
    assert (muted.states[-2, 4:] != seen.states[-2, 4:]).any(-1).all()


def test_a_muted_picture_has_the_rotary_positions_of_a_seen_one(encode, native, picture):
    positions = []
    transformer = native.cond_stage_model.qwen3vl_4b.transformer
    listening = transformer.model.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs["position_ids"]), with_kwargs=True
    )
    try:
        for mute in (False, True):
            encode(native, {"image0": picture, "image1": picture[:, :33]}, mute=mute)
    finally:
        listening.remove()
    # 3 header tokens, 2×3 and (enlarged by the host) 2×4 image tokens and their markers, 6 words, 5 tail tokens
    assert positions[0].shape == positions[1].shape == (3, 3 + 6 + 8 + 4 + 6 + 5)
    assert torch.equal(positions[0].long(), positions[1].long())


def test_muting_leaves_the_hosts_model_as_it_was(encode, native, picture, monkeypatch):
    transformer = native.cond_stage_model.qwen3vl_4b.transformer
    before = encode(native, {"image0": picture}).states
    encode(native, {"image0": picture}, mute=True)
    assert not transformer._forward_pre_hooks
    assert torch.equal(encode(native, {"image0": picture}).states, before)

    def fail(*args, **kwargs):
        raise RuntimeError("stopped")

    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="stopped"):
        broken.setattr(transformer.model, "forward", fail)
        encode(native, {"image0": picture}, mute=True)
    assert not transformer._forward_pre_hooks
    assert torch.equal(encode(native, {"image0": picture}).states, before)


def test_a_muted_encode_does_not_run_the_vision_tower(encode, native, picture, monkeypatch):
    visual = native.cond_stage_model.qwen3vl_4b.transformer.visual
    monkeypatch.setattr(visual, "forward", lambda *args: pytest.fail("the vision tower ran"))
    encode(native, {"image0": picture}, mute=True)


# --- the node ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_picture_changes_what_zimage_paints(baseline, run, vision, text, picture, sample):
    output = run("Delta", vision, PROMPT, text, baseline=baseline, images={"image0": picture})[0]
    assert output[0][0].shape == text[0][0].shape and output[0][0].isfinite().all()
    painted = sample(output)
    assert painted.isfinite().all()
    assert not torch.allclose(painted, sample(text), atol=1e-3)


@pytest.mark.parametrize(("baseline", "level"), [("grey", 0.5), ("blurred", 0.5), ("blurred", 0.2)])
def test_a_picture_that_is_its_own_baseline_adds_exactly_nothing(baseline, level, delta, text):
    plain = torch.full((1, 64, 96, 3), level)
    for weight in (1.0, -3.0):
        assert torch.equal(delta(weight, plain, baseline=baseline), text[0][0])


@pytest.mark.parametrize("options", [{}, {"remove_prompt_direction": True, "rank": 2}, {"baseline": "absent"}])
def test_weight_zero_is_cores_text_encoding_bit_for_bit(options, delta, text):
    assert torch.equal(delta(0.0, **options), text[0][0])


def test_a_negative_weight_moves_the_other_way(delta, text):
    there, back = (delta(weight) - text[0][0] for weight in (1.0, -1.0))
    assert torch.allclose(there, -back, atol=1e-5) and there.norm() > 0.01 * text[0][0].norm()
    twice = delta(2.0) - text[0][0]
    assert torch.allclose(twice, 2 * there, atol=1e-4)


def test_another_picture_adds_something_else(delta, picture, shuffled, text):
    ours, again, theirs = (delta(image=image) for image in (picture, picture.clone(), shuffled))
    assert torch.equal(ours, again)
    assert (ours - theirs).norm() > 0.05 * (ours - text[0][0]).norm()


def test_both_encoders_add_the_same(run, native, loaded, text, picture):
    for baseline in BASELINES:
        ours, theirs = (
            run("Delta", encoder, PROMPT, text, baseline=baseline, images={"image0": picture})[0][0][0]
            for encoder in (native, loaded)
        )
        assert (ours - theirs).norm() < 1e-3 * (theirs - text[0][0]).norm()


def test_the_baselines_differ_and_so_do_the_options(delta):
    results = [delta(baseline=baseline) for baseline in BASELINES]
    results += [delta(remove_prompt_direction=True), delta(rank=1), delta(layer=-3), delta(image_tokens=2)]
    for n, one in enumerate(results):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in results[:n])


def test_the_first_tokens_stay_because_they_cannot_see_the_picture(delta, text):
    assert torch.equal(delta(3.0)[:, :3], text[0][0][:, :3])


@pytest.mark.parametrize("images", [None, {}, {"image0": None}])
def test_without_a_picture_the_words_stand_alone(images, run, native, text, told):
    output = run("Delta", native, PROMPT, text, images=images)
    assert torch.equal(output[0][0][0], text[0][0])
    assert told(output) == "Words only: no picture connected."


def test_the_report_says_what_was_compared_and_how_far_the_words_moved(run, native, text, picture, told):
    shown = told(run("Delta", native, PROMPT, text, 1.5, rank=2, images={"image0": picture}))
    assert "6 image (2×3); layer -2; baseline muted" in shown
    assert "weight 1.5" in shown and "of their size (median)" in shown and "rank 2" in shown


def test_the_texts_own_layout_is_used_and_kept(run, text_clip, native, picture):
    words = run("Condition", text_clip, native, PROMPT, 0.0, mode="blend aligned")[0]
    output = run("Delta", native, PROMPT, words, images={"image0": picture})[0]
    assert output[0][1][LAYOUT].source == "blend"
    assert torch.equal(output[0][1][LAYOUT].token_ids, words[0][1][LAYOUT].token_ids)
    with pytest.raises(ValueError, match=r"same words outside the pictures.*Use the same prompt for both\.$"):
        run("Delta", native, "a dog in a red hat", words, images={"image0": picture})


def test_a_prompt_of_another_length_is_refused(run, vision, text, picture):
    with pytest.raises(ValueError, match="as many as the text has"):
        run("Delta", vision, PROMPT + " by the sea", text, images={"image0": picture})


def test_every_entry_is_moved_and_its_options_stay_and_nothing_is_changed_in_place(run, native, text, picture):
    entries = [[text[0][0].clone(), {"area": (8, 8, 0, 0)}], [text[0][0] * 2, {"strength": 0.5}]]
    output = run("Delta", native, PROMPT, entries, images={"image0": picture})[0]
    assert [options for _, options in output] == [{"area": (8, 8, 0, 0)}, {"strength": 0.5}]
    assert torch.allclose(output[1][0], 2 * output[0][0], rtol=1e-4, atol=1e-4)
    assert torch.equal(entries[0][0], text[0][0])


def test_a_broken_text_is_refused(run, native, text, picture):
    with pytest.raises(ValueError, match=r"text: entry 0 holds .* NaN"):
        run("Delta", native, PROMPT, [[text[0][0] * float("nan"), {}]], images={"image0": picture})


# --- where Blend puts VL tokens ---------------------------------------------------------------------------------------


def test_blend_can_append_before_the_template_tail(run, text_clip, native, picture, sample):
    words = run("Condition", text_clip, native, PROMPT, 0.0, mode="blend aligned")[0]
    seen = run("Encode", native, PROMPT, layer=-2, tokens="image_no_markers", images={"image0": picture})[0]
    method = {"method": "append", "downsample": 1, "position": "before the template tail"}
    ((states, options),) = run("Blend", words, seen, method)[0]
    text = words[0][0]
    assert torch.equal(states, torch.cat([text[:, :-5], seen[0][0], text[:, -5:]], 1))
    assert options[LAYOUT].roles[-5:].tolist() == [0] * 5 and options[LAYOUT].grids == ((2, 3),)
    end = run("Blend", words, seen, {**method, "position": "end"})[0]
    assert torch.equal(end[0][0], torch.cat([text, seen[0][0]], 1))
    assert sample([[states, options]]).isfinite().all()


def test_text_that_does_not_say_where_its_words_end_cannot_be_appended_to_before_its_tail(run, text, native, picture):
    seen = run("Encode", native, PROMPT, layer=-2, tokens="image_no_markers", images={"image0": picture})[0]
    method = {"method": "append", "downsample": 1, "position": "before the template tail"}
    with pytest.raises(ValueError, match=r"needs to know where the words end.*Z-Image Vision Conditioning"):
        run("Blend", text, seen, method)


def test_a_prompt_saved_before_append_had_a_position_is_still_taken(run, part, text, native, picture):
    seen = run("Encode", native, PROMPT, layer=-2, tokens="image_no_markers", images={"image0": picture})[0]
    for absent in ({}, {"position": None}):  # the host hands None for an optional input that was not sent
        states = run("Blend", text, seen, {"method": "append", "downsample": 1, **absent})[0][0][0]
        assert torch.equal(states, torch.cat([text[0][0], seen[0][0]], 1))
    schema = part("nodes.blend").ZImageVLBlend.GET_SCHEMA()
    (method,) = [one for one in schema.inputs if one.id == "method"]
    (append,) = [option for option in method.options if option.key == "append"]
    assert [one.id for one in append.inputs if one.optional] == ["position"]
