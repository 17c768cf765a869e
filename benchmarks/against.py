"""Whether anything became slower: the same work done by this tree and by another revision, in turns.

Each turn is a process of its own in a tree, which measures by this tree's benchmarks and by the public names of
``vl_core`` alone. The least CPU time of a call counts: whatever else a machine does only adds to it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .common import Report, add_output_argument

ROOT = Path(__file__).parents[1]
WORDS, LAYER, PROMPT = 16, -2, "a cat in a red hat, a painting of the sea, the light of a lamp"
ENOUGH, MOST = 50, 1000  # milliseconds and calls of a row after which a turn goes on


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("revision", help="what git knows the other tree by")
    parser.add_argument("--size", default="medium", choices=["tiny", "medium"])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each tree")
    parser.add_argument("--runs", type=int, default=5, help="least calls per row and turn")


def run(arguments) -> None:
    from .models import SIDE, build_model

    report = Report("against", torch.device("cpu"), arguments.out, size=arguments.size, rounds=arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        model, old = Path(folder, "model"), Path(folder, "old")
        _git("worktree", "add", "--quiet", "--detach", str(old), arguments.revision)
        try:
            for part in build_model(arguments.size, torch.device("cpu"), torch.float32):
                part.save_pretrained(model)
            shutil.copytree(ROOT / "benchmarks", old / "benchmarks", dirs_exist_ok=True)
            turns: dict[Path, list[dict]] = {old: [], ROOT: []}
            for number in range(arguments.rounds):
                for tree, found in turns.items():
                    print(f"== round {number + 1}, {tree.name}", flush=True)
                    found.append(_turn(tree, model, 32 * SIDE[arguments.size], arguments.runs))
        finally:
            _git("worktree", "remove", "--force", str(old))
    report.section("rows", lambda: [report.add(what, **row) for what, row in rows(turns[old], turns[ROOT])])
    report.write()


def rows(old: Sequence[dict], new: Sequence[dict]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of turns, by row its milliseconds or an error: the least of each tree and their ratio; of what one lacks, why."""
    for what in dict.fromkeys(name for turn in (*new, *old) for name in turn):
        found = [[turn.get(what, "no such row") for turn in turns] for turns in (old, new)]
        least = [next((one for one in some if isinstance(one, str)), None) or min(some) for some in found]
        ratio = {} if str in map(type, least) else {"new / old": least[1] / least[0]}
        yield what, {"old": least[0], "new": least[1], **ratio}


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {arguments[0]}: {done.stderr.strip()}")


def _turn(tree: Path, *arguments: object) -> dict[str, float | str]:
    command = [sys.executable, "-c", "from benchmarks import against; against.child()", *map(str, arguments)]
    done = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child() -> None:
    """Print what every row took in the tree of the working folder; ``sys.argv``: the model, a picture's side, runs."""
    import vl_core

    assert Path(vl_core.__file__).is_relative_to(Path.cwd()), f"not of {Path.cwd()}: {vl_core.__file__}"
    works = _works(vl_core, sys.argv[1], int(sys.argv[2]))
    print(json.dumps({what: quickest(work, int(sys.argv[3])) for what, work in works}))


def quickest(work: Callable[[], Any], runs: int) -> float | str:
    """Milliseconds of CPU time of the quickest call, the first left out; an error in words."""
    times: list[float] = []
    try:
        work()
        while len(times) < runs or (sum(times) < ENOUGH and len(times) < MOST):
            start = time.process_time()
            work()
            times.append(1000 * (time.process_time() - start))
    except Exception as error:  # a name, argument or step that this tree lacks
        return f"{type(error).__name__}: {error}"
    return min(times)


def _works(core: Any, model: str, side: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    from .stages import GRID, NEXT_TO_NOTHING, WIDTH, stages

    encoder, numbers = core.Qwen3VLEncoder.from_pretrained(model, dtype=torch.float32), iter(range(1 << 30))

    def picture() -> torch.Tensor:
        return torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(next(numbers)))

    def say(what: str) -> Any:
        return core.describe(encoder, [image], what, should_stop=iter([False] * WORDS + [True] * WORDS).__next__)

    image = picture()
    yield "encode, a new picture", lambda: encoder.encode([picture()], PROMPT, LAYER)
    yield "encode, a new prompt", lambda: encoder.encode([image], f"{PROMPT} {next(numbers)}", LAYER)
    yield "encode, the same again", lambda: encoder.encode([image], PROMPT, LAYER)
    yield f"describe, {WORDS} tokens", lambda: say(f"What does it show? {next(numbers)}")
    yield "describe, the same again", lambda: say("What does it show?")
    for title, size in (("", (WIDTH, GRID)), (", 60 × 64", NEXT_TO_NOTHING)):
        yield from ((name + title, work) for name, work in stages(torch.device("cpu"), *size).items())
