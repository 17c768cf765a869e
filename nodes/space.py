"""Map Qwen3-VL's states onto the image model's text encoder, by a fit on prompts that both have read."""

from __future__ import annotations

import weakref
from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..vl_core.adapters.space_adapter import SpaceAdapter, SpaceMethod, fit_space_adapters
from ..vl_core.states.families import Family
from ..vl_core.states.stacks import by_layer, split_layers
from ..vl_core.states.statistics import ENCODER_LAYER
from . import told
from .entries import Entry, check_conditioning, describe_layers, entry_family, layout_of, repack, require_layout
from .host import encoders, folders, memory, text_encoder
from .host.identity import identity_of
from .node import Node
from .widgets import Space, encoder_input, known, node_schema, report, text_clip_input

LEAST = 10  # prompts
MOST_KEPT = 4  # fits of an encoder; one of width 2560 takes 25 MiB a layer

_fitted: weakref.WeakKeyDictionary[Any, dict[tuple, tuple[SpaceAdapter, ...]]] = weakref.WeakKeyDictionary()


class ZImageVLMatchSpace(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLMatchSpace",
            display_name="Match Text Encoder",
            description="Bring Qwen3-VL's states to where Z-Image's text encoder, or FLUX.2 klein's, has them, by one "
            "solve over prompts that both read.",
            search_aliases=["space adapter", "align encoders", "procrustes", "qwen3-vl-8b", "qwen3-vl-2b"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="VL states, from Qwen3-VL Encode."),
                encoder_input(),
                text_clip_input(),
                io.Combo.Input(
                    "method", options=list(get_args(SpaceMethod)), default="ridge",
                    tooltip="ridge: a full linear map. reduced_rank: its main directions. procrustes: a rotation. "
                    "per_dimension, whitening: for encoders of one width.",
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
    @known("")
    def fingerprint_inputs(cls, prompts: str = "", **_) -> str:
        return folders.stamp(lambda: [folders.input_folder(prompts)] if prompts.strip() else [])

    @classmethod
    def execute(cls, conditioning, encoder, clip, method: SpaceMethod = "ridge", prompts: str = "") -> io.NodeOutput:
        check_conditioning(conditioning)
        family = text_encoder.check_text_clip(clip, klein=True)
        texts = folders.read_prompts(prompts, LEAST)
        entries, lines, spaces = [], [], []
        for entry in conditioning:
            layers = _layers_of(entry, family)
            space, origin = _fit(encoder, clip, family, layers, method, texts)
            layout = layout_of(entry)
            mapped, _ = by_layer(
                entry[0], family,
                lambda part, index, space=space, layout=layout: (space[index].apply(part, layout=layout), None),
            )
            spaces.append(space)
            entries.append(repack(entry, mapped, layout))
            lines += [describe_layers(space, family), origin]
        head = told.brought(one for space in spaces for one in space)
        return io.NodeOutput(entries, spaces[0] if family.stacked else spaces[0][0], ui=report(head, lines))


def _layers_of(entry: Entry, family: Family) -> tuple[int, ...]:
    """The layers of Qwen3-VL that an entry's states are of: those that the text encoder's family reads, or any one.

    Raises:
        ValueError: for a mixture, states of another family, or a text with its padding.
    """
    layout = require_layout(entry, "Match Text Encoder")
    theirs = entry_family(entry)
    if theirs.stacked != family.stacked:
        raise ValueError(
            f"conditioning: expected states for {family.group}, which clip is the text encoder of, got width "
            f"{entry[0].shape[-1]} ({theirs.describe_layers()}). Choose family = {family.group} on Qwen3-VL Encode."
        )
    if layout.padding().any():
        raise ValueError(
            f"conditioning: expected VL states, from Qwen3-VL Encode, got {layout.describe()}: padding is no word that "
            "both encoders read. Put this node right after Qwen3-VL Encode."
        )
    if family.stacked:
        return family.layers
    if layout.layer is None:
        raise ValueError(
            "conditioning: expected states of one layer, as Qwen3-VL Encode gives them, got a mixture. Put "
            "this node right after Qwen3-VL Encode, and choose one layer there."
        )
    return (layout.layer,)


def _fit(
    encoder: Any, clip: Any, family: Family, layers: tuple[int, ...], method: SpaceMethod, texts: tuple[str, ...]
) -> tuple[tuple[SpaceAdapter, ...], str]:
    """The adapters of these two encoders, one a layer; fitted once for as long as the encoder is loaded."""
    key = identity_of(encoder), identity_of(clip), family.group, layers, method, texts
    kept = _fitted.setdefault(encoder, {})
    if key in kept:
        kept[key] = kept.pop(key)  # the last used is the last to go
        return kept[key], "fitted before"
    template = encoders.pick_family(family.group, encoder)

    def source(text: str) -> list[Tensor]:
        seen, _ = encoders.encode_vision(encoder, {}, text, layers, family=template)
        return [seen.at(layer)[0] for layer in layers]

    def target(text: str) -> tuple[Tensor, ...]:
        return split_layers(text_encoder.encode_words(clip, text), family)

    kept[key] = fit_space_adapters(
        list(texts), source, target, method, progress=memory.progress_bar(len(texts)),
        check=memory.check_interrupted,
        layers=[(layer, layer if family.stacked else ENCODER_LAYER) for layer in layers],
    )
    while len(kept) > MOST_KEPT:
        kept.pop(next(iter(kept)))
    return kept[key], f"fitted on {len(texts)} prompts"
