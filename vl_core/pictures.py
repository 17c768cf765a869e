"""Pictures as Qwen3-VL takes them: 8-bit, sides in multiples of 32, cut into patches as transformers does.

The arithmetic is that of ``Qwen2VLImageProcessor`` in transformers (the torchvision one), which Qwen3-VL uses; both
encoder backends are fed from here, so they see the same pixels.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import functional

from .states.remembered import hash_parts, remembered
from .states.tensors import check_choice

PATCH = 16  # pixels per side of a vision patch
MERGE = 2  # patches per side of an image token
FACTOR = PATCH * MERGE
TEMPORAL_PATCH = 2  # a still picture is two equal frames
DEFAULT_BUDGET = 1024  # image tokens, that is 1024 × 1024 pixels
MAX_ASPECT = 200  # smart_resize's own limit
CACHED = 128 << 10  # numbers a core works on at a time: 0.75 ms for 1024² on eight cores, where half as many took 0.83
EXPECTED = "expected a picture (height, width, 3) or (1, height, width, 3), float in [0, 1] or uint8"


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture ready for the encoder.

    Attributes:
        pixels: uint8 ``(H, W, 3)`` on the CPU, sides in multiples of 32.
    """

    pixels: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Merged ``(rows, columns)``: one image token per 32 × 32 pixels."""
        return self.pixels.shape[0] // FACTOR, self.pixels.shape[1] // FACTOR

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of the size and of the hashes of the pixels' parts, which cores take side by side."""
        return hashlib.sha256(repr(tuple(self.pixels.shape)).encode() + hash_parts(self.pixels)).digest()


