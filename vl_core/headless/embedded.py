"""``demo``, and all else that the command line takes from the trained miniature: its models and its judge.

The only file of vl_core that knows the miniature, which is imported when it is asked for: a clone of the repository has
it, an installed pack need not.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

PACKAGE = "miniature"
SUMMARY = "paint with the trained miniature of the whole chain and see what came through; needs no downloads"


def add_arguments(parser) -> None:
    parser.add_argument("--output", "-o", default="demo_output", metavar="FOLDER", help="where to write")


def run(arguments) -> None:
    embedded("demo")(arguments)


# What is taken, by what it is for: a module of the miniature, and a name in it.
PARTS = {
    "demo": ("demo", "run"),
    "folders": ("train.assemble", "folders"),  # gives those of its Z-Image and of its Qwen3-VL
    "models": ("train.assemble", "MODELS"),  # the folder of all its models
    "judge": ("measure.score", "load_score"),  # from that folder a score of `compare`
    # What its Qwen3-VL is asked for a take, and where its answer goes: it knows forty words.
    "questions": ("world", "TAKE_QUESTIONS"),
    # What it is asked for a look, what for what a picture shows, and what takes the things from that answer.
    "look questions": ("world", "LOOK_QUESTIONS"),
    "form": ("measure.vl_judge", "WorldForm"),  # how it is asked as a judge
    # Pictures of its world by name, uint8 (H, W, 3), and prompts that disagree with each of them with the thing that
    # they ask for.
    "ground": ("measure.vl_judge", "ground"),
}


def embedded(part: str) -> Any:
    """One of :data:`PARTS`.

    Raises:
        ValueError: if the miniature is not there.
    """
    module, name = PARTS[part]
    if find_spec(PACKAGE) is None:
        raise ValueError(
            "The trained miniature is not here: it comes with the repository. Run `git clone "
            "https://github.com/zimage-vl/zimage-vl`, in it `pip install -e \".[headless]\"`, and the command there. "
            "With a Z-Image folder (--model) all but the demo work here too."
        )
    return getattr(import_module(f"{PACKAGE}.{module}"), name)
