"""A Hugging Face folder of Qwen3-VL: its config, tokenizer and only the weights that are needed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

log = logging.getLogger(__name__)


MODEL_TYPE = "qwen3_vl"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CAST_BYTES = 8 << 20  # of a file that is cast may lie in memory with what it was cast to
HEAD = "lm_head.weight"
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".safetensors")
PREFIX = "model."  # what published keys start with; a bare Qwen3VLModel is saved without it


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: expected JSON, got a damaged file ({error}). Download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: expected a JSON object, got {type(content).__name__}. Download it again.")
    return content


def read_config(folder: Path) -> Any:
    """The folder's Qwen3VLConfig, after checking that it is one we can run."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise FileNotFoundError(
            f"Expected a folder with a Qwen3-VL in Hugging Face's layout at {folder}, found {found}. Download one, for "
            "example Qwen/Qwen3-VL-4B-Instruct, and give its folder."
        )
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"No config.json in {folder}. Give the folder of a complete Hugging Face download.")
    content = _read_json(path)
    model_type = content.get("model_type")
    if model_type != MODEL_TYPE:
        raise ValueError(
            f"{folder.name}: expected a Qwen3-VL (model_type {MODEL_TYPE!r}), got {model_type!r}. Use for example "
            "Qwen/Qwen3-VL-4B-Instruct."
        )
    quantization = content.get("quantization_config") or (content.get("text_config") or {}).get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown method")
        raise ValueError(
            f"{folder.name}: expected bf16, fp16 or fp32 weights, got quantised ones ({method}). Use the unquantised "
            "folder, or a quantised single file with ComfyUI's Load CLIP."
        )
    try:
        from transformers.models.qwen3_vl import Qwen3VLConfig
    except ImportError as error:
        raise ImportError("Qwen3-VL needs transformers 4.57 or newer: pip install -U transformers") from error
    return Qwen3VLConfig.from_pretrained(folder, local_files_only=True)


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    complete = (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )
    if not complete or not (folder / "tokenizer_config.json").is_file():
        raise FileNotFoundError(
            f"No tokenizer in {folder}: expected tokenizer_config.json and tokenizer.json (or vocab.json and "
            "merges.txt). Download them from the model's page."
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def empty_model(config: Any, blocks: int) -> nn.Module:
    """Qwen3VLModel with the first ``blocks`` language blocks, all on the meta device."""
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config, attn_implementation="sdpa")
    language = model.language_model
    language.layers = language.layers[:blocks]
    language.config.num_hidden_layers = blocks
    model.config.text_config.num_hidden_layers = blocks
    return model


def _weight_files(folder: Path) -> dict[str, list[str] | None]:
    """The safetensors files of a folder and the keys the index puts there; None if there is no index."""
    if (folder / SINGLE).is_file():
        return {SINGLE: None}
    if (folder / INDEX).is_file():
        files: dict[str, list[str] | None] = {}
        for key, file in _read_json(folder / INDEX).get("weight_map", {}).items():
            files.setdefault(file, []).append(key)
        return files
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)
    found = f"only {', '.join(others[:4])}" if others else "no weights"
    raise FileNotFoundError(
        f"Expected {SINGLE}, or {INDEX} and its shards, in {folder}, found {found}. Only safetensors are read; "
        "download those of the model."
    )


def _open(folder: Path, file: str, device: str | torch.device) -> Any:
    if not (folder / file).is_file():
        raise FileNotFoundError(f"{file} is missing from {folder}, its index needs it. Download it again.")
    try:
        return safe_open(str(folder / file), framework="pt", device=str(device))
    except SafetensorError as error:
        raise ValueError(
            f"{file}: expected a safetensors file, got one that is cut short or damaged ({error}). Download it again."
        ) from error


