"""Quantised folders: read by transformers' quantisers, or refused by naming what is missing."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from importlib.util import find_spec

import pytest
import torch

from vl_core import Qwen3VLEncoder
from vl_core.encoder.quantised import fingerprint
from vl_core.encoder.reread import is_read, read_to

pytest.importorskip("transformers", minversion="5", reason="on a CPU, transformers 5 widens fp8 weights")
BLOCK = 16


@pytest.fixture(scope="module")
def folders(tiny_qwen3vl, tmp_path_factory):
    """A folder whose language blocks are in fp8 with a scale for every 16 × 16 weights, as Qwen publishes them, and one
    that holds the very numbers that these mean."""
    from safetensors.torch import load_file, save_file

    plain, quantised, meant = tiny_qwen3vl[0], *(tmp_path_factory.mktemp("fp8") / name for name in ("fp8", "meant"))
    kept, wide = {}, {}
    for key, tensor in load_file(plain / "model.safetensors").items():
        rows, columns = (*tensor.shape, 0)[:2]
        kept[key] = wide[key] = tensor
        if ".layers." in key and key.endswith("proj.weight") and not rows % BLOCK and not columns % BLOCK:
            blocks = tensor.float().reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
            scale = blocks.abs().amax((1, 3)) / 448  # the largest number of e4m3
            small = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            kept[key], kept[f"{key}_scale_inv"] = small.reshape(rows, columns), scale
            wide[key] = (small.float() * scale[:, None, :, None]).reshape(rows, columns)
    assert sum(one.dtype == torch.float8_e4m3fn for one in kept.values()) >= 14
    for folder, tensors in ((quantised, kept), (meant, wide)):
        folder.mkdir()
        for path in plain.iterdir():
            if path.name != "model.safetensors":
                (folder / path.name).write_bytes(path.read_bytes())
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    configure(quantised, quant_method="fp8", weight_block_size=[BLOCK, BLOCK], activation_scheme="dynamic",
              fmt="e4m3", modules_to_not_convert=["lm_head", "visual", "model.visual"])
    return quantised, meant


def configure(folder, **told) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": told}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the products are in 8 bits too")
def test_fp8_weights_are_what_they_mean(folders, photographs):
    quantised, meant = (Qwen3VLEncoder.from_pretrained(one, dtype=torch.float32) for one in folders)
    picture = photographs[0][:96, :96]
    found, expected = (one.encode([picture], "a cat", (1, -1)).states for one in (quantised, meant))
    scale = expected.std()
    assert (found - expected).abs().max() < 0.02 * scale  # transformers widens them to bf16
    assert quantised.encode([picture], "a cat", (1,)).states.shape == found[:1].shape


def test_only_the_blocks_that_are_needed_are_read(folders):
    encoder = Qwen3VLEncoder.from_pretrained(folders[0], dtype=torch.float32, deepest_layer=1)
    assert encoder.loaded_layers == 1 and encoder.num_layers > 1


def test_tensors_that_are_missing_are_named(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    target = tmp_path / "model"
    target.mkdir()
    for path in folders[0].iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(target / "model.safetensors")
    tensors.pop("model.language_model.layers.0.mlp.up_proj.weight")
    save_file(tensors, target / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensors are missing, first model\.language_model\.layers\.0\.mlp\.up_proj"):
        Qwen3VLEncoder.from_pretrained(target)


@pytest.mark.parametrize(("told", "message"), [
    ({"quant_method": "gptq", "bits": 4}, r"quantised \(gptq\).*not installed.*Load CLIP"),
    ({"quant_method": "rubbish"}, r"quantised by rubbish, unknown to this transformers"),
])
def test_what_cannot_be_read_names_the_method_and_what_to_do(folders, tmp_path, told, message):
    if find_spec("gptqmodel") and told["quant_method"] == "gptq":
        pytest.skip("the library is installed")
    target = tmp_path / "model"
    target.mkdir()
    for path in folders[0].iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    configure(target, **told)
    with pytest.raises((ImportError, ValueError), match=message):
        Qwen3VLEncoder.from_pretrained(target)


def test_weights_are_let_go_of_and_read_anew_with_the_same_bits(folders, photographs):
    encoder = Qwen3VLEncoder.from_pretrained(folders[0], device="meta", dtype=torch.float32, deepest_layer=3)
    assert not is_read(encoder) and encoder.dtype == torch.float32 and encoder.loaded_layers == 3
    states = []
    for _ in range(2):
        read_to(encoder, "cpu")
        assert is_read(encoder) and encoder.loaded_layers == 3 < encoder.num_layers
        states.append(encoder.encode([photographs[0][:96, :96]], "a cat", (3,)).states)
        assert encoder.reader.cache.bytes > 0
        weights = [weakref.ref(weight) for weight in encoder.model.parameters()]
        read_to(encoder, "meta")
        gc.collect()
        assert not is_read(encoder) and encoder.reader.cache.bytes == 0
        assert not any(weight() is not None for weight in weights)
    direct = Qwen3VLEncoder.from_pretrained(folders[0], dtype=torch.float32, deepest_layer=3)
    assert torch.equal(*states)
    assert torch.equal(states[0], direct.encode([photographs[0][:96, :96]], "a cat", (3,)).states)


def test_transformers_own_quantised_layers_are_run_by_their_own_forward(folders):
    from transformers.integrations.finegrained_fp8 import FP8Linear

    encoder = Qwen3VLEncoder.from_pretrained(folders[1], dtype=torch.float32)
    assert encoder.reader.watched.fit()
    block = encoder.model.language_model.layers[2]
    block.mlp.up_proj = FP8Linear(*reversed(block.mlp.up_proj.weight.shape))
    assert not encoder.reader.watched.fit()


def test_a_fingerprint_tells_weights_by_any_part_of_their_files(tmp_path):
    held = torch.arange(1 << 20, dtype=torch.int32).numpy().tobytes()
    names = [tmp_path / name for name in ("a", "b")]
    for path in names:
        path.write_bytes(held)
    known = fingerprint(names)
    for start in range(0, len(held), len(held) // 7):
        names[1].write_bytes(held[:start] + bytes(8192) + held[start + 8192 :][: len(held) - start - 8192])
        changed = held[start : start + 8192] != bytes(len(held[start : start + 8192]))
        assert (fingerprint(names) != known) == changed
    names[1].write_bytes(held)
    assert fingerprint(names) == known != fingerprint(names[:1])


def test_a_method_that_is_no_method_is_refused(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": "what"}))
    with pytest.raises(ValueError, match=r"expected a quantization_config with a quant_method"):
        Qwen3VLEncoder.from_pretrained(tmp_path / "model")


def test_compressed_tensors_are_what_they_mean(folders, tmp_path, photographs):
    pytest.importorskip("compressed_tensors", reason="reads what llm-compressor writes")
    from safetensors.torch import load_file, save_file

    quantised, meant = tmp_path / "eight", tmp_path / "meant"
    for folder in (quantised, meant):
        shutil.copytree(folders[1], folder)
    kept = load_file(folders[1] / "model.safetensors")
    wide = dict(kept)
    for key in [key for key in kept if ".language_model.layers." in key and key.endswith("proj.weight")]:
        scale = kept[key].abs().amax(1, keepdim=True) / 448  # one for a row
        kept[key], kept[f"{key}_scale"] = (kept[key] / scale).to(torch.float8_e4m3fn), scale
        wide[key] = kept[key].float() * scale
    save_file(kept, quantised / "model.safetensors")
    save_file(wide, meant / "model.safetensors")
    eight = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
    configure(quantised, quant_method="compressed-tensors", format="float-quantized", quantization_status="compressed",
              ignore=["lm_head", "re:.*visual.*"], config_groups={"group_0": {"targets": ["Linear"], "weights": eight}})
    picture = photographs[0][:96, :96]
    found, expected = (
        Qwen3VLEncoder.from_pretrained(one, dtype=torch.float32).encode([picture], "a cat", (1, -1)).states
        for one in (quantised, meant)
    )
    assert (found - expected).abs().max() < 1e-3 * expected.std()
