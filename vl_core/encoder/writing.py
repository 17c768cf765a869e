"""A picture in words: Qwen3-VL answers an instruction about it.

The encoder's own modules write, so nothing is loaded twice; only a head that is not the embeddings
(:meth:`Qwen3VLEncoder.head`) is read for it. What was read of a picture for an encode or for other words is not read
again. Where our own step (:mod:`.decoding`) cannot be used, transformers' ``generate`` writes and a note says so.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..pictures import DEFAULT_BUDGET, Picture, split_batch
from ..stages.description import slot_request
from ..states.layout import TokenLayout
from .answers import finish
from .asking import MAX_TOKENS, Asked, ask, check_request, ids_of
from .decoder import Hear
from .generate import generate
from .kernels import quick_attention
from .reader import Reader
from .room import with_room
from .sampling import TOP_K, Sampling

if TYPE_CHECKING:
    from .qwen3vl import Qwen3VLEncoder

log = logging.getLogger(__name__)

ROOM = 64  # rotary tables are for answers of a multiple of this
TOGETHER = 8  # pictures whose words are written at the same time: each takes 170 MiB of the 4B at 1024²
END_OF_TEXT = "<|endoftext|>"
PLAIN = "Write plain words that could stand in a prompt for an image generator, without an introduction or a list."

# What to ask for, by the names that Describe Picture has for it; takes (steering/takes.py) ask the same.
INSTRUCTIONS = {
    "everything": f"Describe this picture: what it shows, its style, colours, light and composition. {PLAIN}",
    "look": "Describe only the look of this picture: its style, its colours, its light and mood, its background. Leave "
    f"out what it shows. {PLAIN}",
    "style hint": "Describe only the visual style of this picture: its medium, technique, line and texture. Leave out "
    f"what it shows. {PLAIN}",
    "colour palette": f"Name only the colours of this picture and how they are used. Leave out what it shows. {PLAIN}",
    "light and mood": "Describe only the light and the mood of this picture: where the light comes from, how hard it "
    f"is, its colour, the atmosphere. Leave out what it shows. {PLAIN}",
    "composition": "Describe only the composition of this picture: what is where in it, the viewpoint, the distance, "
    f"the empty space. Leave out colours and style. {PLAIN}",
    "variation of the picture": "Describe this picture so exactly that somebody could paint it again: every thing in "
    f"it and its place, the style, the colours, the light. {PLAIN}",
    "push away": "Name the subject, the style, the colours and the light of this picture as a few short phrases "
    f"separated by commas. {PLAIN}",
    "slots": slot_request(),
    "shows": "Name in a few words what this picture shows: its things, persons or places. Leave out how large they are "
    f"and where, style, technique, light, mood and the colours of the background. {PLAIN}",
}


def rewrite_request(prompt: str) -> str:
    """What to ask for a prompt rewritten with pictures in view.

    Raises:
        ValueError: without a prompt.
    """
    if not prompt.strip():
        raise ValueError("prompt: expected words to rewrite with the picture in view, got none.")
    return (
        f"Rewrite this prompt for an image generator so that it fits the picture: {prompt.strip()}\n"
        f"Keep what it is about, and add style, colours, light and composition as the picture has them. {PLAIN}"
    )


@dataclass(frozen=True)
class Description:
    """What the model wrote.

    Attributes:
        words: the answer without thoughts, blanks around it, or a last sentence that was not finished.
        raw: all that was written, thoughts included.
        tokens: how many tokens that took.
        truncated: whether it ended before the model did, at the limit or because it was stopped.
        notes: what was changed in the pictures and in the answer, one line each.
    """

    words: str
    raw: str
    tokens: int
    truncated: bool
    notes: tuple[str, ...] = ()


def describe(
    encoder: Qwen3VLEncoder,
    images: Tensor | Sequence[Tensor],
    instruction: str = INSTRUCTIONS["everything"],
    *,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = TOP_K,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    system_prompt: str = "",
    budget: int = DEFAULT_BUDGET,
    on_text: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Description:
    """Have Qwen3-VL answer an instruction about pictures, in the template that Z-Image's prompts are read in.

    A Thinking model is told that its thought is over; what it thinks nevertheless is taken out.

    Args:
        encoder: with all its blocks.
        images: as :meth:`Qwen3VLEncoder.encode` takes them, at least one.
        instruction: what to write, such as one of ``INSTRUCTIONS``.
        max_tokens: most tokens of the answer, thoughts included.
        seed: of the sampling; the same one gives the same words on the same device, those that transformers writes
            after ``torch.manual_seed(seed)``. torch's own generators, the CPU's and CUDA's, are left as they were.
        temperature: 0 takes the likeliest token each time, and ``seed``, ``top_p``, ``top_k`` and ``min_p`` do
            nothing. Above, tokens are drawn from the softmax of their scores divided by it.
        top_p … repetition_penalty: see :class:`~.sampling.Sampling`.
        system_prompt: put into a system turn before; "" means no such turn.
        budget: most image tokens per picture.
        on_text: called after each token with the text it added, which may be empty; what it raises ends the writing.
            On a GPU the tokens of a few steps arrive together.
        should_stop: asked after each token; True ends the writing with what there is.
        check: called before each block while the pictures are read; what it raises is raised.

    Returns:
        the words; empty only if it was stopped.

    Raises:
        TypeError: if the instruction is not a string or a picture not a tensor.
        ValueError: without a picture or an instruction, for settings out of range, an encoder that lacks blocks or a
            head, a picture that cannot be read, more tokens than the model's context, or an answer without words.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    check_request(instruction, max_tokens)
    asked = ask(encoder, images, instruction, system_prompt, budget, max_tokens)
    return _answer(encoder, [asked], sampling, seed, max_tokens, on_text, should_stop, check)[0]


