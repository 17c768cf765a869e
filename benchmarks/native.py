"""ComfyUI's own Qwen3-VL with random weights: its ``encode_from_tokens`` and our forward on its modules.

Run it with ComfyUI's Python. Nothing of the pack but ``nodes/host`` and ``vl_core`` is imported, and of ComfyUI only
``comfy`` and ``folder_paths``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from .comfyui import ROOT, add_comfyui_argument, comfyui_of
from .common import Report, add_output_argument, milliseconds, peak_mib, relative_error, worst_token_error
from .models import SIDE, TEXT, VISION, picture

LAYER = -6
PROMPT = "a lighthouse on a cliff at dusk, waves below, painted in loose watercolour with warm light in one window"


def add_arguments(parser) -> None:
    add_output_argument(parser)
    add_comfyui_argument(parser)
    parser.add_argument("--size", default="full", choices=["tiny", "medium", "full"])
    parser.add_argument("--runs", type=int, default=5, help="timed calls per figure")
    parser.add_argument("--tokens", type=int, default=120, help="length of an answer")
    parser.add_argument("--weights", default="bf16", choices=["bf16", "fp8"], help="of the language model")
    parser.add_argument(
        "--dynamic", action="store_true", help="with ComfyUI's dynamic memory, which lends weights layer by layer"
    )


def run(arguments) -> None:
    on_gpu = torch.cuda.is_available()
    host = import_host(str(comfyui_of(arguments)), on_gpu, arguments.dynamic)
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    name = "_".join([
        "native", *([arguments.weights] if arguments.weights != "bf16" else []),
        *(["dynamic"] if arguments.dynamic else []), *([] if on_gpu else ["cpu"]),
    ])
    report = Report(name, device, arguments.out, size=arguments.size, weights=arguments.weights)
    clip = random_clip(arguments.size, device, arguments.weights, arguments.dynamic)
    report.section("encode", lambda: _measure(report, host, clip, arguments, device))
    report.section("words", lambda: _measure_words(report, host, clip, arguments, device))
    report.write()


def import_host(comfyui: str, on_gpu: bool, dynamic: bool = False, options: Sequence[str] = ()) -> Any:
    """``nodes/host/encoders`` without the nodes, which need the rest of ComfyUI; started as its main.py does.

    Args:
        dynamic: with dynamic memory. options: more of main.py's.
    """
    sys.path.insert(0, comfyui)
    arguments, sys.argv = sys.argv, ["main.py", *([] if on_gpu else ["--cpu"]), *options]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        if dynamic:
            control = importlib.import_module("comfy_aimdo.control")
            control.init()
            control.set_log_error()
        importlib.import_module("comfy.sd")
    finally:
        sys.argv = arguments
    if dynamic:
        management = importlib.import_module("comfy.model_management")
        if not control.init_devices((one.index, 0) for one in management.get_all_torch_devices()):
            raise SystemExit("--dynamic: this machine has no working comfy-aimdo.")
        patcher = importlib.import_module("comfy.model_patcher")
        patcher.CoreModelPatcher = patcher.ModelPatcherDynamic
        importlib.import_module("comfy.memory_management").aimdo_enabled = True
    for name, path in (("zimage_vl_pack", ROOT), ("zimage_vl_pack.nodes", ROOT / "nodes")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    return importlib.import_module("zimage_vl_pack.nodes.host.encoders")


class _Target:
    """What ComfyUI's CLIP is built from."""

    def __init__(self, clip, tokenizer) -> None:
        self.params, self.clip, self.tokenizer = {}, clip, tokenizer


