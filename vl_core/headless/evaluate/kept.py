"""A place that steers from what is kept on disk: readings, words and text states, computed once in their model's turn.

A file's name says all that its content depends on, so it is right or it is not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...encoder.answers import append_words
from ...encoder.cache import digest
from ...encoder.qwen3vl import Qwen3VLEncoder
from ...encoder.writing import Description, describe
from ...states.families import ZIMAGE, Family
from ...states.files import parse_json, write_whole
from ...states.statistics import ReferenceStatistics
from ...states.vl_states import LAYOUT_KEY, VLStates, load_conditioning, save_conditioning
from ...steering.store import Store
from ...steering.takes import Take
from ...steering.way import Text
from ...zimage.host import Question
from ...zimage.pipeline import prompt_layout
from .turns import TextEncoder

WORDS, READINGS, WRITTEN, STATISTICS = "words", "readings", "written", "statistics.safetensors"


class NotItsTurn(RuntimeError):
    """Something is not kept yet, and the model that makes it is not there."""


class Kept:
    """A :class:`~vl_core.steering.host.Host` whose models come and go.

    Args:
        folder: where it is kept. weights: what the models' weights are.
        tokenizer: Z-Image's, which takes no memory to speak of.
        statistics: given ones. questions: see :class:`PipelineHost`.

    Attributes:
        vision, text: the model whose turn it is; None where it is not.
        made: how many files were computed.
    """

    family: Family = ZIMAGE

    def __init__(
        self, folder: Path, weights: str, tokenizer: Any, *, statistics: ReferenceStatistics | None = None,
        questions: Mapping[str, Question] | None = None,
    ) -> None:
        self.folder, self.weights, self.tokenizer = folder, weights, tokenizer
        self.questions = dict(questions or {})
        self.store = Store(0)
        self.vision: Qwen3VLEncoder | None = None
        self.text: TextEncoder | None = None
        self.made = 0
        self._statistics = statistics

    def identity(self) -> str:
        return self.weights

    def check(self) -> None:
        """Widths are compared when the folders are opened."""

    def words(self, prompt: str, added: str = "") -> list[Text]:
        whole = append_words(prompt, added) if added else prompt
        path = self._place(WORDS, "safetensors", whole)

        def make() -> None:
            layout = prompt_layout(self.tokenizer, whole)
            text = self._turn(self.text, "text encoder")
            save_conditioning(path, [(text.read(whole).cpu()[None], {LAYOUT_KEY: layout})])

        self._made(path, make)
        (states, options), = load_conditioning(path)
        return [Text(states[0], options[LAYOUT_KEY])]

    def read(
        self, pictures: Sequence[Tensor], prompt: str, layers: Sequence[int], *, muted: bool = False,
        system_prompt: str = "", budget: int, group: str = "",
    ) -> tuple[VLStates, list[str]]:
        options = json.dumps([prompt, sorted(layers), muted, system_prompt, budget])
        path = self._place(READINGS, "safetensors", options, *pictures)

        def make() -> None:
            encoder = self._turn(self.vision, "Qwen3-VL")
            seen = encoder.encode(
                list(pictures), prompt, tuple(layers), system_prompt or None, budget=budget, mute=muted
            )
            replace(seen, states=seen.states.cpu()).save(path)

        self._made(path, make)
        return VLStates.load(path), []

    def write(self, pictures: Sequence[Tensor], instruction: str, *, longest: int, budget: int) -> Description:
        path = self._place(WRITTEN, "json", json.dumps([instruction, longest, budget]), *pictures)

        def make() -> None:
            encoder = self._turn(self.vision, "Qwen3-VL")
            found = describe(encoder, list(pictures), instruction, max_tokens=longest, budget=budget)
            forms = {question.ask: question.form for question in self.questions.values()}
            found = replace(found, words=forms.get(instruction, "{}").format(found.words))
            write_whole(path, json.dumps(asdict(found), ensure_ascii=False))

        self._made(path, make)
        content = parse_json(path.read_text(encoding="utf-8"), path.name)
        return Description(**{**content, "notes": tuple(content["notes"])})

    def instruction(self, take: Take) -> str:
        return self.questions[take.name].ask if take.name in self.questions else take.instruction

    def statistics(self) -> tuple[Sequence[ReferenceStatistics], str]:
        if self._statistics is None:
            path = self.folder / f"{self.weights}-{STATISTICS}"
            self._made(path, lambda: self._turn(self.text, "text encoder").measure().save(path))
            self._statistics = ReferenceStatistics.load(path)
        return [self._statistics], "of these weights"

    def _place(self, kind: str, ending: str, *key: Tensor | str) -> Path:
        return self.folder / kind / f"{digest(self.weights, *key).hex()[:32]}.{ending}"

    def _made(self, path: Path, make: Callable[[], None]) -> None:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            make()
            self.made += 1

    def _turn(self, model: Any, name: str) -> Any:
        if model is None:
            raise NotItsTurn(f"{name}: is needed, and it is another model's turn.")
        return model
