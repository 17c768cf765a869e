"""``python -m miniature STAGE``: see the package's docstring."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from .stages import MODULES, options_of, run_stage


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m miniature", description="Train and measure the miniature.")
    top.add_argument("stage", choices=[*MODULES, "all"])
    top.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="checkpoints, weights and logs")
    top.add_argument("--models", type=Path, metavar="FOLDER", help="the assembled models (default: OUT/models)")
    top.add_argument("--seconds", type=float, help="training time; each stage has a default for one H100-class GPU")
    top.add_argument("--steps", type=int, help="a budget in steps instead: exactly repeatable on one device")
    top.add_argument("--stop-after", type=float, metavar="S", help="end this call after S seconds, to be resumed")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--resume", action="store_true", help="go on from the stage's checkpoint, if there is one")
    top.add_argument("--device", default="auto", help="auto, cuda, cpu …")
    top.add_argument("--toy", action="store_true", help="tiny models and data, a few steps")
    top.add_argument("--no-compile", action="store_true", help="do not torch.compile the DiT")
    top.add_argument("--joint", type=float, default=0.15, help="last share of vl that trains the language model too")
    top.add_argument("--checkpoint-seconds", type=float, default=60.0, help="how often a checkpoint is written")
    top.add_argument(
        "--matmul", default="high", choices=["highest", "high", "medium"],
        help="precision of float32 products; medium is bfloat16, twice as fast on a processor that has it",
    )
    top.add_argument("--count", type=int, metavar="N", help="pictures of scenes (12)")
    bench = top.add_argument_group("bench")
    bench.add_argument("--pairs", type=int, help="prompt and reference pairs (200)")
    bench.add_argument("--seeds", type=int, help="noise seeds per pair (3)")
    bench.add_argument("--sampler-steps", type=int, help="(8)")
    bench.add_argument("--guidance", type=float, help="(1)")
    bench.add_argument("--only", help="of the training-free methods those whose name contains this")
    bench.add_argument("--shard", help="0/2 and 1/2: half of the methods each, side by side")
    bench.add_argument("--few", type=int, help="looks: pairs of the curves (60), and colours between names (45)")
    bench.add_argument("--lookalikes", type=int, help="looks: references per style that geometry is read off (40)")
    bench.add_argument("--unseen-combinations", action="store_true", help="only looks kept from fitting")
    bench.add_argument("--leave-out-style", metavar="NAME", help="only references of this style, kept from fitting")
    bench.add_argument("--leave-out-background", metavar="NAME", help="only references on this background, likewise")
    bench.add_argument("--other-words", action="store_true", help="prompts in words no model was trained with")
    bench.add_argument("--described", action="store_true", help="looks described by the VL instead of the truth")
    return top


def main(arguments: list[str] | None = None) -> None:
    """Run one stage, or all from text to check."""
    chosen = parser().parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked
    if chosen.stage == "all":
        from .train import together

        options = options_of("all", chosen)
        side_by_side = options.pick_device().type == "cuda"
        work = together.in_a_process_of_its_own if side_by_side else together.in_this_process
        together.run(options, partial(work, chosen), side_by_side)
    else:
        run_stage(chosen.stage, chosen)


if __name__ == "__main__":
    sys.exit(main())
