"""Modes of the simple node that tell Z-Image what the picture is like: in words, or in the states words would have."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..vl_core.adapters.picture_adapter import MAX_STRENGTH, PictureAdapter
from ..vl_core.encoder.cache import digest
from ..vl_core.encoder.writing import INSTRUCTIONS, Description, append_words
from ..vl_core.pictures import crop_to_mask
from ..vl_core.stages.description import bring_in
from ..vl_core.states.families import Family
from ..vl_core.states.stacks import by_layer, split_layers
from ..vl_core.steering.modes import MODES, check_recipe
from .adapter import apply_to, read_for
from .entries import Entry, layout_of, repack
from .host import encoders, memory, text_encoder
from .references import Reference
from .widgets import COVERED

AUTOMATIC, DESCRIBE, ADAPTER = "automatic", "describe", "picture adapter"
RANGES = {AUTOMATIC: (0.0, 1.5), DESCRIBE: (0.0, 1.5), ADAPTER: (-MAX_STRENGTH, MAX_STRENGTH)}
LOOK = INSTRUCTIONS["look"]
LONGEST = 120  # tokens of a description
KEPT = 64  # descriptions per encoder

Mix = Callable[[Entry], tuple[Entry, str]]  # a text entry -> what to paint from, what was done

_written: weakref.WeakKeyDictionary[Any, OrderedDict[bytes, Description]] = weakref.WeakKeyDictionary()


def check_mode(mode: str, strength: float) -> None:
    """Refuse an unknown mode or a strength it does not take, before any encoder runs.

    Raises:
        ValueError: naming the input, what was expected and what was got.
    """
    if mode in MODES:
        check_recipe(mode, strength)
        return
    if mode not in RANGES:
        raise ValueError(f"mode: expected one of {', '.join((*RANGES, *MODES))}, got {mode!r}.")
    low, high = RANGES[mode]
    if not low <= strength <= high:
        hint = " To push away from the picture choose image delta or picture adapter." if strength < 0 else ""
        raise ValueError(f"strength: expected {low:g} to {high:g} with {mode}, got {strength}.{hint}")


def choose(
    mode: str, clip: Any, vision: Any, given: list[Reference], prompt: str, strength: float, *,
    family: Family, adapter: PictureAdapter | None, mask_use: str, budget: int,
) -> tuple[Mix, list[str]]:
    """What the mode makes of a text entry, and lines for the node. Qwen3-VL runs here.

    Args:
        given: the pictures, at least one. ``adapter``: the one at hand, None for none.

    Raises:
        ValueError: for what the mode cannot do, with what can.
    """
    lines: list[str] = []
    other = "" if adapter is None or adapter.spec.family == family.group else adapter.spec.family
    if mode == ADAPTER or (mode == AUTOMATIC and adapter is not None and not other):
        if adapter is None:
            raise ValueError(
                "adapter: picture adapter needs one, got none. Connect Fit Picture Adapter, choose an adapter_file, or "
                "choose mode describe."
            )
        if other:
            raise ValueError(
                f"adapter: expected one fitted for {family.group}, which clip is the text encoder of, got one for "
                f"{other}. Fit one with this clip, or choose mode describe."
            )
        mix, familiar, lines = _adapted(vision, given, prompt, strength, adapter, mask_use, budget)
        if familiar or mode == ADAPTER:
            way = f"{AUTOMATIC}: {ADAPTER}, which knows pictures like this" if mode == AUTOMATIC else ADAPTER
            if not familiar:
                lines.append("The adapter has not seen pictures like this: mode describe needs none.")
            return mix, [way, *lines]
        lines = [*lines, f"{AUTOMATIC}: {DESCRIBE}, because the adapter has not seen pictures like this"]
    elif mode == AUTOMATIC:
        why = "no adapter is connected" if adapter is None else f"the adapter is for {other}, not for {family.group}"
        lines.append(f"{AUTOMATIC}: {DESCRIBE}, because {why}")
    mix, more = _described(clip, vision, given, prompt, strength, family, mask_use, budget)
    return mix, [*lines, *more]


def _described(
    clip: Any, vision: Any, given: list[Reference], prompt: str, strength: float, family: Family,
    mask_use: str, budget: int,
) -> tuple[Mix, list[str]]:
    """The picture's look in Qwen3-VL's words after the prompt, read by Z-Image's own text encoder."""
    odd = [one.weight for one in given if one.weight != 1]
    if odd:
        raise ValueError(
            f"weights: expected 0 or 1 with {DESCRIBE}, which sees all pictures together, got {odd[0]:g}. Choose "
            f"{ADAPTER}, or blend aligned with combine average."
        )
    words, notes = _words(vision, _shown(given, mask_use), budget)
    whole = text_encoder.encode_text(clip, append_words(prompt, words))

    def mix(entry: Entry) -> tuple[Entry, str]:
        ((described, options),) = whole
        if strength == 1:
            return [described, options], "the words as they are"
        layouts = layout_of(entry), layout_of([described, options])
        if None in layouts:
            raise ValueError(
                f"prompt: {DESCRIBE} at another strength than 1 needs plain words, got an embedding: file or tokens of "
                "pictures. Remove them, or use strength 1."
            )
        parts = split_layers(described, family)
        states, found = by_layer(
            entry[0], family, lambda own, index: bring_in(own, layouts[0], parts[index], layouts[1], strength)
        )
        return repack([described, options], states, found[0]), f"the words at strength {strength:g}"

    return mix, [f"{DESCRIBE}: {words}", *notes]


