"""The engine: a prompt, pictures and settings go in, steered states come out; every surface calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .desk import NOTHING, Desk, Outcome
from .host import Host
from .references import Reference
from .settings import Settings
from .way import Given


def steer(
    host: Host, prompt: str, references: Sequence[Reference], settings: Settings, given: Given = NOTHING
) -> Outcome:
    """Let pictures steer a prompt.

    Args:
        host: the encoders at hand.
        prompt: what to paint.
        references: pictures; those of weight 0 are left out.
        settings: how they act; strength 0, or no picture, gives the prompt's own entries bit for bit.
        given: what else is there: an adapter, a look, words.

    Returns:
        an entry for each entry of the prompt, and what was done.

    Raises:
        ValueError: for what the way cannot do, with what can; see the way.
    """
    return Desk(host, prompt, references, given, [settings]).run(settings)


def steer_many(
    host: Host, prompt: str, references: Sequence[Reference], many: Sequence[Settings], given: Given = NOTHING, *,
    names: Sequence[str] = (), step: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """:func:`steer` for several settings; what several of them need is read, written and encoded once.

    Args:
        names: of the settings, for errors. step: called before each set of settings acts; what it raises is raised.

    Raises:
        ValueError: see :func:`steer`; it names the settings that failed.
    """
    called = list(zip(many, names or [""] * len(many), strict=True))
    desk = Desk(host, prompt, references, given, many)
    for settings, name in called:
        with _named(name):
            desk.fetch(settings)
    outcomes = []
    for settings, name in called:
        step()
        with _named(name):
            outcomes.append(desk.run(settings))
    return outcomes


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors say which settings they are about."""
    try:
        yield
    except ValueError as error:
        if not name:
            raise
        raise ValueError(f"{error} In the cell {name}.") from error
