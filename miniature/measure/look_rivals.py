"""What others do with a reference, in plain versions of their own, measured beside learned looks.

- **Shared attention**: the reference's latents are brought to noise by running its sampler backwards; while the prompt
  is painted, every painted token also attends to the reference's tokens at the same noise level (StyleAligned, arXiv
  2312.02133, and what Untwisting RoPE does for Z-Image). ``untwisted`` leaves rotary positions out between
  the two, so that nothing is copied by its place. The caption of the reference is what the VL says.
- **Painting over**: the reference with so much noise is where painting begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..train.forwards import (
    DIT_TOKENS,
    _rms_norm,
    autocast,
    decode,
    dit_block,
    dit_forward,
    dit_rotary,
    padded_length,
    sample,
    sigmas,
)
from .chain import Chain, noise

BACKWARDS = 4  # steps of the way to noise per step of painting
CHUNK = 200


@dataclass(frozen=True)
class Rival:
    """One of them; ``denoise`` of painting over, or ``share``: from which of the blocks on tokens attend."""

    name: str
    denoise: float | None = None
    first_block: float = 0.0
    untwisted: bool = False

    def paint(
        self, chain: Chain, states: Sequence[Tensor], seeds: Sequence[int], latents: Tensor, told: Sequence[Tensor],
        steps: int, guidance: float,
    ) -> Tensor:
        """Pictures ``(N, 3, 128, 128)`` in [-1, 1].

        Args:
            states: of the prompts. ``latents``: the references', ``(N, 16, 16, 16)``. ``told``: states of the texts
                that tell of them.
        """
        painted = [
            self._part(
                chain, states[at : at + CHUNK], seeds[at : at + CHUNK], latents[at : at + CHUNK], told[at : at + CHUNK],
                steps, guidance,
            )
            for at in range(0, len(states), CHUNK)
        ]
        return decode(chain.pipeline.vae, torch.cat(painted))

    def _part(self, chain, states, seeds, latents, told, steps, guidance) -> Tensor:
        start = torch.cat([noise(seed) for seed in seeds]).to(chain.device)
        unwanted = chain.words("")[0]
        if self.denoise is not None:
            total = round(steps / self.denoise)
            level = float(sigmas(total)[total - steps])
            return sample(
                chain.pipeline.transformer, states, torch.lerp(latents, start, level), steps=total, guidance=guidance,
                unwanted=unwanted, window=(total - steps, total),
            )
        return self._shared(chain, states, start, latents, told, steps, guidance, unwanted)

    def _shared(self, chain, states, start, latents, told, steps, guidance, unwanted) -> Tensor:
        dit, levels = chain.pipeline.transformer, sigmas(steps)
        way = backwards(dit, latents, told, steps)
        sharing = dit.layers[round(self.first_block * len(dit.layers)) :]
        wanted, other, beside = (Prepared.of(dit, part, chain.device) for part in (states, [unwanted], told))
        for index, (now, then) in enumerate(pairwise(levels.tolist())):
            seen: dict[int, Tensor] = {}
            beside.velocity(dit, way[index], now, block=partial(_remembering, seen))
            block = partial(_sharing, seen, {id(layer) for layer in sharing}, self.untwisted)
            velocity = wanted.velocity(dit, start, now, block=block)
            if guidance:
                velocity = velocity + guidance * (velocity - other.velocity(dit, start, now))
            start = start + (now - then) * velocity
        return start


RIVALS = (
    Rival("shared attention"), Rival("shared attention, second half of the blocks", first_block=0.5),
    Rival("shared attention, untwisted", untwisted=True),
    Rival("painting over at 0.6", denoise=0.6), Rival("painting over at 0.8", denoise=0.8),
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Captions padded to one length: ``(B, L, D)``, or ``(1, L, D)`` for all, and how many tokens are theirs."""

    captions: Tensor
    counts: Tensor
    rotary: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, dit: nn.Module, states: Sequence[Tensor], device: torch.device) -> Prepared:
        length = padded_length(max(map(len, states)))
        padded = torch.stack([F.pad(one.to(device).float(), (0, 0, 0, length - len(one))) for one in states])
        counts = torch.tensor([len(one) for one in states], device=device)
        return cls(padded, counts, dit_rotary(dit, length, device))

    @torch.no_grad()
    def velocity(self, dit: nn.Module, latents: Tensor, level: float, **options: Any) -> Tensor:
        count = len(latents)
        time = torch.full((count,), 1 - level, device=latents.device)
        with autocast(latents.device):
            found = dit_forward(
                dit, latents, time, self.captions.expand(count, -1, -1), self.counts.expand(count), self.rotary,
                **options,
            )
        return found.float()


