"""Diffusers as a place that steers: what the engine asks for, from a Z-Image pipeline and a Qwen3-VL folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..encoder.answers import append_words
from ..encoder.qwen3vl import Qwen3VLEncoder
from ..encoder.writing import Description, describe
from ..reports.controls import matched_noise, noisy
from ..states.families import THINK_BLOCK, ZIMAGE, Family
from ..states.layout import TAIL_TOKENS, USER_TURN
from ..states.statistics import ReferenceStatistics, calibrate, calibration_prompts
from ..states.vl_states import VLStates
from ..steering.host import Host
from ..steering.store import Store
from ..steering.takes import Take
from ..steering.way import Text
from .pipeline import encode_text, text_states
from .text import batch_reader, text_reader

if TYPE_CHECKING:
    from .pipeline import ZImagePipeline


@dataclass(frozen=True)
class Question:
    """What a model that was not trained on sentences is asked for a take.

    Attributes:
        ask: in words that it knows. form: where its answer goes, such as ``"{} background"``.
    """

    ask: str
    form: str = "{}"


class PipelineHost:
    """A :class:`~vl_core.steering.host.Host`.

    Args:
        pipeline: Z-Image; its text encoder reads the words.
        load: gives the Qwen3-VL, when it is needed for the first time.
        model: what the text encoder is called in layouts.
        statistics: of the text encoder; measured if they are needed and None.
        questions: what is asked for a take, where the model knows other words than the take's own.
        think: put an empty think block after every prompt.
        check: called as the encoder moves on, for a bar; what it raises is raised.
    """

    def __init__(
        self, pipeline: ZImagePipeline, load: Callable[[], Qwen3VLEncoder], *, model: str = "",
        statistics: ReferenceStatistics | None = None, questions: Mapping[str, Question] | None = None,
        think: bool = False, check: Callable[[], None] = lambda: None,
    ) -> None:
        self.pipeline, self.model, self.questions, self.check_step = pipeline, model, dict(questions or {}), check
        self._load, self._statistics = load, statistics
        self.family: Family = self._thinking() if think else ZIMAGE
        self.think = think
        self.store = Store()
        self.encodes = 0  # forwards of Qwen3-VL over pictures and a prompt

    @cached_property
    def encoder(self) -> Qwen3VLEncoder:
        return self._load()

    def identity(self) -> str:
        return self.encoder.name

    def check(self) -> None:
        """Widths are compared when the folders are opened."""

    def words(self, prompt: str, added: str = "") -> list[Text]:
        whole = append_words(prompt, added) if added else prompt
        if self.think:
            return [Text(*text_states(self.pipeline, whole, self.family, self.model))]
        return [Text(*encode_text(self.pipeline, whole, self.model))]

    def read(
        self, pictures: Sequence[Tensor], prompt: str, layers: Sequence[int], *, muted: bool = False,
        system_prompt: str = "", budget: int, group: str = "",
    ) -> tuple[VLStates, list[str]]:
        if group not in ("", self.family.group):
            raise ValueError(f"family: expected {self.family.group}, which is painted with, got {group}.")
        self.encodes += 1
        notes: list[str] = []
        family = ZIMAGE if group else self.family
        seen = self.encoder.encode(
            list(pictures), prompt, tuple(layers), system_prompt or None, budget=budget, mute=muted, notes=notes,
            check=self.check_step, family=family,
        )
        return seen, notes

    def write(self, pictures: Sequence[Tensor], instruction: str, *, longest: int, budget: int) -> Description:
        found = describe(self.encoder, list(pictures), instruction, max_tokens=longest, budget=budget)
        forms = {question.ask: question.form for question in self.questions.values()}
        return replace(found, words=forms.get(instruction, "{}").format(found.words))

    def instruction(self, take: Take) -> str:
        if not self.questions:
            return take.instruction
        if take.name not in self.questions:
            raise ValueError(
                f"take: expected one of {', '.join(self.questions)}, which this Qwen3-VL was trained to tell, got "
                f"{take.name}."
            )
        return self.questions[take.name].ask

    def statistics(self) -> tuple[Sequence[ReferenceStatistics], str]:
        if self._statistics is not None:
            return [self._statistics], "as given"
        parts = self.pipeline.text_encoder, self.pipeline.tokenizer
        self._statistics = calibrate(text_reader(*parts), calibration_prompts(), encode_many=batch_reader(*parts))
        return [self._statistics], "measured now"

    def _thinking(self) -> Family:
        block = self.pipeline.tokenizer(THINK_BLOCK, add_special_tokens=False)["input_ids"]
        return replace(ZIMAGE, turn=USER_TURN + THINK_BLOCK, tail_tokens=TAIL_TOKENS + len(block))


class Noised:
    """A host whose pictures are replaced by matched noise: a null control of any way.

    What Qwen3-VL's states would be is noise of their size, and so is what the text encoder makes of words that were
    written about a picture.

    Args:
        host: the one whose pictures are replaced. seed: of the noise.
    """

    def __init__(self, host: Host, seed: int) -> None:
        self.host, self.seed = host, seed
        self.family, self.store = host.family, Store(0)
        self.identity, self.check, self.instruction = host.identity, host.check, host.instruction
        self.write, self.statistics = host.write, host.statistics

    def words(self, prompt: str, added: str = "") -> list[Text]:
        texts = self.host.words(prompt, added)
        if not added:
            return texts
        (own,) = self.host.words(prompt)
        start = len(own.states) - self.family.tail_tokens
        generator = torch.Generator().manual_seed(self.seed)
        return [
            replace(text, states=torch.cat([text.states[:start], matched_noise(text.states[start:], generator)]))
            for text in texts
        ]

    def read(
        self, pictures: Sequence[Tensor], prompt: str, layers: Sequence[int], **options: Any
    ) -> tuple[VLStates, list[str]]:
        seen, notes = self.host.read(pictures, prompt, layers, **options)
        return (seen if options.get("muted") else noisy(seen, self.seed)), notes
