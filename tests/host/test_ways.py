"""Ways of the simple node that tell what the picture is like: words, picture adapter, automatic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

PROMPT = "a cat in a red hat"
SLOTS = ("style", "palette", "light", "background", "composition")
WAYS = ("automatic", "words", "picture adapter")


@pytest.fixture(scope="module")
def writer(tiny):
    return tiny.writing_clip()


@pytest.fixture(scope="module")
def loaders(tiny, run, base_folder, writer):
    """Load Qwen3-VL on the writer's weights, down to a layer."""
    folder = tiny.write_folder(base_folder / "models" / "text_encoders" / "Qwen3-VL-Teller", writer)
    return lambda deepest: run("Loader", folder.name, "fp32", deepest_layer=deepest)[0]


@pytest.fixture(scope="module")
def fitted(run, text_clip, writer, base_folder):
    """An adapter fitted on noise, and its file."""
    import folder_paths

    root = base_folder / "told_input"
    (root / "looks").mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(drawn.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(root / "looks" / f"{index:02}.png")
        words = "\n".join(f"{slot}: {slot} number {index}" for slot in SLOTS)
        (root / "looks" / f"{index:02}.txt").write_text(words, encoding="utf-8")
    before = folder_paths.get_input_directory(), folder_paths.models_dir
    folder_paths.set_input_directory(str(root))
    folder_paths.models_dir = str(base_folder / "told_models")
    yield run("AdapterFit", text_clip, writer, "looks", name="told")[0]
    folder_paths.set_input_directory(before[0])
    folder_paths.models_dir = before[1]


@pytest.fixture
def steer(run, text_clip, writer, picture):
    def go(mode: str, strength: float = 0.5, *images: torch.Tensor, **options):
        shown = {f"image{index}": image for index, image in enumerate(images or (picture,))}
        return run("Condition", text_clip, writer, PROMPT, strength, mode, images=shown, **options)

    return go


def states(output) -> torch.Tensor:
    return output[0][0][0]


@pytest.fixture
def writing(part, monkeypatch):
    """How often Qwen3-VL is asked to write."""
    host, asked = part("nodes.steering"), []
    plain = host.write_words

    def count(*arguments, **options):
        asked.append(arguments)
        return plain(*arguments, **options)

    monkeypatch.setattr(host, "write_words", count)
    return asked


@pytest.mark.parametrize("mode", WAYS)
def test_strength_0_and_no_picture_are_the_words_bit_for_bit(mode, steer, run, text_clip, core_text, writing):
    expected = core_text(PROMPT)[0][0]
    assert torch.equal(states(steer(mode, 0.0)), expected)
    assert torch.equal(states(run("Condition", text_clip, None, PROMPT, 0.5, mode)), expected)
    assert not writing


def test_described_at_strength_1_is_core_s_encoding_of_prompt_and_words(steer, part, writer, picture, core_text, told):
    settings = part("vl_core.steering.settings").Settings()
    words = part("nodes.host.encoders").write_words(
        writer, {"image0": picture}, settings.taken.instruction, max_tokens=settings.longest
    ).words
    output = steer("words", 1.0)
    assert torch.equal(states(output), core_text(part("vl_core.encoder.answers").append_words(PROMPT, words))[0][0])
    assert words in told(output)


def test_between_0_and_1_the_prompts_own_tokens_stay_and_the_rest_comes_in(steer, core_text):
    plain, whole = core_text(PROMPT)[0][0], states(steer("words", 1.0))
    own = plain.shape[1] - 5
    tails = []
    for strength in (0.1, 0.4, 0.8):
        found = states(steer("words", strength))
        assert found.shape == whole.shape
        torch.testing.assert_close(found[:, :own], whole[:, :own])
        tails.append(float((found - whole).norm()))
    assert tails == sorted(tails, reverse=True)


@pytest.mark.parametrize("strength", [0.4, 1.0, 1.5])
def test_both_encoders_tell_the_same(strength, loaders, steer, run, text_clip, fitted, picture, shuffled, told):
    loaded, shown = loaders(-1), {"image0": picture, "image1": shuffled}
    for mode in ("words", "picture adapter"):
        ours = steer(mode, strength, picture, shuffled, adapter=fitted)
        theirs = run("Condition", text_clip, loaded, PROMPT, strength, mode, images=shown, adapter=fitted)
        torch.testing.assert_close(states(theirs), states(ours), rtol=1e-4, atol=1e-4)
        assert told(theirs).splitlines()[0] == told(ours).splitlines()[0]


def test_an_encoder_without_its_last_blocks_cannot_describe_and_is_told_how_to(loaders, run, text_clip, picture):
    with pytest.raises(ValueError, match=r"describing needs all .* Load it again with `deepest layer` -1"):
        run("Condition", text_clip, loaders(-3), PROMPT, 0.5, "words", images={"image0": picture})


def test_another_picture_is_told_in_other_words_and_the_same_one_is_told_once(steer, shuffled, picture, writing, told):
    first, again = steer("words", 0.3), steer("words", 0.9)
    assert len(writing) <= 1  # an earlier test may have had it described
    assert "described before" in told(again)
    ours, theirs = (told(output).split(" Added to your prompt")[0] for output in (again, first))
    assert ours == theirs and ours.startswith("Qwen3-VL saw: ")
    changed = picture.clone()
    changed[0, 0, 0, 0] = 1 - changed[0, 0, 0, 0]
    count = len(writing)
    steer("words", 0.9, changed)
    assert len(writing) == count + 1
    assert states(steer("words", 0.3, shuffled)).shape != states(first).shape or not torch.allclose(
        states(steer("words", 0.3, shuffled)), states(first)
    )


def test_a_host_that_keeps_nothing_describes_anew(steer, writing, part, monkeypatch):
    monkeypatch.setattr(part("nodes.host.memory"), "fast_allowed", lambda: False)
    steer("words", 0.4)
    steer("words", 0.6)
    assert len(writing) == 2


def test_the_adapter_is_that_of_apply_picture_adapter(steer, fitted, run, writer, core_text, picture, shuffled):
    for strength in (-1.0, 0.5, 1.5):
        expected = run(
            "AdapterApply", writer, PROMPT, core_text(PROMPT), strength, images={"image0": picture}, adapter=fitted
        )
        assert torch.equal(states(steer("picture adapter", strength, adapter=fitted)), states(expected))
    by_file = steer("picture adapter", 0.5, adapter_file="told.safetensors")
    assert torch.equal(states(by_file), states(steer("picture adapter", 0.5, adapter=fitted)))
    one = steer("picture adapter", 0.5, picture, shuffled, adapter=fitted, weights="1, 0")
    torch.testing.assert_close(states(one), states(by_file))


def test_automatic_takes_the_adapter_for_what_it_knows_and_words_for_the_rest(steer, fitted, told, part, monkeypatch):
    known = part("vl_core.adapters.familiarity").Familiarity
    report = replace(fitted.report, r2=0.9, r2_by={"tail": 0.9})  # fitted on noise: its own is far below
    good = replace(fitted, map=replace(fitted.map, report=report))
    for familiar, line in (
        (True, "automatic: picture adapter"),
        (False, "automatic: words, because the picture adapter has not seen pictures like this"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(known, "familiar", property(lambda self, familiar=familiar: familiar))
            output = steer("automatic", 0.5, adapter=good)
            assert line in told(output).splitlines()
            other = steer("picture adapter" if familiar else "words", 0.5, adapter=good)
            assert torch.equal(states(output), states(other))
            if not familiar:
                assert "The way words needs none." in told(steer("picture adapter", 0.5, adapter=good))
    assert "automatic: words, because no picture adapter is connected" in told(steer("automatic"))
    weak = steer("automatic", 0.5, adapter=fitted)
    assert "automatic: words, because the picture adapter's fit is weak (" in told(weak)
    assert torch.equal(states(weak), states(steer("words", 0.5)))


def test_fits_of_this_pack_do_not_hang_on_the_prompt(fitted, part, writer, picture):
    assert not fitted.spec.own_prompt
    read = part("nodes.adapter").read_for
    one, other = (read(fitted, writer, [picture], prompt, 1024)[0][0].states for prompt in ("a fox", "ships at sea"))
    assert torch.equal(one, other)


def test_timing_and_masks_work_in_every_mode(steer, fitted, core_text, picture):
    mask = torch.zeros(1, 64, 96)
    mask[:, :32, :48] = 1
    for mode in WAYS:
        options = {"adapter": fitted, "start_percent": 0.25}
        entries = steer(mode, 0.5, **options)[0]
        assert len(entries) == 2
        assert torch.equal(entries[0][0], core_text(PROMPT)[0][0])
        cropped = steer(mode, 0.5, adapter=fitted, masks={"mask0": mask})
        box = steer(mode, 0.5, picture[:, :32, :48], adapter=fitted)
        torch.testing.assert_close(states(cropped), states(box))


@pytest.mark.parametrize(
    ("mode", "strength", "options", "message"),
    [
        ("picture adapter", 0.5, {}, "adapter: the way picture adapter needs one, got none"),
        ("words", float("nan"), {}, "strength: expected a number from -3 to 3, got nan"),
        ("picture adapter", 0.5, {"adapter_file": "x.safetensors"}, "adapter_file: expected one of"),
        ("words", 0.5, {"weights": "0.5"}, "weights: expected 0 or 1 with words"),
        ("tell", 0.5, {}, "mode: expected one of automatic, words, learned look, picture adapter"),
    ],
)
def test_mistakes_are_named(mode, strength, options, message, steer):
    with pytest.raises(ValueError, match=message):
        steer(mode, strength, **options)


@pytest.mark.parametrize(
    ("mode", "strength", "used", "line"),
    [
        ("words", 2.0, 1.5, "Strength 2 is outside 0 to 1.5, which words takes: 1.5 was used."),
        ("automatic", 3.0, 1.5, "Strength 3 is outside 0 to 1.5, which automatic takes: 1.5 was used."),
        ("aligned blend", 1.2, 1.0, "Strength 1.2 is outside 0 to 1, which aligned blend takes: 1 was used."),
        ("picture adapter", 4.0, 3.0, "Strength 4 is outside -3 to 3, which picture adapter takes: 3 was used."),
        ("words", -0.5, 0.0, "Strength -0.5 is outside 0 to 1.5, which words takes: 0 was used."),
    ],
)
def test_a_strength_out_of_a_ways_range_is_brought_into_it_and_said(mode, strength, used, line, steer, fitted, told):
    output = steer(mode, strength, adapter=fitted)
    assert line in told(output)
    assert torch.equal(states(output), states(steer(mode, used, adapter=fitted)))
    assert ("Words only: strength 0." in told(output)) == (used == 0)


def test_a_picture_of_weight_0_is_not_described(steer, picture, shuffled):
    assert torch.equal(
        states(steer("words", 0.5, picture, shuffled, weights="1, 0")), states(steer("words", 0.5, picture))
    )


def test_masks_that_pick_tokens_and_weights_below_0_are_refused(steer, fitted):
    mask = torch.ones(1, 64, 96)
    with pytest.raises(ValueError, match="Choose crop to the box"):
        steer("words", 0.5, masks={"mask0": mask}, mask_use="keep covered tokens")
    with pytest.raises(ValueError, match="weights: expected 0 or more with a picture adapter"):
        steer("picture adapter", 0.5, weights="-1", adapter=fitted)


# --- kept words, schedules, old names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["automatic", "words", "describe"])
def test_kept_words_load_no_vision_model_and_nothing_is_written(way, run, text_clip, core_text, picture, writing, told):
    for images in (None, {"image0": picture}):
        output = run("Condition", text_clip, None, PROMPT, 1.0, way, images=images, words=" thick paint ")
        assert torch.equal(states(output), core_text(f"{PROMPT}, thick paint")[0][0])
        assert told(output).startswith("Your words: thick paint. Added to your prompt at strength 1.")
    assert not writing


def test_kept_words_come_before_an_adapter_that_has_no_picture(run, text_clip, core_text, fitted):
    good = replace(fitted, map=replace(fitted.map, report=replace(fitted.report, r2=0.9)))
    output = run("Condition", text_clip, None, PROMPT, 1.0, adapter=good, words="thick paint")
    assert torch.equal(states(output), core_text(f"{PROMPT}, thick paint")[0][0])


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_empty_words_are_none(empty, steer):
    assert torch.equal(states(steer("words", 0.5, words=empty)), states(steer("words", 0.5)))


@pytest.fixture
def scheduled(text_clip):
    """The text encoder under a LoRA that sets in half way, by core's own hook nodes."""
    import comfy.hooks
    from comfy_extras import nodes_hooks

    name, weight = next(
        (name, weight) for name, weight in text_clip.cond_stage_model.named_parameters()
        if name.endswith("layers.0.mlp.gate_proj.weight")
    )
    drawn = torch.Generator().manual_seed(7)
    lora = {
        f"text_encoders.{name.removesuffix('.weight')}.{part}.weight": torch.randn(*shape, generator=drawn)
        for part, shape in (("lora_up", (weight.shape[0], 2)), ("lora_down", (2, weight.shape[1])))
    }
    keyframes = None
    for strength, start in ((0.0, 0.0), (1.0, 0.5)):
        (keyframes,) = nodes_hooks.CreateHookKeyframe().create_hook_keyframe(strength, start, keyframes)
    hooks = comfy.hooks.create_hook_lora(lora, 0.0, 1.0)
    (hooks,) = nodes_hooks.SetHookKeyframes().set_hook_keyframes(hooks, keyframes)
    return nodes_hooks.SetClipHooks().apply_hooks(text_clip, True, True, hooks)[0]


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_every_keyframe_of_a_clip_is_paired_with_its_own_described_entry(strength, scheduled, run, core_text, part):
    output = run("Condition", scheduled, None, PROMPT, strength, words="thick paint")[0]
    plain, whole = (core_text(prompt, scheduled) for prompt in (PROMPT, f"{PROMPT}, thick paint"))
    assert len(output) == len(plain) == len(whole) == 2 and not torch.equal(whole[0][0], whole[1][0])
    bring_in, tokens = part("vl_core.stages.description").bring_in, part("nodes.host.text_encoder").tokenize_text
    layouts = [tokens(scheduled, prompt) for prompt in (PROMPT, f"{PROMPT}, thick paint")]
    for (found, options), (own, _), (described, expected) in zip(output, plain, whole, strict=True):
        mixed = described if strength == 1 else bring_in(own, layouts[0], described, layouts[1], strength)[0]
        assert torch.equal(found, mixed)
        assert {name: options.get(name) for name in ("clip_start_percent", "clip_end_percent", "start_percent")} == {
            name: expected.get(name) for name in ("clip_start_percent", "clip_end_percent", "start_percent")
        }
        assert options["hooks"] is expected["hooks"] or options["hooks"].hooks == expected["hooks"].hooks


def test_what_is_wired_in_is_none_before_the_run(part):
    node = part("nodes.condition").ZImageVLCondition
    assert node.fingerprint_inputs(recipe=None, adapter_file=None, words=None, prompt=None) == node.fingerprint_inputs()


OLD_NAMES = {"blend aligned": -6, "append picture": -2, "image delta": -2, "blend as published": -6, "describe": None}


@pytest.mark.parametrize("old", OLD_NAMES)
def test_a_workflow_saved_under_an_old_name_gives_what_the_stages_give_one_by_one(
    old, run, text_clip, native, core_text, picture, part, monkeypatch
):
    inputs = part("nodes.condition").ZImageVLCondition.GET_SCHEMA().inputs
    choices = {one.id: one.options for one in inputs if one.id in ("mode", "recipe")}
    assert old in choices["mode"] and "none" in choices["recipe"]
    found = part("vl_core.encoder.writing").Description("blue dusk", "blue dusk", 2, False)
    monkeypatch.setattr(part("nodes.host.memory"), "fast_allowed", lambda: False)  # keeps no words for other tests
    monkeypatch.setattr(part("nodes.steering"), "write_words", lambda *_, **__: found)
    text, images = core_text(PROMPT), {"image0": picture}
    ours = run("Condition", text_clip, native, PROMPT, 0.5, old, images=images, recipe="none")[0]
    layer = OLD_NAMES[old]
    if old == "describe":
        whole, tokens = core_text(f"{PROMPT}, blue dusk"), part("nodes.host.text_encoder").tokenize_text
        layouts = [tokens(text_clip, prompt) for prompt in (PROMPT, f"{PROMPT}, blue dusk")]
        bring_in = part("vl_core.stages.description").bring_in
        expected = bring_in(text[0][0], layouts[0], whole[0][0], layouts[1], 0.5)[0]
    elif old == "image delta":
        expected = run("Delta", native, PROMPT, text, 0.5, images=images, layer=layer)[0][0][0]
    else:
        published = old == "blend as published"
        tokens = {"append picture": "image_no_markers", "blend aligned": "all"}.get(old, "text")
        seen = run("Encode", native, PROMPT, layer=layer, tokens=tokens, images=images)[0]
        if published:
            seen = run("Normalize", seen, {"mode": "global", "target_std": 61.0}, sinks="include")[0]
        method = {
            "blend aligned": {"method": "aligned", "alpha": 0.5},
            "append picture": {"method": "append", "downsample": 2},
        }.get(old, {"method": "resample", "alpha": 0.5, "space": "raw", "antialias": False})
        expected = run("Blend", text, seen, method, **({"sinks": "include"} if published else {}))[0][0][0]
    assert torch.equal(ours[0][0], expected)
