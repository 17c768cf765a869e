"""Mixing layers, held against the formula in numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vl_core.stages.mix_layers import mix_layers, parse_layers
from vl_core.states.layers import parse_layers as layers_of_model
from vl_core.states.layout import TokenLayout, TokenRole
from vl_core.states.vl_states import VLStates
from vl_core.steering.axes import parse_axis

BLOCKS, LENGTH, WIDTH = 8, 6, 12


def encode(dtype: torch.dtype = torch.float32) -> VLStates:
    """Layers -8, -6 and -2 of eight blocks, each at a scale of its own."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, LENGTH, WIDTH, generator=generator) * torch.tensor([3.0, 10.0, 40.0])[:, None, None]
    layout = TokenLayout(torch.full((LENGTH,), TokenRole.TEXT), torch.arange(LENGTH), prompt="a cat")
    return VLStates(states.to(dtype), (1, 3, 7), BLOCKS, layout)


def mixed(seen: VLStates, indices: list[int], weights: list[float], deepest: int) -> np.ndarray:
    states = seen.states.double().numpy()

    def rms(x):
        return np.sqrt((x**2).mean(-1, keepdims=True))

    mean = sum(w * states[i] / rms(states[i]) for i, w in zip(indices, weights, strict=True)) / sum(weights)
    return rms(states[deepest]) * mean


@pytest.mark.parametrize(
    ("layers", "indices", "weights", "deepest"),
    [
        ([-8, -6, -2], [0, 1, 2], [1, 1, 1], 2),
        ([-2, -8], [2, 0], [3, 1], 2),
        ([-6, 1], [1, 0], [0.2, 0.3], 1),
        ([-2, -6], [2, 1], [2, -1], 2),
        ([-8, -6, -2], [0, 1, 2], [1, 2, 0], 1),  # what has no weight does not set the scale
    ],
)
def test_layers_are_averaged_per_token_at_the_scale_of_the_deepest(layers, indices, weights, deepest):
    seen = encode()
    states, layout = mix_layers(seen, layers, weights)
    oracle = mixed(seen, indices, weights, deepest)
    assert np.abs(states.numpy() - oracle).max() <= 1e-6 * np.abs(oracle).max()
    assert layout.layer is None and layout.prompt == "a cat"


def test_only_the_ratios_of_the_weights_matter():
    seen = encode()
    assert torch.allclose(mix_layers(seen, [-2, -6], [1, 3])[0], mix_layers(seen, [-2, -6], [-2, -6])[0], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_single_weight_gives_that_layer_bit_for_bit(dtype):
    seen = encode(dtype)
    for layers, weights, index in [
        ([-2, -6], (1, 0), 2), ([-6, -2], (1, 0), 1), ([-8, -6, -2], (0, 0.5, 0), 1), ([-8], (7,), 0),
        ([-2, 7], (1, 2), 2),
    ]:
        states, layout = mix_layers(seen, layers, weights)
        assert torch.equal(states, seen.states[index])
        assert layout.layer == seen.layers[index] - BLOCKS - 1


def test_the_encoders_type_comes_back_and_zero_tokens_stay_zero():
    seen = encode(torch.float16)
    seen.states[:, 2] = 0
    states, _ = mix_layers(seen, [-8, -2], [1, 1])
    assert states.dtype == torch.float16 and states.isfinite().all()
    assert (states[2] == 0).all()


def test_what_was_encoded_is_left_alone():
    seen = encode()
    before = seen.states.clone()
    mix_layers(seen, [-8, -2], [1, 1])
    assert torch.equal(seen.states, before)


@pytest.mark.parametrize(
    ("layers", "weights", "message"),
    [
        ([-2, -6], [1], "weights: expected one per layer, got 1 for 2 layers"),
        ([], [], "got 0 for 0 layers"),
        ([-2, -6], [1, -1], "sum is not zero"),
        ([-2, -6], [0, 0], "sum is not zero"),
        ([-2, -6], [0.1 + 0.2, -0.3], "sum is not zero"),
        ([-2, -6], [1, float("nan")], "expected finite"),
        ([-2, -6], [1, float("inf")], "expected finite"),
        ([-2, -5], [1, 0], "layer: -5 was not captured"),
        ([-2, -10], [1, 1], "layer: expected -9 to -1"),
    ],
)
def test_weights_and_layers_that_do_not_fit_are_refused(layers, weights, message):
    with pytest.raises(ValueError, match=message):
        mix_layers(encode(), layers, weights)


@pytest.mark.parametrize("text, layers, weights", [
    ("-2", [-2], [1]), ("-2, -4:0.5", [-2, -4], [1, 0.5]), (" -2 : 2 ;-8\n-6:-.5", [-2, -8, -6], [2, 1, -0.5]),
    ("31:1e-1", [31], [0.1]), ("-2 * 2, -8 × -.5", [-2, -8], [2, -0.5]),
    ("-4:-8:-2 * 0.5 -2", [-4, -6, -8, -2], [0.5, 0.5, 0.5, 1]),
])
def test_layers_are_read_as_people_write_them(text, layers, weights):
    assert parse_layers(text) == (layers, weights)


@pytest.mark.parametrize("text, message", [
    ("", "expected at least one layer"), (" , ", "expected at least one layer"), ("-2:", "got '-2:'"),
    ("two", "got 'two'"), ("-2.5", "got '-2.5'"), ("-2:a", "got '-2:a'"), ("-2, -2:0.5", "every layer once, got -2"),
])
def test_layers_that_are_none_are_refused(text, message):
    with pytest.raises(ValueError, match=f"mix_layers: .*{message}"):
        parse_layers(text)


@pytest.mark.parametrize("text", ["-2, -6, -8", "-2 -6 -8", "-2;-6\n-8", "-2.0, -6:-8:-2", " -2,-6 : -8 : -2,"])
def test_a_list_of_layers_is_one_grammar_in_mixtures_reports_and_sweeps(text):
    assert parse_layers(text) == ([-2, -6, -8], [1, 1, 1])
    assert [index - 37 for index in layers_of_model(text, 36)] == [-8, -6, -2]
    assert parse_axis("layers", text).values == (-2, -6, -8)


def test_a_range_without_a_step_is_read_wherever_layers_have_no_weights():
    assert [index - 37 for index in layers_of_model("-2:-4", 36)] == [-4, -3, -2]
    assert parse_axis("layer", "-2:-4").values == (-2, -3, -4) and parse_axis("layer", "-2:0").values == (-2, -1, 0)


def test_a_sweep_refuses_what_no_layer_is():
    with pytest.raises(ValueError, match="layer: expected at most 256 values, got more in '0:-999999'"):
        parse_axis("layer", "0:-999999")
    with pytest.raises(ValueError, match="layer: expected a whole number from -37 to 0, got -38"):
        parse_axis("layer", "-38")
