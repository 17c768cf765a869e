"""FLUX.2 klein of diffusers as what looks are learned on: held to the stock pipeline, with tiny random weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

pytest.importorskip("diffusers", reason="the painter is for diffusers' FLUX.2 klein")

import diffusers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from vl_core import Words, apply_look, learn_look
from vl_core.looks.options import LearnOptions
from vl_core.looks.padding import Paddings
from vl_core.zimage import tiny
from vl_core.zimage.klein_painter import KleinPainter

FEW = LearnOptions(steps=2, draws=2, size=64)
WORDS = Words(("a cat",), "a painting of the sea")
PROMPT = "a cat in a red hat"

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(diffusers, "Flux2KleinPipeline"), reason="this diffusers has no FLUX.2 klein"),
]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with Qwen3's thinking tokens, and two line feeds as one token."""
    tokenizer = tiny.byte_level_bpe([*tiny.CORPUS, *["x\n\n"] * 100], 400)
    tokenizer.add_special_tokens([*tiny.SPECIAL, "<think>", "</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=tiny.CHAT_TEMPLATE, model_max_length=4096,
    )


@pytest.fixture(scope="module")
def painter():
    generator = torch.Generator().manual_seed(0)
    reader = Qwen3ForCausalLM(Qwen3Config(**{**tiny.TEXT, "num_hidden_layers": 28}))
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=128, num_layers=2, num_single_layers=2, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=3 * tiny.WIDTH, timestep_guidance_channels=64,
        axes_dims_rope=(8, 8, 8, 8), guidance_embeds=False,
    )
    vae = diffusers.AutoencoderKLFlux2(block_out_channels=(16, 32, 32, 32), layers_per_block=1, norm_num_groups=8)
    for module in (reader, transformer, vae):
        tiny._randomise(module, generator)
    vae.bn.running_mean.copy_(torch.randn(128, generator=generator))
    vae.bn.running_var.copy_(torch.rand(128, generator=generator) + 0.5)
    pipeline = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae.eval(),
        text_encoder=reader.eval(), tokenizer=build_tokenizer(), transformer=transformer.eval(), is_distilled=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return KleinPainter(pipeline, "tiny")


@pytest.fixture(scope="module")
def picture():
    return torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(0))


def test_euler_steps_along_its_velocity_paint_what_the_pipeline_paints(painter):
    pipeline = painter.pipeline
    states, layout = painter.text(PROMPT)
    words = states[~layout.padding()]
    assert len(words) < len(states) == 512
    noise = torch.randn(1, 128, 4, 6, generator=torch.Generator().manual_seed(1))
    packed = pipeline._pack_latents(noise)
    painted = pipeline(
        prompt=PROMPT, num_inference_steps=4, height=64, width=96, latents=noise.clone(), output_type="latent",
    ).images
    levels, ours = pipeline.scheduler.sigmas, noise.clone()
    with torch.no_grad():
        for now, then in pairwise(levels):
            # The words alone: the painter puts their padding behind them.
            ours = ours + (now - then) * painter.velocity(ours, now[None], [words])
    norm = pipeline.vae.bn
    scale = (norm.running_var + pipeline.vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    raw = pipeline._unpatchify_latents(ours * scale + norm.running_mean.view(1, -1, 1, 1))
    torch.testing.assert_close(raw, painted, atol=1e-3, rtol=1e-3)
    # The fine schedule passes through the levels of a distilled pipeline's four steps.
    torch.testing.assert_close(painter.levels(noise[0])[::250], levels[:-1].cpu(), atol=1e-5, rtol=1e-5)
    assert packed.shape == (1, 24, 128)


def test_latents_are_those_that_the_pipeline_edits(painter, picture):
    pixels = (picture * 255).round().to(torch.uint8)
    image = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = painter.pipeline._encode_vae_image(image, generator=None)
    torch.testing.assert_close(painter.latents(pixels)[None], expected, atol=1e-5, rtol=1e-5)


def test_text_states_are_the_pipelines_own_and_their_layout_says_what_they_are(painter):
    states, layout = painter.text(PROMPT)
    torch.testing.assert_close(states, painter.pipeline.encode_prompt(PROMPT)[0][0])
    ids = painter.pipeline.tokenizer(painter.family.turn.format(PROMPT))["input_ids"]
    assert layout.token_ids[: len(ids)].tolist() == ids and int(layout.padding().sum()) == 512 - len(ids)
    with pytest.raises(ValueError, match="words: expected at most 512 tokens"):
        painter.text("cat " * 600)


@pytest.mark.parametrize("room", [float("inf"), 0.0])
def test_a_look_is_learned_and_leaves_weights_as_they_were(painter, picture, room, monkeypatch, weights_hash):
    from vl_core.zimage import look_painter

    monkeypatch.setattr(look_painter, "_room", lambda device: room)
    before, asked = weights_hash(painter.pipeline), [one.requires_grad for one in painter.dit.parameters()]
    look = learn_look(painter, [picture], WORDS, FEW)
    assert weights_hash(painter.pipeline) == before
    assert [one.requires_grad for one in painter.dit.parameters()] == asked and any(asked)
    assert look.origin.family == "FLUX.2 klein" and look.tokens.shape[1] == 3 * tiny.WIDTH
    states, layout, info = apply_look(*painter.text("a red hat"), look)
    assert states.shape == (512, 3 * tiny.WIDTH) and len(layout) == 512 and info.added == len(look.tokens)


def test_the_gradient_is_what_finite_differences_say(painter):
    painter._paddings = Paddings(painter.family.tail_tokens)  # one text is read: its padding stands behind all captions
    states, layout = painter.text(PROMPT)
    caption = states[~layout.padding()].float()
    noise = torch.randn(2, 128, 4, 4, generator=torch.Generator().manual_seed(2))
    anywhere = torch.randn(caption.shape, generator=torch.Generator().manual_seed(3))
    target = torch.randn(noise.shape, generator=torch.Generator().manual_seed(4))

    def loss(words):
        return (painter.velocity(noise, torch.tensor([0.9, 0.5]), [words, words]) * target).sum()

    with painter.learning():
        asked = caption.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(asked), asked)
        # Half of the way is the gradient's own: along a random direction alone there is little but float32's rounding.
        along = gradient / gradient.norm() + anywhere / anywhere.norm()
        with torch.no_grad():
            measured = (loss(caption + 0.1 * along) - loss(caption - 0.1 * along)) / 0.2
    assert float((gradient * along).sum()) == pytest.approx(float(measured), rel=2e-2)
