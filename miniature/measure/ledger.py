"""Every measured row on disk as soon as it is known, so that a stopped bench goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..train.training import Options, measured_with


class Ledger:
    """Rows measured so far, one line each, so that a bench that was stopped goes on where it was.

    ``measured`` is what :func:`measured_with` says of this run; ``also`` are ledgers of runs beside it, read only.
    """

    def __init__(
        self, path: Path, asked: dict[str, Any], resume: bool, measured: dict[str, str], also: Sequence[Path] = ()
    ) -> None:
        self.path, self.rows, self._lock = path, {}, threading.Lock()
        self._now, self._with = measured, {}
        self.asked = json.dumps(asked, sort_keys=True)
        files = [file for file in (*also, path) if file.is_file()] if resume else []  # what is its own goes before
        for line in (line for file in files for line in file.read_text(encoding="utf-8").splitlines()):
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the line that was being written when the bench was stopped
            if row["asked"] == self.asked and "measured" in row:
                self._with[row["key"]] = row["measured"]
                self.rows[row["key"]] = {name: torch.tensor(values) for name, values in row["hits"].items()}
        if not resume:
            path.unlink(missing_ok=True)
        elif path.is_file() and not path.read_bytes().endswith(b"\n"):
            with path.open("ab") as file:  # what comes next is a line of its own
                file.write(b"\n")

    @classmethod
    def of_stage(
        cls, options: Options, stage: str, asked: dict[str, Any], device: torch.device, shard: str = ""
    ) -> Ledger:
        """A stage's. A shard such as "0/4" writes a file of its own, which the whole reads as well: those that run at
        the same time stay out of one another's way. The whole measured anew leaves none of them."""
        name, number = f"{stage.replace('-', '_')}_rows", shard.partition("/")[0]
        also = () if shard else sorted(options.out.glob(f"{name}_*.jsonl"))
        path = options.out / f"{name}{number and f'_{number}'}.jsonl"
        for older in also if not options.resume else ():
            older.unlink()
        return cls(path, asked, options.resume, measured_with(stage, device), also)

    def measured(self, key: str, measure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The row under ``key``, measured if it is not there."""
        if key not in self.rows:
            plain = {name: [round(value, 6) for value in values.tolist()] for name, values in measure().items()}
            self.rows[key] = {name: torch.tensor(values) for name, values in plain.items()}  # as read
            with self._lock, self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps({"asked": self.asked, "key": key, "measured": self._now, "hits": plain}) + "\n")
                self._with[key] = self._now
        return self.rows[key]

    def mostly_with(self) -> dict[str, str]:
        """The command, machine and date of most rows: a bench may be stopped on one machine and go on on another."""
        return max(self._with.values(), key=list(self._with.values()).count)

    def elsewhere(self, key: str) -> dict[str, dict[str, str]]:
        """What a row carries that was not measured with most of them."""
        return {} if self._with[key] == self.mostly_with() else {"measured": self._with[key]}
