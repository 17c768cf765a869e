"""A real ComfyUI server under load: many clients, prompts that run and prompts that cannot, Stop and ``kill -9``.

Run it with the Python of the tests; the server runs with ComfyUI's. Models are tiny and random, as in ``tests/host``;
the commands paint with the miniature. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import shutil
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vl_core.encoder.cache import LIMIT_VARIABLE

from .comfyui import ROOT, add_server_arguments, comfyui_of, load, python_of
from .common import Report, add_output_argument, relative_error
from .soak_jobs import UNTOLD, kill_commands, kill_in_the_server, stop_in_the_server
from .soak_prompts import PROBES, Made, make_prompt

WARM = 100  # prompts after which memory has to be flat
FLAT = 0.05
ROUND = 50  # prompts, after which the clients wait until all have ended
# What an encoder may keep of readings in the server: of tiny models so little that it is full before memory is looked
# at. With the usual 512 MiB it would grow all the while, and nobody would see whether it ends.
KEPT_MIB = 4
# malloc's thresholds in the server: glibc's own first ones, which stay once they are set. By itself glibc lets them
# rise with what is freed, to requests of 32 MiB. Those then come from blocks of 64 MiB that the prompts' thread shares
# out, and a block goes back to the system only when nothing in it or behind it is used: whether the thread holds three
# or four when it rests is chance, and moves what the system counts by 40 to 60 MiB. With these, what a prompt took goes
# back when it ends, and what the system counts says what the server uses.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}
REST = {  # a prompt of core's nodes alone
    "picture": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "shown": {"class_type": "PreviewAny", "inputs": {"source": ["picture", 0]}},
}
SETTLED = 5.0  # seconds; ComfyUI's worker looks once a second whether it is to free memory
STEP = 24 << 20  # bytes: growth by one prompt that is told with the prompt
BARE = (  # what no message of ours is raised as
    "AttributeError", "IndexError", "KeyError", "NameError", "RecursionError", "UnboundLocalError", "ZeroDivisionError",
)
SECONDS = 900  # longest that a prompt may wait for the others and run


def add_arguments(parser) -> None:
    add_output_argument(parser)
    add_server_arguments(parser)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, help="of the prompts; another one each time unless given")
    parser.add_argument(
        "--usual-malloc", action="store_true",
        help="leave it to glibc what the server's malloc keeps free: what the system counts while prompts run is then "
        "told, and not judged",
    )
    parser.add_argument(
        "--only", nargs="+", choices=["flood", "stop", "kill", "commands"], help="parts; all unless given"
    )


def run(arguments) -> None:
    comfyui, python = comfyui_of(arguments), python_of(arguments)
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the server: tiny models' threads would wait for one another
    os.environ[LIMIT_VARIABLE] = str(KEPT_MIB)
    if not arguments.usual_malloc:
        os.environ.update(GIVES_BACK)
    host, wiring = load("server"), load("wiring")
    vars(host).update(START_SECONDS=SECONDS)  # a machine that others use too
    report = Report(
        "soak", torch.device("cpu"), arguments.out, prompts=arguments.prompts, clients=arguments.clients, seed=seed,
        usual_malloc=arguments.usual_malloc,
    )
    parts = arguments.only or ["flood", "stop", "kill", "commands"]
    with TemporaryDirectory() as folder:
        base = Path(folder) / "server"
        base.mkdir()
        prepare(host, wiring, comfyui, base)
        if {"flood", "stop"} & set(parts):
            with host.running(comfyui, base, python=python, again=True) as server:
                if "flood" in parts:
                    report.section("flood", lambda: flood(report, server, wiring, arguments, seed))
                if "stop" in parts:
                    report.section("stop", lambda: stop_in_the_server(report, server, wiring))
        if "kill" in parts:
            start = partial(host.running, comfyui, base, python=python, again=True)
            report.section("kill -9 of the server", lambda: kill_in_the_server(report, start, wiring))
        if "commands" in parts:
            report.section("kill -9 of commands", lambda: kill_commands(report, Path(folder) / "commands"))
    report.write()
    if report.failures:
        raise SystemExit(1)


def prepare(host: ModuleType, wiring: ModuleType, comfyui: Path, base: Path) -> None:
    """A server's folders with more than the tests have: a Qwen3-VL folder, a look, pictures for a long fit."""
    host.prepare_base(comfyui, base)
    (base / "models" / "LLM").mkdir()
    (base / "models" / "LLM" / "Qwen3-VL-Tiny").symlink_to(ROOT / "miniature" / "models" / "qwen3-vl-mini")
    wiring.write_look(module_of, base / "models" / "zimage_vl_looks")
    host.write_examples(base / "input" / "many_pictures", 200)
    host.write_examples(base / "input" / "some_pictures", 10)  # each is described to the last token that is allowed
    for mark in ("stopped", "killed", "whole"):
        folder = base / "input" / f"{UNTOLD}_{mark}"
        host.write_examples(folder, 24)
        for text in folder.glob("*.txt"):
            text.unlink()
    prompts = [f"{subject} number {number}" for number in range(100) for subject in ("a cat", "a house by the sea")]
    (base / "input" / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")


def module_of(path: str) -> ModuleType:
    return importlib.import_module(path)


# --- the flood --------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the clients saw, in the order in which prompts ended."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    next: int = 0
    last: int = 0  # number before which clients stop to ask
    ends: Counter = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)  # bytes of the server after each prompt
    # After how many prompts, when nothing runs: bytes in use, of them what malloc has given out, and what it has free.
    rests: list[tuple[int, int, int, int]] = field(default_factory=list)
    steps: list[tuple[int, str]] = field(default_factory=list)  # bytes that one prompt added, and what it was
    # number of the probe -> how often it saved which bits: digest -> (times, values, the file)
    probes: dict[int, dict[str, tuple[int, Tensor, Path]]] = field(default_factory=dict)
    ran: Counter = field(default_factory=Counter)  # of the probes: nodes that were run and not taken from a cache
    wrong: list[str] = field(default_factory=list)


