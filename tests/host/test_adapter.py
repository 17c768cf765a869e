"""Fit and Apply Picture Adapter on tiny models: a folder in, a file out, and what it adds to a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

PROMPT = "a cat in a red hat"
PICTURES = 12
CAPTIONS = "text files beside the pictures"
SLOTS = ("style", "palette", "light", "background", "composition")
TAIL = 5


@pytest.fixture(scope="module")
def fitted(run, text_clip, native, looks):
    return run("AdapterFit", text_clip, native, looks, CAPTIONS, "looks")


@pytest.fixture(scope="module")
def text(core_text):
    return core_text(PROMPT)


def test_the_fit_says_what_it_did_and_keeps_the_file(fitted, told, part):
    assert f"{PICTURES} pairs" in told(fitted)
    assert "looks.safetensors" in told(fitted)
    assert list(part("nodes.host.folders").saved_adapters()) == ["looks.safetensors"]
    assert not list(part("nodes.host.folders").adapters_folder().glob("*.part"))


def test_a_picture_adds_the_slots_tokens_before_the_tail(run, fitted, text, native, picture, told):
    output = run("AdapterApply", native, PROMPT, text, images={"image0": picture}, adapter=fitted[0])
    before, after = text[0][0], output[0][0][0]
    added = sum(slot.tokens for slot in fitted[0].spec.slots)
    assert after.shape[1] == before.shape[1] + added
    assert torch.equal(after[:, : before.shape[1] - TAIL], before[:, :-TAIL])
    assert f"{added} description tokens" in told(output)


def test_strength_0_and_no_picture_are_the_text_bit_for_bit(run, fitted, text, native, picture):
    for options in ({"strength": 0.0, "images": {"image0": picture}}, {"images": {}}):
        found = run("AdapterApply", native, PROMPT, text, adapter=fitted[0], **options)[0]
        assert torch.equal(found[0][0], text[0][0])


def test_another_picture_adds_other_tokens(run, fitted, text, native, picture, shuffled):
    first, second = (
        run("AdapterApply", native, PROMPT, text, images={"image0": image}, adapter=fitted[0])[0][0][0]
        for image in (picture, shuffled)
    )
    assert not torch.allclose(first, second)


def test_the_file_is_the_adapter(run, fitted, text, native, picture):
    wired = run("AdapterApply", native, PROMPT, text, images={"image0": picture}, adapter=fitted[0])[0][0][0]
    read = run("AdapterApply", native, PROMPT, text, 1.0, "looks.safetensors", images={"image0": picture})[0][0][0]
    assert torch.equal(wired, read)


def test_slots_and_weights_are_words_people_write(run, fitted, text, native, picture, shuffled):
    pictures = {"image0": picture, "image1": shuffled}
    options = {"images": pictures, "adapter": fitted[0]}
    style = run("AdapterApply", native, PROMPT, text, slots="style, palette:0.5", **options)[0][0][0]
    assert style.shape[1] == text[0][0].shape[1] + 16
    one = run("AdapterApply", native, PROMPT, text, weights="1, 0", **options)[0][0][0]
    alone = run("AdapterApply", native, PROMPT, text, images={"image0": picture}, adapter=fitted[0])[0][0][0]
    torch.testing.assert_close(one, alone)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"slots": "smell"}, "slots: expected some of"), ({"slots": "style:much"}, "slots: expected names"),
        ({"slots": "style, style:0.5"}, "slots: expected every slot once"),
        ({"weights": "1, 2"}, "weights"), ({"adapter": None}, "file: expected one of"),
    ],
)
def test_bad_input_is_named(run, fitted, text, native, picture, options, expected):
    given = {"images": {"image0": picture}, "adapter": fitted[0], **options}
    with pytest.raises(ValueError, match=expected):
        run("AdapterApply", native, PROMPT, text, **given)


def test_slots_nobody_can_read_are_told_before_the_picture_is_read(
    run, fitted, text, native, picture, part, monkeypatch
):
    monkeypatch.setattr(part("nodes.adapter"), "read_for", lambda *_: pytest.fail("the picture was read"))
    with pytest.raises(ValueError, match="slots: expected names"):
        run("AdapterApply", native, PROMPT, text, images={"image0": picture}, adapter=fitted[0], slots="style:")


@pytest.mark.parametrize(
    ("folder_name", "name", "expected"),
    [("../..", "x", "folder: expected a folder below"), ("looks", "a/b", "name: expected a plain file name")],
)
def test_names_that_lead_elsewhere_are_refused(run, text_clip, native, looks, folder_name, name, expected):
    with pytest.raises(ValueError, match=expected):
        run("AdapterFit", text_clip, native, folder_name, CAPTIONS, name)


def test_a_folder_that_is_not_there_is_named(run, text_clip, native, looks):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run("AdapterFit", text_clip, native, "nowhere")


def test_descriptions_that_qwen3_vl_writes_are_words_like_any(run, text_clip, native, looks, part, told, monkeypatch):
    asked, description = [], part("vl_core.encoder.writing").Description

    def write(encoder, images, instruction, **options):
        asked.append(instruction)
        if len(asked) == 20:
            raise ValueError("instruction: expected words, the model wrote nothing")
        words = "\n".join(f"{slot}: {slot} number {len(asked)}" for slot in SLOTS)
        return description(words, words, 9, False)

    monkeypatch.setattr(part("nodes.host.encoders"), "write_words", write)
    output = run("AdapterFit", text_clip, native, looks, "Qwen3-VL describes them", "told")
    assert [slot.name for slot in output[0].spec.slots] == list(SLOTS)
    assert len(asked) == PICTURES and all(f"{slot}: …" in asked[0] for slot in SLOTS)
    with pytest.raises(ValueError, match=r"07\.png: instruction: expected words"):
        run("AdapterFit", text_clip, native, looks, "Qwen3-VL describes them", "told")


def test_descriptions_are_not_written_anew_after_a_stop(run, text_clip, native, looks, part, told, monkeypatch):
    asked, description = [], part("vl_core.encoder.writing").Description

    def write(encoder, images, instruction, **options):
        asked.append(images)
        if len(asked) == 6:
            raise KeyboardInterrupt
        words = "\n".join(f"{slot}: {slot} {float(images['image'].float().mean()):.3f}" for slot in SLOTS)
        return description(words, words, 9, False)

    monkeypatch.setattr(part("nodes.host.encoders"), "write_words", write)
    settings = (text_clip, native, looks, "Qwen3-VL describes them", "rewritten")
    with pytest.raises(KeyboardInterrupt):
        run("AdapterFit", *settings)
    kept = part("nodes.host.folders").adapters_folder() / "rewritten_words.jsonl"
    assert kept.is_file()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # once more, among the pairs of the fit
        left = [PICTURES + 3]

        def stop():
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        patch.setattr(part("nodes.host.memory"), "progress_bar", lambda total: stop)
        run("AdapterFit", *settings)
    assert len(asked) == PICTURES + 1 and kept.is_file()
    output = run("AdapterFit", *settings)
    assert len(asked) == PICTURES + 1  # the one that was stopped was asked for twice
    assert f"took the words of {PICTURES} pictures" in told(output)
    assert not kept.exists()
    fresh = run("AdapterFit", *settings)
    assert len(asked) == 2 * PICTURES + 1 and "took the words" not in told(fresh)
    first, second = output[0].map.tensors(), fresh[0].map.tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_words_without_slots_are_taken_as_a_whole_and_the_node_says_so(run, text_clip, native, looks, told):
    import folder_paths

    odd = Path(folder_paths.get_input_directory()) / looks / "03.txt"
    before = odd.read_text(encoding="utf-8")
    odd.write_text("a plain look", encoding="utf-8")
    output = run("AdapterFit", text_clip, native, looks, CAPTIONS, "odd")
    odd.write_text("embedding:look, a plain look", encoding="utf-8")
    with pytest.raises(ValueError, match=r"03\.png: words: expected plain words"):
        run("AdapterFit", text_clip, native, looks, CAPTIONS, "odd")
    odd.write_text(before, encoding="utf-8")
    assert [slot.name for slot in output[0].spec.slots] == ["description"]
    assert "taken as a whole" in told(output)


def test_strength_0_runs_no_encoder(run, fitted, text, picture, told):
    output = run("AdapterApply", None, PROMPT, text, 0.0, images={"image0": picture}, adapter=fitted[0])
    assert output[0] is text
    assert "strength 0" in told(output)


def test_a_fit_that_was_stopped_goes_on(run, text_clip, native, looks, part, told, monkeypatch):
    examples, left = part("vl_core.adapters.examples"), [9]
    monkeypatch.setattr(examples, "KEEP_EVERY", 4)

    def stop():
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(part("nodes.host.memory"), "progress_bar", lambda total: stop)
        run("AdapterFit", text_clip, native, looks, CAPTIONS, "stopped")
    output = run("AdapterFit", text_clip, native, looks, CAPTIONS, "stopped")
    assert "went on after 8 pictures" in told(output)
    assert not list(part("nodes.host.folders").adapters_folder().glob("*.part"))


def lora_of(clip, strength: float = 3.0):
    """The same encoder with a LoRA in it, as core's Load LoRA gives it."""

    key = "layers.1.mlp.down_proj.weight"
    name = next(name for name in clip.cond_stage_model.state_dict() if name.endswith(key))
    weight = clip.cond_stage_model.state_dict()[name]
    changed = clip.clone()
    assert changed.add_patches({name: (torch.full_like(weight, 0.2),)}, strength)
    return changed


