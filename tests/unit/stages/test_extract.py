"""From picture and prompt to cleaned embeddings, against the stages' formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.pictures import as_tensor
from vl_core.stages.extract import extract
from vl_core.stages.published import mask_image_tokens
from vl_core.stages.select import select_tokens
from vl_core.states.layout import TokenLayout, TokenRole
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.vl_states import VLStates

PROMPT = "a cat in a red hat"


@pytest.fixture(scope="module")
def encoder(tiny_qwen3vl):
    return Qwen3VLEncoder.from_pretrained(tiny_qwen3vl[0], dtype=torch.float32)


@pytest.fixture(scope="module")
def picture(photographs):
    return photographs[1][:192, :256]  # 6 × 8 image tokens


@pytest.fixture(scope="module")
def reference(encoder):
    states = torch.randn(300, encoder.width, generator=torch.Generator().manual_seed(0))
    return ReferenceStatistics.of(states * torch.logspace(-1.5, 1.5, encoder.width))


def states_of(encoder, picture, layer: int, *roles: TokenRole) -> np.ndarray:
    states, layout = encoder.encode([picture], PROMPT, (layer,)).at(layer)
    return states[layout.mask(*roles)].double().numpy()


def test_by_default_it_gives_the_text_tokens_of_layer_minus_6_untouched(encoder, picture):
    result = extract(encoder, picture, PROMPT)
    expected = states_of(encoder, picture, -6, TokenRole.TEMPLATE, TokenRole.TEXT)
    assert np.array_equal(result.embeddings.double().numpy(), expected)
    assert (result.layout.layer, result.layout.prompt, result.layout.grids) == (-6, PROMPT, ())
    assert (result.masked_dimensions, result.masked_dim_ratios) == ((), ())
    assert result.original_std == result.scaled_std == pytest.approx(expected.std(ddof=1), rel=1e-6)


def test_normalising_to_the_published_std(encoder, picture):
    result = extract(encoder, picture, PROMPT, -2, "image", "global", target_std=61.0, sinks="include")
    states = states_of(encoder, picture, -2, TokenRole.MARKER, TokenRole.IMAGE)
    np.testing.assert_allclose(result.embeddings.numpy(), states * 61 / states.std(ddof=1), rtol=1e-4, atol=1e-4)
    assert result.original_std == pytest.approx(states.std(ddof=1), rel=1e-5)
    assert result.scaled_std == pytest.approx(61.0, rel=1e-5)


def over(image: np.ndarray, reference: ReferenceStatistics, sinks: str = "exclude") -> np.ndarray:
    return image.std(0, ddof=1) / np.maximum(reference.moments(sinks).std.numpy(), 1e-6)


def test_outliers_are_measured_and_zeroed_at_image_tokens_only(encoder, picture, reference):
    result = extract(encoder, picture, PROMPT, -2, "all", outlier_masking="zero", reference=reference)
    image = states_of(encoder, picture, -2, TokenRole.IMAGE)
    ratio = over(image, reference)
    flagged = np.flatnonzero(ratio > 10)
    assert len(flagged)
    assert set(result.masked_dimensions) == set(flagged)
    np.testing.assert_allclose(result.masked_dim_ratios, sorted(ratio[flagged], reverse=True), rtol=1e-5)
    image[:, flagged] = 0
    at_image = result.layout.mask(TokenRole.IMAGE)
    assert np.array_equal(result.embeddings[at_image].double().numpy(), image)
    others = states_of(encoder, picture, -2, TokenRole.TEMPLATE, TokenRole.TEXT, TokenRole.MARKER)
    assert np.array_equal(result.embeddings[~at_image].double().numpy(), others)


@pytest.mark.parametrize("mode", ["zero", "clamp", "scale"])
def test_words_alone_are_not_touched_by_outliers_of_the_picture(encoder, picture, reference, mode):
    """Masks come before the selection, as in the research note's code."""
    result = extract(encoder, picture, PROMPT, -2, "text", outlier_masking=mode, reference=reference)
    text = states_of(encoder, picture, -2, TokenRole.TEMPLATE, TokenRole.TEXT)
    assert np.array_equal(result.embeddings.double().numpy(), text)
    image = states_of(encoder, picture, -2, TokenRole.IMAGE)
    assert set(result.masked_dimensions) == set(np.flatnonzero(over(image, reference) > 10))


