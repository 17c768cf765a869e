"""Families of image models: layouts of the width and of the padding, held against transformers and diffusers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.stages.normalize import normalize
from vl_core.stages.outliers import mask_outlier_dimensions
from vl_core.stages.select import select_tokens
from vl_core.states.families import (
    FAMILIES,
    GROUPS,
    KLEIN_4B,
    KLEIN_9B,
    ZIMAGE,
    check_encoders,
    check_pair,
    detect_family,
    detect_text_family,
    family_of,
    find_family,
    published,
)
from vl_core.states.layout import USER_TURN, concatenate_layouts, insert_pictures, pad_layout, text_layout
from vl_core.states.sinks import find_sinks
from vl_core.states.stacks import by_layer, restore_padding, split_layers, split_padding, stack_layers, steer_layers
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.vl_states import VLStates, load_conditioning, save_conditioning
from vl_core.steering.condition import condition

BLOCKS, WIDTH, LAYERS = 28, 64, (9, 18, 27)
PROMPT = "a cat in a red hat"
HEADER, TAIL, THINK = [151644, 872, 198], [151645, 198, 151644, 77091, 198], [151667, 271, 151668, 271]
FOX = [64, 2518, 38835]
PAD = 151643


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.empty(*shape).normal_(generator=torch.Generator().manual_seed(seed))


def klein_words(*ids: int, prompt: str = "a red fox"):
    layout = [*HEADER, *(ids or FOX), *TAIL, *THINK]
    return text_layout(layout, turn=KLEIN_4B.turn, tail_tokens=KLEIN_4B.tail_tokens, prompt=prompt)


def klein_text(length: int = 24):
    words = klein_words()
    return pad_layout(words, length - len(words))


def reading(grids=((2, 3),), seed: int = 1, layout=None) -> VLStates:
    layout = insert_pictures(layout or klein_words(), grids)
    return VLStates(random(3, len(layout), WIDTH, seed=seed), LAYERS, BLOCKS, layout)


# --- transformers and diffusers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def siblings(tiny_models, tmp_path_factory):
    """A Qwen3-VL and a Qwen3 with the same language weights: (encoder, Qwen3ForCausalLM, tokenizer)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("deep") / "model"
    model = tiny_models.write_folder(folder, num_hidden_layers=BLOCKS)
    encoder = Qwen3VLEncoder.from_pretrained(folder, dtype=torch.float32)
    text = tiny_models.build_config(tiny_models.build_tokenizer(), num_hidden_layers=BLOCKS).text_config
    config = Qwen3Config(
        **{name: getattr(text, name) for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings",
        )},
        rope_parameters={"rope_theta": 5000000.0, "rope_type": "default"}, tie_word_embeddings=True,
    )
    sibling = Qwen3ForCausalLM(config).eval()
    sibling.model.load_state_dict(model.model.language_model.state_dict())
    return encoder, sibling, encoder.tokenizer


THINKING = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def test_the_stack_is_hidden_states_9_18_and_27_of_transformers_in_this_order(siblings):
    encoder, sibling, _ = siblings
    seen = encoder.encode([], PROMPT, LAYERS, family=KLEIN_4B)
    stack, layout = stack_layers(seen, KLEIN_4B)
    with torch.no_grad():
        states = sibling(layout.token_ids[None], output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer][0] for layer in LAYERS], -1)
    torch.testing.assert_close(stack, expected, rtol=1e-4, atol=1e-4)
    assert layout.layer is None and stack.shape == (len(layout), 3 * WIDTH)


@pytest.mark.parametrize("prompt", [PROMPT, "", "the light of a lamp\n\n{braces}"])
def test_template_and_stack_are_those_of_diffusers(prompt, siblings):
    pipelines = pytest.importorskip("diffusers.pipelines.flux2.pipeline_flux2_klein")
    encoder, sibling, tokenizer = siblings
    tokenizer.chat_template, tokenizer.padding_side = THINKING, "right"
    with torch.no_grad():
        expected = pipelines.Flux2KleinPipeline._get_qwen3_prompt_embeds(sibling, tokenizer, prompt)[0]
    seen = encoder.encode([], prompt, KLEIN_4B.layers, family=KLEIN_4B)
    stack, layout = stack_layers(seen, KLEIN_4B)
    assert tokenizer.decode(layout.token_ids) == KLEIN_4B.turn.format(prompt)
    torch.testing.assert_close(stack, expected[: len(stack)], rtol=1e-4, atol=1e-4)
    assert len(expected) == KLEIN_4B.padded_to


