"""``python -m vl_core``: one subcommand per use, errors as one line."""

from __future__ import annotations

import argparse
import io
import sys
import traceback
from collections.abc import Sequence

from ..zimage.checks import INSTALL
from . import calibrate, describe, embedded, extract, fit, generate, layers, learn
from .compare import command as compare
from .evaluate import command as evaluate

USER_ERROR, INTERRUPTED = 1, 130
COMMANDS = {
    "demo": embedded, "extract": extract, "generate": generate, "calibrate": calibrate, "compare": compare, "fit": fit,
    "layers": layers, "describe": describe, "learn": learn, "evaluate": evaluate,
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where there is one: "(default: None)" tells nobody anything."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_number = type(action.default) in (int, float)
        return super()._get_help_string(action) if is_number or action.default else action.help


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vl_core",
        description="Reference pictures for Z-Image: Qwen3-VL looks at them and puts their look into words, which go "
        "after your prompt; other ways are there to compare. Begin with demo.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.SUMMARY, description=f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}.",
            formatter_class=HelpFormatter,
        )
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the full traceback of an error")
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        0 if it worked, 1 after an error (told in one line on stderr), 130 after Ctrl-C.

    Raises:
        SystemExit: from argparse: 2 for wrong usage, 0 after ``--help``.
    """
    for stream in (sys.stdout, sys.stderr):  # Windows' own encodings lack letters, and a file gets them
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        return USER_ERROR
    return 0


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return f"{text}. Install what is missing with: {INSTALL}"
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (--debug shows where)"
