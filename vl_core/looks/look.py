"""A learned look and its file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..pictures import check_picture
from ..states.families import GROUPS, Family, family_of
from ..states.layout import TokenLayout
from ..states.storage import read_tensors, take, write_tensors
from ..states.tensors import all_finite
from .units import directions

FILE_KIND = "look"
LARGEST = 4096  # tokens of a look, far beyond any caption: a file that says more is damaged


class Origin(BaseModel):
    """What a look was learned from and by; the header of its file.

    Attributes:
        family: group of image models, see :mod:`families`. ``model``: the one it was learned on.
        look: the words it started from. ``shows``: per picture, what it was said to show.
        pictures: SHA-256 of each picture's 8-bit pixels. ``sizes``: width and height it was learned at, in pixels.
        options: how it was learned, by name. ``losses``: one per step. ``notes``: for people.
        key: a fingerprint of everything that decided what was learned, weights included; "" where nobody took one.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    family: str
    model: str
    look: str
    shows: tuple[str, ...] = Field(min_length=1)
    pictures: tuple[str, ...] = Field(min_length=1)
    sizes: tuple[tuple[int, int], ...]
    options: dict[str, int | float | str]
    losses: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True, eq=False)
class Look:
    """What a picture has that words lack, as tokens that follow a prompt.

    Attributes:
        tokens: float32 ``(K, S·D)`` on the sphere: every layer of every token has root mean square 1.
        sizes: float32 ``(K, S)``: root mean squares to write the tokens out with, those of the words they began as.
        tail: float32 ``(T, S·D)``: what changes at the template's tail, in units of the own tail's root mean squares.
        origin: what it was learned from.

    Raises:
        ValueError: for shapes that do not belong together, or values that are not finite.
    """

    tokens: Tensor
    sizes: Tensor
    tail: Tensor
    origin: Origin

    def __post_init__(self) -> None:
        if self.origin.family not in GROUPS:
            raise ValueError(f"family: expected one of {', '.join(GROUPS)}, got {self.origin.family!r}.")
        layers = len(family_of(self.origin.family, 0).layers)
        shapes = {name: tuple(getattr(self, name).shape) for name in ("tokens", "sizes", "tail")}
        count, width = shapes["tokens"] if len(shapes["tokens"]) == 2 else (0, 0)
        fits = 0 < count <= LARGEST and width and not width % layers
        if not fits or shapes["sizes"] != (count, layers) or shapes["tail"] != (self.family.tail_tokens, width):
            raise ValueError(
                f"look: expected tokens (K, width), sizes (K, {layers}) and a tail ({self.family.tail_tokens}, width) "
                f"of {self.origin.family}, got {', '.join(f'{name} {shape}' for name, shape in shapes.items())}."
            )
        if not all_finite(self.tokens, self.sizes, self.tail) or float(self.sizes.min()) <= 0:
            raise ValueError("look: expected finite tokens and tail and sizes above 0, got others.")
        object.__setattr__(self, "tokens", directions(self.tokens.float(), layers))

    @property
    def family(self) -> Family:
        """Whose text states the look continues."""
        layers = len(family_of(self.origin.family, 0).layers)
        return family_of(self.origin.family, self.tokens.shape[-1] // layers)

    def check_text(self, text: Tensor, layout: TokenLayout | None) -> None:
        """Raise ValueError unless a prompt's states ``(…, L, S·D)`` are of the look's model class and width."""
        width = self.tokens.shape[-1]
        of = f"a look of {self.origin.family}, learned on {self.origin.model or 'a model without a name'}"
        if text.shape[-1] != width:
            raise ValueError(
                f"look: {of}, continues text states of width {width}, got a text of width {text.shape[-1]}. Use the "
                "text encoder of that model, or learn the look on this one."
            )
        if layout is not None and layout.layer is not None and layout.layer not in self.family.layers:
            raise ValueError(
                f"look: {of}, continues {self.family.describe_layers()}, got a text of layer {layout.layer}."
            )

    def describe(self) -> str:
        """One paragraph for people."""
        origin, count = self.origin, len(self.origin.pictures)
        fall = f"; loss {origin.losses[0]:.4g} to {origin.losses[-1]:.4g}" if origin.losses else ""
        return (
            f"Look of {count} picture{'s' * (count > 1)}: {len(self.tokens)} tokens and a change of the template's "
            f"tail, begun as “{origin.look}”, learned in {len(origin.losses)} steps on {origin.model or 'a model'} "
            f"({origin.family}){fall}."
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write to a safetensors file."""
        tensors = {"tokens": self.tokens, "sizes": self.sizes, "tail": self.tail}
        return write_tensors(path, FILE_KIND, tensors, {"origin": self.origin.model_dump(mode="json")})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Look:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_tensors`; also for a header or tensors that are damaged.
        """
        tensors, header = read_tensors(path, FILE_KIND)
        name = Path(path).name
        parts = {part: take(tensors, part, path, 2) for part in ("tokens", "sizes", "tail")}
        wrong = [part for part, values in parts.items() if values.dtype != torch.float32]
        if wrong:
            raise ValueError(f"{name}: expected float32 {', '.join(wrong)}, got {parts[wrong[0]].dtype}.")
        try:
            return cls(**parts, origin=read_origin(header.get("origin")))
        except ValueError as error:
            raise ValueError(f"{name}: {error} The file is damaged: learn the look again.") from error


def read_origin(header: Any) -> Origin:
    """The header of a look, checked.

    Raises:
        ValueError: naming the first field that is missing, unknown or of another type.
    """
    if not isinstance(header, Mapping):
        raise ValueError(f"origin: expected a look's header, got {type(header).__name__}.")
    try:
        return Origin.model_validate_json(json.dumps(header))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "origin"
        raise ValueError(f"{where}: {fault['msg'][0].lower()}{fault['msg'][1:]}.") from error


def hash_picture(picture: Tensor, name: str = "image") -> str:
    """SHA-256 of a picture's shape and 8-bit pixels, whatever form it comes in (:func:`check_picture`)."""
    pixels, _ = check_picture(picture, name)
    return hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()
