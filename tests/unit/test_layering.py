"""The layering is law: nodes -> vl_core, never back, and each vl_core file imports only files below it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE, NODES = ROOT / "vl_core", ROOT / "nodes"

# A folder of vl_core (or a file beside the folders) imports only from those before it in this list.
ORDER = ["states", "pictures", "stages", "encoder", "adapters", "looks", "steering", "reports", "zimage", "headless"]
APART = {"encoder": {"adapters"}, "adapters": {"encoder"}}  # beside each other: neither imports the other
OUTSIDE = {"__init__", "__main__"}  # vl_core's own front: may import everything
MOST_FLOORS = 10
ALWAYS_THERE = {"torch", "numpy", "safetensors", "pydantic"}
OPTIONAL = {
    "transformers", "PIL", "matplotlib", "diffusers", "tokenizers", "tqdm", "accelerate", "jinja2", "ray", "yaml",
    "skimage", "torchvision", "triton",
}  # fmt: skip
LATE = {"encoder/stored_kernel.py"}  # imported itself only where it is used: a kernel is written in its language
# Files that import by a name that they put together: the one that names the miniature, and the one that finds the ways.
BY_NAME = {"headless/embedded.py", "steering/way.py"}
HEAVY = OPTIONAL - {"tqdm"}  # torch itself imports tqdm
HOST = {
    "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras", "comfyui_version",
    "execution", "folder_paths", "latent_preview", "node_helpers", "nodes", "server",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """``module`` as written, ``names`` taken from it, ``level`` dots before it; lazy: in a function or for types."""

    module: str
    names: tuple[str, ...]
    level: int
    lazy: bool
    line: int

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports_of(source: str) -> list[Import]:
    """Every import of a module, ``importlib.import_module("…")`` and ``__import__("…")`` included."""
    found = []

    def walk(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, (), 0, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            found.append(Import(node.module or "", names, node.level, lazy, node.lineno))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "?"
            found.append(Import(name, (), 0, lazy, node.lineno))
        lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        lazy = lazy or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        for child in ast.iter_child_nodes(node):
            walk(child, lazy)

    walk(ast.parse(source), False)
    return found


def room_of(file: Path) -> str:
    """The folder of vl_core that a file is in, or its own name beside the folders."""
    return file.relative_to(CORE).with_suffix("").parts[0]


def core_faults(source: str, room: str, depth: int = 1, file: str = "") -> list[str]:
    """What the imports of a vl_core file do that the layering forbids; ``depth`` folders below vl_core."""
    faults = []
    for found in imports_of(source):
        where = f"line {found.line}: "
        if found.level == 0:
            if found.package in sys.stdlib_module_names | ALWAYS_THERE:
                continue
            if found.package in ("?", "") and file in BY_NAME:
                continue
            if found.package not in OPTIONAL:
                faults.append(where + f"imports {found.module}")
            elif not found.lazy and room != "headless" and file not in LATE:
                faults.append(where + f"imports {found.module} at module level")
            continue
        if found.level > depth + 1:
            faults.append(where + "reaches out of vl_core")
            continue
        if found.level <= depth:
            continue  # within its own folder
        for target in [found.package] if found.module else found.names:
            if target not in ORDER:
                faults.append(where + f"imports {target}, which is no folder of vl_core")
            elif room not in OUTSIDE and (ORDER.index(target) >= ORDER.index(room) or target in APART.get(room, ())):
                faults.append(where + f"imports {target}, which does not stand above {room}")
    return faults


def rooms_imported(file: Path) -> set[str]:
    """Rooms of vl_core that a file imports from, its own included."""
    depth = len(file.relative_to(CORE).parts) - 1
    rooms = set()
    for found in imports_of(file.read_text(encoding="utf-8")):
        if found.level == depth + 1:
            rooms |= {found.package} if found.module else set(found.names)
    return rooms & set(ORDER)


def modules_imported(file: Path) -> set[Path]:
    """Files of the pack that a file imports from when it is imported."""
    targets = set()
    for found in imports_of(file.read_text(encoding="utf-8")):
        if found.level == 0 or found.lazy:
            continue
        folder = file.parents[found.level - 1].joinpath(*filter(None, found.module.split(".")))
        for path in [folder.with_suffix(".py"), *(folder / f"{name}.py" for name in found.names)]:
            if path.is_file():
                targets.add(path)
    return targets


def node_faults(source: str, name: str, pack_modules: set[str], depth: int = 1) -> list[str]:
    """What the imports of a file of ``nodes/`` do that the layering forbids."""
    faults = []
    for found in imports_of(source):
        where = f"line {found.line}: "
        if found.level > depth + 1:
            faults.append(where + "reaches out of the pack")
        elif found.level == 0 and found.package in pack_modules | {"nodes", "vl_core"}:
            faults.append(where + f"imports {found.module} absolutely")
        elif found.level == 0 and found.package == "comfy_api":
            latest = found.module.startswith("comfy_api.latest") or found.names == ("latest",)
            if not latest:
                faults.append(where + f"imports {found.module}, not comfy_api.latest")
        elif found.level == 0 and found.package in HOST and name != "host":
            faults.append(where + f"imports {found.module}, which is for nodes/host")
    return faults


def defined_names(source: str) -> set[str]:
    """Names a module defines, or takes from its own package; imports of others do not count."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def short(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


