"""Every node on tiny models: what comes out, what stays as it was, and that Z-Image paints from it."""

from __future__ import annotations

import copy

import pytest
import torch

PROMPT = "a cat in a red hat"
MODES = ["blend aligned", "blend as published", "append picture", "blend and append"]
LAYOUT = "vl_layout"

MIXING = {"alpha": 0.5, "curve": "flat", "alpha_end": 0.5, "space": "dit"}
METHODS = {
    "aligned": MIXING,
    "resample": {**MIXING, "antialias": True},
    "truncate": {**MIXING, "space": "raw"},
    "append": {"downsample": 2},
    "adain": {"alpha": 0.5, "antialias": True},
    "adain_per_dim": {"alpha": 0.5},
    "style_dims": {"alpha": 0.5, "antialias": False},
}
NORMALIZATIONS = {
    "per_dim": {"clip": 3.0}, "global": {"target_std": 0.0}, "hybrid": {"weight": 0.5, "clip": 3.0}, "rms": {},
    "none": {},
}
MASKINGS = {"clamp": {}, "zero": {}, "scale": {"gamma": 0.5}, "none": {}}


@pytest.fixture(scope="module")
def text(core_text):
    return core_text(PROMPT)


@pytest.fixture(scope="module")
def seen(run, native, picture):
    """Every token of the prompt read beside the picture, at the layer Z-Image reads."""
    return run("Encode", native, PROMPT, layer=-2, images={"image0": picture})[0]


@pytest.fixture(scope="module")
def stages(run, seen, text, reference):
    """Every stage that takes CONDITIONING and gives it: name -> function of the conditioning."""
    found = {
        "select image": lambda c: run("SelectTokens", c, "image")[0],
        "select text": lambda c: run("SelectTokens", c, "text")[0],
        "downsample": lambda c: run("SelectTokens", c, "all", downsample=2)[0],
        "vl side of a blend": lambda c: run("Blend", text, c, {"method": "append", "downsample": 1})[0],
    }
    for mode, options in MASKINGS.items():
        found[f"mask {mode}"] = (
            lambda c, value={"mode": mode, **options}: run("MaskOutliers", c, reference, value, 1.5)[0]
        )
    for mode, options in NORMALIZATIONS.items():
        found[f"normalize {mode}"] = lambda c, value={"mode": mode, **options}: run("Normalize", c, value, reference)[0]
    for method, options in METHODS.items():
        found[f"blend {method}"] = lambda c, value={"method": method, **options}: run("Blend", c, seen, value)[0]
    return found


STAGES = [
    "select image", "select text", "downsample", *(f"mask {mode}" for mode in MASKINGS),
    *(f"normalize {mode}" for mode in NORMALIZATIONS), *(f"blend {method}" for method in METHODS),
]


def rich(states: torch.Tensor, **options) -> list:
    """An entry that carries everything other nodes may have put on it."""
    return [states, {
        "pooled_output": torch.ones(1, 4), "attention_mask": torch.ones(1, states.shape[1]), "hooks": object(),
        "area": (8, 8, 0, 0), "strength": 0.7, "mask": torch.ones(1, 8, 8), "mask_strength": 0.5,
        "set_area_to_bounds": False, "start_percent": 0.1, "end_percent": 0.9,
        "reference_latents": [torch.zeros(1, 16, 8, 8)], "somebody_elses": {"key": [1, 2]}, **options,
    }]


def taking(stage: str, seen: list, text: list) -> tuple[torch.Tensor, dict]:
    """States a stage takes, and the options they need."""
    if stage.startswith("blend"):
        return text[0][0], {}
    return seen[0][0], {LAYOUT: seen[0][1][LAYOUT]}


def same_conditioning(a: list, b: list) -> bool:
    return len(a) == len(b) and all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))


