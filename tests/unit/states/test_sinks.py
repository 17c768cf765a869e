"""Attention sinks by kind of token: what is a sink among words is told by words, among pictures by pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vl_core import ReferenceStatistics, VLStates
from vl_core.adapters.features import PictureFeatures
from vl_core.reports.controls import noisy
from vl_core.reports.inspection import inspect
from vl_core.reports.layer_report import layer_report
from vl_core.stages.blend import blend
from vl_core.stages.chain import prepare
from vl_core.stages.normalize import normalize
from vl_core.stages.outliers import mask_outlier_dimensions
from vl_core.stages.select import select_tokens
from vl_core.states.layout import TokenLayout, TokenRole, insert_pictures, pad_layout, text_layout
from vl_core.states.sinks import counted_tokens, find_sinks

HEADER, TAIL = (151644, 872, 198), (151645, 198, 151644, 77091, 198)
WORDS = 20
PICTURE_RMS, WORD_RMS, SINK_RMS = 1.2, 11.0, 282.0  # Qwen3-VL's and Qwen3-4B's, docs of this project
WIDTH = 32


def words_beside_a_picture(side: int = 16, words: int = WORDS - 8) -> TokenLayout:
    """``side``² image tokens, their markers, and words with their template: 20 tokens that are no picture's."""
    return insert_pictures(text_layout([*HEADER, *range(100, 100 + words), *TAIL]), [(side, side)])


def states_of(layout: TokenLayout, sink: bool = False, seed: int = 0) -> torch.Tensor:
    """Every token of the RMS of its kind; with ``sink`` the first token as large as Qwen3-4B's sink."""
    states = torch.randn(len(layout), WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = torch.where(layout.mask(TokenRole.IMAGE), PICTURE_RMS, WORD_RMS).double()
    if sink:
        size[0] = SINK_RMS
    return (states / states.square().mean(-1, keepdim=True).sqrt() * size.unsqueeze(-1)).float()


def sinks_by_numpy(states: torch.Tensor, layout: TokenLayout) -> np.ndarray:
    """The rule in float64: RMS over 8 medians of the tokens of one kind, of which there are 3 or more."""
    rms = np.sqrt((states.double().numpy() ** 2).mean(-1))
    role, found = layout.roles.numpy(), np.zeros(rms.shape, dtype=bool)
    fills = np.zeros(len(role), dtype=bool)
    for place in range(len(role) - 1, -1, -1):
        if role[place] != TokenRole.TEMPLATE or int(layout.token_ids[place]) != 151643:
            break
        fills[place] = True
    template = np.isin(role, (TokenRole.TEMPLATE, TokenRole.MARKER)) & ~fills
    words = role == TokenRole.TEXT
    kinds = [words, template] if words.sum() > 2 and template.sum() > 2 else [words | template]
    for kind in [*kinds, role == TokenRole.IMAGE, fills]:
        if kind.sum() > 2:
            found[..., kind] = rms[..., kind] > 8 * np.median(rms[..., kind], axis=-1, keepdims=True)
    return found


def test_words_beside_a_picture_are_no_sinks():
    layout = words_beside_a_picture()
    states = states_of(layout)
    assert not find_sinks(states, layout).any()
    assert counted_tokens(states, "exclude", layout).all()
    # without the layout the picture's median is everybody's, and every word was a sink
    assert int(find_sinks(states).sum()) == int((~layout.mask(TokenRole.IMAGE)).sum()) == WORDS + 2


def test_the_first_token_is_a_sink_beside_a_picture_and_without_one():
    layout = words_beside_a_picture()
    assert find_sinks(states_of(layout, sink=True), layout).nonzero().flatten().tolist() == [0]
    alone = text_layout([*HEADER, 100, 101, *TAIL])
    assert find_sinks(states_of(alone, sink=True), alone).nonzero().flatten().tolist() == [0]


def test_a_sink_among_image_tokens_is_told_by_image_tokens():
    layout = words_beside_a_picture()
    states, place = states_of(layout, sink=True), int(layout.mask(TokenRole.IMAGE).nonzero()[7])
    states[place] *= 8.5  # 10.2, smaller than any word
    assert find_sinks(states, layout).nonzero().flatten().tolist() == [0, place]


@given(
    words=st.integers(0, 6), grids=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=3),
    padding=st.integers(0, 4), batch=st.sampled_from([None, 1, 2]), seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), kept=st.floats(0.2, 1),
)
def test_any_sequence_has_the_sinks_that_float64_finds(words, grids, padding, batch, seed, dtype, kept):
    layout = text_layout([*HEADER, *range(100, 100 + words), *TAIL])
    layout = insert_pictures(layout, grids) if grids else pad_layout(layout, padding)
    random = torch.Generator().manual_seed(seed)
    layout = layout.select(torch.rand(len(layout), generator=random) < kept)
    size = 10 ** (4 * torch.rand(len(layout), generator=random) - 1)
    shape = (len(layout), WIDTH) if batch is None else (batch, len(layout), WIDTH)
    states = (torch.randn(shape, generator=random) * size.unsqueeze(-1)).to(dtype)
    found = find_sinks(states, layout)
    assert found.shape == states.shape[:-1]
    np.testing.assert_array_equal(found.numpy(), sinks_by_numpy(states, layout))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_of_a_kind_have_no_sinks(count):
    grids = ((1, count),) if count else ()
    layout = TokenLayout(torch.full((count,), int(TokenRole.IMAGE)), torch.arange(count), grids)
    states = torch.tensor([[1000.0], [0.001]])[:count]
    assert not find_sinks(states, layout).any()


