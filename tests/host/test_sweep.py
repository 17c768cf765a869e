"""Sweep and grid in a real graph on tiny models: every cell is painted from its own recipe, the picture read once."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

PROMPT = "a cat in a red hat"
LAYOUT = "vl_layout"
SIDE = 64  # pixels that are painted
EXAMPLE = "example.png"


@pytest.fixture
def sweep(run, text_clip, vision, picture):
    """The node on either encoder: its outputs. Rows and pages only if named."""

    def outputs(columns, column_values, **inputs):
        named = {"rows": "none", "images": {"image0": picture}, **inputs}
        return run("Sweep", text_clip, vision, PROMPT, columns, column_values, **named)

    return outputs


@pytest.fixture
def forwards(vision, native, loaded):
    """How often the encoder ran, with a fresh count."""
    of_host = native.cond_stage_model.qwen3vl_4b.transformer.model
    model = of_host if vision is native else loaded.encoder.model.language_model
    counted = []
    listening = model.layers[0].register_forward_pre_hook(lambda *_: counted.append(1))
    yield counted
    listening.remove()


@pytest.fixture(scope="module")
def core_of(part):
    """The pack's own vl_core, whose files the nodes run on."""
    return lambda name: part(f"vl_core.{name}")


def cells_of(output, core_of) -> dict[str, list]:
    """Conditioning by label."""
    plan = core_of("steering.sweep").Plan.from_json(output[3])
    assert [cell.label for cell in plan.unique] == output[2]
    assert [cell.seed for cell in plan.unique] == output[1]
    return dict(zip(output[2], output[0], strict=True))


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))


# --- the node ---------------------------------------------------------------------------------------------------------


def test_every_cell_is_what_the_stages_give_one_by_one(sweep, run, core_text, vision, picture, reference, core_of):
    output = sweep(
        "alpha", "0.25, 1", rows="layer", row_values="-2, -5", pages="normalization", page_values="none, per_dim",
        reference=reference, method="aligned",
    )
    cells = cells_of(output, core_of)
    text = core_text(PROMPT)
    assert same(cells.pop("words only"), text)
    assert len(cells) == 8
    for label, found in cells.items():
        alpha, layer, mode = re.fullmatch(r"strength (\S+), layer (\S+), normalization (\S+)", label).groups()
        seen = run("Encode", vision, PROMPT, int(layer), images={"image0": picture})[0]
        seen = run("Normalize", seen, mode, reference)[0]
        expected = run("Blend", text, seen, {"method": "aligned", "alpha": float(alpha)})[0]
        torch.testing.assert_close(found[0][0], expected[0][0], rtol=1e-5, atol=1e-5)
    assert not any(same(a, b) for a, b in combinations(cells.values(), 2))


@pytest.fixture
def asked(part, monkeypatch):
    """What Qwen3-VL is asked to write; it always writes the same."""
    found, instructions = part("vl_core.encoder.writing").Description("blue dusk", "blue dusk", 2, False), []
    monkeypatch.setattr(part("nodes.host.memory"), "fast_allowed", lambda: False)  # keeps no words for other tests
    monkeypatch.setattr(part("nodes.steering"), "write_words", lambda *a, **_: instructions.append(a[2]) or found)
    return instructions


@pytest.mark.parametrize("axis", ["way", "method"])
def test_every_way_of_the_simple_node_is_swept(axis, sweep, run, text_clip, vision, picture, part, core_of, asked):
    need_more = {"picture adapter", "learned look"}  # an adapter and a look: tests of their own
    ways = [name for name in part("nodes.condition").offered_ways() if name not in need_more]
    assert len(ways) > 5
    cells = cells_of(sweep(axis, ", ".join(ways), alpha=0.5), core_of)
    assert len(asked) == 1  # automatic and words: one picture, written about once
    for way in ways:
        expected = run("Condition", text_clip, vision, PROMPT, 0.5, way, images={"image0": picture})[0]
        assert torch.equal(cells[f"{axis} {way}"][0][0], expected[0][0]), way


