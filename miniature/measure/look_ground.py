"""Where learned looks are measured: the bench's pairs and the pictures between two colour names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vl_core import Look, TokenLayout, Words, apply_look
from vl_core.encoder.answers import append_words
from vl_core.looks.learn import learn_looks
from vl_core.looks.lesson import Lesson
from vl_core.looks.look import Origin
from vl_core.looks.options import LearnOptions
from vl_core.looks.start import begin

from .. import world
from .bench import Painting
from .between import BetweenColours
from .chain import Chain, as_image
from .look_painter import MiniaturePainter, words_of

SIDE_BY_SIDE = 200  # looks that are learned at once
FOUR = 4  # pictures of one look


@dataclass(frozen=True)
class Row:
    """How looks are learned.

    Attributes:
        pictures: per look. told: what the words of what is shown tell: all that the VL says, the object alone, nothing.
    """

    name: str
    options: LearnOptions
    pictures: int = 1
    told: str = "all"

    @property
    def key(self) -> str:
        return f"{self.pictures} pictures, told {self.told}: {self.options.header()}"


@dataclass(frozen=True, eq=False)
class Learned:
    """Looks of the bench's pairs, and of the pictures between two colour names, or none of those."""

    pairs: list[Look]
    between: list[Look]


@dataclass(frozen=True, eq=False)
class Ground:
    """Pictures, what the VL says of them, and how what is painted is read.

    Attributes:
        pictures: of the bench's references, ``(N, 3, 128, 128)`` in [-1, 1]. words: what the VL says of them.
        between, between_words: likewise for colours between names.
    """

    painter: MiniaturePainter
    painting: Painting
    pictures: Tensor
    words: list[Words]
    between: BetweenColours
    between_words: list[Words]

    @classmethod
    def of(cls, painting: Painting, most_between: int | None = None) -> Ground:
        chain = painting.bench.chain
        pictures = torch.stack([image.permute(2, 0, 1) * 2 - 1 for image in painting.bench.images])
        between = BetweenColours.draw(chain, most_between)
        return cls(
            MiniaturePainter(chain), painting, pictures, words_of(chain, pictures), between,
            words_of(chain, between.pictures),
        )

    @property
    def chain(self) -> Chain:
        return self.painting.bench.chain

    # --- learning

    def learned(self, row: Row) -> Learned:
        """The row's looks of every picture."""
        if row.pictures > 1:
            return Learned(self._of_four(row.options), [])
        scenes = self.painting.bench.pairs.references.records(), self.between.scenes.records()
        pairs, between = (
            [_told(one, scene, row.told) for one, scene in zip(words, part, strict=True)]
            for words, part in zip((self.words, self.between_words), scenes, strict=True)
        )
        return Learned(
            self.each(self.pictures, pairs, row.options), self.each(self.between.pictures, between, row.options)
        )

    def of_noise(self, row: Row) -> Learned:
        """As many looks of pictures of noise, begun with what the VL says of them."""
        generator = torch.Generator().manual_seed(row.options.seed)
        noise = (torch.rand(self.pictures.shape, generator=generator) * 2 - 1).to(self.chain.device)
        return Learned(self.each(noise, words_of(self.chain, noise), row.options), [])

    def begun(self) -> Learned:
        """Looks before the first step: words."""
        self._read([*self.words, *self.between_words])
        return Learned(*([_begun(self.painter, one) for one in words] for words in (self.words, self.between_words)))

    def each(self, pictures: Tensor, words: Sequence[Words], options: LearnOptions) -> list[Look]:
        """One look per picture ``(N, 3, 128, 128)`` in [-1, 1]."""
        lessons = [Lesson((image,), one) for image, one in zip(as_image(pictures), words, strict=True)]
        return self._learn(lessons, options)

    def _of_four(self, options: LearnOptions) -> list[Look]:
        """Of four pictures each with a reference's background, style and mood, and objects of their own."""
        references = self.painting.bench.pairs.references
        other = world.sample_scenes(len(references) * FOUR, torch.Generator().manual_seed(5), two_shapes=0.0)
        shared = {name: getattr(references, name).repeat_interleave(FOUR, 0) for name in world.LOOK}
        taken = other.color == shared["background"][:, None]  # no shape has the background's colour
        scenes = replace(other, **shared, color=torch.where(taken, (other.color + 1) % len(world.COLORS), other.color))
        generator = torch.Generator(self.chain.device).manual_seed(9)
        parts = torch.arange(len(scenes)).split(SIDE_BY_SIDE)
        pictures = torch.cat([world.render(scenes[part].to(self.chain.device), generator)[0] for part in parts])
        said, images = words_of(self.chain, pictures), as_image(pictures)
        lessons = []
        for index, own in enumerate(self.words):
            four = slice(index * FOUR, (index + 1) * FOUR)
            lessons.append(Lesson(tuple(images[four]), Words(tuple(one.shows[0] for one in said[four]), own.look)))
        return self._learn(lessons, options)

    def _learn(self, lessons: Sequence[Lesson], options: LearnOptions) -> list[Look]:
        self._read([lesson.words for lesson in lessons])
        parts = [lessons[start : start + SIDE_BY_SIDE] for start in range(0, len(lessons), SIDE_BY_SIDE)]
        return [look for part in parts for look in learn_looks(self.painter, part, options)]

    def _read(self, words: Sequence[Words]) -> None:
        """All texts that learning reads, in few forwards."""
        shown = [(shows, append_words(shows, one.look)) for one in words for shows in one.shows]
        self.painter.know(["", *(text for both in shown for text in both)])

    # --- measuring

    def measure(self, learned: Learned, shift: int = 0) -> dict[str, Tensor]:
        """The bench's figures, and the distance from colours between names where there are looks for it."""
        texts = [(case.states, case.layout) for case in self.painting.bench.cases]
        found = self.painting.hits(with_looks(texts, learned.pairs, shift))
        if learned.between:
            texts = self.chain.words_many(self.between.prompts)
            found["between"] = self._distance(with_looks(texts, learned.between, shift))
        return found

    def measure_two(self, learned: Learned, weights: tuple[float, float]) -> dict[str, Tensor]:
        """The bench's figures of every pair's look and the next pair's at once."""
        looks = learned.pairs
        return self.painting.hits([
            apply_look(case.states, case.layout, [looks[index], looks[(index + 1) % len(looks)]], 1.0, weights)[0]
            for index, case in enumerate(self.painting.bench.cases)
        ])

    def measure_at(self, learned: Learned, strength: float) -> dict[str, Tensor]:
        """The bench's figures at a strength."""
        texts = [(case.states, case.layout) for case in self.painting.bench.cases]
        return self.painting.hits(with_looks(texts, learned.pairs, 0, strength))

    def measure_words_between(self) -> dict[str, Tensor]:
        """The distance from colours between names, told in words: each of the two names, and the nearer."""
        first, second = (
            self._distance([states for states, _ in self.chain.words_many(self.between.captions(side))])
            for side in (0, 1)
        )
        return {"first name": first, "second name": second, "nearer name": torch.minimum(first, second)}

    def _distance(self, states: Sequence[Tensor]) -> Tensor:
        painting = self.painting
        return self.between.error(self.chain, states, painting.seeds, painting.steps, painting.guidance)


def with_looks(
    texts: Sequence[tuple[Tensor, TokenLayout]], looks: Sequence[Look], shift: int = 0, strength: float = 1.0
) -> list[Tensor]:
    """Every text with its look, or with that of the picture ``shift`` places on."""
    return [
        apply_look(states, layout, looks[(index + shift) % len(looks)], strength)[0]
        for index, (states, layout) in enumerate(texts)
    ]


def _begun(painter: MiniaturePainter, words: Words) -> Look:
    start = begin(painter, words)
    origin = Origin(
        family=painter.family.group, model=painter.name, look=words.look, shows=words.shows, pictures=("none",),
        sizes=(), options={},
    )
    return Look(start.tokens, start.sizes, start.tail, origin)


def _told(words: Words, scene: world.Scene, told: str) -> Words:
    """The VL's words, with what is shown cut to the object's colour and shape, or to nothing."""
    shape, color, _ = scene.objects[0]
    shows = {
        "all": words.shows[0], "object": world.with_article(f"{world.COLORS[color]} {world.SHAPES[shape]}"),
        "nothing": "",
    }
    return replace(words, shows=(shows[told],))
