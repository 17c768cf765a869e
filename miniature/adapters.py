"""Stage ``adapter``: the miniature's picture adapter, fitted on pictures of the world and words for their looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vl_core.headless.zimage import prompt_layout
from vl_core.picture_adapter import PictureAdapter, PictureAdapterFit, PictureFeatures, Slot, description_target

from . import assemble, world
from .chain import Chain, answers, as_image
from .training import Options, begin, log, measured_with, write_json

ADAPTER = "adapter.safetensors"
SLOTS = tuple(Slot(name) for name in world.LOOK)
FEATURES = PictureFeatures()
PAIRS = 1500
SEED = 77_000  # far from the bench's pairs
ALL_SEEN = world.HoldOut()


def run(options: Options, pairs: int | None = None, hold_out: world.HoldOut = ALL_SEEN) -> PictureAdapter:
    """Fit on ``pairs`` and write the adapter beside the models, or into the run's folder if looks are held out."""
    device = begin(options)
    chain = Chain.load(assemble.models_folder(options), device)
    examples = Examples.draw(chain, pairs or options.size(PAIRS, 24), SEED + options.seed, hold_out)
    adapter = fit(examples.features(chain, FEATURES), examples.targets(chain, SLOTS), FEATURES, SLOTS, rank="auto")
    folder = chain.folder if hold_out == ALL_SEEN else options.out
    adapter.save(folder / ADAPTER)
    report = adapter.report
    figures = {"pairs": report.pairs, "penalty": report.penalty, "rank": report.rank, "r2": report.r2, **report.r2_by}
    log(options, "adapter", **figures)
    write_json(folder / "adapter.json", {"measured": measured_with("adapter", device), **figures})
    return adapter


class Examples:
    """Pictures of the world, prompts that ask for something else, and words for the pictures' looks by slot."""

    def __init__(self, images: Sequence[Tensor], prompts: Sequence[str], texts: Sequence[dict[str, str]]) -> None:
        self.images, self.prompts, self.texts = list(images), list(prompts), list(texts)

    @classmethod
    def draw(
        cls, chain: Chain, count: int, seed: int, hold_out: world.HoldOut = ALL_SEEN, *, described: bool = False
    ) -> Examples:
        """From the training part of the world; ``described``: the VL's words for the looks instead of the truth."""
        pairs = world.conflict_pairs(count, seed, hold_out=hold_out, testing=False)
        return cls.of(chain, pairs, seed, described=described)

    @classmethod
    def of(cls, chain: Chain, pairs: world.Pairs, seed: int, *, described: bool = False) -> Examples:
        references = pairs.references.to(chain.device)
        pictures, _ = world.render(references, torch.Generator(chain.device).manual_seed(seed))
        texts = [dict(zip(world.LOOK, world.look_phrases(scene), strict=True)) for scene in pairs.references.records()]
        if described:
            said = answers(chain, pictures, world.DESCRIBE_LOOK[1])
            texts = [slots_of(text) or dict.fromkeys(world.LOOK, text) for text in said]
        return cls(as_image(pictures), pairs.prompts, texts)

    def features(self, chain: Chain, features: PictureFeatures) -> list[Tensor]:
        """Inputs of the map, one per picture."""
        looks = zip(self.images, self.prompts, strict=True)
        return [features.of(chain.look(image, prompt, layers=features.layers)).cpu() for image, prompt in looks]

    def targets(self, chain: Chain, slots: Sequence[Slot]) -> list[Tensor]:
        """Outputs of the map, one per picture."""

        def tokenize(prompt: str) -> Any:
            return prompt_layout(chain.pipeline.tokenizer, prompt, "miniature")

        return [
            description_target(lambda text: chain.words(text)[0], tokenize, prompt, texts, slots).cpu()
            for prompt, texts in zip(self.prompts, self.texts, strict=True)
        ]


def slots_of(answer: str) -> dict[str, str] | None:
    """The VL's "striped style, red background, warm colors" as phrases by slot; None if a part is missing."""
    words = answer.replace(",", " ").split()
    found = {name: [word for word in words if word in known] for name, known in (
        ("background", world.COLORS), ("style", world.STYLES), ("mood", world.MOODS),
    )}
    if not all(found.values()):
        return None
    ground, style, mood = (found[name][0] for name in world.LOOK)
    return {"background": f"on {world.with_article(ground)} background", "style": f"in {style} style",
            "mood": f"with {mood} colors"}


def fit(
    features: Sequence[Tensor], targets: Sequence[Tensor], what: PictureFeatures, slots: Sequence[Slot],
    weights: Sequence[float] | None = None, **options: Any,
) -> PictureAdapter:
    """One solve; ``options`` go to :meth:`vl_core.PictureAdapterFit.solve`."""
    fitting = PictureAdapterFit(slots, what, "qwen3-vl-mini", "z-image-mini")
    for index, (x, t) in enumerate(zip(features, targets, strict=True)):
        fitting.add_pair(x, t, 1.0 if weights is None else weights[index], index)
    return fitting.solve(**options)


def load(folder: Path) -> PictureAdapter:
    """The adapter that :func:`run` wrote."""
    return PictureAdapter.load(folder / ADAPTER)
