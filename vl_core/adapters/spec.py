"""What a picture adapter was made for: its features, slots and target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from ..stages.append import tail_of
from ..stages.description import Slot, check_slots
from ..states.families import ZIMAGE, Family, family_of, find_family
from ..states.files import check_content
from ..states.headers import MOST_LAYERS
from ..states.layout import TokenLayout
from ..states.statistics import ENCODER_LAYER
from ..states.tensors import check_choice
from ..states.vl_states import VLStates, resolve_layer
from .features import PictureFeatures

TailTarget = Literal["change", "state"]
Neutral = Literal["prompt", "last word", "tail", "mean"]
MOST_WIDTH, MOST_SLOTS = 1 << 17, 4096  # of any encoder or description: more is a damaged file


@dataclass(frozen=True)
class AdapterSpec:
    """What an adapter was fitted for; two that differ in any of it cannot be merged.

    Attributes:
        features, slots: input and output.
        vl_width, vl_blocks, vl_model: of the VL encoder. ``text_width``, ``text_layer``, ``text_model``: of Z-Image's;
            of a family that reads several layers, the width of all together, and no layer.
        tail: "change": what the description changes at the prompt's own tail is predicted; "state": the tail itself.
        own_prompt: the VL reads the user's prompt with the picture; else always ``prompt``.
        family: the group of :mod:`families` that the text encoder is of; the VL reads in its template.
    """

    features: PictureFeatures
    slots: Annotated[tuple[Slot, ...], Field(min_length=1, max_length=MOST_SLOTS)]
    vl_width: Annotated[int, Field(ge=1, le=MOST_WIDTH)]
    vl_blocks: Annotated[int, Field(ge=1, le=MOST_LAYERS)]
    text_width: Annotated[int, Field(ge=1, le=MOST_WIDTH)]
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
    def familiar(self) -> int:
        """How many leading inputs a picture's familiarity is judged by: its own, or all where none are."""
        return self.features.picture_size(self.vl_width) or self.inputs

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
        self.tail_of(layout, len(layout))

    def tail_of(self, layout: TokenLayout | None, length: int) -> tuple[int, int]:
        """Where a text's template tail begins and ends; ValueError for a text of another template, or too short."""
        family, got = self.text_family, f"{length} tokens" if layout is None else layout.describe()
        try:
            return tail_of(layout, length, family)
        except ValueError as error:
            raise ValueError(
                f"text: expected a whole text of {self.family}, which ends with {family.tail_tokens} template tokens, "
                f"got {got}. Use the text encoder of the fit, or fit an adapter for this one."
            ) from error

    def header(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        features = {**asdict(self.features), "layers": list(self.features.layers)}
        return {**asdict(self), "features": features, "slots": [asdict(slot) for slot in self.slots]}

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> AdapterSpec:
        """What :meth:`header` gave.

        Raises:
            ValueError: if something is missing, or of another type or size than any encoder's.
        """
        return check_content(cls, header, "spec")
