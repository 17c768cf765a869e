"""Models take turns: on a GPU one of them is in memory at a time."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...encoder.qwen3vl import Qwen3VLEncoder
from ...states.statistics import ReferenceStatistics, calibrate, calibration_prompts
from ...zimage import checks
from ...zimage.painting import load_painter
from ...zimage.text import batch_reader, open_text_encoder, text_reader
from ..compare.scores import Score, load_score
from ..compare.study import Models
from ..vision import load_encoder

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Made = TypeVar("Made")

SMALL = 1 << 30  # bytes of weights below which all models stay where they are
LEFT = 256 << 20  # bytes of a GPU that libraries use for themselves: to look for more takes a quarter of a second


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Z-Image's: from a prompt to states ``(L, D)``, and its tokenizer."""

    read: Callable[[str], Tensor]
    tokenizer: Any
    measure: Callable[[], ReferenceStatistics]


@dataclass(frozen=True)
class Loaders:
    """How each model comes into memory, from the folders of ``models``; ``judge`` is a CLIP's or a DINO's, or ""."""

    models: Models
    judge: str = ""

    @property
    def device(self) -> torch.device:
        return checks.pick_device(self.models.device)

    @property
    def dtype(self) -> torch.dtype:
        return checks.DTYPES[self.models.dtype]

    def vision(self) -> Qwen3VLEncoder:
        return load_encoder(self.models.vision, self.device, self.dtype, -1)

    def text(self) -> TextEncoder:
        model, tokenizer, *_ = checks.text_encoder_folder(self.models.zimage, "--model")
        parts = open_text_encoder(model, tokenizer, self.device, self.dtype)
        read = text_reader(*parts)
        return TextEncoder(
            read, parts[1], lambda: calibrate(read, calibration_prompts(), encode_many=batch_reader(*parts))
        )

    def painter(self) -> Any:
        return load_painter(self.models.zimage, self.device, self.dtype)

    def score(self) -> Score:
        return load_score(self.judge, "--score", self.device)

    def small(self) -> bool:
        """Whether all models fit beside one another anywhere."""
        folders = (Path(one) for one in (self.models.zimage, self.models.vision, self.judge) if one)
        return sum(file.stat().st_size for one in folders for file in one.rglob("*.safetensors")) < SMALL


@dataclass
class Turns:
    """One model at a time.

    Attributes:
        taken: how often each was loaded. loading: seconds that took. peak: most bytes that a GPU held in a turn of its.
    """

    loaders: Loaders
    keep: bool = False
    taken: dict[str, int] = field(default_factory=dict)
    loading: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    _here: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[Any]:
        """The model ``name`` of the loaders; afterwards its memory is given back."""
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            if torch.cuda.memory_allocated() > LEFT:
                give_back()  # what the last turn's caller still held when it ended
            torch.cuda.empty_cache()  # of which nobody uses anything by now: torch keeps it from others
            torch.cuda.reset_peak_memory_stats()
        if name not in self._here:
            start = time.perf_counter()
            self._here[name] = getattr(self.loaders, name)()
            self.count_loading(name, time.perf_counter() - start)
        try:
            yield self._here[name]
        finally:
            if on_gpu:
                self.count_peak(name, torch.cuda.max_memory_allocated())
            if not self.keep:
                if name == "vision":
                    self._here[name].forget()
                del self._here[name]
                give_back()

    def count_loading(self, name: str, seconds: float) -> None:
        self.taken[name] = self.taken.get(name, 0) + 1
        self.loading[name] = self.loading.get(name, 0.0) + seconds

    def count_peak(self, name: str, taken: int) -> None:
        if taken:
            self.peak[name] = max(self.peak.get(name, 0), taken)


class Room:
    """Acts on as many items together as there is memory for: where that runs out, on half as many from there on."""

    def __init__(self) -> None:
        self.most = 0  # 0: nothing is known yet

    def __call__(self, act: Callable[[Sequence[Item]], Sequence[Made]], items: Sequence[Item]) -> list[Made]:
        """What ``act`` makes of the items, in their order.

        Raises:
            torch.OutOfMemoryError: if one is too much.
        """
        many = max(1, min(self.most or len(items), len(items)))
        while True:
            try:
                return [made for at in range(0, len(items), many) for made in act(items[at : at + many])]
            except torch.OutOfMemoryError:
                if many <= 1:
                    raise
            # Behind the error, whose traceback holds what was on the way.
            log.warning("Out of memory with %d pictures at a time: %d from here on.", many, many // 2)
            many = self.most = many // 2
            give_back()


def give_back() -> None:
    """Memory that nothing refers to any more, a GPU's too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
