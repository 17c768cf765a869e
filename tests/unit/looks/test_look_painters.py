"""Z-Image of diffusers, and the miniature, as what looks are learned on: held to the stock pipeline."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="the painter is for diffusers' Z-Image")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")

from miniature.measure.chain import Chain
from miniature.measure.look_painter import MiniaturePainter
from vl_core import Words, apply_look, learn_look
from vl_core.looks.options import LearnOptions
from vl_core.zimage import lean, look_painter, tiny
from vl_core.zimage.look_painter import PipelinePainter

MODELS = Path(__file__).parents[3] / "miniature" / "models"
FEW = LearnOptions(steps=2, draws=2, size=64)
WORDS = Words(("a cat",), "a painting of the sea")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def painter():
    pipeline, _ = tiny.build()
    return PipelinePainter(pipeline, "tiny")


@pytest.fixture(scope="module")
def picture():
    return torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dynamic", [False, True])
def test_euler_steps_along_its_velocity_paint_what_the_pipeline_paints(painter, dynamic):
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = painter.pipeline
    before, pipeline.scheduler = pipeline.scheduler, FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=dynamic
    )
    try:
        states, _ = painter.text("a cat in a red hat")
        noise = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(1))
        pipeline.set_progress_bar_config(disable=True)
        painted = pipeline(
            prompt_embeds=[states], num_inference_steps=4, guidance_scale=0.0, height=64, width=96,
            latents=noise.clone(), output_type="latent",
        ).images
        raw = painted
        levels = pipeline.scheduler.sigmas
        ours = noise.clone()
        with torch.no_grad():
            for now, then in pairwise(levels):
                ours = ours + (now - then) * painter.velocity(ours, now[None], [states])
        torch.testing.assert_close(ours, raw, atol=1e-4, rtol=1e-4)
        # The fine schedule passes through the pipeline's own levels: every 250th of 1000.
        torch.testing.assert_close(painter.levels(noise[0])[::250], levels[:-1].cpu(), atol=1e-5, rtol=1e-5)
    finally:
        pipeline.scheduler = before


def test_a_static_schedule_in_closed_form(painter):
    share = torch.linspace(1, 1 / 1000, 1000)
    expected = 3 * share / (1 + 2 * share)  # tiny's scheduler has shift 3
    torch.testing.assert_close(painter.levels(torch.zeros(16, 8, 8)), expected, atol=1e-6, rtol=1e-5)


def test_latents_decode_to_the_picture_they_are_of(painter, picture):
    pixels = (picture * 255).round().to(torch.uint8)
    vae = painter.vae
    expected = vae.encode(picture_of(pixels)).latent_dist.mode()
    found = painter.latents(pixels)[None] / vae.config.scaling_factor + vae.config.shift_factor
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def picture_of(pixels):
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


def test_learning_leaves_weights_and_switches_as_they_were(painter, picture, weights_hash):
    pipeline, transformer = painter.pipeline, painter.pipeline.transformer
    before, asked = weights_hash(pipeline), [weight.requires_grad for weight in transformer.parameters()]
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    switches = {name: vars(transformer).get(name) for name in names}
    look = learn_look(painter, [picture], WORDS, FEW)
    assert weights_hash(pipeline) == before
    assert [weight.requires_grad for weight in transformer.parameters()] == asked and any(asked)
    assert all(weight.grad is None for weight in transformer.parameters())
    assert {name: vars(transformer).get(name) for name in names} == switches
    assert look.origin.sizes == ((80, 48),) and look.origin.model == "tiny"


def test_gradients_are_the_same_where_blocks_run_again(painter, monkeypatch):
    noisy = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(2))
    states, _ = painter.text("a cat")
    runs = []

    def gradient():
        captions = [states.clone().float().requires_grad_(), states[:9].clone().float().requires_grad_()]
        with painter.learning():
            painter.velocity(noisy, torch.tensor([0.9, 0.4]), captions).square().sum().backward()
        return [caption.grad for caption in captions]

    kept = gradient()
    plain = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(look_painter, "_room", lambda device: 0.0)
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: runs.append(a[0]) or plain(*a, **k))
    again = gradient()
    for first, second in zip(kept, again, strict=True):
        assert first.abs().max() > 0
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-4)
    transformer = painter.pipeline.transformer
    # The refiner of the noise sees no caption: no gradient reaches it, and it never runs again.
    assert {run.args[0] for run in runs} == {*transformer.context_refiner, *transformer.layers}


@pytest.mark.parametrize("part", ["layers", "context_refiner"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_a_lean_block_is_diffusers_block(painter, part, is_masked):
    transformer = painter.pipeline.transformer
    block = getattr(transformer, part)[0]
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(2, 9, transformer.config.dim, generator=generator)
    angles = torch.rand(2, 9, block.head_dim // 2, generator=generator)
    mask = (torch.arange(9) < torch.tensor([[9], [6]])) if is_masked else None
    rest = [mask, torch.polar(torch.ones_like(angles), angles)]
    if part == "layers":
        rest.append(torch.randn(2, block.adaLN_modulation[0].in_features, generator=generator))
    goal = torch.randn(hidden.shape, generator=generator)
    assert lean.fits(block, None, None)
    found = []
    for run in (block, partial(lean.run, block)):
        given = hidden.clone().requires_grad_()
        made = run(given, *rest)
        made.mul(goal).sum().backward()
        found.append((made.detach(), given.grad))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        assert not torch.equal(theirs, hidden)


def test_a_block_with_another_processor_or_input_runs_as_it_is(painter):
    block = copy.deepcopy(painter.pipeline.transformer.layers[0])
    assert lean.fits(block) and not lean.fits(block, torch.ones(1))
    block.attention.processor = object()
    assert not lean.fits(block) and not lean.fits(torch.nn.Linear(2, 2))


def test_the_gates_gradient_is_autograds():
    a, b = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lean.Gate.apply, (a.requires_grad_(), b.requires_grad_()))


def test_a_learned_look_is_painted_from(painter, picture):
    look = learn_look(painter, [picture], WORDS, FEW)
    states, layout, _ = apply_look(*painter.text("a red hat"), look)
    assert len(layout) == len(states)
    painter.velocity(torch.zeros(1, 16, 8, 8), torch.ones(1), [states.detach()])


# --- the miniature ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain():
    if not (MODELS / "z-image-mini").is_dir():
        pytest.skip("the trained miniature is not here")
    return Chain.load(MODELS)


def test_the_miniatures_painter_is_the_pipelines(chain):
    ours, stock = MiniaturePainter(chain), PipelinePainter(chain.pipeline, "z-image-mini")
    prompts = ["a red circle", "a large blue star in the center, on a green background, with dark colors"]
    for prompt in prompts:
        torch.testing.assert_close(ours.text(prompt)[0].cpu(), stock.text(prompt)[0].cpu(), atol=1e-3, rtol=1e-3)
    pixels = (torch.rand(128, 128, 3, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    latents = stock.latents(pixels)
    torch.testing.assert_close(ours.latents(pixels), latents)
    torch.testing.assert_close(ours.levels(latents), stock.levels(latents), atol=1e-6, rtol=1e-5)
    noisy = torch.randn(2, *latents.shape, generator=torch.Generator().manual_seed(1))
    captions = [stock.text(prompt)[0].float() for prompt in prompts]
    levels = torch.tensor([0.9, 0.3])
    with torch.no_grad():
        torch.testing.assert_close(
            ours.velocity(noisy, levels, captions), stock.velocity(noisy, levels, captions), atol=1e-3, rtol=1e-3
        )