def _locate(files: dict[str, Any], needed: dict[str, Tensor], folder: Path) -> dict[str, tuple[str, str]]:
    """Per needed name the file and key that hold it, checked for shape before anything is read."""
    holders = {key: file for file, handle in files.items() for key in handle.keys()}  # noqa: SIM118 (not a dict)
    prefix = PREFIX if any(PREFIX + name in holders for name in needed) else ""
    missing = [name for name in needed if prefix + name not in holders]
    if missing:
        raise ValueError(
            f"{folder.name}: {len(missing)} of {len(needed)} tensors are missing, first {', '.join(missing[:3])}. The "
            "files do not belong to this config.json; download the folder again."
        )
    for name, expected in needed.items():
        key = prefix + name
        shape = tuple(files[holders[key]].get_slice(key).get_shape())
        if shape != tuple(expected.shape):
            raise ValueError(
                f"{holders[key]}: expected {key} of shape {tuple(expected.shape)}, got {shape}. The files do not "
                "belong to this config.json, or are quantised; download the folder again."
            )
    return {name: (holders[prefix + name], prefix + name) for name in needed}


def _needed_files(folder: Path, needed: dict[str, Tensor]) -> Iterator[str]:
    for file, keys in _weight_files(folder).items():
        if keys is None or any(key in needed or key.removeprefix(PREFIX) in needed for key in keys):
            yield file


def read_weights(
    folder: Path,
    model: nn.Module,
    device: str | torch.device,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    """Every tensor of ``model``'s state dict, read one by one to ``device`` in ``dtype``."""
    needed = model.state_dict()
    files = {file: _open(folder, file, device) for file in _needed_files(folder, needed)}
    weights, cast = {}, 0
    for name, (file, key) in _locate(files, needed, folder).items():
        tensor = files[file].get_tensor(key)
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise ValueError(
                f"{file}: expected {key} as bf16, fp16 or fp32, got {tensor.dtype}. Use the unquantised folder, or "
                "a quantised single file with ComfyUI's Load CLIP."
            )
        weights[name] = tensor.to(dtype)
        if tensor.dtype != dtype:
            cast += tensor.nbytes
        del tensor
        if cast > CAST_BYTES:  # what was cast stays resident beside its copy for as long as the file is mapped
            files[file], cast = _open(folder, file, device), 0
        if progress is not None:
            progress(len(weights), len(needed))
    return weights


def read_head(folder: Path, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The untied head of a folder, on the CPU."""
    for file, keys in _weight_files(folder).items():
        if keys is not None and HEAD not in keys:
            continue
        with _open(folder, file, "cpu") as handle:
            if HEAD not in handle.keys():  # noqa: SIM118 (not a dict)
                continue
            head = handle.get_tensor(HEAD)
        if head.shape != shape or not head.is_floating_point() or head.itemsize < 2:
            raise ValueError(
                f"{file}: expected {HEAD} of shape {tuple(shape)} as bf16, fp16 or fp32, got {tuple(head.shape)} of "
                f"{head.dtype}. Use the unquantised folder."
            )
        return head.to(dtype)
    raise ValueError(
        f"{folder.name}: expected {HEAD}, since its config.json says that its embeddings are not used for it, got "
        "none. It can be read from, but writes no words; download the folder again."
    )


def rebuild_rotary_buffers(model: nn.Module, device: str | torch.device) -> None:
    """Give the rotary frequencies values, in float32: no file holds them, and on the meta device they had none."""
    for path, module in list(model.named_modules()):
        if not any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            continue
        # transformers 4.57 builds the vision rotary from the number of dimensions, everything else from a config.
        argument = getattr(module, "config", None) or 2 * module.inv_freq.numel()
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, type(module)(argument).to(device))


def _chat_template(folder: Path) -> str | None:
    """The folder's chat template, from whichever of the three files it is in."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for file in ("chat_template.json", "tokenizer_config.json"):
        template = _read_json(folder / file).get("chat_template") if (folder / file).is_file() else None
        if isinstance(template, list):  # several named ones
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if template:
            return template
    return None


def variant_of(folder: Path, tokenizer: Any) -> str:
    """Thinking, if the chat template has the assistant begin inside a think block, else Instruct."""
    template = _chat_template(folder)
    if template is None:
        return "Instruct"
    from jinja2 import TemplateError

    message = [{"role": "user", "content": ""}]
    try:
        opening = tokenizer.apply_chat_template(
            message, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, ValueError):
        log.warning("%s: its chat template cannot be filled, taken for an Instruct model.", folder.name)
        return "Instruct"
    return "Thinking" if opening.rstrip().endswith("<think>") else "Instruct"
