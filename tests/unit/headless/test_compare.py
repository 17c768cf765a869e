"""compare: every cell is the picture its label says, a killed run goes on byte for byte, Ray gives the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from miniature import world
from miniature.measure.chain import as_image
from miniature.train.assemble import MODELS, PIPELINE, VISION
from vl_core import Qwen3VLEncoder, condition, measure_artifacts, measure_fidelity
from vl_core.headless.cli import build_parser, main
from vl_core.headless.compare import runner
from vl_core.headless.compare.command import study_of
from vl_core.headless.compare.painter import Painter
from vl_core.headless.compare.presets import PRESETS
from vl_core.headless.compare.runner import read_rows
from vl_core.headless.compare.scores import load_score
from vl_core.headless.compare.study import EXTRA, choose_axes, read_prompts
from vl_core.headless.compare.summary import Line, markdown, to_csv
from vl_core.stages.published import PRESETS as PUBLISHED
from vl_core.zimage.pipeline import load_pipeline, paint, prompt_layout

pytest.importorskip("diffusers", minversion="0.36", reason="Z-Image without ComfyUI runs on diffusers 0.36")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")
Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

PROMPT = "a red star"
FAST = ["--device", "cpu", "--dtype", "float32", "--steps", "2"]
NOTED = {  # what the research note's runner offers
    "alpha", "layer", "token", "normalization", "outlier", "full", "vl_only", "style_transfer", "blend_comparison",
    "img2img", "think",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("references")
    scenes = world.sample_scenes(2, torch.Generator().manual_seed(3))
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(3))
    for number, picture in enumerate(as_image(pictures)):
        Image.fromarray((picture.numpy() * 255).astype(np.uint8)).save(folder / f"ref{number}.png")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(MODELS / PIPELINE, torch.device("cpu"), torch.float32)


def asked(references, *options: str):
    return build_parser().parse_args(["compare", "-i", references[0], "-p", PROMPT, *FAST, *options])


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture(scope="module")
def small(references, tmp_path_factory) -> Path:
    """Two prompts, two seeds, alpha × layer: run once, looked at by many tests."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    options = ["-p", "a blue <b>ring</b>", "--alphas", "0.5", "1", "--layers=-2,-4", "--seeds", "0", "7"]
    assert main([*command(references), *options, "--methods", "blend aligned", "-o", str(folder)]) == 0
    return folder


def command(references) -> list[str]:
    return ["compare", "-i", references[0], "-p", PROMPT, *FAST]


# ------------------------------------------------------------------------------------------------------------ presets


def test_every_preset_of_the_note_and_of_ours_is_a_plan_on_the_demo(references):
    assert set(PRESETS) >= NOTED
    for name in PRESETS:
        study, _ = study_of(asked(references, "--sweep", name))
        assert len(study.cells) >= (3 if name in PUBLISHED else 4), name


def test_explicit_arguments_always_win_over_a_preset():
    given = {"alpha": ["0.1"], "layer": ["-3", "-5"], "outlier_mode": ["zero", "clamp"]}
    axes, base, _ = choose_axes("selections", given)
    values = {axis.name: axis.values for axis in axes}
    tokens = ("text", "image", "image_no_markers", "all")
    assert values == {"layer": (-3, -5), "tokens": tokens, "outlier_mode": ("zero", "clamp")}
    assert base["strength"] == 0.1
    assert choose_axes("selections", {"space": ["slerp"]})[1]["space"] == "slerp"  # against the preset's raw


def test_layers_of_a_preset_that_the_model_has_not_got_are_left_out_and_named(references, capsys):
    study, _ = study_of(asked(references, "--sweep", "layer"))
    assert {one.layer for one in study.settings if one.strength} == {-2, -4, -8}
    assert "left out, since this Qwen3-VL has 12 blocks: layer -16, -24" in capsys.readouterr().out
    with pytest.raises(ValueError, match="layer"):
        study_of(asked(references, "--sweep", "layer", "--layers=-2,-16"))


