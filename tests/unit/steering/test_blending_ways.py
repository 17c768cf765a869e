"""Ways that mix the VL's own states, from one strength, against numpy transcriptions of what each says it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vl_core.stages.delta import image_delta
from vl_core.states.layout import TokenLayout, TokenRole, insert_pictures, text_layout
from vl_core.states.statistics import PUBLISHED_TARGET_STD, ReferenceStatistics
from vl_core.states.vl_states import VLStates
from vl_core.steering.condition import condition
from vl_core.steering.references import Reference
from vl_core.steering.settings import FIELDS, Settings
from vl_core.steering.steer import steer
from vl_core.steering.way import Given, check_strength, find_way, ways
from vl_core.steering.ways.blends import needs_statistics

MIXING = ["aligned blend", "appended tokens", "blend and append", "research: image delta", "research: as published"]
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


@pytest.fixture
def muted(seen) -> VLStates:
    return VLStates(random(2, len(seen.layout), WIDTH, seed=8) * 3 - 1, (3, 7), LAYERS, seen.layout)


def words_of(states: torch.Tensor) -> np.ndarray:
    """Positions outside the picture and its markers."""
    return np.concatenate([states.double().numpy()[:3], states.double().numpy()[IMAGE_AT.stop + 1 :]])


@pytest.mark.parametrize("mode", MIXING)
def test_strength_zero_is_the_text_itself(text, seen, mode):
    states, layout, report = condition(*text, seen, find_way(mode).layer, mode, 0.0)
    assert states is text[0]
    assert layout is text[1]
    assert "words only" in report


@pytest.mark.parametrize("strength", [0.3, 0.5, 1.0])
def test_blend_and_append_is_the_one_and_then_the_other(text, seen, strength):
    found, layout, report = condition(*text, seen, -6, "blend and append", strength)
    mixed, mixed_layout, _ = condition(*text, seen, -6, "aligned blend", strength / 2)
    expected, _, _ = condition(
        mixed, mixed_layout, seen, -2, "appended tokens", strength, settings=Settings(append_position="before_tail")
    )
    assert torch.equal(found, expected)
    assert len(layout) == len(found)
    assert torch.equal(layout.token_ids[-5:], text[1].token_ids[-5:])
    assert "layer -6" in report and f"alpha {strength / 2:.2f}" in report


def test_a_delta_without_a_picture_is_the_text(text):
    blind = VLStates(random(2, len(IDS), WIDTH, seed=3), (3, 7), LAYERS, text[1])
    assert torch.equal(condition(*text, blind, -2, "research: image delta", 0.7, muted=blind)[0], text[0])


@pytest.mark.parametrize("mode", [mode for mode in MIXING if mode != "research: image delta"])
def test_without_a_picture_it_is_the_text_itself(text, mode):
    blind = VLStates(random(2, len(IDS), WIDTH, seed=3), (3, 7), LAYERS, text[1])
    states, layout, report = condition(*text, blind, find_way(mode).layer, mode, 0.7)
    assert states is text[0]
    assert layout is text[1]
    assert "No picture" in report


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_blend_aligned_mixes_token_by_token_what_z_image_sees(text, seen, strength):
    mixed, layout, _ = condition(*text, seen, -2, "aligned blend", strength)
    y, x = text[0].double().numpy(), words_of(seen.states[1])
    rms_y, rms_x = (np.sqrt((side**2).mean(1, keepdims=True)) for side in (y, x))
    expected = rms_y * ((1 - strength) * y / rms_y + strength * x / rms_x)
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert layout.token_ids.tolist() == IDS


@pytest.mark.parametrize(("words", "strength"), [(3, 0.3), (3, 1.0)])
def test_blend_as_published_is_the_notes_arithmetic(text, seen, words, strength):
    """Text tokens scaled to std 61 over all elements, linear resampling (here to the same length), plain mixture."""
    mixed, _, report = condition(*text, seen, -6, "research: as published", strength)
    x = words_of(seen.states[0])
    expected = (1 - strength) * text[0].double().numpy() + strength * x * 61.0 / x.std(ddof=1)
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-4)
    assert "61.00" in report


def test_blend_as_published_resamples_to_another_length_with_half_pixel_centres(seen):
    """torch's linear interpolation without antialias, written out."""
    length, source = 7, len(IDS)
    text = random(length, WIDTH, seed=5)
    mixed, _, _ = condition(text, None, seen, -6, "research: as published", 0.5)
    x = words_of(seen.states[0])
    x = x * 61.0 / x.std(ddof=1)
    at = np.clip((np.arange(length) + 0.5) * source / length - 0.5, 0, source - 1)
    low = np.floor(at).astype(int)
    high, weight = np.minimum(low + 1, source - 1), (at - low)[:, None]
    expected = 0.5 * text.double().numpy() + 0.5 * ((1 - weight) * x[low] + weight * x[high])
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("written", ["", "tokens full + unit_delta off", "tokens image_only + delta_to_text off"])
def test_the_style_delta_is_what_a_picture_has_over_a_grey_one(host, picture, written):
    """y + α·δ: δ the difference of two readings at std 61, of std 1 if asked for, stretched, at the text's std."""
    settings = Settings("research: as published", strength=0.6, published_method="style_delta", published=written)
    outcome = steer(host, "a cat in a hat", [Reference(picture)], settings)
    grey = torch.full((picture.shape[-2],) * 2 + (3,), 128 / 255)
    assert [one.layers for one in host.called("read")] == [[-6], [-6]]
    y = host.words("a cat in a hat")[0].states.double().numpy()
    sides = []
    for shown in (picture, grey):
        states, layout = host.read([shown], "a cat in a hat", [-6], budget=1024)[0].at(-6)
        kept = {"": (0, 1), "tokens full": (0, 1, 2, 3), "tokens image_only": (2, 3)}[written.split(" + ")[0]]
        x = states.double().numpy()[np.isin(layout.roles.numpy(), kept)]
        sides.append(x * PUBLISHED_TARGET_STD / x.std(ddof=1))
    delta = sides[0] - sides[1]
    delta = delta if "unit_delta off" in written else delta / delta.std(ddof=1)
    at = np.clip((np.arange(len(y)) + 0.5) * len(delta) / len(y) - 0.5, 0, len(delta) - 1)
    low = np.floor(at).astype(int)
    high, weight = np.minimum(low + 1, len(delta) - 1), (at - low)[:, None]
    delta = (1 - weight) * delta[low] + weight * delta[high]
    delta = delta if "delta_to_text off" in written else delta / delta.std(ddof=1) * y.std(ddof=1)
    np.testing.assert_allclose(outcome.entries[0].states.double().numpy(), y + 0.6 * delta, rtol=1e-5, atol=1e-4)


