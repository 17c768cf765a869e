"""``fit``: a picture adapter from a folder of pictures and the words beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..adapters.examples import (
    Example,
    add_example,
    clear_parts,
    examples_key,
    find_examples,
    fit_examples,
    probe_of,
    slots_of,
)
from ..adapters.features import PictureFeatures
from ..adapters.fit import PictureAdapterFit
from ..adapters.picture_adapter import PictureAdapter
from ..adapters.spec import AdapterSpec
from ..states.statistics import calibration_prompts
from ..zimage import checks
from ..zimage.pipeline import prompt_layout
from ..zimage.progress import progress
from ..zimage.text import open_text_encoder, text_reader
from .calibrate import read_prompts
from .compare.fleet import on_ray
from .folders import OR_DEMO, vision_or_demo, zimage_or_demo
from .vision import load_encoder

SUMMARY = "fit a picture adapter on a folder of pictures with .txt files beside them"
PROBE = "a red fox in the snow"  # words that both encoders are known again by
SLICE = 16  # pictures that a worker of a cluster takes at a time


def add_arguments(parser) -> None:
    parser.add_argument("-f", "--folder", required=True, metavar="FOLDER", help="photo.png and photo.txt, and so on")
    parser.add_argument(
        "-m", "--model", required=True, type=zimage_or_demo, metavar="FOLDER",
        help=f"diffusers folder of Z-Image, or its text encoder{OR_DEMO}",
    )
    parser.add_argument(
        "--vision", required=True, type=vision_or_demo, metavar="FOLDER",
        help=f"Hugging Face folder of a Qwen3-VL-4B{OR_DEMO}",
    )
    parser.add_argument("-o", "--output", default="adapter.safetensors", metavar="FILE", help="where to write")
    parser.add_argument(
        "--prompts", metavar="FILE", help="prompts such as you write, one per line, that the descriptions are put "
        "after; the built-in ones are English sentences"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an adapter that is there already")
    parser.add_argument("--image-tokens", type=int, default=1024, metavar="N", help="most tokens of a picture")
    parser.add_argument("--ray", metavar="ADDRESS", help="fit on a Ray cluster; local, auto, or its address")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="of the cluster; 0 is one per GPU")
    checks.add_device_arguments(parser)


@dataclass(frozen=True)
class Encoders:
    """Where both encoders are, and how they run. Plain values: they travel to other machines."""

    text: str
    tokenizer: str
    vision: str
    device: str
    dtype: str
    image_tokens: int
    prompts: tuple[str, ...]


class Reader:
    """Both encoders, loaded, reading pictures and words for a fit."""

    def __init__(self, encoders: Encoders) -> None:
        device, dtype = checks.pick_device(encoders.device), checks.DTYPES[encoders.dtype]
        model, self.tokenizer = open_text_encoder(Path(encoders.text), Path(encoders.tokenizer), device, dtype)
        self.width, self.name = model.config.hidden_size, Path(encoders.text).resolve().parent.name
        self.read = text_reader(model, self.tokenizer)
        self.features, self.budget, self.prompts = PictureFeatures(), encoders.image_tokens, encoders.prompts
        self.encoder = load_encoder(encoders.vision, device, dtype, max(self.features.layers))

    def look(self, picture, prompt: str):
        return self.encoder.encode([picture], prompt, self.features.layers, budget=self.budget)

    def tokenize(self, text: str):
        return prompt_layout(self.tokenizer, text, self.name)

    def spec(self, examples: Sequence[Example]) -> AdapterSpec:
        """Read beside no words at all: what is learnt does not hang on the prompts of the fit."""
        return AdapterSpec(
            self.features, slots_of(examples), self.encoder.width, self.encoder.num_layers, self.width,
            vl_model=self.encoder.name, text_model=self.name, own_prompt=False, prompt="",
        )

    def part(self, spec: AdapterSpec, numbered: Sequence[tuple[int, Example]]) -> PictureAdapterFit:
        """What some of the examples add; their numbers are those of the whole fit."""
        fit = PictureAdapterFit(spec)
        for index, example in numbered:
            prompt = self.prompts[index % len(self.prompts)]
            add_example(fit, example, prompt, index, self.look, self.read, self.tokenize)
        return fit


def run(arguments) -> None:
    checks.require_packages("transformers", "PIL", "tqdm")
    output = checks.output_file(arguments.output, "--output", ".safetensors")
    if output.exists() and not arguments.overwrite:
        raise ValueError(f"--output: {output} is there already. Give another name, or --overwrite to replace it.")
    checks.in_range(arguments.image_tokens, "--image-tokens", 1)
    checks.in_range(arguments.workers, "--workers", 0)
    text, tokenizer, _, _ = checks.text_encoder_folder(arguments.model, "--model")
    checks.vision_folder(arguments.vision, "--vision")
    examples = find_examples(Path(arguments.folder))
    encoders = Encoders(
        os.path.abspath(text), os.path.abspath(tokenizer), os.path.abspath(arguments.vision), arguments.device,
        arguments.dtype, arguments.image_tokens,
        tuple(calibration_prompts() if arguments.prompts is None else read_prompts(arguments.prompts)),
    )
    if arguments.ray is None:
        adapter, resumed = fit_here(encoders, examples, output)
        if resumed:
            print(f"went on after {resumed} pictures of a fit that was stopped")
    else:
        adapter = fit_on_ray(encoders, examples, arguments.ray, arguments.workers)
    adapter.save(output)
    clear_parts(output)
    print(adapter.describe())
    print(f"adapter: {output}")


def fit_here(encoders: Encoders, examples: Sequence[Example], output: Path) -> tuple[PictureAdapter, int]:
    """In this process; stopped, it goes on from a ``.part`` file beside the output."""
    reader = Reader(encoders)
    spec = reader.spec(examples)
    key = examples_key(examples, spec, reader.prompts, f"{encoders.dtype} {encoders.image_tokens}")
    part = output.with_name(f"{output.stem}_{key}.part")
    output.parent.mkdir(parents=True, exist_ok=True)
    probe = probe_of(reader.look(examples[0].pixels(), PROBE), reader.read(PROBE))
    reader.encoder.forget()  # the first picture is read as a worker reads it, not on from the probe's reading
    with progress("Reading pictures", len(examples)) as move:
        return fit_examples(
            examples, spec, reader.look, reader.read, reader.tokenize, prompts=reader.prompts, part=part, probe=probe,
            step=move,
        )


def fit_on_ray(
    encoders: Encoders, examples: Sequence[Example], address: str, workers: int
) -> PictureAdapter:
    """Every worker adds up slices of the examples, and the parts are merged here, in their order.

    The folders and pictures must lie in the same places on every machine.
    """
    numbered = list(enumerate(examples))
    slices = [numbered[start : start + SLICE] for start in range(0, len(numbered), SLICE)]
    spec = Reader(encoders).spec(examples)
    whole = PictureAdapterFit(spec)
    found: Iterator[PictureAdapterFit] = on_ray(
        address, workers, Reader, (encoders,), lambda worker, slice: worker.part.remote(spec, slice), slices,
        ordered=True,
    )
    with progress("Reading pictures", len(slices)) as move:
        for part in found:
            whole.merge(part)
            move()
    return whole.solve()
