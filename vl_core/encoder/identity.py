"""Which model it is that was read with: by its weights, its modules and their settings, looked at before every reading.

Not noticed, because torch keeps no trace of it, is what is written through ``.data``, into tensors made in inference
mode, or into any tensor while inference mode is on; and a class whose ``forward`` is replaced. Whoever does that calls
``forget()`` of the encoder or reader afterwards.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from operator import is_, itemgetter
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .sight import Sight, hanging, inside_of

SETTINGS = (bool, int, float, str)  # of a module: epsilon, scale, number of heads …
HOSTS_OWN = "comfy_", "prev_comfy_", "_v_"  # names of what ComfyUI notes down when it loads; weights tell of that
_of_tensors = vars(Tensor.__base__)  # what torch itself says of one, with no search through classes
LOOKS = Tensor.data_ptr, _of_tensors["_version"].__get__, _of_tensors["dtype"].__get__, Tensor.get_device


class WeightsIdentity:
    """A number that changes whenever one of the weights is another tensor or was changed in place.

    Noticed are new parameters, moves, casts and torch's own in-place operations.
    """

    def __init__(self) -> None:
        self._alive: list[weakref.ref] = []
        self._tensors, self._settings = _Tensors([]), _Settings([])
        self._numbers = itertools.count()
        self._number = -1
        self._seen: tuple[int, bool] = -1, False

    def __call__(self, weights: Iterable[Tensor], modules: Iterable[nn.Module] = ()) -> int:
        """``modules``: whose classes, order and settings count as well, and their buffers."""
        modules = list(modules)
        tensors = [*weights, *(one for one in hanging(modules, "_buffers") if one is not None)]
        parts = [*tensors, *modules]
        same = len(self._alive) == len(parts) and self._are(parts)
        if not (same and self._tensors.describe(tensors) and self._settings.describe(modules)):
            self._tensors, self._settings = _Tensors(tensors), _Settings(modules)
            self._alive = [weakref.ref(part) for part in parts]
            self._number = next(self._numbers)
        return self._number

    def of(self, sight: Sight, weights: Sequence[Tensor] | None = None) -> int:
        """The same of what a tree was seen to hold, at once where that is what it held before.

        Args:
            weights: to tell it by, its parameters unless given.
        """
        tensors = [*(sight.parameters if weights is None else weights), *sight.buffers]
        same = self._seen == (sight.version, weights is None) and (
            weights is None or (len(self._alive) == len(tensors) + len(sight.modules) and self._are(tensors))
        )
        if not (same and self._tensors.describe(tensors)):
            self(sight.parameters if weights is None else weights, sight.modules)
            self._seen = sight.version, weights is None
        return self._number

    def _are(self, parts: Sequence[Any]) -> bool:
        """Whether these are the first of the objects of before: an id is only a name while its object lives."""
        return all(map(is_, map(weakref.ref.__call__, self._alive), parts))


class SourcesIdentity:
    """Such a number for a host that hangs up copies of weights and buffers in new objects at each load.

    What they are copies of is told by its storage: the objects around it are others each time as well.
    """

    def __init__(self) -> None:
        self._storages: list[StorageWeakRef] = []
        self._tensors, self._settings, self._number = _Tensors([]), _Settings([]), -1

    def __call__(self, sources: Sequence[Tensor], modules: Sequence[nn.Module]) -> int:
        """``modules``: whose classes, order and settings count as well."""
        storages = [getattr(one, "_qdata", one).untyped_storage() for one in sources]
        same = (
            [one._cdata for one in storages] == [one.cdata for one in self._storages]
            and not any(one.expired() for one in self._storages)
        )
        if not (same and self._tensors.describe(sources) and self._settings.describe(modules)):
            # A storage is known by its address as long as somebody looks after it, even weakly.
            self._storages = list(map(StorageWeakRef, storages))
            self._tensors, self._settings = _Tensors(sources), _Settings(modules)
            self._number += 1
        return self._number


def _is_bare(tensor: Tensor) -> bool:
    """Whether torch itself says all there is to know of it: ComfyUI's quantised tensors hold others."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference()


def _of_other(tensor: Tensor) -> tuple:
    stored = getattr(tensor, "_qdata", tensor)
    version = 0 if tensor.is_inference() else tensor._version
    return stored.data_ptr(), version, tensor.dtype, tensor.device


class _Tensors:
    """Where tensors lie and what was done to them; which of them are bare is found out once."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        bare = list(map(_is_bare, tensors))
        self._bare, others = ([place for place, one in enumerate(bare) if one is kind] for kind in (True, False))
        self._others = [(place, _of_other(tensors[place])) for place in others]
        self._before = [list(map(look, map(tensors.__getitem__, self._bare))) for look in LOOKS]

    def describe(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the same tensors are still as they were."""
        bare = list(map(tensors.__getitem__, self._bare)) if self._others else tensors
        try:
            same = all(list(map(look, bare)) == before for look, before in zip(LOOKS, self._before, strict=True))
        except RuntimeError:  # one was given what was made in inference mode, which has no version
            return False
        return same and all(_of_other(tensors[place]) == before for place, before in self._others)


class _Settings:
    """Modules' classes and settings. Which attributes are settings is looked up anew when one has more or fewer."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._classes = list(map(type, modules))
        self._look_up(inside_of(modules))
        self._values = [get(one.__dict__) for get, one in zip(self._getters, modules, strict=True)]

    def _look_up(self, inside: Sequence[dict]) -> None:
        self._sizes, self._getters = list(map(len, inside)), list(map(_getter, inside))

    def describe(self, modules: Sequence[nn.Module]) -> bool:
        """Whether the same modules are still as they were."""
        inside = inside_of(modules)
        if list(map(len, inside)) != self._sizes:
            self._look_up(inside)
        return list(map(type, modules)) == self._classes and all(
            get(one) == before for get, one, before in zip(self._getters, inside, self._values, strict=True)
        )


def _getter(inside: dict) -> Callable[[dict], Any]:
    names = [
        name for name, value in inside.items()
        if (value is None or type(value) in SETTINGS) and not name.startswith(HOSTS_OWN)
    ]
    return itemgetter(*names)  # "training" is always there
