"""FLUX.2 klein on tiny models: three layers side by side, read, mixed and padded as the host does."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.usefixtures("few_prompts")
PROMPT = "a cat in a red hat"
BLOCKS, WIDTH, LAYERS, LENGTH = 28, 64, (9, 18, 27), 512
PAD = 151643
TAIL = [151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]  # … assistant \n <think> \n\n </think> \n\n
LAYOUT = "vl_layout"
MODES = ["aligned blend", "appended tokens", "blend and append", "research: image delta"]


@pytest.fixture(scope="module")
def build(tiny):
    """FLUX.2 klein's text encoder as Load CLIP (type flux2) returns it."""
    from comfy.text_encoders import flux

    def clip(model_type="qwen3_4b", seed=2, **text):
        tokenizer = flux.KleinTokenizer8B if model_type == "qwen3_8b" else flux.KleinTokenizer
        return tiny.build_clip(
            flux.klein_te(model_type=model_type), tokenizer, model_type, seed, **{"num_hidden_layers": BLOCKS, **text}
        )

    return clip


@pytest.fixture(scope="module")
def klein(build):
    return build()


@pytest.fixture(scope="module")
def native(tiny):
    """Qwen3-VL as deep as the text encoder."""
    return tiny.vision_clip(num_hidden_layers=BLOCKS)


@pytest.fixture(scope="module")
def loaded(tiny, run, native, base_folder):
    """The same weights as Load Qwen3-VL gives them."""
    import json

    folder = base_folder / "models" / "text_encoders" / "Qwen3-VL-Deep"
    tiny.write_folder(folder, native)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] = BLOCKS
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return run("Loader", folder.name, "fp32", deepest_layer=-1)[0]


@pytest.fixture(params=["native", "transformers"])
def vision(request):
    return request.getfixturevalue({"native": "native", "transformers": "loaded"}[request.param])


@pytest.fixture(scope="module")
def relatives(native, build):
    """Qwen3-VL and klein's text encoder with the same language weights and rotary base."""
    text = build(rope_theta=5000000.0)
    text.cond_stage_model.qwen3_4b.transformer.model.load_state_dict(
        native.cond_stage_model.qwen3vl_4b.transformer.model.state_dict()
    )
    return native, text


def words_of(layout) -> torch.Tensor:
    return ~layout.padding()


# --- what the host does -----------------------------------------------------------------------------------------------


def test_the_text_is_what_clip_text_encode_gives_and_its_layout_says_what_is_padding(klein, core_text, part, told, run):
    (states, options), = core_text(PROMPT, klein)
    with torch.inference_mode():
        (entry,) = part("nodes.host.text_encoder").encode_text(klein, PROMPT)
    assert torch.equal(entry[0], states) and states.shape == (1, LENGTH, 3 * WIDTH)
    layout = entry[1][LAYOUT]
    assert torch.equal(words_of(layout), options["attention_mask"][0].bool())
    ids = [pair[0] for pair in klein.tokenize(PROMPT)["qwen3_4b"][0]]
    assert layout.token_ids.tolist() == ids and ids[-1] == PAD
    assert layout.token_ids[words_of(layout)].tolist()[-9:] == TAIL
    assert layout.describe() == f"12 template, 6 text, {LENGTH - 18} padding" and layout.layer is None


def test_the_template_is_the_hosts_own(part):
    from comfy.text_encoders import flux

    families = part("vl_core.states.families")
    for family, tokenizer in ((families.KLEIN_4B, flux.KleinTokenizer), (families.KLEIN_9B, flux.KleinTokenizer8B)):
        assert tokenizer().llama_template == family.turn
        rows = tokenizer().tokenize_with_weights("")
        ((row,),) = rows.values()
        assert len(row) == family.padded_to and row[-1][0] == PAD
        assert [pair[0] for pair in row if pair[0] != PAD][-family.tail_tokens :] == TAIL


def test_a_prompt_longer_than_the_padding_has_none(klein, part):
    with torch.inference_mode():
        (entry,) = part("nodes.host.text_encoder").encode_text(klein, "cat " * 600)
    assert entry[0].shape[1] == len(entry[1][LAYOUT]) > LENGTH
    assert words_of(entry[1][LAYOUT]).all()


# --- reading ----------------------------------------------------------------------------------------------------------


def test_both_encoders_read_the_same_stack(run, native, loaded, picture):
    ours, theirs = (
        run("Encode", encoder, PROMPT, images={"image0": picture}, family="FLUX.2 klein")[0]
        for encoder in (native, loaded)
    )
    assert ours[0][0].shape == theirs[0][0].shape and ours[0][0].shape[-1] == 3 * WIDTH
    assert torch.equal(ours[0][1][LAYOUT].token_ids, theirs[0][1][LAYOUT].token_ids)
    # transformers gives a state before deepstack is added and the host after it, which ends below layer 9
    torch.testing.assert_close(ours[0][0], theirs[0][0], rtol=1e-3, atol=1e-3)


def test_without_a_picture_qwen3_vl_reads_as_kleins_text_encoder_does(relatives, run, core_text):
    vision, text = relatives
    states = run("Encode", vision, PROMPT, family="FLUX.2 klein")[0][0][0]
    own = core_text(PROMPT, text)[0][0]
    torch.testing.assert_close(states, own[:, : states.shape[1]], rtol=1e-3, atol=1e-3)


