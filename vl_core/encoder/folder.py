"""A Hugging Face folder of Qwen3-VL: its config, tokenizer and only the weights that are needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..states.files import read_json_object, read_text
from .modules import Qwen3VL
from .quantised import INSTEAD, UNKNOWN, load_quantised, quantisation_of

log = logging.getLogger(__name__)


MODEL_TYPE = "qwen3_vl"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CAST_BYTES = 8 << 20  # of a file that is cast may lie in memory with what it was cast to
HEAD = "lm_head.weight"
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".safetensors")
ROPE_THETA = 5_000_000.0  # of every Qwen3-VL, and what transformers takes where a config does not say
PREFIX = "model."  # what published keys start with; a bare Qwen3VLModel is saved without it


def _read_json(path: Path) -> dict:
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ValueError(f"{error} Download it again.") from error


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
    text, model_type = content.get("text_config"), content.get("model_type")
    if model_type != MODEL_TYPE:
        raise ValueError(
            f"{folder.name}: expected a Qwen3-VL (model_type {MODEL_TYPE!r}), got {model_type!r}. Use for example "
            "Qwen/Qwen3-VL-4B-Instruct."
        )
    if not isinstance(text, dict) or not isinstance(content.get("vision_config"), dict):
        raise ValueError(
            f"{folder.name}: config.json lacks or garbles text_config or vision_config. Download it again."
        )
    if quantisation_of(content) == UNKNOWN:
        raise ValueError(
            f"{folder.name}: config.json: expected a quantization_config with a quant_method, got none. {INSTEAD}"
        )
    try:
        from transformers.models.qwen3_vl import Qwen3VLConfig
    except ImportError as error:
        raise ImportError("Qwen3-VL needs transformers 4.57 or newer: pip install -U transformers") from error
    try:
        return Qwen3VLConfig(**older_config(content) if transformers_4() else content)
    except Exception as error:  # transformers checks with errors of its own
        raise ValueError(
            f"{folder.name}: config.json cannot be read by this transformers ({' '.join(str(error).split())}). "
            "Download it again, or update: pip install -U transformers"
        ) from error


def transformers_4() -> bool:
    """Whether the transformers of this environment is one before 5."""
    return version("transformers").startswith("4.")


def older_config(content: dict[str, Any]) -> dict[str, Any]:
    """A config that transformers 5 wrote, as 4.57 reads it: ``rope_theta`` and ``rope_scaling`` apart."""
    found = {name: older_config(value) if isinstance(value, dict) else value for name, value in content.items()}
    rope = found.pop("rope_parameters", None)
    if isinstance(rope, dict):
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        found.setdefault("rope_theta", rope.get("rope_theta", ROPE_THETA))
        if found.get("rope_scaling") is None:
            found["rope_scaling"] = scaling or None
    if "dtype" in found:
        found.setdefault("torch_dtype", found["dtype"])
    return found


def load_tokenizer(folder: Path) -> Any:
    """:func:`read_tokenizer` of a folder, after checking that its files are there."""
    complete = (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )
    if not complete or not (folder / "tokenizer_config.json").is_file():
        raise FileNotFoundError(
            f"No tokenizer in {folder}: expected tokenizer_config.json and tokenizer.json (or vocab.json and "
            "merges.txt). Download them from the model's page."
        )
    return read_tokenizer(folder)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, whichever transformers wrote it; no code of the folder is run.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read.
    """
    from transformers import AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    told = _read_json(folder / "tokenizer_config.json")
    try:
        if not transformers_4() or not _of_transformers_5(told):
            return AutoTokenizer.from_pretrained(folder, **options)
        from transformers import PreTrainedTokenizerFast

        more = told.get("extra_special_tokens")
        # 4.57 takes names and tokens there; a list is what it calls additional ones.
        own = {"extra_special_tokens": {}, "additional_special_tokens": more} if isinstance(more, list) else {}
        return PreTrainedTokenizerFast.from_pretrained(folder, **options, **own)
    except Exception as error:  # the Rust side raises plain Exception
        raise ValueError(
            f"{folder.name}: its tokenizer cannot be read by this transformers ({' '.join(str(error).split())}). "
            "Download its files again, or update: pip install -U transformers"
        ) from error


