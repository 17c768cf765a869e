"""Add what the picture did to each word to Z-Image's own text conditioning."""

from __future__ import annotations

from typing import Any, Literal

from comfy_api.latest import io
from torch import Tensor

from ..vl_core import TokenLayout, VLStates
from ..vl_core.adapters.space_adapter import SpaceAdapter
from ..vl_core.pictures import BaselinePicture, baseline_picture, split_batch
from ..vl_core.stages.delta import MAX_WEIGHT, image_delta
from ..vl_core.states.families import KLEIN_4B, ZIMAGE, Family, find_family
from ..vl_core.states.stacks import steer_layers
from . import widgets
from .entries import Entry, attend_words, check_conditioning, describe_layers, layout_of, repack, words_of
from .host import encoders
from .node import Node

Baseline = BaselinePicture | Literal["muted", "absent"]


class ZImageVLDelta(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.node_schema(
            node_id="ZImageVLDelta",
            display_name="Image Delta",
            description="Add to each word what the picture did to it: read with the picture, minus read without.",
            search_aliases=["difference", "what a picture adds"],
            inputs=[
                widgets.encoder_input(),
                widgets.pictures_input("with none text comes out as it is"),
                widgets.prompt_input(),
                io.Conditioning.Input(
                    "text", tooltip="Z-Image's own encoding of the same prompt, from CLIP Text Encode; what is changed."
                ),
                io.Float.Input(
                    "weight", default=1.0, min=-MAX_WEIGHT, max=MAX_WEIGHT, step=0.05,
                    tooltip="How much of the difference is added: 0 is the text alone, 1 is what the picture did, "
                    "more exaggerates it.",
                ),
                widgets.layer_input(-2),
                io.Combo.Input(
                    "baseline", options=["muted", "absent", "grey", "blurred"], default="muted", advanced=True,
                    tooltip="What the picture is compared with. muted: its places left empty. absent: none. grey: an "
                    "even grey. blurred: its blurred colours.",
                ),
                widgets.setting_input(
                    "remove_prompt_direction", "Leave out what only makes a word stronger or weaker and keep what "
                    "turns its meaning.", advanced=True,
                ),
                widgets.setting_input(
                    "rank", "Keep only this many strongest directions of the difference; 0 keeps all, 1 is one overall "
                    "mood.", advanced=True,
                ),
                widgets.budget_input(),
                widgets.Space.Input(
                    "space", optional=True,
                    tooltip="From Match Text Encoder, on the same layer: both readings are brought there first. "
                    "Needed with a Qwen3-VL of another width.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, encoder, prompt: str, text, weight: float = 1.0, layer: int = -2, baseline: Baseline = "muted",
        remove_prompt_direction: bool = False, rank: int = 0, image_tokens: int = 1024, images: dict | None = None,
        space: SpaceAdapter | tuple[SpaceAdapter, ...] | None = None,
    ) -> io.NodeOutput:
        check_conditioning(text, "text")
        given = {name: image for name, image in (images or {}).items() if image is not None}
        if not given or weight == 0:
            reason = "weight 0" if given else "no picture connected"
            return io.NodeOutput(text, ui=widgets.report(f"Words only: {reason}."))
        spaces = () if space is None else space if isinstance(space, tuple) else (space,)
        family = _family(text, encoder, spaces)
        layers = list(family.layers) if family.stacked else [layer]
        if spaces:
            _check_spaces(spaces, family, layers)
        options = {"budget": image_tokens, "family": family}
        seen, notes = encoders.encode_vision(encoder, given, prompt, layers, **options)
        blind = _without(encoder, given, prompt, layers, baseline, options)
        read_at = f"{family.describe_layers()} in place of layer {layer}" if family.stacked else f"layer {layer}"
        lines = [*notes, f"{seen.layout.describe()}; {read_at}; baseline {baseline}"]
        lines += [describe_layers(spaces, family)] if spaces else []
        to_text = spaces or (None,) * len(layers)
        plus, zero = (
            [_brought(side, one, to) for one, to in zip(layers, to_text, strict=True)] for side in (seen, blind)
        )

        def act(states: Tensor, layout: TokenLayout | None, index: int) -> tuple[Tensor, TokenLayout | None, str]:
            moved, info = image_delta(
                states, plus[index], zero[index], weight, text_layout=layout, vl_layout=seen.layout,
                baseline_layout=blind.layout, remove_prompt_direction=remove_prompt_direction, rank=rank,
            )
            place = f"layer {family.layers[index]}: " if family.stacked else ""
            return moved, info.layout, place + info.describe()

        entries = []
        for entry in text:
            states, layout, done = steer_layers(entry[0], layout_of(entry), family, act, words=words_of(entry))
            entries.append(attend_words(repack(entry, states, layout)))
            lines += done
        head = f"What the picture did to each word, added at strength {weight:g}."
        return io.NodeOutput(entries, ui=widgets.report(head, lines))


def _family(text: list[Entry], encoder: Any, spaces: tuple[SpaceAdapter, ...]) -> Family:
    """Whose text it is: klein's is as wide as three of the encoder's states, or as three that they are mapped to.

    Raises:
        ValueError: for klein's text and an encoder, or a map, of another width.
    """
    width, layout = text[0][0].shape[-1], layout_of(text[0])
    stacked = encoders.pick_family(KLEIN_4B.group, encoder)
    mapped = sum(space.widths[1] for space in spaces) if len(spaces) > 1 else 0
    if width == (mapped or stacked.width):
        return stacked
    named = find_family(width, layout)
    if named is not None and named.stacked and mapped:
        raise ValueError(
            f"space: expected one to the text's width {width} ({named.name}), got one to {mapped}. Give Match Text "
            "Encoder the text's own encoder as clip."
        )
    if named is not None and named.stacked:
        raise ValueError(
            f"encoder: expected one of width {named.hidden}, which {named.name} reads as {named.describe_layers()}, "
            f"got {stacked.hidden}. Load {named.vision_encoder}, or connect a space that Match Text Encoder fitted "
            "between this encoder and the text's."
        )
    return encoders.pick_family(ZIMAGE.group, encoder)


def _check_spaces(spaces: tuple[SpaceAdapter, ...], family: Family, layers: list[int]) -> None:
    """Refuse adapters that were fitted for something else than what is read here."""
    fitted = [space.layers[0] for space in spaces]
    if len(spaces) != len(layers):
        raise ValueError(
            f"space: expected one fitted for {family.group}, whose text this is, on "
            f"{family.describe_layers() if family.stacked else f'layer {layers[0]}'}, got one fitted on layer"
            f"{'s' if len(spaces) > 1 else ''} {', '.join(map(str, fitted))}. Choose family = {family.group} on "
            "Qwen3-VL Encode, and the text's own encoder as clip, before Match Text Encoder."
        )
    for layer, one in zip(layers, fitted, strict=True):
        if one not in (None, layer):
            raise ValueError(
                f"space: expected one fitted on layer {layer}, which is read here, got layer {one}. Choose the same "
                "layer here and on Qwen3-VL Encode before Match Text Encoder."
            )


def _brought(seen: VLStates, layer: int, space: SpaceAdapter | None) -> Tensor:
    """A layer of a reading, where the text encoder has it if there is an adapter."""
    states, layout = seen.at(layer)
    return space.apply(states, layout=layout) if space else states


def _without(encoder: Any, images: dict, prompt: str, layers: list[int], baseline: Baseline, options: dict) -> VLStates:
    """The same reading without what the pictures say."""
    if baseline == "absent":
        images = {}
    elif baseline != "muted":
        batches = {name: split_batch(image) for name, image in images.items()}
        images = {
            f"{name}.{index}": baseline_picture(picture, baseline, name)
            for name, batch in batches.items() for index, picture in enumerate(batch)
        }
    return encoders.encode_vision(encoder, images, prompt, layers, mute=baseline == "muted", **options)[0]
