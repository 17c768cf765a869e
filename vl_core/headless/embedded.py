"""``demo``, and all else that the command line takes from the trained miniature: its models and its judge.

The only file of vl_core that knows the miniature, which is imported when it is asked for: a clone of the repository has
it, an installed pack need not.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

PACKAGE = "miniature"
SUMMARY = "paint with the trained miniature of the whole chain and see what came through; needs no downloads"


def add_arguments(parser) -> None:
    parser.add_argument("--output", "-o", default="demo_output", metavar="FOLDER", help="where to write")


def run(arguments) -> None:
    embedded("demo").run(arguments)


def embedded_folders() -> tuple[str, str]:
    """Folders of the miniature's Z-Image and of its Qwen3-VL.

    Raises:
        ValueError: if the miniature is not there.
    """
    found = embedded("train.assemble")
    return str(found.MODELS / found.PIPELINE), str(found.MODELS / found.VISION)


def embedded_judge(device: Any) -> Any:
    """The miniature's judge as a score of ``compare``.

    Raises:
        ValueError: if the miniature is not there.
    """
    return embedded("measure.score").load_score(embedded("train.assemble").MODELS, device)


def embedded_questions() -> tuple[tuple[str, str, str], ...]:
    """What the miniature's Qwen3-VL is asked for a take, and where its answer goes: it knows forty words.

    Raises:
        ValueError: if the miniature is not there.
    """
    return embedded("world").TAKE_QUESTIONS


def embedded_look_questions() -> tuple[str, str, str]:
    """What the miniature's Qwen3-VL is asked for a look, what for what a picture shows, and where that answer ends.

    Raises:
        ValueError: if the miniature is not there.
    """
    return embedded("world").LOOK_QUESTIONS


def embedded_form() -> Any:
    """How the miniature's Qwen3-VL is asked as a judge.

    Raises:
        ValueError: if the miniature is not there.
    """
    return embedded("measure.vl_judge").WorldForm()


def embedded_ground() -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Pictures of the miniature's world by name, uint8 ``(H, W, 3)``, and prompts that disagree with each of them with
    the thing that they ask for.

    Raises:
        ValueError: if the miniature is not there.
    """
    return embedded("measure.vl_judge").ground()


def embedded(module: str) -> ModuleType:
    """A module of the miniature.

    Raises:
        ValueError: if it is not there.
    """
    if find_spec(PACKAGE) is None:
        raise ValueError(
            "The trained miniature is not here: it comes with the repository. Run `git clone "
            "https://github.com/zimage-vl/zimage-vl`, in it `pip install -e \".[headless]\"`, and the command there. "
            "With a Z-Image folder (--model) all but the demo work here too."
        )
    return import_module(f"{PACKAGE}.{module}")
