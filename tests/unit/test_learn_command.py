"""learn: a look from pictures on the command line, on the trained miniature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the command paints with diffusers")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")
Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

from miniature import world
from miniature.measure.chain import as_image
from miniature.train.assemble import MODELS, PIPELINE, VISION
from vl_core import Look
from vl_core.headless import learn
from vl_core.headless.cli import main
from vl_core.looks import resumed

FAST = ["--steps", "3", "--device", "cpu"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two pictures of the world as files."""
    root = tmp_path_factory.mktemp("pictures")
    scenes = world.sample_scenes(2, torch.Generator().manual_seed(1), two_shapes=0.0)
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(1))
    for index, picture in enumerate(as_image(pictures)):
        Image.fromarray((picture.numpy() * 255).astype(np.uint8)).save(root / f"{index}.png")
    return [str(root / f"{index}.png") for index in range(2)]


def test_without_a_model_the_miniature_learns_and_tells_itself_what_it_sees(files, tmp_path, capsys):
    path = tmp_path / "look.safetensors"
    assert main(["learn", "-i", *files, "-o", str(path), *FAST]) == 0
    look, said = Look.load(path), capsys.readouterr().out
    scenes = world.sample_scenes(2, torch.Generator().manual_seed(1), two_shapes=0.0).records()
    assert look.origin.look == world.look_answer(scenes[0])
    for shows, scene in zip(look.origin.shows, scenes, strict=True):
        told = world.Mentions(size=False, background=False, style=False, mood=False)  # sizes it may mistake
        _, thing = world.canonical_caption(scene, told).split(" ", 1)
        assert shows.endswith(thing) and len(shows) < len(thing) + 12
    assert look.origin.model == PIPELINE and look.origin.sizes == ((128, 128),) * 2
    assert f"begins as: {look.origin.look}" in said and "learned in 3 steps" in said
    assert list(tmp_path.iterdir()) == [path]


def test_given_words_need_no_vision_model(files, tmp_path, capsys):
    path = tmp_path / "look.safetensors"
    words = ["--words", "striped style, red background", "--shows", "a blue star", "a red ring"]
    command = ["learn", "-m", str(MODELS / PIPELINE), "-i", *files, "-o", str(path), *words, "--size", "64"]
    assert main([*command, *FAST, "--dtype", "float32"]) == 0
    origin = Look.load(path).origin
    assert origin.look == "striped style, red background" and origin.shows == ("a blue star", "a red ring")
    assert origin.sizes == ((64, 64),) * 2


def test_stopped_it_goes_on_and_gives_the_same_file(files, tmp_path, capsys, monkeypatch):
    words = ["--words", "flat style", "--shows", "a blue star"]
    command = ["learn", "-i", files[0], *words, *FAST]
    whole, again = tmp_path / "whole.safetensors", tmp_path / "again.safetensors"
    assert main([*command, "-o", str(whole)]) == 0
    monkeypatch.setattr(resumed, "SAVED_EVERY", 1)
    real = resumed.learn_look

    def stopped(*inputs, on_step, **options):
        def stop(state):
            on_step(state)
            if state.step == 2:
                raise KeyboardInterrupt

        return real(*inputs, on_step=stop, **options)

    monkeypatch.setattr(resumed, "learn_look", stopped)
    assert main([*command, "-o", str(again)]) == 130
    assert [path.suffix for path in tmp_path.glob("again*")] == [".part"]
    monkeypatch.setattr(resumed, "learn_look", real)
    capsys.readouterr()
    assert main([*command, "-o", str(again)]) == 0
    assert "goes on after 2 steps" in capsys.readouterr().out
    assert again.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "options, fault",
    [
        (["--shows", "a", "b"], "--shows: expected 1 texts"), (["--words", " "], "--words: expected words"),
        (["--steps", "0"], "--steps: expected 1 to 10000"), (["--size", "8"], "--size: expected 32"),
        (["--vision", str(MODELS / VISION)], "the demo has its own Qwen3-VL"),
        (["-m", str(MODELS / PIPELINE)], "--vision: expected a Qwen3-VL folder"),
        (["-o", "look.png"], "--output: expected a name ending in .safetensors"),
    ],
)
def test_what_does_not_fit_is_said_before_a_model_is_loaded(files, options, fault, capsys, monkeypatch):
    monkeypatch.setattr(learn, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(learn, "load_encoder", lambda *_: pytest.fail("a model was loaded"))
    assert main(["learn", "-i", files[0], *options]) == 1
    assert fault in capsys.readouterr().err


def test_too_many_pictures_are_refused(files, capsys):
    assert main(["learn", "-i", *([files[0]] * 17)]) == 1
    assert "expected 1 to 16, got 17" in capsys.readouterr().err