# --- the tree -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", files_of(CORE), ids=short)
def test_vl_core_imports_only_what_stands_above_and_nothing_of_the_host(file):
    inside = file.relative_to(CORE)
    room = room_of(file)
    assert room in {*ORDER, *OUTSIDE}, f"vl_core/{room} is no folder of vl_core: put the file into one"
    assert core_faults(file.read_text(encoding="utf-8"), room, len(inside.parts) - 1, inside.as_posix()) == []


def test_vl_core_has_few_floors():
    """A room's floor is one above the highest room that it imports from."""
    above = {room: set() for room in ORDER}
    for file in files_of(CORE):
        if room_of(file) not in OUTSIDE:
            above[room_of(file)] |= rooms_imported(file) - {room_of(file)}
    floors: dict[str, int] = {}
    for room in ORDER:
        floors[room] = 1 + max((floors[other] for other in above[room]), default=0)
    assert 5 < max(floors.values()) <= MOST_FLOORS, floors


@pytest.mark.parametrize("folder", [CORE, NODES, ROOT / "miniature"], ids=short)
def test_no_file_imports_itself_by_way_of_others(folder):
    imported = {file: modules_imported(file) & set(files_of(folder)) for file in files_of(folder)}
    assert sum(map(len, imported.values())) > 10
    settled: set[Path] = set()
    while ready := [file for file in imported if file not in settled and imported[file] <= settled]:
        settled |= set(ready)
    assert sorted(map(short, set(imported) - settled)) == []


@pytest.mark.parametrize("file", [*files_of(CORE), *files_of(NODES)], ids=short)
def test_the_miniature_is_named_in_one_file_only(file):
    names = {found.package for found in imports_of(file.read_text(encoding="utf-8"))}
    assert "miniature" not in names


@pytest.mark.parametrize("file", [*files_of(ROOT / "miniature")], ids=short)
def test_the_miniature_imports_no_node(file):
    assert not {found.package for found in imports_of(file.read_text(encoding="utf-8"))} & {"nodes", *HOST}


@pytest.mark.parametrize("file", files_of(NODES), ids=short)
def test_nodes_import_the_pack_relatively_and_the_host_only_in_its_folder(file):
    modules = {path.stem for path in files_of(NODES)} - set(sys.stdlib_module_names)
    parts = file.relative_to(NODES).parts
    assert node_faults(file.read_text(encoding="utf-8"), parts[0], modules, len(parts)) == []


def test_the_root_defines_the_entry_point_the_web_directory_and_what_a_host_is_told_and_nothing_else():
    names = defined_names((ROOT / "__init__.py").read_text(encoding="utf-8")) - {"__all__"}
    assert names == {"comfy_entrypoint", "WEB_DIRECTORY", "OLDEST_HOST", "check_host", "check_folder"}


