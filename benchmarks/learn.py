"""What learning a look costs: Z-Image's transformer at full size with random weights on a GPU, else the miniature.

A step is one of *good*'s: noisy pictures in, gradients to the caption, Adam; by size and number with no other prompt
kept, which the prototype did not do either, then as *good* does it. Memory is what a step takes over the weights. The
prototype ran every block of the same transformer twice, with nothing kept: its figures are the goal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vl_core.looks.learn import GOALS, KEPT_EVERY, learn_look
from vl_core.looks.options import QUALITIES, LearnOptions
from vl_core.looks.start import Words
from vl_core.states.layout import TokenLayout
from vl_core.zimage import look_painter, tiny
from vl_core.zimage.look_painter import PipelinePainter
from vl_core.zimage.pipeline import load_pipeline, prompt_layout

from .common import Report, add_output_argument, synchronize
from .models import build_painter

MINIATURE = Path(__file__).parents[1] / "miniature" / "models" / "z-image-mini"
WORDS = Words(("a lamp by the sea, a red hat on a table",), "a painting in oil, the light of a lamp, red and gold")
GIBIBYTE = 1 << 30
TIMED = KEPT_EVERY * GOALS  # steps: one pass for what other prompts are to keep, and four that ask for one
SETTLING = 3  # steps before them
# Noisy pictures by the side: four of 768 × 768 do not fit beside the weights with every block kept.
AT_ONCE = {
    "full": {256: (1, 4), 384: (1, 4), 512: (1, 2, 4), 768: (1,)}, "miniature": {128: (1, 4)}, "tiny": {64: (1,)},
}
SIDES = {"full": 512, "miniature": 128, "tiny": 64}  # of a picture whose look is learned whole
AGAIN, KEPT, AS_IT_IS = "every block run again", "every block kept", "as the painter decides"
SOME, SOME_GIBIBYTES = "blocks kept in half a GiB", 0.5


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=["miniature", "tiny", "full"], help="full on a GPU, else miniature")
    parser.add_argument("--steps", type=int, help="of each named quality, instead of its own: for a trial")


def run(arguments) -> None:
    device = torch.device(arguments.device)
    size = arguments.size or ("full" if device.type == "cuda" else "miniature")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    report = Report(f"learn{'' if device.type == 'cuda' else '_cpu'}", device, arguments.out, size=size,
                    dtype=str(dtype))
    painter = painter_of(size, device, dtype)
    report.section("a step", lambda: steps(report, painter, device, size))
    report.section("a whole look", lambda: qualities(report, painter, device, size, arguments.steps))
    report.write()


def painter_of(size: str, device: torch.device, dtype: torch.dtype) -> PipelinePainter:
    if size == "miniature":
        return PipelinePainter(load_pipeline(MINIATURE, device, dtype), "z-image-mini")
    pipeline, _ = tiny.build()
    if size == "tiny":
        return PipelinePainter(pipeline.to(device, dtype), "tiny")
    return FullSize(pipeline.tokenizer, device, dtype)


class FullSize(PipelinePainter):
    """Z-Image's transformer and VAE from their configs with random weights; states of texts are noise of its width."""

    def __init__(self, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        dit, vae = build_painter("full", device, dtype)
        self.tokenizer = tokenizer
        pipeline = SimpleNamespace(
            transformer=dit, vae=vae, vae_scale_factor=8, device=device, text_encoder=torch.nn.Identity(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), tokenizer=tokenizer,
        )
        super().__init__(pipeline, "Z-Image, random weights")  # type: ignore[arg-type]

    def text(self, prompt: str) -> tuple[Tensor, TokenLayout]:
        layout = prompt_layout(self.tokenizer, prompt, self.name)
        width = self.dit.config.cap_feat_dim
        generator = torch.Generator().manual_seed(0)  # a text's beginning is the same whatever comes after
        return torch.randn(len(layout), width, generator=generator).to(self.device), layout.with_layer(-2)


def steps(report: Report, painter: PipelinePainter, device: torch.device, size: str) -> None:
    """Milliseconds and memory of a step, by the picture's size, noisy pictures at once, and what blocks keep."""
    for side, at_once in AT_ONCE[size].items():
        for draws in at_once:
            for what in (AGAIN, SOME, KEPT, AS_IT_IS) if device.type == "cuda" else (AGAIN, KEPT):
                options = replace(QUALITIES["good"], steps=SETTLING + TIMED, draws=draws, size=side, keep=0.0)
                before = look_painter._room
                rooms = {AGAIN: lambda _: 0.0, SOME: half_a_gibibyte(device), KEPT: lambda _: float("inf")}
                look_painter._room = rooms.get(what, before)
                try:
                    ms, peak = a_step(painter, device, options)
                finally:
                    look_painter._room = before
                report.add(f"{side} × {side}, {draws} at once, {what}", ms=ms, GiB_over_weights=peak)
    side = SIDES[size]
    good = replace(QUALITIES["good"], steps=SETTLING + TIMED, size=side)
    ms, peak = a_step(painter, device, good)
    what = f"{good.draws} and at every fourth step one with another prompt"
    report.add(f"{side} × {side}, {what}, {AS_IT_IS}", ms=ms, GiB_over_weights=peak)


def half_a_gibibyte(device: torch.device) -> Callable[[torch.device], float]:
    """What is left of so much over what is taken now, in bytes."""
    if device.type != "cuda":
        return lambda _: float("inf")
    most = torch.cuda.memory_allocated(device) + SOME_GIBIBYTES * GIBIBYTE
    return lambda _: most - torch.cuda.memory_allocated(device)


def a_step(painter: PipelinePainter, device: torch.device, options: LearnOptions) -> tuple[float, float | None]:
    """Milliseconds of a step, the mean, and GiB over what there was before."""
    times: list[float] = []

    def tick(_state: Any) -> None:
        synchronize(device)
        times.append(time.perf_counter())

    synchronize(device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    learn_look(painter, [picture_of(options.size)], WORDS, options, on_step=tick)
    peak = (torch.cuda.max_memory_allocated(device) - before) / GIBIBYTE if on_gpu else None
    return 1000 * (times[-1] - times[-1 - TIMED]) / TIMED, peak


def qualities(
    report: Report, painter: PipelinePainter, device: torch.device, size: str, few: int | None
) -> None:
    """Seconds of learning one look after loading: texts, latents and all steps."""
    side = SIDES[size]
    for name in ("quick", "good", "best") if size != "full" else ("quick", "good"):
        options = QUALITIES[name]
        options = replace(options, size=min(side, options.size), steps=few or options.steps)
        report.add(f"{name}: {options.steps} steps of {options.draws}, {options.size} × {options.size}",
                   seconds=seconds(painter, device, [picture_of(side)], options))


def seconds(
    painter: PipelinePainter, device: torch.device, pictures: Sequence[Tensor], options: LearnOptions
) -> float:
    synchronize(device)
    start = time.perf_counter()
    learn_look(painter, pictures, WORDS, options)
    synchronize(device)
    return time.perf_counter() - start


def picture_of(side: int) -> Tensor:
    """A picture ``(side, side, 3)`` of noise that is no finer than a model's pixels."""
    return torch.rand(side, side, 3, generator=torch.Generator().manual_seed(side))
