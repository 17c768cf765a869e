"""Fitting a picture adapter at the size of Qwen3-VL-4B: seconds, memory on the device and in RAM.

The texts are read by the VL without a picture, which is Qwen3-4B in all but its weights; these are random, so only
time and memory mean anything.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from vl_core import Qwen3VLEncoder
from vl_core.adapters.examples import find_examples, fit_examples
from vl_core.adapters.features import PictureFeatures
from vl_core.adapters.spec import AdapterSpec
from vl_core.stages.description import SLOTS

from .common import Report, add_output_argument
from .models import PROMPT, build_model

SIDE = 768  # pixels of each picture
PHRASES = ("a red hat", "the light of a lamp", "a painting of the sea", "a red lamp", "a cat of the sea")
GIB = 2**30


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="full", choices=["tiny", "medium", "full"])
    parser.add_argument("--pictures", type=int, default=200)


def run(arguments) -> None:
    device = torch.device(arguments.device)
    report = Report("adapter", device, arguments.out, size=arguments.size, pictures=arguments.pictures)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), arguments.pictures)
        report.section("fit", lambda: measure(report, device, arguments.size, Path(folder)))
    report.write()


def write_pictures(folder: Path, count: int) -> None:
    """Smooth noise as JPEG files and words in slots beside them."""
    from PIL import Image

    for index in range(count):
        coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(index))
        picture = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)
        Image.fromarray((picture[0].permute(1, 2, 0) * 255).byte().numpy()).save(folder / f"{index:05}.jpg")
        turn = PHRASES[index % len(PHRASES) :] + PHRASES[: index % len(PHRASES)]
        words = "\n".join(f"{slot.name}: {phrase}" for slot, phrase in zip(SLOTS, turn, strict=True))
        (folder / f"{index:05}.txt").write_text(words, encoding="utf-8")


def measure(report: Report, device: torch.device, size: str, folder: Path) -> None:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, tokenizer = build_model(size, device, dtype)
    encoder = Qwen3VLEncoder(model.model, tokenizer, model.config.text_config.num_hidden_layers)
    features = PictureFeatures()
    spec = AdapterSpec(features, SLOTS, encoder.width, encoder.num_layers, encoder.width)
    seconds = {"pictures": 0.0, "texts": 0.0}

    def timed(part: str, work):
        start = time.perf_counter()
        found = work()
        seconds[part] += time.perf_counter() - start
        return found

    def look(picture, prompt: str):
        def states():
            seen = encoder.encode([picture], prompt, features.layers)
            return replace(seen, states=seen.states.cpu())  # as the nodes hand them on

        return timed("pictures", states)

    def read(text: str):
        def states():
            return encoder.encode([], text, -2).at(-2)[0].cpu()

        return timed("texts", states)

    look(torch.zeros(SIDE, SIDE, 3), PROMPT)  # the first call loads kernels
    seconds.update(pictures=0.0, texts=0.0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        weights = torch.cuda.memory_allocated(device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    adapter, _ = fit_examples(find_examples(folder), spec, look, read, encoder.tokenize, prompts=[PROMPT])
    whole = time.perf_counter() - start
    report.add(f"fit on {adapter.report.pairs} pictures of {SIDE}²", s=whole)
    for part, spent in seconds.items():
        report.add(f"of it: {part} through the encoder", s=spent)
    report.add("of it: files, sums and the solve on the CPU", s=whole - sum(seconds.values()))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report.add("RAM over what the process took at most before", GiB=(after - before) / GIB)
    if device.type == "cuda":
        report.add("GPU over the weights", GiB=(torch.cuda.max_memory_allocated(device) - weights) / GIB)
    report.add("the adapter", MiB=sum(each.nbytes for each in adapter.map.tensors().values()) / 2**20)
