"""The whole miniature in toy size: every stage runs, the folders load with the stock classes, the bench reports."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers", reason="the DiT and the VAE are diffusers classes")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")

from miniature import world
from miniature.__main__ import main, parser
from miniature.measure import adapters, bench, check, methods, rows, sheet, two_pictures
from miniature.measure.chain import LAYERS, Chain, answers, as_image
from miniature.stages import switches
from miniature.train import assemble, judge, models, vl
from miniature.train.training import Options
from vl_core.adapters.space_adapter import SpaceAdapter
from vl_core.states.tensors import token_rms
from vl_core.zimage.pipeline import encode_text

ROOT = Path(__file__).resolve().parents[3]
TWO_PAIRS = replace(bench.TOY, pairs=2)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A toy run: text, vl, vae, judge, dit, assemble, answers, check."""
    folder = tmp_path_factory.mktemp("miniature")
    main(["all", "--toy", "--out", str(folder), "--device", "cpu"])
    return folder


@pytest.fixture(scope="module")
def chain(run) -> Chain:
    return Chain.load(run / "models", "cpu")


def test_every_stage_leaves_closing_figures(run):
    for stage in check.STAGES:
        closing = json.loads((run / f"{stage}.json").read_text(encoding="utf-8"))
        assert closing["steps"] >= 6
    report = json.loads((run / "models" / "figures.json").read_text(encoding="utf-8"))
    assert {goal["figure"] for goal in report["goals"]} == {name for name, _, _ in check.GOALS}
    assert set(report["training"]) == set(check.STAGES)


def test_the_pipeline_folder_loads_with_diffusers_and_paints(run):
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(run / "models" / assemble.PIPELINE)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline("a red star", height=128, width=128, num_inference_steps=2, guidance_scale=0.0).images
    assert pictures[0].size == (128, 128)


def test_the_vl_folder_loads_with_transformers_and_has_the_text_encoders_language_model(run):
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    folder = run / "models" / assemble.VISION
    model, report = Qwen3VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|image_pad|>") == model.config.image_token_id
    weights = load_file(folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}


def test_a_frozen_language_model_is_the_text_encoders_bit_for_bit(run, tmp_path):
    for name in ("text.safetensors", "tokenizer"):
        source, target = run / name, tmp_path / name
        target.symlink_to(source, target_is_directory=source.is_dir())
    vl.run(Options(tmp_path, steps=3, toy=True, device="cpu", joint=0.0))
    from safetensors.torch import load_file

    words, seer = load_file(run / "text.safetensors"), load_file(tmp_path / "vl.safetensors")
    for name, value in words.items():
        assert torch.equal(value, seer[name.replace("model.", "model.language_model.", 1)]), name


def test_words_are_read_as_the_stock_pipeline_reads_them(chain):
    expected, layout = encode_text(chain.pipeline, "a red star on a blue background")
    states, ours = chain.words("a red star on a blue background")
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.token_ids, layout.token_ids)


@pytest.mark.parametrize("options", [{}, {"mute": True}, {"system_prompt": "a red star"}])
def test_many_looks_are_the_encoders_one_by_one(chain, options):
    pairs = world.conflict_pairs(5, 0)
    images = as_image(world.render(pairs.references)[0])
    many = chain.look_many(images, pairs.prompts, **options)
    for seen, image, prompt in zip(many, images, pairs.prompts, strict=True):
        alone = chain.encoder.encode([image], prompt, LAYERS, **options)
        assert (seen.layers, seen.prompt, seen.system_prompt) == (alone.layers, alone.prompt, alone.system_prompt)
        assert torch.equal(seen.layout.roles, alone.layout.roles)
        torch.testing.assert_close(seen.states, alone.states, atol=1e-3, rtol=1e-4)


def test_many_words_are_the_text_encoders_one_by_one(chain):
    prompts = ("a red star", "", "a blue ring on a green background")
    for (states, layout), prompt in zip(chain.words_many(prompts), prompts, strict=True):
        alone, alone_layout = chain.words(prompt)
        torch.testing.assert_close(states, alone, atol=1e-4, rtol=1e-4)
        assert torch.equal(layout.token_ids, alone_layout.token_ids)
        assert layout.layer == alone_layout.layer