# --- Z-Image Vision Conditioning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_changes_what_zimage_paints(mode, run, text_clip, vision, picture, text, sample):
    output = run("Condition", text_clip, vision, PROMPT, mode=mode, images={"image0": picture})[0]
    painted = sample(output)
    assert painted.isfinite().all()
    assert not torch.allclose(painted, sample(text), atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_strength_zero_is_cores_text_encoding_bit_for_bit(mode, run, text_clip, vision, picture, text, sample, told):
    output = run("Condition", text_clip, vision, PROMPT, 0.0, mode, images={"image0": picture})
    assert same_conditioning(output[0], text)
    assert torch.equal(sample(output[0]), sample(text))
    assert "Words only" in told(output)


@pytest.mark.parametrize("images", [None, {}, {"image0": None}])
def test_without_a_picture_the_words_stand_alone(images, run, text_clip, native, text):
    assert same_conditioning(run("Condition", text_clip, native, PROMPT, images=images, mode="blend aligned")[0], text)


@pytest.mark.parametrize("mode", MODES)
def test_what_the_picture_shows_matters_not_only_that_there_is_one(
    mode, run, text_clip, vision, picture, shuffled, tiny
):
    read, again, other = (
        run("Condition", text_clip, vision, PROMPT, mode=mode, images={"image0": image})[0][0][0]
        for image in (picture, picture.clone(), shuffled)
    )
    assert torch.equal(read, again)
    assert not torch.allclose(read, other, atol=1e-3)


def test_both_encoders_give_the_same_conditioning(run, text_clip, native, loaded, picture):
    for mode in MODES:
        a, b = (
            run("Condition", text_clip, encoder, PROMPT, mode=mode, images={"image0": picture})[0]
            for encoder in (native, loaded)
        )
        torch.testing.assert_close(a[0][0], b[0][0], rtol=1e-3, atol=1e-3)


def test_more_strength_is_further_from_the_words(run, text_clip, native, picture, text):
    states = [
        run("Condition", text_clip, native, PROMPT, strength, "blend aligned", images={"image0": picture})[0][0][0]
        for strength in (0.1, 0.3, 0.6, 1.0)
    ]
    distances = [float((mixed - text[0][0]).norm()) for mixed in states]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_the_text_encoders_options_come_out(run, text_clip, native, picture, text):
    options = run("Condition", text_clip, native, PROMPT, mode="blend aligned", images={"image0": picture})[0][0][1]
    assert set(options) == {*text[0][1], LAYOUT}


@pytest.mark.parametrize("mode", MODES)
def test_hooks_on_the_text_encoder_stay_on_the_conditioning(mode, run, text_clip, native, picture):
    hooked, hooks = text_clip.clone(), object()
    hooked.apply_hooks_to_conds = hooks
    for strength in (0.0, 0.5):
        output = run("Condition", hooked, native, PROMPT, strength, mode, images={"image0": picture})[0]
        assert output[0][1]["hooks"] is hooks


@pytest.mark.parametrize("mode", MODES)
def test_every_entry_of_a_scheduled_text_encoder_is_steered(mode, run, text_clip, native, picture, monkeypatch, sample):
    # A hooked CLIP gives one entry per keyframe.
    encode = type(text_clip).encode_from_tokens_scheduled

    def scheduled(clip, tokens, **options):
        ((states, kept),) = encode(clip, tokens, **options)
        early, late = ({**kept, "clip_start_percent": begin, "clip_end_percent": begin + 0.5} for begin in (0.0, 0.5))
        return [[states, early], [2 * states, late]]

    monkeypatch.setattr(type(text_clip), "encode_from_tokens_scheduled", scheduled)
    plain = run("Condition", text_clip, native, PROMPT, 0.0, mode="blend aligned")[0]
    output = run("Condition", text_clip, native, PROMPT, 0.5, mode, images={"image0": picture})[0]
    assert [entry[1]["clip_end_percent"] for entry in output] == [0.5, 1.0]
    assert all(a[0].shape != b[0].shape or not torch.allclose(a[0], b[0]) for a, b in zip(output, plain, strict=True))
    assert sample(output).isfinite().all()


@pytest.mark.parametrize("strength, factor", [(1.0, 1), (0.5, 2), (0.34, 3)])
def test_appending_adds_fewer_tokens_at_less_strength(strength, factor, run, text_clip, native, text):
    square = torch.rand(1, 192, 192, 3, generator=torch.Generator().manual_seed(4))  # 6 × 6 tokens
    output = run("Condition", text_clip, native, PROMPT, strength, "append picture", images={"image0": square})[0]
    assert torch.equal(output[0][0][:, : text[0][0].shape[1]], text[0][0])
    assert output[0][0].shape[1] == text[0][0].shape[1] + (6 // factor) ** 2


# --- Load and Encode -------------------------------------------------------------------------------------------------


def test_the_loader_lists_the_folder_and_says_what_it_loaded(run, part, encoder_folder, told):
    assert encoder_folder.name in part("nodes.host.folders").encoder_folders()
    schema = part("nodes.loader").ZImageVLLoader.GET_SCHEMA()
    assert encoder_folder.name in schema.inputs[0].options
    assert part("nodes.loader").ZImageVLLoader.validate_inputs(encoder_folder.name) is True
    output = run("Loader", encoder_folder.name)
    assert "Qwen3-VL-Tiny: Instruct, float32, 6 of 6 blocks" in told(output)
    shallow = run("Loader", encoder_folder.name, deepest_layer=-2)
    assert "Qwen3-VL-Tiny: Instruct, float32, 5 of 6 blocks" in told(shallow)  # -2 needs all but the last


@pytest.mark.parametrize("place", ["text_encoders/maker", "LLM", "VLM", "Qwen/maker"])
def test_the_loader_finds_folders_where_other_packs_keep_them(place, base_folder, part, tmp_path):
    folder = base_folder / "models" / place / "Found-Here"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3_vl"}', encoding="utf-8")
    try:
        assert folder in part("nodes.host.folders").encoder_folders().values()
    finally:
        (folder / "config.json").unlink()


def test_the_loader_overlooks_other_models_and_broken_folders(base_folder, part):
    before = part("nodes.host.folders").encoder_folders()
    for name, config in (("Other", '{"model_type": "llama"}'), ("Broken", "{"), ("List", "[]")):
        folder = base_folder / "models" / "LLM" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(config, encoding="utf-8")
    assert part("nodes.host.folders").encoder_folders() == before


@pytest.mark.parametrize(
    "tokens, expected",
    [("all", lambda t, n: t + n + 10), ("text", lambda t, n: t + 8), ("prompt", lambda t, n: t),
     ("image", lambda t, n: n + 2), ("image_no_markers", lambda t, n: n)],
)
def test_an_encode_has_as_many_tokens_as_the_template_says(tokens, expected, run, vision, text_clip, picture):
    words = len(text_clip.tokenizer.qwen3_4b.tokenizer(PROMPT)["input_ids"])
    states, options = run("Encode", vision, PROMPT, tokens=tokens, images={"image0": picture})[0][0]
    assert states.shape == (1, expected(words, 2 * 3), 64)
    assert states.dtype == torch.float32
    assert len(options[LAYOUT]) == states.shape[1]
    assert set(options) == {LAYOUT}


def test_every_token_selection_can_be_painted(run, vision, picture, sample):
    for tokens in ("all", "text", "prompt", "image", "image_no_markers"):
        assert sample(run("Encode", vision, PROMPT, tokens=tokens, images={"image0": picture})[0]).isfinite().all()


def test_a_batch_counts_as_several_pictures(run, vision, picture, shuffled):
    batch = {"image0": torch.cat([picture, shuffled])}
    apart = {"image0": picture, "image1": None, "image2": shuffled}
    one, two = (run("Encode", vision, PROMPT, images=images)[0][0] for images in (batch, apart))
    assert torch.equal(one[0], two[0])
    assert one[1][LAYOUT].grids == ((2, 3), (2, 3))


def test_the_layer_that_was_asked_for_is_the_one_that_comes_out(run, vision, part, picture):
    found = {layer: run("Encode", vision, PROMPT, layer, images={"image0": picture})[0][0] for layer in (-6, -2, -1)}
    assert {layer: entry[1][LAYOUT].layer for layer, entry in found.items()} == {-6: -6, -2: -2, -1: -1}
    assert not torch.allclose(found[-6][0], found[-2][0], atol=1e-2)


def test_a_system_prompt_changes_how_the_picture_is_read(run, vision, picture):
    plain, told_to = (
        run("Encode", vision, PROMPT, tokens="text", system_prompt=system, images={"image0": picture})[0][0]
        for system in ("", "Attend to the lighting.")
    )
    words = plain[0].shape[1]
    assert told_to[0].shape[1] > words
    assert torch.equal(told_to[1][LAYOUT].token_ids[-words:], plain[1][LAYOUT].token_ids)
    assert not torch.allclose(told_to[0][:, -words:], plain[0], atol=1e-2)


# --- what every stage keeps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_that_came_in_goes_out(stage, stages, seen, text):
    states, options = taking(stage, seen, text)
    entry = rich(states, **options)
    result = stages[stage]([entry])[0]
    same_length = result[0].shape[1] == states.shape[1]
    for key, value in entry[1].items():
        if key == LAYOUT or (key == "attention_mask" and not same_length):
            continue
        assert result[1][key] is value, key
    assert ("attention_mask" in result[1]) == same_length
    assert set(result[1]) <= {*entry[1], LAYOUT}


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_modifies_its_input(stage, stages, seen, text):
    states, options = taking(stage, seen, text)
    entry = rich(states.clone(), **options)
    given = [entry]
    before, keys, values = entry[0].clone(), list(entry[1]), list(entry[1].values())
    others = [copy.deepcopy(seen), copy.deepcopy(text)]
    result = stages[stage](given)
    assert given == [entry] and len(given) == 1
    assert torch.equal(entry[0], before)
    assert list(entry[1]) == keys
    assert all(now is then for now, then in zip(entry[1].values(), values, strict=True))
    assert same_conditioning(others[0], seen) and same_conditioning(others[1], text)
    assert result[0][1] is not entry[1]


@pytest.mark.parametrize("stage", STAGES)
def test_every_entry_is_processed(stage, stages, seen, text):
    states, options = taking(stage, seen, text)
    entries = [[states, {**options, "mark": 0}], [states * 0.5 + 0.1, {**options, "mark": 1}]]
    together = stages[stage](entries)
    assert [entry[1]["mark"] for entry in together] == [0, 1]
    for entry, result in zip(entries, together, strict=True):
        assert torch.equal(stages[stage]([entry])[0][0], result[0])


@pytest.mark.parametrize("stage", STAGES)
def test_every_stages_output_can_be_painted(stage, stages, seen, text, sample):
    states, options = taking(stage, seen, text)
    result = stages[stage]([[states, options]])
    assert result[0][0].isfinite().all()
    assert sample(result).isfinite().all()


@pytest.mark.parametrize("stage", STAGES)
def test_the_layout_that_goes_out_describes_the_states(stage, stages, seen, text):
    states, options = taking(stage, seen, text)
    result = stages[stage]([[states, options]])[0]
    if LAYOUT in result[1]:
        assert len(result[1][LAYOUT]) == result[0].shape[1]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.startswith(("mask", "normalize", "blend"))])
