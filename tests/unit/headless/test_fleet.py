"""How work is shared out among a cluster's actors."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vl_core.headless.compare.fleet import shared_out


@pytest.fixture
def made_when(ray_cluster, tmp_path):
    """Promises of an item, kept at once or when the file is there."""
    file = tmp_path / "go on"

    @ray_cluster.remote(num_cpus=0)
    def make(item: int, file: str) -> int:
        until = time.monotonic() + 30
        while file and not Path(file).exists():
            assert time.monotonic() < until, "nobody said go on"
            time.sleep(0.01)
        if item < 0:
            raise ValueError("a negative item")
        return item * item

    return file, make


@pytest.mark.parametrize(("ordered", "found"), [(True, [0, 1, 4, 9, 16, 25]), (False, [0, 4, 16, 1, 9, 25])])
def test_a_slow_actor_holds_up_no_other_and_gets_none_of_the_last_items(made_when, ordered, found):
    file, make = made_when
    given = []

    def task(actor, item):
        given.append((actor, item))
        if item == 5:
            file.touch()  # only now does the slow one go on
        return make.remote(item, str(file) if actor == "slow" else "")

    made = list(shared_out(["quick", "slow"], task, range(6), ordered=ordered, ahead=2))
    # Which comes first of what was under way when the slow one went on is chance.
    assert (made if ordered else sorted(made[:3]) + sorted(made[3:])) == found
    assert given == [("quick", 0), ("slow", 1), ("quick", 2), ("slow", 3), ("quick", 4), ("quick", 5)]


def test_errors_of_a_task_are_raised_as_they_are(made_when):
    _, make = made_when
    found = shared_out(["one"], lambda actor, item: make.remote(item, ""), [2, -1, 3], ordered=True)
    assert next(found) == 4
    with pytest.raises(ValueError, match="a negative item"):
        next(found)


def test_of_no_items_nothing_is_made(ray_cluster):
    assert [*shared_out(["one", "two"], lambda actor, item: None, [], ordered=True, ahead=2)] == []