def test_each_part_of_the_width_is_one_layer(run, vision, picture, part):
    stack = run("Encode", vision, PROMPT, images={"image0": picture}, family="FLUX.2 klein")[0][0][0]
    with torch.inference_mode():
        seen, _ = part("nodes.host.encoders").encode_vision(
            vision, {"image0": picture}, PROMPT, LAYERS, family=part("vl_core.states.families").KLEIN_4B
        )
    for index, layer in enumerate(LAYERS):
        assert torch.equal(stack[0, :, index * WIDTH : (index + 1) * WIDTH], seen.at(layer)[0].float())


def test_one_forward_gives_all_three_layers(run, native, picture, monkeypatch):
    asked = []
    read = native.encode_from_tokens
    monkeypatch.setenv("ZIMAGE_VL_FAST", "0")
    monkeypatch.setattr(type(native), "encode_from_tokens", lambda self, *a, **k: asked.append(1) or read(*a, **k))
    monkeypatch.setattr(type(native), "clone", lambda self: self)
    monkeypatch.setattr(type(native), "clip_layer", lambda self, layers: asked.append(list(layers)))
    with pytest.raises(RuntimeError, match=r"shape"):  # the patched clip captures nothing
        run("Encode", native, PROMPT, images={"image0": picture}, family="FLUX.2 klein")
    assert asked == [list(LAYERS), 1]


def test_zimage_stays_what_it_was(run, vision, picture):
    old = run("Encode", vision, PROMPT, -2, images={"image0": picture})[0]
    named = run("Encode", vision, PROMPT, -2, images={"image0": picture}, family="Z-Image")[0]
    assert torch.equal(old[0][0], named[0][0]) and old[0][0].shape[-1] == WIDTH
    assert old[0][1][LAYOUT].token_ids[-1] == 198


def test_mixed_layers_are_refused(run, native, picture):
    with pytest.raises(ValueError, match=r"mix_layers: FLUX.2 klein reads layers 9, 18, 27 side by side.*Empty it"):
        run("Encode", native, PROMPT, images={"image0": picture}, family="FLUX.2 klein", mix_layers="-2, -4")


def test_the_node_says_what_it_read(run, native, picture, told):
    text = told(run("Encode", native, PROMPT, images={"image0": picture}, family="FLUX.2 klein"))
    assert "layers 9, 18, 27 side by side" in text
    assert "Width 192: FLUX.2 klein 4B takes 7680, which Qwen3-VL-4B gives" in text


# --- mixing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_changes_the_words_and_no_padding(mode, run, klein, vision, picture, core_text):
    own = core_text(PROMPT, klein)[0][0]
    (mixed, options), = run("Condition", klein, vision, PROMPT, 0.5, mode, images={"image0": picture})[0]
    layout = options[LAYOUT]
    assert mixed.shape == own.shape and mixed.isfinite().all()
    padding = ~words_of(layout)
    assert torch.equal(mixed[:, padding], own[:, padding])
    changed = (mixed != own).any(-1)[0]
    assert changed.any() and not changed[padding].any()
    for part_of_width in (mixed - own).split(WIDTH, -1):
        assert part_of_width.abs().max() > 1e-3  # every layer is steered


@pytest.mark.parametrize("mode", MODES)
def test_strength_0_is_the_words_alone_bit_for_bit(mode, run, klein, vision, picture, core_text):
    output = run("Condition", klein, vision, PROMPT, 0.0, mode, images={"image0": picture})[0]
    assert torch.equal(output[0][0], core_text(PROMPT, klein)[0][0])


def test_described_words_are_read_by_kleins_own_encoder(run, klein, vision, picture, core_text, part, told):
    words = "blue dusk, thick paint"
    found = part("vl_core.encoder.writing").Description(words, words, 5, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part("nodes.steering"), "write_words", lambda *_, **__: found)
        patch.setattr(part("nodes.host.memory"), "fast_allowed", lambda: False)  # keeps no words for other tests
        for mode in ("words", "describe", "automatic"):  # the second is what the first was called
            output = run("Condition", klein, vision, PROMPT, 1.0, mode, images={"image0": picture})
            expected = core_text(f"{PROMPT}, {words}", klein)[0]
            assert torch.equal(output[0][0][0], expected[0])
            assert torch.equal(output[0][0][1]["attention_mask"], expected[1]["attention_mask"])
            assert words in told(output)


