"""The transformers encoder under ComfyUI's memory management."""

from __future__ import annotations

import gc

import pytest
import torch


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


# What is kept -------------------------------------------------------------------------------------------------------


def test_what_is_kept_goes_when_comfyui_unloads_the_model(loaded, management, encode):
    encode()
    assert loaded.encoder.reader.cache.bytes > 0
    management.unload_all_models()
    assert loaded.encoder.reader.cache.bytes == 0


def test_what_is_kept_stays_while_the_model_does(loaded, management, encode):
    """ComfyUI detaches and attaches a model again whenever it is asked for."""
    encode()
    before = loaded.encoder.reader.cache.bytes
    management.load_models_gpu([loaded.patcher], force_full_load=True)
    assert loaded.encoder.reader.cache.bytes == before > 0


def test_what_is_kept_of_a_native_encoder_goes_as_well(native, management, run, part, picture):
    run("Encode", native, "a cat", images={"image0": picture})
    reader = part("nodes.host.native")._native_readers[native.cond_stage_model].reader
    assert reader.cache.bytes > 0
    management.unload_all_models()
    assert reader.cache.bytes == 0


def test_words_leave_no_more_than_may_be_kept(vision, run, picture, part, management, monkeypatch):
    """The buffers of a long question are larger than that: they go with the answer."""

    def alive() -> int:
        gc.collect()
        tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and not one.is_meta]
        return sum({(one := tensor.untyped_storage()).data_ptr(): one.nbytes() for tensor in tensors}.values())

    def tell(words: int) -> None:
        run("Describe", vision, instruction="1," * words, images={"image0": picture}, max_tokens=2)

    tell(1)
    clip = getattr(vision, "cond_stage_model", None)
    native = clip is not None and part("nodes.host.native")._native_readers[clip].reader
    reader, limit = native or vision.encoder.reader, 1 << 20
    reader.forget()
    monkeypatch.setattr(reader.cache, "limit", limit)
    before = alive()
    tell(2000)
    assert reader.cache.bytes <= limit and alive() - before <= limit + 100_000  # what is written down, and tokens


@pytest.fixture
def small_device(management, monkeypatch):
    """Have ComfyUI take a CPU for a GPU with little memory; gives the function that sets how much."""
    device, room = torch.device("cpu", 0), [0]

    def free(dev=None, torch_free_too=False):
        left = room[0] - sum(entry.model.loaded_size() for entry in management.current_loaded_models)
        return (left, left) if torch_free_too else left

    monkeypatch.setattr(management, "get_free_memory", free)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 0)
    monkeypatch.setattr(management, "EXTRA_RESERVED_VRAM", 0)
    monkeypatch.setattr(management, "text_encoder_device", lambda: device)

    def set_room(size):
        room[0] = size

    return set_room


def test_with_room_for_one_model_at_a_time_both_give_their_states_by_turns(
    tiny, run, encoder_folder, management, small_device, picture, loaded, native
):
    """Load, offload, load again, each time pushed out by the other encoder; nothing kept outlives its model."""
    prompts, images = ("a cat in a red hat", "a dog", "two birds on a wire"), {"image0": picture}
    expected = [[run("Encode", each, one, images=images)[0][0][0] for each in (loaded, native)] for one in prompts]
    management.unload_all_models()
    one = run("Loader", encoder_folder.name, "fp32", deepest_layer=-1)[0]
    other = tiny.vision_clip()
    other.patcher.load_device = one.patcher.load_device = torch.device("cpu", 0)
    small_device(int(1.5 * max(one.patcher.model_size(), other.patcher.model_size())))
    for prompt, (first, second) in zip(prompts, expected, strict=True):  # what was asked before would need no model
        assert torch.allclose(run("Encode", one, prompt, images=images)[0][0][0], first, atol=1e-4)
        assert one.patcher in patchers(management) and one.encoder.reader.cache.bytes > 0
        assert torch.allclose(run("Encode", other, prompt, images=images)[0][0][0], second, atol=1e-4)
        assert one.patcher.loaded_size() < one.patcher.model_size() and one.encoder.reader.cache.bytes == 0
        assert other.patcher.loaded_size() > 0


