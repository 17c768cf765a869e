"""Where chosen words of the prompt are among its tokens, and an alpha that acts on them alone.

Words are written as the prompt writes them, with commas or new lines between: ``red hat, sea``. Each is a word or a
phrase that the prompt holds exactly once; a longer phrase tells two places apart: ``hat of the man``. A phrase with a
comma in it stands in double quotes: ``"red, wet street", sea``. With a minus before each they are those that alpha
leaves alone: ``-red hat, -sea``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..states.fields import quoted
from ..states.layout import TokenLayout, TokenRole
from ..states.tensors import check_choice

KEPT = "-"
MOST_WORDS = 256
SHOWN = 16  # characters of the prompt around a place, in an error
# Of scripts that put spaces between words: not Chinese, Japanese, Korean.
LETTER = re.compile(r"[^\W\u2e80-\U0003ffff]")


def parse_words(text: str) -> list[str]:
    """Words and phrases as people write them, see above; none for an empty text.

    Raises:
        ValueError: for a double quote without its partner, or more than 256.
    """
    if text.count('"') % 2:
        raise ValueError(
            f"words: expected double quotes in pairs, got {quoted(text)}. Close the quote, or leave it out."
        )
    parts = re.findall(r'(?:"[^"]*"|[^",，\n])+', text)
    words = [word for part in parts if (word := part.strip().replace('"', "").strip())]
    if len(words) > MOST_WORDS:
        raise ValueError(f"words: expected at most {MOST_WORDS} words or phrases, got {len(words)}. Name fewer.")
    return words


def split_kept(words: Sequence[str]) -> tuple[list[str], bool]:
    """Words without their minus, and whether they had one: then alpha acts on all others.

    Raises:
        ValueError: if some have one and some have none, or nothing follows it.
    """
    kept = [word.startswith(KEPT) for word in words]
    if any(kept) and not all(kept):
        raise ValueError(
            f"words: expected a minus before each word that stays as it is, or before none, got {', '.join(words)}."
        )
    bare = [word.removeprefix(KEPT).strip() for word in words]
    if not all(bare):
        raise ValueError(f"words: expected words after the minus, got {', '.join(words)}.")
    return bare, any(kept)


def positions_of_words(layout: TokenLayout, words: Sequence[str], tokenize: Callable[[str], list[int]]) -> Tensor:
    """Which positions hold the given words or phrases of the prompt.

    A phrase is looked up by its token ids, tokenised with and without a leading space, among the TEXT positions.
    Where the layout knows its prompt, a match inside a longer word ("cat" in "catwalk") does not count.

    Args:
        layout: of a text or VL sequence.
        words: words or phrases as the prompt writes them, upper and lower case included.
        tokenize: token ids of a plain string, without a template.

    Returns:
        boolean ``(L,)``: true at every token of every phrase.

    Raises:
        TypeError: for a string in place of a list.
        ValueError: if no phrase is given, or one is empty, not in the prompt, or in it more than once; the error lists
            the prompt's words, or the places.
    """
    if isinstance(words, str):
        raise TypeError(f"words: expected a list of words, got the string {words!r}. Put it into a list.")
    if not words:
        raise ValueError("words: expected at least one word of the prompt, got none.")
    places = layout.mask(TokenRole.TEXT).nonzero().flatten()
    ids = layout.token_ids[places].tolist()
    chosen = torch.zeros(len(layout), dtype=torch.bool)
    for word in words:
        start, stop = _find(word, ids, layout.prompt, tokenize)
        chosen[places[start:stop]] = True
    return chosen


def alpha_on_words(layout: TokenLayout, positions: Tensor, alpha: float | Tensor) -> Tensor:
    """A curve for :func:`blend`: ``alpha`` at ``positions``, 0 (the text bit for bit) everywhere else.

    Args:
        layout: of the text.
        positions: boolean ``(L,)``, from :func:`positions_of_words` with the same layout.
        alpha: 0 to 1, or one per token of the text ``(L,)``.

    Returns:
        float32 ``(L,)``.

    Raises:
        ValueError: for an alpha outside 0 to 1, or positions of another layout.
    """
    curve = strength_per_token(alpha, len(layout))
    if positions.dtype != torch.bool or tuple(positions.shape) != (len(layout),):
        raise ValueError(
            f"positions: expected booleans of shape ({len(layout)},), one per position of the layout, got "
            f"{positions.dtype} of shape {tuple(positions.shape)}."
        )
    return positions.to("cpu", torch.float32) * curve


def _find(word: str, ids: list[int], prompt: str, tokenize: Callable[[str], list[int]]) -> tuple[int, int]:
    """Start and stop of the one place of ``word`` among the prompt's token ids."""
    phrase = word.strip()
    if not phrase:
        raise ValueError(f"words: expected words of the prompt, got {word!r}. Remove it.")
    found: dict[int, int] = {}  # stop -> start; some words carry the space before them as a token of its own
    for wanted in (list(tokenize(" " + phrase)), list(tokenize(phrase))):
        for start in range(len(ids) - len(wanted) + 1):
            if wanted and ids[start : start + len(wanted)] == wanted:
                found[start + len(wanted)] = start
    spans = _spans(phrase, prompt)
    if prompt:
        # A match counts if what comes after it is what the prompt has behind the phrase.
        stops = {len(ids) - len(tokenize(prompt[stop:])) for _, stop in spans}
        found = {stop: start for stop, start in found.items() if stop in stops}
    if not found:
        raise ValueError(f"words: {_absence(phrase, prompt, bool(spans))}")
    if len(found) > 1:
        places = sorted((start + 1, stop) for stop, start in found.items())
        ranges = (f"{first}" if first == last else f"{first}-{last}" for first, last in places)
        shown = "; ".join(_context(prompt, *span) for span in spans) or "the prompt is not known"
        raise ValueError(
            f"words: {phrase!r} is in the prompt {len(found)} times, at its tokens {', '.join(ranges)} ({shown}). Give "
            "a longer phrase that is there once."
        )
    ((stop, start),) = found.items()
    return start, stop