def test_described_words_come_in_by_their_strength_in_every_layer(run, klein, vision, picture, core_text, part, told):
    words, own = "blue dusk, thick paint", core_text(PROMPT, klein)[0]
    whole = core_text(f"{PROMPT}, {words}", klein)[0]
    found = part("vl_core.encoder.writing").Description(words, words, 5, False)
    bring_in, describe = part("vl_core.stages.description").bring_in, part("vl_core.encoder.answers").append_words
    with torch.inference_mode():
        encode = part("nodes.host.text_encoder").encode_text
        layouts = [encode(klein, one)[0][1][LAYOUT] for one in (PROMPT, describe(PROMPT, words))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part("nodes.steering"), "write_words", lambda *_, **__: found)
        patch.setattr(part("nodes.host.memory"), "fast_allowed", lambda: False)
        away = []
        for strength in (0.2, 0.5, 0.9, 1.4):
            output = run("Condition", klein, vision, PROMPT, strength, "words", images={"image0": picture})
            (mixed, options), = output[0]
            assert mixed.shape == whole[0].shape and mixed.isfinite().all()
            for index in range(3):
                at = slice(index * WIDTH, (index + 1) * WIDTH)
                alone, _ = bring_in(own[0][..., at], layouts[0], whole[0][..., at], layouts[1], strength)
                assert torch.equal(mixed[..., at], alone)
            assert torch.equal(options["attention_mask"], whole[1]["attention_mask"])
            assert options[LAYOUT].counts() == layouts[1].counts()
            assert f"Added to your prompt at strength {strength:g}." in told(output)
            away.append(float((mixed - whole[0]).norm()))
    assert away[0] > away[1] > away[2] > 0


def test_a_prompt_as_long_as_the_padding_is_described_too(run, klein, native, picture, core_text, part):
    found = part("vl_core.encoder.writing").Description("blue dusk", "blue dusk", 2, False)
    for prompt in ("cat " * 498 + "cat", "cat " * 600 + "cat"):
        whole = core_text(f"{prompt}, blue dusk", klein)[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(part("nodes.steering"), "write_words", lambda *_, **__: found)
            patch.setattr(part("nodes.host.memory"), "fast_allowed", lambda: False)
            (mixed, options), = run("Condition", klein, native, prompt, 0.5, "words", images={"image0": picture})[0]
        assert mixed.shape == whole[0].shape and len(options[LAYOUT]) == mixed.shape[1]
        assert ("attention_mask" in options) == ("attention_mask" in whole[1])
        if "attention_mask" in options:
            assert torch.equal(options["attention_mask"], whole[1]["attention_mask"])


def test_each_layer_is_mixed_as_if_it_were_alone(run, klein, native, picture, part, core_text):
    mixed = run("Condition", klein, native, PROMPT, 0.3, images={"image0": picture}, mode="aligned blend")[0][0][0]
    stack = run("Encode", native, PROMPT, images={"image0": picture}, family="FLUX.2 klein", tokens="text")[0][0][0]
    own = core_text(PROMPT, klein)[0][0][:, : stack.shape[1]]
    blend = part("vl_core").blend
    for index in range(3):
        at = slice(index * WIDTH, (index + 1) * WIDTH)
        alone, _ = blend(own[..., at], stack[..., at], 0.3, "aligned")
        torch.testing.assert_close(mixed[:, : own.shape[1], at], alone, rtol=1e-5, atol=1e-5)


def test_blending_relatives_without_their_picture_changes_nothing(relatives, core_text, part, run):
    vision, text = relatives
    families, mix = part("vl_core.states.families"), part("vl_core.steering.ways.blends").mix_into_words
    settings = part("vl_core.steering.settings").Settings("aligned blend", strength=0.5)
    with torch.inference_mode():
        (entry,) = part("nodes.host.text_encoder").encode_text(text, PROMPT)
        seen, _ = part("nodes.host.encoders").encode_vision(vision, {}, PROMPT, LAYERS, family=families.KLEIN_4B)

        def act(own, layout, index):
            mixed, found, done = mix(own, layout, seen, LAYERS[index], LAYERS[index], None, settings)
            return mixed, found, "\n".join(done)

        mixed, _, lines = part("vl_core.states.stacks").steer_layers(entry[0], entry[1][LAYOUT], families.KLEIN_4B, act)
    torch.testing.assert_close(mixed, entry[0], rtol=1e-3, atol=1e-3)
    assert len(lines) == 3 and all("cosine between text and VL at the same positions: 1.00" in line for line in lines)


def test_appended_tokens_go_before_the_padding_and_take_its_first_places(run, klein, vision, picture, core_text):
    own, mask = (core_text(PROMPT, klein)[0][0], core_text(PROMPT, klein)[0][1]["attention_mask"])
    (mixed, options), = run("Condition", klein, vision, PROMPT, 1.0, "appended tokens", images={"image0": picture})[0]
    words, added = int(mask.sum()), 6  # a picture of 2 × 3 tokens
    layout = options[LAYOUT]
    assert mixed.shape == own.shape
    assert torch.equal(mixed[:, :words], own[:, :words])
    assert layout.roles[words : words + added].tolist() == [3] * added and layout.grids == ((2, 3),)
    assert torch.equal(mixed[:, words + added :], own[:, words + added :])
    assert options["attention_mask"][0].tolist() == [1] * (words + added) + [0] * (LENGTH - words - added)


def test_what_finds_no_padding_makes_the_text_longer(run, klein, native, picture, core_text):
    prompt = "cat " * 600
    own = core_text(prompt, klein)[0][0]
    mixed = run("Condition", klein, native, prompt, 1.0, "appended tokens", images={"image0": picture})[0][0][0]
    assert mixed.shape[1] == own.shape[1] + 6 and torch.equal(mixed[:, : own.shape[1]], own)


def test_every_layer_is_measured_for_itself_and_without_padding(klein, part, core_text):
    with torch.inference_mode():
        measured, origin = part("nodes.host.calibration").measure_layers(klein)
        again, cached = part("nodes.host.calibration").measure_layers(klein)
    assert [one.layer for one in measured] == list(LAYERS) and [one.width for one in measured] == [WIDTH] * 3
    assert "measured now" in origin and "from the cache" in cached
    assert torch.equal(again[2].ordinary.mean, measured[2].ordinary.mean)
    texts = part("vl_core").calibration_prompts()
    rows = [klein.tokenize(text)["qwen3_4b"][0] for text in texts]
    words = sum(token != PAD for row in rows for token, _ in row)
    assert {one.ordinary.count + one.sinks.count for one in measured} == {words} and measured[0].prompts == len(texts)
    lengths = [sum(token != PAD for token, _ in row) for row in rows]
    own = torch.cat([core_text(text, klein)[0][0][0, :one] for text, one in zip(texts, lengths, strict=True)])
    for index, one in enumerate(measured):
        every = own[:, index * WIDTH : (index + 1) * WIDTH].double()
        torch.testing.assert_close(one.moments("include").mean, every.mean(0), rtol=1e-3, atol=1e-4)


def test_several_pictures_are_combined_in_every_layer(run, klein, native, picture, shuffled, core_text, told):
    own = core_text(PROMPT, klein)[0][0]

    def mixed(weights, **options):
        images = {"image0": picture, "image1": shuffled}
        options = {"mode": "aligned blend", **options}
        return run("Condition", klein, native, PROMPT, images=images, weights=weights, combine="average", **options)

    both, first = mixed("1, 0.5")[0][0][0], mixed("1, 0")[0][0][0]
    alone = run("Condition", klein, native, PROMPT, images={"image0": picture}, mode="aligned blend")[0][0][0]
    torch.testing.assert_close(first, alone, rtol=1e-5, atol=1e-5)
    for part_of_width in (both - first).split(WIDTH, -1):
        assert part_of_width.abs().max() > 1e-3
    assert torch.equal(both[:, -1], own[:, -1])


@pytest.mark.parametrize("take", ["style", "colours", "light and mood", "composition", "everything"])
def test_every_take_mixes_into_every_layer(take, run, klein, native, picture, core_text):
    output = run("Condition", klein, native, PROMPT, images={"image0": picture}, recipe=take, mode="aligned blend")
    assert all(entry[0].isfinite().all() for entry in output[0])
    assert any(not torch.equal(entry[0], core_text(PROMPT, klein)[0][0]) for entry in output[0])


@pytest.mark.parametrize("recipe", [
    "style hint", "colour palette", "light and mood (0.1)", "composition (0.1)", "variation of the picture",
    "push away",
])
def test_recipes_work_and_say_that_their_layer_is_not_read(recipe, run, klein, native, picture, core_text, told):
    output = run("Condition", klein, native, PROMPT, images={"image0": picture}, recipe=recipe)
    assert all(entry[0].isfinite().all() for entry in output[0])
    assert any(not torch.equal(entry[0], core_text(PROMPT, klein)[0][0]) for entry in output[0])
    assert "layers 9, 18, 27 side by side in place of layer -2" in told(output)


def test_a_recipe_that_normalises_brings_every_layer_to_its_own_size(run, klein, native, picture, part, told):
    import json

    file = part("nodes.host.folders").recipe_folder() / "size.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({
        "name": "size", "meaning": "the text's sizes", "mode": "append picture", "settings": {"normalization": "rms"},
    }), encoding="utf-8")
    try:
        output = run("Condition", klein, native, PROMPT, 1.0, images={"image0": picture}, recipe="size")
    finally:
        file.unlink()
    with torch.inference_mode():
        measured, _ = part("nodes.host.calibration").measure_layers(klein)
    states, options = output[0][0]
    added = states[0, options[LAYOUT].roles == 3].reshape(-1, 3, WIDTH).square().mean(-1).sqrt()
    for index, one in enumerate(measured):
        torch.testing.assert_close(added[:, index], torch.full((6,), one.median_rms), rtol=1e-3, atol=0)
    assert "reference statistics" in told(output)


