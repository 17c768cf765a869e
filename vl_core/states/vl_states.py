"""Hidden states of one encode and CONDITIONING, kept in memory and as safetensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import check_content
from .headers import ConditioningHeader, Cut, LayoutHeader, Packed, StatesHeader
from .layout import TokenLayout
from .storage import naming, read_tensors, take, write_tensors

LAYOUT_KEY = "vl_layout"  # the one key we add to a CONDITIONING entry's dict

# A CONDITIONING is a list of (states (1, L, D), options) pairs, as ComfyUI has it.
Conditioning = Sequence[tuple[Tensor, dict[str, Any]]]


def resolve_layer(layer: int, num_layers: int) -> int:
    """Index ``k >= 0`` into Hugging Face's ``hidden_states`` (0 = embeddings, ``num_layers`` = after the final norm).

    Args:
        layer: -1 … -(num_layers + 1) counted from the end, or 0 … num_layers.

    Raises:
        ValueError: if the model has no such layer.
    """
    if not -(num_layers + 1) <= layer <= num_layers:
        raise ValueError(
            f"layer: expected {-(num_layers + 1)} to -1 or 0 to {num_layers} (the model has {num_layers} blocks), "
            f"got {layer}."
        )
    return layer % (num_layers + 1)


@dataclass(frozen=True, eq=False)
class VLStates:
    """What an encoder gave for one sequence.

    Attributes:
        states: ``(K, L, D)``, one slice per captured layer, in the encoder's dtype.
        layers: the ``K`` indices into Hugging Face's ``hidden_states``, each in 0 … ``num_layers``, ascending.
        num_layers: blocks of the whole model, so that negative numbers can be resolved.
        layout: roles and ids of the ``L`` positions.
        prompt, system_prompt, model: provenance.
    """

    states: Tensor
    layers: tuple[int, ...]
    num_layers: int
    layout: TokenLayout
    prompt: str = ""
    system_prompt: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        expected = (len(self.layers), len(self.layout))
        if self.states.ndim != 3 or tuple(self.states.shape[:2]) != expected:
            raise ValueError(
                f"VLStates: expected states of shape ({expected[0]} layers, {expected[1]} positions, width), got "
                f"{tuple(self.states.shape)}."
            )

    def at(self, layer: int) -> tuple[Tensor, TokenLayout]:
        """States ``(L, D)`` of one captured layer and their layout, which names the layer.

        Raises:
            ValueError: if the layer was not captured.
        """
        index = resolve_layer(layer, self.num_layers)
        if index not in self.layers:
            captured = ", ".join(str(k - self.num_layers - 1) for k in self.layers)
            raise ValueError(f"layer: {layer} was not captured by this encode, only {captured}.")
        return self.states[self.layers.index(index)], self.layout.with_layer(index - self.num_layers - 1)

    def save(self, path: str | os.PathLike) -> Path:
        """Write to a safetensors file."""
        tensors = {"states": self.states, **_layout_tensors(self.layout, "")}
        header = {
            "layers": list(self.layers), "num_layers": self.num_layers, "prompt": self.prompt,
            "system_prompt": self.system_prompt, "model": self.model, "layout": _layout_header(self.layout),
        }
        return write_tensors(path, "states", tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike) -> VLStates:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_tensors`; also for shapes that disagree.
        """
        tensors, content = read_tensors(path, "states", finite=False)
        header = check_content(StatesHeader, content, Path(path).name)
        with naming(path):
            return cls(
                take(tensors, "states", path, 3), tuple(header.layers), header.num_layers,
                _read_layout(tensors, "", header.layout, path), header.prompt, header.system_prompt, header.model,
            )


