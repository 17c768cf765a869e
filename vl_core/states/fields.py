"""What one setting may be: its kind, bounds, choices and its sentence for people, said once."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

Value = bool | int | float | str
LARGEST = sys.float_info.max  # what is beyond it, or no number, is refused
LONGEST_SHOWN = 120  # letters of a value in an error


def quoted(value: Any) -> str:
    """A value that somebody gave, as errors show it: a long one is cut off, and how long it is."""
    if isinstance(value, str) and len(value) > LONGEST_SHOWN:
        return f"{value[:LONGEST_SHOWN]!r} … ({len(value)} letters)"
    text = repr(value)
    return text if len(text) <= 4 * LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} … ({len(text)} letters)"


def to_csv(kind: type, rows: Iterable[Any], digits: int) -> str:
    """Dataclasses of one kind, comma separated, a head line first; empty where there is nothing to tell."""
    names = [one.name for one in fields(kind)]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow([f"{value:.{digits}g}" if isinstance(value, float) else value for value in values])
    return written.getvalue()


@dataclass(frozen=True)
class Field:
    """What one setting may be.

    Attributes:
        kind: float, int, bool or str. ``low``, ``high``: the least and greatest number, None for no bound.
        choices: gives the words there are; none for a str takes any.
        meaning: what it does, in one sentence for people.
        acts: whether it makes a difference beside the other settings, given all of them.
        also: other names it has had, in files and on nodes.
    """

    kind: type
    low: float | None = None
    high: float | None = None
    choices: Callable[[], tuple[str, ...]] = tuple
    meaning: str = ""
    acts: Callable[[Any], bool] = lambda settings: True
    also: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> Value:
        """The value in its own type: 1 becomes 1.0 where fractions are allowed.

        Raises:
            ValueError: naming what was expected and what was got.
        """
        if self.kind is str:
            choices = self.choices()
            if not isinstance(value, str) or (choices and value not in choices):
                expected = f"one of {', '.join(choices)}" if choices else "text"
                raise ValueError(f"{name}: expected {expected}, got {quoted(value)}.")
            return value
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{name}: expected true or false, got {quoted(value)}.")
            return value
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
        inside = is_number and (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        if not inside or (self.kind is int and value != int(value)):
            kind = "a whole number" if self.kind is int else "a number"
            raise ValueError(f"{name}: expected {kind}{self._bounds()}, got {quoted(value)}.")
        return self.kind(value)

    def _bounds(self) -> str:
        if self.low is not None and self.high is not None:
            return f" from {self.low:g} to {self.high:g}"
        return "" if self.low is None else f" of at least {self.low:g}"


def number(default: float, low: float, high: float, meaning: str, **more: Any) -> Any:
    """A dataclass field for a number with fractions."""
    return _field(default, Field(float, low, high, meaning=meaning, **more))


def whole(default: int, low: int, high: int, meaning: str, **more: Any) -> Any:
    """A dataclass field for a whole number."""
    return _field(default, Field(int, low, high, meaning=meaning, **more))


def switch(default: bool, meaning: str, **more: Any) -> Any:
    """A dataclass field that is on or off."""
    return _field(default, Field(bool, meaning=meaning, **more))


def choice(default: str, choices: Callable[[], tuple[str, ...]] | tuple[str, ...], meaning: str, **more: Any) -> Any:
    """A dataclass field for one of several words."""
    given = choices if callable(choices) else lambda: choices
    return _field(default, Field(str, choices=given, meaning=meaning, **more))


def text(default: str, meaning: str, **more: Any) -> Any:
    """A dataclass field for words of one's own."""
    return _field(default, Field(str, meaning=meaning, **more))


def _field(default: Value, what: Field) -> Any:
    return field(default=default, metadata={"field": what})
