"""The simple workflow from Run to picture, in two ComfyUI servers that paint with the trained miniature on the CPU.

One writes the words with ComfyUI's own ``generate`` at every run (``ZIMAGE_VL_FAST=0``), the other as the pack does.
Both get the same runs by turns, so a busy machine is so for both. A run's time is what the server notes down: from its
start to its end.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import statistics
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from miniature import world

from .comfyui import ROOT, add_server_arguments, comfyui_of, load, python_of
from .common import Report, add_output_argument

SIDE, STEPS = 128, 8
WORKFLOW = ROOT / "workflows" / "1 Start here - reference picture.json"
WAYS = {"before": "0", "now": "1"}  # ZIMAGE_VL_FAST


def add_arguments(parser) -> None:
    add_output_argument(parser)
    add_server_arguments(parser)
    parser.add_argument("--runs", type=int, default=5, help="timed runs per figure")


def run(arguments) -> None:
    comfyui, python = comfyui_of(arguments), python_of(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the servers, which run at the same time
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    report = Report("runs", torch.device("cpu"), arguments.out, pixels=f"{SIDE} × {SIDE}", steps=STEPS)
    host, before = load("server"), os.environ.get("ZIMAGE_VL_FAST")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {}
        try:
            for way, fast in WAYS.items():
                os.environ["ZIMAGE_VL_FAST"] = fast
                base = Path(folder) / way
                base.mkdir()
                servers[way] = stack.enter_context(host.running(comfyui, base, host.MINIATURE, python=python))
        finally:
            os.environ.pop("ZIMAGE_VL_FAST")
            if before is not None:
                os.environ["ZIMAGE_VL_FAST"] = before
        report.section("runs", lambda: Runs(report, host, servers, arguments.runs).measure())
    report.write()
    if report.failures:
        raise SystemExit(1)


class Runs:
    """The workflow as a prompt, and what is changed in it from run to run."""

    def __init__(self, report: Report, host: Any, servers: dict[str, Any], count: int) -> None:
        self.report, self.servers, self.count = report, servers, count
        workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
        self.prompt = host.quick(host.to_prompt(workflow, servers["now"].get("/object_info")), SIDE, STEPS)
        self.nodes = {node["class_type"]: node["inputs"] for node in self.prompt.values()}
        self.steer, self.picture = self.nodes["ZImageVLCondition"], self.nodes["LoadImage"]
        self.nodes["KSampler"]["seed"] = 1
        things = itertools.product(world.COLORS, world.SHAPES)
        self.prompts = (f"a {color} {shape}" for color, shape in things)
        self.strengths = (1 - number / 100 for number in itertools.count(1))
        self.pictures = self._write_pictures(2 + count)

    def _write_pictures(self, count: int):
        from PIL import Image

        scenes = world.sample_scenes(count, torch.Generator().manual_seed(5), two_shapes=0.0)
        rendered, _ = world.render(scenes, torch.Generator().manual_seed(6))
        pixels = ((rendered + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        for number, one in enumerate(pixels):
            for server in self.servers.values():
                Image.fromarray(one).save(server.base / "input" / f"scene_{number}.png")
        return (f"scene_{number}.png" for number in range(count))

    def change(self, what: str) -> None:
        """Make the prompt another one."""
        if what == "a new strength":
            self.steer["strength"] = next(self.strengths)
            return
        self.steer["prompt"] = next(self.prompts)
        if what in ("the first run", "a new picture"):
            self.picture["image"] = next(self.pictures)
        if what == "a new prompt, words connected":
            said = "striped style, blue background, warm colors"
            self.prompt["said"] = {"class_type": "PrimitiveString", "inputs": {"value": said}}
            self.steer["words"] = ["said", 0]
        if what == "a new prompt, strength 0":
            self.steer["strength"] = 0.0

    def measure(self) -> None:
        for what, count in (
            ("the first run", 1), ("a new prompt", self.count), ("a new strength", self.count),
            ("a new picture", self.count), ("a new prompt, words connected", self.count),
            ("a new prompt, strength 0", self.count),
        ):
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(count):
                self.change(what)
                for way, server in self.servers.items():
                    times[way].append(seconds_of(server.run(copy.deepcopy(self.prompt), 600)))
            before, now = (statistics.median(times[way]) for way in WAYS)
            self.report.add(
                what, **{"words by generate at every run, s": before, "now, s": now, "× faster": before / now}
            )


def seconds_of(history: dict) -> float:
    """What a run took, by the server's own notes.

    Raises:
        RuntimeError: if it did not end well.
    """
    if history["status"]["status_str"] != "success":
        raise RuntimeError(str(history["status"]["messages"][-1]))
    at = {kind: told["timestamp"] for kind, told in history["status"]["messages"]}
    return (at["execution_success"] - at["execution_start"]) / 1000
