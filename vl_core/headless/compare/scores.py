"""Scores of a picture by a model the user has on disk: CLIP (picture and words) or DINO (picture alone)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def load_score(folder: str, option: str, device: torch.device) -> Callable[[Tensor, Tensor, str], Mapping[str, float]]:
    """A function from a picture, its reference (uint8 ``(H, W, 3)``) and the prompt to cosines.

    A model that reads text too gives "NAME to prompt" and "NAME to reference", any other "NAME to reference".

    Raises:
        FileNotFoundError, ValueError: if the folder holds no model of pictures.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    path, plain = Path(folder), {"local_files_only": True, "trust_remote_code": False}
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{option}: no config.json in {folder}. Give a folder of transformers' layout.")
    try:
        model = AutoModel.from_pretrained(path, **plain).to(device).eval()
        processor = AutoImageProcessor.from_pretrained(path, **plain)
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}: expected a CLIP or DINO in {folder} ({' '.join(str(error).split())}).") from error
    reads_text = hasattr(model, "get_text_features")
    tokenizer: Any = AutoTokenizer.from_pretrained(path, **plain) if reads_text else None
    name = path.resolve().name

    @torch.no_grad()
    def of_picture(picture: Tensor) -> Tensor:
        pixels = processor(images=picture.numpy(), return_tensors="pt")["pixel_values"].to(device)
        return _vector(model.get_image_features(pixel_values=pixels) if reads_text else model(pixel_values=pixels))

    @torch.no_grad()
    def of_text(prompt: str) -> Tensor:
        words = tokenizer(prompt, return_tensors="pt", truncation=True).to(device)
        return _vector(model.get_text_features(**words))

    def score(picture: Tensor, reference: Tensor, prompt: str) -> Mapping[str, float]:
        own = of_picture(picture)
        found = {f"{name} to reference": _cosine(own, of_picture(reference))}
        return found | ({f"{name} to prompt": _cosine(own, of_text(prompt))} if reads_text else {})

    return score


def _vector(output: Any) -> Tensor:
    """Features ``(D,)``: a tensor in older transformers, an output with a pooled state in others."""
    found = output if isinstance(output, Tensor) else output.pooler_output
    return found[0].float()


def _cosine(one: Tensor, other: Tensor) -> float:
    return round(float(F.cosine_similarity(one, other, dim=0)), 6)
