"""Stage ``adapter``: the miniature's picture adapter, fitted on pictures of the world and words for their looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vl_core.adapters.features import PictureFeatures
from vl_core.adapters.fit import PictureAdapterFit
from vl_core.adapters.picture_adapter import PictureAdapter
from vl_core.adapters.spec import AdapterSpec
from vl_core.stages.description import Slot, describe_prompt, slot_targets
from vl_core.states.layout import TAIL_TOKENS
from vl_core.zimage.pipeline import prompt_layout

from .. import world
from ..train import assemble
from ..train.training import Options, begin, log, measured_with, write_json
from .chain import Chain, answers, as_image

ADAPTER = "adapter.safetensors"
SLOTS = tuple(Slot(name, 4) for name in world.LOOK)
FEATURES = PictureFeatures("grid2")
PAIRS = 1500
RANK = 64  # keeps the file under 2 MB, all models under 40
SEED = 77_000  # far from the bench's pairs
ALL_SEEN = world.HoldOut()


def run(options: Options, pairs: int | None = None, hold_out: world.HoldOut = ALL_SEEN) -> PictureAdapter:
    """Fit on ``pairs`` and write the adapter beside the models, or into the run's folder if looks are held out."""
    device = begin(options)
    chain = Chain.load(assemble.models_folder(options), device)
    examples = Examples.draw(chain, pairs or options.size(PAIRS, 24), SEED + options.seed, hold_out)
    spec = spec_of(chain)
    adapter = fit(spec, examples.features(chain, spec.features), examples.targets(chain, spec), rank=RANK)
    folder = chain.folder if hold_out == ALL_SEEN else options.out
    adapter.save(folder / ADAPTER)
    report = adapter.report
    figures = {"pairs": report.pairs, "penalty": report.penalty, "rank": report.rank, "r2": report.r2, **report.r2_by}
    log(options, "adapter", **figures)
    write_json(folder / "adapter.json", {"measured": measured_with("adapter", device), **figures})
    return adapter


def spec_of(
    chain: Chain, features: PictureFeatures = FEATURES, slots: Sequence[Slot] = SLOTS, **options: Any
) -> AdapterSpec:
    """What an adapter between the chain's two encoders maps."""
    width = chain.pipeline.text_encoder.config.hidden_size
    blocks = chain.encoder.num_layers
    return AdapterSpec(
        features, tuple(slots), chain.encoder.width, blocks, width, vl_model=chain.encoder.name, text_model="miniature",
        **options,
    )


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures of the world, prompts that ask for something else, and words for the pictures' looks by slot."""

    images: list[Tensor]
    prompts: list[str]
    texts: list[dict[str, str]]

    @classmethod
    def draw(
        cls, chain: Chain, count: int, seed: int, hold_out: world.HoldOut = ALL_SEEN, *, described: bool = False,
        testing: bool = False,
    ) -> Examples:
        """From the training part of the world, or from what is held out of it.

        ``described``: the VL's words for the looks instead of the truth.
        """
        pairs = world.conflict_pairs(count, seed, hold_out=hold_out, testing=testing)
        pictures, _ = world.render(
            pairs.references.to(chain.device), torch.Generator(chain.device).manual_seed(seed)
        )
        texts = [dict(zip(world.LOOK, world.look_phrases(scene), strict=True)) for scene in pairs.references.records()]
        if described:
            said = answers(chain, pictures, world.DESCRIBE_LOOK[1])
            texts = [slots_of(text) or truth for text, truth in zip(said, texts, strict=True)]
        return cls(as_image(pictures), list(pairs.prompts), texts)

    def features(self, chain: Chain, features: PictureFeatures, beside: str | None = None) -> list[Tensor]:
        """Inputs of the map, one per picture, each read beside its own prompt or all beside one."""
        prompts = self.prompts if beside is None else [beside] * len(self.images)
        return [features.of(seen) for seen in chain.look_many(self.images, prompts, layers=features.layers)]

    def targets(self, chain: Chain, spec: AdapterSpec) -> list[Tensor]:
        """Outputs of the map, one per picture."""
        growing = [
            describe_prompt(prompt, texts, spec.slots) for prompt, texts in zip(self.prompts, self.texts, strict=True)
        ]
        own = chain.words_many([texts[0] for texts in growing])
        described = chain.words_many([texts[-1] for texts in growing])
        found = []
        for texts, (before, _), (states, _) in zip(growing, own, described, strict=True):
            layouts = [prompt_layout(chain.pipeline.tokenizer, text, "miniature") for text in texts]
            tail = before[-TAIL_TOKENS:] if spec.tail == "change" else None
            found.append(slot_targets(states, layouts, spec.slots, tail))
        return found


def slots_of(answer: str) -> dict[str, str] | None:
    """The VL's "striped style, red background, warm colors" as phrases by slot; None if a part is missing."""
    words = answer.replace(",", " ").split()
    known = dict(zip(world.LOOK, (world.COLORS, world.STYLES, world.MOODS), strict=True))
    found = {name: [word for word in words if word in those] for name, those in known.items()}
    if not all(found.values()):
        return None
    ground, style, mood = (found[name][0] for name in world.LOOK)
    return {
        "background": f"on {world.with_article(ground)} background", "style": f"in {style} style",
        "mood": f"with {mood} colors",
    }


def fit(
    spec: AdapterSpec, features: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[float] | None = None,
    **options: Any,
) -> PictureAdapter:
    """One solve; ``options`` go to :meth:`vl_core.adapter.PictureAdapterFit.solve`."""
    fitting = PictureAdapterFit(spec)
    for index, (x, t) in enumerate(zip(features, targets, strict=True)):
        fitting.add(x, t, 1.0 if weights is None else weights[index], index)
    return fitting.solve(**options)


def load(folder: Path) -> PictureAdapter:
    """The adapter that :func:`run` wrote."""
    return PictureAdapter.load(folder / ADAPTER)
