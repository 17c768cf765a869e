"""What the bench measures: ways to let a reference act, and what they share.

A row that :func:`vl_core.blend` or a mode of the simple node can say is one line in :data:`~.rows.METHODS`; another way
is a function in :data:`WAYS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vl_core import (
    PictureAdapter,
    ReferenceStatistics,
    TokenLayout,
    VLStates,
    alpha_curve,
    alpha_on_words,
    blend,
    combine,
    condition,
    image_delta,
    load_recipes,
    mask_outlier_dimensions,
    mix_layers,
    normalize,
    positions_of_words,
    select_tokens,
)
from vl_core.adapters.space_adapter import SpaceAdapter, SpaceFit
from vl_core.reports.controls import noisy
from vl_core.stages.combine import needs_muted
from vl_core.stages.description import bring_in
from vl_core.states.layout import TAIL_TOKENS
from vl_core.steering.desk import NOTHING
from vl_core.steering.references import Reference
from vl_core.steering.settings import Settings
from vl_core.steering.steer import steer
from vl_core.steering.way import Given, find_way

from .. import world
from . import adapters
from .chain import LAYERS, Chain, answers
from .host import BenchHost

SPACE_CAPTIONS = 800  # that a space adapter is fitted on


@dataclass(frozen=True, eq=False)
class Sight:
    """What a method may know of a reference.

    Attributes:
        number: of the reference among all.
        look: words for its background, style and mood; ``said``: the VL's own answer to that request.
        is_noise: noise takes the place of what is seen of it.
    """

    number: int
    look: str
    said: str
    is_noise: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt and its references: the right one, and another pair's."""

    number: int
    prompt: str
    states: Tensor
    layout: TokenLayout
    right: Sight
    wrong: Sight


@dataclass(frozen=True, eq=False)
class Bench:
    """What all methods share; ``images`` are the references as ComfyUI has pictures."""

    chain: Chain
    reference: ReferenceStatistics
    pairs: world.Pairs
    images: Sequence[Tensor]
    cases: tuple[Case, ...] = ()
    adapter: PictureAdapter | None = None
    kept: dict[tuple, list[VLStates]] = field(default_factory=dict)
    spaces: dict[tuple[int, int], SpaceAdapter] = field(default_factory=dict)
    answered: dict[str, list[str]] = field(default_factory=dict)

    def with_cases(self, looks: Sequence[str], said: Sequence[str]) -> Bench:
        """A case for every pair, from words for each reference's look and what the VL says of it."""
        sights = [Sight(number, *words) for number, words in enumerate(zip(looks, said, strict=True))]
        texts = zip(self.pairs.prompts, self.chain.words_many(self.pairs.prompts), strict=True)
        return replace(self, cases=tuple(
            Case(number, prompt, *words, sights[number], sights[(number + 1) % len(sights)])
            for number, (prompt, words) in enumerate(texts)
        ))

    def said(self, request: str) -> list[str]:
        """The VL's own answers about every reference, written once."""
        if request not in self.answered:
            pictures = torch.stack(list(self.images)).permute(0, 3, 1, 2) * 2 - 1
            self.answered[request] = answers(self.chain, pictures, request)
        return self.answered[request]

    def readings(
        self, shift: int, mute: bool = False, beside: str | None = None, described: bool = False
    ) -> list[VLStates]:
        """Every prompt with the picture ``shift`` places on, all read once.

        ``beside``: one prompt in place of all of them. ``described``: what the VL says of the picture's look is behind
        each prompt, and layer −2 is all that is captured.
        """
        shift = 0 if mute else shift  # a muted picture is the same whatever it shows
        key = shift, mute, beside, described
        if key not in self.kept:
            order = [(index + shift) % len(self.images) for index in range(len(self.images))]
            prompts = self.pairs.prompts if beside is None else [beside] * len(order)
            if described:
                told = (self.cases[which].right.said for which in order)
                prompts = [f"{prompt}, {said}" for prompt, said in zip(prompts, told, strict=True)]
            images = [self.images[which] for which in order]
            self.kept[key] = self.chain.look_many(images, prompts, mute=mute, layers=(-2,) if described else LAYERS)
        return self.kept[key]

    def reading(self, case: Case, sight: Sight, mute: bool = False, **options: Any) -> VLStates:
        """One of :meth:`readings`, with a control's noise where the sight is one's."""
        seen = self.readings((sight.number - case.number) % len(self.cases), mute, **options)[case.number]
        return noisy(seen, case.number) if sight.is_noise and not mute else seen

    def adapted(self, case: Case, sight: Sight) -> VLStates:
        """The reading that the adapter wants: beside the prompt, or beside its own."""
        return self.reading(case, sight, beside=None if self.adapter.spec.own_prompt else self.adapter.spec.prompt)

    def space(self, layer: int, target: int) -> SpaceAdapter:
        """The ridge from the text encoder's states of one layer to those of another, on words alone; fitted once."""
        if (layer, target) not in self.spaces:
            texts = captions(SPACE_CAPTIONS, adapters.SEED)  # the bench's pairs are drawn from other seeds
            read, wanted = ([states for states, _ in self.chain.words_many(texts, at)] for at in (layer, target))
            fit = SpaceFit(read[0].shape[-1], wanted[0].shape[-1])
            for x, t in zip(read, wanted, strict=True):
                fit.add(x, t)
            self.spaces[layer, target] = fit.solve("ridge", layers=(layer, target))
        return self.spaces[layer, target]

    def at(self, seen: VLStates, layer: int, mapped_to: int | None = None) -> tuple[Tensor, TokenLayout]:
        """A layer's states ``(L, D)`` and layout; ``mapped_to`` another layer by :meth:`space`."""
        states, layout = seen.at(layer)
        return states if mapped_to is None else self.space(layer, mapped_to).apply(states, layout=layout), layout