def save_conditioning(path: str | os.PathLike, conditioning: Conditioning) -> list[str]:
    """Write every entry of a CONDITIONING.

    Returns:
        the names of option values that no file can hold (hooks, control nets), left out of the file.
    """
    if not conditioning:
        raise ValueError("conditioning: expected at least one entry, got none.")
    tensors: dict[str, Tensor] = {}
    entries, left_out = [], []
    for index, (states, options) in enumerate(conditioning):
        layout = options.get(LAYOUT_KEY)
        if layout is not None and len(layout) != states.shape[1]:
            raise ValueError(
                f"conditioning: expected {len(layout)} tokens in entry {index}, as they were described, got "
                f"{states.shape[1]}: something changed them. Save before that."
            )
        prefix = f"{index}."
        tensors[prefix + "states"] = states
        packed = {}
        for name, value in options.items():
            found: dict[str, Tensor] = {}
            try:
                packed[name] = _pack(value, f"{prefix}options.{name}", found)
            except TypeError:
                left_out.append(name)
            else:
                tensors.update(found)
        entries.append(packed)
    write_tensors(path, "conditioning", tensors, {"entries": entries, "left_out": sorted(set(left_out))})
    return sorted(set(left_out))


def load_conditioning(path: str | os.PathLike) -> list[list]:
    """Read what :func:`save_conditioning` wrote: ``[[states (1, L, D), options], …]``.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_tensors`; also for shapes that disagree.
    """
    tensors, content = read_tensors(path, "conditioning", finite=False)
    header = check_content(ConditioningHeader, content, Path(path).name)
    conditioning = []
    for index, packed in enumerate(header.entries):
        states = take(tensors, f"{index}.states", path, 3)
        options = {name: _unpack(value, tensors, path) for name, value in packed.items()}
        layout = options.get(LAYOUT_KEY)
        if layout is not None and not isinstance(layout, TokenLayout):
            raise ValueError(f"{Path(path).name}: entry {index}: expected a layout as {LAYOUT_KEY}, got another thing.")
        if layout is not None and len(layout) != states.shape[1]:
            raise ValueError(
                f"{Path(path).name}: entry {index} has {states.shape[1]} positions but a layout of {len(layout)}."
            )
        conditioning.append([states, options])
    return conditioning


def _layout_tensors(layout: TokenLayout, prefix: str) -> dict[str, Tensor]:
    return {prefix + "roles": layout.roles, prefix + "token_ids": layout.token_ids}


def _layout_header(layout: TokenLayout) -> dict[str, Any]:
    return {
        "grids": [list(grid) for grid in layout.grids], "layer": layout.layer, "source": layout.source,
        "prompt": layout.prompt, "model": layout.model, "cut": layout.cut,
        "cuts": [
            None if mask is None else {"grid": list(mask.shape), "places": mask.flatten().nonzero().flatten().tolist()}
            for mask in layout.masks
        ],
    }


def _read_layout(tensors: dict[str, Tensor], prefix: str, header: LayoutHeader, path) -> TokenLayout:
    roles, ids = (take(tensors, prefix + name, path, 1, whole=True) for name in ("roles", "token_ids"))
    with naming(path):
        return TokenLayout(
            roles, ids, tuple((rows, columns) for rows, columns in header.grids), header.layer, header.source,
            header.prompt, header.model, header.cut, tuple(map(_mask_of, header.cuts)),
        )


def _mask_of(cut: Cut | None) -> Tensor | None:
    if cut is None:
        return None
    rows, columns = cut.grid
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[torch.tensor(cut.places)] = True
    return mask.reshape(rows, columns)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """``value`` as tagged JSON; tensors go to ``tensors`` under ``name``. TypeError for what no file can hold."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, TokenLayout):
        tensors.update(_layout_tensors(value, name + "."))
        return {"layout": _layout_header(value), "at": name + "."}
    if isinstance(value, (list, tuple)):
        tag = "tuple" if isinstance(value, tuple) else "list"
        return {tag: [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{name} holds a {type(value).__name__}")


def _unpack(packed: Packed, tensors: dict[str, Tensor], path) -> Any:
    if packed.tensor is not None:
        if packed.tensor not in tensors:
            raise ValueError(f"{Path(path).name}: expected a tensor {packed.tensor!r}, got only {sorted(tensors)}.")
        return tensors[packed.tensor]
    if packed.layout is not None:
        return _read_layout(tensors, packed.at or "", packed.layout, path)
    if packed.as_tuple is not None:
        return tuple(_unpack(item, tensors, path) for item in packed.as_tuple)
    if packed.as_list is not None:
        return [_unpack(item, tensors, path) for item in packed.as_list]
    return packed.value
