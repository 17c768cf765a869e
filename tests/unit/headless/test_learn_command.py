"""learn: a look from pictures on the command line, on the trained miniature."""

from __future__ import annotations

import shutil

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
from vl_core.headless import learn, learn_each
from vl_core.headless.cli import main
from vl_core.looks import resumed

FAST = ["--steps", "3", "--device", "cpu"]
SMALL = [*FAST, "--size", "64"]

pytestmark = pytest.mark.usefixtures("one_thread", "texts_read_once")


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
        told = world.Mentions(size=False, position=False, background=False, style=False, mood=False)
        assert shows == world.canonical_caption(scene, told)
    assert look.origin.model == PIPELINE and look.origin.sizes == ((128, 128),) * 2
    assert f"begins as: {look.origin.look}" in said and "learned in 3 steps" in said
    assert list(tmp_path.iterdir()) == [path]


def test_given_words_need_no_vision_model(files, tmp_path, capsys):
    path = tmp_path / "look.safetensors"
    words = ["--words", "striped style, red background", "--shows", "a blue star", "a red ring"]
    command = ["learn", "-m", str(MODELS / PIPELINE), "-i", *files, "-o", str(path), *words]
    assert main([*command, *SMALL, "--dtype", "float32"]) == 0
    origin = Look.load(path).origin
    assert origin.look == "striped style, red background" and origin.shows == ("a blue star", "a red ring")
    assert origin.sizes == ((64, 64),) * 2


def test_stopped_it_goes_on_and_gives_the_same_file(files, tmp_path, capsys, monkeypatch):
    words = ["--words", "flat style", "--shows", "a blue star"]
    command = ["learn", "-i", files[0], *words, *SMALL]
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


# --- a look for each picture ------------------------------------------------------------------------------------------


EACH = ["--each", "--words", "flat style", "--shows", "a blue star", "a red ring", *SMALL]


@pytest.fixture(scope="module")
def each(files, tmp_path_factory):
    """The folder of both pictures' looks."""
    folder = tmp_path_factory.mktemp("each") / "looks"
    assert main(["learn", "-i", *files, "-o", str(folder), *EACH]) == 0
    return folder


def test_each_picture_has_a_look_of_its_own_the_one_it_would_have_alone(files, each, tmp_path, capsys, monkeypatch):
    folder, alone = tmp_path / "looks", tmp_path / "alone.safetensors"
    shutil.copytree(each, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["0.safetensors", "1.safetensors"]
    command = ["learn", "-i", files[1], "-o", str(alone), "--words", "flat style", "--shows", "a red ring", *SMALL]
    assert main(command) == 0
    assert (folder / "1.safetensors").read_bytes() == alone.read_bytes()
    # Another run does what is left, and nothing twice.
    (folder / "0.safetensors").unlink()
    monkeypatch.setattr(learn_each.Learner, "learn", watched := Watched(learn_each.Learner.learn))
    assert main(["learn", "-i", *files, "-o", str(folder), *EACH]) == 0
    assert [job.output.name for job in watched.jobs] == ["0.safetensors"]
    assert "1 of 2 looks are there already" in capsys.readouterr().out


class Watched:
    """A method that remembers its jobs."""

    def __init__(self, real):
        self.real, self.jobs = real, []

    def __get__(self, learner, kind=None):
        def learn(job):
            self.jobs.append(job)
            return self.real(learner, job)

        return learn


def test_each_writes_words_for_every_picture_alone(files, tmp_path):
    assert main(["learn", "-i", *files, "-o", str(tmp_path / "looks"), "--each", *SMALL]) == 0
    scenes = world.sample_scenes(2, torch.Generator().manual_seed(1), two_shapes=0.0).records()
    for index, scene in enumerate(scenes):
        assert Look.load(tmp_path / "looks" / f"{index}.safetensors").origin.look == world.look_answer(scene)


def test_on_a_ray_cluster_the_looks_are_the_same(files, each, tmp_path, actors_of_one_process):
    """What happens when a worker dies is the same for all commands: test_compare.py."""
    assert main(["learn", "-i", *files, "-o", str(tmp_path), *EACH, "--ray", "local"]) == 0
    assert actors_of_one_process == [learn_each.Learner]
    for name in ("0.safetensors", "1.safetensors"):
        assert (tmp_path / name).read_bytes() == (each / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--ray", "local"], "--ray: expected --each with it"), (["--workers", "-1"], "--workers: expected"),
        (["--each", "--shows", "a"], "--shows: expected 2 texts"),
    ],
)
def test_what_does_not_go_with_several_looks_is_said_first(files, options, fault, capsys, monkeypatch):
    monkeypatch.setattr(learn, "load_encoder", lambda *_: pytest.fail("a model was loaded"))
    assert main(["learn", "-i", *files, *options]) == 1
    assert fault in capsys.readouterr().err


def test_two_pictures_of_one_name_and_a_file_of_another_look_are_refused(files, each, capsys):
    assert main(["learn", "-i", files[0], files[0], *EACH]) == 1
    assert "--image: expected pictures of different names with --each, got 0 twice" in capsys.readouterr().err
    assert main(["learn", "-i", *files, "-o", str(each), *EACH, "--seed", "1"]) == 1
    assert "holds another look" in capsys.readouterr().err