def captions(count: int, seed: int) -> list[str]:
    """Captions of scenes in the wordings that the text encoder learned from."""
    drawn, scenes = random.Random(seed), world.sample_scenes(count, torch.Generator().manual_seed(seed))
    return [world.caption(scene, drawn)[0] for scene in scenes.records()]


# ------------------------------------------------------------------------------------------------------------- ways

# What would be said of a reference by somebody who knows, by the take it is words for.
TRUE_WORDS: dict[str, Callable[[world.Scene], str]] = {
    "the look": lambda scene: ", ".join(world.look_phrases(scene)),
    "style": lambda scene: f"{world.STYLES[scene.style]} style",
    "colours": lambda scene: f"{world.COLORS[scene.background]} background",
    "light and mood": lambda scene: f"{world.MOODS[scene.mood]} colors",
    "composition": lambda scene: f"at the {world.POSITIONS[scene.position]}",
    "everything": world.canonical_caption,
}

Way = Callable[..., Tensor]  # (bench, case, sight, layer, **setting) -> states for the DiT


def by_words(bench: Bench, case: Case, sight: Sight, layer: None) -> Tensor:
    """The look in words, appended to the prompt."""
    return bench.chain.words(f"{case.prompt}, {sight.look}")[0].cpu()


def by_description(bench: Bench, case: Case, sight: Sight, layer: int | None, *, alpha: float = 0.0) -> Tensor:
    """What the VL says of the look, appended to the prompt; alpha mixes in its states of these very tokens."""
    words, layout = bench.chain.words(f"{case.prompt}, {sight.said}")
    words = words.cpu()
    if alpha == 0:
        return words
    states, seen_layout = bench.reading(case, sight, described=True).at(layer)
    return blend(words, states, alpha, text_layout=layout, vl_layout=seen_layout)[0]


def by_words_at(bench: Bench, case: Case, sight: Sight, layer: None, *, strength: float) -> Tensor:
    """The look in true words at a strength that the engine does not take, such as one below 0."""
    whole, layout = bench.chain.words(f"{case.prompt}, {sight.look}")
    return bring_in(case.states, case.layout, whole.cpu(), layout, strength)[0]


def by_adapter(bench: Bench, case: Case, sight: Sight, layer: None, *, strength: float, **slots: float) -> Tensor:
    """The picture adapter's description states, appended; with ``slots`` only those."""
    return bench.adapter.apply(case.states, case.layout, bench.adapted(case, sight), strength, slots=slots or None)[0]


