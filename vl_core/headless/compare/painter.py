"""Paints the cells of a study: models loaded once, every picture and prompt read once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...adapters.picture_adapter import PictureAdapter
from ...encoder.writing import append_words, describe
from ...reports.controls import matched_noise, noisy
from ...states.families import THINK_BLOCK, ZIMAGE, Family
from ...states.layout import TAIL_TOKENS, USER_TURN, TokenLayout
from ...states.statistics import ReferenceStatistics, calibrate, calibration_prompts
from ...states.vl_states import VLStates
from ...steering.sweep import Cell
from ...zimage import checks
from ...zimage.pipeline import encode_text, load_pipeline, paint, prompt_layout, text_states
from ..calibrate import batch_reader, text_reader
from ..vision import load_encoder
from .nulls import NULL, noise_seed
from .study import ADAPTER, DENOISE, DESCRIBE, THINK, Models

LONGEST_ANSWER = 160  # tokens of a description


@dataclass(frozen=True)
class Painted:
    """A cell's picture, uint8 ``(H, W, 3)``, what was done, and how long each part took in seconds."""

    id: str
    pixels: np.ndarray
    report: str
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Needs:
    """What the readings of a study have to hold: :class:`Study` knows."""

    layers: tuple[int, ...]
    muted: bool
    reference: bool


