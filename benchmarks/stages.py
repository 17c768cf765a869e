"""Each stage after the encode against one clone of its input, 1100 × 2560 in float32.

And on 60 × 64, where there is next to nothing to compute: what its checks, decisions and report cost by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vl_core.stages.blend import blend
from vl_core.stages.delta import image_delta
from vl_core.stages.normalize import normalize
from vl_core.stages.outliers import mask_outlier_dimensions
from vl_core.stages.resample import resample_tokens
from vl_core.stages.select import select_tokens
from vl_core.states.layout import insert_pictures, text_layout
from vl_core.states.statistics import ReferenceStatistics

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


def stages(device: torch.device, width: int, grid: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """A clone of states of one picture and a prompt, and every stage on them, by name."""
    generator = torch.Generator().manual_seed(0)
    words = text_layout([151644, 872, 198, *range(100, 134), 151645, 198, 151644, 77091, 198])
    layout = insert_pictures(words, [grid])
    text = torch.randn(len(words), width, generator=generator).to(device)
    states = torch.randn(len(layout), width, generator=generator).to(device)
    other = states + 0.1 * torch.randn(len(layout), width, generator=generator).to(device)
    reference = ReferenceStatistics.of(torch.randn(500, width, generator=generator))
    pictures = {"text_layout": words, "vl_layout": layout}
    return {
        "clone of 1100 × 2560 float32": lambda: states.clone(),
        "select image tokens": lambda: select_tokens(states, layout, "image"),
        "resample to the text's length": lambda: resample_tokens(states, len(words)),
        "mask outliers": lambda: mask_outlier_dimensions(states, reference=reference),
        "normalize global": lambda: normalize(states, "global", reference),
        "normalize per_dim": lambda: normalize(states, "per_dim", reference),
        "normalize hybrid": lambda: normalize(states, "hybrid", reference),
        "normalize rms": lambda: normalize(states, "rms", reference),
        "blend aligned": lambda: blend(text, states, 0.5, **pictures),
        "blend with as many tokens": lambda: blend(other, states, 0.5, "truncate"),
        "blend append": lambda: blend(text, states, 0.5, "append", **pictures),
        "image delta": lambda: image_delta(text, states, other, 1.0, baseline_layout=layout, **pictures),
    }