@pytest.mark.parametrize("node_mode", MODES)
def test_words_alone_without_a_picture(node_mode, run, klein, native, told, core_text):
    output = run("Condition", klein, native, PROMPT, 0.5, node_mode)
    assert torch.equal(output[0][0][0], core_text(PROMPT, klein)[0][0])
    assert "Words only: no picture connected" in told(output)


def test_the_node_says_how_it_mixed(run, klein, native, picture, told):
    text = told(run("Condition", klein, native, PROMPT, images={"image0": picture}, mode="aligned blend"))
    assert "layers 9, 18, 27 side by side, each mixed for itself; padding stays as it is" in text
    assert all(f"layer {layer}" in text for layer in LAYERS)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_zimages_arithmetic_is_refused(run, klein, native, picture):
    with pytest.raises(ValueError, match=r"research: as published cannot act here: .*layer -2\. Choose another way"):
        run("Condition", klein, native, PROMPT, mode="research: as published", images={"image0": picture})


def test_a_vision_encoder_of_another_width_is_refused(run, build, loaded, picture):
    wide = build(hidden_size=96)
    with pytest.raises(ValueError, match=r"vision: expected an encoder of width 96.*got 64.*needs Qwen3-VL-4B, width"):
        run("Condition", wide, loaded, PROMPT, images={"image0": picture}, mode="aligned blend")