def test_the_notes_names_of_token_selections_are_understood():
    axes, _, _ = choose_axes(None, {"tokens": ["full", "text_only", "image_no_markers"]})
    assert axes[0].values == ("all", "text", "image_no_markers")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "alpha", "--set", "colour"], "--set: expected NAME=VALUES"),
        (["--set", "colour=1,2"], "axis: expected one of"),
        (["--layers=-2,-99"], "layer: expected"),
        (["--layers=-2,-30", "--methods", "aligned"], "layer"),
        (["--alphas", "0.5", "2"], "strength: expected 0"),
        (["--alphas", "0.1", "0.2", "--methods", "append"], "makes no difference"),
        (["--vision", "x"], "--vision: the demo has its own"),
        (["-m", "x"], "--vision: expected a Qwen3-VL folder"),
        (["--prompts", "nothing.yaml"], "--prompts: no file"),
        (["--width", "100"], "--width: expected a multiple"),
        (["--adapter", "nothing.safetensors"], "--adapter: no file"),
        (["--workers", "-1", "--alphas", "0.1", "1"], "--workers: expected 0"),
        (["--alphas", "0.1", "1", "--null", "another"], "--null another: expected two different pictures"),
        (["-m", "x", "--vision", "y", "--score", "judge"], "--score judge: reads pictures of the demo's world only"),
    ],
)
def test_mistakes_are_named_before_any_model_is_loaded(references, tmp_path, capsys, options, message):
    assert main([*command(references), "-o", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(references, tmp_path, capsys):
    assert main([*command(references), "--sweep", "full", "--dry-run", "-o", str(tmp_path / "out")]) == 0
    assert "12 cells, 13 pictures to paint" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "- a fox\n- a cat\n", {"prompt 1": "a fox", "prompt 2": "a cat"}),
        ("b.json", '{"fox": "a fox"}', {"fox": "a fox"}),
        ("c.yml", "fox: a fox: at night", None),
        ("d.json", "[1, 2]", None),
        ("e.yaml", "", None),
    ],
)
def test_prompts_come_from_yaml_and_json(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    if expected is None:
        with pytest.raises(ValueError, match="--prompts"):
            read_prompts(str(tmp_path / name))
    else:
        assert read_prompts(str(tmp_path / name)) == expected


# -------------------------------------------------------------------------------------------------------------- cells


def test_every_cell_is_the_picture_that_its_settings_give(small, references, pipeline):
    """Painted again outside the runner, straight from the encoders."""
    encoder = Qwen3VLEncoder.from_pretrained(MODELS / VISION, "cpu", torch.float32)
    reference = torch.from_numpy(pixels(references[0]))
    rows = rows_of(small)
    assert len(rows) == 2 * 2 * (1 + 4)  # prompts × seeds × (words alone + cells)
    assert len({row["id"] for row in rows}) == len(rows)

    @cache  # for both seeds
    def words(prompt: str):
        return pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)[0][0]

    @cache  # for both strengths, too
    def seen(prompt: str, layer: int):
        return encoder.encode([reference], prompt, layer)

    for row in rows:
        if row["settings"] == {"way": "words only"}:
            tolerance = 0
            image = pipeline(
                prompt=row["prompt"], num_inference_steps=2, guidance_scale=1.0, width=128, height=128,
                generator=torch.Generator().manual_seed(row["seed"]),
            ).images[0]
        else:
            tolerance = 2  # of 255: the runner reads all layers of a prompt at once
            layout = prompt_layout(pipeline.tokenizer, row["prompt"])
            layer, strength = row["settings"]["layer"], row["settings"]["strength"]
            looked = seen(row["prompt"], layer)
            states, _, _ = condition(words(row["prompt"]), layout, looked, layer, "blend aligned", strength)
            image = paint(pipeline, states, steps=2, guidance=1.0, width=128, height=128, seed=row["seed"])
            assert f"strength {strength:g}".removesuffix(".0") in row["label"]
            assert f"layer {layer}" in row["label"]
        found, expected = pixels(small / row["picture"]).astype(int), np.asarray(image).astype(int)
        assert np.abs(found - expected).max() <= tolerance, row["label"]


