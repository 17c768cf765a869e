"""The sums that a picture adapter is solved from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..stages.description import slot_targets
from ..states.layout import TokenLayout
from ..states.stacks import split_padding
from ..states.storage import naming, read_tensors, take, write_tensors
from ..states.tensors import without_tiniest
from ..states.vl_states import VLStates
from .familiarity import FamiliarSpan, Sample
from .picture_adapter import PictureAdapter
from .ridge import BUDGET, FOLDS, NormalEquations
from .spec import AdapterSpec

FIT_KIND = "picture adapter fit"


class PictureAdapterFit:
    """An adapter that is still being fitted: pairs go in one by one, none is kept once there are many.

    Memory does not grow with the pairs; parts that were fed elsewhere merge into the same result; a saved part goes on
    where it was (:mod:`ridge`, whose ``budget`` it is, for each layer that the text encoder's family reads).
    """

    def __init__(self, spec: AdapterSpec, *, folds: int = FOLDS, budget: int | None = None) -> None:
        self.spec = spec
        budget = budget or BUDGET * len(spec.text_family.layers)
        self.equations = NormalEquations(spec.inputs, spec.targets, folds=folds, budget=budget)
        self.sample = Sample()
        self.probe: Tensor | None = None  # see :func:`fit_examples`

    @property
    def pairs(self) -> int:
        return self.equations.pairs

    def add(self, features: Tensor, target: Tensor, weight: float = 1.0, fold: int | None = None) -> None:
        """Take in one pair.

        Args:
            features: what :meth:`PictureFeatures.of` gave, ``(inputs,)``.
            target: what :func:`slot_targets` gave, ``(spec.tokens, D)``; with ``own_tail`` if the
                spec's tail is "change", without if it is "state".
            weight: counts as so many pairs: more than 1 for looks that are rare in the fit.
            fold: see :meth:`NormalEquations.add`: the same for all pairs of one picture.

        Raises:
            ValueError: for other shapes, or values that are not finite.
        """
        expected = (self.spec.tokens, self.spec.text_width)
        if tuple(target.shape) != expected:
            raise ValueError(f"target: expected shape {expected} for the adapter's slots, got {tuple(target.shape)}.")
        features, target = without_tiniest(features), without_tiniest(target)
        self.equations.add(features, target.flatten(), weight, fold)
        if weight > 0:
            self.sample.add(features[: self.spec.familiar])

    def add_pair(
        self, seen: VLStates, described: Tensor, layouts: Sequence[TokenLayout], own: Tensor, weight: float = 1.0,
        fold: int | None = None,
    ) -> None:
        """Take in one picture and its description, as the encoders gave them.

        Args:
            seen: the VL's states of picture and prompt.
            described: text-encoder states ``(L, D)`` of the last text of :func:`describe_prompt`, padding
                and all; ``layouts`` of all its texts.
            own: text-encoder states of the prompt alone, the first of its texts; only its template's tail is used.

        Raises:
            ValueError: if an encoder is not the spec's; else see :func:`slot_targets`.
        """
        self.spec.check_seen(seen)
        self.spec.check_text(described, layouts[-1])
        tail = self.spec.text_family.tail_tokens
        words, whole, _ = split_padding(described, layouts[-1])
        assert whole is not None, "a layout that is given comes back"
        own, _, _ = split_padding(own.reshape(-1, own.shape[-1]), layouts[0])
        own_tail = own[-tail:] if self.spec.tail == "change" else None
        target = slot_targets(words, [*layouts[:-1], whole], self.spec.slots, own_tail, tail)
        self.add(self.spec.features.of(seen), target, weight, fold)

    def merge(self, other: PictureAdapterFit) -> None:
        """Take in all pairs of another fit of the same spec.

        Raises:
            ValueError: if the spec is another.
        """
        if other.spec != self.spec:
            raise ValueError(f"Expected a fit of the same encoders, features and slots, {self.spec}, got {other.spec}.")
        self.equations.merge(other.equations)
        self.sample.merge(other.sample)

    def solve(
        self, penalty: float | Literal["auto"] = "auto", rank: int | Literal["auto"] | None = None, *,
        device: str | torch.device = "cpu", progress: Callable[[], None] = lambda: None,
    ) -> PictureAdapter:
        """The adapter, its report with held-out R² over all and per slot. See :meth:`NormalEquations.solve`."""
        found = self.equations.solve(penalty, rank, groups=self.spec.groups(), device=device, progress=progress)
        return PictureAdapter(self.spec, found, FamiliarSpan.of(self.sample.rows()))

    def save(self, path: str | os.PathLike) -> Path:
        """Write all it knows to a safetensors file, to be resumed or merged."""
        tensors, header = self.equations.tensors()
        if len(self.sample):
            tensors["sample"] = self.sample.rows()
        if self.probe is not None:
            tensors["probe"] = self.probe
        return write_tensors(path, FIT_KIND, tensors, {"equations": header, "spec": self.spec.header()})

    @classmethod
    def load(cls, path: str | os.PathLike) -> PictureAdapterFit:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_tensors`; also for a garbled file.
        """
        tensors, header = read_tensors(path, FIT_KIND)
        with naming(path):
            spec = AdapterSpec.from_header(header["spec"])
            made = cls(spec, folds=2)
            made.equations = NormalEquations.from_tensors(tensors, header["equations"])
            if (made.equations.inputs, made.equations.targets) != (spec.inputs, spec.targets):
                raise ValueError(f"expected sums of {spec.inputs} inputs and {spec.targets} targets, got others.")
            made.sample = Sample.of(take(tensors, "sample", path, 2)) if "sample" in tensors else Sample()
            made.probe = take(tensors, "probe", path, 1) if "probe" in tensors else None
        return made
