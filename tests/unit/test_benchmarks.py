"""The benchmarks run, and the page shows what they wrote."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers", minversion="4.57", reason="the benchmarks build a Qwen3-VL")

ROOT = Path(__file__).parents[2]


TINY = ["--size", "tiny", "--device", "cpu"]
TOGETHER = {  # command lines by benchmark, with a folder for results and one to work in
    "gpu": [*TINY, "--runs", "1", "--out", "OUT"],
    "cpu": ["--size", "tiny", "--runs", "1", "--out", "OUT"],
    "words": [*TINY, "--runs", "1", "--tokens", "24", "--pictures", "2", "--out", "OUT"],
    "learn": [*TINY, "--steps", "2", "--out", "OUT"],
    "evaluate": [*TINY, "--trials", "1", "--out", "OUT", "--work", "WORK"],
    "loading": ["--out", "OUT"],
    "against": ["HEAD", "--size", "tiny", "--rounds", "1", "--runs", "1", "--out", "OUT"],
    "tables": ["--check"],
}
ONE_AFTER_ANOTHER = """
import json, runpy, sys, traceback
codes = {}
for name, options in json.loads(sys.argv[1]).items():
    sys.argv[1:] = [name, *options]
    try:
        runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
        codes[name] = None
    except BaseException as error:
        codes[name] = error.code if isinstance(error, SystemExit) else traceback.format_exc()