def test_a_vision_encoder_of_another_depth_is_refused(run, klein, tiny, picture):
    shallow = tiny.vision_clip(num_hidden_layers=30)
    with pytest.raises(ValueError, match=r"vision: expected an encoder of 28 blocks.*got 30 \(qwen3vl_4b\)"):
        run("Condition", klein, shallow, PROMPT, images={"image0": picture}, mode="aligned blend")


def test_the_sizes_go_together(run, build, tiny, klein, native, picture):
    large, eyes = build("qwen3_8b"), tiny.vision_clip(model_type="qwen3vl_8b", num_hidden_layers=BLOCKS)
    output = run("Condition", large, eyes, PROMPT, images={"image0": picture}, mode="aligned blend")[0]
    assert output[0][0].shape == (1, LENGTH, 3 * WIDTH) and output[0][0].isfinite().all()
    with pytest.raises(ValueError, match=r"vision: got qwen3vl_8b, but FLUX.2 klein 4B needs the 4B"):
        run("Condition", klein, eyes, PROMPT, images={"image0": picture}, mode="aligned blend")
    with pytest.raises(ValueError, match=r"vision: got qwen3vl_4b, but FLUX.2 klein 9B needs the 8B.*Load Qwen3-VL-8B"):
        run("Condition", large, native, PROMPT, images={"image0": picture}, mode="aligned blend")


def test_the_8b_is_still_refused_for_zimage(run, tiny, picture):
    eyes = tiny.vision_clip(model_type="qwen3vl_8b")
    with pytest.raises(ValueError, match=r"encoder: got qwen3vl_8b, but Z-Image needs the 4B \(width 2560\)"):
        run("Encode", eyes, PROMPT, images={"image0": picture})


def test_states_of_two_families_are_refused(run, native, picture, core_text, text_clip):
    seen = run("Encode", native, PROMPT, images={"image0": picture}, family="FLUX.2 klein")[0]
    with pytest.raises(ValueError, match=r"expected"):
        run("Blend", core_text(PROMPT, text_clip), seen, {"method": "aligned"})


def test_flux_2_devs_text_encoder_is_refused(run, native):
    from types import SimpleNamespace

    from comfy.text_encoders import flux

    class Mistral(flux.Flux2TEModel):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.clip_name = "mistral3_24b"

    with pytest.raises(ValueError, match=r"clip: expected Z-Image's text encoder.*For FLUX.2 klein the type is flux2"):
        run("Condition", SimpleNamespace(cond_stage_model=Mistral()), native, PROMPT)


# --- the open pipeline ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack(run, native, picture):
    return run("Encode", native, PROMPT, images={"image0": picture}, family="FLUX.2 klein")[0]


@pytest.mark.parametrize("method", ["aligned", "resample", "truncate", "adain_per_dim"])
def test_blending_core_text_leaves_its_padding_bit_for_bit(method, run, klein, stack, core_text, told):
    (own, options), = core_text(PROMPT, klein)  # no layout: the attention mask says where the padding begins
    output = run("Blend", core_text(PROMPT, klein), stack, {"method": method, "alpha": 0.5})
    mixed, words = output[0][0][0], int(options["attention_mask"].sum())
    assert mixed.shape[-1] == own.shape[-1] and torch.equal(mixed[:, words:], own[:, words:])
    assert all((mixed != own)[:, :words, at : at + WIDTH].any() for at in range(0, 3 * WIDTH, WIDTH))
    assert all(f"layer {layer}: {method}" in told(output) for layer in LAYERS)


def test_alpha_0_is_the_text_bit_for_bit_here_too(run, klein, stack, core_text):
    text = core_text(PROMPT, klein)
    assert torch.equal(run("Blend", text, stack, {"method": "aligned", "alpha": 0.0})[0][0][0], text[0][0])


def test_the_open_pipeline_gives_what_the_simple_node_gives(run, klein, native, stack, picture, core_text):
    simple = run("Condition", klein, native, PROMPT, 0.4, images={"image0": picture}, mode="aligned blend")[0][0][0]
    blended = run("Blend", core_text(PROMPT, klein), stack, {"method": "aligned", "alpha": 0.4})[0][0][0]
    assert torch.equal(simple, blended)


def test_appending_here_takes_the_first_places_of_the_padding(run, klein, stack, core_text):
    (own, options), = core_text(PROMPT, klein)
    mixed = run("Blend", core_text(PROMPT, klein), stack, {"method": "append"})[0][0][0]
    words, added = int(options["attention_mask"].sum()), stack[0][0].shape[1]
    assert mixed.shape == own.shape
    assert torch.equal(mixed[:, words : words + added], stack[0][0])
    assert torch.equal(mixed[:, words + added :], own[:, words + added :])


