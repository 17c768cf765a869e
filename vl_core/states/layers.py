"""Lists of layers as people write them."""

from __future__ import annotations

import re

from .vl_states import resolve_layer


def parse_layers(text: str, num_layers: int, loaded_layers: int | None = None) -> tuple[int, ...]:
    """Layers from a line of text.

    Args:
        text: "all", or numbers and ranges parted by commas: ``"-1, -2, -4:-12:-2"``; a range includes its end, and
            its step is 1 or -1 if none is given.
        num_layers: blocks of the model, which negative numbers count from.
        loaded_layers: blocks that are loaded, what "all" means; every one by default.

    Returns:
        ``hidden_states`` indices 0 … ``num_layers``, ascending, each once.

    Raises:
        ValueError: for anything else, a layer the model does not have, a range that mixes both ways of counting, or
            one whose step is 0 or leads away from its end.
    """
    example = "Write all, or numbers and ranges such as -1, -2, -4:-12:-2."
    if text.strip().lower() == "all":
        return tuple(range((num_layers if loaded_layers is None else loaded_layers) + 1))
    found: set[int] = set()
    for part in text.split(","):
        if not re.fullmatch(r"\s*[+-]?\d{1,6}\s*(:\s*[+-]?\d{1,6}\s*){0,2}", part, re.ASCII):
            raise ValueError(f"layers: expected a layer or a range, got {part.strip()!r}. {example}")
        first, *rest = (int(number) for number in part.split(":"))
        last = rest[0] if rest else first
        step = rest[1] if len(rest) > 1 else (1 if last >= first else -1)
        if (first < 0) != (last < 0):
            raise ValueError(
                f"layers: expected a range that counts one way, got {part.strip()!r} from {first} to {last}. Count "
                "both ends from the end (negative) or both from the start."
            )
        if step == 0 or (last - first) * step < 0:
            raise ValueError(f"layers: expected a step that leads from {first} to {last}, got {step}. {example}")
        for end in (first, last):
            resolve_layer(end, num_layers)
        found |= {resolve_layer(layer, num_layers) for layer in range(first, last + (1 if step > 0 else -1), step)}
    return tuple(sorted(found))
