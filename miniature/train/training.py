"""What every stage shares: options, a budget of seconds, schedules, checkpoints that survive kill -9, logs."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vl_core.states.files import write_whole

from .models import REAL, TOY, Sizes

WARM_UP = 150  # steps
FLOOR = 0.02  # of the learning rate at the end
FIRST_STEPS_FREE = 3  # steps before the clock starts: compiling and autotuning are no training time


Rate = float | Callable[[float], float]


@dataclass(frozen=True)
class Options:
    """How a stage is run.

    Attributes:
        out: folder of the run: checkpoints, weights, logs, tokenizer.
        seconds: training time of the stage; preparing data comes on top and is logged.
        steps: if given, the budget in steps instead; then a run is exactly repeatable on one device.
        seed: of everything drawn.
        resume: go on from the stage's checkpoint; without one, start.
        device: "cuda", "cpu" …; "auto" takes a GPU if there is one.
        toy: tiny models and data.
        compile: torch.compile the DiT's blocks (falls back to eager if that fails or is slower).
        checkpoint_seconds: how often a checkpoint is written, and so how much a kill loses.
        joint: last share of the VL stage in which its language model learns too, slowly; 0 keeps it frozen.
        models: where the assembled folders are; in the run's folder if not given.
        matmul: precision of float32 products, as ``torch.set_float32_matmul_precision`` takes it.
        stop_after: end this call after so many seconds, data preparation included; --resume goes on from there.
    """

    out: Path
    seconds: float = 60.0
    steps: int | None = None
    seed: int = 0
    resume: bool = False
    device: str = "auto"
    toy: bool = False
    compile: bool = True
    checkpoint_seconds: float = 60.0
    joint: float = 0.15
    stop_after: float | None = None
    models: Path | None = None
    matmul: str = "high"
    started: float = field(default_factory=time.monotonic)

    @property
    def sizes(self) -> Sizes:
        return TOY if self.toy else REAL

    def pick_device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def report(self, name: str) -> Path:
        """Where a report goes: beside the models' folder if that was given, else into the run's."""
        return (self.out if self.models is None else self.models.parent) / name

    def size(self, real: int, toy: int) -> int:
        return toy if self.toy else real


def log(options: Options, stage: str, **figures: Any) -> None:
    """One line to the screen and to ``log_STAGE.jsonl``."""
    shown = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items())
    print(f"{stage}: {shown}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / f"log_{stage}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": stage, **figures}) + "\n")


def write_json(path: Path, content: Any) -> None:
    """The file appears whole or not at all."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def measured_with(command: str, device: torch.device) -> dict[str, str]:
    """What every file of figures carries: the command, the machine and the date."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    if device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(device)}, {machine}"
    today = datetime.now(timezone.utc).date().isoformat()
    return {"command": f"python -m miniature {command}", "machine": machine, "torch": torch.__version__, "date": today}


def begin(options: Options) -> torch.device:
    """Seed everything and choose the device."""
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    torch.set_float32_matmul_precision(options.matmul)
    torch.backends.cudnn.benchmark = True
    return options.pick_device()


def in_processes(work: Callable, jobs: Sequence[tuple], serial_below: int = 5) -> list:
    """``work(*job)`` for every job, in order, in worker processes where the platform can fork."""
    if len(jobs) < serial_below or "fork" not in multiprocessing.get_all_start_methods():
        return [work(*job) for job in jobs]
    context = multiprocessing.get_context("fork")
    workers = max(1, min(len(jobs), (os.cpu_count() or 2) - 1))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, *zip(*jobs, strict=True)))


def cosine(progress: float) -> float:
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass
class Training:
    """One stage's loop: budget, schedule, checkpoints, log.

    ``for step in training.steps():`` gives the step's number until the budget is spent, sets the learning rates
    before it, and after it logs and saves now and then.

    Attributes:
        modules: what a checkpoint holds besides the optimizer, by name.
        rates: peak learning rate of each of the optimizer's groups, a number or a function of the progress.
        notes: figures the loop leaves for the log (losses: tensors are read only when logged).
    """

    options: Options
    stage: str
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    rates: Sequence[Rate]
    log_every: int = 100
    step: int = 0
    elapsed: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.options.out / f"{self.stage}.ckpt"

    @property
    def done(self) -> bool:
        """Whether the budget is spent; not so after ``stop_after``."""
        return self.progress >= 1

    @property
    def progress(self) -> float:
        """0 to 1 of the budget."""
        if self.options.steps is not None:
            return min(1.0, self.step / max(1, self.options.steps))
        return min(1.0, self.elapsed / max(1e-6, self.options.seconds))

    def steps(self) -> Iterator[int]:
        """Steps until the budget is spent; picks up the checkpoint first if asked to."""
        if self.options.resume and self.path.is_file():
            self.load()
            log(self.options, self.stage, resumed_at=self.step, elapsed=self.elapsed)
        last_saved = last_logged = time.monotonic()
        logged_step = first = self.step
        while self.progress < 1:
            before = time.monotonic()
            warm = min(1.0, (self.step + 1) / (WARM_UP if self.options.steps is None else 5))
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                peak = rate(self.progress) if callable(rate) else rate
                group["lr"] = peak * warm * cosine(self.progress)
            yield self.step
            self.step += 1
            if self.step - first <= FIRST_STEPS_FREE:
                self._wait()
            else:
                self.elapsed += time.monotonic() - before
            now = time.monotonic()
            if self.step % self.log_every == 0:
                self._log((self.step - logged_step) / max(1e-6, now - last_logged))
                last_logged, logged_step = now, self.step
            if now - last_saved >= self.options.checkpoint_seconds:
                self.save()
                last_saved = last_logged = time.monotonic()
                logged_step = self.step
            if self.options.stop_after is not None and now - self.options.started > self.options.stop_after:
                break
        self.save()
        if not self.done:
            log(self.options, self.stage, stopped_at=self.step, progress=self.progress, note="go on with --resume")

    def update(self, loss: torch.Tensor, parameters: Sequence[nn.Parameter], clip: float = 1.0) -> None:
        """Back-propagate and step; a step whose gradient is not finite is left out and counted."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        # One read a step also keeps the clock honest: without it the GPU runs behind.
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            self.notes["skipped"] = self.notes.get("skipped", 0) + 1
        self.notes["loss"] = loss.detach()

    def finish(self, parameters: Iterable[nn.Parameter], figures: dict[str, Any]) -> dict[str, Any]:
        """Log the stage's closing figures and keep them in ``STAGE.json``."""
        log(self.options, self.stage, steps=self.step, parameters=sum(p.numel() for p in parameters), **figures)
        write_json(self.options.out / f"{self.stage}.json", {"steps": self.step, **figures})
        return figures

    def save(self) -> None:
        """Write the checkpoint; the old one stays whole until the new one is."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(), "step": self.step, "elapsed": self.elapsed,
            "skipped": self.notes.get("skipped", 0), "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        partial = self.path.with_suffix(".ckpt.part")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def load(self) -> None:
        """Go back to where the checkpoint was written."""
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed, self.notes["skipped"] = state["step"], state["elapsed"], state["skipped"]
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["rng_cuda"]:
            torch.cuda.set_rng_state_all(state["rng_cuda"])

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _log(self, speed: float) -> None:
        share = max(1e-6, self.progress)
        left = self.options.seconds - self.elapsed
        if self.options.steps is not None:
            left = (self.options.steps - self.step) / max(1e-6, speed)
        figures = {
            name: float(value) if isinstance(value, torch.Tensor) else value for name, value in self.notes.items()
        }
        log(
            self.options, self.stage, step=self.step, elapsed=round(self.elapsed, 1), steps_per_s=round(speed, 2),
            eta_s=round(max(0.0, left), 1), expected_steps=round(self.step / share), **figures,
        )


class Average:
    """Exponential moving average of a module's weights, the memory growing with the steps up to ``decay``."""

    def __init__(self, module: nn.Module, average: nn.Module, decay: float = 0.999) -> None:
        average.load_state_dict(module.state_dict())
        average.requires_grad_(False)
        self.module, self.average, self.decay = module, average, decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 30))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), 1 - decay)
