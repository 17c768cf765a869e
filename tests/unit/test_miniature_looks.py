"""Measuring learned looks on the miniature: geometry against closed forms, what is told, the stage's rows."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("diffusers", reason="the miniature is diffusers classes")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")

from miniature import world
from miniature.measure.look_geometry import PROPERTIES, STYLES, grating, lookalikes, slope
from miniature.measure.looks import GOOD, rows
from vl_core.looks.options import QUALITIES

SIDE = world.SIDE


def plane_wave(period: float, angle: float, phase: float = 0.3) -> torch.Tensor:
    """``(3, 128, 128)``: light that waves along an angle in degrees."""
    line = torch.arange(SIDE).float()
    y, x = torch.meshgrid(line, line, indexing="ij")
    along = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
    return (0.3 * torch.sin(2 * math.pi * along / period + phase)).expand(3, -1, -1)


@pytest.mark.parametrize("period, angle", [(11.0, 31.0), (12.5, 45.0), (14.0, 59.0), (12.0, 0.0), (12.0, 120.0)])
def test_period_and_angle_of_a_wave_are_read_off(period, angle):
    (found,), (turned,) = grating(plane_wave(period, angle)[None], 8.5, 17.0)
    assert float(found) == pytest.approx(period, abs=0.2)
    apart = abs(float(turned) - angle)
    assert min(apart, 180 - apart) < 1.0


@pytest.mark.parametrize("direction", [90.0, 75.0, -30.0, 170.0])
def test_the_direction_of_a_ramp_is_read_off_around_an_object(direction):
    line = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    light = -0.3 * (x * math.cos(math.radians(direction)) + y * math.sin(math.radians(direction)))
    light[40:90, 30:80] = 0.9
    (found,) = slope(light.expand(1, 3, -1, -1))
    assert float(found) == pytest.approx(direction, abs=0.1)


def test_the_world_varies_what_is_read_off_and_no_caption_tells_it():
    spans = {"angle of stripes": 28.6, "period of stripes": 3.0, "period of checks": 3.2,
             "direction of a gradient": 34.4}
    middles = {"angle of stripes": 45.0, "period of stripes": 12.5, "period of checks": 13.3,
               "direction of a gradient": 90.0}
    for one in PROPERTIES:
        pairs = lookalikes(24, one.style, 3)
        pictures, _ = world.render(pairs.references, torch.Generator().manual_seed(4))
        found = one.read(pictures)
        # Even over a span; the edges of an object may disturb a single reading.
        expected = spans[one.name] / math.sqrt(12)
        assert 0.6 * expected < float(found.std()) < 1.5 * expected, one.name
        assert float(found.mean()) == pytest.approx(middles[one.name], abs=0.15 * spans[one.name])
        captions = {
            ", ".join(world.look_phrases(scene)).replace(f"{world.COLORS[scene.background]} background", "")
            for scene in pairs.references.records()
        }
        assert len({caption.replace(" an ", " a ") for caption in captions}) == 1


def test_an_angle_is_compared_around_its_turn():
    angle = next(one for one in PROPERTIES if one.name == "angle of stripes")
    assert angle.error(torch.tensor([179.0]), torch.tensor([2.0])).tolist() == [3.0]


@pytest.mark.parametrize("style", STYLES)
def test_lookalikes_disagree_with_their_prompts(style):
    pairs = lookalikes(40, style, 7)
    scenes = pairs.references
    assert (scenes.color[:, 0] != scenes.background).all()
    assert (pairs.color != scenes.background).all() and (pairs.color != scenes.color[:, 0]).all()
    assert (pairs.shape != scenes.shape[:, 0]).all()
    for prompt, color, shape in zip(pairs.prompts, pairs.color.tolist(), pairs.shape.tolist(), strict=True):
        assert prompt.endswith(f"{world.COLORS[color]} {world.SHAPES[shape]}")


def test_rows_differ_and_begin_with_the_qualities():
    found = list(rows())
    assert len({row.key for row in found}) == len(found) > 20
    assert [row.name for row in found[:6]] == [
        name for quality in QUALITIES for name in (quality, f"{quality}, 4 pictures")
    ]
    assert sum(row.options == GOOD for row in found) == 4  # good, of 4 pictures, and two that are told less
