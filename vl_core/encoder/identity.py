"""Which model it is that was read with: by its weights, its modules and their settings, looked at before every reading.

Not noticed, because torch keeps no trace of it, is what is written through ``.data``, into tensors made in inference
mode, or into any tensor while inference mode is on; and a class whose ``forward`` is replaced. Whoever does that calls
``forget()`` of the encoder or reader afterwards.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

SETTINGS = (bool, int, float, str)  # of a module: epsilon, scale, number of heads …
HOSTS_OWN = ("comfy_", "prev_comfy_")  # names of what ComfyUI notes down when it loads a model; weights tell of that
MAKERS = {"torch", "transformers", "comfy"}  # whose modules' forward the merged one stands for, or calls


def modules_of(*roots: nn.Module) -> list[nn.Module]:
    """The modules below, themselves included; ``modules()`` takes three times as long to look for doubles."""
    found, left = [], list(roots)
    while left:
        one = left.pop()
        found.append(one)
        left += [child for child in one._modules.values() if child is not None]
    return found


def weights_of(module: nn.Module) -> list[Tensor]:
    """Its parameters and those below."""
    return [weight for one in modules_of(module) for weight in one._parameters.values() if weight is not None]


def is_plain(module: nn.Module) -> bool:
    """Whether a module does what its class says, and its class is one that can be known: nothing wrapped or hooked.

    transformers' own recorders only look on.
    """
    inside, kind = module.__dict__, type(module)
    if "forward" in inside:
        return False
    if kind.__module__.partition(".")[0] not in MAKERS and not hasattr(module, "comfy_cast_weights"):
        return False
    if kind.__module__ == "torch.nn.utils.parametrize" or "parametrizations" in inside["_modules"]:
        return False
    if not (inside["_forward_hooks"] or inside["_forward_pre_hooks"]):
        return True
    hooks = [*inside["_forward_hooks"].values(), *inside["_forward_pre_hooks"].values()]
    return all((getattr(hook, "__module__", None) or "").startswith("transformers.") for hook in hooks)


def hooked_everywhere() -> bool:
    """Whether somebody listens to, or changes, every module of this process."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


class WeightsIdentity:
    """A number that changes whenever one of the weights is another tensor or was changed in place.

    Noticed are new parameters, moves, casts and torch's own in-place operations.
    """

    def __init__(self) -> None:
        self._seen: list[tuple] = []
        self._alive: list[weakref.ref] = []
        self._settings: list[_Settings] = []
        self._numbers = itertools.count()
        self._number = -1

    def __call__(self, weights: Iterable[Tensor], modules: Iterable[nn.Module] = ()) -> int:
        """``modules``: whose classes, order and settings count as well, and their buffers."""
        modules = list(modules)
        tensors = [*weights, *(one for module in modules for one in module._buffers.values() if one is not None)]
        parts = [*tensors, *modules]
        # An id is only a name while its object lives: a new one may get the same.
        same = len(self._alive) == len(parts) and all(
            reference() is part for reference, part in zip(self._alive, parts, strict=True)
        )
        if not same:
            self._settings = [_Settings() for _ in modules]
        found = [settings.of(module) for settings, module in zip(self._settings, modules, strict=True)]
        now = [*map(_of_tensor, tensors), *found]
        if not same or now != self._seen:
            self._seen, self._alive = now, [weakref.ref(part) for part in parts]
            self._number = next(self._numbers)
        return self._number


def _of_tensor(parameter: Tensor) -> tuple:
    plain = type(parameter) is nn.Parameter
    stored = parameter if plain else getattr(parameter, "_qdata", parameter)  # ComfyUI's quantised tensors
    version = 0 if parameter.is_inference() else parameter._version
    return stored.data_ptr(), version, parameter.dtype, parameter.device


class _Settings:
    """A module's class and settings. Which attributes are settings is looked up anew when it has more or fewer."""

    __slots__ = ("get", "size")

    def __init__(self) -> None:
        self.size = -1
        self.get: Callable[[dict], Any] = len

    def of(self, module: nn.Module) -> tuple:
        inside = module.__dict__
        if len(inside) != self.size:
            names = [
                name for name, value in inside.items()
                if (value is None or type(value) in SETTINGS) and not name.startswith(HOSTS_OWN)
            ]
            self.size, self.get = len(inside), itemgetter(*names)  # "training" is always there
        return type(module), self.get(inside)
