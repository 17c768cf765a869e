"""All settings of all ways: one class, in which each setting's kind, bounds, choices and sentence stand once.

Widgets, options of the command line, recipe files, axes of sweeps and the tables in the docs are made from it. Every
setting is a plain value, so a set of them can be written as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ..stages.adain import OWN_MIXING
from ..stages.append import AppendPosition
from ..stages.blend import BlendMethod, BlendSpace
from ..stages.combine import COMBINATIONS, Combination
from ..stages.normalize import NormalizeMode
from ..stages.outliers import Direction, MaskMode
from ..stages.published.settings import METHODS, PublishedSettings, read_settings
from ..stages.select import SELECTIONS, TokenSelection
from ..states.fields import Field, Value, choice, number, switch, text, whole
from ..states.sinks import Sinks
from .takes import DEFAULT_TAKE, PICTURE_USES, PictureUse, Take, find_take, take_names
from .way import Way, candidates, check_strength, find_way, way_names

MAX_STRENGTH = 3.0
AUTOMATIC, OPEN_BLEND, DELTA = "automatic", "open blend", "research: image delta"
Joined = Literal["concat"]
JOINED: Joined = "concat"  # all pictures in one reading, one after another
CROP, COVERED = MASK_USES = ("crop to the box", "keep covered tokens")
ByTake = Literal["by the take"]
BY_TAKE: ByTake = "by the take"
WORDS_ONLY = "words only"
DEFAULT_LAYER = -2  # what Z-Image was trained on; a way may choose another
WHOLE_SENTENCES = ("all", "text")  # selections that keep every token of the text
BLENDS: tuple[str, ...] = get_args(BlendMethod)
NEVER_RESAMPLED = ("aligned", "truncate", "append", "adain_per_dim")  # of the blends; all others may be
Curve = Literal["flat", "linear", "ease_in", "ease_out"]
ChangedTokens = Literal["text", "prompt"]

# Groups of settings that ways use together.
READ = ("layer", "image_tokens", "combine", "mask_use", "picture", "attend")
CURVED = ("changed", "curve", "curve_end")
CLEANED = ("normalization", "target_std", "outlier_mode", "outlier_threshold", "outlier_direction", "outlier_gamma")
TIMED = ("start_percent", "end_percent")


def masks_outliers(settings: Settings) -> bool:
    """Whether changing outliers makes a difference: not where image tokens change alone and words alone are mixed."""
    in_pictures = settings.way == OPEN_BLEND and settings.method == "aligned" and settings.tokens == "all"
    unseen = in_pictures and settings.outlier_scope == "image tokens" and settings.normalization in ("none", "rms")
    return settings.outlier_mode != "none" and not unseen


def _by_method(*methods: str) -> Callable[[Settings], bool]:
    """Whether the open blend's method is one of these; other ways have none."""
    return lambda settings: settings.way != OPEN_BLEND or settings.method in methods


