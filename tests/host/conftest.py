"""Fixtures of the host tests: a ComfyUI on the CPU with empty folders, the pack loaded as it loads packs, tiny models.

ComfyUI is looked for at COMFYUI_PATH, then above the pack (custom_nodes), then at ~/comfy/ComfyUI. Without one every
test here is skipped; collecting needs nothing but pytest and torch.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import random
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

PACK = Path(__file__).resolve().parents[2]
try:  # only the flood needs it
    import hypothesis
except ImportError:
    hypothesis = None
else:
    quiet = {"deadline": None, "print_blob": True, "suppress_health_check": list(hypothesis.HealthCheck)}
    hypothesis.settings.register_profile("ci", max_examples=60, database=None, **quiet)
    hypothesis.settings.register_profile("nightly", max_examples=800, database=None, **quiet)
    hypothesis.settings.load_profile("ci")

ADAPTER_SLOTS = ("style", "palette", "light", "background", "composition")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config) -> None:
    if getattr(config.option, "hypothesis_seed", "") is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


@pytest.hookimpl(hookwrapper=True)
def pytest_terminal_summary(terminalreporter, config):
    if seed := getattr(config.option, "hypothesis_seed", None):
        terminalreporter.write_line(f"fuzz: --hypothesis-seed={seed}")
    yield


def comfyui_candidates() -> list[Path]:
    """Where a ComfyUI is looked for, best first; a path somebody named is the only one."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        return [Path(named).expanduser()]
    above = [PACK.parents[1]] if PACK.parent.name == "custom_nodes" else []
    return [*above, Path.home() / "comfy" / "ComfyUI"]


def load_by_path(name: str, path: Path, **spec_options):
    """Import a file under a name of our choice, leaving ``sys.path`` alone."""
    spec = importlib.util.spec_from_file_location(name, path, **spec_options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI checkout the tests run against."""
    candidates = comfyui_candidates()
    for path in candidates:
        if (path / "comfy" / "sd.py").is_file():
            return path
    pytest.skip(f"no ComfyUI found at {' or '.join(map(str, candidates))}; set COMFYUI_PATH")


@pytest.fixture(scope="session", autouse=True)
def base_folder(comfyui, tmp_path_factory) -> Path:
    """ComfyUI's base folder (models, output, user, temp …), empty; from here on ``comfy`` can be imported."""
    base = tmp_path_factory.mktemp("comfyui")
    torch.set_num_threads(1)  # the models are tiny: threads would only wait for one another
    # In front: the pack's own folder may be on the path, and its `nodes` is not ComfyUI's.
    sys.path.insert(0, str(comfyui))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(base)]
    try:
        options = importlib.import_module("comfy.options")
        options.enable_args_parsing()
        importlib.import_module("comfy.cli_args")
        for name in ("comfy.sd", "comfy.sample", "folder_paths", "nodes", "comfy_api.latest"):
            importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"ComfyUI at {comfyui} cannot be imported here ({error}); run pytest with its own Python")
    finally:
        sys.argv = arguments
    gc.collect()
    gc.freeze()  # what is imported stays: a collection of garbage need not look through it each time
    return base


@pytest.fixture(scope="session")
def pack(base_folder):
    """The pack, loaded by path as ComfyUI does."""
    name = "custom_nodes.zimage_vl"
    return load_by_path(name, PACK / "__init__.py", submodule_search_locations=[str(PACK)])


@pytest.fixture(scope="session")
def part(pack):
    """A module of the pack by its path: ``part("nodes.entries")``, ``part("vl_core.states.layout")``."""
    return lambda path: importlib.import_module(f"{pack.__name__}.{path}")


@pytest.fixture(scope="module")
def few_prompts(pack):
    """Every fourth built-in prompt in the place of all of them: FLUX.2 klein's encoder reads each in 512 tokens."""
    every = importlib.import_module(f"{pack.__name__}.vl_core").calibration_prompts
    few = every()[::4]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith(pack.__name__) and vars(module).get("calibration_prompts") is every:
                patch.setattr(module, "calibration_prompts", lambda: list(few))
        yield


@pytest.fixture(autouse=True)
def nothing_written_before(request):
    """No test finds the descriptions of another."""
    if "part" in request.fixturenames:
        request.getfixturevalue("part")("nodes.host.encoders")._written.clear()


@pytest.fixture(scope="session")
def core(base_folder):
    """ComfyUI's own ``nodes`` module."""
    return importlib.import_module("nodes")


@pytest.fixture(scope="session")
def run(part):
    """Run a node as the executor does: a fresh locked class, inference mode. Gives its NodeOutput."""
    nodes = {node.GET_SCHEMA().node_id: node for node in part("nodes").NODES}

    def run_node(node_id: str, *args, **inputs):
        with torch.inference_mode():
            return nodes[f"ZImageVL{node_id}"].PREPARE_CLASS_CLONE(None).execute(*args, **inputs)

    return run_node


@pytest.fixture(scope="session")
def told():
    """What a node shows on itself after it ran."""

    def text(output) -> str:
        shown = output.ui if isinstance(output.ui, dict) else output.ui.as_dict()
        return "\n".join(shown["text"])

    return text


@pytest.fixture(scope="session")
def tiny(base_folder):
    """The module ``tiny.py`` beside this file."""
    return load_by_path("zimage_vl_tiny_host", Path(__file__).with_name("tiny.py"))


@pytest.fixture(scope="session")
def text_clip(tiny):
    """Z-Image's text encoder, tiny."""
    return tiny.text_clip()


