"""A solve that is watched: the same result, ended at once when its caller is stopped."""

from __future__ import annotations

import threading

import pytest
import torch

from vl_core.adapters import watch
from vl_core.adapters.ridge import NormalEquations
from vl_core.adapters.space_adapter import fit_space_adapters
from vl_core.adapters.watch import Unwanted, watched

WAIT = 60  # seconds after which a test that hangs fails instead


class Stopped(BaseException):
    """What a host raises when people press Stop is no Exception everywhere."""


def stop() -> None:
    raise Stopped


@pytest.fixture
def stuck(monkeypatch):
    """Every solve waits until its test has seen the stop, then says whether it was told that nobody wants it."""
    go_on, told = threading.Event(), threading.Event()
    solve = NormalEquations.solve

    def wait(self, *arguments, progress=lambda: None, **options):
        go_on.wait(WAIT)
        try:
            progress()
        except Unwanted:
            told.set()
            raise
        return solve(self, *arguments, progress=progress, **options)

    monkeypatch.setattr(NormalEquations, "solve", wait)
    return go_on, told


def test_what_is_watched_gives_what_it_gives_alone():
    matrix = torch.randn(300, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = torch.linalg.eigh(matrix @ matrix.T)[1]
    assert torch.equal(watched(lambda step: torch.linalg.eigh(matrix @ matrix.T)[1], lambda: None), alone)


def test_errors_come_out_as_they_are():
    def fail(step):
        raise ValueError("x: expected another")

    with pytest.raises(ValueError, match="x: expected another"):
        watched(fail, lambda: None)


@pytest.mark.parametrize("inference", [True, False])
def test_the_threads_mode_is_the_callers(inference):
    with torch.inference_mode(inference):
        found = watched(lambda step: (torch.is_inference_mode_enabled(), torch.zeros(1).is_inference()), lambda: None)
    assert found == (inference, inference)


def test_without_a_check_it_runs_where_it_is_called():
    assert watched(lambda step: threading.current_thread()) is threading.current_thread()


def test_the_check_is_asked_again_and_again(monkeypatch):
    monkeypatch.setattr(watch, "OFTEN", 0.01)
    asked, enough = [], threading.Event()

    def check() -> None:
        asked.append(threading.current_thread())
        if len(asked) == 5:
            enough.set()

    assert watched(lambda step: enough.wait(WAIT), check)
    assert set(asked) == {threading.current_thread()}  # a host's Stop belongs to the thread that runs the node


def test_a_space_solve_that_is_stopped_ends_at_once(stuck):
    go_on, told = stuck
    states = dict(zip("abcdefghijkl", torch.randn(12, 9, 4), strict=True))
    with pytest.raises(Stopped):  # while the solve still waits
        fit_space_adapters(
            list(states), lambda prompt: [states[prompt]], lambda prompt: [states[prompt]], layers=[(None, None)],
            check=stop,
        )
    go_on.set()
    assert told.wait(WAIT)