def test_each_layer_is_normalised_to_its_own_statistics(run, klein, stack, told):
    references = run("Reference", klein)[0]
    assert [one.layer for one in references] == list(LAYERS)
    output = run("Normalize", stack, {"mode": "rms"}, references)
    sizes = output[0][0][0].reshape(1, -1, 3, WIDTH).square().mean(-1).sqrt()
    for index, one in enumerate(references):
        torch.testing.assert_close(sizes[..., index].median(), torch.tensor(one.median_rms), rtol=1e-3, atol=0)
    masked = run("MaskOutliers", stack, references, {"mode": "clamp"}, 2.0, scope="all tokens")
    for shown in (told(output), told(masked)):
        assert all(f"layer {layer}: " in shown for layer in LAYERS)


def test_normalising_a_text_leaves_its_padding(run, klein, part, core_text):
    with torch.inference_mode():
        text = part("nodes.host.text_encoder").encode_text(klein, PROMPT)
    scaled = run("Normalize", text, {"mode": "global", "target_std": 3.0})[0][0]
    padding = ~words_of(text[0][1][LAYOUT])
    assert torch.equal(scaled[0][:, padding], text[0][0][:, padding])
    assert not torch.equal(scaled[0], text[0][0]) and scaled[1][LAYOUT].counts() == text[0][1][LAYOUT].counts()


def test_statistics_of_the_other_family_are_refused(run, klein, text_clip, stack, native, picture):
    ours, theirs = run("Reference", klein)[0], run("Reference", text_clip)[0]
    with pytest.raises(ValueError, match=r"reference: expected statistics of layers 9, 18, 27.*got layer -2"):
        run("Normalize", stack, {"mode": "rms"}, theirs)
    seen = run("Encode", native, PROMPT, -2, images={"image0": picture})[0]
    with pytest.raises(ValueError, match=r"reference: expected statistics of one layer.*layers 9, 18, 27"):
        run("Normalize", seen, {"mode": "rms"}, ours)
    with pytest.raises(ValueError, match=r"reference: expected statistics of one layer"):
        run("Inspect", seen, ours)


def test_appending_before_the_template_tail_leaves_the_think_block_last(run, klein, part, native, picture):
    with torch.inference_mode():
        text = part("nodes.host.text_encoder").encode_text(klein, PROMPT)
    (own, _), = text
    seen = run(
        "Encode", native, PROMPT, images={"image0": picture}, family="FLUX.2 klein", tokens="image_no_markers"
    )[0]
    method = {"method": "append", "downsample": 1, "position": "before the template tail"}
    (mixed, options), = run("Blend", text, seen, method)[0]
    # 3 header tokens and 6 words, the picture, 9 of the tail, and padding whose first 6 places are taken
    assert torch.equal(mixed, torch.cat([own[:, :9], seen[0][0], own[:, 9:18], own[:, 24:]], 1))
    layout = options[LAYOUT]
    assert layout.token_ids[words_of(layout)].tolist()[-9:] == TAIL and layout.grids == ((2, 3),)
    assert options["attention_mask"][0].tolist() == [1] * 24 + [0] * (LENGTH - 24)


def test_core_text_does_not_say_where_its_template_tail_begins(run, klein, stack, core_text):
    with pytest.raises(ValueError, match=r"append_position: before_tail needs to know where the words end"):
        run("Blend", core_text(PROMPT, klein), stack, {"method": "append", "position": "before the template tail"})


def test_states_of_two_families_are_told_apart_with_how_to_mend_it(run, stack, core_text, text_clip, klein, native):
    with pytest.raises(ValueError, match=r"a VL of FLUX.2 klein 4B \(width 192.*family = Z-Image"):
        run("Blend", core_text(PROMPT, text_clip), stack, {"method": "aligned"})
    seen = run("Encode", native, PROMPT, -2)[0]
    with pytest.raises(ValueError, match=r"text and vl: expected .* widths, got 192 and 64"):
        run("Blend", core_text(PROMPT, klein), seen, {"method": "aligned"})


# --- image delta ------------------------------------------------------------------------------------------------------

BASELINES = ["muted", "absent", "grey", "blurred"]


@pytest.mark.parametrize("options", [{}, {"remove_prompt_direction": True, "rank": 2}])
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_stacked_delta_is_the_deltas_of_its_layers_joined(
    baseline, options, run, klein, native, picture, core_text, part
):
    (own, mask), = core_text(PROMPT, klein)
    moved = run("Delta", native, PROMPT, [[own, mask]], 0.8, baseline=baseline, images={"image0": picture}, **options)
    words = int(mask["attention_mask"].sum())
    family, host = part("vl_core.states.families").KLEIN_4B, part("nodes.host.encoders")
    other = {"grey": torch.full_like(picture, 128 / 255), "absent": None}.get(baseline, picture)
    if baseline == "blurred":
        other = part("vl_core.pictures").baseline_picture(picture, "blurred")
    with torch.inference_mode():
        seen, _ = host.encode_vision(native, {"image0": picture}, PROMPT, LAYERS, family=family)
        blind, _ = host.encode_vision(
            native, {"image0": other}, PROMPT, LAYERS, family=family, mute=baseline == "muted"
        )
    for index, layer in enumerate(LAYERS):
        at = slice(index * WIDTH, (index + 1) * WIDTH)
        alone, _ = part("vl_core.stages.delta").image_delta(
            own[:, :words, at], seen.at(layer)[0], blind.at(layer)[0], 0.8, text_layout=None, vl_layout=seen.layout,
            baseline_layout=blind.layout, **options,
        )
        assert torch.equal(moved[0][0][0][:, :words, at], alone)
        assert (alone != own[:, :words, at]).any()
    assert torch.equal(moved[0][0][0][:, words:], own[:, words:])  # padding
    assert torch.equal(moved[0][0][1]["attention_mask"], mask["attention_mask"])


