"""Only for tests: a custom node folder that gives ComfyUI's own loaders tiny random models, by file name.

The workflows then run as shipped, on empty files with the names of the real ones.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
from functools import cache
from pathlib import Path

import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}  # no nodes; ComfyUI wants to see that

spec = importlib.util.spec_from_file_location("zimage_vl_tiny_host", Path(__file__).resolve().parents[1] / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


class TinyVAE:
    """The first three latent channels are the colours, eight times as large (sixteen times for FLUX.2's latents)."""

    def __init__(self, **_):
        self.first_stage_model = torch.nn.Identity()  # without weights: the same VAE in every server
        cpu = torch.device("cpu")
        self.patcher = comfy.model_patcher.CoreModelPatcher(self.first_stage_model, cpu, cpu)

    def throw_exception_if_invalid(self) -> None:
        pass

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        scale = 16 if latent.shape[1] == 128 else 8
        colours = torch.nn.functional.interpolate(latent[:, :3].float(), scale_factor=scale, mode="bilinear")
        return colours.movedim(1, -1).tanh().add(1).div(2)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        colours = torch.nn.functional.avg_pool2d(pixels[..., :3].movedim(-1, 1), 8) * 2 - 1
        return torch.cat([colours, colours.new_zeros(len(colours), 13, *colours.shape[2:])], 1)


@cache
def vision_clip():
    """As deep as FLUX.2 klein's text encoder, so that it goes with both families."""
    return tiny.vision_clip(num_hidden_layers=tiny.DEEP)


text_clip, klein_clip, zimage_model, flux2_model = map(
    cache, (tiny.text_clip, tiny.klein_clip, tiny.zimage_model, tiny.flux2_model)
)


def load_clip(ckpt_paths, *_, clip_type=None, **__):
    (name,) = [Path(path).name for path in ckpt_paths]
    text = klein_clip if clip_type == comfy.sd.CLIPType.FLUX2 else text_clip
    return (vision_clip() if name.startswith("qwen3vl_4b") else text()).clone()


def load_diffusion_model(path, *_, **__):
    return (flux2_model() if Path(path).name.startswith("flux-2") else zimage_model()).clone()


comfy.sd.load_clip = load_clip
comfy.sd.load_diffusion_model = load_diffusion_model
comfy.sd.VAE = TinyVAE
comfy.utils.load_torch_file = lambda *_, return_metadata=False, **__: ({}, None) if return_metadata else {}


class Mallinfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` tells, in bytes; see ``man mallinfo``."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]


@PromptServer.instance.routes.get("/where_memory_is")
async def where_memory_is(_request) -> web.Response:
    """Bytes of tensors that live, of what encoders keep of readings (all of them, and the one that keeps most), of what
    malloc has given out, and of what it holds free in its arenas."""
    gc.collect()
    held, kept = {}, [0]
    for one in gc.get_objects():
        if type(one).__name__ == "ByteCache":
            kept.append(one.bytes)
        if isinstance(one, torch.Tensor) and one.device.type == "cpu" and one.layout == torch.strided:
            held[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    told = ctypes.CDLL(None).mallinfo2
    told.restype = Mallinfo
    info = told()
    given = {"malloc_in_use": info.uordblks, "malloc_mapped": info.hblkhd, "malloc_free": info.fordblks}
    kept_bytes = {"kept_by_encoders": sum(kept), "kept_by_one": max(kept)}
    return web.json_response({"tensors": sum(held.values()), **kept_bytes, **given})