def by_engine(
    bench: Bench, case: Case, sight: Sight, layer: int | None, *, words: str = "", **settings: Any
) -> Tensor:
    """What every surface does: :func:`vl_core.steering.steer.steer`, with settings by their names.

    ``words`` names true words about the reference that are given in place of the VL's own: a key of
    :data:`TRUE_WORDS`.
    """
    chosen = Settings.from_dict({**settings, **({} if layer is None else {"layer": layer})})
    scene = bench.pairs.references.records()[sight.number]
    given = Given(adapter=bench.adapter, words=TRUE_WORDS[words](scene) if words else None)
    return _steered(bench, case, sight, chosen, given)


def _steered(bench: Bench, case: Case, sight: Sight, settings: Settings, given: Given = NOTHING) -> Tensor:
    references = [Reference(bench.images[sight.number])]
    return steer(BenchHost(bench, case, sight), case.prompt, references, settings, given).entries[0].states


def by_recipe(
    bench: Bench, case: Case, sight: Sight, layer: int, *, mode: str, strength: float, **timing: float
) -> Tensor:
    """A way of the engine by the name it had; the timing is the row's ``act``."""
    return by_engine(bench, case, sight, layer, mode=mode, strength=strength)


def by_blend(
    bench: Bench, case: Case, sight: Sight, layer: int, *, alpha: float, alpha_end: float | None = None,
    tokens: str = "all", scale: str = "none", mask: str = "none", sinks: str = "exclude",
    mapped_to: int | None = None, **options: Any,
) -> Tensor:
    """Select, mask outliers, normalise, blend: the open pipeline of nodes. With ``alpha_end`` a line from first token
    to last."""
    states, layout = select_tokens(*bench.at(bench.reading(case, sight), layer, mapped_to), tokens)
    if mask != "none":
        states, _ = mask_outlier_dimensions(states, mode=mask, reference=bench.reference, sinks=sinks, layout=layout)
    states, _ = normalize(states, scale, bench.reference, sinks=sinks, layout=layout)
    amount = alpha if alpha_end is None else alpha_curve(len(case.states), alpha, alpha_end)
    return blend(
        case.states, states, amount, text_layout=case.layout, vl_layout=layout, sinks=sinks, **options
    )[0]


def by_delta(
    bench: Bench, case: Case, sight: Sight, layer: int, *, weight: float, mapped_to: int | None = None, **options: Any
) -> Tensor:
    """What the picture did to the words, added to the text's states."""
    (plus, layout), (zero, _) = (
        bench.at(bench.reading(case, sight, mute), layer, mapped_to) for mute in (False, True)
    )
    return image_delta(case.states, plus, zero, weight, text_layout=case.layout, vl_layout=layout, **options)[0]


def by_recipe_file(bench: Bench, case: Case, sight: Sight, layer: int, *, recipe: str, strength: float) -> Tensor:
    """A recipe in plain words; when it acts is the row's ``act``."""
    return _steered(bench, case, sight, load_recipes()[0][recipe].at(strength))


def by_layers(bench: Bench, case: Case, sight: Sight, layer: None, *, layers: Sequence[int], alpha: float) -> Tensor:
    """Several layers' mean, blended token by token."""
    states, layout = mix_layers(bench.reading(case, sight), layers, [1.0] * len(layers))
    return blend(case.states, states, alpha, text_layout=case.layout, vl_layout=layout)[0]


def by_chosen_words(
    bench: Bench, case: Case, sight: Sight, layer: int, *, alpha: float, mapped_to: int | None = None
) -> Tensor:
    """Aligned, but the words for the object's colour and shape stay as they are."""
    return _around_the_object(bench, case, sight, layer, alpha, mapped_to)[0]


def by_kept_and_appended(bench: Bench, case: Case, sight: Sight, layer: int, *, alpha: float) -> Tensor:
    """The same, and the picture's own tokens before the template's tail."""
    return _appended(*_around_the_object(bench, case, sight, layer, alpha), bench.reading(case, sight))