def test_plain_text_conditioning_goes_through(stage, run, text, reference, seen):
    kind, option = stage.split()
    if kind == "mask":
        result = run("MaskOutliers", text, reference, {"mode": option, **MASKINGS[option]}, scope="all tokens")[0]
    elif kind == "normalize":
        result = run("Normalize", text, {"mode": option, **NORMALIZATIONS[option]}, reference)[0]
    else:
        options = {"downsample": 1} if option == "append" else METHODS[option]  # plain text has no pictures to pool
        result = run("Blend", text, text, {"method": option, **options})[0]
    assert result[0][0].isfinite().all()
    assert LAYOUT not in result[0][1]


# --- the stages ------------------------------------------------------------------------------------------------------


def test_select_keeps_the_rows_of_the_roles(run, seen):
    states, layout = seen[0][0], seen[0][1][LAYOUT]
    kept = run("SelectTokens", seen, "image_no_markers")[0][0]
    assert torch.equal(kept[0], states[:, (layout.roles == 3).nonzero().flatten()])
    assert kept[1][LAYOUT].grids == ((2, 3),)


def test_a_mask_keeps_the_part_of_the_picture_under_it(run, seen):
    left = torch.zeros(1, 64, 96)
    left[..., :32] = 1  # the first of three columns of tokens
    whole, part = (run("SelectTokens", seen, "image_no_markers", mask=mask)[0][0] for mask in (None, left))
    assert torch.equal(part[0], whole[0][:, [0, 3]])