def test_figures_of_a_cell_are_those_of_its_picture_beside_its_own_baseline(small):
    rows = {row["id"]: row for row in rows_of(small)}
    for row in rows.values():
        baseline = rows[row["baseline"]]
        assert baseline["settings"] == {"way": "words only"}
        assert (baseline["prompt"], baseline["seed"]) == (row["prompt"], row["seed"])
        found = measure_artifacts(torch.from_numpy(pixels(small / row["picture"])))
        assert row["artifacts"]["border"] == pytest.approx(found.border, rel=1e-5)


def test_a_picture_and_prompt_are_read_once_whatever_the_number_of_cells(references):
    study, pictures = study_of(asked(references, "-p", "a blue ring", "--sweep", "methods", "--seeds", "0", "1"))
    painter = Painter(study.models, pictures, study.settings)
    for _, cell in study.cells:
        painter.steer(cell)
    # Prompts × one reading for all blends, and one for the adapter, which reads beside the prompt as it was fitted.
    assert painter.encodes == 2 * 2


def test_a_cell_keeps_its_id_from_machine_to_machine_and_another_picture_or_step_count_is_another(references):
    study, _ = study_of(asked(references, "--alphas", "0.5", "1"))
    again, _ = study_of(asked(references, "--alphas", "1", "0.25", "--device", "auto"))
    ids, others = {cell.id for _, cell in study.cells}, {cell.id for _, cell in again.cells}
    assert len(ids & others) == 2  # alpha 1, and the words alone
    words = {cell.id for _, cell in study.cells if cell.words_only}
    for change, kept in ((["--steps", "3"], set()), (["--image-tokens", "64"], words), (["--negative", "blue"], set())):
        changed, _ = study_of(asked(references, "--alphas", "0.5", "1", *change))
        assert ids & {cell.id for _, cell in changed.cells} == kept, change  # words alone have no image tokens
    other, _ = study_of(asked([references[1]], "--alphas", "0.5", "1"))
    assert not ids & {cell.id for _, cell in other.cells}


def test_img2img_keeps_the_more_of_the_reference_the_less_it_paints_anew(references, pipeline):
    study, pictures = study_of(asked(references, "--denoise", "0.2", "1", "--alphas", "0"))
    reference = torch.from_numpy(pixels(references[0]))
    painter = Painter(study.models, pictures, study.settings)
    found = {dict(cell.extra)["denoise"]: painter.paint(cell).pixels for _, cell in study.cells}
    distance = {share: np.abs(made - reference.numpy().astype(float)).mean() for share, made in found.items()}
    assert distance[0.2] < distance[1.0] / 2
    text = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0][0]
    options = {"steps": 2, "guidance": 1.0, "width": 128, "height": 128, "seed": 0}
    np.testing.assert_array_equal(found[1.0], np.asarray(paint(pipeline, text, **options)))
    np.testing.assert_array_equal(found[0.2], np.asarray(paint(pipeline, text, over=reference, denoise=0.2, **options)))


def test_think_puts_an_empty_think_block_after_the_prompt_on_both_sides(references):
    study, pictures = study_of(asked(references, "--think", "off", "on", "--methods", "aligned", "--alphas", "0.5"))
    painter = Painter(study.models, pictures, study.settings)
    tokenizer, message = painter.pipeline.tokenizer, [{"role": "user", "content": PROMPT}]
    expected = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    layout = painter.host(True).words(PROMPT)[0].layout
    assert tokenizer.decode(layout.token_ids) == expected
    steered = {dict(cell.extra)["think"]: states(painter, cell) for _, cell in study.cells if not cell.words_only}
    assert len(steered[True]) > len(steered[False])
    seen, _ = painter.host(True).read(next(iter(pictures.values())), PROMPT, (-4,), budget=64)
    assert len(seen.layout) > len(layout)