def _adapted(
    vision: Any, given: list[Reference], prompt: str, strength: float, adapter: PictureAdapter, mask_use: str,
    budget: int,
) -> tuple[Mix, bool, list[str]]:
    """States that a description would have, predicted from the pictures."""
    below = [one.weight for one in given if one.weight < 0]
    if below:
        raise ValueError(
            f"weights: expected 0 or more with {ADAPTER}, got {below[0]:g}. Use a negative strength to push away."
        )
    seen, lines = read_for(adapter, vision, _shown(given, mask_use), prompt, budget, "vision")
    weights = [one.weight for one in given]
    known = [adapter.familiarity(adapter.spec.features.of(one)) for one in seen]
    familiar = all(each is None or each.familiar for each in known)

    def mix(entry: Entry) -> tuple[Entry, str]:
        mixed, info = apply_to(entry, adapter, seen, strength, weights=weights)
        return mixed, info.describe()

    return mix, familiar, lines


def _shown(given: list[Reference], mask_use: str) -> list[Tensor]:
    """What is looked at of each picture.

    Raises:
        ValueError: for masks that are to pick tokens: here the picture is told as a whole.
    """
    shown = []
    for number, one in enumerate(given, 1):
        if one.mask is not None and mask_use == COVERED:
            raise ValueError(
                f"mask_use: {COVERED} picks a picture's own tokens, but this mode tells what it is like as a whole. "
                "Choose crop to the box."
            )
        shown.append(
            one.picture if one.mask is None else crop_to_mask(one.picture, one.mask, f"mask of picture {number}")
        )
    return shown


def _words(vision: Any, pictures: list[Tensor], budget: int) -> tuple[str, list[str]]:
    """What Qwen3-VL says of the pictures' look; the same pictures are not described twice."""
    key = digest(LOOK, str(budget), *pictures)
    kept = _written.setdefault(vision, OrderedDict()) if memory.fast_allowed() else OrderedDict()
    if key in kept:
        kept.move_to_end(key)
        return kept[key].words, [*kept[key].notes, "described before: the same words"]
    images = {f"image{index}": picture for index, picture in enumerate(pictures)}
    found = encoders.write_words(vision, images, LOOK, max_tokens=LONGEST, budget=budget, name="vision")
    kept[key] = found
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return found.words, list(found.notes)
