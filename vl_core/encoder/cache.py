"""What was computed before, kept by content: a least-recently-used store with a bound in bytes.

A key says everything a value depends on, so an entry is right or it is not found; nothing is ever invalidated by hand
except to give memory back.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..states.remembered import LEAST, remembered

LIMIT_VARIABLE = "ZIMAGE_VL_CACHE_MIB"  # environment: how much an encoder may keep, 0 for nothing
DEFAULT_LIMIT = 512 << 20  # three full-size pictures of Qwen3-VL-4B in bf16, 150 MiB each at layer -6


def default_limit() -> int:
    """Bytes an encoder may keep unless it is told otherwise: ``ZIMAGE_VL_CACHE_MIB``, or 512 MiB.

    Raises:
        ValueError: if the variable is set to something that is not a number of MiB.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT
    if not text.isdecimal():
        raise ValueError(f"{LIMIT_VARIABLE}: expected a number of MiB, 0 to keep nothing, got {text!r}.")
    return int(text) << 20


def digest(*parts: Tensor | bytes | str) -> bytes:
    """SHA-256 of tensors (their shape, dtype and values), bytes and strings, in order.

    Of a large tensor the values' own hash is taken, which is remembered with the tensor.
    """
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            state.update(f"{tuple(part.shape)} {part.dtype}".encode())
            large = part.numel() >= LEAST
            state.update(remembered(part, "digest", partial(_hash, part)) if large else _bytes(part))
        else:
            data = part.encode() if isinstance(part, str) else part
            state.update(len(data).to_bytes(8, "little") + data)
    return state.digest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


def _hash(tensor: Tensor) -> bytes:
    return hashlib.sha256(_bytes(tensor)).digest()


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes the tensors keep from being freed: each storage once, all of it even where a tensor is a part of it."""
    return sum({(one := tensor.untyped_storage()).data_ptr(): one.nbytes() for tensor in tensors}.values())


def has_room(tensors: Iterable[Tensor], size: int | None = None) -> bool:
    """Whether the device of ``tensors`` has ``size`` bytes free, else what they take; without a GPU it always has."""
    tensors = list(tensors)
    if not tensors or tensors[0].device.type != "cuda":
        return True
    device = tensors[0].device
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + idle >= (stored_bytes(tensors) if size is None else size)


class ByteCache:
    """A thread-safe least-recently-used store whose values together take at most ``limit`` bytes.

    Attributes:
        limit: bytes; 0 keeps nothing and finds nothing.
        hits, misses: how often :meth:`get` found something and did not.
    """

    def __init__(self, limit: int) -> None:
        """Raise ValueError for a negative limit."""
        if limit < 0:
            raise ValueError(f"cache: expected a limit of at least 0 bytes, got {limit}.")
        self.limit = limit
        self.hits = self.misses = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        """The value kept under ``key``, None if there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: Hashable, value: Any, tensors: Iterable[Tensor]) -> bool:
        """Keep a value that holds ``tensors``, dropping the least recently used ones to make room.

        Returns:
            whether it is kept: what is larger than the limit, or than the memory its device has free, is not.
        """
        tensors = list(tensors)
        size = stored_bytes(tensors)
        if size > self.limit or not self.limit or not has_room(tensors):
            return False
        with self._lock:
            self._bytes -= self._entries.pop(key, (None, 0))[1]
            self._entries[key] = value, size
            self._bytes += size
            while self._bytes > self.limit:
                self._bytes -= self._entries.popitem(last=False)[1][1]
        return True

    def take(self, key: Hashable) -> Any | None:
        """What is kept under ``key``, None if there is nothing; it is no longer kept then."""
        with self._lock:
            value, size = self._entries.pop(key, (None, 0))
            self._bytes -= size
            return value

    def clear(self) -> None:
        """Give everything back."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    @property
    def bytes(self) -> int:
        """What the values take now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)
