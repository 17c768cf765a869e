"""Map Qwen3-VL's states onto Z-Image's text encoder, by a fit on prompts that both have read."""

from __future__ import annotations

import weakref
from typing import Any, get_args

from comfy_api.latest import io

from ..vl_core.space_adapter import SpaceAdapter, SpaceMethod, fit_space_adapter
from ..vl_core.statistics import ENCODER_LAYER, calibration_prompts
from . import host
from .common import Space, encoder_input, node_schema, report
from .conditioning import check_conditioning, repack, require_layout

LEAST = 10  # prompts

_fitted: weakref.WeakKeyDictionary[Any, dict[tuple, SpaceAdapter]] = weakref.WeakKeyDictionary()


class ZImageVLMatchSpace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLMatchSpace",
            display_name="Match Text Encoder",
            description="Bring Qwen3-VL's states to where Z-Image's text encoder has them, by one solve over prompts "
            "that both read.",
            search_aliases=["space adapter", "align encoders", "procrustes", "qwen3-vl-8b", "qwen3-vl-2b"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="VL states, from Qwen3-VL Encode."),
                encoder_input(),
                io.Clip.Input("clip", tooltip="Z-Image's text encoder: Load CLIP, qwen_3_4b, type lumina2."),
                io.Combo.Input(
                    "method", options=list(get_args(SpaceMethod)), default="ridge",
                    tooltip="ridge: a full linear map, held in check by what it does on held-out prompts. "
                    "reduced_rank: its main directions only. procrustes: a rotation and one scale. per_dimension: each "
                    "dimension for itself. whitening: mean and covariance alone. The last two need encoders of "
                    "one width.",
                ),
                io.String.Input(
                    "prompts", default="",
                    tooltip="A text file below ComfyUI's input folder, one prompt a line, to fit on. Empty takes the "
                    "built-in prompts.",
                ),
            ],
            outputs=[io.Conditioning.Output(), Space.Output(display_name="space")],
        )

    @classmethod
    def fingerprint_inputs(cls, prompts: str = "", **_) -> str:
        """The file may have changed since the last run."""
        try:
            return str(host.input_folder(prompts).stat().st_mtime_ns) if prompts.strip() else ""
        except (OSError, ValueError) as error:
            return str(error)

    @classmethod
    def execute(cls, conditioning, encoder, clip, method: str = "ridge", prompts: str = "") -> io.NodeOutput:
        check_conditioning(conditioning)
        host.check_text_clip(clip)
        texts = _prompts(prompts)
        entries, lines, adapters = [], [], []
        for entry in conditioning:
            layout = require_layout(entry, "Match Text Encoder")
            if layout.layer is None:
                raise ValueError(
                    "conditioning: expected states of one layer, as Qwen3-VL Encode gives them, got a mixture. Put "
                    "this node right after Qwen3-VL Encode, and choose one layer there."
                )
            adapter, origin = _fit(encoder, clip, layout.layer, method, texts)
            adapters.append(adapter)
            entries.append(repack(entry, adapter.apply(entry[0]), layout))
            lines += [adapter.describe(), origin]
        return io.NodeOutput(entries, adapters[0], ui=report(lines))


def _fit(encoder: Any, clip: Any, layer: int, method: str, texts: tuple[str, ...]) -> tuple[SpaceAdapter, str]:
    """The adapter of these two encoders; fitted once for as long as the encoder is loaded."""
    key = host.clip_identity(clip), layer, method, texts
    kept = _fitted.setdefault(encoder, {})
    if key in kept:
        return kept[key], "fitted before"

    def source(text: str):
        return host.encode_vision(encoder, {}, text, [layer])[0].at(layer)[0]

    def target(text: str):
        return host.encode_text(clip, text)[0][0][0]

    kept[key] = fit_space_adapter(
        list(texts), source, target, method, progress=host.progress_bar(len(texts)), layers=(layer, ENCODER_LAYER),
    )
    return kept[key], f"fitted on {len(texts)} prompts"


def _prompts(name: str) -> tuple[str, ...]:
    """The built-in prompts, or those of a file.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it holds too few.
    """
    if not name.strip():
        return tuple(calibration_prompts())
    path = host.input_folder(name)
    if not path.is_file():
        raise FileNotFoundError(f"prompts: expected a text file in ComfyUI's input folder, found none at {path}.")
    found = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    if len(found) < LEAST:
        raise ValueError(f"prompts: expected at least {LEAST} in {path.name}, one a line, got {len(found)}.")
    return found
