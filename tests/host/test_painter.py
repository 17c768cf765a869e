"""ComfyUI's models as what a look is learned on: the sampler's own predictions, with gradients to the caption alone."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
import torch

PROMPT = "a cat in a red hat"
FAMILIES = ("Z-Image", "FLUX.2 klein")


def build(tiny, family: str, **text):
    """MODEL, VAE and CLIP of a family, made in inference mode as the executor makes them."""
    with torch.inference_mode():
        if family == "Z-Image":
            return SimpleNamespace(model=tiny.zimage_model(), vae=tiny.Vae(), clip=tiny.text_clip(**text))
        return SimpleNamespace(model=tiny.flux2_model(), vae=tiny.Vae(128, 16), clip=tiny.klein_clip(**text))


@pytest.fixture(scope="module")
def models(tiny):
    return {family: build(tiny, family) for family in FAMILIES}


@pytest.fixture(scope="module", params=FAMILIES)
def chosen(models, request):
    return models[request.param]


@pytest.fixture
def painter(part, chosen):
    return part("nodes.host.painter").ComfyPainter(chosen.model, chosen.vae, chosen.clip)


def fingerprint(model) -> str:
    """Every byte of a MODEL's weights, and every attribute that some module of it has for itself."""
    digest = hashlib.sha256()
    for name, module in model.model.named_modules():
        digest.update(f"{name} {sorted(vars(module))}".encode())
    for name, weight in model.model.named_parameters():
        digest.update(f"{name} {weight.dtype} {weight.requires_grad}".encode())
        digest.update(weight.detach().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def caption_of(painter, prompt: str = PROMPT) -> torch.Tensor:
    states, layout = painter.text(prompt)
    return states[~layout.padding()].float()


def noise_like(painter, count: int = 1) -> torch.Tensor:
    channels = painter.model.model.model_config.unet_config["in_channels"]
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("shift", [None, 5.0])
def test_one_euler_step_along_the_velocity_is_the_samplers_own(part, chosen, shift):
    import comfy.sample
    import comfy.samplers
    import comfy_extras.nodes_model_advanced as advanced

    model = chosen.model
    if shift:
        with torch.inference_mode():
            (model,) = advanced.ModelSamplingAuraFlow().patch_aura(model, shift)
    painter = part("nodes.host.painter").ComfyPainter(model, chosen.vae, chosen.clip)
    levels = painter.levels(noise_like(painter)[0])
    first, second = levels[0], levels[len(levels) // 2]
    if shift:  # time_snr_shift at the middle of the schedule
        assert float(second) == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5), abs=1e-3)
    noise = noise_like(painter)
    with torch.inference_mode():
        text = part("nodes.host.text_encoder").encode_text(chosen.clip, PROMPT)
        sampled = comfy.sample.sample_custom(
            model, noise, 1.0, comfy.samplers.sampler_object("euler"), torch.stack([first, second]), text, text,
            torch.zeros_like(noise), disable_pbar=True, seed=0,
        )
        # At its end the host divides what is still noisy by 1 - sigma, and gives latents as the VAE has them.
        sampled = model.model.process_latent_in(sampled) * (1 - second)
    with painter.learning(), torch.no_grad():
        velocity = painter.velocity(noise, first[None], [caption_of(painter)])
    torch.testing.assert_close(noise + (first - second) * velocity, sampled, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_what_finite_differences_say(painter):
    caption, noise = caption_of(painter), noise_like(painter, 2)
    target = torch.randn(noise.shape, generator=torch.Generator().manual_seed(5))
    anywhere = torch.randn(caption.shape, generator=torch.Generator().manual_seed(6))

    def loss(states: torch.Tensor) -> torch.Tensor:
        return (painter.velocity(noise, torch.tensor([0.9, 0.6]), [states, states]) * target).sum()

    with painter.learning():
        asked = caption.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(asked), asked)
        assert gradient.norm() > 0
        # Half of the way is the gradient's own: along a random direction alone there is little but float32's rounding.
        along = gradient / gradient.norm() + anywhere / anywhere.norm()
        with torch.no_grad():
            step = 0.1
            measured = (loss(caption + step * along) - loss(caption - step * along)) / (2 * step)
    assert float((gradient * along).sum()) == pytest.approx(float(measured), rel=2e-2)


def test_running_blocks_again_gives_the_same_gradient(part, painter, monkeypatch):
    caption, noise = caption_of(painter), noise_like(painter)

    def gradient() -> torch.Tensor:
        asked = caption.clone().requires_grad_()
        with painter.learning():
            return torch.autograd.grad(painter.velocity(noise, torch.tensor([0.8]), [asked]).square().sum(), asked)[0]

    kept, runs = gradient(), []
    gradients = part("nodes.host.gradients")
    monkeypatch.setattr(gradients, "_room", lambda device: runs.append(device) or 0.0)
    torch.testing.assert_close(gradient(), kept)
    assert len(runs) >= 2


def test_weights_and_modules_are_as_they_were(painter, chosen):
    before = fingerprint(chosen.model)
    asked = caption_of(painter).requires_grad_()
    with painter.learning():
        painter.velocity(noise_like(painter), torch.tensor([0.8]), [asked]).square().sum().backward()
    assert asked.grad.norm() > 0
    assert all(weight.grad is None for weight in chosen.model.model.parameters())
    assert fingerprint(chosen.model) == before


def test_what_was_hooked_is_let_go_when_learning_fails(painter, chosen, part):
    import comfy.model_management

    before = fingerprint(chosen.model)
    with pytest.raises(RuntimeError, match="stopped"), painter.learning():
        assert comfy.model_management.in_training
        raise RuntimeError("stopped")
    assert fingerprint(chosen.model) == before
    assert not comfy.model_management.in_training


def test_captions_of_several_lengths_are_each_predicted_as_if_alone(painter):
    captions = [caption_of(painter, words) for words in (PROMPT, "a boat", PROMPT)]
    noise, levels = noise_like(painter, 3), torch.tensor([0.9, 0.8, 0.7])
    with painter.learning(), torch.no_grad():
        together = painter.velocity(noise, levels, captions)
        alone = [painter.velocity(noise[i : i + 1], levels[i : i + 1], captions[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)
