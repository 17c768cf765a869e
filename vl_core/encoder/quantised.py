"""Qwen3-VL from a folder of quantised weights, read by transformers' own quantisers with the library each needs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .modules import Qwen3VL
from .room import is_out_of_memory

INSTEAD = "Use the unquantised folder, or a quantised single file with ComfyUI's Load CLIP."
UNKNOWN = "unknown method"
# What usual methods need beside accelerate, by the names to install; of the others transformers tells.
LIBRARIES = {
    "auto-round": "auto-round", "awq": "gptqmodel", "bitsandbytes": "bitsandbytes", "gptq": "optimum gptqmodel",
    "compressed-tensors": "compressed-tensors", "hqq": "hqq", "quanto": "optimum-quanto", "torchao": "torchao",
}
PIECES = 1024  # of a file of weights are looked at to tell it from another one
PIECE_BYTES = 64


def quantisation_of(content: Mapping[str, Any]) -> str:
    """The method that a config.json names, "" for plain weights."""
    text = content.get("text_config")
    told = content.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not told:
        return ""
    return str(told.get("quant_method", UNKNOWN)) if isinstance(told, dict) else UNKNOWN


def missing_libraries(method: str) -> list[str]:
    """What to install before weights of this method can be read, by the names that pip knows."""
    return [name for name in f"accelerate {LIBRARIES.get(method, '')}".split() if not _is_installed(name)]


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def fingerprint(files: Iterable[Path]) -> str:
    """What tells files of weights from others: their sizes, and pieces from all over them, the headers among these."""
    found = sha256()
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            found.update(file.read(1 << 20))
            for place in range(0, size, max(1, size // PIECES)):
                file.seek(place)
                found.update(file.read(PIECE_BYTES))
    return found.hexdigest()


def load_quantised(folder: Path, config: Any, blocks: int, device: str | torch.device, dtype: torch.dtype) -> Qwen3VL:
    """Qwen3VLModel with the first ``blocks`` language blocks; what is not quantised comes in ``dtype``.

    Raises:
        ImportError: naming the library that is missing.
        ValueError: if transformers cannot read it, or not on this device.
    """
    config = copy.deepcopy(config)
    method = quantisation_of(config.to_dict())
    config.text_config.num_hidden_layers = blocks  # of the others transformers reads nothing
    try:
        from transformers.models.qwen3_vl import Qwen3VLForConditionalGeneration
        from transformers.quantizers.auto import AutoHfQuantizer
    except ImportError as error:  # a quantiser's library may be for another torch
        raise _not_there(folder, method, error) from error
    if not AutoHfQuantizer.supports_quant_method(config.to_dict().get("quantization_config") or {}):
        # It would be passed over, and the numbers of the file taken for weights.
        raise ValueError(
            f"{folder.name}: its weights are quantised by {method}, unknown to this transformers. {INSTEAD}"
        )
    if needed := missing_libraries(method):
        raise _not_there(folder, method, f"With the Python that runs this: pip install {' '.join(needed)}.")
    try:
        # With its head: modules that are not quantised are named as in the model that was saved.
        read: Any = Qwen3VLForConditionalGeneration.from_pretrained
        whole, told = read(
            folder, config=config, dtype=dtype, device_map={"": torch.device(device)}, attn_implementation="sdpa",
            use_safetensors=True, local_files_only=True, trust_remote_code=False, output_loading_info=True,
        )
    except ImportError as error:
        raise _not_there(folder, method, error) from error
    except (ValueError, RuntimeError, OSError, KeyError, AttributeError, AssertionError) as error:  # each has its own
        if is_out_of_memory(error):
            raise
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
    for unpack in list(whole._forward_pre_hooks.values()):  # compressed-tensors waits for the first forward, not ours
        unpack(whole, ())
    return whole.model


def _not_there(folder: Path, method: str, why: object) -> ImportError:
    return ImportError(
        f"{folder.name}: its weights are quantised ({method}), and what reads them is not installed, or not for this "
        f"torch. {' '.join(str(why).split())} {INSTEAD}"
    )
