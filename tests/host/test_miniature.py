"""The trained miniature in ComfyUI's own classes: words and pictures steer what is painted, and a judge reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

PACK = Path(__file__).resolve().parents[2]
STEPS, SHIFT, SEED = 8, 3.0, 5


@pytest.fixture(scope="module")
def mini(base_folder, part):
    """The module ``mini.py`` beside this file."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("zimage_vl_mini_host", Path(__file__).with_name("mini.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world(mini):
    """The miniature's world, and its judge."""
    sys.path.append(str(PACK))  # at the end: the pack's `nodes` is not ComfyUI's
    try:
        from miniature import world
        from miniature.train import judge
    finally:
        sys.path.pop()
    reader = judge.load(mini.MODELS / "judge.safetensors", torch.device("cpu"))
    return SimpleNamespace(module=world, read=lambda pictures: judge.read(reader, pictures))


@pytest.fixture(scope="module")
def clips(mini):
    with torch.inference_mode():
        return SimpleNamespace(text=mini.text_clip(), vision=mini.vision_clip())


@pytest.fixture(scope="module")
def paint(mini, core):
    """A picture ``(1, 3, 128, 128)`` in [-1, 1] from a CONDITIONING, as the workflows' nodes paint it."""
    import comfy_extras.nodes_model_advanced as advanced

    with torch.inference_mode():
        (model,) = advanced.ModelSamplingAuraFlow().patch_aura(mini.zimage_model(), SHIFT)
        decoder = mini.vae()

    def run(positive: list, seed: int = SEED) -> torch.Tensor:
        with torch.inference_mode():
            latent = {"samples": torch.zeros(1, 16, 16, 16)}
            (done,) = core.common_ksampler(
                model, seed, STEPS, 1.0, "res_multistep", "simple", positive, positive, latent
            )
            return decoder.decode(done["samples"]).movedim(-1, 1) * 2 - 1

    return run


@pytest.fixture(scope="module")
def pairs(world):
    """Three references whose look is none of the others', as IMAGE, with a prompt that says nothing of looks."""
    looks = [(6, 2, 0), (2, 3, 0), (4, 6, 4)]  # background, style, mood
    scenes = world.module.sample_scenes(len(looks), torch.Generator().manual_seed(1), two_shapes=0.0)
    for name, column in zip(world.module.LOOK, torch.tensor(looks).T, strict=True):
        scenes = world.module.replace(scenes, **{name: column.contiguous()})
    rendered, _ = world.module.render(scenes, torch.Generator().manual_seed(2))
    images = ((rendered + 1) / 2).permute(0, 2, 3, 1)
    prompts = ("a red star", "a green circle", "a white heart")
    return [(looks[i], images[i : i + 1], prompts[i]) for i in range(len(looks))]


@pytest.fixture(scope="module")
def conflicts(world):
    """Twelve times a prompt, its object's words, and a picture that disagrees with it: its look and an IMAGE."""
    drawn = world.module.conflict_pairs(12, 7)
    rendered, _ = world.module.render(drawn.references, torch.Generator().manual_seed(7))
    images = ((rendered + 1) / 2).permute(0, 2, 3, 1).split(1)
    things = [f"{world.module.COLORS[color]} {world.module.SHAPES[shape]}" for color, shape in zip(
        drawn.color.tolist(), drawn.shape.tolist(), strict=True
    )]
    looks = [(scene.background, scene.style, scene.mood) for scene in drawn.references.records()]
    return list(zip(drawn.prompts, things, looks, images, strict=True))


def of_the_look(world, picture: torch.Tensor, look: tuple[int, ...]) -> int:
    """How many of background, style and mood the judge finds."""
    logits = world.read(picture)
    return sum(int(logits[name].argmax()) == value for name, value in zip(world.module.LOOK, look, strict=True))


def test_the_text_encoder_gives_what_transformers_gives(mini, clips, core):
    from transformers import AutoModel, AutoTokenizer

    folder = mini.PIPELINE / "text_encoder"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(mini.PIPELINE / "tokenizer")
    prompt = "a red star on a blue background, in striped style"
    ids = tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = model(ids, output_hidden_states=True).hidden_states[-2]
        ((found, _),) = core.CLIPTextEncode().encode(clips.text, prompt)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)