def test_masking_reaches_only_its_scope(run, seen, reference):
    states, layout = seen[0][0], seen[0][1][LAYOUT]
    words = layout.roles != 3
    image_only, everything = (
        run("MaskOutliers", seen, reference, {"mode": "zero"}, 1.01, scope=scope)[0][0][0]
        for scope in ("image tokens", "all tokens")
    )
    assert torch.equal(image_only[:, words], states[:, words])
    assert not torch.equal(image_only, states)
    assert not torch.equal(everything[:, words], states[:, words])


def test_global_normalisation_reaches_the_references_spread(run, seen, reference):
    scaled = run("Normalize", seen, {"mode": "global", "target_std": 0.0}, reference)[0][0][0]
    assert float(scaled.std()) == pytest.approx(reference.moments().global_std, rel=1e-4)
    scaled = run("Normalize", seen, {"mode": "global", "target_std": 7.0})[0][0][0]
    assert float(scaled.std()) == pytest.approx(7, rel=1e-4)


def test_alpha_runs_from_the_text_to_the_vl_states(run, seen, text):
    aligned = run("SelectTokens", seen, "text")[0][0][0]
    for alpha, expected in ((0.0, text[0][0]), (1.0, aligned), (0.25, 0.75 * text[0][0] + 0.25 * aligned)):
        mixed = run("Blend", text, seen, {"method": "aligned", **MIXING, "alpha": alpha, "space": "raw"})[0][0][0]
        torch.testing.assert_close(mixed, expected)
    assert torch.equal(run("Blend", text, seen, {"method": "aligned", **MIXING, "alpha": 0.0})[0][0][0], text[0][0])


