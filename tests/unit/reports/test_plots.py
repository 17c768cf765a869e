"""The inspection figure shows what it says it shows."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from vl_core.reports.inspection import inspect
from vl_core.reports.layer_report import layer_report
from vl_core.reports.plots import OUTLIER_COLOUR, ROLE_COLOURS, THEMES, inspection_figure, layer_figure, stack_figures
from vl_core.states.layout import TokenLayout, TokenRole
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.vl_states import VLStates

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


# --- every plot, both themes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
def test_all_plots_are_more_than_the_overview_and_nothing_is_cut_off(theme):
    inspection = inspect(STATES, layout(), REFERENCE)
    overview = inspection_figure(inspection, "title", theme=theme)
    picture = inspection_figure(inspection, "title", plots="all", theme=theme)
    assert picture.dtype == np.uint8 and picture.shape[1] == overview.shape[1]
    assert picture.shape[0] > 2 * overview.shape[0]
    edges = [picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]]
    background = picture[0, 0]
    assert all((edge == background).all() for edge in edges)


def test_scatters_need_a_reference_and_the_cosine_map_does_not():
    compared, alone = (
        inspection_figure(inspect(STATES, reference=reference), plots="all") for reference in (REFERENCE, None)
    )
    assert alone.shape[0] > inspection_figure(inspect(STATES)).shape[0]
    assert compared.shape[0] > alone.shape[0]


def test_the_default_is_the_light_overview():
    inspection = inspect(STATES, layout(), REFERENCE)
    expected = inspection_figure(inspection, plots="overview", theme="light")
    assert np.array_equal(inspection_figure(inspection), expected)


@pytest.mark.parametrize("theme", THEMES)
def test_a_theme_fills_the_background_and_draws_its_own_colours(theme):
    picture = inspection_figure(inspect(STATES, layout(), REFERENCE), theme=theme)
    colours = THEMES[theme]
    assert has_colour(picture[:1, :1], colours.background)
    assert all(has_colour(picture, colour) for colour in (*colours.roles.values(), colours.ink, colours.panel))


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, WCAG 2.1."""
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", THEMES)
def test_words_stand_out_from_what_is_behind_them(theme):
    colours = THEMES[theme]
    for behind in (colours.background, colours.panel):
        light, dark = sorted((luminance(colours.ink), luminance(behind)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 7  # WCAG's enhanced contrast


def test_the_cosine_map_shows_which_tokens_are_alike():
    alike = torch.ones(30, 16) + 0.01 * STATES
    opposite = alike * torch.tensor([1.0, -1.0]).repeat(15)[:, None]
    lightest, darkest = "#FDE725", "#440154"  # the ends of viridis
    assert has_colour(inspection_figure(inspect(opposite), plots="all"), lightest)
    assert has_colour(inspection_figure(inspect(opposite), plots="all"), darkest)
    whole = inspection_figure(inspect(alike), plots="all")
    share = (np.abs(whole.astype(int) - [0xFD, 0xE7, 0x25]).max(-1) <= 6).mean()
    assert share > 0.3, "tokens that are all alike fill the map with its lightest shade"


def test_many_tokens_are_pooled_and_drawn():
    many = torch.randn(1300, 16, generator=torch.Generator().manual_seed(2))
    assert inspection_figure(inspect(many, reference=REFERENCE), plots="all").size


@pytest.mark.parametrize("states", [torch.zeros(5, 16), torch.full((5, 16), float("nan")), STATES[:1], STATES[:2]])
def test_degenerate_sequences_can_be_drawn_in_full(states):
    assert inspection_figure(inspect(states, reference=REFERENCE), plots="all", theme="dark").size


def test_other_plots_and_themes_are_refused():
    with pytest.raises(ValueError, match=r"plots: expected one of token sizes, .*all, got 'some'"):
        inspection_figure(inspect(STATES), plots="some")
    with pytest.raises(ValueError, match="theme: expected one of light, dark, got 'blue'"):
        inspection_figure(inspect(STATES), theme="blue")


def test_figures_of_different_sizes_are_stacked_without_loss():
    one, two = inspection_figure(inspect(STATES)), inspection_figure(inspect(STATES, reference=REFERENCE))
    stacked = stack_figures([one, two])
    assert stacked.shape == (2, *two.shape) and stacked.dtype == np.uint8
    assert np.array_equal(stacked[1], two)
    assert np.array_equal(stacked[0, : len(one)], one) and (stacked[0, len(one) :] == 255).all()
    with pytest.raises(ValueError, match="figures: expected at least one"):
        stack_figures([])


# --- layers -----------------------------------------------------------------------------------------------------------


def encoded(layers: int = 5) -> VLStates:
    states = torch.randn(layers, 30, 16, generator=torch.Generator().manual_seed(3))
    return VLStates(states, tuple(range(layers)), layers - 1, layout())


@pytest.mark.parametrize("theme", THEMES)
def test_the_layer_figure_has_a_panel_per_metric_and_nothing_is_cut_off(theme):
    full = layer_figure(layer_report(encoded(), REFERENCE, STATES[:16]), "title", theme=theme)
    bare = layer_figure(layer_report(encoded()), theme=theme)
    assert full.dtype == np.uint8 and full.shape[0] == 5 * bare.shape[0]
    for picture in (full, bare):
        edges = [picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]]
        assert all((edge == picture[0, 0]).all() for edge in edges)
        assert all(has_colour(picture, THEMES[theme].roles[role]) for role in (TokenRole.TEXT, TokenRole.IMAGE))


def test_one_layer_can_be_drawn_with_and_without_sinks():
    report = layer_report(encoded(1), REFERENCE)
    assert layer_figure(report).size
    assert layer_figure(report, sinks="include").size
    with pytest.raises(ValueError, match="sinks: expected one of include, exclude"):
        layer_figure(report, sinks="maybe")
