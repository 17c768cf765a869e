"""The built-in reference pictures: photographs that scikit-image brings, and drawings made here in a look each."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

SIDE = 768
# Public domain or CC0, and within scikit-image's own package: nothing is downloaded.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")


def builtin_pictures(side: int = SIDE) -> dict[str, Tensor]:
    """Pictures uint8 ``(side, side, 3)`` by name; without scikit-image only the drawings."""
    found: dict[str, Tensor] = {}
    if find_spec("skimage") is not None:
        from skimage import data

        for name in PHOTOGRAPHS:
            found[name] = _square(np.asarray(getattr(data, name)())[..., :3], side)
    for name, draw in DRAWINGS.items():
        found[name] = torch.from_numpy(draw(side, random.Random(name)).copy())
    return found


def _square(pixels: np.ndarray, side: int) -> Tensor:
    from PIL import Image, ImageOps

    return torch.from_numpy(np.array(ImageOps.fit(Image.fromarray(pixels), (side, side), Image.Resampling.LANCZOS)))


def _poster(side: int, rng: random.Random) -> np.ndarray:
    """Flat shapes in few warm colours: hills below a large sun."""
    image, draw = _sheet(side, (250, 222, 170))
    draw.ellipse((side * 0.3, side * 0.15, side * 0.7, side * 0.55), fill=(226, 92, 62))
    for number, colour in enumerate(((190, 120, 90), (120, 74, 84), (62, 44, 70))):
        base, phase = side * (0.55 + 0.13 * number), rng.uniform(0, 6)
        points = [(x, base + side * 0.05 * math.sin(x / side * 7 + phase)) for x in range(0, side + 8, 8)]
        draw.polygon([*points, (side, side), (0, side)], fill=colour)
    return np.asarray(image)


def _ink(side: int, rng: random.Random) -> np.ndarray:
    """Black lines on paper, hatched: a tree."""
    image, draw = _sheet(side, (244, 240, 228))

    def branch(x: float, y: float, angle: float, length: float, width: float) -> None:
        end = x + length * math.cos(angle), y + length * math.sin(angle)
        draw.line((x, y, *end), fill=(20, 20, 24), width=max(1, round(width)))
        if length > side * 0.03:
            for _ in range(3):
                branch(*end, angle + rng.uniform(-0.7, 0.7), length * rng.uniform(0.6, 0.8), width * 0.66)

    branch(side / 2, side * 0.92, -math.pi / 2, side * 0.22, side * 0.03)
    for number in range(60):
        x = side * number / 60
        draw.line((x, side * 0.95, x + side * 0.03, side * 0.9), fill=(20, 20, 24), width=2)
    return np.asarray(image)


def _wash(side: int, rng: random.Random) -> np.ndarray:
    """Soft blots of pale blue, violet and rose that run into one another."""
    from PIL import Image, ImageDraw, ImageFilter

    image = Image.new("RGB", (side, side), (246, 244, 240))
    for _ in range(40):
        layer = Image.new("L", (side, side), 0)
        x, y, size = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.06, 0.2) * side
        ImageDraw.Draw(layer).ellipse((x - size, y - size, x + size, y + size * 0.8), fill=rng.randint(60, 130))
        colour = rng.choice(((120, 160, 214), (160, 130, 200), (222, 150, 176), (140, 196, 206)))
        image.paste(colour, mask=layer.filter(ImageFilter.GaussianBlur(size / 6)))
    return np.asarray(image)


def _neon(side: int, rng: random.Random) -> np.ndarray:
    """Glowing magenta and cyan lines on black: a town at night."""
    from PIL import ImageChops, ImageFilter

    image, draw = _sheet(side, (8, 6, 18))
    x = 0.0
    while x < side:
        width, height = rng.uniform(0.05, 0.12) * side, rng.uniform(0.2, 0.7) * side
        colour = rng.choice(((255, 40, 180), (40, 230, 255), (150, 80, 255)))
        draw.rectangle((x, side - height, x + width, side), outline=colour, width=4)
        for _ in range(6):
            at = x + rng.uniform(0.1, 0.8) * width, side - rng.uniform(0.1, 0.9) * height
            draw.rectangle((*at, at[0] + 8, at[1] + 12), fill=colour)
        x += width * 1.1
    glow = image.filter(ImageFilter.GaussianBlur(side / 50))
    return np.asarray(ImageChops.screen(image, ImageChops.add(glow, glow)))


def _pixels(side: int, rng: random.Random) -> np.ndarray:
    """Large square pixels in a few saturated colours: a small ship between stars."""
    grid = np.zeros((32, 32, 3), np.uint8) + np.array((24, 20, 58), np.uint8)
    for _ in range(40):
        grid[rng.randrange(32), rng.randrange(32)] = rng.choice(((255, 255, 255), (255, 220, 90)))
    ship = ("...xx...", "..xxxx..", ".xooxxx.", "xxxxxxxx", "xx.xx.xx", "o..oo..o")
    for row, line in enumerate(ship):
        for column, mark in enumerate(line):
            if mark != ".":
                grid[13 + row, 12 + column] = (90, 220, 120) if mark == "x" else (255, 90, 70)
    step = -(-side // 32)
    return grid.repeat(step, 0).repeat(step, 1)[:side, :side]


def _glass(side: int, rng: random.Random) -> np.ndarray:
    """Stained glass: fields of deep colour between black lines."""
    count = 42
    points = np.array([(rng.uniform(0, side), rng.uniform(0, side)) for _ in range(count)])
    palette = np.array(((170, 30, 40), (24, 70, 150), (230, 170, 40), (20, 120, 90), (110, 40, 120)), np.uint8)
    y, x = np.mgrid[:side, :side]
    distance = np.stack([np.hypot(x - a, y - b) for a, b in points])
    nearest = np.partition(distance, 1, 0)
    pixels = palette[np.array([rng.randrange(len(palette)) for _ in range(count)])[distance.argmin(0)]]
    return np.where((nearest[1] - nearest[0] < side / 90)[..., None], np.uint8(12), pixels)


def _sheet(side: int, colour: tuple[int, int, int]):
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (side, side), colour)
    return image, ImageDraw.Draw(image)


DRAWINGS: dict[str, Callable[[int, random.Random], np.ndarray]] = {
    "poster": _poster, "ink": _ink, "wash": _wash, "neon": _neon, "pixels": _pixels, "glass": _glass,
}
