"""What is done with models: painting and asking, in this process or as Ray's actors; measuring has processes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...encoder.qwen3vl import Qwen3VLEncoder
from ...pictures import read_picture
from ...reports.artifacts import measure_artifacts
from ...reports.judge import Query, ask_all
from ...zimage.painting import Job, paint_many
from ..compare.runner import LEAST_SIDE, measure, rounded
from .turns import Loaders


class Brush:
    """Paints batches.

    Args:
        pipeline: Z-Image without its text encoder; loaded if None, as an actor does it.
    """

    def __init__(self, loaders: Loaders, pipeline: Any = None) -> None:
        self.models = loaders.models
        self.pipeline = loaders.painter() if pipeline is None else pipeline

    def paint(
        self, jobs: Sequence[Job], window: tuple[float, float], unwanted: Tensor | None
    ) -> tuple[list[np.ndarray], float]:
        """Pictures uint8 ``(H, W, 3)``, and the seconds that each took."""
        models, start = self.models, time.perf_counter()
        found = paint_many(
            self.pipeline, jobs, steps=models.steps, guidance=models.guidance, width=models.width,
            height=models.height, unwanted=unwanted, window=window,
        )
        return found, (time.perf_counter() - start) / len(jobs)


class Asker:
    """Asks Qwen3-VL about pictures."""

    def __init__(self, loaders: Loaders, encoder: Qwen3VLEncoder | None = None) -> None:
        self.models = loaders.models
        self.encoder = loaders.vision() if encoder is None else encoder

    def ask(self, pixels: Tensor, queries: Sequence[Query]) -> tuple[dict[str, list[float]], float]:
        """By each query's key its share and the mass of its answers, and the seconds that took."""
        start = time.perf_counter()
        found = ask_all(self.encoder, pixels, queries, budget=self.models.image_tokens)
        told = {key: [float(f"{value:.6g}") for value in both] for key, both in found.items()}
        return told, time.perf_counter() - start


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


def measuring() -> Executor | None:
    """Processes that measure beside the painting; None where there are no cores to spare."""
    cores = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 17)
    if cores <= 2:
        return None
    # Spawned: a process that has used a GPU must not be forked.
    return ProcessPoolExecutor(min(cores - 1, 8), get_context("spawn"), torch.set_num_threads, (1,))
