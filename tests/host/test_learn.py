"""Learn Look: from pictures to a look that paints, on tiny models of both families; and what is refused."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

PROMPT = "a cat in a red hat"
TOLD = {"words": "dusk, soft light", "shows": "a boat"}
FAST = {"steps": 3, "size": 64, "preview": False}


def build(tiny, family: str):
    """MODEL, VAE and CLIP of a family, made in inference mode as the executor makes them."""
    with torch.inference_mode():
        if family == "Z-Image":
            return SimpleNamespace(model=tiny.zimage_model(), vae=tiny.Vae(), clip=tiny.text_clip())
        return SimpleNamespace(model=tiny.flux2_model(), vae=tiny.Vae(128, 16), clip=tiny.klein_clip())


@pytest.fixture(scope="module")
def models(tiny):
    return {family: build(tiny, family) for family in ("Z-Image", "FLUX.2 klein")}


@pytest.fixture(params=["Z-Image", "FLUX.2 klein"])
def chosen(models, request):
    return models[request.param]


@pytest.fixture(autouse=True)
def looks_folder(part):
    """The folder of looks, empty before and after."""
    folder = part("nodes.host.folders").looks_folder()
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def learn(run, picture):
    """Learn Look on models, with a picture and few steps unless told otherwise."""

    def learned(models, **inputs):
        given = {"images": {"image0": picture}, **FAST, **TOLD, **inputs}
        return run("LookLearn", models.model, models.clip, models.vae, **given)

    return learned


def test_a_look_is_learned_kept_and_paints(learn, run, chosen, core_text, told, tiny, looks_folder):
    output = learn(chosen, name="dusk")
    look = output[0]
    assert "Learned the look of 1 picture in 3 steps" in told(output)
    assert [path.name for path in looks_folder.iterdir()] == ["dusk.safetensors"]
    assert look.origin.look == TOLD["words"] and look.origin.shows == (TOLD["shows"],)
    assert look.origin.sizes == ((80, 48),) and len(look.origin.losses) == 3
    text = core_text(PROMPT, chosen.clip)
    by_socket = run("LookApply", text=text, look=look)[0]
    by_file = run("LookApply", text=text, file="dusk.safetensors")[0]
    by_prompt = run("LookApply", clip=chosen.clip, prompt=PROMPT, look=look)[0]
    for other in (by_file, by_prompt):
        torch.testing.assert_close(other[0][0], by_socket[0][0])
    channels = chosen.vae.latent_channels
    with torch.inference_mode():
        plain, looked = (tiny.sample(chosen.model, one, channels=channels) for one in (text, by_socket))
    assert (plain - looked).norm() > 1e-3 * plain.norm()
    again = run("LookApply", text=text, look=look, strength=0.0)[0]
    assert torch.equal(again[0][0], text[0][0])


def test_the_simple_node_takes_a_connected_look_before_anything_else(learn, run, models, core_text):
    zimage = models["Z-Image"]
    look = learn(zimage)[0]
    expected = run("LookApply", text=core_text(PROMPT, zimage.clip), look=look, strength=0.6)[0]
    for mode in ("learned look", "automatic"):
        found = run("Condition", zimage.clip, None, PROMPT, 0.6, mode, look=look)[0]
        torch.testing.assert_close(found[0][0], expected[0][0])


def test_a_sweep_varies_the_strength_of_a_look_without_a_picture(learn, run, models, core_text):
    zimage = models["Z-Image"]
    look = learn(zimage)[0]
    swept = run("Sweep", zimage.clip, None, PROMPT, "strength", "0, 0.5, 1", "none", "", look=look)
    for entries, strength in zip(swept[0], (0.0, 0.5, 1.0), strict=True):
        expected = run("LookApply", text=core_text(PROMPT, zimage.clip), look=look, strength=strength)[0]
        torch.testing.assert_close(entries[0][0], expected[0][0])


def test_the_same_inputs_learn_nothing_twice_also_after_a_restart(learn, models, tiny, told, part, monkeypatch):
    first = learn(models["Z-Image"], name="dusk")
    monkeypatch.setattr(part("nodes.learn"), "learn_resumed", lambda *_, **__: pytest.fail("learned again"))
    fresh = build(tiny, "Z-Image")  # the same weights in new objects, as after a restart
    fresh.vae = models["Z-Image"].vae
    again = learn(fresh, name="other")
    assert "Learned before: dusk.safetensors" in told(again)
    assert torch.equal(again[0].tokens, first[0].tokens)


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 4}, {"words": "dawn"}, {"shows": "a ship"}])
def test_other_inputs_are_learned_anew_under_another_name(learn, models, change, looks_folder):
    first = learn(models["Z-Image"], name="dusk")[0]
    second = learn(models["Z-Image"], name="dusk", **change)[0]
    assert not (first.tokens.shape == second.tokens.shape and torch.equal(first.tokens, second.tokens))
    assert sorted(path.name for path in looks_folder.iterdir()) == ["dusk.safetensors", "dusk_2.safetensors"]


def test_replacing_is_done_when_asked_for(learn, models, looks_folder):
    learn(models["Z-Image"], name="dusk")
    learn(models["Z-Image"], name="dusk", seed=1, replace=True)
    assert [path.name for path in looks_folder.iterdir()] == ["dusk.safetensors"]


def test_qwen3_vl_writes_what_nobody_wrote(learn, models, native, part):
    look = learn(models["Z-Image"], words="", shows="", vision=native)[0]
    expected = part("nodes.host.encoders")
    assert look.origin.look.strip() and expected
