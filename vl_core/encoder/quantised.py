"""Qwen3-VL from a folder of quantised weights, read by transformers' own quantisers with the library each needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .modules import Qwen3VL

INSTEAD = "Use the unquantised folder, or a quantised single file with ComfyUI's Load CLIP."


def quantisation_of(content: Mapping[str, Any]) -> str:
    """The method that a config.json names, "" for plain weights."""
    text = content.get("text_config")
    told = content.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not told:
        return ""
    return str(told.get("quant_method", "unknown method")) if isinstance(told, dict) else "unknown method"


def load_quantised(folder: Path, config: Any, blocks: int, device: str | torch.device, dtype: torch.dtype) -> Qwen3VL:
    """Qwen3VLModel with the first ``blocks`` language blocks; what is not quantised comes in ``dtype``.

    Raises:
        ImportError: naming the library that is missing.
        ValueError: if transformers cannot read it, or not on this device.
    """
    from transformers.models.qwen3_vl import Qwen3VLForConditionalGeneration
    from transformers.quantizers.auto import AutoHfQuantizer

    method = quantisation_of(config.to_dict())
    if not AutoHfQuantizer.supports_quant_method(config.to_dict().get("quantization_config") or {}):
        # It would be passed over, and the numbers of the file taken for weights.
        raise ValueError(
            f"{folder.name}: its weights are quantised by {method}, unknown to this transformers. {INSTEAD}"
        )
    config.text_config.num_hidden_layers = blocks  # of the others transformers reads nothing
    try:
        # With its head: modules that are not quantised are named as in the model that was saved.
        read: Any = Qwen3VLForConditionalGeneration.from_pretrained
        whole, told = read(
            folder, config=config, dtype=dtype, device_map={"": torch.device(device)}, attn_implementation="sdpa",
            use_safetensors=True, local_files_only=True, trust_remote_code=False, output_loading_info=True,
        )
    except ImportError as error:
        raise ImportError(
            f"{folder.name}: its weights are quantised ({method}), and what reads them is not installed. "
            f"{' '.join(str(error).split())} {INSTEAD}"
        ) from error
    except (ValueError, RuntimeError, OSError, KeyError, AttributeError) as error:  # each quantiser has its own
        raise ValueError(
            f"{folder.name}: its quantised weights ({method}) cannot be read by this transformers on "
            f"{torch.device(device).type} ({' '.join(str(error).split())}). {INSTEAD}"
        ) from error
    lacking = sorted(told["missing_keys"])
    if lacking:  # transformers would draw them
        raise ValueError(
            f"{folder.name}: {len(lacking)} tensors are missing, first {', '.join(lacking[:3])}. The files do not "
            "belong to this config.json; download the folder again."
        )
    return whole.model
