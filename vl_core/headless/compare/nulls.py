"""Null controls: a cell once more where its picture cannot be what acts. What a null reaches is no effect of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...reports.controls import seeded_generator
from ...steering.sweep import Cell

ANOTHER, SHUFFLED, NOISE = "another", "shuffled", "noise"
NULLS = {
    ANOTHER: "another picture",  # the next of those that are compared
    SHUFFLED: "its pixels shuffled",  # the same colours, in no place
    NOISE: "matched noise",  # in place of Qwen3-VL's states, see matched_noise
}
NULL = "null"  # what a cell of noise carries besides; the other nulls are ordinary cells of other pictures


def choose_nulls(given: Sequence[str] | None, keys: Sequence[str]) -> tuple[str, ...]:
    """The nulls of a study.

    Args:
        given: None for none; empty for what suits: another picture, or if there is one only, its own shuffled.
        keys: of the sets of pictures that are compared, each once.

    Raises:
        ValueError: if another picture is asked for and there is none.
    """
    if given is None:
        return ()
    if ANOTHER in given and len(keys) < 2:
        raise ValueError(
            "--null another: expected two different pictures or more to compare, got one. Give another with --image, "
            "or choose shuffled."
        )
    return tuple(dict.fromkeys(given)) or ((ANOTHER,) if len(keys) > 1 else (SHUFFLED,))


def null_cell(kind: str, cell: Cell, keys: Sequence[str]) -> Cell:
    """What is painted as a cell's null; another picture's own cell where that is the null."""
    extra: dict[str, Any] = dict(cell.extra)
    if kind == ANOTHER:
        extra["pictures"] = keys[(keys.index(extra["pictures"]) + 1) % len(keys)]
    elif kind == SHUFFLED:
        extra["pictures"] = shuffled_key(extra["pictures"])
    else:
        extra[NULL] = kind
    return replace(cell, extra=tuple(extra.items()))


def shuffled_key(key: str) -> str:
    """Stands for the pictures of a key with their pixels shuffled."""
    return f"{key}-{SHUFFLED}"


def noise_seed(cell: Cell) -> int:
    """Of a cell's noise: the same whatever its settings, another for every picture, prompt and seed."""
    extra = dict(cell.extra)
    return seeded_generator(f"{extra['pictures']} {extra['prompt']} {cell.seed}").initial_seed()


