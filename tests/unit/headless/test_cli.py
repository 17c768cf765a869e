"""What every command shares."""

from __future__ import annotations

import argparse
import io
import sys
from types import SimpleNamespace

import pytest

from vl_core.headless import cli
from vl_core.headless.embedded import embedded
from vl_core.headless.folders import folders_of, questions_of, vision_or_demo

SAID = "colours: 红 → “rot”"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_letters_that_the_systems_encoding_lacks_do_not_stop_a_command(stream, monkeypatch):
    """Windows writes into files and pipes in cp1252, which has neither Chinese nor arrows."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(written, encoding="cp1252"))
    command = SimpleNamespace(
        SUMMARY="say it", add_arguments=lambda parser: None, run=lambda _: print(SAID, file=getattr(sys, stream))
    )
    monkeypatch.setitem(cli.COMMANDS, "demo", command)
    assert cli.main(["demo"]) == 0
    getattr(sys, stream).flush()
    assert written.getvalue().decode("cp1252").strip() == "colours: ? ? “rot”"


@pytest.mark.parametrize("name", ["extract", "generate", "compare", "layers", "learn", "evaluate"])
def test_every_command_takes_several_pictures_at_once_or_one_by_one(name):
    parser = argparse.ArgumentParser()
    cli.COMMANDS[name].add_arguments(parser)
    needed = [
        part for action in parser._actions if action.required and action.dest != "image"
        for part in (action.option_strings[0], "x")
    ]
    given = parser.parse_args([*needed, "-i", "a.png", "b.png", "-i", "c.png"])
    assert given.image == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("name", ["extract", "describe", "generate", "calibrate", "fit"])
def test_a_folder_may_be_the_trained_miniatures(name, tmp_path, monkeypatch):
    """As where it is the default; a folder of that name goes before."""
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    cli.COMMANDS[name].add_arguments(parser)
    options = {action.dest: action for action in parser._actions}
    needed = [
        part for action in parser._actions if action.required for part in (action.option_strings[0], "demo")
    ]
    folders = dict(zip(("zimage", "vision"), embedded("folders")(), strict=True))
    expected = folders["vision" if "Qwen3-VL" in options["model"].help else "zimage"]
    assert parser.parse_args(needed).model == expected
    if "vision" in options:
        assert parser.parse_args([*needed, "--vision", "demo"]).vision == folders["vision"]
    (tmp_path / "demo").mkdir()
    assert parser.parse_args(needed).model == "demo"


def test_the_miniatures_qwen3_vl_is_asked_what_it_knows_where_it_is_meant_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = questions_of(vision_or_demo("demo"))
    assert asked["style"].ask == "what style is it?" and asked["colours"].form.format("red") == "red background"
    assert questions_of(str(vision_or_demo("a folder"))) == questions_of(None) == {}


def test_demo_is_the_miniatures_vision_folder_beside_either_model(tmp_path, monkeypatch):
    zimage, vision = folders_of("demo", None)
    assert folders_of("demo", "demo") == (zimage, vision)
    assert folders_of("Z-Image-Turbo", "demo") == ("Z-Image-Turbo", vision)
    (tmp_path / "demo").mkdir()  # who has a folder of that name means it
    monkeypatch.chdir(tmp_path)
    assert folders_of("Z-Image-Turbo", "demo") == ("Z-Image-Turbo", "demo")
    with pytest.raises(ValueError, match="the demo has its own"):
        folders_of("demo", "demo")