@dataclass(frozen=True)
class Settings:
    """How a picture acts. What each setting does stands in its field's ``meaning``: see ``FIELDS``.

    >>> Settings(way="words", take="style", strength=0.8).effective()["take"]
    'style'

    Raises:
        ValueError: for a value out of range, a strength that the way does not take, or two that do not go together.
    """

    way: str = choice(AUTOMATIC, way_names, "How it travels.", also=("mode",))
    take: str = choice(DEFAULT_TAKE, take_names, "What to take from the picture.")
    strength: float = number(
        1.0, -MAX_STRENGTH, MAX_STRENGTH, "How much the picture counts: 0 is the words alone, exactly.",
        acts=_by_method(*(method for method in BLENDS if method != "append")), also=("alpha",),
    )
    instruction: str = text("", "What Qwen3-VL is asked to write; empty asks for the take.")
    longest: int = whole(120, 8, 2048, "Most tokens that Qwen3-VL writes.")
    described: bool = switch(False, "Put Qwen3-VL's words after the prompt first, and mix its states of both.")
    layer: int = whole(0, -37, 0, "Which hidden state of Qwen3-VL, from the end; 0 lets the way choose.")
    image_tokens: int = whole(1024, 1, 16384, "Most tokens that a picture may take, 32 × 32 pixels each.")
    combine: Joined | Combination = choice(JOINED, (JOINED, *COMBINATIONS), "What several pictures become.")
    mask_use: str = choice(CROP, MASK_USES, "What a mask does: crop the picture, or pick its tokens.")
    picture: ByTake | PictureUse = choice(BY_TAKE, (BY_TAKE, *PICTURE_USES), "How the picture is shown to Qwen3-VL.")
    attend: str = text("", "What Qwen3-VL is told to look for; empty is the take's.", also=("system_prompt",))
    slots: str = text("", "Parts of an adapter's description, such as style, palette:0.5; empty is the take's.")
    method: BlendMethod = choice("aligned", BLENDS, "How the VL's tokens meet those of the text.")
    tokens: TokenSelection = choice("all", tuple(SELECTIONS), "Which of the VL's tokens are mixed in.")
    downsample: int = whole(
        1, 1, 32, "Average image tokens over n × n.", acts=lambda settings: settings.method != "aligned"
    )
    space: BlendSpace = choice(
        "dit", get_args(BlendSpace), "Where tokens are mixed: as Z-Image sees them, raw, on the arc.",
        acts=_by_method(*(method for method in BLENDS if method not in (*OWN_MIXING, "append"))),
    )
    changed: ChangedTokens = choice(
        "text", get_args(ChangedTokens), "Which of the text's tokens change: all, or the words."
    )
    curve: Curve = choice("flat", get_args(Curve), "The strength over the tokens, from the first to the last.")
    curve_end: float = number(
        0.0, 0, 1, "The curve's share of the strength at the last token.",
        acts=lambda settings: settings.curve != "flat",
    )
    outlier_mode: MaskMode = choice(
        "none", get_args(MaskMode), "What becomes of dimensions that spread too far.", acts=masks_outliers,
        also=("outliers",),
    )
    outlier_threshold: float = number(
        10.0, 1, 1000, "By which factor a dimension's spread has to differ.", acts=masks_outliers, also=("threshold",)
    )
    outlier_direction: Direction = choice(
        "both", get_args(Direction), "Which outliers: over, under, both.", acts=masks_outliers
    )
    outlier_scope: str = choice(
        "all tokens", ("image tokens", "all tokens"), "Which tokens are measured and changed.", acts=masks_outliers
    )
    outlier_gamma: float = number(
        0.5, 0.01, 1, "How gradual the mode scale is; 1 is clamp.",
        acts=lambda settings: settings.outlier_mode == "scale" and masks_outliers(settings),
    )
    normalization: NormalizeMode = choice(
        "none", get_args(NormalizeMode), "How VL states get the text encoder's scale."
    )
    target_std: float = number(
        0.0, 0, 1000, "The std to scale to; 0 is the text encoder's own.",
        acts=lambda settings: settings.normalization in ("global", "hybrid"),
    )
    append_position: AppendPosition = choice(
        "end", get_args(AppendPosition), "Where appended tokens go.", acts=_by_method("append"), also=("position",)
    )
    published_method: str = choice("interpolate", METHODS, "Which of the research note's methods.")
    remove_prompt_direction: bool = switch(False, "Take out of the delta what points along the prompt.")
    rank: int = whole(0, 0, 256, "Keep that many directions of the delta; 0 keeps all.")
    sinks: Sinks = choice("exclude", get_args(Sinks), "Whether attention sinks are left out.")
    antialias: bool = switch(
        True, "Whether resampling averages over areas.",
        acts=_by_method(*(method for method in BLENDS if method not in NEVER_RESAMPLED)),
    )
    start_percent: float = number(0.0, 0, 1, "The share of the steps at which the picture starts to act.")
    end_percent: float = number(1.0, 0, 1, "The share of the steps at which it stops.")
    published: str = text(
        "", "More of the research note's settings by its own names, such as tokens full + normalization hybrid."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "way", find_way(self.way).name)
        for name, field in FIELDS.items():
            object.__setattr__(self, name, field.check(name, getattr(self, name)))
        check_strength(self.row, self.strength)
        if self.published:
            try:
                self.of_note()
            except ValueError as error:
                raise ValueError(f"published: {error}") from error
        if not self.start_percent < self.end_percent:
            raise ValueError(
                f"start_percent: expected less than end_percent ({self.end_percent:g}), got {self.start_percent:g}."
            )
        if self.way == OPEN_BLEND and self.method == "aligned" and self.tokens not in WHOLE_SENTENCES:
            raise ValueError(
                f"tokens: expected {' or '.join(WHOLE_SENTENCES)} with aligned, which pairs the words, got "
                f"{self.tokens}. Choose method resample or append."
            )

    def of_note(self) -> PublishedSettings:
        """What the way *research: as published* does: its method and strength, and what is written besides."""
        alpha = min(max(self.strength, 0.0), 1.0)
        return PublishedSettings(**{"method": self.published_method, "alpha": alpha, **read_settings(self.published)})

    @property
    def row(self) -> Way:
        """The way itself."""
        return find_way(self.way)

    @property
    def taken(self) -> Take:
        """The take itself."""
        return find_take(self.take)

    @property
    def read_layer(self) -> int:
        """The hidden state that is read, counted from the end."""
        return self.layer or self.row.layer or DEFAULT_LAYER

    @property
    def words_only(self) -> bool:
        """Whether no picture acts."""
        return self.strength == 0 and not self.described

    @property
    def window(self) -> tuple[float, float]:
        """When it acts, in shares of the steps.

        Some takes end early where the picture's own states are mixed in, unless it starts only after that.
        """
        until = self.taken.until if "picture" in self.row.uses else 1.0
        return self.start_percent, self.end_percent if self.start_percent >= until else min(self.end_percent, until)

    def at(self, strength: float) -> Settings:
        """The same at another strength."""
        return replace(self, strength=strength)

    def effective(self) -> dict[str, Value]:
        """Only what makes a difference, in the order of the fields: settings of one effect are equal here."""
        if self.words_only:
            return {"way": WORDS_ONLY}
        if self.strength == 0:
            used: tuple[str, ...] = ("take", "instruction", "longest", "image_tokens")
            return {"way": WORDS_ONLY, "described": True} | {name: getattr(self, name) for name in used}
        used = (*{name for row in candidates(self.row) for name in row.uses}, "take", "strength", "described", *TIMED)
        found = {"way": self.way} | {
            name: getattr(self, name) for name, field in FIELDS.items() if name in used and field.acts(self)
        }
        if "layer" in found:
            found["layer"] = self.read_layer
        return found

    def as_dict(self) -> dict[str, Any]:
        """Every setting, as JSON takes it."""
        return asdict(self)

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """The same with other values of some settings, by any name they have had.

        Raises:
            ValueError: see :meth:`from_dict`.
        """
        return Settings(**{**self.as_dict(), **rename(values, self.way)})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """What :meth:`as_dict` gave, of this version or an earlier one; settings that are not there take defaults.

        Raises:
            ValueError: for a setting there is not, and see :class:`Settings`.
        """
        return cls(**rename(values))


FIELDS: dict[str, Field] = {field.name: field.metadata["field"] for field in fields(Settings)}
ALSO: dict[str, str] = {old: name for name, field in FIELDS.items() for old in field.also}


def rename(values: Mapping[str, Any], way: str = AUTOMATIC) -> dict[str, Any]:
    """Settings by the names they have now; earlier versions called some of them otherwise.

    ``method`` once named a blend or a way; ``delta_strength`` was the strength where the way is image delta. ``way``
    is what holds if none is named.

    Raises:
        ValueError: for a setting there is not.
    """
    found = {ALSO.get(name, name): value for name, value in values.items()}
    if "way" not in found and "method" in found:
        found["way"] = OPEN_BLEND if found["method"] in BLENDS else found.pop("method")
    delta = found.pop("delta_strength", None)
    if delta is not None and find_way(found.get("way", way)).name == DELTA:
        found["strength"] = delta
    unknown = [name for name in found if name not in FIELDS]
    if unknown:
        raise ValueError(f"settings: expected only {', '.join(FIELDS)}, got {', '.join(map(repr, unknown))}.")
    return found

