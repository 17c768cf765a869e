"""A workflow of a few kilobytes cannot make the server work without end: every list that it brings has a limit.

The limit is met before anything is built: where it is missing, these tests take the memory or the time there is.
"""

from __future__ import annotations

import json

import pytest

PROMPT = "a cat"
HUGE = 190_000


@pytest.fixture(scope="module")
def text(core_text):
    return core_text(PROMPT)


@pytest.fixture(scope="module")
def seen(run, native, picture):
    return run("Encode", native, PROMPT, layer=-2, images={"image0": picture})[0]


@pytest.fixture(scope="module")
def plan(run, text_clip, native, picture):
    return json.loads(run(
        "Sweep", text_clip, native, PROMPT, "strength", "0.5, 1", "none", "", method="blend aligned",
        images={"image0": picture},
    )[3])


def axis(name: str, count: int) -> dict:
    values = {"seed": range(count), "strength": [index / count for index in range(count)]}[name]
    return {"name": name, "values": list(values)}


@pytest.fixture
def nothing_built(part, monkeypatch):
    """Building a cell or encoding a word is an error."""

    def refuse(*_, **__):
        raise AssertionError("something was built before the count was looked at")

    monkeypatch.setattr(part("vl_core.steering.sweep").Plan, "_cell", refuse)
    for name in ("nodes.host.encoders", "nodes.host.text_encoder"):
        monkeypatch.setattr(part(name), "check_text_clip", refuse)


@pytest.mark.parametrize(
    "axes", [[axis("seed", HUGE)], [axis("seed", 435), axis("strength", 435)], [axis("seed", 257)]], ids=len
)
def test_a_plan_of_190_000_cells_is_refused_before_one_is_built(axes, run, plan, picture, nothing_built):
    with pytest.raises(ValueError, match=r"plan: expected at most 256 cells, got \d+"):
        run("Grid", [picture], [json.dumps({**plan, "axes": axes})])


def test_a_plan_as_large_as_may_be_is_drawn(run, plan, picture):
    small = picture[:, :8, :8].expand(1, -1, -1, -1)
    axes = [axis("seed", 16), {"name": "strength", "values": [index / 20 for index in range(1, 17)]}]
    output = run("Grid", [small] * (256 + 16), [json.dumps({**plan, "axes": axes})])
    assert output[0].shape[0] == 1


@pytest.mark.parametrize(
    "values", ["0:1:0.000000001", ", ".join(map(str, range(HUGE))), "1," * 100_000, f"0:{HUGE}", "0:1e9:1"],
    ids=range(5),
)
@pytest.mark.parametrize("place", ["column_values", "row_values", "page_values"])
def test_lists_of_a_sweep_are_cut_off_before_any_model_runs(
    values, place, run, text_clip, native, picture, nothing_built, part
):
    lists = {"column_values": "0.5", "row_values": "1, 2", "page_values": "1, 2", place: values}
    names = {"columns": "strength", "rows": "seed", "pages": "downsample"}
    own = {"columns": "strength" if place == "column_values" else "alpha"}
    with pytest.raises(ValueError, match=r"expected|got"):
        run(
            "Sweep", text_clip, native, PROMPT, **{**names, **own}, **lists, method="blend aligned",
            images={"image0": picture},
        )


def test_three_lists_that_are_short_alone_are_counted_together(run, text_clip, native, picture, nothing_built):
    seeds, factors = (", ".join(map(str, values)) for values in (range(60), range(1, 31)))
    with pytest.raises(ValueError, match=r"axes: expected at most 256 cells, got 60 × 30 × 2 = 3600"):
        run(
            "Sweep", text_clip, native, PROMPT, "seed", seeds, "downsample", factors, "layer", "-2, -3",
            method="appended tokens", images={"image0": picture},
        )


