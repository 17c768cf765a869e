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
    torch.testing.assert_close(again[0].tokens, first[0].tokens)


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


def test_qwen3_vl_writes_what_nobody_wrote_once_for_each_picture_and_once_for_their_look(
    learn, models, native, part, monkeypatch
):
    encoders, asked = part("nodes.host.encoders"), []

    def write(encoder, images, instruction, **options):
        asked.append((len(images), instruction))
        return part("vl_core").Description(f"words {len(asked)}", "", 1, False)

    monkeypatch.setattr(encoders, "write_words", write)
    instructions = part("vl_core.encoder.writing").INSTRUCTIONS
    pictures = {"image0": torch.rand(2, 64, 64, 3)}
    look = learn(models["Z-Image"], words="", shows="", vision=native, images=pictures)[0]
    assert asked == [(1, instructions["shows"]), (1, instructions["shows"]), (2, instructions["look"])]
    assert look.origin.shows == ("words 1", "words 2") and look.origin.look == "words 3"
    learn(models["Z-Image"], words="", shows="", vision=native, images=pictures, seed=1)
    assert len(asked) == 3


def test_previews_are_painted_and_change_nothing_of_what_is_learned(learn, chosen, part, looks_folder, monkeypatch):
    plain = learn(chosen, steps=4, name="dusk")[0]
    (looks_folder / "dusk.safetensors").unlink()
    seen = []

    class Bar:
        def __init__(self, total):
            assert total == 4

        def update_absolute(self, value, total, preview=None):
            seen.append((value, preview))

    monkeypatch.setattr(part("nodes.host.memory").comfy.utils, "ProgressBar", Bar)
    output = learn(chosen, steps=4, preview=True, name="dusk")
    shown = [preview[1] for _, preview in seen if preview is not None]
    assert [value for value, _ in seen] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len(shown) == 4 and {one.size for one in shown} == {(80, 48)}
    assert torch.equal(output[0].tokens, plain.tokens) and torch.equal(output[0].tail, plain.tail)
    assert len(output.ui["images"]) == 1


# --- stopped, and out of memory ---------------------------------------------------------------------------------------


def test_stop_ends_it_within_a_step_and_the_next_run_goes_on(learn, models, looks_folder, told, part, monkeypatch):
    import comfy.model_management as management

    zimage = models["Z-Image"]
    whole = learn(zimage, name="whole", replace=True)[0]
    (looks_folder / "whole.safetensors").unlink()
    monkeypatch.setattr(part("vl_core.looks.resumed"), "SAVED_EVERY", 1)
    learning, steps = part("nodes.learn").Learning, []
    real = learning._on_step

    def stop(self, state):
        real(self, state)
        steps.append(state.step)
        if state.step == 2:
            management.interrupt_current_processing(True)

    monkeypatch.setattr(learning, "_on_step", stop)
    with pytest.raises(management.InterruptProcessingException):
        learn(zimage, name="whole")
    assert steps == [1, 2] and not management.in_training
    assert [path.suffix for path in looks_folder.iterdir()] == [".part"]
    monkeypatch.setattr(learning, "_on_step", real)
    again = learn(zimage, name="whole")
    assert "went on after 2 steps" in told(again)
    assert torch.equal(again[0].tokens, whole.tokens) and torch.equal(again[0].tail, whole.tail)
    assert [path.name for path in looks_folder.iterdir()] == ["whole.safetensors"]


def test_out_of_memory_makes_the_picture_smaller_and_says_so(learn, models, told, part, monkeypatch):
    painter = part("nodes.host.painter").ComfyPainter
    real, tried = painter.velocity, []

    def full(self, noisy, levels, captions):
        tried.append((len(noisy), noisy.shape[-1]))
        if noisy.shape[-1] > 40:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(self, noisy, levels, captions)

    monkeypatch.setattr(painter, "velocity", full)
    output = learn(models["Z-Image"], images={"image0": torch.rand(1, 384, 384, 3)}, size=384, steps=1)
    assert tried[0][0] > 1 and tried[1] == (1, 48) and tried[-1] == (1, 36)
    assert output[0].origin.sizes == ((288, 288),)
    assert "Memory ran out at 384 × 384 pixels; learned at 288 × 288" in told(output)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_runs(part, monkeypatch):
    """Refusals come before any model runs."""
    painter, learn = part("nodes.host.painter"), part("nodes.learn")
    monkeypatch.setattr(learn.encoders, "write_words", lambda *_, **__: pytest.fail("Qwen3-VL was asked"))
    monkeypatch.setattr(painter, "encode_text", lambda *_: pytest.fail("the text encoder ran"))
    monkeypatch.setattr(painter.ComfyPainter, "latents", lambda *_: pytest.fail("the VAE ran"))


