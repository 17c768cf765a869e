"""What is done beside the GPU's work, and where an evaluation's time goes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")


class Beside:
    """One thread that acts in the order in which it was asked to, while the caller goes on.

    When the block ends everything was done. What failed is raised at the next :meth:`do` or there, and nothing that was
    to come after it is done any more, so the order of lines in a file stays. If the block itself fails, what was handed
    over before is done nevertheless.

    Args:
        waiting: how many acts may wait for the thread before :meth:`do` waits too.
    """

    def __init__(self, waiting: int) -> None:
        self._waiting = waiting
        self._thread = ThreadPoolExecutor(1)
        self._given: deque[Future] = deque()
        self._failed = False

    def do(self, act: Callable[..., None], *args: Any) -> None:
        """Have ``act`` called with ``args``.

        Raises:
            whatever an earlier act did.
        """
        while self._given and (len(self._given) >= self._waiting or self._given[0].done()):
            self._given.popleft().result()
        self._given.append(self._thread.submit(self._act, act, args))

    def finish(self) -> None:
        """Wait until all is done.

        Raises:
            whatever an act did.
        """
        while self._given:
            self._given.popleft().result()

    def _act(self, act: Callable[..., None], args: tuple) -> None:
        if self._failed:
            return
        try:
            act(*args)
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._thread.shutdown()
        if kind is None:
            self.finish()


class Ahead(Iterator[Made]):
    """What one thread makes of items, in their order and a few ahead of whoever takes them.

    It begins when the block does, and ends with it: what nobody took by then is not made any more.

    Raises:
        whatever making an item did, where it is taken.

    Args:
        few: how many are made or waiting at a time.
    """

    def __init__(self, make: Callable[[Any], Made], items: Iterable[Any], few: int) -> None:
        self._make, self._left, self._few = make, iter(items), few
        self._thread = ThreadPoolExecutor(1)
        self._coming: deque[Future] = deque()

    def __enter__(self) -> Ahead[Made]:
        self._begin(self._few)
        return self

    def __exit__(self, *_: Any) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __next__(self) -> Made:
        if not self._coming:
            raise StopIteration
        found = self._coming.popleft().result()
        self._begin(1)
        return found

    def _begin(self, many: int) -> None:
        self._coming += [self._thread.submit(self._make, item) for item in islice(self._left, many)]


class Shares:
    """Seconds by what they were spent on; those of other threads run beside one another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what the block takes to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({name: time.perf_counter() - start})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what others spent, too."""
        with self._lock:
            for name, taken in seconds.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + taken

    def take(self) -> dict[str, float]:
        """What was counted; from here on anew."""
        with self._lock:
            found, self.seconds = self.seconds, {}
        return found


@contextmanager
def one_core_each(device: torch.device) -> Iterator[None]:
    """Beside a GPU every thread computes by itself while the block lasts; on a CPU nothing changes.

    Else each has a crew of as many threads as there are cores, which wait for more work by spinning: on an H100 with 16
    cores asking took 0.070 s a picture beside threads that read others, and 0.042 with one core for each.
    """
    before = torch.get_num_threads()
    if device.type == "cuda":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.set_num_threads(before)
