"""Describe Folder with Qwen3-VL: a text for every picture by both encoders, resumable, where a fit reads them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

PICTURES = 5


@pytest.fixture(scope="module")
def writers(tiny, run, base_folder):
    """The same weights through both encoders."""
    clip = tiny.writing_clip()
    folder = tiny.write_folder(base_folder / "models" / "text_encoders" / "Qwen3-VL-FolderWriter", clip)
    return {"native": clip, "transformers": run("Loader", folder.name, "fp32", deepest_layer=-1)[0]}


@pytest.fixture(params=["native", "transformers"])
def writer(request, writers):
    return writers[request.param]


@pytest.fixture
def folder(base_folder):
    root = base_folder / "input" / f"pictures{time.monotonic_ns()}"
    root.mkdir(parents=True)
    for index in range(PICTURES):
        values = np.random.default_rng(index).integers(0, 256, (64, 64 + 32 * (index % 2), 3), dtype=np.uint8)
        Image.fromarray(values).save(root / f"{index}.png")
    return root


@pytest.fixture
def tell(run):
    def tell(writer, folder: Path, **inputs):
        return run("DescribeFolder", writer, folder=folder.name, max_tokens=12, together=2, **inputs)

    return tell


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8").strip() for path in folder.glob("*.txt")}


def test_every_picture_gets_the_words_it_would_get_alone(writer, folder, tell, told, part):
    output = tell(writer, folder, take="look")
    found = texts(folder)
    assert len(found) == PICTURES == len(output[0]) and len(set(found.values())) > 2
    assert output[0] == [found[str(index)] for index in range(PICTURES)]
    instruction = part("vl_core.encoder.writing").INSTRUCTIONS["look"]
    picture = torch.from_numpy(np.array(Image.open(folder / "3.png")))[None]
    with torch.inference_mode():
        alone = part("nodes.host.encoders").write_words(writer, {"image0": picture}, instruction, max_tokens=12)
    assert found["3"] == alone.words
    assert "5 texts written, 0 were there" in told(output)


def test_both_encoders_write_the_same_texts(writers, folder, tell):
    tell(writers["native"], folder)
    ours = texts(folder)
    for path in folder.glob("*.txt"):
        path.unlink()
    tell(writers["transformers"], folder)
    assert texts(folder) == ours


def test_texts_that_are_there_stay(writer, folder, tell, told):
    (folder / "2.txt").write_text("my own words", encoding="utf-8")
    (folder / "4.txt").write_text("\n", encoding="utf-8")
    output = tell(writer, folder)
    assert texts(folder)["2"] == "my own words" == output[0][2] and texts(folder)["4"]
    assert "4 texts written, 1 were there" in told(output)
    assert "0 texts written, 5 were there" in told(tell(writer, folder))


def test_a_folder_of_their_own_lies_below_the_output_folder(writer, folder, tell, base_folder):
    tell(writer, folder, texts="told/here")
    assert len(texts(base_folder / "output" / "told" / "here")) == PICTURES and not texts(folder)
    with pytest.raises(ValueError, match="texts: expected a folder below"):
        tell(writer, folder, texts="../elsewhere")


def test_stop_ends_it_and_the_next_run_goes_on(writer, folder, tell, told, monkeypatch):
    import comfy.model_management as management
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
    before = comfy.utils.PROGRESS_BAR_HOOK

    def stop(value, *_, **__):
        if value == 2:
            management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(stop)
    try:
        with pytest.raises(management.InterruptProcessingException):
            tell(writer, folder)
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
    assert len(texts(folder)) == 2 and not list(folder.glob("*.part"))
    assert "3 texts written, 2 were there" in told(tell(writer, folder))


def test_a_picture_that_cannot_be_read_is_named_and_the_others_get_their_texts(writer, folder, tell, told):
    (folder / "1.png").write_bytes(b"no picture")
    output = tell(writer, folder)
    assert "1.png: " in told(output) and "4 texts written" in told(output)
    assert sorted(texts(folder)) == ["0", "2", "3", "4"]


def test_where_memory_runs_out_fewer_are_told_at_a_time(writer, folder, tell, part, monkeypatch):
    encoders, counts = part("nodes.host.encoders"), []
    whole = encoders.write_each

    def small(encoder, pictures, *arguments, **options):
        counts.append(len(pictures))
        if len(pictures) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return whole(encoder, pictures, *arguments, **options)

    monkeypatch.setattr(encoders, "write_each", small)
    tell(writer, folder)
    assert len(texts(folder)) == PICTURES and counts == [2, 1, 1, 2, 1, 1, 1]


def test_it_says_how_fast_it_goes_and_how_long_it_takes(writer, folder, part, tell, monkeypatch):
    said, memory = [], part("nodes.host.memory")
    monkeypatch.setattr(memory, "say", lambda text, node: said.append(text))
    tell(writer, folder)
    assert len(said) == PICTURES and said[-1].startswith("5 of 5, ") and said[-1].endswith("0:00 left")


def test_fit_picture_adapter_finds_them(writer, folder, tell, part):
    for index in range(PICTURES, 10):
        Image.fromarray(np.full((64, 64, 3), 20 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    tell(writer, folder)
    assert len(part("vl_core.adapters.examples").find_examples(folder)) == 10


def test_mistakes_are_named(writer, folder, tell, base_folder, text_clip):
    with pytest.raises(FileNotFoundError, match="folder: expected a folder of pictures"):
        tell(writer, base_folder / "input" / "nowhere")
    with pytest.raises(ValueError, match="cannot see pictures"):
        tell(text_clip, folder)
    assert not texts(folder)
