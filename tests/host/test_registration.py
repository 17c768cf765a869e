"""What ComfyUI sees when it loads the pack."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]

# Ids are forever: workflows name them. This list only grows.
IDS = {
    "ZImageVLAdapterApply", "ZImageVLAdapterFit", "ZImageVLBlend", "ZImageVLCondition", "ZImageVLDelta",
    "ZImageVLDescribe", "ZImageVLDescribeFolder", "ZImageVLEncode", "ZImageVLGrid",
    "ZImageVLInspect", "ZImageVLLayerReport", "ZImageVLLoadSaved",
    "ZImageVLLoader", "ZImageVLLookApply", "ZImageVLLookLearn",
    "ZImageVLMaskOutliers", "ZImageVLMatchSpace", "ZImageVLNormalize", "ZImageVLReference",
    "ZImageVLSave", "ZImageVLSelectTokens", "ZImageVLSweep",
}
CONDITIONING_NODES = {
    "ZImageVLAdapterApply", "ZImageVLBlend", "ZImageVLCondition", "ZImageVLDelta", "ZImageVLEncode",
    "ZImageVLLoadSaved", "ZImageVLLookApply",
    "ZImageVLMaskOutliers", "ZImageVLMatchSpace", "ZImageVLNormalize", "ZImageVLSelectTokens",
}


@pytest.fixture(scope="module")
def nodes(pack) -> dict:
    async def listed():
        return await (await pack.comfy_entrypoint()).get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(listed())}


@pytest.fixture(scope="module")
def inputs_of(nodes):
    """``[(path, input)]`` of a node, those inside dynamic inputs included."""

    def collect(inputs, path=""):
        for one in inputs:
            yield f"{path}{one.id}", one
            for option in getattr(one, "options", None) or []:
                if hasattr(option, "inputs"):
                    yield from collect(option.inputs, f"{path}{one.id}.{option.key}.")
            if hasattr(one, "template"):
                yield from collect([one.template.input], f"{path}{one.id}.")

    return lambda node_id: list(collect(nodes[node_id].GET_SCHEMA().inputs))


def test_the_entrypoint_lists_exactly_the_documented_nodes(nodes):
    assert set(nodes) == IDS


def test_comfyuis_own_loader_registers_every_node(core):
    assert asyncio.run(core.load_custom_node(str(PACK))), "ComfyUI refused the pack"
    assert set(core.NODE_CLASS_MAPPINGS) >= IDS
    assert Path(core.EXTENSION_WEB_DIRS[PACK.name]) == PACK / "web"


def test_there_are_no_old_style_mappings_that_would_hide_the_entrypoint(pack):
    assert not hasattr(pack, "NODE_CLASS_MAPPINGS")


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_a_schema_is_valid_and_can_be_sent_to_the_frontend(node_id, nodes):
    nodes[node_id].VALIDATE_CLASS()
    schema = nodes[node_id].GET_SCHEMA()
    schema.validate()
    info = schema.get_v1_info(nodes[node_id])
    assert info.name == node_id
    assert info.display_name and info.display_name != node_id
    assert info.category == "model/conditioning/z-image vl"


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_a_node_says_what_it_does_and_can_be_found(node_id, nodes):
    schema = nodes[node_id].GET_SCHEMA()
    assert schema.description.endswith(".")
    assert schema.search_aliases


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_every_input_has_a_tooltip(node_id, inputs_of):
    silent = [path for path, one in inputs_of(node_id) if not one.tooltip]
    assert not silent


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_execute_takes_every_input_of_the_schema(node_id, nodes):
    import inspect

    accepted = set(inspect.signature(nodes[node_id].execute).parameters)
    assert accepted == {one.id for one in nodes[node_id].GET_SCHEMA().inputs}


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_defaults_are_allowed_values(node_id, inputs_of):
    for path, one in inputs_of(node_id):
        default, options = getattr(one, "default", None), getattr(one, "options", None)
        if default is None:
            continue
        if options:
            assert default in options, path
        if getattr(one, "min", None) is not None:
            assert one.min <= default <= one.max, path


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_conditioning_nodes_give_conditioning_and_nothing_else(node_id, nodes):
    outputs = [output.io_type for output in nodes[node_id].GET_SCHEMA().outputs]
    if node_id == "ZImageVLMatchSpace":  # and the map that it applied
        assert outputs.pop() == "VL_SPACE"
    assert (outputs == ["CONDITIONING"]) == (node_id in CONDITIONING_NODES)
    if node_id != "ZImageVLSweep":  # gives a list, and what each of it is
        assert "CONDITIONING" not in outputs or len(outputs) == 1


def test_importing_the_pack_prints_nothing(comfyui, tmp_path):
    script = (
        "import sys, importlib.util\n"
        f"sys.path.insert(0, {str(comfyui)!r})\n"
        "import comfy.options; comfy.options.enable_args_parsing()\n"
        "import nodes, comfy_api.latest\n"
        "print('BEFORE', flush=True); print('BEFORE', file=sys.stderr, flush=True)\n"
        f"spec = importlib.util.spec_from_file_location('pack', {str(PACK / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(PACK)!r}])\n"
        "module = sys.modules['pack'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "import asyncio; asyncio.run(module.comfy_entrypoint())\n"
    )
    arguments = ["-c", script, "--cpu", "--base-directory", str(tmp_path)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("BEFORE\n")[1] == ""
    assert done.stderr.split("BEFORE\n")[1] == ""
