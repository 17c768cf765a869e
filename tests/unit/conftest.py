"""Fixtures of the unit tests. The tests are imported by path, so shared modules come as fixtures."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import hypothesis
import pytest
import torch

# A busy machine is no failure; timings are benchmarks.
hypothesis.settings.register_profile("no deadline", parent=hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("no deadline")


def beside(name: str):
    """The module of a name beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_models():
    """The module ``tiny_models.py`` beside this file."""
    return beside("tiny_models")


@pytest.fixture(scope="session")
def from_csv():
    """A function: the lines of compare's ``summary.csv``, from its text."""
    return beside("summaries").from_csv


@pytest.fixture(scope="session")
def mac_module():
    """The module ``mac.py`` beside this file."""
    return beside("mac")


@pytest.fixture(scope="session")
def tiny_qwen3vl(tiny_models, tmp_path_factory):
    """``(folder, model)``: a tiny Qwen3-VL on disk and the transformers model it holds, in float32."""
    pytest.importorskip("transformers", minversion="4.57", reason="the tiny Qwen3-VL needs transformers 4.57")
    folder = tmp_path_factory.mktemp("tiny") / "Qwen3-VL-Tiny-Instruct"
    return folder, tiny_models.write_folder(folder)


@pytest.fixture(scope="session")
def weights_hash():
    """A function: a digest of every weight of a pipeline's image model, VAE and text encoder."""

    def digest(pipeline) -> str:
        found = hashlib.sha256()
        for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
            for name, tensor in module.state_dict().items():
                found.update(name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    return digest


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread for a whole file, for results that do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photographs():
    """Two photographs, uint8 ``(H, W, 3)``: 512 × 512 and 300 × 451."""
    data = pytest.importorskip("skimage.data", reason="the photographs come with scikit-image")
    return torch.from_numpy(data.astronaut().copy()), torch.from_numpy(data.chelsea().copy())
