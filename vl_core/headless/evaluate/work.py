"""What is done with models: painting and asking, in this process or as Ray's actors; measuring has processes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...encoder.judging import Answer, Ready, answer_each, ready
from ...encoder.qwen3vl import Qwen3VLEncoder
from ...pictures import read_picture
from ...reports.artifacts import measure_artifacts
from ...reports.judge import Query, questions_of, shares_of
from ...zimage.painting import Job, decode_each, sample_many
from ..compare.runner import LEAST_SIDE, measure, rounded
from ..compare.study import Models
from .beside import Shares
from .turns import Loaders, Room, Turns

STEPS, DECODING, ASKING = "steps", "decoding", "asking"


class Brush:
    """Paints batches.

    Args:
        pipeline: Z-Image without its text encoder. shares: what counts the time.
    """

    def __init__(self, models: Models, pipeline: Any, shares: Shares) -> None:
        self.models, self.pipeline, self.shares = models, pipeline, shares
        self.room = Room()

    def paint(
        self, jobs: Sequence[Job], window: tuple[float, float], unwanted: Tensor | None
    ) -> tuple[list[np.ndarray], float]:
        """Pictures uint8 ``(H, W, 3)``, and the seconds that each took.

        Where memory runs out they are painted by fewer at a time, the same up to rounding.
        """
        start = time.perf_counter()
        found = self.room(lambda some: self._painted(some, window, unwanted), jobs)
        return found, (time.perf_counter() - start) / len(jobs)

    def _painted(
        self, jobs: Sequence[Job], window: tuple[float, float], unwanted: Tensor | None
    ) -> list[np.ndarray]:
        models = self.models
        with self.shares(STEPS):
            latents = sample_many(
                self.pipeline, jobs, steps=models.steps, guidance=models.guidance, width=models.width,
                height=models.height, unwanted=unwanted, window=window,
            )
            if latents.is_cuda:
                torch.cuda.synchronize(latents.device)  # once a batch, whose last step is waited for anyway
        with self.shares(DECODING):
            return list(decode_each(self.pipeline, latents).cpu().numpy())


class Asker:
    """Asks Qwen3-VL about pictures; ``shares`` counts the time."""

    def __init__(self, models: Models, encoder: Qwen3VLEncoder, shares: Shares) -> None:
        self.models, self.encoder, self.shares = models, encoder, shares
        self.room = Room()

    def ready(self, pixels: Tensor, queries: Sequence[Query]) -> Ready:
        """What of asking needs no GPU."""
        return ready(self.encoder, pixels, questions_of(queries), budget=self.models.image_tokens)

    def ask(
        self, asked: Sequence[Ready], queries: Sequence[Sequence[Query]]
    ) -> tuple[list[dict[str, list[float]]], float]:
        """Of each picture, by each query's key, its share and the mass of its answers; and the seconds that each
        took."""
        start = time.perf_counter()
        with self.shares(ASKING):
            told = self.room(lambda some: answer_each(self.encoder, some), asked)
            found = [_row_of(*both) for both in zip(queries, told, strict=True)]
        return found, (time.perf_counter() - start) / len(asked)


class Worker:
    """What a cluster's actor does: as an evaluation in one process, with one model at a time.

    It may be called from several threads: what one call gets, lays out and sends is done beside another's work on the
    GPU.
    """

    def __init__(self, loaders: Loaders) -> None:
        self.turns, self.shares = Turns(loaders, loaders.small()), Shares()
        self.turn, self.name = ExitStack(), ""
        self.tool: Any = None
        self._gpu = RLock()

    def begin(self, name: str) -> None:
        """Load the model ``name`` unless it is there: a worker that died is started again without one."""
        self._with(name)

    def end(self) -> tuple[int, dict[str, float]]:
        """Give the model's memory back; the most bytes of a GPU that its turns took, and the seconds of this one."""
        with self._gpu:
            self.tool = None
            self.turn.close()
            name, self.name = self.name, ""
            return self.turns.peak.get(name, 0), self.shares.take()

    def paint(self, *arguments: Any) -> tuple[list[np.ndarray], float]:
        """:meth:`Brush.paint`."""
        tool = self._with("painter")
        with self._gpu:
            return tool.paint(*arguments)

    def ask_about(
        self, pictures: Sequence[Tensor], queries: Sequence[Sequence[Query]]
    ) -> tuple[list[dict[str, list[float]]], float]:
        """:meth:`Asker.ask` of pictures as they are."""
        tool = self._with("vision")
        asked = [tool.ready(*both) for both in zip(pictures, queries, strict=True)]
        with self._gpu:
            return tool.ask(asked, queries)

    def _with(self, name: str) -> Any:
        with self._gpu:
            if self.name != name:
                self.end()
                model = self.turn.enter_context(self.turns(name))
                self.tool, self.name = TOOLS[name](self.turns.loaders.models, model, self.shares), name
            return self.tool


TOOLS = {"painter": Brush, "vision": Asker}


def _row_of(queries: Sequence[Query], told: Sequence[Answer]) -> dict[str, list[float]]:
    shares = shares_of(queries, lambda _: told)
    return {key: [float(f"{value:.6g}") for value in both] for key, both in shares.items()}


def measure_file(picture: str, baseline: str, reference: str) -> dict[str, Any]:
    """Artifacts of a painting, what is worse than in the words alone, and its likeness to its reference.

    Args:
        baseline, reference: "" for the words alone, which have neither.
    """
    seen = read_picture(Path(picture))
    if not reference:
        large = min(seen.shape[:2]) >= LEAST_SIDE
        return {"artifacts": rounded(asdict(measure_artifacts(seen))) if large else None, "worse": [], "fidelity": {}}
    return measure(seen, read_picture(Path(baseline)), read_picture(Path(reference)))


def measuring(device: torch.device) -> Executor | None:
    """Processes that measure beside the painting; None where there are no cores to spare.

    Beside a GPU there always is one: whoever launches its work leaves most of a core.
    """
    cores = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 17)
    if cores <= 2 and device.type == "cpu":
        return None
    # Spawned: a process that has used a GPU must not be forked.
    return ProcessPoolExecutor(max(1, min(cores - 1, 8)), get_context("spawn"), torch.set_num_threads, (1,))