def test_blend_as_published_counts_sinks_like_any_token(text, seen):
    seen.states[0, 0] = 4000
    mixed, _, _ = condition(*text, seen, -6, "research: as published", 0.4)
    x = words_of(seen.states[0])
    expected = 0.6 * text[0].double().numpy() + 0.4 * x * 61.0 / x.std(ddof=1)
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("strength", "factor"), [(1.0, 1), (0.5, 2), (0.34, 3), (0.01, 100)])
def test_appending_keeps_the_text_bit_for_bit_and_pools_the_picture(text, seen, strength, factor):
    mixed, layout, _ = condition(*text, seen, -2, "appended tokens", strength)
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


@pytest.mark.parametrize("mode", MIXING)
def test_a_batch_and_half_precision_keep_their_shape_and_type(text, seen, muted, mode):
    batch = text[0].bfloat16().expand(2, -1, -1)
    mixed, _, _ = condition(batch, text[1], seen, find_way(mode).layer, mode, 0.5, muted=muted)
    assert (mixed.dtype, mixed.ndim, mixed.shape[0]) == (torch.bfloat16, 3, 2)
    assert torch.equal(mixed[0], mixed[1])


def test_inputs_stay_as_they_were(text, seen, muted):
    before = text[0].clone(), seen.states.clone(), muted.states.clone()
    for mode in MIXING:
        condition(*text, seen, find_way(mode).layer, mode, 0.5, muted=muted)
    assert torch.equal(text[0], before[0])
    assert torch.equal(seen.states, before[1])
    assert torch.equal(muted.states, before[2])


