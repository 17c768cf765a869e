"""The pack in a real ComfyUI server: it starts without a complaint and serves what the frontend asks for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

PACK = Path(__file__).resolve().parents[2]
DOCS = PACK / "web" / "docs"

# Ids are forever: workflows name them.
DISPLAY_NAMES = {
    "ZImageVLCondition": "Z-Image Vision Conditioning",
    "ZImageVLLoader": "Load Qwen3-VL",
    "ZImageVLEncode": "Qwen3-VL Encode",
    "ZImageVLSelectTokens": "Select VL Tokens",
    "ZImageVLMaskOutliers": "Mask Outlier Dimensions",
    "ZImageVLNormalize": "Normalize VL Embeddings",
    "ZImageVLBlend": "Blend VL with Text",
    "ZImageVLDelta": "Image Delta",
    "ZImageVLDescribe": "Describe Picture with Qwen3-VL",
    "ZImageVLAdapterFit": "Fit Picture Adapter",
    "ZImageVLAdapterApply": "Apply Picture Adapter",
    "ZImageVLReference": "Text Encoder Statistics",
    "ZImageVLMatchSpace": "Match Text Encoder",
    "ZImageVLInspect": "Inspect Conditioning",
    "ZImageVLLayerReport": "Layer Report",
    "ZImageVLSweep": "Sweep Settings",
    "ZImageVLGrid": "Sweep Grid",
    "ZImageVLSave": "Save VL Embeddings",
    "ZImageVLLoadSaved": "Load VL Embeddings",
}


@pytest.fixture(scope="module")
def info(server):
    """What the server tells the frontend about our nodes."""
    return {name: server.get(f"/object_info/{name}")[name] for name in DISPLAY_NAMES}


def inputs_of(section: dict):
    """Every input of an object_info section by name, those inside dynamic combos and growing inputs included."""
    for name, (kind, options) in {**section.get("required", {}), **section.get("optional", {})}.items():
        yield name, options
        if kind == "COMFY_DYNAMICCOMBO_V3":
            for option in options["options"]:
                yield from ((f"{name}.{inner}", told) for inner, told in inputs_of(option["inputs"]))
        if kind == "COMFY_AUTOGROW_V3":
            yield from ((f"{name}.{inner}", told) for inner, told in inputs_of(options["template"]["input"]))


def test_the_server_starts_without_a_failed_import_or_an_exception(server):
    assert server.complaints() == []
    assert "custom_nodes/zimage-vl" in server.log.read_text(encoding="utf-8").replace("\\", "/")


def test_every_node_is_registered_under_our_folder_and_category(info):
    assert {told["python_module"] for told in info.values()} == {"custom_nodes.zimage-vl"}
    assert {told["category"] for told in info.values()} == {"model/conditioning/z-image vl"}


def test_there_is_no_node_that_this_test_does_not_know(object_info):
    ours = {name for name, told in object_info.items() if told["python_module"].endswith("zimage-vl")}
    assert ours >= set(DISPLAY_NAMES)
    assert all(name.startswith("ZImageVL") for name in ours)


@pytest.mark.parametrize("name", DISPLAY_NAMES)
def test_a_node_is_named_described_and_every_input_explained(info, name):
    told = info[name]
    assert told["display_name"] == DISPLAY_NAMES[name]
    assert told["description"] and told["search_aliases"]
    unexplained = [path for path, options in inputs_of(told["input"]) if not options.get("tooltip")]
    assert unexplained == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_help_pages_are_served_where_the_frontend_looks(server, object_info, page):
    path = page.relative_to(DOCS)
    assert path.parts[0].removesuffix(".md") in object_info  # NODE.md or NODE/LANGUAGE.md
    assert server.read(f"/extensions/zimage-vl/docs/{path.as_posix()}") == page.read_bytes()


def test_the_frontend_is_given_our_script(server):
    assert "/extensions/zimage-vl/report.js" in server.get("/extensions")
    assert server.read("/extensions/zimage-vl/report.js") == (PACK / "web" / "report.js").read_bytes()


def test_our_workflows_are_offered_as_templates(server):
    offered = server.get("/workflow_templates")["zimage-vl"]
    assert sorted(offered) == sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
    for name in offered:
        served = json.loads(server.read(f"/api/workflow_templates/zimage-vl/{quote(name)}.json"))
        assert served == json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_blueprint_is_offered_and_is_what_the_first_template_uses(server):
    every = server.get("/global_subgraphs").items()
    offered = {one["name"]: key for key, one in every if one["info"]["node_pack"].endswith("zimage-vl")}
    (path,) = (PACK / "subgraphs").glob("*.json")
    assert list(offered) == [path.stem]
    blueprint = json.loads(server.get(f"/global_subgraphs/{offered[path.stem]}")["data"])
    (inside,) = blueprint["definitions"]["subgraphs"]
    first = json.loads((PACK / "workflows" / "1 Start here - reference picture.json").read_text(encoding="utf-8"))
    assert first["definitions"]["subgraphs"] == [inside]
    shown = [slot.get("label", slot["name"]) for slot in inside["inputs"]]
    assert shown[:7] == ["image", "prompt", "take", "strength", "width", "height", "seed"]


def test_our_translations_are_served(server):
    offered = server.get("/i18n")
    for language in sorted(path.parent.name for path in (PACK / "locales").glob("*/nodeDefs.json")):
        assert set(DISPLAY_NAMES) & set(offered[language]["nodeDefs"]), language


def test_comfyui_imports_the_pack_and_ends_well(comfyui, server_module, tmp_path):
    server_module.prepare_base(comfyui, tmp_path)
    ended = subprocess.run(
        server_module.command(comfyui, tmp_path, "--quick-test-for-ci"), cwd=tmp_path, capture_output=True, text=True,
        timeout=120,
    )
    log = ended.stdout + ended.stderr
    assert ended.returncode == 0, log
    assert "Cannot import" not in log and "Traceback" not in log, log
    assert "zimage-vl" in log
