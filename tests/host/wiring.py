"""Prompts that run one node of ours on tiny models, as a server takes them over HTTP: its inputs from what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PRIMITIVES = {
    "INT": "PrimitiveInt", "FLOAT": "PrimitiveFloat", "STRING": "PrimitiveString", "BOOLEAN": "PrimitiveBoolean",
}
VALUES = {
    "prompt": "a cat", "image_tokens": 16, "folder": "adapter_pictures", "name": "wired", "filename_prefix": "wired",
    "column_values": "0.5, 1", "row_values": "words, blend aligned", "max_tokens": 4, "layer": -2,
}
CHOICES: dict[str, dict[str, Any]] = {
    "Sweep": {"method": "blend aligned", "rows": "none"}, "Condition": {"mode": "blend aligned", "layer": -2},
    "Blend": {"method": "resample"}, "Normalize": {"mode": "hybrid"}, "MaskOutliers": {"mode": "scale"},
    "LoadSaved": {"file": "wired_00001.safetensors"}, "AdapterApply": {"file": "wired.safetensors"},
    "LookApply": {"file": "dusk.safetensors"}, "Loader": {"folder": "Qwen3-VL-Tiny", "dtype": "fp32", "layer": -1},
    "MatchSpace": {"method": "per_dimension"},
    "LookLearn": {"steps": 2, "size": 64, "words": "dusk", "shows": "a boat", "seed": 1},
}
WANTED = {("LookApply", "text")}  # sockets that are optional because another one can take their place
READING = ("SelectTokens", "MaskOutliers", "MatchSpace", "Save")  # their conditioning is what Qwen3-VL Encode gives


def providers() -> dict[str, dict]:
    """Nodes whose outputs the sockets of ours take, by the type of the socket."""
    return {
        "CLIP": {"class_type": "CLIPLoader", "inputs": {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"}},
        "MODEL": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": "z_image_turbo_bf16.safetensors", "weight_dtype": "default"},
        },
        "VAE": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
        "QWEN3VL": {
            "class_type": "CLIPLoader", "inputs": {"clip_name": "qwen3vl_4b_fp8_scaled.safetensors", "type": "lumina2"}
        },
        "IMAGE": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "PAINTED": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 255}},
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


def options_of(spec: list) -> dict[str, Any]:
    """What a node says of an input besides its type."""
    return spec[1] if len(spec) > 1 else {}


def widgets_of(short: str, info: dict, chosen: dict[str, Any] | None = None) -> dict[str, list]:
    """Widgets of a node of ours by their path, those inside of dynamic choices as ``chosen`` opens them."""
    given, found = VALUES | CHOICES.get(short, {}) | (chosen or {}), {}

    def add(name: str, spec: list, path: str) -> None:
        kind, options = spec[0], options_of(spec)
        if kind == "COMFY_DYNAMICCOMBO_V3":
            found[path] = spec
            key = given.get(path, given.get(name, options["options"][0]["key"]))
            below = next((option["inputs"] for option in options["options"] if option["key"] == key), {})
            for part in ("required", "optional"):
                for inner, told in below.get(part, {}).items():
                    add(inner, told, f"{path}.{inner}")
        elif (kind in PRIMITIVES and not options.get("forceInput")) or kind == "COMBO":
            found[path] = spec

    for name, spec in _inputs(short, info).items():
        add(name, spec, name)
    return found


def node_prompt(
    short: str, info: dict, *, wire: bool = False, chosen: dict[str, Any] | None = None
) -> tuple[dict[str, dict], list[str]]:
    """A prompt with one node of ours, called ``ours``, on tiny models, and the widgets that are wired.

    Args:
        short: the node's id without ``ZImageVL``; ``info``: what ``/object_info`` says.
        wire: whether every widget that core lets be wired hangs on a primitive of its own.
        chosen: values by path that are not the usual ones.
    """
    chosen = chosen or {}
    given, prompt, inputs, wired = VALUES | CHOICES.get(short, {}), providers(), {}, []
    for path, spec in widgets_of(short, info, chosen).items():
        name, kind, options = path.rpartition(".")[2], spec[0], options_of(spec)
        first = options["options"][0] if options.get("options") else ""
        default = options.get("default", first["key"] if isinstance(first, dict) else first)
        value = chosen.get(path, given.get(name, default))
        if wire and kind in PRIMITIVES:
            prompt[f"wire {path}"] = {"class_type": PRIMITIVES[kind], "inputs": {"value": value}}
            value = [f"wire {path}", 0]
            wired.append(path)
        inputs[path] = value
    for name, spec in _inputs(short, info).items():
        kind, needed = spec[0], name in info[f"ZImageVL{short}"]["input"].get("required", {})
        if kind == "COMFY_AUTOGROW_V3":
            if name == "images":
                inputs["images.image0"] = ["IMAGE", 0]
        elif name == "plan":
            inputs[name] = ["PLAN", 3]
        elif short == "Grid" and name == "images":
            inputs[name] = ["PAINTED", 0]
        elif kind == "CONDITIONING" and (name == "vl" or short in READING):
            inputs[name] = ["VL", 0]
        elif (one := kind.split(",")[0]) in prompt and (  # of several, the first
            needed or kind == "VL_REFERENCE" or (short, name) in WANTED
        ):
            inputs[name] = [one, 0]
    told = info[f"ZImageVL{short}"]
    prompt["ours"] = {"class_type": told["name"], "inputs": inputs}
    for index, _ in enumerate(told["output"]):
        prompt[f"shown {index}"] = {"class_type": "PreviewAny", "inputs": {"source": ["ours", index]}}
    return needed_only(prompt), wired


def needed_only(prompt: dict[str, dict]) -> dict[str, dict]:
    """Without the nodes that ``ours`` does not hang on."""
    found, waiting = {}, [name for name in prompt if name == "ours" or name.startswith("shown")]
    while waiting:
        name = waiting.pop()
        found[name] = prompt[name]
        links = [value[0] for value in prompt[name]["inputs"].values() if isinstance(value, list)]
        waiting += [link for link in links if link not in found]
    return found


def _inputs(short: str, info: dict) -> dict[str, list]:
    told = info[f"ZImageVL{short}"]["input"]
    return {**told.get("required", {}), **told.get("optional", {})}


def write_look(part: Any, folder: Path, width: int = 64) -> Path:
    """A learned look of the tiny text encoder's width, ``dusk``.

    Args:
        part: gives a module of the pack by its path.
    """
    import torch

    module, generator = part("vl_core.looks.look"), torch.Generator().manual_seed(3)
    tokens = torch.randn(3, width, generator=generator)
    tokens = tokens / tokens.square().mean(-1, keepdim=True).sqrt()
    origin = module.Origin(
        family="Z-Image", model="tiny", look="dusk", shows=("a boat",), pictures=("0" * 64,), sizes=((64, 64),),
        options={"steps": 1},
    )
    tail = 0.1 * torch.randn(5, width, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dusk.safetensors"
    module.Look(tokens, torch.full((3, 1), 2.0), tail, origin).save(path)
    return path