def test_qwen3_vl_is_the_same_through_load_clip_and_as_a_folder(mini, clips, run, base_folder, pairs):
    folder = mini.write_vision_folder(base_folder / "models" / "text_encoders" / "Qwen3-VL-Mini")
    loaded = run("Loader", folder.name, "fp32")[0]
    _, image, prompt = pairs[0]
    for layer in (-2, -6):
        ours, theirs = (
            run("Encode", encoder, prompt=prompt, layer=layer, images={"image0": image})[0][0][0]
            for encoder in (clips.vision, loaded)
        )
        assert ours.shape == theirs.shape
        error = (ours - theirs).norm() / theirs.norm()
        assert error < 2e-3


def test_words_paint_what_they_say_and_not_what_others_say(world, clips, paint, core):
    scenes = world.module.sample_scenes(3, torch.Generator().manual_seed(3), two_shapes=0.0)
    captions = [world.module.canonical_caption(scene) for scene in scenes.records()]
    right = wrong = 0
    for index, caption in enumerate(captions):
        picture = paint(core.CLIPTextEncode().encode(clips.text, caption)[0])
        for at in (index, (index + 1) % len(captions)):
            look = tuple(int(getattr(scenes, name)[at]) for name in world.module.LOOK)
            found = of_the_look(world, picture, look)
            right, wrong = (right + found, wrong) if at == index else (right, wrong + found)
    assert right >= 8 and wrong <= 4  # of 9


@pytest.mark.parametrize("mode", ["describe", "picture adapter"])
def test_the_simple_node_brings_a_pictures_look_and_leaves_the_prompts_object(
    mode, mini, world, clips, paint, run, part, pairs
):
    adapter = part("vl_core.adapters.picture_adapter").PictureAdapter.load(mini.MODELS / "adapter.safetensors")
    own = other = kept = 0
    for index, (look, image, prompt) in enumerate(pairs):
        inputs = {"prompt": prompt, "mode": mode, "images": {"image0": image}, "adapter": adapter}
        picture = paint(run("Condition", clips.text, clips.vision, **inputs)[0])
        own += of_the_look(world, picture, look)
        other += of_the_look(world, picture, pairs[(index + 1) % len(pairs)][0])
        color, shape = prompt.split()[1:]
        logits = world.read(picture)
        kept += bool(logits["shape"][0, world.module.SHAPES.index(shape)] > 0)
        kept += bool(logits["color"][0, world.module.COLORS.index(color)] > 0)
    assert own >= 8 and other <= 4  # of 9
    assert kept >= 5  # of 6


def test_the_miniature_answers_a_take_by_the_question_that_it_was_trained_on(world, clips, run, pairs, told):
    ((background, style, mood), image, prompt), *_ = pairs
    module = world.module
    said = {
        "style": f"{module.STYLES[style]} style", "colours": f"{module.COLORS[background]} background",
        "light and mood": f"{module.MOODS[mood]} colors",
    }
    for take, words in said.items():
        output = run("Condition", clips.text, clips.vision, prompt=prompt, recipe=take, images={"image0": image})
        assert told(output).startswith(f"Qwen3-VL saw: {words}. ")


def test_strength_zero_is_the_picture_of_the_words_alone_bit_for_bit(clips, paint, core, run, pairs):
    _, image, prompt = pairs[0]
    conditioned = run("Condition", clips.text, clips.vision, prompt=prompt, strength=0.0, images={"image0": image})[0]
    assert torch.equal(paint(conditioned), paint(core.CLIPTextEncode().encode(clips.text, prompt)[0]))


