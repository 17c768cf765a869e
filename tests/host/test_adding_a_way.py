"""CONTRIBUTING.md's own way, written into a copy of the pack, is in the lists of both nodes and runs."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

PACK = Path(__file__).resolve().parents[2]
WAY, NAME = "mean of picture", "custom_nodes.zimage_vl_copy"


@pytest.fixture(scope="module")
def copied(base_folder, tmp_path_factory):
    """Modules of a copy of the pack with the page's file in it, by their path."""
    root = tmp_path_factory.mktemp("pack")
    for name in ("vl_core", "nodes"):
        shutil.copytree(PACK / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACK / "__init__.py", root)
    code = re.search(r"```python\n# (\S+)\n(.*?)```", (PACK / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    (root / code[1]).write_text(code[2], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(NAME, root / "__init__.py", submodule_search_locations=[str(root)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    yield lambda path: importlib.import_module(f"{NAME}.{path}")
    for name in [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]:
        del sys.modules[name]


def options(node, input_id: str) -> list[str]:
    return next(one for one in node.GET_SCHEMA().inputs if one.id == input_id).options


def test_the_way_is_in_the_lists_of_both_nodes(copied):
    assert WAY in options(copied("nodes.condition").ZImageVLCondition, "mode")
    assert WAY in options(copied("nodes.sweep").ZImageVLSweep, "method")


def test_it_runs_and_a_sweep_gives_the_same(copied, text_clip, native, picture, core_text):
    images = {"image0": picture}
    with torch.inference_mode():
        node = copied("nodes.condition").ZImageVLCondition.PREPARE_CLASS_CLONE(None)
        single = node.execute(text_clip, native, "a cat", 0.5, WAY, images=images)[0]
        many = copied("nodes.sweep").ZImageVLSweep.PREPARE_CLASS_CLONE(None).execute(
            text_clip, native, "a cat", "way", f"words, {WAY}", rows="none", alpha=0.5, images=images, words="dusk"
        )[0]
    assert torch.equal(single[0][0], many[2][0][0])
    assert not torch.allclose(single[0][0], core_text("a cat")[0][0], atol=1e-3)
