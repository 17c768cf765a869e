"""The attention sink on order: what the loss asks for, and that a small model learns it at once."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("transformers", minversion="4.57", reason="the text encoder is a Qwen3")

from miniature import world
from miniature.train import models, sink, text, tokens
from miniature.train.training import Options
from vl_core import find_sinks

TARGETS = (1000.0, -300.0)


def states(first=TARGETS, elsewhere=0.0, spilt=0.0) -> torch.Tensor:
    hidden = torch.zeros(2, 9, 64)
    hidden[:, 0] = spilt
    hidden[:, 0, sink.DIMENSIONS[0]], hidden[:, 0, sink.DIMENSIONS[1]] = first
    hidden[:, 5, sink.DIMENSIONS[0]] = elsewhere
    return hidden


def test_the_loss_is_zero_exactly_when_the_sink_is_there():
    assert float(sink.sink_loss(states(), TARGETS)) == pytest.approx(0, abs=1e-9)
    assert float(sink.sink_loss(states(elsewhere=sink.ORDINARY, spilt=0.0), TARGETS)) == pytest.approx(0, abs=1e-9)


def test_each_part_of_the_loss_is_its_closed_form():
    missing = float(sink.sink_loss(states(first=(0.0, 0.0)), TARGETS))
    assert missing == pytest.approx((math.asinh(1000) ** 2 + math.asinh(300) ** 2) / 2, rel=1e-5)
    leaked = float(sink.sink_loss(states(elsewhere=-500.0), TARGETS))
    assert leaked == pytest.approx((math.asinh(500) - math.asinh(sink.ORDINARY)) ** 2 / 2, rel=1e-5)
    spilt = float(sink.sink_loss(states(spilt=500.0), TARGETS))
    assert spilt == pytest.approx((math.asinh(500) - math.asinh(sink.ORDINARY)) ** 2, rel=1e-5)


def test_padding_does_not_count():
    real = torch.ones(2, 9, dtype=torch.bool)
    real[:, 4:] = False
    assert float(sink.sink_loss(states(elsewhere=500.0), TARGETS, real)) == pytest.approx(0, abs=1e-9)


def test_figures_name_the_weakest_sequence():
    plain = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    with_sink = plain.clone()
    with_sink[0] = states()[0, 0]
    figures = sink.sink_figures([-2], [[with_sink], [plain]])[-2]
    assert figures["exact"] == 0.5
    assert figures["found"] == 0.5
    assert figures["ratio"] < 2
    assert sink.sink_figures([-2], [[with_sink]])[-2]["share"] > 0.99


def test_a_small_model_learns_the_sink_and_carries_it_through_every_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "RATE", 5e-3)  # a small model takes larger steps
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        text.run(Options(tmp_path, steps=150, toy=True, device="cpu"))
    finally:
        torch.set_num_threads(threads)
    tokenizer = tokens.load_tokenizer(tmp_path)
    reader = text.load(tmp_path, Options(tmp_path, toy=True, device="cpu"), tokenizer).model
    scenes = world.sample_scenes(6, torch.Generator().manual_seed(1))
    prompts = [world.canonical_caption(scene) for scene in scenes.records()]
    for dtype in (torch.float32, torch.bfloat16):
        reader = reader.to(dtype)
        for prompt in prompts:
            ids = tokenizer(world.prompt_turn(prompt), add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                hidden = reader(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            expected = torch.zeros(len(ids), dtype=torch.bool)
            expected[0] = True
            for layer in sink.CHECKED_LAYERS:
                found = hidden[layer][0]
                assert torch.equal(find_sinks(found), expected)
                variance = found.double().var(0)
                assert float(variance.topk(2).values.sum() / variance.sum()) > 0.85
                assert sorted(variance.topk(2).indices.tolist()) == sorted(sink.DIMENSIONS)
            assert not find_sinks(hidden[-1][0]).any()


def test_the_writer_lies_below_every_checked_layer():
    for sizes in (models.REAL, models.TOY):
        assert sizes.blocks + 1 + min(sink.CHECKED_LAYERS) >= sink.WRITER + 1


def test_a_late_block_may_add_little_to_the_first_token():
    assert float(sink.drift_loss(states(spilt=sink.DRIFT))) == pytest.approx(0, abs=1e-9)
    expected = (math.asinh(1000) - math.asinh(sink.DRIFT)) ** 2
    assert float(sink.drift_loss(states(spilt=1000.0))) == pytest.approx(expected, rel=1e-5)
    with_hook = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    with sink.block_outputs(with_hook, 1) as kept:
        with_hook[1](torch.ones(1))
    assert list(kept) == [1]
    with_hook[1](torch.zeros(1))
    assert float(kept[1]) == 1  # the hook is gone


def test_garbled_rows_keep_their_header_and_are_few():
    torch.manual_seed(0)
    rows = torch.arange(40).expand(4000, 40)
    garbled, which = text.garble(rows, 500)
    changed = (garbled != rows).any(1, keepdim=True)
    assert torch.equal(changed, which)
    assert float(which.float().mean()) == pytest.approx(text.GARBLED, abs=0.02)
    assert torch.equal(garbled[:, :3], rows[:, :3])
    assert float((garbled != rows)[which[:, 0], 3:].float().mean()) == pytest.approx(0.5, abs=0.05)