def test_normalizing_words_per_dimension_takes_the_picture_away_and_one_factor_for_all_does_not(
    world, clips, paint, core_text, run, conflicts
):
    reference, found = run("Reference", clips.text)[0], {"global": 0, "per_dim": 0, "words alone": 0}
    for prompt, _, look, image in conflicts:
        text = core_text(prompt, clips.text)
        seen = run("Encode", clips.vision, prompt=prompt, layer=-6, images={"image0": image})[0]
        words = run("SelectTokens", seen, "text")[0]
        painted = {"words alone": text}
        for mode in ("global", "per_dim"):
            scaled = run("Normalize", words, mode, reference=reference)[0]
            painted[mode] = run("Blend", text, scaled, {"method": "aligned", "alpha": 0.7})[0]
        for name, conditioning in painted.items():
            found[name] += of_the_look(world, paint(conditioning), look)
    assert found["global"] >= found["words alone"] + 4  # of 36
    assert found["per_dim"] <= found["words alone"] + 1


APPEND, WHERE = "Research 1 - append picture tokens", "Advanced 2 - where and when it acts"


def shipped(workflow: str, node: str) -> list[dict]:
    """What a workflow sets on its nodes of one kind, in the order of their numbers."""
    path, found = PACK / "workflows" / f"{workflow}.json", []
    for each in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        if each["type"] == f"ZImageVL{node}":
            names = [slot["name"] for slot in each["inputs"] if "widget" in slot]
            settings = dict(zip(names, each["widgets_values"], strict=True))
            inner = {name.partition(".")[2]: settings.pop(name) for name in names if "." in name}
            if inner:  # belongs to a choice that brings inputs of its own
                choice = next(name.partition(".")[0] for name in names if "." in name)
                settings[choice] = {choice: settings[choice], **inner}
            found.append(settings)
    return found


def test_every_token_appended_brings_the_background_and_a_quarter_of_them_does_not(
    world, clips, paint, run, conflicts
):
    (reading,), mixtures = shipped(APPEND, "Encode"), shipped(APPEND, "Blend")
    found, kept = [0, 0], [0, 0]
    for number, (prompt, thing, look, image) in enumerate(conflicts):
        words = run("Condition", clips.text, clips.vision, prompt=prompt, strength=0.0)[0]
        seen = run("Encode", clips.vision, images={"image0": image}, **reading)[0]
        for which, settings in enumerate(mixtures):
            mixed = run("Blend", words, seen, **settings)[0]
            for noise in (number, 100 + number):
                logits = world.read(paint(mixed, noise))
                found[which] += int(logits["background"].argmax()) == look[0]
                kept[which] += bool(logits["color"][0, world.module.COLORS.index(thing.split()[0])] > 0)
    assert found[0] >= 14 and found[1] <= 7  # of 24
    assert min(kept) >= 19


def test_a_curve_that_rises_to_the_templates_tail_brings_the_style_and_a_falling_one_or_late_steps_bring_less(
    world, clips, paint, core_text, run, conflicts, part, monkeypatch
):
    tokenizer = clips.text.tokenizer.qwen3_4b.tokenizer  # a pack among real models looks words up in theirs
    monkeypatch.setattr(part("nodes.host.text_encoder"), "tokenize_words", lambda text: tokenizer(text)["input_ids"])
    (reading,), (always, late) = shipped(WHERE, "Encode"), shipped(WHERE, "Blend")
    falling = always["method"] | {"alpha": always["method"]["alpha_end"], "alpha_end": always["method"]["alpha"]}
    ways = {"as shipped": always, "late": late, "falling": always | {"method": falling}}
    found, kept = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    assert always["words"].startswith("-")
    for number, (prompt, thing, look, image) in enumerate(conflicts):
        text = core_text(prompt, clips.text)
        seen = run("Encode", clips.vision, images={"image0": image}, **(reading | {"prompt": prompt}))[0]
        for name, settings in ways.items():
            mixed = run("Blend", text, seen, **(settings | {"words": f"-{thing}"}))[0]
            logits = world.read(paint(mixed, number))
            found[name] += int(logits["style"].argmax()) == look[1]
            kept[name] += bool(logits["color"][0, world.module.COLORS.index(thing.split()[0])] > 0)
    assert found["as shipped"] >= 6 and found["falling"] <= 2  # of 12
    assert found["late"] <= found["as shipped"] - 3
    assert min(kept.values()) >= 9


