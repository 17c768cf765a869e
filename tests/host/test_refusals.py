"""What a server refuses before it runs: one wrong value marks one input, and the words name it."""

from __future__ import annotations

import pytest

NODES = (
    "Condition", "Encode", "SelectTokens", "MaskOutliers", "Normalize", "Blend", "Delta", "Describe", "AdapterFit",
    "AdapterApply", "LookLearn", "LookApply", "MatchSpace", "Inspect", "LayerReport", "Sweep", "Grid", "Save",
    "LoadSaved", "Loader", "Reference", "DescribeFolder",
)
LABELS = {"alpha": "strength", "method": "way", "columns": "axis", "rows": "axis", "pages": "axis"}
LISTS = {"column_values": "strength", "row_values": "way", "page_values": "seed"}  # and the axes they are given for


@pytest.fixture(scope="module")
def info(server, tiny, native, wiring, part):
    if not (server.base / "models" / "LLM" / "Qwen3-VL-Tiny").is_dir():
        tiny.write_folder(server.base / "models" / "LLM" / "Qwen3-VL-Tiny", native)
    wiring.write_look(part, server.base / "models" / "zimage_vl_looks")
    return server.get("/object_info")


def wrong_values(spec: list) -> list:
    """Values that an input does not take, by what it says of itself; none for words and switches."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if kind == "COMBO":
        return ["no such choice", "", 7]
    if kind in ("INT", "FLOAT") and "max" in options:
        return [options["max"] + 1, options["min"] - 1, "many"]
    return []


def refused(server, prompt: dict) -> list[dict]:
    """The errors of ``ours``; none if the prompt is taken."""
    status, answer = server.post("/prompt", {"prompt": prompt})
    if status == 200:  # what may run is not what this is about
        server.post("/queue", {"clear": True})
        server.post("/interrupt", {})
        return []
    assert set(answer["node_errors"]) <= {"ours"}, answer
    return answer["node_errors"].get("ours", {}).get("errors", [])


@pytest.mark.parametrize("short", [name for name in NODES if name not in ("Reference", "Save", "Sweep")])
def test_one_wrong_value_marks_one_input(short, server, info, wiring):
    tried = 0
    for path, spec in wiring.widgets_of(short, info).items():
        prompt, _ = wiring.node_prompt(short, info)
        usual = prompt["ours"]["inputs"][path]
        before = []
        if short in ("LoadSaved", "AdapterApply"):  # the file of their own is perhaps not there yet
            before = refused(server, prompt)
        for wrong in wrong_values(spec):
            prompt["ours"]["inputs"][path] = wrong
            errors = [one for one in refused(server, prompt) if one not in before]
            assert [one["extra_info"].get("input_name") for one in errors] == [path], (path, wrong, errors)
            words = f"{errors[0]['message']} {errors[0]['details']}"
            assert path in words and len(words) > len(path) + 15, words
            tried += 1
        prompt["ours"]["inputs"][path] = usual
    assert tried


@pytest.mark.parametrize("mode", ["blend aligned", "append picture", "describe", "image delta"])
def test_names_of_earlier_versions_are_taken(mode, server, info, wiring):
    for recipe in ("none", "push away", "the look"):
        prompt, _ = wiring.node_prompt("Condition", info, chosen={"mode": mode, "recipe": recipe})
        assert refused(server, prompt) == []


def test_a_sweep_is_refused_in_words_that_name_what_is_wrong_once(server, info, wiring):
    """Its inputs are judged together, so the node is marked, and its box says which input it is."""
    for path, spec in wiring.widgets_of("Sweep", info).items():
        lists = path in LISTS or path in ("columns", "rows", "pages")
        wrong = ["0.5, nonsense", ", ".join(map(str, range(300)))] if path in LISTS else wrong_values(spec)
        for value in wrong:
            chosen = {"rows": "way", "row_values": "words, automatic", "pages": "seed", "page_values": "1, 2"}
            if not lists:  # what an axis varies is read of its list
                chosen = {"columns": "downsample" if path == "seed" else "seed", "column_values": "1, 2", "layer": -2}
            prompt, _ = wiring.node_prompt("Sweep", info, chosen=chosen | {path: value})
            errors = refused(server, prompt)
            name = LISTS.get(path, LABELS.get(path, path)).replace("_", " ")
            assert len(errors) == 1, (path, value, errors)
            said = errors[0]["details"].replace("_", " ")
            assert name in said or path.replace("_", " ") in said, (path, value, said)


def test_a_sweep_over_a_setting_looks_at_its_own_widget_too(server, info, wiring):
    for column, path, given in (("strength", "alpha", "0.5, 1"), ("way", "method", "words, automatic")):
        for value in wrong_values(wiring.widgets_of("Sweep", info)[path]):
            chosen = {"columns": column, "column_values": given, path: value}
            prompt, _ = wiring.node_prompt("Sweep", info, chosen=chosen)
            assert column in refused(server, prompt)[0]["details"], (path, value)
