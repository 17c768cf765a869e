"""What one look is learned from, made ready: latents and texts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pictures import check_picture
from ..states.tensors import all_finite
from .look import hash_picture
from .options import LearnOptions
from .painter import Painter
from .start import Start, Words, begin, check_shows

MOST_PICTURES = 16
SMALLEST_CROP = 0.5  # of a side: a strip loses no more to the multiples of sides


@dataclass(frozen=True, eq=False)
class Lesson:
    """One look to learn: its pictures, as :func:`check_picture` takes them, and what is told of them.

    Raises:
        ValueError: for no pictures, more than 16, or not a text per picture.
    """

    pictures: tuple[Tensor, ...]
    words: Words

    def __post_init__(self) -> None:
        if not 1 <= len(self.pictures) <= MOST_PICTURES:
            raise ValueError(f"pictures: expected 1 to {MOST_PICTURES} of one look, got {len(self.pictures)}.")
        check_shows(self.words.shows, len(self.pictures))


@dataclass(frozen=True, eq=False)
class Ready:
    """A lesson on one device.

    Attributes:
        latents: per picture ``(C, h, w)``. ``sizes``: their width and height in pixels. ``pictures``: hashes of them.
    """

    words: Words
    start: Start
    latents: tuple[Tensor, ...]
    sizes: tuple[tuple[int, int], ...]
    pictures: tuple[str, ...]


def make_ready(painter: Painter, lesson: Lesson, options: LearnOptions) -> Ready:
    """Texts first, then latents: a place with little memory holds one model at a time.

    Raises:
        ValueError: for pictures that cannot be read, texts that do not fit, or latents that are not finite.
    """
    pixels = [
        fit_picture(picture, options.size, painter.multiple, f"image {number}")
        for number, picture in enumerate(lesson.pictures, 1)
    ]
    hashes = tuple(hash_picture(picture) for picture in lesson.pictures)
    start = begin(painter, lesson.words)
    if options.tokens > len(start.tokens):
        start = start.with_tokens(options.tokens)
    latents = []
    for number, one in enumerate(pixels, 1):
        found = painter.latents(one).detach().float()
        if found.ndim != 3 or not all_finite(found):
            raise ValueError(
                f"image {number}: expected finite latents (channels, rows, columns) from the VAE, got "
                f"{'NaN or infinity' if found.ndim == 3 else f'shape {tuple(found.shape)}'}. Use the image model's own "
                "VAE, in bf16 or float32."
            )
        latents.append(found)
    device = latents[0].device
    sizes = tuple((one.shape[1], one.shape[0]) for one in pixels)
    return Ready(lesson.words, start.to(device), tuple(latents), sizes, hashes)


def fit_picture(picture: Tensor, size: int, multiple: int, name: str = "image") -> Tensor:
    """A picture of about ``size`` × ``size`` pixels in its own shape, never enlarged beyond one multiple.

    What sides in multiples of ``multiple`` leave over is cut about the middle.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        TypeError, ValueError: see :func:`check_picture`; for sides so unequal that half of one would be cut.
    """
    pixels, _ = check_picture(picture, name)
    height, width = pixels.shape[:2]
    shrink = min(1.0, size / math.sqrt(height * width))
    rows, columns = (max(1, round(side * shrink / multiple)) * multiple for side in (height, width))
    scale = max(rows / height, columns / width)
    if min(rows / (height * scale), columns / (width * scale)) < SMALLEST_CROP:
        raise ValueError(
            f"{name}: expected sides that multiples of {multiple} pixels fit, got {width}×{height}. Crop it, or raise "
            "size."
        )
    large = max(rows, round(height * scale)), max(columns, round(width * scale))
    planes = pixels.permute(2, 0, 1).float()[None]
    if large != (height, width):
        planes = F.interpolate(planes, size=large, mode="bicubic", antialias=True)
    top, left = (large[0] - rows) // 2, (large[1] - columns) // 2
    cut = planes[0, :, top : top + rows, left : left + columns]
    return cut.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def draw_noise(latents: Tensor, seed: int, number: int) -> Tensor:
    """Noise like latents, drawn on the CPU: the same on every device, and whatever else is learned beside it."""
    return torch.randn(latents.shape, generator=chance(seed, number)).to(latents.device)


def chance(seed: int, number: int) -> torch.Generator:
    """What is drawn at random, on the CPU."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
