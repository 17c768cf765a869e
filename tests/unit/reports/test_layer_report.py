"""The layer report: every figure against numpy in float64 or a closed form, and a table people can trust."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vl_core.reports.layer_figures import effective_rank, frechet_distance, linear_cka
from vl_core.reports.layer_report import METRICS, join_csv, join_reports, layer_report, mean_report, standard_errors
from vl_core.states.layers import parse_layers
from vl_core.states.layout import TokenLayout
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.tensors import unit_rms
from vl_core.states.vl_states import VLStates

WIDTH, WORDS, IMAGE, BLOCKS = 24, 11, 12, 4
TEXT_AT = [0, 1, 2, *range(17, 17 + WORDS + 5)]  # header, words and tail around 2 markers and 12 image tokens
IMAGE_AT = list(range(4, 16))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layout() -> TokenLayout:
    roles = torch.tensor([0] * 3 + [2] + [3] * IMAGE + [2] + [1] * WORDS + [0] * 5)
    return TokenLayout(roles, torch.arange(len(roles)), ((3, 4),))


def text_layout() -> TokenLayout:
    return layout().select(torch.isin(layout().roles, torch.tensor([0, 1], dtype=torch.uint8)))


def encode(states: torch.Tensor | None = None, layers: tuple[int, ...] = tuple(range(BLOCKS + 1))) -> VLStates:
    states = random(len(layers), len(layout()), WIDTH) * 3 + 1 if states is None else states
    return VLStates(states, layers, BLOCKS, layout())


def reference(seed: int = 9, tokens: int = 300) -> ReferenceStatistics:
    return ReferenceStatistics.of(random(tokens, WIDTH, seed=seed) * torch.linspace(0.5, 2, WIDTH) + 1)


def words(seed: int = 5) -> torch.Tensor:
    return random(len(TEXT_AT), WIDTH, seed=seed)


def rotation(width: int = WIDTH) -> torch.Tensor:
    return torch.linalg.qr(random(width, width, seed=77)).Q


METRIC = {metric.name: metric for metric in METRICS}


# --- effective rank -------------------------------------------------------------------------------------------------


def with_spectrum(singular: list[float], tokens: int = 20) -> torch.Tensor:
    """``(tokens, WIDTH)`` with these singular values once each dimension's mean is taken off."""
    count = len(singular)
    centred = random(tokens, count) - random(tokens, count).mean(0)
    left, right = torch.linalg.qr(centred).Q, rotation()[:, :count]
    return left @ torch.diag(torch.tensor(singular, dtype=torch.float64)) @ right.T + 5


@pytest.mark.parametrize("singular", [[3.0] * 7, [1.0], [5.0, 1.0], [9.0, 3.0, 1.0, 0.1]])
def test_effective_rank_of_a_known_spectrum(singular):
    share = np.square(singular) / np.square(singular).sum()
    expected = np.exp(-(share * np.log(share)).sum())
    assert effective_rank(with_spectrum(singular)) == pytest.approx(expected, rel=1e-9)


def test_equal_singular_values_count_one_each():
    assert effective_rank(with_spectrum([2.0] * 9)) == pytest.approx(9)


@pytest.mark.parametrize("shape", [(10, 24), (60, 24)])
def test_effective_rank_follows_numpys_singular_values(shape):
    tokens = random(*shape)
    singular = np.linalg.svd(tokens.numpy() - tokens.numpy().mean(0), compute_uv=False)
    share = singular**2 / (singular**2).sum()
    share = share[share > 1e-20]
    assert effective_rank(tokens) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)


def test_one_token_or_equal_tokens_have_no_rank():
    assert math.isnan(effective_rank(random(1, WIDTH)))
    assert math.isnan(effective_rank(torch.ones(5, WIDTH)))


# --- Fréchet --------------------------------------------------------------------------------------------------------