@pytest.mark.parametrize(("old", "new"), [
    ("blend aligned", "aligned blend"), ("append picture", "appended tokens"), ("image delta", "research: image delta"),
    ("blend as published", "research: as published"),
])
def test_a_sweep_saved_under_old_names_gives_what_it_gave(old, new, sweep):
    assert same(sweep("alpha", "0.25, 0.5", method=old)[0][2], sweep("strength", "0.25, 0.5", method=new)[0][2])
    assert same(sweep("method", f"append, {old}", alpha=0.5)[0][2], sweep("way", f"words, {new}", alpha=0.5,
                words="dusk")[0][2])


def test_takes_are_swept_and_each_is_asked_for(sweep, asked, part):
    takes = part("vl_core.steering.takes")
    output = sweep("take", "style, colours", alpha=1.0)
    assert asked == [takes.find_take(name).instruction for name in ("style", "colours")]
    assert output[2] == ["words only", "take style", "take colours"]


def test_kept_words_need_neither_writing_nor_reading(sweep, asked, forwards, core_text):
    output = sweep("strength", "0.5, 1", words="thick paint")
    assert not asked and not forwards
    assert torch.equal(output[0][2][0][0], core_text(f"{PROMPT}, thick paint")[0][0])


def test_what_is_wired_in_is_not_looked_at_before_the_run(part):
    check = part("nodes.sweep").ZImageVLSweep.validate_inputs
    own = {
        "columns": "strength", "column_values": "0.5, 9", "rows": "none", "row_values": "", "pages": "none",
        "page_values": "", "method": "automatic", "alpha": 1.0, "seed": 0, "layer": 0, "tokens": "all",
        "downsample": 1, "space": "dit", "outlier_mode": "none", "outlier_threshold": 10.0, "normalization": "none",
    }
    with pytest.raises(ValueError, match="strength: expected"):  # a text would be marked at every input
        check(**own)
    assert check() is True
    for name in own:
        assert check(**{**own, name: None}) is True
    assert check(**{**own, "column_values": "0.5, 1"}, take=None, images={"image0": None}) is True


def test_the_picture_is_read_once_for_all_cells(sweep, forwards):
    output = sweep(
        "alpha", "0, 0.5, 1", rows="layer", row_values="-2:-6", pages="seed", page_values="1, 2", method="aligned"
    )
    assert len(forwards) == 1
    assert len(output[0]) == 2 + 2 * 5 * 2


def test_image_delta_reads_once_more_with_the_picture_muted(sweep, forwards):
    sweep("delta strength", "-1, 0, 1", method="image delta", rows="layer", row_values="-2, -3")
    assert len(forwards) == 2


def test_words_alone_read_no_picture(sweep, forwards):
    output = sweep("seed", "1, 2, 3", alpha=0.0)
    assert len(forwards) == 0
    assert output[1] == [1, 2, 3] and len(output[0]) == 3


def test_seeds_go_with_their_cells(sweep):
    output = sweep("seed", "7, 9", rows="alpha", row_values="0.5, 1", method="aligned")
    assert output[1] == [7, 9, 7, 9, 7, 9]
    assert output[2] == [
        "words only, seed 7", "words only, seed 9", "seed 7, strength 0.5", "seed 9, strength 0.5",
        "seed 7, strength 1", "seed 9, strength 1",
    ]


def test_statistics_are_measured_where_they_are_needed_and_not_connected(sweep, reference, told, core_of):
    measured = sweep("normalization", "none, rms", outlier_mode="clamp", method="aligned")
    given = sweep("normalization", "none, rms", outlier_mode="clamp", reference=reference, method="aligned")
    ours, theirs = cells_of(measured, core_of), cells_of(given, core_of)
    assert all(torch.allclose(ours[label][0][0], theirs[label][0][0], rtol=1e-4, atol=1e-4) for label in theirs)
    assert "reference statistics" in told(measured) and "reference statistics" not in told(given)


