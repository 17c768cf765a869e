"""Several reference pictures, each with a weight and perhaps a mask, read as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..vl_core import VLStates
from ..vl_core.pictures import check_picture, crop_to_mask, fit_size, split_batch
from ..vl_core.stages.combine import COMBINATIONS, combine, needs_muted, parse_weights
from ..vl_core.stages.select import select_tokens
from .host import encoders
from .widgets import COVERED, CROP, JOINED, MASK_USES


@dataclass(frozen=True, eq=False)
class Reference:
    """One picture ``(1, H, W, C)``, its mask ``(H, W)`` if it has one, and what it weighs."""

    picture: Tensor
    mask: Tensor | None
    weight: float


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


def read(
    encoder: Any,
    references: list[Reference],
    prompt: str,
    layers: list[int],
    method: str = JOINED,
    mask_use: str = CROP,
    *,
    mute: bool = False,
    show: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> tuple[VLStates, VLStates | None, list[str]]:
    """One reading of all references.

    Args:
        mute: give the muted reading as well, for modes that compare with it.
        show: what becomes of a picture before it is read, None for nothing.
        options: ``system_prompt``, ``budget`` and ``name`` of :func:`encoders.encode_vision`.

    Returns:
        the reading, the muted one if asked for, remarks for the node.

    Raises:
        ValueError: see :func:`encoders.encode_vision` and :func:`combine`; for weights that concat cannot have.
    """
    if mask_use not in MASK_USES:
        raise ValueError(f"mask_use: expected one of {', '.join(MASK_USES)}, got {mask_use!r}.")
    if method not in (JOINED, *COMBINATIONS):
        raise ValueError(f"combine: expected one of {', '.join((JOINED, *COMBINATIONS))}, got {method!r}.")
    wrong = [one.weight for one in references if one.weight != 1]
    if method == JOINED and wrong:
        raise ValueError(
            f"weights: expected 0 or 1 with combine = {JOINED}, which reads all pictures together, got {wrong[0]:g}. "
            "Choose average, or another way to combine."
        )
    pictures, lines = [], []
    for number, one in enumerate(references, 1):
        picture = one.picture
        if one.mask is not None and mask_use == CROP:
            picture = crop_to_mask(picture, one.mask, f"mask of picture {number}")
            (height, width), whole = picture.shape[-3:-1], one.picture.shape[-3:-1]
            lines.append(f"image {number}: cropped to {width}×{height} of {whole[1]}×{whole[0]}")
        pictures.append(show(picture) if show else picture)
    masks = [one.mask if mask_use == COVERED else None for one in references]
    if method == JOINED or not references:
        seen, muted, notes = _together(encoder, pictures, prompt, layers, masks, mute, options)
    else:
        weights = [one.weight for one in references]
        mute = mute or needs_muted(method, weights)
        readings, silent, notes = _each_alone(encoder, pictures, prompt, layers, mute, options)
        combined = combine(readings, weights, method, muted=silent, masks=masks)
        seen, muted = combined.seen, combined.muted
        half = ", half of them with the picture muted" if mute else ""
        notes += [combined.describe(), f"{len(pictures) * (1 + mute)} encodes{half}"]
    if any(mask is not None for mask in masks):
        notes.append("masks: they pick picture tokens; the words have seen the whole pictures")
    return seen, muted, [*lines, *notes]


def _together(
    encoder: Any, pictures: list[Tensor], prompt: str, layers: list[int], masks: list[Tensor | None], mute: bool,
    options: dict,
) -> tuple[VLStates, VLStates | None, list[str]]:
    images = {f"image{index}": picture for index, picture in enumerate(pictures)}
    seen, notes = encoders.encode_vision(encoder, images, prompt, layers, **options)
    muted = encoders.encode_vision(encoder, images, prompt, layers, mute=True, **options)[0] if mute else None
    if any(mask is not None for mask in masks):
        states, layout = select_tokens(seen.states, seen.layout, "all", mask=masks)
        if len(layout.grids) < len(seen.layout.grids):
            raise ValueError("masks: one covers no image token of its picture. Paint a larger area.")
        seen = replace(seen, states=states, layout=layout)
    return seen, muted, notes


def _each_alone(
    encoder: Any, pictures: list[Tensor], prompt: str, layers: list[int], mute: bool, options: dict
) -> tuple[list[VLStates], list[VLStates] | None, list[str]]:
    readings, silent, notes = [], [], []
    for number, picture in enumerate(pictures, 1):
        pixels, _ = check_picture(picture, f"image {number}")  # alone, the encoder would call each of them image 1
        fit_size(*pixels.shape[:2], name=f"image {number}")
        reading, remarks = encoders.encode_vision(encoder, {"image0": picture}, prompt, layers, **options)
        readings.append(reading)
        notes += [remark.replace("image 1", f"image {number}", 1) for remark in remarks]
        if mute:
            silent.append(encoders.encode_vision(encoder, {"image0": picture}, prompt, layers, mute=True, **options)[0])
    return readings, silent if mute else None, notes


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