def test_a_partly_unloaded_encoder_is_loaded_whole_again(loaded, management, encode):
    before = encode()
    loaded.patcher.partially_unload(loaded.patcher.offload_device, loaded.patcher.model_size() // 2)
    assert loaded.encoder.reader.cache.bytes == 0
    assert torch.equal(encode(), before)


# Memory that runs out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
)
def test_the_hosts_own_encode_is_tried_again_with_nothing_kept_then_says_what_to_change(
    error, native, run, part, picture, monkeypatch
):
    asked = {"prompt": "a cat in a red hat", "layer": -2, "images": {"image0": picture}}
    expected = run("Encode", native, **asked)[0][0][0]  # something is kept
    reader = part("nodes.host.native")._native_readers[native.cond_stage_model].reader
    encode, tries = type(native).encode_from_tokens, []

    def fail(times: int):
        def encoding(self, *arguments, **options):
            tries.append(reader.cache.bytes)
            if len(tries) <= times:
                raise error
            return encode(self, *arguments, **options)

        return encoding

    monkeypatch.setenv("ZIMAGE_VL_FAST", "0")
    monkeypatch.setattr(type(native), "encode_from_tokens", fail(1))
    assert torch.allclose(run("Encode", native, **asked)[0][0][0], expected, atol=1e-4)
    assert tries[0] > 0 and tries[1:] == [0]
    tries.clear()
    monkeypatch.setattr(type(native), "encode_from_tokens", fail(99))
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"image_tokens.*cache.*fp8"):
        run("Encode", native, **asked)
    assert len(tries) == 1  # nothing was kept any more


def test_a_passing_shortage_in_the_self_check_does_not_distrust_an_encoder(tiny, run, part, picture, monkeypatch):
    clip, module = tiny.vision_clip(), part("nodes.host.native")
    read, tries = module._NativeReader.read, []

    def fail_once(self, *arguments, **options):
        tries.append(0)
        if len(tries) == 1:
            raise torch.cuda.OutOfMemoryError("no room")
        return read(self, *arguments, **options)

    monkeypatch.setattr(module._NativeReader, "read", fail_once)
    for trusted in (None, True):
        run("Encode", clip, "a cat", images={"image0": picture})
        assert module._native_readers[clip.cond_stage_model].trusted is trusted


def test_an_encoder_that_does_not_fit_is_loaded_again_with_nothing_kept_then_says_what_to_change(
    loaded, run, picture, management, monkeypatch
):
    asked = {"prompt": "a cat", "images": {"image0": picture}}
    run("Encode", loaded, **asked)
    tries = []

    def fail(*_arguments, **_options):
        tries.append(loaded.encoder.reader.cache.bytes)
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(management, "load_models_gpu", fail)
    for node in ("Encode", "Describe"):
        options = asked if node == "Encode" else {"images": asked["images"]}
        with pytest.raises(torch.cuda.OutOfMemoryError, match=r"image_tokens.*cache.*fp8"):
            run(node, loaded, **options)
    assert tries[0] > 0 and set(tries[1:]) == {0}


# The GPU's copies -----------------------------------------------------------------------------------------------------

AWAY = torch.device("meta")  # stands for a GPU: what lies there is not in main memory, and cannot be copied back


@pytest.fixture
def own(run, encoder_folder):
    """An encoder that no other test has on its device."""
    return run("Loader", encoder_folder.name, "fp32", deepest_layer=-1)[0]


def addresses(encoder) -> dict[str, tuple]:
    return {name: (one.device, one.data_ptr()) for name, one in encoder.encoder.model.named_parameters()}


def test_giving_a_gpu_back_forgets_its_copies_and_keeps_the_files_mapping(own, management):
    """A copy back is impossible here, so there is none; and no second one is left in main memory."""
    before = addresses(own)
    for _ in range(2):
        own.patcher.partially_load(AWAY, 1e32)
        assert {one.device for one in own.encoder.model.parameters()} == {AWAY}
        assert own.patcher.loaded_size() == own.patcher.model_size()
        own.patcher.detach()
        assert addresses(own) == before and own.patcher.loaded_size() == 0