def test_described_and_adapted_cells_are_compared_with_the_words_alone(references, tmp_path):
    for way in ("words", "picture adapter"):
        option = ["--ways", way, "--strengths", "0", "1"]
        folder = tmp_path / way
        assert main([*command(references), *option, "-o", str(folder)]) == 0
        first, second = rows_of(folder)
        assert second["baseline"] == first["baseline"] == first["id"]
        assert (pixels(folder / first["picture"]) != pixels(folder / second["picture"])).any()
    assert second["report"].startswith("Picture adapter: the look added to your prompt at strength 1.")


# -------------------------------------------------------------------------------------------------------------- nulls

NULLED = ["--alphas", "0", "1", "--methods", "aligned", "--layers=-4", "--seeds", "0", "3"]


@pytest.fixture(scope="module")
def nulled(references, tmp_path_factory) -> Path:
    """Two pictures, two seeds, alpha 0 and 1, first without nulls and then with them in the same folder."""
    folder = tmp_path_factory.mktemp("runs") / "nulled"
    arguments = [*command(references), "-i", references[1], *NULLED, "--score", "judge", "-o", str(folder)]
    assert main(arguments) == 0
    before = (folder / "results.jsonl").read_bytes().splitlines(keepends=True)
    assert main([*arguments, "--null", "another", "noise"]) == 0
    after = (folder / "results.jsonl").read_bytes().splitlines(keepends=True)
    assert [line for line in after if b'"null"' not in line] == before  # finished lines stay, byte for byte
    assert len(after) == 3 * len(before)
    return folder


def study_with_nulls(references, *options: str):
    return study_of(asked(references, *NULLED[:-3], *options))


def controls_by_kind(study) -> dict:
    return {control.kind: control for control in study.controls if not control.cell.words_only}


def states_of(pictures, prompt: str, cell, pipeline) -> torch.Tensor:
    """A cell's states straight from the encoders."""
    encoder = Qwen3VLEncoder.from_pretrained(MODELS / VISION, "cpu", torch.float32)
    text = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)[0][0]
    seen = encoder.encode(pictures, prompt, cell.settings.read_layer)
    layout, row = prompt_layout(pipeline.tokenizer, prompt), cell.settings
    return condition(text, layout, seen, row.read_layer, row.way, row.strength, settings=row)[0]


def states(painter, cell) -> torch.Tensor:
    """What a painter paints a cell from."""
    return painter.steer(cell).entries[0].states


def test_another_pictures_null_is_painted_from_that_pictures_states(references, pipeline):
    study, pictures = study_with_nulls(references, "-i", references[1], "--null")
    painter = Painter(study.models, pictures, study.settings)
    controls = [control for control in study.controls if not control.cell.words_only]
    assert [control.kind for control in controls] == ["another", "another"]
    for control, path in zip(controls, [references[1], references[0]], strict=True):
        other = torch.from_numpy(pixels(path))
        found = states(painter, control.painted)
        torch.testing.assert_close(found, states_of([other], PROMPT, control.cell, pipeline), atol=1e-3, rtol=1e-4)
        assert not torch.allclose(found, states(painter, control.cell), atol=0.1)
    assert len(study.painted) == len(study.cells)  # what a null shows is the other picture's own cell


def test_among_other_pictures_another_one_is_a_null_of_its_own(references, tmp_path):
    third = tmp_path / "third.png"
    Image.fromarray(pixels(references[0])[::-1].copy()).save(third)
    two, _ = study_with_nulls(references, "-i", references[1], "--null")
    three, _ = study_with_nulls(references, "-i", references[1], str(third), "--null")
    keys = [group.key for group in three.groups]
    shown = {
        dict(control.cell.extra)["pictures"]: (control.id, dict(control.painted.extra)["pictures"])
        for control in three.controls if not control.cell.words_only
    }
    assert [shown[key][1] for key in keys] == [*keys[1:], keys[0]]
    known = {control.id for control in two.controls}
    assert [shown[key][0] in known for key in keys] == [True, False, False]  # the second one's next was the first


