"""Reference pictures, each with a weight and perhaps a mask, read as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..pictures import check_picture, crop_to_mask, fit_size
from ..stages.combine import combine, needs_muted
from ..stages.select import select_tokens
from ..states.vl_states import VLStates
from .settings import BY_TAKE, COVERED, CROP, JOINED, Settings
from .takes import show

Read = Callable[..., tuple[VLStates, list[str]]]  # (pictures, muted=...) -> a reading and remarks


@dataclass(frozen=True, eq=False)
class Reference:
    """A picture that somebody gave.

    Attributes:
        picture: ``(1, H, W, C)`` or ``(H, W, C)``. ``mask``: ``(H, W)`` of what counts of it, None for all.
        weight: how much it counts; below 0 pushes away.
    """

    picture: Tensor
    mask: Tensor | None = None
    weight: float = 1.0


def cropped(references: Sequence[Reference], settings: Settings) -> tuple[list[Tensor], list[str]]:
    """What is looked at of each picture, and remarks: the box of its mask where masks crop."""
    pictures, lines = [], []
    for number, one in enumerate(references, 1):
        if one.mask is None or settings.mask_use != CROP:
            pictures.append(one.picture)
            continue
        pictures.append(crop_to_mask(one.picture, one.mask, f"mask of picture {number}"))
        (height, width), whole = pictures[-1].shape[-3:-1], one.picture.shape[-3:-1]
        lines.append(f"image {number}: cropped to {width}×{height} of {whole[1]}×{whole[0]}")
    return pictures, lines


def whole_pictures(references: Sequence[Reference], settings: Settings) -> tuple[list[Tensor], list[str]]:
    """:func:`cropped`, for ways that tell what a picture is like as a whole.

    Raises:
        ValueError: for masks that are to pick tokens.
    """
    if settings.mask_use == COVERED and any(one.mask is not None for one in references):
        raise ValueError(
            f"mask_use: {COVERED} picks a picture's own tokens, but this way tells what it is like as a whole. Choose "
            f"{CROP}."
        )
    return cropped(references, settings)


def check_joined(references: Sequence[Reference], way: str) -> None:
    """Refuse weights other than 1 where all pictures are seen together.

    Raises:
        ValueError: naming the weight.
    """
    odd = [one.weight for one in references if one.weight != 1]
    if odd:
        raise ValueError(
            f"weights: expected 0 or 1 with {way}, which sees all pictures together, got {odd[0]:g}. Choose the way "
            "picture adapter, or a way that blends or appends, with combine average or another."
        )


def read_as_one(
    references: Sequence[Reference], settings: Settings, read: Read, muted: bool
) -> tuple[VLStates, VLStates | None, list[str]]:
    """One reading of all references, the same with its pictures muted if asked for, and remarks.

    Raises:
        ValueError: see :func:`combine`; for weights that reading together cannot have.
    """
    use = settings.taken.picture if settings.picture == BY_TAKE else settings.picture
    pictures, lines = cropped(references, settings)
    pictures = [show(picture, use, f"image {number}") for number, picture in enumerate(pictures, 1)]
    masks = [one.mask if settings.mask_use == COVERED else None for one in references]
    if settings.combine == JOINED or not references:
        check_joined(references, f"combine = {JOINED}")
        seen, notes = read(pictures)
        silent = read(pictures, muted=True)[0] if muted else None
        if any(mask is not None for mask in masks):
            states, layout = select_tokens(seen.states, seen.layout, "all", mask=masks)
            if len(layout.grids) < len(seen.layout.grids):
                raise ValueError("masks: one covers no image token of its picture. Paint a larger area.")
            seen = replace(seen, states=states, layout=layout)
    else:
        weights = [one.weight for one in references]
        muted = muted or needs_muted(settings.combine, weights)
        readings, silents, notes = read_alone(pictures, read, muted)
        combined = combine(readings, weights, settings.combine, muted=silents, masks=masks)
        seen, silent = combined.seen, combined.muted
        half = ", half of them with the picture muted" if muted else ""
        notes += [combined.describe(), f"{len(pictures) * (1 + muted)} encodes{half}"]
    if any(mask is not None for mask in masks):
        notes.append("masks: they pick picture tokens; the words have seen the whole pictures")
    return seen, silent, [*lines, *notes]


def read_alone(
    pictures: Sequence[Tensor], read: Read, muted: bool = False
) -> tuple[list[VLStates], list[VLStates] | None, list[str]]:
    """Each picture by itself, the same with it muted if asked for, and remarks."""
    readings, silents, notes = [], [], []
    for number, picture in enumerate(pictures, 1):
        pixels, _ = check_picture(picture, f"image {number}")  # alone, the encoder would call each of them image 1
        fit_size(*pixels.shape[:2], name=f"image {number}")
        reading, remarks = read([picture])
        readings.append(reading)
        notes += [remark.replace("image 1", f"image {number}", 1) for remark in remarks]
        if muted:
            silents.append(read([picture], muted=True)[0])
    return readings, silents if muted else None, notes
