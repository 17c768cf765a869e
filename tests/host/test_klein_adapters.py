"""FLUX.2 klein in Fit / Apply Picture Adapter, Match Text Encoder and what uses them, on tiny models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.usefixtures("few_prompts")
PROMPT, LOOKS = "a cat in a red hat", ("blue dusk, thick paint", "pale ink, torn paper")
WIDTH, BLOCKS, LAYERS, LENGTH, TAIL = 64, 28, (9, 18, 27), 512, 9
CAPTIONS = "text files beside the pictures"
SLOTS = ("style", "palette", "light", "background", "composition")
LAYOUT = "vl_layout"
PICTURES = 12


@pytest.fixture(scope="module")
def klein(tiny):
    return tiny.klein_clip()


@pytest.fixture(scope="module")
def native(tiny):
    """Qwen3-VL as deep as the text encoder."""
    return tiny.vision_clip(num_hidden_layers=BLOCKS)


@pytest.fixture(scope="module")
def loaded(tiny, run, native, base_folder):
    """The same weights as Load Qwen3-VL gives them."""
    folder = base_folder / "models" / "text_encoders" / "Qwen3-VL-Deep-Adapters"
    tiny.write_folder(folder, native)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] = BLOCKS
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return run("Loader", folder.name, "fp32", deepest_layer=-1)[0]


@pytest.fixture(scope="module")
def fitted(run, klein, native, looks):
    return run("AdapterFit", klein, native, looks, CAPTIONS, "klein")


@pytest.fixture(scope="module")
def planted(part, klein, native, picture, shuffled):
    """A perfect adapter of two pictures: for each, what LOOKS says of it is what klein's encoder has after PROMPT.

    Both looks are as many tokens as the slot, so that nothing is resampled.
    """
    adapters = part("vl_core.adapters.picture_adapter")
    description, family = part("vl_core.stages.description"), part("vl_core.states.families").KLEIN_4B
    with torch.inference_mode():
        own = part("nodes.host.text_encoder").encode_text(klein, PROMPT)[0]
        whole = [part("nodes.host.text_encoder").encode_text(klein, f"{PROMPT}, {look}")[0] for look in LOOKS]
    count = {int((~one[1][LAYOUT].padding()).sum() - (~own[1][LAYOUT].padding()).sum()) for one in whole}
    assert len(count) == 1, "the looks are of one length"
    spec = part("vl_core.adapters.spec").AdapterSpec(
        part("vl_core.adapters.features").PictureFeatures(), (description.Slot("look", count.pop()),), WIDTH, BLOCKS,
        3 * WIDTH, own_prompt=False, family="FLUX.2 klein",
    )
    inputs, targets, encode = [], [], part("nodes.host.encoders").encode_vision
    for image, (states, options) in zip((picture, shuffled), whole, strict=True):
        with torch.inference_mode():
            seen, _ = encode(native, {"image0": image}, "", spec.features.layers, family=family)
        inputs.append(spec.features.of(seen).double())
        words, ends = (int((~one[1][LAYOUT].padding()).sum()) for one in ([states, options], own))
        described = states[0, ends - TAIL : words - TAIL]
        tail = states[0, words - TAIL : words] - own[0][0, ends - TAIL : ends]
        targets.append(torch.cat([described, tail]).flatten().double())
    away, change = inputs[1] - inputs[0], targets[1] - targets[0]
    found = part("vl_core.adapters.ridge_map").RidgeMap(
        inputs[0].float(), (away / away.square().sum()).float()[:, None], change.float()[None], targets[0].float(),
        part("vl_core.adapters.ridge_map").RidgeReport(2, 0.0, 1, 1.0),
    )
    return adapters.PictureAdapter(spec, found, None)


# --- the picture adapter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_a_perfect_map_gives_what_kleins_own_encoder_gives_for_the_description(
    which, run, planted, klein, native, picture, shuffled, core_text
):
    (own, mask), = core_text(PROMPT, klein)
    (whole, expected), = core_text(f"{PROMPT}, {LOOKS[which]}", klein)
    image = (picture, shuffled)[which]
    (found, options), = run(
        "AdapterApply", native, PROMPT, [[own, mask]], images={"image0": image}, adapter=planted
    )[0]
    words = int(expected["attention_mask"].sum())
    assert found.shape == whole.shape == (1, LENGTH, 3 * WIDTH)
    torch.testing.assert_close(found[:, :words], whole[:, :words], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[:, :words], own[:, :words], atol=0.1)
    assert torch.equal(found[:, words:], own[:, words:])  # padding: the prompt's own, its first places taken
    assert torch.equal(options["attention_mask"], expected["attention_mask"])  # though the text had no layout


@pytest.mark.parametrize("encoder", ["native", "loaded"])
def test_the_simple_nodes_mode_is_apply_and_automatic_takes_it(encoder, request, run, planted, klein, picture, told):
    vision = request.getfixturevalue(encoder)
    text = run("Condition", klein, vision, PROMPT, 0.0)[0]
    for strength in (0.4, 1.0, -0.7):
        expected = run("AdapterApply", vision, PROMPT, text, strength, images={"image0": picture}, adapter=planted)[0]
        output = run(
            "Condition", klein, vision, PROMPT, strength, "picture adapter", images={"image0": picture},
            adapter=planted,
        )
        assert torch.equal(output[0][0][0], expected[0][0])
        assert torch.equal(output[0][0][1]["attention_mask"], expected[0][1]["attention_mask"])
        assert output[0][0][1][LAYOUT].padding().sum() == expected[0][1][LAYOUT].padding().sum()
    automatic = run("Condition", klein, vision, PROMPT, 1.0, "automatic", images={"image0": picture}, adapter=planted)
    assert "automatic: picture adapter" in told(automatic)


def test_a_fit_on_a_folder_says_that_it_is_kleins_and_its_file_is_the_same(
    run, fitted, klein, native, picture, shuffled, core_text, told
):
    assert f"{PICTURES} pairs" in told(fitted) and "for FLUX.2 klein, layers 9, 18, 27 side by side" in told(fitted)
    spec = fitted[0].spec
    assert (spec.family, spec.text_width, spec.tokens) == ("FLUX.2 klein", 3 * WIDTH, spec.words + TAIL)
    text = core_text(PROMPT, klein)
    wired, read, other = (
        run("AdapterApply", native, PROMPT, text, 1.0, file, images={"image0": image}, adapter=adapter)[0][0]
        for file, image, adapter in (
            ("none", picture, fitted[0]), ("klein.safetensors", picture, None), ("none", shuffled, fitted[0])
        )
    )
    assert torch.equal(wired[0], read[0]) and not torch.allclose(wired[0], other[0])
    words = int(text[0][1]["attention_mask"].sum())
    at, added = words - TAIL, spec.words
    assert torch.equal(wired[0][:, :at], text[0][0][:, :at])
    assert torch.equal(wired[0][:, words + added :], text[0][0][:, words + added :])
    assert all((wired[0] != text[0][0])[:, at:words, of : of + WIDTH].any() for of in range(0, 3 * WIDTH, WIDTH))


def test_what_the_fit_was_shown_comes_back(run, fitted, klein, native, part, looks, core_text):
    """Twelve pairs, one map: a picture of the fit is led towards its own description, in every layer."""
    import folder_paths

    file = f"{folder_paths.get_input_directory()}/{looks}/03.png"
    image = torch.from_numpy(np.array(Image.open(file)).astype(np.float32) / 255)[None]
    description = part("vl_core.stages.description")
    said = {slot: f"{slot} number 3" for slot in SLOTS}
    texts = description.describe_prompt("a photo", said)
    with torch.inference_mode():
        layouts = [part("nodes.host.text_encoder").tokenize_text(klein, text) for text in texts]
        states, options = part("nodes.host.text_encoder").encode_text(klein, texts[-1])[0]
    count = int((~options[LAYOUT].padding()).sum())
    layouts[-1] = layouts[-1].select(~layouts[-1].padding())
    goal = description.slot_targets(states[:, :count], layouts, fitted[0].spec.slots, tail_tokens=TAIL)
    found = run("AdapterApply", native, "a photo", core_text("a photo", klein), images={"image0": image},
                adapter=fitted[0])[0][0][0]
    at = count - TAIL - sum(len(one) for one in description.slot_positions(layouts))
    words = fitted[0].spec.words
    for of in range(0, 3 * WIDTH, WIDTH):
        ours, theirs = found[0, at : at + words, of : of + WIDTH], goal[:words, of : of + WIDTH]
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.8


def test_strength_0_and_no_picture_are_kleins_text_bit_for_bit(run, fitted, klein, native, picture, core_text):
    text = core_text(PROMPT, klein)
    for options in ({"strength": 0.0, "images": {"image0": picture}}, {"images": {}}):
        assert run("AdapterApply", native, PROMPT, text, adapter=fitted[0], **options)[0] is text


def test_a_stage_after_it_knows_where_the_padding_begins(run, planted, klein, native, picture, core_text):
    text = core_text(PROMPT, klein)
    changed = run("AdapterApply", native, PROMPT, text, images={"image0": picture}, adapter=planted)[0]
    twice = run("AdapterApply", native, PROMPT, changed, images={"image0": picture}, adapter=planted)[0]
    added = planted.spec.words
    assert twice[0][1]["attention_mask"].sum() == text[0][1]["attention_mask"].sum() + 2 * added
    stack = run("Encode", native, PROMPT, images={"image0": picture}, family="FLUX.2 klein")[0]
    appended = run("Blend", text, stack, {"method": "append"})[0]
    assert appended[0][1]["attention_mask"].sum() == text[0][1]["attention_mask"].sum() + stack[0][0].shape[1]


def test_klein_9b_has_an_adapter_of_its_own_encoders(run, tiny, looks, core_text, picture):
    from comfy.text_encoders import flux

    large = tiny.build_clip(
        flux.klein_te(model_type="qwen3_8b"), flux.KleinTokenizer8B, "qwen3_8b", 2, num_hidden_layers=BLOCKS
    )
    eyes = tiny.vision_clip(model_type="qwen3vl_8b", num_hidden_layers=BLOCKS)
    adapter = run("AdapterFit", large, eyes, looks, CAPTIONS, "large")[0]
    text = core_text(PROMPT, large)
    found = run("AdapterApply", eyes, PROMPT, text, images={"image0": picture}, adapter=adapter)[0]
    assert found[0][0].shape == text[0][0].shape and not torch.equal(found[0][0], text[0][0])
    simple = run("Condition", large, eyes, PROMPT, 1.0, "picture adapter", images={"image0": picture}, adapter=adapter)
    assert torch.equal(simple[0][0][0], found[0][0])


def test_a_picture_changes_what_flux_2_paints(run, tiny, planted, klein, native, picture, core_text):
    model, text = tiny.flux2_model(), core_text(PROMPT, klein)
    mixed = run("AdapterApply", native, PROMPT, text, images={"image0": picture}, adapter=planted)[0]
    with torch.inference_mode():
        words, both = (tiny.sample(model, one, channels=128) for one in (text, mixed))
    assert both.isfinite().all() and not torch.allclose(both, words, atol=1e-3)


def test_adapters_of_the_other_family_are_refused_before_the_picture_is_read(
    run, planted, klein, text_clip, core_text, picture, native, looks, tiny, told, part
):
    eyes = tiny.vision_clip()
    zimage = run("AdapterFit", text_clip, eyes, looks, CAPTIONS, "zimage")[0]
    shown = {"image0": picture}
    with pytest.raises(ValueError, match=r"text: the adapter predicts layer -2 .*for Z-Image, width 64, got width 192"):
        run("AdapterApply", None, PROMPT, core_text(PROMPT, klein), images=shown, adapter=zimage)
    with pytest.raises(ValueError, match=r"text: the adapter predicts layers 9, 18, 27 .*width 192, got width 64"):
        run("AdapterApply", None, PROMPT, core_text(PROMPT, text_clip), images=shown, adapter=planted)
    for clip, adapter, ours, theirs in (
        (klein, zimage, "FLUX.2 klein", "Z-Image"), (text_clip, planted, "Z-Image", "FLUX.2 klein")
    ):
        with pytest.raises(ValueError, match=f"adapter: expected one fitted for {ours}.*is for {theirs}"):
            run("Condition", clip, native, PROMPT, 1.0, "picture adapter", images=shown, adapter=adapter)
    found = part("vl_core.encoder.writing").Description("blue dusk", "blue dusk", 2, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part("nodes.steering"), "write_words", lambda *_, **__: found)
        patch.setattr(part("nodes.host.memory"), "fast_allowed", lambda: False)
        output = run("Condition", klein, native, PROMPT, 1.0, "automatic", images=shown, adapter=zimage)
    assert "automatic: words, because the picture adapter is for Z-Image, not for FLUX.2 klein" in told(output)


# --- the space adapter ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack(run, native, picture):
    return run("Encode", native, PROMPT, images={"image0": picture}, family="FLUX.2 klein")[0]


def parts(states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return states.chunk(3, -1)


def rotation(seed: int, width: int = WIDTH) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]


@pytest.mark.parametrize("method", ["ridge", "reduced_rank", "procrustes", "per_dimension", "whitening"])
def test_every_method_maps_each_layer_and_says_how_well(method, run, native, klein, stack, told):
    matched, space = (output := run("MatchSpace", stack, native, klein, method))[0], output[1]
    assert [one.layers for one in space] == [(layer, layer) for layer in LAYERS]
    assert matched[0][0].shape == stack[0][0].shape
    for layer, one, before, after in zip(LAYERS, space, parts(stack[0][0]), parts(matched[0][0]), strict=True):
        assert torch.equal(one.apply(before), after) and not torch.equal(before, after)
        assert f"layer {layer}: Space adapter {method}" in told(output)
    assert told(output).count("held-out tokens") == 3
    assert "fitted before" in told(run("MatchSpace", stack, native, klein, method))


def test_a_planted_map_of_each_layer_comes_back(run, native, klein, part, monkeypatch):
    host, family = part("nodes.host.encoders"), part("vl_core.states.families").KLEIN_4B
    plain = host.encode_vision
    maps = [rotation(index) * size for index, size in enumerate((0.3, 1.7, 6.0))]

    def mapped(clip, prompt):
        seen = plain(native, {}, prompt, LAYERS, family=family)[0]
        return torch.cat([seen.at(layer)[0].float() @ one for layer, one in zip(LAYERS, maps, strict=True)], -1)

    monkeypatch.setattr(part("nodes.host.text_encoder"), "encode_words", mapped)
    monkeypatch.setattr(part("nodes.space"), "identity_of", lambda encoder: "planted klein")
    embeddings = run("Encode", native, PROMPT, family="FLUX.2 klein")[0]
    found = run("MatchSpace", embeddings, native, klein, "procrustes")[0][0][0]
    for before, after, one in zip(parts(embeddings[0][0]), parts(found), maps, strict=True):
        goal = (before @ one)[:, 3:]
        assert (after[:, 3:] - goal).norm() < 0.1 * goal.norm()


def test_padding_is_no_part_of_what_fits_read(klein, part, core_text):
    (states, options), = core_text(PROMPT, klein)
    with torch.inference_mode():
        words = part("nodes.host.text_encoder").encode_words(klein, PROMPT)
    assert len(words) == int(options["attention_mask"].sum()) == 18
    torch.testing.assert_close(words, states[0, :18], rtol=1e-3, atol=1e-3)


@pytest.fixture
def spaces(part):
    """Maps given by their matrices, as Match Text Encoder hands them out for klein."""
    made = part("vl_core.adapters.space_adapter").SpaceAdapter

    def of(*matrices, layers=LAYERS):
        return tuple(
            made("ridge", torch.zeros(len(one)), torch.zeros(one.shape[1]), left=one, right=torch.eye(one.shape[1]),
                 layers=(layer, layer))
            for one, layer in zip(matrices, layers, strict=True)
        )

    return of


@pytest.fixture
def delta(run, native, klein, picture, core_text):
    def states(weight=1.0, **options):
        return run("Delta", native, PROMPT, core_text(PROMPT, klein), weight, images={"image0": picture}, **options)

    return states


def test_maps_that_change_nothing_leave_the_delta_bit_for_bit(delta, spaces, told):
    output = delta(space=spaces(*[torch.eye(WIDTH)] * 3))
    assert torch.equal(output[0][0][0], delta()[0][0][0])
    assert all(f"layer {layer}: Space adapter" in told(output) for layer in LAYERS)


def test_rotations_give_each_layers_delta_rotated_and_leave_the_padding(delta, spaces, klein, core_text):
    (own, options), = core_text(PROMPT, klein)
    turns = [rotation(index) for index in range(3)]
    moved, plain = delta(space=spaces(*turns))[0][0][0], delta()[0][0][0]
    for y, before, after, turn in zip(parts(own), parts(plain), parts(moved), turns, strict=True):
        torch.testing.assert_close(after, y + (before - y) @ turn, rtol=1e-3, atol=1e-3)
    words = int(options["attention_mask"].sum())
    assert torch.equal(moved[:, words:], own[:, words:]) and not torch.equal(moved, plain)
    assert torch.equal(delta(0.0, space=spaces(*turns))[0][0][0], own)


def test_an_encoder_of_another_width_fits_klein_after_the_map(run, tiny, loaded, picture, core_text):
    wide = tiny.klein_clip(hidden_size=96)
    text, shown = core_text(PROMPT, wide), {"image0": picture}
    states = run("Encode", loaded, PROMPT, images=shown, family="FLUX.2 klein")[0]
    matched, space = run("MatchSpace", states, loaded, wide)[:2]
    assert matched[0][0].shape == (1, states[0][0].shape[1], 3 * 96)
    blended = run("Blend", text, matched, {"method": "aligned", "alpha": 0.5})[0]
    moved = run("Delta", loaded, PROMPT, text, images=shown, space=space)[0]
    words = int(text[0][1]["attention_mask"].sum())
    for found in (blended, moved):
        assert found[0][0].shape == text[0][0].shape and found[0][0].isfinite().all()
        assert torch.equal(found[0][0][:, words:], text[0][0][:, words:])
        assert not torch.equal(found[0][0], text[0][0])


def test_mapped_tokens_are_appended_in_the_first_places_of_the_padding(run, native, klein, stack, core_text):
    matched = run("MatchSpace", stack, native, klein, "ridge")[0]
    text = core_text(PROMPT, klein)
    appended = run("Blend", text, matched, {"method": "append"})[0]
    words, added = int(text[0][1]["attention_mask"].sum()), matched[0][0].shape[1]
    assert torch.equal(appended[0][0][:, words : words + added], matched[0][0])
    assert torch.equal(appended[0][0][:, words + added :], text[0][0][:, words + added :])


def test_maps_of_the_other_family_and_other_layers_are_refused(
    run, delta, spaces, native, klein, text_clip, tiny, stack, picture, core_text, part
):
    eyes = tiny.vision_clip()
    single = run("MatchSpace", run("Encode", eyes, PROMPT, -2)[0], eyes, text_clip, "per_dimension")[1]
    with pytest.raises(ValueError, match=r"space: expected one fitted for FLUX.2 klein, .* on layers 9, 18, 27 side by "
                       r"side, got one fitted on layer -2\. Choose family = FLUX.2 klein"):
        delta(space=single)
    turns = [torch.eye(WIDTH)] * 3
    with pytest.raises(ValueError, match=r"space: expected one fitted for Z-Image, .*layer -2, got one fitted on "
                       r"layers 9, 18, 27"):
        run("Delta", eyes, PROMPT, core_text(PROMPT, text_clip), images={"image0": picture}, space=spaces(*turns))
    with pytest.raises(ValueError, match="space: expected one fitted on layer 18, which is read here, got layer 17"):
        delta(space=spaces(*turns, layers=(9, 17, 27)))
    wide = [[torch.randn(1, LENGTH, 12288), {}]]
    with pytest.raises(ValueError, match=r"space: expected one to the text's width 12288 \(FLUX.2 klein 9B\), got one "
                       r"to 192\. Give Match Text Encoder"):
        run("Delta", native, PROMPT, wide, images={"image0": picture}, space=spaces(*turns))
    with pytest.raises(ValueError, match=r"conditioning: expected states for Z-Image, .*got width 192 \(layers 9, 18"):
        run("MatchSpace", stack, native, text_clip)
    with pytest.raises(ValueError, match=r"conditioning: expected states for FLUX.2 klein, .*got width 64 \(layer -2"):
        run("MatchSpace", run("Encode", native, PROMPT, -2)[0], native, klein)
    with torch.inference_mode():
        text = part("nodes.host.text_encoder").encode_text(klein, PROMPT)
    with pytest.raises(ValueError, match=r"conditioning: expected VL states.*494 padding"):
        run("MatchSpace", text, native, klein)


def test_kleins_maps_are_saved_one_by_one(run, native, klein, stack, part, tmp_path):
    for layer, one in zip(LAYERS, run("MatchSpace", stack, native, klein, "ridge")[1], strict=True):
        again = part("vl_core.adapters.space_adapter").SpaceAdapter.load(one.save(tmp_path / f"{layer}.safetensors"))
        assert again.layers == (layer, layer)
        assert torch.equal(again.apply(parts(stack[0][0])[0]), one.apply(parts(stack[0][0])[0]))
