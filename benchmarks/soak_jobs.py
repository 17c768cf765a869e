"""Long jobs that are stopped or killed: how fast Stop acts, what was kept, and whether the result is the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import load_file

from .common import Report

ROOT = Path(__file__).parents[1]
MINIATURE = ROOT / "miniature" / "models"
SLOWEST_STOP = 2.0  # seconds
DELAYS = (0.2, 0.7, 1.5)  # seconds into a job at which it is stopped
PATIENCE = 600.0
ENDED = "it had ended"


@dataclass(frozen=True)
class Job:
    """A node that runs for seconds.

    Attributes:
        short: its id without ``ZImageVL``; chosen: its inputs that are not the usual ones.
        part: files below the server's folder that it keeps while it runs, and how many are worth a kill; "" if its
            work is not kept.
        made: files that it makes; MARK is what tells one run of it from another.
        tells: what its node says where it went on.
    """

    name: str
    short: str
    chosen: dict[str, Any]
    part: tuple[str, int] = ("", 0)
    made: str = ""
    tells: str = "stopped"


TEXTS, WRITES = "text files beside the pictures", "Qwen3-VL describes them"
ADAPTERS, LOOKS, UNTOLD = "models/zimage_vl_adapters", "models/zimage_vl_looks", "untold_pictures"
NAMED = ("AdapterFit", "LookLearn")  # what they write has a name; the others' prompts differ in their words
JOBS = (
    Job(
        "fit on captions", "AdapterFit", {"folder": "many_pictures", "captions": TEXTS, "replace": True},
        (f"{ADAPTERS}/*.part", 1), f"{ADAPTERS}/fit_on_captions_MARK.safetensors",
    ),
    Job(
        "fit on descriptions", "AdapterFit", {"folder": "some_pictures", "captions": WRITES, "replace": True},
        (f"{ADAPTERS}/*.jsonl", 1), f"{ADAPTERS}/fit_on_descriptions_MARK.safetensors",
    ),
    Job(
        "learn", "LookLearn", {"steps": 60, "size": 128, "preview": False, "replace": True}, (f"{LOOKS}/*.part", 1),
        f"{LOOKS}/learn_MARK.safetensors",
    ),
    Job(
        "describe folder", "DescribeFolder", {"together": 2, "max_tokens": 30}, (f"input/{UNTOLD}_MARK/*.txt", 3),
        f"input/{UNTOLD}_MARK/*.txt", "were there",
    ),
    Job("match, ridge", "MatchSpace", {"method": "ridge", "prompts": "prompts.txt"}),
    Job("sweep", "Sweep", {
        "columns": "strength", "column_values": "0.01:0.6:0.01", "rows": "way",
        "row_values": "aligned blend, image delta, appended tokens, words", "layer": 0,
    }),
    Job("describe", "Describe", {"max_tokens": 2000}),
    Job("layer report", "LayerReport", {"layers": "all"}),
)


def job_prompt(job: Job, info: dict, wiring: ModuleType, mark: str) -> dict[str, dict]:
    """The prompt of a job; ``mark`` makes it another one for the server's cache, or names what it writes."""
    own = {"name": f"{job.name.replace(' ', '_')}_{mark}"} if job.short in NAMED else {"prompt": f"a cat {mark}"}
    if job.short == "MatchSpace":
        own = {}
    if job.short == "DescribeFolder":
        own = {"folder": f"{UNTOLD}_{mark}"}
    prompt, _ = wiring.node_prompt(job.short, info, chosen={**own, **job.chosen})
    if job.short == "Describe":
        prompt["ours"]["inputs"]["instruction"] = f"Describe picture {mark}."
    return prompt


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > until:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(0.02)
    return found


def post(server: Any, prompt: dict) -> str:
    status, answer = server.post("/prompt", {"prompt": prompt})
    if status != 200:
        raise AssertionError(f"refused: {answer}")
    return answer["prompt_id"]


def is_running(server: Any, number: str) -> bool:
    return any(entry[1] == number for entry in server.get("/queue")["queue_running"])


def outcome(history: dict) -> tuple[str, str]:
    """How a prompt ended, and what its nodes say."""
    kinds = [kind for kind, _ in history["status"]["messages"]]
    words = "\n".join(line for one in history["outputs"].values() for line in one.get("text", []) if line)
    if "execution_interrupted" in kinds:
        return "stopped", words
    if history["status"]["status_str"] != "success":
        return "error", str(history["status"]["messages"][-1][1].get("exception_message"))
    return "done", words


def finish(server: Any, number: str) -> tuple[str, str]:
    return outcome(wait_for(lambda: server.get(f"/history/{number}"))[number])


# --- Stop -------------------------------------------------------------------------------------------------------------


