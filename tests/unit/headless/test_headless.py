"""The command line, in this process, on tiny folders in the real file layouts."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vl_core.headless.cli import main
from vl_core.states.layout import USER_TURN, TokenRole
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.vl_states import LAYOUT_KEY, load_conditioning, save_conditioning

pytest.importorskip("diffusers", minversion="0.36", reason="Z-Image without ComfyUI runs on diffusers 0.36")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")
Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

PROMPT = "a cat in a red hat"
SMALL = ["--width", "64", "--height", "48", "--steps", "2", "--dtype", "float32", "--device", "cpu"]
CPU = ["--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices: threads only wait for each other
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Z-Image as diffusers saves it, Qwen3-VL as transformers does, a photograph; paths as strings."""
    from vl_core.zimage import tiny

    root = tmp_path_factory.mktemp("models")
    pipeline, encoder = tiny.build()
    pipeline.save_pretrained(root / "Z-Image-Tiny")
    encoder.model.save_pretrained(root / "Qwen3-VL-Tiny")
    encoder.tokenizer.save_pretrained(root / "Qwen3-VL-Tiny")
    gradient = np.stack([*np.meshgrid(np.arange(160), np.arange(96)), np.full((96, 160), 99)], -1)
    Image.fromarray(gradient.astype(np.uint8)).save(root / "cat.png")
    return {"zimage": str(root / "Z-Image-Tiny"), "vision": str(root / "Qwen3-VL-Tiny"), "cat": str(root / "cat.png")}


