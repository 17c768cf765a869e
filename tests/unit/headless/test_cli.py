"""What every command shares."""

from __future__ import annotations

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
