"""Questions with one-token answers: how likely Qwen3-VL finds each answer, of many questions about one picture at once.

What the picture's positions compute is run once; the questions then follow it side by side in one pass, each blind to
the others. Several pictures of one size are read in the same passes. Nothing is written: the first token's
probabilities are the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from ..pictures import DEFAULT_BUDGET, Picture
from ..states.layout import TokenLayout
from ..states.tensors import to_float64
from .asking import lay_out_request, prepare_pictures
from .layouts import vocabulary_of

if TYPE_CHECKING:
    from .qwen3vl import Qwen3VLEncoder

FirstTokens = tuple[tuple[int, ...], ...]  # by answer, see tokens_of
MOST_KNOWN = 64  # sets of answers
_KNOWN: WeakKeyDictionary[Any, dict[tuple, FirstTokens]] = WeakKeyDictionary()


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


@dataclass(frozen=True, eq=False)
class Ready:
    """Questions about a picture as the model reads them.

    Attributes:
        layouts: of each question, the picture before it. tokens: see :func:`tokens_of`.
    """

    picture: Picture
    layouts: tuple[TokenLayout, ...]
    tokens: tuple[FirstTokens, ...]


def answer(
    encoder: Qwen3VLEncoder, image: Tensor, questions: Sequence[Question], *, budget: int = DEFAULT_BUDGET,
    check: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """How likely Qwen3-VL finds each answer of each question about a picture.

    Args:
        encoder: with all its blocks. image: ``(H, W, 3)`` or ``(1, H, W, 3)``, float in [0, 1] or uint8.
        budget: most image tokens. check: called between blocks; what it raises ends the reading.

    Raises:
        TypeError, ValueError: see :func:`~.asking.ask` and :func:`tokens_of`; for no questions.
    """
    return answer_each(encoder, [ready(encoder, image, questions, budget=budget)], check=check)[0]


def ready(
    encoder: Qwen3VLEncoder, image: Tensor, questions: Sequence[Question], *, budget: int = DEFAULT_BUDGET
) -> Ready:
    """All of :func:`answer` that needs no GPU, so that it can be done while that reads other pictures.

    Raises:
        TypeError, ValueError: see there.
    """
    if not questions:
        raise ValueError("questions: expected at least one, got none.")
    tokens = tuple(_known_tokens(encoder.tokenizer, question.answers) for question in questions)
    (picture,), _ = prepare_pictures([image], budget)
    layouts = tuple(lay_out_request(encoder, [picture.grid], question.ask, max_tokens=1) for question in questions)
    return Ready(picture, layouts, tokens)


def answer_each(
    encoder: Qwen3VLEncoder, asked: Sequence[Ready], *, check: Callable[[], None] = lambda: None
) -> list[list[Answer]]:
    """:func:`answer` of several pictures, those of one size that follow one another read together: the same answers up
    to rounding. Each of 1024 image tokens takes 0.2 GB of the 4B meanwhile."""
    with torch.inference_mode():
        states = _last_states(encoder, asked, check)
        scores = functional.linear(states, encoder.head().to(states.device, states.dtype)).float()
    told = iter(read_answers(scores, [tokens for one in asked for tokens in one.tokens]))
    return [list(itertools.islice(told, len(one.tokens))) for one in asked]


def tokens_of(tokenizer: Any, question: Question) -> list[list[int]]:
    """The first tokens that stand for each answer: with a capital or without, with a blank before or without.

    Raises:
        ValueError: for fewer than two answers, or two that begin with the same token.
    """
    return _tokens_of(tokenizer, question.answers)


def _tokens_of(tokenizer: Any, answers: tuple[str, ...]) -> list[list[int]]:
    if len(answers) < 2:
        raise ValueError(f"answers: expected two or more to choose from, got {', '.join(answers) or 'none'}.")
    found: list[list[int]] = []
    for text in answers:
        forms = dict.fromkeys((text, text.capitalize(), f" {text}", f" {text.capitalize()}"))
        ids = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
        # A form that takes more tokens than the shortest one begins with a piece that other words share.
        shortest = min(len(one) for one in ids)
        found.append(list(dict.fromkeys(one[0] for one in ids if len(one) == shortest)))
    seen: dict[int, str] = {}
    for text, ids in zip(answers, found, strict=True):
        for token in ids:
            if token in seen:
                raise ValueError(
                    f"answers: expected words that begin with different tokens, {seen[token]!r} and {text!r} begin "
                    "with the same. Choose other words."
                )
            seen[token] = text
    return found


def _known_tokens(tokenizer: Any, answers: tuple[str, ...]) -> FirstTokens:
    """The same few answers are asked for again and again; what is known of a tokenizer goes with it."""
    known, key = _KNOWN.setdefault(tokenizer, {}), (vocabulary_of(tokenizer), answers)
    found = known.get(key)
    if found is None:
        if len(known) >= MOST_KNOWN:
            known.clear()
        found = known[key] = tuple(map(tuple, _tokens_of(tokenizer, answers)))
    return found


def read_answers(scores: Tensor, tokens: Sequence[Sequence[Sequence[int]]]) -> list[Answer]:
    """Answers from scores of all tokens ``(Q, vocabulary)``, before the softmax.

    Args:
        tokens: per question and answer the tokens that stand for it.
    """
    every = to_float64(scores).log_softmax(-1)
    rows = [row for row, answers in enumerate(tokens) for ids in answers for _ in ids]
    ids = [token for answers in tokens for each in answers for token in each]
    # All at once, and on from there where it takes no launches: each look at a GPU's numbers waits for it.
    likely = iter(every[torch.tensor(rows).to(every.device), torch.tensor(ids).to(every.device)].exp().tolist())
    found = []
    for answers in tokens:
        each = [sum(itertools.islice(likely, len(ids))) for ids in answers]
        mass = sum(each)
        found.append(Answer(tuple(one / mass if mass > 0 else 1 / len(each) for one in each), mass))
    return found


def _last_states(encoder: Qwen3VLEncoder, asked: Sequence[Ready], check: Callable[[], None]) -> Tensor:
    """``(Q, D)`` after the last norm; one by one where the merged pass cannot be used."""
    if not (encoder.fast and encoder.reader.watched.fit()):
        return torch.stack([
            encoder.last_state(layout, [one.picture], check) for one in asked for layout in one.layouts
        ])
    return torch.cat([
        encoder.reader.branch(
            [(one.layouts, one.picture) for one in alike], dtype=encoder.dtype, device=encoder.device, check=check
        ) for _, alike in itertools.groupby(asked, lambda one: one.picture.grid)
    ])
