"""The picture adapter: from what Qwen3-VL holds after a picture to the states a description of it would have.

Z-Image's text encoder has states at the tokens of a description appended to the prompt, and at the template tail after
it. A ridge map, fitted on (picture, description) pairs in closed form, predicts both from the VL's states of (picture,
prompt). Applied to a new picture it gives description states that no words were written for, in place before the
template tail. Words and tail are predicted together: Z-Image reads much of the look from the tail. For a family that
reads several layers side by side (:mod:`~.families`) one map predicts all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .blend import aligned_positions, template_tail
from .description import Slot, check_slots, lead_in, slot_targets, spread
from .familiarity import Familiarity, FamiliarSpan, Sample
from .families import (
    ZIMAGE,
    Family,
    by_layer,
    family_of,
    find_family,
    restore_padding,
    split_layers,
    split_padding,
    tail_length,
)
from .layout import TAIL_TOKENS, TokenLayout, TokenRole, concatenate_layouts
from .outliers import as_batch, check_choice, check_embeddings, to_dtype
from .resample import resample_tokens
from .ridge import BUDGET, FOLDS, NormalEquations, RidgeMap, RidgeReport
from .states import VLStates, resolve_layer
from .statistics import ENCODER_LAYER, EPSILON, Sinks, check_sinks, find_sinks
from .storage import read_tensors, write_tensors

TailTarget = Literal["change", "state"]
Neutral = Literal["prompt", "last word", "tail", "mean"]
Combine = Literal["average", "append", "parts"]

MAX_STRENGTH = 3.0
ALIKE = 0.3  # of the squared difference between any two pictures: less, and they agree in a slot
PREDICTED_TOKEN = -1  # id of a token that no word was written for
FILE_KIND, FIT_KIND = "picture adapter", "picture adapter fit"


@dataclass(frozen=True)
class PictureFeatures:
    """What of the VL's states a picture is known by.

    Attributes:
        pool: "mean" of the picture's tokens; "gridN" for their means over N × N fields; "none".
        tail: how many of the template's 5 tokens after the words, which have read picture and prompt. A think block
            behind them is left out: with one or without, the states before it are the same.
        layers: Hugging Face ``hidden_states`` indices from the end; each gives all of the above.
        sinks: "exclude" keeps attention sinks out of the means.
    """

    pool: str = "grid2"
    tail: int = TAIL_TOKENS
    layers: tuple[int, ...] = (ENCODER_LAYER,)
    sinks: Sinks = "exclude"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        side = self.pool.removeprefix("grid")
        known = self.pool in ("none", "mean") or (self.pool != side and side.isdigit() and int(side) > 0)
        if not known:
            raise ValueError(f"pool: expected none, mean or grid1, grid2 …, got {self.pool!r}.")
        if not 0 <= self.tail <= TAIL_TOKENS or not self.layers or not self.vectors:
            raise ValueError(
                f"features: expected at least one layer, and a pool or 1 to {TAIL_TOKENS} tail tokens, got {self}."
            )
        check_sinks(self.sinks)

    @property
    def fields(self) -> int:
        """Vectors that the picture is pooled to, per layer."""
        return {"none": 0, "mean": 1}.get(self.pool) if self.pool in ("none", "mean") else int(self.pool[4:]) ** 2

    @property
    def vectors(self) -> int:
        return (self.fields + self.tail) * len(self.layers)

    def picture_size(self, width: int) -> int:
        """How many leading numbers are the picture's alone: states before the words do not depend on them."""
        return self.fields * len(self.layers) * width

    def of(self, seen: VLStates) -> Tensor:
        """Pooled pictures, then tail tokens, of all layers: float32 ``(vectors · width,)`` on the states' device.

        Several pictures in one sequence are averaged.

        Raises:
            ValueError: if a layer was not captured, there is no picture, a mask has cut it, or the tail is not there.
        """
        layout = seen.layout
        if not layout.grids and self.fields:
            raise ValueError("seen: expected a picture, got words only. Give the encoder a picture.")
        if layout.cut and self.fields > 1:
            raise ValueError(
                f"seen: a mask has cut the picture, so what is where in it is lost, but pool is {self.pool}. Use pool "
                "mean, or no mask."
            )
        length = tail_length(layout)
        if length < TAIL_TOKENS or (layout.roles[-length:] != TokenRole.TEMPLATE).any():
            raise ValueError(
                f"seen: expected a sequence that ends with the template's {TAIL_TOKENS} tail tokens, got "
                f"{layout.describe()}. Give the whole sequence."
            )
        stop = len(layout) - length + TAIL_TOKENS
        pooled, ends = [], []
        for layer in self.layers:
            states = seen.at(layer)[0].float()
            if self.fields:
                pooled.append(self._pooled(states, layout))
            if self.tail:
                ends.append(states[stop - self.tail : stop])
        found = torch.cat([*pooled, *ends]).flatten()
        if not found.isfinite().all():
            raise ValueError("seen: expected finite states, got NaN or infinity; the encoder overflowed.")
        return found

    def _pooled(self, states: Tensor, layout: TokenLayout) -> Tensor:
        """``(fields, D)``: means over fields of each picture, averaged over pictures."""
        side = 1 if self.pool == "mean" else int(self.pool[4:])
        kept = ~find_sinks(states) if self.sinks == "exclude" else torch.ones(len(states), dtype=torch.bool)
        found = []
        for (rows, columns), positions in zip(layout.grids, layout.picture_positions(), strict=True):
            tokens, weight = states[positions.to(states.device)], kept.to(states.device)[positions.to(states.device)]
            if not weight.any():
                weight = torch.ones_like(weight)
            planes = torch.cat([tokens * weight.unsqueeze(1), weight.unsqueeze(1)], 1).T.reshape(1, -1, rows, columns)
            cells = F.adaptive_avg_pool2d(planes, side)[0].flatten(1).T
            whole = cells.mean(0)  # stands in for a field that holds nothing but sinks
            cells = torch.where(cells[:, -1:] > EPSILON, cells, whole)
            found.append(cells[:, :-1] / cells[:, -1:])
        return torch.stack(found).mean(0)


