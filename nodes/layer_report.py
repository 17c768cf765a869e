"""Compare every layer of Qwen3-VL with Z-Image's own text encoder."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..vl_core import TokenLayout
from ..vl_core.reports.layer_report import METRICS, join_csv, join_reports, layer_report
from ..vl_core.reports.plots import ThemeName, layer_figure, stack_figures
from ..vl_core.states.families import KLEIN_4B, ZIMAGE, Family, find_family
from ..vl_core.states.layers import parse_layers
from ..vl_core.states.stacks import split_layers, split_padding
from . import told, widgets
from .entries import check_conditioning, layout_of, references_of, words_of
from .host import encoders, loaded, memory, native
from .node import Node

ALL, LIKENESS = "all", "Mean cosine with the text"


class ZImageVLLayerReport(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.node_schema(
            node_id="ZImageVLLayerReport",
            display_name="Layer Report",
            description="Which layer of Qwen3-VL looks most like Z-Image's own encoder, as a table and plots.",
            search_aliases=["compare layers", "hidden layer", "which layer", "embedding statistics"],
            is_output_node=True,
            inputs=[
                widgets.encoder_input(),
                widgets.pictures_input("with none only the words are measured"),
                widgets.prompt_input(),
                widgets.Reference.Input(
                    "reference", optional=True, tooltip="Compare every layer with this. From Text Encoder Statistics."
                ),
                io.Conditioning.Input(
                    "text", optional=True,
                    tooltip="Z-Image's own encoding of the same prompt, from CLIP Text Encode: compares word by word.",
                ),
                io.String.Input(
                    "layers", default="all",
                    tooltip="Layers to compare, counted from the end: -1, -2, -4:-12:-2 (from, to, step). all takes "
                    "every loaded layer.",
                ),
                widgets.budget_input(),
                io.Combo.Input(
                    "plot", options=[ALL, *(metric.title for metric in METRICS)], default=LIKENESS, optional=True,
                    tooltip="Which measure is drawn: one can be read on the node, all are for the plots output.",
                ),
                io.Combo.Input(
                    "theme", options=widgets.theme_options(), default=widgets.FOLLOW, optional=True, advanced=True,
                    tooltip="Colours of the plots: those of ComfyUI's theme, dark on white, or light on dark grey.",
                ),
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
        reference=None, text=None, plot: str = LIKENESS, theme: widgets.Follow | ThemeName = widgets.FOLLOW,
    ) -> io.NodeOutput:
        words, layout = _only_sequence(text) if text is not None else (None, None)
        family = _family(encoder, reference, words, layout)
        measured = references_of(reference, family)
        blocks, loaded = _blocks(encoder)
        wanted = [index - blocks - 1 for index in parse_layers(layers, blocks, loaded)]  # as people count them
        seen, notes = encoders.encode_vision(encoder, images, prompt, wanted, budget=image_tokens, family=family)
        if words is not None and text is not None:
            words, layout, _ = split_padding(words, layout, words_of(text[0]) if family.padded_to else None)
        targets = [None] * len(measured) if words is None else split_layers(words, family)
        bar = memory.progress_bar(len(seen.layers) * len(measured))
        found = {}
        for layer, statistics, target in zip(family.layers, measured, targets, strict=True):
            title = f"{family.name}'s layer {layer} ({layer - blocks - 1})" if family.stacked else ""
            found[title] = layer_report(
                seen, statistics, target, layout, progress=bar, check=memory.check_interrupted
            )
        titled = memory.each(found.items())
        plots, missing = widgets.draw(
            lambda: stack_figures(
                [layer_figure(one, title, theme=widgets.theme_of(theme), only=plot) for title, one in titled]
            )
        )
        summary = join_reports({title: one.summary() for title, one in found.items()})
        lines = filter(None, [told.likest(found.values()), *notes, summary, missing])
        shown = widgets.with_pictures("\n".join(lines), plots, cls)
        table = join_reports({title: one.table() for title, one in found.items()})
        rows = join_csv({layer: one.csv() for layer, one in zip(family.layers, found.values(), strict=True)})
        return io.NodeOutput(torch.ones(widgets.BLANK) if plots is None else plots, table, rows, ui=shown)


def _family(encoder, reference, words: Tensor | None, layout: TokenLayout | None) -> Family:
    """Whose text the layers are compared with: klein's statistics are several, its text as wide as three layers."""
    stacked = encoders.pick_family(KLEIN_4B.group, encoder)
    if isinstance(reference, tuple):
        family = stacked
    elif words is None:
        return encoders.pick_family(ZIMAGE.group, encoder)
    elif words.shape[-1] == stacked.width:
        family = stacked
    else:
        family = find_family(words.shape[-1], layout) or encoders.pick_family(ZIMAGE.group, encoder)
    if family.stacked and words is not None and words.shape[-1] != stacked.width:
        raise ValueError(
            f"text: expected a text of {stacked.name}, width {stacked.width}, beside this encoder and reference, got "
            f"width {words.shape[-1]}. Connect CLIP Text Encode of the same model, and its sibling as encoder: "
            f"{family.vision_encoder} for {family.name}."
        )
    return family


def _blocks(encoder) -> tuple[int, int]:
    """Blocks of the whole model, and how many of them are loaded."""
    if isinstance(encoder, loaded.LoadedEncoder):
        return encoder.encoder.num_layers, encoder.encoder.loaded_layers
    native.check_vision_clip(encoder)
    blocks = getattr(encoder.cond_stage_model, native.NATIVE_NAME).num_layers
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
