"""What the Registry gets: the archive's listing and size, the pictures it shows, the version."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
LARGEST = 4 << 20  # bytes of an archive before it is packed
NEEDED = ("__init__.py", "README.md", "LICENSE", "requirements.txt", "pyproject.toml")
FOLDERS = {"nodes", "vl_core", "workflows", "subgraphs", "web", "locales"}
LEFT_OUT = {"tests", "benchmarks", "miniature", "docs"}


def git(*arguments: str) -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git here, or this is no clone of the repository")
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


@pytest.fixture(scope="module")
def archive() -> list[str]:
    """Files of the archive, as comfy-cli takes them: what git tracks, without what ``.comfyignore`` names."""
    left_out = set(git("ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"))
    return [name for name in git("ls-files") if name not in left_out]


def test_the_archive_has_what_users_need_and_no_more(archive):
    folders = {name.split("/")[0] for name in archive if "/" in name}
    assert folders >= FOLDERS and not folders & LEFT_OUT
    assert set(NEEDED) <= set(archive)
    assert not [name for name in archive if name.startswith(".")]
    sources = {name for name in git("ls-files", *sorted(FOLDERS))}
    assert sources <= set(archive)
    assert sum((ROOT / name).stat().st_size for name in archive) < LARGEST


def test_the_archive_works_without_what_it_leaves_out(archive, tmp_path):
    for name in archive:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
sys.modules["miniature"] = None
import vl_core
from vl_core.headless.cli import main
assert vl_core.__file__.startswith({str(tmp_path)!r})
sys.exit(main(["demo", "--output", "demo_output"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "git clone" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "demo_output").exists()


@pytest.mark.parametrize("name", ["icon", "banner"])
def test_the_pictures_are_as_the_registry_asks(name):
    with Image.open(ROOT / "docs" / "brand" / f"{name}.png") as picture:
        width, height = picture.size
    if name == "icon":
        assert width == height <= 400
    else:
        assert width * 9 == height * 21
    assert f"docs/brand/{name}.png" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_version_is_the_newest_of_the_changelog():
    version = re.search(r'^version = "(\d+\.\d+\.\d+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert version and newest and version[1] == newest[1]
