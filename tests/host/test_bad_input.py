"""Whatever is connected wrongly is refused in words that name the input and the mend, before heavy work."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

PROMPT = "a cat in a red hat"
LAYOUT = "vl_layout"
MODES = ["aligned blend", "research: as published", "appended tokens", "blend and append"]
METHODS = ["aligned", "resample", "truncate", "append", "adain", "adain_per_dim", "style_dims"]
REFERRING = ["per_dim", "global", "hybrid", "rms"]  # normalisations that need a reference
NORMALIZATIONS = [*REFERRING, "none"]
MASKINGS = ["clamp", "zero", "scale", "none"]


def refused(*words: str):
    """A ValueError whose message contains every one of ``words``, in any order."""
    return pytest.raises(ValueError, match="(?s)^" + "".join(f"(?=.*{re.escape(word)})" for word in words))


@pytest.fixture
def no_encoding(text_clip, native, loaded, monkeypatch):
    """Any forward pass of an encoder is an error from here on."""

    def refuse(*_, **__):
        raise AssertionError("an encoder ran before the input was checked")

    for clip in (text_clip, native):
        monkeypatch.setattr(type(clip), "encode_from_tokens", refuse)
    monkeypatch.setattr(type(loaded.encoder), "_run_blocks", refuse)


@pytest.fixture(scope="module")
def text(core_text):
    return core_text(PROMPT)


@pytest.fixture(scope="module")
def seen(run, native, picture):
    return run("Encode", native, PROMPT, layer=-2, images={"image0": picture})[0]


def with_layer(reference, layer):
    from dataclasses import replace

    return replace(reference, layer=layer)


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["image", "image_no_markers"])
@pytest.mark.parametrize("images", [None, {}, {"image0": None}])
def test_image_tokens_without_a_picture(tokens, images, run, vision, no_encoding):
    with refused("images", tokens, "at least one picture", "Connect an image"):
        run("Encode", vision, PROMPT, tokens=tokens, images=images)


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (1, 0, 64, 3), (1, 64, 64, 0), (1, 64, 64, 5)])
def test_a_picture_without_pixels_or_of_strange_channels(shape, run, text_clip, vision, no_encoding):
    for node, arguments in (("Condition", (text_clip, vision)), ("Encode", (vision,))):
        with refused("image 1", "expected", str(shape[-1]), "Connect"):
            run(node, *arguments, PROMPT, images={"image0": torch.rand(shape)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_picture_is_named(value, run, text_clip, vision, picture, no_encoding):
    broken = picture.clone()
    broken[0, 3, 4, 1] = value
    with refused("image 2", "NaN or infinite", "VAE"):
        run("Condition", text_clip, vision, PROMPT, images={"image0": picture, "image1": broken}, mode="aligned blend")


def test_a_picture_far_too_long(run, vision, no_encoding):
    with refused("image 1", "200:1", "Crop"):
        run("Encode", vision, PROMPT, images={"image0": torch.rand(1, 4, 2000, 3)})


def test_an_alpha_channel_is_dropped_and_said(run, text_clip, vision, picture, told):
    clear = torch.cat([picture, torch.zeros_like(picture[..., :1])], -1)
    with_alpha, without = (
        run("Condition", text_clip, vision, PROMPT, mode="aligned blend", images={"image0": image})
        for image in (clear, picture)
    )
    assert "alpha channel dropped" in told(with_alpha)
    assert torch.equal(with_alpha[0][0][0], without[0][0][0])


def test_a_single_pixel_is_enlarged_and_said(run, text_clip, vision, told, sample):
    dot = {"image0": torch.rand(1, 1, 1, 3)}
    output = run("Condition", text_clip, vision, PROMPT, mode="aligned blend", images=dot)
    assert "image 1 1×1 enlarged to 32×32" in told(output)
    assert sample(output[0]).isfinite().all()


def test_a_gigantic_picture_is_scaled_down_and_said(run, vision, told):
    gigantic = torch.full((1, 1, 1, 3), 0.5).expand(1, 8000, 8000, 3)
    output = run("Encode", vision, PROMPT, image_tokens=16, images={"image0": gigantic})
    assert "image 1 8000×8000 scaled down to 128×128, 16 image tokens" in told(output)
    assert output[0][0][0].isfinite().all()


# --- encoders --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong_clips(tiny):
    """What Load CLIP gives for other types and files, without weights: name -> CLIP stand-in."""
    import comfy.sd1_clip
    from comfy.text_encoders import flux, krea2, mage_flow, qwen3vl, z_image

    options = {f"{name}_model_config": tiny.TEXT for name in ("qwen3_4b", "qwen3vl_4b", "qwen3vl_8b")}
    classes = {
        "krea2": krea2.te(), "mage": mage_flow.te(), "flux2 klein": flux.klein_te(), "Qwen3-4B": z_image.te(),
        "Qwen3-VL-8B": qwen3vl.te(model_type="qwen3vl_8b"), "Qwen3-VL-4B": qwen3vl.te(model_type="qwen3vl_4b"),
    }
    models = {
        name: model(device="meta", dtype=torch.float32, model_options=dict(options)) for name, model in classes.items()
    }
    models["SD1"] = comfy.sd1_clip.SD1ClipModel(device="meta", dtype=torch.float32)
    return {name: SimpleNamespace(cond_stage_model=model) for name, model in models.items()}


MEND_VISION = ("Load CLIP, type lumina2", "Load Qwen3-VL")


@pytest.mark.parametrize(
    "kind, words",
    [
        ("krea2", ("another image model", "Krea2TEModel_")), ("mage", ("another image model", "MageFlowTEModel_")),
        ("flux2 klein", ("expected Qwen3-VL-4B", "Flux2TEModel_")), ("Qwen3-4B", ("text-only Qwen3-4B",)),
        ("Qwen3-VL-8B", ("qwen3vl_8b", "needs the 4B")), ("SD1", ("expected Qwen3-VL-4B", "SD1ClipModel")),
    ],
)
def test_a_clip_that_cannot_see_is_refused_on_the_vision_input(
    kind, words, wrong_clips, run, text_clip, picture, no_encoding
):
    with refused("encoder: ", *words, *MEND_VISION):
        run("Encode", wrong_clips[kind], PROMPT, images={"image0": picture})
    with refused("vision: ", *words, *MEND_VISION):
        run("Condition", text_clip, wrong_clips[kind], PROMPT, images={"image0": picture}, mode="aligned blend")


@pytest.mark.parametrize("kind", ["krea2", "mage", "flux2 klein", "Qwen3-VL-4B", "Qwen3-VL-8B", "SD1"])
def test_any_other_clip_is_refused_on_the_text_input(kind, wrong_clips, run, native, picture, no_encoding):
    mend = "Load qwen_3_4b.safetensors with Load CLIP, type lumina2"
    with refused("clip: ", "Z-Image's text encoder", mend):
        run("Condition", wrong_clips[kind], native, PROMPT, images={"image0": picture}, mode="aligned blend")
    with refused("source: ", "Z-Image's text encoder", mend):
        run("Reference", wrong_clips[kind])


def test_the_vision_encoder_on_the_text_input_is_told_where_it_goes(wrong_clips, run, native):
    with refused("goes to the vision input"):
        run("Condition", wrong_clips["Qwen3-VL-4B"], native, PROMPT, mode="aligned blend")


@pytest.mark.parametrize("thing", [None, 3, "qwen"])
def test_no_encoder_at_all(thing, run, text_clip, picture):
    with refused("vision: ", type(thing).__name__, *MEND_VISION):
        run("Condition", text_clip, thing, PROMPT, images={"image0": picture}, mode="aligned blend")
    with refused("clip: ", type(thing).__name__):
        run("Condition", thing, text_clip, PROMPT, images={"image0": picture}, mode="aligned blend")


@pytest.fixture(scope="module")
def wide_clip(tiny):
    """A text encoder of another width than the vision encoder."""
    return tiny.text_clip(hidden_size=96)


@pytest.mark.parametrize("mode", MODES)
def test_encoders_of_different_width(mode, run, wide_clip, loaded, picture, no_encoding):
    with refused("vision", "width 96", "got 64 (Qwen3-VL-Tiny)", "Qwen3-VL-4B"):
        run("Condition", wide_clip, loaded, PROMPT, mode=mode, images={"image0": picture})


@pytest.mark.parametrize("method", METHODS)
def test_conditioning_of_different_width(method, run, core_text, wide_clip, seen):
    with refused("text and vl", "96 and 64", "Qwen3-VL-4B"):
        run("Blend", core_text(PROMPT, wide_clip), seen, {"method": method})


def test_the_width_zimage_takes_is_said(run, native, told):
    assert "Width 64: Z-Image takes 2560" in told(run("Encode", native, PROMPT))


@pytest.mark.parametrize("layer", [-8, -37, 7])
def test_a_layer_the_model_does_not_have(layer, run, text_clip, vision, picture, no_encoding):
    with refused("layer", "-7 to -1", str(layer)):
        run("Encode", vision, PROMPT, layer)
    with refused("layer", str(layer)):
        run("Condition", text_clip, vision, PROMPT, layer=layer, images={"image0": picture}, mode="aligned blend")


def test_a_layer_that_was_not_loaded(run, encoder_folder):
    shallow = run("Loader", encoder_folder.name, deepest_layer=-4)[0]
    assert run("Encode", shallow, PROMPT, -4)[0][0][0].isfinite().all()
    with refused("layer", "-2", "-4", "Reload"):
        run("Encode", shallow, PROMPT, -2)


def test_an_unknown_folder_lists_where_it_looked(part, run, base_folder):
    models = base_folder / "models"
    looked = [str(models / name) for name in ("text_encoders", "LLM", "VLM", "Qwen")]
    message = part("nodes.loader").ZImageVLLoader.validate_inputs("Missing")
    assert isinstance(message, str)
    for word in ("folder", "Missing", *looked):
        assert word in message
    with refused("folder", "Missing", *looked, "config.json"):
        run("Loader", "Missing")


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"])
def test_tokens_reserved_for_pictures(token, run, text_clip, vision, picture, no_encoding):
    for node, arguments, options in (
        ("Condition", (text_clip, vision), {"mode": "aligned blend"}), ("Encode", (vision,), {}),
    ):
        with refused("prompt", token, "Remove"):
            run(node, *arguments, f"a cat {token}", images={"image0": picture}, **options)


def test_no_words_to_select(run, vision, picture, no_encoding):
    with refused("tokens", "prompt", "empty"):
        run("Encode", vision, "", tokens="prompt", images={"image0": picture})


def test_aligning_different_prompts(run, seen, part, text_clip, core_text):
    with torch.inference_mode():
        other = part("nodes.host.text_encoder").encode_text(text_clip, "a dog in a red hat")
    with refused("same words", "position 4", "a dog in a red hat", PROMPT, "resample"):
        run("Blend", other, seen, {"method": "aligned"})
    with refused("vl", "expected 13 tokens outside the pictures", "got 14", "same prompt"):
        run("Blend", core_text("a cat in a hat"), seen, {"method": "aligned"})


def test_aligning_pictures_only(run, text, native, picture):
    image = run("Encode", native, PROMPT, tokens="image", images={"image0": picture})[0]
    with refused("vl", "expected 14 tokens outside the pictures", "got 0"):
        run("Blend", text, image, {"method": "aligned"})


# --- conditioning ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(run, text, seen, reference):
    """Every stage as a function of the conditioning that is broken: name -> (what errors call it, function)."""
    found = {
        "select": ("conditioning", lambda c: run("SelectTokens", c, "all")),
        "save": ("conditioning", lambda c: run("Save", c, "never")),
        "reference": ("source", lambda c: run("Reference", c)),
        "blend vl": ("vl", lambda c: run("Blend", text, c, {"method": "resample"})),
    }
    for mode in MASKINGS:
        found[f"mask {mode}"] = (
            "conditioning",
            lambda c, value={"mode": mode}: run("MaskOutliers", c, reference, value, scope="all tokens"),
        )
    for mode in NORMALIZATIONS:
        found[f"normalize {mode}"] = (
            "conditioning", lambda c, value={"mode": mode}: run("Normalize", c, value, reference),
        )
    for method in METHODS:
        found[f"blend {method}"] = ("text", lambda c, value={"method": method}: run("Blend", c, seen, value))
    return found


STAGES = [
    "select", "save", "reference", "blend vl", *(f"mask {mode}" for mode in MASKINGS),
    *(f"normalize {mode}" for mode in NORMALIZATIONS), *(f"blend {method}" for method in METHODS),
]


@pytest.mark.parametrize("stage", STAGES)
def test_empty_conditioning(stage, stages):
    name, take = stages[stage]
    with refused(name, "at least one entry"):
        take([])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_conditioning_that_overflowed(stage, value, stages, seen):
    name, take = stages[stage]
    broken = seen[0][0].clone()
    broken[0, 2, 7] = value
    with refused(name, "entry 1", "1 NaN or infinite", "bf16 or fp32"):
        take([seen[0], [broken, dict(seen[0][1])]])


@pytest.mark.parametrize("stage", STAGES)
def test_conditioning_without_tokens(stage, stages):
    name, take = stages[stage]
    with refused(name, "(1, 0, 64)"):
        take([[torch.zeros(1, 0, 64), {}]])


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("save", "reference")])
def test_tokens_changed_by_a_node_in_between(stage, stages, core, seen, text):
    longer = core.ConditioningConcat().concat(seen, text)[0]
    with refused("expected 22 tokens", "got 36", "after the last Z-Image VL node"):
        stages[stage][1](longer)


def test_inspecting_nothing(run):
    with refused("conditioning", "at least one entry"):
        run("Inspect", [])


def test_selecting_from_conditioning_that_does_not_say_what_its_tokens_are(run, text):
    with refused("conditioning", "selecting tokens", "Qwen3-VL Encode"):
        run("SelectTokens", text)


def test_a_selection_that_leaves_no_token(run, native, seen):
    words = run("Encode", native, PROMPT)[0]
    with refused("tokens", "'image'", "TEMPLATE, TEXT"):
        run("SelectTokens", words, "image")
    with refused("mask", "covers no image token"):
        run("SelectTokens", seen, "image_no_markers", mask=torch.zeros(1, 64, 64))


def test_a_scope_of_image_tokens_without_any(run, text, native, reference):
    with refused("image tokens", "Qwen3-VL Encode"):
        run("MaskOutliers", text, reference, {"mode": "clamp"})
    with refused("scope", "image tokens", "all tokens"):
        run("Normalize", run("Encode", native, PROMPT)[0], {"mode": "rms"}, reference, "image tokens")


@pytest.mark.parametrize("strength", [float("nan")])
def test_a_strength_that_is_no_number(strength, run, text_clip, vision, picture, no_encoding):
    with refused("strength", "a number from -3 to 3", str(strength)):
        run("Condition", text_clip, vision, PROMPT, strength, images={"image0": picture}, mode="aligned blend")


def test_an_unknown_mode(run, text_clip, vision, no_encoding):
    with refused("mode", "aligned blend", "telepathy"):
        run("Condition", text_clip, vision, PROMPT, mode="telepathy")


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "append"])
def test_alpha_outside_zero_to_one(method, alpha, run, text, seen):
    with refused("alpha", "0 (text) to 1 (VL)"):
        run("Blend", text, seen, {"method": method, "alpha": alpha})


def test_an_alpha_curve_that_ends_outside_zero_to_one(run, text, seen):
    with refused("alpha end", "0 (text) to 1 (VL)", "1.5"):
        run("Blend", text, seen, {"method": "aligned", "alpha": 0.5, "curve": "linear", "alpha_end": 1.5})


@pytest.mark.parametrize("start, end", [(0.5, 0.5), (0.8, 0.2)])
def test_a_range_that_is_empty(start, end, run, text, seen):
    with refused("start_percent", str(start), str(end)):
        run("Blend", text, seen, {"method": "aligned"}, start, end)


def test_entries_that_cannot_be_paired(run, text, seen):
    with refused("vl", "one entry", "as many as text has (3)", "got 2"):
        run("Blend", text * 3, seen * 2, {"method": "resample"})


# --- references ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measuring(run, seen):
    """The stages that measure with a reference: name -> function of the reference."""
    found = {f"mask {mode}": lambda r, mode=mode: run("MaskOutliers", seen, r, {"mode": mode}) for mode in MASKINGS}
    for mode in REFERRING:
        found[f"normalize {mode}"] = lambda r, mode=mode: run("Normalize", seen, {"mode": mode}, r)
    return found


MEASURING = [*(f"mask {mode}" for mode in MASKINGS), *(f"normalize {mode}" for mode in REFERRING)]


@pytest.mark.parametrize("stage", MEASURING)
def test_a_reference_of_another_width(stage, measuring, run, core_text, wide_clip):
    other = run("Reference", core_text(PROMPT, wide_clip))[0]
    with refused("reference", "width 64", "got 96", "text encoder of this workflow"):
        measuring[stage](other)


@pytest.mark.parametrize("stage", MEASURING)
@pytest.mark.parametrize("layer", [-3, -6])
def test_a_reference_of_another_layer(stage, layer, measuring, reference):
    with refused("reference", "layer -2", f"got {layer}", "CLIP Set Last Layer"):
        measuring[stage](with_layer(reference, layer))


@pytest.mark.parametrize("stage", MEASURING)
def test_a_reference_of_unknown_layer_is_taken(stage, measuring, reference):
    assert measuring[stage](with_layer(reference, None))[0][0][0].isfinite().all()


def test_a_clip_stopped_at_another_layer_gives_such_a_reference(run, core, text_clip, seen):
    stopped = core.CLIPSetLastLayer().set_last_layer(text_clip, -3)[0]
    with refused("reference", "layer -2", "got -3"):
        run("Normalize", seen, {"mode": "per_dim"}, run("Reference", stopped)[0])


@pytest.mark.parametrize("mode", REFERRING)
def test_no_reference_where_one_is_needed(mode, run, seen):
    with refused("reference", mode, "Connect Text Encoder Statistics"):
        run("Normalize", seen, {"mode": mode})


def test_inspecting_with_a_reference_of_another_width(run, seen, core_text, wide_clip):
    with refused("reference", "width 64", "got 96"):
        run("Inspect", seen, run("Reference", core_text(PROMPT, wide_clip))[0])


# --- short sequences -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_token(seen):
    """A single image token, as a strong mask leaves it."""
    layout = seen[0][1][LAYOUT]
    keep = torch.zeros(len(layout), dtype=torch.bool)
    keep[4] = True
    alone = dataclasses.replace(layout.select(keep), cut=False)  # a picture of one token
    return [[seen[0][0][:, keep].clone(), {LAYOUT: alone}]]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "aligned"])
def test_blending_one_token(method, run, text, one_token, sample):
    for first, second in ((text, one_token), (one_token, text), (one_token, one_token)):
        result = run("Blend", first, second, {"method": method})[0]
        assert result[0][0].isfinite().all()
        assert sample(result).isfinite().all()


@pytest.mark.parametrize("sinks", ["exclude", "include"])
@pytest.mark.parametrize("mode", NORMALIZATIONS)
def test_normalising_one_token(mode, sinks, run, one_token, reference, sample):
    result = run("Normalize", one_token, {"mode": mode}, reference, sinks=sinks)[0]
    assert sample(result).isfinite().all()


@pytest.mark.parametrize("mode", MASKINGS)
def test_masking_one_token(mode, run, one_token, reference, told):
    output = run("MaskOutliers", one_token, reference, {"mode": mode})
    assert torch.equal(output[0][0][0], one_token[0][0])
    assert "Fewer than 2 tokens" in told(output)


def test_the_other_stages_take_one_token(run, one_token, reference):
    assert run("SelectTokens", one_token, "image", downsample=4)[0][0][0].isfinite().all()
    assert run("Inspect", one_token, reference)[0].isfinite().all()
    run("Save", one_token, "single")
    assert torch.equal(run("LoadSaved", "single_00001.safetensors")[0][0][0], one_token[0][0])


@pytest.mark.parametrize("mode", REFERRING)
def test_a_reference_of_one_token(mode, run, one_token, seen):
    few = run("Reference", one_token)[0]
    with refused("reference", "at least 2 tokens", "got 1", "more prompts"):
        run("Normalize", seen, {"mode": mode}, few)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(base_folder, run, seen):
    """Where saved conditioning lies, with one good file ``good_00001.safetensors``."""
    path = base_folder / "output" / "vl_embeddings"
    if not (path / "good_00001.safetensors").exists():
        run("Save", seen, "good")
    return path


def test_a_file_that_is_not_there(run, part, folder):
    message = part("nodes.files").ZImageVLLoadSaved.validate_inputs("gone.safetensors")
    assert isinstance(message, str)
    for word in ("file", "gone.safetensors", str(folder), "Save VL Embeddings"):
        assert word in message
    with refused("file", "gone.safetensors", str(folder)):
        run("LoadSaved", "gone.safetensors")


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "good_00001.safetensors/../x.safetensors"])
def test_a_name_that_leads_out_of_the_folder(name, run, folder):
    with refused("file", "found no saved embeddings"):
        run("LoadSaved", name)


@pytest.mark.parametrize("kept", [0, 5, 1000, -100])
def test_a_file_that_is_cut_short(kept, run, folder):
    whole = (folder / "good_00001.safetensors").read_bytes()
    (folder / "short.safetensors").write_bytes(whole[:kept])
    with refused("short.safetensors", "cut short or damaged"):
        run("LoadSaved", "short.safetensors")


def test_a_file_of_another_program(run, folder):
    save_file({"emb_params": torch.zeros(4, 64)}, folder / "foreign.safetensors")
    with refused("foreign.safetensors", "another program"):
        run("LoadSaved", "foreign.safetensors")


def test_a_file_of_another_kind(run, folder, reference):
    reference.save(folder / "statistics.safetensors")
    with refused("statistics.safetensors", "expected saved conditioning", "got saved reference"):
        run("LoadSaved", "statistics.safetensors")


@pytest.mark.parametrize("prefix", ["../outside", "../../outside"])
def test_saving_out_of_the_folder(prefix, run, seen, folder):
    before = set(folder.parent.parent.rglob("*"))
    with refused("filename_prefix", prefix, "vl_embeddings"):
        run("Save", seen, prefix)
    assert set(folder.parent.parent.rglob("*")) == before
