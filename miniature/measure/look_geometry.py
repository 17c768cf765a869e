"""What the world varies and no caption tells, read off a picture by geometry: stripes, checks and gradients.

Stripes have a period of 11 to 14 pixels and an angle of 45 ± 14 degrees, the diagonals of checks 1.06 times such a
period, gradients a direction of 90 ± 17 degrees. Grain varies in nothing but its noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import world

FINE = 512  # of the padded spectrum
MARGIN = 14  # pixels at the edges where hardly anything but the ground is, for gradients


def grating(pictures: Tensor, shortest: float, longest: float) -> tuple[Tensor, Tensor]:
    """Period in pixels and angle in degrees, 0 to 180, of the strongest grating of pictures ``(N, 3, H, W)``.

    The peak of the windowed, padded power spectrum among periods from ``shortest`` to ``longest``; the angle is that of
    its wave vector, 0 along x. Each ``(N,)``.
    """
    light = pictures.float().cpu().mean(1)
    side = light.shape[-1]
    window = torch.hann_window(side, periodic=False)
    flat = (light - light.mean((1, 2), keepdim=True)) * window[:, None] * window
    power = torch.fft.fft2(flat, s=(FINE, FINE)).abs().square()
    rate = torch.fft.fftfreq(FINE)
    fy, fx = torch.meshgrid(rate, rate, indexing="ij")
    radius = torch.hypot(fx, fy)
    allowed = (radius >= 1 / longest) & (radius <= 1 / shortest) & ((fy > 0) | ((fy == 0) & (fx > 0)))
    peak = torch.where(allowed, power, -1.0).flatten(1).argmax(1)
    x, y = fx.flatten()[peak], fy.flatten()[peak]
    return 1 / torch.hypot(x, y), torch.rad2deg(torch.atan2(y, x)) % 180


def slope(pictures: Tensor) -> Tensor:
    """Direction in degrees, −180 to 180, in which pictures ``(N, 3, H, W)`` grow darker along their edges, ``(N,)``.

    That of the plane which fits the light of the ring at the edges best.
    """
    light = pictures.float().cpu().mean(1)
    side = light.shape[-1]
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    ring = torch.ones(side, side, dtype=torch.bool)
    ring[MARGIN:-MARGIN, MARGIN:-MARGIN] = False
    plane = torch.stack([torch.ones_like(x), x, y], -1)[ring]
    fit = torch.linalg.lstsq(plane, light[:, ring].T).solution  # (3, N)
    return torch.rad2deg(torch.atan2(-fit[2], -fit[1]))


@dataclass(frozen=True)
class Property:
    """What is measured, in pictures of which style, and the period after which it is the same again; 0 for none."""

    name: str
    style: str
    unit: str
    read: Callable[[Tensor], Tensor]
    turn: float = 0.0

    def error(self, painted: Tensor, goal: Tensor) -> Tensor:
        """Distance from a goal, both as read."""
        apart = (painted - goal).abs()
        return torch.minimum(apart, self.turn - apart) if self.turn else apart


SHORT, LONG = 8.5, 17.0  # pixels: periods of stripes that are looked for
CHECK = 1.5 * math.sqrt(2) / 2  # period of the checks' diagonal wave by the style's own period

PROPERTIES = (
    Property("angle of stripes", "striped", "degrees", lambda each: grating(each, SHORT, LONG)[1], 180.0),
    Property("period of stripes", "striped", "pixels", lambda each: grating(each, SHORT, LONG)[0]),
    Property("period of checks", "checkered", "pixels", lambda each: grating(each, SHORT * CHECK, LONG * CHECK)[0]),
    Property("direction of a gradient", "gradient", "degrees", slope, 360.0),
)
STYLES = tuple(dict.fromkeys(each.style for each in PROPERTIES))


def lookalikes(count: int, style: str, seed: int) -> world.Pairs:
    """Conflicting pairs whose references are all of one style, in neutral colours on a ground of middle lightness."""
    pairs = world.conflict_pairs(count, seed)
    references = pairs.references
    middle = [world.COLORS.index(name) for name in ("red", "orange", "green", "cyan", "blue", "purple", "pink")]
    ground = torch.tensor(middle)[torch.arange(count) % len(middle)]
    # No shape has the ground's colour, in the reference and in the prompt.
    thing = torch.where(references.color[:, 0] == ground, (ground + 1) % len(world.COLORS), references.color[:, 0])
    wish = torch.where((pairs.color == ground) | (pairs.color == thing), (thing + 1) % len(world.COLORS), pairs.color)
    wish = torch.where(wish == ground, (wish + 1) % len(world.COLORS), wish)
    scenes = replace(
        references, background=ground, style=torch.full_like(ground, world.STYLES.index(style)),
        mood=torch.zeros_like(ground), color=thing[:, None].expand(-1, 2).contiguous(),
    )
    prompts = tuple(
        world.PROMPTS[index % 3].format(world.with_article(f"{world.COLORS[color]} {world.SHAPES[shape]}"))
        for index, (color, shape) in enumerate(zip(wish.tolist(), pairs.shape.tolist(), strict=True))
    )
    return replace(pairs, references=scenes, color=wish, prompts=prompts)
