"""Hidden states and CONDITIONING come back from a file as they went in, and damaged files are refused in words."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vl_core.states import storage
from vl_core.states.layout import TokenLayout, insert_pictures, text_layout
from vl_core.states.statistics import Moments, ReferenceStatistics
from vl_core.states.storage import read_tensors, write_tensors
from vl_core.states.vl_states import LAYOUT_KEY, VLStates, load_conditioning, resolve_layer, save_conditioning

PROMPT = "Ein Fuchs, 狐狸, لوحة 🦊 \"quoted\" \\ line\nbreak"
RED_FOX_IDS = [151644, 872, 198, 64, 2518, 38835, 151645, 198, 151644, 77091, 198]
FLOATS = [torch.bfloat16, torch.float16, torch.float32]


def fox_layout(**changes) -> TokenLayout:
    text = text_layout(RED_FOX_IDS, prompt=PROMPT, layer=-6, model="qwen3-vl-4b")
    return insert_pictures(text, [(2, 3), (1, 1)], **changes)


def awkward_values(*shape: int, dtype=torch.float32) -> torch.Tensor:
    """Random bits of every magnitude, with the values that comparisons and roundings get wrong."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 1000
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-7, 65504.0])
    values.view(-1)[: len(special)] = special
    return values.to(dtype)


def fox_states(dtype=torch.bfloat16) -> VLStates:
    layout = fox_layout()
    states = awkward_values(2, len(layout), 8, dtype=dtype)
    return VLStates(states, (31, 35), 36, layout, PROMPT, "Be brief.", "qwen3-vl-4b")


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal to the last bit, NaNs and signed zeros included."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and one.contiguous().view(torch.uint8).equal(other.contiguous().view(torch.uint8))


def same_layout(one: TokenLayout, other: TokenLayout) -> bool:
    fields = ("grids", "layer", "source", "prompt", "model")
    alike = all(getattr(one, name) == getattr(other, name) for name in fields)
    return alike and same_bits(one.roles, other.roles) and same_bits(one.token_ids, other.token_ids)


def rewrite(path, *, header=None, drop=(), **tensors) -> None:
    """Save a file again with parts of its JSON header or its tensors changed, or without some of them."""
    with safe_open(str(path), framework="pt") as file:
        kept = {name: file.get_tensor(name).clone() for name in file.keys() if name not in drop}  # noqa: SIM118
        old = json.loads(file.metadata()[storage.HEADER_KEY])
    merged = {name: value for name, value in {**old, **(header or {})}.items() if name not in drop}
    save_file({**kept, **tensors}, path, metadata={storage.HEADER_KEY: json.dumps(merged)})


# --- layer numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer, index", [(-1, 36), (-2, 35), (-6, 31), (-8, 29), (-37, 0), (0, 0), (31, 31), (36, 36)])
def test_layers_of_36_blocks_are_numbered_as_in_transformers_hidden_states(layer, index):
    assert resolve_layer(layer, 36) == index
    assert list(range(37))[layer] == index


@pytest.mark.parametrize("layer", [-38, 37, 100])
def test_a_layer_the_model_lacks_is_refused_with_the_range(layer):
    with pytest.raises(ValueError, match=rf"layer: expected -37 to -1 or 0 to 36.*36 blocks.*got {layer}"):
        resolve_layer(layer, 36)


@pytest.mark.parametrize("layer", [-6, 31])
def test_a_captured_layer_is_found_by_either_number(layer):
    states = fox_states(torch.float32)
    found, layout = states.at(layer)
    assert same_bits(found, states.states[0])
    assert layout.layer == -6


def test_each_layer_comes_with_a_layout_that_names_it():
    assert fox_states().at(-2)[1].layer == -2
    assert fox_states().at(35)[1].layer == -2


def test_a_layer_that_was_not_captured_is_refused_with_those_that_were():
    with pytest.raises(ValueError, match="layer: -1 was not captured by this encode, only -6, -2"):
        fox_states().at(-1)


