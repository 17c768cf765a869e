"""Where learned looks are measured: prompts and references of one kind, and how what is painted is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vl_core import Look, TokenLayout, Words, apply_look
from vl_core.encoder.answers import append_words
from vl_core.looks.learn import learn_looks
from vl_core.looks.lesson import Lesson
from vl_core.looks.look import Origin, hash_picture
from vl_core.looks.options import LearnOptions
from vl_core.looks.start import begin

from .. import world
from .bench import Painting, Switches
from .between import BetweenColours
from .chain import as_image
from .look_geometry import PROPERTIES, lookalikes
from .look_painter import MiniaturePainter, words_of
from .look_rivals import Rival

SIDE_BY_SIDE = 256  # looks that are learned at once
AT_ONCE = 32  # noisy pictures that a processor sees at once; more are slower there
FOUR = 4  # pictures of one look
Figures = dict[str, Tensor]
Text = tuple[Tensor, TokenLayout]


@dataclass(frozen=True, eq=False)
class Ground:
    """References and prompts that disagree with them.

    Attributes:
        pictures: ``(N, 3, 128, 128)`` in [-1, 1]. ``scenes``: theirs. ``words``: what the VL says of them.
        texts: of the prompts. ``captions``: states of the prompts with the look in true words, for bounds.
        numbers: seeds of what is painted, all of a seed before the next, ``S·N``.
        read: figures ``(N,)`` by name of ``(S·N, 3, 128, 128)``, means over seeds.
    """

    name: str
    painter: MiniaturePainter
    pictures: Tensor
    scenes: world.Scenes
    words: list[Words]
    texts: list[Text]
    captions: dict[str, list[Tensor]]
    numbers: list[int]
    read: Callable[[Tensor], Figures]
    steps: int
    guidance: float

    # --- learning

    def lessons(self, told: str = "things") -> list[Lesson]:
        """One look per picture.

        Args:
            told: of what is shown the "things" that the VL names; or "all" that it says; or the "object" as it is; or
                "nothing".
        """
        words = [_told(one, scene, told) for one, scene in zip(self.words, self.scenes.records(), strict=True)]
        return [Lesson((image,), one) for image, one in zip(as_image(self.pictures.cpu()), words, strict=True)]

    def lessons_of_four(self, told: str = "things") -> list[Lesson]:
        """Each look of four pictures with a reference's background, style and mood, and objects of their own.

        Args:
            told: "things" or "all", see :meth:`lessons`.
        """
        other = world.sample_scenes(len(self.scenes) * FOUR, torch.Generator().manual_seed(5), two_shapes=0.0)
        shared = {name: getattr(self.scenes, name).repeat_interleave(FOUR, 0) for name in world.LOOK}
        taken = other.color == shared["background"][:, None]  # no shape has the background's colour
        scenes = replace(other, **shared, color=torch.where(taken, (other.color + 1) % len(world.COLORS), other.color))
        chain = self.painter.chain
        generator = torch.Generator(chain.device).manual_seed(9)
        parts = torch.arange(len(scenes)).split(200)
        pictures = torch.cat([world.render(scenes[part].to(chain.device), generator)[0] for part in parts])
        said, images = words_of(chain, pictures), as_image(pictures.cpu())
        lessons = []
        for index, own in enumerate(self.words):
            four = slice(index * FOUR, (index + 1) * FOUR)
            shows = tuple(one.shows[0] for one in said[four])
            shows = tuple(map(world.things_of, shows)) if told == "things" else shows
            lessons.append(Lesson(tuple(images[four]), Words(shows, own.look)))
        return lessons

    def lessons_of_noise(self, seed: int, told: str = "things") -> list[Lesson]:
        """As many looks of pictures of noise, begun with what the VL says of them."""
        noise = torch.rand(self.pictures.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        said = words_of(self.painter.chain, noise.to(self.painter.chain.device))
        words = map(named, said) if told == "things" else said
        return [Lesson((image,), one) for image, one in zip(as_image(noise), words, strict=True)]

    def begun(self) -> list[Look]:
        """Looks before the first step: words."""
        words = [named(one) for one in self.words]
        know(self.painter, words)
        return [_begun(self.painter, one) for one in words]

    # --- measuring

    def measure(self, looks: Sequence[Look], shift: int = 0, strength: float = 1.0) -> Figures:
        """With every picture's look, or with that of the picture ``shift`` places on."""
        return self.painted([
            apply_look(states, layout, looks[(index + shift) % len(looks)], strength)[0]
            for index, (states, layout) in enumerate(self.texts)
        ])

    def measure_two(self, looks: Sequence[Look], weights: tuple[float, float]) -> Figures:
        """With every picture's look and the next one's at once."""
        return self.painted([
            apply_look(states, layout, [looks[index], looks[(index + 1) % len(looks)]], 1.0, weights)[0]
            for index, (states, layout) in enumerate(self.texts)
        ])

    def measure_rival(self, rival: Rival, shift: int = 0) -> Figures:
        """With what a rival makes of every reference, or of that ``shift`` places on."""
        painter, repeat = self.painter, len(self.numbers) // len(self.texts)
        known = [append_words(one.shows[0], one.look) for one in self.words]
        painter.know(known)
        told = [painter.text(text)[0] for text in known]
        latents = painter.latents_of(self.pictures)
        turned = [(index + shift) % len(told) for index in range(len(told))]
        pictures = rival.paint(
            painter.chain, [states for states, _ in self.texts] * repeat, self.numbers,
            latents[turned].repeat(repeat, 1, 1, 1), [told[index] for index in turned] * repeat, self.steps,
            self.guidance,
        )
        return self.read(pictures)

    def painted(self, states: Sequence[Tensor]) -> Figures:
        """From one caption per picture."""
        repeat = len(self.numbers) // len(self.texts)
        return self.read(
            self.painter.chain.paint(list(states) * repeat, self.numbers, steps=self.steps, guidance=self.guidance)
        )


