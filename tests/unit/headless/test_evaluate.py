"""evaluate: a run that is killed goes on byte for byte, Ray paints the same, evidence that was edited is refused."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from miniature.measure.vl_judge import WorldForm, ground
from miniature.train.assemble import MODELS, PIPELINE, VISION
from vl_core import Qwen3VLEncoder
from vl_core.headless.cli import main
from vl_core.headless.evaluate import runner, turns
from vl_core.headless.evaluate.arms import NOTE, note_compared, ways_tried
from vl_core.headless.evaluate.arms import together as joined
from vl_core.headless.evaluate.claims import CANNOT_TELL, DOES_NOT, HOLDS, claims_of
from vl_core.headless.evaluate.command import GB, together
from vl_core.headless.evaluate.drawings import DRAWINGS, builtin_pictures
from vl_core.headless.evaluate.evidence import ArmSaid, Record, check, digest_of, seal
from vl_core.headless.evaluate.figures import Ground, beats_nulls, figures_of
from vl_core.headless.evaluate.judging import Told, trust
from vl_core.headless.evaluate.page import by_things, judge, marked, summary
from vl_core.headless.evaluate.plan import Rung, builtin_prompts, first_rungs, next_rung, trials_of
from vl_core.headless.evaluate.plot import frontier
from vl_core.steering.recipes import load_recipes
from vl_core.steering.settings import Settings
from vl_core.steering.steer import steer
from vl_core.steering.way import Given, ways
from vl_core.zimage.pipeline import encode_text, load_pipeline, paint

pytest.importorskip("diffusers", minversion="0.36", reason="Z-Image without ComfyUI runs on diffusers 0.36")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")
Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

FORM = WorldForm()
FAST = ["--device", "cpu", "--steps", "2", "--minutes", "60", "--seeds", "1"]  # time for all: no clock decides
WAYS = ["words", "appended tokens"]
LINES = ("painted.jsonl", "measured.jsonl", "judged.jsonl")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def few_prompts():
    """The text encoder is measured on four prompts, as ``killed_run.py`` has it: on 96 that takes seconds each time."""
    prompts = turns.calibration_prompts()[:4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "calibration_prompts", lambda: prompts)
        yield


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[list[str], str]:
    """Three pictures of the world, and a prompt that none of them shows, whose shape two steps of painting make out."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures, prompts = ground(3, 1, seed=8)
    for name, pixels in pictures.items():
        Image.fromarray(pixels.numpy()).save(folder / f"{name}.png")
    return [str(path) for path in sorted(folder.iterdir())], prompts[0][0]


def command(shown, folder: Path, *more: str) -> list[str]:
    files, prompt = shown
    return ["evaluate", "-i", *files, "-p", prompt, *FAST, "--ways", *WAYS, "-o", str(folder), *more]


