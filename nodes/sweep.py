"""Many settings from one reading of the picture: a list of CONDITIONING that the sampler works through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..vl_core.adapters.picture_adapter import PictureAdapter
from ..vl_core.looks.look import Look
from ..vl_core.states.counts import counted
from ..vl_core.states.families import Family
from ..vl_core.states.fields import Value
from ..vl_core.steering.axes import MAX_SEED, parse_axis
from ..vl_core.steering.settings import AUTOMATIC, BLENDS
from ..vl_core.steering.steer import steer_many
from ..vl_core.steering.sweep import Plan, make_plan
from ..vl_core.steering.takes import DEFAULT_TAKE
from ..vl_core.steering.way import Given
from . import widgets
from .adapter import NO_FILE
from .condition import offered_ways
from .entries import check_conditioning, references_of
from .host import memory
from .look import look_file_input, look_input, pick_look
from .node import Node
from .steering import ComfyHost, collect, entries_of

NO_AXIS = "none"
AXES = [
    "strength", "way", "take", "layer", "method", "tokens", "normalization", "outlier mode", "outlier threshold",
    "space", "downsample", "seed",
]  # fmt: skip


def _axis_inputs(name: str, values: str, what: str, default: str, written: str, *, optional: bool) -> list:
    return [
        io.Combo.Input(
            name, options=[NO_AXIS, *AXES] if optional else AXES, default=default,
            tooltip=f"Which setting changes {what}. Its own input below is then not looked at.",
        ),
        io.String.Input(
            values, default=written,
            tooltip=f"Its values {what}: 0, 0.3, 1 or 0:1:0.1 (from:to:step, the end included) or words such as clamp, "
            "zero, none.",
        ),
    ]


class ZImageVLSweep(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.node_schema(
            node_id="ZImageVLSweep",
            display_name="Sweep Settings",
            description="Vary two or three settings and paint every combination, from one reading of the picture.",
            search_aliases=["xy plot", "compare settings", "grid search", "parameter sweep"],
            inputs=[
                widgets.text_clip_input(),
                widgets.encoder_input("vision"),
                widgets.pictures_input("at least one"),
                widgets.prompt_input(),
                *_axis_inputs(
                    "columns", "column_values", "from left to right", "strength", "0.25:1:0.25", optional=False
                ),
                *_axis_inputs(
                    "rows", "row_values", "from top to bottom", "way", "words, blend and append", optional=True
                ),
                *_axis_inputs("pages", "page_values", "from page to page", NO_AXIS, "", optional=True),
                io.Combo.Input(
                    "method", display_name="way", options=[*offered_ways(), *BLENDS], default=AUTOMATIC,
                    tooltip="How the picture travels where no axis changes it: a way of Z-Image Vision Conditioning, "
                    "or a method of Blend VL with Text.",
                ),
                widgets.setting_input(
                    "strength", "How much the picture counts where no axis changes it. 0 is your words alone.", "alpha",
                    display_name="strength", step=0.01,
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False,
                    tooltip="Where painting starts, the same for all cells unless an axis changes it. Connect the seed "
                    "output to the sampler.",
                ),
                widgets.layer_choice(),
                widgets.setting_input(
                    "tokens", "Which of Qwen3-VL's tokens are mixed in, as on Select VL Tokens; aligned needs all or "
                    "text.", advanced=True,
                ),
                widgets.setting_input(
                    "downsample", "Average image tokens n × n. Fewer tokens leave the picture a smaller share beside "
                    "the words. Not used by aligned and by the modes.", advanced=True,
                ),
                widgets.setting_input(
                    "space", "dit: mix as Z-Image sees the tokens. raw: plain mixture, in which large tokens win. "
                    "slerp: along the arc between both.", advanced=True,
                ),
                widgets.setting_input(
                    "outlier_mode", "What becomes of dimensions that spread far from Z-Image's own, as on Mask Outlier "
                    "Dimensions, over all selected tokens.", advanced=True,
                ),
                widgets.setting_input(
                    "outlier_threshold", "A dimension is an outlier if its spread differs by more than this factor.",
                    step=0.5, advanced=True,
                ),
                widgets.setting_input(
                    "normalization", "Gives VL states the scale of Z-Image's own, as on Normalize VL Embeddings.",
                    advanced=True,
                ),
                widgets.budget_input(),
                widgets.Reference.Input(
                    "reference", optional=True,
                    tooltip="What normalization and outliers compare with, from Text Encoder Statistics. Measured on "
                    "the clip if it is needed and not connected.",
                ),
                widgets.setting_input("take", "What to take from the picture where no axis changes it.", optional=True),
                widgets.Adapter.Input(
                    "adapter", optional=True, tooltip="From Fit Picture Adapter, for the way of that name."
                ),
                look_file_input(),
                widgets.words_input(),
                look_input("From Learn Look, for the way learned look; automatic prefers it. Goes before the file."),
            ],
            outputs=[
                io.Conditioning.Output(is_output_list=True),
                io.Int.Output(display_name="seed", is_output_list=True),
                io.String.Output(display_name="label", is_output_list=True),
                io.String.Output(display_name="plan"),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, columns=None, column_values=None, rows=None, row_values=None, pages=None, page_values=None, method=None,
        alpha=None, seed=None, layer=None, tokens=None, downsample=None, space=None, outlier_mode=None,
        outlier_threshold=None, normalization=None, take=None, images: dict | None = None,
    ) -> bool:
        """Refuse lists and settings that do not go together before any model runs; what is wired in is seen later.

        The host hands over sockets that grow as well, whether asked for or not.

        Raises:
            ValueError: naming the input; what is returned in its place would be marked at all of these inputs.
        """
        axes: list[tuple[Any, Any]] = [(columns, column_values), (rows, row_values), (pages, page_values)]
        base = {
            "method": method, "alpha": alpha, "layer": layer, "tokens": tokens, "downsample": downsample,
            "space": space, "outlier_mode": outlier_mode, "outlier_threshold": outlier_threshold,
            "normalization": normalization, "take": DEFAULT_TAKE if take is None else take,
        }
        if seed is None or None in (*base.values(), *(part for axis in axes for part in axis)):
            return True
        _plan(axes, seed, base)
        return True

    @classmethod
    def execute(
        cls, clip, vision, prompt: str, columns: str = "strength", column_values: str = "0.25:1:0.25",
        rows: str = "way", row_values: str = "words, blend and append", pages: str = NO_AXIS, page_values: str = "",
        method: str = AUTOMATIC, alpha: float = 1.0, seed: int = 0, layer: int = 0, tokens: str = "all",
        downsample: int = 1, space: str = "dit", outlier_mode: str = "none", outlier_threshold: float = 10.0,
        normalization: str = "none", image_tokens: int = 1024, images: dict | None = None, reference=None,
        take: str = DEFAULT_TAKE, adapter: PictureAdapter | None = None, words: str | None = None,
        look_file: str = NO_FILE, look: Look | None = None,
    ) -> io.NodeOutput:
        base = {
            "method": method, "alpha": alpha, "layer": layer, "tokens": tokens, "downsample": downsample,
            "space": space, "outlier_mode": outlier_mode, "outlier_threshold": outlier_threshold,
            "normalization": normalization, "take": take, "image_tokens": image_tokens,
        }
        plan = _plan([(columns, column_values), (rows, row_values), (pages, page_values)], seed, base)
        host = ComfyHost(clip, vision)
        _check_stacked(plan, host.family)
        references = collect(images, "", None)
        if not references and look is None and look_file == NO_FILE:
            raise ValueError(
                "images: a sweep needs at least one picture, got none. Connect an image, or a learned look."
            )
        statistics = references_of(reference, host.family)
        given = Given(
            adapter=adapter, look=pick_look(look, look_file), words=words if words and words.strip() else None,
            statistics=statistics,
        )
        cells = plan.unique
        labels = [cell.label for cell in cells]
        outcomes = steer_many(
            host, prompt, references, [cell.settings for cell in cells], given, names=labels,
            step=memory.check_interrupted,
        )
        entries = [entries_of(one, cell.settings.window) for one, cell in zip(outcomes, cells, strict=True)]
        for painted_from in entries:
            check_conditioning(painted_from, "clip")
        remarks = list(dict.fromkeys(line for one in outcomes for line in one.lines))
        numbered = [f"{number}. {label}" for number, label in enumerate(labels, 1)]
        seeds = [cell.seed for cell in cells]
        head = f"{counted(len(cells), 'picture')} to paint, from one reading."
        lines = widgets.report(head, plan.describe(), remarks, numbered)
        return io.NodeOutput(entries, seeds, labels, plan.to_json(), ui=lines)


def _plan(written: Sequence[tuple[str, str]], seed: int, base: dict[str, Value]) -> Plan:
    """The plan of the node's inputs: names and values of the axes, and what holds where none of them says otherwise."""
    _, (rows, _), (pages, _) = written
    if rows == NO_AXIS != pages:
        raise ValueError(f"pages: expected {NO_AXIS} while rows is {NO_AXIS}, got {pages}. Choose it for rows.")
    axes = [parse_axis(name, values) for name, values in written if name != NO_AXIS]
    return make_plan(axes, base, seed)


def _check_stacked(plan: Plan, family: Family) -> None:
    """Refuse what a family that reads fixed layers cannot vary.

    Raises:
        ValueError: for an axis over layers.
    """
    if family.stacked and any(axis.name == "layer" for axis in plan.axes):
        raise ValueError(
            f"layer: makes no difference with {family.name}, which always reads {family.describe_layers()}. Choose "
            f"another axis, or {NO_AXIS} for rows."
        )
