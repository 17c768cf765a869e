"""The grid of a sweep: every picture is where its label stands, pixel for pixel, and none is lost."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from vl_core.reports.grid import Box, Grid, draw_grid, pictures_by_id, wrap
from vl_core.reports.plots import THEMES
from vl_core.steering.axes import Axis, parse_axis
from vl_core.steering.sweep import Plan, make_plan

pytest.importorskip("PIL", reason="pages are drawn with Pillow")

ONE = [("alpha", "0.1:0.9:0.2")]
TWO = [("alpha", "0, 0.5, 1"), ("layer", "-2, -6")]
FOUR = [*TWO, ("seed", "1, 2"), ("space", "dit, raw")]
ALIGNED = {"method": "aligned", "alpha": 0.5}


def plan_of(*axes: tuple[str, str], **options) -> Plan:
    return make_plan([parse_axis(*axis) for axis in axes], ALIGNED, **options)


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def painted(plan: Plan, height: int = 40, width: int = 56) -> dict[str, np.ndarray]:
    """Noise for every picture: no two are alike, and no text looks like it."""
    return {cell.id: noise(height, width, number) for number, cell in enumerate(plan.unique)}


@pytest.fixture
def written(monkeypatch) -> list[tuple[float, float, str]]:
    """What is written on pages, and where."""
    from PIL import ImageDraw

    found, original = [], ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **options):
        found.append((*xy, text))
        return original(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def all_boxes(grid: Grid) -> list[Box]:
    return [*grid.boxes, *(box for _, box in grid.baselines), *grid.references]


@pytest.mark.parametrize("axes", [[], ONE, TWO, FOUR[:3], FOUR], ids=lambda axes: f"{len(axes)} axes")
@pytest.mark.parametrize("theme", THEMES)
def test_every_cell_holds_the_picture_of_its_own_recipe(axes, theme):
    plan = plan_of(*axes)
    pictures, reference = painted(plan), noise(40, 56, 999)
    grid = draw_grid(plan, pictures, [reference], title="a title " * 30, theme=theme)
    assert len(grid.pages) == plan.shape[0]
    assert len({page.shape for page in grid.pages}) == 1
    for cell, box in zip(plan.cells, grid.boxes, strict=True):
        assert np.array_equal(box.cut(grid.pages), pictures[cell.id]), cell.label
    for page in range(len(grid.pages)):
        words = [(cell, box) for cell, box in grid.baselines if box.page == page]
        seeds = {cell.seed for cell, box in zip(plan.cells, grid.boxes, strict=True) if box.page == page}
        assert {cell.seed for cell, _ in words} == seeds and all(cell.words_only for cell, _ in words)
        assert all(np.array_equal(box.cut(grid.pages), pictures[cell.id]) for cell, box in words)
        (box,) = [box for box in grid.references if box.page == page]
        assert np.array_equal(box.cut(grid.pages), reference)


@pytest.mark.parametrize("axes", [ONE, TWO, FOUR], ids=lambda axes: f"{len(axes)} axes")
def test_pictures_lie_on_the_page_and_none_on_another(axes):
    plan = plan_of(*axes)
    grid = draw_grid(plan, painted(plan), [noise(200, 40, 5), noise(30, 300, 6)])
    for box in all_boxes(grid):
        height, width = grid.pages[box.page].shape[:2]
        assert 0 < box.left < box.right < width and 0 < box.top < box.bottom < height
    for a, b in combinations(all_boxes(grid), 2):
        apart = a.right <= b.left or b.right <= a.left or a.bottom <= b.top or b.bottom <= a.top
        assert a.page != b.page or apart


def test_labels_stand_above_their_column_and_beside_their_row(written):
    plan = plan_of(*TWO)
    grid = draw_grid(plan, painted(plan), [noise(40, 56, 1)])
    places = {text: (x, y) for x, y, text in written}
    for cell, box in zip(plan.cells, grid.boxes, strict=True):
        column, row = cell.label.split(", ")
        x, y = places[column]
        assert x == box.left and y < min(one.top for one in grid.boxes)
        x, y = places[row]
        assert x < min(one.left for one in grid.boxes) and y == box.top
    for label, box in (("reference", grid.references[0]), ("words only", grid.baselines[0][1])):
        x, y = places[label]
        assert x == box.left and y < box.top
    labels = [y for x, y, text in written if text.startswith("strength")]
    assert max(box.bottom for _, box in grid.baselines) < min(labels)


def test_a_single_axis_is_broken_into_lines_with_a_label_over_every_picture(written):
    plan = plan_of(("alpha", "0:1:0.1"))
    grid = draw_grid(plan, painted(plan))
    assert len({box.top for box in grid.boxes}) == 2
    over = {(x, y): text for x, y, text in written}
    for cell, box in zip(plan.cells, grid.boxes, strict=True):
        above = max((at for at in over if at[0] == box.left and at[1] < box.top), key=lambda at: at[1])
        assert over[above] == cell.label


def test_pages_are_titled_with_the_values_of_the_further_axes(written):
    plan = plan_of(*FOUR)
    draw_grid(plan, painted(plan, 40, 200), title="a cat")
    texts = [text for _, _, text in written]
    assert texts.count("a cat") == 4
    titles = [text for text in texts if text.startswith("seed")]
    assert titles == ["seed 1, space dit", "seed 2, space dit", "seed 1, space raw", "seed 2, space raw"]
    assert texts.count("words only, seed 1") == texts.count("words only, seed 2") == 2


def test_a_long_title_and_long_labels_are_wrapped_and_lose_no_word(written):
    prompts = ("a very long prompt about the sea at night " * 5, "short", "without" * 30)
    plan = make_plan([Axis("prompt", prompts), parse_axis("layer", "-2, -6")], ALIGNED, extra={"prompt": ""})
    title = "one two three four " * 40
    grid = draw_grid(plan, painted(plan, 96, 96), title=title)
    (width,) = {page.shape[1] for page in grid.pages}
    lines = [text for _, _, text in written]
    joined = " ".join(lines)
    assert title.strip() in joined
    assert prompts[0].strip() in joined.replace("words only, prompt ", "")
    assert prompts[2] in "".join(lines).replace(" ", "")
    assert width < 96 * 5 + 100  # wrapped to the pictures, which are not pushed apart
    assert max(box.bottom for box in grid.boxes) < grid.pages[0].shape[0]
    for cell, box in zip(plan.cells, grid.boxes, strict=True):
        assert box.bottom - box.top == 96, cell.label


def test_letters_are_drawn_in_the_themes_ink():
    plan = plan_of(*TWO)
    for theme, colours in THEMES.items():
        (page,) = draw_grid(plan, painted(plan), theme=theme).pages
        wanted = [tuple(int(hexadecimal[at : at + 2], 16) for at in (1, 3, 5)) for hexadecimal in (
            colours.background, colours.ink)]  # fmt: skip
        assert tuple(page[0, 0]) == wanted[0]
        assert (page == np.array(wanted[1], np.uint8)).all(-1).any()


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_full_size_is_pixel_for_pixel_and_a_cell_size_averages_down():
    plan = plan_of(*TWO)
    pictures = painted(plan, 64, 128)
    small = draw_grid(plan, pictures, cell_size=32)
    for cell, box in zip(plan.cells, small.boxes, strict=True):
        expected = pictures[cell.id].reshape(16, 4, 32, 4, 3).astype(float).mean((1, 3))
        found = box.cut(small.pages)
        assert found.shape == (16, 32, 3)
        assert np.abs(found - expected).max() <= 1
    same = draw_grid(plan, pictures, cell_size=500)
    assert all(box.cut(same.pages).shape == (64, 128, 3) for box in same.boxes)


def test_pictures_of_different_sizes_keep_them_and_references_fit_into_a_cell():
    plan = plan_of(*TWO)
    pictures = {cell.id: noise(20 + 10 * n, 60 - 8 * n, n) for n, cell in enumerate(plan.unique)}
    grid = draw_grid(plan, pictures, [noise(400, 100, 3), noise(10, 12, 4)])
    for cell, box in zip(plan.cells, grid.boxes, strict=True):
        assert np.array_equal(box.cut(grid.pages), pictures[cell.id])
    tall, small = (box.cut(grid.pages) for box in grid.references)
    height = max(picture.shape[0] for picture in pictures.values())
    assert tall.shape == (height, round(100 * height / 400), 3)
    assert np.array_equal(small, noise(10, 12, 4))


@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.one_of(st.none(), st.integers(1, 80)),
)
@budget(max_examples=40, deadline=None)
def test_any_shape_of_grid_and_picture_loses_no_cell(columns, rows, pages, size, cell_size):
    axes = [
        Axis("strength", tuple(n / 10 for n in range(1, columns + 1))), Axis("layer", tuple(range(-1, -rows - 1, -1))),
        Axis("seed", tuple(range(pages))),
    ]
    plan = make_plan(axes, ALIGNED)
    grid = draw_grid(plan, painted(plan, *size), cell_size=cell_size)
    assert len(grid.boxes) == len(set(grid.boxes)) == columns * rows * pages
    longest = max(size) if cell_size is None else min(cell_size, max(size))
    assert {max(box.bottom - box.top, box.right - box.left) for box in grid.boxes} == {longest}


def test_floats_and_tensors_as_the_host_has_them_are_pictures():
    plan = plan_of(("alpha", "0.2, 0.4"))
    pixels = painted(plan)
    pictures = {key: torch.from_numpy(value).float()[None] / 255 for key, value in pixels.items()}
    grid = draw_grid(plan, pictures)
    for cell, box in zip(plan.cells, grid.boxes, strict=True):
        assert np.array_equal(box.cut(grid.pages), pixels[cell.id])


# --- what is missing or wrong -----------------------------------------------------------------------------------------


def test_pictures_are_matched_to_cells_in_the_order_they_are_painted_in():
    plan = plan_of(*TWO)
    pictures = [noise(8, 8, n) for n in range(len(plan.unique))]
    matched = pictures_by_id(plan, pictures)
    assert all(matched[cell.id] is picture for cell, picture in zip(plan.unique, pictures, strict=True))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_picture_too_few_or_too_many_is_refused(change):
    plan = plan_of(*TWO)
    pictures = [noise(8, 8, n) for n in range(len(plan.unique) + change)]
    with pytest.raises(ValueError, match=rf"images: expected 5 pictures, .*\(6 cells, .* got {5 + change}"):
        pictures_by_id(plan, pictures)


def test_a_cell_without_a_picture_is_refused_by_name_unless_it_may_be_missing(written):
    plan = plan_of(*TWO)
    pictures = painted(plan)
    del pictures[plan.cells[4].id]
    with pytest.raises(ValueError, match=r"none for 1 of 5, the first being: strength 0.5, layer -6"):
        draw_grid(plan, pictures)
    grid = draw_grid(plan, pictures, missing_ok=True)
    box = grid.boxes[4]
    assert (box.right - box.left, box.bottom - box.top) == (56, 40)
    assert [" ".join(text for x, y, text in written if box.left < x < box.right and box.top < y < box.bottom)] == [
        "not painted"
    ]
    assert np.array_equal(grid.boxes[5].cut(grid.pages), pictures[plan.cells[5].id])
    assert len(draw_grid(plan, {}, missing_ok=True).boxes) == 6


def test_a_picture_of_nan_costs_no_other_its_place(written):
    plan = plan_of(*TWO)
    pictures = painted(plan)
    broken = torch.full((1, 40, 56, 3), float("nan"))
    grid = draw_grid(plan, {**pictures, plan.cells[4].id: broken})
    assert any("NaN" in text for _, _, text in written)
    assert np.array_equal(grid.boxes[5].cut(grid.pages), pictures[plan.cells[5].id])


@pytest.mark.parametrize(("options", "message"), [
    ({"theme": "pink"}, "theme: expected one of light, dark"),
    ({"cell_size": 0}, "cell_size: expected at least 1 pixel"),
    ({"references": [np.zeros((3, 4), np.uint8)]}, "reference 1: expected a picture"),
], ids=["theme", "size", "reference"])  # fmt: skip
def test_bad_options_are_refused_by_name(options, message):
    plan = plan_of(*TWO)
    with pytest.raises(ValueError, match=message):
        draw_grid(plan, painted(plan), **options)


# --- wrapping ---------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab c\n", max_size=60), st.integers(1, 20))
@budget(deadline=None)
def test_lines_are_short_enough_and_hold_every_letter_in_order(text, width):
    lines = wrap(text, len, width)
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(text.split())


def test_lines_break_at_spaces_and_within_words_only_where_they_must():
    assert wrap("one two three", len, 7) == ["one two", "three"]
    assert wrap("abcdefgh ij", len, 3) == ["abc", "def", "gh", "ij"]
    assert wrap("a\n\nb", len, 9) == ["a", "", "b"]
    assert wrap("", len, 9) == [""]


def test_a_long_title_without_spaces_is_measured_in_few_steps():
    measured = []

    def length(text: str) -> int:
        measured.append(text)
        return len(text)

    title = "水" * 2000
    assert wrap(title, length, 25) == ["水" * 25] * 80
    assert len(measured) < 20 * 80  # one letter less at a time it was 79 080 times, and took minutes
