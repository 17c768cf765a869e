"""Sinks, exact streaming moments and the reference, held against numpy in float64 and the published measurement."""

from __future__ import annotations

import math
import unicodedata
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl_core.states.sinks import TokenSizes, counted_tokens, find_sinks
from vl_core.states.statistics import Moments, ReferenceStatistics, calibrate, calibration_prompts, length_batches
from vl_core.states.tensors import all_finite, median, overall_std, token_rms

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "qwen3_4b_layer-2_stats.npz"
needs_published = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="the published statistics of Qwen3-4B are not part of the repository"
)


def sequence(tokens: int, width: int = 16, sinks=(0,), seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """Ordinary tokens of RMS about 1, and sinks of RMS 100 in one dimension."""
    states = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    for position in sinks:
        states[position] = 0.0
        states[position, 3] = 100.0 * math.sqrt(width)
    return states.to(dtype)


def doubles(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


# --- sinks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_token_rms_is_that_of_numpy_in_float32(dtype):
    states = sequence(5, dtype=dtype)
    rms = token_rms(states)
    assert rms.dtype == torch.float32
    np.testing.assert_allclose(rms, np.sqrt((doubles(states) ** 2).mean(-1)), rtol=1e-6)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9))
def test_the_median_is_that_of_numpy_for_odd_and_even_counts(values):
    np.testing.assert_allclose(float(median(torch.tensor(values))), np.median(np.float32(values)), rtol=1e-6)


@pytest.mark.parametrize("sinks", [(0,), (0, 7), (4,), ()])
def test_tokens_far_above_the_median_are_sinks(sinks):
    assert find_sinks(sequence(12, sinks=sinks)).nonzero().flatten().tolist() == list(sinks)


@pytest.mark.parametrize("factor, is_sink", [(7.99, False), (8.0, False), (8.01, True)])
def test_a_sink_exceeds_eight_medians(factor, is_sink):
    states = torch.ones(5, 4)
    states[2] = factor
    assert find_sinks(states).tolist() == [False, False, is_sink, False, False]


def test_each_sequence_of_a_batch_has_its_own_median():
    quiet, loud = sequence(6, sinks=(0,)), sequence(6, sinks=(2, 5), seed=1) * 500
    assert find_sinks(torch.stack([quiet, loud])).tolist() == [find_sinks(quiet).tolist(), find_sinks(loud).tolist()]
    assert find_sinks(torch.stack([quiet, loud]))[1].nonzero().flatten().tolist() == [2, 5]


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_fewer_than_three_tokens_have_no_sinks(tokens):
    states = torch.tensor([[1000.0, 0.0], [0.001, 0.0]])[:tokens]
    assert not find_sinks(states).any() and find_sinks(states).shape == (tokens,)
    assert find_sinks(states[None]).shape == (1, tokens)


def test_tokens_of_zeros_are_not_sinks():
    assert not find_sinks(torch.zeros(5, 4)).any()


def test_counted_tokens_are_all_or_all_but_the_sinks():
    states = sequence(5, sinks=(0,))
    assert counted_tokens(states, "exclude").tolist() == [False, True, True, True, True]
    assert counted_tokens(states[None], "include").tolist() == [[True] * 5]


def test_another_word_for_sinks_is_refused():
    with pytest.raises(ValueError, match="sinks: expected 'exclude' or 'include', got 'drop'"):
        counted_tokens(sequence(5), "drop")
    with pytest.raises(ValueError, match="sinks: expected 'exclude' or 'include', got 'drop'"):
        ReferenceStatistics.of(sequence(5)).moments("drop")


# --- moments --------------------------------------------------------------------------------------------------------


