"""Every widget of every node wired to a primitive, in a real server: the prompt runs, and a second run is cached."""

from __future__ import annotations

import pytest

# Load and Apply read what Save and Fit before them write.
NODES = (
    "Condition", "Encode", "SelectTokens", "MaskOutliers", "Normalize", "Blend", "Delta", "Describe", "AdapterFit",
    "AdapterApply", "LookLearn", "LookApply", "MatchSpace", "Inspect", "LayerReport", "Sweep", "Grid", "Save",
    "LoadSaved", "Loader", "Reference", "DescribeFolder",
)
NO_WIDGETS = ("Reference",)
ONLY_LISTS = ("LoadSaved",)  # core lets no list be wired to a primitive


@pytest.fixture(scope="module")
def info(server, tiny, native, wiring, part):
    """What the server says of its nodes, with a Qwen3-VL folder and a look to load."""
    tiny.write_folder(server.base / "models" / "LLM" / "Qwen3-VL-Tiny", native)
    wiring.write_look(part, server.base / "models" / "zimage_vl_looks")
    return server.get("/object_info")


@pytest.mark.parametrize("short", NODES)
def test_all_widgets_wired_run_and_the_second_run_is_cached(short, server, info, wiring):
    if short in ("AdapterApply", "LoadSaved"):  # they list files that nodes before them have written
        info = server.get("/object_info")
    prompt, wired = wiring.node_prompt(short, info, wire=True)
    widgets = wiring.widgets_of(short, info)
    assert set(wired) == {path for path, spec in widgets.items() if spec[0] in wiring.PRIMITIVES}
    assert wired or short in (*NO_WIDGETS, *ONLY_LISTS)
    first = server.run(prompt)
    assert first["status"]["status_str"] == "success", first["status"]["messages"][-1][1].get("exception_message")
    second = server.run(prompt)
    assert second["status"]["status_str"] == "success"
    told = [told for kind, told in second["status"]["messages"] if kind == "execution_cached"]
    cached = {node for one in told for node in one["nodes"]}
    ends = {name for name in prompt if name == "ours" or name.startswith("shown")}
    assert ends <= cached


@pytest.mark.parametrize("node", ["Loader", "LoadSaved", "LookApply"])
def test_a_file_that_is_wired_is_not_judged_and_one_that_is_missing_is_named(node, part):
    cls = {one.GET_SCHEMA().node_id: one for one in part("nodes").NODES}[f"ZImageVL{node}"]
    name = "folder" if node == "Loader" else "file"
    assert cls.validate_inputs(**{name: None}) is True
    assert name in cls.validate_inputs(**{name: "gone"})
    with pytest.raises(ValueError, match=f"^{name}: (found no|expected a)"):
        cls.validate_inputs()


def test_no_node_is_left_out(part):
    assert {one.GET_SCHEMA().node_id for one in part("nodes").NODES} == {f"ZImageVL{short}" for short in NODES}
