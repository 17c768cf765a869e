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

# A file imports only from files before it.
ORDER = [
    "layout", "storage", "states", "statistics", "families", "pictures", "outliers", "normalize", "resample", "select",
    "blend", "words", "layers", "delta", "description", "familiarity", "ridge", "adapter", "examples", "space_adapter",
    "combine", "recipes", "recipe_files", "settings", "sweep", "metrics", "layer_report", "artifacts", "plots", "grid",
    "cache", "kernels", "forward", "graphs", "prefix", "extract", "encoder", "describe", "headless", "__init__",
    "__main__",
]  # fmt: skip
ALWAYS_THERE = {"torch", "numpy", "safetensors"}
OPTIONAL = {
    "transformers", "PIL", "matplotlib", "diffusers", "tokenizers", "tqdm", "accelerate", "jinja2", "ray", "yaml",
}  # fmt: skip
USED_WHEN_RUN = {"miniature"}  # stands on vl_core; only the command line may call it, and only when it is asked to
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


def core_part(file: Path) -> str:
    """The place in ORDER of a vl_core file: its own name, or the folder it is in."""
    parts = file.relative_to(CORE).with_suffix("").parts
    return parts[0]


def core_faults(source: str, part: str, depth: int = 0) -> list[str]:
    """What the imports of a vl_core file do that the layering forbids; ``depth`` folders below vl_core."""
    faults = []
    for found in imports_of(source):
        where = f"line {found.line}: "
        if found.level == 0:
            if found.package in sys.stdlib_module_names | ALWAYS_THERE:
                continue
            if found.package in USED_WHEN_RUN and found.lazy and part == "headless":
                continue
            if found.package not in OPTIONAL:
                faults.append(where + f"imports {found.module}")
            elif not found.lazy and part != "headless":
                faults.append(where + f"imports {found.module} at module level")
            continue
        if found.level > depth + 1:
            faults.append(where + "reaches out of vl_core")
            continue
        if found.level <= depth:
            continue  # within its own folder
        targets = [found.package] if found.module else list(found.names)
        for target in targets:
            if target not in ORDER:
                faults.append(where + f"imports .{target}, which has no place in ORDER")
            elif ORDER.index(target) >= ORDER.index(part):
                faults.append(where + f"imports .{target}, which is not below {part}")
    return faults


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
            faults.append(where + f"imports {found.module}, which is for host.py")
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
def test_vl_core_imports_only_what_is_below_and_nothing_of_the_host(file):
    part = core_part(file)
    assert part in ORDER, f"vl_core/{part} has no place in ORDER yet: give it one"
    depth = len(file.relative_to(CORE).parts) - 1
    assert core_faults(file.read_text(encoding="utf-8"), part, depth) == []


@pytest.mark.parametrize("file", files_of(NODES), ids=short)
def test_nodes_import_the_pack_relatively_and_the_host_only_in_host_py(file):
    modules = {path.stem for path in files_of(NODES)} - set(sys.stdlib_module_names)
    depth = len(file.relative_to(NODES).parts)
    assert node_faults(file.read_text(encoding="utf-8"), file.stem, modules, depth) == []


def test_the_root_defines_the_entry_point_and_the_web_directory_and_nothing_else():
    init = ROOT / "__init__.py"
    if not init.exists():
        pytest.skip("the pack's root __init__.py is not written yet")
    assert defined_names(init.read_text(encoding="utf-8")) - {"__all__"} == {"comfy_entrypoint", "WEB_DIRECTORY"}


def in_a_fresh_python(code: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_importing_vl_core_is_silent_and_brings_no_heavy_package(tmp_path):
    modules = [f"vl_core.{file.stem}" for file in CORE.glob("*.py") if not file.stem.startswith("__")]
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
        ("from ..nodes import host", "reaches out of vl_core"),
        ("import scipy", "imports scipy"),
        ("import importlib\nimportlib.import_module('comfy')", "imports comfy"),
        ("__import__('comfy')", "imports comfy"),
        ("import matplotlib.pyplot as plt", "imports matplotlib.pyplot at module level"),
        ("try:\n    from PIL import Image\nexcept ImportError:\n    pass", "imports PIL at module level"),
        ("class A:\n    import transformers", "imports transformers at module level"),
        ("from .blend import blend", "imports .blend, which is not below statistics"),
        ("from . import encoder", "imports .encoder, which is not below statistics"),
        ("def f():\n    from .headless import cli", "imports .headless, which is not below statistics"),
        ("from .statistics import median", "imports .statistics, which is not below statistics"),
        ("from .adapters import fit", "imports .adapters, which has no place in ORDER"),
    ],
)
def test_the_walk_sees_what_vl_core_must_not_import(source, fault):
    (found,) = core_faults(source, "statistics")
    assert found.endswith(": " + fault)


@pytest.mark.parametrize(
    "source",
    [
        "import torch, numpy as np, os.path\nfrom safetensors.torch import save_file",
        "from .layout import TokenRole\nfrom . import states",
        "def f():\n    import transformers\n    from PIL import Image",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PIL import Image",
    ],
)
def test_the_walk_lets_pass_what_vl_core_may_import(source):
    assert core_faults(source, "statistics") == []


def test_headless_may_import_everything_below_and_its_own_files():
    source = "import diffusers\nfrom . import cli\nfrom .assets import x\nfrom ..encoder import Qwen3VLEncoder"
    assert core_faults(source, "headless", depth=1) == []
    assert core_faults("from ...nodes import host", "headless", depth=1) == ["line 1: reaches out of vl_core"]


@pytest.mark.parametrize(
    "source, fault",
    [
        ("import nodes", "imports nodes absolutely"),
        ("from vl_core import VLStates", "imports vl_core absolutely"),
        ("import loader", "imports loader absolutely"),
        ("import comfy.model_management", "imports comfy.model_management, which is for host.py"),
        ("def f():\n    from folder_paths import base_path", "imports folder_paths, which is for host.py"),
        ("import node_helpers", "imports node_helpers, which is for host.py"),
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
