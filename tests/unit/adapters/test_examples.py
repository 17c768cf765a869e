"""Folders of pictures into a picture adapter: what is read, what is refused, and a fit that is stopped."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
import torch

Image = pytest.importorskip("PIL.Image", reason="pictures are read with pillow")

from vl_core.adapters.examples import (
    FREE_TEXT,
    Example,
    clear_parts,
    describe_examples,
    examples_key,
    find_examples,
    fit_examples,
    probe_of,
    slots_of,
)
from vl_core.adapters.features import PictureFeatures
from vl_core.adapters.picture_adapter import PictureAdapter
from vl_core.adapters.ridge import NormalEquations
from vl_core.adapters.spec import AdapterSpec
from vl_core.stages.description import SLOTS
from vl_core.states.files import clear_orphans
from vl_core.states.layout import insert_pictures, text_layout
from vl_core.states.vl_states import VLStates

WIDTH = 8
PROMPTS = ("a cat", "a dog")


def tokens_of(text: str):
    """A layout with one token per character, in Z-Image's template."""
    ids = [151644, 872, 198, *(1000 + ord(letter) for letter in text), 151645, 198, 151644, 77091, 198]
    return text_layout(ids, prompt=text, model="planted")


def read(text: str):
    layout = tokens_of(text)
    table = torch.randn(70_000, WIDTH, generator=torch.Generator().manual_seed(0))
    states = table[layout.token_ids.clamp(max=69_999)].cumsum(0) / torch.arange(1, len(layout) + 1)[:, None]
    return states


def look(pixels: torch.Tensor, prompt: str) -> VLStates:
    layout = insert_pictures(tokens_of(prompt), [(2, 2)])
    colour = pixels.float().mean((0, 1)) / 255
    states = torch.randn(len(layout), WIDTH, generator=torch.Generator().manual_seed(1))
    states[:, :3] += colour * 5
    return VLStates(states[None], (5,), 6, layout, prompt, "", "planted")


SPEC = AdapterSpec(PictureFeatures("mean"), FREE_TEXT, WIDTH, 6, WIDTH, vl_model="planted", text_model="planted")


@pytest.fixture
def folder(tmp_path) -> Path:
    for index in range(20):
        shade = 12 * index
        Image.new("RGB", (64, 64), (shade, 255 - shade, 40)).save(tmp_path / f"{index:02}.png")
        words = f"shade {'abcdefghijklmnopqrst'[index]}, soft light"
        (tmp_path / f"{index:02}.txt").write_text(words, encoding="utf-8")
    return tmp_path