def random_clip(size: str, device: torch.device, weights: str = "bf16", dynamic: bool = False) -> Any:
    """As Load CLIP gives it: weights made on the device; with dynamic memory they lie on the CPU, as in a file."""
    import comfy.model_management
    import comfy.sd
    from comfy.text_encoders import qwen3vl

    config = {key: value for key, value in TEXT[size].items() if key != "head_dim"}  # always 128 there
    known = {"hidden_size", "intermediate_size", "depth", "deepstack_visual_indexes"}
    if size != "full":
        vision = {key: value for key, value in VISION[size].items() if key in known}
        qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] = {**vision, "hidden_size": 256}
    quantised = {"llama_quantization_metadata": {"mixed_ops": True}} if weights == "fp8" else {}
    encoder = qwen3vl.te(dtype_llama=torch.bfloat16, model_type="qwen3vl_4b", **quantised)
    cpu = torch.device("cpu")
    with patch.object(comfy.model_management, "load_models_gpu"):  # layers in 8 bits have no weights yet
        clip = comfy.sd.CLIP(
            _Target(encoder, qwen3vl.tokenizer("qwen3vl_4b")),
            model_options={
                "qwen3vl_4b_model_config": config, "dtype": torch.bfloat16, "load_device": device,
                "initial_device": device if weights == "bf16" and not dynamic else cpu, "offload_device": cpu,
            },
        )
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        randomize(clip.cond_stage_model, generator)
        if weights == "fp8":
            for name, layer in clip.cond_stage_model.named_modules():
                if type(layer).__name__ == "Linear":
                    _fill_layer(layer, generator, ".model.layers." in name)
    return clip


def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Sizes that keep activations at theirs, as training does."""
    for name, weight in model.named_parameters():
        if name.endswith("logit_scale"):
            continue
        made = torch.empty(weight.shape, dtype=weight.dtype, device=generator.device).normal_(generator=generator)
        if weight.ndim > 1 and "embed" not in name:
            made.mul_(weight[0].numel() ** -0.5)
        elif weight.ndim == 1:
            made.mul_(0.1).add_(0.0 if name.endswith("bias") else 1.0)
        weight.copy_(made)


def _fill_layer(layer: Any, generator: torch.Generator, in_8_bits: bool) -> None:
    """Load a layer of ComfyUI's that may be quantised with a random weight, as it stands in an fp8 file."""
    shape = layer.out_features, layer.in_features
    weight = torch.empty(shape, dtype=torch.bfloat16, device=generator.device).normal_(generator=generator)
    weight.mul_(layer.in_features**-0.5)
    state = {} if layer.bias is None else {"bias": layer.bias}
    if in_8_bits:
        scale = weight.abs().amax().float() / torch.finfo(torch.float8_e4m3fn).max
        format = json.dumps({"format": "float8_e4m3fn"}).encode()
        state |= {
            "weight": (weight / scale).to(torch.float8_e4m3fn).cpu(), "weight_scale": scale.cpu(),
            "comfy_quant": torch.tensor(list(format), dtype=torch.uint8),
        }
    else:
        state["weight"] = weight.cpu()
    layer.load_state_dict(state)


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
        native.reader.forget()


def _measure_words(report: Report, host, clip, arguments, device: torch.device) -> None:
    """A token's time is the slope between a short and a long answer."""
    image, lengths = {"image0": picture(arguments.size)}, (16, arguments.tokens)
    words = sys.modules[f"{host.__package__}.native_words"]
    stops = clip.cond_stage_model.qwen3vl_4b.transformer.model.config
    ends = patch.object(stops, "stop_tokens", [])  # random weights write anything: no end, and no words
    with ends, patch.object(words, "finish", lambda raw, *_: (raw or "…", [])), patch.object(
        words, "strip_thoughts", str.strip
    ):
        _time_words(report, host, clip, arguments, device, image, lengths)


def _time_words(report: Report, host, clip, arguments, device: torch.device, image, lengths) -> None:
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
    native = sys.modules[f"{host.__package__}.native"]._native_readers.get(clip.cond_stage_model)
    if native is not None and device.type == "cuda":
        desk, reason = native.reader.decoder.desk, native.reader.decoder.reason
        report.add("the step was captured", value=reason or str(bool(desk and desk.graphs)))
