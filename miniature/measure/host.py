"""The bench as a place that steers: one case of it, with what was read and written for all cases at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vl_core import Description, ReferenceStatistics, VLStates
from vl_core.encoder.answers import append_words
from vl_core.reports.controls import matched_noise, noisy
from vl_core.states.families import ZIMAGE, Family
from vl_core.states.layout import TAIL_TOKENS
from vl_core.steering.store import Store
from vl_core.steering.takes import Take
from vl_core.steering.way import Text

from .. import world
from .chain import LAYERS

if TYPE_CHECKING:
    from .methods import Bench, Case, Sight

QUESTIONS = {take: (ask, form) for take, ask, form in world.TAKE_QUESTIONS}


class BenchHost:
    """A :class:`~vl_core.steering.host.Host` for one case and what a method may know of its reference.

    Args:
        bench: keeps what was read and written. case: a prompt. sight: a reference; where it is a control's, noise
            takes the place of what was seen and of what words about it say.
    """

    family: Family = ZIMAGE

    def __init__(self, bench: Bench, case: Case, sight: Sight) -> None:
        self.bench, self.case, self.sight = bench, case, sight
        self.store = Store(0)

    def identity(self) -> str:
        return "miniature"

    def check(self) -> None:
        """All of it is one chain."""

    def words(self, prompt: str, added: str = "") -> list[Text]:
        if not added and prompt == self.case.prompt:
            return [Text(self.case.states, self.case.layout)]
        states, layout = self.bench.chain.words(append_words(prompt, added) if added else prompt)
        states = states.cpu()
        if added and self.sight.is_noise:
            start = len(self.bench.chain.words(prompt)[1]) - TAIL_TOKENS
            generator = torch.Generator().manual_seed(self.case.number)
            states = torch.cat([states[:start], matched_noise(states[start:], generator)])
        return [Text(states, layout)]

    def read(
        self, pictures: Sequence[Tensor], prompt: str, layers: Sequence[int], *, muted: bool = False,
        system_prompt: str = "", budget: int = 1024, group: str = "",
    ) -> tuple[VLStates, list[str]]:
        own = self.bench.images[self.sight.number]
        if len(pictures) == 1 and pictures[0] is own and not system_prompt and set(layers) <= set(LAYERS):
            beside = None if prompt == self.case.prompt else prompt
            return self.bench.reading(self.case, self.sight, mute=muted, beside=beside), []
        if len(pictures) != 1:
            raise ValueError(f"pictures: expected one at a time on the bench, got {len(pictures)}.")
        (seen,) = self.bench.chain.look_many(
            pictures, [prompt], mute=muted, layers=sorted(layers), system_prompt=system_prompt
        )
        return (noisy(seen, self.case.number) if self.sight.is_noise and not muted else seen), []

    def write(self, pictures: Sequence[Tensor], instruction: str, *, longest: int, budget: int) -> Description:
        said = self.bench.said(instruction)[self.sight.number]
        form = next((form for ask, form in QUESTIONS.values() if ask == instruction), "{}")
        return Description(form.format(said), said, longest, False)

    def instruction(self, take: Take) -> str:
        if take.name not in QUESTIONS:
            raise ValueError(f"take: the miniature's VL was never asked for {take.name}. Give its words.")
        return QUESTIONS[take.name][0]

    def statistics(self) -> tuple[Sequence[ReferenceStatistics], str]:
        return [self.bench.reference], "of the miniature"