def test_an_alpha_curve_leaves_the_first_token_to_the_text(run, seen, text):
    curve = {"method": "aligned", **MIXING, "alpha": 0.0, "curve": "linear", "alpha_end": 1.0, "space": "raw"}
    mixed = run("Blend", text, seen, curve)[0][0][0]
    aligned = run("SelectTokens", seen, "text")[0][0][0]
    assert torch.equal(mixed[:, 0], text[0][0][:, 0])
    torch.testing.assert_close(mixed[:, -1], aligned[:, -1])


def test_one_vl_entry_serves_every_text_entry(run, seen, text, core_text):
    entries = text + core_text("a dog in a red hat")
    mixed = run("Blend", entries, seen, {"method": "resample", **METHODS["resample"]})[0]
    apart = [run("Blend", [entry], seen, {"method": "resample", **METHODS["resample"]})[0][0] for entry in entries]
    assert same_conditioning(mixed, apart)


# --- timing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, end, expected",
    [(0.0, 1.0, [None]), (0.25, 1.0, [(0.0, 0.25), (0.25, 1.0)]), (0.0, 0.5, [(0.0, 0.5), (0.5, 1.0)]),
     (0.25, 0.75, [(0.0, 0.25), (0.25, 0.75), (0.75, 1.0)])],
)
def test_the_picture_acts_only_from_start_to_end(start, end, expected, run, seen, text, sample):
    mixed = run("Blend", text, seen, {"method": "aligned", **MIXING})[0][0][0]
    entries = run("Blend", text, seen, {"method": "aligned", **MIXING}, start, end)[0]
    assert len(entries) == len(expected)
    for (states, options), range_ in zip(entries, expected, strict=True):
        if range_ is None:
            assert "start_percent" not in options
            continue
        assert (options["start_percent"], options["end_percent"]) == pytest.approx(range_, abs=1e-5)
        inside = start <= range_[0] and range_[1] <= end
        assert torch.equal(states, mixed if inside else text[0][0])
    assert sample(entries, steps=4).isfinite().all()


def test_text_and_mixture_never_act_in_the_same_step(run, seen, text, zimage, tiny):
    # With 4 steps of the simple schedule the sigmas lie exactly at 0, 0.25, 0.5 and 0.75.
    entries = run("Blend", text, seen, {"method": "aligned", **MIXING}, 0.25, 0.75)[0]
    mixed = entries[1][0]
    acting = []

    def watch(apply_model, arguments):
        acting.append(arguments["c"]["c_crossattn"].clone())
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model = zimage.clone()
    model.set_model_unet_function_wrapper(watch)
    with torch.inference_mode():
        tiny.sample(model, entries, steps=4)
    assert [len(states) for states in acting] == [1, 1, 1, 1]
    assert [torch.equal(states, mixed) for states in acting] == [False, True, True, False]


