"""Our CONDITIONING among core's nodes: timestep ranges, areas, masks, combining, hooks, and what each must equal."""

from __future__ import annotations

import importlib

import pytest
import torch

PROMPT = "a cat in a red hat"
SIZE = 8  # of the latent
MADE = ["blend aligned", "append picture", "image delta", "average of two", "recipe", "words only"]


@pytest.fixture(scope="module")
def text(core_text):
    return core_text(PROMPT)


@pytest.fixture(scope="module")
def make(run, text_clip, native, picture, shuffled):
    """Conditioning as our nodes make it, by what was done."""

    def made(what: str) -> list:
        options = {"mode": what, "images": {"image0": picture}}
        if what == "average of two":
            options = {"images": {"image0": picture, "image1": shuffled}, "combine": "average", "weights": "1, -0.5"}
        elif what == "recipe":
            options = {"images": {"image0": picture}, "recipe": "style hint"}
        elif what == "words only":
            options = {}
        return run("Condition", text_clip, native, PROMPT, 0.7, **{"mode": "blend aligned", **options})[0]

    return made


@pytest.fixture(params=MADE)
def ours(request, make):
    return make(request.param)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


# --- timestep ranges --------------------------------------------------------------------------------------------------


def test_a_timestep_range_of_all_steps_is_none(core, ours, sample):
    ranged = core.ConditioningSetTimestepRange().set_range(ours, 0.0, 1.0)[0]
    assert torch.equal(sample(ranged), sample(ours))


def test_cores_ranges_and_our_timing_paint_the_same(core, run, text, native, picture, sample, make):
    seen = run("Encode", native, PROMPT, layer=-2, images={"image0": picture})[0]
    timed = run("Blend", text, seen, {"method": "aligned", "alpha": 0.7}, start_percent=0.0, end_percent=0.5)[0]
    set_range, combine = core.ConditioningSetTimestepRange().set_range, core.ConditioningCombine().combine
    blended = run("Blend", text, seen, {"method": "aligned", "alpha": 0.7})[0]
    by_core = combine(set_range(blended, 0.0, 0.499)[0], set_range(text, 0.5, 1.0)[0])[0]
    ours, theirs, always = (sample(one, steps=4) for one in (timed, by_core, blended))
    assert torch.equal(ours, theirs)
    assert not close(ours, always)


def test_a_range_on_the_text_is_kept_and_our_timing_stays_within_it(core, run, text, native, picture):
    seen = run("Encode", native, PROMPT, layer=-2, images={"image0": picture})[0]
    late = core.ConditioningSetTimestepRange().set_range(text, 0.3, 1.0)[0]
    mixed = run("Blend", late, seen, {"method": "aligned", "alpha": 0.7}, start_percent=0.0, end_percent=0.6)[0]
    assert [(one["start_percent"], round(one["end_percent"], 3)) for _, one in mixed] == [(0.3, 0.6), (0.6, 1.0)]


# --- areas and masks --------------------------------------------------------------------------------------------------


