"""The stages that train the miniature and measure it, by name."""

from __future__ import annotations

import argparse
import dataclasses
from importlib import import_module

from . import world
from .measure import bench
from .train.training import Options

SECONDS = {"text": 150.0, "vl": 630.0, "vae": 210.0, "judge": 200.0, "dit": 780.0, "answers": 90.0}
TOY_STEPS = {"text": 12, "vl": 6, "vae": 6, "judge": 6, "dit": 6, "answers": 6}
STAGES = ("text", "vl", "vae", "judge", "dit", "assemble", "answers", "check")
# Take the bench's options.
MEASURING = ("bench", "takes", "curves", "two-pictures", "adapter-sheet", "looks", "judge-check")
# Where a stage's module lies.
MODULES = {
    **dict.fromkeys(STAGES, "train"), "check": "measure", **dict.fromkeys(MEASURING, "measure"),
    "adapter": "measure", "adapter-sheet": "show", "curves-plot": "show", "tables": "show", "scenes": "show",
    "looks-plot": "show",
    "evaluated": "show",
    "brand": "show",
}


def options_of(stage: str, chosen: argparse.Namespace) -> Options:
    """The stage's options, its own seconds or steps where none were given."""
    steps = TOY_STEPS.get(stage) if chosen.toy and chosen.steps is None and chosen.seconds is None else chosen.steps
    names = [field.name for field in dataclasses.fields(Options) if hasattr(chosen, field.name)]
    given = {name: getattr(chosen, name) for name in names}
    seconds = SECONDS.get(stage, 0.0) if chosen.seconds is None else chosen.seconds
    return Options(**{**given, "seconds": seconds, "steps": steps, "compile": not chosen.no_compile})


def run_stage(stage: str, chosen: argparse.Namespace) -> None:
    """Run one stage; its module is imported only now."""
    options = options_of(stage, chosen)
    name = "adapters" if stage == "adapter" else stage.replace("-", "_")
    module = import_module(f".{MODULES[stage]}.{name}", __package__)
    if stage in MEASURING:
        module.run(options, switches(chosen))
    elif stage == "adapter":
        module.run(options, chosen.pairs, switches(chosen).hold_out)
    elif stage == "scenes":
        module.run(options, chosen.count)
    else:
        module.run(options)


def switches(chosen: argparse.Namespace) -> bench.Switches:
    """What the bench is asked, from the options; toy asks little unless told otherwise."""
    names = ("pairs", "seeds", "guidance", "only", "shard", "few", "lookalikes")
    given = {name: getattr(chosen, name) for name in names}
    given["steps"] = chosen.sampler_steps
    hold_out = world.HoldOut(chosen.unseen_combinations, chosen.leave_out_style, chosen.leave_out_background)
    return dataclasses.replace(
        bench.TOY if chosen.toy else bench.Switches(), hold_out=hold_out, other_words=chosen.other_words,
        described=chosen.described, **{name: value for name, value in given.items() if value is not None},
    )
