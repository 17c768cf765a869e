"""Timing, memory, the machine, and one JSON file per benchmark."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Name = TypeVar("Name")
RESULTS = Path(__file__).with_name("results")


def add_output_argument(parser) -> None:
    parser.add_argument("--out", default=str(RESULTS), metavar="FOLDER", help="where the JSON goes")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], Any], device: torch.device, runs: int = 10, warmup: int = 2) -> float:
    """Median time of one call, everything it started on the device included."""
    return in_turns({"": work}, device, runs, warmup)[""]


def in_turns(
    works: dict[Name, Callable[[], Any]], device: torch.device, runs: int = 10, warmup: int = 2
) -> dict[Name, float]:
    """:func:`milliseconds` of several, one call of each after the other, so that all meet the same machine."""
    for _ in range(warmup):
        for work in works.values():
            work()
    times: dict[Name, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mib(work: Callable[[], Any], device: torch.device) -> float | None:
    """Most memory a call takes on a GPU over what was taken before; None on a CPU."""
    if device.type != "cuda":
        return None
    work()
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference over the norm: of all values."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def worst_token_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The same per token, the largest of them; states ``(L, D)``."""
    difference = (ours.double() - theirs.double()).norm(dim=-1)
    return float((difference / theirs.double().norm(dim=-1)).max())


def machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return {"device": name, "threads": threads, "torch": torch.__version__, "python": platform.python_version()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def shown_command(arguments: Sequence[str]) -> str:
    """The command as anyone can run it: folders of this machine are nobody else's, so they read FOLDER."""
    shown = ["FOLDER" if Path(part).is_absolute() else part for part in arguments]
    return shlex.join(["python", "-m", "benchmarks", *shown])


class Report:
    """Figures of one benchmark: rows of a table, sections that may fail one by one, a JSON file at the end."""

    def __init__(self, name: str, device: torch.device, out: str, **settings: Any) -> None:
        self.name, self.out = name, Path(out)
        self.rows: list[dict[str, Any]] = []
        self.failures: dict[str, str] = {}
        self.head = {
            "benchmark": name, "command": shown_command(sys.argv[1:]),
            "date": datetime.date.today().isoformat(), "machine": machine(device), "settings": settings,
        }

    def add(self, what: str, **values: Any) -> None:
        """A row; numbers are rounded to what they are good for."""
        row = {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in values.items()}
        self.rows.append({"what": what, **row})
        print(f"  {what}: {row}", flush=True)

    def section(self, title: str, work: Callable[[], None]) -> None:
        """Run one part; if it fails the others still count."""
        start = time.perf_counter()
        print(f"== {title}", flush=True)
        try:
            work()
        except Exception:
            self.failures[title] = traceback.format_exc(limit=-3)
            print(self.failures[title], flush=True)
        self._save()  # a run that is cut off keeps what it measured
        print(f"   {time.perf_counter() - start:.1f} s", flush=True)

    def write(self) -> None:
        """Print the table and write ``<out>/<name>.json``."""
        print(table(self.rows), flush=True)
        for title, trace in self.failures.items():
            print(f"FAILED {title}: {trace.strip().splitlines()[-1]}", flush=True)
        print(f"written: {os.path.relpath(self._save())}")

    def _save(self) -> Path:
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{self.name}.json"
        content = {**self.head, "rows": self.rows, "failures": self.failures}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return path


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, columns in the order they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [["" if row.get(column) is None else str(row[column]) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
