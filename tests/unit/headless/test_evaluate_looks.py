"""evaluate: looks are learned within their share of the time, stopped they go on, and one of noise is their null."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from miniature.measure.vl_judge import ground
from vl_core.headless.cli import main
from vl_core.headless.evaluate import looks
from vl_core.looks import resumed
from vl_core.looks.look import Look
from vl_core.looks.options import LearnOptions

pytest.importorskip("diffusers", minversion="0.36", reason="Z-Image without ComfyUI runs on diffusers 0.36")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")
Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = LearnOptions(steps=4, draws=1, size=64)


@pytest.fixture(scope="module")
def asked(tmp_path_factory, few_statistics) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    pictures, prompts = ground(2, 1)
    for name, pixels in pictures.items():
        Image.fromarray(pixels.numpy()).save(folder / f"{name}.png")
    files = map(str, sorted(folder.iterdir()))
    fast = ["--device", "cpu", "--steps", "1", "--seeds", "1", "--reference", str(few_statistics)]
    return ["evaluate", "-i", *files, "-p", prompts[0][0], *fast]


def test_a_look_of_every_picture_and_one_of_noise_are_learned_and_stopped_they_go_on(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "TRIED", (SHORT,))
    monkeypatch.setattr(looks, "step_seconds", lambda *_: 0.001)
    monkeypatch.setattr(resumed, "SAVED_EVERY", 1)
    real, steps = resumed.learn_look, []

    def stopped(*inputs, on_step, **options):
        def stop(state):
            on_step(state)
            steps.append(state.step)
            if len(steps) == 6:
                raise KeyboardInterrupt

        return real(*inputs, on_step=stop, **options)

    monkeypatch.setattr(resumed, "learn_look", stopped)
    folder, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [*asked, "--ways", "learned look", "--minutes", "1", "-o"]
    assert main([*command, str(folder)]) == 130
    assert len(list((folder / "looks").glob("*.safetensors"))) == 1 and list((folder / "looks").glob("*.part"))
    assert main([*command, str(folder)]) == 0
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]  # nothing twice
    assert main([*command, str(whole)]) == 0
    names = sorted(path.name for path in (whole / "looks").iterdir())
    assert len(names) == 3 and "noise.safetensors" in names
    assert names == sorted(path.name for path in (folder / "looks").iterdir())
    for name in names:
        assert (folder / "looks" / name).read_bytes() == (whole / "looks" / name).read_bytes()
    told = {name: Look.load(whole / "looks" / name).origin for name in names}
    assert len({one.pictures for one in told.values()}) == 3 and all(one.look for one in told.values())
    evidence = json.loads((whole / "evidence.json").read_text())
    assert {arm["group"] for arm in evidence["arms"]} == {"learned look"}
    last = evidence["asked"]["rungs"][-1]["arms"]
    assert all("matched noise" in one["nulls"] for one in evidence["figures"] if one["arm"] in last)
    assert evidence["asked"]["looks"].startswith("3 looks of 4 steps")


@pytest.fixture(scope="module")
def hurried(asked, tiny_clip, tmp_path_factory):
    """A run without time to learn, with a CLIP as a second judge."""
    folder = tmp_path_factory.mktemp("runs") / "hurried"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looks, "step_seconds", lambda *_: 10.0)
        more = ["--ways", "learned look", "words", "--minutes", "0.1", "--score", str(tiny_clip), "-o", str(folder)]
        assert main([*asked, *more]) == 0
    return folder


def test_without_time_for_it_nothing_is_learned_and_the_page_says_so(hurried):
    page, evidence = (hurried / "index.html").read_text(), json.loads((hurried / "evidence.json").read_text())
    assert not (hurried / "looks").exists()
    assert {arm["group"] for arm in evidence["arms"]} == {"words"}
    # A step of 4 noisy pictures is said to take 10 s; one of 2 takes 5/9 of it: what is kept is half of one.
    said = "left out: 3 looks of 25 steps would take 7 of 0.1 minutes, 20% are for them"
    assert evidence["asked"]["looks"] == said and said in page


def test_with_no_other_way_that_is_a_mistake(asked, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise ValueError("the image model lets no gradient through")

    monkeypatch.setattr(looks, "step_seconds", refuse)
    assert main([*asked, "--minutes", "0.1", "--ways", "learned look", "-o", str(tmp_path)]) == 1
    assert "--ways learned look: left out: the image model lets no gradient through" in capsys.readouterr().err


def test_a_step_is_timed_and_nothing_of_it_is_kept(monkeypatch):
    clock = iter([0.0, 4.0, 6.0])
    monkeypatch.setattr(looks.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(looks, "learn_look", lambda *_, on_step: [on_step(None) for _ in range(100)])
    assert looks.step_seconds(None, torch.zeros(1), None, SHORT) == 3.0


# --- a second judge ---------------------------------------------------------------------------------------------------


def test_a_second_judge_sees_every_painting_as_transformers_does(hurried, asked, tiny_clip):
    """The model gives cosines of -1 to 1 and nothing is known of its sight, which the page says."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model, processor = CLIPModel.from_pretrained(tiny_clip), AutoImageProcessor.from_pretrained(tiny_clip)
    evidence = json.loads((hurried / "evidence.json").read_text())
    tokens = AutoTokenizer.from_pretrained(tiny_clip)(asked[5], return_tensors="pt", truncation=True)
    files = [hurried / "references" / f"{one['key']}.png" for one in evidence["asked"]["pictures"]]
    chosen = [one for one in evidence["records"] if one["kind"] != "caption"][::3]
    assert {one["kind"] for one in chosen} == {"words", "way"}
    with torch.no_grad():
        for record in chosen:
            shown = [Image.open(file).convert("RGB") for file in (hurried / "cells" / f"{record['id']}.png", *files)]
            found = model(**processor(images=shown, return_tensors="pt"), **tokens)
            own, *others = found.image_embeds
            expected = {str(place): float(own @ other) for place, other in enumerate(others)}
            assert record["scores"] == pytest.approx(expected | {"prompt": float(own @ found.text_embeds[0])}, abs=1e-4)
    page = (hurried / "index.html").read_text()
    assert "A second judge: clip" in page and "held against no judge that knows the truth" in page
    assert main(["evaluate", "--check", str(hurried / "evidence.json")]) == 0


