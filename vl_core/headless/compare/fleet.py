"""Work on a Ray cluster: one actor per GPU that holds the models; Ray does the scheduling and starts what dies anew."""

from __future__ import annotations

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
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # Ray sets the first to num_cpus where nobody says another


class Worker(Painter):
    """A painter as Ray's actor."""

    def process(self) -> int:
        """Its process number, for people who want to watch it."""
        import os

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
    address: str, workers: int, kind: type, arguments: Sequence[Any], most: int | None = None
) -> Iterator[list[Any]]:
    """Handles of actors that live while the block lasts.

    Args:
        address: "local" for a cluster of this machine's own, "auto" for the one running here, or its address. Where
            this process is on a cluster already, that one is used and stays.
        workers: how many actors; 0 for one per GPU of the cluster, or one where there is none. At most ``most``.
        kind, arguments: the actors' class and what it is made with.

    Every worker computes with as many threads as this process, so what comes back is what it would have made itself on
    a machine of the same kind.

    Raises:
        ImportError: if Ray is not installed.
    """
    try:
        checks.require_packages("ray")
    except ImportError as error:
        raise ImportError(f"--ray: needs Ray. Install it with: {INSTALL}") from error
    import ray

    # Sums over threads round by how many there are: workers take as many as would do it here.
    threads = str(torch.get_num_threads())
    actors: list[Any] = []
    ours = not ray.is_initialized()
    if ours:
        ray.init(None if address == "local" else address, log_to_driver=False)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = workers or gpus or 1
        # A worker that dies is started again and what it was at done again, however often.
        actor = ray.remote(kind).options(
            num_gpus=min(1.0, gpus / count) if gpus else 0, num_cpus=1, max_restarts=-1, max_task_retries=-1,
            runtime_env={"env_vars": dict.fromkeys(THREADS, threads)},
        )
        shared = [ray.put(one) for one in arguments]
        actors += [actor.remote(*shared) for _ in range(count if most is None else min(count, most))]
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

    Args:
        task: from an actor's handle and an item to Ray's promise of a result.
        ordered: results in the items' order; else as they are finished.
        ahead: items that are with each actor at a time; with two it never waits for this process, and the last items
            may be shared out less well.

    Errors of a task are raised as they are.
    """
    from ray.exceptions import RayTaskError
    from ray.util import ActorPool

    pool = ActorPool([*actors] * ahead)
    try:
        yield from (pool.map if ordered else pool.map_unordered)(task, list(items))
    except RayTaskError as error:
        raise error.cause from error


def ask_all(actors: Sequence[Any], method: str, *arguments: Any) -> list[Any]:
    """What each says when its ``method`` is called; its errors are raised as they are."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get([getattr(actor, method).remote(*arguments) for actor in actors])
    except RayTaskError as error:
        raise error.cause from error
