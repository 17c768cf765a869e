"""Tame dimensions whose spread is far from what Z-Image's encoder gives."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..vl_core import mask_outlier_dimensions
from ..vl_core.stages.outliers import Direction
from ..vl_core.states.sinks import Sinks
from . import told
from .entries import map_layers
from .node import Node
from .widgets import Reference, node_schema, report, setting_input, sinks_input


class ZImageVLMaskOutliers(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLMaskOutliers",
            display_name="Mask Outlier Dimensions",
            description="Find dimensions that spread far more or less than in Z-Image's own encoder, and tame them.",
            search_aliases=["outlier masking", "clamp embeddings", "massive activations"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="What to clean: VL or plain text conditioning."),
                Reference.Input("reference", tooltip="What is normal. From Text Encoder Statistics."),
                io.DynamicCombo.Input(
                    "mode",
                    options=[
                        io.DynamicCombo.Option("clamp", []),
                        io.DynamicCombo.Option("zero", []),
                        io.DynamicCombo.Option(
                            "scale",
                            [
                                setting_input(
                                    "outlier_gamma", "How far outliers are pulled back: 1 is all the way, as clamp "
                                    "does.", "gamma", step=0.01,
                                )
                            ],
                        ),
                        io.DynamicCombo.Option("none", []),
                    ],
                    tooltip="clamp: bring an outlier to the threshold. zero: remove it. scale: pull it back part of "
                    "the way. none: only report.",
                ),
                setting_input(
                    "outlier_threshold", "A dimension is an outlier if its spread differs by more than this factor. "
                    "Lower catches more and changes the picture more.", "threshold", step=0.5,
                ),
                setting_input(
                    "outlier_direction", "over: dimensions that spread more than the reference. under: those that "
                    "spread less. both: either.", "direction", options=["both", "over", "under"], advanced=True,
                ),
                setting_input(
                    "outlier_scope", "Which tokens are measured and changed. Image tokens are the ones with outliers.",
                    "scope", default="image tokens",
                ),
                sinks_input(),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, conditioning, reference, mode: dict | str, threshold: float = 10.0, direction: Direction = "both",
        scope: str = "image tokens", sinks: Sinks = "exclude",
    ) -> io.NodeOutput:
        chosen: dict[str, Any] = mode if isinstance(mode, dict) else {"mode": mode}
        counts: list[int] = []

        def stage(states, statistics, positions, layout):
            masked, info = mask_outlier_dimensions(
                states, threshold, chosen["mode"], reference=statistics, direction=direction,
                gamma=chosen.get("gamma", 0.5), sinks=sinks, positions=positions, layout=layout,
            )
            counts.append(len(info.masked_dimensions))
            return masked, info

        cleaned, lines = map_layers(conditioning, reference, scope, stage)
        return io.NodeOutput(cleaned, ui=report(told.tamed(chosen["mode"], counts), lines))
