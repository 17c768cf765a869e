"""What can be set in the published method, each setting's kind, bounds, choices and sentence said once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import get_args

from ...states.fields import Field, Value, choice, number, switch, text, whole
from ...states.statistics import PUBLISHED_CLIP, PUBLISHED_TARGET_STD
from ..select import TokenSelection
from .blends import OUTLIER_DIMENSIONS, Curve
from .cleaning import Masking
from .gram import RATE, STEPS

METHODS = (
    "interpolate", "linear", "adain", "adain_global", "adain_per_dim", "style_only", "graduated",
    "attention_weighted", "style_delta", "gram_style", "surgical_fix", "slerp",
)  # fmt: skip
# What the published code calls its selections, and what they are here.
TOKENS: dict[str, TokenSelection] = {
    "full": "all", "text_only": "text", "image_only": "image", "image_no_markers": "image_no_markers",
}  # fmt: skip
REFERENCED = ("per_dim", "hybrid")  # normalizations that compare with the text encoder's statistics
NORMALIZATIONS = ("none", "global", *REFERENCED, "text_std", "text_per_dim", "text_mean_std")
OWN = -1  # of style_start and style_end: two thirds of the width, and all of it


def _with(*methods: str) -> Callable[[PublishedSettings], bool]:
    return lambda settings: settings.method in methods


@dataclass(frozen=True)
class PublishedSettings:
    """The published method's settings, by the published code's names. Defaults are its recommended way.

    Raises:
        ValueError: for a value out of range, style dimensions that end before they start, or dimensions that are no
            list of whole numbers.
    """

    method: str = choice("interpolate", METHODS, "How the VL's tokens meet those of the text.")
    alpha: float = number(0.3, 0, 1, "How much of the VL; 0 is the text alone, exactly.")
    tokens: str = choice("text_only", tuple(TOKENS), "Which of the VL's tokens are used.")
    normalization: str = choice(
        "global", NORMALIZATIONS,
        "How VL states get a scale: to target_std, to the text encoder's statistics, or to this very text.",
    )
    target_std: float = number(
        PUBLISHED_TARGET_STD, 0.001, 1000, "The std of the global normalization.",
        acts=lambda settings: settings.normalization == "global",
    )
    per_dim_weight: float = number(
        0.5, 0, 1, "The share of per_dim in hybrid.", acts=lambda settings: settings.normalization == "hybrid"
    )
    clip: float = number(
        PUBLISHED_CLIP, 0, 1000, "Where per_dim clips, in stds; 0 does not clip.",
        acts=lambda settings: settings.normalization == "per_dim",
    )
    scale_factor: float = number(1.0, 0.001, 1000, "What VL states are multiplied with after that.")
    outlier_masking: str = choice(
        "none", get_args(Masking), "What becomes of image tokens' dimensions that spread too far; scale is clamp."
    )
    outlier_threshold: float = number(
        10.0, 0.001, 10000, "How many times the text encoder's spread is too far.",
        acts=lambda settings: settings.outlier_masking != "none",
    )
    style_start: int = whole(
        OWN, OWN, 65535, "The first style dimension; -1 is two thirds of the width.", acts=_with("style_only")
    )
    style_end: int = whole(
        OWN, OWN, 65535, "The dimension after the last style dimension; -1 is the width.", acts=_with("style_only")
    )
    curve: str = choice(
        "linear", get_args(Curve), "How the graduated alpha rises over the tokens.", acts=_with("graduated")
    )
    start_alpha: float = number(0.0, 0, 1, "The graduated alpha of the first token.", acts=_with("graduated"))
    end_factor: float = number(
        2.0, 0, 10, "The graduated alpha of the last token, as a multiple of alpha.", acts=_with("graduated")
    )
    unit_delta: bool = switch(True, "Divide the style delta by its own std.", acts=_with("style_delta"))
    delta_to_text: bool = switch(
        True, "Bring the stretched style delta to the text's std.", acts=_with("style_delta")
    )
    gram_steps: int = whole(STEPS, 0, 10000, "Steps towards the VL's Gram matrix.", acts=_with("gram_style"))
    gram_rate: float = number(
        RATE, 0.0001, 100, "How far a step towards the Gram matrix goes.", acts=_with("gram_style")
    )
    dimensions: str = text(
        ", ".join(map(str, OUTLIER_DIMENSIONS)), "Dimensions that keep the text's values.", acts=_with("surgical_fix")
    )

    def __post_init__(self) -> None:
        for name, field in FIELDS.items():
            object.__setattr__(self, name, field.check(name, getattr(self, name)))
        if self.style_start != OWN and self.style_end != OWN and self.style_end < self.style_start:
            raise ValueError(
                f"style_end: expected at least style_start ({self.style_start}), got {self.style_end}."
            )
        self.replaced()

    @property
    def needs_statistics(self) -> bool:
        """Whether the text encoder's statistics are compared with."""
        return self.outlier_masking != "none" or self.normalization in REFERENCED

    @property
    def needs_neutral(self) -> bool:
        """Whether a reading of a neutral picture is needed."""
        return self.method == "style_delta"

    def replaced(self) -> tuple[int, ...]:
        """The numbers of ``dimensions``."""
        try:
            found = tuple(int(part) for part in self.dimensions.replace(",", " ").split())
        except ValueError:
            found = (-1,)
        if any(dimension < 0 for dimension in found):
            raise ValueError(f"dimensions: expected whole numbers from 0, as 4, 396, got {self.dimensions!r}.")
        return found

    def style_dims(self, width: int) -> tuple[int, int]:
        """``[start, end)`` of a width; an end beyond it is the width."""
        start = 2 * width // 3 if self.style_start == OWN else self.style_start
        end = width if self.style_end == OWN else self.style_end
        return min(start, end), end

    def at(self, alpha: float) -> PublishedSettings:
        """The same at another alpha."""
        return replace(self, alpha=alpha)

    def effective(self) -> dict[str, Value]:
        """Only what makes a difference, in the order of the fields."""
        if self.alpha == 0:
            return {"alpha": 0.0}
        return {name: getattr(self, name) for name, field in FIELDS.items() if field.acts(self)}


WAYS_TO_SAY: dict[str, bool] = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def read_settings(written: str) -> dict[str, Value]:
    """Settings as people write them in one line: ``"tokens full + normalization hybrid"``.

    Raises:
        ValueError: for a setting there is not, or one without a value.
    """
    found: dict[str, Value] = {}
    for part in filter(None, (part.strip() for part in written.split("+"))):
        name, _, value = (piece.strip() for piece in part.replace("=", " ", 1).partition(" "))
        if name not in FIELDS or not value:
            raise ValueError(f"expected names of {', '.join(FIELDS)} with a value, parted by +, got {part!r}.")
        kind = FIELDS[name].kind
        try:
            found[name] = WAYS_TO_SAY.get(value.lower(), value) if kind is bool else kind(value)
        except ValueError:
            found[name] = value  # the field says what it expected
    return found


def write_settings(settings: PublishedSettings, *besides: str) -> str:
    """What :func:`read_settings` reads: every setting that is not the default, but ``besides``."""
    plain = PublishedSettings()
    told = {name: getattr(settings, name) for name in FIELDS if name not in besides}
    return " + ".join(f"{name} {value}" for name, value in told.items() if value != getattr(plain, name))


FIELDS: dict[str, Field] = {field.name: field.metadata["field"] for field in fields(PublishedSettings)}
