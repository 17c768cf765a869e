"""Descriptions that were written once, kept by what they depend on: in memory, and on disk if asked.

A key says everything a description depends on, so one is right or it is not found: nothing is ever taken out by hand.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ..states.files import write_whole
from .cache import digest
from .sampling import Sampling
from .writing import Description

log = logging.getLogger(__name__)

MOST = 512  # descriptions in memory, half a kilobyte each
MOST_FILES = 10000


def description_key(
    encoder: str, instruction: str, pictures: Sequence[Tensor], *, max_tokens: int, budget: int,
    sampling: Sampling | None = None, seed: int = 0, system_prompt: str = "",
) -> bytes:
    """What a description depends on, in 32 bytes.

    Args:
        encoder: what tells its weights from all others, such as a fingerprint; where descriptions lie on disk it must
            outlive the process.
        pictures: told together; their content counts, and their order.
        instruction … system_prompt: see :func:`~.writing.describe`. A seed counts only where chance has a part.
    """
    sampling = sampling or Sampling()
    chance = {**asdict(sampling), "seed": seed} if sampling.draws else {"penalty": sampling.repetition_penalty}
    rest = json.dumps([max_tokens, budget, chance], sort_keys=True)
    return digest(encoder, system_prompt, instruction, rest, *pictures)


class WrittenStore:
    """A thread-safe least-recently-used store of descriptions.

    Attributes:
        folder: where they lie on disk as well, one JSON file each; None for memory alone.
        most, most_files: how many are kept in memory and on disk; on disk the oldest files go first.
    """

    def __init__(self, folder: Path | None = None, most: int = MOST, most_files: int = MOST_FILES) -> None:
        """Raise ValueError if nothing could be kept."""
        if most < 1 or most_files < 1:
            raise ValueError(f"descriptions: expected room for at least 1, got {most} in memory, {most_files} on disk.")
        self.folder, self.most, self.most_files = folder, most, most_files
        self._entries: OrderedDict[bytes, Description] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Description | None:
        """The description kept under ``key`` (:func:`description_key`), None if there is none that can be read."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
            found = self._read(key)
            if found is not None:
                self._remember(key, found)
            return found

    def put(self, key: bytes, description: Description) -> None:
        """Keep a description. A disk that takes none is said in the log, and memory keeps it all the same."""
        with self._lock:
            self._remember(key, description)
            if self.folder is not None:
                try:
                    self._write(self.folder, key, description)
                except OSError as error:
                    log.warning("The description is not kept on disk: %s", error)

    def __len__(self) -> int:
        """Descriptions in memory."""
        return len(self._entries)

    def _remember(self, key: bytes, description: Description) -> None:
        self._entries[key] = description
        self._entries.move_to_end(key)
        while len(self._entries) > self.most:
            self._entries.popitem(last=False)

    def _read(self, key: bytes) -> Description | None:
        path = None if self.folder is None else self.folder / f"{key.hex()}.json"
        if path is None or not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return Description(**{**content, "notes": tuple(content["notes"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s: not a kept description, written anew: %s", path.name, error)
            return None

    def _write(self, folder: Path, key: bytes, description: Description) -> None:
        write_whole(folder / f"{key.hex()}.json", json.dumps(asdict(description), ensure_ascii=False))
        files = list(folder.glob("*.json"))
        if len(files) > self.most_files:
            files.sort(key=lambda file: file.stat().st_mtime_ns)
            for file in files[: len(files) - self.most_files]:
                file.unlink(missing_ok=True)
