"""Quantised folders: read by transformers' quantisers, or refused by naming what is missing."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

from vl_core import Qwen3VLEncoder

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


def test_where_quantised_weights_are_not_wanted_they_are_refused(folders):
    with pytest.raises(ValueError, match=r"expected bf16, fp16 or fp32 weights, got quantised ones \(fp8\)"):
        Qwen3VLEncoder.from_pretrained(folders[0], quantised=False)


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
