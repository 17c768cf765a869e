"""What is not there on somebody's machine: matplotlib, a new ComfyUI, parts of it that one family alone needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
PROMPT = "a cat in a red hat"


# --- no matplotlib ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_matplotlib(monkeypatch):
    """As if it were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def shown_by(run, node: str, native, text_clip, core_text, picture) -> tuple:
    if node == "Inspect":
        return run("Inspect", core_text(PROMPT))
    if node == "LayerReport":
        return run("LayerReport", native, PROMPT, "-1, -2", images={"image0": picture})
    plan = run(
        "Sweep", text_clip, native, PROMPT, "strength", "0.5", "none", "", method="blend aligned",
        images={"image0": picture},
    )[3]
    return run("Grid", [picture, picture], [plan])


@pytest.mark.parametrize("node", ["Inspect", "LayerReport"])
def test_without_matplotlib_the_text_stays_and_plots_are_left_out(
    node, run, native, text_clip, core_text, picture, told, no_matplotlib, monkeypatch, request
):
    output = shown_by(run, node, native, text_clip, core_text, picture)
    shown = told(output)
    assert "tokens" in output[1] and output[1].splitlines()[0] in shown
    assert "Plots are left out" in shown and "-m pip install matplotlib" in shown and sys.executable in shown
    assert "images" not in output.ui
    assert tuple(output[0].shape) == (1, 64, 64, 3) and output[0].isfinite().all()  # what hangs on it still runs
    assert "Plots are left out" not in output[1]  # the report itself is the same


def test_the_command_for_a_portable_install_is_the_portable_ones(run, core_text, told, no_matplotlib, monkeypatch):
    monkeypatch.setattr(sys, "executable", "C:\\ComfyUI_windows_portable/python_embeded/python.exe")
    shown = told(run("Inspect", core_text(PROMPT)))
    assert r".\python_embeded\python.exe -m pip install matplotlib" in shown and "folder of ComfyUI portable" in shown


def test_a_grid_needs_no_matplotlib(run, native, text_clip, core_text, picture, told, no_matplotlib):
    output = shown_by(run, "Grid", native, text_clip, core_text, picture)
    assert output[0].shape[0] == 1 and min(output[0].shape[1:3]) > 64 and "left out" not in told(output)


def test_with_matplotlib_there_are_plots(run, native, text_clip, core_text, picture, told):
    pytest.importorskip("matplotlib")
    for node in ("Inspect", "LayerReport"):
        output = shown_by(run, node, native, text_clip, core_text, picture)
        assert "left out" not in told(output) and min(output[0].shape[1:3]) > 64


# --- another ComfyUI -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.27.9", "0.3.64", "0.0.1"])
def test_a_comfyui_too_old_is_told_what_is_needed_and_what_this_is(version, pack):
    with pytest.raises(ImportError, match=rf"needs ComfyUI 0\.28 or newer, this is {version}\. Update ComfyUI"):
        pack.check_host(version)


@pytest.mark.parametrize("version", ["0.28.0", "0.28", "0.29.1", "1.0", "2.0.0-beta", "unknown", ""])
def test_others_are_taken(version, pack):
    pack.check_host(version)


IMPORT = """
import sys, importlib.util
sys.path.insert(0, {comfyui!r})
import comfy.options; comfy.options.enable_args_parsing()
{before}
spec = importlib.util.spec_from_file_location('pack', {init!r}, submodule_search_locations=[{pack!r}])
module = sys.modules['pack'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import asyncio; print('NODES', len(asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())))
{after}
"""


def imported(comfyui, base: Path, before: str = "", after: str = "") -> subprocess.CompletedProcess:
    """The pack loaded by a ComfyUI of which something was changed before."""
    code = IMPORT.format(
        comfyui=str(comfyui), init=str(PACK / "__init__.py"), pack=str(PACK), before=before, after=after
    )
    arguments = [sys.executable, "-c", code, "--cpu", "--base-directory", str(base)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, cwd=base)


def test_an_old_host_says_so_before_any_part_of_it_is_looked_for(comfyui, tmp_path):
    """The message and not what happens to be missing first."""
    before = (
        "import types\nversion = types.ModuleType('comfyui_version'); version.__version__ = '0.26.1'\n"
        "sys.modules['comfyui_version'] = version\n"
        "for name in ('comfy_api.latest', 'comfy.text_encoders.qwen3vl', 'comfy.text_encoders.z_image'):\n"
        "    sys.modules[name] = None"
    )
    done = imported(comfyui, tmp_path, before)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: zimage-vl needs ComfyUI 0.28 or newer, this is 0.26.1.")


def test_parts_that_one_family_alone_needs_are_looked_for_when_they_are_used(comfyui, tmp_path):
    """With a ComfyUI that has no FLUX.2 text encoder all nodes are there, and Z-Image's encodes."""
    before = (
        "import nodes, comfy.sd\nsys.modules['comfy.text_encoders.flux'] = None\n"
        "del sys.modules['comfy.text_encoders'].flux"
    )
    after = (
        "import torch\nspec = importlib.util.spec_from_file_location('tiny', {tiny!r})\n"
        "source = open({tiny!r}).read().replace('import flux, qwen3vl', 'import qwen3vl')\n"
        "tiny = type(sys)('tiny'); tiny.__file__ = {tiny!r}\n"
        "sys.modules['tiny'] = tiny; exec(compile(source, {tiny!r}, 'exec'), tiny.__dict__)\n"
        "from pack.nodes.host.text_encoder import encode_text\n"
        "with torch.inference_mode(): print('TOKENS', encode_text(tiny.text_clip(), 'a cat')[0][0].shape[1])"
    ).format(tiny=str(Path(__file__).with_name("tiny.py")))
    done = imported(comfyui, tmp_path, before, after)
    assert done.returncode == 0, done.stderr
    assert "NODES " in done.stdout and int(done.stdout.split("TOKENS ")[1]) > 5


def test_no_file_of_ours_looks_for_such_a_part_at_its_top():
    """Not only in the files that an import happens to reach."""
    found = [path for path in (PACK / "nodes").rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()
             if line.startswith(("from comfy.", "import comfy.")) and "flux" in line]
    assert found == []
