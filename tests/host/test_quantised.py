"""Folders of quantised weights in Load Qwen3-VL: read by their own library, let go of and read anew, never moved."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
import weakref

import pytest
import torch

PROMPT = "a cat in a red hat"
METHOD = "bitsandbytes"


@pytest.fixture
def quantise(tiny, native, base_folder):
    """A function: a folder of the native encoder's weights whose config says that they are quantised."""
    made = []

    def write(name: str, **told):
        folder = tiny.write_folder(base_folder / "models" / "text_encoders" / name, native)
        made.append(folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": told}))
        return folder

    yield write
    for folder in made:
        shutil.rmtree(folder)


class Bound(torch.nn.Linear):
    """A quantiser's layer: whoever moves or casts it finds out that this breaks it."""

    def _apply(self, *_arguments, **_options):
        raise AssertionError("a quantised layer was moved")


@pytest.fixture
def quantised(quantise, part, monkeypatch):
    """A folder whose library, at the seam to transformers, gives the plain weights in layers that cannot be moved.

    With it the devices that it was read to.
    """
    folder = quantise("Qwen3-VL-Bound", quant_method=METHOD, load_in_4bit=True)
    module, read_to = part("vl_core.encoder.folder"), []

    def load(folder, config, blocks, device, dtype):
        read_to.append(torch.device(device))
        model = module.empty_model(config, blocks)
        model.load_state_dict(module.read_weights(folder, model, device, dtype, None), assign=True)
        module.rebuild_rotary_buffers(model, device)
        for layer in model.language_model.layers:
            layer.mlp.up_proj.__class__ = Bound
        return model

    monkeypatch.setattr(module, "load_quantised", load)
    return folder.name, read_to


@pytest.fixture
def ask(run, picture):
    def ask(encoder):
        return run("Encode", encoder, PROMPT, images={"image0": picture})[0][0][0]

    return ask


def test_it_gives_what_its_weights_mean(quantised, run, ask, loaded, told, management):
    output = run("Loader", quantised[0], "fp32", deepest_layer=-1)
    assert "quantised (bitsandbytes), 6 of 6 blocks" in told(output)
    expected = ask(loaded)
    torch.testing.assert_close(ask(output[0]), expected, rtol=1e-4, atol=1e-4)
    assert len(quantised[1]) == 1


def test_layers_that_are_not_known_are_run_by_their_own_forward(quantised, run, ask, part, management, monkeypatch):
    def ran(*_, **__):
        raise AssertionError("the merged pass ran")

    monkeypatch.setattr(part("vl_core.encoder.reader"), "run_blocks", ran)
    encoder = run("Loader", quantised[0], "fp32", deepest_layer=-1)[0]
    assert not encoder.encoder.reader.watched.fit()
    assert ask(encoder).isfinite().all() and encoder.encoder.reader.cache.bytes == 0


def test_unloading_lets_go_of_every_weight_and_the_next_use_reads_them_anew(quantised, run, ask, management):
    encoder = run("Loader", quantised[0], "fp32", deepest_layer=-1)[0]
    expected, size = ask(encoder), encoder.patcher.model_size()
    assert encoder.patcher.loaded_size() == size > 0
    weights = [weakref.ref(one) for one in encoder.encoder.model.parameters()]
    management.unload_all_models()
    gc.collect()
    assert not any(weight() is not None for weight in weights)
    assert {one.device.type for one in encoder.encoder.model.parameters()} == {"meta"}
    assert encoder.patcher.loaded_size() == 0 and encoder.patcher.model_size() == size
    assert torch.equal(ask(encoder), expected) and len(quantised[1]) == 2


def test_when_another_model_wants_a_part_of_its_room_all_of_it_goes(quantised, run, ask, management):
    encoder = run("Loader", quantised[0], "fp32", deepest_layer=-1)[0]
    expected = ask(encoder)
    entry = next(one for one in management.current_loaded_models if one.model is encoder.patcher)
    assert entry.model_unload(encoder.patcher.model_size() // 2)
    management.current_loaded_models.remove(entry)
    assert not encoder.patcher.loaded_size()
    assert torch.equal(ask(encoder), expected)


def test_its_size_is_known_before_it_is_read(quantised, run, management, monkeypatch):
    """So that ComfyUI makes room for it."""
    sizes, load = [], management.load_models_gpu

    def watch(models, *arguments, **options):
        sizes.append(models[0].model_size())
        return load(models, *arguments, **options)

    monkeypatch.setattr(management, "load_models_gpu", watch)
    encoder = run("Loader", quantised[0], "fp32", deepest_layer=-1)[0]
    (file,) = (encoder.encoder.folder).glob("*.safetensors")
    assert sizes == [file.stat().st_size]


def test_reading_that_fails_leaves_nothing_behind(quantised, run, ask, part, management, monkeypatch):
    encoder = run("Loader", quantised[0], "fp32", deepest_layer=-1)[0]
    expected = ask(encoder)
    management.unload_all_models()

    def fail(*_):
        raise torch.cuda.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(part("vl_core.encoder.folder"), "load_quantised", fail)
        with pytest.raises(torch.cuda.OutOfMemoryError, match="image_tokens"):
            ask(encoder)
    assert encoder.patcher.loaded_size() == 0
    assert torch.equal(ask(encoder), expected)


def test_words_are_found_again_without_reading_the_weights(quantised, run, picture, told, management):
    encoder = run("Loader", quantised[0], "fp32", deepest_layer=-1)[0]
    options = {"images": {"image0": picture}, "max_tokens": 8}
    first = run("Describe", encoder, **options)
    management.unload_all_models()
    assert run("Describe", encoder, **options)[0] == first[0] and "transformers' generate" in told(first)
    assert not encoder.patcher.loaded_size() and len(quantised[1]) == 1


def test_files_that_were_changed_since_are_not_taken_for_those_of_before(quantised, run, ask, management):
    encoder = run("Loader", quantised[0], "fp32", deepest_layer=-1)[0]
    management.unload_all_models()
    (file,) = encoder.encoder.folder.glob("*.safetensors")
    held = bytearray(file.read_bytes())
    held[len(held) // 2 :] = bytes(len(held) - len(held) // 2)
    file.write_bytes(held)
    with pytest.raises(ValueError, match="expected the weights that Load Qwen3-VL read, got files that were changed"):
        ask(encoder)


def test_another_quantisation_is_another_encoder(quantised, run, loaded, part, management):
    identity = part("nodes.host.identity").identity_of
    encoder = run("Loader", quantised[0], "fp32", deepest_layer=-1)[0]
    known = identity(encoder)
    assert known == identity(encoder) != identity(loaded)
    management.unload_all_models()
    assert identity(encoder) == known != identity(run("Loader", quantised[0], "fp32", deepest_layer=-2)[0])


# What is missing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "library"), [
    ("bitsandbytes", "bitsandbytes"), ("compressed-tensors", "compressed-tensors"), ("fbgemm_fp8", ""),
    ("gptq", "optimum gptqmodel"), ("fp8", ""),
])
def test_a_library_that_is_missing_is_named(method, library, quantise, run, part, monkeypatch):
    monkeypatch.setattr(part("vl_core.encoder.quantised"), "_is_installed", lambda _name: False)
    folder = quantise(f"Qwen3-VL-{method}", quant_method=method, load_in_4bit=True)
    message = rf"weights are quantised \({method}\), .*pip install accelerate ?{library}\. .*Load CLIP"
    with pytest.raises(ImportError, match=message):
        run("Loader", folder.name)


def test_a_device_that_cannot_is_named(quantise, run, part, monkeypatch):
    """fbgemm wants a GPU; transformers says so itself."""
    monkeypatch.setattr(part("vl_core.encoder.quantised"), "missing_libraries", lambda _method: [])
    folder = quantise("Qwen3-VL-fbgemm", quant_method="fbgemm_fp8")
    with pytest.raises((ImportError, ValueError), match=r"quantised weights \(fbgemm_fp8\)|quantised \(fbgemm_fp8\)"):
        run("Loader", folder.name)


# With the libraries themselves, where they are installed -------------------------------------------------------------


def test_eight_bits_of_bitsandbytes(quantise, tiny, native, base_folder, run, ask, loaded, management):
    for library in ("accelerate", "bitsandbytes"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    from transformers import BitsAndBytesConfig
    from transformers.models.qwen3_vl import Qwen3VLForConditionalGeneration

    plain = tiny.write_folder(base_folder / "plain", native)
    folder = quantise("Qwen3-VL-8bit")
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "visual"])
    read = Qwen3VLForConditionalGeneration.from_pretrained
    read(plain, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32).save_pretrained(folder)
    expected = ask(loaded)
    encoder = run("Loader", folder.name, "fp32", deepest_layer=-1)[0]
    states = ask(encoder)
    assert 0 < float((states - expected).norm() / expected.norm()) < 0.06
    assert encoder.patcher.model_size() < loaded.patcher.model_size()
    management.unload_all_models()
    assert torch.equal(ask(encoder), states)