@pytest.mark.parametrize("shape", [(1, 22, 8), (2, 21, 8), (2, 22)])
def test_states_of_another_shape_than_layers_and_layout_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(2 layers, 22 positions, width\)"):
        VLStates(torch.zeros(shape), (31, 35), 36, fox_layout())


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_states_come_back_bit_for_bit(tmp_path, dtype):
    saved = fox_states(dtype)
    loaded = VLStates.load(saved.save(tmp_path / "fox.safetensors"))
    assert same_bits(loaded.states, saved.states)
    assert same_layout(loaded.layout, saved.layout)
    for name in ("layers", "num_layers", "prompt", "system_prompt", "model"):
        assert getattr(loaded, name) == getattr(saved, name)


@pytest.mark.parametrize("dtype", FLOATS)
def test_conditioning_comes_back_bit_for_bit(tmp_path, dtype):
    layout = fox_layout()
    options = {
        "vl_layout": layout,
        "pooled_output": None,
        "mask": awkward_values(1, 4, 4, dtype=dtype),
        "reference_latents": [awkward_values(1, 16, 8, 8), awkward_values(1, 16, 4, 4, dtype=dtype)],
        "area": (64, 64, 0, 0),
        "nested": [(1, [torch.arange(3), "a"]), ()],
        "set_area_to_bounds": False,
        "strength": 0.1,
        "start_percent": 0,
        "end_percent": 1.0,
        "note": PROMPT,
        "empty": [],
    }
    states = awkward_values(1, len(layout), 8, dtype=dtype)
    second = awkward_values(1, 3, 8, dtype=dtype)
    assert save_conditioning(tmp_path / "c.safetensors", [[states, options], (second, {})]) == []
    (loaded, found), (loaded_second, none) = load_conditioning(tmp_path / "c.safetensors")

    assert same_bits(loaded, states) and same_bits(loaded_second, second) and none == {}
    assert list(found) == list(options)
    assert same_layout(found["vl_layout"], layout)
    assert same_bits(found["mask"], options["mask"])
    assert type(found["reference_latents"]) is list
    assert all(map(same_bits, found["reference_latents"], options["reference_latents"]))
    assert found["area"] == (64, 64, 0, 0) and type(found["area"]) is tuple
    (one, (tensor, letter)), nothing = found["nested"]
    assert (one, letter, nothing) == (1, "a", ()) and same_bits(tensor, torch.arange(3))
    assert type(found["nested"][0]) is tuple and type(found["nested"][0][1]) is list
    for name in ("pooled_output", "set_area_to_bounds", "strength", "start_percent", "end_percent", "note", "empty"):
        assert found[name] == options[name] and type(found[name]) is type(options[name])


def test_a_layout_without_pictures_or_layer_comes_back(tmp_path):
    layout = text_layout(RED_FOX_IDS)
    save_conditioning(tmp_path / "c.safetensors", [[torch.zeros(1, 11, 4), {"vl_layout": layout}]])
    assert same_layout(load_conditioning(tmp_path / "c.safetensors")[0][1]["vl_layout"], layout)


def test_views_of_one_tensor_and_strided_tensors_are_saved_as_they_look(tmp_path):
    whole = torch.arange(24.0).view(1, 6, 4)
    shared = {"first": whole[:, :3], "same": whole, "flipped": whole.transpose(1, 2)}
    save_conditioning(tmp_path / "c.safetensors", [[whole[:, 1:4], shared]])
    ((states, options),) = load_conditioning(tmp_path / "c.safetensors")
    assert states.equal(whole[:, 1:4])
    assert all(options[name].equal(shared[name]) for name in shared)


def test_saving_leaves_the_conditioning_untouched(tmp_path):
    options = {"hooks": object(), "strength": 1.0}
    conditioning = [[torch.ones(1, 2, 4), options]]
    save_conditioning(tmp_path / "c.safetensors", conditioning)
    assert list(options) == ["hooks", "strength"] and conditioning[0][1] is options