def test_the_families_defaults_are_those_of_diffusers():
    import inspect

    pipelines = pytest.importorskip("diffusers.pipelines.flux2.pipeline_flux2_klein")
    defaults = inspect.signature(pipelines.Flux2KleinPipeline._get_qwen3_prompt_embeds).parameters
    assert defaults["hidden_states_layers"].default == KLEIN_4B.layers == KLEIN_9B.layers
    assert defaults["max_sequence_length"].default == KLEIN_4B.padded_to == KLEIN_9B.padded_to


def test_a_picture_comes_before_the_words_and_leaves_the_template_whole(siblings):
    encoder, _, _ = siblings
    alone = encoder.tokenize(PROMPT, family=KLEIN_4B)
    seen = encoder.encode([torch.rand(1, 64, 96, 3)], PROMPT, LAYERS, family=KLEIN_4B)
    _, layout = select_tokens(*stack_layers(seen, KLEIN_4B), "text")
    assert torch.equal(layout.token_ids, alone.token_ids)
    assert seen.layout.grids == ((2, 3),) and len(seen.layout) == len(alone) + 8


def test_zimages_template_is_read_as_before(siblings):
    encoder, _, tokenizer = siblings
    assert encoder.tokenize(PROMPT).token_ids.tolist() == tokenizer(USER_TURN.format(PROMPT))["input_ids"]
    assert torch.equal(encoder.tokenize(PROMPT).roles, encoder.tokenize(PROMPT, family=ZIMAGE).roles)


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_widths_are_the_published_ones():
    assert {family.name: family.width for family in FAMILIES} == {
        "Z-Image": 2560, "FLUX.2 klein 4B": 7680, "FLUX.2 klein 9B": 12288,
    }
    assert GROUPS == ("Z-Image", "FLUX.2 klein")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_found_by_width_by_encoder_and_by_template(family):
    assert detect_family(family.width) == family
    layers = family.layers if family.stacked else None
    assert detect_text_family(layers, family.hidden) == family
    assert detect_text_family(layers, family.hidden, family.text_encoder) == family
    tiny = replace(family, hidden=64)
    assert family_of(family.group, 64, family.vision_encoder) == tiny and published(tiny) == family
    tail = [*TAIL, *THINK] if family.stacked else TAIL
    layout = text_layout([*HEADER, *FOX, *tail], turn=family.turn, tail_tokens=family.tail_tokens)
    for one in (layout, pad_layout(layout, 5), insert_pictures(layout, [(2, 3)])):
        found = detect_family(tiny.width, one)
        assert (found.group, found.width, found.layers) == (family.group, tiny.width, family.layers)


def test_what_is_no_family_is_refused():
    with pytest.raises(ValueError, match=r"family: expected one of Z-Image, FLUX.2 klein, got 'SDXL'"):
        family_of("SDXL", 2560)
    with pytest.raises(ValueError, match=r"clip: expected .*layer -2 .*9, 18, 27.* got one .*layers 10, 20, 30"):
        detect_text_family((10, 20, 30), 5120)
    with pytest.raises(ValueError, match=r"conditioning: expected states of width 2560 .*7680.*12288.*got 4096\. Enc"):
        detect_family(4096)
    with pytest.raises(ValueError, match=r"got 100"):
        detect_family(100, klein_words())  # not three equal parts


def test_a_vision_encoder_of_another_size_or_depth_is_refused():
    check_encoders(KLEIN_4B, 2560, 2560, 36, 36)
    check_encoders(ZIMAGE, 2560, 2560, 36, 28)  # counted from the end
    with pytest.raises(ValueError, match=r"vision: expected .*width 2560.*got 4096 \(big\)\. FLUX.2 klein 4B"):
        check_encoders(KLEIN_4B, 2560, 4096, 36, 36, "big")
    with pytest.raises(ValueError, match=r"36 blocks .*layers 9, 18, 27.*got 28.*needs Qwen3-VL-8B"):
        check_encoders(KLEIN_9B, 4096, 4096, 36, 28)


