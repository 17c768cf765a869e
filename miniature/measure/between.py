"""Backgrounds halfway between two colours that have names: what no word says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from .. import world
from .chain import Chain, as_image

SEED = 88_000  # far from the fits' pictures and the bench's
RING = 8  # pixels at the edges where nothing but the background is


@dataclass(frozen=True, eq=False)
class BetweenColours:
    """One picture per pair of names, flat and neutral, its background halfway; the thing in it has a third colour.

    Attributes:
        pairs: indices into ``world.COLORS``. ``goal``: RGB in [0, 1], ``(N, 3)``.
        pictures: ``(N, 3, 128, 128)`` in [-1, 1]. ``prompts``: of the thing's colour, without a look.
    """

    pairs: tuple[tuple[int, int], ...]
    scenes: world.Scenes
    goal: Tensor
    pictures: Tensor
    prompts: tuple[str, ...]

    @classmethod
    def draw(cls, chain: Chain, most: int | None = None) -> BetweenColours:
        """All pairs of names, or at most so many, spread over all."""
        pairs = tuple(combinations(range(len(world.COLORS)), 2))
        pairs = pairs[:: -(-len(pairs) // most)] if most else pairs
        scenes = world.sample_scenes(len(pairs), torch.Generator().manual_seed(SEED), two_shapes=0.0)
        flat = torch.zeros_like(scenes.style)  # style "flat", mood "neutral": the background is its colour
        thing = torch.tensor([next(c for c in range(len(world.COLORS)) if c not in pair) for pair in pairs])
        scenes = replace(scenes, style=flat, mood=flat, color=thing[:, None].expand(-1, 2).contiguous())
        rendered, covers = world.render(scenes.to(chain.device), torch.Generator(chain.device).manual_seed(SEED))
        goal = torch.tensor(world.RGB)[torch.tensor(pairs)].mean(1)
        ground = (goal * 2 - 1).to(chain.device)[:, :, None, None]
        pictures = torch.lerp(ground.expand_as(rendered), rendered, covers.sum(1, keepdim=True).clamp(0, 1))
        prompts = tuple(f"a {world.COLORS[color]} circle" for color in thing.tolist())
        return cls(pairs, scenes, goal, pictures, prompts)

    @property
    def images(self) -> list[Tensor]:
        return as_image(self.pictures)

    def captions(self, side: int) -> list[str]:
        """Each prompt with the look in words, the background called by one of its two names."""
        return [
            f"{prompt}, on {world.with_article(world.COLORS[pair[side]])} background, in flat style, "
            "with neutral colors"
            for prompt, pair in zip(self.prompts, self.pairs, strict=True)
        ]

    def numbers(self, seeds: Iterable[int]) -> list[int]:
        """Seeds of the pictures that :meth:`distance` reads: all pairs of a seed before the next."""
        return [1000 * seed + index for seed in seeds for index in range(len(self.pairs))]

    def error(
        self, chain: Chain, states: Sequence[Tensor], seeds: Sequence[int], steps: int, guidance: float
    ) -> Tensor:
        """:meth:`distance` of what is painted from states, one per pair."""
        painted = chain.paint(list(states) * len(seeds), self.numbers(seeds), steps=steps, guidance=guidance)
        return self.distance(painted)

    def distance(self, painted: Tensor) -> Tensor:
        """RGB distance ``(N,)`` of the painted ring's median colour from the goal, a mean over seeds; :meth:`read`."""
        return self.read(painted)["distance"]

    def read(self, painted: Tensor) -> dict[str, Tensor]:
        """``distance`` from the goal; ``from_first``: the same from the colour that the first name means.

        Args:
            painted: ``(S·N, 3, 128, 128)`` in [-1, 1], all pairs of a seed before the next.
        """
        found = ring_colour(painted).view(-1, len(self.pairs), 3)
        goals = {"distance": self.goal, "from_first": torch.tensor(world.RGB)[[first for first, _ in self.pairs]]}
        return {name: (found - goal).norm(dim=-1).mean(0) for name, goal in goals.items()}


def ring_colour(painted: Tensor) -> Tensor:
    """Median colour of the ring at the edges, RGB in [0, 1] ``(…, 3)``, of pictures ``(…, 3, 128, 128)`` in [-1, 1]."""
    edge = torch.ones(painted.shape[-2:], dtype=torch.bool)
    edge[RING:-RING, RING:-RING] = False
    return ((painted.cpu()[..., edge] + 1) / 2).clamp(0, 1).median(-1).values