def test_frechet_distance_is_fids_closed_form_on_diagonal_covariances():
    mean, other = random(6), random(6, seed=1)
    std, other_std = random(6, seed=2).abs(), random(6, seed=3).abs()
    ours, theirs = np.diag(std.numpy() ** 2), np.diag(other_std.numpy() ** 2)
    root = np.sqrt(ours @ theirs)  # of a diagonal matrix
    expected = ((mean - other).numpy() ** 2).sum() + np.trace(ours + theirs - 2 * root)
    assert frechet_distance(mean, std, other, other_std) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_a_shift_and_of_a_stretch():
    zero, one = torch.zeros(4), torch.ones(4)
    assert frechet_distance(zero, one, zero, one) == 0
    assert frechet_distance(zero, one, zero + 3, one) == 4 * 9
    assert frechet_distance(zero, one, zero, 3 * one) == 4 * 4


# --- CKA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [4, 12, 60])
def test_cka_is_one_for_rotated_scaled_and_shifted_tokens(tokens):
    x = random(tokens, WIDTH)
    for y in (x, -7 * x, x @ rotation(), 0.01 * x @ rotation() + random(WIDTH, seed=3)):
        assert linear_cka(x, y) == pytest.approx(1, abs=1e-9)


def test_cka_of_tokens_that_have_nothing_in_common_is_near_zero_however_few_they_are():
    plain, ours = [], []
    for seed in range(40):
        x, y = random(20, 400, seed=2 * seed), random(20, 400, seed=2 * seed + 1)
        ours.append(linear_cka(x, y))
        k, m = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y))
        plain.append(float((k * m).sum() / (k.norm() * m.norm())))
    assert abs(np.mean(ours)) < 0.03
    assert np.mean(plain) > 0.9, "the plain estimator is why ours is the unbiased one"


def test_cka_is_songs_unbiased_estimator():
    x, y = random(9, 5).numpy(), (random(9, 5) + random(9, 5, seed=1)).numpy()

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        k, m, n, one = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), len(k), np.ones(len(k))
        middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-9)


def test_cka_does_not_depend_on_the_order_of_tokens_but_on_their_pairing():
    x, y, order = random(20, WIDTH), random(20, WIDTH) + random(20, WIDTH, seed=1), torch.randperm(20)
    assert linear_cka(x[order], y[order]) == pytest.approx(linear_cka(x, y))
    assert linear_cka(x, x.flip(0)) < 0.5


def test_cka_of_fewer_than_four_tokens_or_of_equal_ones_is_unknown():
    assert math.isnan(linear_cka(random(3, WIDTH), random(3, WIDTH)))
    assert math.isnan(linear_cka(torch.ones(8, WIDTH), random(8, WIDTH)))


# --- the figures of a layer -----------------------------------------------------------------------------------------


def numpy_figures(x: np.ndarray, mean: np.ndarray, std: np.ndarray, threshold: float = 10) -> dict[str, float]:
    ours, ratio = x.std(0, ddof=1), x.std(0, ddof=1) / std
    return {
        "mean_correlation": np.corrcoef(x.mean(0), mean)[0, 1],
        "log_std_correlation": np.corrcoef(np.log(ours), np.log(std))[0, 1],
        "std_ratio": np.median(ratio),
        "wider": (ratio > threshold).sum(),
        "narrower": (ratio < 1 / threshold).sum(),
        "frechet": ((x.mean(0) - mean) ** 2).sum() + ((ours - std) ** 2).sum(),
    }


def measured(row) -> dict[str, float]:
    return {name: getattr(row, name) for name in
            ("mean_correlation", "log_std_correlation", "std_ratio", "wider", "narrower", "frechet")}


