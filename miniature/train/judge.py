"""Stage ``judge``: a network that reads a picture, trained on scenes as the renderer and as the VAE paint them.

Everything the bench says is what this judge reads, so it has a floor: on reconstructions of scenes it never saw it
must be nearly always right (:data:`FLOOR`), else no figure means anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import world
from . import models
from .forwards import autocast
from .training import Average, Options, Training, begin

BATCH = 256
RATE = 2e-3
# What the judge must reach on VAE reconstructions of held-out scenes.
FLOOR = {"background": 0.98, "style": 0.97, "mood": 0.97, "shape": 0.95, "pair": 0.93}


def targets(scenes: world.Scenes) -> dict[str, Tensor]:
    """0/1 targets of the yes/no heads: ``pair`` ``(N, 80)``, ``shape`` ``(N, 8)``, ``color`` ``(N, 10)``."""
    there = torch.stack([torch.ones_like(scenes.count), scenes.count - 1], 1).float()
    named = {"pair": scenes.shape * 10 + scenes.color, "shape": scenes.shape, "color": scenes.color}
    return {
        name: torch.zeros(len(scenes), width, device=there.device).scatter_reduce(1, named[name], there, "amax")
        for name, width in models.Judge.HEADS if name in named
    }


def loss_of(logits: dict[str, Tensor], scenes: world.Scenes) -> Tensor:
    weights = {"pair": 20.0, "shape": 4.0, "color": 4.0}
    loss = sum(
        weights[name] * F.binary_cross_entropy_with_logits(logits[name].float(), wanted)
        for name, wanted in targets(scenes).items()
    )
    for name in world.LOOK:
        loss = loss + F.cross_entropy(logits[name].float(), getattr(scenes, name))
    return loss + 0.5 * F.cross_entropy(logits["count"].float(), scenes.count - 1)


def run(options: Options) -> dict[str, Any]:
    """Train, write ``judge.safetensors``, give the closing figures."""
    from . import vae as vae_stage

    device = begin(options)
    vae = vae_stage.load(options.out, options)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = models.Judge(options.sizes.judge_channels).to(device, memory_format=layout)
    average = Average(model, models.Judge(options.sizes.judge_channels).to(device, memory_format=layout))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02, fused=device.type == "cuda")
    modules = {"model": model, "average": average.average}
    training = Training(options, "judge", modules, optimizer, [RATE], options.size(100, 10))
    parameters = list(model.parameters())
    for step in training.steps():
        scenes = world.sample_scenes(options.size(BATCH, 8), device=device)
        pictures, _ = world.render(scenes)
        half = len(pictures) // 2
        pictures = torch.cat([blurred_latents(vae, pictures[:half]), pictures[half:]])
        noise = 0.03 * torch.rand(len(pictures), 1, 1, 1, device=device) * torch.randn_like(pictures)
        with autocast(device):
            logits = model((pictures + noise).contiguous(memory_format=layout))
        training.update(loss_of(logits, scenes), parameters)
        average.update(step)
    if not training.done:
        return {}
    models.save_weights(
        options.out / "judge.safetensors", average.average, {"channels": list(options.sizes.judge_channels)}
    )
    judge = load(options.out / "judge.safetensors", device)
    figures = floor_figures(judge, vae, options.size(1024, 16), options.seed + 5)
    return training.finish(parameters, figures)


@torch.no_grad()
def blurred_latents(vae: nn.Module, pictures: Tensor) -> Tensor:
    """What the VAE makes of pictures whose latents were disturbed a little, as a sampler disturbs them."""
    with autocast(pictures.device):
        latents = vae.encode(pictures).latent_dist.sample()
        strength = 0.15 * torch.rand(len(latents), 1, 1, 1, device=latents.device) / vae.config.scaling_factor
        return vae.decode(latents + strength * torch.randn_like(latents)).sample.float().clamp(-1, 1)


def load(path: Path, device="cpu") -> nn.Module:
    """The judge from its file, float32, for any build."""
    channels = models.read_header(path).get("channels", models.REAL.judge_channels)
    judge = models.Judge(tuple(channels))
    models.load_weights(path, judge)
    return judge.to(device).eval().requires_grad_(False)


@torch.no_grad()
def read(judge: nn.Module, pictures: Tensor, chunk: int = 256) -> dict[str, Tensor]:
    """Logits by name for pictures ``(N, 3, 128, 128)`` in [-1, 1], on the CPU."""
    parts = [judge(part) for part in pictures.split(chunk)]
    return {name: torch.cat([part[name] for part in parts]).float().cpu() for name, _ in models.Judge.HEADS}


def agreement(readings: dict[str, Tensor], scenes: world.Scenes) -> dict[str, float]:
    """How often pictures show what their scenes say.

    ``background``, ``style``, ``mood`` and ``count``: share read right. ``shape`` and ``pair`` (shape and colour of
    one object): share of the scenes' objects that are read.
    """
    scenes = scenes.to("cpu")
    figures = {name: float((readings[name].argmax(1) == getattr(scenes, name)).float().mean()) for name in world.LOOK}
    figures["count"] = float((readings["count"].argmax(1) == scenes.count - 1).float().mean())
    for name, wanted in targets(scenes).items():
        if name != "color":
            figures[name] = float(((readings[name] > 0) & (wanted > 0)).sum() / wanted.sum())
    return figures


@torch.no_grad()
def floor_figures(judge: nn.Module, vae: nn.Module, count: int, seed: int) -> dict[str, float]:
    """:func:`agreement` on VAE reconstructions of scenes nobody trained on, and ``pair_precision``."""
    device = next(judge.parameters()).device
    scenes = world.sample_scenes(count, torch.Generator().manual_seed(seed)).to(device)
    pictures, _ = world.render(scenes, torch.Generator(device).manual_seed(seed))
    through = torch.cat([
        vae.decode(vae.encode(part.to(vae.dtype)).latent_dist.mode()).sample.float().clamp(-1, 1)
        for part in pictures.split(64)
    ])
    readings = read(judge, through)
    claimed = readings["pair"] > 0
    wanted = targets(scenes.to("cpu"))["pair"] > 0
    precision = float((claimed & wanted).sum() / claimed.sum().clamp_min(1))
    return {**agreement(readings, scenes), "pair_precision": precision}
