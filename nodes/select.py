"""Cut a sequence to the tokens we want."""

from __future__ import annotations

from comfy_api.latest import io

from ..vl_core.stages.select import SELECTIONS, TokenSelection, select_tokens
from .entries import map_entries, repack, require_layout
from .node import Node
from .widgets import node_schema, report, setting_input


class ZImageVLSelectTokens(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLSelectTokens",
            display_name="Select VL Tokens",
            description="Keep only some tokens of a Qwen3-VL encode: the words, the picture, or a part of the picture.",
            search_aliases=["crop tokens", "token filter", "downsample image tokens"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="From Qwen3-VL Encode."),
                io.Combo.Input(
                    "tokens", options=list(SELECTIONS), default="text",
                    tooltip="text: template and words, which line up with Z-Image's own encoding. prompt: words only. "
                    "image: the picture with its start and end markers.",
                ),
                setting_input(
                    "downsample", "Average image tokens n × n. Fewer tokens leave the picture a smaller share beside "
                    "the words.", advanced=True,
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Keep only image tokens under the white part. Laid over every picture.",
                ),
                io.Int.Input(
                    "budget", default=0, min=0, max=16384, optional=True, advanced=True,
                    tooltip="Most tokens that each picture keeps; 0 is no limit. A larger picture is averaged further, "
                    "so that no picture outweighs another by its size.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, conditioning, tokens: TokenSelection = "text", downsample: int = 1, mask=None, budget: int = 0
    ) -> io.NodeOutput:
        def stage(entry):
            layout = require_layout(entry, "selecting tokens")
            states, kept = select_tokens(
                entry[0], layout, tokens, downsample=downsample, mask=mask, budget=budget or None
            )
            return repack(entry, states, kept), f"Kept {len(kept)} of {len(layout)} tokens: {kept.describe()}."

        selected, lines = map_entries(conditioning, stage)
        return io.NodeOutput(selected, ui=report(lines))
