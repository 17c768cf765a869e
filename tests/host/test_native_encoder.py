"""ComfyUI's own Qwen3-VL against the transformers one with the same weights, both against Z-Image's text encoder."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

BLOCKS = 6
EVERY_LAYER = tuple(range(BLOCKS + 1))
DEEPSTACK = (1, 2, 3)  # at these the host has already added deepstack at image positions, transformers not yet

PROMPTS = {
    "plain": "a cat in a red hat",
    "escaped parentheses": "a cat \\(Felis catus\\) in a hat",
    "weights": "a (red:1.3) hat, ((soft)) light",
    "braces": "a {red|blue} hat {}",
    "leading newline": "\na cat\n\nin a hat",
    "empty": "",
    "spaces": "   ",
    "other scripts": "一只戴红帽子的猫 🐈 naïve",
    "think": "a cat <think> in a hat",
}


def pictures(*sizes) -> dict[str, torch.Tensor]:
    """Noise pictures by input name; sizes are (height, width)."""
    generator = torch.Generator().manual_seed(7)
    return {f"image{n}": torch.rand(1, *size, 3, generator=generator) for n, size in enumerate(sizes)}


@pytest.fixture
def both(part, native, loaded):
    """States and notes of an encode through both encoders: native first."""
    encode = part("nodes.host.encoders").encode_vision

    def read(images, prompt, layers=EVERY_LAYER, **options):
        with torch.inference_mode():
            return [encode(encoder, images, prompt, layers, **options) for encoder in (native, loaded)]

    return read


def assert_same_layout(ours, theirs):
    assert torch.equal(ours.layout.roles, theirs.layout.roles)
    assert torch.equal(ours.layout.token_ids, theirs.layout.token_ids)
    assert ours.layout.grids == theirs.layout.grids
    assert (ours.layers, ours.num_layers) == (theirs.layers, theirs.num_layers)
    assert (ours.prompt, ours.system_prompt) == (theirs.prompt, theirs.system_prompt)


def assert_same_states(ours, theirs, tolerance=1e-3):
    outside = ours.layout.roles != 3
    for k, a, b in zip(ours.layers, ours.states, theirs.states, strict=True):
        if k in DEEPSTACK:
            a, b = a[outside], b[outside]
        error = float((a - b).norm() / b.norm())
        assert error < tolerance, f"hidden_states[{k}] differ by {error:.1e}"


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_both_encoders_agree_on_every_prompt(prompt, both):
    (ours, _), (theirs, _) = both(pictures((64, 96)), prompt)
    assert_same_layout(ours, theirs)
    assert_same_states(ours, theirs)


@pytest.mark.parametrize(
    "sizes", [(), ((64, 64),), ((61, 107),), ((250, 130),), ((64, 96), (33, 127)), ((96, 96), (64, 64), (71, 65))],
    ids=lambda sizes: " and ".join(f"{h}×{w}" for h, w in sizes) or "none",
)
def test_both_encoders_agree_on_pictures_of_any_size(sizes, both):
    (ours, notes), (theirs, other_notes) = both(pictures(*sizes), "a cat in a hat")
    assert_same_layout(ours, theirs)
    assert_same_states(ours, theirs)
    assert notes == other_notes
    assert len(ours.layout.grids) == len(sizes)


@pytest.mark.parametrize("budget, grid", [(9, (3, 2)), (20, (5, 3)), (42, (7, 5))])
def test_both_encoders_keep_to_the_token_budget(budget, grid, both):
    (ours, notes), (theirs, other_notes) = both(pictures((256, 200)), "a cat", budget=budget)
    assert_same_layout(ours, theirs)
    assert_same_states(ours, theirs)
    assert ours.layout.grids == (grid,) and grid[0] * grid[1] <= budget
    assert notes == other_notes


@pytest.mark.parametrize("system", ["Attend to the lighting.", "Look \\(closely\\) at {this}.\n"])
def test_both_encoders_agree_on_a_system_prompt(system, both):
    (ours, _), (theirs, _) = both(pictures((64, 96)), "a cat", system_prompt=system)
    assert_same_layout(ours, theirs)
    assert_same_states(ours, theirs)


def test_in_the_first_layers_the_host_has_added_deepstack_and_transformers_not_yet(both):
    (ours, _), (theirs, _) = both(pictures((64, 96)), "a cat")
    image = ours.layout.roles == 3
    pairs = zip(EVERY_LAYER, ours.states, theirs.states, strict=True)
    differing = [k for k, a, b in pairs if not torch.allclose(a[image], b[image], rtol=1e-2, atol=1e-2)]
    assert differing == list(DEEPSTACK)


def test_capturing_one_layer_gives_what_capturing_all_gives(both):
    (whole, _), (other, _) = both(pictures((64, 96)), "a cat")
    for layer in EVERY_LAYER:
        (ours, _), (theirs, _) = both(pictures((64, 96)), "a cat", layers=[layer])
        assert torch.equal(ours.states[0], whole.states[layer])
        torch.testing.assert_close(theirs.states[0], other.states[layer])


@pytest.mark.parametrize(
    "size, host_grid", [((1, 1), (2, 2)), ((32, 32), (2, 2)), ((32, 64), (2, 3)), ((96, 32), (4, 2))]
)
def test_pictures_below_the_hosts_minimum_are_enlarged_by_it(size, host_grid, both):
    (ours, notes), (theirs, _) = both(pictures(size), "a cat")
    assert ours.layout.grids == (host_grid,)
    assert any("enlarge" in note for note in notes)
    assert ours.states.isfinite().all() and theirs.states.isfinite().all()


def test_a_budget_beyond_the_hosts_largest_picture_is_cut_to_it(part, native, monkeypatch):
    host = part("nodes.host.encoders")
    asked = []

    def prepare(picture, budget, name):
        asked.append(budget)
        return prepare_picture(picture, 4, name)

    prepare_picture = part("nodes.host.native").prepare_picture
    monkeypatch.setattr(part("nodes.host.native"), "prepare_picture", prepare)
    with torch.inference_mode():
        host.encode_vision(native, pictures((64, 96)), "a cat", [-2], budget=16384)
    assert asked == [12845056 // 1024]  # process_qwen2vl_images shrinks what has more pixels


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_words_beside_a_picture_are_the_tokens_zimage_reads(prompt, both, core_text, text_clip):
    ids = [pair[0] for pair in text_clip.tokenize(prompt)["qwen3_4b"][0]]
    length = core_text(prompt)[0][0].shape[1]
    for states, _ in both(pictures((64, 96)), prompt, layers=[-2]):
        words = states.layout.token_ids[states.layout.roles < 2]
        assert words.tolist() == ids
        assert len(words) == length


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_the_text_layout_is_the_one_the_picture_was_put_into(prompt, part, text_clip, both):
    with torch.inference_mode():
        (entry,) = part("nodes.host.text_encoder").encode_text(text_clip, prompt)
    layout = entry[1]["vl_layout"]
    for states, _ in both({}, prompt, layers=[-2]):
        assert torch.equal(layout.roles, states.layout.roles)
        assert torch.equal(layout.token_ids, states.layout.token_ids)


@pytest.fixture(scope="module")
def relatives(tiny):
    """Qwen3-VL and Z-Image's text encoder with the same language weights and rotary base."""
    vision, text = tiny.vision_clip(rope_theta=1000000.0), tiny.text_clip()
    weights = vision.cond_stage_model.qwen3vl_4b.transformer.model.state_dict()
    text.cond_stage_model.qwen3_4b.transformer.model.load_state_dict(weights)
    return vision, text


