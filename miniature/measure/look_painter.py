"""The miniature as what looks are learned on, many side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from vl_core import Look, TokenLayout
from vl_core.looks.batch import Captions
from vl_core.looks.lesson import fit_picture
from vl_core.looks.start import Words
from vl_core.states.families import Family, family_of

from .. import world
from ..train.forwards import autocast, dit_forward, dit_rotary, padded_length, sigmas
from .chain import Chain, answers

SCHEDULE = 1000
CHUNK = 128  # pictures that are encoded at once


class MiniaturePainter:
    """See :class:`vl_core.looks.painter.Painter`; equal in what it computes to the stock pipeline's painter."""

    name, multiple = "z-image-mini", 16

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        for module in (chain.pipeline.transformer, chain.pipeline.vae, chain.pipeline.text_encoder):
            module.requires_grad_(False)
        self._texts: dict[str, tuple[Tensor, TokenLayout]] = {}
        self._latents: dict[bytes, Tensor] = {}
        self._rotary: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by tokens of the caption, and of a side
        self.learned: dict[tuple[Hashable, ...], Look] = {}

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

    def see(self, pictures: Sequence[Tensor], size: int = world.SIDE) -> None:
        """Encode many pictures of one size at once, brought to size × size at the most, for :meth:`latents`."""
        side = min(size, world.SIDE)
        pixels = {_name(one): one for one in (fit_picture(each, side, self.multiple) for each in pictures)}
        new = {name: one for name, one in pixels.items() if name not in self._latents}
        if new:
            planes = torch.stack(list(new.values())).permute(0, 3, 1, 2).to(self.chain.device).float() / 127.5 - 1
            self._latents |= dict(zip(new, self.latents_of(planes), strict=True))

    def latents(self, picture: Tensor) -> Tensor:
        self.see([picture])
        return self._latents[_name(picture)]

    @torch.no_grad()
    def latents_of(self, pictures: Tensor) -> Tensor:
        """``(N, 16, H/8, W/8)`` of pictures ``(N, 3, H, W)`` in [-1, 1]."""
        vae = self.chain.pipeline.vae
        found = torch.cat([vae.encode(part).latent_dist.mode() for part in pictures.split(CHUNK)])
        return ((found - vae.config.shift_factor) * vae.config.scaling_factor).float()

    def levels(self, latents: Tensor) -> Tensor:
        return sigmas(SCHEDULE)[:-1]

    def velocity(self, noisy: Tensor, levels: Tensor, captions: Sequence[Tensor]) -> Tensor:
        lengths = [len(caption) for caption in captions] if not isinstance(captions, Captions) else captions.lengths
        by_length: dict[int, list[int]] = {}
        for index, count in enumerate(lengths):
            by_length.setdefault(padded_length(count), []).append(index)
        parts = [self._alike(noisy, levels, captions, lengths, *each) for each in by_length.items()]
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([index for members in by_length.values() for index in members], device=noisy.device)
        return torch.cat(parts)[order.argsort()]

    def _alike(
        self, noisy: Tensor, levels: Tensor, captions: Sequence[Tensor], lengths: Sequence[int], length: int,
        members: Sequence[int],
    ) -> Tensor:
        """:meth:`velocity` of those whose captions are padded to one length."""
        device = noisy.device
        side = noisy.shape[-1] // 2
        if (length, side) not in self._rotary:
            self._rotary[length, side] = dit_rotary(self.chain.pipeline.transformer, length, device, side)
        counts = torch.tensor([lengths[index] for index in members], device=device)
        if isinstance(captions, Captions):
            words = captions.padded if len(members) == len(captions) else captions.padded[list(members)]
            words = F.pad(words, (0, 0, 0, max(0, length - words.shape[1])))[:, :length]
        else:
            words = torch.stack([F.pad(captions[i], (0, 0, 0, length - lengths[i])) for i in members])
        if len(members) < len(lengths):
            chosen = torch.tensor(members, device=device)
            noisy, levels = noisy[chosen], levels[chosen]
        with autocast(device):
            found = dit_forward(
                self.chain.pipeline.transformer, noisy, 1 - levels, words, counts, self._rotary[length, side]
            )
        assert isinstance(found, Tensor), "without a tap it gives the velocity alone"
        return found.float()

    def learning(self) -> nullcontext[None]:
        return nullcontext()


def _name(picture: Tensor) -> bytes:
    """What tells a picture uint8 ``(H, W, 3)`` from others."""
    return hashlib.sha256(picture.cpu().contiguous().numpy().tobytes()).digest()


def shows_of(chain: Chain, pictures: Tensor) -> list[str]:
    """What the VL says that pictures ``(N, 3, 128, 128)`` in [-1, 1] show: its description before the look."""
    return [said.split(world.LOOK_BEGINS)[0] for said in answers(chain, pictures, world.LOOK_QUESTIONS[1])]


def looks_of(chain: Chain, pictures: Tensor) -> list[str]:
    """What the VL says of their look."""
    return answers(chain, pictures, world.LOOK_QUESTIONS[0])


def words_of(chain: Chain, pictures: Tensor) -> list[Words]:
    """Both, of looks that are learned from one picture each."""
    return [
        Words((shows,), look) for shows, look in zip(shows_of(chain, pictures), looks_of(chain, pictures), strict=True)
    ]
