"""One prompt and its pictures before a host: fetches what ways need, once, and lets them act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..encoder.answers import append_words
from ..encoder.writing import Description
from ..stages.published import neutral_picture
from ..states.statistics import ReferenceStatistics
from ..states.vl_states import VLStates
from .host import Host
from .references import Reference, check_joined, cropped, read_alone, read_as_one, whole_pictures
from .settings import BY_TAKE, Settings
from .way import Given, Needs, Readings, Steered, Text, Way, candidates

NOTHING = Given()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one set of settings.

    Attributes:
        entries: one for each entry of the prompt. ``texts``: the prompt's own entries, without any picture.
        lines: for people, the first one most of all.
        way: the name of the way that acted; "" where words alone are left.
        words: what Qwen3-VL wrote, or somebody in its place; "" if nothing was needed.
    """

    entries: tuple[Steered, ...]
    texts: tuple[Text, ...]
    lines: tuple[str, ...]
    way: str
    words: str = ""

    def remarked(self, line: str) -> Outcome:
        """The same with one more line."""
        return replace(self, lines=(*self.lines, line))

    def report(self) -> str:
        """All lines: those of the run, then those of each entry, numbered if there are several."""
        own = ["\n".join(entry.lines) for entry in self.entries]
        if len(own) > 1 and len(set(own)) > 1:
            own = [f"[{number}] {line}" for number, line in enumerate(own, 1)]
        else:
            own = own[:1]
        first, *rest = "\n".join(own).split("\n") if own else [""]
        return "\n".join(line for line in (first, *self.lines, *rest) if line)


@dataclass(frozen=True)
class _Ask:
    """What decides a reading besides its layers."""

    prompt: str
    combine: str
    mask_use: str
    picture: str
    attend: str
    budget: int


