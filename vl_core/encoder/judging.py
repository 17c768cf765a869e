"""Questions with one-token answers: how likely Qwen3-VL finds each answer, of many questions about one picture at once.

What the picture's positions compute is run once; the questions then follow it side by side in one pass, each blind to
the others. Nothing is written: the first token's probabilities are the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..pictures import DEFAULT_BUDGET, Picture
from ..states.layout import TokenLayout
from .forward import fits, prefix_length, run_blocks
from .reader import Reader
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


def branch(
    reader: Reader, layouts: Sequence[TokenLayout], pictures: Sequence[Picture], *, dtype: torch.dtype,
    device: torch.device, check: Callable[[], None] = lambda: None, **_: Any,
) -> Tensor:
    """The last states ``(B, D)`` of sequences that begin with the same pictures, all in one pass after these.

    Nothing is kept, and nothing that was kept is used: the same sequences give the same bits whatever was read before.

    Args:
        layouts: alike up to the end of the last picture. dtype … check: as :meth:`Reader.read` takes them.
    """
    length, deepest = prefix_length(layouts[0]), reader._num_layers

    def act() -> Tensor:
        hidden, spans, deepstack = reader._inputs(layouts[0], pictures, (), (), dtype, device, False, check)
        options = {"kernels": reader._plain_kernels(hidden), "check": check}
        cos, sin = reader._rotary(layouts[0], 0)
        _, past = run_blocks(
            reader.language, hidden[:length].clone(), (cos[:length], sin[:length]), (deepest,), deepest, spans=spans,
            deepstack=deepstack, capture_before=reader._capture_before, keep=True, **options,
        )
        tails = [reader._embed(layout.token_ids[length:], dtype, device) for layout in layouts]
        lengths = [len(tail) for tail in tails]
        cos, sin = (torch.cat(part) for part in zip(*(reader._rotary(one, length) for one in layouts), strict=True))
        states, _ = run_blocks(
            reader.language, torch.cat(tails), (cos, sin), (deepest,), deepest, past=past, branches=lengths, **options
        )
        return states[deepest][torch.tensor(lengths, device=device).cumsum(0) - 1]

    return reader._with_room(act)


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
    every = scores.double().log_softmax(-1)
    found = []
    for row, answers in zip(every, tokens, strict=True):
        each = torch.stack([row[list(ids)].exp().sum() for ids in answers])
        mass = each.sum()
        shares = each / mass if mass > 0 else torch.full_like(each, 1 / len(each))
        found.append(Answer(tuple(shares.tolist()), float(mass)))
    return found


def _last_states(encoder: Qwen3VLEncoder, asked: Sequence[Asked], check: Callable[[], None]) -> Tensor:
    """``(Q, D)`` after the last norm; one by one where the merged pass cannot be used."""
    model: nn.Module = encoder.model
    if encoder.fast and fits(model.visual, model.language_model):
        return branch(
            encoder.reader, [one.layout for one in asked], asked[0].pictures, dtype=encoder.dtype,
            device=encoder.device, check=check,
        )
    return torch.stack([encoder.last_state(one.layout, one.pictures, check) for one in asked])
