"""Saved workflows load and paint what they painted when they were saved, or their outputs say what changed and why.

On another CPU a picture may differ by 1/255; ``python tests/host/saved.py --bits`` asks for the same bits on one.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("zimage_vl_saved", HERE / "saved.py")
saved = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(saved)

REPORT = ["aligned: alpha 0.50, 11 tokens", "Picture like those of the fit (further out than 7% of them)."]


@pytest.fixture(scope="module")
def servers(comfyui, server):
    with saved.painters(comfyui, server) as servers:
        yield servers


@pytest.fixture(scope="module")
def finished(servers):
    """What a saved workflow gives now; each is run once."""
    done = {}

    def run(path: Path):
        if path not in done:
            done[path] = saved.run(path, servers)
        return done[path]

    return run


def of_the_set(name: str, folder: str = "saved_0_1_1") -> Path:
    return HERE / folder / f"zimage_vl_{name}.json"


@pytest.mark.parametrize("path", saved.WORKFLOWS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_saved_workflow_gives_what_it_gave(path, finished):
    found, before = finished(path), saved.recorded(saved.outputs_of(path))
    print(path.stem, saved.verdict(found, before))
    assert "\n".join(saved.differences(found, before)) == ""


def test_every_output_belongs_to_a_workflow():
    kept = {path for folder in ("saved_0_1_0", "saved_0_1_1") for path in (HERE / folder / "outputs").glob("*.json")}
    assert kept == set(map(saved.outputs_of, saved.WORKFLOWS))
    for path in kept:
        if saved.recorded(path).pictures:
            assert all(low < high for low, high in saved.Image.open(path.with_suffix(".webp")).getextrema())


@pytest.mark.parametrize(
    ("name", "changed"),
    [("open_pipeline", {"method.alpha": 0.48}), ("many_references", {"strength": 0.48}), ("simple", {"seed": 2})],
)
def test_a_small_change_is_noticed(name, changed, servers):
    path = of_the_set(name)
    found, before = saved.run(path, servers, **changed), saved.recorded(saved.outputs_of(path))
    pictures = replace(found, record={**found.record, "texts": before.record["texts"]})
    assert not saved.same_bits(found, before)
    assert any("apart" in line for line in saved.differences(pictures, before))


def test_states_that_changed_in_a_file_are_noticed(finished):
    path = of_the_set("save_embeddings")
    found, before = finished(path), saved.recorded(saved.outputs_of(path))
    (name,) = found.files
    other = saved.tensors(found.files[name])
    other["0.states"] = other["0.states"] * 1.01
    from safetensors.numpy import save

    told = saved.differences(replace(found, files={name: save(other)}), before)
    assert told == [f"{name}: 0.states has other values"]
    assert saved.differences(replace(found, files={}), before) != []


@pytest.mark.parametrize(
    ("was", "now", "close"),
    [("0.50", "0.51", True), ("0.50", "0.55", False), ("11 tokens", "12 tokens", False), ("7%", "9%", True),
     ("7%", "13%", False), ("aligned", "append", False)],
)
def test_a_report_is_the_same_but_for_rounding(was, now, close):
    assert saved.all_close([line.replace(was, now) for line in REPORT], REPORT) == close


def test_the_servers_had_nothing_to_complain_about(finished, servers):
    finished(of_the_set("simple"))
    assert servers.complaints() == []
