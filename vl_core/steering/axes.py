"""What a sweep may vary, and values as people write them: ``0, 0.3, 1``, ``0:1:0.1`` (from:to:step, the end included),
``clamp, zero``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from ..states.fields import Field, Value, quoted
from ..states.layers import read_layers
from .settings import ALSO, BLENDS, FIELDS, MAX_STRENGTH
from .way import find_way, way_names

SEED = "seed"
MAX_SEED = 2**64 - 1  # the host's and torch's
MAX_CELLS = 256
ALIASES = {**ALSO, "layers": "layer", "alphas": "strength", "ways": "way", "takes": "take"}


def _ways() -> tuple[str, ...]:
    """Ways under all names they have had: a saved sweep means the same for ever."""
    known = [find_way(name) for name in way_names()]
    return (*(way.name for way in known), *(old for way in known for old in way.also))


def _methods() -> tuple[str, ...]:
    """Blends of the open pipeline, and ways: what a sweep's method has always named."""
    return (*BLENDS, *_ways())


# Two more names than settings have: what earlier versions called a way, and the strength of image delta.
SWEPT: dict[str, Field] = {
    **FIELDS, "way": replace(FIELDS["way"], choices=_ways),
    "method": Field(str, choices=_methods, meaning="A way, or a blend of the open pipeline."),
    "delta_strength": Field(float, -MAX_STRENGTH, MAX_STRENGTH, meaning="The strength, where the way is image delta."),
    SEED: Field(int, 0, MAX_SEED, meaning="Where painting starts."),
}
LEAST, MOST = Decimal("1e-9"), Decimal(MAX_SEED)  # of the numbers people write
SWITCHES = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


@dataclass(frozen=True)
class Axis:
    """One setting and the values it takes.

    Attributes:
        name: one of ``SWEPT``, or a value that the plan carries besides.

    Raises:
        ValueError: for no values, one out of range, or one twice.
    """

    name: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        field = SWEPT.get(self.name)
        values = tuple(field.check(self.name, value) if field else value for value in self.values)
        object.__setattr__(self, "values", values)
        if not values:
            raise ValueError(f"{self.title}: expected at least one value, got none.")
        twice = [value for index, value in enumerate(values) if value in values[:index]]
        if twice:
            raise ValueError(f"{self.title}: expected every value once, got {show_value(twice[0])} more often.")

    @property
    def title(self) -> str:
        """The name as people read it."""
        return self.name.replace("_", " ")

    def label(self, value: Value) -> str:
        """One value with its name: ``"alpha 0.3"``."""
        return f"{self.title} {show_value(value)}"


def parse_axis(name: str, text: str, fields: Mapping[str, Field] | None = None, limit: int = MAX_CELLS) -> Axis:
    """An axis as people write it: ``parse_axis("alpha", "0:1:0.25")``.

    >>> parse_axis("strength", "0:1:0.25").values
    (0.0, 0.25, 0.5, 0.75, 1.0)

    Args:
        name: as in ``SWEPT``, spaces for underscores, or one of ``ALIASES``.
        fields: further names and what they may be.
        limit: most values.

    Raises:
        ValueError: see :func:`parse_values` and :class:`Axis`; for a name there is not.
    """
    name = axis_name(name)
    known = {**SWEPT, **(fields or {})}
    if name not in known:
        raise ValueError(f"axis: expected one of {', '.join(known)}, got {quoted(name)}.")
    return Axis(name, tuple(parse_values(text, known[name], name.replace("_", " "), limit)))


def axis_name(name: str) -> str:
    """The name of a setting as :data:`SWEPT` has it, from what people call it."""
    plain = re.sub(r"[\s-]+", "_", str(name).strip().lower())
    return ALIASES.get(plain, plain)


def parse_values(text: str, field: Field, name: str = "values", limit: int = MAX_CELLS) -> list[Value]:
    """Values parted by commas, semicolons or line breaks; numbers may be ranges from:to:step, the end included.

    Whole numbers need no step: ``-2:-8`` is -2, -3 … -8. Decimal arithmetic: ``0:1:0.1`` has 0.3 in it.

    Raises:
        ValueError: for no value, a word or number the field does not take, a range that leads nowhere, or too many
            values.
    """
    if field is FIELDS["layer"]:
        return _layers(text, field, name, limit)
    values: list[Value] = []
    for part in filter(None, (part.strip() for part in re.split(r"[,，;；\n]+", text))):
        if field.kind is str:
            values.append(field.check(name, part))
        elif field.kind is bool:
            values.append(field.check(name, SWITCHES.get(part.lower(), part)))
        else:
            values += _numbers(part, field, name, limit)
        if len(values) > limit:
            raise ValueError(f"{name}: expected at most {limit} values, got more in {quoted(text)}.")
    if not values:
        kind = f"such as {', '.join(field.choices()[:2])}" if field.choices() else "such as 0, 0.3, 1 or 0:1:0.1"
        raise ValueError(f"{name}: expected at least one value, {kind}, got {quoted(text)}.")
    return values


def _layers(text: str, field: Field, name: str, limit: int) -> list[Value]:
    """Layers in the grammar of :mod:`~vl_core.states.layers`."""
    spans = [span for span, _ in read_layers(text, name)]
    if sum(map(len, spans)) > limit:
        raise ValueError(f"{name}: expected at most {limit} values, got more in {quoted(text)}.")
    return [field.check(name, layer) for span in spans for layer in span]


def _numbers(part: str, field: Field, name: str, limit: int) -> list[Value]:
    try:
        bounds = [Decimal(bound.strip()) for bound in part.split(":")]
        fits = all(bound == 0 or LEAST <= abs(bound) <= MOST for bound in bounds)
    except InvalidOperation:
        fits, bounds = False, []
    if not fits or len(bounds) > 3:
        raise ValueError(f"{name}: expected a number or a range from:to:step such as 0:1:0.1, got {quoted(part)}.")
    if len(bounds) == 1:
        return [field.check(name, _plain(bounds[0]))]
    start, stop = bounds[:2]
    if len(bounds) == 2 and field.kind is float:
        raise ValueError(f"{name}: expected a step as well, such as {part}:0.1, got {quoted(part)}.")
    step = bounds[2] if len(bounds) == 3 else Decimal(1 if stop >= start else -1)
    if step == 0 or (stop - start) * step < 0:
        raise ValueError(f"{name}: expected a step that leads from {start} to {stop}, got {step}.")
    if (stop - start) / step >= limit:
        raise ValueError(f"{name}: expected at most {limit} values, got more in {quoted(part)}.")
    count = int((stop - start) // step) + 1
    return [field.check(name, _plain(start + index * step)) for index in range(count)]


def _plain(number: Decimal) -> int | float:
    """A whole number exactly, whatever its size: seeds are longer than a float is precise."""
    return int(number) if number == number.to_integral_value() else float(number)


def show_value(value: Value) -> str:
    """A value in words: 0.3, -2, on, clamp."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)  # every digit: labels must differ
