"""A picture in words: Qwen3-VL answers an instruction about it, through transformers' own ``generate``.

The model that writes is put together from the encoder's modules, so nothing is loaded twice; only a head that is not
the embeddings (:meth:`Qwen3VLEncoder.head`) is read for it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..pictures import DEFAULT_BUDGET, patchify, prepare_picture, split_batch
from ..stages.description import ENDS, SEPARATOR, slot_request
from ..states.families import THINK_BLOCK
from ..states.layout import insert_pictures

if TYPE_CHECKING:
    from .qwen3vl import Qwen3VLEncoder

MAX_TOKENS = 96
TOP_K = 20  # of the generation_config.json of Qwen3-VL-4B-Instruct
END_OF_TEXT = "<|endoftext|>"
THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|\Z)|[。！？]+[”’」』）]*")
PHRASE_END = re.compile(r"[,;:](?=\s|\Z)|[，、；：]|\n")
PLAIN = "Write plain words that could stand in a prompt for an image generator, without an introduction or a list."

# What to ask for, by the recipe it serves (vl_core/recipes_data); "everything", "look", "slots", "shows" serve none.
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
    "shows": "Name only what this picture shows: every thing, person or place in it, how large it is and where. Leave "
    f"out style, technique, light, mood and the colours of the background. {PLAIN}",
}


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
    budget: int = DEFAULT_BUDGET,
    on_text: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Description:
    """Have Qwen3-VL answer an instruction about pictures, in the template that Z-Image's prompts are read in.

    A Thinking model is told that its thought is over; what it thinks nevertheless is taken out.

    Args:
        encoder: with all its blocks.
        images: as :meth:`Qwen3VLEncoder.encode` takes them, at least one.
        instruction: what to write, such as one of ``INSTRUCTIONS``.
        max_tokens: most tokens of the answer, thoughts included.
        seed: of the sampling; the same one gives the same words on the same device. torch's own generators, the
            CPU's and CUDA's, are left as they were.
        temperature: 0 takes the likeliest token each time, and ``seed``, ``top_p`` and ``top_k`` do nothing. Above,
            tokens are drawn from the softmax of their scores divided by it.
        top_p: draw from the likeliest tokens that together have this probability.
        top_k: draw from that many of the likeliest tokens, 0 for all.
        budget: most image tokens per picture.
        on_text: called after each token with the text it added, which may be empty; what it raises ends the writing.
        should_stop: asked after each token; True ends the writing with what there is.

    Returns:
        the words; empty only if it was stopped.

    Raises:
        TypeError: if the instruction is not a string or a picture not a tensor.
        ValueError: without a picture or an instruction, for settings out of range, an encoder that lacks blocks or a
            head, a picture that cannot be read, more tokens than the model's context, or an answer without words.
    """
    check_request(instruction, max_tokens, temperature, top_p, top_k)
    if encoder.loaded_layers < encoder.num_layers:
        raise ValueError(
            f"encoder: describing needs all {encoder.num_layers} blocks of {encoder.name}, {encoder.loaded_layers} are "
            "loaded. Load it again with `deepest layer` -1."
        )
    pictures, notes = [], []
    for number, image in enumerate(split_batch(images), 1):
        picture, changes = prepare_picture(image, budget, f"image {number}")
        pictures.append(picture)
        notes += changes
    if not pictures:
        raise ValueError("images: expected at least one picture to describe, got none. Connect an image.")
    layout = insert_pictures(encoder.tokenize(instruction), [one.grid for one in pictures], encoder.special)
    ids = layout.token_ids
    if encoder.variant == "Thinking":
        ids = torch.cat([ids, torch.tensor(_ids(encoder, THINK_BLOCK))])
    limit = encoder.model.config.text_config.max_position_embeddings
    if len(ids) + max_tokens > limit:
        raise ValueError(
            f"max_tokens: expected at most {limit - len(ids)} after {len(ids)} tokens of pictures and instruction, got "
            f"{max_tokens}. Use fewer pictures, a smaller token budget or fewer max_tokens."
        )
    stopped = False

    def stop(tokens: Tensor, _scores: Any, **_: Any) -> Tensor:
        nonlocal stopped
        stopped = stopped or (should_stop is not None and should_stop())
        return torch.full((len(tokens),), stopped, device=tokens.device)

    pixels, grids = zip(*(patchify(one) for one in pictures), strict=True)
    ends = [encoder.special.im_end, *_ids(encoder, END_OF_TEXT)[:1]]
    written = _generate(
        encoder, ids, torch.cat(pixels), torch.cat(grids), ends, _Stream(encoder.tokenizer, ends, on_text), stop, seed,
        max_new_tokens=max_tokens, **sampling(temperature, top_p, top_k),
    )
    truncated = not written or written[-1] not in ends
    raw = encoder.tokenizer.decode(written if truncated else written[:-1], skip_special_tokens=True)
    words, remarks = finish(raw, len(written), truncated, stopped)
    return Description(words, raw, len(written), truncated, (*notes, *remarks))


def check_request(instruction: str, max_tokens: int, temperature: float, top_p: float, top_k: int) -> None:
    """Refuse what nothing can be written from.

    Raises:
        TypeError: if the instruction is not a string.
        ValueError: naming what is empty or out of range.
    """
    if not isinstance(instruction, str):
        raise TypeError(f"instruction: expected a string, got {type(instruction).__name__}.")
    if not instruction.strip():
        raise ValueError("instruction: expected words that say what to describe, got none.")
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}.")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: expected 0 or more, got {temperature}.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected more than 0 and at most 1, got {top_p}.")
    if top_k < 0:
        raise ValueError(f"top_k: expected 0 (all tokens) or more, got {top_k}.")


def sampling(temperature: float, top_p: float, top_k: int) -> dict[str, Any]:
    """The settings by the names that transformers and ComfyUI have for them; greedy for temperature 0."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}


