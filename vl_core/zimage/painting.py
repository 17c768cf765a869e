"""Z-Image without its text encoder: many pictures at a time from states that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .group_norm import quick_group_norms
from .pipeline import load_pipeline
from .strips import convolutions_in_strips

if TYPE_CHECKING:
    from .pipeline import ZImagePipeline


@dataclass(frozen=True, eq=False)
class Job:
    """One picture to paint.

    Attributes:
        states: ``(L, D)``. outside: what rules before and after the window, ``(L, D)``; as ``states`` if None.
        seed: of the noise, which is drawn on the CPU.
    """

    states: Tensor
    seed: int
    outside: Tensor | None = None


def load_painter(folder: str | Path, device: torch.device, dtype: torch.dtype) -> ZImagePipeline:
    """The pipeline with its transformer and VAE alone; a transformer that diffusers saved quantised stays so."""
    return load_pipeline(Path(folder), device, dtype, text_encoder=None, tokenizer=None)


@torch.no_grad()
def sample_many(
    pipeline: ZImagePipeline, jobs: Sequence[Job], *, steps: int, guidance: float, width: int, height: int,
    unwanted: Tensor | None = None, window: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Latents ``(N, C, h, w)`` of pictures that are painted together.

    Args:
        unwanted: states ``(L, D)`` that guidance leads away from; needed if ``guidance`` > 0.
        window: shares of the steps between which ``states`` rule.

    Raises:
        ValueError: for guidance without ``unwanted``.
    """
    if guidance > 0 and unwanted is None:
        raise ValueError("unwanted: expected states to lead away from with guidance above 0, got none.")
    device = pipeline.transformer.device
    first, last = (round(share * steps) for share in window)
    acting = [job.states.to(device) for job in jobs]
    plain = [job.states.to(device) if job.outside is None else job.outside.to(device) for job in jobs]
    away = None if guidance <= 0 or unwanted is None else [unwanted.to(device)] * len(jobs)

    def ruling(step: int) -> list[Tensor]:
        return acting if first <= step < last else plain

    def step_done(_pipeline, step, _timestep, values):
        return {**values, "prompt_embeds": ruling(step + 1)}

    runner: Any = pipeline  # it takes and gives more than its annotations say
    runner.set_progress_bar_config(disable=True)
    return runner(
        prompt_embeds=ruling(0), negative_prompt_embeds=away, num_inference_steps=steps, guidance_scale=guidance,
        width=width, height=height, generator=[torch.Generator().manual_seed(job.seed) for job in jobs],
        callback_on_step_end=step_done, output_type="latent",
    ).images


@torch.no_grad()
def decode_each(pipeline: ZImagePipeline, latents: Tensor) -> Tensor:
    """Pictures uint8 ``(N, H, W, 3)`` of latents, on their device, one by one, which takes the least memory."""
    vae: Any = pipeline.vae
    processor: Any = pipeline.image_processor
    raw = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
    pictures = []
    with quick_group_norms(vae), convolutions_in_strips(vae):
        for one in raw.split(1):
            decoded = processor.postprocess(vae.decode(one, return_dict=False)[0], output_type="pt")
            # Rounded where it was decoded: 8 bits a value are all that travels, and no core has to round them.
            pictures.append(decoded.permute(0, 2, 3, 1).float().mul_(255).round_().to(torch.uint8))
    return torch.cat(pictures)
