"""The miniature as what looks are learned on, many side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from vl_core import TokenLayout
from vl_core.looks.start import Words
from vl_core.states.families import Family, family_of

from .. import world
from ..train.forwards import autocast, dit_forward, dit_rotary, padded_length, sigmas
from .chain import Chain, answers

SCHEDULE = 1000


class MiniaturePainter:
    """See :class:`vl_core.looks.painter.Painter`; equal in what it computes to the stock pipeline's painter."""

    name, multiple = "z-image-mini", 16

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        for module in (chain.pipeline.transformer, chain.pipeline.vae, chain.pipeline.text_encoder):
            module.requires_grad_(False)
        self._texts: dict[str, tuple[Tensor, TokenLayout]] = {}
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def family(self) -> Family:
        return family_of("Z-Image", self.chain.pipeline.transformer.config.cap_feat_dim)

    def know(self, prompts: Sequence[str]) -> None:
        """Read many prompts at once, for :meth:`text`."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        self._texts |= dict(zip(new, self.chain.words_many(new), strict=True))

    def text(self, prompt: str) -> tuple[Tensor, TokenLayout]:
        self.know([prompt])
        return self._texts[prompt]

    @torch.no_grad()
    def latents(self, picture: Tensor) -> Tensor:
        vae = self.chain.pipeline.vae
        pixels = picture.permute(2, 0, 1)[None].to(self.chain.device).float() / 127.5 - 1
        found = vae.encode(pixels).latent_dist.mode()
        return ((found - vae.config.shift_factor) * vae.config.scaling_factor)[0]

    def levels(self, latents: Tensor) -> Tensor:
        return sigmas(SCHEDULE)[:-1]

    def velocity(self, noisy: Tensor, levels: Tensor, captions: Sequence[Tensor]) -> Tensor:
        by_length: dict[int, list[int]] = {}
        for index, caption in enumerate(captions):
            by_length.setdefault(padded_length(len(caption)), []).append(index)
        parts, order = [], []
        for length, members in by_length.items():
            if length not in self._rotary:
                self._rotary[length] = dit_rotary(self.chain.pipeline.transformer, length, noisy.device)
            words = torch.stack([F.pad(captions[i], (0, 0, 0, length - len(captions[i]))) for i in members])
            counts = torch.tensor([len(captions[i]) for i in members], device=noisy.device)
            chosen = torch.tensor(members, device=noisy.device)
            with autocast(noisy.device):
                found = dit_forward(
                    self.chain.pipeline.transformer, noisy[chosen], 1 - levels[chosen], words, counts,
                    self._rotary[length],
                )
            assert isinstance(found, Tensor), "without a tap it gives the velocity alone"
            parts.append(found.float())
            order += members
        return torch.cat(parts)[torch.tensor(order, device=noisy.device).argsort()]

    def learning(self) -> nullcontext[None]:
        return nullcontext()


def shows_of(chain: Chain, pictures: Tensor) -> list[str]:
    """What the VL says that pictures ``(N, 3, 128, 128)`` in [-1, 1] show: its description before the look."""
    _, ask, end = world.LOOK_QUESTIONS
    return [said.split(end)[0] for said in answers(chain, pictures, ask)]


def looks_of(chain: Chain, pictures: Tensor) -> list[str]:
    """What the VL says of their look."""
    return answers(chain, pictures, world.LOOK_QUESTIONS[0])


def words_of(chain: Chain, pictures: Tensor) -> list[Words]:
    """Both, of looks that are learned from one picture each."""
    return [
        Words((shows,), look) for shows, look in zip(shows_of(chain, pictures), looks_of(chain, pictures), strict=True)
    ]
