"""Only for tests: a custom node folder that gives ComfyUI's own loaders tiny random models, by file name.

The workflows then run as shipped, on empty files with the names of the real ones.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import comfy.utils
import torch

NODE_CLASS_MAPPINGS = {}  # no nodes; ComfyUI wants to see that

spec = importlib.util.spec_from_file_location("zimage_vl_tiny_host", Path(__file__).resolve().parents[1] / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


class TinyVAE:
    """Decodes the first three latent channels as colours, eight times as large."""

    def __init__(self, **_):
        self.patcher = SimpleNamespace()  # the loader notes on it how to load the file again

    def throw_exception_if_invalid(self) -> None:
        pass

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        colours = torch.nn.functional.interpolate(latent[:, :3].float(), scale_factor=8, mode="bilinear")
        return colours.movedim(1, -1).tanh().add(1).div(2)


vision_clip, text_clip, zimage_model = map(cache, (tiny.vision_clip, tiny.text_clip, tiny.zimage_model))


def load_clip(ckpt_paths, *_, **__):
    (name,) = [Path(path).name for path in ckpt_paths]
    return (vision_clip() if name.startswith("qwen3vl_4b") else text_clip()).clone()


comfy.sd.load_clip = load_clip
comfy.sd.load_diffusion_model = lambda *_, **__: zimage_model().clone()
comfy.sd.VAE = TinyVAE
comfy.utils.load_torch_file = lambda *_, return_metadata=False, **__: ({}, None) if return_metadata else {}
