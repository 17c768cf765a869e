"""Stage ``assemble``: the trained parts as folders that the stock classes load, in bf16.

``z-image-mini/`` for ``ZImagePipeline.from_pretrained``, ``qwen3-vl-mini/`` for
``Qwen3VLForConditionalGeneration.from_pretrained`` and ``Qwen3VLEncoder.from_pretrained``, ``judge.safetensors``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from vl_core.zimage.progress import without_library_bars

from . import dit, text, tokens, vae, vl
from .forwards import SHIFT
from .training import Options, log, write_json

PIPELINE, VISION, JUDGE = "z-image-mini", "qwen3-vl-mini", "judge.safetensors"
MODELS = Path(__file__).parents[1] / "models"  # where the trained ones are


def folders(models: Path = MODELS) -> tuple[str, str]:
    """Those of Z-Image and of Qwen3-VL."""
    return str(models / PIPELINE), str(models / VISION)


def models_folder(options: Options) -> Path:
    return options.models if options.models is not None else options.out / "models"


def run(options: Options) -> dict[str, Any]:
    """Write the folders, give their sizes in megabytes."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    options.out.mkdir(parents=True, exist_ok=True)
    folder = models_folder(options)
    tokenizer = tokens.load_tokenizer(options.out)
    half = torch.bfloat16
    pipeline = ZImagePipeline(
        # dynamic shifting is off, so the shift is the same for every size
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT), tokenizer=tokenizer,
        vae=vae.load(options.out, options).to("cpu", half),
        text_encoder=text.load(options.out, options, tokenizer).model.to("cpu", half),
        transformer=dit.load(options.out, options).to("cpu", half),
    )
    pipeline.save_pretrained(folder / PIPELINE)
    seer = vl.load(options.out, options, tokenizer).to("cpu", half)
    seer.generation_config.eos_token_id = tokenizer.eos_token_id
    seer.generation_config.pad_token_id = tokenizer.pad_token_id
    seer.save_pretrained(folder / VISION)
    tokenizer.save_pretrained(folder / VISION)
    shutil.copyfile(options.out / "judge.safetensors", folder / JUDGE)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes files that only their owner can read
    figures = {"bytes": weight_bytes(folder)}
    log(options, "assemble", megabytes=figures["bytes"] / 1e6)
    write_json(options.out / "assemble.json", figures)
    return figures


def weight_bytes(folder: Path) -> int:
    """Bytes of every file of the folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def load_speaker(folder: Path) -> Any:
    """The VL with its head, float32, on the CPU, from the assembled models."""
    from transformers import Qwen3VLForConditionalGeneration

    with without_library_bars():
        return Qwen3VLForConditionalGeneration.from_pretrained(folder / VISION, dtype=torch.float32).eval()
