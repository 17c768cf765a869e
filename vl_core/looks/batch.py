"""Many noisy pictures of many looks as few tensors, so that a step costs the model's time and little else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .lesson import Ready, draw_noise
from .options import LearnOptions
from .painter import Painter
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
class Batch:
    """Noisy pictures of one size.

    Attributes:
        looks, pictures: of which look, and of which of all pictures, int64 ``(B,)``.
        noisy: x_σ ``(B, C, h, w)``. ``levels``: σ ``(B,)``. ``target``: x₀ − noise. ``weights``: ``(B, h, w)``.
    """

    looks: Tensor
    pictures: Tensor
    noisy: Tensor
    levels: Tensor
    target: Tensor
    weights: Tensor

    def split(self, at_once: int) -> Iterator[Batch]:
        """Parts of so many pictures; 0 for all."""
        size = at_once or len(self.looks)
        parts = zip(*(getattr(self, name).split(size) for name in self.__dataclass_fields__), strict=True)
        return (Batch(*part) for part in parts)


@dataclass(frozen=True, eq=False)
class Pack:
    """Lessons that are learned side by side.

    Attributes:
        counts: pictures of each look, ``(N,)``; ``first``: the first of them among all P pictures, ``(N,)``.
        owner: look of each picture, ``(P,)``. ``kind``: which of ``latents`` it is in, and ``place``: where, ``(P,)``.
        latents, weights: by size ``(P_s, C, h, w)`` and ``(P_s, h, w)``.
        heads: texts before the tail, padded, ``(P, H, S·D)``. ``tails``: ``(P, T, S·D)``. ``sizes``: ``(N, K, S)``.
        order: for each picture's caption the rows of [heads | tokens | tails], padded, ``(P, L)``.
        lengths: of the captions.
    """

    counts: Tensor
    first: Tensor
    owner: Tensor
    kind: Tensor
    place: Tensor
    latents: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    heads: Tensor
    tails: Tensor
    sizes: Tensor
    order: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, ready: Sequence[Ready]) -> Pack:
        counts = torch.tensor([len(one.latents) for one in ready])
        owner = torch.arange(len(ready)).repeat_interleave(counts)
        latents = [each for one in ready for each in one.latents]
        weights = [each for one in ready for each in one.weights]
        shapes = list(dict.fromkeys(each.shape for each in latents))
        members = [[at for at, each in enumerate(latents) if each.shape == shape] for shape in shapes]
        kind, place = torch.empty(len(latents), dtype=torch.long), torch.empty(len(latents), dtype=torch.long)
        for number, chosen in enumerate(members):
            kind[chosen], place[chosen] = number, torch.arange(len(chosen))
        told = [each for one in ready for each in one.start.told]
        rows, most = max(len(each.head) for each in told), max(len(one.start.tokens) for one in ready)
        tail, device = len(told[0].tail), told[0].head.device
        order, lengths = [], []
        for at, (text, look) in enumerate(zip(told, owner.tolist(), strict=True)):
            parts = (
                (at * rows, len(text.head)), (len(told) * rows + look * most, len(ready[look].start.tokens)),
                (len(told) * rows + len(ready) * most + at * tail, tail),
            )
            order.append(torch.cat([torch.arange(begin, begin + count) for begin, count in parts]))
            lengths.append(len(order[-1]))
        return cls(
            counts, counts.cumsum(0) - counts, owner, kind, place,
            tuple(torch.stack([latents[at] for at in chosen]) for chosen in members),
            tuple(torch.stack([weights[at] for at in chosen]) for chosen in members),
            torch.stack([F.pad(each.head, (0, 0, 0, rows - len(each.head))) for each in told]),
            torch.stack([each.tail for each in told]),
            torch.stack([F.pad(one.start.sizes, (0, 0, 0, most - len(one.start.sizes))) for one in ready]),
            torch.nn.utils.rnn.pad_sequence(order, batch_first=True).to(device), tuple(lengths),
        )

    def captions(self, values: Tensor, pictures: Tensor) -> Captions:
        """What each of some pictures ``(B,)`` is learned with, as :func:`with_look` has it; gradients reach values.

        Args:
            values: ``(N, T + K, S·D)``: changes of the tail, then tokens.
        """
        layers, tail = self.sizes.shape[-1], self.tails.shape[1]
        is_padding = self.sizes.amax(-1, keepdim=True) == 0  # which has no direction
        tokens = scaled(directions(values[:, tail:].masked_fill(is_padding, 1.0), layers), self.sizes)
        tails = self.tails + scaled(values[self.owner.to(values.device), :tail], sizes_of(self.tails, layers))
        source = torch.cat([part.flatten(0, 1) for part in (self.heads, tokens, tails)])
        used, which = pictures.unique(return_inverse=True)
        order = self.order[used.to(self.order.device)]
        built = source.index_select(0, order.flatten()).view(*order.shape, -1)
        whole = built if len(used) == len(pictures) else built.index_select(0, which.to(built.device))
        return Captions(whole, [self.lengths[at] for at in pictures.tolist()])

    def batches(self, painter: Painter, options: LearnOptions, step: int) -> Iterator[Batch]:
        """A step's noisy pictures: pictures in turn, noise levels one from each part of the schedule.

        Every look gets the same noise and levels, so that it does not matter which others are learned beside it.
        """
        generator = torch.Generator().manual_seed((options.seed * 1_000_003 + step) % 2**63)
        places = (torch.arange(options.draws) + torch.rand(options.draws, generator=generator)) / options.draws
        numbers = step * options.draws + torch.arange(options.draws)
        pictures = self.first[:, None] + numbers % self.counts[:, None]  # (N, draws)
        for kind, (latents, weights) in enumerate(zip(self.latents, self.weights, strict=True)):
            look, draw = (self.kind[pictures] == kind).nonzero(as_tuple=True)
            if not len(look):
                continue
            schedule = painter.levels(latents[0])
            schedule = schedule[schedule >= options.lowest]
            levels = schedule[(places**options.lean * len(schedule)).long()].to(latents.device)
            noise = torch.stack([draw_noise(latents[0], options.seed, number) for number in numbers.tolist()])
            chosen, drawn = self.place[pictures[look, draw]].to(latents.device), draw.to(latents.device)
            clean, noise, levels = latents[chosen], noise[drawn], levels[drawn]
            noisy = torch.lerp(clean, noise, levels[:, None, None, None])
            yield Batch(look, pictures[look, draw], noisy, levels, clean - noise, weights[chosen])
