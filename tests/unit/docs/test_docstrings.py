"""Examples in docstrings are run, and everything public says what it is."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import vl_core

MODULES = sorted(
    name for _, name, _ in pkgutil.walk_packages(vl_core.__path__, "vl_core.") if not name.endswith("__main__")
)


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = []
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            if (error.name or "").startswith("vl_core"):
                raise
            continue  # of a package that only some commands need
        found += [one for one in finder.find(module, name) if one.examples]
    return found


@pytest.mark.parametrize("example", examples(), ids=lambda one: one.name)
def test_the_example_says_what_comes_out(example):
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(example).failed == 0


def test_there_are_examples():
    assert len(examples()) >= 8


@pytest.mark.parametrize("name", vl_core.__all__)
def test_every_public_name_has_a_docstring(name):
    public = getattr(vl_core, name)
    assert isinstance(public, tuple) or (public.__doc__ or "").strip()
