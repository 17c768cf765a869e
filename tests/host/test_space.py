"""Match Text Encoder on tiny models: planted maps come back, other widths fit, and what does not fit is named."""

from __future__ import annotations

import pytest
import torch

PROMPT = "a cat in a red hat"


@pytest.fixture(scope="module")
def seen(run, native, picture):
    return run("Encode", native, PROMPT, -2, images={"image0": picture})[0]


@pytest.fixture(scope="module")
def text(core_text):
    return core_text(PROMPT)


def spread(states: torch.Tensor, goal: torch.Tensor) -> float:
    return float((states - goal).square().mean() / goal.square().mean())


@pytest.mark.parametrize("method", ["ridge", "reduced_rank", "procrustes", "per_dimension", "whitening"])
def test_every_method_maps_and_says_how_well(method, run, native, text_clip, seen, told):
    output = run("MatchSpace", seen, native, text_clip, method)
    assert output[0][0][0].shape == seen[0][0].shape
    assert output[0][0][0].isfinite().all()
    assert not torch.equal(output[0][0][0], seen[0][0])
    assert f"Space adapter {method}" in told(output) and "held-out tokens" in told(output)


def test_a_planted_map_comes_back(run, native, text_clip, part, monkeypatch):
    """The text encoder's states are made a known linear map of the VL's; the node finds it."""
    host = part("nodes.host.encoders")
    plain = host.encode_vision
    words = host.encode_vision(native, {}, PROMPT, [-2])[0]
    width = words.states.shape[-1]
    planted = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0] * 1.7

    def mapped(clip, prompt):
        states, _ = plain(native, {}, prompt, [-2])[0].at(-2)
        return [[(states.float() @ planted)[None], {}]]

    monkeypatch.setattr(part("nodes.host.text_encoder"), "encode_text", mapped)
    monkeypatch.setattr(part("nodes.space"), "identity_of", lambda encoder: "planted")
    embeddings = run("Encode", native, PROMPT, -2)[0]
    found = run("MatchSpace", embeddings, native, text_clip, "ridge")[0][0][0]
    assert spread(found[:, 3:], (embeddings[0][0] @ planted)[:, 3:]) < 1e-2
    assert spread(embeddings[0][0][:, 3:], (embeddings[0][0] @ planted)[:, 3:]) > 0.5


def test_mapped_words_blend_like_any(run, native, text_clip, seen, text):
    matched = run("MatchSpace", seen, native, text_clip)[0]
    blended = run("Blend", text, matched, {"method": "aligned", "alpha": 0.5})[0]
    assert blended[0][0].shape == text[0][0].shape
    assert not torch.equal(blended[0][0], text[0][0])


def test_the_fit_is_made_once(run, native, text_clip, seen, told):
    run("MatchSpace", seen, native, text_clip, "procrustes")
    assert "fitted before" in told(run("MatchSpace", seen, native, text_clip, "procrustes"))
    assert "fitted before" not in told(run("MatchSpace", run("Encode", native, PROMPT, -3)[0], native, text_clip,
                                           "procrustes"))


def test_an_encoder_of_another_width_can_be_matched(run, core, tiny, loaded, picture):
    wide = tiny.text_clip(hidden_size=96)
    with torch.inference_mode():
        text = core.CLIPTextEncode().encode(wide, PROMPT)[0]
    states = run("Encode", loaded, PROMPT, -2, images={"image0": picture})[0]
    with pytest.raises(ValueError, match="96"):
        run("Blend", text, states, {"method": "aligned", "alpha": 0.5})
    matched = run("MatchSpace", states, loaded, wide)[0]
    assert matched[0][0].shape == (1, states[0][0].shape[1], 96)
    with pytest.raises(ValueError, match="needs equal widths"):
        run("MatchSpace", states, loaded, wide, "per_dimension")
    blended = run("Blend", text, matched, {"method": "aligned", "alpha": 0.5})[0]
    assert blended[0][0].shape == text[0][0].shape and blended[0][0].isfinite().all()


def test_mistakes_are_named(run, native, text_clip, seen, text):
    with pytest.raises(ValueError, match="needs to know what each token is"):
        run("MatchSpace", text, native, text_clip)
    with pytest.raises(FileNotFoundError, match="prompts: expected a text file"):
        run("MatchSpace", seen, native, text_clip, "ridge", "nowhere.txt")
    with pytest.raises(ValueError, match="folder: expected a folder below"):
        run("MatchSpace", seen, native, text_clip, "ridge", "../../x.txt")