def learn(
    painter: MiniaturePainter, lessons: Sequence[Lesson], options: LearnOptions, others: tuple[str, ...]
) -> list[Look]:
    """Looks of many lessons, side by side; those that the painter was asked for before are not learned again."""
    names = [(options, others, lesson.words, *map(hash_picture, lesson.pictures)) for lesson in lessons]
    new = {name: lesson for name, lesson in zip(names, lessons, strict=True) if name not in painter.learned}
    know(painter, [lesson.words for lesson in new.values()])
    painter.know(others)
    painter.see([picture for lesson in new.values() for picture in lesson.pictures], options.size)
    wanted = list(new.items())
    for start in range(0, len(wanted), SIDE_BY_SIDE):
        part, lessons = zip(*wanted[start : start + SIDE_BY_SIDE], strict=True)
        at_once = AT_ONCE if painter.chain.device.type == "cpu" else 0
        looks = learn_looks(painter, lessons, options, others=others, at_once=at_once)
        painter.learned |= dict(zip(part, looks, strict=True))
    return [painter.learned[name] for name in names]


def know(painter: MiniaturePainter, words: Sequence[Words]) -> None:
    """Read all texts that learning reads, in few forwards."""
    shown = [(shows, append_words(shows, one.look)) for one in words for shows in one.shows]
    painter.know([text for both in shown for text in both])


# --- grounds ----------------------------------------------------------------------------------------------------------