def finish(raw: str, tokens: int, truncated: bool, stopped: bool = False) -> tuple[str, list[str]]:
    """The words of an answer, and remarks about what was taken out of it.

    Args:
        raw: all that was written, without special tokens.
        tokens: how many that were; ``truncated``: whether the model did not end it; ``stopped``: because it was asked
            to stop, not at its limit.

    Raises:
        ValueError: if no words are left, unless it was stopped.
    """
    text, notes = strip_thoughts(raw), []
    if text != raw.strip():
        notes.append("thoughts taken out of the answer")
    if truncated:
        text = last_complete(text)
        why = "stopped" if stopped else "at its limit"
        notes.append(f"the answer ended {why} after {tokens} tokens; cut after its last complete part")
    if not text and not stopped:
        found = "only thoughts" if raw.strip() else "nothing"
        raise ValueError(
            f"instruction: expected words, the model wrote {found} in {tokens} tokens. Raise max_tokens, ask for "
            "something else, or use an Instruct model."
        )
    return text, notes


def strip_thoughts(text: str) -> str:
    """The text without ``<think>…</think>``, an opening or closing tag alone included, and without blanks around."""
    return THOUGHT.sub("", text).rpartition("</think>")[2].strip()


def last_complete(text: str) -> str:
    """Up to the end of the last sentence; without one, before the end of the last phrase, else the last whole word."""
    text = text.strip()
    if sentences := list(SENTENCE_END.finditer(text)):
        return text[: sentences[-1].end()]
    if phrases := list(PHRASE_END.finditer(text)):
        return text[: phrases[-1].start()].rstrip(ENDS)
    return text.rpartition(" ")[0].rstrip() or text


def append_words(prompt: str, words: str) -> str:
    """A prompt with the words after it, as one line that ends without punctuation: "prompt, words"."""
    parts = prompt.rstrip(ENDS), " ".join(words.split()).strip(ENDS)
    return SEPARATOR.join(part for part in parts if part)


def _ids(encoder: Qwen3VLEncoder, text: str) -> list[int]:
    return encoder.tokenizer(text, add_special_tokens=False)["input_ids"]


class _Stream:
    """What ``generate`` hands its tokens to: passes on the text that each one adds."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], on_text: Callable[[str], None] | None) -> None:
        self.tokenizer, self.ends, self.on_text = tokenizer, ends, on_text
        self.tokens: list[int] | None = None  # the first to arrive is the prompt
        self.told = ""

    def put(self, tokens: Tensor) -> None:
        if self.on_text is None:
            return
        if self.tokens is None:
            self.tokens = []
            return
        self.tokens += [token for token in tokens.flatten().tolist() if token not in self.ends]
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):  # half a character: the next token has the rest
            text = self.told
        self.on_text(text[len(self.told) :])
        self.told = text

    def end(self) -> None:
        pass


def _speaker(encoder: Qwen3VLEncoder) -> nn.Module:
    """transformers' model that writes, around the encoder's own modules."""
    from transformers import Qwen3VLForConditionalGeneration

    head = encoder.head().to(encoder.device)
    with torch.device("meta"):
        speaker = Qwen3VLForConditionalGeneration(encoder.model.config)
    speaker.model = encoder.model
    speaker.lm_head.weight = nn.Parameter(head, requires_grad=False)
    return speaker.eval()


def _generate(
    encoder: Qwen3VLEncoder, ids: Tensor, pixels: Tensor, grids: Tensor, ends: list[int], stream: _Stream,
    stop: Callable[..., Tensor], seed: int, **options: Any,
) -> list[int]:
    """The tokens written after ``ids`` ``(L,)``, the one that ended it included."""
    from transformers import GenerationConfig

    speaker, device = _speaker(encoder), encoder.device
    ids = ids[None].to(device)
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "image_grid_thw": grids.to(device),
        "pixel_values": pixels.to(device, encoder.dtype),
    }
    if "mm_token_type_ids" in inspect.signature(speaker.forward).parameters:  # transformers 5
        inputs["mm_token_type_ids"] = (ids == encoder.special.image_pad).int()
    config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[0], use_cache=True, **options)
    # generate draws from torch's global generators.
    with torch.inference_mode(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        written = speaker.generate(**inputs, generation_config=config, streamer=stream, stopping_criteria=[stop])
    return written[0, ids.shape[1] :].tolist()