def in_a_fresh_python(code: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_importing_vl_core_is_silent_and_brings_no_heavy_package(tmp_path):
    paths = [file.relative_to(ROOT).with_suffix("") for file in files_of(CORE) if not file.stem.startswith("__")]
    late = {Path(CORE.name, name).with_suffix("") for name in LATE}
    modules = [".".join(path.parts) for path in paths if "headless" not in path.parts and path not in late]
    code = f"import importlib, sys, vl_core\nfor name in {modules}: importlib.import_module(name)\n"
    code += f"print(*[name for name in {sorted(HEAVY | HOST)} if name in sys.modules], end='')"
    done = in_a_fresh_python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- the walk itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, fault",
    [
        ("import comfy.utils", "imports comfy.utils"),
        ("def f():\n    import folder_paths", "imports folder_paths"),
        ("from comfy_api.latest import io", "imports comfy_api.latest"),
        ("import nodes", "imports nodes"),
        ("import vl_core.layout", "imports vl_core.layout"),
        ("from ...nodes import host", "reaches out of vl_core"),
        ("import scipy", "imports scipy"),
        ("import importlib\nimportlib.import_module('comfy')", "imports comfy"),
        ("__import__('comfy')", "imports comfy"),
        ("import matplotlib.pyplot as plt", "imports matplotlib.pyplot at module level"),
        ("try:\n    from PIL import Image\nexcept ImportError:\n    pass", "imports PIL at module level"),
        ("class A:\n    import transformers", "imports transformers at module level"),
        ("from ..steering.steer import steer", "imports steering, which does not stand above adapters"),
        ("from ..encoder import reader", "imports encoder, which does not stand above adapters"),
        ("def f():\n    from ..headless import cli", "imports headless, which does not stand above adapters"),
        ("from .. import adapters", "imports adapters, which does not stand above adapters"),
        ("from ..rooms import new", "imports rooms, which is no folder of vl_core"),
    ],
)
def test_the_walk_sees_what_vl_core_must_not_import(source, fault):
    (found,) = core_faults(source, "adapters")
    assert found.endswith(": " + fault)


@pytest.mark.parametrize(
    "source",
    [
        "import torch, numpy as np, os.path\nfrom safetensors.torch import save_file",
        "from ..states.layout import TokenRole\nfrom .. import pictures\nfrom . import ridge",
        "def f():\n    import transformers\n    from PIL import Image",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PIL import Image",
    ],
)
def test_the_walk_lets_pass_what_vl_core_may_import(source):
    assert core_faults(source, "adapters") == []


def test_headless_may_import_everything_above_and_its_own_files():
    source = "import diffusers\nfrom . import cli\nfrom .assets import x\nfrom ..encoder.qwen3vl import Qwen3VLEncoder"
    assert core_faults(source, "headless") == []
    assert core_faults("from ...nodes import host", "headless") == ["line 1: reaches out of vl_core"]


@pytest.mark.parametrize(
    "source, fault",
    [
        ("import nodes", "imports nodes absolutely"),
        ("from vl_core import VLStates", "imports vl_core absolutely"),
        ("import loader", "imports loader absolutely"),
        ("import comfy.model_management", "imports comfy.model_management, which is for nodes/host"),
        ("def f():\n    from folder_paths import base_path", "imports folder_paths, which is for nodes/host"),
        ("import node_helpers", "imports node_helpers, which is for nodes/host"),
        ("from comfy_api.v0_0_2 import io", "imports comfy_api.v0_0_2, not comfy_api.latest"),
        ("from ...other_pack import x", "reaches out of the pack"),
    ],
)
def test_the_walk_sees_what_nodes_must_not_import(source, fault):
    (found,) = node_faults(source, "blend", {"loader"})
    assert found.endswith(": " + fault)


def test_the_walk_lets_pass_what_nodes_may_import():
    source = "import torch\nfrom comfy_api.latest import io, ui\nfrom .host import x\nfrom ..vl_core import blend"
    assert node_faults(source, "blend", {"loader"}) == []
    assert node_faults("import comfy.sd\nimport folder_paths", "host", set()) == []


def test_the_root_may_not_define_a_second_registration():
    source = "from .nodes import comfy_entrypoint\nimport logging\nWEB_DIRECTORY = './web'\n"
    assert defined_names(source) == {"comfy_entrypoint", "WEB_DIRECTORY"}
    assert "NODE_CLASS_MAPPINGS" in defined_names(source + "NODE_CLASS_MAPPINGS: dict = {}")


LONGEST = 400  # lines of a file
LONGER = {"miniature/world.py": "the world is one table: what can be painted, and its words"}


def test_no_file_of_code_is_longer_than_a_sitting():
    files = [path for name in ("vl_core", "nodes", "miniature", "benchmarks") for path in (ROOT / name).rglob("*.py")]
    assert len(files) > 200
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name for name, count in lines.items() if count > LONGEST} == set(LONGER)
