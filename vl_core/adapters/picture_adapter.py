"""The picture adapter: from what Qwen3-VL holds after a picture to the states a description of it would have.

Z-Image's text encoder has states at the tokens of a description appended to the prompt, and at the template tail after
it. A ridge map, fitted on (picture, description) pairs in closed form, predicts both from the VL's states of (picture,
prompt). Applied to a new picture it gives description states that no words were written for, in place before the
template tail. Words and tail are predicted together: Z-Image reads much of the look from the tail. For a family that
reads several layers side by side (:mod:`families`) one map predicts all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..stages.alignment import aligned_positions
from ..stages.description import lead_in, spread
from ..stages.resample import resample_tokens
from ..states.fields import quoted
from ..states.files import check_content
from ..states.layout import TokenLayout, TokenRole, concatenate_layouts
from ..states.stacks import by_layer, restore_padding, split_layers, split_padding
from ..states.storage import naming, read_tensors, take, write_tensors
from ..states.tensors import as_batch, check_choice, check_embeddings, to_dtype
from ..states.vl_states import VLStates
from .familiarity import Familiarity, FamiliarSpan
from .ridge_map import RidgeMap, RidgeReport
from .spec import AdapterSpec, Neutral

Combine = Literal["average", "append", "parts"]

FILE_KIND = "picture adapter"
MAP_PARTS = {"map.center": 1, "map.left": 2, "map.right": 2, "map.offset": 1}  # tensors of the file and their axes
SPAN_PARTS = {
    "span.center": 1, "span.scale": 1, "span.directions": 2, "span.variances": 1, "span.distances": 1,
    "span.residual": 1,
}
MAX_STRENGTH = 3.0
ALIKE = 0.3  # of the squared difference between any two pictures: less, and they agree in a slot
PREDICTED_TOKEN = -1  # id of a token that no word was written for


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
        return self.span and self.span(features[: self.spec.familiar])

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
        (:func:`spread`); negative strengths push away. Where a family reads several layers side by side,
        n is scaled in each for itself. Padding stays as it is, but for the tokens whose places are taken
        (:func:`restore_padding`).

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
        at, stop = self.spec.tail_of(own_layout, batch.shape[1])
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

        Slots are put together among what the map reads of the pictures (:meth:`RidgeMap.spoken`), not among the
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
            raise TypeError(f"slots: expected a list of names, got the string {quoted(asked)}. Put it into a list.")
        asked = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(asked, 1.0)
        for name, factor in asked.items():
            if not abs(factor) <= MAX_STRENGTH:  # NaN is outside
                raise ValueError(f"slots: expected factors of at most {MAX_STRENGTH:g}, got {name}:{factor}.")
        unknown = [name for name in asked if name not in names]
        if unknown:
            raise ValueError(f"slots: expected some of {', '.join(names)}, got {quoted(', '.join(unknown))}.")
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
                f"Where your words end is not known: the last {family.tail_tokens} tokens {ends}count as the "
                "template's tail."
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
            FileNotFoundError, ValueError: see :func:`read_tensors`; also for a garbled file.
        """
        tensors, header = read_tensors(path, FILE_KIND)
        parts: dict[str, dict[str, Tensor]] = {"map": {}, "span": {}}
        with naming(path):
            for name, ndim in (MAP_PARTS | SPAN_PARTS if "span.center" in tensors else MAP_PARTS).items():
                kind, _, rest = name.partition(".")
                parts[kind][rest] = take(tensors, name, path, ndim)
            spec = AdapterSpec.from_header(header["spec"])
            report = check_content(RidgeReport, header["report"], "report")
            found = RidgeMap(**parts["map"], report=report)
            span = FamiliarSpan.from_tensors(parts["span"]) if parts["span"] else None
            if (len(found.center), len(found.offset)) != (spec.inputs, spec.targets):
                raise ValueError(
                    f"expected a map from {spec.inputs} to {spec.targets} numbers, got one from {len(found.center)} to "
                    f"{len(found.offset)}."
                )
            inner = found.left.shape == (spec.inputs, len(found.right)), found.right.shape[1] == spec.targets
            if not all(inner) or (span is not None and len(span.center) != spec.familiar):
                raise ValueError(f"expected parts of one shape, got {sorted(tensors)} that disagree.")
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
