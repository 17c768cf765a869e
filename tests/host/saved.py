"""What saved workflows paint: each is run in a real ComfyUI and compared with what it painted when it was saved.

    python tests/host/saved.py [--only NAME ...] [--bits] [--against FOLDER] [--record FOLDER [--says SENTENCE]]

with ComfyUI's own Python; ComfyUI is found as the tests find it. ``--bits`` insists on the same latents, bit for bit,
which two versions of the pack give on one machine, not one version on two. ``--record`` writes instead of comparing.

Outputs lie beside the workflows, one ``outputs/NAME.json`` each, its pictures in a row in ``outputs/NAME.webp``, every
second pixel of every second line, and the embeddings that one of them writes:

    says      what has changed since it was saved, and why; empty as long as nothing has
    painted   per VAE Decode, in the order of their numbers, the SHA-256 of each latent it is given (float32)
    saved     the SHA-256 of every tensor in the files of embeddings that were written
    texts     what each node reports

A workflow runs as it was saved but for what the miniature asks: 128 × 128 (the only size it paints), 8 steps, a prompt
in its forty words and references from its world. FLUX.2 klein, of which there is no miniature, is painted by
the tiny random models of ``tiny_pack``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
WORKFLOWS = sorted(path for name in ("saved_0_1_0", "saved_0_1_1") for path in (HERE / name).glob("*.json"))
EMBEDDINGS = HERE / "saved_0_1_1" / "reference_00001.safetensors"  # for those that load what another has saved
STEPS = 8
EVERY = 2  # pixel and line of a picture is kept: a quarter tells as much, in a quarter of the bytes
WORDS = {"a lighthouse on a hill by the sea": "a red star", "-lighthouse": "-star"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # sums in one order
AS_RECORDED = {**ONE_THREAD, "ZIMAGE_VL_ASK_THE_LOOK": "1"}
SOURCES = re.compile(r"^(described before|measured now|from the cache)")  # depend on what ran before
NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(%?)")
STATES_ERROR = 1e-3  # of saved embeddings, by norm


@dataclass(frozen=True)
class Outcome:
    """What one workflow gave.

    Attributes:
        record: what ``outputs/NAME.json`` holds, without ``says``.
        pictures: uint8 ``(H / 2, W / 2, 3)``, in the order of ``record["painted"]``.
        files: the bytes of the embeddings' files that were written, by name.
    """

    record: dict[str, Any]
    pictures: list[np.ndarray]
    files: dict[str, bytes]


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"zimage_vl_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


server_module, screens = load("server"), load("screens")


# --- running ----------------------------------------------------------------------------------------------------------


class Painters:
    """The servers that paint, started when first asked for; each lasts as long as ``stack``.

    ``tiny``: one of the tiny models that runs already.
    """

    def __init__(self, comfyui: Path, folder: Path, stack: ExitStack, tiny: Any = None):
        self.comfyui, self.folder, self.stack = comfyui, folder, stack
        self.started: dict[str, tuple[Any, list[str], dict]] = {}
        if tiny is not None:
            screens.write_references(tiny.base / "input")
            self._know(server_module.TINY, tiny)

    def of(self, path: Path) -> tuple[Any, list[str], dict]:
        """A workflow's server, the names of its reference pictures, and what it says of its nodes."""
        models = server_module.TINY if "flux2_klein" in path.stem else server_module.MINIATURE
        if models not in self.started:
            server = self.stack.enter_context(server_module.running(self.comfyui, self.folder / models, models))
            screens.write_world(server.base / "input")
            self._know(models, server)
        return self.started[models]

    def _know(self, models: str, server: Any) -> None:
        self.started[models] = server, [screens.STRIPED, screens.DOTTED], server.get("/object_info")

    def complaints(self) -> list[str]:
        return [line for server, _, _ in self.started.values() for line in server.complaints()]


@contextmanager
def painters(comfyui: Path, tiny: Any = None) -> Iterator[Painters]:
    sys.path.append(str(screens.PACK))  # for the miniature's world; at the end: `nodes` is ComfyUI's
    with ExitStack() as stack:
        stack.callback(sys.path.remove, str(screens.PACK))
        stack.enter_context(patch.dict(os.environ, AS_RECORDED))
        folder = Path(stack.enter_context(TemporaryDirectory()))
        yield Painters(comfyui, folder, stack, tiny)