def test_prompts_come_from_a_file(run, native, text_clip, seen, told, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    (tmp_path / "few.txt").write_text("a cat\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"prompts: expected at least 10 in few\.txt"):
        run("MatchSpace", seen, native, text_clip, "ridge", "few.txt")
    many = "\n".join(f"a cat number {index} by the sea" for index in range(12))
    (tmp_path / "many.txt").write_text(many, encoding="utf-8")
    assert "fitted on 12 prompts" in told(run("MatchSpace", seen, native, text_clip, "ridge", "many.txt"))


# --- through image delta and append -----------------------------------------------------------------------------------


@pytest.fixture
def adapter(part, native):
    """A map given by its matrix, an offset and the mean it is taken about."""
    made = part("vl_core.adapters.space_adapter").SpaceAdapter

    def of(matrix, offset=0.0, center=0.0, layer=-2):
        width = len(matrix)
        parts = torch.full((width,), center), torch.full((width,), offset)
        return made("ridge", *parts, left=matrix, right=torch.eye(width), layers=(layer, -2))

    return of


@pytest.fixture
def delta(run, native, text, picture):
    def states(weight=1.0, **options):
        return run("Delta", native, PROMPT, text, weight, images={"image0": picture}, **options)[0][0][0]

    return states


def test_the_node_hands_out_the_map_that_it_applies(run, native, text_clip, seen):
    matched, space = run("MatchSpace", seen, native, text_clip, "procrustes")
    assert space.layers == (-2, -2) and space.method == "procrustes"
    assert torch.equal(space.apply(seen[0][0]), matched[0][0])


def test_a_map_that_changes_nothing_leaves_the_delta_bit_for_bit(delta, adapter, text):
    assert torch.equal(delta(space=adapter(torch.eye(text[0][0].shape[-1]))), delta())


def test_a_rotation_gives_the_delta_rotated(delta, adapter, text):
    """Tokens keep their size under it, so the delta in units of size is the old one times the matrix."""
    y = text[0][0]
    rotation = torch.linalg.qr(torch.randn(y.shape[-1], y.shape[-1], generator=torch.Generator().manual_seed(0)))[0]
    expected = y + (delta() - y) @ rotation
    torch.testing.assert_close(delta(space=adapter(rotation)), expected, rtol=1e-4, atol=1e-4)
    assert (delta() - y).norm() > 0.01 * y.norm()


def test_both_readings_go_through_the_map_by_the_written_out_formula(
    delta, adapter, text, native, part, picture, run, told
):
    width = text[0][0].shape[-1]
    planted = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) * 0.2
    with torch.inference_mode():
        plus, zero = (
            part("nodes.host.encoders").encode_vision(native, {"image0": picture}, PROMPT, [-2], mute=mute)[0].at(-2)
            for mute in (False, True)
        )
    words = (plus[1].roles < 2).nonzero().flatten()
    sides = [(side[0].double()[words] - 0.1) @ planted.double() + 0.5 for side in (plus, zero)]
    x, x0 = (side / side.square().mean(-1, keepdim=True).sqrt() for side in sides)
    y = text[0][0][0].double()
    expected = y + y.square().mean(-1, keepdim=True).sqrt() * 0.6 * (x - x0)
    found = delta(0.6, space=adapter(planted, 0.5, 0.1))[0].double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(delta(0.0, space=adapter(planted)), text[0][0])


def test_a_shift_alone_leaves_the_words_that_see_no_picture(delta, adapter, text):
    shifted = delta(space=adapter(torch.eye(text[0][0].shape[-1]), 3.0))
    assert torch.equal(shifted[:, :3], text[0][0][:, :3])
    assert shifted.isfinite().all()


def test_a_map_of_another_layer_or_width_is_refused(delta, adapter, text):
    width = text[0][0].shape[-1]
    with pytest.raises(ValueError, match=r"space: expected one fitted on layer -2.*got layer -3.*the same layer"):
        delta(space=adapter(torch.eye(width), layer=-3))
    with pytest.raises(ValueError, match=rf"states: the adapter was fitted on .* width {width + 1}, got width {width}"):
        delta(space=adapter(torch.eye(width + 1)))


def test_the_delta_of_an_encoder_of_another_width_fits_after_the_map(run, tiny, loaded, core_text, picture, told):
    wide = tiny.text_clip(hidden_size=96)
    text = core_text(PROMPT, wide)
    with pytest.raises(ValueError, match="expected equal widths"):
        run("Delta", loaded, PROMPT, text, images={"image0": picture})
    space = run("MatchSpace", run("Encode", loaded, PROMPT, -2)[0], loaded, wide)[1]
    output = run("Delta", loaded, PROMPT, text, images={"image0": picture}, space=space)
    assert output[0][0][0].shape == text[0][0].shape and not torch.equal(output[0][0][0], text[0][0])
    assert "Space adapter ridge, width 64 -> 96" in told(output)


def test_mapped_tokens_are_appended_as_they_come(run, native, text_clip, seen, text, sample):
    matched = run("MatchSpace", seen, native, text_clip, "ridge")[0]
    pictures = run("SelectTokens", matched, "image_no_markers")[0]
    method = {"method": "append", "downsample": 1, "position": "end"}
    appended = run("Blend", text, pictures, method)[0]
    assert torch.equal(appended[0][0], torch.cat([text[0][0], pictures[0][0]], 1))
    plain = run("Blend", text, run("SelectTokens", seen, "image_no_markers")[0], method)[0]
    assert appended[0][0].shape == plain[0][0].shape and not torch.equal(appended[0][0], plain[0][0])
    assert sample(appended).isfinite().all()
    words = run("Condition", text_clip, native, PROMPT, 0.0, mode="blend aligned")[0]
    before = run("Blend", words, pictures, {**method, "position": "before the template tail"})[0]
    own = words[0][0]
    assert torch.equal(before[0][0], torch.cat([own[:, :-5], pictures[0][0], own[:, -5:]], 1))
