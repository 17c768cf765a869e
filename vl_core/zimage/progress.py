"""Progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar. What it yields moves it: called with nothing one step on, called with (done, total) to there.

    A third value, ``note``, is shown behind it.
    """
    from tqdm import tqdm

    with tqdm(desc=description, total=total, leave=False) as bar:

        def move(done: int | None = None, of: int | None = None, note: str = "") -> None:
            bar.total = of or bar.total
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(1 if done is None else done - bar.n)

        yield move


@contextmanager
def without_library_bars() -> Iterator[None]:
    """No bars of diffusers and transformers, which show one per file they load and write into ours."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