@pytest.mark.parametrize("tokens", ["all", "image", "image_no_markers", "text"])
@pytest.mark.parametrize("mode", ["zero", "clamp", "scale"])
def test_it_masks_as_the_published_method_does(encoder, picture, reference, mode, tokens):
    options = {"outlier_masking": mode, "reference": reference, "sinks": "include"}
    result = extract(encoder, picture, PROMPT, -2, tokens, **options)
    states, layout = encoder.encode([picture], PROMPT, (-2,)).at(-2)
    masked, _ = mask_image_tokens(states.float(), layout, reference, 10.0, mode)
    expected, _ = select_tokens(masked, layout, tokens)
    np.testing.assert_allclose(result.embeddings.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_thinking_model_may_be_read_in_its_own_template(tiny_qwen3vl, picture):
    encoder = Qwen3VLEncoder.from_pretrained(tiny_qwen3vl[0], dtype=torch.float32)
    plain = extract(encoder, picture, PROMPT, native_template=True)
    assert torch.equal(plain.embeddings, extract(encoder, picture, PROMPT).embeddings)  # Instruct: Z-Image's own
    encoder.variant = "Thinking"
    native = extract(encoder, picture, PROMPT, token_selection="all", native_template=True)
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    block = "<|vision_start|>" + "<|image_pad|>" * 48 + "<|vision_end|>"
    expected = encoder.tokenizer(template.format(block + PROMPT), add_special_tokens=False)["input_ids"]
    assert native.layout.token_ids.tolist() == expected
    assert int(native.layout.mask(TokenRole.TEXT).sum()) == int(plain.layout.mask(TokenRole.TEXT).sum())


def test_without_a_picture_outliers_are_sought_in_all(encoder, reference):
    result = extract(encoder, None, PROMPT, -2, "text", outlier_masking="zero", reference=reference)
    states, _ = encoder.encode([], PROMPT, (-2,)).at(-2)
    assert set(result.masked_dimensions) == set(np.flatnonzero(over(states.double().numpy(), reference) > 10))


def test_masking_comes_before_normalising(encoder, picture, reference):
    options = {"outlier_masking": "zero", "reference": reference, "target_std": 5.0, "normalization_mode": "global"}
    result = extract(encoder, picture, PROMPT, -2, "image_no_markers", **options)
    image = states_of(encoder, picture, -2, TokenRole.IMAGE)
    image[:, list(result.masked_dimensions)] = 0
    np.testing.assert_allclose(result.embeddings.numpy(), image * 5 / image.std(ddof=1), rtol=1e-4, atol=1e-5)


def test_pil_pictures_and_tensors_give_the_same(encoder, picture):
    image = pytest.importorskip("PIL.Image", reason="PIL pictures need Pillow")
    from_pil = extract(encoder, image.fromarray(picture.numpy()), PROMPT)
    both = extract(encoder, [picture, image.fromarray(picture.numpy())], PROMPT, token_selection="image")
    assert torch.equal(from_pil.embeddings, extract(encoder, picture, PROMPT).embeddings)
    assert both.layout.grids == ((6, 8), (6, 8))


def test_no_picture_reads_the_prompt_alone(encoder):
    result = extract(encoder, None, PROMPT, token_selection="all")
    assert result.layout.mask(TokenRole.IMAGE, TokenRole.MARKER).sum() == 0


def test_the_system_prompt_and_the_budget_reach_the_encoder(encoder, picture):
    result = extract(encoder, picture, PROMPT, token_selection="all", system_prompt="Look at the light.", budget=12)
    assert result.layout.grids == ((3, 4),)
    assert len(result.layout) > len(extract(encoder, picture, PROMPT, token_selection="all", budget=12).layout)
    assert any("scaled down" in note for note in result.notes)


@pytest.mark.parametrize("mode", ["1", "P", "L", "LA", "RGB", "RGBA", "CMYK"])
def test_every_kind_of_pil_picture_becomes_8_bit_channels(mode):
    image = pytest.importorskip("PIL.Image", reason="PIL pictures need Pillow")
    pixels = as_tensor(image.new("RGB", (5, 3), (255, 255, 255)).convert(mode))
    assert (pixels.dtype, tuple(pixels.shape[:2])) == (torch.uint8, (3, 5))
    assert (pixels >= 250).all()


def test_sixteen_bit_pictures_keep_their_range():
    image = pytest.importorskip("PIL.Image", reason="PIL pictures need Pillow")
    ramp = np.array([[0, 32768, 65535]], dtype=np.uint16)
    pixels = as_tensor(image.fromarray(ramp))
    np.testing.assert_allclose(pixels[..., 0].numpy(), ramp / 65535, atol=1e-6)


class SinkEncoder:
    """Stands in for an encoder whose first token is an attention sink."""

    def encode(self, images, prompt, layers, *_args, **_options) -> VLStates:
        states = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(1))
        states[0, 0] = 5000
        layout = TokenLayout(torch.ones(20), torch.zeros(20, dtype=torch.int64))
        return VLStates(states, (6,), 8, layout)


