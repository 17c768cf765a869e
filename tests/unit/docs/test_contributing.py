"""CONTRIBUTING.md's own way, one file written into a copy of the tree, is found everywhere ways are listed."""

from __future__ import annotations

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


def ran(tree: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_the_way_is_in_the_list_and_on_the_axes_of_a_sweep(tree):
    code = (
        "from vl_core import make_plan, parse_axis\n"
        "from vl_core.steering.way import way_names\n"
        f"plan = make_plan([parse_axis('way', 'words, {WAY}')])\n"
        "print(*way_names(), *(cell.label for cell in plan.unique), sep='; ')"
    )
    found = ran(tree, "-c", code).split("; ")
    assert WAY in found and f"way {WAY}" in found


def test_generate_offers_it_and_compare_plans_it(tree):
    assert f"{WAY}: move every token towards the mean" in ran(tree, "-m", "vl_core", "generate", "--help")
    planned = ran(
        tree, "-m", "vl_core", "compare", "-i", "red.png", "-p", "a cat", "--ways", WAY, "words", "--dry-run"
    )
    assert "2 way: 2 cells, 3 pictures to paint" in planned
    (tree / "vl_core" / "steering" / "ways" / "mean_of_picture.py").rename(tree / "gone")
    try:
        unknown = subprocess.run(
            [sys.executable, "-m", "vl_core", "compare", "-i", "red.png", "-p", "a cat", "--ways", WAY, "--dry-run"],
            cwd=tree, capture_output=True, text=True, check=False,
        )
    finally:
        (tree / "gone").rename(tree / "vl_core" / "steering" / "ways" / "mean_of_picture.py")
    assert unknown.returncode and f"got '{WAY}'" in unknown.stderr


def test_it_does_what_it_says(tree):
    """Each token's direction is the text's and the mean's, half of each, at the text's size."""
    code = (
        "import torch\n"
        "from vl_core.states.layout import insert_pictures, text_layout\n"
        "from vl_core.states.vl_states import VLStates\n"
        "from vl_core.steering.condition import condition\n"
        "own = text_layout([151644, 872, 198, 64, 151645, 198, 151644, 77091, 198])\n"
        "layout = insert_pictures(own, [(2, 3)])\n"
        "text, states = torch.randn(9, 8), torch.randn(1, len(layout), 8)\n"
        f"mixed = condition(text, own, VLStates(states, (7,), 8, layout), -2, '{WAY}', 0.5)[0]\n"
        "torch.save((text, states[0][layout.roles == 3], mixed), 'found.pt')"
    )
    ran(tree, "-c", code)
    text, picture, mixed = (one.double() for one in torch.load(tree / "found.pt"))
    mean, size = picture.mean(0, keepdim=True), text.square().mean(-1, keepdim=True).sqrt()
    expected = 0.5 * size * (text / size + mean / mean.square().mean().sqrt())
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


def test_what_the_page_points_to_is_there():
    for path in set(re.findall(r"`((?:tests|vl_core|nodes|web|locales|docs)/[\w/.]+)`", PAGE)):
        if "NAME" not in path:
            assert (ROOT / path).exists(), path