def to_prompt(path: Path, names: list[str], info: dict) -> dict[str, dict]:
    """The API prompt of a saved workflow, in the miniature's size and words; its latents and pictures are kept."""
    prompt = server_module.to_prompt(json.loads(path.read_text(encoding="utf-8")), info)
    server_module.quick(prompt, screens.SIZE, STEPS)
    pictures = iter(names)
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str):
                node["inputs"][name] = WORDS.get(value, value)
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = next(pictures)
        if node["class_type"] == "ZImageVLAdapterFit":
            node["inputs"]["prompts"] = screens.PROMPTS
    for number in [number for number, node in prompt.items() if node["class_type"] == "VAEDecode"]:
        latent, kept = prompt[number]["inputs"]["samples"], {"filename_prefix": f"kept/{path.stem}"}
        prompt[f"{number}.latent"] = {"class_type": "SaveLatent", "inputs": {"samples": latent, **kept}}
        prompt[f"{number}.picture"] = {"class_type": "SaveImage", "inputs": {"images": [number, 0], **kept}}
    return prompt


def run(path: Path, servers: Painters, **changed: Any) -> Outcome:
    """Run a saved workflow; ``changed`` sets inputs of that name first, wherever they are set.

    Raises:
        AssertionError: ComfyUI refused it, or it did not run to its end.
    """
    server, names, info = servers.of(path)
    prompt = to_prompt(path, names, info)
    for name, value in changed.items():
        for node in [node for node in prompt.values() if name in node["inputs"]]:
            node["inputs"][name] = value
    folder = server.base / "output" / "vl_embeddings"
    if "embeddings" in path.stem:
        shutil.rmtree(folder, ignore_errors=True)
    if "reuse" in path.stem:
        folder.mkdir()
        shutil.copy(EMBEDDINGS, folder)
    before = {*folder.glob("*")}
    history = server.run(prompt)
    if history["status"]["status_str"] != "success":
        raise AssertionError(f"{path.stem}: {json.dumps(history['status'], indent=1)}")
    written = sorted({*folder.glob("*")} - before)
    return outcome(server.base / "output", history["outputs"], {file.name: file.read_bytes() for file in written})


def outcome(folder: Path, outputs: dict[str, dict], files: dict[str, bytes]) -> Outcome:
    """What a finished run left below ComfyUI's output folder."""

    def paths(number: str, kind: str) -> list[Path]:
        return [folder / each["subfolder"] / each["filename"] for each in outputs[number][kind]]

    decoded = sorted((number.split(".")[0] for number in outputs if number.endswith(".latent")), key=int)
    painted, pictures = {}, []
    for number in decoded:
        latents = [tensors(path.read_bytes())["latent_tensor"] for path in paths(f"{number}.latent", "latents")]
        painted[number] = [digest(latent) for latent in latents]
        shown = paths(f"{number}.picture", "images")
        assert len(shown) == len(latents)
        pictures += [np.asarray(Image.open(path).convert("RGB"))[::EVERY, ::EVERY] for path in shown]
    texts = {
        number: [line for text in outputs[number]["text"] for line in text.splitlines() if not SOURCES.match(line)]
        for number in sorted((number for number in outputs if outputs[number].get("text")), key=int)
    }
    saved = {file: {name: digest(one) for name, one in sorted(tensors(data).items())} for file, data in files.items()}
    return Outcome({"painted": painted, "saved": saved, "texts": texts}, pictures, files)


def tensors(data: bytes) -> dict[str, np.ndarray]:
    """A safetensors file's tensors by name."""
    from safetensors.numpy import load as read

    return read(data)


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


# --- comparing --------------------------------------------------------------------------------------------------------


def outputs_of(path: Path, root: Path = HERE) -> Path:
    """Where the outputs of a workflow lie below ``root``."""
    return root / path.parent.name / "outputs" / path.name


def recorded(path: Path) -> Outcome:
    """What lies in ``outputs/NAME.json`` and beside it."""
    record, pictures = json.loads(path.read_text(encoding="utf-8")), []
    count = sum(map(len, record["painted"].values()))
    if count:
        with Image.open(path.with_suffix(".webp")) as row:
            pictures = np.split(np.asarray(row.convert("RGB")), count, axis=1)
    return Outcome(record, pictures, {name: path.with_name(name).read_bytes() for name in record["saved"]})


def same_bits(found: Outcome, before: Outcome) -> bool:
    """Whether every latent and every saved tensor is the recorded one, bit for bit."""
    return all(found.record[name] == before.record[name] for name in ("painted", "saved"))


def verdict(found: Outcome, before: Outcome) -> str:
    """How exactly it is what was recorded, in words."""
    if not before.record["painted"] and not before.record["saved"]:
        return "nothing but reports"
    return "the same bits" if same_bits(found, before) else "not the same bits"


