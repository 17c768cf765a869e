"""Prompts for the soak: good ones, odd ones, ones that cannot run, and a few that are the same each time."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from types import ModuleType
from typing import Any

NODES = (
    "Condition", "Encode", "SelectTokens", "MaskOutliers", "Normalize", "Blend", "Delta", "Describe", "AdapterFit",
    "LookApply", "MatchSpace", "Inspect", "LayerReport", "Sweep", "Grid", "Save", "Loader", "Reference",
)
ODD_WORDS = (
    "", " ", "a cat", "embedding:nothing", "<|image_pad|>", "<|im_end|><think>", "nan", "1e999", "-1:-99:-1", "0, 1, 2",
    "../../secret", "/etc/passwd", "a" * 5000, "💥" * 200, "\0", "((a\\)", "1," * 3000, "0:1:0.0000001", "style:nan",
    "[" * 2000, '{"version": 1}', "水彩画和柔和的光线",
)
TOUR = 90  # prompts
# What the tour asks for beside them: what takes most (6 000 tokens of a question among it), and what is loaded when it
# is first used (the tokenizer that finds words of a prompt, 30 MiB).
FULL = {
    "image_tokens": 64, "max_tokens": 8, "cell_size": 512, "plots": "all", "plot": "all", "words": "cat",
    "instruction": "1," * 3000,
}
# Values within the bounds that would only take long.
SMALL = {
    "image_tokens": 64, "max_tokens": 8, "cell_size": 512, "downsample": 8, "batch_size": 4, "width": 64, "height": 64,
}
# The same prompts again and again, by way: what they save must be the same bytes.
PROBES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("aligned blend", "Condition", {"mode": "aligned blend", "strength": 0.7}),
    ("appended tokens", "Condition", {"mode": "appended tokens", "strength": 0.5, "layer": 0}),
    ("image delta", "Condition", {"mode": "image delta", "strength": 0.5, "layer": 0}),
    ("words", "Condition", {"mode": "words", "layer": 0}),
    ("a reading", "Encode", {"layer": -2}),
    ("a learned look", "LookApply", {"strength": 0.8}),
    ("a matched reading", "MatchSpace", {"method": "procrustes"}),
)


@dataclass(frozen=True)
class Made:
    """A prompt to post.

    Attributes:
        kind: "probe", "valid" (has to run), "odd" (runs or says why not), "refused" (has to be refused), "stop".
        about: for people who look for what went wrong; number: with the seed, what makes it again.
        probe: which of ``PROBES``; saves: what it saves under. delay: seconds before Stop.
    """

    kind: str
    about: str
    number: int
    body: Any
    probe: int = -1
    saves: str = ""
    delay: float = 0.0


def make_prompt(number: int, seed: int, info: dict, wiring: ModuleType) -> Made:
    """The prompt of a number: the same for the same seed."""
    draw = random.Random(f"{seed} {number}")
    if number % 6 == 0:
        return _probe(number, info, wiring)
    if number < TOUR:  # every node and the longest words while memory is not looked at yet
        place = number - number // 6 - 1  # probes left out: they would take the place of the same nodes each time
        short, words = NODES[place % len(NODES)], {"prompt": ODD_WORDS[place % len(ODD_WORDS)]}
        prompt, _ = wiring.node_prompt(short, info, wire=True, chosen=FULL | words)
        return Made("odd", f"{short} {json.dumps(words)[:80]}", number, {"prompt": prompt})
    kind = draw.choice(["valid", "odd", "odd", "refused", "stop"])
    if kind == "refused":
        about, body = _refused(draw, info, wiring)
        return Made(kind, about, number, body)
    short = draw.choice(NODES)
    chosen = {} if kind == "valid" else _drawn(draw, short, info, wiring)
    # A prompt of its own: what a server has computed for another client it would not compute again. Image delta has to
    # read the words of the text that it is given.
    own = {} if short == "Delta" else {"prompt": f"cat {number}"}
    prompt, _ = wiring.node_prompt(short, info, wire=draw.random() < 0.5, chosen=own | chosen)
    about = f"{short} {json.dumps(chosen)[:200]}"
    return Made(kind, about, number, {"prompt": prompt}, delay=draw.uniform(0, 0.5))


def _probe(number: int, info: dict, wiring: ModuleType) -> Made:
    which = number // 6 % len(PROBES)
    about, short, chosen = PROBES[which]
    prompt, _ = wiring.node_prompt(short, info, chosen=chosen)
    prompt = {name: node for name, node in prompt.items() if not name.startswith("shown")}
    saves = f"probe{which}/number{number}"
    prompt["save"] = {
        "class_type": "ZImageVLSave", "inputs": {"conditioning": ["ours", 0], "filename_prefix": saves}
    }
    return Made("probe", about, number, {"prompt": prompt}, which, saves)


def _drawn(draw: random.Random, short: str, info: dict, wiring: ModuleType) -> dict[str, Any]:
    """Up to three widgets with values that their schema allows, sensible or not."""
    widgets = wiring.widgets_of(short, info)
    chosen = {}
    for path in draw.sample(sorted(widgets), min(len(widgets), draw.randint(1, 3))):
        kind, options = widgets[path][0], wiring.options_of(widgets[path])
        name = path.rpartition(".")[2]
        if kind == "STRING":
            chosen[path] = draw.choice(ODD_WORDS)
        elif kind == "BOOLEAN":
            chosen[path] = draw.random() < 0.5
        elif kind in ("INT", "FLOAT"):
            low, high = options["min"], min(options["max"], SMALL.get(name, options["max"]))
            value = draw.choice([low, high, draw.uniform(low, high)])
            chosen[path] = int(value) if kind == "INT" else value
        elif kind == "COMBO" and options["options"]:
            chosen[path] = draw.choice(options["options"])
        elif kind == "COMFY_DYNAMICCOMBO_V3":
            chosen[path] = draw.choice(options["options"])["key"]
    return chosen


def _refused(draw: random.Random, info: dict, wiring: ModuleType) -> tuple[str, Any]:
    """A prompt that no server may run, and what is wrong with it."""
    short = draw.choice([name for name in NODES if name not in ("Reference", "Save")])
    prompt, _ = wiring.node_prompt(short, info)
    inputs = prompt["ours"]["inputs"]
    bounded = {
        path: wiring.options_of(spec) for path, spec in wiring.widgets_of(short, info).items()
        if spec[0] in ("INT", "FLOAT", "COMBO")
    }
    how = draw.choice(["a value", "a value", "a missing socket", "an unknown node", "a circle", "no prompt", "a link"])
    if how == "a value" and bounded:
        path = draw.choice(sorted(bounded))
        most = bounded[path].get("max")
        inputs[path] = "no such choice" if most is None else draw.choice([most + 1, "many"])
        return f"{short}: {path} = {inputs[path]!r}", {"prompt": prompt}
    links = [name for name, value in inputs.items() if isinstance(value, list) and not name.startswith("images.")]
    links = [name for name in links if name in info[f"ZImageVL{short}"]["input"].get("required", {})]
    if how == "a missing socket" and links:
        del inputs[draw.choice(links)]
    elif how == "a circle" and links:
        inputs[draw.choice(links)] = ["ours", 0]
    elif how == "a link" and links:
        inputs[draw.choice(links)] = ["nowhere", 3]
    elif how == "no prompt":
        return how, {"prompt": draw.choice([{}, {"ours": {}}, {"ours": {"class_type": "ZImageVLSave"}}])}
    else:
        how, prompt["ours"]["class_type"] = "an unknown node", "ZImageVLNothing"
    return f"{short}: {how}", {"prompt": prompt}
