"""A study on a Ray cluster: one painter per GPU, a task per cell; Ray does the scheduling and starts what dies anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..sweep import Cell
from . import checks
from .painter import Needs, Painted, Painter
from .study import Models

INSTALL = "pip install ray"


class Worker(Painter):
    """A painter as Ray's actor."""

    def process(self) -> int:
        """Its process number, for people who want to watch it."""
        import os

        return os.getpid()


def paint_on_ray(
    address: str, workers: int, models: Models, pictures: Mapping[str, Sequence[Tensor]], needs: Needs,
    cells: Sequence[Cell], on_start: Any = lambda actors: None,
) -> Iterator[Painted]:
    """Every cell's picture, as they are finished.

    Args:
        address: "local" for a cluster of this machine's own, "auto" for the one running here, or its address.
        workers: how many painters; 0 for one per GPU of the cluster, or one where there is none.
        on_start: called with the actors' handles.

    Raises:
        ImportError: if Ray is not installed. Errors of a cell are raised as they are.
    """
    try:
        checks.require_packages("ray")
    except ImportError as error:
        raise ImportError(f"--ray: needs Ray. Install it with: {INSTALL}") from error
    import ray
    from ray.util import ActorPool

    ray.init(None if address == "local" else address, log_to_driver=False, ignore_reinit_error=True)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = workers or gpus or 1
        # A worker that dies is started again and its cell painted again, however often.
        actor = ray.remote(Worker).options(
            num_gpus=min(1.0, gpus / count) if gpus else 0, num_cpus=1, max_restarts=-1, max_task_retries=-1
        )
        shared = ray.put(pictures)
        actors = [actor.remote(models, shared, needs) for _ in range(min(count, len(cells)))]
        on_start(actors)
        pool = ActorPool(actors)
        yield from pool.map_unordered(lambda worker, cell: worker.paint.remote(cell), cells)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    finally:
        ray.shutdown()
