"""The assembled miniature in use: words, pictures and reference in, pictures out.

States come from the public vl_core API on the stock classes; painting many at once goes through
:mod:`~.forwards`, which tests hold to the stock pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vl_core import Qwen3VLEncoder, TokenLayout, VLStates
from vl_core.headless.progress import without_library_bars
from vl_core.headless.zimage import load_pipeline, prompt_layout

from . import assemble, models, world
from . import judge as judge_stage
from .forwards import decode, sample, text_states, vl_forward

LAYERS = tuple(range(-8, 0))


@dataclass(frozen=True, eq=False)
class Chain:
    """Everything loaded from one folder.

    Attributes:
        pipeline: diffusers' ZImagePipeline. ``encoder``: the VL without its head. ``judge``: reads pictures.
        device: where all of it is.
    """

    pipeline: Any
    encoder: Qwen3VLEncoder
    judge: nn.Module
    device: torch.device
    folder: Path

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Chain:
        """From what :mod:`~.assemble` wrote, in float32.

        Raises:
            FileNotFoundError: if a part is missing.
        """
        for part in (assemble.PIPELINE, assemble.VISION, assemble.JUDGE):
            if not (folder / part).exists():
                raise FileNotFoundError(f"Expected {part} in {folder}. Run `python -m miniature assemble` first.")
        device = torch.device(device)
        pipeline = load_pipeline(folder / assemble.PIPELINE, device, torch.float32)
        encoder = Qwen3VLEncoder.from_pretrained(folder / assemble.VISION, device, torch.float32)
        return cls(pipeline, encoder, judge_stage.load(folder / assemble.JUDGE, device), device, folder)

    @cached_property
    def speaker(self) -> Any:
        """The VL with its head, to answer with; read from its folder once."""
        from transformers import Qwen3VLForConditionalGeneration

        with without_library_bars():
            model = Qwen3VLForConditionalGeneration.from_pretrained(self.folder / assemble.VISION, dtype=torch.float32)
        return model.to(self.device).eval()

    def words(self, prompt: str, layer: int = -2) -> tuple[Tensor, TokenLayout]:
        """The text encoder's states ``(L, D)`` of a prompt and their layout; layer −2 is what the DiT reads."""
        layout = prompt_layout(self.pipeline.tokenizer, prompt, "miniature")
        ids = layout.token_ids[None].to(self.device)
        return text_states(self.pipeline.text_encoder, ids, layer)[0].float(), layout.with_layer(layer)

    def look(self, picture: Tensor, prompt: str, *, mute: bool = False, layers: Sequence[int] = LAYERS) -> VLStates:
        """What the VL makes of a picture ``(H, W, 3)`` in [0, 1] and a prompt."""
        return self.encoder.encode([picture], prompt, layers, mute=mute)

    def paint(
        self, states: Sequence[Tensor], seeds: Sequence[int], *, steps: int = 8, guidance: float = 1.0
    ) -> Tensor:
        """Pictures ``(N, 3, 128, 128)`` in [-1, 1], one per states ``(L, D)`` and seed."""
        latents = sample(
            self.pipeline.transformer, states, torch.cat([noise(seed) for seed in seeds]).to(self.device), steps=steps,
            guidance=guidance, unwanted=self.words("")[0] if guidance else None,
        )
        return decode(self.pipeline.vae, latents)

    def read(self, pictures: Tensor) -> dict[str, Tensor]:
        """The judge's logits, see :class:`~.models.Judge`."""
        return judge_stage.read(self.judge, pictures)


def noise(seed: int) -> Tensor:
    """The latents ``(1, 16, 16, 16)`` that ZImagePipeline draws for a CPU generator of that seed."""
    shape = (1, models.LATENT_CHANNELS, models.LATENT_SIDE, models.LATENT_SIDE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def as_image(pictures: Tensor) -> list[Tensor]:
    """``(N, 3, H, W)`` in [-1, 1] -> pictures ``(H, W, 3)`` in [0, 1], as nodes and encoder take them."""
    return list(((pictures + 1) / 2).permute(0, 2, 3, 1))


@torch.no_grad()
def answers(chain: Chain, pictures: Tensor, request: str, longest: int = 40) -> list[str]:
    """What the VL itself says about pictures ``(N, 3, 128, 128)`` in [-1, 1], greedily."""
    model, tokenizer = chain.speaker, chain.encoder.tokenizer
    text = world.prompt_turn(world.PICTURE + request)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=chain.device)
    ids, start = ids.expand(len(pictures), -1), ids.shape[1]
    for _ in range(longest):
        hidden = vl_forward(model, ids, pictures).last_hidden_state[:, -1]
        following = F.linear(hidden, model.get_input_embeddings().weight).argmax(-1, keepdim=True)
        ids = torch.cat([ids, following], 1)
        if (ids[:, start:] == tokenizer.eos_token_id).any(1).all():
            break
    return [tokenizer.decode(row[start:]).split("<|im_end|>")[0] for row in ids]
