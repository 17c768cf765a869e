"""What hangs below some modules, and whether these do what their classes say.

A model has a thousand modules and tensors, and is looked through before each reading: by loops of C where it can be.
"""

from __future__ import annotations

import functools
import gc
import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, itemgetter, methodcaller
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

MAKERS = {"torch", "transformers", "comfy"}  # whose modules' forward the merged one stands for, or calls
QUANTISERS = "transformers.integrations."  # where transformers' own quantised layers are, which expect what they like

_inside, _values = attrgetter("__dict__"), methodcaller("values")
_hooks, _pre_hooks = itemgetter("_forward_hooks"), itemgetter("_forward_pre_hooks")
_children = itemgetter("_modules")
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
        inside = inside_of(modules)
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
        buffers = [one for one in hanging(self._modules, "_buffers") if one is not None]
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


def inside_of(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """The dicts that hold their attributes."""
    return list(map(_inside, modules))


def hanging(modules: Iterable[nn.Module], name: str) -> Iterable[Any]:
    """What hangs on the modules by that name, such as ``_parameters``, Nones included."""
    return itertools.chain.from_iterable(map(_values, map(itemgetter(name), map(_inside, modules))))


def weights_in(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The modules' own parameters."""
    return [weight for weight in hanging(modules, "_parameters") if weight is not None]


def weights_of(module: nn.Module) -> list[Tensor]:
    """Its parameters and those below."""
    return weights_in(modules_of(module))


def are_plain(modules: Sequence[nn.Module]) -> bool:
    """Whether modules do what their classes say, and these are such as can be known: nothing wrapped or hooked.

    transformers' own recorders only look on.
    """
    inside = inside_of(modules)
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
