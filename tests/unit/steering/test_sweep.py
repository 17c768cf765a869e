"""Settings and sweeps: every cell is what its label says, equal ids are equal pictures, nothing is swept in vain."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from vl_core import blend, image_delta, mask_outlier_dimensions, normalize, select_tokens
from vl_core.states.layout import TokenLayout, TokenRole, insert_pictures, text_layout
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.vl_states import VLStates
from vl_core.steering.modes import MODES, ModeSettings, condition
from vl_core.steering.settings import BLENDS, FIELDS, METHODS, Field, Settings
from vl_core.steering.sweep import (
    MAX_CELLS,
    MAX_SEED,
    SWEPT,
    Axis,
    Plan,
    axis_name,
    make_plan,
    parse_axis,
    parse_values,
    show_value,
)

WIDTH, GRID, BLOCKS = 24, (4, 6), 8
IDS = [151644, 872, 198, 64, 8251, 304, 151645, 198, 151644, 77091, 198]  # user header, three words, tail
FLOAT, INT = Field(float, -10, 10), Field(int, -100, 100)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TEXT = random(len(IDS), WIDTH, seed=1) * 11 + 2
LAYOUT = text_layout(IDS, layer=-2)


def reading(seed: int) -> VLStates:
    layout = insert_pictures(LAYOUT, [GRID])
    spread = torch.linspace(0.2, 30, WIDTH)
    states = random(BLOCKS + 1, len(layout), WIDTH, seed=seed) * spread
    return VLStates(states, tuple(range(BLOCKS + 1)), BLOCKS, layout)


SEEN, BLIND = reading(2), reading(3)
REFERENCE = ReferenceStatistics.of(random(300, WIDTH, seed=4) * torch.linspace(0.5, 2, WIDTH) + 1)


def applied(settings: Settings) -> torch.Tensor:
    return settings.apply(TEXT, LAYOUT, SEEN, BLIND, REFERENCE)[0]


def plan_of(*axes: tuple[str, str], base: Settings | dict | None = None, **options) -> Plan:
    return make_plan([parse_axis(*axis) for axis in axes], base or Settings(), **options)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_table_of_fields_is_the_dataclass():
    assert list(FIELDS) == [field.name for field in fields(Settings)]


def test_defaults_are_a_blend_of_the_same_words_at_the_layer_z_image_reads():
    expected, _ = blend(TEXT, SEEN.at(-2)[0], 0.5, text_layout=LAYOUT, vl_layout=SEEN.layout)
    assert torch.equal(applied(Settings()), expected)


@pytest.mark.parametrize("method", METHODS)
def test_strength_zero_is_the_text_itself_whatever_the_method(method):
    states, layout, report = Settings(method, alpha=0).apply(TEXT, LAYOUT, SEEN)
    assert states is TEXT and layout is LAYOUT
    assert "words only" in report


@pytest.mark.parametrize("method", BLENDS)
@pytest.mark.parametrize("sinks", ["exclude", "include"])
def test_a_blend_is_the_stages_of_the_nodes_one_after_another(method, sinks):
    settings = Settings(
        method, 0.6, -4, "text" if method == "aligned" else "all", outlier_mode="clamp", outlier_threshold=3,
        normalization="per_dim", sinks=sinks, space="slerp", antialias=False,
    )
    x, layout = select_tokens(*SEEN.at(-4), settings.tokens)
    x, _ = mask_outlier_dimensions(x, 3, "clamp", reference=REFERENCE, sinks=sinks)
    x, _ = normalize(x, "per_dim", REFERENCE, sinks=sinks)
    expected, info = blend(
        TEXT, x, 0.6, method, "slerp", text_layout=LAYOUT, vl_layout=layout, sinks=sinks, antialias=False
    )
    states, mixed_layout, report = settings.apply(TEXT, LAYOUT, SEEN, reference=REFERENCE)
    assert torch.equal(states, expected)
    assert mixed_layout.token_ids.tolist() == info.layout.token_ids.tolist()
    assert info.describe() in report and "layer -4" in report


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_what_the_simple_node_does(mode):
    layer = MODES[mode].layer
    expected, _, report = condition(TEXT, LAYOUT, SEEN, layer, mode, 0.5, muted=BLIND)
    states, _, told = Settings(mode).apply(TEXT, LAYOUT, SEEN, BLIND)
    assert torch.equal(states, expected)
    assert told == report


def test_image_delta_takes_its_own_strength_where_one_is_given():
    expected, _ = image_delta(
        TEXT, SEEN.at(-2)[0], BLIND.at(-2)[0], -1.5, text_layout=LAYOUT, vl_layout=SEEN.layout, rank=2
    )
    assert torch.equal(applied(Settings("image delta", 0.3, delta_strength=-1.5, rank=2)), expected)
    assert torch.equal(applied(Settings("image delta", -1.5, rank=2)), expected)
    assert applied(Settings("image delta", 0.3, delta_strength=0)) is TEXT


@pytest.mark.parametrize("downsample", [1, 2, 3])
def test_append_pools_last_and_the_others_first(downsample):
    appended = applied(Settings("append", tokens="image_no_markers", downsample=downsample))
    rows, columns = (-(-side // downsample) for side in GRID)
    assert len(appended) == len(IDS) + rows * columns
    pooled, layout = select_tokens(*SEEN.at(-2), "image", downsample=downsample)
    expected, _ = blend(TEXT, pooled, 0.5, "resample", text_layout=LAYOUT, vl_layout=layout)
    assert torch.equal(applied(Settings("resample", tokens="image", downsample=downsample)), expected)


def test_outliers_of_image_tokens_only_leave_the_words_as_they_are():
    changed = dict(outlier_mode="zero", outlier_threshold=2, tokens="all")
    plain = applied(Settings())
    idle = Settings(**changed, outlier_scope="image tokens")
    assert torch.equal(applied(idle), plain)
    assert idle.effective() == Settings().effective() and not idle.needs_reference
    assert not torch.equal(applied(Settings(**changed)), plain)
    scaled = Settings(normalization="global", space="raw")  # its std is over all tokens
    assert not torch.allclose(applied(replace(scaled, **changed, outlier_scope="image tokens")), applied(scaled))


def test_the_aligned_mode_looks_for_outliers_in_the_tokens_it_mixes():
    plain, masked = (Settings("blend aligned", outlier_mode=mode, outlier_threshold=2) for mode in ("none", "zero"))
    expected, *_ = condition(
        TEXT, LAYOUT, SEEN, -2, "blend aligned", 0.5, reference=REFERENCE,
        settings=ModeSettings(outliers="zero", outlier_threshold=2),
    )
    assert torch.equal(applied(masked), expected) and not torch.equal(applied(plain), expected)
    assert torch.equal(expected, applied(Settings("aligned", outlier_mode="zero", outlier_threshold=2)))
    assert masked.needs_reference and not plain.needs_reference


@pytest.mark.parametrize("settings", [
    Settings(normalization="per_dim"), Settings(normalization="global"), Settings(outlier_mode="clamp"),
    Settings("blend aligned", normalization="global", target_std=61), Settings("append picture", outlier_mode="zero"),
], ids=lambda settings: f"{settings.method} {settings.normalization} {settings.outlier_mode}")  # fmt: skip
def test_a_missing_reference_is_asked_for(settings):
    assert settings.needs_reference
    with pytest.raises(ValueError, match=r"reference: normalization .* got none"):
        settings.apply(TEXT, LAYOUT, SEEN)


@pytest.mark.parametrize("settings", [
    Settings(normalization="global", target_std=61), Settings(), Settings("blend as published"),
    Settings("image delta", normalization="per_dim"), Settings(alpha=0, normalization="per_dim"),
], ids=lambda settings: f"{settings.method} {settings.normalization} {settings.alpha}")  # fmt: skip
def test_no_reference_is_asked_for_where_none_is_used(settings):
    assert not settings.needs_reference
    settings.apply(TEXT, LAYOUT, SEEN, BLIND)


@pytest.mark.parametrize(("values", "message"), [
    ({"alpha": 1.2}, r"alpha: expected 0 \(words only\) to 1 with aligned, got 1.2"),
    ({"alpha": float("nan")}, "alpha: expected a number from -3 to 3, got nan"),
    ({"method": "append picture", "alpha": -1}, "strength: expected 0"),
    ({"method": "cut"}, "method: expected one of aligned, resample"),
    ({"layer": -2.5}, "layer: expected a whole number from -37 to 0, got -2.5"),
    ({"layer": 1}, "layer: expected a whole number from -37 to 0, got 1"),
    ({"tokens": "image"}, "tokens: expected all or text with aligned"),
    ({"outlier_threshold": 0.5}, "outlier_threshold: expected a number from 1 to 1000"),
    ({"downsample": True}, "downsample: expected a whole number"),
    ({"antialias": 1}, "antialias: expected true or false, got 1"),
    ({"rank": float("inf")}, "rank: expected a whole number"),
    ({"delta_strength": 4}, "delta_strength: expected a number from -3 to 3"),
    ({"space": None}, "space: expected one of dit, raw, slerp, got None"),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)


def test_settings_survive_json_and_refuse_what_they_do_not_know():
    settings = Settings("image delta", -1, -6, delta_strength=2, rank=3, remove_prompt_direction=True)
    assert Settings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings
    assert Settings.from_dict({}) == Settings()
    with pytest.raises(ValueError, match=r"settings: expected only method, .* got 'treshold'"):
        Settings.from_dict({"treshold": 3})


def values_of(name: str) -> st.SearchStrategy:
    field = FIELDS[name]
    if field.kind is bool:
        return st.booleans()
    if field.choices:
        return st.sampled_from(field.choices)
    small = {
        "alpha": [-1.0, 0.0, 0.3, 1.0], "layer": [0, -2, -6], "downsample": [1, 2], "outlier_threshold": [2.0, 5.0],
        "outlier_gamma": [0.5, 1.0], "target_std": [0.0, 5.0], "delta_strength": [None, -1.0, 0.0, 2.0], "rank": [0, 2],
    }
    return st.sampled_from(small[name])


@st.composite
def any_settings(draw) -> Settings:
    values = {name: draw(values_of(name)) for name in FIELDS}
    if values["method"] == "aligned":
        values["tokens"] = draw(st.sampled_from(["all", "text"]))
    if values["method"] != "image delta":
        values["alpha"] = abs(values["alpha"])
    return Settings(**values)


@given(any_settings(), st.data())
@budget(max_examples=150, deadline=None)
def test_settings_of_equal_effect_give_equal_states(settings, data):
    """What ``effective`` leaves out makes no difference: otherwise a sweep would show one picture for two recipes."""
    name = data.draw(st.sampled_from(list(FIELDS)))
    try:
        other = replace(settings, **{name: data.draw(values_of(name))})
    except ValueError:
        return
    if other.effective() == settings.effective():
        assert torch.equal(applied(other), applied(settings))


SHOWING = {  # a setting under which each field makes a difference, and another value of it
    "method": ({}, "resample"), "alpha": ({}, 0.7), "layer": ({}, -6),
    "tokens": ({"method": "resample"}, "image"), "downsample": ({"method": "append"}, 2), "space": ({}, "raw"),
    "outlier_mode": ({}, "zero"), "outlier_threshold": ({"outlier_mode": "clamp"}, 5),
    "outlier_direction": ({"outlier_mode": "zero", "outlier_threshold": 2}, "under"),
    "outlier_scope": ({"outlier_mode": "zero", "method": "resample"}, "image tokens"),
    "outlier_gamma": ({"outlier_mode": "scale", "outlier_threshold": 2}, 1.0), "normalization": ({}, "per_dim"),
    "target_std": ({"normalization": "global", "space": "raw"}, 61.0),
    "delta_strength": ({"method": "image delta"}, 1.0), "append_position": ({"method": "append"}, "before_tail"),
    "remove_prompt_direction": ({"method": "image delta"}, True), "rank": ({"method": "image delta"}, 2),
    "sinks": ({"normalization": "per_dim"}, "include"), "antialias": ({"method": "resample"}, False),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_changes_the_states_somewhere_and_then_counts_as_effective(name):
    around, value = SHOWING[name]
    before = Settings(**around)
    after = replace(before, **{name: value})
    assert before.effective() != after.effective()
    seen = SEEN
    if name == "sinks":  # a token hundreds of times larger, where the text has its own
        states = SEEN.states.clone()
        states[:, 0] *= 300
        seen = replace(SEEN, states=states)
    pair = [one.apply(TEXT, LAYOUT, seen, BLIND, REFERENCE)[0] for one in (before, after)]
    assert not torch.equal(*pair)


# --- values as people write them --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    ("0, 0.3, 1", [0, 0.3, 1]), ("0:1:0.25", [0, 0.25, 0.5, 0.75, 1]), ("1:0:-0.5", [1, 0.5, 0]),
    ("0:1:0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]), ("0:1:0.3", [0, 0.3, 0.6, 0.9]),
    (" 0.5 ", [0.5]), ("1e-1;.5", [0.1, 0.5]), ("0,0.2:0.6:0.2\n1,", [0, 0.2, 0.4, 0.6, 1]), ("2:2:1", [2]),
    ("-3，-1", [-3, -1]),
], ids=lambda value: str(value)[:20])  # fmt: skip
def test_numbers_and_ranges(text, expected):
    assert parse_values(text, FLOAT) == expected


@given(st.integers(-50, 50), st.integers(1, 9), st.integers(1, 20))
def test_a_range_is_arithmetic_without_rounding(start, step, count):
    tenth = st_format(start), st_format(start + step * (count - 1)), st_format(step)
    wide = Field(float, -1000, 1000)
    assert parse_values(":".join(tenth), wide) == [float(st_format(start + step * n)) for n in range(count)]


def st_format(tenths: int) -> str:
    """Tenths as people write them, exactly."""
    return f"{'-' if tenths < 0 else ''}{abs(tenths) // 10}.{abs(tenths) % 10}"


def test_whole_numbers_need_no_step():
    assert parse_values("-2:-5", INT) == [-2, -3, -4, -5]
    assert parse_values("3", INT) == [3]


def test_a_long_seed_keeps_every_digit():
    assert parse_axis("seed", f"{MAX_SEED}, {MAX_SEED - 1}").values == (MAX_SEED, MAX_SEED - 1)


def test_words_switches_and_names_with_spaces():
    assert parse_axis("method", "blend as published, aligned").values == ("blend as published", "aligned")
    assert parse_axis("antialias", "on, False").values == (True, False)
    assert [axis_name(name) for name in ("Outlier Mode", "strength", "threshold", "delta-strength")] == [
        "outlier_mode", "alpha", "outlier_threshold", "delta_strength"
    ]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("tresh", "1", "axis: expected one of method, alpha, .* got 'tresh'"),
    ("alpha", "", "alpha: expected at least one value, such as 0, 0.3, 1"),
    ("alpha", " , ", "alpha: expected at least one value"),
    ("alpha", "0.3, 0.30", "alpha: expected every value once, got 0.3 more often"),
    ("alpha", "0, 5", "alpha: expected a number from -3 to 3, got 5"),
    ("alpha", "a", "alpha: expected a number or a range .* got 'a'"),
    ("alpha", "nan", "expected a number or a range"),
    ("alpha", "inf", "expected a number or a range"),
    ("alpha", "1e999999", "expected a number or a range"),
    ("alpha", "0:1", "alpha: expected a step as well, such as 0:1:0.1"),
    ("alpha", "0:1:-0.1", "alpha: expected a step that leads from 0 to 1, got -0.1"),
    ("alpha", "0:1:0", "expected a step that leads from 0 to 1, got 0"),
    ("alpha", "0:1:0.000001", "alpha: expected at most 256 values"),
    ("alpha", "0:1:0.1:2", "expected a number or a range"),
    ("layer", "-2.5", "layer: expected a whole number from -37 to 0, got -2.5"),
    ("tokens", "words", "tokens: expected one of all, text, .* got 'words'"),
    ("antialias", "perhaps", "antialias: expected true or false, got 'perhaps'"),
    ("seed", "-1", "seed: expected a whole number from 0"),
    ("outlier_threshold", "0.5", "outlier threshold: expected a number from 1 to 1000"),
], ids=lambda value: str(value)[:24])  # fmt: skip
def test_lists_that_cannot_be_are_refused_by_name(name, text, message):
    with pytest.raises(ValueError, match=message):
        parse_axis(name, text)


@given(st.text(max_size=40))
@budget(deadline=None)
def test_any_text_is_read_or_refused_with_a_value_error(text):
    for name in ("alpha", "layer", "method", "seed", "antialias"):
        try:
            axis = parse_axis(name, text)
        except ValueError:
            continue
        assert all(SWEPT[name].check(name, value) == value for value in axis.values)


# --- plans ------------------------------------------------------------------------------------------------------------


def test_cells_are_every_combination_once_the_first_axis_moving_fastest():
    plan = plan_of(("alpha", "0.2, 0.4, 0.6"), ("layer", "-2, -6"), ("seed", "7, 8"))
    assert [(cell.settings.alpha, cell.settings.layer, cell.seed) for cell in plan.cells] == [
        (alpha, layer, seed) for seed, layer, alpha in product((7, 8), (-2, -6), (0.2, 0.4, 0.6))
    ]
    assert [cell.place for cell in plan.cells[:4]] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0)]
    assert plan.shape == (2, 2, 3)
    assert plan.cells[4].label == "alpha 0.4, layer -6, seed 7"
    assert plan.layers == (-6, -2)


def test_pages_hold_rows_of_columns():
    plan = plan_of(("alpha", "0.2, 0.4"), ("layer", "-2, -6, -8"), ("seed", "7, 8"), ("space", "dit, raw"))
    pages = plan.pages()
    assert [title for title, _ in pages] == [
        "seed 7, space dit", "seed 8, space dit", "seed 7, space raw", "seed 8, space raw"
    ]
    assert [cell for _, table in pages for row in table for cell in row] == list(plan.cells)
    _, table = pages[2]
    assert {(cell.seed, cell.settings.space) for row in table for cell in row} == {(7, "raw")}
    assert [[(cell.settings.alpha, cell.settings.layer) for cell in row] for row in table] == [
        [(0.2, layer), (0.4, layer)] for layer in (-2, -6, -8)
    ]


@given(st.data())
@budget(max_examples=60, deadline=None)
def test_every_cell_has_what_its_label_says(data):
    names = data.draw(st.permutations(["alpha", "layer", "space", "seed", "normalization"]))[:3]
    written = {"alpha": "0.1:0.9:0.4", "layer": "-2,-3", "space": "dit,raw,slerp", "seed": "3:5",
               "normalization": "none,rms"}  # fmt: skip
    plan = plan_of(*((name, written[name]) for name in names))
    assert len({cell.label for cell in plan.cells}) == len({cell.id for cell in plan.cells}) == len(plan.cells)
    for cell in plan.cells:
        told = dict(part.rsplit(" ", 1) for part in cell.label.split(", "))
        actual = {**cell.settings.as_dict(), "seed": cell.seed}
        assert told == {name: show_value(actual[name]) for name in names}
        assert {key: value for key, value in actual.items() if key not in names} == {
            key: value for key, value in {**Settings().as_dict(), "seed": 0}.items() if key not in names
        }


def test_no_axis_is_a_plan_of_one_cell_and_its_baseline():
    plan = make_plan([])
    assert [cell.label for cell in plan.unique] == ["words only", "base"]
    assert plan.shape == (1, 1, 1) and len(plan.pages()) == 1
    assert plan.describe() == "no axis: 1 cell, 2 pictures to paint"


def test_the_words_alone_are_painted_once_per_seed_and_shared_by_every_cell_of_strength_zero():
    plan = plan_of(("alpha", "0, 0.5"), ("layer", "-2, -6"), ("seed", "1, 2"))
    assert [cell.label for cell in plan.baselines] == ["words only, seed 1", "words only, seed 2"]
    assert len(plan.unique) == 2 + 4
    zero = [cell for cell in plan.cells if cell.words_only]
    assert len(zero) == 4
    assert {cell.id for cell in zero} == {cell.id for cell in plan.baselines}
    assert all(plan.baseline_of(cell).seed == cell.seed for cell in plan.cells)
    assert plan.describe().endswith("8 cells, 6 pictures to paint, 4 cells being the same as another")


def test_a_plan_may_do_without_a_baseline():
    plan = plan_of(("alpha", "0.2, 0.4"), baseline=False)
    assert plan.baselines == () and plan.unique == plan.cells
    assert plan.baseline_of(plan.cells[0]) is None


def test_what_a_plan_carries_besides_is_on_every_cell_and_may_be_an_axis():
    prompts = Axis("prompt", ("a cat, red", "a dog"))
    axis = parse_axis("denoise", "0.3, 0.6", {"denoise": Field(float, 0, 1)})
    plan = make_plan([axis, prompts], extra={"prompt": "", "denoise": 1.0, "steps": 8})
    assert [dict(cell.extra) for cell in plan.cells] == [
        {"prompt": prompt, "denoise": denoise, "steps": 8} for prompt in prompts.values for denoise in (0.3, 0.6)
    ]
    assert len(plan.baselines) == 4
    assert Plan.from_json(plan.to_json()) == plan


def test_an_id_is_the_picture_not_the_place():
    narrow, wide = plan_of(("alpha", "0.2, 0.4")), plan_of(("alpha", "0.1:0.5:0.1"), ("layer", "-6, -2"))
    assert {cell.id for cell in narrow.cells} < {cell.id for cell in wide.cells}
    named = plan_of(("alpha", "0.2, 0.4"), base=Settings(layer=-2))  # 0 is the method's own, which is -2
    assert [cell.id for cell in named.cells] == [cell.id for cell in narrow.cells]
    assert named.hash != narrow.hash


def test_ids_and_hash_are_the_same_in_another_process():
    code = (
        "from vl_core.steering.sweep import *; p = make_plan([parse_axis('alpha', '0:1:0.1'), parse_axis('method', "
        "'aligned, image delta')], seed=3); print(p.hash, *[cell.id for cell in p.cells])"
    )
    plan = plan_of(("alpha", "0:1:0.1"), ("method", "aligned, image delta"), seed=3)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [plan.hash, *(cell.id for cell in plan.cells)]


def test_a_plan_survives_json_and_its_hash_tells_plans_apart():
    plan = plan_of(("layer", "-2, -6"), ("method", "aligned, image delta"), seed=MAX_SEED, base=Settings(rank=4))
    again = Plan.from_json(plan.to_json())
    assert again == plan and again.hash == plan.hash and again.cells == plan.cells
    others = [plan_of(("layer", "-2, -6")), plan_of(("layer", "-6, -2")), plan_of(("layer", "-2, -6"), seed=1)]
    assert len({one.hash for one in (plan, *others)}) == 4


def test_what_an_axis_replaces_does_not_matter():
    assert plan_of(("alpha", "0.2, 0.4"), base=Settings(alpha=0.9)) == plan_of(("alpha", "0.2, 0.4"))
    plan = plan_of(("method", "image delta"), base={"alpha": -1.5})
    assert plan.cells[0].settings == Settings("image delta", -1.5)


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "3", '{"version": 2}', '{"version": 1}', '{"version": 1, "axes": 3}',
    '{"version": 1, "axes": [{"name": "alpha", "values": [9]}], "base": {}, "seed": 0, "extra": {}, "baseline": true}',
    '{"version": 1, "axes": [], "base": {"a": 1}, "seed": 0, "extra": {}, "baseline": true}', None,
], ids=lambda text: str(text)[:24])  # fmt: skip
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ValueError):
        Plan.from_json(text)


@pytest.mark.parametrize(("axes", "base", "message"), [
    ([("alpha", "0:1:0.01"), ("layer", "-2:-6")], {}, r"axes: expected at most 256 cells, got 101 × 5 = 505"),
    ([("alpha", "0.1"), ("strength", "0.2")], {}, "axis: expected every setting on one axis, got alpha on 2"),
    ([("tokens", "all, image")], {}, "tokens: expected all or text with aligned.* In the cell tokens image"),
    ([("alpha", "0.5, 2")], {}, "with aligned, got 2. In the cell alpha 2"),
    ([("outlier mode", "none"), ("threshold", "5, 10")], {},
     "outlier threshold: makes no difference to any cell, because the outlier mode is none"),
    ([("space", "dit, raw")], {"method": "append"}, "space: makes no difference .* method append does not use it"),
    ([("layer", "-2, -6")], {"alpha": 0}, "layer: makes no difference .* every strength is 0"),
    ([("outlier mode", "zero, clamp")], {"outlier_scope": "image tokens"},
     "outlier mode: makes no difference .* in image tokens only and the method mixes words only"),
    ([("threshold", "2, 3")], {"outlier_mode": "zero", "outlier_scope": "image tokens"}, "in image tokens only"),
    ([("delta strength", "1, 2")], {}, "delta strength: makes no difference .* method aligned does not use it"),
    ([("alpha", "1, 2")], {"method": "image delta", "delta_strength": 1.0}, "alpha: makes no difference"),
], ids=lambda value: str(value)[:30])  # fmt: skip
def test_plans_that_cannot_be_or_show_nothing_are_refused(axes, base, message):
    with pytest.raises(ValueError, match=message):
        plan_of(*axes, base=base or None)


def test_axes_and_extras_are_checked_by_name():
    with pytest.raises(ValueError, match=r"axis: expected one of method, .* got 'prompt'"):
        make_plan([Axis("prompt", ("a", "b"))])
    with pytest.raises(ValueError, match="extra: expected names that no setting has, got alpha"):
        make_plan([], extra={"alpha": 1})
    with pytest.raises(ValueError, match="seed: expected a whole number"):
        make_plan([], seed=-1)


def test_more_cells_are_allowed_on_request():
    assert len(plan_of(("alpha", "0:1:0.01"), ("layer", "-2:-6"), limit=505).cells) == 505 > MAX_CELLS


def test_a_plan_knows_what_has_to_be_read_for_it():
    plan = plan_of(("method", "aligned, image delta, blend as published"), ("alpha", "0, 0.5"))
    assert plan.layers == (-6, -2) and plan.needs_muted and not plan.needs_reference
    assert plan_of(("normalization", "none, per_dim")).needs_reference
    words = plan_of(("seed", "1, 2"), base=Settings("image delta", 0))
    assert words.layers == () and not words.needs_muted


def test_layouts_of_pictures_are_needed_only_by_what_pools_them():
    blind = VLStates(SEEN.states[:, : len(IDS)], SEEN.layers, BLOCKS, LAYOUT)
    Settings("append", downsample=4).apply(TEXT, LAYOUT, blind)
    Settings("resample", downsample=4, outlier_mode="zero", outlier_scope="image tokens").apply(
        TEXT, TokenLayout(torch.full((len(IDS),), TokenRole.TEXT), torch.tensor(IDS)), blind, reference=REFERENCE
    )