def test_pairs_of_two_families_are_refused_with_how_to_mend_it():
    assert check_pair(7680, 7680) == KLEIN_4B
    with pytest.raises(ValueError) as wrong:
        check_pair(7680, 2560)
    assert "a text of FLUX.2 klein 4B (width 7680, layers 9, 18, 27 side by side)" in str(wrong.value)
    assert "a VL of Z-Image (width 2560, layer -2)" in str(wrong.value)
    assert "Read the picture with Qwen3-VL-4B and family = FLUX.2 klein" in str(wrong.value)
    with pytest.raises(ValueError, match=r"FLUX.2 klein 9B.*Read the picture with Qwen3-VL-4B and family = Z-Image"):
        check_pair(2560, 12288)
    # One width, laid out in two ways: the templates tell.
    zimage = text_layout([*HEADER, *FOX, *TAIL])
    with pytest.raises(ValueError, match=r"a text of Z-Image .*and a VL of FLUX.2 klein"):
        check_pair(192, 192, zimage, klein_words())
    assert check_pair(192, 192, None, klein_words()).group == "FLUX.2 klein"
    with pytest.raises(ValueError, match=r"a text of width 64 and a VL of FLUX.2 klein.*family = Z-Image"):
        check_pair(64, 192, None, klein_words())


@pytest.mark.parametrize("widths", [(64, 64), (96, 64), (2560, 64), (64, 2560)])
def test_what_says_nothing_counts_as_one_layer(widths):
    assert check_pair(*widths).layers == ZIMAGE.layers and check_pair(*widths).width == widths[0]
    assert find_family(64) is None


def test_a_mask_is_looked_at_only_where_texts_are_padded():
    text, seen = random(1, 11, 4), []
    steer_layers(text, None, ZIMAGE, lambda part, own, index: (part, seen.append(part.shape), ""), words=5)
    assert seen == [(1, 11, 4)]


# --- layers in the width ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 17), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_splitting_undoes_stacking(tokens, width, dtype):
    parts = [random(tokens, width, seed=seed).to(dtype) for seed in range(3)]
    split = split_layers(torch.cat(parts, -1), KLEIN_4B)
    assert all(torch.equal(one, other) for one, other in zip(split, parts, strict=True))


def test_the_order_is_the_familys_and_not_the_order_of_capture():
    seen = reading()
    backwards = replace(KLEIN_4B, layers=(27, 18, 9))
    first, last = split_layers(stack_layers(seen, backwards)[0], backwards)[::2]
    assert torch.equal(first, seen.at(27)[0]) and torch.equal(last, seen.at(9)[0])


def test_a_family_of_one_layer_stacks_nothing():
    seen = VLStates(random(1, 11, WIDTH), (27,), BLOCKS, text_layout([*HEADER, *FOX, *TAIL]))
    states, layout = stack_layers(seen, ZIMAGE)
    assert torch.equal(states, seen.states[0]) and layout.layer == -2


def test_a_layer_that_was_not_captured_is_refused():
    with pytest.raises(ValueError, match=r"layer: 9 was not captured"):
        stack_layers(replace(reading(), layers=(8, 18, 27)), KLEIN_4B)
    with pytest.raises(ValueError, match=r"3 equal parts .*layers 9, 18, 27.*got 64.*family = FLUX.2 klein"):
        split_layers(random(4, 64), KLEIN_4B)


