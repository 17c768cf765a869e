"""A worker of an evaluation's cluster has one model at a time, and finds its way again after it died."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from vl_core.headless.evaluate import work
from vl_core.headless.evaluate.turns import Room


class Loaders:
    """Of two models that are no more than their names; ``loaded`` says in which order they came."""

    def __init__(self):
        self.models, self.loaded = SimpleNamespace(), []

    def small(self):
        return False

    def painter(self):
        self.loaded.append("painter")
        return "painter"

    def vision(self):
        self.loaded.append("vision")
        return SimpleNamespace(forget=lambda: self.loaded.append("forgotten"))


class Tool:
    def __init__(self, models, model, shares):
        self.model, self.shares = model, shares

    def paint(self, *given):
        self.shares.add({"steps": 2.0})
        return self.model, given

    def ready(self, picture, queries):
        return picture, queries

    def ask(self, asked, queries):
        return asked, queries


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.setattr(work, "TOOLS", {"painter": Tool, "vision": Tool})
    return work.Worker(Loaders())


def test_a_turn_loads_its_model_once_and_the_next_one_gives_it_back(worker):
    worker.begin("painter")
    worker.begin("painter")
    assert worker.paint("jobs", (0.0, 1.0), None) == ("painter", ("jobs", (0.0, 1.0), None))
    worker.begin("vision")
    assert worker.ask_about(["a", "b"], ["x", "y"]) == ([("a", "x"), ("b", "y")], ["x", "y"])
    worker.end()
    assert worker.turns.loaders.loaded == ["painter", "vision", "forgotten"]
    assert worker.tool is None and not worker.turns._here


def test_started_again_in_the_middle_of_a_turn_it_loads_what_is_asked_of_it(worker):
    assert worker.paint("jobs")[0] == "painter"
    assert worker.ask_about(["a"], ["x"])[0] == [("a", "x")]
    assert worker.turns.loaders.loaded == ["painter", "vision"]


def test_the_end_of_no_turn_is_nothing(worker):
    assert worker.end() == (0, {})
    worker.begin("painter")
    worker.end()
    worker.end()
    worker.begin("painter")
    assert worker.turns.loaders.loaded == ["painter", "painter"]


def test_the_end_of_a_turn_tells_what_its_work_took(worker):
    worker.paint("jobs")
    worker.paint("jobs")
    assert worker.end() == (0, {"steps": 4.0})
    assert worker.end() == (0, {})


def test_a_batch_is_laid_out_while_another_is_on_the_gpu_which_has_one_at_a_time(worker):
    """Both calls pass the barrier while laying out; two at once on the GPU would be seen."""
    both, inside, most = threading.Barrier(2, timeout=20), [], []

    class Slow(Tool):
        def ready(self, picture, queries):
            both.wait()
            return picture

        def ask(self, asked, queries):
            inside.append(asked)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(asked)
            return asked

    work.TOOLS["vision"] = Slow
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(worker.ask_about, [["a"], ["b"]], [["x"], ["y"]])
    assert [*found] == [["a"], ["b"]]
    assert most == [1, 1]
    assert worker.turns.loaders.loaded == ["vision"]


@pytest.mark.parametrize(("fit", "sizes"), [
    (9, [7]), (3, [7, 3, 3, 1]), (2, [7, 3, 1, 1, 1, 1, 1, 1, 1]), (1, [7, 3, 1, 1, 1, 1, 1, 1, 1]),
])
def test_where_memory_runs_out_fewer_are_acted_on_from_there_on(fit, sizes, caplog):
    room, tried = Room(), []

    def act(items):
        tried.append(len(items))
        if len(items) > fit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [item * item for item in items]

    assert room(act, range(7)) == [item * item for item in range(7)]
    assert tried == sizes
    tried.clear()
    assert room(act, range(2)) == [0, 1]
    assert tried == ([1, 1] if sizes[-1] == 1 and fit < 3 else [2])
    said = [f"Out of memory with {one} pictures at a time: {one // 2} from here on." for one in (7, 3) if one > fit]
    assert caplog.messages == said


def test_one_that_is_too_much_is_an_error():
    def act(items):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Room()(act, [1, 2])
    assert Room()(act, []) == []


def test_paintings_and_answers_are_the_same_where_memory_is_short(monkeypatch):
    """Of three at a time one is painted alone, then all are."""
    shares = work.Shares()
    models = SimpleNamespace(steps=1, guidance=0.0, width=8, height=8)

    def sample(pipeline, jobs, **options):
        if len(jobs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.stack([torch.full((8, 8, 3), job) for job in jobs])

    monkeypatch.setattr(work, "sample_many", sample)
    monkeypatch.setattr(work, "decode_each", lambda pipeline, latents: latents.to(torch.uint8))
    found, seconds = work.Brush(models, None, shares).paint([3, 1, 2], (0.0, 1.0), None)
    assert [int(one[0, 0, 0]) for one in found] == [3, 1, 2] and seconds > 0

    def answer(encoder, asked):
        if len(asked) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return asked

    monkeypatch.setattr(work, "answer_each", answer)
    monkeypatch.setattr(work, "_row_of", lambda queries, told: (queries, told))
    assert work.Asker(models, None, shares).ask(["a", "b", "c"], [1, 2, 3])[0] == [(1, "a"), (2, "b"), (3, "c")]
