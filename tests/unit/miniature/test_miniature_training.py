"""Budgets, checkpoints and logs: a stage that is cut short goes on as if nothing had happened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="4.57", reason="the text encoder is a Qwen3")

from safetensors.torch import load_file

from miniature.train import text, training
from miniature.train.training import Options, Training

pytestmark = pytest.mark.usefixtures("one_thread")


def log_of(folder: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"log_{stage}.jsonl").read_text(encoding="utf-8").splitlines()]


class Kill(Exception):
    """Stands for a process that ends in the middle of a step."""


def test_a_stage_that_was_killed_ends_with_the_weights_of_one_that_was_not(tmp_path, monkeypatch):
    options = Options(tmp_path / "whole", steps=8, toy=True, device="cpu", checkpoint_seconds=0.0)
    text.run(options)
    cut = replace(options, out=tmp_path / "cut")
    update, calls = Training.update, []

    def dying(self, *arguments):
        calls.append(0)
        if len(calls) == 6:
            raise Kill
        update(self, *arguments)

    monkeypatch.setattr(Training, "update", dying)
    with pytest.raises(Kill):
        text.run(cut)
    assert not (cut.out / "text.safetensors").exists()
    monkeypatch.setattr(Training, "update", update)
    text.run(replace(cut, resume=True))
    whole, resumed = (load_file(one.out / "text.safetensors") for one in (options, cut))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    lines = log_of(cut.out, "text")
    assert any(line.get("resumed_at") == 5 for line in lines)
    assert lines[-1]["steps"] == 8


def module() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)
    return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)


def test_stop_after_ends_the_call_but_not_the_stage(tmp_path):
    layer, optimizer = module()
    options = Options(tmp_path, seconds=3600, device="cpu", stop_after=0.0)
    run = Training(options, "try", {"model": layer}, optimizer, [0.1])
    assert len(list(run.steps())) == 1
    assert not run.done
    assert log_of(tmp_path, "try")[-1]["stopped_at"] == 1
    layer, optimizer = module()
    again = Training(replace(options, resume=True), "try", {"model": layer}, optimizer, [0.1])
    assert len(list(again.steps())) == 1
    assert again.step == 2


def test_a_checkpoint_that_was_being_written_does_not_hurt_the_last_one(tmp_path):
    layer, optimizer = module()
    options = Options(tmp_path, steps=3, device="cpu", checkpoint_seconds=0.0)
    list(Training(options, "try", {"model": layer}, optimizer, [0.1]).steps())
    (tmp_path / "try.ckpt.part").write_bytes(b"cut sh")
    layer, optimizer = module()
    run = Training(replace(options, steps=5, resume=True), "try", {"model": layer}, optimizer, [0.1])
    assert list(run.steps()) == [3, 4]


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(tmp_path):
    layer, optimizer = module()
    before = layer.weight.clone()
    run = Training(Options(tmp_path, steps=1, device="cpu"), "try", {"model": layer}, optimizer, [0.1])
    run.update(layer(torch.full((1, 3), float("nan"))).sum(), list(layer.parameters()))
    assert torch.equal(layer.weight, before)
    assert run.notes["skipped"] == 1


def test_the_rate_warms_up_and_falls_along_a_cosine(tmp_path):
    layer, optimizer = module()
    run = Training(Options(tmp_path, steps=101, device="cpu"), "try", {"model": layer}, optimizer, [2.0])
    rates = [optimizer.param_groups[0]["lr"] for _ in run.steps()]
    assert rates[0] == pytest.approx(2.0 / 5)
    assert max(rates) == pytest.approx(2.0, rel=0.02)
    assert rates[-1] == pytest.approx(2.0 * training.FLOOR, rel=0.05)
    assert rates[50] == pytest.approx(2.0 * (training.FLOOR + (1 - training.FLOOR) * 0.5), rel=0.03)


def test_the_clock_is_the_budget_and_logs_say_how_long_it_will_take(tmp_path):
    layer, optimizer = module()
    run = Training(Options(tmp_path, seconds=0.3, device="cpu"), "try", {"model": layer}, optimizer, [0.1], log_every=2)
    for _ in run.steps():
        torch.randn(200, 200) @ torch.randn(200, 200)
    assert run.done
    assert 0.3 <= run.elapsed < 1.0
    line = log_of(tmp_path, "try")[0]
    assert {"step", "elapsed", "steps_per_s", "eta_s", "expected_steps"} <= set(line)


def test_the_average_follows_the_weights():
    model, average = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    follower = training.Average(model, average, decay=0.5)
    assert torch.equal(average.weight, model.weight)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    follower.update(10_000)
    torch.testing.assert_close(average.weight, start + 0.5)


def _square(value: int, by: int) -> int:
    return value * value + by


def test_work_in_processes_keeps_its_order():
    jobs = [(value, 1) for value in range(7)]
    assert training.in_processes(_square, jobs) == [value * value + 1 for value in range(7)]
