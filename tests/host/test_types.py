"""The nodes pass a type checker that sees the ComfyUI they run in; ``basedpyright`` alone checks ``vl_core``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_nodes_pass_pyright(comfyui: Path, tmp_path: Path) -> None:
    checker = shutil.which("basedpyright")
    if checker is None:
        pytest.skip("basedpyright is not installed")
    settings = {
        "extends": str(ROOT / "pyproject.toml"), "include": [str(ROOT / "nodes")],
        "extraPaths": [str(comfyui)],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run(
        [checker, "--project", str(tmp_path), "--pythonpath", sys.executable, "--outputjson"], capture_output=True,
        text=True,
    )
    told = json.loads(done.stdout)
    found = [
        f"{Path(one['file']).relative_to(ROOT)}:{one['range']['start']['line'] + 1}: {one['message']}"
        for one in told["generalDiagnostics"] if one["severity"] == "error"
    ]
    assert not found, "\n".join(found)
    assert told["summary"]["filesAnalyzed"] >= len(list((ROOT / "nodes").rglob("*.py")))
