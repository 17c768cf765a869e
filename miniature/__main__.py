"""``python -m miniature STAGE``: see the package's docstring."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from functools import partial
from pathlib import Path

SECONDS = {"text": 150.0, "vl": 630.0, "vae": 210.0, "judge": 200.0, "dit": 780.0, "answers": 90.0}
TOY_STEPS = {"text": 12, "vl": 6, "vae": 6, "judge": 6, "dit": 6, "answers": 6}
STAGES = ("text", "vl", "vae", "judge", "dit", "assemble", "answers", "check")
MEASURING = ("bench", "recipes", "curves", "two-pictures", "adapter-sheet")  # take the bench's options


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m miniature", description="Train and measure the miniature.")
    top.add_argument("stage", choices=[*STAGES, "adapter", *MEASURING, "curves-plot", "tables", "scenes", "all"])
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
    top.add_argument("--count", type=int, metavar="N", help="pictures of scenes (12)")
    bench = top.add_argument_group("bench")
    bench.add_argument("--pairs", type=int, help="prompt and reference pairs (200)")
    bench.add_argument("--seeds", type=int, help="noise seeds per pair (3)")
    bench.add_argument("--sampler-steps", type=int, help="(8)")
    bench.add_argument("--guidance", type=float, help="(1)")
    bench.add_argument("--only", help="of the training-free methods those whose name contains this")
    bench.add_argument("--shard", help="0/2 and 1/2: half of the methods each, on two GPUs")
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
        from . import together

        options = options_of("all", chosen)
        side_by_side = options.pick_device().type == "cuda"
        work = together.in_a_process_of_its_own if side_by_side else together.in_this_process
        together.run(options, partial(work, chosen), side_by_side)
    else:
        run_stage(chosen.stage, chosen)


def options_of(stage: str, chosen: argparse.Namespace):
    """The stage's options, its own seconds or steps where none were given."""
    from .training import Options

    steps = TOY_STEPS.get(stage) if chosen.toy and chosen.steps is None and chosen.seconds is None else chosen.steps
    return Options(
        out=chosen.out, seconds=SECONDS.get(stage, 0.0) if chosen.seconds is None else chosen.seconds, steps=steps,
        seed=chosen.seed, resume=chosen.resume, device=chosen.device, toy=chosen.toy,
        compile=not chosen.no_compile, joint=chosen.joint, checkpoint_seconds=chosen.checkpoint_seconds,
        stop_after=chosen.stop_after, models=chosen.models,
    )


def run_stage(stage: str, chosen: argparse.Namespace) -> None:
    from importlib import import_module

    options = options_of(stage, chosen)
    name = "adapters" if stage == "adapter" else stage.replace("-", "_")
    module = import_module(f".{name}", __package__)
    if stage in MEASURING:
        module.run(options, switches(chosen))
    elif stage == "adapter":
        module.run(options, chosen.pairs, switches(chosen).hold_out)
    elif stage == "scenes":
        module.run(options, chosen.count)
    else:
        module.run(options)


def switches(chosen: argparse.Namespace):
    """What the bench is asked, from the options; toy asks little unless told otherwise."""
    from . import bench, world

    given = {
        "pairs": chosen.pairs, "seeds": chosen.seeds, "steps": chosen.sampler_steps, "guidance": chosen.guidance,
        "only": chosen.only, "shard": chosen.shard,
    }
    hold_out = world.HoldOut(chosen.unseen_combinations, chosen.leave_out_style, chosen.leave_out_background)
    return dataclasses.replace(
        bench.TOY if chosen.toy else bench.Switches(), hold_out=hold_out, other_words=chosen.other_words,
        described=chosen.described, **{name: value for name, value in given.items() if value is not None},
    )


if __name__ == "__main__":
    sys.exit(main())
