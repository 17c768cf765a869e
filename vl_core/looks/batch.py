"""Many noisy pictures of many looks as few tensors, so that a step costs the model's time and little else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .lesson import Ready, chance, draw_noise
from .options import LearnOptions
from .painter import Painter
from .start import Told
from .units import directions, scaled, sizes_of


class Captions(Sequence[Tensor]):
    """Captions of any lengths, each a view into ``padded`` float32 ``(B, L, S·D)``; ``lengths`` are theirs."""

    def __init__(self, padded: Tensor, lengths: Sequence[int]) -> None:
        self.padded, self.lengths = padded, tuple(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Captions(self.padded[index], self.lengths[index])
        return self.padded[index, : self.lengths[index]]


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts that looks stand in.

    Attributes:
        heads: padded ``(M, H, S·D)``; ``lengths``: theirs, int64 ``(M,)`` on the CPU. ``tails``: ``(M, T, S·D)``.
    """

    heads: Tensor
    lengths: Tensor
    tails: Tensor

    @classmethod
    def of(cls, told: Sequence[Told]) -> Texts:
        lengths = [len(each.head) for each in told]
        heads = [F.pad(each.head, (0, 0, 0, max(lengths) - len(each.head))) for each in told]
        return cls(torch.stack(heads), torch.tensor(lengths), torch.stack([each.tail for each in told]))


@dataclass(frozen=True, eq=False)
class Batch:
    """Noisy pictures of one size, each told in one of a pack's texts.

    Attributes:
        looks, texts, draws: which look, which text, and which of a step's draws each is, int64 ``(B,)`` on the CPU.
        noisy: x_σ ``(B, C, h, w)``. ``levels``: σ ``(B,)``. ``target``: x₀ − noise.
    """

    looks: Tensor
    texts: Tensor
    draws: Tensor
    noisy: Tensor
    levels: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.looks)

    def split(self, at_once: int) -> Iterator[Batch]:
        """Parts of so many pictures; 0 for all."""
        size = at_once or len(self)
        parts = zip(*(getattr(self, each.name).split(size) for each in fields(self)), strict=True)
        return (Batch(*part) for part in parts)

    def at(self, chosen: Tensor) -> Batch:
        """Those at some places, int64 ``(B',)`` on the CPU."""
        return Batch(*(getattr(self, each.name)[chosen.to(getattr(self, each.name).device)] for each in fields(self)))

    def joined(self, other: Batch) -> Batch:
        """Both, one after the other."""
        return Batch(*(torch.cat([getattr(self, each.name), getattr(other, each.name)]) for each in fields(self)))


