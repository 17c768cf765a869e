"""Scores of a picture by a model the user has on disk: CLIP (picture and words) or DINO (picture alone)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Score:
    """What a CLIP or a DINO makes of pictures, and of words where it reads them.

    Called with a picture, its reference (uint8 ``(H, W, 3)``) and the prompt it gives cosines: "NAME to reference", and
    "NAME to prompt" of a model that reads words.

    Attributes:
        name: of the model's folder. reads_text: whether it has words too.
    """

    def __init__(self, name: str, model: Any, processor: Any, tokenizer: Any = None) -> None:
        self.name, self.model, self.processor, self.tokenizer = name, model, processor, tokenizer
        self.reads_text = tokenizer is not None

    @torch.no_grad()
    def of_picture(self, picture: Tensor) -> Tensor:
        """Features ``(D,)`` of a picture uint8 ``(H, W, 3)``."""
        pixels = self.processor(images=picture.numpy(), return_tensors="pt")["pixel_values"].to(self.model.device)
        act = self.model.get_image_features if self.reads_text else self.model
        return _vector(act(pixel_values=pixels))

    @torch.no_grad()
    def of_text(self, prompt: str) -> Tensor:
        """Features ``(D,)`` of words, of as many as the model takes."""
        words = self.tokenizer(prompt, return_tensors="pt", truncation=True).to(self.model.device)
        return _vector(self.model.get_text_features(**words))

    def __call__(self, picture: Tensor, reference: Tensor, prompt: str) -> Mapping[str, float]:
        own = self.of_picture(picture)
        found = {f"{self.name} to reference": cosine(own, self.of_picture(reference))}
        return found | ({f"{self.name} to prompt": cosine(own, self.of_text(prompt))} if self.reads_text else {})


def load_score(folder: str, option: str, device: torch.device) -> Score:
    """A score from a folder of transformers' layout.

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
    return Score(
        path.resolve().name, model, processor, AutoTokenizer.from_pretrained(path, **plain) if reads_text else None
    )


def _vector(output: Any) -> Tensor:
    """Features ``(D,)``: a tensor in older transformers, an output with a pooled state in others."""
    found = output if isinstance(output, Tensor) else output.pooler_output
    return found[0].float()


def cosine(one: Tensor, other: Tensor) -> float:
    """Of features, to six digits."""
    return round(float(F.cosine_similarity(one, other, dim=0)), 6)