@pytest.mark.parametrize(("group", "where"), [("text", TEXT_AT), ("image", IMAGE_AT)])
def test_raw_figures_against_a_reference_follow_numpy(group, where):
    seen, target = encode(), reference()
    seen.states[2, :, 3] *= 60
    seen.states[2, :, 5] /= 900
    rows = layer_report(seen, target).select(group, "raw", "exclude")
    assert [row.layer for row in rows] == [-5, -4, -3, -2, -1]
    for row, states in zip(rows, seen.states.numpy(), strict=True):
        expected = numpy_figures(states[where], target.ordinary.mean.numpy(), target.ordinary.std.numpy())
        assert measured(row) == pytest.approx(expected, rel=1e-9)
        assert row.effective_rank == pytest.approx(effective_rank(torch.tensor(states[where])))
    assert (rows[2].wider, rows[2].narrower) == (1, 1)


@pytest.mark.parametrize("space", ["raw", "dit"])
@pytest.mark.parametrize("sinks", ["include", "exclude"])
def test_without_a_reference_the_text_itself_is_the_target(space, sinks):
    seen, text = encode(), words() * torch.linspace(0.4, 3, len(TEXT_AT))[:, None]
    text[0] = 900
    seen.states[:, 1] = -700
    x, y = seen.states.numpy(), text.numpy()
    if space == "dit":
        x, y = (side / np.sqrt((side**2).mean(-1, keepdims=True)) for side in (x, y))
    ours, theirs = list(TEXT_AT), list(range(len(TEXT_AT)))
    if sinks == "exclude":
        ours.remove(1)
        theirs.remove(0)
    rows = layer_report(seen, text=text, text_layout=text_layout()).select("text", space, sinks)
    for row, states in zip(rows, x, strict=True):
        expected = numpy_figures(states[ours], y[theirs].mean(0), y[theirs].std(0, ddof=1))
        assert measured(row) == pytest.approx(expected, rel=1e-7)
        assert (row.tokens, row.left_out) == (len(ours), 1)


def test_a_reference_of_equally_large_tokens_is_exact_after_x_over_rms():
    tokens = unit_rms(random(200, WIDTH) + random(WIDTH, seed=1)) * 17
    sink = torch.zeros(1, WIDTH, dtype=torch.float64)
    sink[0, 4] = 9000
    seen = encode()
    report = layer_report(seen, ReferenceStatistics.of(torch.cat([sink, tokens])))
    x = unit_rms(seen.states[1, TEXT_AT]).numpy()
    for sinks, y in (("exclude", tokens), ("include", torch.cat([sink, tokens]))):
        y = unit_rms(y).numpy()
        expected = numpy_figures(x, y.mean(0), y.std(0, ddof=1))
        assert measured(report.select("text", "dit", sinks)[1]) == pytest.approx(expected, rel=1e-6)


def test_an_encoder_against_its_own_statistics_reads_as_itself_in_both_spaces(tmp_path):
    sizes = torch.linspace(0.3, 4, len(layout()), dtype=torch.float64)[:, None]
    tokens = (random(len(layout()), WIDTH, seed=4) * torch.linspace(0.2, 3, WIDTH) + random(WIDTH, seed=6)) * sizes
    tokens[0] = 900 * random(WIDTH, seed=8)
    only_text = TokenLayout(torch.ones(len(tokens)), torch.arange(len(tokens)), ())
    seen = VLStates(tokens[None], (3,), BLOCKS, only_text)
    measured_once = ReferenceStatistics.of(tokens)
    halves = ReferenceStatistics.of(tokens[:14]).merge(ReferenceStatistics.of(torch.cat([tokens[:1], tokens[14:]])))
    kept = ReferenceStatistics.load(measured_once.save(tmp_path / "own.safetensors"))
    for own in (measured_once, kept):
        for row in layer_report(seen, own).figures:
            assert (row.mean_correlation, row.log_std_correlation) == pytest.approx((1, 1), abs=1e-9), row
            assert row.std_ratio == pytest.approx(1, abs=1e-6) and row.frechet == pytest.approx(0, abs=1e-6), row
    ordinary = tokens[1:].numpy()
    ordinary = ordinary / np.sqrt((ordinary**2).mean(-1, keepdims=True))
    for own in (measured_once, halves):
        assert np.allclose(own.unit_ordinary.mean, ordinary.mean(0), rtol=1e-9)
        assert np.allclose(own.unit_ordinary.std, ordinary.std(0, ddof=1), rtol=1e-9)
    assert halves.unit_sinks.count == 2 and halves.unit_ordinary.count == len(tokens) - 1