def test_options_of_the_text_stay_on_every_cell(sweep, text_clip, core_of):
    for label, (entry,) in cells_of(sweep("alpha", "0.5, 1", method="aligned"), core_of).items():
        assert LAYOUT in entry[1] and "pooled_output" in entry[1], label


@pytest.mark.parametrize(("inputs", "message"), [
    ({"columns": "alpha", "column_values": "0.5, 2", "method": "aligned"},
     "to 1 with open blend, got 2.*In the cell strength 2"),
    ({"columns": "strength", "column_values": "0.5, 2"}, "to 1.5 with automatic, got 2.*In the cell strength 2"),
    ({"columns": "layer", "column_values": "-2, -6"}, "layer: makes no difference .* automatic does not use it"),
    ({"columns": "alpha", "column_values": ""}, "strength: expected at least one value"),
    ({"columns": "tokens", "column_values": "all, image", "method": "aligned"},
     "tokens: expected all or text with aligned"),
    ({"columns": "space", "column_values": "dit, raw", "method": "append"}, "space: makes no difference"),
    ({"columns": "alpha", "column_values": "0:1:0.01", "rows": "layer", "row_values": "-2:-6", "method": "aligned"},
     "at most 256 cells"),
    ({"columns": "colour", "column_values": "1"}, "axis: expected one of"),
    ({"columns": "alpha", "column_values": "0.5, 1", "pages": "seed", "page_values": "1, 2"},
     "pages: expected none while rows is none, got seed"),
    ({"columns": "alpha", "column_values": "0.5, 1", "images": {}}, "images: a sweep needs at least one picture"),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_sweeps_that_cannot_be_are_refused_before_anything_is_read(inputs, message, sweep, forwards):
    with pytest.raises(ValueError, match=message):
        sweep(**inputs)
    assert forwards == []


def test_layers_that_the_model_has_not_are_refused_by_the_encoder(sweep):
    with pytest.raises(ValueError, match=r"layer: expected -7 to -1 .* got -20"):
        sweep("layer", "-2, -20", method="aligned")


def test_stopping_ends_a_sweep(sweep, part, monkeypatch):
    import comfy.model_management as management

    def stop():
        raise management.InterruptProcessingException

    monkeypatch.setattr(part("nodes.host.memory"), "check_interrupted", stop)
    with pytest.raises(management.InterruptProcessingException):
        sweep("alpha", "0.5, 1", method="aligned")


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_pictures_that_are_not_as_many_as_the_plan_has_are_refused(sweep, run):
    output = sweep("alpha", "0.25, 0.5, 1", method="aligned")
    pictures = [torch.rand(1, 8, 8, 3) for _ in output[0]]
    assert run("Grid", pictures, [output[3]])[0].shape[0] == 1
    for wrong in (pictures[1:], [*pictures, pictures[0]], [torch.cat([one, one]) for one in pictures]):
        with pytest.raises(ValueError, match=rf"images: expected 4 pictures, .* got {sum(map(len, wrong))}\."):
            run("Grid", wrong, [output[3]])
    with pytest.raises(ValueError, match="plan: expected the plan of a sweep as JSON"):
        run("Grid", pictures, ["a cat"])


def test_the_grid_shows_its_pages_and_says_how_large_they_are(sweep, run, told):
    output = sweep(
        "alpha", "0.5, 1", rows="layer", row_values="-2", pages="seed", page_values="1, 2, 3", method="aligned"
    )
    pictures = [torch.rand(1, 32, 48, 3) for _ in output[0]]
    grid = run("Grid", pictures, [output[3]], [torch.rand(2, 40, 40, 3)], [24], ["a cat"], ["dark"])
    pages, height, width, _ = grid[0].shape
    assert pages == len(grid.ui["images"]) == 3
    assert f"3 pages of {width}×{height} pixels" in told(grid)
    assert grid[0][:, 0, 0].max() < 0.2  # dark behind


# --- a judge ----------------------------------------------------------------------------------------------------------


def test_nothing_is_written_below_pictures_unless_a_judge_is_connected(sweep, run):
    output = sweep("alpha", "0.5, 1", method="aligned")
    pictures = [torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(3)) for _ in output[0]]
    plain = run("Grid", pictures, [output[3]], [pictures[0]])[0]
    off = run("Grid", pictures, [output[3]], [pictures[0]], judge=None, prompt=["a cat"])[0]
    assert torch.equal(plain, off)


def test_a_judge_writes_its_scores_below_each_picture(sweep, run, vision, told):
    output = sweep("alpha", "0.5, 1", method="aligned")
    pictures = [torch.rand(1, 96, 96, 3, generator=torch.Generator().manual_seed(3)) for _ in output[0]]
    grid = run("Grid", pictures, [output[3]], judge=[vision], prompt=["a cat"])
    bare = run("Grid", pictures, [output[3]])[0]
    assert grid[0].shape[1] > bare.shape[1] and grid[0].shape[2] == bare.shape[2]
    assert "how likely" in told(grid) and "Of the reference" not in told(grid)


def test_a_judge_with_nothing_to_look_for_says_so(sweep, run, vision):
    output = sweep("alpha", "0.5, 1", method="aligned")
    pictures = [torch.rand(1, 64, 64, 3) for _ in output[0]]
    with pytest.raises(ValueError, match="judge: expected a prompt or a reference"):
        run("Grid", pictures, [output[3]], judge=[vision])


def test_the_probabilities_are_those_of_the_states_after_the_last_block(vision, native, loaded, part):
    """The last state that an encode of the same words gives, times the embeddings that score tokens."""
    judging, question = part("nodes.host.judging"), part("vl_core.encoder.judging").Question("is there a cat?")
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    (found,) = judging.ask(vision, picture, [question])
    states, _ = part("nodes.host.encoders").encode_vision(vision, {"image0": picture}, question.ask, [-1])
    if vision is native:
        head = native.cond_stage_model.qwen3vl_4b.transformer.model.embed_tokens.weight
        tokens = judging.tokens_of(judging._tokenizer(native), question)
    else:
        head = loaded.encoder.model.language_model.embed_tokens.weight
        tokens = judging.tokens_of(loaded.encoder.tokenizer, question)
    chances = (states.states[0, -1].float().cpu() @ head.float().cpu().T).softmax(-1)
    yes, no = (chances[ids].sum() for ids in tokens)
    assert found.shares[0] == pytest.approx(float(yes / (yes + no)), abs=2e-2)


# --- in a running ComfyUI ---------------------------------------------------------------------------------------------


def painting(positive: list, seed) -> dict[str, dict]:
    """The part of a graph that paints: nodes p1 … p5, the picture is p5's."""
    return {
        "p1": {"class_type": "EmptySD3LatentImage", "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1}},
        "p2": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": positive}},
        "p4": {"class_type": "KSampler", "inputs": {
            "model": ["model", 0], "positive": positive, "negative": ["p2", 0], "latent_image": ["p1", 0],
            "seed": seed, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}},
        "p5": {"class_type": "VAEDecode", "inputs": {"samples": ["p4", 0], "vae": ["vae", 0]}},
    }  # fmt: skip


def loaders() -> dict[str, dict]:
    return {
        "vision": {"class_type": "CLIPLoader", "inputs": {
            "clip_name": "qwen3vl_4b_fp8_scaled.safetensors", "type": "lumina2"}},
        "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"}},
        "picture": {"class_type": "LoadImage", "inputs": {"image": EXAMPLE}},
        "model": {"class_type": "UNETLoader", "inputs": {
            "unet_name": "z_image_turbo_bf16.safetensors", "weight_dtype": "default"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": PROMPT}},
    }  # fmt: skip


def sweep_graph(**axes) -> dict[str, dict]:
    """Everything from the loaders to a saved grid."""
    inputs = {
        "clip": ["clip", 0], "vision": ["vision", 0], "images.image0": ["picture", 0], "prompt": PROMPT,
        "columns": "alpha", "column_values": "0.5", "rows": "none", "row_values": "", "pages": "none",
        "page_values": "", "method": "aligned", "alpha": 0.5, "seed": 0, "layer": 0, "tokens": "all", "downsample": 1,
        "space": "dit", "outlier_mode": "none", "outlier_threshold": 10.0, "normalization": "none", "image_tokens": 16,
    }
    return loaders() | painting(["sweep", 0], ["sweep", 1]) | {
        "sweep": {"class_type": "ZImageVLSweep", "inputs": inputs | axes},
        "grid": {"class_type": "ZImageVLGrid", "inputs": {
            "images": ["p5", 0], "plan": ["sweep", 3], "reference": ["picture", 0], "cell_size": 0, "title": PROMPT,
            "theme": "light"}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["grid", 0], "filename_prefix": "sweep"}},
    }  # fmt: skip


def cell_graph(recipe: dict[str, dict], positive: list, seed: int, prefix: str) -> dict[str, dict]:
    """One cell painted for itself, nothing of ours but the stages."""
    return loaders() | recipe | painting(positive, seed) | {
        "save": {"class_type": "SaveImage", "inputs": {"images": ["p5", 0], "filename_prefix": prefix}}
    }


def opened(alpha: float, layer: int) -> dict[str, dict]:
    """Encode and blend as separate nodes."""
    return {
        "seen": {"class_type": "ZImageVLEncode", "inputs": {
            "encoder": ["vision", 0], "images.image0": ["picture", 0], "prompt": PROMPT, "layer": layer,
            "tokens": "all", "image_tokens": 16}},
        "mixed": {"class_type": "ZImageVLBlend", "inputs": {
            "text": ["text", 0], "vl": ["seen", 0], "method": "aligned", "method.alpha": alpha, "method.curve": "flat",
            "method.alpha_end": 0.5, "method.space": "dit", "start_percent": 0.0, "end_percent": 1.0,
            "sinks": "exclude"}},
    }  # fmt: skip


def simple(mode: str) -> dict[str, dict]:
    return {"mixed": {"class_type": "ZImageVLCondition", "inputs": {
        "clip": ["clip", 0], "vision": ["vision", 0], "images.image0": ["picture", 0], "prompt": PROMPT,
        "strength": 0.5, "mode": mode, "layer": 0, "image_tokens": 16}}}  # fmt: skip


@pytest.fixture
def finish(server):
    """Run a graph; its saved pictures as uint8 arrays, in order, and the history entry."""

    def run_graph(graph: dict[str, dict]) -> tuple[list[np.ndarray], dict]:
        history = server.run(graph)
        assert history["status"]["status_str"] == "success", history["status"]
        pictures = []
        for told in history["outputs"]["save"]["images"]:
            with Image.open(server.base / told["type"] / told["subfolder"] / told["filename"]) as image:
                pictures.append(np.asarray(image.convert("RGB")))
        return pictures, history

    return run_graph


@pytest.fixture
def alone(finish):
    """Each recipe painted for itself, by the label the sweep gives it."""

    def paint(recipes: dict[str, tuple[dict, list, int]]) -> dict[str, np.ndarray]:
        return {label: finish(cell_graph(*recipe, "alone"))[0][0] for label, recipe in recipes.items()}

    return paint


def near(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for one step of rounding: files are cut down to 8 bits, the grid rounds."""
    return a.shape == b.shape and int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1


@pytest.fixture
def check_grid(alone, core_of, server):
    """Saved pages against pictures painted one by one: each at its place, and the pages as a whole."""

    def check(axes: list[tuple[str, str]], recipes: dict[str, tuple], pages: list[np.ndarray]) -> None:
        sweep, grid = core_of("steering.sweep"), core_of("reports.grid")
        plan = sweep.make_plan([core_of("steering.axes").parse_axis(*axis) for axis in axes], {"method": "aligned"})
        painted = alone(recipes)
        assert set(painted) == {cell.label for cell in plan.unique}
        assert not any(near(a, b) for a, b in combinations(painted.values(), 2)), "recipes nobody could tell apart"
        by_id = {cell.id: painted[cell.label] for cell in plan.unique}
        with Image.open(server.base / "input" / EXAMPLE) as example:
            reference = np.asarray(example.convert("RGB"))
        drawn = grid.draw_grid(plan, by_id, [reference], title=PROMPT)
        for cell, box in [*zip(plan.cells, drawn.boxes, strict=True), *drawn.baselines]:
            assert near(box.cut(pages), by_id[cell.id]), cell.label
        assert all(near(ours, theirs) for ours, theirs in zip(drawn.pages, pages, strict=True))

    return check


def test_each_cell_of_a_graph_is_the_picture_its_label_says(finish, check_grid):
    axes = [("alpha", "0, 0.5, 1"), ("layer", "-2, -5"), ("seed", "1, 2")]
    pages, history = finish(sweep_graph(
        columns="alpha", column_values="0, 0.5, 1", rows="layer", row_values="-2, -5", pages="seed", page_values="1, 2"
    ))  # fmt: skip
    recipes = {f"words only, seed {seed}": ({}, ["text", 0], seed) for seed in (1, 2)}
    recipes |= {
        f"strength {alpha:g}, layer {layer}, seed {seed}": (opened(alpha, layer), ["mixed", 0], seed)
        for alpha in (0.5, 1.0) for layer in (-2, -5) for seed in (1, 2)
    }
    check_grid(axes, recipes, pages)
    assert len(history["outputs"]["grid"]["images"]) == 2


def test_a_sweep_over_methods_paints_each_as_the_simple_node_does(finish, check_grid):
    modes = ["image delta", "append picture", "blend as published"]
    axes = [("method", ", ".join(modes))]
    pages, _ = finish(sweep_graph(columns="method", column_values=", ".join(modes)))
    recipes = {"words only": ({}, ["text", 0], 0)}
    recipes |= {f"method {mode}": (simple(mode), ["mixed", 0], 0) for mode in modes}
    check_grid(axes, recipes, pages)


@pytest.mark.parametrize(("axes", "message"), [
    ({"column_values": "0.5, 2"}, "with open blend, got 2."),
    ({"column_values": "a"}, "strength: expected a number or a range"),
    ({"rows": "space", "row_values": "dit, raw", "method": "append"}, "space: makes no difference"),
    ({"method": "cut"}, "way: expected one of"),
    ({"downsample": 99}, "downsample: expected a whole number from 1 to 32"),
], ids=lambda value: str(value)[:30])  # fmt: skip
def test_a_list_that_cannot_be_is_refused_before_anything_runs(axes, message, server):
    status, answer = server.post("/prompt", {"prompt": sweep_graph(**axes)})
    assert status == 400
    assert message in answer["node_errors"]["sweep"]["errors"][0]["details"]


def test_values_that_are_wired_in_are_not_guessed_at_before_the_run(finish):
    graph = sweep_graph(column_values=["values", 0], alpha=-1.0, method="image delta", columns="delta strength") | {
        "values": {"class_type": "PrimitiveString", "inputs": {"value": "0, 1"}}
    }
    pages, history = finish(graph)
    assert len(pages) == 1
    assert "2. delta strength 1" in history["outputs"]["sweep"]["text"][0]


def test_all_of_this_left_no_exception_in_the_log(server):
    assert server.complaints() == []
