"""fit: the same adapter from one process, after a stop, and from a cluster."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miniature import world
from miniature.measure.chain import as_image
from miniature.train.assemble import MODELS, PIPELINE, VISION
from vl_core.adapters.picture_adapter import PictureAdapter
from vl_core.headless import fit
from vl_core.headless.cli import main
from vl_core.states.statistics import calibration_prompts

pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")
Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

PICTURES = 40
CPU = ["--device", "cpu", "--dtype", "float32"]
NAMES = ("style", "palette", "light", "background", "composition")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("looks")
    scenes = world.sample_scenes(PICTURES, torch.Generator().manual_seed(1))
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(1))
    for index, (picture, scene) in enumerate(zip(as_image(pictures), scenes.records(), strict=True)):
        Image.fromarray((picture.numpy() * 255).astype(np.uint8)).save(root / f"{index:03}.png")
        (root / f"{index:03}.txt").write_text(", ".join(world.look_phrases(scene)))
    return root


@pytest.fixture(scope="module")
def options(folder):
    return ["fit", "-f", str(folder), "-m", str(MODELS / PIPELINE), "--vision", str(MODELS / VISION), *CPU]


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "alone.safetensors"
    assert main([*options, "-o", str(path)]) == 0
    return PictureAdapter.load(path)


def same(one: PictureAdapter, other: PictureAdapter) -> None:
    assert one.spec == other.spec
    assert one.report.penalty == other.report.penalty and one.report.pairs == other.report.pairs
    x = torch.randn(3, one.spec.inputs, generator=torch.Generator().manual_seed(2)) * 0.1 + one.map.center
    torch.testing.assert_close(one.predict(x), other.predict(x), rtol=1e-4, atol=1e-4)


def test_the_folder_becomes_an_adapter_that_reads_no_prompt(alone, options, tmp_path, capsys):
    assert not alone.spec.own_prompt
    assert alone.report.pairs == PICTURES
    assert [slot.name for slot in alone.spec.slots] == ["description"]
    assert not list(tmp_path.glob("*.part"))


def test_a_cluster_gives_the_same(alone, options, tmp_path, actors_of_one_process):
    """What happens when a worker dies is the same for all commands: test_compare.py."""
    path = tmp_path / "spread.safetensors"
    assert main([*options, "-o", str(path), "--ray", "local"]) == 0
    assert actors_of_one_process == [fit.Reader]
    same(PictureAdapter.load(path), alone)


def test_a_fit_that_was_stopped_says_that_it_went_on(alone, options, tmp_path, monkeypatch, capsys):
    from vl_core.adapters import examples

    path, left = tmp_path / "stopped.safetensors", [20]
    plain = examples.add_example

    def stop(*arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(examples, "add_example", stop)
        assert main([*options, "-o", str(path)]) == 130
    assert main([*options, "-o", str(path)]) == 0
    assert "went on after 16 pictures" in capsys.readouterr().out
    same(PictureAdapter.load(path), alone)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["-f", "nowhere"], "folder: expected a folder of pictures"),
        (["--vision", "nowhere"], "--vision: no config.json"),
        (["-o", "x.bin"], "--output: expected a name ending in .safetensors"),
        (["--workers", "-1"], "--workers: expected 0"),
    ],
)
def test_mistakes_are_named(change, message, options, capsys):
    assert main([*options, *change]) == 1
    assert message in capsys.readouterr().err


def test_prompts_of_ones_own_take_the_place_of_the_built_in_ones(alone, options, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(calibration_prompts()), encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text("# mine\na red star\na blue ring\n", encoding="utf-8")
    for name, prompts in (("same", file), ("other", other)):
        assert main([*options, "--prompts", str(prompts), "-o", str(tmp_path / f"{name}.safetensors")]) == 0
    same(PictureAdapter.load(tmp_path / "same.safetensors"), alone)
    x = torch.randn(alone.spec.inputs)
    assert not torch.allclose(PictureAdapter.load(tmp_path / "other.safetensors").predict(x), alone.predict(x))


def test_an_adapter_that_is_there_is_not_replaced_without_being_asked(options, tmp_path, capsys):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"mine")
    assert main([*options, "-o", str(path)]) == 1
    assert "is there already" in capsys.readouterr().err and path.read_bytes() == b"mine"