def test_a_reference_without_unit_moments_leaves_the_rows_after_x_over_rms_out_and_says_so(tmp_path):
    older = replace(reference(), unit_ordinary=None, unit_sinks=None)
    published = ReferenceStatistics.from_published(torch.zeros(WIDTH), torch.ones(WIDTH), 100)
    for lacking in (ReferenceStatistics.load(older.save(tmp_path / "older.safetensors")), published,
                    older.merge(reference(3))):
        assert lacking.unit_ordinary is None and lacking.unit_sinks is None
        report = layer_report(encode(), lacking)
        assert all(row.frechet is None for row in report.figures if row.space == "dit")
        assert all(row.frechet is not None for row in report.figures if row.space == "raw" and row.sinks == "exclude")
        assert "measure it again" in report.summary() and "measure it again" in report.table()
    assert not layer_report(encode(), reference()).notes


def test_x_over_rms_makes_the_scale_of_tokens_and_of_the_reference_invisible():
    seen, target = encode(), random(300, WIDTH, seed=9)
    sizes = torch.linspace(0.3, 2, len(layout()), dtype=torch.float64)[:, None]
    plain = layer_report(seen, ReferenceStatistics.of(target)).select("image", "dit", "include")
    scaled = layer_report(encode(seen.states * sizes), ReferenceStatistics.of(target * 40))
    for row, other in zip(plain, scaled.select("image", "dit", "include"), strict=True):
        assert measured(other) == pytest.approx(measured(row), rel=1e-6)


def test_words_are_compared_with_the_words_of_the_text_and_pictures_are_not():
    text = words()
    seen = encode()
    seen.states[3][TEXT_AT] = 4 * text @ rotation()
    seen.states[1][TEXT_AT] = 4 * text
    for layout_of_text in (text_layout(), None):
        report = layer_report(seen, reference(), text[None].float(), layout_of_text)
        rows = {row.layer: row for row in report.select("text", "raw", "include")}
        assert rows[-4].cosine == pytest.approx(1, abs=1e-6) and rows[-4].cka == pytest.approx(1, abs=1e-6)
        assert rows[-2].cka == pytest.approx(1, abs=1e-6) and rows[-2].cosine < 0.5
        assert abs(rows[-3].cka) < 0.3
        assert all(row.cka is None and row.cosine is None for row in report.select("image", "raw", "include"))


def test_a_sink_on_either_side_is_left_out_of_the_pairs():
    text, seen = words(), encode()
    x = seen.states[0, TEXT_AT].clone()
    text[0], seen.states[:, 1] = 800, 900
    row = layer_report(seen, None, text, text_layout()).select("text", "raw", "exclude")[0]
    keep = [index for index in range(len(TEXT_AT)) if index not in (0, 1)]
    assert row.cosine == pytest.approx(float(torch.cosine_similarity(x[keep], text[keep], dim=-1).mean()))
    assert row.cka == pytest.approx(linear_cka(x[keep], text[keep]))


def test_a_system_turn_before_the_prompt_is_not_paired():
    seen = encode()
    roles = torch.cat([torch.zeros(2, dtype=torch.uint8), layout().roles])
    ids = torch.cat([torch.tensor([900, 901]), layout().token_ids])
    longer = torch.cat([random(5, 2, WIDTH, seed=8), seen.states], 1)
    longer = VLStates(longer, seen.layers, BLOCKS, TokenLayout(roles, ids, ((3, 4),)))
    text = words()
    ours, theirs = (layer_report(one, None, text, text_layout()).select("text", "raw", "include")
                    for one in (longer, seen))
    assert [row.cosine for row in ours] == pytest.approx([row.cosine for row in theirs])


