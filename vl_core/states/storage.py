"""One safetensors format for everything the pack saves: tensors plus a JSON header that says what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import check_content, clear_orphans, parse_json, whole_file
from .headers import FileHeader
from .tensors import all_finite

HEADER_KEY = "zimage-vl"  # safetensors metadata entry that holds our JSON header
FORMAT_VERSION = 1


def write_tensors(path: str | os.PathLike, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and header to ``path``; the file appears whole or not at all.

    Args:
        kind: what the file is ("states", "conditioning", "reference"); reading checks it.
        header: anything JSON can hold.
    """
    path = Path(path)
    clear_orphans(path)
    metadata = {HEADER_KEY: json.dumps({**header, "kind": kind, "version": FORMAT_VERSION}, ensure_ascii=False)}
    # save_file refuses tensors that share memory, so every one is written from its own.
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_whole(path, own, metadata)
    return path


def save_whole(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file that appears whole or not at all, and that whoever reads the folder's other files can read."""
    with whole_file(path) as partial:
        partial.touch()
        ordinary = partial.stat().st_mode
        save_file(dict(tensors), partial, metadata=dict(metadata))
        partial.chmod(ordinary)  # safetensors makes files that only their owner can read


def read_tensors(
    path: str | os.PathLike, kind: str, *, finite: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Args:
        finite: refuse NaN and infinity: what was measured or fitted holds none. States are read as they are, and
            checked by the stages that take them.

    Returns:
        the tensors by name, on the CPU, and the header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, cut short, written by another program, of another kind, by a newer
            version of this pack, with a header that is no JSON object or is nested without end, or with values that
            are not finite.
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
                header = parse_json(header, HEADER_KEY)
                told = check_content(FileHeader, header, HEADER_KEY)
            except ValueError as error:
                raise ValueError(f"{path.name}: expected a zimage-vl header, got a damaged one ({error}).") from error
            if told.version > FORMAT_VERSION:
                raise ValueError(
                    f"{path.name}: written in format {told.version}, this version reads up to {FORMAT_VERSION}. "
                    "Update zimage-vl."
                )
            if told.kind != kind:
                raise ValueError(f"{path.name}: expected saved {kind}, got saved {told.kind}.")
            # Cloned off the memory map, which would keep Windows from replacing the file while a tensor lives.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(
            f"{path.name}: expected a safetensors file, got one that is cut short or damaged ({error})."
        ) from error
    if finite:
        _check_finite(path, tensors)
    return tensors, header


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        values = tensor.float() if tensor.itemsize == 1 else tensor  # torch compares no 8-bit floats
        if tensor.is_floating_point() and not all_finite(values):
            raise ValueError(f"{path.name}: expected finite values, got NaN or infinity in {name!r}.")


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Errors of what is made from a file name that file, whatever made them."""
    name = Path(path).name
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: the header or tensors lack or garble {error}.") from error
    except ValueError as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}: {error}") from error


def take(
    tensors: Mapping[str, Tensor], name: str, path: str | os.PathLike, ndim: int, *, whole: bool = False
) -> Tensor:
    """The tensor called ``name``, checked to be there with ``ndim`` axes.

    Args:
        whole: whether its numbers are whole; else they have to be floats.

    Raises:
        ValueError: if it is missing, or has another number of axes or another kind of numbers.
    """
    if name not in tensors:
        raise ValueError(f"{Path(path).name}: expected a tensor {name!r}, got only {sorted(tensors)}.")
    found = tensors[name]
    if found.ndim != ndim:
        raise ValueError(f"{Path(path).name}: expected {name!r} with {ndim} axes, got shape {tuple(found.shape)}.")
    if found.is_complex() or found.is_floating_point() == whole:
        kind = "whole numbers" if whole else "floats"
        raise ValueError(f"{Path(path).name}: expected {name!r} to hold {kind}, got {found.dtype}.")
    return found
