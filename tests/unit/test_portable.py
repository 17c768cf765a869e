"""What Windows and macOS do otherwise: encodings, line ends, names of files, ends of processes."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

from vl_core.states.files import fits_a_file

ROOT = Path(__file__).parents[2]
WRITER = "vl_core/states/files.py"
LONGEST = 120  # letters of a path here: Windows has 260, and a portable ComfyUI lies deep
UNIX_ONLY = {"SIGKILL", "SIGALRM", "SIGHUP", "fork", "getuid", "geteuid", "setsid", "killpg", "uname", "sysconf"}
UNIX_TESTS = {f"tests/unit/headless/{name}.py" for name in ("conftest", "killed_run")}  # skipped elsewhere
UNIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}


@cache
def tracked() -> tuple[str, ...]:
    """Files that a clone has, as git writes their paths."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a clone, or no git here")
    return tuple(filter(None, listed.decode("utf-8").split("\0")))


@cache
def sources() -> dict[str, ast.Module]:
    return {
        path: ast.parse((ROOT / path).read_text(encoding="utf-8"))
        for path in tracked() if path.endswith(".py") and (ROOT / path).is_file()
    }


def called(node: ast.Call) -> tuple[str, list[ast.expr]]:
    """How a call is named, without what it is called on, and what it is given by place."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", ""), node.args


def mode_of(node: ast.Call) -> str | None:
    """The mode in which a call opens a file; None if it opens none that way."""
    name, given = called(node)
    if name != "open":
        return None
    place = 0 if isinstance(node.func, ast.Attribute) else 1
    modes = [key.value for key in node.keywords if key.arg == "mode"] + given[place : place + 1]
    if not modes:
        return "r" if isinstance(node.func, ast.Name) else None  # Image.open takes no mode
    mode = modes[0]
    written = isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) <= set("rwabtx+")
    return mode.value if written else None


def without_encoding(tree: ast.Module) -> list[int]:
    """Lines that read or write text in whatever the system takes for its encoding."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not any(key.arg in ("encoding", None) for key in node.keywords):
            name, given = called(node)
            text = {"read_text": not given, "write_text": len(given) < 2}.get(name, "b" not in (mode_of(node) or "b"))
            found += [node.lineno] * text
    return found


def test_the_check_sees_what_it_looks_for():
    code = 'open("a")\nopen("a", "rb")\np.open("w")\np.read_text()\np.write_text("a", encoding="utf-8")\n'
    assert without_encoding(ast.parse(code + "Image.open(p)")) == [1, 3, 4]


def test_every_text_names_its_encoding():
    """In tests it is UTF-8 by Python's own switch: PYTHONUTF8 in .github/workflows/tests.yml."""
    ours = {path: tree for path, tree in sources().items() if not path.startswith("tests/")}
    assert [f"{path}:{line}" for path, tree in ours.items() for line in without_encoding(tree)] == []


def test_texts_that_are_kept_are_written_in_one_place_with_the_same_line_ends_everywhere():
    """On Windows a text that is opened to be written gets other line ends unless it is told which."""
    found = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if path.startswith(("vl_core/", "nodes/")) and path != WRITER and isinstance(node, ast.Call):
                ends = any(key.arg == "newline" for key in node.keywords)
                writes = called(node)[0] == "write_text" or {*"wax+"} & {*(mode_of(node) or "")}
                if writes and not ends and "b" not in (mode_of(node) or ""):
                    found.append(f"{path}:{node.lineno}")
    assert found == []


def test_what_users_run_needs_nothing_of_unix():
    found = []
    for path, tree in sources().items():
        if not path.startswith(("vl_core/", "nodes/", "__init__")):
            continue
        for node in ast.walk(tree):
            names = {node.attr} if isinstance(node, ast.Attribute) else set()
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [getattr(node, "module", None) or "", *(one.name for one in node.names)]
                names = {module.split(".")[0] for module in modules} & UNIX_MODULES
            found += [f"{path}:{node.lineno} {name}" for name in names & (UNIX_ONLY | UNIX_MODULES)]
    assert found == []


def test_tests_end_a_process_in_a_way_that_every_system_has():
    """Windows' signal has no SIGKILL: a process is ended by ``Popen.kill`` or by psutil."""
    found = [
        f"{path}:{node.lineno}" for path, tree in sources().items()
        if path.startswith("tests/unit/") and path not in UNIX_TESTS
        for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "SIGKILL"
    ]
    assert found == []


def test_every_system_can_hold_the_files_of_a_clone():
    paths = tracked()
    assert [path for path in paths if not fits_a_file(path) or len(path) > LONGEST] == []
    assert [path for path in paths if any(part != part.rstrip(" .") for part in path.split("/"))] == []
    assert len({path.lower() for path in paths}) == len(paths)  # macOS and Windows take a.txt and A.txt for one


def test_git_puts_the_same_bytes_everywhere():
    """Else a Windows clone has other line ends in what tests compare and digests are made of."""
    listed = subprocess.run(
        ["git", "check-attr", "-z", "text", "eol", "--", *tracked()], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode("utf-8").split("\0")
    told = {}
    for path, name, value in zip(listed[::3], listed[1::3], listed[2::3], strict=False):
        told.setdefault(path, {})[name] = value
    assert told and [path for path, one in told.items() if one["text"] != "unset" and one["eol"] != "lf"] == []