def test_an_area_over_everything_is_none_and_a_part_of_it_is_not(core, ours, sample):
    whole = core.ConditioningSetAreaPercentage().append(ours, 1.0, 1.0, 0.0, 0.0, 1.0)[0]
    half = core.ConditioningSetArea().append(ours, SIZE * 8 // 2, SIZE * 8, 0, 0, 1.0)[0]
    assert close(sample(whole), sample(ours))
    both = core.ConditioningCombine().combine(half, ours)[0]
    assert sample(both).isfinite().all() and not close(sample(half), sample(ours))


def test_a_mask_over_everything_is_none(core, ours, sample):
    white = torch.ones(1, SIZE * 8, SIZE * 8)
    for bounds in ("default", "mask bounds"):
        masked = core.ConditioningSetMask().append(ours, white, bounds, 1.0)[0]
        assert close(sample(masked), sample(ours))


def test_two_masks_put_the_picture_on_one_side_and_the_words_on_the_other(core, text, make, sample):
    left = torch.zeros(1, SIZE * 8, SIZE * 8)
    left[..., : SIZE * 4] = 1
    masked = core.ConditioningSetMask().append
    mixed = core.ConditioningCombine().combine(
        masked(make("image delta"), left, "default", 1.0)[0], masked(text, 1 - left, "default", 1.0)[0]
    )[0]
    half, words, picture = (sample(one, steps=1) for one in (mixed, text, make("image delta")))
    # In one step every place gets the prediction of its own side.
    assert close(half[..., : SIZE // 2], picture[..., : SIZE // 2])
    assert close(half[..., SIZE // 2 :], words[..., SIZE // 2 :])


# --- combining --------------------------------------------------------------------------------------------------------


def test_combined_with_itself_it_is_itself(core, ours, sample):
    assert close(sample(core.ConditioningCombine().combine(ours, ours)[0]), sample(ours))


def test_combined_with_the_words_it_is_half_way_in_one_step(core, text, make, sample):
    """Core averages the predictions, and one Euler step is linear in them."""
    ours = make("append picture")
    both, words, picture = (
        sample(one, steps=1) for one in (core.ConditioningCombine().combine(ours, text)[0], text, ours)
    )
    assert close(both, (words + picture) / 2)


def test_every_entry_that_core_combined_goes_through_our_nodes(core, run, text, native, picture):
    seen = run("Encode", native, PROMPT, layer=-2, images={"image0": picture})[0]
    both = core.ConditioningCombine().combine(text, core.ConditioningSetAreaStrength().append(text, 0.5)[0])[0]
    mixed = run("Blend", both, seen, {"method": "aligned", "alpha": 0.7})[0]
    assert len(mixed) == 2 and mixed[1][1]["strength"] == 0.5
    assert torch.equal(mixed[0][0], mixed[1][0])


# --- hooks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hook(zimage):
    """A LoRA for one layer of Z-Image, as core's hook nodes make it."""
    import comfy.hooks

    name, weight = next(
        (name, weight) for name, weight in zimage.model.diffusion_model.named_parameters()
        if name.startswith("layers.") and name.endswith("feed_forward.w1.weight")
    )
    generator = torch.Generator().manual_seed(7)
    lora = {
        f"diffusion_model.{name.removesuffix('.weight')}.{part}.weight": torch.randn(*shape, generator=generator)
        for part, shape in (("lora_up", (weight.shape[0], 2)), ("lora_down", (2, weight.shape[1])))
    }
    return lambda strength: comfy.hooks.create_hook_lora(lora, strength, 0.0)


def test_a_hook_set_by_core_acts_on_our_conditioning(ours, hook, sample):
    attach = importlib.import_module("comfy_extras.nodes_hooks").SetModelHooksOnCond().attach_hook
    plain = sample(ours)
    assert not close(sample(attach(ours, hook(1.0))[0]), plain)
    assert close(sample(attach(ours, hook(0.0))[0]), plain)
    assert torch.equal(sample(ours), plain)  # and it is gone afterwards


def test_hooks_with_a_mask_and_a_timestep_range_are_set_in_one_node(core, make, hook, sample):
    extras = importlib.import_module("comfy_extras.nodes_hooks")
    ours = make("blend aligned")
    options = {"strength": 1.0, "set_cond_area": "default", "mask": torch.ones(1, SIZE * 8, SIZE * 8)}
    always = extras.ConditioningTimestepsRange().create_range(0.0, 1.0)[0]
    set_all = extras.ConditioningSetProperties().set_properties
    same = set_all(ours, hooks=hook(0.0), timesteps=always, **options)[0]
    hooked = set_all(ours, hooks=hook(1.0), timesteps=always, **options)[0]
    assert close(sample(same), sample(ours)) and not close(sample(hooked), sample(ours))


def test_a_hook_on_the_text_stays_when_a_picture_is_mixed_in(run, text, native, picture, hook, sample):
    attach = importlib.import_module("comfy_extras.nodes_hooks").SetModelHooksOnCond().attach_hook
    seen = run("Encode", native, PROMPT, layer=-2, images={"image0": picture})[0]
    first = run("Blend", attach(text, hook(1.0))[0], seen, {"method": "aligned", "alpha": 0.7})[0]
    last = attach(run("Blend", text, seen, {"method": "aligned", "alpha": 0.7})[0], hook(1.0))[0]
    assert close(sample(first), sample(last))
