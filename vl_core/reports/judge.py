"""A judge that asks Qwen3-VL about a picture: whether what was asked for is there, and what of the reference.

Every figure is a probability that Qwen3-VL gives a one-token answer (:mod:`~vl_core.encoder.judging`). What a reference
looks like is its own description, part by part; each part is then asked for in a painting. How far such a judge can be
trusted is measured on the miniature, beside one that was trained (docs/evidence.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ..encoder.judging import Answer, Question, answer
from ..encoder.qwen3vl import Qwen3VLEncoder
from ..encoder.writing import INSTRUCTIONS, describe
from ..pictures import DEFAULT_BUDGET

YES, NO = YES_NO = ("yes", "no")
SHOWS = "shows"  # beside the parts: what a reference shows, which should not come along
LONGEST = 24  # tokens of a part's description
DOUBTFUL = 0.5  # mass of the answers below which a question was not understood


@dataclass(frozen=True)
class Query:
    """A question and the answer that is hoped for.

    Attributes:
        also: what has to hold as well, each by its own question; the share of a query is the product of all shares, its
            mass the smallest of all.
    """

    question: Question
    wanted: str
    also: tuple[Query, ...] = ()

    @property
    def each(self) -> tuple[Query, ...]:
        """One query a question: itself, then what has to hold as well."""
        return (replace(self, also=()), *(one for other in self.also for one in other.each))

    @property
    def key(self) -> str:
        """Of its share in a record of answers, a line a question."""
        return "\n".join(f"{one.question.ask} {one.wanted}" for one in self.each)


class Form(Protocol):
    """How a Qwen3-VL is asked."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Of a look, by name."""
        ...

    @property
    def caption(self) -> str:
        """What is asked of a reference to have all of it in words."""
        ...

    def describe(self, part: str) -> str:
        """What is asked of a reference about a part, or about what it shows."""
        ...

    def thing(self, words: str) -> tuple[Query, ...]:
        """What is asked to know whether a thing is there; it is as far as the answers say so in the mean."""
        ...

    def part(self, part: str, words: str) -> tuple[Query, ...]:
        """What is asked to know whether a part of a look is there."""
        ...


ONLY = "Answer with these words only."
DESCRIBE = {
    "style": f"Name the visual style of this picture in one to four words, such as oil painting. {ONLY}",
    "colours": f"Name the two or three main colours of this picture. {ONLY}",
    "light and mood": f"Name the light and the mood of this picture in two to five words. {ONLY}",
    "composition": f"Name the viewpoint and the distance of this picture in two to five words. {ONLY}",
    SHOWS: f"Name the main thing that this picture shows in one to three words. {ONLY}",
}
ASK = {
    "style": "Is this picture made in this style: {}?",
    "colours": "Are these the main colours of this picture: {}?",
    "light and mood": "Does this picture have this light and mood: {}?",
    "composition": "Does this picture have this viewpoint and distance: {}?",
}
THING = "Is there {} in this picture?"
ANSWER = "Answer with yes or no."


@dataclass(frozen=True)
class Sentences:
    """Whole sentences, for a Qwen3-VL that was trained on many."""

    parts: tuple[str, ...] = tuple(ASK)
    caption: str = INSTRUCTIONS["variation of the picture"]

    def describe(self, part: str) -> str:
        return DESCRIBE[part]

    def thing(self, words: str) -> tuple[Query, ...]:
        return (Query(Question(f"{THING.format(words)} {ANSWER}", YES_NO), YES),)

    def part(self, part: str, words: str) -> tuple[Query, ...]:
        return (Query(Question(f"{ASK[part].format(words)} {ANSWER}", YES_NO), YES),)


def say_parts(form: Form, write: Callable[[str], str]) -> dict[str, str]:
    """What is said of each part of a reference's look, and of what it shows, by what ``write`` answers."""
    asked = {part: write(form.describe(part)) for part in (*form.parts, SHOWS)}
    return {part: " ".join(words.split()).strip(" .,;:\"'").lower() for part, words in asked.items()}


def describe_parts(
    encoder: Qwen3VLEncoder, picture: Tensor, form: Form, *, budget: int = DEFAULT_BUDGET
) -> dict[str, str]:
    """:func:`say_parts` by Qwen3-VL, of a picture.

    Raises:
        ValueError: if it has no words for a part.
    """
    return say_parts(
        form, lambda ask: describe(encoder, [picture], ask, max_tokens=LONGEST, budget=budget).words
    )


def questions_of(queries: Sequence[Query]) -> list[Question]:
    """Each once, in their order."""
    return list(dict.fromkeys(one.question for query in queries for one in query.each))


def shares_of(
    queries: Sequence[Query], ask: Callable[[list[Question]], Sequence[Answer]]
) -> dict[str, tuple[float, float]]:
    """By each query's key how likely its answer is among those it may have, and their probability among all tokens.

    Queries of the same question share it. Of a query with more that has to hold, see there.
    """
    questions = questions_of(queries)
    told: Mapping[Question, Answer] = dict(zip(questions, ask(questions), strict=True))
    return {
        query.key: (
            math.prod(told[one.question].shares[one.question.answers.index(one.wanted)] for one in query.each),
            min(told[one.question].mass for one in query.each),
        )
        for query in queries
    }


def ask_all(
    encoder: Qwen3VLEncoder, picture: Tensor, queries: Sequence[Query], *, budget: int = DEFAULT_BUDGET
) -> dict[str, tuple[float, float]]:
    """:func:`shares_of` a picture, by Qwen3-VL."""
    return shares_of(queries, lambda questions: answer(encoder, picture, questions, budget=budget))


def figure(answers: Mapping[str, Sequence[float]], queries: Sequence[Query]) -> float:
    """How far something is there, in [0, 1]: how likely the answers are that say so, in the mean."""
    return sum(answers[query.key][0] for query in queries) / len(queries)
