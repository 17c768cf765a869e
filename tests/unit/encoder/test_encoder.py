"""Qwen3VLEncoder against transformers' own forward, on a tiny random Qwen3-VL."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.pictures import patchify, prepare_picture
from vl_core.states.layout import TokenRole, mrope_positions

transformers = pytest.importorskip("transformers", minversion="4.57", reason="the encoder runs on transformers")
pytestmark = pytest.mark.usefixtures("one_thread")  # a sum by several is another one where tensors lie otherwise

BLOCKS = 6
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# 4.57 adds the deepstack features to the very tensors it has recorded, so its states 1 … 3 contain them.
DEEPSTACK_IN_PLACE = transformers.__version__.startswith("4.")


@pytest.fixture(scope="module")
def folder(tiny_qwen3vl):
    return tiny_qwen3vl[0]


@pytest.fixture(scope="module")
def reference(tiny_qwen3vl):
    """transformers' Qwen3VLModel."""
    return tiny_qwen3vl[1].model


@pytest.fixture(scope="module")
def encoder(folder):
    # Nothing kept: what one test asked for must not answer another (test_prefix.py tests that it may).
    return Qwen3VLEncoder.from_pretrained(folder, dtype=torch.float32, cache_bytes=0)


@pytest.fixture(scope="module")
def pictures(photographs):
    """Two pictures of different shapes, ComfyUI's way: float (1, H, W, 3)."""
    return [photographs[0][:96, :130].float()[None] / 255, photographs[1][100:164, 50:114].float()[None] / 255]


