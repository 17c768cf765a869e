"""Compare every layer of Qwen3-VL with Z-Image's own text encoder."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..vl_core.layer_report import layer_report, parse_layers
from ..vl_core.plots import layer_figure
from . import host
from .common import Reference, budget_input, encoder_input, node_schema, pictures_input, prompt_input
from .conditioning import check_conditioning, check_reference, layout_of


class ZImageVLLayerReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLLayerReport",
            display_name="Layer Report",
            description="Which layer of Qwen3-VL looks most like Z-Image's own encoder, as a table and plots.",
            search_aliases=["compare layers", "hidden layer", "which layer", "embedding statistics"],
            is_output_node=True,
            inputs=[
                encoder_input(),
                pictures_input(),
                prompt_input(),
                Reference.Input(
                    "reference", optional=True, tooltip="Compare every layer with this. From Reference Statistics."
                ),
                io.Conditioning.Input(
                    "text", optional=True,
                    tooltip="Z-Image's own encoding of the same prompt, from CLIP Text Encode: compares word by word.",
                ),
                io.String.Input(
                    "layers", default="all",
                    tooltip="Layers to compare, counted from the end: -1, -2, -4:-12:-2 (from, to, step). all takes "
                    "every layer that is loaded. They come from one reading, so more of them cost little.",
                ),
                budget_input(),
            ],
            outputs=[
                io.Image.Output(display_name="plots"),
                io.String.Output(display_name="report"),
                io.String.Output(display_name="csv"),
            ],
        )

    @classmethod
    def execute(
        cls, encoder, prompt: str, layers: str = "all", image_tokens: int = 1024, images: dict | None = None,
        reference=None, text=None,
    ) -> io.NodeOutput:
        check_reference(reference)
        words, layout = _only_sequence(text) if text is not None else (None, None)
        blocks, loaded = _blocks(encoder)
        wanted = [index - blocks - 1 for index in parse_layers(layers, blocks, loaded)]  # as people count them
        seen, notes = host.encode_vision(encoder, images, prompt, wanted, budget=image_tokens)
        found = layer_report(seen, reference, words, layout, progress=host.progress_bar(len(seen.layers)))
        plots = torch.from_numpy(layer_figure(found)).float().unsqueeze(0) / 255
        summary = "\n".join([*notes, found.summary()])
        shown = {**ui.PreviewImage(plots, cls=cls).as_dict(), **ui.PreviewText(summary).as_dict()}
        return io.NodeOutput(plots, found.table(), found.csv(), ui=shown)


def _blocks(encoder) -> tuple[int, int]:
    """Blocks of the whole model, and how many of them are loaded."""
    if isinstance(encoder, host.LoadedEncoder):
        return encoder.encoder.num_layers, encoder.encoder.loaded_layers
    host.check_vision_clip(encoder)
    blocks = getattr(encoder.cond_stage_model, host.NATIVE_NAME).num_layers
    return blocks, blocks


def _only_sequence(text):
    """States and layout of a CONDITIONING that is one prompt."""
    check_conditioning(text, "text")
    if len(text) != 1 or len(text[0][0]) != 1:
        raise ValueError(
            f"text: expected one prompt, got {sum(len(entry[0]) for entry in text)} sequences in {len(text)} entries. "
            "Connect CLIP Text Encode itself."
        )
    return text[0][0], layout_of(text[0])