def describe_each(
    encoder: Qwen3VLEncoder,
    images: Tensor | Sequence[Tensor],
    instruction: str = INSTRUCTIONS["everything"],
    *,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = TOP_K,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    system_prompt: str = "",
    budget: int = DEFAULT_BUDGET,
    together: int = TOGETHER,
    should_stop: Callable[[], bool] | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Description]:
    """:func:`describe` of each picture by itself, several written at a time: the same words up to rounding.

    A step reads the weights once for all of them, so on a GPU eight take little longer than one.

    Args:
        together: most pictures at a time.
        instruction … check: as :func:`describe` takes them; each picture draws from ``seed`` anew.

    Raises:
        TypeError, ValueError: as :func:`describe` does; for a picture whose answer has no words too.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    check_request(instruction, max_tokens)
    if together < 1:
        raise ValueError(f"together: expected at least 1, got {together}.")
    pictures, told = list(enumerate(split_batch(images), 1)), []
    for at in range(0, len(pictures), together):
        group = pictures[at : at + together]
        asked = [ask(encoder, [one], instruction, system_prompt, budget, max_tokens, number) for number, one in group]
        told += _answer(encoder, asked, sampling, seed, max_tokens, None, should_stop, check)
    return told


def _answer(
    encoder: Qwen3VLEncoder, asked: Sequence[Asked], sampling: Sampling, seed: int, max_tokens: int,
    on_text: Callable[[str], None] | None, should_stop: Callable[[], bool] | None,
    check: Callable[[], None] = lambda: None,
) -> list[Description]:
    """The answers, by our own step or by transformers."""
    ends = [encoder.special.im_end, *ids_of(encoder, END_OF_TEXT)[:1]]
    streams = [_Stream(encoder.tokenizer, ends, on_text) for _ in asked]
    stopped = False

    def stop() -> bool:
        nonlocal stopped
        stopped = stopped or (should_stop is not None and should_stop())
        return stopped

    def hear(row: int, token: int) -> bool:
        streams[row].add([token])
        return stop()

    config: Any = encoder.model.config
    head = None if config.tie_word_embeddings else encoder.head()
    answers, note = None, "the merged forward pass is turned off"
    if encoder.fast:
        answers, note = write_answers(
            encoder.reader, [(one.layout, one.pictures) for one in asked], sampling, seed, max_tokens, ends, hear,
            head=head, dtype=encoder.dtype, device=encoder.device, check=check,
        )
    if answers is None:
        note = f"written by transformers' generate, which is slower: {note}"
        log.info("%s: %s.", encoder.name, note)
        answers = [
            with_room(
                functools.partial(
                    generate, encoder, one.layout, one.pictures, sampling, seed, max_tokens, ends, stream, stop, check,
                ),
                encoder.reader.cache, encoder.forget,
            )
            for one, stream in zip(asked, streams, strict=True)
        ]
    told = []
    for one, written in zip(asked, answers, strict=True):
        truncated = not written or written[-1] not in ends
        raw = encoder.tokenizer.decode(written if truncated else written[:-1], skip_special_tokens=True)
        words, remarks = finish(raw, len(written), truncated, stopped)
        told.append(Description(words, raw, len(written), truncated, (*one.notes, *remarks, *([note] if note else []))))
    return told


def write_answers(
    reader: Reader, asked: Sequence[tuple[TokenLayout, Sequence[Picture]]], sampling: Sampling, seed: int,
    max_tokens: int, ends: Sequence[int], hear: Hear, *, head: Tensor | nn.Module | None, dtype: torch.dtype,
    device: torch.device, **options: Any,
) -> tuple[list[list[int]] | None, str]:
    """The tokens written after each sequence, by the pack's own step on the modules of ``reader``.

    Args:
        asked: layouts that end where the answer begins, and their pictures; all are written at the same time.
        seed … hear: see :meth:`Decoder.write`; every answer draws from ``seed``.
        head: what turns states into scores, None for the embeddings.
        dtype, device, options: as :meth:`Reader.read` takes them; with a number the modules were looked at already.

    Returns:
        the tokens, None where the modules are not those the step knows; and a line for people if something is not as
        fast as it could be, else "".
    """
    if options.get("number") is None and not reader.watched.fit():
        return None, "a module is hooked, or is not plain Qwen3-VL"
    room = -(-max_tokens // ROOM) * ROOM

    check = options.pop("check", lambda: None)
    longest = max(len(layout) for layout, _ in asked) + max_tokens

    def write() -> list[list[int]] | None:
        decoder = reader.decoder
        with decoder.lock:
            key = reader.name_of(dtype, device, **options)
            plan = decoder.plan(head, dtype, device)
            if plan is None:
                return None
            looks = reader.look(asked, key, check)
            desk = decoder.reserve(plan, len(asked), longest, room, dtype, device)
            try:
                openings = [
                    reader.open(layout, pictures, room, desk, row, key, check, looks[row])
                    for row, (layout, pictures) in enumerate(asked)
                ]
                del looks
                return decoder.write(desk, openings, plan, sampling, [seed] * len(asked), max_tokens, ends, hear, check)
            finally:
                decoder.keep(desk)

    with torch.inference_mode(), quick_attention(device):
        answers = with_room(write, reader.cache, reader.forget)
    if answers is None:
        return None, "a norm or the head is of a kind that the step does not know"
    return answers, f"written step by step, not by a captured graph: {why}" if (why := reader.decoder.reason) else ""


class _Stream:
    """Passes on the text that each token adds; ``put`` and ``end`` are what transformers' ``generate`` calls."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], on_text: Callable[[str], None] | None) -> None:
        self.tokenizer, self.ends, self.on_text = tokenizer, ends, on_text
        self.tokens: list[int] = []
        self.prompted = False  # the first that generate hands over is the prompt
        self.told = ""

    def put(self, tokens: Tensor) -> None:
        if self.prompted:
            self.add(tokens.flatten().tolist())
        self.prompted = True

    def add(self, tokens: Sequence[int]) -> None:
        if self.on_text is None:
            return
        self.tokens += [token for token in tokens if token not in self.ends]
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):  # half a character: the next token has the rest
            text = self.told
        self.on_text(text[len(self.told) :])
        self.told = text

    def end(self) -> None:
        pass
