"""ComfyUI as a place that steers: what the engine asks for, from a CLIP and whatever hangs on the vision socket."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..vl_core import Description, ReferenceStatistics, VLStates
from ..vl_core.encoder.answers import append_words
from ..vl_core.pictures import split_batch
from ..vl_core.stages.combine import parse_weights
from ..vl_core.states.vl_states import LAYOUT_KEY
from ..vl_core.steering.desk import Outcome
from ..vl_core.steering.references import Reference
from ..vl_core.steering.store import Store
from ..vl_core.steering.takes import Take
from ..vl_core.steering.way import Steered, Text
from .entries import Entry, attend_words, repack, timed, words_of
from .host import memory
from .host.calibration import measure_layers
from .host.encoders import check_widths, encode_vision, known_words, pick_family, write_words
from .host.identity import identity_of
from .host.text_encoder import check_text_clip, encode_text

_stores: weakref.WeakKeyDictionary[Any, Store] = weakref.WeakKeyDictionary()


class ComfyHost:
    """A :class:`~vl_core.steering.host.Host`.

    Args:
        clip: the text encoder. vision: a QWEN3VL, or a CLIP that holds Qwen3-VL.

    Raises:
        ValueError: if the text encoder is of no family.
    """

    def __init__(self, clip: Any, vision: Any) -> None:
        self.clip, self.vision = clip, vision
        self.family = check_text_clip(clip, klein=True)
        self.store = store_of(vision)

    def identity(self) -> str:
        return identity_of(self.vision)

    def check(self) -> None:
        check_widths(self.clip, self.vision)

    def words(self, prompt: str, added: str = "") -> list[Text]:
        entries = encode_text(self.clip, append_words(prompt, added) if added else prompt)
        return [text_of(entry) for entry in entries]

    def read(
        self, pictures: Sequence[Tensor], prompt: str, layers: Sequence[int], *, muted: bool = False,
        system_prompt: str = "", budget: int, group: str = "",
    ) -> tuple[VLStates, list[str]]:
        family = pick_family(group, self.vision) if group else self.family
        return encode_vision(
            self.vision, _named(pictures), prompt, layers, system_prompt=system_prompt, budget=budget, mute=muted,
            name="vision", family=family,
        )

    def write(self, pictures: Sequence[Tensor], instruction: str, *, longest: int, budget: int) -> Description:
        return known_words(
            self.vision, _named(pictures), instruction, max_tokens=longest, budget=budget, name="vision",
            write=write_words,
        )[0]

    def instruction(self, take: Take) -> str:
        return take.instruction

    def statistics(self) -> tuple[Sequence[ReferenceStatistics], str]:
        return measure_layers(self.clip)


def text_of(entry: list) -> Text:
    """A CONDITIONING entry as the engine takes it."""
    states, options = entry
    layout = options.get(LAYOUT_KEY)
    return Text(states, layout, words_of(entry), entry)


def entry_of(steered: Steered) -> Entry:
    """What was steered as a CONDITIONING entry, with the options of the entry it came from."""
    changed = repack(steered.text.origin, steered.states, steered.layout)
    return attend_words(changed, steered.words)


def entries_of(outcome: Outcome, window: tuple[float, float]) -> list[Entry]:
    """CONDITIONING of an outcome: the picture acts within a window of the steps, the words alone outside of it."""
    if not outcome.way:
        return [text.origin for text in outcome.texts]
    return [
        entry
        for text, steered in zip(outcome.texts, outcome.entries, strict=True)
        for entry in timed(text.origin, entry_of(steered), *window)
    ]


def collect(images: dict | None, weights: str, masks: dict | None) -> list[Reference]:
    """The connected pictures in order, those of weight 0 left out.

    Raises:
        ValueError: for another number of weights than pictures, or masks that belong to no picture.
    """
    images = {name: image for name, image in (images or {}).items() if image is not None}
    masks = {_number(name): mask for name, mask in (masks or {}).items() if mask is not None}
    found = []
    for name, image in images.items():
        pictures = split_batch(image)
        mask = masks.pop(_number(name), None)
        found += zip(pictures, _one_each(mask, len(pictures), f"mask{_number(name)}"), strict=True)
    if masks:
        number = next(iter(masks))
        raise ValueError(f"masks: mask{number} has no image{number} to lie on. Connect that picture, or remove it.")
    weighed = zip(found, parse_weights(weights, len(found)), strict=True)
    return [Reference(picture, mask, weight) for (picture, mask), weight in weighed if weight]


def _number(name: str) -> str:
    """The digits at the end of an Autogrow socket's name."""
    return name[len(name.rstrip("0123456789")) :]


def _one_each(mask: Tensor | None, count: int, name: str) -> list[Tensor | None]:
    """One mask ``(H, W)`` for each picture of a batch."""
    if mask is None:
        return [None] * count
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or len(mask) not in (1, count):
        raise ValueError(
            f"masks: {name} expected one mask, or {count} like its pictures, got shape {tuple(mask.shape)}."
        )
    return list(mask.expand(count, -1, -1))


def store_of(encoder: Any) -> Store:
    """What is kept of an encoder between runs; nothing where ``ZIMAGE_VL_FAST`` is 0."""
    if encoder is None or not memory.fast_allowed():
        return Store(0)
    try:
        return _stores.setdefault(encoder, Store())
    except TypeError:  # no encoder at all: what reads with it says so
        return Store(0)


def _named(pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"image{index}": picture for index, picture in enumerate(pictures)}