@pytest.fixture(scope="session")
def native(tiny):
    """Qwen3-VL-4B as Load CLIP gives it, tiny."""
    return tiny.vision_clip()


@pytest.fixture(scope="session")
def encoder_folder(tiny, native, base_folder) -> Path:
    """The Hugging Face folder of the same weights, where the loader finds it."""
    return tiny.write_folder(base_folder / "models" / "text_encoders" / "Qwen3-VL-Tiny", native)


@pytest.fixture(scope="session")
def loaded(run, encoder_folder):
    """The same weights as Load Qwen3-VL gives them, every block loaded."""
    return run("Loader", encoder_folder.name, "fp32", deepest_layer=-1)[0]


@pytest.fixture(params=["native", "transformers"])
def vision(request):
    """Either encoder that fits the vision socket, with the same weights."""
    return request.getfixturevalue({"native": "native", "transformers": "loaded"}[request.param])


@pytest.fixture
def management(base_folder):
    """ComfyUI's model management, nothing loaded before and after."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    yield comfy.model_management
    comfy.model_management.unload_all_models()


@pytest.fixture(scope="session")
def zimage(tiny):
    """Z-Image, tiny."""
    return tiny.zimage_model()


@pytest.fixture(scope="session")
def sample(tiny, zimage):
    """Draw a latent from a positive conditioning."""

    def draw(positive, **options) -> torch.Tensor:
        with torch.inference_mode():
            return tiny.sample(zimage, positive, **options)

    return draw


@pytest.fixture(scope="session")
def core_text(core, text_clip):
    """A prompt as core's CLIP Text Encode encodes it."""

    def encode(prompt: str, clip=text_clip) -> list:
        with torch.inference_mode():
            return core.CLIPTextEncode().encode(clip, prompt)[0]

    return encode


@pytest.fixture(scope="session")
def picture() -> torch.Tensor:
    """An IMAGE ``(1, 64, 96, 3)`` with structure: two ramps and a disc."""
    rows, columns = torch.linspace(0, 1, 64), torch.linspace(0, 1, 96)
    disc = ((rows[:, None] - 0.5) ** 2 + (columns[None] - 0.5) ** 2 < 0.09).float()
    return torch.stack([rows[:, None].expand(64, 96), columns[None].expand(64, 96), disc], -1)[None].contiguous()


@pytest.fixture(scope="session")
def shuffled(picture) -> torch.Tensor:
    """The same pixels in another order: a picture with the same colours and nothing in it."""
    order = torch.randperm(64 * 96, generator=torch.Generator().manual_seed(5))
    return picture.reshape(1, -1, 3)[:, order].reshape(picture.shape)


@pytest.fixture(scope="session")
def reference(run, text_clip):
    """Statistics of the tiny text encoder."""
    return run("Reference", text_clip)[0]


@pytest.fixture(scope="session")
def server_module():
    """The module ``server.py`` beside this file."""
    return load_by_path("zimage_vl_server", Path(__file__).with_name("server.py"))


@pytest.fixture(scope="session")
def wiring():
    """The module ``wiring.py`` beside this file."""
    return load_by_path("zimage_vl_wiring", Path(__file__).with_name("wiring.py"))


@pytest.fixture(scope="session")
def server(comfyui, server_module, tmp_path_factory):
    """A running ComfyUI server with the pack and tiny models, in a folder of its own; it sums in one order."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                patch.setenv(name, "1")
            server = stack.enter_context(server_module.running(comfyui, tmp_path_factory.mktemp("server")))
        yield server


@pytest.fixture(scope="session")
def object_info(server) -> dict:
    """What the server says of its nodes before tests have written files; it takes most of a second to tell."""
    return server.get("/object_info")


@pytest.fixture(scope="session")
def slow_writers(server, tiny, wiring):
    """Nodes that load an encoder which takes some hundredths of a second a token and does not end by itself."""
    folder = "Qwen3-VL-Slow"
    tiny.write_folder(server.base / "models" / "text_encoders" / folder, tiny.writing_clip(num_hidden_layers=48))
    chosen = {"folder": folder, "dtype": "fp32", "deepest_layer": -1}
    loader, _ = wiring.node_prompt("Loader", server.get("/object_info"), chosen=chosen)
    return {
        "native": {
            "class_type": "CLIPLoader", "inputs": {"clip_name": "qwen3vl_4b_fp8_scaled.safetensors", "type": "lumina2"}
        },
        "transformers": loader["ours"],
    }


@pytest.fixture(scope="module")
def looks(tmp_path_factory) -> str:
    """A folder of 12 pictures with words by slot beside them, below an input folder of the module's own."""
    import folder_paths
    import numpy as np
    from PIL import Image

    root, drawn = tmp_path_factory.mktemp("adapters"), np.random.default_rng(0)
    folder = root / "input" / "looks"
    folder.mkdir(parents=True)
    for index in range(12):
        Image.fromarray(drawn.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(folder / f"{index:02}.png")
        words = "\n".join(f"{slot}: {slot} number {index}" for slot in ADAPTER_SLOTS)
        (folder / f"{index:02}.txt").write_text(words, encoding="utf-8")
    before = folder_paths.get_input_directory(), folder_paths.models_dir
    folder_paths.set_input_directory(str(root / "input"))
    folder_paths.models_dir = str(root / "models")
    yield folder.name
    folder_paths.set_input_directory(before[0])
    folder_paths.models_dir = before[1]
