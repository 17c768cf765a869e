"""Runs a command until it first writes a file of a kind that is not in ``done``, and kills itself in that very moment.

Run in a process of its own by the fixture ``killed_at_every_file``, which gives ``command``, ``folder``, ``done`` and
``tell``, the end of a pipe that the kind goes to. A line that was being appended is left torn, a file that was being
written is left with a piece of it, one that was written beside its place is left there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from vl_core.headless.cli import main
from vl_core.headless.evaluate import turns

folder, command, done, tell = Path(globals()["folder"]), globals()["command"], globals()["done"], globals()["tell"]
WRITES = os.O_WRONLY | os.O_RDWR
quiet = os.open(os.devnull, os.O_WRONLY)
for stream in (1, 2):
    os.dup2(quiet, stream)


def kind_of(path: Path) -> str:
    """Its folder and ending; a file of the folder itself by its name."""
    place = path.relative_to(folder)
    return str(place) if len(place.parts) == 1 else str(place.with_name(f"*{path.suffix}"))


def watch(event: str, details: tuple) -> None:
    global folder
    if event == "open" and isinstance(details[0], str) and details[2] & WRITES:
        path = Path(details[0])
        if path.suffix in (".part", ".tmp"):
            return  # it is moved to its place when it is whole
    elif event == "os.rename":
        path = Path(os.fspath(details[1]))
    else:
        return
    if not path.is_relative_to(folder) or kind_of(path) in done:
        return
    kind = kind_of(path)
    if event == "open":
        appends, folder = details[2] & os.O_APPEND, Path("/nowhere")  # what follows is this file's own writing
        with path.open("ab" if appends else "wb") as file:
            file.write(b'{"id": "half a l')
    tell.send(kind)
    os.kill(os.getpid(), signal.SIGKILL)


few = turns.calibration_prompts()[:4]
turns.calibration_prompts = lambda: few  # an evaluation measures them anew after each kill
sys.addaudithook(watch)
torch.set_num_threads(1)
sys.exit(main(command))
