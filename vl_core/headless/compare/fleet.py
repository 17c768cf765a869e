"""Work on a Ray cluster: one actor per GPU that holds the models; Ray does the scheduling and starts what dies anew."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...steering.settings import Settings
from ...steering.sweep import Cell
from ...zimage import checks
from .painter import Painted, Painter
from .study import Models

INSTALL = "pip install ray"
NICENESS = "RAY_worker_niceness"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # Ray sets the first to num_cpus where nobody says another


class Worker(Painter):
    """A painter as Ray's actor."""

    def process(self) -> int:
        """Its process number, for people who want to watch it."""
        return os.getpid()


def paint_on_ray(
    address: str, workers: int, models: Models, pictures: Mapping[str, Sequence[Tensor]], together: Sequence[Settings],
    cells: Sequence[Cell], on_start: Callable[[list], None] = lambda actors: None,
) -> Iterator[Painted]:
    """Every cell's picture, as they are finished; see :func:`on_ray`."""
    return on_ray(
        address, workers, Worker, (models, pictures, together), lambda worker, cell: worker.paint.remote(cell), cells,
        on_start,
    )


def on_ray(
    address: str, workers: int, kind: type, arguments: Sequence[Any], task: Callable[[Any, Any], Any],
    items: Sequence[Any], on_start: Callable[[list], None] = lambda actors: None, *, ordered: bool = False,
) -> Iterator[Any]:
    """What actors make of the items.

    Args:
        address … arguments: see :func:`crew`.
        task, items, ordered: see :func:`shared_out`.
        on_start: called with the actors' handles.

    Raises:
        ImportError: if Ray is not installed. Errors of a task are raised as they are.
    """
    with crew(address, workers, kind, arguments, len(items)) as actors:
        on_start(actors)
        yield from shared_out(actors, task, items, ordered=ordered)


@contextmanager
def crew(
    address: str, workers: int, kind: type, arguments: Sequence[Any], most: int | None = None, *,
    threads: int | None = None, calls: int = 1, stored: bool = True,
) -> Iterator[list[Any]]:
    """Handles of actors that live while the block lasts.

    Args:
        address: "local" for a cluster of this machine's own, "auto" for the one running here, or its address. Where
            this process is on a cluster already, that one is used and stays.
        workers: how many actors; 0 for one per GPU of the cluster, or one where there is none. At most ``most``.
        kind, arguments: the actors' class and what it is made with.
        threads: that each computes with; as many as this process by default, so what comes back is what it would have
            made itself on a machine of the same kind.
        calls: that each is at, at a time.
        stored: ``arguments`` lie in Ray's store, once for all actors; else they go with each, which suits small ones:
            Ray warns that what was stored may be lost when an actor is started again.

    Raises:
        ImportError: if Ray is not installed.
    """
    try:
        checks.require_packages("ray")
    except ImportError as error:
        raise ImportError(f"--ray: needs Ray. Install it with: {INSTALL}") from error
    import ray

    # Sums over threads round by how many there are.
    environment = dict.fromkeys(THREADS, str(threads or torch.get_num_threads()))
    actors: list[Any] = []
    ours = not ray.is_initialized()
    if address == "local":  # else its workers give way to whatever runs beside them, as this process does not
        os.environ.setdefault(NICENESS, "0")
    if ours:
        ray.init(None if address == "local" else address, log_to_driver=False)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = workers or gpus or 1
        # A worker that dies is started again and what it was at done again, however often.
        actor = ray.remote(kind).options(
            num_gpus=min(1.0, gpus / count) if gpus else 0, num_cpus=1, max_restarts=-1, max_task_retries=-1,
            max_concurrency=calls, runtime_env={"env_vars": environment},
        )
        given = [ray.put(one) for one in arguments] if stored else arguments
        actors += [actor.remote(*given) for _ in range(count if most is None else min(count, most))]
        yield actors
    finally:
        if ours:
            ray.shutdown()
        else:
            for one in actors:
                ray.kill(one)


def shared_out(
    actors: Sequence[Any], task: Callable[[Any, Any], Any], items: Sequence[Any], *, ordered: bool = False,
    ahead: int = 1,
) -> Iterator[Any]:
    """What actors make of the items.

    An item goes to the first actor that has room, and the last ones to whoever has nothing else, so that a slower actor
    holds up no other and all end together.

    Args:
        task: from an actor's handle and an item to Ray's promise of a result.
        ordered: results in the items' order; else as they are finished.
        ahead: items that are with each actor at a time; with two it never waits for this process.

    Errors of a task are raised as they are.
    """
    import ray
    from ray.exceptions import RayTaskError

    left, load = deque(enumerate(items)), [0] * len(actors)
    given: dict[Any, tuple[int, int]] = {}  # by promise the numbers of its item and its actor
    made: dict[int, Any] = {}

    def hand_out() -> None:
        for full in range(ahead):
            for number, actor in enumerate(actors):
                if left and load[number] == full and (full == 0 or len(left) > len(actors)):
                    place, item = left.popleft()
                    given[task(actor, item)] = place, number
                    load[number] += 1

    hand_out()
    due = 0
    while given:
        (promise,), _ = ray.wait(list(given))
        place, number = given.pop(promise)
        load[number] -= 1
        hand_out()
        made[place if ordered else due] = promise
        while due in made:
            try:
                found = ray.get(made.pop(due))
            except RayTaskError as error:
                raise error.cause from error
            due += 1
            yield found


def ask_all(actors: Sequence[Any], method: str, *arguments: Any) -> list[Any]:
    """What each says when its ``method`` is called; its errors are raised as they are."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get([getattr(actor, method).remote(*arguments) for actor in actors])
    except RayTaskError as error:
        raise error.cause from error