def test_a_sink_of_one_layer_is_a_sink_of_that_layer_only():
    seen = reading(grids=())
    seen.states[:] /= seen.states.square().mean(-1, keepdim=True).sqrt()
    seen.states[0, 2] *= 50  # the stack's size at this token is 29 medians: taken as a whole, all three were a sink
    stack = stack_layers(seen, KLEIN_4B)[0]
    assert find_sinks(stack).tolist() == [index == 2 for index in range(len(stack))]
    reference = [ReferenceStatistics.of(random(200, WIDTH, seed=seed) * 10**seed) for seed in range(3)]
    scaled, infos = by_layer(stack, KLEIN_4B, lambda part, index: normalize(part, "rms", reference[index]))
    rms = [part.square().mean(-1).sqrt() for part in split_layers(scaled, KLEIN_4B)]
    assert [info.sinks for info in infos] == [1, 0, 0]
    assert float(rms[0][2]) == pytest.approx(50, rel=1e-4)
    for index, sizes in enumerate(rms):
        ordinary = sizes[torch.arange(len(sizes)) != 2] if index == 0 else sizes
        torch.testing.assert_close(ordinary, torch.full_like(ordinary, reference[index].median_rms), rtol=1e-4, atol=0)


def test_statistics_are_those_of_each_layer_alone():
    stack = torch.cat([random(40, WIDTH, seed=seed) * 3**seed + seed for seed in range(3)], -1)
    references = [ReferenceStatistics.of(random(300, WIDTH, seed=9 + seed)) for seed in range(3)]
    for stage in (
        lambda part, index: normalize(part, "global", references[index]),
        lambda part, index: normalize(part, "per_dim", references[index]),
        lambda part, index: mask_outlier_dimensions(part, 2.0, "clamp", reference=references[index]),
    ):
        done, infos = by_layer(stack, KLEIN_4B, stage)
        alone = [stage(stack[:, i * WIDTH : (i + 1) * WIDTH], i)[0] for i in range(3)]
        assert torch.equal(done, torch.cat(alone, -1)) and len(infos) == 3


# --- padding ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 14), st.booleans())
def test_padding_comes_back_bit_for_bit_and_appended_tokens_take_its_first_places(words, count, added, batched):
    layout = klein_words(*[64] * words)
    own = len(layout)
    text = random(*([1] if batched else []), own + count, 12)
    padded = pad_layout(layout, count)
    kept, kept_layout, padding = split_padding(text, padded)
    assert kept.shape[-2] == own and torch.equal(kept_layout.token_ids, layout.token_ids)
    assert (padding is None) == (count == 0)
    longer = torch.cat([kept, random(*text.shape[:-2], added, 12, seed=3)], -2)
    longer_layout = replace(
        kept_layout, roles=torch.cat([kept_layout.roles, torch.ones(added, dtype=torch.uint8)]),
        token_ids=torch.cat([kept_layout.token_ids, torch.full((added,), 64)]),
    )
    back, back_layout = restore_padding(longer, longer_layout, padding)
    assert back.shape[-2] == len(back_layout) == max(own + count, own + added)
    assert torch.equal(back[..., : own + added, :], longer)
    assert torch.equal(back[..., own + added :, :], text[..., own + added :, :])
    assert int(back_layout.padding().sum()) == max(0, count - added)
    assert (back_layout.token_ids[back_layout.padding()] == PAD).all()


def test_a_text_without_padding_or_layout_is_left_alone():
    text, layout = random(14, 12), text_layout([*HEADER, *FOX, *TAIL])
    kept, same, padding = split_padding(text[:11], layout)
    assert kept.data_ptr() == text.data_ptr() and same is layout and padding is None
    assert restore_padding(kept, layout, None) == (kept, layout)
    kept, same, padding = split_padding(text, None, words=9)  # an attention mask tells
    assert len(kept) == 9 and same is None and torch.equal(restore_padding(kept, None, padding)[0], text)


def test_only_what_ends_a_text_is_padding():
    words = klein_words(64, PAD, 64)  # a prompt may name the token
    assert not words.padding().any() and "padding" not in words.describe()
    assert pad_layout(words, 4).padding().tolist() == [False] * len(words) + [True] * 4
    pictured = concatenate_layouts([klein_words(), insert_pictures(klein_words(), [(2, 2)])], "blend")
    assert int(pad_layout(pictured, 3).padding().sum()) == 3


def test_padding_is_told_apart_and_survives_a_file(tmp_path):
    layout = klein_text()
    assert layout.describe() == "12 template, 3 text, 9 padding"
    save_conditioning(tmp_path / "klein.safetensors", [(random(1, 24, 192), {"vl_layout": layout})])
    ((_, options),) = load_conditioning(tmp_path / "klein.safetensors")
    assert torch.equal(options["vl_layout"].padding(), layout.padding())
    assert select_tokens(random(24, 4), layout, "prompt")[1].token_ids.tolist() == FOX


