"""What can be checked before a model is loaded: packages, files, folders, numbers, the device."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from ..encoder.folder import transformers_4
from ..states.files import read_json_object, read_text

INSTALL = 'pip install -e ".[headless]"'  # in the folder of this pack
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def require_packages(*names: str) -> None:
    """Raise ImportError naming the packages that are not installed, without importing those that are."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"this command needs {', '.join(missing)}. Install what is missing with: {INSTALL}")


def readable_file(path: str, option: str) -> Path:
    """Raises:
    FileNotFoundError, ValueError: unless ``path`` is a file that can be read.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{option}: no file at {path}.")
    if not file.is_file() or not os.access(file, os.R_OK):
        raise ValueError(f"{option}: expected a file that can be read, got {path}.")
    return file


def readable_text(path: str, option: str) -> str:
    """The text of a file, in whichever of the usual encodings it is (:func:`read_text`).

    Raises:
        FileNotFoundError, ValueError: if it cannot be read, or not as text.
    """
    file = readable_file(path, option)
    try:
        return read_text(file)
    except ValueError as error:
        raise ValueError(f"{option}: expected a text file in UTF-8, got {path} ({error})") from error


def output_file(path: str, option: str, suffix: str) -> Path:
    """A file that can be written, in a folder that exists or can be made. Nothing is made yet.

    Raises:
        ValueError: if it has another ending, is a folder, or lies where nothing can be written.
    """
    file = Path(path)
    if file.suffix.lower() != suffix:
        raise ValueError(f"{option}: expected a name ending in {suffix}, got {path}.")
    if file.is_dir() or (file.exists() and not os.access(file, os.W_OK)):
        raise ValueError(f"{option}: expected a file that can be written, got {path}.")
    output_folder(str(file.parent), option)
    return file


def output_folder(path: str, option: str) -> Path:
    """Raises:
    ValueError: unless ``path`` is, or can become, a folder that can be written to.
    """
    folder = Path(path)
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"{option}: {existing} is a file, so nothing can be written to {path}.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: no permission to write in {existing}.")
    return folder


def in_range(value: float, option: str, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless ``low <= value <= high``; NaN is outside."""
    if not low <= value <= high:
        expected = f"{low} to {high}" if high < float("inf") else f"{low} or more"
        raise ValueError(f"{option}: expected {expected}, got {value}.")


def read_json(path: Path, option: str) -> dict[str, Any]:
    """Raises:
    FileNotFoundError: if the file is missing; ValueError: if it is not a JSON object, or a file stands for the folder.
    """
    if path.parent.is_file():
        raise ValueError(
            f"{option}: expected a folder as Hugging Face has it, got the file {path.parent}. Single files are for "
            "ComfyUI; download a folder such as Tongyi-MAI/Z-Image-Turbo or Qwen/Qwen3-VL-4B-Instruct."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no {path.name} in {path.parent}. Give the folder of a complete download.")
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ValueError(f"{option}: in {path.parent}, {error} Download it again.") from error


def vision_folder(path: str, option: str) -> tuple[int, int]:
    """``(width, blocks)`` of the Qwen3-VL in a folder.

    Raises:
        FileNotFoundError, ValueError: if it is no Qwen3-VL in Hugging Face's layout.
    """
    config = read_json(Path(path) / "config.json", option)
    if config.get("model_type") != "qwen3_vl":
        raise ValueError(
            f"{option}: expected a Qwen3-VL, got model_type {config.get('model_type')!r} in {path}. Use for example "
            "Qwen/Qwen3-VL-4B-Instruct."
        )
    return _size(config.get("text_config", {}), path, option)


def text_encoder_folder(path: str, option: str) -> tuple[Path, Path, int, int]:
    """``(model folder, tokenizer folder, width, blocks)`` of a Z-Image folder's text encoder, or of a bare one.

    Raises:
        FileNotFoundError, ValueError: if neither is there.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{option}: no folder at {path}.")
    model = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    config = read_json(model / "config.json", option)
    if config.get("model_type") != "qwen3":
        raise ValueError(
            f"{option}: expected Z-Image's text encoder, a Qwen3, got model_type {config.get('model_type')!r} in "
            f"{model}."
        )
    if "rope_parameters" in config and "rope_theta" not in config and transformers_4():
        raise ValueError(
            f"{option}: {model} was written by transformers 5, which says its rotary frequencies in another place. "
            "Update: pip install -U transformers"
        )
    places = [model, folder / "tokenizer", model.absolute().parent / "tokenizer"]
    tokenizer = next((place for place in places if (place / "tokenizer_config.json").is_file()), None)
    if tokenizer is None:
        raise FileNotFoundError(f"{option}: no tokenizer_config.json in {' or '.join(map(str, places[:2]))}.")
    return model, tokenizer, *_size(config, str(model), option)


def _size(config: dict[str, Any], path: str, option: str) -> tuple[int, int]:
    try:
        return int(config["hidden_size"]), int(config["num_hidden_layers"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{option}: config.json in {path} tells no hidden_size and num_hidden_layers.") from error


def pick_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is a GPU if there is one.

    Raises:
        ValueError: if torch does not know it or this machine has none.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    accelerators = [kind for kind in there if there[kind]]
    if name == "auto":
        return torch.device((accelerators or ["cpu"])[0])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: expected auto, cpu, cuda or the like, got {name!r}.") from error
    counts = {"cuda": torch.cuda.device_count() if "cuda" in accelerators else 0, "mps": int("mps" in accelerators)}
    if device.type in counts and (device.index or 0) >= counts[device.type]:
        raise ValueError(f"--device: this machine has no {name}. Use --device cpu.")
    return device


def add_device_arguments(parser) -> None:
    group = parser.add_argument_group("where it runs")
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    group.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="precision of the weights")
