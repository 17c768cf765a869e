"""An answer as text: thoughts taken out, cut after its last complete part, put after a prompt."""

from __future__ import annotations

import re

from ..stages.description import ENDS, SEPARATOR

THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|\Z)|[。！？]+[”’」』）]*")
PHRASE_END = re.compile(r"[,;:](?=\s|\Z)|[，、；：]|\n")


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
