"""Every way, and what reports measure, with states on a Mac's graphics device, which has no float64."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from vl_core import Settings, inspect
from vl_core.encoder.judging import read_answers
from vl_core.reports.layer_report import layer_report
from vl_core.stages.blend import BlendMethod
from vl_core.stages.combine import COMBINATIONS
from vl_core.stages.published.settings import METHODS
from vl_core.steering.references import Reference
from vl_core.steering.steer import steer
from vl_core.steering.way import ways

PROMPT = "a fox in the snow"
ASKED = [
    *({"way": name} for name in ways() if name not in ("automatic", "learned look", "picture adapter")),
    *({"way": "open blend", "method": name} for name in get_args(BlendMethod)),
    *({"way": "open blend", "space": name} for name in ("raw", "slerp")),
    *({"way": "aligned blend", "normalization": name} for name in ("global", "per_dim", "hybrid", "rms")),
    *({"way": "aligned blend", "outlier_mode": name, "outlier_threshold": 1.1} for name in ("zero", "clamp", "scale")),
    *({"way": "aligned blend", "combine": name} for name in COMBINATIONS),
    {"way": "aligned blend", "curve": "ease_in"},
    {"way": "appended tokens", "mask_use": "keep covered tokens"},
    {"way": "research: image delta", "rank": 2, "remove_prompt_direction": True},
    *({"way": "research: as published", "published_method": name} for name in METHODS),
]


@pytest.fixture
def mac(mac_module, make_host):
    """The module of the stand-in, and a host whose states lie there."""

    class MacHost(make_host):
        def words(self, *asked):
            return [replace(text, states=mac_module.on_mps(text.states)) for text in super().words(*asked)]

        def read(self, *asked, **options):
            found, notes = super().read(*asked, **options)
            return replace(found, states=mac_module.on_mps(found.states)), notes

    return mac_module, MacHost()


def test_the_stand_in_has_what_a_mac_has(mac_module):
    with mac_module.FakeMps():
        there = mac_module.on_mps(torch.ones(2, 3))
        made = (there + 1, there.mean(0), torch.zeros(2, device=there.device))
        assert {one.device for one in made} == {mac_module.MPS}
        assert there.cpu().double().device == there.to("cpu").device == mac_module.CPU
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(RuntimeError, match="one device"):
            there + torch.ones(2, 3)


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: " ".join(map(str, asked.values())))
def test_a_way_gives_on_a_mac_what_it_gives_on_a_cpu(asked, mac, make_host, picture, other):
    module, host = mac
    references = [Reference(picture)]
    if "combine" in asked:
        references.append(Reference(other, weight=0.5))
    if "mask_use" in asked:
        references = [Reference(picture, torch.ones(picture.shape[:3]))]
    settings = Settings(**{"strength": 0.5, **asked})
    expected = steer(make_host(), PROMPT, references, settings)
    with module.FakeMps():
        found = steer(host, PROMPT, references, settings)
    for one, same in zip(found.entries, expected.entries, strict=True):
        torch.testing.assert_close(module._bare(one.states), same.states, rtol=1e-4, atol=1e-4)


def test_reports_and_answers_are_measured_on_a_mac(mac, make_host, picture):
    module, host = mac
    plain = make_host()
    with module.FakeMps():
        text = host.words(PROMPT)[0]
        (reference,), _ = host.statistics()
        told = inspect(text.states, text.layout, reference).describe()
        seen, _ = host.read([picture], PROMPT, range(9), budget=64)
        table = layer_report(seen, reference, text.states, text.layout).table()
        answer = read_answers(module.on_mps(torch.eye(2, 5)), [[[0], [1, 2]], [[1], [3]]])
    text = plain.words(PROMPT)[0]
    assert told == inspect(text.states, text.layout, reference).describe()
    assert table == layer_report(
        plain.read([picture], PROMPT, range(9), budget=64)[0], reference, text.states, text.layout
    ).table()
    assert answer == read_answers(torch.eye(2, 5), [[[0], [1, 2]], [[1], [3]]])
