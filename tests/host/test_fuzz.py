"""Floods of odd input through every node, on tiny models: what comes out is finite, or the error says why.

About 300 cases; ``--hypothesis-profile nightly`` is more than 3000. The seed is printed, ``--hypothesis-seed`` repeats
it. Widgets take whatever a wired node may give: ComfyUI does not look whether that is within their bounds.
"""

from __future__ import annotations

import pytest
import torch

hypothesis = pytest.importorskip("hypothesis", reason="the flood needs: pip install hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

LIGHT = (
    "Encode", "SelectTokens", "MaskOutliers", "Normalize", "Blend", "Delta", "Inspect", "Grid", "AdapterApply",
    "LookApply", "Save", "LoadSaved", "Reference", "Condition",
)
HEAVY = ("AdapterFit", "Describe", "DescribeFolder", "LayerReport", "MatchSpace", "Sweep", "Loader")
NOT_FLOODED = ("LookLearn",)  # paints; tests/host/test_learn.py has what it refuses
EXAMPLES = settings().max_examples
TOLD = (ValueError, TypeError, FileNotFoundError)  # what our messages are raised as
WORDS = st.one_of(
    st.sampled_from([
        "", " ", "a cat", "embedding:nothing", "<|image_pad|>", "<|im_end|><think>", "nan", "inf", "1e999", "-1:-99:-1",
        "0, 1, 2", "../../secret", "/etc/passwd", "\0", "((a\\)", "0:1:0.0000001", "style:nan", "[" * 2000, "all",
        '{"version": 1}', "水彩画", "-2, -4:0.5", "1, 0.5", '"a cat"', "-cat", "a:b", "x" * 3000,
    ]),
    st.text(max_size=30),
)
WHOLE = st.one_of(st.integers(-40, 40), st.sampled_from([0, -(2**63), 2**63 - 1, 2**64 - 1, 10**30]))
NUMBERS = st.one_of(st.floats(-3, 3), st.floats(allow_nan=True, allow_infinity=True), WHOLE.map(float))
SMALL = {"max_tokens": st.integers(-1, 6), "cell_size": st.integers(-3, 600)}  # what would only take long


@pytest.fixture(scope="module")
def things(run, text_clip, native, loaded, reference, picture, core_text, core, looks, wiring, part):
    """What can hang on a socket, by its type: right and wrong things."""
    text = core_text("a cat in a red hat")
    seen = run("Encode", native, "a cat in a red hat", layer=-2, images={"image0": picture})[0]
    image = run("SelectTokens", seen, "image")[0]
    joined = core.ConditioningConcat().concat(seen, text)[0]
    states = seen[0][0]

    def broken(value: float) -> list:
        one = states.clone()
        one[0, 1, 3] = value
        return [[one, dict(seen[0][1])]]

    plan = run(
        "Sweep", text_clip, native, "a cat", "strength", "0.5", "none", "", method="blend aligned",
        images={"image0": picture},
    )[3]
    adapter = run("AdapterFit", text_clip, native, looks, name="flood")[0]
    space = run("MatchSpace", seen, native, text_clip, "per_dimension")[1]
    run("Save", seen, "flood")
    look = part("vl_core.looks.look").Look.load(wiring.write_look(part, part("nodes.host.folders").looks_folder()))
    pictures = [
        picture, picture.flip(1), torch.rand(2, 40, 40, 3), torch.rand(1, 1, 1, 3), torch.rand(1, 33, 70, 4),
        torch.zeros(1, 64, 64, 3), torch.full((1, 32, 32, 3), float("nan")), torch.rand(1, 64, 64, 1),
        torch.rand(1, 4, 2000, 3), torch.rand(0, 64, 64, 3), 1e30 * torch.rand(1, 32, 32, 3),
    ]
    return {
        "CONDITIONING": [
            text, seen, image, joined, text + seen, [], broken(float("nan")), broken(float("inf")), broken(1e38),
            [[torch.zeros_like(states), dict(seen[0][1])]], [[states.repeat(2, 1, 1), {}]], [[states[:, :1], {}]],
            [[states.double(), dict(seen[0][1])]], [[states.bfloat16(), {}]], [[torch.rand(1, 7, 96), {}]],
            [[1e-42 * states, dict(seen[0][1])]], [[states[:, :0], {}]],
        ],
        "IMAGE": pictures,
        "MASK": [
            torch.rand(1, 64, 96), torch.zeros(1, 8, 8), torch.ones(64, 96), torch.rand(3, 9, 9),
            torch.full((1, 4, 4), float("nan")),
        ],
        "CLIP": [text_clip, native], "QWEN3VL": [loaded], "VL_REFERENCE": [reference], "VL_ADAPTER": [adapter],
        "VL_LOOK": [look], "VL_SPACE": [space],
        "STRING": [plan, plan.replace("0.5", "NaN"), "{}", "[" * 3000, "thick paint"],
        "folder": looks,
    }


def value_of(one, things: dict, draw):
    """A value for an input, by its type."""
    kind = one.io_type
    if one.id in SMALL:
        return draw(SMALL[one.id])
    if kind == "COMFY_AUTOGROW_V3":
        inner = one.template.input
        count = draw(st.integers(0, 2))
        return {f"{inner.id}{index}": value_of(inner, things, draw) for index in range(count)} or None
    if kind == "COMFY_DYNAMICCOMBO_V3":
        option = draw(st.sampled_from(one.options))
        return {one.id: option.key} | {inner.id: value_of(inner, things, draw) for inner in option.inputs}
    if kind == "COMBO":
        return draw(st.sampled_from(list(one.options) or ["nothing"]))
    if kind == "STRING" and not getattr(one, "force_input", False):
        return draw(WORDS)
    plain = {"INT": WHOLE, "FLOAT": NUMBERS, "BOOLEAN": st.booleans()}.get(kind)
    if plain is not None:
        return draw(plain)
    kinds = [each.io_type for each in one.io_types] if hasattr(one, "io_types") else [kind]
    return draw(st.sampled_from([thing for each in kinds for thing in things[each]]))


def drawn_inputs(schema, things: dict, draw) -> dict:
    """Most inputs as they are usually, a few of them odd."""
    inputs = {}
    for one in schema.inputs:
        usual = getattr(one, "default", None)
        if usual is not None and draw(st.integers(0, 3)):
            inputs[one.id] = usual
        elif not one.optional or draw(st.booleans()):
            inputs[one.id] = value_of(one, things, draw)
    if schema.node_id in ("ZImageVLAdapterFit", "ZImageVLDescribeFolder"):
        inputs |= {"name": "flooded", "replace": True} if schema.node_id == "ZImageVLAdapterFit" else {}
        if draw(st.booleans()):
            inputs["folder"] = things["folder"]
    if schema.is_input_list:
        inputs = {name: [value] for name, value in inputs.items()}
        inputs["images"] = draw(st.lists(st.sampled_from(things["IMAGE"]), max_size=3))
    return inputs


def check_finite(value, where: str) -> None:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        assert value.isfinite().all(), f"{where}: NaN or infinity"
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_finite(inner, where)


def flood(short: str, run, part, things: dict, draw) -> None:
    schema = next(
        node.GET_SCHEMA() for node in part("nodes").NODES if node.GET_SCHEMA().node_id == f"ZImageVL{short}"
    )
    inputs = drawn_inputs(schema, things, draw)
    shown = {name: one if isinstance(one, (str, int, float)) else type(one) for name, one in inputs.items()}
    hypothesis.note(f"{short} {shown}")
    try:
        output = run(short, **inputs)
    except TOLD as error:
        words = str(error)
        assert len(words) > 15 and (": " in words or "xpected" in words), f"bare: {error!r}"
        assert len(words) < 3000 and "unexpected keyword" not in words and "positional argument" not in words
        return
    except torch.cuda.OutOfMemoryError as error:
        assert "image_tokens" in str(error)
        return
    if short not in ("Save", "Inspect"):  # these show what is there, whatever it is
        for index, value in enumerate(output.args or ()):
            check_finite(value, f"output {index}")


@pytest.mark.parametrize("short", LIGHT)
@settings(max_examples=max(2, EXAMPLES // 3), deadline=None)
@given(data=st.data())
def test_light_nodes(short, data, run, part, things):
    flood(short, run, part, things, data.draw)


@pytest.mark.parametrize("short", HEAVY)
@settings(max_examples=max(2, EXAMPLES // 12), deadline=None)
@given(data=st.data())
def test_heavy_nodes(short, data, run, part, things):
    flood(short, run, part, things, data.draw)


def test_no_node_is_left_out(part):
    known = {node.GET_SCHEMA().node_id.removeprefix("ZImageVL") for node in part("nodes").NODES}
    assert known == set(LIGHT + HEAVY + NOT_FLOODED)