@st.composite
def grouped_tokens(draw):
    """Tokens with means up to 1e6 and tiny to large spreads, the ends of the groups they come in, and an order."""
    width = draw(st.integers(1, 5))
    count = draw(st.integers(2, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    means = np.array(draw(st.lists(st.sampled_from([0.0, -3.5, 1e3, 1e6, -1e6]), min_size=width, max_size=width)))
    spread = draw(st.sampled_from([1e-2, 1.0, 300.0]))
    tokens = generator.normal(means, spread, (count, width))
    ends = sorted(draw(st.lists(st.integers(0, count), max_size=6)))
    return tokens, ends, draw(st.randoms(use_true_random=False))


def merged_in_a_random_tree(parts: list, random):
    """Any two neighbours-or-not are merged until one is left: every grouping and order can occur."""
    parts = list(parts)
    while len(parts) > 1:
        one, other = (parts.pop(random.randrange(len(parts))) for _ in range(2))
        parts.append(one.merge(other))
    return parts[0]


@settings(deadline=None)
@given(grouped_tokens())
def test_moments_merged_in_any_grouping_are_those_of_all_tokens_at_once(case):
    tokens, ends, random = case
    groups = [Moments.of(torch.from_numpy(group)) for group in np.split(tokens, ends)]
    total = merged_in_a_random_tree(groups, random)
    assert total.count == len(tokens)
    np.testing.assert_allclose(total.mean, tokens.mean(0), rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(total.std, tokens.std(0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(total.global_mean, tokens.mean(), rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(total.global_std, tokens.std(ddof=1), rtol=1e-6)


def test_a_spread_of_one_survives_a_mean_of_a_million():
    """Single-pass sums of squares in float32 would give 0 or NaN here."""
    tokens = torch.tensor([[1e6 - 1.0], [1e6], [1e6 + 1.0]])
    total = reduce(Moments.merge, [Moments.of(token[None]) for token in tokens])
    assert float(total.mean) == 1e6 and float(total.std) == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_tokens_are_summed_in_float64(dtype):
    tokens = (torch.randn(300, 4, generator=torch.Generator().manual_seed(1)) + 100).to(dtype)
    total = Moments.of(tokens)
    assert total.mean.dtype == total.squares.dtype == torch.float64
    np.testing.assert_allclose(total.mean, doubles(tokens).mean(0), rtol=1e-13)
    np.testing.assert_allclose(total.std, doubles(tokens).std(0, ddof=1), rtol=1e-12)


def test_nothing_merges_to_nothing_and_changes_nothing():
    empty, some = Moments.empty(3), Moments.of(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
    assert empty.merge(empty).count == 0
    for merged in (empty.merge(some), some.merge(empty), Moments.of(torch.zeros(0, 3)).merge(some)):
        assert (merged.count, merged.mean.tolist(), merged.squares.tolist()) == (2, [2, 2, 2], [2, 0, 2])


def test_too_few_tokens_have_no_std():
    assert Moments.empty(2).std.isnan().all() and Moments.of(torch.ones(1, 2)).std.isnan().all()
    assert math.isnan(Moments.of(torch.ones(1, 1)).global_std)


# --- the reference --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    mean=st.sampled_from([0.0, 5.0, -2e4]),
    seed=st.integers(0, 2**16),
    random=st.randoms(use_true_random=False),
)
def test_references_merged_in_any_grouping_are_numpy_over_all_tokens(lengths, mean, seed, random):
    texts = [sequence(length, sinks=(0,), seed=seed + i) + mean for i, length in enumerate(lengths)]
    total = merged_in_a_random_tree([ReferenceStatistics.of(text) for text in texts], random)
    everything = np.concatenate([doubles(text) for text in texts])
    with_sinks = total.moments("include")
    assert with_sinks.count == len(everything) and total.prompts == len(lengths)
    np.testing.assert_allclose(with_sinks.mean, everything.mean(0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(with_sinks.global_mean, everything.mean(), rtol=1e-9, atol=1e-10)
    if len(everything) > 1:
        np.testing.assert_allclose(with_sinks.std, everything.std(0, ddof=1), rtol=1e-7)
        np.testing.assert_allclose(with_sinks.global_std, everything.std(ddof=1), rtol=1e-7)


def test_ordinary_tokens_and_sinks_are_measured_apart():
    texts = [sequence(9, sinks=(0,)), sequence(14, sinks=(0, 5), seed=1), sequence(7, sinks=(), seed=2)]
    total = reduce(ReferenceStatistics.merge, map(ReferenceStatistics.of, texts))
    is_sink = np.zeros(30, dtype=bool)
    is_sink[[0, 9, 14]] = True
    everything = np.concatenate([doubles(text) for text in texts])
    ordinary, sinks = everything[~is_sink], everything[is_sink]

    assert (total.ordinary.count, total.sinks.count) == (27, 3)
    np.testing.assert_allclose(total.ordinary.mean, ordinary.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(total.ordinary.std, ordinary.std(0, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(total.sinks.mean, sinks.mean(0), rtol=1e-10)
    np.testing.assert_allclose(total.moments().global_std, ordinary.std(ddof=1), rtol=1e-10)
    np.testing.assert_allclose(total.moments("include").global_std, everything.std(ddof=1), rtol=1e-10)
    np.testing.assert_allclose(total.median_rms, np.median(np.sqrt((ordinary**2).mean(-1))), rtol=1e-6)


def test_published_numbers_per_dimension_stand_for_the_tokens_they_were_measured_on():
    tokens = doubles(sequence(30, sinks=(0, 9)))
    mean, std = torch.from_numpy(tokens.mean(0)), torch.from_numpy(tokens.std(0, ddof=1))
    reference = ReferenceStatistics.from_published(mean, std, 30, "a", -2)
    for sinks in ("exclude", "include"):
        np.testing.assert_allclose(reference.moments(sinks).std, std, rtol=1e-12)
        np.testing.assert_allclose(reference.moments(sinks).global_std, tokens.std(ddof=1), rtol=1e-12)
    assert (reference.encoder, reference.layer, reference.width) == ("a", -2, 16)
    assert math.isnan(reference.median_rms)


def test_a_batch_of_one_is_one_text():
    alone, batched = ReferenceStatistics.of(sequence(9)), ReferenceStatistics.of(sequence(9)[None])
    assert alone.ordinary.mean.equal(batched.ordinary.mean) and alone.rms.equal(batched.rms)


@pytest.mark.parametrize("shape", [(4,), (2, 4, 8), (1, 1, 4, 8)])
def test_states_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"embeddings: expected shape \(tokens, width\)"):
        ReferenceStatistics.of(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    states = sequence(5)
    states[2, 2] = value
    with pytest.raises(ValueError, match="embeddings: expected finite values"):
        ReferenceStatistics.of(states)


@pytest.mark.parametrize("other", [{"encoder": "b"}, {"layer": -6}, {"width": 8}])
def test_measurements_of_different_things_are_not_merged(other):
    first = ReferenceStatistics.of(sequence(5, width=16), "a", -2)
    second = {"width": 16, "encoder": "a", "layer": -2} | other
    with pytest.raises(ValueError, match=r"one \(encoder, layer, width\)"):
        first.merge(ReferenceStatistics.of(sequence(5, width=second["width"]), second["encoder"], second["layer"]))


def test_an_empty_reference_adds_nothing():
    measured = ReferenceStatistics.of(sequence(9), "a", -2)
    merged = ReferenceStatistics.empty(16, "a", -2).merge(measured)
    assert merged.ordinary.mean.equal(measured.ordinary.mean) and merged.rms.equal(measured.rms)
    assert (merged.prompts, merged.sinks.count) == (1, 1)
    assert math.isnan(ReferenceStatistics.empty(16).median_rms)


def test_a_reference_of_another_width_is_refused_with_a_way_out():
    reference = ReferenceStatistics.of(sequence(5, width=16))
    reference.check_width(16)
    with pytest.raises(ValueError, match=r"reference: expected statistics of width 2560, got 16.*measure it on"):
        reference.check_width(2560)


def test_the_description_says_what_was_measured():
    text = ReferenceStatistics.of(sequence(9), "a", -2).describe()
    assert "1 prompt, 8 tokens and 1 attention sink, width 16, layer -2" in text and "median token RMS" in text


def test_a_saved_reference_comes_back_exactly(tmp_path):
    texts = [sequence(9), sequence(14, sinks=(0, 5), seed=1)]
    saved = reduce(ReferenceStatistics.merge, (ReferenceStatistics.of(text, "qwen ü 猫", -2) for text in texts))
    loaded = ReferenceStatistics.load(saved.save(tmp_path / "reference.safetensors"))
    for group in ("ordinary", "sinks"):
        ours, theirs = getattr(saved, group), getattr(loaded, group)
        assert ours.count == theirs.count and ours.mean.equal(theirs.mean) and ours.squares.equal(theirs.squares)
        assert theirs.mean.dtype == torch.float64
    assert loaded.rms.equal(saved.rms)
    assert (loaded.encoder, loaded.layer, loaded.prompts) == ("qwen ü 猫", -2, 2)


def test_a_reference_whose_widths_disagree_is_refused(tmp_path):
    broken = ReferenceStatistics(Moments.empty(4), Moments.empty(5), torch.zeros(0))
    with pytest.raises(ValueError, match=r"expected one width throughout, got \[4, 5\]"):
        ReferenceStatistics.load(broken.save(tmp_path / "reference.safetensors"))


# --- calibration ----------------------------------------------------------------------------------------------------


def fake_encode(text: str) -> torch.Tensor:
    """A stand-in text encoder: as many tokens as words and 8 of template, the first of them a sink."""
    return sequence(8 + len(text.split()), width=6, seed=len(text))[None].to(torch.bfloat16)


def test_calibration_measures_what_the_encoder_gives():
    prompts = ["a red fox", "one", "two of them in a boat"]
    reference = calibrate(fake_encode, prompts, encoder="fake", layer=-2)
    states = [doubles(fake_encode(prompt)[0]) for prompt in prompts]
    ordinary = np.concatenate([text[1:] for text in states])
    everything = np.concatenate(states)
    assert (reference.prompts, reference.ordinary.count, reference.sinks.count) == (3, 10 + 8 + 13, 3)
    assert (reference.encoder, reference.layer, reference.width) == ("fake", -2, 6)
    np.testing.assert_allclose(reference.ordinary.mean, ordinary.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(reference.ordinary.std, ordinary.std(0, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(reference.moments("include").std, everything.std(0, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(reference.median_rms, np.median(np.sqrt((ordinary**2).mean(-1))), rtol=1e-6)


def test_calibration_reads_the_built_in_prompts_in_order_by_default():
    read = []
    reference = calibrate(lambda text: (read.append(text), fake_encode(text))[1])
    assert read == calibration_prompts() and reference.prompts == len(read) and reference.layer == -2


def test_progress_is_told_of_every_text_and_may_interrupt():
    class Interrupted(Exception):
        pass

    encoded, told = [], []

    def progress():
        told.append(len(encoded))
        if len(told) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        calibrate(lambda text: (encoded.append(text), fake_encode(text))[1], list("abcdef"), progress=progress)
    assert told == [1, 2, 3] and encoded == ["a", "b", "c"]


def test_calibration_without_texts_is_refused():
    with pytest.raises(ValueError, match="prompts: expected at least one text"):
        calibrate(fake_encode, [])


def test_an_encoder_that_overflows_is_refused():
    with pytest.raises(ValueError, match="the encoder overflowed"):
        calibrate(lambda text: fake_encode(text) * float("inf"), ["a red fox"])


def scripts(text: str) -> set[str]:
    """Writing systems in ``text``, by the first word of each letter's Unicode name ("LATIN", "CJK", "HANGUL", …)."""
    return {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()}


def test_the_built_in_prompts_are_many_and_each_is_one_of_a_kind():
    prompts = calibration_prompts()
    assert len(prompts) >= 64
    assert len({prompt.casefold() for prompt in prompts}) == len(prompts)
    assert all(prompt == prompt.strip() and prompt.isprintable() for prompt in prompts)


def test_the_built_in_prompts_are_written_in_many_scripts_mostly_latin_then_chinese():
    prompts = calibration_prompts()
    japanese = {"HIRAGANA", "KATAKANA"}
    chinese = [text for text in prompts if "CJK" in scripts(text) and not japanese & scripts(text)]
    latin = [text for text in prompts if scripts(text) == {"LATIN"}]
    assert set().union(*map(scripts, prompts)) >= {
        "LATIN", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "CYRILLIC", "ARABIC", "DEVANAGARI", "THAI",
    }
    assert 0.10 <= len(chinese) / len(prompts) <= 0.20
    assert 0.60 <= len(latin) / len(prompts) <= 0.80


def test_the_built_in_prompts_go_from_one_word_to_a_long_paragraph():
    words = [len(text.split()) for text in calibration_prompts() if scripts(text) == {"LATIN"}]
    for shortest, longest in [(1, 3), (4, 10), (11, 20), (21, 40), (41, 80), (81, 125)]:
        assert sum(shortest <= count <= longest for count in words) >= 3
    assert min(words) == 1 and max(words) <= 125


def test_some_built_in_prompts_ask_for_written_words_tags_and_numbers():
    prompts = calibration_prompts()
    assert sum(any(quote in text for quote in '"“„«「') for text in prompts) >= 8
    assert sum(text.count(",") >= 4 and "." not in text for text in prompts) >= 8
    assert sum(any(letter.isdigit() for letter in text) for text in prompts) >= 10


# --- what the published statistics of Qwen3-4B are made of ----------------------------------------------------------


@pytest.fixture
def published() -> dict[str, np.ndarray]:
    """Mean and std per dimension of 10 prompts, 220 tokens, layer -2, first tokens included."""
    with np.load(PUBLISHED) as file:
        return {name: file[name] for name in file.files}


PROMPTS, TOKENS = 10, 220


@needs_published
def test_the_global_statistics_follow_from_those_per_dimension(published):
    mean, std = (torch.from_numpy(published[f"per_dim_{name}"]) for name in ("mean", "std"))
    reference = ReferenceStatistics.from_published(mean, std, TOKENS)
    for sinks in ("exclude", "include"):
        assert reference.moments(sinks).global_mean == pytest.approx(0.311157, abs=1e-6)
        assert reference.moments(sinks).global_std == pytest.approx(61.095688, rel=1e-6)
        np.testing.assert_allclose(reference.moments(sinks).std, published["per_dim_std"], rtol=1e-12)
    assert reference.moments().global_std == pytest.approx(float(published["global_std"]), rel=1e-6)
    assert math.isnan(reference.median_rms)


@needs_published
@pytest.mark.parametrize(
    "dim, mean, std",
    [(4, 924.870, 2752.569), (396, -206.413, 948.698), (0, 232.768, 193.409), (100, -21.097, 77.220)],
)
def test_the_published_dimensions_are_the_known_ones(published, dim, mean, std):
    reference = ReferenceStatistics.from_published(
        *(torch.from_numpy(published[f"per_dim_{name}"]) for name in ("mean", "std")), TOKENS
    )
    assert float(reference.moments().mean[dim]) == pytest.approx(mean, abs=6e-4)
    assert float(reference.moments().std[dim]) == pytest.approx(std, abs=6e-4)


@needs_published
def test_two_dimensions_hold_nearly_all_of_the_published_variance(published):
    mean, std = (published[f"per_dim_{name}"].astype(np.float64) for name in ("mean", "std"))
    squares = TOKENS * mean**2 + (TOKENS - 1) * std**2
    assert squares[[4, 396]].sum() / squares.sum() == pytest.approx(0.977, abs=5e-4)


# One token per prompt is the sink, the others are alike: (value in the sink, value elsewhere) per dimension.
CLUSTERS = {4: (13510.0, 325.6), 396: (-4544.0, 0.1), 0: (1117.0, 191.0)}


@needs_published
@pytest.mark.parametrize("dim", CLUSTERS)
def test_two_clusters_solve_the_published_mean_and_std(published, dim):
    """m = (n a + (N - n) b) / N and (N - 1) s^2 = n (N - n) / N (a - b)^2 for n sinks among N tokens."""
    mean, std = (float(published[f"per_dim_{name}"][dim]) for name in ("mean", "std"))
    ordinary = TOKENS - PROMPTS
    gap = math.copysign(std * math.sqrt((TOKENS - 1) * TOKENS / (PROMPTS * ordinary)), CLUSTERS[dim][0])
    elsewhere = mean - gap * PROMPTS / TOKENS
    assert elsewhere + gap == pytest.approx(CLUSTERS[dim][0], rel=5e-4)
    assert elsewhere == pytest.approx(CLUSTERS[dim][1], abs=0.5)


def two_cluster_prompt(length: int, ordinary_rms: float = 11.28) -> torch.Tensor:
    """States of one prompt like Qwen3-4B's at layer -2: a sink, then ``length - 1`` tokens of one RMS."""
    generator = torch.Generator().manual_seed(length)
    states = torch.randn(length, 2560, generator=generator, dtype=torch.float64)
    states[:, list(CLUSTERS)] = 0.0
    rest = 2560 * ordinary_rms**2 - sum(elsewhere**2 for _, elsewhere in CLUSTERS.values())
    states *= (rest / states.square().sum(-1, keepdim=True)).sqrt()
    for dim, (sink, elsewhere) in CLUSTERS.items():
        states[1:, dim], states[0, dim] = elsewhere, sink
    return states


@needs_published
def test_ten_prompts_of_two_clusters_give_the_published_dimensions(published):
    reference = reduce(ReferenceStatistics.merge, [ReferenceStatistics.of(two_cluster_prompt(22))] * PROMPTS)
    assert (reference.sinks.count, reference.moments("include").count) == (PROMPTS, TOKENS)
    for dim in CLUSTERS:
        measured = reference.moments("include")
        assert float(measured.mean[dim]) == pytest.approx(float(published["per_dim_mean"][dim]), rel=2e-3)
        assert float(measured.std[dim]) == pytest.approx(float(published["per_dim_std"][dim]), rel=2e-3)


@pytest.mark.parametrize("length, std", [(11, 85.6), (22, 61.1), (24, 58.6), (1504, 13.4)])
def test_the_std_over_all_tokens_is_prompt_length(length, std):
    """One sink among N tokens: std^2 = (13504^2 + 4544^2 - 326^2) / (2560 N) + 11.28^2."""
    formula = math.sqrt((13504**2 + 4544**2 - 326**2) / (2560 * length) + 11.28**2)
    assert formula == pytest.approx(std, abs=0.06)
    measured = ReferenceStatistics.of(two_cluster_prompt(length)).moments("include").global_std
    assert measured == pytest.approx(formula, rel=5e-3)


@pytest.mark.parametrize("length", [11, 22, 24, 1504])
def test_without_the_sink_the_std_does_not_know_the_prompts_length(length):
    states = two_cluster_prompt(length)
    reference = ReferenceStatistics.of(states)
    assert find_sinks(states).nonzero().flatten().tolist() == [0]
    assert reference.moments().global_std == pytest.approx(11.28, rel=5e-3)
    assert reference.median_rms == pytest.approx(11.28, rel=1e-6)


# In batches ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_batches_hold_every_text_once_and_keep_to_the_limit(lengths, most):
    batches = length_batches(lengths, most)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert lengths[batch[0]] == longest and (len(batch) == 1 or longest * len(batch) <= most)
    shortest_first = [min(lengths[index] for index in batch) for batch in batches]
    assert shortest_first == sorted(shortest_first, reverse=True)


def test_a_reader_of_many_gives_the_reference_of_one_by_one():
    texts, read = ["a", "a cat", "the sea at night", "a", "x" * 40], []

    def encode_many(texts):
        read.append(list(texts))
        return [fake_encode(text) for text in texts]

    one = calibrate(fake_encode, texts, encoder="fake", layer=-2)
    steps = []
    many = calibrate(
        fake_encode, iter(texts), encoder="fake", layer=-2, encode_many=encode_many, progress=lambda: steps.append(1)
    )
    assert read == [texts] and len(steps) == len(texts)
    assert many.describe() == one.describe() and torch.equal(many.rms, one.rms)
    for ours, theirs in ((many.ordinary, one.ordinary), (many.sinks, one.sinks)):
        assert ours.count == theirs.count
        assert torch.equal(ours.mean, theirs.mean) and torch.equal(ours.squares, theirs.squares)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_moments_of_any_number_of_rows_are_numpys_and_leave_the_tokens_alone(count, dtype):
    generator = torch.Generator().manual_seed(count)
    tokens = (300 + torch.randn(count, 7, generator=generator)).to(dtype)
    before = tokens.clone()
    moments = Moments.of(tokens)
    exact = tokens.double().numpy()
    np.testing.assert_allclose(moments.mean.numpy(), exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.squares.numpy(), ((exact - exact.mean(0)) ** 2).sum(0), rtol=1e-9, atol=1e-20)
    assert torch.equal(tokens, before)


@pytest.mark.parametrize("mean", [0.0, 1e4, -3e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_std_over_all_elements_is_numpys_in_float64(mean, dtype):
    values = (torch.randn(70, 33, generator=torch.Generator().manual_seed(0)) * 3 + mean).to(dtype)
    values[0, 0] = mean + 400  # an extreme first value
    expected = np.std(values.float().double().numpy(), ddof=1)
    assert overall_std(values) == pytest.approx(expected, rel=1e-5)


def test_the_std_of_equal_values_of_one_and_of_none_is_0():
    for values in (torch.full((50, 40), 1234.567), torch.ones(1, 1), torch.zeros(0, 8)):
        assert overall_std(values) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_among_many_is_found(dtype, bad):
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert all_finite(values) and all_finite(values[:0])
    values[17, 3] = bad
    assert not all_finite(values)
    assert not all_finite(torch.tensor([1e300], dtype=torch.float64))  # infinite once it is float32


def test_one_bad_value_in_any_of_several_tensors_is_found():
    fine = [torch.ones(3, 2, dtype=torch.float64), torch.zeros(0, 4), torch.full((2, 2), 6e4, dtype=torch.float16)]
    assert all_finite(*fine, fine[0] * 1e30) and all_finite()
    for place in range(len(fine)):
        assert not all_finite(*fine[:place], torch.tensor([1.0, float("nan")]), *fine[place:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [0.0, 2.0, 300.0])
def test_the_sizes_of_tokens_tell_std_and_median_rms_of_any_of_them(mean, dtype):
    batch = (torch.randn(2, 40, 7, generator=torch.Generator().manual_seed(3)) + mean).to(dtype)
    counted = torch.rand(2, 40, generator=torch.Generator().manual_seed(4)) < 0.7
    sizes, chosen = TokenSizes.of(batch), doubles(batch)[counted.numpy()]
    assert sizes.global_std(batch, counted) == pytest.approx(chosen.std(ddof=1), rel=1e-5)
    assert sizes.median_rms(counted) == pytest.approx(np.median(np.sqrt((chosen**2).mean(-1))), rel=1e-5)
    none = torch.zeros_like(counted)
    assert sizes.global_std(batch, none) == sizes.median_rms(none) == 0.0


@pytest.mark.parametrize("value", [0.0, 1e4 / 3, -3e5 / 7])
def test_the_sizes_of_equal_values_give_a_std_of_exactly_0(value):
    batch = torch.full((1, 50, 33), value)
    assert TokenSizes.of(batch).global_std(batch, torch.ones(1, 50, dtype=torch.bool)) == 0.0


@pytest.mark.parametrize("count", [2, 64, 65, 300])
@pytest.mark.parametrize("mean", [0.0, 1e4, -3e5])
def test_centring_leaves_the_deviations_and_gives_numpys_moments_of_what_counts(count, mean):
    tokens = torch.randn(count + 2, 5, generator=torch.Generator().manual_seed(count)) * 3 + mean
    tokens[:, 4] = 1e4 / 3
    left_out = torch.tensor([0, count])
    tokens[left_out] = 1e6
    exact = np.delete(doubles(tokens), left_out.numpy(), 0)
    moments = Moments.centring(tokens, left_out)
    assert moments.count == count
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(moments.std[:4], exact.std(0, ddof=1)[:4], rtol=2e-6)
    assert float(moments.mean[4]) == pytest.approx(float(np.float32(1e4 / 3)), abs=1e-9) and moments.std[4] < 1e-9
    assert (tokens[left_out] == 0).all()
    deviations = np.delete(doubles(tokens), left_out.numpy(), 0)
    np.testing.assert_allclose(deviations, exact - exact.mean(0), atol=1e-5)


def test_centring_nothing_is_empty():
    assert Moments.centring(torch.ones(2, 3), torch.tensor([0, 1])).count == 0
    assert Moments.centring(torch.zeros(0, 3)).count == 0
