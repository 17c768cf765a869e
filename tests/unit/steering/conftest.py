"""A place that steers, in plain Python: its states are drawn from what is read, and it counts what it is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from vl_core.encoder.writing import Description
from vl_core.states.families import ZIMAGE
from vl_core.states.layout import TokenLayout, insert_pictures, text_layout
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.vl_states import VLStates
from vl_core.steering.store import Store
from vl_core.steering.takes import Take
from vl_core.steering.way import Text

WIDTH, BLOCKS, GRID = 24, 8, (2, 3)
HEAD, TAIL = [151644, 872, 198], [151645, 198, 151644, 77091, 198]


def number(*parts: object) -> int:
    """A whole number from what a thing is made of."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def drawn(*shape: int, of: object) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number(of))) * 3 + 1


def content(picture: Tensor) -> tuple[float, ...]:
    return tuple(picture.double().reshape(-1)[:7].tolist())


def layout_of(prompt: str) -> TokenLayout:
    return text_layout([*HEAD, *(number(word) % 1000 + 100 for word in prompt.split()), *TAIL], layer=-2)


class FakeHost:
    """A :class:`~vl_core.steering.host.Host`; ``asked`` lists its calls, ``entries`` is how many a prompt has."""

    def __init__(self, entries: int = 1, answer: Callable[[str], str] = lambda instruction: "blue dusk") -> None:
        self.family, self.store, self.entries, self.answer = ZIMAGE, Store(), entries, answer
        self.asked: list[SimpleNamespace] = []

    def called(self, kind: str) -> list[SimpleNamespace]:
        return [one for one in self.asked if one.kind == kind]

    def identity(self) -> str:
        return "fake"

    def check(self) -> None:
        self.asked.append(SimpleNamespace(kind="check"))

    def words(self, prompt: str, added: str = "") -> list[Text]:
        whole = f"{prompt}, {added}" if added else prompt
        self.asked.append(SimpleNamespace(kind="words", prompt=whole))
        layout = layout_of(whole)
        return [
            Text(drawn(len(layout), WIDTH, of=(whole, entry)), layout, origin=(whole, entry))
            for entry in range(self.entries)
        ]

    def read(
        self, pictures: Sequence[Tensor], prompt: str, layers: Sequence[int], *, muted: bool = False,
        system_prompt: str = "", budget: int, group: str = "",
    ) -> tuple[VLStates, list[str]]:
        self.asked.append(SimpleNamespace(
            kind="read", layers=list(layers), muted=muted, prompt=prompt, attend=system_prompt, pictures=len(pictures)
        ))  # fmt: skip
        layout = insert_pictures(layout_of(prompt), [GRID] * len(pictures))
        seed = (prompt, muted, system_prompt, *(() if muted else map(content, pictures)))
        every = drawn(BLOCKS + 1, len(layout), WIDTH, of=seed)
        captured = tuple(sorted(layer % (BLOCKS + 1) for layer in layers))
        return VLStates(every[list(captured)], captured, BLOCKS, layout), [f"image 1: read, {budget}"]

    def write(self, pictures: Sequence[Tensor], instruction: str, *, longest: int, budget: int) -> Description:
        self.asked.append(SimpleNamespace(kind="write", instruction=instruction, pictures=len(pictures)))
        words = self.answer(instruction)
        return Description(words, words, len(words.split()), False)

    def instruction(self, take: Take) -> str:
        return take.instruction

    def statistics(self) -> tuple[Sequence[ReferenceStatistics], str]:
        self.asked.append(SimpleNamespace(kind="statistics"))
        return [ReferenceStatistics.of(drawn(300, WIDTH, of="statistics"))], "measured now"


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def make_host() -> type[FakeHost]:
    return FakeHost


@pytest.fixture
def picture() -> Tensor:
    return torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def other() -> Tensor:
    return torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(2))
