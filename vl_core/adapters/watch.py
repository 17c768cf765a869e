"""A solve that can be stopped: it runs in a thread beside its caller, who is asked meanwhile whether it is wanted.

One eigenvalue problem of 2560 inputs takes seconds on a CPU and never asks anybody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Result = TypeVar("Result")

OFTEN = 0.2  # seconds between two questions


class Unwanted(Exception):
    """Ends what still runs for a caller who is gone."""


def watched(act: Callable[[Callable[[], None]], Result], check: Callable[[], None] | None = None) -> Result:
    """What ``act`` gives; ``check`` is called five times a second meanwhile, and what that raises is raised at once.

    Args:
        act: called with a function that it should call between its steps: once ``check`` has raised, that ends it.
        check: None runs ``act`` where it is called.
    """
    if check is None:
        return act(lambda: None)
    gone, inference, gradients = threading.Event(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def step() -> None:
        if gone.is_set():
            raise Unwanted

    def run() -> Result:  # both modes belong to a thread
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return act(step)

    worker = ThreadPoolExecutor(1, "solve")
    running = worker.submit(run)
    try:
        while not wait([running], OFTEN).done:
            check()
        return running.result()
    finally:
        gone.set()
        worker.shutdown(wait=False)