def stop_in_the_server(report: Report, server: Any, wiring: ModuleType) -> None:
    """Every job stopped at several moments, then run to its end."""
    info, slow = server.get("/object_info"), []
    for job in JOBS:
        times, early = [], 0
        for index, delay in enumerate(DELAYS):
            mark = "stopped" if job.made else f"stopped {index}"
            number = post(server, job_prompt(job, info, wiring, mark))
            wait_for(partial(lambda number: is_running(server, number) or server.get(f"/history/{number}"), number))
            time.sleep(delay)
            asked = time.perf_counter()
            server.post("/interrupt", {"prompt_id": number})
            ended, _ = finish(server, number)
            if ended == "stopped":
                times.append(time.perf_counter() - asked)
            else:
                early += 1
        ended, words = finish(server, post(server, job_prompt(job, info, wiring, "stopped")))
        kept = next((line for line in words.splitlines() if job.made and job.tells in line), "")
        report.add(
            f"stop: {job.name}", stops=len(times), ended_before=early, slowest_s=max(times, default=float("nan")),
            then=ended, kept=kept,
        )
        slow += [f"{job.name}: Stop took {one:.1f} s" for one in times if one > SLOWEST_STOP]
        slow += [] if ended == "done" else [f"{job.name}: {ended} after it was stopped: {words}"]
    if slow:
        raise AssertionError("\n".join(slow))


# --- kill -9 of the server -------------------------------------------------------------------------------------------


def kill_in_the_server(
    report: Report, start: Callable[[], AbstractContextManager[Any]], wiring: ModuleType
) -> None:
    """A server killed in the middle of each job; the next one goes on, to what an unkilled one makes."""
    wrong = []
    with ExitStack() as running:
        server = running.enter_context(start())
        for job in JOBS:
            killed_at = _kill_in(job, server, wiring)
            running.close()
            server = running.enter_context(start())
            row, faults = _go_on(job, server, wiring)
            report.add(f"kill -9 of the server: {job.name}", killed_at=killed_at, **row)
            wrong += [f"{job.name}: {fault}" for fault in faults]
            wrong += [f"{job.name}: ended before it could be killed"] if killed_at == ENDED else []
    if wrong:
        raise AssertionError("\n".join(wrong))


def _kill_in(job: Job, server: Any, wiring: ModuleType) -> str:
    """Begin a job and kill the server when enough of it is kept; what was, in words."""
    _unlearn(job, server.base)
    number = post(server, job_prompt(job, server.get("/object_info"), wiring, "killed"))
    wait_for(lambda: is_running(server, number))
    pattern, least = job.part
    if pattern:
        wait_for(lambda: len(_filled(server.base, pattern, "killed")) >= least or not is_running(server, number))
    else:
        time.sleep(0.7)
    ended = not is_running(server, number)
    os.kill(server.pid, signal.SIGKILL)
    if ended:
        return ENDED
    return f"{len(_filled(server.base, pattern, 'killed'))} files kept" if pattern else "nothing is kept of it"


def _go_on(job: Job, server: Any, wiring: ModuleType) -> tuple[dict[str, Any], list[str]]:
    """A killed job given again: a row of what came, and what is wrong with it."""
    info = server.get("/object_info")
    ended, words = finish(server, post(server, job_prompt(job, info, wiring, "killed")))
    wrong = [] if ended == "done" else [f"{ended} after it was killed: {words}"]
    if not job.made:
        return {"then": ended}, wrong
    told = next((line for line in words.splitlines() if job.tells in line), "")
    killed = _made(job, server.base, "killed")
    left = _parts(server.base / ADAPTERS) + _parts(server.base / LOOKS)
    _unlearn(job, server.base)
    finish(server, post(server, job_prompt(job, info, wiring, "whole")))
    same = killed == _made(job, server.base, "whole") and bool(killed)
    wrong += [f"left {left}"] if left else []
    wrong += [] if told else [f"began anew after it was killed: {words}"]
    wrong += [] if same else ["not what an unkilled one makes"]
    return {"then": ended, "kept": told, "same_as_unkilled": same}, wrong


def _unlearn(job: Job, base: Path) -> None:
    """Have no look there that was learned before, as when jobs were stopped: it would be found by any name."""
    if job.short == "LookLearn":
        for path in base.glob(job.made.replace("MARK", "*")):
            path.unlink()


def _filled(base: Path, pattern: str, mark: str) -> list[Path]:
    return [path for path in base.glob(pattern.replace("MARK", mark)) if path.stat().st_size]


def _made(job: Job, base: Path, mark: str) -> list[Any]:
    """What a job made, to be compared: tensors of safetensors files, text of others."""
    return [
        tensors_of(path) if path.suffix == ".safetensors" else path.read_text(encoding="utf-8")
        for path in sorted(base.glob(job.made.replace("MARK", mark)))
    ]


def tensors_of(path: Path) -> dict[str, str]:
    """Digests of a safetensors file's tensors."""
    return {
        name: hashlib.sha256(one.contiguous().view(-1).numpy().tobytes()).hexdigest()
        for name, one in load_file(path).items()
    }


