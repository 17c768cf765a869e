"""A ComfyUI server as users start it, with this pack and tiny models in a folder of its own, and the HTTP to ask it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# Errors that tests provoke: to see one in the node's box, and of a socket that a node does not have.
PROVOKED = ("weights: expected numbers", "expected at most 16 sockets", "has no such input")
PACK = HERE.parents[1]
PACK_FOLDER = "zimage-vl"  # as the registry and `git clone` name it
MODELS = {
    "text_encoders": ["qwen_3_4b.safetensors", "qwen3vl_4b_fp8_scaled.safetensors"],
    "diffusion_models": [
        "z_image_turbo_bf16.safetensors", "z_image_bf16.safetensors", "flux-2-klein-4b.safetensors",
    ],
    "vae": ["ae.safetensors", "flux2-vae.safetensors"],
}
TINY, MINIATURE = "tiny_pack", "mini_pack"
START_SECONDS = 120


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, its folder, its log and its process."""

    url: str
    base: Path
    log: Path
    pid: int = 0

    def get(self, path: str) -> Any:
        """Decoded JSON of a GET."""
        return json.loads(self.read(path))

    def read(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and decoded JSON of a POST, whatever the status."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or "null")

    def run(self, prompt: dict[str, dict], seconds: float = 120) -> dict:
        """Queue an API prompt and wait for it; gives its history entry (status, outputs)."""
        status, answer = self.post("/prompt", {"prompt": prompt})
        if status != 200:
            raise AssertionError(f"ComfyUI refused the prompt ({status}): {json.dumps(answer, indent=1)}")
        number, until = answer["prompt_id"], time.monotonic() + seconds
        while time.monotonic() < until:
            history = self.get(f"/history/{number}")
            if number in history:
                return history[number]
            time.sleep(0.1)
        raise AssertionError(f"The prompt did not finish within {seconds} s. Log:\n{self.tail()}")

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def complaints(self) -> list[str]:
        """Lines of the log that tell of a failed import or of an exception that no test provoked.

        ComfyUI logs an exception with its message first, then its tracebacks, and ends with how long the prompt took.
        """
        found, provoked = [], False
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            if "!!! Exception during processing !!!" in line:
                provoked = any(message in line for message in PROVOKED)
            elif "Prompt executed in" in line:
                provoked = False
            elif not provoked and ("Cannot import" in line or "Traceback (most recent call last)" in line):
                found.append(line)
        return found


def prepare_base(comfyui: Path, base: Path, models: str = TINY) -> None:
    """ComfyUI's folders with the pack, the models' stand-ins, empty files for the models, ComfyUI's example picture."""
    for kind, names in MODELS.items():
        folder = base / "models" / kind
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    for name in ("custom_nodes", "input", "output", "user", "temp"):
        (base / name).mkdir()
    (base / "custom_nodes" / PACK_FOLDER).symlink_to(PACK, target_is_directory=True)
    (base / "custom_nodes" / models).symlink_to(HERE / models, target_is_directory=True)
    shutil.copy(comfyui / "input" / "example.png", base / "input")
    write_examples(base / "input" / "adapter_pictures")


def write_examples(folder: Path, count: int = 12) -> None:
    """Plain pictures and words beside them, for a picture adapter."""
    from PIL import Image

    folder.mkdir()
    for index in range(count):
        shade = 255 * index // count
        Image.new("RGB", (96, 64), (shade, 128, 255 - shade)).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(f"a plain colour number {index}", encoding="utf-8")


def command(
    comfyui: Path, base: Path, *options: str, models: str = TINY, python: str = sys.executable
) -> list[str]:
    """The command line of a ComfyUI that knows only our pack and the models' stand-ins."""
    return [
        python, str(comfyui / "main.py"), "--cpu", "--base-directory", str(base), "--disable-all-custom-nodes",
        "--whitelist-custom-nodes", PACK_FOLDER, models, "--disable-api-nodes", "--database-url",
        "sqlite:///:memory:", "--disable-auto-launch", *options,
    ]


@contextmanager
def running(
    comfyui: Path, base: Path, models: str = TINY, *, python: str = sys.executable, again: bool = False
) -> Iterator[Server]:
    """Start a server on a free port of this machine and end it, whatever happens in between.

    Args:
        models: the folder here that gives ComfyUI's loaders their models, tiny random ones or the trained miniature.
        python: ComfyUI's. again: in the folders that a server before it has used.
    """
    if not again:
        prepare_base(comfyui, base, models)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}", base, base / "server.log")
    with server.log.open("ab") as log:
        process = subprocess.Popen(
            command(comfyui, base, "--listen", "127.0.0.1", "--port", str(port), models=models, python=python),
            stdout=log, stderr=subprocess.STDOUT, cwd=base,  # where ComfyUI writes a log of its own
        )
        try:
            _wait_until_up(server, process)
            yield replace(server, pid=process.pid)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_up(server: Server, process: subprocess.Popen) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise AssertionError(f"ComfyUI ended with {process.returncode} instead of starting:\n{server.tail()}")
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"ComfyUI did not answer within {START_SECONDS} s:\n{server.tail()}")


