"""Each stage after the encode against one clone of its input, 1100 × 2560 in float32.

And on 60 × 64, where there is next to nothing to compute: what its checks, decisions and report cost by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import vl_core
from vl_core import ReferenceStatistics, TokenLayout, TokenRole

from .common import Report, add_output_argument, milliseconds

WIDTH, GRID = 2560, (32, 33)  # with the words below, 1100 positions
NEXT_TO_NOTHING = 64, (4, 4)


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=20, help="timed calls per figure")


def run(arguments) -> None:
    device = torch.device(arguments.device)
    report = Report("stages", device, arguments.out)
    report.section("stages", lambda: measure(report, device, arguments.runs))
    report.write()


def measure(report: Report, device: torch.device, runs: int) -> None:
    times = [timed(stages(device, *size), device, runs) for size in ((WIDTH, GRID), NEXT_TO_NOTHING)]
    clone = next(iter(times[0].values()))
    for name, ms in times[0].items():
        report.add(name, ms=ms, **{"× one clone": ms / clone, "ms of 60 × 64": times[1][name]})


def timed(works: dict[str, Callable[[], Any]], device: torch.device, runs: int) -> dict[str, float]:
    with torch.inference_mode():
        return {name: milliseconds(work, device, runs) for name, work in works.items()}


def layouts(grid: tuple[int, int]) -> tuple[TokenLayout, TokenLayout]:
    """Of a prompt of 34 words alone, and with a picture of merged ``(rows, columns)`` before them."""
    template, word, marker, pictured = TokenRole.TEMPLATE, TokenRole.TEXT, TokenRole.MARKER, TokenRole.IMAGE
    head = [(151644, template), (872, template), (198, template)]
    tail = [*((word_id, word) for word_id in range(100, 134)), (151645, template), (198, template), (151644, template)]
    tail += [(77091, template), (198, template)]
    block = [(151652, marker), *[(151655, pictured)] * (grid[0] * grid[1]), (151653, marker)]

    def layout(tokens: list[tuple[int, TokenRole]], **options: Any) -> TokenLayout:
        ids, roles = zip(*tokens, strict=True)
        return TokenLayout(torch.tensor(roles, dtype=torch.uint8), torch.tensor(ids), **options)

    return layout(head + tail, source="text"), layout(head + block + tail, grids=(grid,))


def stages(device: torch.device, width: int, grid: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """A clone of states of one picture and a prompt, and every stage on them, by name."""
    generator = torch.Generator().manual_seed(0)
    words, layout = layouts(grid)
    text = torch.randn(len(words), width, generator=generator).to(device)
    states = torch.randn(len(layout), width, generator=generator).to(device)
    other = states + 0.1 * torch.randn(len(layout), width, generator=generator).to(device)
    reference = ReferenceStatistics.of(torch.randn(500, width, generator=generator))
    pictures = {"text_layout": words, "vl_layout": layout}
    core = vl_core  # by names that every revision has; one that is lacking ends its own stage
    return {
        "clone of 1100 × 2560 float32": lambda: states.clone(),
        "select image tokens": lambda: core.select_tokens(states, layout, "image"),
        "resample to the text's length": lambda: core.resample_tokens(states, len(words)),
        "mask outliers": lambda: core.mask_outlier_dimensions(states, reference=reference),
        "normalize global": lambda: core.normalize(states, "global", reference),
        "normalize per_dim": lambda: core.normalize(states, "per_dim", reference),
        "normalize hybrid": lambda: core.normalize(states, "hybrid", reference),
        "normalize rms": lambda: core.normalize(states, "rms", reference),
        "blend aligned": lambda: core.blend(text, states, 0.5, **pictures),
        "blend with as many tokens": lambda: core.blend(other, states, 0.5, "truncate"),
        "blend append": lambda: core.blend(text, states, 0.5, "append", **pictures),
        "image delta": lambda: core.image_delta(text, states, other, 1.0, baseline_layout=layout, **pictures),
    }
