"""Ways through the nodes that people find: odd prompts, core nodes in between, ranges that never act."""

from __future__ import annotations

import pytest
import torch

PROMPT = "a red fox (in the snow)"


@pytest.mark.parametrize("prompt", ["a cat embedding:nothing", "x <|image_pad|> y", "<|vision_start|>", "\n\n a cat"])
def test_strength_zero_takes_every_prompt_that_core_takes(prompt, run, text_clip, native, core_text, picture):
    words = run("Condition", text_clip, native, prompt, 0.0, images={"image0": picture}, mode="aligned blend")[0]
    assert torch.equal(words[0][0], core_text(prompt)[0][0])


def test_an_embedding_file_in_a_prompt_is_refused_before_a_picture_is_read(run, text_clip, vision, picture):
    with pytest.raises(ValueError, match=r"prompt: contains an embedding: file.*Remove it"):
        run("Condition", text_clip, vision, "a cat embedding:style", 0.5, "aligned blend", images={"image0": picture})


def test_described_words_go_beside_odd_tokens_as_they_are_or_not_at_all(run, text_clip, native, picture):
    prompt, images = "x <|image_pad|> y", {"image0": picture}
    assert run("Condition", text_clip, native, prompt, 1.0, "words", images=images)[0]
    with pytest.raises(ValueError, match=r"prompt: words at another strength than 1 need plain words"):
        run("Condition", text_clip, native, prompt, 0.5, "words", images=images)


@pytest.mark.parametrize("prompt", ["a \\\\(b c", "a \\(red\\) cat"])
def test_escaped_parentheses_are_read_once_by_both_encoders(prompt, run, text_clip, vision, picture):
    mixed = run("Condition", text_clip, vision, prompt, 0.5, images={"image0": picture}, mode="aligned blend")[0]
    assert mixed[0][0].isfinite().all()


def test_save_refuses_what_load_could_not_read_again(run, core, core_text, native, picture):
    seen = run("Encode", native, PROMPT, -2, images={"image0": picture})[0]
    (joined,) = core.ConditioningConcat().concat(seen, core_text(PROMPT))
    with pytest.raises(ValueError, match="a node in between changed them"):
        run("Save", joined, "stale")


def test_a_text_that_never_acts_is_an_error_and_not_an_empty_conditioning(run, core_text, native):
    text = [[states, {**options, "start_percent": 0.6, "end_percent": 0.2}] for states, options in core_text(PROMPT)]
    vl = run("Encode", native, PROMPT, -2)[0]
    with pytest.raises(ValueError, match=r"text: acts from 0\.6 to 0\.2 of the steps, which is never"):
        run("Blend", text, vl, {"method": "aligned", "alpha": 0.5}, 0.1, 0.9)


def test_blend_says_which_options_of_the_vl_it_does_not_use(run, core_text, native, told):
    vl = [[states, {**options, "start_percent": 0.2, "mask": torch.ones(1, 8, 8)}]
          for states, options in run("Encode", native, PROMPT, -2)[0]]
    output = run("Blend", core_text(PROMPT), vl, {"method": "aligned", "alpha": 0.5})
    assert "vl: its mask, start_percent are not used" in told(output)
    assert "start_percent" not in output[0][0][1]


@pytest.mark.parametrize("prefix", ["", "a:b", "what?", "/somewhere/else", "../up"])
def test_names_that_no_file_can_have_are_refused(prefix, run, core_text):
    with pytest.raises(ValueError, match="filename_prefix: expected a name"):
        run("Save", core_text(PROMPT), prefix)


def test_memory_is_asked_for_the_pictures_there_are(run, loaded, picture, monkeypatch, part):
    asked = []
    management = part("nodes.host.memory").comfy.model_management
    load = management.load_models_gpu
    monkeypatch.setattr(
        management, "load_models_gpu", lambda *args, **kw: asked.append(kw["memory_required"]) or load(*args, **kw)
    )
    for budget in (64, 16384):
        run("Encode", loaded, PROMPT, -2, image_tokens=budget, images={"image0": picture[:, :64, :64]})
    assert asked[0] == asked[1] < 256 * 64 * 100


def test_inspect_looks_at_tokens_that_a_core_node_joined(run, core, core_text, native, picture):
    seen = run("Encode", native, PROMPT, -2, images={"image0": picture})[0]
    (joined,) = core.ConditioningConcat().concat(seen, core_text(PROMPT))
    output = run("Inspect", joined)
    assert "which is which is unknown" in output[1]
    assert output[0].shape[0] == 1


def test_inspect_takes_entries_of_any_kind_together(run, core_text, reference):
    text = core_text(PROMPT)
    broken = [[torch.full_like(text[0][0], float("nan")), {}], [text[0][0][:, :1], {}]]
    assert run("Inspect", [*text, *broken], reference)[0].shape[0] == 3


def test_reference_says_when_it_is_measured_on_the_wrong_states(run, native, picture, told):
    seen = run("Encode", native, PROMPT, -2, images={"image0": picture})[0]
    assert "not Z-Image's own" in told(run("Reference", seen))
