"""Mix what the VL model saw into Z-Image's own text conditioning."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..vl_core import TokenLayout, TokenRole, alpha_curve, alpha_on_words, blend, positions_of_words
from ..vl_core.stages.alpha import parse_words, split_kept
from ..vl_core.stages.blend import BlendInfo
from ..vl_core.states.counts import counted
from ..vl_core.states.families import check_pair
from ..vl_core.states.stacks import by_layer, split_layers
from . import told
from .entries import (
    TENSOR_OPTIONS,
    Entry,
    check_conditioning,
    describe_layers,
    layout_of,
    put_padding,
    take_padding,
    timed,
)
from .host import text_encoder
from .node import Node
from .widgets import node_schema, report, setting_input, sinks_input, window_inputs

POSITIONS = {"end": "end", "before the template tail": "before_tail"}  # as shown -> as vl_core names them


def _alpha() -> io.Float.Input:
    return io.Float.Input(
        "alpha", default=0.5, min=0.0, max=1.0, step=0.01,
        tooltip="How much of the picture's reading goes in: 0 is the text alone, 1 the VL states alone. Higher follows "
        "the picture more and your words less.",
    )


def _alpha_end() -> list:
    return [
        setting_input(
            "curve", "flat: one alpha for every token. The others go from alpha at the first token to alpha_end at the "
            "last: steadily, late, or early.",
        ),
        io.Float.Input(
            "alpha_end", default=0.5, min=0.0, max=1.0, step=0.01,
            tooltip="Alpha of the last token when the curve is not flat.",
        ),
    ]


def _space() -> io.Combo.Input:
    return setting_input(
        "space", "dit: as Z-Image sees the tokens, each at unit size. raw: as they are, large ones win. slerp: along "
        "the arc between both.",
    )


def _antialias() -> io.Boolean.Input:
    return setting_input("antialias", "Average over all tokens when shortening; off skips some, as the note did.")


class ZImageVLBlend(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        mixing = [_alpha(), *_alpha_end(), _space()]
        return node_schema(
            node_id="ZImageVLBlend",
            display_name="Blend VL with Text",
            description="Mix VL conditioning into Z-Image's text conditioning, token by token, or append it.",
            search_aliases=["alpha blend", "mix conditioning", "adain"],
            inputs=[
                io.Conditioning.Input("text", tooltip="Z-Image's own encoding of the prompt, from CLIP Text Encode."),
                io.Conditioning.Input("vl", tooltip="VL states of the same prompt with the picture."),
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option("aligned", mixing),
                        io.DynamicCombo.Option("resample", [*mixing, _antialias()]),
                        io.DynamicCombo.Option("truncate", mixing),
                        io.DynamicCombo.Option(
                            "append",
                            [
                                io.Int.Input(
                                    "downsample", default=2, min=1, max=32,
                                    tooltip="Average image tokens n × n first. This is the strength here: fewer tokens "
                                    "pull less, while their size is invisible to Z-Image.",
                                ),
                                io.Combo.Input(
                                    "position", options=list(POSITIONS), default="end", optional=True,
                                    tooltip="end: after the whole text. before the template tail: right after your "
                                    "words, for text from one of these nodes.",
                                ),
                            ],
                        ),
                        io.DynamicCombo.Option("adain", [_alpha(), _antialias()]),
                        io.DynamicCombo.Option("adain_per_dim", [_alpha()]),
                        io.DynamicCombo.Option("style_dims", [_alpha(), _antialias()]),
                    ],
                    tooltip="aligned: each word with itself. append: words, then picture tokens. The others stretch, "
                    "cut, or take over mean and spread.",
                ),
                *window_inputs("Text alone before.", "Early steps settle the layout, late ones the details."),
                sinks_input(),
                io.String.Input(
                    "words", default="", optional=True, advanced=True,
                    tooltip="Only these words of the prompt are mixed, such as red hat, sea; with a minus, all but "
                    "these. Empty mixes all. Not for append.",
                ),
                io.Int.Input(
                    "budget", default=0, min=0, max=16384, optional=True, advanced=True,
                    tooltip="With append: most tokens that each picture may add; 0 is no limit.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, text, vl, method: dict | str, start_percent: float = 0.0, end_percent: float = 1.0, sinks: str = "exclude",
        words: str = "", budget: int = 0,
    ) -> io.NodeOutput:
        check_conditioning(text, "text")
        check_conditioning(vl, "vl")
        if len(vl) not in (1, len(text)):
            raise ValueError(
                f"vl: expected one entry, or as many as text has ({len(text)}), got {len(vl)}. Combine after blending."
            )
        if not start_percent < end_percent:
            raise ValueError(f"start_percent: expected less than end_percent ({end_percent}), got {start_percent}.")
        options: dict[str, Any] = dict(method) if isinstance(method, dict) else {"method": method}
        chosen, alpha = options.pop("method"), options.pop("alpha", 0.5)
        curve, alpha_end = options.pop("curve", "flat"), options.pop("alpha_end", alpha)
        chosen_words, are_kept = split_kept(parse_words(words))
        if chosen == "append":
            if chosen_words:
                raise ValueError("words: append leaves all words as they are. Choose another method, or empty it.")
            alpha = 1.0  # every VL token goes in whole; how many there are is the strength
            position = options.get("position") or "end"  # None from a prompt saved before there was a choice
            options = {
                "append_downsample": options.get("downsample", 1),
                "append_position": POSITIONS.get(position, position),
                "append_budget": budget or None,
            }
        elif budget:
            raise ValueError(f"budget: only append adds picture tokens that it could limit, got {budget}. Set it to 0.")
        entries, lines, added = [], [], 0
        if unused := sorted({key for _, extra in vl for key in extra} - TENSOR_OPTIONS):
            lines.append(f"vl: its {', '.join(unused)} are not used. Set them on the text, or after this node.")
        for entry, seen in zip(text, vl * len(text) if len(vl) == 1 else vl, strict=True):
            family = check_pair(entry[0].shape[-1], seen[0].shape[-1], layout_of(entry), layout_of(seen))
            own, padding = take_padding(entry, family)
            steps = alpha if curve == "flat" else alpha_curve(own[0].shape[1], alpha, alpha_end, curve)
            if chosen_words:
                layout = _layout_of_words(own, seen)
                positions = positions_of_words(layout, chosen_words, text_encoder.tokenize_words)
                steps = alpha_on_words(layout, ~positions if are_kept else positions, steps)
                which = "not" if are_kept else "only"
                lines.append(f"{which} on {counted(int(positions.sum()), 'token')}: {', '.join(chosen_words)}")
            stage = partial(
                _blend_layer, split_layers(seen[0], family), alpha=steps, method=chosen, text_layout=layout_of(own),
                vl_layout=layout_of(seen), sinks=sinks, **options,
            )
            mixed, infos = by_layer(own[0], family, stage)
            entries += timed(entry, put_padding(entry, mixed, infos[0].layout, padding), start_percent, end_percent)
            lines.append(describe_layers(infos, family))
            added = mixed.shape[1] - own[0].shape[1]
        head = told.blended(chosen, alpha, alpha if curve == "flat" else alpha_end, added)
        return io.NodeOutput(entries, ui=report(head, lines))


def _blend_layer(vl: tuple[Tensor, ...], text: Tensor, index: int, **options) -> tuple[Tensor, BlendInfo]:
    """One layer of a stack."""
    return blend(text, vl[index], **options)


def _layout_of_words(text: Entry, vl: Entry) -> TokenLayout:
    """What the text's tokens are; text from core nodes does not say, then the VL's words do if they are as many.

    Raises:
        ValueError: if neither side tells.
    """
    layout, seen = layout_of(text), layout_of(vl)
    if layout is None and seen is not None:
        positions = seen.mask(TokenRole.TEMPLATE, TokenRole.TEXT)
        if int(positions.sum()) == text[0].shape[1]:
            layout = seen.select(positions)
    if layout is None:
        raise ValueError(
            "words: needs to know which token is which word, which neither side says. Connect all or text tokens of "
            "Qwen3-VL Encode as vl, read with the same prompt."
        )
    return layout
