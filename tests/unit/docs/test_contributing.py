"""CONTRIBUTING.md's own way, one file written into a copy of the tree, is found everywhere ways are listed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WAY = "mean of picture"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the code with the page's file in it."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("vl_core", "miniature"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = re.search(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert code
    (root / code[1]).write_text(code[2], encoding="utf-8")
    Image.new("RGB", (64, 64), (200, 40, 40)).save(root / "red.png")
    return root


SCRIPT = f"""
import contextlib, io, json, sys
from pathlib import Path
import torch

def command(*arguments):
    from vl_core.headless.cli import main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as end:
            code = end.code
    return code or 0, " ".join(out.getvalue().split()), err.getvalue()

from vl_core import make_plan, parse_axis
from vl_core.states.layout import insert_pictures, text_layout
from vl_core.states.vl_states import VLStates
from vl_core.steering.condition import condition
from vl_core.steering.way import way_names

plan = make_plan([parse_axis("way", "words, {WAY}")])
found = {{"names": [*way_names(), *(cell.label for cell in plan.unique)]}}
asked = "compare", "-i", "red.png", "-p", "a cat", "--dry-run", "--ways", "{WAY}"
found["help"], found["planned"] = command("generate", "--help"), command(*asked, "words")
own = text_layout([151644, 872, 198, 64, 151645, 198, 151644, 77091, 198])
layout = insert_pictures(own, [(2, 3)])
text, states = torch.randn(9, 8), torch.randn(1, len(layout), 8)
mixed = condition(text, own, VLStates(states, (7,), 8, layout), -2, "{WAY}", 0.5)[0]
torch.save((text, states[0][layout.roles == 3], mixed), "found.pt")
# The same without the file, as a Python that has imported nothing of ours finds it.
Path("vl_core/steering/ways/mean_of_picture.py").unlink()
for name in [name for name in sys.modules if name.split(".")[0] == "vl_core"]:
    del sys.modules[name]
found["unknown"] = command(*asked)
Path("found.json").write_text(json.dumps(found), encoding="utf-8")
"""


@pytest.fixture(scope="module")
def found(tree) -> dict:
    """What one Python in the copy finds there, with the way and then without it."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((tree / "found.json").read_text(encoding="utf-8"))


def test_the_way_is_in_the_list_and_on_the_axes_of_a_sweep(found):
    assert WAY in found["names"] and f"way {WAY}" in found["names"]


def test_generate_offers_it_and_compare_plans_it(found):
    code, offered, _ = found["help"]
    assert code == 0 and f"{WAY}: move every token towards the mean" in offered
    code, planned, _ = found["planned"]
    assert code == 0 and "2 way: 2 cells, 3 pictures to paint" in planned
    code, _, told = found["unknown"]
    assert code and f"got '{WAY}'" in told


@pytest.mark.usefixtures("found")
def test_it_does_what_it_says(tree):
    """Each token's direction is the text's and the mean's, half of each, at the text's size."""
    text, picture, mixed = (one.double() for one in torch.load(tree / "found.pt"))
    mean, size = picture.mean(0, keepdim=True), text.square().mean(-1, keepdim=True).sqrt()
    expected = 0.5 * size * (text / size + mean / mean.square().mean().sqrt())
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


def test_what_the_page_points_to_is_there():
    for path in set(re.findall(r"`((?:tests|vl_core|nodes|web|locales|docs)/[\w/.]+)`", PAGE)):
        if "NAME" not in path:
            assert (ROOT / path).exists(), path
