"""What the research note says, beside what was measured here: its next steps 1 (artifacts), 3 (layers), 4 (baseline).

A sentence of the note is held against a difference of figures. Less than two standard errors tell nothing, and it says
so: nothing is called right or wrong by less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .evidence import ArmSaid, Evidence, Figures
from .figures import SURE

CANNOT_TELL, HOLDS, DOES_NOT = "cannot tell", "holds here", "does not hold here"


@dataclass(frozen=True)
class Claim:
    """One row: the note's sentence, what was found, and what that says of it."""

    says: str
    found: str
    verdict: str


@dataclass(frozen=True)
class Arms:
    """The note's settings by what they vary."""

    said: dict[str, ArmSaid]
    figures: dict[str, Figures]

    def where(self, about: str, **values: object) -> list[Figures]:
        """Of a comparison of the note the settings with these values."""
        return [
            self.figures[id] for id, arm in self.said.items()
            if about in arm.about and id in self.figures
            and all(self.values(id).get(name) == value for name, value in values.items())
        ]

    def values(self, id: str) -> dict[str, object]:
        """All of a setting, what is written besides for the note's arithmetic among it."""
        settings = self.said[id].settings
        written = [one.partition(" ") for one in str(settings.get("published", "")).split(" + ") if one]
        return {**settings, **{name: value for name, _, value in written}}

    def one(self, about: str, **values: object) -> Figures | None:
        return next(iter(self.where(about, **values)), None)


def claims_of(evidence: Evidence) -> list[Claim]:
    """The table; rows whose settings were not painted are left out."""
    arms = Arms(
        {arm.id: arm for arm in evidence.arms if arm.about}, {one.arm: one for one in evidence.figures}
    )
    rows: list[Claim | None] = [
        _rises(arms), _override(arms),
        _cleaner("Layer -6 is crisper than -2 and -8.", "layer", arms, {"layer": -6}, ({"layer": -2}, {"layer": -8})),
        _cleaner("Layer -8 is cleaner than -2.", "layer", arms, {"layer": -8}, ({"layer": -2},)),
        _cleaner("Text tokens alone have fewer artifacts than image tokens.", "token", arms, {"tokens": "text_only"},
                 ({"tokens": "image_only"},)),
        _cleaner("Of image tokens, a scale per dimension reduces artifacts (against one for all).", "normalization",
                 arms, {"normalization": "per_dim"}, ({"normalization": None},)),
        _cleaner("Zeroing outlier dimensions at layer -2 reduces artifacts.", "outlier", arms,
                 {"outlier_masking": "zero"}, ({"outlier_masking": None},)),
        _cleaner("Clamping outlier dimensions at layer -2 reduces artifacts.", "outlier", arms,
                 {"outlier_masking": "clamp"}, ({"outlier_masking": None},)),
        *_layers(arms), _baseline(evidence),
    ]
    return [row for row in rows if row is not None]


def _rises(arms: Arms) -> Claim | None:
    found = sorted(
        ((arms.said[one.arm].settings["strength"], one) for one in arms.where("alpha")), key=lambda both: both[0]
    )
    found = [(alpha, one) for alpha, one in found if one.transfer is not None]
    if len(found) < 2:
        return None
    listed = ", ".join(f"α {alpha:g}: {shown(one.transfer, one.transfer_error)}" for alpha, one in found)
    (_, low), (_, high) = found[0], found[-1]
    verdict = _apart(high.transfer, high.transfer_error, low.transfer, low.transfer_error)
    return Claim("The picture acts by the blend, the more the larger α is.", f"transfer at {listed}", verdict)


def _override(arms: Arms) -> Claim | None:
    one = arms.one("alpha", strength=0.3)
    if one is None or one.adherence is None or one.words_adherence is None:
        return None
    found = (
        f"at α 0.3 the prompt is there to {shown(one.adherence, one.adherence_error)}, with the words alone to "
        f"{one.words_adherence:.2f}; the reference's own thing {_signed(one.leak, one.leak_error)}"
    )
    verdict = _apart(one.words_adherence, 0.0, one.adherence, one.adherence_error)
    return Claim("At α 0.3 the picture overrides the prompt: things and scene are lost.", found, verdict)