def _around_the_object(
    bench: Bench, case: Case, sight: Sight, layer: int, alpha: float, mapped_to: int | None = None
) -> tuple[Tensor, TokenLayout | None]:
    tokenizer, pairs = bench.chain.pipeline.tokenizer, bench.pairs
    thing = f"{world.COLORS[pairs.color[case.number]]} {world.SHAPES[pairs.shape[case.number]]}"
    named = positions_of_words(
        case.layout, [thing], lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    states, layout = bench.at(bench.reading(case, sight), layer, mapped_to)
    per_token = alpha_on_words(case.layout, ~named, alpha)
    mixed, info = blend(case.states, states, per_token, text_layout=case.layout, vl_layout=layout)
    return mixed, info.layout


def by_aligned_and_appended(bench: Bench, case: Case, sight: Sight, layer: int, *, alpha: float) -> Tensor:
    """Aligned, then the picture's own tokens at layer −2 before the template's tail."""
    seen = bench.reading(case, sight)
    states, layout = seen.at(layer)
    mixed, info = blend(case.states, states, alpha, text_layout=case.layout, vl_layout=layout)
    return _appended(mixed, info.layout, seen)


def _appended(states: Tensor, layout: TokenLayout | None, seen: VLStates) -> Tensor:
    """With the picture's own tokens at layer −2 before the template's tail."""
    picture, picture_layout = select_tokens(*seen.at(-2), "image_no_markers")
    return blend(
        states, picture, 1.0, "append", text_layout=layout, vl_layout=picture_layout, append_position="before_tail"
    )[0]


def by_pictures(
    bench: Bench, case: Case, sight: Sight, layer: int, *, combining: str, weights: Sequence[float], mode: str,
    strength: float,
) -> Tensor:
    """The reference and the one after it, combined as the nodes do."""
    after = replace(sight, number=(sight.number + 1) % len(bench.cases))
    pictures = [bench.reading(case, each) for each in (sight, after)]
    mute = needs_muted(combining, weights) or _needs_muted(mode)
    muted = [bench.reading(case, each, mute=True) for each in (sight, after)] if mute else None
    found = combine(pictures, weights, combining, muted=muted)
    return condition(case.states, case.layout, found.seen, layer, mode, strength, muted=found.muted)[0]


def _needs_muted(way: str) -> bool:
    row = find_way(way)
    return row.needs(Settings(way=row.name), Given()).muted


def by_two_adapted(
    bench: Bench, case: Case, sight: Sight, layer: None, *, combining: str, strength: float = 1.0, shift: int = 0
) -> Tensor:
    """The picture adapter on the reference and the one after it; ``shift`` places on, on two others: a null control."""
    first, after = (replace(sight, number=(sight.number + shift + step) % len(bench.cases)) for step in (0, 1))
    beside = None if bench.adapter.spec.own_prompt else bench.adapter.spec.prompt
    pictures = [bench.reading(case, each, beside=beside) for each in (first, after)]
    return bench.adapter.apply(case.states, case.layout, pictures, strength, combine=combining)[0]


def by_average_tail(bench: Bench, case: Case, sight: Sight, layer: None) -> Tensor:
    """Parts of two pictures with the average of their tails, which goes with none of them: what the tail is worth."""
    parts, average = (by_two_adapted(bench, case, sight, layer, combining=how) for how in ("parts", "average"))
    return torch.cat([parts[:-TAIL_TOKENS], average[-TAIL_TOKENS:]])


def by_words_of_both(bench: Bench, case: Case, sight: Sight, layer: None) -> Tensor:
    """What *parts* takes, in true words: the parts in which the reference and the one after it differ, in turn."""
    scenes = bench.pairs.references.records()
    looks = [world.look_phrases(scenes[(sight.number + step) % len(scenes)]) for step in (0, 1)]
    words, turn = [], 0
    for both in zip(*looks, strict=True):
        words.append(both[turn % 2])
        turn += both[0] != both[1]
    return bench.chain.words(", ".join([case.prompt, *words]))[0].cpu()


WAYS: dict[str, Way] = {
    "words": by_words, "words at": by_words_at, "engine": by_engine, "adapter": by_adapter,
    "description": by_description,
    "recipe": by_recipe, "blend": by_blend, "delta": by_delta, "recipe file": by_recipe_file, "layers": by_layers,
    "chosen words": by_chosen_words, "aligned and appended": by_aligned_and_appended,
    "kept and appended": by_kept_and_appended, "pictures": by_pictures, "two adapted": by_two_adapted,
    "average tail": by_average_tail, "words of both": by_words_of_both,
}