@dataclass(frozen=True)
class AdapterSpec:
    """What an adapter was fitted for; two that differ in any of it cannot be merged.

    Attributes:
        features, slots: input and output.
        vl_width, vl_blocks, vl_model: of the VL encoder. ``text_width``, ``text_layer``, ``text_model``: of Z-Image's;
            of a family that reads several layers, the width of all together, and no layer.
        tail: "change": what the description changes at the prompt's own tail is predicted; "state": the tail itself.
        own_prompt: the VL reads the user's prompt with the picture; else always ``prompt``.
        family: the group of :mod:`~.families` that the text encoder is of; the VL reads in its template.
    """

    features: PictureFeatures
    slots: tuple[Slot, ...]
    vl_width: int
    vl_blocks: int
    text_width: int
    text_layer: int | None = ENCODER_LAYER
    vl_model: str = ""
    text_model: str = ""
    tail: TailTarget = "change"
    own_prompt: bool = True
    prompt: str = ""
    family: str = ZIMAGE.group

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", check_slots(self.slots))
        family = self.text_family
        if self.text_width != family.width:
            raise ValueError(
                f"text_width: expected {len(family.layers)} equal parts ({family.describe_layers()} of {self.family}), "
                f"got {self.text_width}."
            )
        if family.stacked:
            object.__setattr__(self, "text_layer", None)
        check_choice("tail", self.tail, TailTarget)
        for layer in self.features.layers:
            resolve_layer(layer, self.vl_blocks)

    @property
    def inputs(self) -> int:
        return self.features.vectors * self.vl_width

    @property
    def words(self) -> int:
        """Tokens of all slots."""
        return sum(slot.tokens for slot in self.slots)

    @property
    def text_family(self) -> Family:
        """Whose text states are predicted."""
        layers = len(family_of(self.family, self.text_width).layers)  # as many for every size of encoder
        return family_of(self.family, self.text_width // layers)

    @property
    def tokens(self) -> int:
        """Tokens that are predicted: of all slots, and the template's tail after them."""
        return self.words + self.text_family.tail_tokens

    @property
    def targets(self) -> int:
        return self.tokens * self.text_width

    def groups(self) -> dict[str, slice]:
        """Where each slot is among the targets, and the tail."""
        found, start = {}, 0
        parts = [(slot.name, slot.tokens) for slot in self.slots]
        for name, tokens in (*parts, ("tail", self.text_family.tail_tokens)):
            found[name] = slice(start * self.text_width, (start + tokens) * self.text_width)
            start += tokens
        return found

    def check_seen(self, seen: VLStates) -> None:
        """Raise ValueError unless the states come from an encoder like the one of the fit."""
        got, expected = (seen.states.shape[-1], seen.num_layers), (self.vl_width, self.vl_blocks)
        if got != expected:
            raise ValueError(
                f"seen: the adapter was fitted on {self.vl_model or 'an encoder'} of width {expected[0]} with "
                f"{expected[1]} blocks, got {seen.model or 'one'} of width {got[0]} with {got[1]}. Load the encoder of "
                "the fit, or fit an adapter for this one."
            )

    def check_text(self, states: Tensor, layout: TokenLayout | None) -> None:
        """Raise ValueError unless the text states are what the adapter predicts."""
        family, got = self.text_family, find_family(states.shape[-1], layout)
        predicts = f"the adapter predicts {family.describe_layers()} of {self.text_model or 'an encoder'}"
        mend = "Use the text encoder of the fit, or fit an adapter for this one."
        if states.shape[-1] != self.text_width:
            of = f" ({got.name}, {got.describe_layers()})" if got else ""
            raise ValueError(
                f"text: {predicts} for {self.family}, width {self.text_width}, got width {states.shape[-1]}{of}. {mend}"
            )
        if layout is None:
            return
        if layout.layer not in (None, self.text_layer):
            raise ValueError(f"text: {predicts} for {self.family}, got layer {layout.layer}. {mend}")
        self.tail_of(layout)

    def tail_of(self, layout: TokenLayout) -> tuple[int, int]:
        """Where a text's template tail begins and ends; ValueError for a text of another template."""
        family = self.text_family
        try:
            return template_tail(layout, (family.tail_tokens,))
        except ValueError as error:
            raise ValueError(
                f"text: expected a whole text of {self.family}, which ends with {family.tail_tokens} template tokens, "
                f"got {layout.describe()}. Use the text encoder of the fit, or fit an adapter for this one."
            ) from error

    def header(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> AdapterSpec:
        """KeyError or TypeError if it is garbled."""
        parts = dict(header)
        features = PictureFeatures(**parts.pop("features"))
        return cls(features, tuple(Slot(**slot) for slot in parts.pop("slots")), **parts)


class PictureAdapterFit:
    """An adapter that is still being fitted: pairs go in one by one, none is kept once there are many.

    Memory does not grow with the pairs; parts that were fed elsewhere merge into the same result; a saved part goes on
    where it was (:mod:`~.ridge`, whose ``budget`` it is, for each layer that the text encoder's family reads).
    """

    def __init__(self, spec: AdapterSpec, *, folds: int = FOLDS, budget: int | None = None) -> None:
        self.spec = spec
        budget = budget or BUDGET * len(spec.text_family.layers)
        self.equations = NormalEquations(spec.inputs, spec.targets, folds=folds, budget=budget)
        self.sample = Sample()

    @property
    def pairs(self) -> int:
        return self.equations.pairs

    def add(self, features: Tensor, target: Tensor, weight: float = 1.0, fold: int | None = None) -> None:
        """Take in one pair.

        Args:
            features: what :meth:`PictureFeatures.of` gave, ``(inputs,)``.
            target: what :func:`~.description.slot_targets` gave, ``(spec.tokens, D)``; with ``own_tail`` if the
                spec's tail is "change", without if it is "state".
            weight: counts as so many pairs: more than 1 for looks that are rare in the fit.
            fold: see :meth:`~.ridge.NormalEquations.add`: the same for all pairs of one picture.

        Raises:
            ValueError: for other shapes, or values that are not finite.
        """
        expected = (self.spec.tokens, self.spec.text_width)
        if tuple(target.shape) != expected:
            raise ValueError(f"target: expected shape {expected} for the adapter's slots, got {tuple(target.shape)}.")
        self.equations.add(features, target.flatten(), weight, fold)
        if weight > 0:
            part = self.spec.features.picture_size(self.spec.vl_width)
            self.sample.add(features[:part] if part else features)

    def add_pair(
        self, seen: VLStates, described: Tensor, layouts: Sequence[TokenLayout], own: Tensor, weight: float = 1.0,
        fold: int | None = None,
    ) -> None:
        """Take in one picture and its description, as the encoders gave them.

        Args:
            seen: the VL's states of picture and prompt.
            described: text-encoder states ``(L, D)`` of the last text of :func:`~.description.describe_prompt`, padding
                and all; ``layouts`` of all its texts.
            own: text-encoder states of the prompt alone, the first of its texts; only its template's tail is used.

        Raises:
            ValueError: if an encoder is not the spec's; else see :func:`~.description.slot_targets`.
        """
        self.spec.check_seen(seen)
        self.spec.check_text(described, layouts[-1])
        tail = self.spec.text_family.tail_tokens
        words, whole, _ = split_padding(described, layouts[-1])
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
        """The adapter, its report with held-out R² over all and per slot. See :meth:`~.ridge.NormalEquations.solve`."""
        found = self.equations.solve(penalty, rank, groups=self.spec.groups(), device=device, progress=progress)
        return PictureAdapter(self.spec, found, FamiliarSpan.of(self.sample.rows()))

    def save(self, path: str | os.PathLike) -> Path:
        """Write all it knows to a safetensors file, to be resumed or merged."""
        tensors, header = self.equations.tensors()
        if len(self.sample):
            tensors["sample"] = self.sample.rows()
        return write_tensors(path, FIT_KIND, tensors, {"equations": header, "spec": self.spec.header()})

    @classmethod
    def load(cls, path: str | os.PathLike) -> PictureAdapterFit:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: see :func:`~.storage.read_tensors`; also for a garbled file.
        """
        tensors, header = read_tensors(path, FIT_KIND)
        try:
            made = cls.__new__(cls)
            made.spec = AdapterSpec.from_header(header["spec"])
            made.equations = NormalEquations.from_tensors(tensors, header["equations"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{Path(path).name}: the header lacks or garbles {error}.") from error
        made.sample = Sample.of(tensors["sample"]) if "sample" in tensors else Sample()
        return made


@dataclass(frozen=True)
class AdapterInfo:
    """What was added.

    Attributes:
        strength: as asked. ``slots``: name -> strength of each slot that was appended.
        tokens: how many were appended, and ``total`` tokens of the result.
        familiarity: per picture, None where the fit was too small to tell.
    """

    strength: float
    slots: dict[str, float]
    tokens: int
    total: int
    familiarity: tuple[Familiarity | None, ...]
    notes: tuple[str, ...] = ()

    @property
    def familiar(self) -> bool:
        """No picture is known to be outside of what the adapter was fitted on."""
        return all(each is None or each.familiar for each in self.familiarity)

    def describe(self) -> str:
        """A few plain lines."""
        if not self.tokens:
            return "\n".join(["picture adapter: strength 0, words only.", *self.notes])
        slots = ", ".join(name if value == self.strength else f"{name} {value:g}" for name, value in self.slots.items())
        lines = [
            f"picture adapter: strength {self.strength:g}, {self.tokens} description tokens before the template tail "
            f"({slots}), {self.total} in all."
        ]
        return "\n".join([*lines, *(each.describe() for each in self.familiarity if each), *self.notes])


@dataclass(frozen=True, eq=False)
class PictureAdapter:
    """A fitted adapter.

    Attributes:
        map: features -> flattened targets. ``span``: what pictures it knows, None if the fit had fewer than 10.
    """

    spec: AdapterSpec
    map: RidgeMap
    span: FamiliarSpan | None

    @property
    def report(self) -> RidgeReport:
        return self.map.report

    def predict(self, features: Tensor) -> Tensor:
        """States ``(spec.tokens, D)`` of features ``(inputs,)``, or ``(n, …)`` of several; float32."""
        return self.map(features).unflatten(-1, (self.spec.tokens, self.spec.text_width))

    def familiarity(self, features: Tensor) -> Familiarity | None:
        """How far a picture is from those of the fit; None if the fit was too small to tell."""
        part = self.spec.features.picture_size(self.spec.vl_width)
        return self.span and self.span(features[:part] if part else features)

    def apply(
        self,
        text: Tensor,
        layout: TokenLayout | None,
        seen: VLStates | Sequence[VLStates],
        strength: float = 1.0,
        *,
        weights: Sequence[float] | None = None,
        slots: Sequence[str] | Mapping[str, float] | None = None,
        neutral: Neutral | Tensor = "last word",
        combine: Combine = "average",
        words: int | None = None,
    ) -> tuple[Tensor, TokenLayout | None, AdapterInfo]:
        """Append the predicted description to a prompt's states, before the template tail, and bring the tail along.

        Every description token goes from a neutral one to the predicted, n + s'·(p − n), n scaled to p's RMS; the tail
        goes from the prompt's own to the predicted. s' is the strength, spread so that small ones show
        (:func:`~.description.spread`); negative strengths push away. Where a family reads several layers side by side,
        n is scaled in each for itself. Padding stays as it is, but for the tokens whose places are taken
        (:func:`~.families.restore_padding`).

        Args:
            text: Z-Image's states of the prompt, ``(L, D)`` or ``(B, L, D)``, any float dtype; or another family's.
            layout: of the text; None if unknown, then its last tokens are taken for the template's tail.
            seen: the VL's states of picture and prompt; several for several pictures.
            strength: -3 to 3. 0 returns the text itself; 1 is the picture's own; negative pushes away.
            weights: of several pictures, 0 or more, in any scale; equal if None. A weight of 0 leaves one out.
            slots: only these slots, or name -> factor on the strength; a slot of factor 0 is left out. The tail takes
                the mean factor of all slots.
            neutral: what a description token says at strength 0: the "prompt" (its words, resampled), its "last
                word", its "tail", the "mean" description of the fit; or states ``(slot tokens, D)``.
            combine: several pictures' descriptions are averaged ("average"), appended one after the other ("append"),
                or each slot is one picture's, in turn ("parts"): with two, the first's style, the second's palette …;
                a slot in which they agree takes no turn.
            words: how many tokens are no padding, where the layout is unknown and the family pads.

        Returns:
            the states in the text's dtype, their layout, and what was done.

        Raises:
            ValueError: for encoders, layers or widths other than the fit's, another prompt than the text's, unknown
                slots, a strength outside -3 to 3, weights that are negative or all zero.
        """
        check_choice("combine", combine, Combine)
        if not -MAX_STRENGTH <= strength <= MAX_STRENGTH:
            raise ValueError(f"strength: expected -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}, got {strength}.")
        check_embeddings(text, "text")
        self.spec.check_text(text, layout)
        factors = self._factors(slots)
        pictures = [seen] if isinstance(seen, VLStates) else list(seen)
        shares = _shares(weights, len(pictures))
        family = self.spec.text_family
        own_text, own_layout, padding = split_padding(text, layout, words if family.padded_to else None)
        features = []
        for picture in pictures:
            self.spec.check_seen(picture)
            if self.spec.own_prompt and own_layout is not None:
                aligned_positions(own_layout, picture.layout, "")
            features.append(self.spec.features.of(picture).to(text.device))
        known = tuple(self.familiarity(each) for each in features)
        notes = self._notes(pictures, layout)
        if strength == 0 or not any(factors.values()):
            return text, layout, AdapterInfo(strength, {}, 0, text.shape[-2], known, notes)

        predicted = self.predict(torch.stack(features))  # (pictures, slot tokens and tail, D)
        batch = as_batch(own_text)
        stop = batch.shape[1]
        at, stop = (stop - family.tail_tokens, stop) if own_layout is None else self.spec.tail_of(own_layout)
        own, tail = batch.float(), batch[:, at:stop].float()
        mean = torch.einsum("p,ptd->td", shares, predicted)
        if combine == "parts":
            mean = self._dealt(torch.stack(features), shares, mean)
        goal = mean[self.spec.words :] + (tail if self.spec.tail == "change" else 0)
        pull = spread(strength * sum(factors.values()) / len(factors))
        tail = tail + pull * (goal - tail)

        described = predicted[shares > 0] if combine == "append" else mean[None]
        amount = torch.tensor(
            [spread(strength * factors[slot.name]) for slot in self.spec.slots for _ in range(slot.tokens)],
            device=text.device,
        )
        grounds = split_layers(self._neutral(neutral, own, (at, stop), own_layout), family)
        added = []
        for one in described:
            led, _ = by_layer(
                one[: self.spec.words], family, lambda part, index: (lead_in(part, grounds[index], amount), None)
            )
            added.append(led[:, amount != 0])
        added = to_dtype(torch.cat(added, 1), text.dtype).expand(len(batch), -1, -1)
        result = torch.cat([batch[:, :at], added, to_dtype(tail, text.dtype), batch[:, stop:]], 1)
        result, found = restore_padding(
            result[0] if text.ndim == 2 else result, _with_words(own_layout, at, added.shape[1]), padding
        )
        info = AdapterInfo(
            strength, {name: strength * factor for name, factor in factors.items() if factor}, added.shape[1],
            result.shape[-2], known, notes,
        )
        return result, found, info

    def _dealt(self, features: Tensor, shares: Tensor, mean: Tensor) -> Tensor:
        """``(spec.tokens, D)``: each slot from one of several pictures in turn, and the tail that goes with them.

        Slots are put together among what the map reads of the pictures (:meth:`~.ridge.RidgeMap.spoken`), not among the
        states it writes: so no slot speaks of another picture's, and the tail, one for all slots, speaks of what they
        do. A slot in which all pictures agree takes no turn.
        """
        seen = self.map.coordinates(features[shares > 0]).double().cpu()
        if len(seen) == 1:
            return mean
        groups = [part for name, part in self.spec.groups().items() if name != "tail"]
        middle, turn = shares[shares > 0].double().cpu() @ seen, 0
        step = torch.zeros_like(middle)
        for spoken in self.map.spoken(groups).cpu():
            own = (seen - middle) @ spoken.T
            step += own[turn % len(own)]
            expected = 2 * spoken.square().sum() / max(self.report.pairs, 1)  # between two pictures of the fit
            turn += bool((torch.pdist(own).square() > ALIKE * expected).any())
        return mean + (step.float() @ self.map.right.cpu()).view(mean.shape).to(mean.device)

    def _factors(self, slots: Sequence[str] | Mapping[str, float] | None) -> dict[str, float]:
        names = [slot.name for slot in self.spec.slots]
        asked = dict.fromkeys(names, 1.0) if slots is None else slots
        if isinstance(asked, str):
            raise TypeError(f"slots: expected a list of names, got the string {asked!r}. Put it into a list.")
        asked = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(asked, 1.0)
        unknown = [name for name in asked if name not in names]
        if unknown:
            raise ValueError(f"slots: expected some of {', '.join(names)}, got {', '.join(unknown)}.")
        return {name: float(asked.get(name, 0.0)) for name in names}

    def _notes(self, pictures: Sequence[VLStates], layout: TokenLayout | None) -> tuple[str, ...]:
        notes = []
        for role, fitted, got in [
            *(("Qwen3-VL", self.spec.vl_model, picture.model) for picture in pictures),
            ("text encoder", self.spec.text_model, layout.model if layout is not None else ""),
        ]:
            if fitted and got and fitted != got:
                notes.append(f"Fitted with the {role} called {fitted!r}, this one is called {got!r}.")
        if layout is None:
            family = self.spec.text_family
            ends = "before the padding " if family.padded_to else ""
            notes.append(
                f"The text has no layout: its last {family.tail_tokens} tokens {ends}were taken for the template's "
                "tail."
            )
        if not self.spec.own_prompt and any(picture.prompt != self.spec.prompt for picture in pictures):
            notes.append(f"Fitted with the picture read beside {self.spec.prompt!r}, here it was beside other words.")
        return tuple(dict.fromkeys(notes))

    def _neutral(
        self, neutral: Neutral | Tensor, own: Tensor, tail: tuple[int, int], layout: TokenLayout | None
    ) -> Tensor:
        """What the description tokens say at strength 0: float32 ``(1 or B, slot tokens, D)``."""
        count, (at, stop) = self.spec.words, tail
        if isinstance(neutral, Tensor):
            if tuple(neutral.shape) != (count, self.spec.text_width):
                raise ValueError(
                    f"neutral: expected shape ({count}, {self.spec.text_width}), got {tuple(neutral.shape)}."
                )
            return neutral.float().to(own.device)[None]
        check_choice("neutral", neutral, Neutral)
        if neutral == "mean":
            return self.predict(self.map.center)[:count].to(own.device)[None]
        if neutral == "tail":
            return resample_tokens(own[:, at:stop], count)
        start = 0 if layout is None else int(layout.mask(TokenRole.TEXT).float().argmax())
        words = own[:, start:at] if layout is None or layout.mask(TokenRole.TEXT).any() else own[:, at:]
        return resample_tokens(words, count) if neutral == "prompt" else words[:, -1:].expand(-1, count, -1)

    def describe(self) -> str:
        """Two lines for people."""
        slots = ", ".join(f"{slot.name} {slot.tokens}" for slot in self.spec.slots)
        layers, family = ", ".join(map(str, self.spec.features.layers)), self.spec.text_family
        read = f" for {family.group}, {family.describe_layers()}" if family.stacked else ""
        return (
            f"Picture adapter: {self.spec.features.pool} of the picture and {self.spec.features.tail} tail tokens at "
            f"layer {layers} of {self.spec.vl_model or 'Qwen3-VL'} -> {slots} tokens of "
            f"{self.spec.text_model or 'the text encoder'}{read}.\n{self.report.describe()}"
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write to a safetensors file."""
        tensors = {f"map.{name}": tensor for name, tensor in self.map.tensors().items()}
        if self.span is not None:
            tensors |= {f"span.{name}": tensor for name, tensor in self.span.tensors().items()}
        return write_tensors(path, FILE_KIND, tensors, {"spec": self.spec.header(), "report": asdict(self.report)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> PictureAdapter:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: see :func:`~.storage.read_tensors`; also for a garbled file.
        """
        tensors, header = read_tensors(path, FILE_KIND)
        parts: dict[str, dict[str, Tensor]] = {"map": {}, "span": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            parts.setdefault(kind, {})[rest] = tensor
        try:
            spec, report = AdapterSpec.from_header(header["spec"]), dict(header["report"])
            for curve in ("curve", "rank_curve"):
                report[curve] = tuple(tuple(point) for point in report[curve])
            names = ("center", "left", "right", "offset")
            found = RidgeMap(*(parts["map"][name] for name in names), RidgeReport(**report))
            span = FamiliarSpan.from_tensors(parts["span"]) if parts["span"] else None
        except (KeyError, TypeError) as error:
            raise ValueError(f"{Path(path).name}: the header or tensors lack or garble {error}.") from error
        if (len(found.center), len(found.offset)) != (spec.inputs, spec.targets):
            raise ValueError(
                f"{Path(path).name}: expected a map from {spec.inputs} to {spec.targets} numbers, got one from "
                f"{len(found.center)} to {len(found.offset)}."
            )
        return cls(spec, found, span)


def _shares(weights: Sequence[float] | None, count: int) -> Tensor:
    """Weights that sum to 1, float32 ``(count,)``."""
    if not count:
        raise ValueError("seen: expected at least one picture's states, got none.")
    given = torch.ones(count) if weights is None else torch.as_tensor(list(weights), dtype=torch.float32)
    if given.shape != (count,) or not (given.isfinite() & (given >= 0)).all() or not given.any():
        shown = ", ".join(f"{float(weight):g}" for weight in given.flatten())
        raise ValueError(f"weights: expected {count} numbers of 0 or more, not all 0, got {shown or 'none'}.")
    return given / given.sum()


def _with_words(layout: TokenLayout | None, at: int, count: int) -> TokenLayout | None:
    """The layout with ``count`` predicted words in place."""
    if layout is None:
        return None
    before = torch.arange(len(layout)) < at
    words = TokenLayout(
        torch.full((count,), TokenRole.TEXT, dtype=torch.uint8), torch.full((count,), PREDICTED_TOKEN),
    )
    return concatenate_layouts([layout.select(before), words, layout.select(~before)], "blend")