def test_a_range_the_text_already_has_is_kept(run, seen, text, core):
    ranged = core.ConditioningSetTimestepRange().set_range(text, 0.2, 0.6)[0]
    entries = run("Blend", ranged, seen, {"method": "aligned", **MIXING}, 0.4, 1.0)[0]
    ranges = [(entry[1]["start_percent"], entry[1]["end_percent"]) for entry in entries]
    assert ranges == [pytest.approx((0.2, 0.4), abs=1e-5), pytest.approx((0.4, 0.6), abs=1e-5)]


# --- beside core nodes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def core_stages(core, text):
    """Core's conditioning nodes as functions of one conditioning."""
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    return {
        "timestep range": lambda c: core.ConditioningSetTimestepRange().set_range(c, 0.0, 0.5)[0],
        "combine": lambda c: core.ConditioningCombine().combine(c, text)[0],
        "concat": lambda c: core.ConditioningConcat().concat(c, text)[0],
        "average": lambda c: core.ConditioningAverage().addWeighted(c, text, 0.5)[0],
        "zero out": lambda c: core.ConditioningZeroOut().zero_out(c)[0],
        "mask": lambda c: core.ConditioningSetMask().append(c, half, "default", 1.0)[0],
        "area": lambda c: core.ConditioningSetArea().append(c, 32, 32, 0, 0, 1.0)[0],
    }


CORE = ["timestep range", "combine", "concat", "average", "zero out", "mask", "area"]


@pytest.mark.parametrize("node", CORE)
@pytest.mark.parametrize("mode", ["blend aligned", "append picture"])
def test_core_nodes_take_our_conditioning(node, mode, core_stages, run, text_clip, native, picture, text, sample):
    ours = run("Condition", text_clip, native, PROMPT, mode=mode, images={"image0": picture})[0]
    conditioning = core_stages[node](ours)
    rest = [] if node != "timestep range" else [[text[0][0], {**text[0][1], "start_percent": 0.5}]]
    rest += text if node in ("mask", "area") else []  # what they leave out needs a prompt too
    assert sample(conditioning + rest).isfinite().all()


@pytest.mark.parametrize("node", [name for name in CORE if name not in ("combine", "concat", "average")])
def test_our_stages_keep_what_core_nodes_set(node, core_stages, run, text, seen):
    prepared = core_stages[node](text)
    blended = run("Blend", prepared, seen, {"method": "truncate", **METHODS["truncate"]})[0]
    for key, value in prepared[0][1].items():
        assert blended[0][1][key] is value, key


def test_combined_conditioning_goes_through_our_stages_entry_by_entry(core, run, text, seen, sample):
    combined = core.ConditioningCombine().combine(text, text)[0]
    blended = run("Blend", combined, seen, {"method": "aligned", **MIXING})[0]
    assert len(blended) == 2
    assert sample(blended).isfinite().all()


def test_a_zeroed_negative_works_beside_ours(core, run, text_clip, native, picture, sample, text):
    ours = run("Condition", text_clip, native, PROMPT, images={"image0": picture}, mode="blend aligned")[0]
    assert sample(ours, negative=core.ConditioningZeroOut().zero_out(text)[0]).isfinite().all()


# --- Save and Load ---------------------------------------------------------------------------------------------------


def test_saved_conditioning_comes_back_bit_for_bit_and_is_listed(run, part, seen, text, told):
    given = [rich(seen[0][0], **{LAYOUT: seen[0][1][LAYOUT]}), *text]
    note = told(run("Save", given, "kept/picture"))
    assert "kept/picture_00001.safetensors" in note.replace("\\", "/")
    assert "hooks" in note and "somebody_elses" in note  # what no file can hold is named
    load = part("nodes.files").ZImageVLLoadSaved
    assert "kept/picture_00001.safetensors" in load.GET_SCHEMA().inputs[0].options
    assert load.validate_inputs("kept/picture_00001.safetensors") is True
    output = run("LoadSaved", "kept/picture_00001.safetensors")
    assert same_conditioning(output[0], given)
    options, layout = output[0][0][1], output[0][0][1][LAYOUT]
    assert options["area"] == (8, 8, 0, 0) and options["end_percent"] == 0.9
    assert torch.equal(options["reference_latents"][0], given[0][1]["reference_latents"][0])
    assert torch.equal(layout.roles, seen[0][1][LAYOUT].roles) and layout.grids == ((2, 3),) and layout.layer == -2
    assert PROMPT in told(output)