def backwards(dit: nn.Module, latents: Tensor, told: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Latents ``(N, 16, 16, 16)`` at each noise level of the sampler, the noisiest first, as the model came from it."""
    prepared = Prepared.of(dit, told, latents.device)
    fine = sigmas(steps * BACKWARDS).tolist()  # every fourth of them is one of the sampler's
    found, now = [], latents
    for at in range(len(fine) - 1, 0, -1):
        low, high = fine[at], fine[at - 1]
        now = now - (high - low) * prepared.velocity(dit, now, low)
        if (at - 1) % BACKWARDS == 0:
            found.append(now)
    return found[::-1]


# --- blocks -----------------------------------------------------------------------------------------------------------


def _remembering(seen: dict[int, Tensor], layer: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    """A block that keeps what it was given."""
    seen[id(layer)] = x
    return dit_block(layer, x, *rest)


def _sharing(
    seen: dict[int, Tensor], sharing: set[int], untwisted: bool, layer: nn.Module, x: Tensor, cosine: Tensor,
    sine: Tensor, condition: Tensor | None,
) -> Tensor:
    """:func:`dit_block` whose picture's tokens attend to the reference's too."""
    if id(layer) not in sharing:
        return dit_block(layer, x, cosine, sine, condition)
    attention = layer.attention
    batch, length, width = x.shape
    parts = layer.adaLN_modulation(condition).unsqueeze(1).chunk(4, dim=2)
    scale_1, gate_1, scale_2, gate_2 = 1 + parts[0], parts[1].tanh(), 1 + parts[2], parts[3].tanh()
    norm_q, norm_k = attention.norm_q, attention.norm_k
    turns = cosine[:, None], sine[:, None]

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (attention.heads, -1))

    own = _rms_norm(x, layer.attention_norm1) * scale_1
    other = _rms_norm(seen[id(layer)][:, :DIT_TOKENS], layer.attention_norm1) * scale_1
    plain_q, plain_k = _rms_norm(heads(attention.to_q(own)), norm_q), _rms_norm(heads(attention.to_k(own)), norm_k)
    other_k = _rms_norm(heads(attention.to_k(other)), norm_k)
    q, k = _turned(plain_q, *turns), _turned(plain_k, *turns)
    there = tuple(each[:DIT_TOKENS] for each in turns)
    to_q, other_k = (plain_q, other_k) if untwisted else (q, _turned(other_k, *there))
    scale = q.shape[-1] ** -0.5
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).float() * scale
    beyond = torch.einsum("bqhd,bkhd->bhqk", to_q[:, :DIT_TOKENS], other_k).float() * scale
    beyond = F.pad(beyond, (0, 0, 0, length - DIT_TOKENS), value=-torch.inf)  # words attend to their own picture
    weights = torch.cat([scores, beyond], -1).softmax(-1)
    values = torch.cat([heads(attention.to_v(own)), heads(attention.to_v(other))], 1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights.to(values.dtype), values)
    out = attention.to_out[0](mixed.reshape(batch, length, width))
    x = x + gate_1 * _rms_norm(out, layer.attention_norm2)
    feed = layer.feed_forward
    h = _rms_norm(x, layer.ffn_norm1) * scale_2
    return x + gate_2 * _rms_norm(feed.w2(F.silu(feed.w1(h)) * feed.w3(h)), layer.ffn_norm2)


def _turned(t: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    real, imaginary = t.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], -1).flatten(3).to(t.dtype)