def test_with_one_picture_the_null_shows_its_own_pixels_in_another_order(references, pipeline):
    study, pictures = study_with_nulls(references, "--null")
    control = controls_by_kind(study)["shuffled"]
    own = torch.from_numpy(pixels(references[0]))
    (shown,) = pictures[dict(control.painted.extra)["pictures"]]
    assert shown.shape == own.shape
    assert (shown != own).float().mean() > 0.5
    for both in zip(shown.reshape(-1, 3).T, own.reshape(-1, 3).T, strict=True):
        torch.testing.assert_close(*(channel.sort().values for channel in both))
    painter = Painter(study.models, pictures, study.settings)
    expected = states_of([shown], PROMPT, control.cell, pipeline)
    torch.testing.assert_close(states(painter, control.painted), expected, atol=1e-3, rtol=1e-4)


def test_noise_takes_the_place_of_the_states_and_keeps_their_spread(references):
    study, pictures = study_with_nulls(references, "--null", "noise", "--token-modes", "image", "--methods", "append")
    painter = Painter(study.models, pictures, study.settings)
    control = controls_by_kind(study)["noise"]
    words = len(painter.host().words(PROMPT)[0].states)
    found, own = (states(painter, cell)[words:] for cell in (control.painted, control.cell))
    assert found.shape == own.shape
    torch.testing.assert_close(found.pow(2).mean(1), own.pow(2).mean(1), rtol=1e-3, atol=1e-3)
    assert torch.cosine_similarity(found - found.mean(0), own - own.mean(0)).abs().mean() < 0.5
    assert torch.equal(states(painter, control.painted)[words:], found)  # drawn once and for all


def test_noise_leaves_nothing_of_a_description_or_of_what_the_adapter_reads(references):
    for option in (["--ways", "words"], ["--ways", "picture adapter"]):
        study, pictures = study_of(asked(references, *option, "--strengths", "1", "--null", "noise"))
        painter = Painter(study.models, pictures, study.settings)
        control = study.controls[0]
        own, null = (states(painter, cell) for cell in (control.cell, control.painted))
        layout = prompt_layout(painter.pipeline.tokenizer, PROMPT)
        kept = len(layout) - 5  # up to the template's tail
        assert torch.equal(own[:kept], null[:kept])
        assert torch.cosine_similarity(own[kept:], null[kept:]).mean() < 0.9, option


def test_at_alpha_0_every_null_is_the_words_alone_bit_for_bit(nulled, references):
    rows = {row["id"]: row for row in rows_of(nulled)}
    plain = [row for row in rows.values() if row.get("null") and row["settings"] == {"way": "words only"}]
    assert len(plain) == 2 * 2 * 2  # pictures × seeds × kinds
    for row in plain:
        np.testing.assert_array_equal(pixels(nulled / row["picture"]), pixels(nulled / rows[row["of"]]["picture"]))
        assert set(row["difference"].values()) <= {0.0} or row["null"] == "another"
    study, pictures = study_with_nulls(references, "-i", references[1], "--null", "another", "noise")
    painter = Painter(study.models, pictures, study.settings)
    for control in study.controls:
        if control.cell.words_only:
            assert torch.equal(states(painter, control.painted), painter.host().words(PROMPT)[0].states)


def test_a_null_is_measured_beside_its_cells_own_reference_and_words(nulled, references):
    rows = {row["id"]: row for row in rows_of(nulled)}
    nulls = [row for row in rows.values() if row.get("null")]
    own = {Path(path).name: torch.from_numpy(pixels(path)) for path in references}
    for row in nulls:
        cell = rows[row["of"]]
        same = ("group", "prompt", "pictures", "settings", "seed", "baseline")
        assert [row[name] for name in same] == [cell[name] for name in same]
        picture = torch.from_numpy(pixels(nulled / row["picture"]))
        fidelity = measure_fidelity(picture, own[row["pictures"][0]])
        assert row["fidelity"]["palette_distance"] == pytest.approx(fidelity.palette_distance, rel=1e-5)
        assert row["artifacts"]["border"] == pytest.approx(measure_artifacts(picture).border, rel=1e-5)
        for part in ("fidelity", "artifacts", "scores"):
            for name, value in cell[part].items():
                assert row["difference"][name] == pytest.approx(value - row[part][name], rel=1e-4, abs=1e-5)
        if row["null"] == "another":
            others = [one for one in rows.values() if one["pictures"] != row["pictures"] and "null" not in one]
            assert row["picture"] in [one["picture"] for one in others]