def flat(workflow: dict) -> dict:
    """A workflow without subgraphs: what is inside takes the place of each node that stands for one.

    Nodes inside are called as in a prompt, ``"30:4"`` for node 4 in the subgraph node 30. A subgraph's inputs that are
    not connected keep the values that are inside.
    """
    inside = {one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", [])}
    nodes, links, places = [], [], {}  # places: (node, output) of a subgraph node -> where it comes from inside
    entered = {node["id"]: inside[node["type"]] for node in workflow["nodes"] if node["type"] in inside}
    given = {(link[3], link[4]): (link[1], link[2]) for link in workflow["links"]}
    for number, graph in entered.items():
        for link in graph["links"]:
            origin = f"{number}:{link['origin_id']}", link["origin_slot"]
            if link["origin_id"] == graph["inputNode"]["id"]:
                origin = given.get((number, link["origin_slot"]))
            if link["target_id"] == graph["outputNode"]["id"]:
                places[number, link["target_slot"]] = origin
            elif origin:
                links.append([f"{number}/{link['id']}", *origin, f"{number}:{link['target_id']}", link["target_slot"]])
        kept = {str(link[0]) for link in links}
        for node in graph["nodes"]:
            slots = [
                {**slot, "link": name if (name := f"{number}/{slot.get('link')}") in kept else None}
                for slot in node["inputs"]
            ]
            nodes.append({**node, "id": f"{number}:{node['id']}", "inputs": slots})
    for link in workflow["links"]:
        if link[3] not in entered:
            links.append([link[0], *places.get((link[1], link[2]), (link[1], link[2])), *link[3:]])
    outer = [node for node in workflow["nodes"] if node["id"] not in entered]
    return {**workflow, "nodes": outer + nodes, "links": links}


def to_prompt(workflow: dict, info: dict) -> dict[str, dict]:
    """The API prompt of a saved workflow, as the frontend makes it when Run is pressed."""
    workflow = flat(workflow)
    origin = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] not in info:
            continue  # a note
        specs = {**info[node["type"]]["input"].get("required", {}), **info[node["type"]]["input"].get("optional", {})}
        values, inputs = iter(node.get("widgets_values") or []), {}
        for slot in node["inputs"]:
            name = slot["name"]
            if "widget" in slot:
                value = next(values)
                if name.split(".")[0] in specs:
                    inputs[name] = value
                if name in specs and specs[name][1:] and specs[name][1].get("control_after_generate"):
                    next(values)  # what becomes of the seed after a run; only the frontend wants to know
            if slot.get("link") is not None:
                inputs[name] = origin[slot["link"]]
        assert next(values, None) is None, f"{node['type']}: more widget values than widgets"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def quick(prompt: dict[str, dict], size: int = 128, steps: int = 2) -> dict[str, dict]:
    """The same prompt, painted and learned small and in few steps."""
    for node in prompt.values():
        if node["class_type"] in ("EmptySD3LatentImage", "EmptyFlux2LatentImage", "Flux2Scheduler"):
            node["inputs"].update(width=size, height=size)
        if node["class_type"] in ("KSampler", "Flux2Scheduler"):
            node["inputs"]["steps"] = steps
        if node["class_type"] == "ZImageVLLookLearn":
            node["inputs"].update(steps=steps, size=size)
        if node["class_type"] == "ImageScaleToTotalPixels":
            node["inputs"]["megapixels"] = (size / 1024) ** 2
    return prompt
