"""Where weights lie while no GPU needs them: the file they were mapped from, or the memory they were read to.

Weights do not change, so giving a GPU back is forgetting its copies: nothing travels, and main memory holds no second
copy. They go to a GPU through two small pinned buffers: while one is sent, the next part is copied into the other by
all cores. From mapped memory as it is, a driver copies with one.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, nn

STAGE_BYTES = 32 << 20  # of a pinned buffer; there are two while weights travel


class Home:
    """The CPU's own tensors of a module: its parameters and buffers as they were when this was made.

    A tensor is changed on a GPU by nobody that this pack knows. Where torch's version of it says that somebody did, in
    place, it is brought home as it is now.
    """

    def __init__(self, module: nn.Module) -> None:
        """Remember what lies on the CPU now; what lies elsewhere is left to whoever moves the module."""
        self._module = module
        self._kept: dict[str, Tensor] = {
            name: tensor.data for name, tensor, _ in _tensors(module) if tensor.device.type == "cpu"
        }
        self._sent: dict[str, tuple[int, int]] = {}

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._kept.values())

    def send(self, device: torch.device, leave: Container[str] = (), staged: bool = True) -> int:
        """Copy everything to a device.

        Args:
            leave: names of tensors that stay where they are.
            staged: through pinned buffers, where there is a GPU; else as torch does.

        Returns:
            bytes that were copied.

        Raises:
            torch.OutOfMemoryError: with some of it sent; :meth:`give_back` takes that back too.
        """
        stage = _Stage(device) if staged and device.type == "cuda" else None
        sent = 0
        for name, tensor, owner in _tensors(self._module):
            kept = self._kept.get(name)
            if kept is None or name in leave or tensor.device == device:
                continue
            there = torch.empty_like(kept, device=device)
            if stage is None or not kept.is_contiguous():
                there.copy_(kept)
            else:
                stage.copy(there, kept)
            self._sent[name] = _state(_put(owner, name, tensor, there))
            sent += kept.nbytes
        if stage is not None:
            stage.wait()
        return sent

    def give_back(self, most: float = float("inf"), leave: Container[str] = ()) -> int:
        """Forget the device's copies, module by module, until as many bytes are given back.

        Returns:
            bytes that the device has again.
        """
        freed = 0
        for name, tensor, owner in _tensors(self._module):
            if freed >= most:
                break
            kept = self._kept.get(name)
            if kept is None or name in leave or tensor.device == kept.device:
                continue
            if name in self._sent and self._sent.pop(name) != _state(tensor):
                kept = self._kept[name] = tensor.detach().to(kept.device)
            freed += tensor.nbytes
            _put(owner, name, tensor, kept)
        return freed


def _tensors(module: nn.Module) -> list[tuple[str, Tensor, nn.Module]]:
    """Parameters and buffers by name, each with the module whose it is."""
    found = []
    for path, owner in module.named_modules():
        own = {**owner._parameters, **owner._buffers}
        found += [(f"{path}.{name}" if path else name, one, owner) for name, one in own.items() if one is not None]
    return found


def _put(owner: nn.Module, name: str, tensor: Tensor, value: Tensor) -> Tensor:
    """Give a parameter or buffer other values, on another device, as ``Module.to`` does; the tensor that has them."""
    if torch._has_compatible_shallow_copy_type(tensor, value):  # pyright: ignore[reportPrivateImportUsage] (Module.to)
        tensor.data = value
        return tensor
    name, parameters = name.rpartition(".")[2], owner._parameters
    if name in parameters:
        value = parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[name] = value
    return value


def _state(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class _Stage:
    """Two pinned buffers that take turns."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = [torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._free: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def copy(self, there: Tensor, here: Tensor) -> None:
        source, target = _bytes(here), _bytes(there)
        for start, stop in parts(len(source), STAGE_BYTES):
            buffer, free = self._buffers[self._turn][: stop - start], self._free[self._turn]
            if free is not None:
                free.synchronize()
            buffer.copy_(source[start:stop])
            target[start:stop].copy_(buffer, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._free[self._turn] = event
            self._turn = 1 - self._turn

    def wait(self) -> None:
        for free in self._free:
            if free is not None:
                free.synchronize()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def parts(length: int, most: int) -> list[tuple[int, int]]:
    """Where each part of at most ``most`` starts and stops."""
    return [(start, min(start + most, length)) for start in range(0, length, most)]