def flood(report: Report, server: Any, wiring: ModuleType, arguments: Any, seed: int) -> None:
    info, seen = server.get("/object_info"), Seen()
    began = time.monotonic()

    def client() -> None:
        while True:
            with seen.lock:
                if seen.next >= seen.last:
                    return
                number, seen.next = seen.next, seen.next + 1
            made = make_prompt(number, seed, info, wiring)
            try:
                end = ask(server, made, seen)
            except Exception as error:  # the server is gone, or says what no client understands
                end = "broken"
                with seen.lock:
                    seen.wrong.append(f"prompt {number} ({made.kind}, {made.about}): {error!r}")
            with seen.lock:
                seen.ends[f"{made.kind}: {end}"] += 1
                note_memory(server, made, seen)

    for last in [*range(ROUND, arguments.prompts, ROUND), arguments.prompts]:
        seen.last = last
        clients = [threading.Thread(target=client) for _ in range(arguments.clients)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        note_rest(server, seen)
    for name, count in sorted(seen.ends.items()):
        report.add(name, count=count)
    for number, saved in sorted(seen.probes.items()):
        times, values, files = zip(*saved.values(), strict=True)
        worst = max(relative_error(one, values[0]) for one in values)
        report.add(
            f"identical prompt {PROBES[number][0]}", count=sum(times), results=len(saved), largest_difference=worst
        )
        if len(saved) > 1:
            kept = Path(arguments.out) / f"differing probe {number}"
            kept.mkdir(parents=True, exist_ok=True)
            for digest, file in zip(saved, files, strict=True):
                shutil.copy(file, kept / f"{digest[:12]}.safetensors")
            seen.wrong.append(f"probe {number}: {len(saved)} results, {worst:.2g} apart, kept in {kept}")
    report.add("nodes of identical prompts that ran anew", count=sum(seen.ran.values()))
    report.add("prompts a minute", count=round(60 * arguments.prompts / (time.monotonic() - began)))
    measure_memory(report, seen, judged=not arguments.usual_malloc)
    report.add("given back to malloc when ComfyUI forgets", **forget(server))
    if seen.wrong:
        raise AssertionError("\n".join(seen.wrong))


def note_memory(server: Any, made: Made, seen: Seen) -> None:
    """The server's memory after a prompt; where it grew at once, what holds it."""
    seen.memory.append(resident(server.pid))
    grown = seen.memory[-1] - max(seen.memory[:-1], default=seen.memory[-1])
    if grown > STEP:
        seen.steps.append((grown, f"prompt {made.number} ({made.kind}, {made.about}), the {len(seen.memory)}th to end"))
        print_memory(server, seen)
        print(f"    {grown / 2**20:.0f} MiB more by {seen.steps[-1:]}", flush=True)


def note_rest(server: Any, seen: Seen) -> None:
    """The server's memory when nothing runs, after a prompt of core's: ComfyUI keeps what the last one gave."""
    server.run(REST, SECONDS)
    told = print_memory(server, seen)
    free = told["malloc_free"]
    seen.rests.append((len(seen.memory), resident(server.pid) - free, given_out(told), free))
    if told["kept_by_one"] > KEPT_MIB << 20:
        seen.wrong.append(f"an encoder keeps {told['kept_by_one']} bytes of readings, more than {KEPT_MIB} MiB")


def print_memory(server: Any, seen: Seen) -> dict[str, int]:
    told = server.get("/where_memory_is")
    where = {name: f"{size / 2**20:.0f}" for name, size in told.items()}
    print(f"  {len(seen.memory)} prompts, {resident(server.pid) / 2**20:.0f} MiB, of them {where}", flush=True)
    return told


def measure_memory(report: Report, seen: Seen, judged: bool = True) -> None:
    """The server's memory after the first hundred prompts and at the end.

    As the system counts it while prompts run; then, when nothing runs, in use, and what of that malloc has given out.
    What was given back to malloc nobody uses, but glibc may keep it from the system for later. Python's own pools are
    no part of malloc.

    Args:
        judged: whether the first may not grow. As malloc usually is it depends on what malloc keeps free, which is told
            beside it (see ``GIVES_BACK``); the other two may never grow.
    """
    rests = [sizes for count, *sizes in seen.rests if count >= WARM]
    if len(seen.memory) < WARM + 100 or len(rests) < 2:
        report.add("memory: too few prompts to say", prompts=len(seen.memory))
        return
    in_use, given, free = zip(*rests, strict=True)
    first, last = (statistics.median(part) for part in (seen.memory[WARM : WARM + 50], seen.memory[-50:]))
    for what, start, end, most, bound in (
        ("memory of the server", first, last, max(seen.memory), judged),
        ("of it in use, without what malloc has free", in_use[0], in_use[-1], max(in_use), True),
        ("of that given out by malloc", given[0], given[-1], max(given), True),
    ):
        report.add(
            what, after_hundred_MiB=start / 2**20, last_MiB=end / 2**20, most_MiB=most / 2**20,
            growth_percent=100 * (end / start - 1),
        )
        if bound and end / start - 1 > FLAT:
            seen.wrong.append(f"{what} grew by {end / start - 1:.1%} after the first {WARM} prompts")
    report.add("free in malloc when nothing runs", least_MiB=min(free) / 2**20, most_MiB=max(free) / 2**20)


def forget(server: Any) -> dict[str, float]:
    """MiB that malloc gets back at the end when ComfyUI forgets its history, in which it keeps every prompt, and then
    outputs and models: encoders give back what they keep of readings."""
    given = [given_out(server.get("/where_memory_is"))]
    for path, body, seconds in (("/history", {"clear": True}, 0), ("/free", {"free_memory": True}, SETTLED)):
        server.post(path, body)
        time.sleep(seconds)
        given.append(given_out(server.get("/where_memory_is")))
    kept, without_history, without_outputs = (size / 2**20 for size in given)
    return {"history_MiB": kept - without_history, "outputs_and_readings_MiB": without_history - without_outputs}


def given_out(told: dict[str, int]) -> int:
    """Bytes that malloc has given out and not got back."""
    return told["malloc_in_use"] + told["malloc_mapped"]


def resident(pid: int) -> int:
    """Bytes of memory that a process takes."""
    fields = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def ask(server: Any, made: Made, seen: Seen) -> str:
    """Post a prompt and wait for its end; what is wrong with that goes into ``seen``."""
    status, answer = server.post("/prompt", made.body)
    if status != 200:
        words = refusal_words(answer)
        if made.kind in ("probe", "valid"):
            complain(seen, made, f"refused: {words}")
        elif len(words) < 15:
            complain(seen, made, f"refused without words: {answer}")
        return "refused"
    number, until = answer["prompt_id"], time.monotonic() + SECONDS
    if made.kind == "stop":
        time.sleep(made.delay)
        server.post("/interrupt", {"prompt_id": number})
    while not (found := server.get(f"/history/{number}")):
        if time.monotonic() > until:
            raise TimeoutError(f"not done after {SECONDS} s")
        time.sleep(0.05)
    return judge(found[number], made, server, seen)


def judge(history: dict, made: Made, server: Any, seen: Seen) -> str:
    messages = dict(reversed(history["status"]["messages"]))
    if "execution_interrupted" in messages:
        if made.kind != "stop":
            complain(seen, made, "stopped, although nobody asked")
        return "stopped"
    if "execution_error" in messages:
        error = messages["execution_error"]
        words, kind = str(error["exception_message"]).strip(), error["exception_type"].rpartition(".")[2]
        told = len(words) > 15 and (": " in words or "xpected" in words)
        if error["node_type"].startswith("ZImageVL") and (not told or kind in BARE):
            complain(seen, made, f"bare error {kind}: {words!r}")
        if made.kind in ("probe", "valid"):
            complain(seen, made, f"{kind} in {error['node_type']}: {words!r}")
        return "error that says why"
    if made.kind == "refused":
        complain(seen, made, "ran, although it should have been refused")
    text = "\n".join(line for output in history["outputs"].values() for line in output.get("text", []) if line)
    if "nan" in text.lower().replace("\n", " ").split():
        complain(seen, made, "shows NaN")
    if made.kind == "probe":
        keep_probe(history, messages, made, server, seen)
    return "ran"


def keep_probe(history: dict, messages: dict, made: Made, server: Any, seen: Seen) -> None:
    """What an identical prompt saved, and how much of it the server computed this time."""
    saved = sorted((server.base / "output" / "vl_embeddings" / made.saves).parent.glob(f"{Path(made.saves).name}_*"))
    states = torch.cat([one.double().flatten() for _, one in sorted(load_file(saved[-1]).items())])
    digest = hashlib.sha256(states.numpy().tobytes()).hexdigest()
    cached = set(messages.get("execution_cached", {}).get("nodes", []))
    with seen.lock:
        kept = seen.probes.setdefault(made.probe, {})
        times, first, file = kept.get(digest, (0, states, saved[-1]))
        kept[digest] = times + 1, first, file
        seen.ran[made.probe] += len(set(made.body["prompt"]) - cached)


def complain(seen: Seen, made: Made, what: str) -> None:
    with seen.lock:
        seen.wrong.append(f"prompt {made.number} ({made.kind}, {made.about}): {what}")


def refusal_words(answer: Any) -> str:
    """All that a refusal says."""
    if not isinstance(answer, dict):
        return str(answer or "")
    error = answer.get("error") or {}
    lines = [error if isinstance(error, str) else f"{error.get('message', '')} {error.get('details', '')}"]
    for node in (answer.get("node_errors") or {}).values():
        lines += [f"{one['message']}: {one['details']}" for one in node["errors"]]
    return "\n".join(lines)