def test_lines_stand_in_the_studys_order_with_nulls_behind_their_cells(nulled):
    rows = rows_of(nulled)
    for start in range(0, len(rows), 3):
        cell, *nulls = rows[start : start + 3]
        assert [(one["null"], one["of"]) for one in nulls] == [("another", cell["id"]), ("noise", cell["id"])]


def test_a_run_that_ended_among_its_nulls_goes_on_there(nulled, references, tmp_path, monkeypatch):
    folder = tmp_path / "torn"
    shutil.copytree(nulled, folder)
    ledger = folder / "results.jsonl"
    whole = ledger.read_bytes()
    lines = whole.splitlines(keepends=True)
    gone = [json.loads(line) for line in lines[-2:]]
    ledger.write_bytes(b"".join(lines[:-2]) + lines[-2][:40])
    (folder / gone[1]["picture"]).unlink()  # noise, painted for the null alone
    painted = []

    def counting(study, pictures):
        paint = runner.local(study, pictures)
        return lambda cells: painted.extend(cells) or paint(cells)

    monkeypatch.setattr("vl_core.headless.compare.command.local", counting)
    options = ["-i", references[1], *NULLED, "--score", "judge", "--null", "another", "noise", "-o", str(folder)]
    assert main([*command(references), *options]) == 0
    assert len(painted) == 1
    found = ledger.read_bytes().splitlines(keepends=True)
    assert found[:-1] == lines[:-1]
    ours, theirs = ({**json.loads(line[-1]), "seconds": 0} for line in (found, lines))
    assert ours == theirs


def test_the_page_and_the_grids_show_every_null_beside_its_cell(nulled):
    text, page = (nulled / "index.html").read_text(encoding="utf-8"), Page()
    page.feed(text)
    rows = rows_of(nulled)
    assert {row["picture"] for row in rows} <= set(page.links)
    assert all((nulled / link).is_file() for link in page.links)
    nulls = [row for row in rows if row.get("null")]
    assert text.count("null: another picture<br>") == text.count("null: matched noise<br>") == len(nulls) // 2
    names = [path.name for path in (nulled / "grids").iterdir()]
    assert sum("null-another" in name for name in names) == sum("null-noise" in name for name in names) > 0


def test_the_summary_is_what_numpy_makes_of_the_lines(nulled, from_csv):
    rows = {row["id"]: row for row in rows_of(nulled)}
    lines = from_csv((nulled / "summary.csv").read_text())
    assert {line.setting for line in lines} == {"strength 0", "strength 1"}
    for line in lines:
        alpha = line.setting == "strength 1"

        def figure(row, name=line.figure):
            return {**row["artifacts"], **row["fidelity"], **row["scores"]}[name]

        cells = [row for row in rows.values() if "null" not in row and ("strength" in row["settings"]) == alpha]
        groups = sorted({row["group"] for row in cells})
        nulls = {(row["of"], row["null"]): row for row in rows.values() if "null" in row}
        own, words, null = (
            np.array([np.mean([figure(of(row)) for row in cells if row["group"] == group]) for group in groups])
            for of in (
                lambda row: row, lambda row: rows[row["baseline"]],
                lambda row, nulls=nulls, kind=line.null: nulls[row["id"], kind],
            )
        )
        assert line.pairs == len(groups) == 2
        for values, mean, error in (
            (own, line.mean, line.error), (own - words, line.over_words, line.over_words_error),
            (null, line.null_mean, line.null_error), (own - null, line.difference, line.difference_error),
        ):
            assert mean == pytest.approx(values.mean(), rel=1e-4, abs=1e-6)
            assert error == pytest.approx(values.std(ddof=1) / np.sqrt(2), rel=1e-4, abs=1e-6)
    assert from_csv(to_csv(lines)) == lines


