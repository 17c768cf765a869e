"""Floods of odd input: ``pytest tests/fuzz`` is about 1000 cases, ``--hypothesis-profile nightly`` above 10 000.

The seed of a run is printed on top; ``--hypothesis-seed`` repeats it.
"""

from __future__ import annotations

import random

import hypothesis
import pytest

COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": list(hypothesis.HealthCheck)}
hypothesis.settings.register_profile("ci", max_examples=60, database=None, **COMMON)
hypothesis.settings.register_profile("nightly", max_examples=800, **COMMON)
hypothesis.settings.load_profile("ci")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config) -> None:
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


def pytest_report_header(config) -> str:
    return f"fuzz: --hypothesis-seed={config.getoption('--hypothesis-seed')}"


@pytest.hookimpl(hookwrapper=True)
def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(pytest_report_header(config))  # -q hides the header
    yield
