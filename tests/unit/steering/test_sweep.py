"""Sweeps: every cell is what its label says, equal ids are equal pictures, nothing is swept in vain."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from vl_core.states.fields import Field
from vl_core.steering.axes import MAX_CELLS, MAX_SEED, SWEPT, Axis, axis_name, parse_axis, parse_values, show_value
from vl_core.steering.settings import OPEN_BLEND, Settings
from vl_core.steering.sweep import Plan, make_plan

FLOAT, INT = Field(float, -10, 10), Field(int, -100, 100)


def settings_of(**values) -> Settings:
    """Settings of the open blend unless they name a way."""
    return Settings.from_dict({"method": "aligned", "alpha": 0.5, **values})


def plan_of(*axes: tuple[str, str], base: Settings | dict | None = None, **options) -> Plan:
    return make_plan([parse_axis(*axis) for axis in axes], base or {"method": "aligned", "alpha": 0.5}, **options)


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
        "outlier_mode", "strength", "outlier_threshold", "delta_strength"
    ]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("tresh", "1", "axis: expected one of way, take, strength, .* got 'tresh'"),
    ("alpha", "", "strength: expected at least one value, such as 0, 0.3, 1"),
    ("alpha", " , ", "strength: expected at least one value"),
    ("alpha", "0.3, 0.30", "strength: expected every value once, got 0.3 more often"),
    ("alpha", "0, 5", "strength: expected a number from -3 to 3, got 5"),
    ("alpha", "a", "strength: expected a number or a range .* got 'a'"),
    ("alpha", "nan", "expected a number or a range"),
    ("alpha", "inf", "expected a number or a range"),
    ("alpha", "1e999999", "expected a number or a range"),
    ("alpha", "0:1", "strength: expected a step as well, such as 0:1:0.1"),
    ("alpha", "0:1:-0.1", "strength: expected a step that leads from 0 to 1, got -0.1"),
    ("alpha", "0:1:0", "expected a step that leads from 0 to 1, got 0"),
    ("alpha", "0:1:0.000001", "strength: expected at most 256 values"),
    ("alpha", "0:1:0.1:2", "expected a number or a range"),
    ("layer", "-2.5", "layer: expected a layer or a range, got '-2.5'"),
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
        assert all(SWEPT[axis.name].check(name, value) == value for value in axis.values)


# --- plans ------------------------------------------------------------------------------------------------------------


def test_cells_are_every_combination_once_the_first_axis_moving_fastest():
    plan = plan_of(("alpha", "0.2, 0.4, 0.6"), ("layer", "-2, -6"), ("seed", "7, 8"))
    assert [(cell.settings.strength, cell.settings.layer, cell.seed) for cell in plan.cells] == [
        (alpha, layer, seed) for seed, layer, alpha in product((7, 8), (-2, -6), (0.2, 0.4, 0.6))
    ]
    assert [cell.place for cell in plan.cells[:4]] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0)]
    assert plan.shape == (2, 2, 3)
    assert plan.cells[4].label == "strength 0.4, layer -6, seed 7"


def test_pages_hold_rows_of_columns():
    plan = plan_of(("alpha", "0.2, 0.4"), ("layer", "-2, -6, -8"), ("seed", "7, 8"), ("space", "dit, raw"))
    pages = plan.pages()
    assert [title for title, _ in pages] == [
        "seed 7, space dit", "seed 8, space dit", "seed 7, space raw", "seed 8, space raw"
    ]
    assert [cell for _, table in pages for row in table for cell in row] == list(plan.cells)
    _, table = pages[2]
    assert {(cell.seed, cell.settings.space) for row in table for cell in row} == {(7, "raw")}
    assert [[(cell.settings.strength, cell.settings.layer) for cell in row] for row in table] == [
        [(0.2, layer), (0.4, layer)] for layer in (-2, -6, -8)
    ]


@given(st.data())
@budget(max_examples=60, deadline=None)
def test_every_cell_has_what_its_label_says(data):
    names = data.draw(st.permutations(["strength", "layer", "space", "seed", "normalization"]))[:3]
    written = {"strength": "0.1:0.9:0.4", "layer": "-2,-3", "space": "dit,raw,slerp", "seed": "3:5",
               "normalization": "none,rms"}  # fmt: skip
    plan = plan_of(*((name, written[name]) for name in names))
    assert len({cell.label for cell in plan.cells}) == len({cell.id for cell in plan.cells}) == len(plan.cells)
    for cell in plan.cells:
        told = dict(part.rsplit(" ", 1) for part in cell.label.split(", "))
        actual = {**cell.settings.as_dict(), "seed": cell.seed}
        assert told == {name: show_value(actual[name]) for name in names}
        assert {key: value for key, value in actual.items() if key not in names} == {
            key: value for key, value in {**settings_of().as_dict(), "seed": 0}.items() if key not in names
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
    named = plan_of(("alpha", "0.2, 0.4"), base=settings_of(layer=-2))  # 0 is the method's own, which is -2
    assert [cell.id for cell in named.cells] == [cell.id for cell in narrow.cells]
    assert named.hash != narrow.hash


def test_ids_and_hash_are_the_same_in_another_process():
    code = (
        "from vl_core import make_plan, parse_axis; p = make_plan([parse_axis('alpha', '0:1:0.1'), "
        "parse_axis('method', 'aligned, image delta')], seed=3); print(p.hash, *[cell.id for cell in p.cells])"
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
    assert plan_of(("alpha", "0.2, 0.4"), base=settings_of(alpha=0.9)) == plan_of(("alpha", "0.2, 0.4"))
    plan = plan_of(("method", "image delta"), base={"alpha": -1.5})
    assert plan.cells[0].settings == Settings("research: image delta", strength=-1.5)


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
    ([("alpha", "0.1"), ("strength", "0.2")], {}, "axis: expected every setting on one axis, got strength on 2"),
    ([("tokens", "all, image")], {}, "tokens: expected all or text with aligned.* In the cell tokens image"),
    ([("alpha", "0.5, 1")], {"alpha": 4}, "strength: expected a number from -3 to 3, got 4"),
    ([("way", "words, automatic")], {"way": "by train"}, "by train"),
    ([("alpha", "0.5, 2")], {}, "with open blend, got 2.* In the cell strength 2"),
    ([("outlier mode", "none"), ("threshold", "5, 10")], {},
     "outlier threshold: makes no difference to any cell, because the outlier mode is none"),
    ([("space", "dit, raw")], {"method": "append"}, "space: makes no difference .* append does not use it"),
    ([("layer", "-2, -6")], {"alpha": 0}, "layer: makes no difference .* every strength is 0"),
    ([("outlier mode", "zero, clamp")], {"method": "aligned", "outlier_scope": "image tokens"},
     "outlier mode: makes no difference .* in image tokens only and the method mixes words only"),
    ([("threshold", "2, 3")], {"method": "aligned", "outlier_mode": "zero", "outlier_scope": "image tokens"},
     "in image tokens only"),
    ([("delta strength", "1, 2")], {}, "delta strength: makes no difference .* aligned does not use it"),
    ([("layer", "-2, -6")], {"way": "words"}, "layer: makes no difference .* words does not use it"),
], ids=lambda value: str(value)[:30])  # fmt: skip
def test_plans_that_cannot_be_or_show_nothing_are_refused(axes, base, message):
    with pytest.raises(ValueError, match=message):
        plan_of(*axes, base=base or None)


def test_axes_and_extras_are_checked_by_name():
    with pytest.raises(ValueError, match=r"axis: expected one of way, .* got 'prompt'"):
        make_plan([Axis("prompt", ("a", "b"))])
    with pytest.raises(ValueError, match="extra: expected names that no setting has, got strength"):
        make_plan([], extra={"strength": 1})
    with pytest.raises(ValueError, match="seed: expected a whole number"):
        make_plan([], seed=-1)


def test_more_cells_are_allowed_on_request():
    assert len(plan_of(("alpha", "0:1:0.01"), ("layer", "-2:-6"), limit=505).cells) == 505 > MAX_CELLS


def test_ways_and_takes_are_axes():
    plan = plan_of(("way", "words, aligned blend"), ("take", "style, colours"), base={})
    assert [(cell.settings.way, cell.settings.take) for cell in plan.cells] == [
        (way, take) for take in ("style", "colours") for way in ("words", "aligned blend")
    ]
    assert len(plan.unique) == 5


def test_a_method_names_a_way_or_a_blend_by_any_name_it_has_had():
    plan = plan_of(("method", "append, append picture, aligned blend, describe"), base={})
    assert [(cell.settings.way, cell.settings.method) for cell in plan.cells] == [
        (OPEN_BLEND, "append"), ("appended tokens", "append"), ("aligned blend", "append"), ("words", "append")
    ]


def test_a_way_is_named_by_any_name_it_has_had():
    plan = plan_of(("way", "image delta, append picture, as published"), base={})
    assert [cell.settings.way for cell in plan.cells] == [
        "research: image delta", "appended tokens", "research: as published",
    ]
    assert Plan.from_json(plan.to_json()) == plan