@pytest.fixture(scope="module")
def pipeline(folders):
    from diffusers import ZImagePipeline

    loaded = ZImagePipeline.from_pretrained(folders["zimage"], torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def reference(folders, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("reference")
    (folder / "prompts.txt").write_text("# comment\na cat\n\nthe light of a lamp, a red hat\n", encoding="utf-8")
    file = folder / "reference.safetensors"
    arguments = ["calibrate", "-m", folders["zimage"], "-o", str(file), "--prompts", str(folder / "prompts.txt"), *CPU]
    assert main(arguments) == 0
    return str(file)


@pytest.fixture(scope="module")
def embeddings(folders, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("embeddings") / "all.safetensors"
    arguments = ["-m", folders["vision"], "-i", folders["cat"], "-p", PROMPT, "--tokens", "all"]
    assert main(["extract", *arguments, "-o", str(file), *CPU]) == 0
    return str(file)


def generate(folders, output: Path, *options: str) -> list[str]:
    return ["generate", "-m", folders["zimage"], "-p", PROMPT, "-o", str(output), *SMALL, *options]


def seeing(folders, *options: str) -> list[str]:
    way = [] if {"--mode", "--way", "--recipe"} & set(options) else ["--way", "aligned blend"]
    return ["--vision", folders["vision"], "-i", folders["cat"], *way, *options]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def plainly(pipeline, seed: int = 0, **options) -> np.ndarray:
    """What diffusers paints from the prompt, called as its documentation says."""
    settings = {"prompt": PROMPT, "width": 64, "height": 48, "num_inference_steps": 2, "guidance_scale": 0.0, **options}
    return np.asarray(pipeline(**settings, generator=torch.Generator().manual_seed(seed)).images[0])


# The text side is diffusers' own


@pytest.mark.parametrize("prompt", [PROMPT, "", "two\n\nlines {braces}  ", "猫 in <b>red</b>"])
def test_our_template_has_the_ids_of_the_pipelines_chat_template(pipeline, prompt):
    from vl_core.zimage.pipeline import prompt_layout

    filled = pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert USER_TURN.format(prompt) == filled
    assert prompt_layout(pipeline.tokenizer, prompt).token_ids.tolist() == pipeline.tokenizer(filled).input_ids


@pytest.mark.parametrize("prompt", [PROMPT, "a lamp"])
def test_calibration_reads_the_states_the_pipeline_paints_from(folders, pipeline, prompt):
    from vl_core.zimage.text import open_text_encoder, text_reader

    folder = Path(folders["zimage"])
    parts = folder / "text_encoder", folder / "tokenizer", torch.device("cpu"), torch.float32
    read = text_reader(*open_text_encoder(*parts))
    with torch.no_grad():
        expected = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)[0][0]
    torch.testing.assert_close(read(prompt), expected, rtol=1e-4, atol=1e-5)


def test_calibration_in_batches_reads_the_same_states(folders):
    from vl_core.zimage.text import batch_reader, open_text_encoder, text_reader

    folder = Path(folders["zimage"])
    encoder, tokenizer = open_text_encoder(
        folder / "text_encoder", folder / "tokenizer", torch.device("cpu"), torch.float32
    )
    texts = ["a lamp", PROMPT, "", "a cat " * 40, "a lamp"]
    alone, forwards = text_reader(encoder, tokenizer), []
    hook = encoder.register_forward_pre_hook(lambda *_: forwards.append(1))
    together = batch_reader(encoder, tokenizer)(texts)
    hook.remove()
    assert len(forwards) < len(texts)
    for text, states in zip(texts, together, strict=True):
        torch.testing.assert_close(states, alone(text), rtol=1e-4, atol=1e-5)


def test_text_states_are_the_pipelines_bit_for_bit_also_beyond_its_default_length(pipeline):
    from vl_core.zimage.pipeline import encode_text

    for prompt, limit in ((PROMPT, 512), ("a cat " * 300, 1024)):
        states, layout = encode_text(pipeline, prompt)
        with torch.no_grad():
            expected = pipeline.encode_prompt(
                prompt, do_classifier_free_guidance=False, max_sequence_length=max(512, len(layout))
            )[0][0]
        assert torch.equal(states, expected)
        assert 512 * (limit > 512) < len(states) == len(layout)


def test_a_tokenizer_with_another_template_is_refused(pipeline, monkeypatch):
    from vl_core.zimage.pipeline import encode_text

    monkeypatch.setattr(pipeline.tokenizer, "chat_template", "{{ messages[0].content }}")
    with pytest.raises(ValueError, match="expected the chat template"):
        encode_text(pipeline, PROMPT)


def test_the_tiny_vl_without_a_picture_is_the_tiny_text_encoder(pipeline, folders):
    """One language model in both, as in the real family: template, ids and layer numbers agree on both sides."""
    from vl_core.encoder.qwen3vl import Qwen3VLEncoder
    from vl_core.zimage.pipeline import encode_text

    encoder = Qwen3VLEncoder.from_pretrained(folders["vision"], dtype=torch.float32)
    blind, layout = encoder.encode([], PROMPT, (-2,)).at(-2)
    states, text_layout = encode_text(pipeline, PROMPT)
    torch.testing.assert_close(blind, states, rtol=1e-4, atol=1e-5)
    assert torch.equal(layout.token_ids, text_layout.token_ids)
    assert torch.equal(layout.roles, text_layout.roles)


# Each command runs


def test_calibrate_measures_what_numpy_measures(reference, pipeline):
    with torch.no_grad():
        states = [
            pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)[0][0].double().numpy()
            for prompt in ("a cat", "the light of a lamp, a red hat")
        ]
    found = ReferenceStatistics.load(reference)
    assert (found.prompts, found.layer, found.encoder) == (2, -2, "Z-Image-Tiny")
    everything = np.concatenate(states)
    np.testing.assert_allclose(found.moments("include").mean.numpy(), everything.mean(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.moments("include").std.numpy(), everything.std(0, ddof=1), rtol=1e-3)


def test_calibrate_takes_a_bare_text_encoder_with_its_tokenizer(folders, reference, tmp_path):
    shutil.copytree(Path(folders["zimage"]) / "text_encoder", tmp_path / "qwen3")
    shutil.copytree(Path(folders["zimage"]) / "tokenizer", tmp_path / "qwen3", dirs_exist_ok=True)
    prompts = Path(reference).with_name("prompts.txt")
    output = tmp_path / "new folder" / "reference.safetensors"
    arguments = ["calibrate", "-m", str(tmp_path / "qwen3"), "-o", str(output), "--prompts", str(prompts), *CPU]
    assert main(arguments) == 0
    torch.testing.assert_close(
        ReferenceStatistics.load(output).ordinary.mean, ReferenceStatistics.load(reference).ordinary.mean
    )


def test_extract_writes_what_the_encoder_gives(folders, embeddings):
    from vl_core.encoder.qwen3vl import Qwen3VLEncoder

    encoder = Qwen3VLEncoder.from_pretrained(folders["vision"], dtype=torch.float32)
    picture = torch.from_numpy(np.array(Image.open(folders["cat"])))
    expected, _ = encoder.encode([picture], PROMPT, (-6,)).at(-6)
    ((states, options),) = load_conditioning(embeddings)
    assert torch.equal(states, expected[None])
    layout = options[LAYOUT_KEY]
    assert (layout.grids, layout.layer, layout.prompt, layout.model) == (((3, 5),), -6, PROMPT, "Qwen3-VL-Tiny")


def test_extract_cleans_and_reports(folders, reference, tmp_path, capsys):
    output = tmp_path / "clean.safetensors"
    arguments = ["extract", "-m", folders["vision"], "-i", folders["cat"], "-i", folders["cat"], "-p", PROMPT, *CPU]
    arguments += ["--tokens", "image", "--layer", "-3", "--outlier-masking", "zero", "--outlier-threshold", "1.5"]
    arguments += ["--normalization", "global", "--target-std", "7", "--sinks", "include", "--reference", reference]
    assert main([*arguments, "--image-tokens", "12", "--system-prompt", "Look.", "-o", str(output)]) == 0
    ((states, options),) = load_conditioning(output)
    assert states.std().item() == pytest.approx(7, rel=1e-4)
    layout = options[LAYOUT_KEY]
    sizes = [rows * columns for rows, columns in layout.grids]
    assert layout.counts() == {TokenRole.MARKER: 4, TokenRole.IMAGE: sum(sizes)}
    assert len(sizes) == 2
    assert max(sizes) <= 12
    report = capsys.readouterr().out
    for part in ("scaled down", "dimensions more than 1.5×", "global: std", "-> 7.00", "median RMS", str(output)):
        assert part in report


def test_generate_from_words_alone_is_diffusers_own_picture(folders, pipeline, tmp_path, capsys):
    assert main(generate(folders, tmp_path / "a.png", "--seed", "5")) == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), plainly(pipeline, seed=5))
    assert "Words only" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoded_pictures_are_diffusers_own_byte_for_byte(pipeline, dtype):
    from vl_core.zimage.painting import decode_each

    vae = copy.deepcopy(pipeline.vae).to(dtype)  # the pipeline is others' too
    given = SimpleNamespace(vae=vae, image_processor=pipeline.image_processor)
    latents = 3 * torch.randn(3, vae.config.latent_channels, 8, 12, generator=torch.Generator().manual_seed(0))
    found = decode_each(given, latents)
    raw = latents.to(dtype) / vae.config.scaling_factor + vae.config.shift_factor
    with torch.no_grad():
        decoded = [vae.decode(one, return_dict=False)[0] for one in raw.split(1)]
    theirs = [pipeline.image_processor.postprocess(one, output_type="pil")[0] for one in decoded]
    assert found.dtype == torch.uint8 and len(found) == 3
    for ours, image in zip(found, theirs, strict=True):
        assert (ours.numpy() == np.asarray(image)).all()


