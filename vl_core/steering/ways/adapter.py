"""Picture adapter: the states that a description would have, predicted from the picture by a fit on a folder."""

from __future__ import annotations

from ...adapters.picture_adapter import MAX_STRENGTH, PictureAdapter
from ...states.fields import quoted
from ..settings import Settings
from ..way import Given, Needs, Readings, Steered, Text, Way

# Held-out R² of the template's tail that a fit has to reach. On the miniature fits of .6 and more brought .82 to .95 of
# a caption, those below .26 to .89, words .99 (miniature/takes.json, "fits"). By the tail both kinds of fit, beside the
# user's prompt and beside none, can be compared.
WORTH_IT = 0.6


def missing(given: Given) -> str:
    if given.adapter is None:
        return "no picture adapter is connected"
    family = given.adapter.spec.family
    return "" if family == given.family.group else f"the picture adapter is for {family}, not for {given.family.group}"


def needs(settings: Settings, given: Given) -> Needs:
    spec = _adapter(given).spec
    return Needs(alone=tuple(spec.features.layers), beside=None if spec.own_prompt else spec.prompt)


def doubts(readings: Readings, settings: Settings, given: Given) -> str:
    """Why the adapter should not be relied on for these pictures."""
    adapter = _adapter(given)
    reached = worth_of(adapter)
    if reached < WORTH_IT:
        return f"the picture adapter's fit is weak ({adapter.report.pairs} pictures; about 200 do)"
    known = [adapter.familiarity(adapter.spec.features.of(one)) for one in readings.alone]
    if any(each is not None and not each.familiar for each in known):
        return "the picture adapter has not seen pictures like this"
    if settings.taken.slots and not _slots(settings, adapter):
        return f"the picture adapter has no part for {settings.take}"
    return ""


def worth_of(adapter: PictureAdapter) -> float:
    """Held-out R² of the tail, or of all where the fit has no tail; NaN if nothing could be held out."""
    return adapter.report.r2_by.get("tail", adapter.report.r2)


def act(text: Text, readings: Readings, settings: Settings, given: Given) -> Steered:
    adapter = _adapter(given)
    below = [weight for weight in readings.weights if weight < 0]
    if below:
        raise ValueError(
            f"weights: expected 0 or more with a picture adapter, got {below[0]:g}. Leave that picture out."
        )
    slots = _slots(settings, adapter)
    if settings.taken.slots and not slots:
        own = ", ".join(slot.name for slot in adapter.spec.slots)
        raise ValueError(
            f"take: the picture adapter has no part for {settings.take}, it has {own}. Take the look, or choose words."
        )
    states, layout, info = adapter.apply(
        text.states, text.layout, readings.alone, settings.strength, weights=readings.weights or None,
        slots=slots or None, words=text.words,
    )
    head = f"Picture adapter: {settings.take} added to your prompt at strength {settings.strength:g}."
    lines = [head, info.describe()]
    if settings.strength < 0:
        lines.append(
            "Below 0 this picture is hardly pushed away: where it was measured, another picture's did nearly the same."
        )
    if not info.familiar:
        lines.append("The adapter has not seen pictures like this. The way words needs none.")
    return Steered(states, layout, tuple(lines), text, text.words and text.words + info.tokens)


def parse_slots(text: str) -> dict[str, float]:
    """``"style, palette:0.5"`` as name -> factor.

    Raises:
        ValueError: for a factor that is no finite number, or a slot named twice.
    """
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, factor = part.partition(":")
        try:
            value = float(factor) if colon else 1.0
        except ValueError:
            value = float("nan")
        if not abs(value) <= MAX_STRENGTH:
            raise ValueError(
                f"slots: expected names with factors from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}, such as style, "
                f"palette:0.5, got {quoted(part)}."
            )
        if name.strip() in found:
            raise ValueError(f"slots: expected every slot once, got {quoted(name.strip())} more often.")
        found[name.strip()] = value
    return found


def _slots(settings: Settings, adapter: PictureAdapter) -> dict[str, float]:
    """The slots that are named, or those of the take that the adapter has; none for all."""
    if settings.slots.strip():
        return parse_slots(settings.slots)
    own = {slot.name for slot in adapter.spec.slots}
    chosen = [name for name in settings.taken.slots if name in own]
    if settings.taken.slots and not chosen and own:
        return {}
    return dict.fromkeys(chosen, 1.0)


def _adapter(given: Given) -> PictureAdapter:
    if given.adapter is None:
        raise ValueError(
            "adapter: the way picture adapter needs one, got none. Connect Fit Picture Adapter, choose an "
            "adapter_file, or choose the way words."
        )
    if reason := missing(given):
        raise ValueError(
            f"adapter: expected one fitted for {given.family.group}, which clip is the text encoder of: {reason}. Fit "
            "one with this clip, or choose the way words."
        )
    return given.adapter


WAYS = (
    Way(
        "picture adapter", "the same without words, by a fit on a folder of pictures", act, needs,
        low=-MAX_STRENGTH, high=MAX_STRENGTH, uses=("image_tokens", "slots", "mask_use"), missing=missing,
        doubts=doubts, rank=20,
    ),
)