# --- kill -9 of commands ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command line that runs for seconds.

    Attributes:
        arguments: after ``python -m vl_core``; OUT is where it writes.
        began: whether enough is kept, of the folder it writes to, to be worth a kill.
        result: what it made, to be compared.
    """

    name: str
    arguments: tuple[str, ...]
    began: Callable[[Path], bool]
    result: Callable[[Path], Any]


def kill_commands(report: Report, folder: Path) -> None:
    """Every command killed in the middle and given again; its result beside that of one that was left alone."""
    pictures = folder / "pictures"
    _draw_pictures(pictures)
    wrong = []
    for command in _commands(pictures):
        whole, killed = folder / f"{command.name} whole", folder / f"{command.name} killed"
        for out in (whole, killed):
            out.mkdir(parents=True)
        _run(command, whole, None)
        kept = _run(command, killed, command.began)
        words = _run(command, killed, None)
        same = command.result(whole) == command.result(killed)
        left = _parts(killed)
        report.add(f"kill -9 of {command.name}", kept=kept, then=_last_about(words), same_as_unkilled=same)
        wrong += [] if same else [f"{command.name}: not what an unkilled one makes"]
        wrong += [f"{command.name}: left {left}"] if left else []
    if wrong:
        raise AssertionError("\n".join(wrong))


def _commands(pictures: Path) -> tuple[Command, ...]:
    zimage, vision = str(MINIATURE / "z-image-mini"), str(MINIATURE / "qwen3-vl-mini")
    one = str(sorted(pictures.glob("*.png"))[0])
    return (
        Command(
            "describe", ("describe", "-f", str(pictures), "-m", vision, "-o", "OUT", "--together", "2"),
            lambda out: len(list(out.glob("*.txt"))) >= 3, partial(_files, ending=".txt"),
        ),
        Command(
            "fit", ("fit", "-f", str(pictures), "-m", zimage, "--vision", vision, "-o", "OUT/adapter.safetensors"),
            lambda out: bool(_parts(out)), lambda out: tensors_of(out / "adapter.safetensors"),
        ),
        Command(
            "compare", (
                "compare", "-i", one, "-p", "a red ring", "--ways", "aligned blend", "--strengths", "0.1:1:0.1",
                "--seeds", "0", "1", "-o", "OUT",
            ),
            lambda out: sum(path.read_bytes().count(b"\n") for path in out.glob("results.jsonl")) >= 3,
            _painted,
        ),
        Command(
            "learn", (
                "learn", "-i", one, "--words", "flat colours", "--shows", "a shape", "--steps", "40", "-o",
                "OUT/look.safetensors",
            ),
            lambda out: bool(_parts(out)), lambda out: tensors_of(out / "look.safetensors"),
        ),
    )


def _run(command: Command, out: Path, kill_when: Callable[[Path], bool] | None) -> str:
    """What the command printed; where it is killed, how many files it had kept."""
    arguments = [part.replace("OUT", str(out)) for part in command.arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (out.parent / f"{command.name}.log").open("w+b") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vl_core", *arguments, "--dtype", "float32"], stdout=log, stderr=subprocess.STDOUT,
            env=environment, cwd=ROOT,
        )
        if kill_when is not None:
            wait_for(lambda: kill_when(out) or process.poll() is not None)
            if process.poll() is not None:
                raise AssertionError(f"{command.name} ended before it could be killed")
            process.send_signal(signal.SIGKILL)
        process.wait()
        log.seek(0)
        words = log.read().decode(errors="replace")
    if kill_when is not None:
        return f"{sum(path.is_file() for path in out.rglob('*'))} files"
    if process.returncode:
        raise AssertionError(f"{command.name} failed: {words[-2000:]}")
    return words


def _last_about(words: str) -> str:
    """What the command says of what it found, else its last line."""
    lines = [line.split("\r")[-1].strip() for line in words.splitlines() if line.strip()]
    about = [line for line in lines if any(one in line for one in ("went on", "goes on", "already", "taken over"))]
    return (about or lines or [""])[-1][:100]


def _parts(folder: Path) -> list[str]:
    """Files of half-done work. One that a killed writer was at is none: it is swept away when it is an hour old."""
    return sorted(path.name for path in folder.rglob("*.part") if not re.search(r"\.[0-9a-f]{32}\.part$", path.name))


def _painted(folder: Path) -> dict[str, Any]:
    """Pixels of every picture, and every line of the results but the seconds that it took, which are in both."""
    from PIL import Image

    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as picture:
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return found | {row["id"]: row | {"seconds": None} for row in map(json.loads, lines)}


def _files(folder: Path, ending: str) -> dict[str, str]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob(f"*{ending}")}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(found.items())}


def _draw_pictures(folder: Path, count: int = 40) -> None:
    """Plain shapes with words beside them."""
    from PIL import Image, ImageDraw

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for index in range(count):
        picture = Image.new("RGB", (128, 128), (255 - 5 * index, 128, 5 * index))
        ImageDraw.Draw(picture).ellipse((20, 20, 60 + index, 60 + index), (5 * index, 40, 200))
        picture.save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(f"a flat shape number {index}", encoding="utf-8")
