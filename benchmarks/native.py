"""ComfyUI's own Qwen3-VL with random weights: its ``encode_from_tokens`` and our forward on its modules.

Run it with ComfyUI's Python. Nothing of the pack but ``nodes/host`` and ``vl_core`` is imported, and of ComfyUI only
``comfy`` and ``folder_paths``.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from functools import partial
from pathlib import Path

import torch

from .common import Report, add_output_argument, milliseconds, peak_mib, relative_error, worst_token_error
from .models import SIDE, TEXT, VISION, picture

ROOT = Path(__file__).parents[1]
LAYER = -6
PROMPT = "a lighthouse on a cliff at dusk, waves below, painted in loose watercolour with warm light in one window"


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH", str(Path.home() / "comfy" / "ComfyUI")))
    parser.add_argument("--size", default="full", choices=["tiny", "medium", "full"])
    parser.add_argument("--runs", type=int, default=5, help="timed calls per figure")


def run(arguments) -> None:
    if not (Path(arguments.comfyui) / "comfy" / "sd.py").is_file():
        raise SystemExit(f"--comfyui: expected a ComfyUI folder, found no comfy/sd.py in {arguments.comfyui}.")
    on_gpu = torch.cuda.is_available()
    host = _import_host(arguments.comfyui, on_gpu)
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    report = Report("native" if on_gpu else "native_cpu", device, arguments.out, size=arguments.size)
    clip = _random_clip(arguments.size, device)
    report.section("encode", lambda: _measure(report, host, clip, arguments, device))
    report.section("words", lambda: _measure_words(report, host, clip, arguments, device))
    report.write()


def _import_host(comfyui: str, on_gpu: bool):
    """``nodes/host`` without the nodes, which need the rest of ComfyUI."""
    sys.path.insert(0, comfyui)
    arguments, sys.argv = sys.argv, ["main.py", *([] if on_gpu else ["--cpu"])]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.sd")
    finally:
        sys.argv = arguments
    for name, path in (("zimage_vl_pack", ROOT), ("zimage_vl_pack.nodes", ROOT / "nodes")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    return importlib.import_module("zimage_vl_pack.nodes.host.encoders")


class _Target:
    """What ComfyUI's CLIP is built from."""

    def __init__(self, clip, tokenizer) -> None:
        self.params, self.clip, self.tokenizer = {}, clip, tokenizer


def _random_clip(size: str, device: torch.device):
    """As Load CLIP gives it, weights in bf16 made on the device."""
    import comfy.sd
    from comfy.text_encoders import qwen3vl

    config = {key: value for key, value in TEXT[size].items() if key != "head_dim"}  # always 128 there
    known = {"hidden_size", "intermediate_size", "depth", "deepstack_visual_indexes"}
    if size != "full":
        vision = {key: value for key, value in VISION[size].items() if key in known}
        qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] = {**vision, "hidden_size": 256}
    clip = comfy.sd.CLIP(
        _Target(qwen3vl.te(model_type="qwen3vl_4b"), qwen3vl.tokenizer("qwen3vl_4b")),
        model_options={
            "qwen3vl_4b_model_config": config, "dtype": torch.bfloat16, "load_device": device,
            "initial_device": device, "offload_device": torch.device("cpu"),
        },
    )
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in clip.cond_stage_model.named_parameters():
            if name.endswith("logit_scale"):
                continue
            weight.normal_(generator=generator)
            if weight.ndim > 1 and "embed" not in name:
                weight.mul_(weight[0].numel() ** -0.5)
            elif weight.ndim == 1:
                weight.mul_(0.1).add_(0.0 if name.endswith("bias") else 1.0)
    return clip


def _measure(report: Report, host, clip, arguments, device: torch.device) -> None:
    image = {"image0": picture(arguments.size)}
    numbers = iter(range(10000))

    def encode(prompt: str = PROMPT) -> torch.Tensor:
        return host.encode_vision(clip, image, prompt, [LAYER])[0].states[0]

    def new_picture() -> torch.Tensor:
        image["image0"] = picture(arguments.size, 1 + next(numbers))
        return encode()

    with torch.inference_mode():
        os.environ["ZIMAGE_VL_FAST"] = "0"
        expected = encode()
        plain = milliseconds(encode, device, arguments.runs, 1)
        peak = peak_mib(encode, device)
        report.add(f"{SIDE[arguments.size] ** 2} image tokens, encode_from_tokens", ms=plain, peak_MiB=peak)
        os.environ["ZIMAGE_VL_FAST"] = "1"
        states = encode()
        native = sys.modules[f"{host.__package__}.native"]._native_readers[clip.cond_stage_model]
        report.add(
            "self-check passed", value=str(native.trusted), dtype=str(native.dtype),
            error=relative_error(states, expected), worst_token=worst_token_error(states, expected),
        )
        for what, work in (
            ("ours, new picture", new_picture),
            ("ours, same picture, new prompt", lambda: encode(f"{PROMPT} {next(numbers)}")),
            ("ours, the same again", encode),
        ):
            ms = milliseconds(work, device, arguments.runs, 1)
            report.add(what, ms=ms, **{"× faster than encode_from_tokens": plain / ms})
        native.reader.forget()

        def unkept() -> torch.Tensor:
            native.reader.forget()
            return encode()

        report.add("ours, with what is kept", peak_MiB=peak_mib(unkept, device))


def _measure_words(report: Report, host, clip, arguments, device: torch.device) -> None:
    """A token's time is the slope between a short and a long answer."""
    image, lengths = {"image0": picture(arguments.size)}, (16, 112)
    per_token: dict[str, float] = {}
    for way, fast in (("ComfyUI's generate", "0"), ("our step", "1")):
        os.environ["ZIMAGE_VL_FAST"] = fast
        times, written, notes = [], [], ()
        for length in lengths:
            with torch.inference_mode():
                tell = partial(host.write_words, clip, image, PROMPT, max_tokens=length)
                found = tell()
                times.append(milliseconds(tell, device, arguments.runs, 1))
            written.append(found.tokens)
            notes = [note for note in found.notes if "written" in note]
        per_token[way] = (times[1] - times[0]) / max(written[1] - written[0], 1)
        ratio = per_token["ComfyUI's generate"] / per_token[way]
        report.add(
            f"a token, {way}", ms=per_token[way], **{"× faster than generate": ratio}, value="; ".join(notes) or None
        )
        report.add(f"{written[1]} tokens, {way}", ms=times[1])
