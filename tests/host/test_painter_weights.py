"""Weights in every form that ComfyUI keeps them in: a look is learned through all of them, or refused at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

PROMPT = "a cat in a red hat"


def zimage(tiny, dtype: torch.dtype = torch.float32, cast: torch.dtype | None = None):
    """Z-Image with weights of a type, cast to another one when they are used; made as the executor makes it."""
    with torch.inference_mode():
        return tiny.zimage_model(dtype=dtype, cast=cast)


@pytest.fixture(scope="module")
def clip(tiny):
    with torch.inference_mode():
        return tiny.text_clip()


@pytest.fixture
def painter_of(part, tiny, clip):
    return lambda model: part("nodes.host.painter").ComfyPainter(model, tiny.Vae(), clip)


@pytest.fixture
def gradient_of(painter_of):
    """What a caption would have to change by, and the velocity it was asked about, on a MODEL."""

    def gradient(model) -> tuple[Tensor, Tensor]:
        painter = painter_of(model)
        states, _ = painter.text(PROMPT)
        caption = states.float().requires_grad_()
        noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(4))
        with painter.learning():
            velocity = painter.velocity(noise, torch.tensor([0.8]), [caption])
            (found,) = torch.autograd.grad(velocity.square().sum(), caption)
        return found, velocity.detach()

    return gradient


def linears(model) -> list:
    return [module for module in model.model.diffusion_model.modules() if hasattr(module, "in_features")]


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert other.norm() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_fp8_weights_give_what_the_same_numbers_give_in_float32(tiny, gradient_of):
    small = zimage(tiny, torch.float8_e4m3fn, torch.float32)
    plain = zimage(tiny)
    with torch.no_grad():
        for target, source in zip(
            plain.model.diffusion_model.parameters(), small.model.diffusion_model.parameters(), strict=True
        ):
            assert source.dtype == torch.float8_e4m3fn
            with torch.inference_mode():
                target.copy_(source.float())
    assert_same(gradient_of(small), gradient_of(plain))


def test_weights_that_a_layer_dequantises_itself_are_asked_of_it_on_both_ways(tiny, gradient_of, monkeypatch):
    import comfy.ops

    class Packed(comfy.ops.manual_cast.Linear):
        """As ComfyUI-GGUF's layers: whole numbers with a scale, and a ``cast_bias_weight`` of its own."""

        asked = 0

        def cast_bias_weight(self, input=None, dtype=None, device=None, bias_dtype=None):
            Packed.asked += 1
            dtype = dtype or input.dtype
            bias = None if self.bias is None else self.bias.to(dtype)
            return self.weight.to(dtype) * self.scale, bias

        def forward_comfy_cast_weights(self, input):
            return torch.nn.functional.linear(input, *self.cast_bias_weight(input))

    packed, plain = zimage(tiny), zimage(tiny)
    with torch.inference_mode():
        for layer, twin in zip(linears(packed), linears(plain), strict=True):
            scale = layer.weight.abs().max() / 127
            whole = (layer.weight / scale).round().to(torch.int8)
            layer.__class__ = Packed
            layer.weight, layer.scale = torch.nn.Parameter(whole, requires_grad=False), scale
            twin.weight.copy_(whole.float() * scale)
    assert_same(gradient_of(packed), gradient_of(plain))
    assert Packed.asked > len(linears(packed))


def test_a_kernel_that_nobody_knows_the_way_back_of_is_refused_at_once(tiny, clip, part, painter_of):
    import comfy.ops

    class Kernel(comfy.ops.manual_cast.Linear):
        def forward(self, input):
            raise AssertionError("it was run")

    model = zimage(tiny)
    layer = linears(model)[5]
    layer.__class__ = Kernel
    layer.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"model: no gradient passes through the quantised kernel of .*uint8"):
        painter_of(model)


def test_a_lora_is_learned_through_whether_it_is_merged_or_brought_when_a_layer_runs(
    tiny, gradient_of, painter_of, monkeypatch
):
    import comfy.model_management
    import comfy.model_patcher

    model = zimage(tiny)
    name = "diffusion_model.layers.0.feed_forward.w2.weight"
    shape = model.model.get_parameter(name).shape
    change = 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(9))
    kept = model.model.get_parameter(name).clone()
    bare = gradient_of(model)

    patched = model.clone()
    assert patched.add_patches({name: ("diff", (change,))}, 1.0) == [name]
    merged = gradient_of(patched)
    assert (merged[0] - bare[0]).norm() > 1e-2 * bare[0].norm()
    assert "with LoRA" in painter_of(patched).name and "LoRA" not in painter_of(model).name
    assert painter_of(patched).identity() != painter_of(model).identity()

    comfy.model_management.unload_all_models()
    assert torch.equal(model.model.get_parameter(name), kept)
    assert_same(gradient_of(model), bare)
    comfy.model_management.unload_all_models()

    load = comfy.model_patcher.ModelPatcher.load

    def leave_out(self, device_to=None, **options):
        return load(self, device_to, **{**options, "lowvram_model_memory": 1, "full_load": False})

    # As --lowvram leaves weights: each brought, and changed, when its layer runs.
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "load", leave_out)
    found = gradient_of(patched)
    assert model.model.get_submodule(name.removesuffix(".weight")).weight_function
    assert torch.equal(model.model.get_parameter(name), kept)
    assert_same(found, merged)


def test_a_compiled_forward_and_a_faster_attention_are_left_out_while_learning(tiny, gradient_of):
    from comfy.patcher_extension import WrappersMP

    model = zimage(tiny)
    expected = gradient_of(model)
    hurried = model.clone()
    ran = []

    def compiled(executor, *args, **options):
        ran.append("compiled")
        return executor(*args, **options)

    def fast(func, *args, **options):
        raise AssertionError("a kernel without a way back was run")

    hurried.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", compiled)
    hurried.model_options["transformer_options"]["optimized_attention_override"] = fast
    assert_same(gradient_of(hurried), expected)
    assert not ran
    assert hurried.model_options["transformer_options"]["optimized_attention_override"] is fast


def test_other_wrappers_of_the_model_act_as_when_it_paints(tiny, gradient_of):
    from comfy.patcher_extension import WrappersMP

    model = zimage(tiny).clone()
    plain = gradient_of(model)

    def half(executor, x, *args, **options):
        return x + 0.5 * (executor(x, *args, **options) - x)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "half", half)
    found = gradient_of(model)
    torch.testing.assert_close(found[1], 0.5 * plain[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[0], 0.25 * plain[0], rtol=1e-2, atol=1e-2 * float(plain[0].abs().max()))


def test_the_same_weights_have_the_same_name_after_a_restart_and_another_shift_another(tiny, clip, painter_of):
    import comfy_extras.nodes_model_advanced as advanced

    def shifted(shift: float):
        with torch.inference_mode():
            return advanced.ModelSamplingAuraFlow().patch_aura(zimage(tiny), shift)[0]

    vae = tiny.Vae()
    names = []
    for model in (shifted(3.0), shifted(3.0), shifted(5.0), zimage(tiny)):
        painter = painter_of(model)
        painter.vae = vae
        names.append(painter.identity())
    assert names[0] == names[1] and len(set(names)) == 3