# --- steering ---------------------------------------------------------------------------------------------------------


def chain(seen, mode, strength, muted=None):
    return lambda part, layout, index: condition(part, layout, seen, LAYERS[index], mode, strength, muted=muted)


@pytest.mark.parametrize("mode", ["blend aligned", "append picture", "image delta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_0_is_the_text_bit_for_bit(mode, dtype):
    text = random(1, 24, 3 * WIDTH).to(dtype)
    states, layout, _ = steer_layers(text, klein_text(), KLEIN_4B, chain(reading(), mode, 0.0, reading(seed=5)))
    assert torch.equal(states, text) and states.dtype == dtype
    assert torch.equal(layout.roles, klein_text().roles)


@pytest.mark.parametrize("mode", ["blend aligned", "append picture", "image delta"])
def test_each_layer_is_steered_as_if_it_were_alone_and_the_padding_not_at_all(mode):
    text, seen, muted = random(1, 24, 3 * WIDTH), reading(), reading(seed=5)
    states, layout, lines = steer_layers(text, klein_text(), KLEIN_4B, chain(seen, mode, 0.5, muted))
    words = int((~layout.padding()).sum())
    assert states.shape == text.shape and torch.equal(states[:, words:], text[:, words:])
    for index, part in enumerate(split_layers(states, KLEIN_4B)):
        own = text[:, :15, index * WIDTH : (index + 1) * WIDTH]
        alone = condition(own, klein_words(), seen, LAYERS[index], mode, 0.5, muted=muted)[0]
        assert torch.equal(part[:, :words], alone)
        assert f"layer {LAYERS[index] - BLOCKS - 1}" in lines[index]  # counted from the end


def test_the_whole_picture_is_what_the_words_become_at_strength_1():
    text, seen = random(24, 3 * WIDTH), reading()
    states, _, _ = steer_layers(text, klein_text(), KLEIN_4B, chain(seen, "blend aligned", 1.0))
    stack, _ = select_tokens(*stack_layers(seen, KLEIN_4B), "text")
    for part, own, vl in zip(*(split_layers(one[:15], KLEIN_4B) for one in (states, text, stack)), strict=True):
        scale = own.square().mean(-1, keepdim=True).sqrt() / vl.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(part, vl * scale, rtol=1e-4, atol=1e-5)


def test_a_layer_without_a_layout_is_steered_by_count_with_the_mask_of_the_text():
    text, seen = random(1, 24, 3 * WIDTH), reading()
    with_layout, _, _ = steer_layers(text, klein_text(), KLEIN_4B, chain(seen, "blend aligned", 0.5))
    without, layout, _ = steer_layers(text, None, KLEIN_4B, chain(seen, "blend aligned", 0.5), words=15)
    assert torch.equal(with_layout, without) and layout is None


def test_the_wrong_template_does_not_align():
    zimage = insert_pictures(text_layout([*HEADER, *FOX, *TAIL]), [(2, 3)])
    seen = VLStates(random(3, len(zimage), WIDTH), LAYERS, BLOCKS, zimage)
    with pytest.raises(ValueError, match=r"expected the same words outside the pictures"):
        steer_layers(random(24, 3 * WIDTH), klein_text(), KLEIN_4B, chain(seen, "blend aligned", 0.5))


def test_zimage_goes_through_untouched():
    layout = text_layout([*HEADER, *FOX, *TAIL], layer=-2)
    seen = VLStates(random(1, 19, WIDTH), (27,), BLOCKS, insert_pictures(layout, [(2, 3)]))
    text = random(1, 11, WIDTH)

    def act(part, own, index):
        return condition(part, own, seen, -2, "blend aligned", 0.5)

    states, found, lines = steer_layers(text, layout, ZIMAGE, act)
    expected, expected_layout, line = act(text, layout, 0)
    assert torch.equal(states, expected) and lines == [line] and torch.equal(found.roles, expected_layout.roles)
