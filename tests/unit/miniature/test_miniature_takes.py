"""What each take brings: read off the committed figures, and the reading of places held to drawn discs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from miniature import world
from miniature.measure import takes
from miniature.show import tables
from vl_core.steering.takes import take_names
from vl_core.steering.ways.adapter import WORTH_IT

REPORT = json.loads((Path(__file__).parents[3] / "miniature" / "takes.json").read_text(encoding="utf-8"))
BY_WORDS = [row for row in REPORT["rows"] if row["way"] == "words" and row["strength"] == 1]
PLACELESS = "composition"  # the miniature's DiT does not follow words for places: nothing to measure there


def row_of(take: str, true_words: bool = False) -> dict:
    (found,) = [row for row in BY_WORDS if row["take"] == take and row["true_words"] is true_words]
    return found


def test_every_take_is_measured_by_words_and_what_the_vl_cannot_be_asked_by_true_words():
    assert {row["take"] for row in BY_WORDS if row["true_words"]} == set(take_names())
    assert {row["take"] for row in BY_WORDS if not row["true_words"]} == set(take_names()) - {PLACELESS}
    assert all("place" not in row["transfer"] for row in BY_WORDS)  # a caption moves no object: no unit to measure in


@pytest.mark.parametrize("take", [name for name in take_names() if name != PLACELESS])
def test_by_words_a_take_brings_what_it_names_beyond_both_nulls(take):
    row = row_of(take)
    named = [part for part in row["names"] if part != "place"]
    assert named
    for part in named:
        for null in (takes.ANOTHER, takes.NOISE):
            assert row["transfer"][part] - row[null][part] >= takes.LEAST, (part, null)


@pytest.mark.parametrize("take", ["style", "colours", "light and mood", PLACELESS])
def test_a_take_of_one_part_leaves_the_others_nearer_to_words_alone_than_the_look_does(take):
    row, look = row_of(take, take == PLACELESS), row_of("the look")
    others = [part for part in world.LOOK if part not in row["names"]]
    assert others
    for part in others:
        assert abs(row["transfer"][part]) < min(0.1, abs(look["transfer"][part])), part
    assert row["colour"] >= 0.85 and row["shape"] >= 0.85


def test_a_strength_below_0_does_not_take_away_half_of_what_another_picture_leaves():
    for row in REPORT["pushing"]:
        falls = [row["own"][part] <= 0.5 * row[takes.ANOTHER][part] for part in row["own"]]
        assert not all(falls), row  # so that no way is said to push away


def test_the_floor_of_automatic_parts_fits_that_bring_most_of_a_caption_from_those_that_do_not():
    good = [fit for fit in REPORT["fits"] if fit["r2_by"]["tail"] >= WORTH_IT]
    weak = [fit for fit in REPORT["fits"] if fit["r2_by"]["tail"] < WORTH_IT]
    assert min(fit["transfer"] for fit in good) > 0.8
    assert len(good) >= 4 and len(weak) >= 4
    assert max(fit["transfer"] for fit in weak) < 0.9


@pytest.mark.parametrize("place", range(len(world.POSITIONS)))
def test_a_place_is_read_off_the_centroid_of_what_has_the_objects_colour(place):
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    centre = world.CENTRES[place]
    disc = (x - centre[0] - 5).square() + (y - centre[1] + 4).square() < 18**2
    color, ground = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.9])
    picture = torch.where(disc[..., None], color, ground).permute(2, 0, 1)[None] * 2 - 1
    assert takes.place_of(picture, color[None]).tolist() == [place]
    assert takes.place_of(picture, torch.tensor([[0.0, 1.0, 0.0]])).tolist() == [-1]  # nothing of that colour


def test_the_page_has_the_table_of_the_report():
    page = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert tables.fill_takes(page, REPORT) == page
    assert "\n".join(takes.table(REPORT)) in page
