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
    host = part("nodes.host")
    plain = host.encode_vision
    words = host.encode_vision(native, {}, PROMPT, [-2])[0]
    width = words.states.shape[-1]
    planted = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0] * 1.7

    def mapped(clip, prompt):
        states, _ = plain(native, {}, prompt, [-2])[0].at(-2)
        return [[(states.float() @ planted)[None], {}]]

    monkeypatch.setattr(host, "encode_text", mapped)
    monkeypatch.setattr(host, "clip_identity", lambda clip: "planted")
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
    (tmp_path / "few.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match=r"prompts: expected at least 10 in few\.txt"):
        run("MatchSpace", seen, native, text_clip, "ridge", "few.txt")
    (tmp_path / "many.txt").write_text("\n".join(f"a cat number {index} by the sea" for index in range(12)))
    assert "fitted on 12 prompts" in told(run("MatchSpace", seen, native, text_clip, "ridge", "many.txt"))
