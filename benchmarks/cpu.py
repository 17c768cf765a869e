"""What an encode costs on a CPU the first time and again, with random float32 weights of a medium size."""

from __future__ import annotations

import torch

from vl_core.encoder.qwen3vl import Qwen3VLEncoder

from .common import Report, add_output_argument, milliseconds, relative_error
from .models import OTHER_PROMPT, PROMPT, build_model, picture

LAYER = -6


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("--size", default="medium", choices=["tiny", "medium"])
    parser.add_argument("--runs", type=int, default=3, help="timed calls per figure")


def run(arguments) -> None:
    device = torch.device("cpu")
    report = Report("cpu", device, arguments.out, size=arguments.size, dtype="torch.float32")
    model, tokenizer = build_model(arguments.size, device, torch.float32)
    report.section("encode", lambda: _measure(report, model, tokenizer, picture(arguments.size), arguments.runs))
    report.write()


def _measure(report: Report, model, tokenizer, image: torch.Tensor, runs: int) -> None:
    device, blocks = torch.device("cpu"), model.config.text_config.num_hidden_layers
    fresh, plain, kept = (
        Qwen3VLEncoder(model.model, tokenizer, blocks, **options)
        for options in ({"cache_bytes": 0}, {"fast": False}, {"cache_bytes": 1 << 30, "every_layer": True})
    )
    prompts = iter(f"{OTHER_PROMPT} {number}" for number in range(1000))
    layout = fresh.encode([image], PROMPT, 0).layout
    modules = milliseconds(lambda: plain.encode([image], next(prompts), LAYER), device, runs, 1)
    whole = milliseconds(lambda: fresh.encode([image], next(prompts), LAYER), device, runs, 1)
    report.add(f"{layout.describe()}: the modules' own forward", ms=modules)
    report.add("nothing kept", ms=whole)

    def first() -> None:
        kept.forget()
        kept.encode([image], PROMPT, LAYER)

    report.add("first encode, keeping every layer", ms=milliseconds(first, device, runs, 1))
    for what, work in (
        ("same picture, new prompt", lambda: kept.encode([image], next(prompts), LAYER)),
        ("the same again", lambda: kept.encode([image], PROMPT, LAYER)),
        ("another layer", lambda: kept.encode([image], PROMPT, LAYER - 1)),
    ):
        ms = milliseconds(work, device, 2 * runs, 1)
        report.add(what, ms=ms, **{"× faster than nothing kept": whole / ms})
    ours, theirs = (encoder.encode([image], OTHER_PROMPT, LAYER).states[0] for encoder in (kept, plain))
    report.add("new prompt on a kept picture against the modules' own forward", error=relative_error(ours, theirs))
    report.add("kept", MiB=kept.reader.cache.bytes / 2**20)