class Painter:
    """All that is needed to paint any cell of one study; parts are loaded when the first cell needs them."""

    def __init__(self, models: Models, pictures: Mapping[str, Sequence[Tensor]], needs: Needs) -> None:
        self.models, self.pictures, self.needs = models, pictures, needs
        self.device, self.dtype = checks.pick_device(models.device), checks.DTYPES[models.dtype]
        self.pipeline = load_pipeline(models.zimage, self.device, self.dtype)
        self.encodes = 0  # forwards of Qwen3-VL over a picture and a prompt
        self._encoder = self._adapter = self._reference = None
        self._kept: dict[str, tuple[Any, Any]] = {}  # one value of each kind: cells come group by group
        self._plain: dict[tuple, np.ndarray] = {}  # words alone, which are the same beside every picture

    def paint(self, cell: Cell) -> Painted:
        """One picture."""
        extra, models, seconds = dict(cell.extra), self.models, {}
        start = time.perf_counter()
        states, report = self.states(cell)
        seconds["states"] = time.perf_counter() - start
        start = time.perf_counter()
        is_plain = cell.words_only and not extra[DESCRIBE] and not extra[ADAPTER] and extra[DENOISE] == 1
        where = extra["prompt"], extra[THINK], cell.seed
        if is_plain and where in self._plain:
            pixels = self._plain[where]
        else:
            pixels = np.asarray(paint(
                self.pipeline, states, negative=models.negative, steps=models.steps, guidance=models.guidance,
                width=models.width, height=models.height, seed=cell.seed, over=self.pictures[extra["pictures"]][0],
                denoise=extra[DENOISE],
            ))
            if is_plain:
                self._plain[where] = pixels
        seconds["paint"] = time.perf_counter() - start
        return Painted(cell.id, pixels, report, {name: round(spent, 4) for name, spent in seconds.items()})

    def states(self, cell: Cell) -> tuple[Tensor, str]:
        """What a cell is painted from, ``(L, D)``, and what was done."""
        extra = dict(cell.extra)
        lines, prompt, is_noise = [], extra["prompt"], NULL in extra
        if extra[DESCRIBE]:
            words = self.words(extra["pictures"])
            prompt = append_words(prompt, words)
            lines.append(f"described: {words}")
        text, layout = self.text(prompt, extra[THINK])
        if extra[DESCRIBE] and is_noise:
            text = self._words_as_noise(text, cell)
        mixed, mixed_layout = text, layout
        if not cell.words_only:
            where = extra["pictures"], prompt, extra[THINK]
            blind = self.reading(*where, mute=True) if cell.settings.needs_muted else None
            reference = self.reference if cell.settings.needs_reference else None
            seen = self.reading(*where)
            if is_noise:
                seen = self._keep("noise", (where, cell.seed), lambda: noisy(seen, noise_seed(cell)))
            mixed, mixed_layout, report = cell.settings.apply(text, layout, seen, blind, reference)
            lines.append(report)
        if extra[ADAPTER]:
            spec = self.adapter.spec
            beside = prompt if spec.own_prompt else spec.prompt
            seen = [
                self._keep(
                    f"adapter {number}", (extra["pictures"], beside),
                    lambda picture=picture: self._encode([picture], beside, spec.features.layers),
                )
                for number, picture in enumerate(self.pictures[extra["pictures"]])
            ]
            if is_noise:
                seen = [noisy(one, noise_seed(cell)) for one in seen]
            mixed, _, info = self.adapter.apply(mixed, mixed_layout, seen, extra[ADAPTER])
            lines.append(info.describe())
        return mixed, "\n".join([*lines, *["matched noise in place of what was seen"] * is_noise]) or "words only"

    def _words_as_noise(self, text: Tensor, cell: Cell) -> Tensor:
        """Text states with noise in place of what follows the cell's own prompt: a description, and the tail."""
        own, think = dict(cell.extra)["prompt"], dict(cell.extra)[THINK]
        layout = prompt_layout(self.pipeline.tokenizer, own, family=self.family(think))
        start = len(layout) - self.family(think).tail_tokens
        generator = torch.Generator().manual_seed(noise_seed(cell))
        return torch.cat([text[:start], matched_noise(text[start:], generator)])

    def text(self, prompt: str, think: bool = False) -> tuple[Tensor, TokenLayout]:
        """Z-Image's own states of a prompt; ``think``: with an empty think block after it."""
        if not think:
            return self._keep("text", prompt, lambda: encode_text(self.pipeline, prompt))
        return self._keep(
            "thinking text", prompt, lambda: text_states(self.pipeline, prompt, self.family(think))
        )

    def family(self, think: bool) -> Family:
        """Z-Image's template, or the one with an empty think block."""
        if not think:
            return ZIMAGE
        block = self.pipeline.tokenizer(THINK_BLOCK, add_special_tokens=False)["input_ids"]
        return replace(ZIMAGE, turn=USER_TURN + THINK_BLOCK, tail_tokens=TAIL_TOKENS + len(block))

    def reading(self, key: str, prompt: str, think: bool = False, mute: bool = False) -> VLStates:
        """Qwen3-VL's states of the pictures and a prompt, all layers of the study from one forward."""
        kind = "muted" if mute else "seen"
        family = self.family(think)
        return self._keep(
            kind, (key, prompt, think),
            lambda: self._encode(self.pictures[key], prompt, self.needs.layers, mute=mute, family=family),
        )

    def words(self, key: str) -> str:
        """Qwen3-VL's description of the pictures."""
        return self._keep(
            "words", key,
            lambda: describe(
                self.encoder, self.pictures[key], self.models.instruction, max_tokens=LONGEST_ANSWER,
                budget=self.models.image_tokens,
            ).words,
        )

    @property
    def encoder(self):
        if self._encoder is None:
            self._encoder = load_encoder(self.models.vision, self.device, self.dtype, self.models.layer)
        return self._encoder

    @property
    def adapter(self) -> PictureAdapter:
        if self._adapter is None:
            self._adapter = PictureAdapter.load(self.models.adapter)
        return self._adapter

    @property
    def reference(self) -> ReferenceStatistics:
        """The text encoder's statistics: from the file, or measured once."""
        if self._reference is None:
            if self.models.reference:
                self._reference = ReferenceStatistics.load(self.models.reference)
            else:
                parts = self.pipeline.text_encoder, self.pipeline.tokenizer
                self._reference = calibrate(
                    text_reader(*parts), calibration_prompts(), encode_many=batch_reader(*parts)
                )
        return self._reference

    def _encode(self, pictures: Sequence[Tensor], prompt: str, layers: Sequence[int], **options: Any) -> VLStates:
        self.encodes += 1
        return self.encoder.encode(
            list(pictures), prompt, tuple(layers), budget=self.models.image_tokens, **options
        )

    def _keep(self, kind: str, key: Any, make: Any) -> Any:
        """The last value of a kind if it is the one asked for, else a new one."""
        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept[kind] = key, make()
        return self._kept[kind][1]