def test_without_anything_to_compare_only_the_rank_is_told():
    report = layer_report(encode())
    assert [metric.name for metric in report.metrics()] == ["effective_rank"]
    assert "only the effective rank" in report.summary() and "only the effective rank" in report.table()


def test_without_a_picture_there_is_one_group():
    only_text = VLStates(random(2, len(TEXT_AT), WIDTH), (0, 4), BLOCKS, text_layout())
    assert layer_report(only_text, reference()).groups == ["text"]
    assert "image tokens" not in layer_report(only_text, reference()).table()


def test_half_precision_states_are_measured_in_double():
    seen = encode()
    rounded = encode(seen.states.bfloat16())
    exact = encode(seen.states.bfloat16().double())
    assert layer_report(rounded, reference()).figures == layer_report(exact, reference()).figures


def test_constant_tokens_give_no_figure_instead_of_nan():
    report = layer_report(encode(torch.ones(5, len(layout()), WIDTH, dtype=torch.float64)), reference(), words())
    row = report.select("text", "raw", "exclude")[0]
    assert row.effective_rank is None and row.log_std_correlation is None and row.cka is None
    assert "nan" not in (report.table() + report.csv() + report.summary()).lower()


def test_progress_is_told_after_every_layer():
    steps = []
    layer_report(encode(), progress=lambda: steps.append(1))
    assert len(steps) == BLOCKS + 1