def pairs_of(painting: Painting, painter: MiniaturePainter, name: str, count: int, seeds: int) -> Ground:
    """The bench's first pairs, with its first seeds."""
    bench = painting.bench
    pairs, cases = bench.pairs, bench.cases[:count]
    some = replace(
        pairs, references=pairs.references[:count], shape=pairs.shape[:count], color=pairs.color[:count],
        prompts=pairs.prompts[:count],
    )
    own = replace(painting, bench=replace(bench, pairs=some, cases=cases), seeds=painting.seeds[:seeds])
    pictures = torch.stack([image.permute(2, 0, 1) * 2 - 1 for image in bench.images[:count]])
    phrases = [", ".join(world.look_phrases(scene)) for scene in some.references.records()]
    captions = [f"{prompt}, {look}" for prompt, look in zip(some.prompts, phrases, strict=True)]
    return Ground(
        name, painter, pictures, some.references, words_of(bench.chain, pictures),
        [(case.states, case.layout) for case in cases],
        {"text": [case.states for case in cases], "caption": _states(painter, captions)}, own.numbers,
        lambda painted: own.read(painted, with_artifacts=False), painting.steps, painting.guidance,
    )


def between_of(painter: MiniaturePainter, name: str, count: int | None, seeds: int, switches: Switches) -> Ground:
    """Backgrounds between two colour names, read by :meth:`BetweenColours.read`."""
    between = BetweenColours.draw(painter.chain, count)
    return Ground(
        name, painter, between.pictures, between.scenes, words_of(painter.chain, between.pictures),
        painter.chain.words_many(between.prompts),
        {f"{which} name": _states(painter, between.captions(side)) for side, which in enumerate(("first", "second"))},
        between.numbers(range(seeds)), between.read, switches.steps,
        switches.guidance,
    )


def lookalikes_of(painter: MiniaturePainter, style: str, count: int, seeds: int, switches: Switches) -> Ground:
    """References of one style; the errors of its properties, by name, are what is read."""
    pairs = lookalikes(max(count, 2), style, 77_000)
    device = painter.chain.device
    pictures, _ = world.render(pairs.references.to(device), torch.Generator(device).manual_seed(0))
    phrases = [", ".join(world.look_phrases(scene)) for scene in pairs.references.records()]
    captions = [f"{prompt}, {look}" for prompt, look in zip(pairs.prompts, phrases, strict=True)]
    kinds = [one for one in PROPERTIES if one.style == style]
    goals = {one.name: one.read(pictures).repeat(seeds) for one in kinds}
    thing = (pairs.references.shape[:, 0] * len(world.COLORS) + pairs.references.color[:, 0]).repeat(seeds)

    def read(painted: Tensor) -> Figures:
        found = {one.name: one.error(one.read(painted), goals[one.name]) for one in kinds}
        found["leak"] = (painter.chain.read(painted)["pair"].cpu()[torch.arange(len(painted)), thing] > 0).float()
        return {name: values.view(seeds, -1).mean(0) for name, values in found.items()}

    numbers = [1000 * seed + index for seed in range(seeds) for index in range(len(pairs))]
    return Ground(
        style, painter, pictures, pairs.references, words_of(painter.chain, pictures),
        painter.chain.words_many(pairs.prompts), {"words": _states(painter, captions)}, numbers, read, switches.steps,
        switches.guidance,
    )


def _states(painter: MiniaturePainter, prompts: Sequence[str]) -> list[Tensor]:
    return [states for states, _ in painter.chain.words_many(prompts)]


def _begun(painter: MiniaturePainter, words: Words) -> Look:
    start = begin(painter, words)
    origin = Origin(
        family=painter.family.group, model=painter.name, look=words.look, shows=words.shows, pictures=("none",),
        sizes=(), options={},
    )
    return Look(start.tokens, start.sizes, start.tail, origin)


def named(words: Words) -> Words:
    """The VL's words, with the things alone of what is shown."""
    return replace(words, shows=tuple(map(world.things_of, words.shows)))


def _told(words: Words, scene: world.Scene, told: str) -> Words:
    """See :meth:`Ground.lessons`."""
    if told in ("things", "all"):
        return named(words) if told == "things" else words
    shape, color, _ = scene.objects[0]
    shows = "" if told == "nothing" else world.with_article(f"{world.COLORS[color]} {world.SHAPES[shape]}")
    return replace(words, shows=(shows,))