def test_a_part_of_a_gpu_is_given_back_the_same_way_and_loaded_whole_again(own, management):
    before, size = addresses(own), own.patcher.model_size()
    own.patcher.partially_load(AWAY, 1e32)
    freed = own.patcher.partially_unload(own.patcher.offload_device, size // 2)
    there = [one.nbytes for one in own.encoder.model.parameters() if one.device == AWAY]
    assert size // 2 <= freed < size and own.patcher.loaded_size() == size - freed
    assert abs(sum(there) - own.patcher.loaded_size()) < size // 100  # buffers are counted too
    own.patcher.partially_load(AWAY, 1e32)
    assert {one.device for one in own.encoder.model.parameters()} == {AWAY}
    assert own.patcher.loaded_size() == size
    own.patcher.detach()
    assert addresses(own) == before


def test_an_encode_after_giving_back_has_the_same_bits(own, run, picture, management):
    def states():
        return run("Encode", own, "a cat in a red hat", images={"image0": picture})[0][0][0]

    expected = states()
    management.unload_all_models()
    own.patcher.partially_load(AWAY, 1e32)
    own.patcher.detach()
    assert torch.equal(states(), expected)


def test_memory_that_runs_out_on_the_way_gives_back_what_was_sent(own, monkeypatch):
    before, made = addresses(own), []
    empty_like = torch.empty_like

    def few(*arguments, **options):
        made.append(0)
        if len(made) > 5:
            raise torch.cuda.OutOfMemoryError("no room")
        return empty_like(*arguments, **options)

    monkeypatch.setattr(torch, "empty_like", few)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        own.patcher.partially_load(AWAY, 1e32)
    assert len(made) > 5 and addresses(own) == before


# Little memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--lowvram", "--reserve-vram"])
@pytest.mark.parametrize("kind", ["native", "transformers"])
def test_words_are_written_with_little_memory(
    kind, option, tiny, run, part, base_folder, picture, management, monkeypatch
):
    """Half of ComfyUI's own Qwen3-VL stays off the device and is brought layer by layer; a folder's is loaded whole.

    With ``--lowvram`` half of it is free; with ``--reserve-vram`` all of it, of which half is to be left alone.
    """
    clip = tiny.writing_clip()
    encoder = clip
    if kind == "transformers":
        folder = base_folder / "models" / "text_encoders" / "Qwen3-VL-Lowvram"
        encoder = run("Loader", tiny.write_folder(folder, clip).name, "fp32", deepest_layer=-1)[0]
    write = part("nodes.host.encoders").write_words

    def tell():
        with torch.inference_mode():
            return write(encoder, {"image0": picture}, "describe the light", max_tokens=12)

    expected = tell()
    management.unload_all_models()
    half, low = encoder.patcher.model_size() // 2, option == "--lowvram"
    size, state = (half, "LOW_VRAM") if low else (2 * half, "NORMAL_VRAM")
    monkeypatch.setattr(management, "vram_state", management.VRAMState[state])
    monkeypatch.setattr(management, "lowvram_available", True)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "should_use_bf16", lambda *_, **__: False)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 0)
    monkeypatch.setattr(management, "EXTRA_RESERVED_VRAM", 0 if low else half)
    monkeypatch.setattr(management, "MIN_WEIGHT_MEMORY_RATIO", 0.0)
    monkeypatch.setattr(
        management, "get_free_memory", lambda dev=None, torch_free_too=False: (size, size) if torch_free_too else size
    )
    monkeypatch.setattr(management, "text_encoder_device", lambda: torch.device("cpu"))
    asked = []
    load = type(encoder.patcher).load

    def watch(patcher, *arguments, **options):
        load(patcher, *arguments, **options)
        asked.append((patcher.loaded_size(), patcher.model_size()))

    monkeypatch.setattr(type(encoder.patcher), "load", watch)
    part("nodes.host.native")._native_readers.pop(clip.cond_stage_model, None)
    told = tell()
    assert told.words == expected.words and asked
    loaded, whole = asked[-1]
    assert loaded == whole if kind == "transformers" else loaded < whole
