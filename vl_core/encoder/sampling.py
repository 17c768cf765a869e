"""Which token comes next, from the scores of all: transformers' own order of operations, in tensors alone.

transformers' ``generate`` penalises repetitions, divides by the temperature, then leaves out tokens by top-k, top-p and
min-p, and draws. The same here, operation by operation, so that a seed draws the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOP_K = 20  # of the generation_config.json of Qwen3-VL-4B-Instruct


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token each time, and nothing else but the penalty counts.
        top_k: draw from that many of the likeliest tokens, 0 for all.
        top_p: draw from the likeliest tokens that together have this probability.
        min_p: leave out tokens less likely than this part of the likeliest one's probability, 0 for none.
        repetition_penalty: divide the positive scores of every token of the prompt and the answer by this, multiply
            the negative ones (Keskar et al., arXiv 1909.05858); 1 for none.

    Raises:
        ValueError: for a setting out of range.
    """

    temperature: float = 0.0
    top_k: int = TOP_K
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected 0 or more, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, got {self.top_p}.")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected 0 (all tokens) or more, got {self.top_k}.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: expected 0 (no token left out) to 1, got {self.min_p}.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty: expected more than 0, got {self.repetition_penalty}.")

    @property
    def draws(self) -> bool:
        """Whether chance, and with it the seed, has a part in it."""
        return self.temperature > 0

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1

    def options(self) -> dict[str, Any]:
        """The settings by transformers' names."""
        options: dict[str, Any] = {"do_sample": self.draws}
        if self.penalises:
            options["repetition_penalty"] = float(self.repetition_penalty)
        if self.draws:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            if self.min_p:
                options["min_p"] = self.min_p
        return options


def choose(
    scores: Tensor, sampling: Sampling, said: Tensor | None = None, generators: Sequence[torch.Generator] = ()
) -> Tensor:
    """The next token of each row, int64 ``(B,)``.

    Args:
        scores: ``(B, vocabulary)``, any float dtype; worked on in float32.
        said: bool, of the same shape: the tokens of the prompt and the answer; needed where they are penalised.
        generators: one a row; needed where tokens are drawn. Each draws one number a token of the vocabulary, as
            ``torch.multinomial`` does with transformers.
    """
    scores = scores.float()
    if sampling.penalises:
        assert said is not None, "said: the penalty is on the tokens that were said"
        penalty = sampling.repetition_penalty
        scores = torch.where(said, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if not sampling.draws:
        return scores.argmax(-1)
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    if sampling.top_k:
        least = scores.topk(min(sampling.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1:
        ascending, places = scores.sort()
        unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        unlikely[:, -1] = False
        scores = scores.masked_fill(unlikely.scatter(1, places, unlikely), -torch.inf)
    if sampling.min_p:
        chances = scores.softmax(-1)
        unlikely = chances < sampling.min_p * chances.amax(-1, keepdim=True)
        scores = scores.masked_fill(unlikely, -torch.inf)
    # What torch.multinomial does for one draw, without its look at the values, which waits for the device.
    noise = torch.empty_like(scores)
    for row, generator in zip(noise, generators, strict=True):
        row.exponential_(generator=generator)
    return (scores.softmax(-1) / noise).argmax(-1)
