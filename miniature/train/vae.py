"""Stage ``vae``: an AutoencoderKL on rendered scenes, then the measured scale and shift of its latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import world
from . import models
from .forwards import autocast
from .training import Average, Options, Training, begin

BATCH = 128
RATE = 1.5e-3
KL = 2e-3  # per latent element


def reconstruction_loss(painted: Tensor, pictures: Tensor) -> Tensor:
    """Absolute and squared error, and absolute error of the gradients, which keeps edges sharp."""
    loss = (painted - pictures).abs().mean() + 2 * (painted - pictures).square().mean()
    for axis in (2, 3):
        loss = loss + 0.5 * (painted.diff(dim=axis) - pictures.diff(dim=axis)).abs().mean()
    return loss


def psnr(painted: Tensor, pictures: Tensor) -> Tensor:
    """Decibels per picture ``(N,)``, values in [-1, 1]."""
    return 10 * torch.log10(4 / (painted - pictures).square().mean((1, 2, 3)))


def run(options: Options) -> dict[str, Any]:
    """Train, write ``vae.safetensors`` whose header holds scale and shift, give the closing figures."""
    device = begin(options)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = models.make_vae(options.sizes).to(device, memory_format=layout)
    average = Average(model, models.make_vae(options.sizes).to(device, memory_format=layout))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=1e-3, fused=device.type == "cuda"
    )
    modules = {"model": model, "average": average.average}
    training = Training(options, "vae", modules, optimizer, [RATE], options.size(100, 10))
    parameters = list(model.parameters())
    for step in training.steps():
        pictures, _ = world.render(world.sample_scenes(options.size(BATCH, 4), device=device))
        with autocast(device):
            latent = model.encode(pictures.contiguous(memory_format=layout)).latent_dist
            painted = model.decode(latent.sample()).sample
        painted, spread = painted.float(), latent.kl().mean() / latent.mean[0].numel()
        training.update(reconstruction_loss(painted, pictures) + KL * spread, parameters)
        average.update(step)
        training.notes |= {"kl": spread.detach(), "psnr": psnr(painted.detach(), pictures).mean()}
    if not training.done:
        return {}
    scenes = world.sample_scenes(options.size(512, 16), torch.Generator().manual_seed(options.seed + 4)).to(device)
    header = latent_scale(average.average, scenes)
    models.save_weights(options.out / "vae.safetensors", average.average, header)
    figures = {"psnr": reconstruction_psnr(load(options.out, options), scenes), **header}
    return training.finish(parameters, figures)


@torch.no_grad()
def latent_scale(vae: nn.Module, scenes: world.Scenes) -> dict[str, float]:
    """The scaling and shift that give latents mean 0 and std 1."""
    pictures, _ = world.render(scenes, torch.Generator(scenes.style.device).manual_seed(1))
    latents = torch.cat([vae.encode(part).latent_dist.sample() for part in pictures.split(64)])
    return {"scaling_factor": 1 / float(latents.std()), "shift_factor": float(latents.mean())}


@torch.no_grad()
def reconstruction_psnr(vae: nn.Module, scenes: world.Scenes) -> float:
    """Mean decibels over scenes, through the latents' mean."""
    pictures, _ = world.render(scenes, torch.Generator(scenes.style.device).manual_seed(1))
    found = [
        psnr(vae.decode(vae.encode(part.to(vae.dtype)).latent_dist.mode()).sample.float().clamp(-1, 1), part)
        for part in pictures.split(64)
    ]
    return float(torch.cat(found).mean())


def load(folder: Path, options: Options) -> nn.Module:
    """The trained VAE with its scale and shift, float32, on the options' device."""
    model = models.make_vae(options.sizes)
    model.register_to_config(**models.load_weights(folder / "vae.safetensors", model))
    return model.to(options.pick_device()).eval().requires_grad_(False)