def test_pictures_and_words_are_found_by_name(folder):
    (folder / "notes.md").write_text("no picture", encoding="utf-8")
    found = find_examples(folder)
    assert [example.picture.name for example in found] == [f"{index:02}.png" for index in range(20)]
    assert found[3].words == "shade d, soft light"
    assert tuple(found[0].pixels().shape) == (64, 64, 3)
    assert {example.words for example in find_examples(folder, captions=False)} == {None}


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: (folder / "07.txt").unlink(), "07.txt"),
        (lambda folder: (folder / "07.txt").write_text(" \n", encoding="utf-8"), "1 of 20"),
        (lambda folder: [path.unlink() for path in sorted(folder.glob("*.png"))[5:]], "at least 10"),
    ],
)
def test_what_is_missing_is_named(folder, spoil, expected):
    spoil(folder)
    with pytest.raises(ValueError, match=expected):
        find_examples(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_examples(tmp_path / "nowhere")


def test_a_file_that_is_no_picture_is_named(folder):
    (folder / "07.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"07\.png"):
        fit_examples(find_examples(folder), SPEC, look, read, tokens_of, prompts=PROMPTS)


def test_slots_are_those_that_every_text_names():
    lines = "\n".join(f"{slot.name}: something" for slot in SLOTS)
    assert slots_of([Example(Path("a.png"), lines)] * 2) == SLOTS
    assert slots_of([Example(Path("a.png"), lines), Example(Path("b.png"), "a free text")]) == FREE_TEXT


def test_the_key_changes_with_pictures_words_prompts_and_spec(folder):
    found = find_examples(folder)
    keys = {examples_key(found, SPEC, PROMPTS), examples_key(found[1:], SPEC, PROMPTS)}
    keys.add(examples_key(found, SPEC, ("a cat",)))
    keys.add(examples_key([*found[:-1], Example(found[-1].picture, "other words")], SPEC, PROMPTS))
    other = AdapterSpec(PictureFeatures("grid2"), FREE_TEXT, WIDTH, 6, WIDTH)
    keys.add(examples_key(found, other, PROMPTS))
    assert len(keys) == 5
    assert examples_key(find_examples(folder), SPEC, PROMPTS) in keys


def same(a: PictureAdapter, b: PictureAdapter) -> bool:
    first, second = a.map.tensors(), b.map.tensors()
    return all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_a_fit_that_is_stopped_goes_on_to_the_same_adapter(folder, tmp_path):
    examples, part, done = find_examples(folder), tmp_path / "half.part", []
    whole, resumed = fit_examples(examples, SPEC, look, read, tokens_of, prompts=PROMPTS)
    assert resumed == 0

    def stop():
        done.append(0)
        if len(done) == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_examples(examples, SPEC, look, read, tokens_of, prompts=PROMPTS, part=part, step=stop)
    seen = []
    again, resumed = fit_examples(
        examples, SPEC, lambda pixels, prompt: seen.append(prompt) or look(pixels, prompt), read, tokens_of,
        prompts=PROMPTS, part=part,
    )
    assert resumed == 16
    assert len(seen) == 4
    assert not part.exists()
    assert same(whole, again)


def test_a_fit_that_is_killed_goes_on_to_the_same_adapter(folder, tmp_path):
    """A process of its own, killed by the system in mid-fit: what it kept is whole."""
    part = tmp_path / "killed.part"
    code = (
        f"import psutil, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_examples import PROMPTS, SPEC, find_examples, fit_examples, look, read, tokens_of\n"
        "done = []\n"
        "def die():\n"
        "    done.append(0)\n"
        "    if len(done) == 19: psutil.Process().kill()\n"
        f"fit_examples(find_examples(Path({str(folder)!r})), SPEC, look, read, tokens_of, prompts=PROMPTS,"
        f" part=Path({str(part)!r}), step=die)\n"
    )
    root = Path(__file__).resolve().parents[3]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert ended.returncode
    again, resumed = fit_examples(find_examples(folder), SPEC, look, read, tokens_of, prompts=PROMPTS, part=part)
    assert resumed == 16
    assert same(again, fit_examples(find_examples(folder), SPEC, look, read, tokens_of, prompts=PROMPTS)[0])


class Writer:
    """Stands for a model that writes: its words say the picture's colour; counts what it was shown."""

    def __init__(self, refuse: int = -1):
        self.shown, self.refuse = [], refuse

    def __call__(self, pixels: torch.Tensor) -> str:
        self.shown.append(tuple(pixels[0, 0].tolist()))
        if len(self.shown) - 1 == self.refuse:
            raise ValueError("instruction: expected words, the model wrote nothing")
        return f"“{self.shown[-1]}”\nsoft light"


def test_pictures_are_described_in_order_each_by_its_own_words(folder, tmp_path):
    examples, write = find_examples(folder, captions=False), Writer()
    found, resumed = describe_examples(examples, write)
    assert resumed == 0
    assert [one.picture for one in found] == [one.picture for one in examples]
    expected = [(12 * index, 255 - 12 * index, 40) for index in range(20)]
    assert write.shown == expected and [one.words for one in found] == [f"“{c}”\nsoft light" for c in expected]


def test_writing_that_is_stopped_goes_on_and_gives_the_same_words(folder, tmp_path):
    examples, kept, write = find_examples(folder, captions=False), tmp_path / "words.jsonl", Writer()
    with pytest.raises(KeyboardInterrupt):
        describe_examples(examples, write, asked="look", kept=kept, step=iter_raise(8))
    with pytest.raises(ValueError, match=r"10\.png: instruction: expected words"):
        describe_examples(examples, Writer(refuse=2), asked="look", kept=kept)
    again = Writer()
    found, resumed = describe_examples(examples, again, asked="look", kept=kept)
    assert resumed == 10 and len(again.shown) == 10
    assert found == describe_examples(examples, Writer())[0]


def test_a_line_cut_off_by_a_crash_costs_that_picture_alone(folder, tmp_path):
    examples, kept = find_examples(folder, captions=False), tmp_path / "words.jsonl"
    whole = describe_examples(examples, Writer(), kept=kept)[0]
    content = kept.read_bytes()
    for cut in (1, 30, 60):  # inside the last line, inside a character, inside its key
        kept.write_bytes(content[:-cut])
        write = Writer()
        assert describe_examples(examples, write, kept=kept) == (whole, 19)
        assert len(write.shown) == 1
        assert describe_examples(examples, Writer(), kept=kept) == (whole, 20)
    kept.write_text("[1]\n{}\nnull\nno json\n", encoding="utf-8")
    assert describe_examples(examples, Writer(), kept=kept) == (whole, 0)


def test_another_request_or_changed_pictures_are_described_anew(folder, tmp_path):
    examples, kept = find_examples(folder, captions=False), tmp_path / "words.jsonl"
    describe_examples(examples, Writer(), asked="look", kept=kept)
    assert describe_examples(examples, Writer(), asked="light", kept=kept)[1] == 0
    Image.new("RGB", (64, 64), (1, 2, 3)).save(folder / "05.png")
    (folder / "06.png").rename(folder / "renamed.png")
    write = Writer()
    assert describe_examples(find_examples(folder, captions=False), write, asked="look", kept=kept)[1] == 19
    assert write.shown == [(1, 2, 3)]


def test_a_broken_picture_is_named_once(folder, tmp_path):
    (folder / "07.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^07\.png: cannot be read"):
        describe_examples(find_examples(folder, captions=False), Writer(), kept=tmp_path / "words.jsonl")


def test_a_part_of_another_fit_is_refused(folder, tmp_path):
    part = tmp_path / "other.part"
    with pytest.raises(KeyboardInterrupt):
        fit_examples(
            find_examples(folder), SPEC, look, read, tokens_of, prompts=PROMPTS, part=part,
            step=iter_raise(17),
        )
    other = AdapterSpec(PictureFeatures("grid1"), FREE_TEXT, WIDTH, 6, WIDTH, vl_model="planted", text_model="planted")
    with pytest.raises(ValueError, match="another fit"):
        fit_examples(find_examples(folder), other, look, read, tokens_of, prompts=PROMPTS, part=part)


def iter_raise(count: int):
    """A step that interrupts at its ``count``-th call."""
    left = [count]

    def step():
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return step


def other(pixels: torch.Tensor, prompt: str) -> VLStates:
    """The encoder with a LoRA, so to say: all its states are other ones."""
    seen = look(pixels, prompt)
    return VLStates(seen.states * 1.5 + 0.3, seen.layers, seen.num_layers, seen.layout, prompt, "", "planted")


def reread(text: str) -> torch.Tensor:
    return read(text).flip(-1)


def probe(look_at, read_of) -> torch.Tensor:
    return probe_of(look_at(torch.zeros(64, 64, 3, dtype=torch.uint8), "a fox"), read_of("a fox"))


@pytest.mark.parametrize(("eye", "ear"), [(other, read), (look, reread)])
def test_a_stopped_fit_does_not_go_on_with_other_encoders(folder, tmp_path, eye, ear, caplog):
    """What comes out is what the new encoders alone give, not a mixture of both."""
    examples, part = find_examples(folder), tmp_path / "half.part"
    with pytest.raises(KeyboardInterrupt):
        fit_examples(
            examples, SPEC, look, read, tokens_of, prompts=PROMPTS, part=part, probe=probe(look, read),
            step=iter_raise(18),
        )
    expected, _ = fit_examples(examples, SPEC, eye, ear, tokens_of, prompts=PROMPTS)
    found, resumed = fit_examples(
        examples, SPEC, eye, ear, tokens_of, prompts=PROMPTS, part=part, probe=probe(eye, ear)
    )
    assert resumed == 0 and same(found, expected) and "other encoders" in caplog.text


def test_a_stopped_fit_goes_on_with_the_same_encoders_up_to_rounding(folder, tmp_path):
    examples, part, plain = find_examples(folder), tmp_path / "half.part", probe(look, read)
    with pytest.raises(KeyboardInterrupt):
        fit_examples(
            examples, SPEC, look, read, tokens_of, prompts=PROMPTS, part=part, probe=plain, step=iter_raise(18)
        )
    rounded = plain.bfloat16().float()
    assert fit_examples(examples, SPEC, look, read, tokens_of, prompts=PROMPTS, part=part, probe=rounded)[1] == 16


def test_a_fit_that_is_stopped_while_it_solves_has_read_every_picture(folder, tmp_path, monkeypatch):
    examples, part, seen, go_on = find_examples(folder), tmp_path / "solved.part", [], threading.Event()
    whole, _ = fit_examples(examples, SPEC, look, read, tokens_of, prompts=PROMPTS)
    solve = NormalEquations.solve

    def wait(self, *arguments, **options):
        go_on.wait(60)  # longer than any stop takes
        return solve(self, *arguments, **options)

    def watch_look(pixels, prompt):
        seen.append(prompt)
        return look(pixels, prompt)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(NormalEquations, "solve", wait)
        fit_examples(
            examples, SPEC, watch_look, read, tokens_of, prompts=PROMPTS, part=part, check=iter_raise(1)
        )
    go_on.set()
    again, resumed = fit_examples(
        examples, SPEC, watch_look, read, tokens_of, prompts=PROMPTS, part=part, check=lambda: None
    )
    assert resumed == len(seen) == len(examples)
    assert same(whole, again) and not part.exists()


def test_the_token_budget_is_part_of_the_key(folder):
    found = find_examples(folder)
    assert len({examples_key(found, SPEC, PROMPTS, told) for told in ("", "1024 tokens", "256 tokens")}) == 3


def test_a_damaged_part_is_named_with_what_to_do(folder, tmp_path):
    part = tmp_path / "half.part"
    part.write_bytes(b"no file of ours")
    with pytest.raises(ValueError, match=r"half\.part: expected a safetensors.*remove .*half\.part, and fit again"):
        fit_examples(find_examples(folder), SPEC, look, read, tokens_of, prompts=PROMPTS, part=part)


def test_what_stopped_fits_left_goes_when_the_adapter_is_there(tmp_path):
    mine, others = tmp_path / f"look_{'a' * 16}.part", tmp_path / f"look_2_{'a' * 16}.part"
    for path in (mine, others):
        path.write_bytes(b"")
    clear_parts(tmp_path / "look.safetensors")
    assert not mine.exists() and others.exists()


def test_python_keeps_nothing_of_the_names_whose_leftovers_are_looked_for(tmp_path):
    def look_for(names: range) -> None:
        for number in names:
            clear_parts(tmp_path / f"look{number}.safetensors")
            clear_orphans(tmp_path / f"look{number}.safetensors")

    look_for(range(20))
    tracemalloc.start()
    try:
        look_for(range(20, 40))
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20 * 500  # bytes; an expression for each name takes 4 000


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_captions_in_other_encodings_make_the_same_kind_of_adapter(folder, encoding):
    lines = "\n".join(f"{slot.name}: somebody’s" for slot in SLOTS)
    for path in folder.glob("*.txt"):
        path.write_bytes(lines.encode(encoding))
    found = find_examples(folder)
    assert {example.words for example in found} == {lines} and slots_of(found) == SLOTS


def test_a_caption_that_cannot_be_told_is_named(folder):
    (folder / "07.txt").write_bytes("水彩画和柔和的光线".encode("gbk"))
    with pytest.raises(ValueError, match=r"07\.txt: expected a text in UTF-8"):
        find_examples(folder)