def test_saved_conditioning_paints_the_same_picture(run, text_clip, native, picture, sample):
    ours = run("Condition", text_clip, native, PROMPT, images={"image0": picture}, mode="blend aligned")[0]
    run("Save", ours, "painted")
    assert torch.equal(sample(run("LoadSaved", "painted_00001.safetensors")[0]), sample(ours))


def test_saving_overwrites_nothing(run, part, seen, text):
    for conditioning in (seen, text, seen):
        run("Save", conditioning, "again")
    names = [name for name in part("nodes.host.folders").saved_embeddings() if name.startswith("again")]
    assert names == [f"again_{number:05}.safetensors" for number in (1, 2, 3)]
    assert same_conditioning(run("LoadSaved", "again_00002.safetensors")[0], text)


def test_a_changed_file_is_another_input_to_the_cache(run, part, seen, text, base_folder):
    load = part("nodes.files").ZImageVLLoadSaved
    run("Save", seen, "fresh")
    before = load.fingerprint_inputs("fresh_00001.safetensors")
    assert load.fingerprint_inputs("fresh_00001.safetensors") == before
    run("Save", text, "other")
    folder = base_folder / "output" / "vl_embeddings"
    (folder / "other_00001.safetensors").replace(folder / "fresh_00001.safetensors")
    assert load.fingerprint_inputs("fresh_00001.safetensors") != before


def test_files_below_models_are_listed_too(run, part, base_folder, seen):
    run("Save", seen, "moved")
    target = base_folder / "models" / "vl_embeddings" / "given.safetensors"
    target.parent.mkdir(parents=True)
    (base_folder / "output" / "vl_embeddings" / "moved_00001.safetensors").rename(target)
    assert same_conditioning(run("LoadSaved", "given.safetensors")[0], seen)


# --- Reference -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(base_folder):
    """Files of measured references."""
    return lambda: set((base_folder / "user" / "zimage_vl").glob("*"))


def lora(clip, strength: float = 1.0):
    """A clone of the CLIP with one weight patched, as a LoRA loader makes it."""
    patched = clip.clone()
    key = "qwen3_4b.transformer.model.layers.1.mlp.up_proj.weight"
    shape = dict(clip.cond_stage_model.named_parameters())[key].shape
    assert patched.add_patches({key: ("diff", (torch.ones(shape),))}, strength)
    return patched


def test_the_reference_is_measured_over_every_built_in_prompt(run, part, text_clip, reference, core_text):
    prompts = part("vl_core.states.statistics").calibration_prompts()
    states = torch.cat([core_text(prompt)[0][0][0] for prompt in prompts]).double()
    assert reference.prompts == len(prompts) >= 64
    assert reference.layer == -2
    everything = reference.moments("include")
    assert everything.count == len(states)
    torch.testing.assert_close(everything.mean, states.mean(0))
    torch.testing.assert_close(everything.std, states.std(0))