def test_another_second_judge_does_not_go_on_in_the_same_folder(hurried, asked, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    more = ["--ways", "learned look", "words", "--minutes", "0.1", "--score", str(tmp_path), "-o", str(hurried)]
    assert main([*asked, *more]) == 1
    assert "holds an evaluation with other score" in capsys.readouterr().err
    assert main([*asked, *more[:-3], str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]) == 1
    assert "--score" in capsys.readouterr().err


@pytest.fixture(scope="module")
def seconded(asked, tiny_clip, tmp_path_factory):
    """A function: the command of a run with a second judge in a folder, and the folder of one that was not stopped."""
    more = ["--minutes", "1", "--ways", "words", "--score", str(tiny_clip), "-o"]
    whole = tmp_path_factory.mktemp("runs") / "seconded"
    assert main([*asked, *more, str(whole)]) == 0
    return lambda folder: [*asked, *more, str(folder)], whole


def stopped_in_scoring(whole, folder, lines: list[bytes]) -> bytes:
    """A copy of a run as it is while its paintings are scored; what its evidence is to be."""
    shutil.copytree(whole, folder)
    for name in ("evidence.json", "index.html"):
        (folder / name).unlink()
    (folder / "scored.jsonl").write_bytes(b"".join(lines))
    return (whole / "evidence.json").read_bytes()


def test_a_run_killed_while_a_score_is_written_goes_on_to_the_same_evidence(seconded, tmp_path, killed_at_every_file):
    """With SIGKILL, four lines after the start; the line is left torn."""
    command, whole = seconded
    lines = (whole / "scored.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) > 5
    folder = tmp_path / "killed"
    evidence = stopped_in_scoring(whole, folder, lines[:4])
    left = []
    kinds = killed_at_every_file(command(folder), folder, lambda: left.append((folder / "scored.jsonl").read_bytes()))
    assert {"scored.jsonl", "evidence.json"} <= {*kinds}
    assert left[kinds.index("scored.jsonl")] == b"".join(lines[:4]) + b'{"id": "half a l'
    scored = (folder / "scored.jsonl").read_bytes().splitlines(keepends=True)
    assert scored[:4] == lines[:4] and len(scored) == len(lines)
    assert (folder / "evidence.json").read_bytes() == evidence
    assert (folder / "index.html").read_bytes() == (whole / "index.html").read_bytes()


@pytest.mark.parametrize("damage", ["torn end", "torn in the middle", "zeros in the middle", "twice", "gone"])
def test_scores_that_a_crash_damaged_are_made_again_and_the_evidence_is_the_same(seconded, tmp_path, damage):
    command, whole = seconded
    lines = (whole / "scored.jsonl").read_bytes().splitlines(keepends=True)
    torn = lines[2][: len(lines[2]) // 2]
    left = {
        "torn end": [*lines[:2], torn], "torn in the middle": [*lines[:2], torn, *lines[3:]],
        "zeros in the middle": [*lines[:2], bytes(len(lines[2]) - 1), b"\n", *lines[3:]],
        "twice": [*lines, *lines[1:3]], "gone": [],
    }[damage]
    folder = tmp_path / "damaged"
    evidence = stopped_in_scoring(whole, folder, left)
    orphans = [folder / f"{name}.{'0' * 32}.part" for name in ("scored.jsonl", "evidence.json")]
    for orphan in orphans:
        orphan.write_bytes(torn)
    assert main(command(folder)) == 0
    assert (folder / "evidence.json").read_bytes() == evidence
    assert not any(orphan.exists() for orphan in orphans)
    kept = [json.loads(line) for line in (folder / "scored.jsonl").read_bytes().splitlines() if line.startswith(b"{")
            and line.endswith(b"}") and line.count(b'"id"') == 1]
    assert {row["id"] for row in kept} == {json.loads(line)["id"] for line in lines}