class Desk:
    """A prompt and its pictures before a host: what any settings need of them is fetched once.

    Args:
        host: the encoders at hand. prompt: what to paint. references: pictures; those of weight 0 are left out.
        given: what else is there.
        together: settings that will be run, so that the first reading holds the layers of all of them.
    """

    def __init__(
        self, host: Host, prompt: str, references: Sequence[Reference], given: Given = NOTHING,
        together: Sequence[Settings] = (),
    ) -> None:
        self.host, self.prompt = host, prompt
        self.references = [one for one in references if one.weight]
        self.given = replace(given, family=host.family)
        self._layers: dict[_Ask, tuple[set[int], bool]] = {}
        self._seen: dict[_Ask, tuple[VLStates, VLStates | None, list[str]]] = {}
        self._neutral: dict[tuple[_Ask, tuple[int, ...]], VLStates] = {}
        self._alone: dict[tuple, tuple[tuple[VLStates, ...], list[str]]] = {}
        self._texts: dict[tuple[str, str], tuple[Text, ...]] = {}
        self._words: dict[tuple, tuple[str, list[str]]] = {}
        self._statistics: tuple[tuple[ReferenceStatistics | None, ...], str] | None = None
        self._many = len(together) > 1
        for settings in together:
            if self._acts(settings):
                for way in candidates(settings.row):
                    if not way.missing(self.given):
                        self._plan(settings, way)

    def run(self, settings: Settings) -> Outcome:
        """What comes of one set of settings.

        Raises:
            ValueError: for what the way cannot do, with what can.
        """
        if not self._acts(settings):
            return self._words_alone(settings)
        way, lines = self._choose(settings)
        self._plan(settings, way)
        readings = self._readings(settings, way)  # what is wrong with pictures is said before the text encoder runs
        return self._act(settings, way, readings, lines)

    def fetch(self, settings: Settings) -> None:
        """All that :meth:`run` will need of the pictures."""
        if self._acts(settings):
            way, _ = self._choose(settings)
            self._readings(settings, way)

    def _acts(self, settings: Settings) -> bool:
        """Whether something acts: a picture, kept words, or a learned look."""
        if settings.strength == 0:
            return False
        names = [way.name for way in candidates(settings.row)]
        kept = "words" in names and self.given.words is not None
        return bool(self.references) or kept or ("learned look" in names and self.given.look is not None)

    # --- which way ----------------------------------------------------------------------------------------------------

    def _choose(self, settings: Settings) -> tuple[Way, list[str]]:
        """The way that acts, and why if it was chosen here."""
        if not settings.row.tries:
            return settings.row, []
        *others, last = candidates(settings.row)
        why: list[str] = []
        for way in others:
            reason = way.missing(self.given)
            if reason and way.quiet:
                continue
            if not reason and not way.low <= settings.strength <= way.high:
                reason = f"the {way.name} takes no strength of {settings.strength:g}"
            if not reason and not self.references and self._looks(settings, way):
                reason = f"the {way.name} has no picture to look at"
            if not reason:
                reason = way.doubts(self._readings(settings, way), settings, self.given)
            if not reason:
                return way, [f"{settings.way}: {way.name}"]
            why.append(reason)
        because = f", because {' and '.join(why)}" if why else ""
        return last, [f"{settings.way}: {last.name}{because}"]

    def _looks(self, settings: Settings, way: Way) -> bool:
        """Whether a way reads pictures."""
        needs = self._needs(settings, way)
        return bool(needs.layers or needs.alone)

    # --- what is needed -----------------------------------------------------------------------------------------------

    def _plan(self, settings: Settings, way: Way) -> None:
        """Know a reading's layers before it is made, so that one forward has them all."""
        needs = self._needs(settings, way)
        if needs.layers:
            ask = self._ask(settings)
            layers, muted = self._layers.get(ask, (set(), False))
            self._layers[ask] = layers | set(needs.layers), muted or needs.muted

    def _readings(self, settings: Settings, way: Way) -> Readings:
        """All that a way needs, with the described entries left open: :meth:`run` pairs them."""
        needs = self._needs(settings, way)
        weights = tuple(one.weight for one in self.references)
        found = Readings(weights=weights)
        if needs.layers:
            self.host.check()
            seen, muted, _ = self._reading(settings, needs)
            found = replace(found, seen=seen, muted=muted if needs.muted or settings.combine else None)
        if needs.neutral:
            found = replace(found, neutral=self._grey(settings, needs))
        if needs.alone:
            found = replace(found, alone=self._each(settings, needs)[0])
        if needs.words:
            found = replace(found, words=self._written(settings)[0])
        if needs.statistics:
            found = replace(found, statistics=self._measured()[0])
        else:
            found = replace(found, statistics=(None,) * len(self.given.family.layers))
        return found

    def _prompt_of(self, settings: Settings) -> str:
        """The prompt that pictures are read beside: with the words after it, where settings put them first."""
        return append_words(self.prompt, self._written(settings)[0]) if settings.described else self.prompt

    def _entries(self, prompt: str, added: str = "") -> tuple[Text, ...]:
        """The host's entries for a prompt, encoded once."""
        if (prompt, added) not in self._texts:
            self._texts[prompt, added] = tuple(self.host.words(prompt, added))
        return self._texts[prompt, added]

    def _own(self, settings: Settings) -> tuple[Text, ...]:
        """The entries that are steered: the prompt's, or those of the prompt with the words after it."""
        return self._entries(self.prompt, self._written(settings)[0] if settings.described else "")

    def _words_alone(self, settings: Settings) -> Outcome:
        """The prompt's own entries, with the words after it where settings put them first."""
        texts = self._own(settings)
        line = "Words only: strength 0." if settings.strength == 0 else "Words only: no picture."
        entries = tuple(Steered(one.states, one.layout, (line,), one, one.words) for one in texts)
        return Outcome(entries, texts, (), "")

    def _act(self, settings: Settings, way: Way, readings: Readings, chosen: Sequence[str]) -> Outcome:
        """Let a way act on every entry of the prompt."""
        lines = [*chosen, *self._remarks(settings, self._needs(settings, way))]
        if way.research:
            lines.append(f"{way.name} showed next to nothing where it was measured. Choose automatic or words instead.")
        texts = self._own(settings)
        described: tuple[Text, ...] = ()
        if readings.words:
            described = self._entries(self.prompt, readings.words)
            if len(described) != len(texts):
                raise ValueError(
                    f"prompt: expected as many entries with the words after it as without, {len(texts)}, got "
                    f"{len(described)}. Schedule CLIP hooks by ranges that do not depend on the words."
                )
        own = settings if settings.way == way.name else replace(settings, way=way.name)
        entries = [
            way.act(text, replace(readings, described=described[index] if described else None), own, self.given)
            for index, text in enumerate(texts)
        ]
        return Outcome(tuple(entries), texts, tuple(lines), way.name, readings.words)

    # --- fetching, once -----------------------------------------------------------------------------------------------

    def _needs(self, settings: Settings, way: Way) -> Needs:
        if reason := way.missing(self.given):
            way.needs(settings, self.given)  # some say themselves what to do about it
            raise ValueError(f"way: {way.name} cannot act here: {reason}. Choose another way.")
        return way.needs(settings if settings.way == way.name else replace(settings, way=way.name), self.given)

    def _ask(self, settings: Settings) -> _Ask:
        attend = settings.attend or settings.taken.attend
        picture = settings.taken.picture if settings.picture == BY_TAKE else settings.picture
        return _Ask(
            self._prompt_of(settings), settings.combine, settings.mask_use, picture, attend, settings.image_tokens
        )

    def _reading(self, settings: Settings, needs: Needs) -> tuple[VLStates, VLStates | None, list[str]]:
        ask = self._ask(settings)
        layers, muted = self._layers.get(ask, (set(needs.layers), needs.muted))
        if ask not in self._seen:

            seen, silent, lines = read_as_one(self.references, settings, self._read(ask, sorted(layers)), muted)
            if self._many and not self.given.family.stacked:
                twice = " and once more with the picture muted" if muted else ""
                lines.append(f"read once{twice}, layers {', '.join(map(str, sorted(layers)))}")
            self._seen[ask] = seen, silent, lines
        return self._seen[ask]

    def _read(self, ask: _Ask, layers: Sequence[int]) -> Callable[..., tuple[VLStates, list[str]]]:
        """The host's reading of pictures, muted or not, as it was asked for."""
        return partial(
            self.host.read, prompt=ask.prompt, layers=layers, system_prompt=ask.attend, budget=ask.budget
        )

    def _grey(self, settings: Settings, needs: Needs) -> VLStates:
        """The reading with a grey picture, as wide as it was shown, in the place of each."""
        ask = self._ask(settings)
        if (ask, needs.layers) not in self._neutral:
            shown, _ = cropped(self.references, settings)
            grey = [
                Reference(neutral_picture(picture.shape[-2]).float() / 255, None, one.weight)
                for picture, one in zip(shown, self.references, strict=True)
            ]
            read = self._read(ask, needs.layers)
            self._neutral[ask, needs.layers] = read_as_one(grey, settings, read, False)[0]
        return self._neutral[ask, needs.layers]

    def _each(self, settings: Settings, needs: Needs) -> tuple[tuple[VLStates, ...], list[str]]:
        beside = self.prompt if needs.beside is None else needs.beside
        key = (beside, needs.alone, settings.image_tokens, settings.mask_use)
        if key not in self._alone:
            group = self.given.adapter.spec.family if self.given.adapter else ""
            pictures, lines = whole_pictures(self.references, settings)
            found, _, notes = read_alone(
                pictures,
                lambda shown, muted=False: self.host.read(
                    shown, beside, needs.alone, budget=settings.image_tokens, group=group
                ),
            )
            self._alone[key] = tuple(found), [*lines, *notes]
        return self._alone[key]

    def _written(self, settings: Settings) -> tuple[str, list[str]]:
        """Words about the pictures, and remarks; the same pictures are not described twice."""
        if self.given.words is not None:
            return self.given.words.strip(), []
        instruction = settings.instruction.strip() or self.host.instruction(settings.taken)
        key = (instruction, settings.longest, settings.image_tokens, settings.mask_use)
        if key not in self._words:
            check_joined(self.references, "words")
            pictures, lines = whole_pictures(self.references, settings)
            if not pictures:
                raise ValueError("images: expected at least one picture to describe, got none. Connect an image.")
            found, before = self.host.store.look_up(
                Description,
                (self.host.identity(), instruction, str(settings.longest), str(settings.image_tokens), *pictures),
                lambda: self.host.write(
                    pictures, instruction, longest=settings.longest, budget=settings.image_tokens
                ),
            )
            more = ["described before: the same words"] if before else []
            self._words[key] = found.words, [*lines, *found.notes, *more]
        return self._words[key]

    def _measured(self) -> tuple[tuple[ReferenceStatistics | None, ...], str]:
        if self._statistics is None:
            if self.given.statistics is not None and None not in self.given.statistics:
                self._statistics = self.given.statistics, ""
            else:
                measured, origin = self.host.statistics()
                self._statistics = tuple(measured), f"reference statistics {origin}"
        return self._statistics

    def _remarks(self, settings: Settings, needs: Needs) -> list[str]:
        """What was remarked on while this was fetched."""
        lines: list[str] = []
        if needs.layers:
            lines += self._reading(settings, needs)[2]
            family = self.given.family
            if family.stacked:
                place = f" in place of layer {settings.layer}" if settings.layer else ""
                lines.append(
                    f"{family.name}: {family.describe_layers()}{place}, each mixed for itself; padding stays as it is"
                )
        if needs.alone:
            lines += self._each(settings, needs)[1]
        if needs.words or settings.described:
            lines += self._written(settings)[1]
        if needs.statistics and (origin := self._measured()[1]):
            lines.append(origin)
        return lines


def needed_layers(many: Sequence[Settings], given: Given = NOTHING) -> tuple[int, ...]:
    """Hidden states of Qwen3-VL that some of these settings may need, negative from the end.

    The last one stands for all blocks, where one of them is to write.
    """
    found: set[int] = set()
    for settings in many:
        for way in candidates(settings.row) if settings.strength else ():
            if not way.missing(given):
                needs = way.needs(replace(settings, way=way.name), given)
                writes = (needs.words or settings.described) and given.words is None
                found |= {*needs.layers, *needs.alone, *([-1] if writes else [])}
    return tuple(sorted(found))