@pytest.mark.parametrize("changed", ["text", "vision", "budget", "prompts", "words"])
def test_a_stopped_fit_goes_on_only_with_what_it_began_with(
    changed, run, text_clip, native, looks, part, told, monkeypatch
):
    """What comes out is what the new encoders, budget, prompts or words alone give, not a mixture of both."""
    import folder_paths

    monkeypatch.setattr(part("vl_core.adapters.examples"), "KEEP_EVERY", 4)
    root, name = Path(folder_paths.get_input_directory()), f"mixed_{changed}"
    (root / "mine.txt").write_text("a dog\na house by the sea\n", encoding="utf-8")

    def stop_at(count: int):
        left = [count]

        def stop():
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        return stop

    def fit(new: bool, name: str, replace: bool = True):
        is_new = {kind: new and kind == changed for kind in ("text", "vision", "budget", "prompts")}
        return run(
            "AdapterFit", lora_of(text_clip) if is_new["text"] else text_clip,
            lora_of(native) if is_new["vision"] else native, looks, CAPTIONS, name,
            image_tokens=4 if is_new["budget"] else 1024, prompts="mine.txt" if is_new["prompts"] else "",
            replace=replace,
        )

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(part("nodes.host.memory"), "progress_bar", lambda total: stop_at(9))
        fit(False, name)
    before = (root / looks / "02.txt").read_text(encoding="utf-8")
    if changed == "words":
        (root / looks / "02.txt").write_text(before.replace("number", "hue"), encoding="utf-8")
    try:
        found, expected = fit(True, name), fit(True, f"{name}_alone")
    finally:
        (root / looks / "02.txt").write_text(before, encoding="utf-8")
    assert "went on" not in told(found)
    first, second = found[0].map.tensors(), expected[0].map.tensors()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not list(part("nodes.host.folders").adapters_folder().glob("*.part"))  # nor what the first one left


def test_words_that_another_encoder_wrote_are_not_taken(run, text_clip, native, looks, part, told, monkeypatch):
    asked, description = [], part("vl_core.encoder.writing").Description

    def write(encoder, images, instruction, **options):
        asked.append(encoder)
        if len(asked) == 6:
            raise KeyboardInterrupt
        words = "\n".join(f"{slot}: {slot} {len(asked)}" for slot in SLOTS)
        return description(words, words, 9, False)

    monkeypatch.setattr(part("nodes.host.encoders"), "write_words", write)
    with pytest.raises(KeyboardInterrupt):
        run("AdapterFit", text_clip, native, looks, "Qwen3-VL describes them", "writers")
    output = run("AdapterFit", text_clip, lora_of(native), looks, "Qwen3-VL describes them", "writers")
    assert "took the words" not in told(output) and len(asked) == 6 + PICTURES
