"""The inspection figure shows what it says it shows."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from vl_core.layout import TokenLayout, TokenRole
from vl_core.metrics import inspect
from vl_core.plots import OUTLIER_COLOUR, ROLE_COLOURS, inspection_figure
from vl_core.statistics import ReferenceStatistics

pytest.importorskip("matplotlib", reason="the figure is drawn with matplotlib")

STATES = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
REFERENCE = ReferenceStatistics.of(torch.randn(90, 16, generator=torch.Generator().manual_seed(1)))


def layout() -> TokenLayout:
    roles = torch.tensor([0] * 3 + [2] + [3] * 12 + [2] + [1] * 8 + [0] * 5)
    return TokenLayout(roles, torch.zeros(30, dtype=torch.int64), ((3, 4),))


def has_colour(picture: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return bool((np.abs(picture.astype(int) - wanted).max(-1) <= 2).any())


def test_the_figure_is_8_bit_rgb_with_a_white_border():
    picture = inspection_figure(inspect(STATES, layout(), REFERENCE), "title")
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
    edges = [picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]]
    assert all((edge == 255).all() for edge in edges), "something is cut off at the edge"


def test_the_second_panel_needs_a_reference():
    one, two = inspection_figure(inspect(STATES)), inspection_figure(inspect(STATES, reference=REFERENCE))
    assert two.shape[0] == 2 * one.shape[0]
    assert two.shape[1] == one.shape[1]


def test_each_role_present_has_its_colour():
    picture = inspection_figure(inspect(STATES, layout()))
    assert all(has_colour(picture, colour) for colour in ROLE_COLOURS.values())
    words = inspection_figure(inspect(STATES))
    assert has_colour(words, ROLE_COLOURS[TokenRole.TEXT])
    assert not has_colour(words, ROLE_COLOURS[TokenRole.IMAGE])


def test_a_sink_is_ringed():
    with_sink = STATES.clone()
    with_sink[0] = 3000
    assert has_colour(inspection_figure(inspect(with_sink)), OUTLIER_COLOUR)
    assert not has_colour(inspection_figure(inspect(STATES)), OUTLIER_COLOUR)


@pytest.mark.parametrize("states", [torch.zeros(5, 16), torch.full((5, 16), float("nan")), STATES[:1]])
def test_degenerate_sequences_can_be_drawn(states):
    assert inspection_figure(inspect(states, reference=REFERENCE)).size


def test_sequences_partly_nan_can_be_drawn():
    partly = STATES.clone()
    partly[4] = float("nan")
    assert inspection_figure(inspect(partly, layout(), REFERENCE)).size


def test_the_same_inspection_gives_the_same_picture():
    inspection = inspect(STATES, layout(), REFERENCE)
    assert np.array_equal(inspection_figure(inspection), inspection_figure(inspection))


def test_drawing_needs_no_display_and_leaves_pyplot_alone():
    before = "matplotlib.pyplot" in sys.modules
    inspection_figure(inspect(STATES))
    assert ("matplotlib.pyplot" in sys.modules) == before