def test_stop_is_asked_for_before_every_kind_of_token_of_a_layer():
    def stop():
        asked.append(1)
        if len(asked) == 6:
            raise KeyboardInterrupt

    asked, done = [], []
    with pytest.raises(KeyboardInterrupt):
        layer_report(encode(), progress=lambda: done.append(1), check=stop)
    assert (len(asked), len(done)) == (6, 1)  # text and image, raw and of unit RMS: four a layer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(reference=ReferenceStatistics.of(torch.randn(9, 3))), "expected statistics of width 24, got 3"),
        (dict(text=torch.randn(6, WIDTH)), "expected 6 tokens outside the pictures"),
        (dict(text=torch.randn(19, 3)), "text and states: expected equal widths, got 3 and 24"),
        (dict(text=torch.randn(2, 19, WIDTH)), "text: expected one sequence, got a batch of 2"),
        (dict(text=torch.full((19, WIDTH), math.nan)), "text: expected finite values"),
        (dict(threshold=0.5), "threshold: expected a ratio of at least 1, got 0.5"),
        (dict(text=torch.randn(30, WIDTH), text_layout=text_layout()), "text_layout: expected 30 positions"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        layer_report(encode(), **options)


def test_states_that_overflowed_and_other_words_are_refused():
    broken = encode()
    broken.states[2, 3, 4] = math.inf
    with pytest.raises(ValueError, match="states: expected finite values"):
        layer_report(broken)
    other = text_layout()
    other.token_ids[5] = 999
    with pytest.raises(ValueError, match="expected the same words outside the pictures, but at position 5"):
        layer_report(encode(), None, words(), other)


# --- the best layer, and how it is told -----------------------------------------------------------------------------


def rising() -> VLStates:
    """States that come to be the reference's at layer -2 and leave it again."""
    target = random(len(layout()), WIDTH, seed=40) * torch.linspace(0.5, 2, WIDTH) + random(WIDTH, seed=41)
    noise = random(5, len(layout()), WIDTH, seed=42)
    share = torch.tensor([0.1, 0.4, 0.7, 1.0, 0.6], dtype=torch.float64)[:, None, None]
    return encode(share * target + (1 - share) * 12 * noise)


def test_the_best_layer_of_each_metric_is_marked():
    target = random(400, WIDTH, seed=43) * torch.linspace(0.5, 2, WIDTH) + random(WIDTH, seed=41)
    report = layer_report(rising(), ReferenceStatistics.of(target), rising().states[3, TEXT_AT], text_layout())
    for name in ("mean_correlation", "log_std_correlation", "std_ratio", "frechet", "cka", "cosine"):
        assert report.best(METRIC[name], "text", "dit", "exclude") == (-2,), name
    first = report.table().split("text tokens, as they come, without attention sinks\n")[1].splitlines()
    row = next(line for line in first if line.split()[0] == "-2").split()
    assert row[1] == str(len(TEXT_AT)) and row[-1] == "1.000*" and row[-2] == "1.000*" and row[2].endswith("*")
    assert "cosine -2 (1.000)" in report.summary()


def test_layers_that_tie_are_all_best_and_if_all_tie_none_is():
    report = layer_report(encode(), reference())
    rows = report.select("text", "raw", "include")
    assert {row.wider for row in rows} == {0}
    assert report.best(METRIC["wider"], "text", "raw", "include") == ()
    seen = encode()
    seen.states[1:3, :, 3] *= 90
    assert layer_report(seen, reference()).best(METRIC["wider"], "text", "raw", "include") == (-5, -2, -1)


def test_one_layer_is_the_best_of_one():
    report = layer_report(encode(random(1, len(layout()), WIDTH), layers=(3,)), reference())
    assert report.best(METRIC["frechet"], "text", "raw", "include") == (-2,)


def test_a_ratio_is_best_near_one_on_either_side():
    goodness = METRIC["std_ratio"].goodness
    assert goodness(1.0) > goodness(1.5) == pytest.approx(goodness(1 / 1.5))
    assert goodness(0.9) > goodness(2.0) > goodness(0.1)


def test_the_table_is_of_fixed_width_with_its_columns_below_one_another():
    report = layer_report(encode(), reference(), words(), text_layout())
    blocks = [block.splitlines() for block in report.table().split("\n\n")]
    tables = [block[1:] for block in blocks if len(block) > 1 and block[1].lstrip().startswith("layer")]
    assert len(tables) == 2 * 2 * 2
    for head, *rows in tables:
        assert len(rows) == BLOCKS + 1
        names = ["layer", "tokens", *(metric.column for metric in report.metrics())]
        ends, at = [], 0
        for name in names:
            at = head.index(name, at) + len(name)
            ends.append(at)
        for row in rows:
            padded = row + " " * 20
            assert all(padded[end - 1] != " " and padded[end] in " *" for end in ends)
    assert "No layer has attention sinks among the text tokens." in report.table()


def test_the_csv_holds_every_figure():
    report = layer_report(encode(), reference(), words(), text_layout())
    rows = list(csv.DictReader(io.StringIO(report.csv())))
    assert len(rows) == len(report.figures) == 2 * 2 * 2 * (BLOCKS + 1)
    for written, row in zip(rows, report.figures, strict=True):
        assert (int(written["layer"]), written["group"], written["space"], written["sinks"]) == (
            row.layer, row.group, row.space, row.sinks
        )
        for metric in METRICS:
            value = getattr(row, metric.name)
            assert written[metric.name] == "" if value is None else float(written[metric.name]) == pytest.approx(value)


# --- layers as text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1", [36]),
        ("-1,-2", [35, 36]),
        ("-1, -2, -4:-12:-2", [25, 27, 29, 31, 33, 35, 36]),
        ("-12:-4:2", [25, 27, 29, 31, 33]),
        ("-4:-9", [28, 29, 30, 31, 32, 33]),
        ("-4:-9:-4", [29, 33]),
        (" 0 : 3 ", [0, 1, 2, 3]),
        ("36, -1, 35:36", [35, 36]),
        ("-37", [0]),
        ("5:5", [5]),
        ("-1,", [36]),
        ("-2 -6;-4:-5\n-1.0", [31, 32, 33, 35, 36]),
    ],
)
def test_layers_are_numbers_and_ranges_with_their_ends(text, expected):
    assert list(parse_layers(text, 36)) == expected


