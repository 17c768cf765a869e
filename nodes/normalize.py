"""Bring the scale of VL states to what Z-Image's encoder gives."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..vl_core import normalize
from ..vl_core.states.sinks import Sinks
from . import told
from .entries import map_layers
from .node import Node
from .widgets import Reference, node_schema, report, setting_input, sinks_input


def _clip() -> io.Float.Input:
    return io.Float.Input(
        "clip", default=3.0, min=0.5, max=100.0, step=0.5,
        tooltip="Values further than this many standard deviations from their dimension's mean are cut.",
    )


class ZImageVLNormalize(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLNormalize",
            display_name="Normalize VL Embeddings",
            description="Give VL states the scale of Z-Image's own text states, overall or dimension by dimension.",
            search_aliases=["scale embeddings", "match statistics", "standardize conditioning"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="What to rescale: VL or plain text conditioning."),
                io.DynamicCombo.Input(
                    "mode",
                    options=[
                        io.DynamicCombo.Option(
                            "global",
                            [
                                setting_input(
                                    "target_std", "Overall spread to reach; 0 takes it from the reference. The "
                                    "research note used 61, which counts the attention sink in.", step=0.1,
                                )
                            ],
                        ),
                        io.DynamicCombo.Option("per_dim", [_clip()]),
                        io.DynamicCombo.Option(
                            "hybrid",
                            [
                                io.Float.Input(
                                    "weight", default=0.5, min=0.0, max=1.0, step=0.05,
                                    tooltip="How much of per_dim is in the mixture; the rest is global.",
                                ),
                                _clip(),
                            ],
                        ),
                        io.DynamicCombo.Option("rms", []),
                        io.DynamicCombo.Option("none", []),
                    ],
                    tooltip="global: one factor for all. per_dim: each dimension for itself, good for image tokens. "
                    "hybrid: both. rms: each token to one size.",
                ),
                Reference.Input("reference", optional=True, tooltip="The target. From Text Encoder Statistics."),
                setting_input("outlier_scope", id="scope", advanced=True),
                sinks_input(),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, conditioning, mode: dict | str, reference=None, scope: str = "all tokens", sinks: Sinks = "exclude"
    ) -> io.NodeOutput:
        options: dict[str, Any] = dict(mode) if isinstance(mode, dict) else {"mode": mode}
        chosen, target = options.pop("mode"), options.pop("target_std", 0.0)

        def stage(states, statistics, positions, layout):
            return normalize(
                states, chosen, statistics, target_std=target or None, sinks=sinks, positions=positions,
                layout=layout, **options,
            )

        scaled, lines = map_layers(conditioning, reference, scope, stage)
        return io.NodeOutput(scaled, ui=report(told.normalized(chosen), lines))
