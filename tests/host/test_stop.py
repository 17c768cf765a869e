"""Stop acts inside of whatever takes long: before the next block, cell, picture or step, and the next run works.

``python -m benchmarks soak`` measures how long it takes.
"""

from __future__ import annotations

import threading

import pytest
import torch

PROMPT = "a cat in a red hat"


@pytest.fixture
def management(base_folder):
    import comfy.model_management

    yield comfy.model_management
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def stopped(management):
    """A block in which Stop ends what runs."""
    return pytest.raises(management.InterruptProcessingException)


class Pressed:
    """Stop, pressed when a module runs for the ``count``-th time; how often it ran."""

    def __init__(self, module: torch.nn.Module, management, count: int = 1) -> None:
        self.runs, self.management, self.count = 0, management, count
        self.hook = module.register_forward_pre_hook(self)

    def __call__(self, *_) -> None:
        self.runs += 1
        if self.runs == self.count:
            self.management.interrupt_current_processing()


@pytest.fixture
def press(management):
    """Counts the runs of a module, and presses Stop at one of them."""
    placed = []

    def place(module, count: int = 1) -> Pressed:
        placed.append(Pressed(module, management, count))
        return placed[-1]

    yield place
    for one in placed:
        one.hook.remove()


def blocks_of(clip):
    model = clip.cond_stage_model
    return getattr(model, model.clip_name).transformer.model.layers


# --- encoders --------------------------------------------------------------------------------------------------------


def test_a_text_encoder_stops_before_its_next_block(run, text_clip, press, stopped, core_text, part):
    encode = part("nodes.host.text_encoder").encode_text
    first, second = (press(blocks_of(text_clip)[index], count) for index, count in ((1, 1), (2, 99)))
    with stopped, torch.inference_mode():
        encode(text_clip, PROMPT)
    assert (first.runs, second.runs) == (1, 0)
    with torch.inference_mode():
        assert torch.equal(encode(text_clip, PROMPT)[0][0], core_text(PROMPT)[0][0])


def test_measuring_statistics_stops_before_the_next_block(run, text_clip, press, stopped, part, monkeypatch):
    monkeypatch.setattr(part("nodes.host.calibration"), "_read_reference", lambda *_: None)
    first, second = (press(blocks_of(text_clip)[index], count) for index, count in ((1, 2), (2, 99)))
    with stopped:
        run("Reference", text_clip)
    assert (first.runs, second.runs) == (2, 1)


@pytest.mark.parametrize("below", ["vision tower", "language"])
@pytest.mark.parametrize("node", ["Encode", "Describe"])
def test_an_encoder_stops_before_its_next_block(
    node, below, run, native, loaded, vision, picture, press, stopped, monkeypatch
):
    """Hooked modules are read and written through the host's, or transformers', own forward."""
    is_native = vision is native
    model = native.cond_stage_model.qwen3vl_4b.transformer if is_native else loaded.encoder.model
    language = model.model.layers if is_native else model.language_model.layers
    blocks = model.visual.blocks if below == "vision tower" else language
    first, second = press(blocks[0]), press(blocks[1], 99)
    options = {"max_tokens": 2} if node == "Describe" else {"prompt": PROMPT, "layer": -1}
    with stopped:
        run(node, vision, images={"image0": picture}, **options)
    assert (first.runs, second.runs) == (1, 0)
    first.hook.remove()
    second.hook.remove()
    assert run(node, vision, images={"image0": picture}, **options)[0]


def test_the_fast_path_asks_before_every_block(run, vision, picture, part, monkeypatch):
    """Of the vision tower and of the language model, also for words."""
    asked = []
    for module in ("nodes.host.native", "nodes.host.loaded"):
        monkeypatch.setattr(part(module), "check_interrupted", lambda: asked.append(0))
    run("Encode", vision, "never read before", layer=-1, images={"image0": picture.flip(1)})
    assert len(asked) >= 4 + 6
    asked.clear()
    run("Describe", vision, images={"image0": picture.flip(2)}, max_tokens=1)
    assert len(asked) >= 4 + 6


# --- solves, sweeps, reports ------------------------------------------------------------------------------------------


@pytest.fixture
def solving(part, management, monkeypatch):
    """Stop is pressed when a solve begins, which then waits for its test."""
    go_on, ridge = threading.Event(), part("vl_core.adapters.ridge").NormalEquations
    solve = ridge.solve

    def wait(self, *arguments, **options):
        management.interrupt_current_processing()
        go_on.wait(60)  # longer than any stop takes
        return solve(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ridge, "solve", wait)
        yield
        go_on.set()


def test_a_space_solve_stops_while_it_solves(run, text_clip, native, solving, stopped):
    seen = run("Encode", native, PROMPT, layer=-3)[0]
    with stopped:
        run("MatchSpace", seen, native, text_clip, "ridge")


def test_an_adapter_solve_stops_while_it_solves(run, text_clip, native, looks, solving, stopped, part):
    with stopped:
        run("AdapterFit", text_clip, native, looks, name="solving")
    left = [path.suffix for path in part("nodes.host.folders").adapters_folder().iterdir()]
    assert left == [".part"]  # every picture is in it


def test_an_adapter_that_was_stopped_there_reads_nothing_anew(run, text_clip, native, looks, told):
    assert "went on after 12 pictures" in told(run("AdapterFit", text_clip, native, looks, name="solving"))


def sweep(run, text_clip, native, picture):
    return run(
        "Sweep", text_clip, native, PROMPT, "strength", "0.25:1:0.25", "none", "", method="blend aligned",
        images={"image0": picture},
    )


def test_a_sweep_stops_before_its_next_cell(run, text_clip, native, picture, management, stopped, part, monkeypatch):
    desk, done = part("vl_core.steering.desk").Desk, []
    act = desk.run

    def count(self, settings):
        done.append(settings)
        if len(done) == 2:
            management.interrupt_current_processing()
        return act(self, settings)

    with monkeypatch.context() as patch, stopped:
        patch.setattr(desk, "run", count)
        sweep(run, text_clip, native, picture)
    assert len(done) == 2
    assert len(sweep(run, text_clip, native, picture)[0]) == 5


def test_a_grid_stops_before_its_next_picture(run, text_clip, native, picture, management, stopped, part, monkeypatch):
    plan = sweep(run, text_clip, native, picture)[3]
    module, drawn = part("vl_core.reports.grid"), []

    def count(*arguments):
        drawn.append(0)
        management.interrupt_current_processing()
        return pixels(*arguments)

    pixels = module._pixels
    with monkeypatch.context() as patch, stopped:
        patch.setattr(module, "_pixels", count)
        run("Grid", [picture.expand(5, -1, -1, -1)], [plan])
    assert len(drawn) == 1


def test_inspect_stops_before_its_next_entry(run, core_text, management, stopped, part, monkeypatch):
    module, looked = part("nodes.inspect"), []
    look = module.inspect

    def count(*arguments):
        looked.append(0)
        management.interrupt_current_processing()
        return look(*arguments)

    with monkeypatch.context() as patch, stopped:
        patch.setattr(module, "inspect", count)
        run("Inspect", core_text(PROMPT) * 3)
    assert len(looked) == 1
