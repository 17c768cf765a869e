"""What one look is learned from, made ready: latents, texts, and where in each picture the look is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pictures import check_picture
from ..states.tensors import all_finite
from .look import hash_picture
from .options import LearnOptions
from .painter import Painter
from .start import Start, Words, begin, check_shows
from .units import with_look

MOST_PICTURES = 16
SUBJECT_LEVELS = (0.9, 0.75, 0.6)  # noise levels at which the told subject is looked for
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
        latents: per picture ``(C, h, w)``. ``weights``: per picture ``(h, w)`` of mean 1, what the loss counts where.
        sizes: per picture width and height in pixels. ``pictures``: their hashes.
    """

    words: Words
    start: Start
    latents: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
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
    even = tuple(torch.ones(found.shape[1:], device=device) for found in latents)
    return Ready(lesson.words, start.to(device), tuple(latents), even, sizes, hashes)


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


@torch.no_grad()
def spare_subjects(painter: Painter, lessons: Sequence[Ready], options: LearnOptions, at_once: int = 0) -> list[Ready]:
    """The lessons with less weight where the told subject is: the look is what is left to explain.

    The subject is where telling it changes what the model predicts, as in DiffEdit (arXiv 2210.11427, section 3.2):
    the mean square difference between the velocities with and without what is shown, the look's words behind both.

    Args:
        at_once: how many noisy pictures the model sees at once; 0 for all of one size.
    """
    every = [(ready, number) for ready in lessons for number in range(len(ready.latents))]
    weights: dict[tuple[int, int], Tensor] = {}
    for shape in dict.fromkeys(ready.latents[number].shape for ready, number in every):
        alike = [(ready, number) for ready, number in every if ready.latents[number].shape == shape]
        size = max(1, at_once // 2) if at_once else len(alike)
        for start in range(0, len(alike), size):
            part = alike[start : start + size]
            for (ready, number), changed in zip(part, _changed_by_telling(painter, part, options), strict=True):
                weights[id(ready), number] = 1 - options.spare * _share(changed)
    found = []
    for ready in lessons:
        own = [weights[id(ready), number] for number in range(len(ready.latents))]
        found.append(replace(ready, weights=tuple(one / one.mean() for one in own)))
    return found


def _changed_by_telling(painter: Painter, pictures: Sequence[tuple[Ready, int]], options: LearnOptions) -> Tensor:
    """How much telling the subject changes the velocity, where: ``(N, h, w)`` of pictures of one size."""
    told = [
        with_look(text.head, text.tail, ready.start.tokens, ready.start.sizes, ready.start.tail)
        for ready, number in pictures for text in (ready.start.told[number], ready.start.bare)
    ]
    clean = torch.stack([ready.latents[number] for ready, number in pictures])
    changed = torch.zeros_like(clean[:, 0])
    for number, level in enumerate(SUBJECT_LEVELS):
        noise = draw_noise(clean[0], options.seed, -1 - number)
        noisy = torch.lerp(clean, noise, level).repeat_interleave(2, 0)
        both = painter.velocity(noisy, noisy.new_full((len(noisy),), level), told)
        changed += (both[::2] - both[1::2]).square().mean(1)
    return changed


def _share(changed: Tensor) -> Tensor:
    """``(h, w)`` smoothed over 3 × 3 and brought to [0, 1] between its lower quarter and its upper tenth."""
    smooth = F.avg_pool2d(changed[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    low, high = (smooth.flatten().quantile(part) for part in (0.25, 0.9))
    return ((smooth - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def draw_noise(latents: Tensor, seed: int, number: int) -> Tensor:
    """Noise like latents, drawn on the CPU: the same on every device, and whatever else is learned beside it."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    return torch.randn(latents.shape, generator=generator).to(latents.device)