def test_what_no_file_can_hold_is_left_out_and_named(tmp_path):
    class HookGroup:
        pass

    first = {"hooks": HookGroup(), "strength": 0.5, "gligen": ("position", HookGroup(), [torch.zeros(1)])}
    second = {"control": HookGroup(), "hooks": HookGroup()}
    path = tmp_path / "c.safetensors"
    left_out = save_conditioning(path, [[torch.zeros(1, 2, 4), first], [torch.zeros(1, 2, 4), second]])
    assert left_out == ["control", "gligen", "hooks"]
    assert [options for _, options in load_conditioning(path)] == [{"strength": 0.5}, {}]


def test_an_empty_conditioning_is_refused(tmp_path):
    with pytest.raises(ValueError, match="conditioning: expected at least one entry"):
        save_conditioning(tmp_path / "c.safetensors", [])
    assert list(tmp_path.iterdir()) == []


def test_folders_on_the_way_are_made(tmp_path):
    path = fox_states().save(tmp_path / "new" / "folder" / "fox.safetensors")
    assert path.is_file() and path == tmp_path / "new" / "folder" / "fox.safetensors"


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    path = fox_states().save(tmp_path / "fox.safetensors")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_loaded_states_do_not_depend_on_the_file_any_more(tmp_path):
    saved = fox_states()
    path = saved.save(tmp_path / "fox.safetensors")
    loaded = VLStates.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert same_bits(loaded.states, saved.states)


# --- saving goes wrong ----------------------------------------------------------------------------------------------


