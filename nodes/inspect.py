"""Look at conditioning: a report and plots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import torch
from comfy_api.latest import io

from ..vl_core import TokenLayout
from ..vl_core.reports.inspection import Inspection, inspect
from ..vl_core.reports.plots import SINGLE, Plots, ThemeName, inspection_figure, stack_figures
from ..vl_core.states.families import ZIMAGE, find_family
from ..vl_core.states.stacks import split_layers, split_padding
from ..vl_core.states.vl_states import LAYOUT_KEY
from . import told
from .entries import Entry, check_one_layer, references_of, words_of
from .host import memory
from .node import Node
from .widgets import BLANK, FOLLOW, Follow, Reference, draw, node_schema, theme_of, theme_options, with_pictures


class ZImageVLInspect(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLInspect",
            display_name="Inspect Conditioning",
            description="Tokens by role, attention sinks and outlier dimensions of conditioning, as words and plots.",
            search_aliases=["plot conditioning", "embedding statistics", "debug conditioning"],
            is_output_node=True,
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="Any conditioning: text, VL or a blend of both."),
                Reference.Input(
                    "reference", optional=True,
                    tooltip="Compare every dimension with this. From Text Encoder Statistics.",
                ),
                io.Float.Input(
                    "threshold", default=10.0, min=1.0, max=1000.0, step=0.5, advanced=True,
                    tooltip="Dimensions whose spread differs by more than this factor are named.",
                ),
                io.Combo.Input(
                    "plots", options=list(get_args(Plots)), default=SINGLE, optional=True,
                    tooltip="Which plot is drawn: one at a time can be read on the node, all are for the plots output.",
                ),
                io.Combo.Input(
                    "theme", options=theme_options(), default=FOLLOW, optional=True, advanced=True,
                    tooltip="Colours of the plots: those of ComfyUI's theme, dark on white, or light on dark grey.",
                ),
            ],
            outputs=[io.Image.Output(display_name="plots"), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(
        cls, conditioning, reference=None, threshold: float = 10.0, plots: Plots = SINGLE,
        theme: Follow | ThemeName = FOLLOW,
    ) -> io.NodeOutput:
        if not conditioning:
            raise ValueError("conditioning: expected at least one entry, got an empty CONDITIONING.")
        looked, lines = [], []
        for index, entry in enumerate(memory.each(conditioning), 1):
            layout = entry[1].get(LAYOUT_KEY)
            if layout is not None and len(layout) != entry[0].shape[1]:
                lines.append(f"A node changed the tokens, {len(layout)} were described: which is which is unknown.")
                layout = None
            for layer, found in _inspected(entry, layout, reference, threshold):
                title = ", ".join(filter(None, [f"entry {index}" if len(conditioning) > 1 else "", layer]))
                looked.append((found, title))
                lines.append(f"{layer}: {found.describe()}" if layer else found.describe())
        pictures, missing = draw(
            lambda: stack_figures(
                [inspection_figure(*one, plots=plots, theme=theme_of(theme)) for one in memory.each(looked)]
            )
        )
        text = "\n\n".join([told.looked(found for found, _ in looked), *lines])
        shown = with_pictures("\n\n".join(filter(None, [text, missing])), pictures, cls)
        return io.NodeOutput(torch.ones(BLANK) if pictures is None else pictures, text, ui=shown)


def _inspected(
    entry: Entry, layout: TokenLayout | None, reference: Any, threshold: float
) -> Iterator[tuple[str, Inspection]]:
    """Every sequence of an entry; of a family that reads several layers each layer with its name, padding left out."""
    family = find_family(entry[0].shape[-1], layout) or ZIMAGE
    if not family.stacked:
        check_one_layer(reference)
        yield from (("", inspect(states, layout, reference, threshold)) for states in entry[0])
        return
    references = references_of(reference, family)
    words, layout, _ = split_padding(entry[0], layout, words_of(entry))
    for stack in words:
        for layer, states, known in zip(family.layers, split_layers(stack, family), references, strict=True):
            own = layout and layout.with_layer(layer)
            yield f"layer {layer}", inspect(states, own, known, threshold, family)
