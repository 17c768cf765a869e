"""Our forward on ComfyUI's own Qwen3-VL: the host's states, nothing run twice, and the host's path where in doubt."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

PROMPT, OTHER = "a cat in a red hat", "a dog on a green sofa, at night"
EVERY_LAYER = range(7)


@pytest.fixture
def host(part):
    return part("nodes.host.encoders")


@pytest.fixture
def modules(part):
    return part("nodes.host.native")


@pytest.fixture
def clip(tiny):
    """A Qwen3-VL of its own, so that nothing was kept or checked before."""
    return tiny.vision_clip()


@pytest.fixture
def read(host):
    def read(clip, images, prompt=PROMPT, layers=EVERY_LAYER, **options):
        with torch.inference_mode():
            return host.encode_vision(clip, images, prompt, layers, **options)[0]

    return read


@pytest.fixture
def plainly(read, monkeypatch):
    """The same through the host's encode."""

    def plainly(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setenv("ZIMAGE_VL_FAST", "0")
            return read(*arguments, **options)

    return plainly


@pytest.fixture
def host_encodes(monkeypatch):
    """How often the host's own encode ran."""
    import comfy.sd

    calls = []
    encode = comfy.sd.CLIP.encode_from_tokens

    def count(self, *arguments, **options):
        calls.append(1)
        return encode(self, *arguments, **options)

    monkeypatch.setattr(comfy.sd.CLIP, "encode_from_tokens", count)
    return calls


@pytest.fixture
def rows(part, monkeypatch):
    """How many positions our own forward ran."""
    module = part("vl_core.encoder.reader")
    ran, run_blocks = [], module.run_blocks

    def count(language, hidden, *rest, **options):
        ran.append(len(hidden))
        return run_blocks(language, hidden, *rest, **options)

    monkeypatch.setattr(module, "run_blocks", count)
    return ran


@pytest.fixture
def images(picture):
    return {"image0": picture, "image1": picture.flip(2)[:, :, :64]}


def assert_same(ours, theirs, tolerance=1e-5):
    assert torch.equal(ours.layout.roles, theirs.layout.roles) and ours.layers == theirs.layers
    assert (ours.states.dtype, ours.states.device) == (theirs.states.dtype, theirs.states.device)
    assert float((ours.states - theirs.states).norm() / theirs.states.norm()) < tolerance


@pytest.mark.parametrize("options", [{}, {"mute": True}, {"system_prompt": "Attend to the light."}], ids=str)
def test_the_states_are_the_hosts(clip, read, plainly, images, host_encodes, options):
    for prompt in (PROMPT, OTHER, "", "a \\(red\\) hat"):
        ours = read(clip, images, prompt, **options)
        assert_same(ours, plainly(clip, images, prompt, **options))
    assert len(host_encodes) == 1 + 4  # the check on first use, and those asked for


def test_words_alone_are_read_as_well(clip, read, plainly, host_encodes):
    assert_same(read(clip, {}), plainly(clip, {}))
    assert len(host_encodes) == 2


def test_a_new_prompt_runs_its_own_positions_and_the_same_again_nothing(clip, read, plainly, images, rows):
    first = read(clip, images, layers=[-2])
    rows.clear()
    assert torch.equal(read(clip, images, layers=[-2]).states, first.states) and rows == []
    ours = read(clip, images, OTHER, layers=[-2])
    assert rows == [len(ours.layout) - 3 - (6 + 2) - (4 + 2)]  # not the header and the two pictures in their markers
    assert_same(ours, plainly(clip, images, OTHER, layers=[-2]))


def test_a_changed_pixel_prompt_or_layer_is_read_anew(clip, read, plainly, picture):
    other = picture.clone()
    other[0, 3, 5] = 1 - other[0, 3, 5].round()
    asked = [(picture, PROMPT, [-2]), (other, PROMPT, [-2]), (picture, OTHER, [-2]), (picture, PROMPT, [-3])]
    results = [read(clip, {"image0": image}, prompt, layers) for image, prompt, layers in asked]
    for ours, (image, prompt, layers) in zip(results, asked, strict=True):
        assert_same(ours, plainly(clip, {"image0": image}, prompt, layers))
    assert not torch.equal(results[0].states, results[1].states)


def test_a_lora_on_the_encoder_is_another_encoder(clip, read, plainly, images):
    """Also when both are used in turn: they share their weights."""
    before = read(clip, images)
    patched = clip.clone()
    name = "qwen3vl_4b.transformer.model.layers.1.mlp.down_proj.weight"
    change = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    assert patched.add_patches({name: (change,)}, 0.5)
    changed = read(patched, images)
    assert not torch.allclose(changed.states, before.states, atol=1e-2)
    assert_same(changed, plainly(patched, images))
    assert_same(read(clip, images), before)
    assert_same(read(patched, images), changed)


def test_copies_that_the_host_makes_at_each_load_are_no_other_model(clip, read, images, rows):
    """Dynamic VRAM puts fresh copies of small weights in place and keeps the originals in the patcher's backup."""
    before = read(clip, images)
    name = "qwen3vl_4b.transformer.model.layers.1.self_attn.q_norm"
    for _ in range(2):
        norm = clip.cond_stage_model.get_submodule(name)
        clip.patcher.backup.setdefault(f"{name}.weight", SimpleNamespace(weight=norm.weight, inplace_update=False))
        norm.weight = torch.nn.Parameter(norm.weight.clone(), requires_grad=False)
        rows.clear()
        assert torch.equal(read(clip, images).states, before.states) and rows == []


def test_weights_changed_in_place_are_noticed(clip, read, plainly, images):
    before = read(clip, images)
    with torch.no_grad():
        clip.cond_stage_model.qwen3vl_4b.transformer.model.layers[3].mlp.up_proj.weight.mul_(2)
    ours = read(clip, images)
    assert not torch.allclose(ours.states, before.states, atol=1e-2)
    assert_same(ours, plainly(clip, images))


def test_a_picture_that_the_host_enlarges_goes_to_the_host(clip, read, host_encodes, picture):
    read(clip, {"image0": picture[:, :32, :32]})
    assert len(host_encodes) == 1


def test_a_hook_in_the_model_goes_to_the_host(clip, read, images, host_encodes):
    layer = clip.cond_stage_model.qwen3vl_4b.transformer.model.layers[2]
    hook = layer.mlp.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    doubled = read(clip, images)
    hook.remove()
    assert len(host_encodes) == 1
    assert not torch.allclose(read(clip, images).states, doubled.states, atol=1e-2)


def test_a_host_that_computes_otherwise_is_noticed_once_and_left_to_itself(
    clip, read, plainly, images, monkeypatch, caplog, host_encodes
):
    """A ComfyUI with another rotary base: ours would give other states, so it is not used."""
    config = clip.cond_stage_model.qwen3vl_4b.transformer.model.config
    compute = type(clip.cond_stage_model.qwen3vl_4b.transformer.model).compute_freqs_cis
    monkeypatch.setattr(
        type(clip.cond_stage_model.qwen3vl_4b.transformer.model), "compute_freqs_cis",
        lambda self, positions, device: compute(self, 3 * positions + 1, device) if self.config is config else None,
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(read(clip, images).states, plainly(clip, images).states)
    assert caplog.text.count("slower encode: ours differs from it by") == 1
    assert len(host_encodes) == 1 + 2 + 2


def test_a_host_whose_modules_are_called_otherwise_is_left_to_itself(clip, read, images, host_encodes, part):
    attention = clip.cond_stage_model.qwen3vl_4b.transformer.model.layers[0].self_attn
    attention._modules["norm_of_q"] = attention._modules.pop("q_norm")
    transformer = clip.cond_stage_model.qwen3vl_4b.transformer
    assert not part("vl_core.encoder.forward").fits(transformer.visual, transformer.model)
    attention._modules["q_norm"] = attention._modules.pop("norm_of_q")
    read(clip, images)
    assert len(host_encodes) == 1


def test_the_environment_turns_it_off(clip, plainly, images, host_encodes, modules):
    plainly(clip, images)
    assert len(host_encodes) == 1 and clip.cond_stage_model not in modules._native_readers


def test_a_reader_goes_with_its_model(tiny, read, picture, modules):
    import gc
    import weakref

    clip = tiny.vision_clip()
    read(clip, {"image0": picture})
    reader = weakref.ref(modules._native_readers[clip.cond_stage_model].reader)
    model = weakref.ref(clip.cond_stage_model)
    import comfy.model_management

    comfy.model_management.unload_all_models()
    del clip
    gc.collect()
    comfy.model_management.cleanup_models()
    gc.collect()
    assert model() is None and reader() is None


# Load Qwen3-VL's own switches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["on", "every layer", "off"])
@pytest.mark.parametrize("compile", [False, True])
def test_the_loaders_switches_change_no_state(run, encoder_folder, picture, loaded, cache, compile, rows):
    encoder = run("Loader", encoder_folder.name, "fp32", deepest_layer=-1, cache=cache, compile=compile)[0]
    for layer, prompt in ((-2, PROMPT), (-2, OTHER), (-3, OTHER), (-2, PROMPT)):
        rows.clear()
        ours = run("Encode", encoder, prompt, layer=layer, images={"image0": picture})[0][0][0]
        ran = list(rows)
        theirs = run("Encode", loaded, prompt, layer=layer, images={"image0": picture})[0][0][0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        if (layer, prompt) == (-3, OTHER):
            assert (ran == []) == (cache == "every layer")
    assert (ran == []) == (cache != "off")


def test_the_environment_turns_the_transformers_path_off_too(run, encoder_folder, picture, loaded, monkeypatch, rows):
    monkeypatch.setenv("ZIMAGE_VL_FAST", "0")
    encoder = run("Loader", encoder_folder.name, "fp32", deepest_layer=-1)[0]
    ours = run("Encode", encoder, PROMPT, images={"image0": picture})[0][0][0]
    assert rows == []
    theirs = run("Encode", loaded, PROMPT, images={"image0": picture})[0][0][0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_an_unknown_cache_is_refused(run, encoder_folder):
    with pytest.raises(ValueError, match="cache: expected one of on, every layer, off, got 'some'"):
        run("Loader", encoder_folder.name, cache="some")


# The reference ------------------------------------------------------------------------------------------------------


def test_a_reference_measured_in_batches_is_the_one_measured_one_by_one(host, text_clip, part, host_encodes):
    texts = part("vl_core.states.statistics").calibration_prompts()
    with torch.inference_mode():
        together = part("nodes.host.text_encoder").encode_many(text_clip, texts)
        batches = len(host_encodes)
        for text, states in zip(texts, together, strict=True):
            alone = text_clip.encode_from_tokens(text_clip.tokenize(text))[0]
            torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-4)
    assert batches <= len(texts) / 6