@pytest.fixture(scope="module")
def small(shown, tmp_path_factory) -> Path:
    """Run once, looked at by many tests."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert main(command(shown, folder)) == 0
    return folder


def evidence_in(folder: Path) -> dict:
    return json.loads((folder / "evidence.json").read_text())


def pictures_in(folder: Path) -> dict[str, str]:
    found = {}
    for file in (folder / "cells").glob("*.png"):
        with Image.open(file) as image:
            found[file.name] = hashlib.sha256(image.tobytes()).hexdigest()
    return found


def without_seconds(folder: Path, name: str) -> list[dict]:
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# ---------------------------------------------------------------------------------------------------------- a whole run


def test_a_run_leaves_a_page_evidence_and_a_recipe_that_is_listed(small):
    assert (small / "index.html").is_file() and (small / "evidence.json").stat().st_size < 2**20
    recipes, problems = load_recipes(small / "recipes")
    mine = [recipe for recipe in recipes.values() if recipe.name.startswith("measured: ")]
    assert mine and problems == []
    assert mine[0].settings.way == "words"  # which it is on the miniature, by far


def test_a_cell_is_the_picture_that_its_settings_paint_outside_of_it(small, shown):
    files, prompt = shown
    row = next(
        row for row in without_seconds(small, "painted.jsonl")
        if row["settings"]["way"] == "appended tokens" and not row["null"]
    )
    pipeline = load_pipeline(MODELS / PIPELINE, torch.device("cpu"), torch.float32)
    encoder = Qwen3VLEncoder.from_pretrained(MODELS / VISION, "cpu", torch.float32)
    from vl_core.steering.references import Reference
    from vl_core.zimage.host import PipelineHost

    picture = next(
        torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files
        if hashlib.sha256(
            np.array(Image.open(file).convert("RGB")).tobytes() + b"(128, 128, 3)"
        ).hexdigest().startswith(row["picture"])
    )
    outcome = steer(PipelineHost(pipeline, lambda: encoder), prompt, [Reference(picture)], Settings(**row["settings"]))
    image = paint(
        pipeline, outcome.entries[0].states, steps=2, guidance=1.0, width=128, height=128, seed=row["seed"],
        outside=outcome.texts[0].states,
    )
    with Image.open(small / "cells" / f"{row['id']}.png") as kept:
        assert np.abs(np.asarray(image).astype(int) - np.asarray(kept.convert("RGB"))).max() <= 1


def test_every_way_ends_with_one_setting_beside_both_nulls(small):
    found = evidence_in(small)
    last = found["asked"]["rungs"][-1]
    groups = {arm["id"]: arm["group"] for arm in found["arms"]}
    assert sorted(groups[id] for id in last["arms"]) == sorted(WAYS)
    by_arm = {one["arm"]: one for one in found["figures"]}
    assert all({"another picture", "matched noise"} <= by_arm[id]["nulls"].keys() for id in last["arms"])


def test_no_words_or_names_of_the_owner_are_in_the_evidence_unless_asked_for(small, shown):
    files, prompt = shown
    text = (small / "evidence.json").read_text()
    assert prompt not in text and not any(Path(file).stem in text for file in files)
    assert main(command(shown, small, "--with-pictures")) == 0
    asked_for = (small / "evidence.json").read_text()
    assert prompt in asked_for and "thumbnail" in asked_for and "thumbnail" not in text
    assert main(command(shown, small)) == 0
    assert (small / "evidence.json").read_text() == text


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.order, self.images, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.order.append(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass


def test_the_page_shows_pictures_before_any_table_of_figures_and_all_of_them_are_there(small):
    page = (small / "index.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.images and all((small / source).is_file() for source in tags.images)
    assert page.index("<img") < page.index("<svg") < page.index("The best setting of each way")
    assert page.index("The best setting of each way") < page.index("Every setting")
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


@pytest.mark.parametrize(("in_use", "looks"), [(0, 0), (1 << 30, 1)])
def test_what_a_turns_caller_held_to_its_end_is_the_gpus_again_before_the_next_model(monkeypatch, in_use, looks):
    said = []
    fake = {"is_available": lambda: True, "memory_allocated": lambda: in_use, "max_memory_allocated": lambda: 0}
    for name, value in {
        **fake, "reset_peak_memory_stats": lambda: None, "empty_cache": lambda: said.append("emptied"),
    }.items():
        monkeypatch.setattr(f"torch.cuda.{name}", value)
    monkeypatch.setattr("gc.collect", lambda: said.append("looked"))
    models = SimpleNamespace(text=lambda: said.append("loaded"), painter=lambda: said.append("loaded"))
    turn = turns.Turns(models)
    with turn("text"):
        pass
    del said[:]
    with turn("painter"):
        before = said[: said.index("loaded")]
    assert before.count("looked") == looks and "emptied" in before


# --------------------------------------------------------------------------------------------------------------- killed


def test_a_run_that_is_killed_wherever_it_writes_goes_on_and_ends_the_same(
    small, shown, tmp_path, killed_at_every_file
):
    """Killed once at the first file of every kind; finished lines stay as they were, and all files end byte for byte.

    Only seconds differ, and what is made of them.
    """
    folder, before = tmp_path / "killed", dict.fromkeys(LINES, b"")

    def lines_stay() -> None:
        for name, was in before.items():
            now = (folder / name).read_bytes() if (folder / name).is_file() else b""
            assert now.startswith(was), name
            before[name] = now[: now.rfind(b"\n") + 1]

    kinds = killed_at_every_file(command(shown, folder), folder, lines_stay)
    files = {path.relative_to(small) for path in small.rglob("*") if path.is_file()}
    assert {str(path) if len(path.parts) == 1 else str(path.with_name(f"*{path.suffix}")) for path in files} == {*kinds}
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == files
    timed = {*map(Path, LINES), Path("evidence.json"), Path("index.html"), Path("hashes.json")}
    for path in sorted(files - timed):
        assert (folder / path).read_bytes() == (small / path).read_bytes(), path
    for name in LINES:
        assert without_seconds(folder, name) == without_seconds(small, name), name
    assert without_time(evidence_in(folder)) == without_time(evidence_in(small))


def test_a_damaged_painting_is_named_and_painted_again_once_it_is_removed(small, shown, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(small, folder)
    lines = (folder / "judged.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "judged.jsonl").write_bytes(b"".join(lines[:-1]))  # killed before it was asked about
    cell = folder / "cells" / f"{json.loads(lines[-1])['id']}.png"
    whole = cell.read_bytes()
    cell.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))  # and the power went
    assert main(command(shown, folder)) == 1
    assert f"{cell.name}: cannot be read as a picture" in capsys.readouterr().err
    cell.unlink()
    assert main(command(shown, folder)) == 0
    assert cell.read_bytes() == whole
    assert without_seconds(folder, "judged.jsonl") == without_seconds(small, "judged.jsonl")
    assert (folder / "painted.jsonl").read_bytes() == (small / "painted.jsonl").read_bytes()


def without_time(evidence: dict) -> dict:
    del evidence["digest"]
    for one in (*evidence["records"], *evidence["figures"]):
        del one["seconds"]
    return evidence


def test_another_evaluation_does_not_go_on_in_the_same_folder(small, shown, capsys):
    files, prompt = shown
    other = ["evaluate", "-i", *files, "-p", f"{prompt} ", *FAST, "--ways", *WAYS, "-o", str(small)]
    assert main(other) == 1
    assert "holds an evaluation with other prompts" in capsys.readouterr().err


def test_two_painters_on_ray_paint_and_judge_the_same_though_one_is_killed_in_every_long_turn(
    small, shown, tmp_path, ray_cluster, monkeypatch
):
    killed, share_out = [], runner.shared_out

    def killing(actors, task, items, **options):
        for number, found in enumerate(share_out(actors, task, items, **options)):
            if number == 1:
                ray_cluster.kill(actors[0], no_restart=False)
                killed.append(len(items))
            yield found

    monkeypatch.setattr(runner, "shared_out", killing)
    folder = tmp_path / "ray"
    folder.mkdir()
    shutil.copy(small / "plan.json", folder / "plan.json")
    assert main(command(shown, folder, "--ray", "local", "--workers", "2")) == 0
    assert killed
    assert pictures_in(folder) == pictures_in(small)
    for name in ("painted.jsonl", "judged.jsonl"):
        assert without_seconds(folder, name) == without_seconds(small, name)


# ------------------------------------------------------------------------------------------------------------- evidence


def test_evidence_as_it_was_written_is_right(small, capsys):
    check(evidence_in(small), "evidence.json")
    assert main(["evaluate", "--check", str(small / "evidence.json")]) == 0
    assert "| words |" in capsys.readouterr().out


@pytest.mark.parametrize(("where", "message"), [
    (lambda one: one["figures"][0].update(transfer=0.99), "was changed"),
    (lambda one: one["records"][3].update(adherence=0.5), "was changed"),
    (lambda one: one["made"].update(date="2020-01-01"), "was changed"),
    (lambda one: one["records"].pop(), "was changed"),
])
def test_evidence_that_was_edited_is_refused(small, where, message):
    content = evidence_in(small)
    where(content)
    with pytest.raises(ValueError, match=message):
        check(content, "evidence.json")


def test_evidence_that_was_edited_and_sealed_again_is_refused_where_it_contradicts_itself(small):
    content = evidence_in(small)
    content["figures"][0]["transfer"] = 0.99
    content["digest"] = digest_of(content)
    with pytest.raises(ValueError, match="not those of its records"):
        check(content, "evidence.json")


def test_evidence_that_mixes_weights_is_refused(small):
    content = evidence_in(small)
    content["records"][5]["weights"] = "0" * 16
    content["digest"] = digest_of(content)
    with pytest.raises(ValueError, match="mixes weights"):
        check(content, "evidence.json")
    other = evidence_in(small)
    other["weights"]["zimage"]["vae/diffusion_pytorch_model.safetensors"] = "0" * 64
    other["digest"] = digest_of(other)
    with pytest.raises(ValueError, match="another id"):
        check(other, "evidence.json")


@pytest.mark.parametrize("content", [[], {"kind": "zimage-vl evidence", "version": 9}, {"kind": "recipe"}])
def test_other_files_are_no_evidence(content):
    with pytest.raises(ValueError, match="expected"):
        check(content, "x.json")


# -------------------------------------------------------------------------------------------------------------- figures


def record(kind: str, arm: str, picture: int, prompt: int, looks: dict[int, float], **more) -> Record:
    values = {
        "id": f"{abs(hash((kind, arm, picture, prompt, more.get('null', '')))) % 16**16:016x}", "kind": kind,
        "arm": arm, "null": "", "picture": picture, "prompt": prompt, "seed": 0, "weights": "w", "adherence": 0.9,
        "look": {str(place): {"style": value} for place, value in looks.items()}, "leak": {}, "mass": 1.0,
        "artifacts": None, "fidelity": {}, "seconds": {"painting": 1.0}, **more,
    }
    return Record(**values)


def made_up(gain: float, noise: float = 0.0) -> list[Record]:
    """Four pictures, two prompts: words show .1 of a style, its caption .9, the way .1 + gain."""
    rows = [record("words", "", -1, prompt, dict.fromkeys(range(4), 0.1)) for prompt in range(2)]
    rows += [record("caption", "", picture, -1, {picture: 0.9}, adherence=None) for picture in range(4)]
    for prompt in range(2):
        for picture in range(4):
            own = min(1.0, 0.1 + gain + 0.01 * picture)
            rows.append(record("way", "a", picture, prompt, {picture: own, (picture - 1) % 4: 0.1}))
            rows.append(record("way", "a", picture, prompt, {picture: 0.1 + noise}, null="noise"))
    return rows


def test_transfer_is_what_a_caption_brings_in_numpy():
    rows = made_up(0.4)
    found = figures_of("a", rows, Ground.of(rows, 4))
    each = np.array([(0.4 + 0.01 * picture) / 0.8 for _ in range(2) for picture in range(4)])
    assert found.transfer == pytest.approx(each.mean())
    assert found.transfer_error == pytest.approx(each.std(ddof=1) / math.sqrt(8))
    assert found.nulls["another picture"] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert beats_nulls(found)


def test_a_second_judges_transfer_is_the_same_by_its_cosines_in_numpy():
    rows = made_up(0.4)
    assert figures_of("a", rows, Ground.of(rows, 4)).second == {}  # nobody was asked
    drawn = np.random.default_rng(0).uniform(-0.1, 0.1, (len(rows), 4))
    base = {"words": 0.3, "caption": 0.8, "way": 0.5}
    given = {row.id: base[row.kind] + own for row, own in zip(rows, drawn, strict=True)}
    rows = [row.model_copy(update={"scores": {**{str(place): value for place, value in enumerate(given[row.id])},
                                              "prompt": 0.2}}) for row in rows]
    by = {(row.kind, row.picture, row.prompt, row.null): given[row.id] for row in rows}
    pairs = [(picture, prompt) for prompt in range(2) for picture in range(4)]

    def transfer(null: str, shift: int) -> np.ndarray:
        gains, spans = [], []
        for picture, prompt in pairs:
            place = (picture + shift) % 4
            words = by["words", -1, prompt, ""][place]
            gains.append(by["way", picture, prompt, null][place] - words)
            spans.append(by["caption", place, -1, ""][place] - words)
        return np.array(gains) / np.mean(spans)

    found = figures_of("a", rows, Ground.of(rows, 4)).second
    for name, each in (("transfer", transfer("", 0)), ("another picture", transfer("", -1)),
                       ("matched noise", transfer("noise", 0))):
        assert found[name] == pytest.approx([each.mean(), each.std(ddof=1) / math.sqrt(8)])


def test_what_its_nulls_reach_is_no_effect():
    rows = made_up(0.4, noise=0.42)
    assert not beats_nulls(figures_of("a", rows, Ground.of(rows, 4)))


def test_a_part_that_captions_do_not_move_says_nothing():
    rows = [row if row.kind != "caption" else row.model_copy(update={"look": {
        place: {"style": 0.12} for place in row.look}}) for row in made_up(0.4)]
    assert figures_of("a", rows, Ground.of(rows, 4)).transfer is None


def test_ways_of_one_place_are_numbered_side_by_side_and_few_pairs_are_said_to_be_few():
    rows = made_up(0.4)
    one = figures_of("a", rows, Ground.of(rows, 4))
    far = one.model_copy(update={"transfer": one.transfer / 2})
    drawn = frontier([("words", one), ("adapter", one), ("blend", far)])
    assert ">1, 2</text>" in drawn and ">3</text>" in drawn and "how much of the picture's look arrives" in drawn
    arm = ArmSaid(id="a", group="words", label="strength 1", settings={}, about=[])
    assert "From 8 pairs" in summary([(arm, one)])
    assert "pairs" not in summary([(arm, one.model_copy(update={"pairs": 40}))])


# ----------------------------------------------------------------------------------------------------------------- plan


def test_every_beginning_of_the_trials_is_spread_evenly():
    trials = trials_of(6, 4, 2)
    assert len(set(trials)) == len(trials) == 48
    for count in range(1, 25):
        pictures = [one.picture for one in trials[:count]]
        prompts = [one.prompt for one in trials[:count]]
        assert max(map(pictures.count, range(6))) - min(map(pictures.count, range(6))) <= 1
        assert max(map(prompts.count, range(4))) - min(map(prompts.count, range(4))) <= 1


def test_a_third_of_each_ways_settings_goes_on_and_the_best_of_each_ends():
    arms = ways_tried(Given(), 8)
    by_id = {arm.id: arm for arm in arms}
    first, = first_rungs(arms, 10_000, 24)
    assert first.trials == 24 and set(first.arms) == set(by_id)
    scores = {id: (True, number / 100) for number, id in enumerate(by_id)}
    second = next_rung(first, by_id, scores, 5_000, 24)
    last = next_rung(second, by_id, scores, 5_000, 24)
    groups = [by_id[id].group for id in last.arms]
    assert len(groups) == len(set(groups)) and last.noise
    best = {arm.group: arm.id for arm in arms}  # the last of each group has its largest score
    assert set(last.arms) == set(best.values())


def test_little_time_paints_the_least_that_tells_anything():
    arms = ways_tried(Given(), 8)
    assert first_rungs(arms, 0, 24)[0].trials == 4
    one = arms[0]
    assert next_rung(Rung("second", (one.id,), 4), {one.id: one}, {one.id: (True, 1.0)}, 0, 24).trials == 4


def test_with_too_little_time_for_all_settings_some_of_every_way_are_tried():
    arms = joined(ways_tried(Given(), 36), note_compared(36))
    by_id, groups = {arm.id: arm for arm in arms}, {arm.group for arm in arms} - {NOTE}
    every = sum(arm.group != NOTE for arm in arms)
    for cells in (4 * (len(arms) + len(groups)), 4 * (every + len(groups)), 4 * (every // 2 + 2 * len(groups)), 40, 0):
        rungs = first_rungs(arms, cells, 24)
        painted = sum(len(rung.arms) * rung.trials for rung in rungs) + 4 * len(groups)
        assert painted <= cells or all(rung.trials == 4 for rung in rungs)
        assert {by_id[id].group for id in rungs[0].arms} == groups
        assert len(rungs) == 1 + (cells == 4 * (len(arms) + len(groups)))
        if cells == 0:  # the way's own
            assert len(rungs[0].arms) == len(groups)
            for arm in (by_id[id] for id in rungs[0].arms):
                plain = Settings(way=arm.group)
                assert (arm.settings.strength, arm.settings.read_layer) == (1.0, plain.read_layer)
        elif cells > 40:
            assert len(rungs[0].arms) * 4 <= cells


def test_every_way_that_can_act_is_tried_and_layers_that_are_not_there_are_left_out():
    groups = {arm.group for arm in ways_tried(Given(), 36)}
    assert groups == {
        way.name for way in ways().values()
        if not way.tries and way.name != "open blend" and not way.missing(Given())
    }
    assert all(arm.settings.read_layer > -9 for arm in note_compared(7) if arm.group == NOTE)
    assert {about for arm in note_compared(36) for about in arm.about} == {
        "alpha", "layer", "token", "normalization", "outlier",
    }


def test_batches_fit_the_memory():
    assert together(1e9, 1024 * 1024) == 1
    assert together(60e9, 1024 * 1024) == 8
    assert together(4e9, 1024 * 1024) <= together(4e9, 512 * 512)
    assert together((15 - 12.6) * GB, 1024 * 1024) == 2  # as measured: docs/performance.md
    assert together(6e9, 1024 * 1024, guided=True) == together(6e9, 2 * 1024 * 1024) < together(6e9, 1024 * 1024)


def test_prompts_disagree_with_pictures_in_several_languages_and_lengths():
    prompts = builtin_prompts()
    assert len({one.language for one in prompts}) >= 5 and all(one.things for one in prompts)
    lengths = [len(one.text) for one in prompts]
    assert min(lengths) < 15 and max(lengths) > 100


def test_drawings_are_the_same_each_time_and_differ_from_one_another():
    one, other = builtin_pictures(96), builtin_pictures(96)
    assert {*DRAWINGS} <= one.keys() and all(torch.equal(one[name], other[name]) for name in one)
    means = [one[name].float().mean((0, 1)) for name in DRAWINGS]
    assert all((a - b).abs().max() > 5 for index, a in enumerate(means) for b in means[:index])


# ---------------------------------------------------------------------------------------------------------------- judge


@pytest.fixture(scope="module")
def encoder() -> Qwen3VLEncoder:
    return Qwen3VLEncoder.from_pretrained(MODELS / VISION, "cpu", torch.float32)


def test_a_judge_that_knows_its_references_is_trusted_and_one_that_was_told_wrong_is_not(encoder):
    pictures = list(ground(6, 1)[0].values())
    told = [Told.of(encoder, picture, FORM, 1024) for picture in pictures]
    found = trust(encoder, pictures, told, FORM, 1024)
    assert found["verdict"] == [] and all(share > 0.9 for share in found["parts"].values() if share is not None)
    moods = ["cool" if one.parts["mood"] == "warm" else "warm" for one in told]
    swapped = [replace(one, parts={**one.parts, "mood": mood}) for one, mood in zip(told, moods, strict=True)]
    parts = trust(encoder, pictures, swapped, FORM, 1024)["parts"]
    assert (parts["mood"] is None or parts["mood"] < 0.8) and parts["style"] == found["parts"]["style"]
    wrong = [told[(index + 1) % len(told)] for index in range(len(told))]
    assert any("another picture" in line for line in trust(encoder, pictures, wrong, FORM, 1024)["verdict"])
    assert found["things"] > 0.9
    shows = [told[(index + 1) % len(told)].parts["shows"] for index in range(len(told))]
    mistaken = [replace(one, parts={**one.parts, "shows": other}) for one, other in zip(told, shows, strict=True)]
    blamed = trust(encoder, pictures, mistaken, FORM, 1024)
    assert blamed["things"] < 0.8 and len(blamed["verdict"]) == 1 and "prompt's things" in blamed["verdict"][0]
    assert "Not good enough" in by_things(blamed["things"]) and "Not good" not in by_things(found["things"])
    assert by_things(None) == ""
    silent = [Told({part: "nothing" for part in (*FORM.parts, "shows")}, "") for _ in pictures]
    assert "no words" in trust(encoder, pictures, silent, FORM, 1024)["verdict"][0]


def test_a_part_that_the_judge_does_not_know_is_marked_wherever_it_stands(small):
    content = evidence_in(small)
    content["trust"]["parts"] = {"background": 0.99, "style": 0.6, "mood": None}
    evidence = seal({**content, "digest": ""})
    assert "style† 0.60" in judge(evidence) and "background 0.99" in judge(evidence)
    assert "Not good enough" in judge(evidence)
    assert marked(evidence) == {"background": "background", "style": "style†", "mood": "mood"}
    content["trust"]["parts"]["style"] = 0.9
    assert "†" not in judge(seal(content)) + "".join(marked(seal(content)).values())


# ----------------------------------------------------------------------------------------------------------------- note


def test_the_note_is_called_right_only_by_two_standard_errors(small):
    content = evidence_in(small)
    arms = [
        {"id": f"{number:016x}", "group": NOTE, "label": "", "settings": {"strength": alpha}, "about": ["alpha"]}
        for number, alpha in enumerate((0.1, 1.0))
    ]

    def figures(transfer: float, error: float, number: int) -> dict:
        return {**content["figures"][0], "arm": f"{number:016x}", "transfer": transfer, "transfer_error": error}

    def verdict(low: float, high: float, error: float) -> str:
        found = {**content, "arms": arms, "figures": [figures(low, error, 0), figures(high, error, 1)]}
        return next(one.verdict for one in claims_of(seal(found)) if "larger α" in one.says)

    assert verdict(0.1, 0.5, 0.02) == HOLDS
    assert verdict(0.5, 0.1, 0.02) == DOES_NOT
    assert verdict(0.1, 0.15, 0.1) == CANNOT_TELL


def test_text_states_are_those_of_the_pipeline(small):
    from vl_core.states.vl_states import load_conditioning

    pipeline = load_pipeline(MODELS / PIPELINE, torch.device("cpu"), torch.float32)
    for file in sorted((small / "kept" / "words").glob("*.safetensors"))[:3]:
        ((states, options),) = load_conditioning(file)
        own, _ = encode_text(pipeline, options["vl_layout"].prompt)
        assert torch.allclose(states[0], own, rtol=1e-4, atol=1e-3)  # of values about 20; theirs are padded
