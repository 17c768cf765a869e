"""The pictures of a sweep on labelled pages."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io

from ..vl_core.pictures import split_batch
from ..vl_core.reports.grid import draw_grid, pictures_by_id
from ..vl_core.reports.judge import Sentences
from ..vl_core.states.counts import counted
from ..vl_core.steering.sweep import Plan
from .host import memory
from .host.judging import scores_of
from .node import Node
from .widgets import FOLLOW, judge_input, node_schema, theme_of, theme_options, with_pictures

LONGEST_TITLE = 2000  # letters


class ZImageVLGrid(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLGrid",
            display_name="Sweep Grid",
            description="The pictures of a sweep as a labelled table, below the reference and your words alone.",
            search_aliases=["xy plot", "image grid", "contact sheet", "compare pictures"],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="Everything that was painted from the sweep, from VAE Decode."),
                io.String.Input("plan", force_input=True, tooltip="What each picture is. From Sweep Settings."),
                io.Image.Input(
                    "reference", optional=True, tooltip="The reference pictures, to see them beside the results."
                ),
                io.Int.Input(
                    "cell_size", default=0, min=0, max=16384,
                    tooltip="Longest side of a picture in the grid, in pixels; 0 keeps full size, pixel for pixel.",
                ),
                io.String.Input("title", default="", tooltip="Written above every page, such as the prompt."),
                io.Combo.Input(
                    "theme", options=theme_options(), default=FOLLOW, advanced=True,
                    tooltip="Colours of the page: those of ComfyUI's theme, dark on white, or light on dark grey.",
                ),
                judge_input(),
                io.String.Input(
                    "prompt", default="", optional=True, advanced=True,
                    tooltip="What was to be painted, for the judge to look for; empty: the reference's look only.",
                ),
            ],
            outputs=[io.Image.Output(display_name="pages")],
        )

    @classmethod
    def execute(
        cls, images, plan, reference=None, cell_size=(0,), title=("",), theme=(FOLLOW,), judge=None,
        prompt=("",),
    ) -> io.NodeOutput:
        planned = Plan.from_json(plan[0])
        if len(title[0]) > LONGEST_TITLE:
            raise ValueError(f"title: expected at most {LONGEST_TITLE} letters, got {len(title[0])}. Shorten it.")
        painted, references = split_batch(images), split_batch(reference or [])
        by_id = pictures_by_id(planned, painted)
        notes, said = {}, []
        if judge and judge[0] is not None:
            shown = references[0] if references else None
            found, said = scores_of(judge[0], painted, prompt[0], shown, Sentences())
            notes = {cell.id: _in_words(one) for cell, one in zip(planned.unique, found, strict=True)}
        drawn = draw_grid(
            planned, by_id, references, cell_size=cell_size[0] or None, title=title[0], theme=theme_of(theme[0]),
            notes=notes, check=memory.check_interrupted,
        )
        pages = torch.from_numpy(np.stack(drawn.pages)).float() / 255
        height, width = pages.shape[1:3]
        size = f"{len(pages)} page{'s' if len(pages) > 1 else ''} of {width}×{height} pixels"
        head = f"{counted(len(planned.cells), 'picture')} side by side."
        told = [head, planned.describe(), size]
        if notes:
            told.append("Below each picture: how likely Qwen3-VL says yes, 0 to 1.")
            told += ["Of the reference it says:", *said] if said else []
        return io.NodeOutput(pages, ui=with_pictures("\n".join(told), pages, cls))


def _in_words(scores: dict[str, float]) -> str:
    """Scores as they stand below a picture."""
    return "\n".join(f"{name} {value:.2f}" for name, value in scores.items())
