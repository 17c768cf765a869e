"""Which model it is that was read with: by its weights, its modules and their settings, looked at before every reading.

Not noticed, because torch keeps no trace of it, is what is written through ``.data``, into tensors made in inference
mode, or into any tensor while inference mode is on; and a class whose ``forward`` is replaced. Whoever does that calls
``forget()`` of the encoder or reader afterwards.
"""

from __future__ import annotations

import functools
import gc
import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, is_, itemgetter, methodcaller
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as torch_module

SETTINGS = (bool, int, float, str)  # of a module: epsilon, scale, number of heads …
HOSTS_OWN = "comfy_", "prev_comfy_", "_v_"  # names of what ComfyUI notes down when it loads; weights tell of that
MAKERS = {"torch", "transformers", "comfy"}  # whose modules' forward the merged one stands for, or calls
QUANTISERS = "transformers.integrations."  # where transformers' own quantised layers are, which expect what they like


# A model has a thousand modules and tensors, and is looked through before each reading: by loops of C where it can be.
_inside, _values = attrgetter("__dict__"), methodcaller("values")
_hooks, _pre_hooks = itemgetter("_forward_hooks"), itemgetter("_forward_pre_hooks")
_children = itemgetter("_modules")
_of_tensors = vars(Tensor.__base__)  # what torch itself says of one, with no search through classes
LOOKS = Tensor.data_ptr, _of_tensors["_version"].__get__, _of_tensors["dtype"].__get__, Tensor.get_device
TABLES = ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks")  # of a module


class Sight(NamedTuple):
    """What hung below some roots when they were looked at.

    Attributes:
        modules: level by level, the roots first; ``parameters`` and ``buffers``: theirs.
        version: another one unless all of it, and every attribute of the modules, is what it was before.
    """

    modules: list[nn.Module]
    parameters: Sequence[Tensor]
    buffers: Sequence[Tensor]
    version: int


class Tree:
    """The modules below some roots and what hangs on them, as they are whenever it is called."""

    def __init__(self, *roots: nn.Module) -> None:
        self._roots, self._versions = roots, itertools.count()
        self._known: _Known | None = None

    def __call__(self) -> Sight:
        sight = self._known.again() if self._known is not None else None
        if sight is None:
            self._known = _Known(modules_of(*self._roots), next(self._versions))
            sight = self._known.first()
        return sight


class _Known:
    """The objects that hang on modules. Asked whether they are still the same, Python's garbage collector lists them:
    by far the quickest way to look into thousands of dicts.

    Attributes that are equal are taken for the same; what is in the modules' tables has to be the very object. Of that
    nothing but modules is held: an id is a name while its object lives, and weak references say when one is gone.
    """

    def __init__(self, modules: list[nn.Module], version: int) -> None:
        self._modules, self._version = modules, version
        self._found = self._attributes()
        inside = list(map(_inside, modules))
        tables = [one[name] for name in TABLES for one in inside]
        held = gc.get_referents(*tables)
        self._children = held[: sum(map(len, tables[: len(modules)]))]
        others = held[len(self._children) :]
        self._others, self._gone = list(map(id, others)), []
        self._alive = [_watch(one, self._gone.append) for one in others]
        self._named = [place for place, table in enumerate(tables[: len(modules)]) if table]
        self._names = self._names_in(tables)
        places, at = ({id(one): place for place, one in enumerate(found)} for found in (self._found, held))
        self._tables = itemgetter(*(places.get(id(table), 0) for table in tables))
        self._tensors = [[at.get(id(one), 0) for one in some] for some in self.first()[1:3]]
        # What a collector does not list, if there is such a thing, cannot be told by it.
        self._listed = all(
            places.keys() >= set(map(id, _each_value(some))) for some, places in ((inside, places), (tables, at))
        )

    def first(self) -> Sight:
        buffers = [one for one in _hanging(self._modules, "_buffers") if one is not None]
        return Sight(self._modules, weights_in(self._modules), buffers, self._version)

    def again(self) -> Sight | None:
        """None unless everything is as it was."""
        found = self._attributes()
        try:
            if not self._listed or found != self._found:
                return None
        except Exception:  # whatever comparing two attributes leads to
            return None
        tables = self._tables(found)
        held = gc.get_referents(*tables)
        same = (
            held[: len(self._children)] == self._children
            and list(map(id, held[len(self._children) :])) == self._others
            and not self._gone and self._names_in(tables) == self._names
        )
        parameters, buffers = (list(map(held.__getitem__, places)) for places in self._tensors) if same else ((), ())
        return Sight(self._modules, parameters, buffers, self._version) if same else None

    def _attributes(self) -> list[Any]:
        """The modules' classes, their dicts and what is in these."""
        return gc.get_referents(*self._modules, *map(_inside, self._modules))

    def _names_in(self, tables: Sequence[dict]) -> list[str]:
        return list(itertools.chain.from_iterable(map(tables.__getitem__, self._named)))


def _watch(one: Any, gone: Callable[[Any], None]) -> Any:
    try:
        return weakref.ref(one, gone)
    except TypeError:  # None, or a hook of a kind that has no weak references
        return one


def modules_of(*roots: nn.Module) -> list[nn.Module]:
    """The modules below, themselves included, level by level; one that hangs in two places is there twice."""
    found = list(roots)
    for one in found:  # grows on the way
        found += [child for child in one._modules.values() if child is not None]
    return found


def _hanging(modules: Iterable[nn.Module], name: str) -> Iterable[Any]:
    """What hangs on the modules by that name, such as ``_parameters``, Nones included."""
    return itertools.chain.from_iterable(map(_values, map(itemgetter(name), map(_inside, modules))))


def weights_in(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The modules' own parameters."""
    return [weight for weight in _hanging(modules, "_parameters") if weight is not None]


def weights_of(module: nn.Module) -> list[Tensor]:
    """Its parameters and those below."""
    return weights_in(modules_of(module))


def are_plain(modules: Sequence[nn.Module]) -> bool:
    """Whether modules do what their classes say, and these are such as can be known: nothing wrapped or hooked.

    transformers' own recorders only look on.
    """
    inside = list(map(_inside, modules))
    if any("forward" in one for one in inside):
        return False
    if not all(_can_be_known(kind) for kind in set(map(type, modules))):
        return False
    hooks = filter(None, [*map(_hooks, inside), *map(_pre_hooks, inside)])
    return all((getattr(hook, "__module__", None) or "").startswith("transformers.") for hook in _each_value(hooks))


def _each_value(tables: Iterable[dict]) -> Iterable[Any]:
    return itertools.chain.from_iterable(map(_values, tables))


@functools.cache
def _can_be_known(kind: type) -> bool:
    if kind.__module__.startswith(QUANTISERS):
        return False
    if kind.__module__.partition(".")[0] not in MAKERS and not hasattr(kind, "comfy_cast_weights"):
        return False
    return kind.__module__ != "torch.nn.utils.parametrize"  # also the class of a module with parametrizations


def hooked_everywhere() -> bool:
    """Whether somebody listens to, or changes, every module of this process."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


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
        tensors = [*weights, *(one for one in _hanging(modules, "_buffers") if one is not None)]
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
        self._look_up(list(map(_inside, modules)))
        self._values = [get(one.__dict__) for get, one in zip(self._getters, modules, strict=True)]

    def _look_up(self, inside: Sequence[dict]) -> None:
        self._sizes, self._getters = list(map(len, inside)), list(map(_getter, inside))

    def describe(self, modules: Sequence[nn.Module]) -> bool:
        """Whether the same modules are still as they were."""
        inside = list(map(_inside, modules))
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
