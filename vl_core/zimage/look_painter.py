"""Z-Image of diffusers as what a look is learned on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..states.families import ZIMAGE, Family, family_of
from ..states.layout import TokenLayout
from . import lean
from .pipeline import encode_text

SCHEDULE = 1000  # steps: as finely as the model's time is told
KEPT_PER_TOKEN = 27  # values of the model's width that a block keeps per token for its backward pass, as measured
SPARED = 0.25  # of the free memory is left alone
PATCH = 2  # latents per side of an image token


class DiffusersPainter:
    """What pipelines of diffusers have in common; see :class:`vl_core.looks.painter.Painter`.

    Blocks are run again on the way back wherever the memory that is free would not hold what they keep.
    """

    def __init__(self, pipeline: Any, name: str = "") -> None:
        self.pipeline, self.name = pipeline, name
        self.dit: Any = pipeline.transformer
        self.vae: Any = pipeline.vae
        self.multiple = pipeline.vae_scale_factor * PATCH

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    def encoded(self, picture: Tensor) -> Tensor:
        """What the VAE makes of a picture uint8 ``(H, W, 3)``, ``(1, C, h, w)``, as yet in its own scale."""
        pixels = picture.permute(2, 0, 1)[None].to(self.device, torch.float32) / 127.5 - 1
        return self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """See :func:`frozen`."""
        with frozen(self.dit, self.vae, self.pipeline.text_encoder):
            yield


class PipelinePainter(DiffusersPainter):
    """The parts of a ``ZImagePipeline``."""

    @property
    def family(self) -> Family:
        return family_of(ZIMAGE.group, self.dit.config.cap_feat_dim)

    def text(self, prompt: str) -> tuple[Tensor, TokenLayout]:
        return encode_text(self.pipeline, prompt, self.name)

    @torch.no_grad()
    def latents(self, picture: Tensor) -> Tensor:
        found = self.encoded(picture).float()
        return ((found - self.vae.config.shift_factor) * self.vae.config.scaling_factor)[0]

    def levels(self, latents: Tensor) -> Tensor:
        tokens = latents.shape[-2] * latents.shape[-1] // PATCH**2
        return _schedule(self.pipeline.scheduler.__class__, _frozen(self.pipeline.scheduler.config), tokens)

    def velocity(self, noisy: Tensor, levels: Tensor, captions: Sequence[Tensor]) -> Tensor:
        kind = self.dit.dtype
        frames = list(noisy.to(kind).unsqueeze(2).unbind(0))
        words = [caption.to(noisy.device, kind) for caption in captions]
        (painted,) = self.dit(frames, 1 - levels.to(noisy.device), words, return_dict=False)
        return torch.stack(list(painted)).squeeze(2).float()


@contextmanager
def frozen(dit: Any, *others: nn.Module) -> Iterator[None]:
    """Weights are frozen, and every block of the first decides for itself whether to keep what its way back needs."""
    asked = [weight for module in (dit, *others) for weight in module.parameters() if weight.requires_grad]
    switches = vars(dit)
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    before = {name: switches[name] for name in names if name in switches}
    for weight in asked:
        weight.requires_grad_(False)
    dit._gradient_checkpointing_func = _run_block
    dit.gradient_checkpointing = True
    try:
        yield
    finally:
        for name in names:
            switches.pop(name)
        switches.update(before)
        for weight in asked:
            weight.requires_grad_(True)


def _run_block(block: nn.Module, hidden: Tensor, *rest: Any) -> Any:
    """A block whose inputs no gradient reaches, or for which there is room, runs as it is; others run again later."""
    from torch.utils.checkpoint import checkpoint

    tracked = any(isinstance(part, Tensor) and part.requires_grad for part in (hidden, *rest))
    kept, work = KEPT_PER_TOKEN, block
    if lean.fits(block, *rest[3:]):
        kept, work, rest = lean.KEPT_PER_TOKEN, partial(lean.run, block), rest[:3]
    if not tracked or hidden.numel() * hidden.element_size() * kept < _room(hidden.device):
        return work(hidden, *rest)
    return checkpoint(work, hidden, *rest, use_reentrant=False, preserve_rng_state=work is block)


def _room(device: torch.device) -> float:
    """Bytes that a block may keep: what the device has free, less a part of it. Elsewhere than on a GPU all it wants.

    What torch has reserved and not given out is free too.
    """
    if device.type != "cuda":
        return float("inf")
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused - SPARED * total


def _frozen(config: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((name, value) for name, value in dict(config).items() if not name.startswith("_")))


@lru_cache(maxsize=8)
def _schedule(kind: type, config: tuple[tuple[str, Any], ...], tokens: int) -> Tensor:
    """Noise levels of a scheduler of these settings, as the pipeline sets it for so many image tokens."""
    from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift

    options = dict(config)
    scheduler = kind(**options)
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    shift = calculate_shift(tokens, *(options[name] for name in names))
    plain = torch.linspace(1.0, 1 / SCHEDULE, SCHEDULE).tolist()
    scheduler.set_timesteps(sigmas=plain, device="cpu", **({"mu": shift} if options["use_dynamic_shifting"] else {}))
    return scheduler.sigmas[:-1].float().cpu()
