"""What is kept between runs of one encoder: descriptions, statistics, fits; bounded, and keyed by content.

A key says everything that a value depends on, the weights included, so a value is right or it is not found. Readings
of pictures are kept by the encoder itself (:mod:`~vl_core.encoder.cache`), which knows when its weights change.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from ..encoder.cache import digest

Kept = TypeVar("Kept")
MOST = 256  # values


class Store:
    """The most recently used values; thread-safe.

    Attributes:
        most: how many values are kept at most; 0 keeps nothing.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._values: OrderedDict[tuple[str, bytes], object] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, kind: type[Kept], key: tuple[Tensor | bytes | str, ...], make: Callable[[], Kept]) -> Kept:
        """The value of a kind that was kept under a key, else a new one.

        Args:
            kind: its class. key: all that it depends on; tensors count by their content.
            make: gives a new one; what it raises is raised, and nothing is kept.
        """
        return self.look_up(kind, key, make)[0]

    def look_up(
        self, kind: type[Kept], key: tuple[Tensor | bytes | str, ...], make: Callable[[], Kept]
    ) -> tuple[Kept, bool]:
        """:meth:`get`, and whether it was there before."""
        place = kind.__qualname__, digest(*key)
        with self._lock:
            if place in self._values:
                self._values.move_to_end(place)
                found = self._values[place]
                assert isinstance(found, kind)
                return found, True
        value = make()
        with self._lock:
            self._values[place] = value
            while len(self._values) > self.most:
                self._values.popitem(last=False)
        return value, False

    def clear(self) -> None:
        """Give everything back."""
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        return len(self._values)
