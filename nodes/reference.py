"""Measure what Z-Image's own text encoder gives, as the target for VL states."""

from __future__ import annotations

from comfy_api.latest import io

from ..vl_core import ReferenceStatistics
from ..vl_core.states.stacks import split_layers
from .entries import check_conditioning, entry_family, layout_of, take_padding
from .host import calibration
from .node import Node
from .widgets import Reference, node_schema, report


class ZImageVLReference(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLReference",
            display_name="Text Encoder Statistics",
            description="Measure Z-Image's text encoder once, over built-in prompts; kept on disk for the next time.",
            search_aliases=["calibrate", "encoder statistics"],
            inputs=[
                io.MultiType.Input(
                    "source", [io.Clip, io.Conditioning],
                    tooltip="Z-Image's text encoder (Load CLIP, type lumina2), measured over built-in prompts; or "
                    "any text conditioning.",
                )
            ],
            outputs=[Reference.Output(display_name="reference")],
        )

    @classmethod
    def execute(cls, source) -> io.NodeOutput:
        if not isinstance(source, list):
            measured, origin = calibration.measure_layers(source)
            reference = measured[0] if len(measured) == 1 else tuple(measured)
            figures = [one.describe() for one in measured]
            return io.NodeOutput(reference, ui=report("The text encoder is measured.", figures, origin))
        check_conditioning(source, "source")
        family, warning = entry_family(source[0]), ""
        measured: list[ReferenceStatistics] = []
        for entry in source:
            layout = layout_of(entry)
            if layout and layout.source != "text":
                warning = f"States from {layout.source}, not {family.group}'s own: no target to normalize to."
            layers = family.layers if family.stacked else (layout.layer if layout else None,)
            words, _ = take_padding(entry, family)
            for states in words[0]:
                parts = zip(split_layers(states, family), layers, strict=True)
                found = [ReferenceStatistics.of(part, "conditioning", layer) for part, layer in parts]
                measured = [one.merge(part) for one, part in zip(measured, found, strict=True)] if measured else found
        few = "" if measured[0].ordinary.count >= 100 else "Few tokens: the spread per dimension is a rough guess."
        reference = tuple(measured) if family.stacked else measured[0]
        origin = "from the connected conditioning"
        figures = [one.describe() for one in measured]
        return io.NodeOutput(reference, ui=report("The connected text is measured.", figures, origin, few, warning))
