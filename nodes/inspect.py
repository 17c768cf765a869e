"""Look at conditioning: a report and two plots."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..vl_core.metrics import inspect
from ..vl_core.plots import inspection_figure
from .common import Reference, node_schema
from .conditioning import layout_of


class ZImageVLInspect(io.ComfyNode):
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
                    "reference", optional=True, tooltip="Compare every dimension with this. From Reference Statistics."
                ),
                io.Float.Input(
                    "threshold", default=10.0, min=1.0, max=1000.0, step=0.5, advanced=True,
                    tooltip="Dimensions whose spread differs by more than this factor are named.",
                ),
            ],
            outputs=[io.Image.Output(display_name="plots"), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, conditioning, reference=None, threshold: float = 10.0) -> io.NodeOutput:
        if not conditioning:
            raise ValueError("conditioning: expected at least one entry, got an empty CONDITIONING.")
        figures, lines = [], []
        for index, entry in enumerate(conditioning, 1):
            for states in entry[0]:
                found = inspect(states, layout_of(entry), reference, threshold)
                figures.append(inspection_figure(found, f"entry {index}" if len(conditioning) > 1 else ""))
                lines.append(found.describe())
        plots = torch.stack([torch.from_numpy(figure).float() / 255 for figure in figures])
        text = "\n\n".join(lines)
        shown = {**ui.PreviewImage(plots, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(plots, text, ui=shown)