def test_two_words_are_judged_beside_the_template():
    layout = text_layout([*HEADER, 100, 101, *TAIL])
    states = states_of(layout)
    states[4] *= 20
    assert find_sinks(states, layout).nonzero().flatten().tolist() == [4]


def test_padding_is_a_kind_of_its_own():
    layout = pad_layout(text_layout([*HEADER, *range(100, 104), *TAIL]), 400)
    states = states_of(layout, sink=True)
    states[layout.padding()] *= 0.05
    assert find_sinks(states, layout).nonzero().flatten().tolist() == [0]
    assert int(find_sinks(states).sum()) == 12  # every word, beside 400 small ones


def test_a_layout_of_another_length_is_refused():
    layout = words_beside_a_picture(2)
    with pytest.raises(ValueError, match="layout: expected 5 positions, one per token, got 26"):
        find_sinks(torch.ones(5, 4), layout)


# --- what the stages say --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> ReferenceStatistics:
    layout = text_layout([*HEADER, *range(100, 300), *TAIL])
    return ReferenceStatistics.of(states_of(layout, sink=True, seed=9))


def test_normalizing_counts_the_words_and_leaves_one_sink_alone(reference):
    layout = words_beside_a_picture()
    states = states_of(layout, sink=True)
    scaled, info = normalize(states, "rms", reference, layout=layout)
    assert info.sinks == 1 and "1 attention sink left alone" in info.describe()
    rms = np.sqrt((scaled.double().numpy() ** 2).mean(-1))
    np.testing.assert_allclose(rms[1:], reference.median_rms, rtol=1e-5)
    assert torch.equal(scaled[0], states[0])
    assert normalize(states, "rms", reference)[1].sinks == WORDS + 2  # what every call without a layout still says


def test_outliers_are_measured_over_words_too(reference):
    layout = words_beside_a_picture()
    _, info = mask_outlier_dimensions(states_of(layout, sink=True), reference=reference, layout=layout)
    assert (info.tokens, info.sinks) == (len(layout) - 1, 1)


def test_the_chain_before_a_blend_knows_the_kinds(reference):
    layout = words_beside_a_picture()
    _, _, lines = prepare(
        states_of(layout, sink=True), layout, reference, outlier_mode="clamp", normalization="rms"
    )
    assert f"measured over {len(layout) - 1} tokens (1 attention sink left alone)" in lines[0]
    assert "1 attention sink left alone" in lines[1]
    # a picture with its markers: no sink, and the markers' scale is the reference's like all others'
    _, _, (_, line) = prepare(states_of(layout), layout, reference, tokens="image", normalization="rms")
    assert "sinks" not in line


