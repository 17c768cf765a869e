"""Questions with one-token answers: how likely Qwen3-VL finds each answer, of many questions about one picture at once.

What the picture's positions compute is run once; the questions then follow it side by side in one pass, each blind to
the others. Nothing is written: the first token's probabilities are the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ..pictures import DEFAULT_BUDGET
from ..states.tensors import to_float64
from .writing import Asked, ask

if TYPE_CHECKING:
    from .qwen3vl import Qwen3VLEncoder


@dataclass(frozen=True)
class Question:
    """What is asked about a picture.

    Attributes:
        ask: in words. answers: what may be answered, told apart by their first tokens.
    """

    ask: str
    answers: tuple[str, ...] = ("yes", "no")


@dataclass(frozen=True)
class Answer:
    """How likely each answer is.

    Attributes:
        shares: of the answers, in their order; together 1.
        mass: the probability that all of them have together among all tokens: near 0 the model answers something else,
            and the shares mean little.
    """

    shares: tuple[float, ...]
    mass: float


def answer(
    encoder: Qwen3VLEncoder, image: Tensor, questions: Sequence[Question], *, budget: int = DEFAULT_BUDGET,
    check: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """How likely Qwen3-VL finds each answer of each question about a picture.

    Args:
        encoder: with all its blocks. image: ``(H, W, 3)`` or ``(1, H, W, 3)``, float in [0, 1] or uint8.
        budget: most image tokens. check: called between blocks; what it raises ends the reading.

    Raises:
        TypeError, ValueError: see :func:`~.writing.ask` and :func:`tokens_of`; for no questions.
    """
    if not questions:
        raise ValueError("questions: expected at least one, got none.")
    tokens = [tokens_of(encoder.tokenizer, question) for question in questions]
    asked = [ask(encoder, [image], question.ask, "", budget, 1) for question in questions]
    with torch.inference_mode():
        states = _last_states(encoder, asked, check)
        scores = functional.linear(states, encoder.head().to(states.device, states.dtype)).float()
    return read_answers(scores, tokens)


def tokens_of(tokenizer: Any, question: Question) -> list[list[int]]:
    """The first tokens that stand for each answer: with a capital or without, with a blank before or without.

    Raises:
        ValueError: for fewer than two answers, or two that begin with the same token.
    """
    if len(question.answers) < 2:
        raise ValueError(f"answers: expected two or more to choose from, got {', '.join(question.answers) or 'none'}.")
    found: list[list[int]] = []
    for text in question.answers:
        forms = dict.fromkeys((text, text.capitalize(), f" {text}", f" {text.capitalize()}"))
        ids = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
        # A form that takes more tokens than the shortest one begins with a piece that other words share.
        shortest = min(len(one) for one in ids)
        found.append(list(dict.fromkeys(one[0] for one in ids if len(one) == shortest)))
    seen: dict[int, str] = {}
    for text, ids in zip(question.answers, found, strict=True):
        for token in ids:
            if token in seen:
                raise ValueError(
                    f"answers: expected words that begin with different tokens, {seen[token]!r} and {text!r} begin "
                    "with the same. Choose other words."
                )
            seen[token] = text
    return found


def read_answers(scores: Tensor, tokens: Sequence[Sequence[Sequence[int]]]) -> list[Answer]:
    """Answers from scores of all tokens ``(Q, vocabulary)``, before the softmax.

    Args:
        tokens: per question and answer the tokens that stand for it.
    """
    every = to_float64(scores).log_softmax(-1)
    found = []
    for row, answers in zip(every, tokens, strict=True):
        each = torch.stack([row[list(ids)].exp().sum() for ids in answers])
        mass = each.sum()
        shares = each / mass if mass > 0 else torch.full_like(each, 1 / len(each))
        found.append(Answer(tuple(shares.tolist()), float(mass)))
    return found


def _last_states(encoder: Qwen3VLEncoder, asked: Sequence[Asked], check: Callable[[], None]) -> Tensor:
    """``(Q, D)`` after the last norm; one by one where the merged pass cannot be used."""
    if encoder.fast and encoder.reader.watched.fit():
        return encoder.reader.branch(
            [one.layout for one in asked], asked[0].pictures, dtype=encoder.dtype,
            device=encoder.device, check=check,
        )
    return torch.stack([encoder.last_state(one.layout, one.pictures, check) for one in asked])
