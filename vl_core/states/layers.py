"""Lists of layers as people write them, everywhere the same: reports, mixtures, sweeps, the command line.

``-2, -6`` are two layers, ``-4:-12:-2`` a range with its end, ``-4:-9`` one whose step is 1 or -1. Commas, semicolons,
spaces and line breaks part them. Where layers have weights, ``-4 * 0.5`` is one; ``-4:0.5``, as it was always written
there, is the same, so a range needs its step there.
"""

from __future__ import annotations

import math
import re

from .fields import quoted
from .vl_states import resolve_layer

EXAMPLE = "Write numbers and ranges such as -1, -2, -4:-12:-2."
WEIGHTED = "Write layers and weights such as -2, -4 * 0.5."
MOST = 256  # layers in a list; no Qwen3-VL has as many
NUMBER = r"[+-]?[0-9]{1,6}(?:\.0*)?"  # -2.0 is a layer too


def read_layers(text: str, name: str = "layers", *, weighted: bool = False) -> list[tuple[range, float]]:
    """What is written, in its order: each layer or range, and its weight.

    Args:
        name: of the input, for errors.
        weighted: whether layers may have weights here; 1 if none is given.

    Raises:
        ValueError: for none, more than 256, anything else than the above, a weight that is not finite, or a range whose
            step is 0 or leads away from its end.
    """
    example = WEIGHTED if weighted else EXAMPLE
    joined = re.sub(r"\s*([:*×])\s*", r"\1", text).strip()
    found, count = [], 0
    for part in filter(None, re.split(r"[,，;；\s]+", joined)):
        numbers, weight = part, "1"
        if weighted:
            once = part.count(":") == 1 and not re.search("[*×]", part)
            numbers, sign, weight = part.partition(":") if once else re.sub("×", "*", part).partition("*")
            weight = weight if sign else "1"
        try:
            share = float(weight)
        except ValueError:
            numbers, share = "", 1.0
        if not re.fullmatch(f"{NUMBER}(:{NUMBER}){{0,2}}", numbers) or not math.isfinite(share):
            raise ValueError(f"{name}: expected a layer or a range, got {quoted(part)}. {example}")
        first, *rest = (int(number.partition(".")[0]) for number in numbers.split(":"))
        last = rest[0] if rest else first
        step = rest[1] if len(rest) > 1 else (1 if last >= first else -1)
        if step == 0 or (last - first) * step < 0:
            raise ValueError(f"{name}: expected a step that leads from {first} to {last}, got {step}. {example}")
        found.append((range(first, last + (1 if step > 0 else -1), step), share))
        count += len(found[-1][0])
        if count > MOST:
            raise ValueError(f"{name}: expected at most {MOST} values, got more in {quoted(text)}.")
    if not found:
        raise ValueError(f"{name}: expected at least one layer, got {quoted(text)}. {example}")
    return found


def parse_layers(text: str, num_layers: int, loaded_layers: int | None = None) -> tuple[int, ...]:
    """Layers of a model from a line of text.

    Args:
        text: "all", or a list as above.
        num_layers: blocks of the model, which negative numbers count from.
        loaded_layers: blocks that are loaded, what "all" means; every one by default.

    Returns:
        ``hidden_states`` indices 0 … ``num_layers``, ascending, each once.

    Raises:
        ValueError: see :func:`read_layers`; for a layer the model does not have, or a range that mixes both ways of
            counting.
    """
    if text.strip().lower() == "all":
        return tuple(range((num_layers if loaded_layers is None else loaded_layers) + 1))
    found: set[int] = set()
    for span, _ in read_layers(text):
        first, last = span.start, span.stop - (1 if span.step > 0 else -1)
        if (first < 0) != (last < 0):
            raise ValueError(
                f"layers: expected a range that counts one way, got '{first}:{last}'. Count both ends from the end "
                "(negative) or both from the start."
            )
        for end in (first, last):
            resolve_layer(end, num_layers)
        found |= {resolve_layer(layer, num_layers) for layer in span}
    return tuple(sorted(found))