def test_a_star_stands_where_a_setting_is_two_errors_from_all_its_nulls():
    sure = Line("a", "x", 9, 0.5, 0.1, 0.5, 0.1, "another", 0.1, 0.1, 0.4, 0.1)
    unsure = replace(sure, null="noise", difference_error=0.3)
    few = replace(sure, pairs=2)
    assert "0.50 ± 0.10* / 0.10 |" in markdown([sure], ["x"])
    assert "0.50 ± 0.10 / 0.10 / 0.10 |" in markdown([sure, unsure], ["x"])
    assert "*" not in markdown([few], ["x"])
    assert "another picture, matched noise" in markdown([sure, unsure], ["x"])


# ------------------------------------------------------------------------------------------------------------- resume


def test_a_run_killed_wherever_it_writes_goes_on_and_leaves_finished_rows_byte_for_byte(
    references, tmp_path, killed_at_every_file
):
    folder, ledger = tmp_path / "killed", tmp_path / "killed" / "results.jsonl"
    arguments = [*command(references), "--ways", "aligned blend", "--strengths", "0.5", "1", "--layers=-2,-4"]
    finished: dict[str, tuple[bytes, int]] = {}

    def rows_stay() -> None:
        lines = ledger.read_bytes().splitlines(keepends=True) if ledger.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        assert {line for line, _ in finished.values()} <= {*whole}
        for line in whole:
            id = json.loads(line)["id"]
            stamp = (folder / "cells" / f"{id}.png").stat().st_mtime_ns
            assert finished.setdefault(id, (line, stamp)) == (line, stamp)

    kinds = killed_at_every_file([*arguments, "-o", str(folder)], folder, rows_stay)
    assert {"cells/*.png", "results.jsonl", "index.html"} <= {*kinds}
    rows_stay()
    planned, _ = study_of(build_parser().parse_args(arguments))
    assert [row["id"] for row in rows_of(folder)] == [cell.id for _, cell in planned.cells] == [*finished]
    whole = tmp_path / "whole"
    assert main([*arguments, "-o", str(whole)]) == 0
    for row in rows_of(whole):
        np.testing.assert_array_equal(pixels(whole / row["picture"]), pixels(folder / row["picture"]))


def test_a_finished_run_paints_nothing_and_a_larger_one_takes_over_what_is_there(small, references, monkeypatch):
    painted = []

    def counting(study, pictures):
        return lambda cells: painted.append(len(cells)) or []

    before = (small / "results.jsonl").read_bytes()
    options = ["-p", "a blue <b>ring</b>", "--alphas", "0.5", "1", "--layers=-2,-4", "--seeds", "0", "7"]
    monkeypatch.setattr("vl_core.headless.compare.command.local", counting)
    assert main([*command(references), *options, "--methods", "blend aligned", "-o", str(small)]) == 0
    assert painted == []
    assert (small / "results.jsonl").read_bytes() == before


