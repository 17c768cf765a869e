"""describe: a text beside each picture, those that are there stay, and what cannot be read stops nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miniature import world
from miniature.measure.chain import as_image
from miniature.train.assemble import MODELS, VISION
from vl_core.adapters.examples import find_examples
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.encoder.writing import Description, describe, rewrite_request
from vl_core.headless import describe as command
from vl_core.headless.cli import main
from vl_core.stages.description import slot_request
from vl_core.steering.takes import find_take

pytest.importorskip("transformers", minversion="5", reason="the miniature's tokenizer was saved by transformers 5")
Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

PICTURES = 11
ASKED = world.DESCRIBE_LOOK[1]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    pictures, _ = world.render(
        world.sample_scenes(PICTURES, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(1)
    )
    for index, picture in enumerate(as_image(pictures)):
        Image.fromarray((picture.numpy() * 255).astype(np.uint8)).save(root / f"{index:02}.png")
    return root


def tell(folder, *more: str) -> int:
    options = ["--device", "cpu", "--dtype", "float32", "--instruction", ASKED, "--max-tokens", "40", "--together", "4"]
    return main(["describe", "-f", str(folder), "-m", str(MODELS / VISION), *options, *more])


def test_every_picture_gets_the_words_it_would_get_alone_where_a_fit_reads_them(folder):
    assert tell(folder) == 0
    encoder = Qwen3VLEncoder.from_pretrained(MODELS / VISION, dtype=torch.float32)
    examples = find_examples(folder)
    assert len(examples) == PICTURES and len({one.words for one in examples}) > 5
    for one in examples[:3]:
        assert one.words == describe(encoder, [one.pixels()], ASKED, max_tokens=40).words


def test_texts_that_are_there_stay_and_the_rest_is_written_into_a_folder(folder, tmp_path, capsys):
    output = tmp_path / "texts"
    output.mkdir()
    (output / "03.txt").write_text("my own words")
    (output / "04.txt").write_text(" \n")
    assert tell(folder, "-o", str(output)) == 0
    assert (output / "03.txt").read_text() == "my own words"
    assert all((output / f"{index:02}.txt").read_text().strip() for index in range(PICTURES))
    assert not list(folder.glob("*.txt")) and "1 of 11 pictures have a text already" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on_where_it_was(folder, monkeypatch, capsys):
    whole = command.describe_each

    def stop(*args, **options):
        if len(list(folder.glob("*.txt"))) == 4:
            raise KeyboardInterrupt
        return whole(*args, **options)

    monkeypatch.setattr(command, "describe_each", stop)
    assert tell(folder) == 130
    assert len(list(folder.glob("*.txt"))) == 4 and not list(folder.glob("*.part"))
    written = []
    monkeypatch.setattr(command, "describe_each", lambda *args, **options: written.append(args[1]) or whole(
        *args, **options
    ))
    assert tell(folder) == 0
    assert [len(pictures) for pictures in written] == [4, 3]
    assert tell(folder) == 0 and len(written) == 2
    assert "11 of 11 pictures have a text already" in capsys.readouterr().out


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_described(folder, capsys):
    (folder / "05.png").write_bytes(b"no picture")
    assert tell(folder) == 1
    shown = capsys.readouterr().err
    assert "05.png: " in shown and "1 of 11 pictures have no text" in shown
    assert len(list(folder.glob("*.txt"))) == PICTURES - 1


def test_a_picture_without_words_is_named_and_the_others_are_described(folder, monkeypatch, capsys):
    whole = command.describe_each
    silent = torch.from_numpy(np.asarray(Image.open(folder / "02.png").convert("RGB")).copy())

    def refuse(encoder, pictures, *args, **options):
        if any(torch.equal(picture, silent) for picture in pictures):
            raise ValueError("instruction: expected words, the model wrote nothing in 1 tokens.")
        return whole(encoder, pictures, *args, **options)

    monkeypatch.setattr(command, "describe_each", refuse)
    assert tell(folder) == 1
    assert "02.png: instruction: expected words" in capsys.readouterr().err
    assert len(list(folder.glob("*.txt"))) == PICTURES - 1 and not (folder / "02.txt").exists()


def test_mistakes_are_named(folder, tmp_path, capsys):
    assert tell(tmp_path / "nowhere") == 1
    assert "--folder: expected a folder of pictures" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert tell(tmp_path / "empty") == 1
    assert "found none" in capsys.readouterr().err
    Image.new("RGB", (64, 64)).save(folder / "00.jpg")
    assert tell(folder) == 1
    assert "00.jpg and 00.png would share 00.txt" in capsys.readouterr().err
    (folder / "00.jpg").unlink()
    assert tell(folder, "--together", "0") == 1 and tell(folder, "--max-tokens", "0") == 1
    assert not list(folder.glob("*.txt"))


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """What is asked, where nobody answers but in "words"."""
    asked = []

    def tell_it(encoder, pictures, instruction, **_):
        asked.append(instruction)
        return [Description("words", "words", 1, False)] * len(pictures)

    monkeypatch.setattr(command, "describe_each", tell_it)
    return asked


def test_a_prompt_is_rewritten_with_each_picture_in_view(folder, asked, capsys):
    assert tell(folder, "--rewrite", "a fox in the snow") == 0
    assert set(asked) == {rewrite_request("a fox in the snow")} and "a fox in the snow" in asked[0]
    assert tell(folder, "--rewrite", " ") == 1
    assert "prompt: expected words to rewrite" in capsys.readouterr().err


@pytest.mark.parametrize("take", ["slots", "style"])
def test_a_take_asks_what_it_says_and_slots_ask_for_the_lines_of_an_adapter(take, folder, asked):
    options = ["--device", "cpu", "--dtype", "float32", "--take", take]
    assert main(["describe", "-f", str(folder), "-m", str(MODELS / VISION), *options]) == 0
    assert set(asked) == {slot_request() if take == "slots" else find_take("style").instruction}


def test_a_cluster_writes_the_same_texts(folder, tmp_path, actors_of_one_process):
    """What happens when a worker dies is the same for all commands: test_compare.py."""
    assert tell(folder) == 0
    assert tell(folder, "-o", str(tmp_path / "texts"), "--ray", "local") == 0
    assert actors_of_one_process == [command.Teller]
    alone, found = (
        {path.name: path.read_text() for path in where.glob("*.txt")} for where in (folder, tmp_path / "texts")
    )
    assert len(alone) == PICTURES and found == alone
