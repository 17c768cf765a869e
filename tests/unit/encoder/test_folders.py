"""Model folders are untrusted: no code of theirs is run, nothing outside of them is read, damage names the file."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from vl_core.encoder.folder import INDEX, load_tokenizer, older_config, read_config
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.zimage.pipeline import ZImageFolder

pytest.importorskip("transformers", minversion="4.57", reason="the encoder runs on transformers")

CODE = "from pathlib import Path\nPath({marker!r}).write_text('ran')\nclass Planted: pass\n"


@pytest.fixture
def folder(tiny_qwen3vl, tmp_path):
    return shutil.copytree(tiny_qwen3vl[0], tmp_path / "model")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_code_in_a_folder_is_not_run_and_nobody_is_asked(folder, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (folder / "planted.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    places = dict.fromkeys(["AutoConfig", "AutoModel", "AutoModelForImageTextToText"], "planted.Planted")
    change(folder / "config.json", auto_map=places)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["planted.Planted", "planted.Planted"]})

    def asked(*_):
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", asked)
    encoder = Qwen3VLEncoder.from_pretrained(folder, dtype=torch.float32)
    assert encoder.tokenizer("a cat")["input_ids"] and not marker.exists()


def test_a_painter_with_code_of_its_own_is_refused(tmp_path):
    model = {"_class_name": "ZImagePipeline", "transformer": ["planted", "Planted"]}
    (tmp_path / "model_index.json").write_text(json.dumps(model), encoding="utf-8")
    with pytest.raises(ValueError, match=r"--model: model_index\.json in .* has code of its own for transformer"):
        ZImageFolder.check(str(tmp_path), "--model")


def shards(folder, file: str) -> None:
    """An index that looks for every tensor in ``file``."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as handle:
        keys = list(handle.keys())
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(keys, file)}), encoding="utf-8")


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "{absolute}", "sub/../../elsewhere.safetensors"])
def test_weights_outside_of_the_folder_are_not_read(folder, tmp_path, place):
    target = tmp_path / "elsewhere.safetensors"
    place = place.format(absolute=target)
    shards(folder, place)
    (folder / "model.safetensors").rename(target)
    with pytest.raises(ValueError, match=r"expected a file in .*model, it leads out of it"):
        Qwen3VLEncoder.from_pretrained(folder)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("indexed", [True, False])
def test_links_out_of_the_folder_are_not_followed(folder, tmp_path, indexed):
    target = tmp_path / "elsewhere.safetensors"
    if indexed:
        shards(folder, "part.safetensors")
    (folder / "model.safetensors").rename(target)
    (folder / ("part.safetensors" if indexed else "model.safetensors")).symlink_to(target)
    with pytest.raises(ValueError, match=r"expected a file in .*model, it leads out of it"):
        Qwen3VLEncoder.from_pretrained(folder)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_the_cache_of_huggingface_hub_is_read(folder, tmp_path):
    """Its snapshots link to the blobs beside them."""
    snapshot, blobs = tmp_path / "models--q" / "snapshots" / "abc", tmp_path / "models--q" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for index, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(index))
        (snapshot / path.name).symlink_to(f"../../blobs/{index}")
    assert Qwen3VLEncoder.from_pretrained(snapshot).num_layers == 6
    linked = tmp_path / "linked"
    linked.symlink_to(snapshot, target_is_directory=True)
    assert Qwen3VLEncoder.from_pretrained(linked).num_layers == 6


@pytest.mark.parametrize(
    "file, content",
    [
        ("config.json", "[" * 100_000),
        ("config.json", '{"model_type": "qwen3_vl", "text_config": 7, "vision_config": {}}'),
        ("config.json", '{"model_type": "qwen3_vl", "text_config": {"hidden_size": "big"}, "vision_config": {}}'),
        ("tokenizer_config.json", '{"a":' * 50_000),
        ("tokenizer_config.json", "[]"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "no json"),
        (INDEX, '{"weight_map": [1]}'),
        (INDEX, '{"weight_map": {"a": 5}}'),
        (INDEX, "{}"),
    ],
)
def test_damaged_json_is_an_error_that_names_file_or_folder(folder, file, content):
    if file == INDEX:
        (folder / "model.safetensors").unlink()
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"({file}|model): "):
        Qwen3VLEncoder.from_pretrained(folder)


# What transformers 5 wrote ------------------------------------------------------------------------------------------

SCALING = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True}


def test_rotary_settings_of_transformers_5_are_those_of_4():
    """The two spellings of one config.json: what 5 writes, as 4.57 writes it."""
    five = {"text_config": {"hidden_size": 64, "rope_parameters": {**SCALING, "rope_theta": 5e6}}, "vision_config": {}}
    four = {"text_config": {"hidden_size": 64, "rope_theta": 5e6, "rope_scaling": SCALING}, "vision_config": {}}
    assert older_config(five) == four
    assert older_config(four) == four


def test_both_spellings_are_read_as_the_same_model(folder):
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = [read_config(folder).text_config]
    rope = content["text_config"].pop("rope_parameters", None)
    if rope is not None:
        theta = rope.pop("rope_theta")
        content["text_config"] |= {"rope_theta": theta, "rope_scaling": rope}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    found.append(read_config(folder).text_config)
    told = [
        getattr(one, "rope_parameters", None) or {**one.rope_scaling, "rope_theta": one.rope_theta} for one in found
    ]
    assert told[0] == told[1] and told[0]["rope_theta"] == 5e6


def test_a_tokenizer_of_transformers_5_gives_the_same_ids(folder):
    plain = load_tokenizer(folder)("a cat<|im_end|>")["input_ids"]
    change(
        folder / "tokenizer_config.json", tokenizer_class="TokenizersBackend",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    assert load_tokenizer(folder)("a cat<|im_end|>")["input_ids"] == plain