def test_the_mean_of_two_layers_brings_more_of_the_style_than_the_first_alone(
    world, clips, paint, core_text, run, conflicts
):
    readings, scales, mixtures = (
        shipped("Research 2 - mean of layers", node) for node in ("Encode", "Normalize", "Blend")
    )
    reference, found, kept = run("Reference", clips.text)[0], [0, 0], [0, 0]
    assert [reading["mix_layers"] for reading in readings] == ["-4, -8", ""] and readings[1]["layer"] == -4
    for number, (prompt, thing, look, image) in enumerate(conflicts):
        text = core_text(prompt, clips.text)
        for which, (reading, scale, settings) in enumerate(zip(readings, scales, mixtures, strict=True)):
            seen = run("Encode", clips.vision, images={"image0": image}, **(reading | {"prompt": prompt}))[0]
            scaled = run("Normalize", seen, reference=reference, **scale)[0]
            logits = world.read(paint(run("Blend", text, scaled, **settings)[0], number))
            found[which] += int(logits["style"].argmax()) == look[1]
            kept[which] += bool(logits["color"][0, world.module.COLORS.index(thing.split()[0])] > 0)
    assert found[0] >= found[1] + 2 and found[0] >= 6  # of 12
    assert min(kept) >= 9


@pytest.fixture(scope="module")
def adapter_folder(world, base_folder) -> str:
    """Pictures with their look in words, and prompts as this world writes them, below ComfyUI's input folder."""
    from PIL import Image

    folder, module = base_folder / "input" / "looks", world.module
    folder.mkdir(parents=True)
    scenes = module.sample_scenes(150, torch.Generator().manual_seed(121), two_shapes=0.0)
    rendered, _ = module.render(scenes, torch.Generator().manual_seed(122))
    pixels = ((rendered + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for index, (scene, picture) in enumerate(zip(scenes.records(), pixels, strict=True)):
        Image.fromarray(picture).save(folder / f"{index:03}.png")
        (folder / f"{index:03}.txt").write_text(module.look_answer(scene), encoding="utf-8")
    prompts = [f"a {color} {shape}" for color in module.COLORS for shape in module.SHAPES]
    (base_folder / "input" / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    return folder.name


def test_an_adapter_fitted_here_brings_the_look_if_the_text_encoder_can_read_the_prompts(
    adapter_folder, world, clips, paint, run, part, pairs
):
    found = {}
    for prompts in ("prompts.txt", ""):  # the built-in ones are English sentences; the miniature knows forty words
        adapter = run("AdapterFit", clips.text, clips.vision, adapter_folder, name="fitted", prompts=prompts)[0]
        found[prompts] = sum(
            of_the_look(world, paint(run(
                "Condition", clips.text, clips.vision, prompt=prompt, mode="picture adapter", adapter=adapter,
                images={"image0": image},
            )[0]), look)
            for look, image, prompt in pairs
        )
    for path in part("nodes.host.folders").saved_adapters().values():
        path.unlink()  # other tests list what is there
    assert found["prompts.txt"] >= 8 and found[""] <= 4  # of 9


def test_a_learned_look_carries_the_background_of_its_picture_and_not_of_another(
    world, mini, clips, run, pairs, paint, tmp_path, monkeypatch
):
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    with torch.inference_mode():
        model, decoder = mini.zimage_model(), mini.vae()
    scenes = world.module.sample_scenes(len(pairs), torch.Generator().manual_seed(1), two_shapes=0.0).records()
    things = [
        f"a {world.module.COLORS[color]} {world.module.SHAPES[shape]}" for ((shape, color, _), *_), *_ in scenes
    ]
    looks = [
        # No word of the background: what comes of it was learned.
        run(
            "LookLearn", model, clips.text, decoder, images={"image0": image}, words="neutral colors", shows=thing,
            quality="quick", preview=False,
        )[0]
        for (_, image, _), thing in zip(pairs[:2], things[:2], strict=True)
    ]
    prompts = ("a red star", "a green circle", "a white heart")
    own = other = 0
    for number, look in enumerate(looks):
        for prompt in prompts:
            found = world.read(paint(run("LookApply", clip=clips.text, prompt=prompt, look=look)[0]))
            background = int(found["background"].argmax())
            own += background == pairs[number][0][0]
            other += background == pairs[1 - number][0][0]
    assert own >= 5 and other == 0  # of 6
