"""Models, adapters, looks, embeddings and prompt files are found where people have them, in folders of any depth."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path

import pytest

WORDS = ["a café by the sea", "“quoted” words", "a naïve cat"]


@pytest.fixture
def folders(part, tmp_path, monkeypatch):
    """The pack's folders over a ComfyUI with folders of its own, and what ``extra_model_paths.yaml`` says."""
    import folder_paths

    for name in ("models", "input", "output"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    known = {kind: (list(roots), set(ends)) for kind, (roots, ends) in folder_paths.folder_names_and_paths.items()}
    known["text_encoders"] = ([str(tmp_path / "models" / "text_encoders")], {".safetensors"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    return part("nodes.host.folders")


def read_yaml(tmp_path: Path, lines: dict[str, str]) -> None:
    """As ComfyUI reads the file at its start."""
    from utils.extra_config import load_extra_path_config

    config = tmp_path / "extra_model_paths.yaml"
    below = "\n".join(f"    {kind}: {where}" for kind, where in lines.items())
    config.write_text(f"elsewhere:\n    base_path: {tmp_path / 'elsewhere'}\n{below}\n", encoding="utf-8")
    load_extra_path_config(str(config))


def make_encoder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}), encoding="utf-8")
    return folder


def make_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


# --- encoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["text_encoders", "LLM", "VLM", "Qwen"])
@pytest.mark.parametrize("name", ["Qwen3-VL-4B", "Qwen-VL/Qwen3-VL-4B-Instruct", "a/b/c/d/e"])
def test_an_encoder_is_found_below_models(below, name, folders, tmp_path):
    expected = make_encoder(tmp_path / "models" / below / name)
    assert folders.encoder_folders() == {name: expected}


@pytest.mark.parametrize("kind", ["LLM", "VLM", "Qwen", "text_encoders", "llm", "clip"])
@pytest.mark.parametrize("name", ["Qwen3-VL-4B", "mine/Qwen3-VL-4B"])
def test_an_encoder_is_found_where_extra_model_paths_says(kind, name, folders, tmp_path):
    """``clip`` is what ComfyUI called text_encoders before; names of kinds are taken however they are capitalised."""
    expected = make_encoder(tmp_path / "elsewhere" / "big" / name)
    assert folders.encoder_folders() == {}
    read_yaml(tmp_path, {kind: "big"})
    assert folders.encoder_folders() == {name: expected}


def test_an_entry_that_is_the_model_folder_itself_has_its_name(folders, tmp_path):
    expected = make_encoder(tmp_path / "elsewhere" / "Qwen3-VL-4B")
    read_yaml(tmp_path, {"LLM": "Qwen3-VL-4B"})
    assert folders.encoder_folders() == {"Qwen3-VL-4B": expected}


def test_an_encoder_of_extra_model_paths_is_named_where_none_is_found(folders, part, tmp_path):
    read_yaml(tmp_path, {"VLM": "big"})
    message = part("nodes.host.loaded").no_folder("")
    for looked in (tmp_path / "elsewhere" / "big", *(tmp_path / "models" / name for name in ("LLM", "VLM", "Qwen"))):
        assert str(looked) in message


@pytest.mark.parametrize(
    "broken", ["no json", "[1]", '{"model_type": "llama"}', "[" * 100_000, "\udcff"], ids=range(5)
)
def test_folders_of_other_models_and_broken_ones_are_passed_by(broken, folders, tmp_path):
    expected = make_encoder(tmp_path / "models" / "LLM" / "good")
    other = make_encoder(tmp_path / "models" / "LLM" / "another")
    (other / "config.json").write_bytes(broken.encode("utf-8", "surrogateescape"))
    assert folders.encoder_folders() == {"good": expected}


def test_links_are_followed_each_place_once_and_not_for_ever(folders, tmp_path):
    real = make_encoder(tmp_path / "disk" / "Qwen3-VL-4B")
    root = tmp_path / "models" / "LLM"
    root.mkdir()
    (root / "linked").symlink_to(real, target_is_directory=True)
    (real / "back").symlink_to(root, target_is_directory=True)
    assert folders.encoder_folders() == {"linked": root / "linked"}