def test_the_delta_is_that_of_the_simple_nodes_mode(run, klein, vision, picture, core_text, told):
    simple = run("Condition", klein, vision, PROMPT, 0.7, "research: image delta", images={"image0": picture})[0]
    output = run("Delta", vision, PROMPT, core_text(PROMPT, klein), 0.7, images={"image0": picture})
    assert torch.equal(output[0][0][0], simple[0][0])
    assert "layers 9, 18, 27 side by side in place of layer -2; baseline muted" in told(output)
    assert all(f"layer {layer}: image delta: weight 0.7" in told(output) for layer in LAYERS)


def test_a_delta_of_nothing_is_the_text_bit_for_bit(run, klein, native, picture, core_text):
    text, grey = core_text(PROMPT, klein), torch.full((1, 64, 96, 3), 0.5)
    assert torch.equal(run("Delta", native, PROMPT, text, 0.0, images={"image0": picture})[0][0][0], text[0][0])
    same = run("Delta", native, PROMPT, text, -3.0, baseline="grey", images={"image0": grey})[0][0][0]
    assert torch.equal(same, text[0][0])


def test_a_delta_of_another_encoder_is_refused_with_the_one_to_load(run, tiny, klein, native, picture, core_text):
    wide = [[torch.randn(1, LENGTH, 12288), {}]]
    with pytest.raises(ValueError, match=r"encoder: expected one of width 4096, which FLUX.2 klein 9B reads as layers "
                       r"9, 18, 27.*got 64\. Load Qwen3-VL-8B"):
        run("Delta", native, PROMPT, wide, images={"image0": picture})


# --- sweeps -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(run, klein, native, picture):
    def outputs(columns, values, encoder=None, **inputs):
        inputs = {"rows": "none", "images": {"image0": picture}, **inputs}
        return run("Sweep", klein, encoder or native, PROMPT, columns, values, **inputs)

    return outputs


@pytest.mark.parametrize("mode", MODES)
def test_a_cell_is_what_the_simple_node_gives(mode, sweep, vision, run, klein, picture, core_text, told):
    output = sweep("alpha", "0, 0.5, 1", vision, method=mode)
    words, *cells = output[0]
    assert torch.equal(words[0][0], core_text(PROMPT, klein)[0][0])
    for strength, cell in zip((0.5, 1.0), cells, strict=True):
        simple = run("Condition", klein, vision, PROMPT, strength, mode, images={"image0": picture})[0]
        assert torch.equal(cell[0][0], simple[0][0])
        assert torch.equal(cell[0][1]["attention_mask"], simple[0][1]["attention_mask"])
    assert "layers 9, 18, 27" in told(output) and "each mixed for itself; padding stays" in told(output)


def test_a_cell_of_a_blend_is_what_the_open_pipeline_gives(sweep, run, klein, stack, core_text):
    text = core_text(PROMPT, klein)
    _, aligned, resampled = sweep("method", "aligned, resample", alpha=0.4)[0]
    for method, cell in (("aligned", aligned), ("resample", resampled)):
        expected = run("Blend", text, stack, {"method": method, "alpha": 0.4})[0]
        torch.testing.assert_close(cell[0][0], expected[0][0], rtol=1e-5, atol=1e-5)


def test_cells_that_normalise_do_so_in_every_layer(sweep, run, klein, stack, core_text):
    references = run("Reference", klein)[0]
    cells = [
        sweep(
            "normalization", "none, per_dim", reference=given, outlier_mode="clamp", outlier_threshold=2.0,
            method="aligned", alpha=0.5,
        )[0]
        for given in (references, None)  # measured on the clip
    ]
    for ours, theirs in zip(*cells, strict=True):
        assert torch.equal(ours[0][0], theirs[0][0])
    masked = run("MaskOutliers", stack, references, {"mode": "clamp"}, 2.0, scope="all tokens")[0]
    scaled = run("Normalize", masked, {"mode": "per_dim"}, references)[0]
    expected = run("Blend", core_text(PROMPT, klein), scaled, {"method": "aligned", "alpha": 0.5})[0]
    torch.testing.assert_close(cells[0][2][0][0], expected[0][0], rtol=1e-3, atol=1e-3)


def test_what_a_sweep_cannot_vary_is_refused_before_anything_is_read(sweep, run, text_clip):
    with pytest.raises(ValueError, match=r"layer: makes no difference with FLUX.2 klein.*Choose another axis, or no"):
        sweep("alpha", "0.2, 0.5", rows="layer", row_values="-2, -6", method="aligned")
    with pytest.raises(ValueError, match=r"as published cannot act here: .*In the cell method research: as published"):
        sweep("method", "aligned, research: as published")
    with pytest.raises(ValueError, match=r"reference: expected statistics of layers 9, 18, 27"):
        sweep("normalization", "none, rms", reference=run("Reference", text_clip)[0], method="aligned")


# --- layer report -----------------------------------------------------------------------------------------------------