def full_disk(tensors, filename, metadata=None):
    with open(filename, "wb") as file:
        file.write(b"half a file")
    raise OSError("No space left on device")


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("broken", ["save_file", "replace"])
def test_nothing_half_written_stays_when_saving_fails(tmp_path, monkeypatch, broken):
    fail = {
        "save_file": (lambda: monkeypatch.setattr(storage, "save_file", full_disk), OSError),
        "replace": (lambda: monkeypatch.setattr(os, "replace", interrupted), KeyboardInterrupt),
    }
    arrange, error = fail[broken]
    arrange()
    with pytest.raises(error):
        fox_states().save(tmp_path / "fox.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_file_that_was_there_survives_a_failed_save(tmp_path, monkeypatch):
    path = fox_states().save(tmp_path / "fox.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr(storage, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        fox_states(torch.float32).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# --- files that are not ours, or not whole --------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file at .*nowhere\.safetensors"):
        VLStates.load(tmp_path / "nowhere.safetensors")


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    path = fox_states().save(tmp_path / "fox.safetensors")
    rewrite(path, header={"version": storage.FORMAT_VERSION + 1})
    with pytest.raises(ValueError, match=r"fox\.safetensors: written in format 2, this version reads up to 1. Update"):
        VLStates.load(path)


@pytest.mark.parametrize(
    "kind, load",
    [("conditioning", VLStates.load), ("reference", load_conditioning), ("states", ReferenceStatistics.load)],
)
def test_a_file_of_another_kind_is_refused(tmp_path, kind, load):
    path = tmp_path / "saved.safetensors"
    moments = Moments.of(torch.ones(2, 4))
    save = {
        "states": lambda: fox_states().save(path),
        "conditioning": lambda: save_conditioning(path, [[torch.zeros(1, 2, 4), {}]]),
        "reference": lambda: ReferenceStatistics(moments, moments, torch.ones(2)).save(path),
    }
    save[kind]()
    with pytest.raises(ValueError, match=rf"expected saved (states|conditioning|reference), got saved {kind}"):
        load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_another_program_are_refused(tmp_path, metadata):
    path = tmp_path / "lora.safetensors"
    save_file({"states": torch.zeros(1, 2, 3)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"lora\.safetensors: expected a file saved by zimage-vl.*another program"):
        VLStates.load(path)


@pytest.mark.parametrize("header", ["{", "[1, 2]", "7", '{"version": "new"}'])
def test_a_damaged_header_is_refused(tmp_path, header):
    path = tmp_path / "odd.safetensors"
    save_file({"states": torch.zeros(1, 2, 3)}, path, metadata={storage.HEADER_KEY: header})
    with pytest.raises(ValueError, match=r"odd\.safetensors: expected a zimage-vl header, got a damaged one"):
        VLStates.load(path)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
@pytest.mark.parametrize("load", [VLStates.load, load_conditioning])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kept, load):
    path = fox_states().save(tmp_path / "fox.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=r"fox\.safetensors: expected a safetensors file.*cut short or damaged"):
        load(path)


@pytest.mark.parametrize("content", [b"not tensors at all" * 50, b"\xff" * 500, b"\x00" * 500])
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "noise.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"noise\.safetensors: expected a safetensors file"):
        load_conditioning(path)


@pytest.mark.parametrize("name", ["states", "roles", "token_ids"])
def test_a_missing_tensor_is_named(tmp_path, name):
    path = fox_states().save(tmp_path / "fox.safetensors")
    rewrite(path, drop=[name])
    with pytest.raises(ValueError, match=rf"fox\.safetensors: expected a tensor '{name}', got only"):
        VLStates.load(path)


@pytest.mark.parametrize("name", ["0.states", "0.options.mask", "0.options.vl_layout.roles"])
def test_a_missing_tensor_of_a_conditioning_is_named(tmp_path, name):
    path = tmp_path / "c.safetensors"
    layout = fox_layout()
    save_conditioning(path, [[torch.zeros(1, len(layout), 4), {"vl_layout": layout, "mask": torch.ones(1)}]])
    rewrite(path, drop=[name])
    with pytest.raises(ValueError, match=rf"c\.safetensors: expected a tensor '{name}', got only"):
        load_conditioning(path)


@pytest.mark.parametrize(
    "name", ["layers", "num_layers", "layout", "prompt", "system_prompt", "model"]
)
def test_a_header_without_an_entry_is_refused(tmp_path, name):
    path = fox_states().save(tmp_path / "fox.safetensors")
    rewrite(path, drop=[name])
    with pytest.raises(ValueError, match=rf"fox\.safetensors: the header lacks or garbles '{name}'"):
        VLStates.load(path)


@pytest.mark.parametrize("entries", [None, 3, [3], [{"area": 5}], [{"area": {}}]])
def test_a_conditioning_with_garbled_entries_is_refused(tmp_path, entries):
    path = tmp_path / "c.safetensors"
    save_conditioning(path, [[torch.zeros(1, 2, 4), {}]])
    rewrite(path, header={"entries": entries})
    with pytest.raises(ValueError, match=r"c\.safetensors: the header lacks or garbles"):
        load_conditioning(path)


@pytest.mark.parametrize(
    "shape, complaint",
    [
        ((2, 22), "'states' with 3 axes"),
        ((2, 22, 8, 1), "'states' with 3 axes"),
        ((2, 21, 8), "22 positions"),
        ((3, 22, 8), "2 layers"),
    ],
)
def test_states_of_a_wrong_shape_are_refused(tmp_path, shape, complaint):
    path = fox_states().save(tmp_path / "fox.safetensors")
    rewrite(path, states=torch.zeros(shape))
    with pytest.raises(ValueError, match=complaint):
        VLStates.load(path)


def test_roles_and_ids_that_disagree_are_refused(tmp_path):
    path = fox_states().save(tmp_path / "fox.safetensors")
    rewrite(path, roles=torch.zeros(5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="one equal length"):
        VLStates.load(path)


def test_conditioning_of_a_wrong_shape_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    save_conditioning(path, [[torch.zeros(2, 4), {}]])
    with pytest.raises(ValueError, match=r"'0\.states' with 3 axes, got shape \(2, 4\)"):
        load_conditioning(path)


def test_a_layout_of_another_length_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(ValueError, match="expected 22 tokens in entry 1, as they were described, got 12"):
        save_conditioning(path, [[torch.zeros(1, 3, 4), {}], [torch.zeros(1, 12, 4), {"vl_layout": fox_layout()}]])
    assert not path.exists()
    save_conditioning(path, [[torch.zeros(1, 22, 4), {"vl_layout": fox_layout()}]])
    tensors, header = read_tensors(path, "conditioning")
    write_tensors(path, "conditioning", tensors | {"0.states": torch.zeros(1, 12, 4)}, header)
    with pytest.raises(ValueError, match=r"c\.safetensors: entry 0 has 12 positions but a layout of 22"):
        load_conditioning(path)


def test_a_layout_remembers_that_a_mask_cut_its_picture(tmp_path):
    cut = fox_layout().select(torch.arange(22) != 5)
    save_conditioning(tmp_path / "c.safetensors", [[torch.zeros(1, 21, 4), {"vl_layout": cut}]])
    assert load_conditioning(tmp_path / "c.safetensors")[0][1]["vl_layout"].cut


def test_a_cut_pictures_places_come_back(tmp_path):
    """What a mask left can be pooled after loading as before saving."""
    layout = TokenLayout(torch.full((6,), 3), torch.zeros(6), ((2, 3),)).select(torch.tensor([1, 0, 1, 1, 0, 1]))
    path = tmp_path / "cut.safetensors"
    save_conditioning(path, [(torch.randn(1, 4, 8), {LAYOUT_KEY: layout})])
    (_, options), *_ = load_conditioning(path)
    assert options[LAYOUT_KEY].cut and options[LAYOUT_KEY].grids == ((1, 4),)
    assert options[LAYOUT_KEY].masks[0].tolist() == [[True, False, True], [True, False, True]]


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda header: header | {"layers": ["-2"]}, "layers.0"),
        (lambda header: header | {"layers": [10**9]}, "layers"),
        (lambda header: header | {"num_layers": 10**12}, "num_layers"),
        (lambda header: header | {"prompt": {"a": 1}}, "prompt"),
        (lambda header: header | {"layout": [1]}, "layout"),
        (lambda header: header | {"layout": header["layout"] | {"grids": [[0, 5]]}}, "grids"),
        (lambda header: header | {"layout": header["layout"] | {"grids": [[1, 2, 3]]}}, "grids"),
    ],
)
def test_a_badly_typed_header_is_an_error_that_names_the_file(tmp_path, change, told):
    path = fox_states().save(tmp_path / "odd.safetensors")
    tensors, header = read_tensors(path, "states", finite=False)
    write_tensors(path, "states", tensors, change(header))
    with pytest.raises(ValueError, match=rf"odd\.safetensors: the header lacks or garbles.*{told}"):
        VLStates.load(path)