def test_a_search_ends_in_a_tree_without_end(folders, tmp_path):
    deep = tmp_path / "models" / "LLM" / Path(*"abcdefghij")
    make_encoder(deep)
    assert folders.encoder_folders() == {}
    assert len(list(folders._walk(tmp_path / "models" / "LLM"))) <= folders.DEEPEST + 1


# --- adapters, looks, embeddings --------------------------------------------------------------------------------------

KINDS = {
    "zimage_vl_adapters": "saved_adapters", "zimage_vl_looks": "saved_looks", "vl_embeddings": "saved_embeddings",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mine.safetensors", "of/mine.safetensors", "a/b/c/mine.safetensors"])
def test_files_of_ours_are_found_below_models_and_where_extra_model_paths_says(kind, name, folders, tmp_path):
    saved = getattr(folders, KINDS[kind])
    own = make_file(tmp_path / "models" / kind / name)
    make_file(own.with_name("notes.txt"))
    assert saved() == {name: own}
    other = make_file(tmp_path / "elsewhere" / "ours" / f"other_{Path(name).name}")
    make_file(tmp_path / "elsewhere" / "ours" / name)  # the own one of the same name goes before it
    read_yaml(tmp_path, {kind: "ours"})
    assert saved() == {name: own, other.name: other}


def test_embeddings_are_found_where_they_were_saved_first(folders, tmp_path):
    saved = make_file(tmp_path / "output" / "vl_embeddings" / "day" / "reference_00001.safetensors")
    make_file(tmp_path / "models" / "vl_embeddings" / "day" / "reference_00001.safetensors")
    assert folders.find_saved("day/reference_00001.safetensors") == saved
    with pytest.raises(ValueError, match=r"file: found no saved embeddings.*output.*models"):
        folders.find_saved("gone.safetensors")


# --- prompt files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_prompts_are_read_as_what_they_say(encoding, folders, tmp_path):
    (tmp_path / "input" / "mine.txt").write_bytes("\r\n".join([*WORDS, ""]).encode(encoding))
    assert folders.read_prompts("mine.txt") == tuple(WORDS)


def test_prompts_that_cannot_be_told_are_an_error_that_names_the_file(folders, tmp_path):
    (tmp_path / "input" / "mine.txt").write_bytes("水彩画和柔和的光线".encode("gbk"))
    with pytest.raises(ValueError, match=r"mine\.txt: expected a text in UTF-8.*Save it as UTF-8"):
        folders.read_prompts("mine.txt")
    (tmp_path / "input" / "mine.txt").write_bytes(codecs.BOM_UTF8)
    with pytest.raises(ValueError, match=r"prompts: expected at least 1 in mine\.txt"):
        folders.read_prompts("mine.txt")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_both_nodes_that_take_prompts_read_them_with_it(encoding, run, text_clip, native, looks, part, monkeypatch):
    import folder_paths

    root = Path(folder_paths.get_input_directory())
    lines = [f"a café {index} by the sea, {encoding}" for index in range(10)]
    (root / "odd.txt").write_bytes("\n".join(lines).encode(encoding))
    heard, encode = [], part("nodes.host.text_encoder").encode_words
    monkeypatch.setattr(
        part("nodes.host.text_encoder"), "encode_words", lambda clip, text: heard.append(text) or encode(clip, text)
    )
    seen = run("Encode", native, "a cat", layer=-2)[0]
    run("MatchSpace", seen, native, text_clip, "per_dimension", "odd.txt")
    assert heard == lines
    run("AdapterFit", text_clip, native, looks, name=f"odd_{encoding}", prompts="odd.txt")
    assert set(lines) <= set(heard[len(lines) :])


def test_a_prompts_name_that_leads_elsewhere_is_refused(folders):
    with pytest.raises(ValueError, match="expected a folder below"):
        folders.read_prompts(os.path.join("..", "secret.txt"))


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "a\0b"])
def test_a_folder_for_texts_that_cannot_be_is_refused_in_words(name, folders):
    with pytest.raises(ValueError, match="texts: expected a folder below"):
        folders.output_folder(name)