def test_guidance_and_negative_prompt_are_diffusers_own(folders, pipeline, tmp_path):
    assert main(generate(folders, tmp_path / "a.png", "--guidance", "3", "--negative", "a lamp")) == 0
    expected = plainly(pipeline, guidance_scale=3.0, negative_prompt="a lamp")
    assert np.array_equal(pixels(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("mode", ["blend aligned", "blend as published", "append picture", "image delta"])
def test_strength_zero_paints_the_plain_picture_bit_for_bit_and_more_does_not(folders, pipeline, tmp_path, mode):
    plain = plainly(pipeline)
    assert main(generate(folders, tmp_path / "0.png", *seeing(folders, "--mode", mode, "--strength", "0"))) == 0
    assert np.array_equal(pixels(tmp_path / "0.png"), plain)
    assert main(generate(folders, tmp_path / "1.png", *seeing(folders, "--mode", mode, "--strength", "0.6"))) == 0
    assert not np.array_equal(pixels(tmp_path / "1.png"), plain)


@pytest.mark.parametrize("method", ["aligned", "resample", "truncate", "append", "adain"])
def test_alpha_zero_paints_the_plain_picture_bit_for_bit_and_more_does_not(
    folders, pipeline, embeddings, tmp_path, method
):
    plain = plainly(pipeline)
    options = ["-e", embeddings, "--method", method, "--alpha"]
    assert main(generate(folders, tmp_path / "0.png", *options, "0")) == 0
    assert np.array_equal(pixels(tmp_path / "0.png"), plain)
    assert main(generate(folders, tmp_path / "1.png", *options, "0.6")) == 0
    assert not np.array_equal(pixels(tmp_path / "1.png"), plain)


def test_looking_directly_or_through_a_file_is_the_same(folders, embeddings, tmp_path):
    assert main(generate(folders, tmp_path / "file.png", "-e", embeddings, "--alpha", "0.6")) == 0
    assert main(generate(folders, tmp_path / "direct.png", *seeing(folders, "--strength", "0.6"))) == 0
    assert np.array_equal(pixels(tmp_path / "file.png"), pixels(tmp_path / "direct.png"))


def test_a_seed_means_one_picture(folders, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(generate(folders, tmp_path / f"{name}.png", *seeing(folders), "--seed", seed)) == 0
    a, b, c = (pixels(tmp_path / f"{name}.png") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("recipe", ["style hint", "colour palette", "variation of the picture", "push away"])
def test_a_recipe_steers_says_its_numbers_and_is_noted_in_the_picture(recipe, folders, pipeline, tmp_path, capsys):
    output = tmp_path / "steered.png"
    assert main(generate(folders, output, *seeing(folders, "--recipe", recipe, "--strength", "0.7"))) == 0
    assert not np.array_equal(pixels(output), plainly(pipeline))
    shown = capsys.readouterr().out
    assert f"Recipe {recipe}: " in shown and "It showed nothing where it was measured: choose " in shown
    with Image.open(output) as picture:
        assert json.loads(picture.text["zimage-vl"])["recipe"] == recipe


def test_pushing_away_is_image_delta_below_zero(folders, tmp_path):
    recipe, mode = (tmp_path / f"{name}.png" for name in ("recipe", "mode"))
    assert main(generate(folders, recipe, *seeing(folders, "--recipe", "push away", "--strength", "0.7"))) == 0
    assert main(generate(folders, mode, *seeing(folders, "--mode", "image delta", "--strength=-0.7"))) == 0
    assert np.array_equal(pixels(recipe), pixels(mode))


def test_a_recipe_can_be_a_file(folders, tmp_path, capsys):
    mine = {"name": "mine", "meaning": "Mine.", "mode": "blend aligned", "scale": 0.5}
    (tmp_path / "mine.json").write_text(json.dumps(mine), encoding="utf-8")
    file, mode = tmp_path / "file.png", tmp_path / "mode.png"
    options = seeing(folders, "--recipe", str(tmp_path / "mine.json"), "--strength", "1")
    assert main(generate(folders, file, *options)) == 0
    assert main(generate(folders, mode, *seeing(folders, "--strength", "0.5"))) == 0
    assert np.array_equal(pixels(file), pixels(mode))


@pytest.mark.parametrize("content, message", [
    ({"scale": 2}, "strength: expected 0 (words only) to 1 with aligned blend, got 2"),
    ({"layer": "deep"}, "layer: expected a whole number"),
    ({"settings": {"rank": 2}}, "does not use rank"),
])
@pytest.mark.usefixtures("no_models")
def test_a_recipe_that_does_not_hold_together_is_refused(content, message, folders, tmp_path, capsys):
    recipe = {"name": "mine", "meaning": "Mine.", "mode": "blend aligned", **content}
    (tmp_path / "mine.json").write_text(json.dumps(recipe), encoding="utf-8")
    options = seeing(folders, "--recipe", str(tmp_path / "mine.json"))
    assert main(generate(folders, tmp_path / "out.png", *options)) == 1
    assert message in capsys.readouterr().err


def test_a_recipe_acts_in_its_part_of_the_steps(folders, pipeline, tmp_path):
    painted = {}
    for end in (0.01, 0.5, 1.0):  # of two steps: none, the first, both
        recipe = {"name": "mine", "meaning": "Mine.", "mode": "append picture", "end_percent": end}
        (tmp_path / "mine.json").write_text(json.dumps(recipe), encoding="utf-8")
        options = seeing(folders, "--recipe", str(tmp_path / "mine.json"), "--strength", "1")
        assert main(generate(folders, tmp_path / "a.png", *options)) == 0
        painted[end] = pixels(tmp_path / "a.png")
    assert np.array_equal(painted[0.01], plainly(pipeline))
    assert not np.array_equal(painted[0.5], painted[1.0])
    assert not np.array_equal(painted[0.5], painted[0.01])


def test_a_recipe_that_compares_with_the_text_encoder_measures_it(folders, tmp_path, capsys):
    recipe = {"name": "mine", "meaning": "Mine.", "mode": "blend aligned", "settings": {"normalization": "rms"}}
    (tmp_path / "mine.json").write_text(json.dumps(recipe), encoding="utf-8")
    options = seeing(folders, "--recipe", str(tmp_path / "mine.json"), "--strength", "1")
    assert main(generate(folders, tmp_path / "a.png", *options)) == 0
    assert "reference statistics measured now" in capsys.readouterr().out


def test_half_precision_runs(folders, tmp_path):
    options = ["--dtype", "bfloat16", "--width", "64", "--height", "48", "--steps", "1", "--device", "cpu"]
    output = tmp_path / "a.png"
    assert main(["generate", "-m", folders["zimage"], "-p", PROMPT, "-o", str(output), *options, *seeing(folders)]) == 0
    assert pixels(output).shape == (48, 64, 3)


def test_the_picture_carries_its_settings_and_no_paths(folders, tmp_path):
    output = tmp_path / "a.png"
    assert main(generate(folders, output, *seeing(folders, "--strength", "0.25"), "--seed", "7")) == 0
    with Image.open(output) as image:
        settings = json.loads(image.text["zimage-vl"])
    expected = {
        "model": "Z-Image-Tiny", "prompt": PROMPT, "negative": "", "seed": 7, "steps": 2, "guidance": 0.0, "width": 64,
        "height": 48, "dtype": "float32", "vision": "Qwen3-VL-Tiny", "images": ["cat.png"], "way": "aligned blend",
        "strength": 0.25, "layer": -6, "image_tokens": 1024,
    }
    assert settings.items() >= expected.items()
    assert not [value for value in settings.values() if isinstance(value, str) and str(tmp_path.parent) in value]


def test_the_saved_conditioning_is_what_was_painted_from(folders, pipeline, tmp_path):
    options = seeing(folders, "--mode", "append picture", "--strength", "1")
    assert main(generate(folders, tmp_path / "a.png", *options, "--save-conditioning")) == 0
    ((states, saved),) = load_conditioning(tmp_path / "a.safetensors")
    assert saved[LAYOUT_KEY].counts()[TokenRole.IMAGE] == 15
    repainted = plainly(pipeline, prompt=None, prompt_embeds=[states[0]])
    assert np.array_equal(pixels(tmp_path / "a.png"), repainted)


def test_a_sideways_photograph_is_turned_upright(tmp_path):
    from vl_core.zimage.files import load_picture

    image = Image.new("RGB", (64, 32))
    orientation = image.getexif()
    orientation[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "side.jpg", exif=orientation)
    assert load_picture(str(tmp_path / "side.jpg"), "--image", 1024).shape == (64, 32, 3)


def test_demo_leaves_its_three_files_and_tells_the_truth(tmp_path):
    """As README says it, in a Python that has imported nothing yet."""
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "vl_core", "demo", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["conditioning.safetensors", "demo.png", "statistics.png"]
    for part in ("not how well they do on the real models", *map(str, folder.iterdir())):
        assert part in done.stdout
    ((states, options),) = load_conditioning(folder / "conditioning.safetensors")
    assert states.shape[1] == len(options[LAYOUT_KEY])
    for name in ("demo.png", "statistics.png"):
        picture = pixels(folder / name)
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert picture.shape[1] > 900
        assert (border == 255).all(), "something is cut off at the edge"
        with Image.open(folder / name) as image:
            assert "miniature" in json.loads(image.text["zimage-vl"])["note"]


# What goes wrong says so in one line, writes nothing, and loads no model


@pytest.fixture
def no_models(monkeypatch):
    """Loading any model fails the test."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a model was loaded before everything was checked")

    monkeypatch.setattr("vl_core.headless.extract.load_encoder", refuse)
    monkeypatch.setattr("vl_core.headless.generate.load_encoder", refuse)
    monkeypatch.setattr("vl_core.headless.generate.load_pipeline", refuse)
    monkeypatch.setattr("vl_core.headless.calibrate.open_text_encoder", refuse)


EXTRACT = ["extract", "-m", "{vision}", "-i", "{cat}", "-p", PROMPT, "-o", "{out}.safetensors", *CPU]
GENERATE = ["generate", "-m", "{zimage}", "-p", PROMPT, "-o", "{out}.png", *SMALL]
LOOK = ["--vision", "{vision}", "-i", "{cat}"]
CALIBRATE = ["calibrate", "-m", "{zimage}", "-o", "{out}.safetensors", *CPU]
WRONG = {
    "missing picture": ([*EXTRACT, "-i", "{tmp}/none.png"], "--image: no file at"),
    "not a picture": ([*EXTRACT, "-i", "{text}"], "--image: expected a picture"),
    "folder as picture": ([*EXTRACT, "-i", "{tmp}"], "--image: expected a file that can be read"),
    "a strip": ([*EXTRACT, "-i", "{strip}"], "expected sides at most 200:1"),
    "no such vision folder": ([*EXTRACT, "-m", "{tmp}/none"], "--model: no config.json"),
    "Z-Image instead of Qwen3-VL": (
        [*EXTRACT, "-m", "{zimage}/text_encoder"], "expected a Qwen3-VL, got model_type 'qwen3'"
    ),
    "layer too deep": ([*EXTRACT, "--layer", "-9"], "layer: expected -7 to -1"),
    "picture tokens without a picture": (
        ["extract", "-m", "{vision}", "-p", PROMPT, "-o", "{out}.safetensors", "--tokens", "image"],
        "tokens: 'image' needs at least one picture",
    ),
    "nothing to encode": (["extract", "-m", "{vision}", "-o", "{out}.safetensors"], "nothing to encode"),
    "no reference": ([*EXTRACT, "--normalization", "per_dim"], "reference: normalization 'per_dim'"),
    "missing reference": ([*EXTRACT, "--reference", "{tmp}/none.safetensors"], "--reference: no file at"),
    "other file as reference": ([*EXTRACT, "--reference", "{embeddings}"], "expected saved reference, got saved cond"),
    "no image tokens": ([*EXTRACT, "--image-tokens", "0"], "--image-tokens: expected 1 or more"),
    "threshold": ([*EXTRACT, "--outlier-threshold", "0"], "outlier threshold: expected a ratio"),
    "output below a file": ([*EXTRACT, "-o", "{text}/a.safetensors"], "is a file, so nothing can be written"),
    "output is a folder": ([*GENERATE, "-o", "{tmp}/folder.png"], "--output: expected a file that can be written"),
    "another ending": ([*EXTRACT, "-o", "{out}.pt"], "--output: expected a name ending in .safetensors"),
    "no such device": ([*EXTRACT, "--device", "cuda:99"], "--device: this machine has no cuda:99"),
    "device nonsense": ([*EXTRACT, "--device", "gpu"], "--device: expected auto, cpu, cuda"),
    "alpha 2": ([*GENERATE, "-e", "{embeddings}", "--alpha", "2"], "--alpha: expected 0 to 1, got 2.0"),
    "strength nan": ([*GENERATE, *LOOK, "--strength", "nan"], "strength: expected a number"),
    "missing embeddings": ([*GENERATE, "-e", "{tmp}/none.safetensors"], "--embeddings: no file at"),
    "text as embeddings": ([*GENERATE, "-e", "{text}"], "expected a safetensors file"),
    "other width": ([*GENERATE, "-e", "{narrow}"], "--embeddings: expected width 64 for this Z-Image, got 32"),
    "two sequences": ([*GENERATE, "-e", "{two}"], "--embeddings: expected one sequence, got 2"),
    "another prompt": ([*GENERATE, "-p", "a dog", "-e", "{embeddings}"], "expected the same words outside the"),
    "too long a caption": ([*GENERATE, "-e", "{long}", "--method", "append"], "Z-Image takes up to 1504"),
    "too long a prompt": ([*GENERATE, "-p", "a cat " * 900], "Z-Image takes up to 1504"),
    "both ways": ([*GENERATE, "-e", "{embeddings}", *LOOK], "give one or the other"),
    "picture without vision": ([*GENERATE, "-i", "{cat}"], "--vision, a Qwen3-VL folder is missing"),
    "vision without picture": ([*GENERATE, "--vision", "{vision}"], "--image, a picture is missing"),
    "Qwen3-VL instead of Z-Image": ([*GENERATE, "-m", "{vision}"], "--model: no model_index.json"),
    "a single file": ([*GENERATE, "-m", "{text}"], "--model: expected a folder as Hugging Face has it, got the file"),
    "a single file as vision": ([*GENERATE, *LOOK, "--vision", "{text}"], "--vision: expected a folder as"),
    "wrong vision folder": ([*GENERATE, *LOOK, "--vision", "{zimage}"], "--vision: no config.json"),
    "odd side": ([*GENERATE, "--width", "65"], "--width: expected a multiple of 16 up to 8192, got 65"),
    "no side": ([*GENERATE, "--height", "0"], "--height: expected a multiple of 16"),
    "no steps": ([*GENERATE, "--steps", "0"], "--steps: expected 1 or more"),
    "seed": ([*GENERATE, "--seed", "-1"], "--seed: expected 0 to"),
    "guidance": ([*GENERATE, "--guidance", "-1"], "--guidance: expected 0 to"),
    "reserved token": ([*GENERATE, "-p", "a <|image_pad|>"], "prompt: contains <|image_pad|>"),
    "missing prompts": ([*CALIBRATE, "--prompts", "{tmp}/none.txt"], "--prompts: no file at"),
    "no prompts": ([*CALIBRATE, "--prompts", "{empty}"], "--prompts: expected at least one text"),
    "prompts not text": ([*CALIBRATE, "--prompts", "{cat}"], "--prompts: expected a text file in UTF-8"),
    "calibrate on Qwen3-VL": ([*CALIBRATE, "-m", "{vision}"], "a Qwen3, got model_type 'qwen3_vl'"),
    "calibrate on nothing": ([*CALIBRATE, "-m", "{tmp}/none"], "--model: no folder at"),
    "demo below a file": (["demo", "-o", "{text}/demo"], "is a file, so nothing can be written"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_in_one_line_before_anything_happens(case, folders, embeddings, tmp_path, capsys, no_models):
    (tmp_path / "text.safetensors").write_text("not what it says", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("# nothing\n\n", encoding="utf-8")
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (4000, 10)).save(tmp_path / "strip.png")
    save_conditioning(tmp_path / "narrow.safetensors", [(torch.zeros(1, 9, 32), {})])
    save_conditioning(tmp_path / "two.safetensors", [(torch.zeros(1, 9, 64), {})] * 2)
    save_conditioning(tmp_path / "long.safetensors", [(torch.ones(1, 1500, 64), {})])
    names = {
        **folders, "tmp": tmp_path, "out": tmp_path / "out" / "result", "embeddings": embeddings,
        "text": tmp_path / "text.safetensors", "empty": tmp_path / "empty.txt", "strip": tmp_path / "strip.png",
        **{name: tmp_path / f"{name}.safetensors" for name in ("narrow", "two", "long")},
    }
    before = sorted(tmp_path.rglob("*"))
    arguments, message = WRONG[case]
    assert main([argument.format(**names) for argument in arguments]) == 1
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_write_leaves_the_old_picture_and_no_rest(folders, tmp_path, monkeypatch, capsys):
    output = tmp_path / "a.png"
    output.write_bytes(b"old")

    def full(self, path, **_options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(generate(folders, output)) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]


def test_debug_shows_the_traceback(folders, tmp_path, capsys):
    arguments = generate(folders, tmp_path / "a.png", "--steps", "0")
    assert main(arguments) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main([*arguments, "--debug"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-1].startswith("error: --steps")


def test_ctrl_c_ends_with_130(folders, tmp_path, monkeypatch, capsys):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("vl_core.headless.generate.load_pipeline", interrupt)
    assert main(generate(folders, tmp_path / "a.png")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert not list(tmp_path.iterdir())


def test_strength_zero_does_not_load_qwen3_vl(folders, tmp_path, monkeypatch):
    def refuse(*_args):
        raise AssertionError("Qwen3-VL was loaded for nothing")

    monkeypatch.setattr("vl_core.headless.generate.load_encoder", refuse)
    assert main(generate(folders, tmp_path / "a.png", *seeing(folders, "--strength", "0"))) == 0


def test_what_goes_wrong_inside_names_its_kind(folders, tmp_path, monkeypatch, capsys):
    def out_of_memory(*_args):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr("vl_core.headless.generate.load_pipeline", out_of_memory)
    assert main(generate(folders, tmp_path / "a.png")) == 1
    assert "error: RuntimeError: CUDA out of memory. Tried to allocate 20 GiB (--debug" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["diffusers", "transformers", "PIL", "tqdm"])
def test_a_missing_package_says_what_to_install(folders, tmp_path, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(generate(folders, tmp_path / "a.png")) == 1
    told = capsys.readouterr().err
    assert f"this command needs {package}." in told
    assert 'pip install -e ".[headless]"' in told


@pytest.mark.parametrize("arguments", [[], ["paint"], ["extract"], ["generate", "--mode", "none"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "extract", "generate", "calibrate"])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert "(default: None)" not in shown
    assert "(default: False)" not in shown
    assert "(default: 0)" in shown or command != "generate"
    assert "--debug" in shown


def test_the_module_runs_and_asks_for_help_without_heavy_imports():
    code = (
        "import sys, runpy; sys.argv = ['vl_core', '--help']\n"
        "try: runpy.run_module('vl_core', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code\n"
        "heavy = {'transformers', 'diffusers', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "extract", "generate", "calibrate"):
        assert command in done.stdout