def test_without_a_picture_qwen3_vl_reads_as_the_text_encoder_does(relatives, run, core_text):
    vision, text = relatives
    states = run("Encode", vision, PROMPTS["plain"], layer=-2)[0][0][0]
    torch.testing.assert_close(states, core_text(PROMPTS["plain"], text)[0][0], rtol=1e-4, atol=1e-4)


def test_what_comes_before_the_picture_is_read_as_the_text_encoder_does(relatives, run, core_text):
    vision, text = relatives
    seen = run("Encode", vision, PROMPTS["plain"], layer=-2, tokens="text", images=pictures((64, 96)))[0][0][0]
    alone = core_text(PROMPTS["plain"], text)[0][0]
    torch.testing.assert_close(seen[:, :3], alone[:, :3], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[:, 3:], alone[:, 3:], atol=1e-2)


def test_blending_relatives_without_a_picture_changes_nothing(relatives, run, core_text):
    vision, text = relatives
    alone = core_text(PROMPTS["plain"], text)
    seen = run("Encode", vision, PROMPTS["plain"], layer=-2)[0]
    blended = run("Blend", alone, seen, {"method": "aligned", "alpha": 0.5})[0]
    torch.testing.assert_close(blended[0][0], alone[0][0], rtol=1e-4, atol=1e-4)


