"""What every command shares."""

from __future__ import annotations

import argparse
import io
import sys
from types import SimpleNamespace

import pytest

from vl_core.headless import cli

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