def test_every_way_says_what_it_does_where_it_reads_and_which_strengths_it_takes():
    for way in ways().values():
        assert way.meaning and -37 <= way.layer <= 0
        assert way.low <= 0 < way.high
        assert set(way.uses) <= set(FIELDS)
        if not way.tries and not way.missing(Given()):
            assert bool(way.layer) == bool(way.needs(Settings(way.name), Given()).layers)


@pytest.mark.parametrize("strength", [-3.0, -0.5, 0.4, 3.0])
def test_image_delta_adds_what_the_picture_changed_at_each_word(text, seen, muted, strength):
    moved, layout, report = condition(*text, seen, -2, "research: image delta", strength, muted=muted)
    y, plus, zero = text[0].double().numpy(), words_of(seen.states[1]), words_of(muted.states[1])
    unit = [side / np.sqrt((side**2).mean(1, keepdims=True)) for side in (plus, zero)]
    expected = y + strength * np.sqrt((y**2).mean(1, keepdims=True)) * (unit[0] - unit[1])
    np.testing.assert_allclose(moved.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert layout.token_ids.tolist() == IDS and f"strength {strength:g}" in report


def test_a_picture_that_is_muted_anyway_adds_exactly_nothing(text, seen):
    assert torch.equal(condition(*text, seen, -2, "research: image delta", 2.0, muted=seen)[0], text[0])


def test_image_delta_needs_the_muted_reading(text, seen):
    with pytest.raises(ValueError, match="whose pictures are muted, got none"):
        condition(*text, seen, -2, "research: image delta", 1.0)


def test_pictures_that_are_all_pushed_away_have_words_to_blend_and_nothing_to_append(text, seen, muted):
    outside = seen.layout.mask(TokenRole.TEMPLATE, TokenRole.TEXT)
    pushed, zero = (
        VLStates(one.states[:, outside], one.layers, LAYERS, one.layout.select(outside)) for one in (seen, muted)
    )
    blended = condition(*text, pushed, -2, "aligned blend", 0.5, muted=zero)
    assert torch.equal(blended[0], condition(*text, seen, -2, "aligned blend", 0.5)[0])
    assert "image tokens" not in blended[2]
    with pytest.raises(ValueError, match="every picture is pushed away"):
        condition(*text, pushed, -2, "appended tokens", 0.5, muted=zero)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["aligned blend", "research: image delta"])
def test_prompt_tokens_only_leaves_the_template_bit_for_bit(text, seen, muted, mode):
    mixed = condition(*text, seen, -2, mode, 0.7, muted=muted, settings=Settings(changed="prompt"))[0]
    whole = condition(*text, seen, -2, mode, 0.7, muted=muted)[0]
    assert torch.equal(mixed[:3], text[0][:3]) and torch.equal(mixed[6:], text[0][6:])
    assert torch.equal(mixed[3:6], whole[3:6]) and not torch.equal(whole[6:], text[0][6:])
    with pytest.raises(ValueError, match="which tokens are words"):
        condition(text[0], None, seen, -2, mode, 0.7, muted=muted, settings=Settings(changed="prompt"))


@pytest.mark.parametrize("mode", ["aligned blend", "research: image delta"])
def test_a_curve_goes_from_all_of_the_strength_to_its_share(text, seen, muted, mode):
    settings = Settings(curve="linear", curve_end=0.5)
    mixed = condition(*text, seen, -2, mode, 0.8, muted=muted, settings=settings)[0]
    for place, share in enumerate(np.linspace(1, 0.5, len(IDS))):
        one = condition(*text, seen, -2, mode, 0.8 * share, muted=muted)[0]
        np.testing.assert_allclose(mixed[place].numpy(), one[place].numpy(), rtol=1e-4, atol=1e-4)


