"""Many settings from one reading of the picture: a list of CONDITIONING that the sampler works through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from comfy_api.latest import io
from torch import Tensor

from ..vl_core import ReferenceStatistics, TokenLayout, VLStates
from ..vl_core.stages.delta import MAX_WEIGHT
from ..vl_core.states.families import Family
from ..vl_core.states.stacks import steer_layers
from ..vl_core.steering.settings import FIELDS, Value
from ..vl_core.steering.sweep import MAX_SEED, Cell, Plan, make_plan, parse_axis
from . import references
from .entries import Entry, attend_words, check_conditioning, layout_of, references_of, repack, words_of
from .host import calibration, encoders, memory, text_encoder
from .widgets import Reference, budget_input, encoder_input, node_schema, pictures_input, prompt_input, report

NO_AXIS = "none"
PUBLISHED = "blend as published"
AXES = [
    "alpha", "layer", "method", "tokens", "normalization", "outlier mode", "outlier threshold", "space",
    "delta strength", "downsample", "seed",
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


class ZImageVLSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLSweep",
            display_name="Sweep Settings",
            description="Vary two or three settings and paint every combination, from one reading of the picture.",
            search_aliases=["xy plot", "compare settings", "grid search", "parameter sweep"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="Z-Image's text encoder: Load CLIP, qwen_3_4b, type lumina2. Or FLUX.2 klein's: type "
                    "flux2.",
                ),
                encoder_input("vision"),
                pictures_input(),
                prompt_input(),
                *_axis_inputs(
                    "columns", "column_values", "from left to right", "alpha", "0.2:0.8:0.2", optional=False
                ),
                *_axis_inputs("rows", "row_values", "from top to bottom", "layer", "-2, -6", optional=True),
                *_axis_inputs("pages", "page_values", "from page to page", NO_AXIS, "", optional=True),
                io.Combo.Input(
                    "method", options=list(FIELDS["method"].choices), default="aligned",
                    tooltip="How the picture gets into the words, where no axis changes it: as Blend VL with Text, or "
                    "one of the modes of Z-Image Vision Conditioning.",
                ),
                io.Float.Input(
                    "alpha", default=0.5, min=-MAX_WEIGHT, max=MAX_WEIGHT, step=0.01,
                    tooltip="How much the picture counts where no axis changes it: 0 is your words alone, 1 the most. "
                    "With image delta -3 to 3.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False,
                    tooltip="Where painting starts, the same for all cells unless an axis changes it. Connect the seed "
                    "output to the sampler.",
                ),
                io.Int.Input(
                    "layer", default=0, min=-37, max=0, advanced=True,
                    tooltip="Which hidden state of Qwen3-VL to take, counted from the end; 0 lets the method choose "
                    "(-6 for the modes called blend, else -2).",
                ),
                io.Combo.Input(
                    "tokens", options=list(FIELDS["tokens"].choices), default="all", advanced=True,
                    tooltip="Which of Qwen3-VL's tokens are mixed in, as on Select VL Tokens; aligned needs all or "
                    "text.",
                ),
                io.Int.Input(
                    "downsample", default=1, min=1, max=32, advanced=True,
                    tooltip="Average image tokens n × n. Fewer tokens leave the picture a smaller share beside the "
                    "words. Not used by aligned and by the modes.",
                ),
                io.Combo.Input(
                    "space", options=list(FIELDS["space"].choices), default="dit", advanced=True,
                    tooltip="dit: mix as Z-Image sees the tokens. raw: plain mixture, in which large tokens win. "
                    "slerp: along the arc between both.",
                ),
                io.Combo.Input(
                    "outlier_mode", options=list(FIELDS["outlier_mode"].choices), default="none", advanced=True,
                    tooltip="What becomes of dimensions that spread far from Z-Image's own, as on Mask Outlier "
                    "Dimensions, over all selected tokens.",
                ),
                io.Float.Input(
                    "outlier_threshold", default=10.0, min=1.0, max=1000.0, step=0.5, advanced=True,
                    tooltip="A dimension is an outlier if its spread differs by more than this factor.",
                ),
                io.Combo.Input(
                    "normalization", options=list(FIELDS["normalization"].choices), default="none", advanced=True,
                    tooltip="Gives VL states the scale of Z-Image's own, as on Normalize VL Embeddings.",
                ),
                budget_input(),
                Reference.Input(
                    "reference", optional=True,
                    tooltip="What normalization and outliers compare with, from Reference Statistics. Measured on the "
                    "clip if it is needed and not connected.",
                ),
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
        outlier_threshold=None, normalization=None, images: dict | None = None,
    ) -> bool | str:
        """Refuse lists and settings that do not go together before any model runs; what is wired in is seen later.

        The host hands over sockets that grow as well, whether asked for or not.
        """
        axes = [(columns, column_values), (rows, row_values), (pages, page_values)]
        base = {
            "method": method, "alpha": alpha, "layer": layer, "tokens": tokens, "downsample": downsample,
            "space": space, "outlier_mode": outlier_mode, "outlier_threshold": outlier_threshold,
            "normalization": normalization,
        }
        if None in (seed, *base.values(), *(part for axis in axes for part in axis)):
            return True
        try:
            _plan(axes, seed, base)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, clip, vision, prompt: str, columns: str = "alpha", column_values: str = "0.2:0.8:0.2",
        rows: str = "layer", row_values: str = "-2, -6", pages: str = NO_AXIS, page_values: str = "",
        method: str = "aligned", alpha: float = 0.5, seed: int = 0, layer: int = 0, tokens: str = "all",
        downsample: int = 1, space: str = "dit", outlier_mode: str = "none", outlier_threshold: float = 10.0,
        normalization: str = "none", image_tokens: int = 1024, images: dict | None = None, reference=None,
    ) -> io.NodeOutput:
        base = {
            "method": method, "alpha": alpha, "layer": layer, "tokens": tokens, "downsample": downsample,
            "space": space, "outlier_mode": outlier_mode, "outlier_threshold": outlier_threshold,
            "normalization": normalization,
        }
        plan = _plan([(columns, column_values), (rows, row_values), (pages, page_values)], seed, base)
        family = text_encoder.check_text_clip(clip, klein=True)
        measured = references_of(reference, family)
        if family.stacked:
            _check_stacked(plan, family)
        given = references.collect(images, "", None)
        if not given:
            raise ValueError("images: a sweep needs at least one picture, got none. Connect an image.")
        lines = [plan.describe()]
        seen = muted = None
        if plan.layers:
            encoders.check_widths(clip, vision)
            layers = family.layers if family.stacked else plan.layers
            seen, muted, notes = references.read(
                vision, given, prompt, list(layers), mute=plan.needs_muted, budget=image_tokens, name="vision",
                family=family,
            )
            twice = " and once more with the picture muted" if plan.needs_muted else ""
            lines += [*notes, f"read once{twice}, layers {', '.join(map(str, layers))}"]
            if family.stacked:
                lines.append(f"{family.name}: its layers side by side, each mixed for itself; layer is not used")
        text = text_encoder.encode_text(clip, prompt)
        check_conditioning(text, "clip")
        if plan.needs_reference and reference is None:
            measured, origin = calibration.measure_layers(clip)
            lines.append(f"reference statistics {origin}")
        mixed = []
        for cell in plan.unique:
            memory.check_interrupted()
            mixed.append([_cell_entry(entry, cell, seen, muted, measured, family) for entry in text])
        labels = [cell.label for cell in plan.unique]
        lines += [f"{number}. {label}" for number, label in enumerate(labels, 1)]
        seeds = [cell.seed for cell in plan.unique]
        return io.NodeOutput(mixed, seeds, labels, plan.to_json(), ui=report(lines))


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
        ValueError: for an axis over layers, or Z-Image's own arithmetic in some cell.
    """
    if any(axis.name == "layer" for axis in plan.axes):
        raise ValueError(
            f"layer: makes no difference with {family.name}, which always reads {family.describe_layers()}. Choose "
            f"another axis, or {NO_AXIS} for rows."
        )
    for cell in plan.cells:
        if cell.settings.method == PUBLISHED and not cell.words_only:
            raise ValueError(
                f"method: {PUBLISHED} is Z-Image's (it scales to the spread of its layer -2), got a text encoder of "
                f"{family.name}. Choose another method. In the cell {cell.label}."
            )


def _cell_entry(
    entry: Entry, cell: Cell, seen: VLStates | None, muted: VLStates | None,
    measured: Sequence[ReferenceStatistics | None], family: Family,
) -> Entry:
    """What is painted from for one cell."""

    def act(states: Tensor, layout: TokenLayout | None, index: int) -> tuple[Tensor, TokenLayout | None, str]:
        settings, append_layer = cell.settings, None
        if family.stacked and seen is not None:  # settings count layers from the end
            append_layer = family.layers[index] - seen.num_layers - 1
            settings = replace(settings, layer=append_layer)
        return settings.apply(states, layout, seen, muted, measured[index], append_layer)

    try:
        states, layout, _ = steer_layers(entry[0], layout_of(entry), family, act, words=words_of(entry))
    except ValueError as error:
        raise ValueError(f"{error} In the cell {cell.label}.") from error
    return attend_words(repack(entry, states, layout))
