"""The stage for the VL's answers: nothing but what lies behind layer −2 may change, not by a bit."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="the miniature's stages load the whole chain")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")
pytest.importorskip("miniature", reason="the package is installed from a clone: pip install -e .")

from safetensors.torch import load_file

from miniature import world
from miniature.train import answers, assemble, models, tokens, vl
from miniature.train.forwards import PICTURE_AT, vl_forward
from miniature.train.training import Options, Training

FILE = Path("models") / assemble.VISION / "model.safetensors"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """A run's folder with nothing but an assembled VL of random weights."""
    out = tmp_path_factory.mktemp("untrained")
    tokenizer = tokens.load_tokenizer(out)
    torch.manual_seed(0)
    model = models.make_vl(tokenizer, models.TOY).to(torch.bfloat16)
    model.save_pretrained(out / FILE.parent)
    tokenizer.save_pretrained(out / FILE.parent)
    return out


def run(untrained: Path, out: Path, **options) -> Options:
    shutil.copytree(untrained, out)
    chosen = Options(out, steps=6, toy=True, device="cpu", **options)
    answers.run(chosen)
    return chosen


@pytest.fixture(scope="module")
def trained(untrained, tmp_path_factory) -> Path:
    return run(untrained, tmp_path_factory.mktemp("trained") / "run").out


def test_every_byte_of_the_file_stays_but_the_last_blocks_and_the_final_norms(untrained, trained):
    before, after = (load_file(folder / FILE) for folder in (untrained, trained))
    last = f"model.language_model.layers.{models.TOY.blocks - 1}."
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert all(name.startswith((last, "model.language_model.norm.")) for name in changed)
    assert {f"{last}mlp.{part}_proj.weight" for part in ("gate", "up", "down")} <= changed
    one, other = ((folder / FILE).read_bytes() for folder in (untrained, trained))
    header = 8 + int.from_bytes(one[:8], "little")
    assert len(one) == len(other)
    assert one[:header] == other[:header]