def test_every_layer_that_klein_reads_has_its_own_report(run, klein, native, picture, core_text, part, told):
    (own, options), = core_text(PROMPT, klein)
    references = run("Reference", klein)[0]
    output = run(
        "LayerReport", native, PROMPT, layers="-20, -11, -2", images={"image0": picture}, reference=references,
        text=[[own, options]],
    )
    plots, report, table = output[0], output[1], output[2]
    assert len(plots) == 3 and plots.shape[-1] == 3 and len(output.ui["images"]) == 3
    family, words = part("vl_core.states.families").KLEIN_4B, int(options["attention_mask"].sum())
    with torch.inference_mode():
        seen, _ = part("nodes.host.encoders").encode_vision(native, {"image0": picture}, PROMPT, LAYERS, family=family)
    rows = table.splitlines()
    for index, layer in enumerate(LAYERS):
        at = slice(index * WIDTH, (index + 1) * WIDTH)
        alone = part("vl_core.reports.layer_report").layer_report(seen, references[index], own[:, :words, at])
        assert f"== FLUX.2 klein 4B's layer {layer} ({layer - BLOCKS - 1}) ==\n{alone.table()}" in report
        assert [f"{layer},{line}" for line in alone.csv().splitlines()[1:]] == [
            row for row in rows if row.startswith(f"{layer},")
        ]
    assert rows[0].startswith("target_layer,layer,group") and "klein 4B's layer 27" in told(output)


def test_without_a_picture_a_siblings_nearest_layer_is_the_one_that_is_read(relatives, run, core_text):
    import csv

    vision, text = relatives
    table = run("LayerReport", vision, PROMPT, text=core_text(PROMPT, text))[2]
    rows = [row for row in csv.DictReader(table.splitlines()) if (row["space"], row["sinks"]) == ("dit", "include")]
    for layer in LAYERS:
        of = [row for row in rows if int(row["target_layer"]) == layer]
        nearest = max(of, key=lambda row: float(row["cosine"]))
        assert int(nearest["layer"]) == layer - BLOCKS - 1 and float(nearest["cosine"]) == pytest.approx(1, abs=1e-3)


def test_a_report_on_two_families_is_refused(run, klein, native, text_clip, core_text):
    theirs = run("Reference", klein)[0]
    with pytest.raises(ValueError, match=r"text: expected a text of FLUX.2 klein 4B, width 192.*got width 64"):
        run("LayerReport", native, PROMPT, reference=theirs, text=core_text(PROMPT, text_clip))
    with pytest.raises(ValueError, match=r"reference: expected statistics of layers 9, 18, 27"):
        run("LayerReport", native, PROMPT, reference=run("Reference", text_clip)[0], text=core_text(PROMPT, klein))


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_every_layer_is_inspected_for_itself_without_padding(run, klein, stack, part, core_text, told):
    references = run("Reference", klein)[0]
    output = run("Inspect", stack, references)
    assert len(output[0]) == 3 and "FLUX.2 klein pads them to 512" in output[1]
    inspect, layout = part("vl_core.reports.inspection").inspect, stack[0][1][LAYOUT]
    for index, (layer, known) in enumerate(zip(LAYERS, references, strict=True)):
        states = stack[0][0][0, :, index * WIDTH : (index + 1) * WIDTH]
        alone = inspect(states, layout.with_layer(layer), known, family=part("vl_core.states.families").KLEIN_4B)
        assert f"layer {layer}: {alone.describe()}" in output[1]
    with torch.inference_mode():
        text = part("nodes.host.text_encoder").encode_text(klein, PROMPT)
    whole = run("Inspect", text)[1]
    assert whole.count("18 tokens × 64") == 3 and "padding" not in whole


def test_a_klein_text_is_measured_layer_by_layer_without_padding(run, klein, part, stack):
    with torch.inference_mode():
        text = part("nodes.host.text_encoder").encode_text(klein, PROMPT)
    measured, words = run("Reference", text + text)[0], words_of(text[0][1][LAYOUT])
    assert [one.layer for one in measured] == list(LAYERS)
    for index, one in enumerate(measured):
        states = text[0][0][0, words, index * WIDTH : (index + 1) * WIDTH].double()
        assert one.ordinary.count + one.sinks.count == 2 * len(states)
        torch.testing.assert_close(one.moments("include").mean, states.mean(0), rtol=1e-4, atol=1e-5)
    assert run("Normalize", stack, {"mode": "rms"}, measured)[0][0][0].isfinite().all()


def test_inspecting_with_statistics_of_zimage_is_refused(run, text_clip, stack):
    with pytest.raises(ValueError, match=r"reference: expected statistics of layers 9, 18, 27"):
        run("Inspect", stack, run("Reference", text_clip)[0])


# --- painting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_changes_what_flux_2_paints(mode, run, tiny, klein, native, picture, core_text):
    model, text = tiny.flux2_model(), core_text(PROMPT, klein)
    mixed = run("Condition", klein, native, PROMPT, 1.0, mode, images={"image0": picture})[0]
    with torch.inference_mode():
        words, both = (tiny.sample(model, one, channels=128) for one in (text, mixed))
    assert both.isfinite().all() and not torch.allclose(both, words, atol=1e-3)