def test_rank_and_direction_are_those_of_image_delta(text, seen, muted):
    settings = Settings(rank=1, remove_prompt_direction=True)
    moved = condition(*text, seen, -2, "research: image delta", 1.0, muted=muted, settings=settings)[0]
    expected = image_delta(
        text[0], seen.states[1], muted.states[1], 1.0, text_layout=text[1], vl_layout=seen.layout, rank=1,
        remove_prompt_direction=True,
    )[0]
    assert torch.equal(moved, expected)


def test_appended_tokens_can_stand_before_the_template_tail(text, seen):
    mixed, layout, _ = condition(
        *text, seen, -2, "appended tokens", 1.0, settings=Settings(append_position="before_tail")
    )
    assert torch.equal(torch.cat([mixed[:6], mixed[-5:]]), text[0])
    assert layout.token_ids[-5:].tolist() == IDS[-5:]


@pytest.mark.parametrize(
    "settings", [Settings(normalization="rms"), Settings(outlier_mode="zero", outlier_threshold=1.5)]
)
def test_cleaning_needs_the_text_encoders_statistics(text, seen, settings):
    reference = ReferenceStatistics.of(text[0])
    assert needs_statistics(settings) and not needs_statistics(Settings())
    cleaned = condition(*text, seen, -2, "appended tokens", 1.0, settings=settings, reference=reference)
    plain = condition(*text, seen, -2, "appended tokens", 1.0)
    assert torch.equal(cleaned[0][: len(IDS)], text[0])
    assert not torch.equal(cleaned[0], plain[0]) and len(cleaned[2]) > len(plain[2])
    with pytest.raises(ValueError, match=r"reference: normalization .* got none"):
        condition(*text, seen, -2, "appended tokens", 1.0, settings=settings)


def test_the_report_tells_mode_strength_layer_and_picture(text, seen):
    report = condition(*text, seen, -2, "aligned blend", 0.25)[2]
    assert "aligned blend, strength 0.25, layer -2" in report


@pytest.mark.parametrize(
    ("mode", "strength", "message"),
    [
        ("blend", 0.5, "way: expected one of automatic, words, learned look, .*got 'blend'"),
        ("research: image delta", -3.01, r"expected -3 to 3 with research: image delta, got -3.01"),
        ("research: image delta", float("nan"), "strength: expected -3"),
        ("aligned blend", 2, r"with aligned blend, got 2\. learned look and picture adapter and .* take it\."),
        ("aligned blend", 1.01, "strength: expected 0"),
        ("appended tokens", -0.1, "strength: expected 0"),
        ("aligned blend", float("nan"), "strength: expected 0"),
    ],
)
def test_unknown_modes_and_strengths_are_refused_beforehand(mode, strength, message):
    with pytest.raises(ValueError, match=message):
        check_strength(find_way(mode), strength)


@pytest.mark.parametrize(("old", "new"), [
    ("blend aligned", "aligned blend"), ("append picture", "appended tokens"), ("image delta", "research: image delta"),
    ("blend as published", "research: as published"),
])  # fmt: skip
def test_a_name_that_a_way_has_had_still_finds_it(text, seen, muted, old, new):
    assert find_way(old) is find_way(new) and find_way("describe") is find_way("words")
    assert torch.equal(condition(*text, seen, -2, old, 0.5, muted=muted)[0],
                       condition(*text, seen, -2, new, 0.5, muted=muted)[0])


def test_a_layer_may_be_counted_from_either_end(text, seen):
    for first, last in ((3, -6), (7, -2)):
        ours, theirs = (condition(*text, seen, layer, "aligned blend", 0.5)[0] for layer in (first, last))
        assert torch.equal(ours, theirs)


def test_another_prompt_cannot_be_aligned(text, seen):
    other = text_layout([*IDS[:4], 999, *IDS[5:]])
    with pytest.raises(ValueError, match="at position 4 the text has token 999"):
        condition(text[0], other, seen, -2, "aligned blend", 0.5)