def transformers_inputs(encoder, images, prompt):
    """The sequence as transformers would be given it: one string with the picture block expanded."""
    block, pixel_values, grids = "", [], []
    for image in images:
        values, grid = patchify(prepare_picture(image)[0])
        block += f"<|vision_start|>{'<|image_pad|>' * (int(grid.prod()) // 4)}<|vision_end|>"
        pixel_values.append(values)
        grids.append(grid)
    ids = torch.tensor([encoder.tokenizer(TEMPLATE.format(block + prompt), add_special_tokens=False)["input_ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        inputs |= {"pixel_values": torch.cat(pixel_values), "image_grid_thw": torch.cat(grids)}
        if not DEEPSTACK_IN_PLACE:
            inputs["mm_token_type_ids"] = (ids == encoder.special.image_pad).int()
    return inputs


@torch.no_grad()
def transformers_states(reference, inputs):
    """All hidden_states (BLOCKS + 1, L, D) as transformers 5 records them."""
    states = torch.cat(reference(**inputs, output_hidden_states=True).hidden_states)
    if DEEPSTACK_IN_PLACE and "pixel_values" in inputs:
        at_pictures = inputs["input_ids"][0] == reference.config.image_token_id
        _, deepstack = reference.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        for level, features in enumerate(deepstack):
            states[level + 1, at_pictures] -= features
    return states


def copy_folder(folder, target, **changes):
    """A copy with other contents for some files; None leaves a file out."""
    target.mkdir()
    for path in folder.iterdir():
        if path.name not in changes:
            (target / path.name).write_bytes(path.read_bytes())
    for name, content in changes.items():
        if content is not None:
            (target / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return target


def config_of(folder, **changes):
    return json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes


# States -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_layer_equals_transformers(encoder, reference, pictures, count):
    images = pictures[:count]
    inputs = transformers_inputs(encoder, images, "a cat in a red hat")
    expected = transformers_states(reference, inputs)
    result = encoder.encode(images, "a cat in a red hat", layers=range(BLOCKS + 1))
    assert result.layers == tuple(range(BLOCKS + 1)) and result.num_layers == BLOCKS
    assert torch.equal(result.layout.token_ids, inputs["input_ids"][0])
    for layer in result.layers:
        assert (result.states[layer] - expected[layer]).abs().max() <= 1e-5, layer
    last, layout = result.at(-1)
    assert layout.layer == -1 and (last - expected[-1]).abs().max() <= 1e-5


def test_the_states_are_worth_comparing(encoder, pictures):
    """Every layer, position and picture makes a visible difference in the tiny model."""
    states = encoder.encode(pictures, "a cat", layers=range(BLOCKS + 1)).states
    swapped = encoder.encode(pictures[::-1], "a cat", layers=range(BLOCKS + 1)).states
    assert (states[1:] - states[:-1]).std((1, 2)).min() > 0.1
    assert (states[-1, 1:] - states[-1, :-1]).std(1).min() > 0.1
    assert (states[-1, -5:] - swapped[-1, -5:]).std(1).min() > 0.01


@pytest.mark.parametrize("count", [0, 1, 2])
def test_rotary_positions_equal_transformers(encoder, reference, pictures, count):
    images = pictures[:count]
    inputs = transformers_inputs(encoder, images, "a cat")
    takes = inspect.signature(reference.get_rope_index).parameters
    arguments = {name: value for name, value in inputs.items() if name in takes}
    if "mm_token_type_ids" in takes:
        arguments.setdefault("mm_token_type_ids", torch.zeros_like(inputs["input_ids"]))
    expected, _ = reference.get_rope_index(**arguments)
    layout = encoder.encode(images, "a cat", layers=0).layout
    assert torch.equal(mrope_positions(layout), expected[:, 0])


def test_one_layer_alone_is_the_same_as_among_others(encoder, pictures):
    every = encoder.encode(pictures, "a cat", layers=range(BLOCKS + 1)).states
    for layer in (0, 2, -3, -1):
        alone = encoder.encode(pictures, "a cat", layers=layer).states
        assert torch.equal(alone[0], every[layer])


def test_layers_come_ascending_and_once(encoder):
    assert encoder.encode([], "a cat", layers=(-1, 2, -5, 2)).layers == (2, 6)


def test_a_batch_is_as_many_pictures(encoder, pictures):
    batch = torch.cat([pictures[1], pictures[1].flip(1)])
    together = encoder.encode([batch], "a cat", layers=-2)
    apart = encoder.encode([batch[:1], batch[1]], "a cat", layers=-2)
    assert together.layout.grids == ((2, 2), (2, 2))
    assert torch.equal(together.states, apart.states)


def test_states_before_the_picture_do_not_depend_on_it(encoder, pictures):
    absent = encoder.encode([], "a cat", layers=-2).states[0, :3]
    muted = encoder.encode(pictures[:1], "a cat", layers=-2, mute=True).states[0, :3]
    for picture in pictures:
        states = encoder.encode([picture], "a dog", layers=-2).states[0, :3]
        assert torch.allclose(states, absent, atol=1e-5) and torch.allclose(states, muted, atol=1e-5)


def test_a_muted_picture_is_zeros_in_its_place(encoder, reference, pictures):
    muted = encoder.encode(pictures, "a cat", layers=range(BLOCKS + 1), mute=True)
    seen = encoder.encode(pictures, "a cat", layers=-2)
    assert torch.equal(muted.layout.token_ids, seen.layout.token_ids) and muted.layout.grids == seen.layout.grids
    # transformers' language model, given zeros at the image positions and no deepstack features.
    embeddings = reference.language_model.embed_tokens(muted.layout.token_ids)
    embeddings[muted.layout.mask(TokenRole.IMAGE)] = 0
    with torch.no_grad():
        expected = reference.language_model(
            inputs_embeds=embeddings[None], position_ids=mrope_positions(muted.layout)[:, None],
            attention_mask=torch.ones(1, len(muted.layout)), output_hidden_states=True,
        ).hidden_states
    assert (muted.states - torch.cat(expected)).abs().max() <= 1e-5


def test_states_keep_the_dtype_of_the_model(folder, encoder, pictures):
    half = Qwen3VLEncoder.from_pretrained(folder, dtype=torch.bfloat16)
    states = half.encode(pictures, "a cat", layers=-2).states
    exact = encoder.encode(pictures, "a cat", layers=-2).states
    assert half.dtype == states.dtype == torch.bfloat16
    assert torch.cosine_similarity(states[0].float(), exact[0], dim=-1).min() > 0.99
    buffers = [buffer for name, buffer in half.model.named_buffers() if name.endswith("inv_freq")]
    assert buffers and all(buffer.dtype == torch.float32 for buffer in buffers)


def test_states_are_an_ordinary_tensor(encoder):
    states = encoder.encode([], "a cat", layers=-1).states
    states += 1
    assert not states.is_inference() and not states.requires_grad


def test_pictures_and_loaded_weights_are_left_alone(encoder, pictures):
    before = [picture.clone() for picture in pictures]
    weights = {name: weight.clone() for name, weight in encoder.model.state_dict().items()}
    encoder.encode(pictures, "a cat", layers=range(BLOCKS + 1))
    encoder.encode(pictures, "a cat", layers=0, mute=True)
    assert all(torch.equal(*pair) for pair in zip(pictures, before, strict=True))
    assert all(torch.equal(weight, weights[name]) for name, weight in encoder.model.state_dict().items())


def test_the_module_may_be_moved_by_its_owner(folder, encoder):
    moved = Qwen3VLEncoder.from_pretrained(folder, dtype=torch.float32)
    moved.model.to(torch.float64)
    states = moved.encode([], "a cat", layers=-1).states
    assert moved.dtype == states.dtype == torch.float64 and moved.device == moved.model.device
    assert torch.allclose(states.float(), encoder.encode([], "a cat", layers=-1).states, atol=1e-4)


def test_a_module_that_is_already_there_can_be_wrapped(encoder, reference, pictures):
    wrapped = Qwen3VLEncoder(reference, encoder.tokenizer, BLOCKS, "mine", "Thinking")
    states = wrapped.encode(pictures, "a cat", layers=-2)
    assert states.model == states.layout.model == wrapped.name == "mine" and wrapped.variant == "Thinking"
    assert torch.equal(states.states, encoder.encode(pictures, "a cat", layers=-2).states)


# Tokens and roles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["a cat", "", "\n\na cat", "{a} {} cat}", "a cat\n", "  a cat", "red 🎩 καπέλο 42"])
def test_the_words_keep_z_images_own_tokens(encoder, pictures, prompt):
    text_ids = encoder.tokenizer("<|im_start|>user\n" + prompt + "<|im_end|>\n<|im_start|>assistant\n",
                                 add_special_tokens=False)["input_ids"]  # fmt: skip
    assert encoder.tokenize(prompt).token_ids.tolist() == text_ids
    layout = encoder.encode(pictures, prompt, layers=0).layout
    of_text = layout.mask(TokenRole.TEMPLATE, TokenRole.TEXT)
    assert layout.token_ids[of_text].tolist() == text_ids
    assert layout.roles[of_text].tolist() == encoder.tokenize(prompt).roles.tolist()


def test_lengths_and_roles(encoder, pictures):
    prompt = "a cat in a red hat"
    words = len(encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    layout = encoder.encode(pictures[:1], prompt, layers=0).layout  # 130×96 is encoded at 128×96
    assert layout.grids == ((3, 4),)
    assert len(layout) == 12 + words + 10
    assert layout.counts() == {
        TokenRole.TEMPLATE: 8, TokenRole.TEXT: words, TokenRole.MARKER: 2, TokenRole.IMAGE: 12,
    }  # fmt: skip
    tokens = encoder.tokenizer.convert_ids_to_tokens(layout.token_ids.tolist())
    assert tokens[:2] == ["<|im_start|>", "user"] and tokens[3] == "<|vision_start|>"
    assert tokens[4:16] == ["<|image_pad|>"] * 12 and tokens[16] == "<|vision_end|>"
    assert layout.prompt == prompt and layout.source == "qwen3-vl"


def test_a_system_prompt_is_a_turn_before(encoder, pictures):
    plain = encoder.encode(pictures[:1], "a cat", layers=0)
    system = encoder.encode(pictures[:1], "a cat", layers=0, system_prompt="paint {it}")
    added = encoder.tokenizer("<|im_start|>system\npaint {it}<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert system.layout.token_ids.tolist() == added + plain.layout.token_ids.tolist()
    assert system.layout.roles.tolist() == [TokenRole.TEMPLATE] * len(added) + plain.layout.roles.tolist()
    assert system.system_prompt == "paint {it}" and plain.system_prompt == ""
    assert len(encoder.encode([], "a cat", layers=0, system_prompt="").layout) == len(encoder.tokenize("a cat"))


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"])
def test_a_prompt_with_a_picture_token_is_refused(encoder, token):
    with pytest.raises(ValueError, match="prompt: contains"):
        encoder.encode([], f"a {token} cat")


@pytest.mark.parametrize(("prompt", "system"), [(None, None), (b"cat", None), ("cat", 5)])
def test_a_prompt_that_is_not_a_string_is_refused(encoder, prompt, system):
    with pytest.raises(TypeError, match="prompt: expected a string, got"):
        encoder.encode([], prompt, system_prompt=system)


# What an encode may be told -----------------------------------------------------------------------------------------


def test_the_budget_bounds_every_picture_and_the_notes_tell(encoder, photographs):
    notes = []
    result = encoder.encode(list(photographs), "a cat", layers=0, budget=20, notes=notes)
    assert result.layout.grids == ((4, 4), (3, 5))
    assert notes == [
        "image 1 512×512 scaled down to 128×128, 16 image tokens",
        "image 2 451×300 scaled down to 160×96, 15 image tokens",
    ]


def test_check_is_called_for_every_picture_and_block_and_may_stop(encoder, pictures):
    calls = []
    encoder.encode(pictures, "a cat", layers=-2, check=lambda: calls.append(1))
    tower = 2 * len(encoder.model.visual.blocks)  # the pictures differ in size: each goes through by itself
    assert len(calls) == 2 + tower + (BLOCKS - 1)

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        encoder.encode([], "a cat", check=stop)


def test_only_the_blocks_below_the_deepest_layer_run(encoder):
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(encoder.model.language_model.layers)
    ]
    encoder.encode([], "a cat", layers=(0, -4))
    assert ran == [0, 1, 2]
    for hook in hooks:
        hook.remove()


def test_all_pictures_are_checked_before_anything_runs(encoder, pictures):
    def ran():
        raise AssertionError("the encoder ran")

    with pytest.raises(ValueError, match=r"image 2: .*NaN"):
        encoder.encode([pictures[0], torch.full((64, 64, 3), float("nan"))], "a cat", check=ran)


@pytest.mark.parametrize("layers", [7, -8, (), (0, 99)])
def test_a_layer_the_model_does_not_have_is_refused(encoder, layers):
    with pytest.raises(ValueError, match=r"layers?: expected"):
        encoder.encode([], "a cat", layers=layers)


def test_a_sequence_longer_than_the_context_is_refused(encoder):
    with pytest.raises(ValueError, match=r"expected at most 4096 tokens, got \d+\. Use fewer pictures"):
        encoder.encode([], "1" * 5000)


def test_states_that_overflow_are_refused(folder):
    broken = Qwen3VLEncoder.from_pretrained(folder, dtype=torch.float16)
    broken.model.language_model.layers[1].mlp.down_proj.weight.data.mul_(1e5)
    with pytest.raises(ValueError, match=r"overflowed in torch\.float16.*bf16 or fp32"):
        broken.encode([], "a cat", layers=-2)


# Loading ------------------------------------------------------------------------------------------------------------


def test_what_was_loaded_is_told(encoder, folder):
    assert (encoder.num_layers, encoder.loaded_layers, encoder.width) == (BLOCKS, BLOCKS, 64)
    assert encoder.name == folder.name and encoder.variant == "Instruct"
    assert encoder.device == torch.device("cpu") and encoder.dtype == torch.float32
    assert not any(weight.requires_grad for weight in encoder.model.parameters()) and not encoder.model.training
    assert not any("lm_head" in name for name, _ in encoder.model.named_modules())
    assert encoder.special.image_pad == encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")


@pytest.mark.parametrize("deepest", [-3, 4])
def test_a_shallow_load_gives_the_same_states_and_holds_no_more_blocks(folder, encoder, pictures, deepest):
    shallow = Qwen3VLEncoder.from_pretrained(folder, dtype=torch.float32, deepest_layer=deepest)
    expected = encoder.encode(pictures, "a cat", layers=range(deepest % (BLOCKS + 1) + 1))
    result = shallow.encode(pictures, "a cat", layers=range(deepest % (BLOCKS + 1) + 1))
    assert torch.equal(result.states, expected.states) and shallow.num_layers == BLOCKS
    blocks = {name.split(".")[2] for name in shallow.model.state_dict() if name.startswith("language_model.layers.")}
    assert blocks == {"0", "1", "2", "3"} and shallow.loaded_layers == 4
    with pytest.raises(ValueError, match=r"layers: -2 was not loaded, the deepest layer .* is -3\. Reload it"):
        shallow.encode([], "a cat", layers=(-3, -2))


def test_layer_minus_six_of_36_blocks_needs_31(tiny_models, tmp_path):
    tiny_models.write_folder(tmp_path / "deep", num_hidden_layers=36)
    deep = Qwen3VLEncoder.from_pretrained(tmp_path / "deep", deepest_layer=-6)
    assert deep.loaded_layers == 31 and deep.num_layers == 36
    assert deep.encode([], "a cat").layers == (31,)


def test_nothing_but_embeddings_can_be_loaded(folder, encoder):
    flat = Qwen3VLEncoder.from_pretrained(folder, dtype=torch.float32, deepest_layer=0)
    assert torch.equal(flat.encode([], "a cat", layers=0).states, encoder.encode([], "a cat", layers=0).states)


@pytest.mark.parametrize("layout", [{"shards": 3}, {"prefix": ""}, {"shards": 2, "prefix": ""}])
def test_other_file_layouts_load_the_same(tiny_models, encoder, tmp_path, layout):
    tiny_models.write_folder(tmp_path / "other", **layout)
    other = Qwen3VLEncoder.from_pretrained(str(tmp_path / "other"), dtype=torch.float32)
    assert_same_weights(other, encoder)


def test_a_folder_that_transformers_saved_loads_the_same(tiny_qwen3vl, tiny_models, encoder, tmp_path):
    model = tiny_qwen3vl[1]
    model.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    tiny_models.write_tokenizer(tmp_path / "saved", tiny_models.build_tokenizer())
    assert (tmp_path / "saved" / "model.safetensors.index.json").is_file()
    assert_same_weights(Qwen3VLEncoder.from_pretrained(tmp_path / "saved", dtype=torch.float32), encoder)


def assert_same_weights(one, other):
    weights = other.model.state_dict()
    assert one.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in one.model.state_dict().items())


def test_an_lm_head_and_blocks_not_needed_are_never_read(tiny_models, tmp_path):
    """The shards that hold only those may be absent."""
    from safetensors.torch import load_file, save_file

    tiny_models.write_folder(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors") | {"lm_head.weight": torch.zeros(512, 64)}
    (tmp_path / "model" / "model.safetensors").unlink()
    index = {key: "b" if key.startswith(("lm_head", "model.language_model.layers.5")) else "a" for key in tensors}
    save_file({key: tensors[key] for key, file in index.items() if file == "a"}, tmp_path / "model" / "a")
    listed = tmp_path / "model" / "model.safetensors.index.json"
    listed.write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    assert Qwen3VLEncoder.from_pretrained(tmp_path / "model", deepest_layer=-2).loaded_layers == BLOCKS - 1
    with pytest.raises(FileNotFoundError, match="b is missing"):
        Qwen3VLEncoder.from_pretrained(tmp_path / "model")


def test_progress_counts_tensors(folder, encoder):
    steps = []
    Qwen3VLEncoder.from_pretrained(folder, progress=lambda done, total: steps.append((done, total)))
    total = len(encoder.model.state_dict())
    assert steps == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json", "chat_template.jinja", "named", None])
def test_a_thinking_model_is_told_by_its_template(tiny_models, folder, tmp_path, file):
    instruct, thinking = tiny_models.CHAT_TEMPLATE, tiny_models.THINKING_TEMPLATE
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del tokenizer["chat_template"]
    changes = {"tokenizer_config.json": tokenizer}
    if file == "tokenizer_config.json":
        changes[file] = tokenizer | {"chat_template": thinking}
    elif file == "named":
        named = [{"name": "tool", "template": instruct}, {"name": "default", "template": thinking}]
        changes["tokenizer_config.json"] = tokenizer | {"chat_template": named}
    elif file == "chat_template.json":
        changes[file] = {"chat_template": thinking}
    elif file == "chat_template.jinja":
        changes[file] = thinking.encode()
    loaded = Qwen3VLEncoder.from_pretrained(copy_folder(folder, tmp_path / "model", **changes))
    assert loaded.variant == ("Thinking" if file else "Instruct")


def test_a_template_that_cannot_be_filled_does_not_stop_the_load(folder, tmp_path):
    target = copy_folder(folder, tmp_path / "model", **{"chat_template.jinja": b"{{ raise_exception('no') }}"})
    assert Qwen3VLEncoder.from_pretrained(target).variant == "Instruct"


# Folders that cannot be loaded --------------------------------------------------------------------------------------


def refused(error, message, folder, **arguments):
    with pytest.raises(error, match=f"(?s){message}"):
        Qwen3VLEncoder.from_pretrained(folder, **arguments)


def test_a_folder_that_is_not_there(folder, tmp_path):
    refused(FileNotFoundError, "Expected a folder .*nowhere, found nothing", tmp_path / "nowhere")
    refused(FileNotFoundError, "Expected a folder .*config.json, found a file", folder / "config.json")
    refused(FileNotFoundError, "No config.json in", tmp_path)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3", "qwen3_vl_moe", None])
def test_another_architecture(folder, tmp_path, model_type):
    target = copy_folder(folder, tmp_path / "model", **{"config.json": config_of(folder, model_type=model_type)})
    refused(ValueError, f"model: expected a Qwen3-VL .*got {model_type!r}", target)


def test_a_damaged_config(folder, tmp_path):
    refused(ValueError, "config.json: expected JSON", copy_folder(folder, tmp_path / "a", **{"config.json": b'{"mo'}))
    refused(ValueError, "expected a JSON object", copy_folder(folder, tmp_path / "b", **{"config.json": [1]}))


def test_quantised_weights(folder, tmp_path):
    from safetensors.torch import load_file, save

    tensors = load_file(folder / "model.safetensors")
    key = "model.language_model.layers.0.mlp.up_proj.weight"
    tensors[key] = tensors[key].to(torch.float8_e4m3fn)
    target = copy_folder(folder, tmp_path / "b", **{"model.safetensors": save(tensors)})
    refused(ValueError, f"{key} as bf16, fp16 or fp32, got torch.float8_e4m3fn", target)


def test_no_safetensors(folder, tmp_path):
    pickle = copy_folder(folder, tmp_path / "a", **{"model.safetensors": None, "pytorch_model.bin": b""})
    refused(FileNotFoundError, "found only pytorch_model.bin. Only safetensors are read", pickle)
    empty = copy_folder(folder, tmp_path / "b", **{"model.safetensors": None})
    refused(FileNotFoundError, "found no weights", empty)


def test_a_missing_shard(tiny_models, tmp_path):
    tiny_models.write_folder(tmp_path / "model", shards=3)
    (tmp_path / "model" / "model-00002-of-00003.safetensors").unlink()
    refused(FileNotFoundError, "model-00002-of-00003.safetensors is missing", tmp_path / "model")


@pytest.mark.parametrize("kept", [0, 100, 200_000])
def test_a_truncated_file(folder, tmp_path, kept):
    content = (folder / "model.safetensors").read_bytes()
    assert len(content) > 2 * kept
    target = copy_folder(folder, tmp_path / "model", **{"model.safetensors": content[:kept]})
    refused(ValueError, "model.safetensors: .*cut short or damaged", target)


def test_missing_and_misshapen_tensors(folder, tmp_path):
    from safetensors.torch import load_file, save

    tensors = load_file(folder / "model.safetensors")
    key = "model.visual.blocks.0.attn.qkv.weight"
    weight = tensors.pop(key)
    target = copy_folder(folder, tmp_path / "a", **{"model.safetensors": save(tensors)})
    refused(ValueError, r"a: 1 of \d+ tensors are missing, first visual.blocks.0.attn.qkv.weight", target)
    cut = save(tensors | {key: weight[:, 1:].contiguous()})
    target = copy_folder(folder, tmp_path / "b", **{"model.safetensors": cut})
    refused(ValueError, rf"expected {key} of shape \(144, 48\), got \(144, 47\)", target)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_tokenizer(folder, tmp_path, file):
    refused(FileNotFoundError, "No tokenizer in", copy_folder(folder, tmp_path / "model", **{file: None}))


def test_a_tokenizer_of_another_model(folder, tmp_path):
    target = copy_folder(folder, tmp_path / "model", **{"config.json": config_of(folder, image_token_id=7)})
    refused(ValueError, r"expected a tokenizer with <\|image_pad\|> as 7, got \d+", target)


def test_wrong_arguments(folder):
    refused(ValueError, "dtype: expected bfloat16", folder, dtype=torch.float8_e4m3fn)
    refused(ValueError, "layer: expected -7 to -1 or 0 to 6", folder, deepest_layer=-8)


def test_attention_that_would_look_ahead_is_refused(tiny_models, encoder):
    config = tiny_models.build_config(tiny_models.build_tokenizer())
    eager = transformers.AutoModel.from_config(config, attn_implementation="eager")
    with pytest.raises(ValueError, match="expected sdpa or flash attention, got eager"):
        Qwen3VLEncoder(eager, encoder.tokenizer, BLOCKS)
