"""A real ComfyUI for the benchmarks that need one, and the modules of ``tests/host`` that start it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def add_comfyui_argument(parser) -> None:
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH", str(Path.home() / "comfy" / "ComfyUI")))


def add_server_arguments(parser) -> None:
    """``--comfyui``, and ``--python`` for a server of its own."""
    add_comfyui_argument(parser)
    parser.add_argument("--python", help="ComfyUI's; its .venv if there is one")


def comfyui_of(arguments) -> Path:
    """The folder that ``--comfyui`` names.

    Raises:
        SystemExit: if no ComfyUI is there.
    """
    folder = Path(arguments.comfyui).expanduser()
    if not (folder / "comfy" / "sd.py").is_file():
        raise SystemExit(f"--comfyui: expected a ComfyUI folder, found no comfy/sd.py in {folder}.")
    return folder


def python_of(arguments) -> str:
    """The Python that a server runs with: ``--python``, ComfyUI's own, or this one."""
    own = comfyui_of(arguments) / ".venv" / "bin" / "python"
    return arguments.python or (str(own) if own.is_file() else sys.executable)


def load(name: str) -> ModuleType:
    """A module of ``tests/host`` by its path: they are no package."""
    spec = importlib.util.spec_from_file_location(f"zimage_vl_{name}", ROOT / "tests" / "host" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
