"""Progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar. What it yields moves it: called with nothing one step on, called with (done, total) to there."""
    from tqdm import tqdm

    with tqdm(desc=description, total=total, leave=False) as bar:

        def move(done: int | None = None, of: int | None = None) -> None:
            bar.total = of or bar.total
            bar.update(1 if done is None else done - bar.n)

        yield move
