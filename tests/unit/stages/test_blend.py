"""Blending, held against numpy float64 transcriptions of the formulas and sequences written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl_core.stages.alignment import aligned_positions
from vl_core.stages.alpha import alpha_curve
from vl_core.stages.append import template_tail
from vl_core.stages.blend import blend, blend_adain, blend_adain_per_dim, blend_style_dims
from vl_core.stages.normalize import normalize
from vl_core.stages.outliers import mask_outlier_dimensions
from vl_core.states.layout import TokenLayout, TokenRole, insert_pictures, pad_layout, text_layout
from vl_core.states.sinks import find_sinks
from vl_core.states.statistics import ReferenceStatistics

WIDTH = 9
METHODS = ("aligned", "resample", "truncate", "append", "adain", "adain_per_dim", "style_dims")
SPACES = ("dit", "raw", "slerp")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

START, END, PAD, NEWLINE = 151644, 151645, 151655, 198
HEADER, TAIL = [START, 872, NEWLINE], [END, NEWLINE, START, 77091, NEWLINE]
FOX = [64, 2518, 38835]
SYSTEM = [START, 8948, NEWLINE, 3430, 9814, 13, END, NEWLINE]


def words(*ids: int, system: bool = False, prompt: str = "a red fox") -> TokenLayout:
    turn = SYSTEM if system else []
    return text_layout([*turn, *HEADER, *ids, *TAIL], system_tokens=len(turn), layer=-2, prompt=prompt)


def tokens(count: int, seed: int = 0, scale: float = 1.0, sink: bool = False, batch: int | None = None) -> torch.Tensor:
    shape = (count, WIDTH) if batch is None else (batch, count, WIDTH)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + 0.3
    if sink:
        x[..., 0, :] = 0
        x[..., 0, 4] = 1e4
    return x


def numbers(x: torch.Tensor) -> np.ndarray:
    return x.double().numpy()


def rms(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).mean(-1, keepdims=True))


def mixed(y: np.ndarray, x: np.ndarray, alpha, space: str) -> np.ndarray:
    """mathematics, section 3: the three spaces, tokens of equal number, float64."""
    a = np.asarray(alpha, dtype=np.float64).reshape(-1, 1)
    u, v = y / rms(y), x / rms(x)
    if space == "raw":
        return (1 - a) * y + a * x
    if space == "dit":
        return rms(y) * ((1 - a) * u + a * v)
    angle = np.arccos((u * v).mean(-1, keepdims=True))
    return rms(y) * (np.sin((1 - a) * angle) * u + np.sin(a * angle) * v) / np.sin(angle)


def adain(y: np.ndarray, x: np.ndarray, alpha, axis: int) -> np.ndarray:
    a = np.asarray(alpha, dtype=np.float64).reshape(-1, 1)
    own, other = (np.maximum(z.std(axis, ddof=1, keepdims=True), 1e-6) for z in (y, x))
    return (1 - a) * y + a * ((y - y.mean(axis, keepdims=True)) / own * other + x.mean(axis, keepdims=True))


def assert_close(ours: torch.Tensor, oracle: np.ndarray, tolerance: float = 1e-5) -> None:
    assert ours.shape == oracle.shape
    assert np.abs(numbers(ours) - oracle).max() <= tolerance * np.abs(oracle).max()


# --- alpha ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0, 0.125, 0.25, 0.375, 0.5]),
        ("ease_in", [0, 0.03125, 0.125, 0.28125, 0.5]),
        ("ease_out", [0, 0.21875, 0.375, 0.46875, 0.5]),
    ],
)
def test_the_published_alpha_curves(shape, expected):
    curve = alpha_curve(5, 0.0, 0.5, shape)
    assert curve.dtype == torch.float32 and curve.tolist() == expected


def test_a_curve_meets_its_ends_exactly_runs_down_too_and_one_token_gets_the_start():
    for shape in ("linear", "ease_in", "ease_out"):
        curve = alpha_curve(7, 0.9, 0.1, shape)
        assert curve[[0, -1]].tolist() == torch.tensor([0.9, 0.1]).tolist()
        assert (curve.diff() < 0).all()
        assert alpha_curve(1, 0.3, 0.8, shape).tolist() == pytest.approx([0.3])
        assert alpha_curve(50, 1.0, 1.0, shape).tolist() == [1.0] * 50


@pytest.mark.parametrize("call", [(5, -0.1, 0.5), (5, 0.1, 1.5), (5, float("nan"), 1.0), (0, 0, 1), (5, 0, 1, "cubic")])
def test_a_curve_outside_of_zero_to_one_is_refused(call):
    with pytest.raises(ValueError, match=r"alpha|length|shape"):
        alpha_curve(*call)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan"), torch.tensor([0.5] * 7 + [1.2])])
def test_alpha_outside_of_zero_to_one_is_refused(method, alpha):
    with pytest.raises(ValueError, match=r"alpha: expected 0 \(text\) to 1 \(VL\)"):
        blend(tokens(8), tokens(8, 1), alpha, method)


def test_a_curve_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"alpha.*\(8,\).*\(7,\)"):
        blend(tokens(8), tokens(8, 1), torch.full((7,), 0.5))


# --- the same words at the same places --------------------------------------------------------------------------------


def test_words_align_around_the_picture():
    text = words(*FOX)
    assert aligned_positions(text, insert_pictures(text, [(2, 2)])).tolist() == [0, 1, 2, *range(9, 17)]
    assert aligned_positions(text, insert_pictures(text, [(1, 2), (1, 1)])).tolist() == [0, 1, 2, *range(10, 18)]
    assert aligned_positions(text, text).tolist() == list(range(11))


def test_a_system_turn_that_only_the_vl_has_is_passed_over():
    vl = insert_pictures(words(*FOX, system=True), [(2, 2)])
    assert aligned_positions(words(*FOX), vl).tolist() == [8, 9, 10, *range(17, 25)]
    assert len(aligned_positions(words(*FOX, system=True), vl)) == 19


@pytest.mark.parametrize(
    ("text_ids", "vl_ids", "place", "ours", "theirs"),
    [
        (FOX, [64, 9999, 38835], 4, 2518, 9999),
        (FOX, [64, 2518], 5, 38835, END),
        ([64], FOX, 4, END, 2518),
    ],
)
@pytest.mark.parametrize("system", [False, True])
def test_other_words_are_named_with_their_place(text_ids, vl_ids, place, ours, theirs, system):
    text = words(*text_ids, prompt="the text's prompt")
    vl = insert_pictures(words(*vl_ids, system=system, prompt="x" * 100), [(2, 2)])
    with pytest.raises(ValueError, match="same prompt for both") as error:
        aligned_positions(text, vl)
    message = str(error.value)
    assert f"at position {place} the text has token {ours} and the VL {theirs}" in message
    assert "the text's prompt" in message and "xxx…" in message and "x" * 50 not in message


def test_a_vl_of_pictures_only_or_a_text_with_pictures_cannot_align():
    text = words(*FOX)
    vl = insert_pictures(text, [(2, 2)])
    with pytest.raises(ValueError, match=r"pictures only.*resample or append"):
        aligned_positions(text, vl.select(vl.mask(TokenRole.IMAGE)))
    with pytest.raises(ValueError, match="text: expected words only"):
        aligned_positions(vl, vl)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("alpha", [0.3, 1.0, alpha_curve(11, 0.1, 0.9)])
def test_aligned_mixes_each_word_with_itself_in_every_space(space, alpha):
    text, layout = tokens(11, scale=5.0), words(*FOX)
    vl_layout = insert_pictures(layout, [(2, 2)])
    vl = tokens(17, seed=1)
    blended, info = blend(text, vl, alpha, "aligned", space, text_layout=layout, vl_layout=vl_layout)
    at = [0, 1, 2, *range(9, 17)]
    assert_close(blended, mixed(numbers(text), numbers(vl)[at], alpha, space))
    assert info.layout.source == "blend" and info.layout.token_ids.tolist() == layout.token_ids.tolist()
    assert (info.layout.layer, info.layout.prompt) == (-2, "a red fox")
    u, v = numbers(text), numbers(vl)[at]
    cosine = np.median((u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1))
    assert info.cosine == pytest.approx(cosine, abs=1e-5)
    assert info.notes == ()  # the words were checked by id, a low cosine is no news


def test_without_the_texts_layout_the_counts_must_agree():
    layout = words(*FOX)
    vl_layout, vl, text = insert_pictures(layout, [(2, 2)]), tokens(17, seed=1), tokens(11)
    blended, info = blend(text, vl, 0.5, vl_layout=vl_layout)
    assert torch.equal(blended, blend(text, vl, 0.5, text_layout=layout, vl_layout=vl_layout)[0])
    assert info.layout is None
    with pytest.raises(ValueError, match=r"expected 10 tokens outside the pictures.*got 11.*same prompt.*resample"):
        blend(tokens(10), vl, 0.5, vl_layout=vl_layout)
    with pytest.raises(ValueError, match="expected 11 tokens, as many as the text has, got 17"):
        blend(text, vl, 0.5)


def test_unchecked_words_that_point_elsewhere_are_reported():
    text = tokens(11)
    note = "check that text and VL read the same prompt"
    assert note in blend(text, -text, 0.5)[1].describe()
    info = blend(text, text * 3, 0.5)[1]
    assert note not in info.describe()
    assert info.cosine == pytest.approx(1.0)


# --- spaces -----------------------------------------------------------------------------------------------------------


def test_dit_space_does_not_care_how_the_vl_is_scaled_and_raw_does():
    text, vl = tokens(8), tokens(8, 1)
    assert torch.allclose(blend(text, vl, 0.3)[0], blend(text, vl * 50, 0.3)[0], atol=1e-5)
    assert not torch.allclose(blend(text, vl, 0.3, space="raw")[0], blend(text, vl * 50, 0.3, space="raw")[0], atol=1)


def test_the_effective_alpha_of_raw_space_is_the_weight_left_after_the_token_norm():
    text, vl = tokens(8), tokens(8, 1)
    text, vl = text / torch.tensor(rms(numbers(text))).float(), vl / torch.tensor(rms(numbers(vl))).float() * 5
    for alpha, effective in ((0.1, 0.357), (0.3, 0.682), (0.5, 0.833), (1.0, 1.0), (0.0, 0.0)):
        info = blend(text, vl, alpha, space="raw")[1]
        assert info.effective_alpha == pytest.approx(effective, abs=1e-3)
    assert "acts like 0.68" in blend(text, vl, 0.3, space="raw")[1].describe()
    assert blend(text, vl, 0.3)[1].effective_alpha is None


def test_slerp_keeps_the_texts_size_and_turns_in_proportion():
    text, vl = tokens(8, scale=4.0), tokens(8, 1)
    halfway = numbers(blend(text, vl, 0.25, space="slerp")[0])
    assert np.allclose(rms(halfway), rms(numbers(text)), rtol=1e-5)

    def angle(a, b):
        return np.arccos((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))

    assert np.allclose(angle(halfway, numbers(text)), 0.25 * angle(numbers(vl), numbers(text)), rtol=1e-3)


@pytest.mark.parametrize(("factor", "sign"), [(3.0, 1), (1.00001, 1), (-3.0, -1)])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_slerp_is_a_line_where_the_angle_is_zero_or_pi(factor, sign, alpha):
    text = tokens(8)
    blended = blend(text, text * factor, alpha, space="slerp")[0]
    assert np.allclose(numbers(blended), numbers(text) * (1 - alpha + sign * alpha), atol=1e-4)


@pytest.mark.parametrize("space", ["dit", "slerp"])
def test_a_token_without_direction_keeps_the_text(space):
    text, vl = tokens(8), tokens(8, 1)
    text[3], vl[5] = 0, 0
    blended, info = blend(text, vl, 0.5, space=space)
    assert torch.equal(blended[[3, 5]], text[[3, 5]])
    assert blended.isfinite().all()
    assert "2 tokens are all zero" in info.describe()


def test_raw_space_mixes_zero_tokens_like_any():
    text, vl = tokens(8), tokens(8, 1)
    text[3], vl[5] = 0, 0
    blended, info = blend(text, vl, 0.5, space="raw", sinks="include")
    assert_close(blended, 0.5 * numbers(text) + 0.5 * numbers(vl))
    assert info.effective_alpha is not None


# --- alpha 0, alpha 1, sinks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sinks", ["exclude", "include"])
def test_alpha_zero_is_the_text_bit_for_bit_also_at_single_positions(method, space, dtype, sinks):
    text = (tokens(8, sink=True).double() + 1e-12).to(dtype)
    vl = tokens(8, 1, sink=True)
    assert torch.equal(blend(text, vl, 0.0, method, space, sinks=sinks)[0][:8], text)
    curve = torch.tensor([0.5, 0.0, 1.0, 0.0, 0.2, 0.9, 0.0, 0.4])
    blended = blend(text, vl, curve, method, space, sinks=sinks)[0]
    assert blended.dtype == dtype
    assert torch.equal(blended[:8][curve == 0], text[curve == 0])


def test_alpha_one_is_the_vl_side():
    text, vl = tokens(8, scale=4.0), tokens(8, 1)
    assert torch.equal(blend(text, vl, 1.0, space="raw")[0], vl)
    direction = numbers(vl) / rms(numbers(vl)) * rms(numbers(text))
    assert_close(blend(text, vl, 1.0, space="dit")[0], direction)
    assert_close(blend(text, vl, 1.0, space="slerp")[0], direction)
    assert torch.equal(blend(text, vl, 1.0, "truncate", "raw")[0], vl)
    assert torch.equal(blend(text, vl, 1.0, "style_dims")[0][:, 6:], vl[:, 6:])


@pytest.mark.parametrize("method", ["aligned", "resample", "truncate", "adain", "style_dims"])
def test_a_sink_on_either_side_keeps_the_texts_vector(method):
    text, vl = tokens(8), tokens(8, 1)
    text[0, 4], vl[3, 2] = 1e4, 1e4
    blended, info = blend(text, vl, 0.5, method)
    kept = (blended == text).all(1)
    assert kept.tolist() == [True, False, False, True, False, False, False, False]
    assert info.sinks == 2 and "2 attention sinks kept" in info.describe()
    blended, info = blend(text, vl, 0.5, method, sinks="include")
    assert not (blended == text).all(1).any()
    assert info.sinks == 0


def test_sinks_stay_out_of_the_statistics_of_adain_per_dim():
    text, vl = tokens(8, sink=True), tokens(14, 1, sink=True)
    blended, info = blend(text, vl, 0.7, "adain_per_dim")
    assert torch.equal(blended[0], text[0]) and info.sinks == 1
    assert_close(blended[1:], adain(numbers(text)[1:], numbers(vl)[1:], 0.7, axis=0))


# --- other lengths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("source", "target"), [(6, 3), (4, 8), (5, 5)])
def test_resample_stretches_the_vl_over_the_text(source, target, space):
    text, vl = tokens(target), tokens(source, 1)
    whole = numbers(vl).repeat(target, 0).reshape(target, source, -1).mean(1)  # exact areas
    at = (np.arange(target) + 0.5) * source / target - 0.5
    linear = np.stack([np.interp(at, np.arange(source), column) for column in numbers(vl).T], 1)
    blended, info = blend(text, vl, 0.4, "resample", space, sinks="include")
    assert_close(blended, mixed(numbers(text), whole if source > target else linear, 0.4, space))
    blended = blend(text, vl, 0.4, "resample", space, sinks="include", antialias=False)[0]
    assert_close(blended, mixed(numbers(text), linear, 0.4, space))
    assert info.tokens == target


@pytest.mark.parametrize(("ours", "theirs"), [(11, 5), (11, 30)])
def test_truncate_cuts_both_to_the_shorter_and_says_so(ours, theirs):
    text, vl, layout = tokens(ours), tokens(theirs, 1), words(*FOX)
    curve = alpha_curve(ours, 0.2, 0.8)
    blended, info = blend(text, vl, curve, "truncate", "raw", text_layout=layout)
    n = min(ours, theirs)
    assert_close(blended, mixed(numbers(text)[:n], numbers(vl)[:n], curve[:n], "raw"))
    assert info.layout.token_ids.tolist() == layout.token_ids[:n].tolist()
    assert f"Cut to {n} tokens: the text had {ours}, the VL {theirs}." in info.notes


def test_append_puts_the_vl_after_the_text_whatever_alpha():
    text, vl, layout = tokens(11).half(), tokens(17, 1), words(*FOX)
    vl_layout = insert_pictures(layout, [(2, 2)])
    for alpha in (0.0, 0.4):
        blended, info = blend(text, vl, alpha, "append", text_layout=layout, vl_layout=vl_layout)
        assert torch.equal(blended, torch.cat([text, vl.half()]))
    assert info.layout.source == "blend" and info.layout.grids == ((2, 2),)
    assert info.layout.token_ids.tolist() == [*layout.token_ids.tolist(), *vl_layout.token_ids.tolist()]
    assert blend(text, vl, 0.4, "append", vl_layout=vl_layout)[1].layout is None


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("ids", [FOX, []])
def test_append_can_put_the_vl_between_the_words_and_the_template_tail(ids, batch):
    layout = words(*ids)
    vl_layout = insert_pictures(words(*FOX), [(2, 2)])
    text, vl = tokens(len(layout), batch=batch).half(), tokens(17, 1, batch=batch)
    blended, info = blend(
        text, vl, 0.4, "append", text_layout=layout, vl_layout=vl_layout, append_position="before_tail"
    )
    before = len(HEADER) + len(ids)
    assert torch.equal(blended, torch.cat([text[..., :before, :], vl.half(), text[..., before:, :]], -2))
    assert info.layout.token_ids.tolist() == [*HEADER, *ids, *vl_layout.token_ids.tolist(), *TAIL]
    assert info.layout.roles.tolist() == [*layout.roles[:before].tolist(), *vl_layout.roles.tolist(), *[0] * 5]
    assert info.layout.source == "blend" and info.layout.grids == ((2, 2),) and info.tokens == len(info.layout)
    assert "VL tokens between its words and the template tail" in info.describe()
    assert blend(text, vl, 0.4, "append", text_layout=layout, append_position="before_tail")[1].layout is None


def test_pictures_appended_one_after_another_before_the_tail_keep_their_order():
    layout, picture = words(*FOX), TokenLayout(torch.full((4,), TokenRole.IMAGE), torch.full((4,), PAD), ((2, 2),))
    text, first, second = tokens(11), tokens(4, 1), tokens(4, 2)
    options = {"vl_layout": picture, "append_position": "before_tail"}
    once, info = blend(text, first, 1.0, "append", text_layout=layout, **options)
    twice, info = blend(once, second, 1.0, "append", text_layout=info.layout, **options)
    assert torch.equal(twice, torch.cat([text[:6], first, second, text[6:]]))
    assert info.layout.grids == ((2, 2), (2, 2)) and info.layout.token_ids[-5:].tolist() == TAIL
    # behind a picture at the very end the tail is found where it is
    after, info = blend(text, first, 1.0, "append", text_layout=layout, vl_layout=picture)
    both = blend(after, second, 1.0, "append", text_layout=info.layout, **options)[0]
    assert torch.equal(both, torch.cat([text[:6], second, text[6:], first]))


def test_a_tail_with_an_empty_think_block_is_found_whole_padded_or_not():
    think = [151667, 271, 151668, 271]  # <think> \n\n </think> \n\n
    layout = text_layout([*HEADER, *FOX, *TAIL, *think], tail_tokens=9)
    picture = TokenLayout(torch.full((4,), TokenRole.IMAGE), torch.full((4,), PAD), ((2, 2),))
    text, vl = tokens(len(layout)), tokens(4, 1)
    found = blend(
        text, vl, 1.0, "append", text_layout=layout, vl_layout=picture, append_position="before_tail"
    )[0]
    assert torch.equal(found, torch.cat([text[:6], vl, text[6:]]))
    for whole in (layout, pad_layout(layout, 7)):
        assert template_tail(whole) == (6, 15)
        with pytest.raises(ValueError, match="5 tail tokens"):
            template_tail(whole, (5,))  # Z-Image's own has none
    assert template_tail(words(*FOX)) == (6, 11) == template_tail(words(*FOX), (5,))


def test_the_end_is_where_append_puts_the_vl_unless_told_otherwise():
    text, vl, layout = tokens(11), tokens(17, 1), words(*FOX)
    for known in (None, layout):
        plain = blend(text, vl, 1.0, "append", text_layout=known)[0]
        assert torch.equal(plain, blend(text, vl, 1.0, "append", text_layout=known, append_position="end")[0])
        assert torch.equal(plain, torch.cat([text, vl]))


@pytest.mark.parametrize("kept", [slice(0, 6), slice(0, 9), slice(3, 11), slice(0, 3), slice(6, 11)])
def test_a_text_without_header_words_or_tail_in_one_piece_has_no_place_before_the_tail(kept):
    layout = words(*FOX).select(torch.isin(torch.arange(11), torch.arange(11)[kept]))
    with pytest.raises(ValueError, match=r"append_position: before_tail expected .* 5 or 9 tail tokens.*choose end"):
        blend(tokens(len(layout)), tokens(4), 1.0, "append", text_layout=layout, append_position="before_tail")


def test_an_empty_prompt_cut_short_is_not_taken_for_its_tail():
    layout = words().select(torch.arange(8) < 6)
    with pytest.raises(ValueError, match="append_position"):
        blend(tokens(6), tokens(4), 1.0, "append", text_layout=layout, append_position="before_tail")


@pytest.mark.parametrize("ours", DTYPES)
@pytest.mark.parametrize("theirs", DTYPES)
def test_append_takes_any_type_and_gives_the_texts(ours, theirs):
    text, vl = tokens(3).to(ours), tokens(4, 1).to(theirs)
    vl[0, 0] = 1e6 if theirs != torch.float16 else 6e4
    blended = blend(text, vl, 1.0, "append")[0]
    assert blended.dtype == ours and torch.equal(blended[:3], text)
    assert blended[3, 0] == torch.tensor(min(float(vl[0, 0]), torch.finfo(ours).max)).to(ours)
    if ours == theirs:
        assert torch.equal(blended[3:], vl)


@pytest.mark.parametrize("batch", [None, 2])
def test_append_averages_each_picture_over_its_grid(batch):
    layout = words(*FOX)
    vl_layout = insert_pictures(layout, [(2, 4), (3, 3)])
    text, vl = tokens(11, batch=batch), tokens(len(vl_layout), 1, batch=batch)
    blended, info = blend(
        text, vl, 1.0, "append", text_layout=layout, vl_layout=vl_layout, append_downsample=2
    )
    assert info.layout.grids == ((1, 2), (2, 2))
    assert len(info.layout) == blended.shape[-2] == 11 + 11 + 4 + 2 + 4 == info.tokens
    assert torch.equal(blended[..., :11, :], text)
    first, second = vl[..., 4:12, :], vl[..., 14:23, :]
    pooled = blended[..., 11:, :]
    assert torch.allclose(pooled[..., 4, :], first[..., [0, 1, 4, 5], :].mean(-2), atol=1e-6)
    assert torch.allclose(pooled[..., 5, :], first[..., [2, 3, 6, 7], :].mean(-2), atol=1e-6)
    assert torch.allclose(pooled[..., 8, :], second[..., [0, 1, 3, 4], :].mean(-2), atol=1e-6)
    assert torch.allclose(pooled[..., 9, :], second[..., [2, 5], :].mean(-2), atol=1e-6)
    assert torch.equal(pooled[..., 11, :], second[..., 8, :])
    assert torch.equal(pooled[..., 12:, :], vl[..., 23:, :])
    assert info.layout.roles[11:].tolist() == [0, 0, 0, 2, 3, 3, 2, 2, 3, 3, 3, 3, 2, 1, 1, 1, 0, 0, 0, 0, 0]


# --- as published -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.3, 1.0, alpha_curve(8, 0.0, 1.0)])
def test_adain_and_style_dims_are_the_published_ones(alpha):
    text, vl = tokens(8, scale=5.0, sink=True), tokens(8, 1, sink=True)
    y, x, a = numbers(text), numbers(vl), np.asarray(alpha, dtype=np.float64).reshape(-1, 1)
    assert_close(blend_adain(text, vl, alpha), adain(y, x, alpha, axis=1))
    assert_close(blend_adain_per_dim(text, vl, alpha), adain(y, x, alpha, axis=0))
    longer = tokens(20, 2)
    assert_close(blend_adain_per_dim(text, longer, alpha), adain(y, numbers(longer), alpha, axis=0))
    styled = y.copy()
    styled[:, 6:] = ((1 - a) * y + a * x)[:, 6:]
    assert_close(blend_style_dims(text, vl, alpha), styled)
    assert torch.equal(blend_style_dims(text, vl, alpha)[:, :6], text[:, :6])


@pytest.mark.parametrize(("width", "first"), [(9, 6), (10, 6), (11, 7), (2, 1), (1, 0)])
def test_the_style_dimensions_begin_at_two_thirds_rounded_down(width, first):
    text, vl = torch.zeros(4, width), torch.ones(4, width)
    changed = blend_style_dims(text, vl, 1.0)[0]
    assert changed.tolist() == [0] * first + [1] * (width - first)


@pytest.mark.parametrize("function", [blend_adain, blend_style_dims])
def test_token_by_token_methods_need_equal_lengths(function):
    with pytest.raises(ValueError, match=r"equal numbers of tokens, got 8 and 9.*resample_tokens"):
        function(tokens(8), tokens(9), 0.5)


@pytest.mark.parametrize("method", ["adain", "style_dims"])
def test_token_by_token_methods_align_where_they_can_and_resample_otherwise(method):
    layout = words(*FOX)
    vl_layout, text, vl = insert_pictures(layout, [(2, 2)]), tokens(11), tokens(17, 1)
    function = {"adain": blend_adain, "style_dims": blend_style_dims}[method]
    aligned, info = blend(text, vl, 0.5, method, text_layout=layout, vl_layout=vl_layout, sinks="include")
    assert torch.equal(aligned, function(text, vl[[0, 1, 2, *range(9, 17)]], 0.5))
    assert info.notes == ()
    other = insert_pictures(words(64, 9999, 38835), [(2, 2)])
    stretched = torch.tensor(numbers(vl).repeat(11, 0).reshape(11, 17, -1).mean(1)).float()
    resampled, info = blend(text, vl, 0.5, method, text_layout=layout, vl_layout=other, sinks="include")
    assert torch.allclose(resampled, function(text, stretched, 0.5), atol=1e-5)
    assert "resampled instead of aligned" in info.describe()
    assert torch.equal(blend(text, vl, 0.5, method, sinks="include")[0], resampled)


@pytest.mark.parametrize(("ours", "theirs"), [(1, 5), (5, 1), (1, 1)])
def test_adain_per_dim_of_a_single_token_is_finite_and_told(ours, theirs):
    text, vl = tokens(ours), tokens(theirs, 1)
    blended, info = blend(text, vl, 1.0, "adain_per_dim")
    expected = numbers(vl).mean(0, keepdims=True).repeat(ours, 0)
    assert np.allclose(numbers(blended), expected, atol=1e-4)
    assert "single token" in info.describe()


def test_constant_tokens_and_dimensions_take_the_vls_mean():
    text, vl = tokens(8), tokens(8, 1)
    text[2] = 1e4 / 3  # large: a float32 mean would miss it by far more than the floor of the std
    assert blend_adain(text, vl, 1.0)[2].tolist() == pytest.approx([float(vl[2].mean())] * WIDTH, abs=1e-5)
    text = tokens(8)
    text[:, 5] = 1e4 / 3
    assert blend_adain_per_dim(text, vl, 1.0)[:, 5].tolist() == pytest.approx([float(vl[:, 5].mean())] * 8, abs=1e-5)


def test_the_published_profile_from_outliers_to_blend():
    """Outliers over, clamped; per_dim clipped at 3; resampled without antialias; raw: all over all tokens."""
    text, vl = tokens(22, scale=11.0, sink=True), tokens(64, 1, scale=7.0)
    vl[:, 3] *= 40
    mean, std = np.linspace(-20, 90, WIDTH), np.linspace(5, 27, WIDTH)
    reference = ReferenceStatistics.from_published(torch.from_numpy(mean), torch.from_numpy(std), count=220)
    cleaned = mask_outlier_dimensions(vl, 10.0, "clamp", reference=reference, direction="over", sinks="include")[0]
    scaled = {
        "global": normalize(cleaned, "global", target_std=61.0, sinks="include")[0],
        "per_dim": normalize(cleaned, "per_dim", reference, clip=3.0, sinks="include")[0],
    }
    x = numbers(vl)
    ratio = x.std(0, ddof=1) / std
    assert (ratio > 10).tolist() == [column == 3 for column in range(WIDTH)]
    x[:, 3] *= 10 / ratio[3]
    z = np.clip((x - x.mean(0)) / x.std(0, ddof=1), -3, 3)
    oracle = {"global": x * 61.0 / x.std(ddof=1), "per_dim": z * std + mean}
    at = (np.arange(22) + 0.5) * 64 / 22 - 0.5
    for mode, states in scaled.items():
        stretched = np.stack([np.interp(at, np.arange(64), column) for column in oracle[mode].T], 1)
        blended = blend(text, states, 0.3, "resample", "raw", sinks="include", antialias=False)[0]
        assert_close(blended[1:], 0.7 * numbers(text)[1:] + 0.3 * stretched[1:])
        assert_close(blended, 0.7 * numbers(text) + 0.3 * stretched)


# --- batches, widths, anything ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_sequences_one_by_one_and_one_vl_serves_all(method):
    text, vl = tokens(8, batch=2), tokens(8, 1)
    text[1, 0] = 1e3  # a sink in the second only
    one_by_one = torch.stack([blend(part, vl, 0.3, method)[0] for part in text])
    assert torch.allclose(blend(text, vl[None], 0.3, method)[0], one_by_one, atol=1e-5)
    assert torch.allclose(blend(text, vl, 0.3, method)[0], one_by_one, atol=1e-5)
    assert torch.allclose(blend(text, torch.stack([vl, vl]), 0.3, method)[0], one_by_one, atol=1e-5)
    assert blend(text[0], vl[None], 0.3, method)[0].ndim == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vl": torch.randn(8, 7)}, "widths, got 9 and 7.*Qwen3-VL-4B, width 2560"),
        ({"vl": tokens(8, batch=3), "text": tokens(8, batch=2)}, "vl: expected a batch of 2.*got 3"),
        ({"vl": tokens(8, batch=2)}, "vl: expected a batch of 1.*got 2"),
        ({"text": tokens(0)}, "text: expected at least 1 token"),
        ({"vl": tokens(0)}, "vl: expected at least 1 token"),
        ({"vl": tokens(8) * float("nan")}, "vl: expected finite"),
        ({"text": tokens(8)[0]}, "text: expected floats of shape"),
        ({"method": "linear"}, "method: expected one of aligned, resample"),
        ({"space": "log"}, "space: expected one of dit, raw, slerp"),
        ({"sinks": "keep"}, "sinks: expected one of"),
        ({"text_layout": words(*FOX)}, "text_layout: expected 8 positions like text, got 11"),
        ({"vl_layout": words(*FOX)}, "vl_layout: expected 8 positions like vl, got 11"),
        ({"method": "append", "append_downsample": 2}, "append_downsample: 2 needs.*vl_layout"),
        ({"method": "append", "append_downsample": 0}, "append_downsample: expected at least 1"),
        ({"method": "append", "append_position": "before_tail"}, "append_position: before_tail needs .*no text_layout"),
        ({"append_position": "start"}, "append_position: expected one of end, before_tail"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"text": tokens(8), "vl": tokens(8, 1), "alpha": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        blend(**arguments)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.sampled_from([None, 1, 2]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    kinds=st.tuples(*[st.sampled_from(["noise", "zeros", "constant", "huge", "tiny"])] * 2),
    alpha=st.floats(0, 1),
    method=st.sampled_from(METHODS),
    space=st.sampled_from(SPACES),
    sinks=st.sampled_from(["exclude", "include"]),
    seed=st.integers(0, 99),
)
def test_any_input_keeps_its_shape_and_type_and_stays_finite(
    lengths, batch, dtypes, kinds, alpha, method, space, sinks, seed
):
    def nasty(length, dtype, kind, seed):
        x = tokens(length, seed, batch=batch)
        x = {"noise": x, "zeros": x * 0, "constant": x * 0 + 3, "huge": x, "tiny": x * 1e-7}[kind]
        if kind == "huge":
            x[..., 0, :2] = torch.tensor([1e4, -1e4])
        return x.to(dtype)

    ours, theirs = lengths if method != "aligned" else (lengths[0], lengths[0])
    text, vl = nasty(ours, dtypes[0], kinds[0], seed), nasty(theirs, dtypes[1], kinds[1], seed + 1)
    before = text.clone(), vl.clone()
    blended, info = blend(text, vl, alpha, method, space, sinks=sinks)
    length = {"append": ours + theirs, "truncate": min(ours, theirs)}.get(method, ours)
    assert blended.shape == (*text.shape[:-2], length, WIDTH) and blended.dtype == text.dtype
    assert info.tokens == length
    assert blended.isfinite().all()
    assert torch.equal(text, before[0]) and torch.equal(vl, before[1])
    if sinks == "exclude" and method != "append":
        is_sink = find_sinks(text)[..., :length]
        assert torch.equal(blended[is_sink], text[..., :length, :][is_sink])
    assert "nan" not in info.describe()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("method", METHODS)
def test_states_that_carry_a_gradient_or_come_from_inference_mode_pass(method, space):
    with torch.inference_mode():
        inferred = tokens(8)
    learned = tokens(8).requires_grad_()
    expected = blend(tokens(8), tokens(8, 1), 0.3, method, space)[0]
    for text in (inferred, learned, learned * 1):
        assert torch.equal(blend(text, tokens(8, 1).requires_grad_(), 0.3, method, space)[0], expected)


def test_a_budget_averages_only_the_pictures_that_exceed_it():
    layout = words(*FOX)
    vl_layout = insert_pictures(layout, [(4, 4), (1, 2)])
    text, vl = tokens(len(layout)), tokens(len(vl_layout), 1)
    pictures = vl_layout.mask(TokenRole.IMAGE)
    blended, info = blend(
        text, vl[pictures], 1.0, "append", text_layout=layout, vl_layout=vl_layout.select(pictures), append_budget=4
    )
    assert info.layout.grids == ((2, 2), (1, 2))
    cells = numbers(vl[pictures][:16]).reshape(2, 2, 2, 2, WIDTH).mean((1, 3)).reshape(4, WIDTH)
    np.testing.assert_allclose(numbers(blended[len(layout) : -2]), cells, atol=1e-6)
    assert torch.equal(blended[-2:], vl[pictures][16:]) and torch.equal(blended[: len(layout)], text)
    with pytest.raises(ValueError, match="append_budget: 4 needs to know where the pictures are"):
        blend(text, vl, 1.0, "append", append_budget=4)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("position", ["end", "before_tail"])
def test_append_pools_what_a_mask_left_as_mask_and_pooling_in_one_step(factor, position):
    from vl_core.stages.select import select_tokens

    layout = words(*FOX)
    whole = insert_pictures(layout, [(4, 6)])
    text, vl, mask = tokens(len(layout)), tokens(len(whole), 1), torch.zeros(4, 6)
    mask[:, 1:4] = 1
    cut, cut_layout = select_tokens(vl, whole, "image_no_markers", mask=mask)
    expected, _ = select_tokens(vl, whole, "image_no_markers", mask=mask, downsample=factor)
    blended, info = blend(
        text, cut, 1.0, "append", text_layout=layout, vl_layout=cut_layout, append_downsample=factor,
        append_position=position,
    )
    at = len(layout) if position == "end" else len(layout) - 5
    torch.testing.assert_close(blended[at : at + len(expected)], expected, rtol=1e-6, atol=1e-6)
    assert len(blended) == len(text) + len(expected) == len(info.layout)


@pytest.mark.parametrize("scale", [1e19, 1e30, 1e37])
def test_states_whose_squares_overflow_are_mixed_like_their_small_copies(scale):
    """The dit space reads directions only: the same ones, however large, give the same mixture."""
    text, vl = tokens(6), tokens(6, 1)
    expected, _ = blend(text, vl, 0.5, "resample", "dit", sinks="include")
    found, _ = blend(text, vl * scale, 0.5, "resample", "dit", sinks="include")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
