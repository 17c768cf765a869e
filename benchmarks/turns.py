"""The simple workflow on a card with little memory: Qwen3-VL, text encoder and Z-Image take turns at every run.

ComfyUI's memory management moves all of them, limited by its ``--reserve-vram``. Measured with the moves that the pack
makes for Qwen3-VL from a Hugging Face folder, and with ComfyUI's own. Run it with ComfyUI's Python; weights are random.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .comfyui import add_comfyui_argument, comfyui_of
from .common import Report, add_output_argument, synchronize
from .models import build_model, picture
from .native import TEXT, _Target, import_host, randomize

GIBIBYTE = 1 << 30
STEPS = 8
PROMPT = "a lighthouse on a cliff at dusk, waves below"
ZIMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "qk_norm": True, "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
SIZES = {
    "tiny": {"dim": 256, "cap_feat_dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [16, 24, 24]},
    "full": {
        "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    },
}  # fmt: skip


def add_arguments(parser) -> None:
    add_output_argument(parser)
    add_comfyui_argument(parser)
    parser.add_argument("--size", default="full", choices=["tiny", "full"])
    parser.add_argument("--card", type=float, default=16, metavar="GIB", help="memory that ComfyUI may use")
    parser.add_argument("--tokens", type=int, default=96, help="length of a description")
    parser.add_argument("--models", metavar="FOLDER", help="where Qwen3-VL is written; a temporary folder if not given")


def run(arguments) -> None:
    on_gpu, options = torch.cuda.is_available(), []
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if on_gpu:
        whole = torch.cuda.get_device_properties(device).total_memory / GIBIBYTE
        options = ["--reserve-vram", f"{max(0.0, whole - arguments.card):.2f}"]
    host = import_host(str(comfyui_of(arguments)), on_gpu, options=options)
    report = Report(
        "turns" if on_gpu else "turns_cpu", device, arguments.out, size=arguments.size, card_GiB=arguments.card
    )
    with tempfile.TemporaryDirectory(dir=arguments.models) as folder:
        bench = Turns(host, report, arguments, device, Path(folder))
        report.section("a copy to the device", bench.copies)
        for what, own in (("the pack's moves", True), ("ComfyUI's own moves", False)):
            report.section(f"giving back, {what}", lambda what=what, own=own: bench.giving_back(what, own))
        for what, own in (("the pack's moves", True), ("ComfyUI's own moves", False)):
            report.section(f"whole runs, {what}", lambda what=what, own=own: bench.whole_runs(what, own))
    report.write()


class Turns:
    """The three models, and one method per section."""

    def __init__(self, host: Any, report: Report, arguments: Any, device: torch.device, folder: Path) -> None:
        import comfy.model_management
        import comfy.sample
        from zimage_vl_pack.nodes.host import loaded, text_encoder
        from zimage_vl_pack.vl_core.encoder.qwen3vl import Qwen3VLEncoder

        self.host, self.report, self.device, self.size = host, report, device, arguments.size
        self.management, self.sampling = comfy.model_management, comfy.sample
        self.text_encoder, self.tokens = text_encoder, arguments.tokens
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        start = time.perf_counter()
        model, tokenizer = build_model(arguments.size, device, dtype)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
        self.text, self.painter = _text_clip(arguments.size, device, dtype), _painter(arguments.size, device, dtype)
        print(f"  models made in {time.perf_counter() - start:.0f} s", flush=True)
        start = time.perf_counter()
        encoder = Qwen3VLEncoder.from_pretrained(folder, dtype=dtype, cache_bytes=None)
        self.vision = loaded.LoadedEncoder(encoder)
        self.home = self.vision.patcher.home
        report.add("mapping the folder", seconds=time.perf_counter() - start)
        self.numbers = itertools.count()

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of a call, everything that it started on the device included, and what it gave."""
        synchronize(self.device)
        start = time.perf_counter()
        with torch.inference_mode():
            found = work()
        synchronize(self.device)
        return time.perf_counter() - start, found

    def use(self, own: bool) -> None:
        """Nothing loaded; from here on the pack moves the weights of Qwen3-VL (``own``), or ComfyUI does."""
        self.management.unload_all_models()
        self.vision.patcher.home = self.home if own else None

    # Sections -------------------------------------------------------------------------------------------------------

    def copies(self) -> None:
        """From mapped memory, whose pages were read before, and through pinned buffers."""
        if self.device.type != "cuda":
            return
        for what, staged in (
            ("the first time, as it is mapped", False), ("as it is mapped", False), ("through pinned buffers", True),
            ("through pinned buffers, again", True),
        ):
            seconds, sent = self.timed(lambda staged=staged: self.home.send(self.device, staged=staged))
            self.report.add(f"weights to the device, {what}", seconds=seconds, **{"GiB/s": sent / GIBIBYTE / seconds})
            self.timed(self.home.give_back)
        torch.cuda.empty_cache()

    def giving_back(self, what: str, own: bool) -> None:
        self.use(own)
        image = picture("tiny")

        def encode() -> torch.Tensor:
            return self.host.encode_vision(self.vision, {"image0": image}, PROMPT, [-2])[0].states

        first, expected = self.timed(encode)
        again, before = self.timed(encode)[0], _own_memory()
        back, _ = self.timed(self.management.unload_all_models)
        more = _own_memory() - before
        reload, states = self.timed(encode)
        self.report.add(f"first encode with loading, {what}", seconds=first)
        self.report.add(f"the same again, {what}", seconds=again)
        self.report.add(f"giving back, {what}", seconds=back, **{"main memory taken, MiB": more / 2**20})
        self.report.add(f"load again and encode, {what}", seconds=reload, same_bits=str(torch.equal(expected, states)))

    def whole_runs(self, what: str, own: bool) -> None:
        self.use(own)
        side = 128 if self.size == "full" else 8
        noise = torch.randn(1, 16, side, side, generator=torch.Generator().manual_seed(0))
        image, kept = picture(self.size, next(self.numbers)), "a painting of a house at dusk"

        def words() -> str:
            try:
                return self.host.write_words(
                    self.vision, {"image0": image}, "Describe the style of this picture.", max_tokens=self.tokens
                ).words
            except ValueError:  # random weights may say nothing that is a word
                return kept

        def read(told: str) -> list:
            return self.text_encoder.encode_text(self.text, f"{PROMPT} {next(self.numbers)}, {told}")

        def paint(entries: list) -> torch.Tensor:
            return self.sampling.sample(
                self.painter, noise, STEPS, 1.0, "euler", "simple", entries, entries, torch.zeros_like(noise), seed=1,
                disable_pbar=True,
            )

        for run in ("the first", "another picture", "one more picture", "another prompt, words kept"):
            if "picture" in run:
                image = picture(self.size, next(self.numbers))
            wrote, told = self.timed(words) if "kept" not in run else (0.0, kept)
            encoded, entries = self.timed(lambda told=told: read(told))
            painted, _ = self.timed(lambda entries=entries: paint(entries))
            self.report.add(
                f"whole run, {run}, {what}", seconds=wrote + encoded + painted, words=wrote, text=encoded,
                **{f"{STEPS} steps": painted},
            )


def _text_clip(size: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Z-Image's text encoder as Load CLIP gives it, on the CPU."""
    import comfy.sd
    from comfy.text_encoders import z_image

    config = {key: value for key, value in TEXT[size].items() if key != "head_dim"}
    cpu = torch.device("cpu")
    clip = comfy.sd.CLIP(
        _Target(z_image.te(dtype_llama=dtype), z_image.ZImageTokenizer),
        model_options={
            "qwen3_4b_model_config": config, "dtype": dtype, "load_device": device, "initial_device": cpu,
            "offload_device": cpu,
        },
    )
    _fill(clip.cond_stage_model, device)
    return clip


def _painter(size: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Z-Image as Load Diffusion Model gives it, on the CPU."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.ZImage({**ZIMAGE, **SIZES[size]})
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    _fill(model.diffusion_model, device)
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def _fill(model: torch.nn.Module, device: torch.device) -> None:
    with torch.no_grad():
        randomize(model, torch.Generator(device).manual_seed(0))


def _own_memory() -> int:
    """Bytes of main memory that are this process's alone: not those of files it maps (Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
