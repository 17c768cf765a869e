"""What the JSON headers of saved files may hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=0)]
Grid = Annotated[list[Annotated[int, Field(ge=1, le=1 << 20)]], Field(min_length=2, max_length=2)]
MOST_LAYERS = 10_000  # of any model: a header that says more is damaged


class Header(BaseModel):
    """Types are taken as they are: "1" is no number, and True neither. What a later version adds is passed over."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class FileHeader(Header):
    """Of every file."""

    kind: str | None = None
    version: Count = 0


class Cut(Header):
    """Of a picture that lost tokens: the size of its whole grid, and which of its places stayed, in raster order."""

    grid: Grid
    places: Annotated[list[Count], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Cut:
        rising = all(one < other for one, other in zip(self.places, self.places[1:], strict=False))
        if not rising or self.places[-1] >= self.grid[0] * self.grid[1]:
            raise ValueError(f"places: expected ascending numbers below {self.grid[0] * self.grid[1]}")
        return self


class LayoutHeader(Header):
    """Of a :class:`TokenLayout`, whose roles and ids are tensors."""

    grids: list[Grid]
    layer: int | None
    source: str
    prompt: str
    model: str
    cut: bool
    cuts: list[Cut | None] = []


class StatesHeader(Header):
    """Of a :class:`VLStates`."""

    layers: Annotated[list[Count], Field(min_length=1)]
    num_layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)]
    prompt: str
    system_prompt: str
    model: str
    layout: LayoutHeader

    @model_validator(mode="after")
    def _ascending(self) -> StatesHeader:
        if sorted(set(self.layers)) != self.layers or self.layers[-1] > self.num_layers:
            raise ValueError(f"layers: expected ascending numbers up to {self.num_layers}, got {self.layers}")
        return self


class ReferenceHeader(Header):
    """Of a :class:`ReferenceStatistics`: tokens that are no sinks and sinks, and where they were measured."""

    counts: Annotated[list[Count], Field(min_length=2, max_length=2)]
    encoder: str
    layer: int | None
    prompts: Count


class Packed(Header):
    """One value of an option: a tensor by name, a layout, a list or tuple of values, or a plain value."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", populate_by_name=True)

    tensor: str | None = None
    layout: LayoutHeader | None = None
    at: str | None = None
    as_list: list[Packed] | None = Field(None, alias="list")
    as_tuple: list[Packed] | None = Field(None, alias="tuple")
    value: bool | int | float | str | None = None

    @model_validator(mode="after")
    def _one(self) -> Packed:
        given = self.model_fields_set - {"at"}
        if len(given) != 1 or (self.layout is not None) != (self.at is not None):
            raise ValueError(f"expected one of tensor, layout with at, list, tuple, value, got {sorted(given)}")
        if given != {"value"} and getattr(self, next(iter(given))) is None:
            raise ValueError(f"{next(iter(given))}: expected something, got null")
        return self


class ConditioningHeader(Header):
    """Of a saved CONDITIONING: per entry its options by name."""

    entries: Annotated[list[dict[str, Packed]], Field(min_length=1)]
    left_out: list[str] = []
