"""Only for tests and screenshots: a custom node folder that gives ComfyUI's own loaders the trained miniature.

The workflows then run as shipped, on empty files with the names of the real ones, and paint what their words say.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import comfy.sd
import comfy.utils
from comfy.text_encoders import z_image

NODE_CLASS_MAPPINGS = {}  # no nodes; ComfyUI wants to see that

spec = importlib.util.spec_from_file_location("zimage_vl_mini_host", Path(__file__).resolve().parents[1] / "mini.py")
mini = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mini)

text_clip, vision_clip, zimage_model, vae = map(cache, (mini.text_clip, mini.vision_clip, mini.zimage_model, mini.vae))
load_torch_file = comfy.utils.load_torch_file


def load_clip(ckpt_paths, *_, **__):
    (name,) = [Path(path).name for path in ckpt_paths]
    return (vision_clip() if name.startswith("qwen3vl_4b") else text_clip()).clone()


def load_file(path, *args, return_metadata=False, **options):
    """Nothing for an empty file, which stands for a real model."""
    if Path(path).stat().st_size:
        return load_torch_file(path, *args, return_metadata=return_metadata, **options)
    return ({}, None) if return_metadata else {}


vae()  # made by the host's own class, which the next lines replace
comfy.sd.load_clip = load_clip
comfy.sd.load_diffusion_model = lambda *_, **__: zimage_model().clone()
comfy.sd.VAE = lambda **_: vae()
comfy.utils.load_torch_file = load_file
z_image.Qwen3Tokenizer = lambda: text_clip().tokenizer.qwen3_4b  # where the pack looks up words of a prompt