@pytest.mark.parametrize(
    ("inputs", "fault"),
    [
        ({"images": {}}, "images: expected 1 to 16 pictures of one look, got 0"),
        ({"images": {"image0": torch.zeros(17, 32, 32, 3)}}, "images: expected 1 to 16 pictures of one look, got 17"),
        ({"images": {"image0": torch.full((1, 32, 32, 3), float("nan"))}}, "image 1: .*NaN"),
        ({"shows": "a boat\na ship"}, "shows: expected 1 lines, one per picture, got 2"),
        ({"words": ""}, "vision: expected Qwen3-VL to write what words does not say, got none"),
        ({"shows": ""}, "vision: expected Qwen3-VL to write what shows does not say, got none"),
        ({"quality": "perfect"}, "quality: expected one of quick, good, best, got 'perfect'"),
        ({"size": 16}, "size: expected 32 to 2048, got 16"),
        ({"name": "../up"}, "name: expected a plain file name"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_runs(learn, models, nothing_runs, inputs, fault):
    with pytest.raises(ValueError, match=fault):
        learn(models["Z-Image"], **inputs)


def test_models_that_do_not_belong_together_are_refused_before_anything_runs(learn, models, tiny, nothing_runs):
    zimage, klein = models["Z-Image"], models["FLUX.2 klein"]

    def refused(fault: str, **changed) -> None:
        with pytest.raises(ValueError, match=fault):
            learn(SimpleNamespace(**{**vars(zimage), **changed}))

    refused("clip: expected the text encoder of the model, which is Z-Image, got FLUX.2 klein", clip=klein.clip)
    refused("clip: expected the text encoder of the model, which is FLUX.2 klein, got Z-Image", model=klein.model)
    refused("vae: expected the VAE of Lumina2 with 16 latent channels, got 4 channels", vae=tiny.Vae(4))
    video = tiny.Vae()
    video.latent_dim = 3
    refused("vae: expected the VAE of Lumina2 .*got 16 channels of video", vae=video)
    refused("vae: expected the VAE of Lumina2 .*got none", vae=object())
    refused("model: expected Z-Image or FLUX.2 klein, got object", model=object())
    other = SimpleNamespace(model=SimpleNamespace(model_config=object()))
    refused("model: expected Z-Image or FLUX.2 klein, got SimpleNamespace", model=other)
    refused("clip: expected Z-Image's text encoder", clip=object())


def test_a_text_encoder_of_another_size_is_refused_before_anything_runs(learn, models, tiny, nothing_runs):
    wide = SimpleNamespace(**vars(models["Z-Image"]))
    wide.clip = tiny.text_clip(hidden_size=96)
    with pytest.raises(ValueError, match="clip: expected states of width 64, which the model reads, got 96"):
        learn(wide)


def test_another_schedule_than_the_familys_is_refused(learn, models, nothing_runs):
    import comfy_extras.nodes_model_advanced as advanced

    zimage = models["Z-Image"]
    with torch.inference_mode():
        (model,) = advanced.ModelSamplingDiscrete().patch(zimage.model, "eps", False)
    with pytest.raises(ValueError, match="model: expected the noise schedule of Z-Image, a straight line"):
        learn(SimpleNamespace(**{**vars(zimage), "model": model}))


def test_latents_that_are_not_finite_or_of_another_shape_are_refused(learn, models):
    class Broken(type(models["Z-Image"].vae)):
        def encode(self, pixels):
            return super().encode(pixels) * float("nan")

    class Narrow(type(models["Z-Image"].vae)):
        def encode(self, pixels):
            return super().encode(pixels)[:, :4]

    for vae, fault in (
        (Broken(), "image 1: expected finite latents"), (Narrow(), "vae: expected latents of 16 channels"),
    ):
        with pytest.raises(ValueError, match=fault):
            learn(SimpleNamespace(**{**vars(models["Z-Image"]), "vae": vae}))


def test_a_look_of_another_model_is_refused_where_it_is_applied(learn, run, models, core_text):
    zimage, klein = models["Z-Image"], models["FLUX.2 klein"]
    look = learn(zimage)[0]
    with pytest.raises(ValueError, match=r"look: a look of Z-Image, .* width 64, got a text of width 192"):
        run("LookApply", text=core_text(PROMPT, klein.clip), look=look)
    with pytest.raises(ValueError, match=r"the learned look is for Z-Image, not for FLUX.2 klein"):
        run("Condition", klein.clip, None, PROMPT, 1.0, "learned look", look=look)


def test_a_file_that_is_damaged_or_newer_is_refused_and_never_taken_for_learned(
    learn, run, models, core_text, looks_folder
):
    zimage = models["Z-Image"]
    learn(zimage, name="dusk")
    text, path = core_text(PROMPT, zimage.clip), looks_folder / "dusk.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"dusk.safetensors"):
        run("LookApply", text=text, file="dusk.safetensors")
    path.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    with pytest.raises(ValueError, match=r"dusk.safetensors: written in format 9, this version reads up to 1"):
        run("LookApply", text=text, file="dusk.safetensors")
    again = learn(zimage, name="dusk")
    assert (looks_folder / "dusk_2.safetensors").is_file() and len(again[0].origin.losses) == 3


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({}, "text: expected either text, or clip with a prompt, got neither"),
        ({"text": 1, "clip": 1}, "text: expected either text, or clip with a prompt, got both"),
        ({"text": 1}, "look: expected one on look or in file, got none"),
    ],
)
def test_apply_look_says_what_is_missing(run, models, core_text, given, fault):
    clip = models["Z-Image"].clip
    inputs = {name: core_text(PROMPT, clip) if name == "text" else clip for name in given}
    with pytest.raises(ValueError, match=fault):
        run("LookApply", **inputs)