@pytest.mark.parametrize("method", ["aligned", "resample", "adain", "style_dims"])
def test_a_blend_keeps_the_text_at_the_sink_and_nowhere_else(method):
    layout = words_beside_a_picture()
    own = layout.select(layout.mask(TokenRole.TEMPLATE, TokenRole.TEXT))
    text, vl = states_of(own, sink=True, seed=1), states_of(layout, sink=True)
    mixed, info = blend(text, vl, 0.5, method, text_layout=own, vl_layout=layout)
    assert info.sinks == 1
    unchanged = (mixed == text).all(-1)
    assert unchanged[0] and not unchanged[1:].any()


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("length", [4, 9, 40, 700])
def test_a_resampled_token_with_a_share_of_a_sink_keeps_the_text(length, antialias):
    layout = words_beside_a_picture()
    text, vl = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(1)), states_of(layout, sink=True)
    mixed, info = blend(text, vl, 0.5, "resample", vl_layout=layout, antialias=antialias)
    # linear: output i sits at (i + ½)·L/length − ½ and holds of token 0 where that is below 1; boxes: where they begin
    step = len(layout) / length
    boxes = antialias and step > 1
    reaches = np.arange(length) * step < 1 if boxes else (np.arange(length) + 0.5) * step - 0.5 < 1
    assert info.sinks == reaches.sum()
    np.testing.assert_array_equal((mixed == text).all(-1).numpy(), reaches)


def test_statistics_of_adain_run_over_words_and_pictures():
    layout = words_beside_a_picture()
    own = layout.select(layout.mask(TokenRole.TEMPLATE, TokenRole.TEXT))
    text, vl = states_of(own, sink=True, seed=1), states_of(layout, sink=True)
    mixed, _ = blend(text, vl, 1.0, "adain_per_dim", text_layout=own, vl_layout=layout)
    y, x = text.double().numpy(), vl.double().numpy()[1:]
    expected = (y - y[1:].mean(0)) / y[1:].std(0, ddof=1) * x.std(0, ddof=1) + x.mean(0)
    np.testing.assert_allclose(mixed[1:].double().numpy(), expected[1:], rtol=1e-4, atol=1e-4)


def test_the_inspection_names_one_sink_and_the_words_median(reference):
    layout = words_beside_a_picture()
    text = inspect(states_of(layout, sink=True), layout, reference).describe()
    assert "attention sinks at: 0 (RMS 282)" in text
    assert "text 11, marker 11, image 1.2" in text


def test_the_layer_report_leaves_one_sink_out():
    layout = words_beside_a_picture()
    seen = VLStates(states_of(layout, sink=True)[None], (35,), 36, layout)
    own = layout.select(layout.mask(TokenRole.TEMPLATE, TokenRole.TEXT))
    report = layer_report(seen, text=states_of(own, sink=True, seed=1), text_layout=own)
    for space in ("raw", "dit"):
        (row,) = report.select("text", space, "exclude")
        assert (row.tokens, row.left_out) == (WORDS - 1, 1)
        (row,) = report.select("image", space, "exclude")
        assert (row.tokens, row.left_out) == (256, 0)


def test_matched_noise_replaces_words_too_and_keeps_the_sink():
    layout = words_beside_a_picture()
    seen = VLStates(states_of(layout, sink=True)[None], (35,), 36, layout)
    same = (noisy(seen, 0).states[0] == seen.states[0]).all(-1)
    assert same.nonzero().flatten().tolist() == [0]


def test_a_loud_picture_is_pooled_whole():
    """A picture larger than the words has no sinks for that: the pool is its tokens' plain mean."""
    layout = words_beside_a_picture(2)
    states = states_of(layout)
    pictures = layout.mask(TokenRole.IMAGE)
    states[pictures] *= 60  # 72, and 144 the first: 13 times the words
    states[int(pictures.nonzero()[0])] *= 2
    pooled = PictureFeatures("mean", tail=0).of(VLStates(states[None], (35,), 36, layout))
    np.testing.assert_allclose(pooled.numpy(), states[pictures].double().numpy().mean(0), rtol=1e-4, atol=1e-4)


def test_selected_markers_are_no_sinks_beside_their_picture():
    states, layout = select_tokens(states_of(words_beside_a_picture()), words_beside_a_picture(), "image")
    assert not find_sinks(states, layout).any() and int(find_sinks(states).sum()) == 2
