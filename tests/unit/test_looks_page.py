"""docs/looks.md holds what its report says, and learned looks beat their nulls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="the miniature is diffusers classes")

from miniature.measure.look_units import ANOTHER, PLAIN
from miniature.show import looks_plot, tables

ROOT = Path(__file__).parents[2]
FILE = ROOT / "miniature" / tables.LOOKS_REPORT
REPORT = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else None
measured = pytest.mark.skipif(REPORT is None, reason="python -m miniature looks has not been run on these models")


def test_the_page_is_made_of_the_report_and_the_qualities():
    page = (ROOT / "docs" / tables.LOOKS_PAGE).read_text(encoding="utf-8")
    assert page == tables.fill_looks(page, REPORT), "run python -m miniature tables"


@measured
def test_every_learned_look_beats_its_nulls():
    for row in REPORT["rows"]:
        nulls = [null for null in REPORT["nulls"] if null["of"] == row["name"]]
        assert nulls
        assert all(row["transfer"] - null["transfer"] >= 0.8 for null in nulls), row["name"]


def nearer(one: dict, other: dict) -> bool:
    """Whether an error is smaller than another by two standard errors of the difference."""
    return other["mean"] - one["mean"] > 2 * (one["stderr"] ** 2 + other["stderr"] ** 2) ** 0.5


@measured
def test_a_colour_between_names_is_less_than_half_as_far_off_as_in_words_and_nearer_than_anothers():
    nulls = {null["of"]: null for null in REPORT["nulls"] if null["control"] == ANOTHER}
    words = REPORT["between_words"]["nearer name"]
    rows = {row["name"]: row["between"] for row in REPORT["rows"] if "between" in row}
    assert {"good", "best"} <= set(rows)
    for name, found in rows.items():
        assert found["mean"] < 0.5 * words["mean"] and nearer(found, words)
        assert nearer(found, nulls[name]["between"])
    gains = {row["name"]: row["nearer_than_start"] for row in REPORT["rows"] if "nearer_than_start" in row}
    assert all(gain["mean"] > 2 * gain["stderr"] for gain in gains.values())
    assert nearer(rows["best"], rows["good"])


@measured
def test_the_qualities_reach_their_goals():
    rows = {row["name"]: row for row in REPORT["rows"]}
    for name, between in (("good", 0.12), ("best", 0.08)):
        row = rows[name]
        assert row["transfer"] >= 0.98 and row["adherence"] >= 0.99 and row["adherence_shape"] >= 0.97
        assert row["leak"] <= 0.01 and row["between"]["mean"] <= between
        assert all(abs(null["transfer"]) <= 0.05 for null in REPORT["nulls"] if null["of"] == name)


@measured
def test_of_four_pictures_a_look_is_no_worse_than_of_one():
    rows = {row["name"]: row for row in REPORT["rows"]}
    for name in ("quick", "good", "best"):
        one, four = rows[name], rows[f"{name}, 4 pictures"]
        assert four["adherence_shape"] >= 0.985
        assert four["leak"] <= 0.01
        for figure, error in (("transfer", "stderr"), ("adherence", "adherence_stderr")):
            assert four[figure] >= one[figure] - 2 * (one[error] ** 2 + four[error] ** 2) ** 0.5, (name, figure)


@measured
def test_prompts_are_lost_where_nothing_is_kept():
    kept, lost = (
        next(row for row in REPORT["rows"] if row["name"] == name) for name in ("good", "good, nothing kept")
    )
    assert kept["adherence"] - lost["adherence"] > 2 * lost["adherence_stderr"]
    shape = lost["adherence_shape"]
    error = (shape * (1 - shape) / REPORT["asked"]["pairs"]) ** 0.5  # as if other seeds told nothing new
    assert kept["adherence_shape"] - shape > 2 * error
    # The page's words.
    assert [round(100 * (1 - lost[figure])) for figure in ("adherence", "adherence_shape")] == [2, 6]
    assert kept["between"]["mean"] - lost["between"]["mean"] < kept["between"]["stderr"]


@measured
def test_the_page_claims_of_geometry_what_is_beyond_its_errors():
    shown, from_null = {}, {}
    for one in REPORT["geometry"]:
        for case in set(one["error"]) & {"good", "best"}:
            found = one["error"][case]
            shown.setdefault(case, set()).update([one["property"]] * nearer(found, one["error"]["words"]))
            from_null.setdefault(case, set()).update(
                [one["property"]] * nearer(found, one["error"][f"{case}: another picture"])
            )
    beyond = {case: shown[case] & from_null[case] for case in shown}
    assert beyond == {
        "good": {"direction of a gradient"}, "best": {"direction of a gradient", "period of checks"},
    }
    page = " ".join((ROOT / "docs" / tables.LOOKS_PAGE).read_text(encoding="utf-8").split())
    assert "the direction of a gradient comes out nearer than in words" in page
    assert "at *best* the period of checks does so too. For stripes nothing is shown" in page


def row(name: str, between: float, **options) -> dict:
    return {
        "name": name, "transfer": 0.9, "adherence": 1.0, "adherence_shape": 0.9, "between": {"mean": between},
        "options": {**PLAIN.header(), **options},
    }


def test_the_curves_are_drawn_in_the_order_of_their_values(tmp_path):
    report = {
        "curves": [row("plain", 0.15), row("draws 8", 0.1, draws=8), row("draws 1", 0.2, draws=1)],
        "strengths": [{"strength": 0.5, **row("strength 0.5", 0.3)}], "curves_asked": {"pairs": 3, "seeds": 1},
        "measured": {"machine": "none, 1 core", "date": "2026-01-01"},
    }
    assert [value for value, _ in looks_plot.points(report, "draws")] == [1, PLAIN.draws, 8]
    assert [value for value, _ in looks_plot.points(report, "strength")] == [0.5, 1.0]
    looks_plot.draw(report, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_page_without_a_report_says_nothing_of_figures():
    page = "".join(f"<!-- {name} -->\nold\n<!-- end -->\n" for name in ("sample", "looks", "geometry"))
    filled = tables.fill_looks(page, None)
    assert "old" not in filled and "tables below are empty" in filled


def test_the_page_tells_its_sample_and_what_was_left_out():
    error = {"mean": 0.25, "stderr": 0.0625}
    report = {
        "asked": {"pairs": 12, "seeds": 2, "few": 9, "lookalikes": None, "matmul": "medium"}, "colours": 9,
        "measured": {"machine": "x86_64, 2 cores", "torch": "2.0", "date": "2026-01-01"},
        "geometry": [{"pictures": 4}], "left_out": ["best", "steps 20"],
        "between_words": {"nearer name": error, "colour with a name": error},
    }
    told = "\n".join(tables.sample_lines(report))
    for part in (
        "12 pairs, 2 seeds", "9 colours", "4 references", "x86_64, 2 cores", "2026-01-01", "best, steps.",
        "--matmul medium --pairs 12 --seeds 2 --few 9\n", "0.25 ± 0.06 off",
    ):
        assert part in told, part