def _cleaner(
    says: str, about: str, arms: Arms, better: dict[str, object], worse: Sequence[dict[str, object]]
) -> Claim | None:
    ours, theirs = arms.one(about, **better), [(values, arms.one(about, **values)) for values in worse]
    if ours is None or any(one is None for _, one in theirs):
        return None
    listed = ", ".join(
        f"{' '.join(str(one or 'without') for one in values.values())} {_all_artifacts(figures)}"
        for values, figures in [(better, ours), *theirs]
    )
    verdicts = {_apart(*one.artifacts_log, *ours.artifacts_log) for _, one in theirs if one is not None}
    verdict = CANNOT_TELL if CANNOT_TELL in verdicts or len(verdicts) > 1 else verdicts.pop()
    return Claim(says, f"artifacts beside the words alone, mean over kinds: {listed}", verdict)


def _layers(arms: Arms) -> list[Claim]:
    """Next step 3: layers with figures."""
    found = sorted(
        ((int(arms.said[one.arm].settings["layer"]), one) for one in arms.where("layer") if one.transfer is not None),
        key=lambda both: -both[0],
    )
    if len(found) < 2:
        return []
    best = max(found, key=lambda both: both[1].transfer or 0.0)
    listed = "; ".join(
        f"{layer}: transfer {shown(one.transfer, one.transfer_error)}, prompt {one.adherence or 0:.2f}, artifacts "
        f"{_all_artifacts(one)}" for layer, one in found
    )
    others = [one for layer, one in found if layer != best[0]]
    sure = all(
        _apart(best[1].transfer, best[1].transfer_error, one.transfer, one.transfer_error) == HOLDS
        for one in others
    )
    return [Claim(
        "Next step 3: which layer? (-6 is the note's choice.)", listed,
        f"most arrives by layer {best[0]}" + ("" if sure else ", within the errors of another"),
    )]


def _baseline(evidence: Evidence) -> Claim | None:
    """Next step 4: a trained method beside it; there is no IP-Adapter for these weights here."""
    groups = {arm.id: arm.group for arm in evidence.arms}
    best: dict[str, Figures] = {}
    for one in evidence.figures:
        group = groups[one.arm]
        if one.transfer is not None and (group not in best or one.transfer > (best[group].transfer or 0.0)):
            best[group] = one
    names = [name for name in ("words", "picture adapter", "learned look", "research: as published") if name in best]
    if len(names) < 2:
        return None
    listed = ", ".join(f"{name} {shown(best[name].transfer, best[name].transfer_error)}" for name in names)
    return Claim(
        "Next step 4: the gap to trained methods. (No IP-Adapter of Z-Image is part of this.)",
        f"of what a caption brings: {listed}", "measured with what there is",
    )


def artifacts_by_way(evidence: Evidence, chosen: Sequence[str]) -> list[tuple[str, dict[str, float]]]:
    """Next step 1: by setting how many times the words alone's each kind of artifact is."""
    arms = {arm.id: arm for arm in evidence.arms}
    return [
        (f"{arms[one.arm].group}, {arms[one.arm].label}", dict(one.artifacts)) for one in evidence.figures
        if one.arm in chosen and one.artifacts
    ]


def _all_artifacts(one: Figures | None) -> str:
    """Geometric mean over kinds, and by how much it may be larger."""
    if one is None or one.artifacts_log[0] is None:
        return "–"
    mean, error = one.artifacts_log[0], one.artifacts_log[1]
    return f"{math.exp(mean):.2f}×" + (f" (× or ÷ {math.exp(error):.2f})" if error is not None else "")


def _apart(
    one: float | None, error: float | None, other: float | None, other_error: float | None
) -> str:
    """Whether one lies above the other by two standard errors of the difference."""
    if one is None or other is None or error is None or other_error is None:
        return CANNOT_TELL
    difference, unsure = one - other, SURE * math.hypot(error, other_error)
    return HOLDS if difference > unsure else DOES_NOT if difference < -unsure else CANNOT_TELL


def shown(value: float | None, error: float | None = None) -> str:
    """Two decimals, ± its error where there is one."""
    if value is None:
        return "–"
    text = f"{value:.2f}".replace("-0.00", "0.00")
    return text if error is None else f"{text} ± {error:.2f}"


def _signed(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:+.2f}".replace("-0.00", "+0.00") + ("" if error is None else f" ± {error:.2f}")