@pytest.mark.parametrize(
    ("node", "inputs", "named"),
    [
        ("Encode", {"mix_layers": ",".join(["-2:0.5"] * 100_000)}, "mix_layers"),
        ("Encode", {"mix_layers": "-2:" + "9" * 100_000}, "mix_layers"),
        ("LayerReport", {"layers": ",".join(["-1"] * 100_000) + ",x"}, "layers"),
        ("LayerReport", {"layers": "-1:-999999:-1"}, "layer"),
        ("Condition", {"weights": "1," * 100_000}, "weights"),
        ("Condition", {"weights": " " * 100_000 + "x"}, "weights"),
        ("AdapterApply", {"slots": ",".join(f"slot{index}" for index in range(100_000))}, "slots"),
        ("Blend", {"words": ",".join(f"word{index}" for index in range(100_000))}, "words"),
        ("Blend", {"words": '"' * 100_001}, "words"),
        ("AdapterApply", {"weights": "1," * 100_000}, "weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_lists_are_refused_with_a_short_message(
    node, inputs, named, run, text_clip, native, picture, text, seen, part
):
    images = {"image0": picture}
    common = {
        "Encode": (native, PROMPT), "LayerReport": (native, PROMPT), "Condition": (text_clip, native, PROMPT),
        "AdapterApply": (native, PROMPT, text), "Blend": (text, seen, {"method": "aligned"}),
    }[node]
    extra = {"adapter": _adapter(run, text_clip, native, part)} if node == "AdapterApply" else {}
    with pytest.raises(ValueError, match=named) as refused:
        run(node, *common, **({} if node == "Blend" else {"images": images}), **inputs, **extra)
    assert len(str(refused.value)) < 600


def _adapter(run, text_clip, native, part):
    from pathlib import Path

    import folder_paths
    from PIL import Image

    folder = Path(folder_paths.get_input_directory()) / "caps"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (64, 64), (20 * index, 40, 200)).save(folder / f"{index}.png")
            words = "\n".join(f"{slot.name}: {index}" for slot in part("vl_core.stages.description").SLOTS)
            (folder / f"{index}.txt").write_text(words, encoding="utf-8")
    return run("AdapterFit", text_clip, native, "caps", name="caps")[0]


def test_a_title_is_cut_off(run, plan, picture):
    with pytest.raises(ValueError, match=r"title: expected at most 2000 letters, got 100000"):
        run("Grid", [picture] * 3, [json.dumps(plan)], title=["x" * 100_000])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"axes":' * 50_000, "1" * 100_000, '{"version": 1, "axes": 3}'])
def test_a_plan_that_is_no_plan_is_named(text, run, picture):
    with pytest.raises(ValueError, match="plan: ") as refused:
        run("Grid", [picture], [text])
    assert len(str(refused.value)) < 400


def test_a_socket_that_grows_takes_no_more_than_it_says(server, object_info, wiring):
    """Where a workflow names more pictures than there are sockets for, none is read."""
    assert object_info["ZImageVLEncode"]["input"]["required"]["images"][1]["template"]["max"] == 16
    for count, ends in ((16, "success"), (17, "error"), (300, "error")):
        prompt, _ = wiring.node_prompt("Encode", object_info, chosen={"tokens": "image"})
        prompt["ours"]["inputs"] |= {f"images.image{index}": ["IMAGE", 0] for index in range(count)}
        history = server.run(prompt)
        assert history["status"]["status_str"] == ends
        if ends == "error":
            message = history["status"]["messages"][-1][1]["exception_message"]
            assert message.startswith("images: expected at most 16 sockets, got image16 as well.")


def test_a_wire_to_an_input_that_there_is_not_is_named(server, object_info, wiring):
    """As an old or hand-made prompt may have: the host hands it to the node."""
    prompt, _ = wiring.node_prompt("Normalize", object_info)
    inputs = prompt["ours"]["inputs"]
    inputs["embeddings"] = inputs["conditioning"]
    message = server.run(prompt)["status"]["messages"][-1][1]["exception_message"]
    assert message.startswith("embeddings: this node has no such input, its inputs are conditioning, mode")