print("CODES " + json.dumps(codes))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A function: the folder of a benchmark's results. All run in one Python: what they import takes it seconds.

    What they write elsewhere they write below that folder.
    """
    folder, work = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("work")
    commands = {
        name: [{"OUT": str(folder / name), "WORK": str(work / name)}.get(option, option) for option in options]
        for name, options in TOGETHER.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True,
        timeout=600, env={**os.environ, "TMPDIR": str(work)},
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.rpartition("CODES ")[2])

    def found(name: str) -> Path:
        assert not codes[name], f"{codes[name]}\n{done.stderr}"
        return folder / name

    return found


def rows_of(folder: Path, name: str) -> dict[str, dict]:
    result = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert result["failures"] == {}
    assert result["command"].startswith(f"python -m benchmarks {name.removesuffix('_cpu')}")
    assert str(folder) not in result["command"], "a folder of this machine means nothing to a reader"
    assert result["date"] and result["machine"]["device"] and result["machine"]["torch"]
    return {row["what"]: row for row in result["rows"]}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_loading_takes_little_more_memory_than_the_weights_and_less_for_fewer_blocks(ran):
    rows = rows_of(ran("loading"), "loading")
    whole, shallow = rows["all blocks, bf16"], rows["to layer -6, bf16"]
    assert whole["peak over weights"] <= 1.1 and shallow["peak over weights"] <= 1.1
    assert shallow["blocks"] == whole["blocks"] - 5 and shallow["peak_MiB"] < 0.8 * whole["peak_MiB"]
    assert rows["all blocks, bf16 -> float32"]["peak over weights"] <= 1.1
    full, dropped = rows["Qwen3-VL-4B, all blocks, bf16"], rows["Qwen3-VL-4B, to layer -6, bf16"]
    assert (full["weights_MiB"] - dropped["weights_MiB"]) * 2**20 >= 1e9


def test_every_section_of_the_gpu_benchmark_runs_on_a_cpu_too(ran):
    rows = rows_of(ran("gpu"), "gpu")
    for way in ("eager", "eager, kept for later", "compiled kernels in captured graphs"):
        assert rows[f"{way}, layer -6"]["error"] <= 1e-5
    assert rows["new prompt on a kept picture against a whole encode"]["error"] <= 1e-5


def test_the_cpu_benchmark_runs(ran):
    assert rows_of(ran("cpu"), "cpu")["new prompt on a kept picture against the modules' own forward"]["error"] <= 1e-5


def test_the_benchmark_of_words_runs_and_float32_writes_transformers_tokens(ran):
    rows = rows_of(ran("words"), "words_cpu")
    same = rows["float32: 2 answers, greedy"]
    assert same["tokens"] == 48 and same["other than transformers'"] == same["answers that differ"] == 0


def test_the_benchmark_of_learning_runs(ran):
    rows = rows_of(ran("learn"), "learn_cpu")
    assert {row["ms"] is not None for name, row in rows.items() if "at once" in name} == {True}
    assert any(name.startswith("good: 2 steps") for name in rows)


def test_the_pages_tables_are_those_of_the_results(ran):
    """If not, run ``python -m benchmarks tables``."""
    ran("tables")


def test_a_benchmark_that_was_not_run_leaves_its_block_empty(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    fill = importlib.import_module("benchmarks.tables").fill
    page = "before\n<!-- benchmark: gpu -->\nold\n<!-- end -->\nafter"
    assert fill(page, tmp_path) == "before\n<!-- benchmark: gpu -->\n<!-- end -->\nafter"
    result = {
        "command": "python -m benchmarks gpu", "date": "2026-01-01", "settings": {"size": "tiny"},
        "machine": {"device": "a GPU", "threads": None, "torch": "2.9"},
        "rows": [{"what": "one", "ms": 1.5}, {"what": "two", "error": 0.1}],
    }
    (tmp_path / "gpu.json").write_text(json.dumps(result), encoding="utf-8")
    filled = fill(page, tmp_path)
    assert "`python -m benchmarks gpu`: a GPU, torch 2.9, 2026-01-01 (size tiny)" in filled
    assert "| what | ms | error |\n| --- | --- | --- |\n| one | 1.5 |  |\n| two |  | 0.1 |\n<!-- end -->" in filled
    assert fill(filled, tmp_path) == filled


def test_the_benchmark_of_an_evaluation_paints_measures_and_asks(ran):
    rows = rows_of(ran("evaluate"), "evaluate_cpu")
    assert rows["cells"]["count"] == 6 and rows["a cell, all of it"]["× its painting steps"] > 1
    assert {"loading: text", "loading: painter", "loading: vision"} <= rows.keys()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the other revision is taken from git")
def test_this_tree_beside_its_last_commit_has_every_row_of_both(ran):
    folder = ran("against")
    rows = rows_of(folder, "against")
    assert {"encode, a new picture", "encode, the same again", "describe, 16 tokens", "blend append"} <= rows.keys()
    for what, row in rows.items():
        assert row["old"] > 0 and row["new"] > 0, what
        assert row["new / old"] == pytest.approx(row["new"] / row["old"], rel=0.02), what
    found = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(folder.parents[1]) not in found.stdout, "the other tree is gone again"


def test_a_row_is_the_quickest_call_of_all_turns_and_says_what_a_tree_lacks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    against = importlib.import_module("benchmarks.against")
    old = [{"a": 4.0, "b": "AttributeError: no b", "d": 1.0}, {"a": 2.0, "b": "AttributeError: no b", "d": 1.0}]
    new = [{"a": 3.0, "b": 1.0, "c": 5.0}, {"a": 5.0, "b": 0.5, "c": 4.0}]
    assert dict(against.rows(old, new)) == {
        "a": {"old": 2.0, "new": 3.0, "new / old": 1.5},
        "b": {"old": "AttributeError: no b", "new": 0.5},
        "c": {"old": "no such row", "new": 4.0},
        "d": {"old": 1.0, "new": "no such row"},
    }
    calls = []
    assert against.quickest(lambda: calls.append(0), 3) >= 0 and len(calls) >= 4
    assert against.quickest(lambda: against.nothing, 3).startswith("AttributeError: module 'benchmarks.against' has no")


def test_a_revision_that_git_does_not_know_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "against", "no-such-revision", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="git worktree: fatal"):
        importlib.import_module("benchmarks.__main__").main()


def test_the_layouts_of_the_stages_are_those_of_an_encode(monkeypatch):
    from vl_core.states.layout import insert_pictures, text_layout

    monkeypatch.syspath_prepend(str(ROOT))
    words, pictured = importlib.import_module("benchmarks.stages").layouts((3, 4))
    text = text_layout([151644, 872, 198, *range(100, 134), 151645, 198, 151644, 77091, 198])
    for ours, theirs in ((words, text), (pictured, insert_pictures(text, [(3, 4)]))):
        assert ours.roles.tolist() == theirs.roles.tolist() and ours.token_ids.tolist() == theirs.token_ids.tolist()
        assert (ours.grids, ours.source, ours.describe()) == (theirs.grids, theirs.source, theirs.describe())


@pytest.mark.parametrize(
    ("grown", "judged", "wrong"),
    [
        ((4, 4, 4), True, []),
        ((6, 4, 4), True, ["memory of the server grew by 6.0%"]),
        ((6, 4, 4), False, []),
        ((4, 6, 4), False, ["of it in use, without what malloc has free grew by 6.0%"]),
        ((4, 4, 6), False, ["of that given out by malloc grew by 6.0%"]),
    ],
)
def test_a_soak_fails_for_memory_that_grows_whatever_malloc_keeps_free(monkeypatch, grown, judged, wrong):
    """``grown``: percent by which grow what the system counts, what is in use, and what malloc has given out."""
    monkeypatch.syspath_prepend(str(ROOT))
    soak, told = importlib.import_module("benchmarks.soak"), {}
    resident, in_use, given = (1 + percent / 100 for percent in grown)
    seen = soak.Seen(memory=[2**30] * 150 + [int(resident * 2**30)] * 150)
    seen.rests = [(50, 0, 0, 0), (100, 2**30, 2**29, 2**20), (300, int(in_use * 2**30), int(given * 2**29), 2**21)]
    soak.measure_memory(SimpleNamespace(add=lambda what, **values: told.update({what: values})), seen, judged)
    assert seen.wrong == [f"{one} after the first 100 prompts" for one in wrong]
    growth = [values["growth_percent"] for values in told.values() if "growth_percent" in values]
    assert growth == pytest.approx(grown, abs=1e-3)
    assert told["free in malloc when nothing runs"] == {"least_MiB": 1, "most_MiB": 2}
