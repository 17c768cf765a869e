"""What the judge is asked about each painting, and how its answers become figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...encoder.qwen3vl import Qwen3VLEncoder
from ...encoder.writing import describe
from ...reports.judge import SHOWS, Form, Query, ask_all, describe_parts, figure
from ...reports.trust import right_before_wrong

ADHERENCE, LEAK = "adherence", "leak"
TRUSTED = 0.8  # of the couples in which the judge has to tell a reference from another's words
UNDERSTOOD = 0.5  # mass of the answers among all tokens
CAPTION_TOKENS = 120

Answers = Mapping[str, Sequence[float]]  # by a query's key its share and the mass of the answers


@dataclass(frozen=True)
class Told:
    """What Qwen3-VL says of a reference: its look part by part and what it shows, and all of it as a caption."""

    parts: Mapping[str, str]
    caption: str

    @classmethod
    def of(cls, encoder: Qwen3VLEncoder, picture: Tensor, form: Form, budget: int) -> Told:
        caption = describe(encoder, [picture], form.caption, max_tokens=CAPTION_TOKENS, budget=budget).words
        return cls(describe_parts(encoder, picture, form, budget=budget), caption)


def look_queries(form: Form, told: Told) -> dict[str, tuple[Query, ...]]:
    """By part what is asked for a reference's look; parts that cannot be asked for are left out."""
    found = {}
    for part in form.parts:
        try:
            found[part] = form.part(part, told.parts[part])
        except ValueError:  # a form of few words, such as the miniature's, cannot ask for others
            continue
    return found


def leak_queries(form: Form, told: Told) -> tuple[Query, ...]:
    """What is asked to know whether what a reference shows has come along; none if that cannot be asked for."""
    try:
        return form.thing(told.parts[SHOWS]) if told.parts[SHOWS] else ()
    except ValueError:
        return ()


def queries_for(form: Form, things: Sequence[str], told: Sequence[Told]) -> list[Query]:
    """All that is asked of a painting: the prompt's things, and the look and the thing of each reference it may be
    compared with."""
    found: dict[str, Query] = {}
    each = [form.thing(thing) for thing in things]
    for one in told:
        each += [*look_queries(form, one).values(), leak_queries(form, one)]
    for queries in each:
        for query in queries:
            found.setdefault(query.key, query)
    return list(found.values())


def adherence(form: Form, things: Sequence[str], answers: Answers) -> float:
    """How far all of the prompt's things are there, as far as the least of them is."""
    return min(figure(answers, form.thing(thing)) for thing in things)


def look(form: Form, told: Told, answers: Answers) -> dict[str, float]:
    """How far each part of a reference's look is there."""
    return {part: figure(answers, queries) for part, queries in look_queries(form, told).items()}


def leak(form: Form, told: Told, answers: Answers) -> float:
    """How far what the reference shows is there; NaN if that could not be asked for."""
    queries = leak_queries(form, told)
    return figure(answers, queries) if queries else math.nan


def trust(
    encoder: Qwen3VLEncoder, pictures: Sequence[Tensor], told: Sequence[Told], form: Form, budget: int
) -> dict[str, Any]:
    """Whether this judge tells references by their own words: asked of each about its own look, of the next about the
    same, and of noise.

    Returns:
        the share of couples in which the right picture is put first, by what stands in the wrong one's place, the mean
        mass of the answers, by part the share of couples in which it alone puts a picture before another one that was
        told otherwise (None where all were told alike), ``things`` the same by what a picture shows, which is how
        adherence is asked for, and in a sentence each what is not good enough.
    """
    right, wrong, noise, mass = [], [], [], []
    by_part: dict[str, tuple[list[float], list[float]]] = {part: ([], []) for part in (*form.parts, SHOWS)}
    for index, (picture, words) in enumerate(zip(pictures, told, strict=True)):
        queries = [query for each in look_queries(form, words).values() for query in each]
        if not queries:
            continue
        drawn = torch.rand(picture.shape, generator=torch.Generator().manual_seed(index))
        other = pictures[(index + 1) % len(pictures)]
        for found, shown in ((right, picture), (wrong, other), (noise, drawn)):
            answers = ask_all(encoder, shown, [*queries, *leak_queries(form, words)], budget=budget)
            parts = look(form, words, answers)
            found.append(sum(parts.values()) / len(parts))
            if leak_queries(form, words):
                parts[SHOWS] = leak(form, words, answers)
            for part, value in parts.items():
                if shown is not drawn and told[(index + 1) % len(told)].parts[part] != words.parts[part]:
                    by_part[part][shown is other].append(value)
            if shown is picture:
                mass += [each for _, each in answers.values()]
    if not right:
        return {"verdict": ["The judge has no words for any part of these pictures: its figures mean nothing."]}
    known = {part: right_before_wrong(*both) if both[0] else None for part, both in by_part.items()}
    things = known.pop(SHOWS)
    found = {
        "another picture": right_before_wrong(right, wrong), "noise": right_before_wrong(right, noise),
        "mass": sum(mass) / len(mass), "own": sum(right) / len(right), "others": sum(wrong) / len(wrong),
        "parts": known, "things": things,
    }
    lines = [
        f"The judge puts a reference before {name} in {found[name]:.2f} of the couples only; {TRUSTED:g} is wanted."
        for name in ("another picture", "noise") if found[name] < TRUSTED
    ]
    if things is not None and things < TRUSTED:
        lines.append(
            f"Asked for what a reference shows, the judge puts it before one that shows something else in {things:.2f} "
            f"of the couples only; {TRUSTED:g} is wanted. What it says of the prompt's things means little."
        )
    if found["mass"] < UNDERSTOOD:
        lines.append(
            f"Only {found['mass']:.2f} of the probability is on the answers that were asked for: the questions are not "
            "understood."
        )
    return {**found, "verdict": lines}
