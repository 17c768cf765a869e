"""layers: the report on the command line is the node's, its mean is numpy's, a muted picture shows nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import world
from miniature.measure.chain import as_image
from miniature.train.assemble import MODELS, PIPELINE, VISION
from vl_core import Qwen3VLEncoder, ReferenceStatistics
from vl_core.headless.cli import main
from vl_core.reports.layer_report import METRICS, layer_report
from vl_core.zimage.pipeline import load_tokenizer, prompt_layout

pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")
pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib")
Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

PROMPTS = ("a red star", "draw a blue ring")
LAYERS = (-4, -2, -1)
HERE = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two pictures of the world and the text encoder's statistics over a few of its captions."""
    where = tmp_path_factory.mktemp("layers")
    scenes = world.sample_scenes(2, torch.Generator().manual_seed(4))
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(4))
    for number, picture in enumerate(as_image(pictures)):
        Image.fromarray((picture.numpy() * 255).astype(np.uint8)).save(where / f"ref{number}.png")
    captions = "\n".join(world.canonical_caption(scene) for scene in scenes.records())
    (where / "captions.txt").write_text(captions, encoding="utf-8")
    reference = ["calibrate", "-m", str(MODELS / PIPELINE), "--prompts", str(where / "captions.txt")]
    assert main([*reference, "-o", str(where / "reference.safetensors"), *HERE]) == 0
    return where





def asked(folder: Path, *options: str, pictures=("ref0.png",), prompts=PROMPTS[:1]) -> list[str]:
    chosen = [part for prompt in prompts for part in ("-p", prompt)]
    images = [str(folder / name) for name in pictures]
    reference = ["--reference", str(folder / "reference.safetensors"), "--layers=-4,-2:-1"]
    return ["layers", "-i", *images, *chosen, *reference, *HERE, *options]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def many(folder) -> Path:
    """Two pictures × two prompts."""
    assert main(asked(folder, "-o", str(folder / "many"), pictures=("ref0.png", "ref1.png"), prompts=PROMPTS)) == 0
    return folder / "many"


def test_one_reading_is_the_report_itself(folder, tmp_path):
    assert main(asked(folder, "-o", str(tmp_path))) == 0
    encoder = Qwen3VLEncoder.from_pretrained(MODELS / VISION, "cpu", torch.float32)
    with Image.open(folder / "ref0.png") as image:
        picture = torch.from_numpy(np.array(image))
    seen = encoder.encode([picture], PROMPTS[0], LAYERS)
    from transformers import AutoModel

    layout = prompt_layout(load_tokenizer(MODELS / PIPELINE / "tokenizer"), PROMPTS[0])
    model = AutoModel.from_pretrained(MODELS / PIPELINE / "text_encoder", dtype=torch.float32)
    with torch.no_grad():
        text = model(layout.token_ids[None], output_hidden_states=True).hidden_states[-2][0]
    expected = layer_report(seen, ReferenceStatistics.load(folder / "reference.safetensors"), text, layout)
    assert (tmp_path / "layers.csv").read_text() == expected.csv()
    text = (tmp_path / "layers.txt").read_text()
    assert expected.summary() in text and expected.table() in text
    assert not (tmp_path / "readings.csv").exists()


def test_the_table_is_the_mean_of_the_readings(many):
    rows, readings = table(many / "layers.csv"), table(many / "readings.csv")
    assert len(readings) == 4 * len(rows) == 4 * 2 * 2 * 2 * len(LAYERS)
    assert {(row["picture"], row["prompt"]) for row in readings} == {
        (f"ref{number}.png", prompt) for number in range(2) for prompt in PROMPTS
    }
    for row in rows:
        same = [one for one in readings if all(one[name] == row[name] for name in ("layer", "group", "space", "sinks"))]
        assert int(row["tokens"]) == sum(int(one["tokens"]) for one in same)
        for metric in METRICS:
            values = [float(one[metric.name]) for one in same if one[metric.name]]
            if values:
                assert float(row[metric.name]) == pytest.approx(np.mean(values), rel=1e-6, abs=1e-7)
            else:
                assert row[metric.name] == ""


def test_the_report_tells_the_best_layers_and_how_many_readings_agree(many):
    text = (many / "layers.txt").read_text()
    assert "Best layer by metric" in text and "means over 4 readings" in text
    line = next(line for line in text.splitlines() if line.startswith("text tokens: ") and " in " in line)
    layer, count = line.split("cosine ")[1].split(" in ")
    own = [row for row in table(many / "readings.csv") if (row["group"], row["space"], row["sinks"]) == (
        "text", "dit", "exclude",
    )]
    best = {}
    for row in own:
        key = row["picture"], row["prompt"]
        if key not in best or float(row["cosine"]) > float(best[key]["cosine"]):
            best[key] = row
    assert sum(row["layer"] == layer for row in best.values()) == int(count)


def test_all_layers_come_from_one_forward_of_each_reading(folder, tmp_path, monkeypatch):
    asked_for = []
    encode = Qwen3VLEncoder.encode

    def counting(self, images, prompt, layers, **options):
        asked_for.append(tuple(layers))
        return encode(self, images, prompt, layers, **options)

    monkeypatch.setattr(Qwen3VLEncoder, "encode", counting)
    assert main(asked(folder, "-o", str(tmp_path), "--layers", "all", prompts=PROMPTS)) == 0
    assert asked_for == [tuple(range(-13, 0))] * 2


def test_a_muted_picture_shows_nothing(folder, tmp_path):
    for name in ("ref0.png", "ref1.png"):
        assert main(asked(folder, "-o", str(tmp_path / name), "--mute", pictures=(name,))) == 0
    first, second = ((tmp_path / f"ref{number}.png" / "layers.csv").read_text() for number in range(2))
    assert first == second
    assert main(asked(folder, "-o", str(tmp_path / "seen"))) == 0
    assert (tmp_path / "seen" / "layers.csv").read_text() != first


def test_the_plot_is_drawn_in_both_themes(many, folder, tmp_path):
    assert main(asked(folder, "-o", str(tmp_path), "--theme", "dark", "--sinks", "include")) == 0
    shades = []
    for path in (many / "layers.png", tmp_path / "layers.png"):
        with Image.open(path) as image:
            assert min(image.size) > 600
            shades.append(np.array(image.convert("L"))[:20].mean())
    assert shades[0] > 200 > 60 > shades[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers=-99"], "layer"),
        (["--threshold", "0.5"], "--threshold: expected 1 or more"),
        (["--vision", "x"], "--vision: the demo has its own"),
        (["-m", "x"], "--vision: expected a Qwen3-VL folder"),
        (["--reference", "nothing"], "--reference: no file"),
        (["-i", "nothing.png"], "--image: no file"),
    ],
)
def test_mistakes_are_named_before_any_model_is_loaded(folder, tmp_path, capsys, options, message):
    assert main([*asked(folder, "-o", str(tmp_path / "out")), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_prompt_is_needed(folder, capsys):
    assert main(asked(folder, prompts=())) == 1
    assert "--prompt: expected at least one" in capsys.readouterr().err