@pytest.mark.parametrize("text", ["all", " All "])
def test_all_means_every_layer_that_is_loaded(text):
    assert parse_layers(text, 36) == tuple(range(37))
    assert parse_layers(text, 36, 31) == tuple(range(32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected at least one layer, got ''"),
        (" , ", "expected at least one layer, got ' , '"),
        ("-2:0.5", "expected a layer or a range, got '-2:0.5'"),
        ("-2 * 0.5", "expected a layer or a range, got '-2*0.5'"),
        ("-1.5", "got '-1.5'"),
        ("all, -1", "got 'all'"),
        ("-4:", "got '-4:'"),
        ("1:2:3:4", "got '1:2:3:4'"),
        ("٣", "expected a layer or a range"),
        ("0:9999999999", "expected a layer or a range"),
        ("-4:-12:2", "expected a step that leads from -4 to -12, got 2"),
        ("-4:-12:0", "expected a step that leads from -4 to -12, got 0"),
        ("-4:3", "expected a range that counts one way, got '-4:3'"),
        ("-38", "the model has 36 blocks"),
        ("0:37", "the model has 36 blocks"),
    ],
)
def test_anything_else_is_refused_with_an_example(text, message):
    with pytest.raises(ValueError, match="layer") as error:
        parse_layers(text, 36)
    assert message in str(error.value)


# --- several targets --------------------------------------------------------------------------------------------------


def test_reports_are_joined_under_their_titles_and_one_without_a_title_is_itself():
    assert join_reports({"": "one"}) == "one"
    assert join_reports({"layer 9": "one", "layer 18": "two"}) == "== layer 9 ==\none\n\n== layer 18 ==\ntwo"


def test_tables_are_joined_below_one_head_and_a_single_one_is_itself():
    one, two = "layer,cka\n-2,1\n-1,\n", "layer,cka\n-2,0.5\n-1,1\n"
    assert join_csv({-2: one}) == one
    assert join_csv({9: one, 18: two}) == "target_layer,layer,cka\n9,-2,1\n9,-1,\n18,-2,0.5\n18,-1,1\n"


# --- several readings -----------------------------------------------------------------------------------------------


def test_the_mean_of_several_reports_is_numpys_and_of_one_it_is_that_report():
    states = [random(BLOCKS + 1, len(layout()), WIDTH, seed=seed) * (seed + 1) for seed in range(3)]
    reports = [layer_report(encode(one), reference(), words(), text_layout()) for one in states]
    mean, errors = mean_report(reports), standard_errors(reports)
    assert mean_report(reports[:1]) is reports[0]
    for index, (row, error) in enumerate(zip(mean.figures, errors.figures, strict=True)):
        own = [report.figures[index] for report in reports]
        assert (row.layer, row.group, row.space, row.sinks) == (own[0].layer, own[0].group, own[0].space, own[0].sinks)
        assert row.tokens == sum(one.tokens for one in own)
        for name in METRIC:
            values = [getattr(one, name) for one in own if getattr(one, name) is not None]
            found = getattr(row, name)
            assert found == pytest.approx(np.mean(values), rel=1e-12) if values else found is None
            spread = getattr(error, name)
            if len(values) > 1:
                assert spread == pytest.approx(np.std(values, ddof=1) / np.sqrt(len(values)), rel=1e-9, abs=1e-12)
            else:
                assert spread is None
    assert "means over 3 readings" in mean.summary()


def test_reports_of_other_layers_have_no_mean():
    whole, part = layer_report(encode()), layer_report(encode(random(2, len(layout()), WIDTH), layers=(1, 2)))
    with pytest.raises(ValueError, match="expected the same layers"):
        mean_report([whole, part])
    with pytest.raises(ValueError, match="expected at least one"):
        mean_report([])
