"""The judge as a score of ``python -m vl_core compare``: what a picture has of its reference and of its prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import world
from ..train import assemble
from ..train import judge as judge_stage


def load_score(
    folder: Path, device: str | torch.device = "cpu"
) -> Callable[[Tensor, Tensor, str], Mapping[str, float]]:
    """A function from a picture, its reference (uint8 ``(H, W, 3)``) and the prompt to figures from 0 to 1.

    ``judge background``, ``style``, ``mood``: the judge reads the same in both; ``judge look``: the mean of these.
    ``judge colour``, ``shape``: what the prompt asks for is there, if it names one of each. ``judge leak``: an object
    of the reference is there, shape and colour, that the prompt does not ask for. The reference is read too: one that
    is not from the world has a look that means little.
    """
    judge = judge_stage.load(folder / assemble.JUDGE, device)

    def score(picture: Tensor, reference: Tensor, prompt: str) -> Mapping[str, float]:
        logits = judge_stage.read(judge, torch.cat([_prepared(one) for one in (picture, reference)]).to(device))
        found = {name: float(len(set(logits[name].argmax(1).tolist())) == 1) for name in world.LOOK}
        found["look"] = round(sum(found.values()) / len(found), 6)
        objects = logits["pair"] > 0
        if (wish := wish_of(prompt)) is not None:
            shape, color = wish
            found |= {"colour": float(logits["color"][0, color] > 0), "shape": float(logits["shape"][0, shape] > 0)}
            objects[:, shape * len(world.COLORS) + color] = False
        if objects[1].any():
            found["leak"] = float((objects[0] & objects[1]).any())
        return {f"judge {name}": value for name, value in found.items()}

    return score


def wish_of(prompt: str) -> tuple[int, int] | None:
    """Shape and colour that a prompt asks for, if it names one of each."""
    words = re.findall(r"[a-z]+", prompt.lower())
    shapes, colors = ([names.index(word) for word in words if word in names] for names in (world.SHAPES, world.COLORS))
    return (shapes[0], colors[0]) if len(shapes) == len(colors) == 1 else None


def _prepared(picture: Tensor) -> Tensor:
    """float32 ``(1, 3, 128, 128)`` in [-1, 1]."""
    pixels = picture.permute(2, 0, 1)[None].float() / 127.5 - 1
    if pixels.shape[-2:] == (world.SIDE, world.SIDE):
        return pixels
    return F.interpolate(pixels, (world.SIDE, world.SIDE), mode="area")