def split_batch(images: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The single pictures of ComfyUI IMAGE batches, each ``(1, H, W, C)``.

    Args:
        images: ``(B, H, W, C)`` batches or ``(H, W, C)`` pictures, or one of them.

    Raises:
        TypeError: for anything that is not a tensor.
        ValueError: for another number of axes or a batch of none.
    """
    pictures = []
    for number, batch in enumerate([images] if isinstance(images, Tensor) else images, 1):
        _require_tensor(batch, f"image {number}")
        if batch.ndim not in (3, 4) or not batch.shape[0]:
            raise ValueError(
                f"image {number}: expected (batch, height, width, channels) with at least one picture, got shape "
                f"{tuple(batch.shape)}. Connect an IMAGE."
            )
        pictures += (batch if batch.ndim == 4 else batch[None]).split(1)
    return pictures


def check_picture(picture: Tensor, name: str = "image") -> tuple[Tensor, list[str]]:
    """A picture as 8-bit RGB, and what had to be changed for that.

    ``uint8 = round(255 x)``, which is what a processor gets from the same picture as a file.

    Args:
        picture: ``(H, W, C)`` or ``(1, H, W, C)``, float in [0, 1] or uint8; C is 3, 4 (alpha is dropped),
            1 (grey is repeated) or 2 (grey and alpha).
        name: what errors and notes call it.

    Returns:
        uint8 ``(H, W, 3)`` on the CPU, and notes.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: for other shapes, a batch of several, no pixels, other dtypes, NaN or infinity.
    """
    _require_tensor(picture, name)
    shape = tuple(picture.shape)
    if picture.ndim == 4 and shape[0] > 1:
        raise ValueError(f"{name}: expected one picture, got a batch of {shape[0]}. Split it first (split_batch).")
    if picture.ndim == 4 and shape[0] == 1:
        picture = picture[0]
    if picture.ndim != 3:
        raise ValueError(f"{name}: {EXPECTED}, got shape {shape}. Connect a single IMAGE, channels last.")
    if not picture.numel():
        raise ValueError(f"{name}: {EXPECTED}, got shape {shape}, which has no pixels. Connect another picture.")
    pixels, notes = _three_channels(picture.detach().to("cpu"), name)
    if pixels.dtype == torch.uint8:
        return pixels, notes
    if not pixels.is_floating_point():
        raise ValueError(f"{name}: {EXPECTED}, got {pixels.dtype}. Convert it to one of those.")
    pixels = pixels.float()
    found, low, high = _to_bytes(pixels)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError(
            f"{name}: {EXPECTED}, got NaN or infinite pixels. Look for the node before this one that made them "
            "(often a VAE in fp16)."
        )
    if low < 0 or high > 1:
        notes.append(f"{name}: values from {low:.3g} to {high:.3g} clipped to 0 … 1")
        found, *_ = _to_bytes(pixels.clamp(0, 1))
    return found, notes


def _to_bytes(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``round(255 x)`` as uint8, and the extremes of x; NaN anywhere makes both NaN.

    In parts that stay in the caches of the cores: new memory is what takes the time. By way of 16 bits, since torch
    converts floats to bytes one by one.
    """
    found, extremes = torch.empty(pixels.shape, dtype=torch.uint8), []
    rows = max(1, CACHED * torch.get_num_threads() // pixels[0].numel())
    room = torch.empty(min(rows, len(pixels)), *pixels.shape[1:])
    narrow = torch.empty_like(room, dtype=torch.int16)
    for part, place in zip(pixels.split(rows), found.split(rows), strict=True):
        extremes += part.aminmax()
        wide = torch.mul(part, 255, out=room[: len(part)]).round_()
        place.copy_(narrow[: len(part)].copy_(wide))
    low, high = torch.stack(extremes).aminmax()
    return found, low, high


def fit_size(height: int, width: int, budget: int = DEFAULT_BUDGET, name: str = "image") -> tuple[int, int]:
    """The size a picture is encoded at: multiples of 32, at least 32, at most ``budget`` image tokens.

    The rule of transformers' ``smart_resize``: sides are rounded to the nearest multiple of 32; if that is more
    than ``budget`` × 1024 pixels, both are scaled by one factor and rounded down. Two differences: no picture is
    enlarged beyond the rounding, and a strip so long that its short side stops at 32 keeps to the budget.

    Returns:
        ``(height, width)`` in pixels.

    Raises:
        ValueError: for an aspect ratio above 200, sides below 1, or a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"budget: expected at least 1 image token, got {budget}.")
    if min(height, width) < 1:
        raise ValueError(f"{name}: expected at least 1×1 pixels, got {width}×{height}.")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise ValueError(
            f"{name}: expected sides at most {MAX_ASPECT}:1, got {width}×{height}. Crop it or pad it."
        )
    rows, columns = (max(1, round(side / FACTOR)) for side in (height, width))
    if rows * columns > budget:
        scale = max(1.0, math.sqrt(height * width / (budget * FACTOR**2)))  # 1: only the rounding was too much
        rows, columns = (max(1, math.floor(side / scale / FACTOR)) for side in (height, width))
        rows, columns = min(rows, budget // columns or 1), min(columns, budget // rows or 1)
    return rows * FACTOR, columns * FACTOR


def prepare_picture(
    picture: Tensor, budget: int = DEFAULT_BUDGET, name: str = "image"
) -> tuple[Picture, list[str]]:
    """Check a picture and bring it to the size it is encoded at.

    Args:
        picture: as :func:`check_picture` takes it.
        budget: most image tokens it may become; one token is 32 × 32 pixels.
        name: what errors and notes call it.

    Returns:
        the picture, and notes on every change beyond rounding the sides to 32.

    Raises:
        TypeError, ValueError: see :func:`check_picture` and :func:`fit_size`.
    """
    if not isinstance(picture, Tensor):
        return _prepare(picture, budget, name)  # says what is wrong with it
    prepared, notes = remembered(picture, ("prepared", budget, name), lambda: _prepare(picture, budget, name))
    return prepared, [*notes]


def _prepare(picture: Tensor, budget: int, name: str) -> tuple[Picture, list[str]]:
    pixels, notes = check_picture(picture, name)
    height, width = pixels.shape[:2]
    fitted = fit_size(height, width, budget, name)
    prepared = Picture(_resize(pixels, fitted))
    rounded = [max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width)]
    size = f"{name} {width}×{height}"
    if [*fitted] != rounded:
        notes.append(f"{size} scaled down to {fitted[1]}×{fitted[0]}, {prepared.tokens} image tokens")
    elif 0 in (round(height / FACTOR), round(width / FACTOR)):
        notes.append(f"{size} enlarged to {fitted[1]}×{fitted[0]}, {FACTOR} is the smallest side the encoder takes")
    return prepared, notes


def patchify(picture: Picture) -> tuple[Tensor, Tensor]:
    """What Qwen3-VL's vision tower reads, in the order of transformers' ``Qwen2VLImageProcessor``.

    Patches run through each 2 × 2 group that becomes one token, groups in raster order; within a patch channel,
    frame (the picture twice), row, column. Values are ``(x / 255 − 0.5) / 0.5``.

    Returns:
        ``pixel_values`` float32 ``(n_patches, 1536)`` and ``grid_thw`` int64 ``(1, 3)``: frames, patch rows, patch
        columns.
    """
    rows, columns = picture.grid
    values = (picture.pixels.float() - 127.5) / 127.5
    patches = values.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3).permute(0, 3, 1, 4, 6, 2, 5)
    frames = patches.unsqueeze(5).expand(-1, -1, -1, -1, -1, TEMPORAL_PATCH, -1, -1)
    return frames.reshape(rows * columns * MERGE**2, -1), torch.tensor([[1, rows * MERGE, columns * MERGE]])


def to_float(picture: Picture) -> Tensor:
    """float32 ``(1, H, W, 3)`` in [0, 1], a ComfyUI IMAGE."""
    return (picture.pixels.float() / 255)[None]


def _require_tensor(picture: object, name: str) -> None:
    if not isinstance(picture, Tensor):
        raise TypeError(f"{name}: {EXPECTED}, got {type(picture).__name__}. Convert it to a torch tensor.")


def _three_channels(picture: Tensor, name: str) -> tuple[Tensor, list[str]]:
    channels = picture.shape[-1]
    if channels == 3:
        return picture, []
    if channels == 4:
        return picture[..., :3], [f"{name}: alpha channel dropped"]
    if channels == 1:
        return picture.expand(-1, -1, 3), [f"{name}: grey repeated to RGB"]
    if channels == 2:
        return picture[..., :1].expand(-1, -1, 3), [f"{name}: grey repeated to RGB, alpha channel dropped"]
    raise ValueError(f"{name}: {EXPECTED}, got {channels} channels. Connect an IMAGE, channels last.")


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic on 8-bit values, the very operation torchvision's resize comes down to on the CPU."""
    if tuple(pixels.shape[:2]) == size:
        return pixels
    # Contiguous channels first, as a processor holds it: other strides may take another kernel.
    planes = pixels.permute(2, 0, 1).contiguous()[None]
    return functional.interpolate(planes, size=size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).contiguous()


COVERED = 0.5  # of a mask's 0 to 1: from here on a pixel belongs to its box


def crop_to_mask(picture: Tensor, mask: Tensor, name: str = "mask") -> Tensor:
    """The part of a picture in the box around what a mask covers; a full mask gives the picture itself.

    Args:
        picture: ``(H, W, C)`` or ``(1, H, W, C)``.
        mask: ``(h, w)`` or ``(1, h, w)`` in [0, 1], of any size: it is laid over the whole picture.

    Raises:
        ValueError: for a mask of another shape, or one that covers nothing.
    """
    if mask.ndim == 3 and mask.shape[0] == 1:
        mask = mask[0]
    if mask.ndim != 2 or not mask.numel():
        raise ValueError(f"{name}: expected one mask of shape (height, width), got {tuple(mask.shape)}.")
    covered = mask >= COVERED
    if not covered.any():
        raise ValueError(f"{name}: covers nothing, every value is below {COVERED}. Paint what is to be looked at.")
    sides, box = picture.shape[-3:-1], []
    for axis, side in enumerate(sides):
        lines = covered.any(1 - axis).nonzero().flatten()
        scale = side / mask.shape[axis]
        box.append((math.floor(int(lines[0]) * scale), math.ceil((int(lines[-1]) + 1) * scale)))
    (top, bottom), (left, right) = box
    if (bottom - top, right - left) == tuple(sides):
        return picture
    return picture[..., top:bottom, left:right, :]


GREY = 128  # of 255: zero to the encoder but for rounding
BLUR_CELLS = 4  # a blurred picture keeps the mean colours of 4 × 4 fields
BaselinePicture = Literal["grey", "blurred"]


def baseline_picture(picture: Tensor, kind: BaselinePicture, name: str = "image") -> Tensor:
    """A picture that says less, to take a delta against: uint8 ``(H, W, 3)`` of the same size.

    Args:
        picture: as :func:`check_picture` takes it.
        kind: "grey" is even mid grey: everything the picture shows counts as added. "blurred" keeps the mean colours
            of 4 × 4 fields, joined bilinearly: what counts as added is all but the light and colours at large.

    Raises:
        TypeError, ValueError: see :func:`check_picture`; for another kind.
    """
    check_choice("kind", kind, BaselinePicture)
    pixels, _ = check_picture(picture, name)
    if kind == "grey":
        return torch.full_like(pixels, GREY)
    planes = pixels.permute(2, 0, 1).float()[None]
    height, width = planes.shape[-2:]
    cells = F.adaptive_avg_pool2d(planes, (min(BLUR_CELLS, height), min(BLUR_CELLS, width)))
    blurred = F.interpolate(cells, size=planes.shape[-2:], mode="bilinear", align_corners=False)[0]
    return blurred.permute(1, 2, 0).round().to(torch.uint8).contiguous()


PICTURE_MODES = ("L", "LA", "RGB", "RGBA")  # what numpy gets from PIL as 8-bit channels
FULL_16_BIT = 65535


def read_picture(path: Path, name: str | None = None) -> Tensor:
    """The picture in a file, turned as its camera noted: the one reader for folders, the command line and results.

    Palettes, CMYK and grey become RGB, 16 bits become 8, of an animation the first frame is taken. Transparency is
    dropped, as ComfyUI's *Load Image* does, so a file means the same wherever it is given.

    Args:
        name: what errors call it; the file's name if None.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        ValueError: if it cannot be read as a picture, or is cut short; the message names it.
    """
    from PIL import Image, ImageOps

    name = name or path.name
    try:
        with Image.open(path) as image:
            image.load()
            pixels = as_tensor(_turned(image, ImageOps))
    except Exception as error:  # PIL's readers raise whatever damaged bytes lead them to
        raise ValueError(
            f"{name}: cannot be read as a picture ({type(error).__name__}: {error}). Remove it, or save it again."
        ) from error
    return check_picture(pixels, name)[0]


def _turned(image: Any, operations: Any) -> Any:
    try:
        return operations.exif_transpose(image)
    except Exception:  # damaged notes of a camera: the picture itself is whole
        return image


def as_pictures(image: Any) -> list[Tensor]:
    """Pictures as the encoder takes them: one or several tensors or PIL images, or None.

    Raises:
        TypeError: for anything else.
    """
    if image is None:
        return []
    return [as_tensor(one) for one in image] if isinstance(image, (list, tuple)) else [as_tensor(image)]


def as_tensor(image: Any) -> Tensor:
    """A tensor as it is; a PIL image as uint8 ``(H, W, C)``, or float in [0, 1] if it has more than 8 bits.

    Raises:
        TypeError: if it is neither.
        ValueError: for a PIL image of floats that are neither in [0, 1] nor in [0, 255], or whole numbers beyond 16
            bits.
    """
    if isinstance(image, Tensor):
        return image
    if not hasattr(image, "convert"):
        raise TypeError(f"image: expected a torch tensor or a PIL image, got {type(image).__name__}.")
    if image.mode.startswith(("I", "F")):  # PIL's own conversion would clip at 255
        return torch.from_numpy(_to_one(np.asarray(image, dtype=np.float32), image.mode))[..., None]
    if image.mode not in PICTURE_MODES:
        image = image.convert("RGBA" if "transparency" in image.info or image.mode in ("PA", "La", "RGBa") else "RGB")
    pixels = torch.from_numpy(np.array(image))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _to_one(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey of 16 bits, or floats of either convention, in [0, 1]."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    largest = FULL_16_BIT if mode.startswith("I") else 1 if high <= 1 else 255
    if not 0 <= low <= high <= largest:
        raise ValueError(f"expected grey values from 0 to {largest}, got {low:g} to {high:g}")
    return values / largest