def test_a_reference_is_measured_once_and_then_read_from_disk(run, text_clip, told, cache, monkeypatch):
    run("Reference", text_clip)
    files = cache()
    assert files

    def refuse(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(type(text_clip), "encode_from_tokens", refuse)
    assert "from the cache" in told(run("Reference", text_clip))
    assert cache() == files


def test_the_cached_reference_is_the_measured_one(run, text_clip, reference):
    read = run("Reference", text_clip)[0]
    assert read.encoder == reference.encoder
    assert torch.equal(read.ordinary.mean, reference.ordinary.mean)
    assert torch.equal(read.ordinary.squares, reference.ordinary.squares)
    assert torch.equal(read.rms, reference.rms)


def test_a_changed_weight_is_another_encoder(part, tiny, text_clip):
    identity = part("nodes.host.identity").identity_of
    assert identity(tiny.text_clip(seed=2)) == identity(text_clip)
    assert identity(tiny.text_clip(seed=9)) != identity(text_clip)


def test_a_lora_is_another_encoder_and_so_is_its_strength(part, text_clip):
    identity = part("nodes.host.identity").identity_of
    found = {identity(clip) for clip in (text_clip, lora(text_clip), lora(text_clip, 0.5))}
    assert len(found) == 3
    assert identity(lora(text_clip)) == identity(lora(text_clip))


def test_an_encoders_identity_does_not_depend_on_what_is_loaded(part, text_clip, core_text):
    identity = part("nodes.host.identity").identity_of
    patched = lora(text_clip)
    before = identity(text_clip), identity(patched)
    core_text(PROMPT, patched)  # now the shared weights are the patched ones
    assert (identity(text_clip), identity(patched)) == before
    core_text(PROMPT, text_clip)
    assert (identity(text_clip), identity(patched)) == before


def test_a_quantised_encoder_has_an_identity_of_its_own(part, tiny, text_clip):
    from comfy.quant_ops import QuantizedTensor

    identity, quantised = part("nodes.host.identity").identity_of, tiny.text_clip()
    projection = quantised.cond_stage_model.qwen3_4b.transformer.model.layers[0].mlp.up_proj
    stored = QuantizedTensor.from_float(projection.weight.detach(), "TensorCoreFP8Layout", scale="recalculate")
    projection.weight = torch.nn.Parameter(stored, requires_grad=False)
    assert identity(quantised) == identity(quantised) != identity(text_clip)


def test_another_layer_is_another_reference(run, core, text_clip, reference, cache):
    deeper = run("Reference", core.CLIPSetLastLayer().set_last_layer(text_clip, -3)[0])[0]
    assert deeper.layer == -3
    assert not torch.allclose(deeper.moments().mean, reference.moments().mean, atol=1e-2)


def test_stopping_a_measurement_ends_it_and_leaves_no_file(run, text_clip, cache, monkeypatch):
    import comfy.model_management as management

    files, read, encode = cache(), [], type(text_clip).encode_from_tokens

    def stopped_at_the_third(clip, tokens, **options):
        read.append(tokens)
        if len(read) == 3:
            management.interrupt_current_processing(True)
        return encode(clip, tokens, **options)

    monkeypatch.setattr(type(text_clip), "encode_from_tokens", stopped_at_the_third)
    with pytest.raises(management.InterruptProcessingException):
        run("Reference", lora(text_clip, 0.25))
    assert len(read) == 3
    assert cache() == files


def test_a_damaged_cache_is_measured_again(run, text_clip, cache, reference, told):
    (file,) = [path for path in cache() if reference.encoder[:16] in path.name and path.name.endswith("-2.safetensors")]
    file.write_bytes(b"damaged")
    output = run("Reference", text_clip)
    assert "measured now" in told(output)
    torch.testing.assert_close(output[0].moments().mean, reference.moments().mean)


def test_any_conditioning_can_be_the_reference(run, text, told):
    output = run("Reference", text)
    states = text[0][0][0].double()
    torch.testing.assert_close(output[0].moments("include").mean, states.mean(0))
    assert output[0].layer is None
    assert "Few tokens" in told(output)


def test_several_entries_make_one_reference(run, text, core_text):
    entries = text + core_text("an old harbour at dawn")
    both = torch.cat([entry[0][0] for entry in entries]).double()
    torch.testing.assert_close(run("Reference", entries)[0].moments("include").std, both.std(0))


# --- Inspect ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_reference", [False, True])
def test_inspect_draws_a_picture_and_writes_a_report(with_reference, run, seen, reference):
    output = run("Inspect", seen, reference if with_reference else None)
    plots, report = output[0], output[1]
    assert plots.ndim == 4 and plots.shape[0] == 1 and plots.shape[-1] == 3
    assert plots.dtype == torch.float32 and plots.min() >= 0 and plots.max() <= 1
    assert plots.std() > 0.01
    assert "6 image (2×3)" in report
    assert ("against the reference" in report) == with_reference
    assert output.ui["text"] == (report,) and len(output.ui["images"]) == 1


def test_inspect_shows_every_entry(run, seen, text):
    output = run("Inspect", seen + seen)
    assert output[0].shape[0] == 2
    assert run("Inspect", text)[0].shape[0] == 1


def test_inspect_names_broken_values_instead_of_failing(run, seen, reference):
    broken = seen[0][0].clone()
    broken[0, 3, 5] = float("nan")
    output = run("Inspect", [[broken, dict(seen[0][1])]], reference)
    assert "1 values are NaN or infinite" in output[1]
    assert output[0].isfinite().all()