@pytest.mark.parametrize("bomb", ["[" * 100_000, '{"a":' * 50_000, '{"layout":' + "[" * 500 + "]" * 500 + "}"])
def test_a_header_nested_without_end_is_an_error_that_names_the_file(tmp_path, bomb):
    path = tmp_path / "bomb.safetensors"
    save_file({"states": torch.zeros(1, 2, 3)}, path, metadata={storage.HEADER_KEY: bomb})
    with pytest.raises(ValueError, match=r"bomb\.safetensors: expected a zimage-vl header, got a damaged one"):
        VLStates.load(path)


def test_what_was_measured_or_fitted_holds_no_nan(tmp_path):
    path = tmp_path / "measured.safetensors"
    for value in (float("nan"), float("inf")):
        write_tensors(path, "reference", {"rms": torch.tensor([1.0, value])}, {})
        with pytest.raises(ValueError, match=r"measured\.safetensors: expected finite values.*'rms'"):
            read_tensors(path, "reference")


def test_what_a_killed_writer_left_is_removed_an_hour_later(tmp_path):
    path, other = tmp_path / "fox[1].safetensors", tmp_path / "kept.part"
    old, young = (tmp_path / f"{path.name}.{digit * 32}.part" for digit in "ab")
    for file in (old, young, other):
        file.write_bytes(b"half")
    for file in (old, other):
        os.utime(file, (0, 0))
    write_tensors(path, "reference", {"rms": torch.ones(1)}, {})
    assert not old.exists() and young.exists() and other.exists()
