"""A stand-in for a Mac's graphics device, on the CPU: no float64 there, and nothing of another device mixed in."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

MPS, CPU = torch.device("mps"), torch.device("cpu")
MOVES = ("to", "cpu", "copy_", "__setitem__", "tolist", "item")  # what may bring two devices together


class OnMps(torch.Tensor):
    """What counts as lying there, while :class:`FakeMps` is active."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def on_mps(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(OnMps)


class FakeMps(TorchFunctionMode):
    """While it is active: what is made of tensors of :func:`on_mps`, or asked for there, is there too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given, name = tree_flatten((args, kwargs))[0], getattr(func, "__name__", "")
        tensors = [one for one in given if isinstance(one, torch.Tensor)]
        there = any(isinstance(one, OnMps) for one in tensors)
        if func == torch.Tensor.device.__get__:
            return MPS if there else func(*args)
        if there and name not in (*MOVES, "__getitem__"):  # an index may lie on the CPU
            strangers = [one for one in tensors if not isinstance(one, OnMps) and one.ndim]
            if strangers:
                raise RuntimeError(f"{name}: expected all tensors on one device, found mps and cpu")
        result = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
        asked = [torch.device(one) for one in given if isinstance(one, torch.device) or one in ("cpu", "mps")]
        if name == "cpu":
            asked = [CPU]
        elif name in ("copy_", "__setitem__") or (name == "to" and len(tensors) > 1):
            asked = [MPS if isinstance(tensors[0 if name != "to" else 1], OnMps) else CPU]
        lies = asked[-1] if asked else MPS if there else CPU
        return tree_map(lambda one: _placed(one, lies, name), result)


def _bare(one):
    if isinstance(one, OnMps):
        return one.as_subclass(torch.Tensor)
    return CPU if isinstance(one, (str, torch.device)) and str(one) == "mps" else one


def _placed(one, lies: torch.device, name: str):
    if not isinstance(one, torch.Tensor):
        return one
    if lies == CPU:
        return one.as_subclass(torch.Tensor)
    if one.dtype == torch.float64:
        raise TypeError(f"{name}: Cannot convert a MPS Tensor to float64 dtype, which the framework does not support")
    return one.as_subclass(OnMps)