def test_sinks_stay_out_of_both_stages_unless_included():
    states = SinkEncoder().encode([], PROMPT, (-3,)).states[0].double().numpy()
    reference = ReferenceStatistics.of(torch.randn(50, 16, generator=torch.Generator().manual_seed(2)))
    options = {"outlier_masking": "clamp", "normalization_mode": "global", "target_std": 4.0, "reference": reference}
    without = extract(SinkEncoder(), None, PROMPT, -3, **options)
    assert np.array_equal(without.embeddings[0].double().numpy(), states[0])
    assert without.masked_dimensions == ()
    np.testing.assert_allclose(without.embeddings[1:].numpy(), states[1:] * 4 / states[1:].std(ddof=1), rtol=1e-4)
    with_them = extract(SinkEncoder(), None, PROMPT, -3, sinks="include", **options)
    assert len(with_them.masked_dimensions) == 16
    assert with_them.embeddings.std().item() == pytest.approx(4, rel=1e-5)


class Unused:
    """An encoder that must not run: options are checked before it."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_selection": "words"}, "tokens: expected one of all"),
        ({"token_selection": "image"}, "needs at least one picture"),
        ({"normalization_mode": "per_dim"}, "reference: normalization 'per_dim'"),
        ({"normalization_mode": "global"}, "reference: normalization 'global'"),
        ({"outlier_masking": "zero"}, "reference: outlier masking 'zero'"),
        ({"outlier_masking": "all"}, "outlier masking: expected one of none, zero"),
        ({"outlier_threshold": 0.5}, "outlier threshold: expected a ratio"),
        ({"target_std": 0.0}, "target std: expected a number above 0"),
        ({"sinks": "some"}, "sinks: expected one of exclude"),
        ({"direction": "up"}, "direction: expected one of over"),
    ],
)
def test_options_that_cannot_work_are_refused_before_the_encoder_runs(options, message):
    with pytest.raises(ValueError, match=message):
        extract(Unused(), None, PROMPT, **options)


def test_a_path_is_not_a_picture():
    with pytest.raises(TypeError, match="expected a torch tensor or a PIL image, got str"):
        extract(Unused(), "cat.png", PROMPT)


def test_the_encoder_s_own_method_is_the_same_call(encoder, picture):
    ours = encoder.extract(picture, PROMPT, hidden_layer=-3, token_selection="image")
    assert torch.equal(ours.embeddings, extract(encoder, picture, PROMPT, -3, "image").embeddings)
