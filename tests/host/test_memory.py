"""The transformers encoder under ComfyUI's memory management."""

from __future__ import annotations

import gc

import pytest
import torch


@pytest.fixture
def management(base_folder):
    """ComfyUI's model management, nothing loaded before and after."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    yield comfy.model_management
    comfy.model_management.unload_all_models()


@pytest.fixture
def encode(run, loaded, picture):
    return lambda: run("Encode", loaded, "a cat in a red hat", images={"image0": picture})[0][0][0]


def patchers(management) -> list:
    return [entry.model for entry in management.current_loaded_models]


def test_the_encoder_is_not_loaded_before_it_is_used(loaded, management):
    assert loaded.patcher not in patchers(management)


def test_encoding_loads_the_model_through_comfyui(loaded, management, encode):
    encode()
    assert patchers(management).count(loaded.patcher) == 1
    encode()
    assert patchers(management).count(loaded.patcher) == 1


def test_comfyui_knows_the_size_of_every_weight(loaded):
    weights = sum(weight.nbytes for weight in loaded.encoder.model.state_dict().values())
    assert loaded.patcher.model_size() == weights
    assert dict(loaded.patcher.model.named_parameters()).keys() != {}
    assert {id(w) for w in loaded.patcher.model.parameters()} == {id(w) for w in loaded.encoder.model.parameters()}


def test_after_unloading_an_encode_gives_the_same_states(loaded, management, encode):
    before = encode()
    management.unload_all_models()
    assert loaded.patcher not in patchers(management)
    assert torch.equal(encode(), before)


def test_the_room_asked_for_grows_with_the_pictures(loaded, management, picture, run, monkeypatch):
    asked = []
    load = management.load_models_gpu

    def watch(models, memory_required=0, **options):
        asked.append(memory_required)
        return load(models, memory_required, **options)

    monkeypatch.setattr(management, "load_models_gpu", watch)
    for count in (1, 3):
        run("Encode", loaded, "a cat", images={"image0": picture.repeat(count, 1, 1, 1)})
    assert 0 < asked[0] < asked[1]


def test_encodes_do_not_pile_up_tensors(loaded, encode):
    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    encode()
    before = alive()
    for _ in range(3):
        encode()
    assert alive() == before


def test_what_comes_out_holds_its_own_values_and_no_more(management, encode):
    states = encode()
    assert states.device == torch.device(management.intermediate_device())
    assert states.untyped_storage().nbytes() == states.nbytes


def test_a_stopped_encode_raises_and_the_next_one_works(loaded, management, encode):
    expected = encode()
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        encode()
    assert torch.equal(encode(), expected)


def test_a_loaded_encoder_is_freed_with_the_last_reference(run, encoder_folder, management):
    import weakref

    loaded = run("Loader", encoder_folder.name, "bf16", deepest_layer=-5)[0]
    run("Encode", loaded, "a cat", layer=-5)
    model = weakref.ref(loaded.encoder.model)
    del loaded
    management.cleanup_models()
    gc.collect()
    management.cleanup_models()
    assert model() is None