def test_words_rule_outside_of_the_steps_that_a_method_acts_on(chain):
    (states, _), (other, _) = chain.words_many(["a red star", "a blue ring"])
    plain, outside = chain.paint([states], [0], steps=4), chain.paint([other], [0], steps=4)
    for act, expected in (((0.0, 1.0), plain), ((0.5, 0.5), outside), ((0.0, 0.01), outside)):
        assert torch.equal(chain.paint([states], [0], steps=4, outside=[other], act=act), expected)
    half = chain.paint([states], [0], steps=4, outside=[other], act=(0.0, 0.5))
    assert not torch.equal(half, plain)
    assert not torch.equal(half, outside)


def test_the_vl_answers_in_words(chain):
    pictures, _ = world.render(world.sample_scenes(2, torch.Generator().manual_seed(0)))
    said = answers(chain, pictures, "describe the look.", longest=3)
    assert len(said) == 2
    assert all(isinstance(text, str) for text in said)


def test_an_assembled_folder_without_a_part_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=assemble.PIPELINE):
        Chain.load(tmp_path)


def test_weights_of_another_build_are_refused(run):
    with pytest.raises(ValueError, match="--toy"):
        models.load_weights(run / "judge.safetensors", models.Judge(models.REAL.judge_channels))


# ------------------------------------------------------------------------------------------------------------- judge


