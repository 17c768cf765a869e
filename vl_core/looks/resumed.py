"""Learning that goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .learn import OnCaption, OnStep, learn_look, unseen
from .look import Look
from .options import LearnOptions
from .painter import Painter
from .start import Words
from .state import LearnState

SAVED_EVERY = 10  # steps


def part_of(output: Path, key: str) -> Path:
    """The file beside a look's own that a learning leaves if it is stopped."""
    return output.with_name(f"{output.stem}_{key[:12]}.part")


def stopped_at(part: Path, key: str) -> LearnState | None:
    """How far a learning had come that was stopped, None if there was none.

    Raises:
        ValueError: see :meth:`LearnState.load`.
    """
    return LearnState.load(part, key) if part.is_file() else None


def learn_resumed(
    painter: Painter, pictures: Sequence[Tensor], words: Words, options: LearnOptions, part: Path, key: str, *,
    on_step: OnStep, on_caption: OnCaption | None = None, state: LearnState | None = None,
) -> Look:
    """:func:`learn_look` that keeps how far it has come in ``part``; the file is gone when it is done.

    Args:
        key: a name for one learning: the same only for the same model, pictures, words and options.
        state: go on from here; see :func:`stopped_at`.

    Raises:
        ValueError: see :func:`learn_look`.
    """

    def keep(state: LearnState) -> None:
        on_step(state)
        if state.step % SAVED_EVERY == 0:
            state.save(part, key)

    seen = unseen if on_caption is None else on_caption
    look = learn_look(painter, pictures, words, options, on_step=keep, on_caption=seen, state=state)
    part.unlink(missing_ok=True)
    return look