def differences(found: Outcome, before: Outcome) -> list[str]:
    """What differs by more than other CPUs may round: pictures by more than 1/255, saved states, words, figures."""
    told = []
    counts = [{number: len(each) for number, each in made.record["painted"].items()} for made in (found, before)]
    if counts[0] != counts[1]:
        return [f"pictures per node: {counts[0]}, recorded were {counts[1]}"]
    for index, (now, then) in enumerate(zip(found.pictures, before.pictures, strict=True)):
        if now.shape != then.shape:
            told.append(f"picture {index}: {now.shape}, recorded was {then.shape}")
            continue
        apart = np.abs(now.astype(int) - then).max(-1)
        if apart.max() > 1:
            told.append(f"picture {index}: up to {apart.max()}/255 apart, over 1/255 at {(apart > 1).mean():.1%} of it")
    told += saved_differences(found.files, before.files)
    texts, recorded_texts = found.record["texts"], before.record["texts"]
    for number in sorted({*texts, *recorded_texts}, key=int):
        reports, were = texts.get(number, []), recorded_texts.get(number, [])
        if not all_close(reports, were):
            told.append("\n    ".join([f"node {number} reports", *reports, "recorded was", *were]))
    return told


def saved_differences(found: dict[str, bytes], before: dict[str, bytes]) -> list[str]:
    """The same for files of embeddings."""
    if sorted(found) != sorted(before):
        return [f"embeddings written: {sorted(found)}, recorded were {sorted(before)}"]
    told = []
    for file in found:
        now, then = tensors(found[file]), tensors(before[file])
        for name in sorted({*now, *then}):
            if name not in now or name not in then or now[name].shape != then[name].shape:
                told.append(f"{file}: {name} is not in both, or of another shape")
            elif np.linalg.norm(now[name] - then[name].astype(float)) > STATES_ERROR * np.linalg.norm(then[name]):
                told.append(f"{file}: {name} has other values")
    return told


def all_close(now: list[str], before: list[str]) -> bool:
    """The same words, the same whole numbers, decimals within 2 % or 0.02, shares in percent within 5."""
    one, other = "\n".join(now), "\n".join(before)
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    for (found, _), (expected, share) in zip(NUMBER.findall(one), NUMBER.findall(other), strict=True):
        room = 5 if share else max(0.02, 0.02 * abs(float(expected))) if "." in expected else 0
        if abs(float(found) - float(expected)) > room:
            return False
    return True


# --- recording --------------------------------------------------------------------------------------------------------


def write(found: Outcome, path: Path, says: str) -> bool:
    """Write an outcome to ``path`` and its pictures beside it; gives False if that is what is there.

    Raises:
        ValueError: another one is there and ``says`` does not tell why it changes.
    """
    before = recorded(path).record if path.is_file() else None
    if before == {"says": before and before["says"], **found.record}:
        return False
    if before and not says:
        raise ValueError(f"{path} holds another outcome: say what changed and why with --says")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"says": says, **found.record}, indent=1, ensure_ascii=False)
    path.write_text(content + "\n", encoding="utf-8")
    if found.pictures:
        row = Image.fromarray(np.concatenate(found.pictures, axis=1))
        row.save(path.with_suffix(".webp"), lossless=True, quality=100, method=6)
    for name, data in found.files.items():
        path.with_name(name).write_bytes(data)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="workflows, such as simple")
    parser.add_argument("--bits", action="store_true", help="the same bit for bit, else it fails")
    parser.add_argument("--against", type=Path, default=HERE, metavar="FOLDER", help="outputs to compare with")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="write outputs instead; this folder to keep them")
    parser.add_argument("--says", default="", metavar="SENTENCE", help="what changed and why")
    chosen = parser.parse_args()
    (comfyui,) = [path for path in load("conftest").comfyui_candidates() if (path / "comfy" / "sd.py").is_file()][:1]
    failed = 0
    with painters(comfyui) as servers:
        for path in WORKFLOWS:
            name = f"{path.parent.name}/{path.stem.removeprefix('zimage_vl_')}"
            if chosen.only and path.stem.removeprefix("zimage_vl_") not in chosen.only:
                continue
            try:
                found = run(path, servers)
            except AssertionError as error:
                failed += 1
                print(f"{name}: does not run\n  {error}", flush=True)
                continue
            if chosen.record:
                written = write(found, outputs_of(path, chosen.record), chosen.says)
                print(f"{name}: {'written' if written else 'as it was'}", flush=True)
                continue
            before = recorded(outputs_of(path, chosen.against))
            told = differences(found, before)
            failed += bool(told) or (chosen.bits and not same_bits(found, before))
            print(f"{name}: {verdict(found, before)}", *told, sep="\n  ", flush=True)
        for line in servers.complaints():
            failed += 1
            print("a server complained:", line)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
