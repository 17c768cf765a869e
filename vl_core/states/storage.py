"""One safetensors format for everything the pack saves: tensors plus a JSON header that says what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

HEADER_KEY = "zimage-vl"  # safetensors metadata entry that holds our JSON header
FORMAT_VERSION = 1


def write_tensors(path: str | os.PathLike, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and header to ``path``; the file appears whole or not at all.

    Args:
        kind: what the file is ("states", "conditioning", "reference"); reading checks it.
        header: anything JSON can hold.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {HEADER_KEY: json.dumps({**header, "kind": kind, "version": FORMAT_VERSION}, ensure_ascii=False)}
    # save_file refuses tensors that share memory, so every one is written from its own.
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    partial = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        partial.touch()
        ordinary = partial.stat().st_mode
        save_file(own, partial, metadata=metadata)
        partial.chmod(ordinary)  # safetensors makes files that only their owner can read
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_tensors(path: str | os.PathLike, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Returns:
        the tensors by name, on the CPU, and the header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, cut short, written by another program, of another kind, or by a newer
            version of this pack.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            if header is None:
                raise ValueError(
                    f"{path.name}: expected a file saved by zimage-vl, got a safetensors file of another program."
                )
            try:
                header = dict(json.loads(header))
                version = int(header.get("version", 0))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path.name}: expected a zimage-vl header, got a damaged one ({error}).") from error
            if version > FORMAT_VERSION:
                raise ValueError(
                    f"{path.name}: written in format {version}, this version reads up to {FORMAT_VERSION}. "
                    "Update zimage-vl."
                )
            if header.get("kind") != kind:
                raise ValueError(f"{path.name}: expected saved {kind}, got saved {header.get('kind')}.")
            # Cloned off the memory map, which would keep Windows from replacing the file while a tensor lives.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(
            f"{path.name}: expected a safetensors file, got one that is cut short or damaged ({error})."
        ) from error
    return tensors, header


def take(tensors: Mapping[str, Tensor], name: str, path: str | os.PathLike, ndim: int) -> Tensor:
    """The tensor called ``name``, checked to be there with ``ndim`` axes.

    Raises:
        ValueError: if it is missing or has another number of axes.
    """
    if name not in tensors:
        raise ValueError(f"{Path(path).name}: expected a tensor {name!r}, got only {sorted(tensors)}.")
    if tensors[name].ndim != ndim:
        shape = tuple(tensors[name].shape)
        raise ValueError(f"{Path(path).name}: expected {name!r} with {ndim} axes, got shape {shape}.")
    return tensors[name]
