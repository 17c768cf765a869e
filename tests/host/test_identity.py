"""What is kept belongs to the encoder that it was made with: hooks, wrappers and in-place patches are told apart."""

from __future__ import annotations

import pytest
import torch

PROMPT = "a cat in a red hat"
KEY = "qwen3_4b.transformer.model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def identity(part):
    return part("nodes.host.identity").identity_of


@pytest.fixture
def hooked(text_clip):
    """A clone of the CLIP with a weight hook in force, as Set CLIP Hooks makes it; its strength by keyframe."""
    import comfy.hooks

    def make(size: float = 4.0, strength: float | None = None):
        clip = text_clip.clone()
        hook = comfy.hooks.WeightHook(strength_clip=1.0)
        # Always the same weights: drawn anew from one seed.
        weight = dict(clip.cond_stage_model.named_parameters())[KEY]
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
        hook.weights_clip, hook.need_weight_init = {KEY: ("diff", (size * noise,))}, False
        group = comfy.hooks.HookGroup()
        group.add(hook)
        if strength is not None:
            frames = comfy.hooks.HookKeyframeGroup()
            frames.add(comfy.hooks.HookKeyframe(strength=strength))
            group.set_keyframes_on_hooks(frames)
        clip.patcher.forced_hooks = group
        clip.patcher.register_all_hook_patches(
            group, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Clip)
        )
        return clip

    return make


def test_a_hook_its_weights_and_its_strength_are_other_encoders(identity, text_clip, hooked):
    found = [identity(one) for one in (text_clip, hooked(), hooked(2.0), hooked(strength=0.5))]
    assert len(set(found)) == 4
    assert identity(hooked()) == found[1]


def test_neither_changes_while_the_others_weights_are_in_place(identity, text_clip, hooked, core_text):
    other = hooked()
    before = identity(text_clip), identity(other)
    plain = core_text(PROMPT)[0][0]
    assert not torch.allclose(core_text(PROMPT, other)[0][0], plain)  # the shared weights are the hooked ones now
    assert (identity(text_clip), identity(other)) == before
    assert torch.equal(core_text(PROMPT)[0][0], plain)
    assert (identity(text_clip), identity(other)) == before


def test_statistics_of_a_hooked_encoder_are_not_the_plain_ones(run, text_clip, hooked, told):
    plain = run("Reference", text_clip)[0]
    hook = run("Reference", hooked())
    assert "measured now" in told(hook)
    assert not torch.allclose(hook[0].moments().std, plain.moments().std, rtol=0.05)
    again = run("Reference", text_clip)
    assert "from the cache" in told(again) and torch.equal(again[0].moments().std, plain.moments().std)
    assert "from the cache" in told(run("Reference", hooked()))


def test_a_wrapped_weight_is_another_encoder_than_with_another_wrapper(identity, text_clip):
    one, other = text_clip.clone(), text_clip.clone()
    one.patcher.add_weight_wrapper(KEY, lambda weight: weight * 2)
    other.patcher.add_weight_wrapper(KEY, lambda weight: weight * 3)
    assert len({identity(text_clip), identity(one), identity(other)}) == 3
    assert identity(one) == identity(one)


def test_a_folder_has_an_identity_by_its_weights_as_well(identity, loaded):
    before = identity(loaded)
    weight = loaded.encoder.model.language_model.layers[0].mlp.up_proj.weight
    with torch.inference_mode():
        kept = weight.clone()
        weight.mul_(2)
        changed = identity(loaded)
        weight.copy_(kept)
    assert changed != before == identity(loaded)


def test_fits_between_encoders_are_bounded(part, run, text_clip, native, picture, monkeypatch):
    space = part("nodes.space")
    monkeypatch.setattr(space, "MOST_KEPT", 2)
    seen = run("Encode", native, PROMPT, -2, images={"image0": picture})[0]
    for layer in (-2, -3, -4, -2):
        seen = run("Encode", native, PROMPT, layer)[0]
        run("MatchSpace", seen, native, text_clip)
    assert len(space._fitted[native]) == 2