def _of_transformers_5(told: dict[str, Any]) -> bool:
    """Whether a tokenizer_config.json says what only transformers 5 understands."""
    return told.get("tokenizer_class") == "TokenizersBackend" or isinstance(told.get("extra_special_tokens"), list)


def empty_model(config: Any, blocks: int) -> Qwen3VL:
    """Qwen3VLModel with the first ``blocks`` language blocks, all on the meta device."""
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config, attn_implementation="sdpa")
    language = model.language_model
    language.layers = language.layers[:blocks]
    language.config.num_hidden_layers = blocks
    model.config.text_config.num_hidden_layers = blocks
    return model


def read_model(
    folder: Path, config: Any, blocks: int, device: str | torch.device, dtype: torch.dtype,
    progress: Callable[[int, int], None] | None,
) -> Qwen3VL:
    """Qwen3VLModel with the first ``blocks`` language blocks, all weights on ``device``; on the meta device none."""
    if torch.device(device).type == "meta":
        return empty_model(config, blocks).to(dtype)
    if quantisation_of(config.to_dict()):
        for file in _weight_files(folder):
            _open(folder, file, "cpu")  # is there, and nowhere else
        return load_quantised(folder, config, blocks, device, dtype)
    model = empty_model(config, blocks)
    model.load_state_dict(read_weights(folder, model, device, dtype, progress), assign=True)
    rebuild_rotary_buffers(model, device)
    return model


def is_quantised(folder: Path) -> bool:
    """Whether a folder's config.json says that its weights are."""
    path = folder / "config.json"
    return path.is_file() and bool(quantisation_of(_read_json(path)))


def weight_files(folder: Path) -> list[Path]:
    """A folder's files of weights, checked as :func:`read_weights` checks them."""
    for file in _weight_files(folder):
        _stay_inside(folder, file)
    return [folder / file for file in sorted(_weight_files(folder))]


def _weight_files(folder: Path) -> Mapping[str, list[str] | None]:
    """The safetensors files of a folder and the keys the index puts there; None if there is no index."""
    if (folder / SINGLE).is_file():
        return {SINGLE: None}
    if (folder / INDEX).is_file():
        places = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ValueError(f"{INDEX}: expected a weight_map of keys and files, got another thing. Download it again.")
        files: dict[str, list[str]] = {}
        for key, file in places.items():
            files.setdefault(file, []).append(key)
        return files
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)
    found = f"only {', '.join(others[:4])}" if others else "no weights"
    raise FileNotFoundError(
        f"Expected {SINGLE}, or {INDEX} and its shards, in {folder}, found {found}. Only safetensors are read; "
        "download those of the model."
    )


def _stay_inside(folder: Path, file: str) -> None:
    """Raise ValueError if a file of the folder lies elsewhere, by its name or by a link.

    The cache of huggingface_hub links a snapshot's files to the blobs beside it: these belong to the folder.
    """
    own = folder.resolve()
    allowed = [own, *([own.parent.parent / "blobs"] if own.parent.name == "snapshots" else [])]
    named = Path(os.path.abspath(own / file))
    if not named.is_relative_to(own) or not any(named.resolve().is_relative_to(root) for root in allowed):
        raise ValueError(
            f"{file}: expected a file in {folder}, it leads out of it. Put the file itself there, or link the whole "
            "folder."
        )


def _open(folder: Path, file: str, device: str | torch.device) -> Any:
    _stay_inside(folder, file)
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
        argument = getattr(module, "config", None) or 2 * module.get_buffer("inv_freq").numel()
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, type(module)(argument).to(device))


def _chat_template(folder: Path) -> str | None:
    """The folder's chat template, from whichever of the three files it is in."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    for file in ("chat_template.json", "tokenizer_config.json"):
        template = _read_json(folder / file).get("chat_template") if (folder / file).is_file() else None
        if isinstance(template, list):  # several named ones
            named = [entry for entry in template if isinstance(entry, dict)]
            template = {entry.get("name"): entry.get("template") for entry in named}.get("default")
        if template and isinstance(template, str):
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