@dataclass(frozen=True, eq=False)
class Pack:
    """Lessons that are learned side by side.

    Attributes:
        counts: pictures of each look, ``(N,)``; ``first``: the first of them among all P pictures, ``(N,)``.
        kind: of each picture, which of ``latents`` it is in; ``place``: where, ``(P,)``.
        latents: by size ``(P_s, C, h, w)``.
        sizes: of tokens, padded, ``(N, K, S)``; ``tokens``: how many each look has, ``(N,)``.
        texts: of the P pictures, then those of other prompts.
    """

    counts: Tensor
    first: Tensor
    kind: Tensor
    place: Tensor
    latents: tuple[Tensor, ...]
    sizes: Tensor
    tokens: Tensor
    texts: Texts

    @classmethod
    def of(cls, ready: Sequence[Ready], others: Sequence[Told] = ()) -> Pack:
        counts = torch.tensor([len(one.latents) for one in ready])
        latents = [each for one in ready for each in one.latents]
        shapes = list(dict.fromkeys(each.shape for each in latents))
        members = [[at for at, each in enumerate(latents) if each.shape == shape] for shape in shapes]
        kind, place = torch.empty(len(latents), dtype=torch.long), torch.empty(len(latents), dtype=torch.long)
        for number, chosen in enumerate(members):
            kind[chosen], place[chosen] = number, torch.arange(len(chosen))
        tokens = [len(one.start.tokens) for one in ready]
        sizes = [F.pad(one.start.sizes, (0, 0, 0, max(tokens) - len(one.start.sizes))) for one in ready]
        return cls(
            counts, counts.cumsum(0) - counts, kind, place,
            tuple(torch.stack([latents[at] for at in chosen]) for chosen in members), torch.stack(sizes),
            torch.tensor(tokens), Texts.of([*(each for one in ready for each in one.start.told), *others]),
        )

    def captions(self, values: Tensor, batch: Batch) -> Captions:
        """What a batch is told, each text in its look, as :func:`with_look` has it; gradients reach values.

        Args:
            values: ``(N, T + K, S·D)``: changes of the tail, then tokens.
        """
        texts = self.texts
        pairs, which = (batch.looks * len(texts.lengths) + batch.texts).unique(return_inverse=True)
        look, row = pairs // len(texts.lengths), pairs % len(texts.lengths)
        at, text = look.to(values.device), row.to(values.device)
        layers, tail = self.sizes.shape[-1], texts.tails.shape[1]
        is_padding = self.sizes.amax(-1, keepdim=True) == 0  # which has no direction
        tokens = scaled(directions(values[:, tail:].masked_fill(is_padding, 1.0), layers), self.sizes)
        own = texts.tails[text]
        moved = own + scaled(values[at, :tail], sizes_of(own, layers))
        parts = torch.cat([texts.heads[text], tokens[at], moved], 1)
        widths = texts.heads.shape[1], tokens.shape[1], tail
        order, lengths = _without_padding(texts.lengths[row], self.tokens[look], widths)
        begins = torch.arange(len(pairs))[:, None] * sum(widths)
        chosen = (begins + order)[which].to(values.device)
        built = parts.flatten(0, 1).index_select(0, chosen.flatten()).view(*chosen.shape, -1)
        return Captions(built, lengths[which].tolist())

    def batches(self, painter: Painter, options: LearnOptions, step: int) -> Iterator[Batch]:
        """A step's noisy pictures: pictures in turn, noise levels one from each part of the schedule.

        Every look gets the same noise and levels, so that it does not matter which others are learned beside it.
        """
        places = (torch.arange(options.draws) + torch.rand(options.draws, generator=chance(options.seed, step)))
        places = places / options.draws
        numbers = step * options.draws + torch.arange(options.draws)
        pictures = self.first[:, None] + numbers % self.counts[:, None]  # (N, draws)
        for kind, latents in enumerate(self.latents):
            look, draw = (self.kind[pictures] == kind).nonzero(as_tuple=True)
            if not len(look):
                continue
            schedule = painter.levels(latents[0])
            schedule = schedule[schedule >= options.lowest]
            levels = schedule[(places * len(schedule)).long()].to(latents.device)
            noise = torch.stack([draw_noise(latents[0], options.seed, number) for number in numbers.tolist()])
            chosen, drawn = self.place[pictures[look, draw]].to(latents.device), draw.to(latents.device)
            clean, noise, levels = latents[chosen], noise[drawn], levels[drawn]
            noisy = torch.lerp(clean, noise, levels[:, None, None, None])
            yield Batch(look, pictures[look, draw], draw, noisy, levels, clean - noise)


def _without_padding(heads: Tensor, tokens: Tensor, widths: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Where the rows of captions are in [head | tokens | tail], each padded to its width: ``(U, L)``, and lengths.

    Args:
        heads, tokens: how many rows of the first two there are, ``(U,)``.
    """
    head, count, tail = widths
    lengths = heads + tokens + tail
    at = torch.arange(int(lengths.max())).expand(len(heads), -1)
    behind_head, behind_tokens = at - heads[:, None], at - (heads + tokens)[:, None]
    order = torch.where(behind_head < 0, at, head + behind_head)
    order = torch.where(behind_tokens < 0, order, head + count + behind_tokens)
    return torch.where(behind_tokens < tail, order, 0), lengths