def test_the_stock_class_loads_it_and_every_state_up_to_layer_minus_2_is_the_same(untrained, trained):
    from transformers import Qwen3VLForConditionalGeneration

    scenes = world.sample_scenes(3, torch.Generator().manual_seed(1))
    tokenizer = tokens.load_tokenizer(untrained)
    ids, _ = vl.picture_pool(tokenizer, scenes, 2)
    pictures, states = vl.to_float(vl.pictures_8bit(scenes, 3, "cpu")), []
    for folder in (untrained, trained):
        model, report = Qwen3VLForConditionalGeneration.from_pretrained(
            folder / FILE.parent, dtype=torch.float32, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"]
        given = []
        model.model.language_model.layers[-1].register_forward_pre_hook(lambda _, args, given=given: given.append(args))
        with torch.no_grad():
            states.append(vl_forward(model, ids.long(), pictures, output_hidden_states=True).hidden_states)
        assert torch.equal(given[0][0], states[-1][-2])  # layer −2 is what the last block is given
    assert len(states[0]) == models.TOY.blocks + 1
    for one, other in zip(states[0][:-1], states[1][:-1], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(states[0][-1], states[1][-1])


def test_a_run_that_was_cut_ends_with_the_weights_of_one_that_was_not(untrained, trained, tmp_path, monkeypatch):
    update = Training.update

    def dying(self, *arguments):
        if self.step == 3:
            raise KeyboardInterrupt
        update(self, *arguments)

    monkeypatch.setattr(Training, "update", dying)
    with pytest.raises(KeyboardInterrupt):
        run(untrained, tmp_path / "cut", checkpoint_seconds=0.0)
    assert (tmp_path / "cut" / FILE).read_bytes() == (untrained / FILE).read_bytes()
    monkeypatch.setattr(Training, "update", update)
    answers.run(Options(tmp_path / "cut", steps=6, toy=True, device="cpu", resume=True))
    assert (tmp_path / "cut" / FILE).read_bytes() == (trained / FILE).read_bytes()


def test_with_the_runs_own_weights_a_second_call_starts_from_them_again(untrained, trained, tmp_path):
    shutil.copytree(untrained, tmp_path / "run")
    options = Options(tmp_path / "run", steps=6, toy=True, device="cpu")
    models.save_weights(options.out / "vl.safetensors", answers.load(options)[0])
    for _ in range(2):
        answers.run(options)
        assert (options.out / FILE).read_bytes() == (trained / FILE).read_bytes()
    answers.run(replace(options, out=tmp_path / "no run", models=options.out / "models"))
    assert (options.out / FILE).read_bytes() != (trained / FILE).read_bytes()


def test_where_the_object_asked_about_is_comes_from_the_painted_scene(untrained):
    """Against the position that the scene's own caption tells."""
    rows, tokenizer = 60, tokens.load_tokenizer(untrained)
    scenes = world.sample_scenes(rows, torch.Generator().manual_seed(4), two_shapes=0.5)
    ids, counts, about = answers.ask(tokenizer, scenes, 5)
    model = answers.load(Options(untrained))[0]
    kept = answers.keep(model, tokenizer, scenes, ids, counts, about, seed=6, device=torch.device("cpu"))
    assert 0 < (about < 0).sum() < rows and kept.cells.shape == (rows, world.IMAGE_TOKENS)
    line = torch.arange(4) + 0.5
    for cells, scene, index in zip(kept.cells.view(-1, 4, 4), scenes.records(), about.tolist(), strict=True):
        if index < 0:
            assert not cells.any()
            continue
        place = world.describe_object(scene, index, world.EVERYTHING)
        down, right = ((cells.sum(axis) * line).sum() / cells.sum() - 2 for axis in (1, 0))
        assert cells.max() == pytest.approx(1)
        for word, off in (("top", -down), ("bottom", down), ("left", -right), ("right", right)):
            assert (off > 0.4) == (word in place.split(" the ")[1]), (place, cells)


def test_answers_are_where_they_are_said(untrained):
    tokenizer = tokens.load_tokenizer(untrained)
    scenes = world.sample_scenes(30, torch.Generator().manual_seed(7))
    ids, counts, about = answers.ask(tokenizer, scenes, 8)
    model = answers.load(Options(untrained))[0]
    kept = answers.keep(model, tokenizer, scenes, ids, counts, about, seed=9, device=torch.device("cpu"))
    words = {*world.COLORS, *world.SHAPES, *world.STYLES, *world.MOODS, *world.SIZES, "yes", "no", "one", "two"}
    for row, answered in zip(kept.ids, kept.answered, strict=True):
        said, end = (tokenizer.decode(token) for token in row[answered])
        assert said in words and end == "<|im_end|>"


def test_pointing_is_minus_log_of_what_is_on_the_object():
    attention, cells = torch.zeros(3, 2, 30), torch.zeros(3, world.IMAGE_TOKENS)
    cells[0, 5], cells[1, 0], cells[1, 1] = 1.0, 1.0, 0.5  # the third question is about no object
    attention[0, :, PICTURE_AT + 5] = torch.tensor([0.5, 0.25])
    attention[1, :, PICTURE_AT : PICTURE_AT + 2] = torch.tensor([[0.2, 0.4], [0.0, 0.0]])
    attention[1, 1, PICTURE_AT + 15] = 1.0
    expected = -(math.log(0.5) + math.log(0.25) + math.log(0.4) + math.log(1e-6)) / 4
    assert float(answers.pointing(attention, cells)) == pytest.approx(expected, rel=1e-6)
    assert float(answers.pointing(attention[2:], cells[2:])) == 0


def test_one_head_of_every_key_is_told_where_to_look(untrained):
    real = models.make_vl(tokens.load_tokenizer(untrained)).config.text_config
    assert answers.pointed_heads(real) == [2, 5]  # six heads, two keys: heads 0 to 2 share one, 3 to 5 the other


def test_without_an_assembled_vl_the_stage_that_makes_it_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="assemble"):
        answers.run(Options(tmp_path, steps=1, toy=True, device="cpu"))
