"""FLUX.2 klein of diffusers as what a look is learned on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..looks.padding import Paddings
from ..states.families import KLEIN_4B, Family, family_of
from ..states.layout import TokenLayout, pad_layout, text_layout
from .look_painter import SCHEDULE, DiffusersPainter
from .pipeline import special_tokens

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline  # pyright: ignore[reportPrivateImportUsage]

STEPS = {True: 4, False: 50}  # that a distilled pipeline and another one paint in: its schedule depends on their number


class KleinPainter(DiffusersPainter):
    """The parts of a ``Flux2KleinPipeline``; see :class:`vl_core.looks.painter.Painter`.

    Raises:
        ValueError: if its text encoder's states do not fit the transformer.
    """

    def __init__(self, pipeline: Flux2KleinPipeline, name: str = "") -> None:
        super().__init__(pipeline, name)
        hidden = pipeline.text_encoder.config.hidden_size
        self._family = family_of(KLEIN_4B.group, hidden)
        if self.dit.config.joint_attention_dim != self._family.width:
            raise ValueError(
                f"pipeline: expected a text encoder of width {self.dit.config.joint_attention_dim // 3}, which the "
                f"transformer reads three times, got {hidden}."
            )
        self._paddings = Paddings(self._family.tail_tokens)

    @property
    def family(self) -> Family:
        return self._family

    @torch.no_grad()
    def text(self, prompt: str) -> tuple[Tensor, TokenLayout]:
        """As the protocol has it; ValueError for a prompt that the pipeline would cut."""
        tokenizer: Any = self.pipeline.tokenizer
        ids = tokenizer(self._family.turn.format(prompt), add_special_tokens=False)["input_ids"]
        if len(ids) > self._family.padded_to:
            raise ValueError(f"words: expected at most {self._family.padded_to} tokens, got {len(ids)}. Shorten them.")
        layout = text_layout(
            ids, special=special_tokens(tokenizer), turn=self._family.turn, tail_tokens=self._family.tail_tokens,
            layer=None, prompt=prompt, model=self.name,
        )
        layers: Any = self._family.layers  # the pipeline's annotation is of one layer
        states = self.pipeline.encode_prompt(prompt, text_encoder_out_layers=layers)[0][0]
        layout = pad_layout(layout, len(states) - len(ids))
        self._paddings.remember(states, layout)
        return states, layout

    @torch.no_grad()
    def latents(self, picture: Tensor) -> Tensor:
        packed, norm = self.pipeline._patchify_latents(self.encoded(picture)).float(), self.vae.bn
        mean, variance = (part.float().view(1, -1, 1, 1) for part in (norm.running_mean, norm.running_var))
        return ((packed - mean) / (variance + self.vae.config.batch_norm_eps).sqrt())[0]

    def levels(self, latents: Tensor) -> Tensor:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        steps = STEPS[bool(getattr(self.pipeline.config, "is_distilled", False))]
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        plain = torch.linspace(1.0, 1 / SCHEDULE, SCHEDULE).tolist()
        shift = compute_empirical_mu(latents.shape[-2] * latents.shape[-1], steps)
        scheduler.set_timesteps(sigmas=plain, device="cpu", mu=shift)
        return scheduler.sigmas[:-1].float().cpu()

    def velocity(self, noisy: Tensor, levels: Tensor, captions: Sequence[Tensor]) -> Tensor:
        padded = [self._paddings.behind(caption) for caption in captions]
        if len({len(one) for one in padded}) > 1:  # longer than the padding: one at a time
            alone = [self.velocity(noisy[i : i + 1], levels[i : i + 1], [one]) for i, one in enumerate(captions)]
            return torch.cat(alone)
        kind, device = self.dit.dtype, noisy.device
        words = torch.stack(padded).to(device, kind)
        painted = self.dit(
            hidden_states=self.pipeline._pack_latents(noisy).to(kind), timestep=levels.to(device, kind), guidance=None,
            encoder_hidden_states=words, txt_ids=self.pipeline._prepare_text_ids(words).to(device),
            img_ids=self.pipeline._prepare_latent_ids(noisy).to(device), return_dict=False,
        )[0]
        return -painted.permute(0, 2, 1).reshape(noisy.shape).float()
