"""All stages in one call: in the right order, side by side where they may, and nothing done twice when resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="4.57", reason="the text encoder is a Qwen3")

from miniature import __main__ as command
from miniature import stages
from miniature.measure import check
from miniature.train import together
from miniature.train.training import Options

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("one_thread")


class Work:
    """Stands for the stages: notes who began and ended, leaves their files."""

    def __init__(self, out: Path, fails: str = "", unfinished: str = "") -> None:
        self.out, self.fails, self.unfinished = out, fails, unfinished
        self.events: list[tuple[str, str]] = []
        self.together = threading.Barrier(2)

    def __call__(self, stage: str, stop_after: float | None) -> bool:
        self.events.append(("begin", stage))
        if stage != self.unfinished:
            (self.out / f"{stage}.json").write_text("{}", encoding="utf-8")
        self.events.append(("end", stage))
        return stage != self.fails

    @property
    def begun(self) -> set[str]:
        return {stage for what, stage in self.events if what == "begin"}


@pytest.mark.parametrize("side_by_side", [True, False])
def test_a_stage_begins_when_what_it_needs_has_ended(tmp_path, side_by_side):
    work = Work(tmp_path)
    ended = together.run(Options(tmp_path), work, side_by_side)
    assert set(ended) == set(together.NEEDS) == set(stages.STAGES)
    for stage, needed in together.NEEDS.items():
        for other in needed:
            assert work.events.index(("end", other)) < work.events.index(("begin", stage))
    lines = [json.loads(line) for line in (tmp_path / "log_all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["ended"] for line in lines} == set(together.NEEDS)


def test_what_the_stages_read_of_each_other_is_what_they_wait_for():
    def all_needed(stage: str) -> set[str]:
        return set(together.NEEDS[stage]).union(*(all_needed(other) for other in together.NEEDS[stage]))

    assert all_needed("dit") == {"text", "vae", "judge"}
    assert all_needed("assemble") == {"text", "vl", "vae", "judge", "dit"}
    assert set(check.STAGES) <= all_needed("check")


def test_stages_that_do_not_need_each_other_run_at_the_same_time(tmp_path):
    work = Work(tmp_path)

    def meeting(stage: str, stop_after: float | None) -> bool:
        if stage in ("text", "vae"):
            work.together.wait(timeout=30)  # breaks, and so fails the test, if the other never comes
        return work(stage, stop_after)

    together.run(Options(tmp_path), meeting, side_by_side=True)


@pytest.mark.parametrize("how", ["fails", "unfinished"])
def test_what_needs_a_stage_that_did_not_end_does_not_begin_and_all_else_does(tmp_path, how):
    work = Work(tmp_path, **{how: "vl"})
    with pytest.raises(SystemExit, match="still to do: vl, assemble, answers, check; go on with --resume"):
        together.run(Options(tmp_path), work, side_by_side=True)
    assert work.begun == {"text", "vl", "vae", "judge", "dit"}


def test_resuming_leaves_out_what_has_ended_and_starting_anew_does_not(tmp_path):
    with pytest.raises(SystemExit):
        together.run(Options(tmp_path), Work(tmp_path, unfinished="dit"), side_by_side=False)
    again = Work(tmp_path)
    together.run(Options(tmp_path, resume=True), again, side_by_side=False)
    assert again.begun == {"dit", "assemble", "answers", "check"}
    anew = Work(tmp_path)
    together.run(Options(tmp_path), anew, side_by_side=False)
    assert anew.begun == set(together.NEEDS)


def test_when_the_time_of_a_call_is_up_no_further_stage_begins(tmp_path):
    options, given = Options(tmp_path, stop_after=3600.0), []

    def work(stage: str, stop_after: float | None) -> bool:
        given.append(stop_after)
        return Work(tmp_path)(stage, stop_after)

    together.run(options, work, side_by_side=False)
    assert all(0 < seconds <= 3600 for seconds in given)
    assert given == sorted(given, reverse=True)
    late = Work(tmp_path)
    with pytest.raises(SystemExit, match="text, vae, vl"):
        together.run(replace(options, stop_after=0.0), late, side_by_side=False)
    assert not late.begun


def test_a_stage_in_a_process_of_its_own_does_its_work_or_tells_that_it_failed(tmp_path, capfd):
    chosen = command.parser().parse_args(["all", "--toy", "--out", str(tmp_path), "--device", "cpu"])
    assert together.in_a_process_of_its_own(chosen, "text", None)
    assert json.loads((tmp_path / "text.json").read_text(encoding="utf-8"))["steps"] == stages.TOY_STEPS["text"]
    assert not together.in_a_process_of_its_own(chosen, "no such stage", None)
    assert "no such stage" in capfd.readouterr().err


def test_the_command_itself_runs_stages_in_processes_of_their_own(tmp_path):
    """In a fresh interpreter, where the command is ``__main__``, which a child of a package's does not import."""
    arguments = ["miniature", "all", "--toy", "--out", str(tmp_path), "--stop-after", "1"]
    script = (
        "import runpy, sys, torch\n"
        "from miniature.train.training import Options\n"
        "Options.pick_device = lambda self: torch.device('cuda')\n"  # in the parent only: its children see the CPU
        f"sys.argv = {arguments}\n"
        "runpy.run_module('miniature', run_name='__main__', alter_sys=True)\n"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert "still to do: " in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    for stage in ("text", "vae"):
        assert (tmp_path / f"log_{stage}.jsonl").is_file(), ended.stderr