def test_rows_of_pictures_that_are_gone_are_painted_again(tmp_path):
    ledger = tmp_path / "results.jsonl"
    ledger.write_bytes(b'{"id": "a"}\n{"id": "b"}\nnonsense\n{"id": "c"}\n')
    assert list(read_rows(ledger)) == ["a", "b", "c"]  # a bad line costs itself, not what is behind it
    for bad in (b'{"id": 5}\n', b"[1]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"id": "../x"}\n', b"\n"):
        ledger.write_bytes(b'{"id": "a"}\n' + bad + b'{"id": "c"}\n{"id": "d')
        assert list(read_rows(ledger)) == ["a", "c"]
        assert ledger.read_bytes() == b'{"id": "a"}\n' + bad + b'{"id": "c"}\n'


# ------------------------------------------------------------------------------------------------------------- report


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href") and value]


def test_the_page_shows_every_cell_and_nothing_from_elsewhere(small):
    text, page = (small / "index.html").read_text(encoding="utf-8"), Page()
    page.feed(text)
    rows = rows_of(small)
    assert {row["picture"] for row in rows} <= set(page.links)
    assert all((small / link).is_file() for link in page.links)
    assert "b" not in page.tags  # the prompt's own markup is text
    assert text.count("<tr>") >= len(rows)
    start = text.index("const rows = ") + len("const rows = ")
    told = json.loads(text[start : text.index(";\nconst big")])
    assert set(told) == {row["id"] for row in rows}


def test_every_cell_of_the_grid_lies_where_its_labels_say(small):
    """Cut out of the sheet again: the runner handed every picture over under its own id."""
    from vl_core import Plan
    from vl_core.reports.grid import draw_grid

    study = json.loads((small / "study.json").read_text())
    for group, path in zip(study["groups"], sorted((small / "grids").iterdir())[::2], strict=True):
        plan = Plan.from_json(json.dumps(group["plan"]))
        pictures = {cell.id: pixels(small / "cells" / f"{cell.id}.png") for cell in plan.unique}
        grid = draw_grid(plan, pictures, [], title=group["prompt"])
        for cell, box in zip(plan.cells, grid.boxes, strict=True):
            np.testing.assert_array_equal(box.cut(grid.pages), pictures[cell.id])
        with Image.open(path) as image:
            assert "plan" in json.loads(image.text["zimage-vl"])


# -------------------------------------------------------------------------------------------------------------- scores


def test_scores_come_from_models_on_disk(tmp_path, tiny_clip):
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor

    dino = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, mlp_ratio=2
    )
    Dinov2Model(dino).save_pretrained(tmp_path / "dino")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dino")

    picture, other = (torch.randint(0, 256, (48, 40, 3), dtype=torch.uint8) for _ in range(2))
    both = load_score(str(tiny_clip), "--score", torch.device("cpu"))
    assert both(picture, picture, "a cat")["clip to reference"] == pytest.approx(1)
    assert set(both(picture, other, "a cat")) == {"clip to reference", "clip to prompt"}
    alone = load_score(str(tmp_path / "dino"), "--score", torch.device("cpu"))
    assert alone(picture, picture, "")["dino to reference"] == pytest.approx(1)
    assert alone(picture, other, "")["dino to reference"] < 1
    with pytest.raises(FileNotFoundError, match=r"--score: no config\.json"):
        load_score(str(tmp_path), "--score", torch.device("cpu"))


# ----------------------------------------------------------------------------------------------------------------- ray


def test_two_workers_of_a_cluster_give_the_same_though_one_is_killed(references, tmp_path, ray_cluster):
    from vl_core.headless.compare import fleet

    study, pictures = study_of(asked(references, "--alphas", "0.25:1:0.25"))
    actors, victims = [], []

    def paint_and_kill(cells):
        found = fleet.paint_on_ray(
            "local", 2, study.models, pictures, study.settings, cells, on_start=actors.extend
        )
        for number, painted in enumerate(found):
            if number == 1:
                victims.append(ray_cluster.get(actors[0].process.remote()))
                psutil.Process(victims[0]).kill()
            yield painted

    spread = runner.run_study(study, pictures, tmp_path / "ray", paint_and_kill)
    alone = runner.run_study(study, pictures, tmp_path / "local", runner.local(study, pictures))
    assert victims
    assert list(spread) == list(alone)
    for id, row in alone.items():
        same = {name: value for name, value in row.items() if name != "seconds"}
        assert {name: value for name, value in spread[id].items() if name != "seconds"} == same
        both = [pixels(tmp_path / where / row["picture"]) for where in ("ray", "local")]
        np.testing.assert_array_equal(*both)


def test_without_ray_the_option_says_how_to_get_it(references, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "ray" else object())
    from vl_core.headless.compare.fleet import paint_on_ray

    with pytest.raises(ImportError, match="--ray: needs Ray"):
        next(paint_on_ray("local", 1, None, {}, None, []))


def test_axes_of_a_study_are_no_settings_of_the_blend():
    from vl_core.steering.axes import SWEPT

    assert not set(EXTRA) & set(SWEPT)