def test_lent_weights_are_held_where_something_is_computed_and_are_no_others_for_it(part, native, monkeypatch):
    """With dynamic memory modules hold other parameters while they are held: pictures that were read stay read."""
    host, seen = part("nodes.host.native"), []

    @contextmanager
    def held(module, device):
        seen.append("held")
        before = {layer: dict(layer._parameters) for layer in module.modules()}
        for layer in before:
            for name, one in layer._parameters.items():
                layer._parameters[name] = None if one is None else torch.nn.Parameter(one.clone(), requires_grad=False)
        yield True
        for layer, parameters in before.items():
            layer._parameters.update(parameters)

    def encode(prompt):
        return part("nodes.host.encoders").encode_vision(native, pictures((64, 96)), prompt, [-6])[0].states

    with torch.inference_mode():
        encode("a hat")  # the first time it is also held beside the host's own
        reader = part("vl_core.encoder.reader")
        tower = Mock(side_effect=reader.run_vision)
        monkeypatch.setattr(reader, "run_vision", tower)
        monkeypatch.setattr(host, "held", held)
        first, again, other = encode("a lent dog"), encode("a lent dog"), encode("a lent cat")
    assert seen == ["held", "held"] and not tower.called
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_dynamic_memory_loads_anew_each_time_is_the_same_encoder(part, native, monkeypatch):
    """It hangs up copies of small weights and of buffers, and before the next load what they are of, in new objects."""
    import comfy.model_management
    import comfy.utils

    model, patcher, loads = native.cond_stage_model, native.patcher, []
    small = [name for name, weight in model.named_parameters() if weight.numel() < 4096]
    buffers = dict(model.named_buffers())

    def load(*_, **__):
        loads.append(None)
        for name in small:
            if name in patcher.backup:
                comfy.utils.set_attr_param(model, name, patcher.backup.pop(name).weight)
            weight = comfy.utils.get_attr(model, name)
            patcher.backup[name] = SimpleNamespace(weight=weight, inplace_update=False)
            comfy.utils.set_attr_param(model, name, weight.detach().clone())
        for name, buffer in buffers.items():
            comfy.utils.set_attr_buffer(model, name, buffer.clone())

    def encode(prompt):
        return part("nodes.host.encoders").encode_vision(native, pictures((64, 96)), prompt, [-6])[0].states

    with torch.inference_mode():
        encode("a hat")
    kept = patcher.backup, getattr(patcher, "backup_buffers", None)
    patcher.backup, patcher.backup_buffers = {}, buffers
    try:
        monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
        tower = Mock(side_effect=part("vl_core.encoder.reader").run_vision)
        monkeypatch.setattr(part("vl_core.encoder.reader"), "run_vision", tower)
        first, again, other = encode("a new dog"), encode("a new dog"), encode("a new cat")
    finally:
        for name in small:
            comfy.utils.set_attr_param(model, name, patcher.backup[name].weight)
        for name, buffer in buffers.items():
            comfy.utils.set_attr_buffer(model, name, buffer)
        patcher.backup, patcher.backup_buffers = kept
    assert len(small) > 20 and len(loads) == 2  # the same again needs none
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not tower.called  # the picture was seen before any of it
