"""One set of settings from a reading to states for Z-Image: what a cell of a sweep or a comparison stands for.

The chain is that of the nodes: select tokens, mask outlier dimensions, normalise, blend; or one of the simple node's
modes (:data:`MODES`) in its place. Every setting is a plain value, so a cell can be written as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from torch import Tensor

from ..stages.append import AppendPosition
from ..stages.blend import BlendMethod, BlendSpace, blend
from ..stages.delta import MAX_WEIGHT
from ..stages.normalize import NormalizeMode, normalize
from ..stages.outliers import Direction, MaskMode, mask_outlier_dimensions
from ..stages.select import SELECTIONS, select_tokens
from ..states.layout import TokenLayout, TokenRole
from ..states.sinks import Sinks
from ..states.statistics import ReferenceStatistics
from ..states.vl_states import VLStates
from .modes import MODES, ModeSettings, check_recipe, condition

Scope = Literal["image tokens", "all tokens"]
Value = bool | int | float | str

BLENDS = get_args(BlendMethod)
METHODS = (*BLENDS, *MODES)
WORDS_ONLY = "words only"
DEFAULT_LAYER = -2  # what Z-Image was trained on; a mode may choose another
WHOLE_SENTENCES = ("all", "text")  # selections that keep every token of the text

# What a mode calls a setting that has another name here.
MODE_NAMES = {
    "normalization": "normalization", "outliers": "outlier_mode", "outlier_threshold": "outlier_threshold",
    "position": "append_position", "remove_prompt_direction": "remove_prompt_direction", "rank": "rank",
}


@dataclass(frozen=True)
class Field:
    """What one setting may be.

    Attributes:
        kind: float, int, bool or str. ``low``, ``high``: the least and greatest number, None for no bound.
        choices: the words there are; none for a str takes any.
    """

    kind: type
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> Value:
        """The value in its own type: 1 becomes 1.0 where fractions are allowed.

        Raises:
            ValueError: naming what was expected and what was got.
        """
        if self.kind is str:
            if not isinstance(value, str) or (self.choices and value not in self.choices):
                expected = f"one of {', '.join(self.choices)}" if self.choices else "text"
                raise ValueError(f"{name}: expected {expected}, got {value!r}.")
            return value
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{name}: expected true or false, got {value!r}.")
            return value
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        inside = is_number and (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        if not inside or (self.kind is int and value != int(value)):
            kind = "a whole number" if self.kind is int else "a number"
            raise ValueError(f"{name}: expected {kind}{self._bounds()}, got {value!r}.")
        return self.kind(value)

    def _bounds(self) -> str:
        if self.low is not None and self.high is not None:
            return f" from {self.low:g} to {self.high:g}"
        return "" if self.low is None else f" of at least {self.low:g}"


FIELDS: dict[str, Field] = {
    "method": Field(str, choices=METHODS),
    "alpha": Field(float, -MAX_WEIGHT, MAX_WEIGHT),
    "layer": Field(int, -37, 0),
    "tokens": Field(str, choices=tuple(SELECTIONS)),
    "downsample": Field(int, 1, 32),
    "space": Field(str, choices=get_args(BlendSpace)),
    "outlier_mode": Field(str, choices=get_args(MaskMode)),
    "outlier_threshold": Field(float, 1, 1000),
    "outlier_direction": Field(str, choices=get_args(Direction)),
    "outlier_scope": Field(str, choices=get_args(Scope)),
    "outlier_gamma": Field(float, 0.01, 1),
    "normalization": Field(str, choices=get_args(NormalizeMode)),
    "target_std": Field(float, 0, 1000),
    "delta_strength": Field(float, -MAX_WEIGHT, MAX_WEIGHT),
    "append_position": Field(str, choices=get_args(AppendPosition)),
    "remove_prompt_direction": Field(bool),
    "rank": Field(int, 0, 256),
    "sinks": Field(str, choices=get_args(Sinks)),
    "antialias": Field(bool),
}


@dataclass(frozen=True)
class Settings:
    """How a reading becomes conditioning.

    Attributes:
        method: one of :func:`blend`, or one of the simple node's modes.
        alpha: how much the picture counts: alpha of the blends, strength of the modes; 0 is the words alone in all.
        layer: hidden state counted from the end; 0 takes the method's own, -2 or -6 as published.
        tokens: which of the VL's tokens are used (blends only).
        downsample: pictures averaged over n × n tokens; append does it last, the others before the statistics.
        space: see :func:`blend`; antialias, sinks and append_position too.
        outlier_mode, outlier_threshold, outlier_direction, outlier_gamma: see
            :func:`mask_outlier_dimensions`.
        outlier_scope: measure and change "image tokens" only (all if the selection left none) or "all tokens". All is
            the default, because aligned blends do not use image tokens: there a change of these alone does nothing.
        normalization, target_std: see :func:`normalize`; target 0 takes the reference's.
        delta_strength: weight of image delta where it is not to be alpha.
        remove_prompt_direction, rank: see :func:`image_delta`.

    Raises:
        ValueError: for a value out of range, or two that do not go together.
    """

    method: str = "aligned"
    alpha: float = 0.5
    layer: int = 0
    tokens: str = "all"
    downsample: int = 1
    space: str = "dit"
    outlier_mode: str = "none"
    outlier_threshold: float = 10.0
    outlier_direction: str = "both"
    outlier_scope: str = "all tokens"
    outlier_gamma: float = 0.5
    normalization: str = "none"
    target_std: float = 0.0
    delta_strength: float | None = None
    append_position: str = "end"
    remove_prompt_direction: bool = False
    rank: int = 0
    sinks: str = "exclude"
    antialias: bool = True

    def __post_init__(self) -> None:
        for name, field in FIELDS.items():
            value = getattr(self, name)
            if name != "delta_strength" or value is not None:
                object.__setattr__(self, name, field.check(name, value))
        if self.method in MODES:
            check_recipe(self.method, self.strength)
        elif not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: expected 0 (words only) to 1 with {self.method}, got {self.alpha:g}.")
        if self.method == "aligned" and self.tokens not in WHOLE_SENTENCES:
            raise ValueError(
                f"tokens: expected {' or '.join(WHOLE_SENTENCES)} with aligned, which pairs the words, got "
                f"{self.tokens}. Choose method resample or append."
            )

    @property
    def strength(self) -> float:
        """How much the picture counts: alpha, or the weight of image delta where one is given."""
        own_weight = self.method == "image delta" and self.delta_strength is not None
        return self.delta_strength if own_weight else self.alpha

    @property
    def read_layer(self) -> int:
        """The hidden state that is read, counted from the end."""
        return self.layer or (MODES[self.method].layer if self.method in MODES else DEFAULT_LAYER)

    @property
    def read_layers(self) -> tuple[int, ...]:
        """All hidden states that are read."""
        return MODES[self.method].layers(self.read_layer) if self.method in MODES else (self.read_layer,)

    @property
    def needs_muted(self) -> bool:
        """Whether the same reading with its pictures muted is needed."""
        return self.strength != 0 and self.method in MODES and MODES[self.method].needs_muted

    @property
    def needs_reference(self) -> bool:
        """Whether the text encoder's statistics are needed."""
        used = self.effective()
        own_target = used.get("normalization") == "global" and used.get("target_std", 0) > 0
        return "outlier_mode" in used or (used.get("normalization", "none") != "none" and not own_target)

    def effective(self) -> dict[str, Value]:
        """Only what makes a difference to the states, layer resolved: settings of one effect are equal here."""
        if self.strength == 0:
            return {"method": WORDS_ONLY}
        used = {"method": self.method, "layer": self.read_layer}
        if self.method in MODES:
            taken = MODES[self.method].settings
            names = [ours for theirs, ours in MODE_NAMES.items() if theirs in taken]
            used["strength"] = self.strength
        else:
            names = ["tokens", "downsample", "normalization", "outlier_mode", "sinks"]
            names += [] if self.method == "append" else ["alpha"]
            names += ["space"] if self.method in ("aligned", "resample", "truncate") else []
            names += ["antialias"] if self.method in ("resample", "adain", "style_dims") else []
            names += ["append_position"] if self.method == "append" else []
            names += ["target_std"] if self.normalization in ("global", "hybrid") else []
            names += ["outlier_threshold", "outlier_direction", "outlier_scope"]
            names += ["outlier_gamma"] if self.outlier_mode == "scale" else []
            if self.method == "aligned":
                names.remove("downsample")
        if self.outlier_mode == "none" or self._outliers_out_of_sight():
            names = [name for name in names if not name.startswith("outlier_")]
        return used | {name: getattr(self, name) for name in names}

    def _outliers_out_of_sight(self) -> bool:
        """Whether only image tokens are changed and only words are mixed; statistics over both would carry it over."""
        in_pictures = self.method == "aligned" and self.tokens == "all" and self.outlier_scope == "image tokens"
        return in_pictures and self.normalization in ("none", "rms")

    def as_dict(self) -> dict[str, Any]:
        """Every setting, as JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """What :meth:`as_dict` gave; settings that are not there take their defaults.

        Raises:
            ValueError: for a setting there is not, and see :class:`Settings`.
        """
        unknown = [name for name in values if name not in {field.name for field in fields(cls)}]
        if unknown:
            raise ValueError(f"settings: expected only {', '.join(FIELDS)}, got {', '.join(map(repr, unknown))}.")
        return cls(**values)

    def apply(
        self,
        text: Tensor,
        text_layout: TokenLayout | None,
        seen: VLStates,
        blind: VLStates | None = None,
        reference: ReferenceStatistics | None = None,
        append_layer: int | None = None,
    ) -> tuple[Tensor, TokenLayout | None, str]:
        """States for Z-Image.

        Args:
            text: Z-Image's own states of the prompt, ``(L, D)`` or ``(B, L, D)``; ``text_layout`` says what its tokens
                are, where known.
            seen: an encode of the same prompt with pictures, in which :attr:`read_layers` were captured.
            blind: the same with its pictures muted, if :attr:`needs_muted`.
            reference: the text encoder's statistics, if :attr:`needs_reference`.
            append_layer: see :func:`condition`.

        Returns:
            the states, their layout, and a report of what was done. Strength 0 gives the text bit for bit.

        Raises:
            ValueError: for a part that is needed and not given, or parts that do not go together.
        """
        if self.strength == 0:
            return text, text_layout, "Strength 0: words only."
        if self.needs_reference and reference is None:
            raise ValueError(
                f"reference: normalization {self.normalization} and outlier mode {self.outlier_mode} compare with the "
                "text encoder's statistics, got none. Measure them, or choose none for both."
            )
        if self.method not in MODES:
            return self._blend(text, text_layout, seen, reference)
        used = self.effective()
        taken = {theirs: used[ours] for theirs, ours in MODE_NAMES.items() if ours in used}
        return condition(
            text, text_layout, seen, self.read_layer, self.method, self.strength, muted=blind,
            append_layer=append_layer, settings=ModeSettings(**taken), reference=reference,
        )

    def _blend(
        self, text: Tensor, text_layout: TokenLayout | None, seen: VLStates, reference: ReferenceStatistics | None
    ) -> tuple[Tensor, TokenLayout | None, str]:
        """Select, mask outliers, normalise, blend."""
        states, layout = seen.at(self.read_layer)
        pool = 1 if self.method in ("append", "aligned") or not layout.grids else self.downsample
        states, layout = select_tokens(states.float(), layout, self.tokens, downsample=pool)
        lines = [f"layer {self.read_layer}, {self.tokens} tokens: {layout.describe()}"]
        if "outlier_mode" in self.effective():
            pictures = layout.mask(TokenRole.IMAGE)
            limited = self.outlier_scope == "image tokens" and bool(pictures.any())
            states, found = mask_outlier_dimensions(
                states, self.outlier_threshold, self.outlier_mode, reference=reference,
                direction=self.outlier_direction, gamma=self.outlier_gamma, sinks=self.sinks,
                positions=pictures if limited else None,
            )
            lines.append(found.describe())
        if self.normalization != "none":
            states, scaled = normalize(
                states, self.normalization, reference, target_std=self.target_std or None, sinks=self.sinks
            )
            lines.append(scaled.describe())
        mixed, info = blend(
            text, states, self.alpha, self.method, self.space, text_layout=text_layout, vl_layout=layout,
            sinks=self.sinks, antialias=self.antialias, append_position=self.append_position,
            append_downsample=self.downsample if layout.grids else 1,
        )
        return mixed, info.layout, "\n".join([*lines, info.describe()])
