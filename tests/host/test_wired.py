"""Every widget of every node wired to a primitive, in a real server: the prompt runs, and a second run is cached."""

from __future__ import annotations

import pytest

NODES = (
    "Condition", "Encode", "SelectTokens", "MaskOutliers", "Normalize", "Blend", "Delta", "Describe", "AdapterFit",
    "AdapterApply", "MatchSpace", "Inspect", "LayerReport", "Sweep", "Save", "LoadSaved",
)
# Needs a folder, has no widget, judges nothing and wants painted pictures, needs a learned look.
NOT_RUN = ("Loader", "Reference", "Grid", "LookApply")
PRIMITIVES = {
    "INT": "PrimitiveInt", "FLOAT": "PrimitiveFloat", "STRING": "PrimitiveString", "BOOLEAN": "PrimitiveBoolean",
}
VALUES = {
    "prompt": "a cat", "image_tokens": 16, "folder": "adapter_pictures", "name": "wired", "filename_prefix": "wired",
    "column_values": "0.5, 1", "row_values": "words, blend aligned", "max_tokens": 4, "layer": -2,
}
CHOICES = {
    "Sweep": {"method": "blend aligned", "rows": "none"}, "Condition": {"mode": "blend aligned", "layer": -2},
    "Blend": {"method": "resample"}, "Normalize": {"mode": "hybrid"}, "MaskOutliers": {"mode": "scale"},
    "LoadSaved": {"file": "wired_00001.safetensors"}, "AdapterApply": {"file": "wired.safetensors"},
}


@pytest.fixture(scope="module")
def info(server):
    return server.get("/object_info")


def providers() -> dict[str, dict]:
    """Nodes whose outputs the sockets of ours take, by the type of the socket."""
    return {
        "CLIP": {"class_type": "CLIPLoader", "inputs": {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"}},
        "QWEN3VL": {
            "class_type": "CLIPLoader", "inputs": {"clip_name": "qwen3vl_4b_fp8_scaled.safetensors", "type": "lumina2"}
        },
        "IMAGE": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "CONDITIONING": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["CLIP", 0]}},
        "VL": {
            "class_type": "ZImageVLEncode",
            "inputs": {
                "encoder": ["QWEN3VL", 0], "prompt": "a cat", "layer": -2, "tokens": "all", "image_tokens": 16,
                "images.image0": ["IMAGE", 0],
            },
        },
        "VL_REFERENCE": {"class_type": "ZImageVLReference", "inputs": {"source": ["CLIP", 0]}},
        "PLAN": {
            "class_type": "ZImageVLSweep",
            "inputs": {
                "clip": ["CLIP", 0], "vision": ["QWEN3VL", 0], "images.image0": ["IMAGE", 0], "prompt": "a cat",
                "columns": "strength", "column_values": "0.5", "rows": "none", "row_values": "", "pages": "none",
                "page_values": "", "method": "blend aligned", "alpha": 1.0, "seed": 0, "layer": -2, "tokens": "all",
                "downsample": 1, "space": "dit", "outlier_mode": "none", "outlier_threshold": 10.0,
                "normalization": "none", "image_tokens": 16,
            },
        },
    }


def wired_prompt(short: str, info: dict) -> tuple[dict, list[str]]:
    """A prompt with one node of ours, all of whose widgets that core lets be wired are, and the names of these."""
    prompt, inputs, wired = providers(), {}, []
    given = VALUES | CHOICES.get(short, {})

    def add(name: str, spec: list, path: str) -> None:
        kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
        if kind == "COMFY_DYNAMICCOMBO_V3":
            chosen = given.get(name, options["options"][0]["key"])
            inputs[path] = chosen
            below = next(option["inputs"] for option in options["options"] if option["key"] == chosen)
            for part in ("required", "optional"):
                for inner, told in below.get(part, {}).items():
                    add(inner, told, f"{path}.{inner}")
        elif kind == "COMFY_AUTOGROW_V3":
            if name == "images":
                inputs["images.image0"] = ["IMAGE", 0]
        elif name == "plan":
            inputs[path] = ["PLAN", 3]
        elif kind in PRIMITIVES and not options.get("forceInput"):
            primitive = f"wire {path}"
            value = given.get(name, options.get("default", ""))
            prompt[primitive] = {"class_type": PRIMITIVES[kind], "inputs": {"value": value}}
            inputs[path] = [primitive, 0]
            wired.append(path)
        elif kind == "COMBO":
            inputs[path] = given.get(name, options.get("default", options["options"][0]))
        elif kind == "CONDITIONING" and (name == "vl" or short in ("SelectTokens", "MaskOutliers", "MatchSpace")):
            inputs[path] = ["VL", 0]
        elif "QWEN3VL" in kind:
            inputs[path] = ["QWEN3VL", 0]
        elif kind in prompt:
            inputs[path] = [kind, 0]

    told = info[f"ZImageVL{short}"]
    for part in ("required", "optional"):
        for name, spec in told["input"].get(part, {}).items():
            if part == "required" or spec[0] in (*PRIMITIVES, "VL_REFERENCE"):
                add(name, spec, name)
    prompt["ours"] = {"class_type": told["name"], "inputs": inputs}
    for index, _ in enumerate(told["output"]):
        prompt[f"shown {index}"] = {"class_type": "PreviewAny", "inputs": {"source": ["ours", index]}}
    return prompt, wired


@pytest.mark.parametrize("short", NODES)
def test_all_widgets_wired_run_and_the_second_run_is_cached(short, server, info):
    if short in ("AdapterApply", "LoadSaved"):  # they list files that nodes before them have written
        info = server.get("/object_info")
    prompt, wired = wired_prompt(short, info)
    if short == "Save":
        prompt["ours"]["inputs"]["conditioning"] = ["VL", 0]
    assert wired or short == "LoadSaved"
    first = server.run(prompt)
    assert first["status"]["status_str"] == "success", first["status"]["messages"][-1][1].get("exception_message")
    second = server.run(prompt)
    assert second["status"]["status_str"] == "success"
    told = [told for kind, told in second["status"]["messages"] if kind == "execution_cached"]
    cached = {node for one in told for node in one["nodes"]}
    ends = {name for name in prompt if name == "ours" or name.startswith("shown")}
    assert ends <= cached


@pytest.mark.parametrize("node", ["Loader", "LoadSaved"])
def test_a_file_that_is_wired_is_not_judged_and_one_that_is_missing_is_named(node, part):
    cls = {one.GET_SCHEMA().node_id: one for one in part("nodes").NODES}[f"ZImageVL{node}"]
    name = "folder" if node == "Loader" else "file"
    assert cls.validate_inputs(**{name: None}) is True
    assert name in cls.validate_inputs(**{name: "gone"})
    with pytest.raises(ValueError, match=f"^{name}: found no"):
        cls.validate_inputs()


def test_no_node_is_left_out(part):
    known = {f"ZImageVL{short}" for short in (*NODES, *NOT_RUN)}
    assert {one.GET_SCHEMA().node_id for one in part("nodes").NODES} == known