def test_judge_targets_name_the_objects_that_are_there():
    scenes = world.sample_scenes(50, torch.Generator().manual_seed(1))
    wanted = judge.targets(scenes)
    for row, scene in enumerate(scenes.records()):
        pairs = {shape * 10 + color for shape, color, _ in scene.objects}
        assert set(wanted["pair"][row].nonzero().flatten().tolist()) == pairs
        assert set(wanted["shape"][row].nonzero().flatten().tolist()) == {pair // 10 for pair in pairs}
        assert set(wanted["color"][row].nonzero().flatten().tolist()) == {pair % 10 for pair in pairs}


def perfect_readings(scenes: world.Scenes) -> dict[str, torch.Tensor]:
    one_hot = torch.nn.functional.one_hot
    readings = {name: 2 * values - 1 for name, values in judge.targets(scenes).items()}
    widths = dict(models.Judge.HEADS)
    readings |= {name: one_hot(getattr(scenes, name), widths[name]).float() for name in world.LOOK}
    return readings | {"count": one_hot(scenes.count - 1, 2).float()}


def test_agreement_is_one_for_a_perfect_reader_and_falls_with_each_miss():
    scenes = world.sample_scenes(40, torch.Generator().manual_seed(2))
    readings = perfect_readings(scenes)
    assert set(judge.agreement(readings, scenes).values()) == {1.0}
    readings["style"][0] = readings["style"][0].roll(1)
    assert judge.agreement(readings, scenes)["style"] == pytest.approx(39 / 40)


# ------------------------------------------------------------------------------------------------------------- bench


@pytest.fixture(scope="module")
def report(run) -> dict:
    bench.run(Options(run, toy=True, device="cpu"), TWO_PAIRS)
    return json.loads((run / "frontier.json").read_text(encoding="utf-8"))


def test_the_report_has_the_parts_it_promises(report, run):
    assert set(report) == {"measured", "asked", "methods", "baselines", "nulls", "best"}
    assert set(report["best"]) == {"published", "training_free", "adapter", "caption"}
    for row in report["methods"]:
        assert {"name", "layer", "setting", "adherence", "transfer", "stderr", "leak", "artifacts"} <= set(row)
    assert [row["name"] for row in report["baselines"]] == [rows.TEXT_ONLY, rows.CAPTION]
    assert (run / "frontier.png").stat().st_size > 10_000


def test_every_method_that_was_measured_has_both_null_controls(report):
    measured = {row["name"] for row in report["methods"]}
    assert {row["family"] for row in report["methods"]} == {row["family"] for row in report["nulls"]}
    for name in measured:
        assert {row["control"] for row in report["nulls"] if row["name"] == name} == set(bench.CONTROLS)


def test_the_shipped_frontier_has_every_method_with_both_null_controls():
    shipped = json.loads((ROOT / "miniature" / "frontier.json").read_text(encoding="utf-8"))
    assert [rows.key_of(row) for row in shipped["methods"]] == [method.key for method in bench.METHODS]
    assert {(row["name"], row["control"]) for row in shipped["nulls"]} == {
        (method.name, control) for method in bench.METHODS for control in bench.CONTROLS
    }


def test_the_frontier_stands_on_its_page_between_the_marks(report, run, tmp_path):
    page = tmp_path / "miniature.md"
    page.write_text("before\n<!-- frontier -->\nold\n<!-- end -->\nafter", encoding="utf-8")
    main(["tables", "--out", str(tmp_path), "--models", str(run / "models")])
    before, mark, head, _, *lines, end, after = page.read_text(encoding="utf-8").split("\n")
    assert (before, mark, end, after) == ("before", "<!-- frontier -->", "<!-- end -->", "after")
    assert head.split(" | ")[-2:] == ["another picture", "matched noise |"]
    shown = [line.split(" | ")[0].strip("| ") for line in lines]
    assert shown[0] == rows.TEXT_ONLY
    assert sorted(shown[1:]) == sorted({row["name"] for row in report["methods"]})


def test_a_bench_that_goes_on_on_another_machine_says_which_rows_are_from_there(tmp_path):
    here, there = {"machine": "here"}, {"machine": "there"}
    for machine, keys in ((there, "ab"), (here, "c"), (there, "d")):
        ledger = bench.Ledger(tmp_path / "rows.jsonl", {}, True, machine)
        for key in keys:
            ledger.measured(key, lambda: {"color": torch.ones(2)})
    assert ledger.mostly_with() == there
    assert [ledger.elsewhere(key) for key in "abcd"] == [{}, {}, {"measured": here}, {}]


def test_shards_side_by_side_write_files_of_their_own_which_the_whole_reads(tmp_path):
    def ledger(shard: str = "", resume: bool = True) -> bench.Ledger:
        options = Options(tmp_path, resume=resume)
        return bench.Ledger.of_stage(options, "judge-check", {"pairs": 2}, torch.device("cpu"), shard)

    parts = [ledger(shard, resume=False) for shard in ("0/2", "1/2")]  # both have begun before either writes
    third = {"thing": torch.tensor([1 / 3])}
    measured = [part.measured(key, lambda: third) for part, key in zip(parts, "ab", strict=True)]
    assert {part.path for part in parts}.isdisjoint({ledger().path}) and len({part.path for part in parts}) == 2
    assert [float(ledger().rows[key]["thing"]) for key in "ab"] == [float(one["thing"]) for one in measured]
    assert not ledger("0/2").rows.keys() & ledger("1/2").rows.keys()


def test_what_is_measured_anew_is_not_what_a_shard_measured_before(tmp_path):
    def measured(value: float, shard: str = "", resume: bool = False) -> float:
        options = Options(tmp_path, resume=resume)
        ledger = bench.Ledger.of_stage(options, "bench", {"pairs": 2}, torch.device("cpu"), shard)
        return float(ledger.measured("a", lambda: {"thing": torch.tensor([value])})["thing"])

    assert measured(1.0, "0/2") == 1.0
    assert measured(2.0) == 2.0  # by other code, such as is measured again for
    assert [measured(0.0, resume=True), measured(0.0, "0/2", resume=True)] == [2.0, 0.0]
    assert measured(0.0, resume=True) == 2.0


def test_a_row_after_a_torn_line_is_found_again(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"asked": "cut', encoding="utf-8")
    for value in (1.0, 2.0):
        ledger = bench.Ledger(tmp_path / "rows.jsonl", {}, True, {"machine": "here"})
        assert float(ledger.measured("a", lambda value=value: {"thing": torch.tensor([value])})["thing"]) == 1.0


def test_a_bench_that_was_stopped_measures_only_what_is_missing(run, report, monkeypatch):
    rows = (run / "bench_rows.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "bench_rows.jsonl").write_text("\n".join(rows[:-2]) + '\n{"asked": "cut', encoding="utf-8")
    calls, hits = [], bench.Painting.hits
    monkeypatch.setattr(bench.Painting, "hits", lambda *arguments: calls.append(0) or hits(*arguments))
    again = bench.run(Options(run, toy=True, device="cpu", resume=True), TWO_PAIRS)
    assert len(calls) == 2
    for before, after in zip(report["methods"] + report["nulls"], again["methods"] + again["nulls"], strict=True):
        assert before["adherence"] == pytest.approx(after["adherence"], abs=1e-5)


def found(**shares: float) -> dict[str, torch.Tensor]:
    nexts = (f"next_{name}" for name in world.LOOK)
    base = dict.fromkeys(("color", "shape", "leak", *world.LOOK, *nexts, *bench.ARTIFACTS), 0.0)
    return {name: torch.full((10,), value) for name, value in (base | shares).items()}


def test_transfer_is_0_for_words_alone_1_for_the_caption_and_linear_between():
    method = bench.METHODS[0]
    floor, ceiling = found(background=0.1, style=0.2, mood=0.2), found(background=1.0, style=0.9, mood=1.0)
    half = found(background=0.55, style=0.55, mood=0.6, color=0.9)
    rows = [bench.row_of(method, one, floor, ceiling) for one in (floor, ceiling, half)]
    assert [row["transfer"] for row in rows] == pytest.approx([0, 1, 0.5], abs=1e-6)
    assert rows[2]["adherence"] == pytest.approx(0.9)
    nothing = bench.row_of(method, half, floor, floor)
    assert nothing["transfer"] is None


def test_standard_errors_are_those_of_a_mean_over_pairs():
    color = torch.tensor([1.0, 0.0, 1.0, 1.0])
    some = {name: values[:4] for name, values in found().items()} | {"color": color}
    row = bench.row_of(bench.METHODS[0], some, some, some)
    assert row["adherence_stderr"] == pytest.approx(0.25)  # std 0.5 over sqrt 4


def test_the_best_keeps_to_the_prompt():
    rows = [
        {"family": "published", "adherence": 0.5, "transfer": 0.9},
        {"family": "published", "adherence": 0.86, "transfer": 0.1},
        {"family": "published", "adherence": 0.9, "transfer": 0.05},
        {"family": "adapter", "adherence": 0.2, "transfer": 0.9},
    ]
    best = bench.best(rows)
    assert best["published"]["transfer"] == 0.1
    assert best["adapter"] is None
    assert best["caption"] is None


def test_matched_noise_has_the_size_and_spread_but_not_the_direction(chain):
    states = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 64) + 1
    states[0] *= 100  # a sink
    noise = bench.matched_noise(states, torch.Generator().manual_seed(1))
    assert torch.equal(noise[0], states[0])
    torch.testing.assert_close(token_rms(noise), token_rms(states), rtol=1e-4, atol=0)
    torch.testing.assert_close(noise[1:].std(0), states[1:].std(0), rtol=0.2, atol=0.1)
    centred = [one[1:] - states[1:].mean(0) for one in (noise, states)]
    assert abs(float(torch.cosine_similarity(*centred).mean())) < 0.1


def test_artifacts_are_those_of_vl_core_on_every_picture():
    plain = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.1
    grid = plain.clone()
    grid[..., ::16] += 0.5
    figures = bench.artifacts(torch.cat([plain, grid]))
    assert {len(values) for values in figures.values()} == {4}
    assert float((figures["grid_16"][2:] / figures["grid_16"][:2]).min()) > 2
    assert float(bench.artifacts(torch.ones(1, 3, 128, 128))["clipped"]) == 1


def test_every_method_runs_on_one_case(chain):
    spec, examples = adapters.spec_of(chain), adapters.Examples.draw(chain, 12, 0)
    adapter = adapters.fit(spec, examples.features(chain, spec.features), examples.targets(chain, spec))
    seen = replace(bench.prepare(chain, TWO_PAIRS, 0), adapter=adapter)
    for method in bench.METHODS:
        states = bench.WAYS[method.way](seen, seen.cases[0], seen.cases[0].right, method.layer, **method.setting)
        assert states.isfinite().all(), method
        assert states.shape[-1] == models.TOY.width


def test_an_identity_as_space_adapter_leaves_every_row_as_it_is_without(chain):
    seen, width = bench.prepare(chain, TWO_PAIRS, 0), models.TOY.width
    mapped = [method for method in bench.METHODS if "mapped_to" in method.setting]
    assert {method.way for method in mapped} == {"delta", "blend", "chosen words"}
    for method in mapped:
        layer, target = method.layer, method.setting["mapped_to"]
        plain = replace(method, setting={name: value for name, value in method.setting.items() if name != "mapped_to"})
        seen.spaces[layer, target] = SpaceAdapter(
            "per_dimension", torch.zeros(width), torch.zeros(width), gain=torch.ones(width)
        )
        for control in ("", *bench.CONTROLS):
            ways = (bench.mixed(seen, one, control) for one in (method, plain))
            assert all(torch.equal(*both) for both in zip(*ways, strict=True)), (method, control)
        seen.spaces[layer, target] = replace(seen.spaces[layer, target], offset=torch.ones(width))
        ways = (bench.mixed(seen, one) for one in (method, plain))
        assert not all(torch.equal(*both) for both in zip(*ways, strict=True)), method


def test_a_space_adapter_is_fitted_once_on_words_of_both_layers():
    generator, read = torch.Generator().manual_seed(0), []
    planted, offset = torch.randn(8, 8, generator=generator), torch.randn(8, generator=generator)

    def words_many(texts, layer):
        read.append(layer)
        states = torch.randn(len(texts), 6, 8, generator=torch.Generator().manual_seed(1))
        return [(x if layer == -8 else x @ planted + offset, None) for x in states]

    seen = methods.Bench(SimpleNamespace(words_many=words_many), None, None, ())
    found = seen.space(-8, -2)
    x = torch.randn(5, 8, generator=generator)
    torch.testing.assert_close(found.apply(x, sinks="include"), x @ planted + offset, atol=1e-2, rtol=1e-3)
    assert (found.layers, found.report.prompts) == ((-8, -2), methods.SPACE_CAPTIONS * 4 // 5)
    assert seen.space(-8, -2) is replace(seen, cases=()).space(-8, -2)
    assert read == [-8, -2]


def test_the_curves_of_the_adapter_have_a_row_for_each_point(run):
    main(["curves", "--toy", "--out", str(run), "--pairs", "2", "--device", "cpu"])
    report = json.loads((run / "adapter_curves.json").read_text(encoding="utf-8"))
    rows = report["rows"]
    assert {row["what"] for row in rows} == {
        "bound", "pairs", "prompt", "two pictures", "rank", "strength", "picture tokens", "layer", "sinks", "tail",
        "words", "looks", "striped left out",
    }
    assert set(report["between"]) == {"picture adapter", "nearest word", "another picture"}
    assert {row["value"] for row in rows if row["what"] == "picture tokens"} == {"none", "mean", "grid4"}


@pytest.fixture(scope="module")
def fitted(run, tmp_path_factory) -> Path:
    """A copy of the toy run's models with a picture adapter, so that the other tests' bench has none."""
    folder = tmp_path_factory.mktemp("fitted")
    shutil.copytree(run / "models", folder / "models")
    main(["adapter", "--toy", "--out", str(folder), "--device", "cpu"])
    return folder


def test_two_pictures_are_measured_with_their_bound_and_null_control_and_in_shards(fitted):
    asked = ["two-pictures", "--toy", "--pairs", "9", "--out", str(fitted), "--device", "cpu", "--resume"]
    for shard in ("0/2", "1/2"):
        main([*asked, "--shard", shard])
    main(asked)
    found = json.loads((fitted / "two_pictures.json").read_text(encoding="utf-8"))["rows"]
    names = [row["name"] for row in found]
    assert names == [rows.TEXT_ONLY, rows.CAPTION, *(method.name for method in two_pictures.methods())]
    assert {"words of both", "parts", "parts of two other pictures", "average"} <= set(names)
    assert all(0 <= row["parts_of_both"] <= 1 for row in found)
    lines = (fitted / "two_pictures_rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2  # what no shard measures


@pytest.mark.parametrize(("looks", "expected"), [
    (("red flat warm", "blue striped cool"), "red striped warm"),
    (("red flat warm", "blue flat cool"), "red flat cool"),
    (("red flat warm", "red striped cool"), "red flat cool"), (("red flat warm", "blue flat warm"), "red flat warm"),
])  # fmt: skip
def test_words_of_both_take_the_parts_in_which_two_looks_differ_in_turn(looks, expected, monkeypatch):
    told = []
    seen = SimpleNamespace(
        pairs=SimpleNamespace(references=SimpleNamespace(records=lambda: looks)),
        chain=SimpleNamespace(words=lambda text: (told.append(text), (torch.zeros(1), None))[1]),
    )
    monkeypatch.setattr(world, "look_phrases", str.split)
    methods.by_words_of_both(seen, SimpleNamespace(prompt="a star"), SimpleNamespace(number=0), None)
    assert told == [", ".join(["a star", *expected.split()])]


def test_the_sheet_of_the_adapter_shows_one_picture_and_two(fitted):
    from PIL import Image

    main(["adapter-sheet", "--toy", "--out", str(fitted), "--device", "cpu"])
    with Image.open(fitted / "adapter_sheet.png") as drawn:
        assert drawn.width > 2000 and drawn.height > 1500
    assert (fitted / "adapter_sheet.png").stat().st_size < 500_000


def test_the_curves_are_drawn_from_the_report_that_is_shipped(tmp_path):
    from PIL import Image

    shipped = Path(__file__).parents[3] / "miniature" / "models"
    main(["curves-plot", "--out", str(tmp_path), "--models", str(shipped)])
    with Image.open(tmp_path / "adapter_curves.png") as drawn:
        assert drawn.width == 1200
    assert 20_000 < (tmp_path / "adapter_curves.png").stat().st_size < 150_000


def test_switches_reach_the_pairs():
    asked = switches(
        parser().parse_args(["bench", "--out", "x", "--leave-out-style", "striped", "--other-words", "--pairs", "9"])
    )
    assert asked.hold_out == world.HoldOut(style="striped")
    assert asked.other_words
    assert asked.pairs == 9
    assert asked.seeds == 3


def test_there_are_enough_pairs_templates_and_seeds_by_default():
    default = bench.Switches()
    assert default.pairs >= 200
    assert default.seeds >= 3
    openings = {prompt.rsplit(" a", 1)[0] for prompt in world.conflict_pairs(9, 0).prompts}
    assert len(openings) >= 3


# ------------------------------------------------------------------------------------------------------------- sheet


def test_a_sheet_shows_worlds_and_photographs(chain):
    scenes = world.sample_scenes(1, torch.Generator().manual_seed(3))
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(3))
    photograph = torch.randint(0, 256, (90, 140, 3), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    references = [sheet.Reference(as_image(pictures)[0], scenes.records()[0]), sheet.Reference(photograph)]
    moved = []
    image = sheet.sheet(
        chain, references, ["a red star", "a blue ring"], steps=2, guidance=0.0, progress=lambda: moved.append(0)
    )
    assert image.width > image.height > 300
    assert len(moved) == 2
    with pytest.raises(ValueError, match="one per reference"):
        sheet.sheet(chain, references, ["a red star"])


def test_readings_are_words_people_know():
    scenes = world.sample_scenes(1, torch.Generator().manual_seed(5), two_shapes=0.0)
    (text,) = sheet.readings(perfect_readings(scenes))
    (scene,) = scenes.records()
    shape, color, _ = scene.objects[0]
    assert f"{world.COLORS[color]} {world.SHAPES[shape]}" in text
    assert world.STYLES[scene.style] in text