def _absence(phrase: str, prompt: str, written: bool) -> str:
    """Why no tokens of the prompt are the phrase, and what to do."""
    if written:
        return (
            f"{phrase!r} is in the prompt, but its tokens also hold what stands beside it. Give more of the prompt "
            "around it."
        )
    inside = " as a whole word" if prompt and phrase in prompt else ""
    listed = f"; its words are: {', '.join(prompt.split())}" if prompt else ""
    return f"{phrase!r} is not in the prompt{inside}{listed}. Write it as the prompt does, upper and lower case too."


def _spans(phrase: str, prompt: str) -> list[tuple[int, int]]:
    """Characters of the prompt where ``phrase`` stands as whole words, overlapping places included."""
    first, last = LETTER.match(phrase), LETTER.match(phrase[-1])
    found, at = [], prompt.find(phrase)
    while at >= 0:
        stop = at + len(phrase)
        longer = (first and at and LETTER.match(prompt[at - 1])) or (last and LETTER.match(prompt, stop))
        if not longer:
            found.append((at, stop))
        at = prompt.find(phrase, at + 1)
    return found


def _context(prompt: str, start: int, stop: int) -> str:
    before, after = prompt[max(0, start - SHOWN) : start], prompt[stop : stop + SHOWN]
    return f"…{before}[{prompt[start:stop]}]{after}…"


CurveShape = Literal["linear", "ease_in", "ease_out"]


def alpha_curve(length: int, start: float, end: float, shape: CurveShape = "linear") -> Tensor:
    """Alpha per position, from ``start`` to ``end`` along t (linear), t² (ease_in) or 1 − (1−t)² (ease_out).

    Returns float32 ``(length,)``. A length of 1 gives ``start``. Source: the research note's token curves.

    >>> alpha_curve(5, 0.0, 0.5, "ease_in").tolist()
    [0.0, 0.03125, 0.125, 0.28125, 0.5]

    Raises:
        ValueError: if start or end leaves 0 to 1, length < 1, or the shape is unknown.
    """
    check_choice("shape", shape, CurveShape)
    if length < 1:
        raise ValueError(f"length: expected at least 1 token, got {length}.")
    for name, value in (("start", start), ("end", end)):
        if not 0 <= value <= 1:
            raise ValueError(f"alpha {name}: expected 0 (text) to 1 (VL), got {value}.")
    t = torch.linspace(0, 1, length, dtype=torch.float64)
    t = {"linear": t, "ease_in": t.square(), "ease_out": 1 - (1 - t).square()}[shape]
    return ((1 - t) * start + t * end).float()


def strength_per_token(alpha: float | Tensor, length: int) -> Tensor:
    """Alpha per token: float32 ``(length,)``."""
    return number_per_token("alpha", alpha, length, (0, 1), "0 (text) to 1 (VL)")


def number_per_token(
    name: str, value: float | Tensor, length: int, bounds: tuple[float, float], expected: str
) -> Tensor:
    """One number, or one per token of the text, within bounds: float32 ``(length,)``.

    Raises:
        ValueError: for another number of them, or one outside the bounds, which are ``expected`` in words.
    """
    values = value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
    if values.ndim and tuple(values.shape) != (length,):
        raise ValueError(
            f"{name}: expected one number, or one per token of the text, shape ({length},), got shape "
            f"{tuple(values.shape)}."
        )
    outside = values[~((values >= bounds[0]) & (values <= bounds[1]))].flatten()  # NaN is outside too
    if len(outside):
        raise ValueError(f"{name}: expected {expected}, got {float(outside[0])}.")
    return values.float().expand(length)
