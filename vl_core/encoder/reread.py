"""Weights of a folder let go of and read anew: the way to move what a quantiser made, which is bound to its device."""

from __future__ import annotations

import torch

from .folder import read_config, read_model
from .qwen3vl import Qwen3VLEncoder

NOWHERE = torch.device("meta")


def is_read(encoder: Qwen3VLEncoder) -> bool:
    """Whether an encoder's weights are there."""
    return encoder.device != NOWHERE


def read_to(encoder: Qwen3VLEncoder, device: str | torch.device) -> None:
    """Read an encoder's weights from its folder to a device, those of before let go of, with all that is kept.

    Args:
        device: ``NOWHERE`` only lets go of them.

    Raises:
        FileNotFoundError, ValueError, ImportError: as :meth:`Qwen3VLEncoder.from_pretrained`; for an encoder that came
            from no folder. It has no weights then.
    """
    if encoder.folder is None:
        raise ValueError(f"{encoder.name}: expected an encoder that was read from a folder, got a module's.")
    for place in dict.fromkeys((NOWHERE, torch.device(device))):
        config = read_config(encoder.folder)
        model = read_model(encoder.folder, config, encoder.loaded_layers, place, encoder.dtype, None)
        encoder.use(model.eval().requires_grad_(False))
