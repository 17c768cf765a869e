"""The whole chain from one strength, against numpy transcriptions of what each mode says it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vl_core.layout import TokenLayout, TokenRole, insert_pictures, text_layout
from vl_core.recipes import DEFAULT_LAYERS, check_recipe, condition
from vl_core.states import VLStates

WIDTH, GRID, LAYERS = 24, (4, 6), 8
IDS = [151644, 872, 198, 64, 8251, 304, 151645, 198, 151644, 77091, 198]  # user header, three words, tail
IMAGE_AT = slice(4, 4 + GRID[0] * GRID[1])


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def text() -> tuple[torch.Tensor, TokenLayout]:
    return random(len(IDS), WIDTH, seed=1) * 11 + 2, text_layout(IDS, layer=-2)


@pytest.fixture
def seen(text) -> VLStates:
    layout = insert_pictures(text[1], [GRID])
    return VLStates(random(2, len(layout), WIDTH, seed=2) * 3 - 1, (3, 7), LAYERS, layout)  # layers -6 and -2


def words_of(states: torch.Tensor) -> np.ndarray:
    """Positions outside the picture and its markers."""
    return np.concatenate([states.double().numpy()[:3], states.double().numpy()[IMAGE_AT.stop + 1 :]])


@pytest.mark.parametrize("mode", DEFAULT_LAYERS)
def test_strength_zero_is_the_text_itself(text, seen, mode):
    states, layout, report = condition(*text, seen, DEFAULT_LAYERS[mode], mode, 0.0)
    assert states is text[0]
    assert layout is text[1]
    assert "words only" in report


@pytest.mark.parametrize("mode", DEFAULT_LAYERS)
def test_without_a_picture_it_is_the_text_itself(text, mode):
    blind = VLStates(random(2, len(IDS), WIDTH, seed=3), (3, 7), LAYERS, text[1])
    states, layout, report = condition(*text, blind, DEFAULT_LAYERS[mode], mode, 0.7)
    assert states is text[0]
    assert layout is text[1]
    assert "No picture" in report


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_blend_aligned_mixes_token_by_token_what_z_image_sees(text, seen, strength):
    mixed, layout, _ = condition(*text, seen, -2, "blend aligned", strength)
    y, x = text[0].double().numpy(), words_of(seen.states[1])
    rms_y, rms_x = (np.sqrt((side**2).mean(1, keepdims=True)) for side in (y, x))
    expected = rms_y * ((1 - strength) * y / rms_y + strength * x / rms_x)
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert layout.token_ids.tolist() == IDS


@pytest.mark.parametrize(("words", "strength"), [(3, 0.3), (3, 1.0)])
def test_blend_as_published_is_the_notes_arithmetic(text, seen, words, strength):
    """Text tokens scaled to std 61 over all elements, linear resampling (here to the same length), plain mixture."""
    mixed, _, report = condition(*text, seen, -6, "blend as published", strength)
    x = words_of(seen.states[0])
    expected = (1 - strength) * text[0].double().numpy() + strength * x * 61.0 / x.std(ddof=1)
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-4)
    assert "61.00" in report


def test_blend_as_published_resamples_to_another_length_with_half_pixel_centres(seen):
    """torch's linear interpolation without antialias, written out."""
    length, source = 7, len(IDS)
    text = random(length, WIDTH, seed=5)
    mixed, _, _ = condition(text, None, seen, -6, "blend as published", 0.5)
    x = words_of(seen.states[0])
    x = x * 61.0 / x.std(ddof=1)
    at = np.clip((np.arange(length) + 0.5) * source / length - 0.5, 0, source - 1)
    low = np.floor(at).astype(int)
    high, weight = np.minimum(low + 1, source - 1), (at - low)[:, None]
    expected = 0.5 * text.double().numpy() + 0.5 * ((1 - weight) * x[low] + weight * x[high])
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_blend_as_published_counts_sinks_like_any_token(text, seen):
    seen.states[0, 0] = 4000
    mixed, _, _ = condition(*text, seen, -6, "blend as published", 0.4)
    x = words_of(seen.states[0])
    expected = 0.6 * text[0].double().numpy() + 0.4 * x * 61.0 / x.std(ddof=1)
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("strength", "factor"), [(1.0, 1), (0.5, 2), (0.34, 3), (0.01, 100)])
def test_appending_keeps_the_text_bit_for_bit_and_pools_the_picture(text, seen, strength, factor):
    mixed, layout, _ = condition(*text, seen, -2, "append picture", strength)
    length = len(IDS)
    assert torch.equal(mixed[:length], text[0])
    picture = seen.states[1, IMAGE_AT].double().numpy().reshape(*GRID, WIDTH)
    cells = [
        picture[row : row + factor, column : column + factor].mean((0, 1))
        for row in range(0, GRID[0], factor)
        for column in range(0, GRID[1], factor)
    ]
    np.testing.assert_allclose(mixed[length:].numpy(), np.stack(cells), atol=1e-5)
    assert layout.counts()[TokenRole.IMAGE] == len(cells)
    assert len(layout) == len(mixed)


@pytest.mark.parametrize("mode", DEFAULT_LAYERS)
def test_a_batch_and_half_precision_keep_their_shape_and_type(text, seen, mode):
    batch = text[0].bfloat16().expand(2, -1, -1)
    mixed, _, _ = condition(batch, text[1], seen, DEFAULT_LAYERS[mode], mode, 0.5)
    assert (mixed.dtype, mixed.ndim, mixed.shape[0]) == (torch.bfloat16, 3, 2)
    assert torch.equal(mixed[0], mixed[1])


def test_inputs_stay_as_they_were(text, seen):
    before = text[0].clone(), seen.states.clone()
    for mode in DEFAULT_LAYERS:
        condition(*text, seen, DEFAULT_LAYERS[mode], mode, 0.5)
    assert torch.equal(text[0], before[0])
    assert torch.equal(seen.states, before[1])


def test_the_report_tells_mode_strength_layer_and_picture(text, seen):
    report = condition(*text, seen, -2, "blend aligned", 0.25)[2]
    assert "blend aligned, strength 0.25, layer -2" in report
    assert "24 image tokens (4×6)" in report


@pytest.mark.parametrize(
    ("mode", "strength", "message"),
    [
        ("blend", 0.5, "mode: expected one of blend aligned, blend as published, append picture, got 'blend'"),
        ("blend aligned", 1.01, "strength: expected 0"),
        ("append picture", -0.1, "strength: expected 0"),
        ("blend aligned", float("nan"), "strength: expected 0"),
    ],
)
def test_unknown_modes_and_strengths_are_refused_beforehand(mode, strength, message):
    with pytest.raises(ValueError, match=message):
        check_recipe(mode, strength)


def test_another_prompt_cannot_be_aligned(text, seen):
    other = text_layout([*IDS[:4], 999, *IDS[5:]])
    with pytest.raises(ValueError, match="at position 4 the text has token 999"):
        condition(text[0], other, seen, -2, "blend aligned", 0.5)
