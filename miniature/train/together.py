"""``all``: every stage from text to check, each as soon as what it needs is there.

Models this small leave most of a GPU idle, so stages that do not need each other share one: there each is a process of
its own. On a CPU they run in turn. ``log_all.jsonl`` has the second at which each stage ended.
"""

from __future__ import annotations

import multiprocessing
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from .training import Options, log

# What a stage needs, in an order in which that comes first. The DiT needs the judge for its closing figures only, but
# three stages at once would slow each other down.
NEEDS = {
    "text": (), "vae": (), "vl": ("text",), "judge": ("vae",), "dit": ("text", "judge"),
    "assemble": ("vl", "dit"), "answers": ("assemble",), "check": ("answers",),
}
LEAVE_A_FILE = tuple(stage for stage in NEEDS if stage != "check")  # STAGE.json, when their work is done


def run(options: Options, work: Callable[[str, float | None], bool], side_by_side: bool) -> dict[str, float]:
    """Run every stage; with ``options.resume`` those that ended before are left out.

    Args:
        work: ``work(stage, stop_after)`` runs one and tells whether it went well.
        side_by_side: whether ``work`` may be called from several threads at once.

    Returns:
        The seconds since the start at which each stage ended.

    Raises:
        SystemExit: a stage failed, or ``options.stop_after`` came first; it names the stages that are left.
    """
    at: dict[str, float] = {}
    if not options.resume:
        for stage in LEAVE_A_FILE:  # of an earlier run
            (options.out / f"{stage}.json").unlink(missing_ok=True)

    def one(stage: str, needed: list[Future[bool]]) -> bool:
        if not all(stage_before.result() for stage_before in needed):
            return False
        closing = options.out / f"{stage}.json"
        if options.resume and closing.is_file():
            log(options, "all", left_out=stage)
            return True
        before = time.monotonic() - options.started
        left = None if options.stop_after is None else options.stop_after - before
        if left is not None and left <= 0:
            return False
        well = work(stage, left)
        if well and (stage not in LEAVE_A_FILE or closing.is_file()):
            at[stage] = round(time.monotonic() - options.started, 1)
            log(options, "all", ended=stage, at_s=at[stage], took_s=round(at[stage] - before, 1))
            return True
        return False

    with ThreadPoolExecutor(len(NEEDS) if side_by_side else 1) as pool:
        ended: dict[str, Future[bool]] = {}
        for stage, needed in NEEDS.items():
            ended[stage] = pool.submit(one, stage, [ended[name] for name in needed])
    left = [stage for stage, future in ended.items() if not future.result()]
    if left:
        raise SystemExit(f"miniature: still to do: {', '.join(left)}; go on with --resume (a failure is told above)")
    return at


def in_this_process(chosen: Namespace, stage: str, stop_after: float | None) -> bool:
    from ..stages import run_stage

    run_stage(stage, Namespace(**vars(chosen) | {"stop_after": stop_after}))
    return True


def in_a_process_of_its_own(chosen: Namespace, stage: str, stop_after: float | None) -> bool:
    """Whether the stage ended without an exception; what it prints is seen here."""
    # Spawned, not forked: a GPU that this process has touched is of no use to a fork. What is spawned must be of this
    # module: a child does not import the __main__ of a package.
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=in_this_process, args=(chosen, stage, stop_after), name=stage)
    process.start()
    process.join()
    return process.exitcode == 0
