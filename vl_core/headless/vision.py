"""Qwen3-VL for the command line: loaded and run under progress bars."""

from __future__ import annotations

from pathlib import Path

import torch

from ..encoder.qwen3vl import Qwen3VLEncoder
from ..states.vl_states import resolve_layer
from ..zimage.progress import progress


def load_encoder(folder: str, device: torch.device, dtype: torch.dtype, layer: int) -> Qwen3VLEncoder:
    with progress(f"Loading {Path(folder).resolve().name}") as move:
        return Qwen3VLEncoder.from_pretrained(folder, device, dtype, layer, progress=move)


def steps_of_encode(encoder: Qwen3VLEncoder, pictures: int, layer: int) -> int:
    """How often an encode calls its ``check``: once per picture and block, those of the vision tower too."""
    return pictures * (1 + len(encoder.model.visual.blocks)) + resolve_layer(layer, encoder.num_layers)


def add_picture_arguments(parser, required_note: str = "") -> None:
    parser.add_argument(
        "-i", "--image", action="extend", nargs="+", default=[], metavar="FILE",
        help=f"reference pictures, one or several{required_note}",
    )
    parser.add_argument(
        "--image-tokens", type=int, default=1024, metavar="N",
        help="most tokens a picture may take, 32 × 32 pixels each; larger pictures are scaled down",
    )
