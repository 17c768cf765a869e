"""What every node shares: the category, our wire types, inputs that recur, and the report on the node."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..vl_core.reports.plots import THEMES, ThemeName
from ..vl_core.steering.settings import FIELDS, Settings
from .host import folders

CATEGORY = "model/conditioning/z-image vl"

Qwen3VL = io.Custom("QWEN3VL")
Reference = io.Custom("VL_REFERENCE")
Adapter = io.Custom("VL_ADAPTER")
Space = io.Custom("VL_SPACE")
LearnedLook = io.Custom("VL_LOOK")


def node_schema(**fields) -> io.Schema:
    """A schema with what all our nodes share: the menu they are in, and reports that come back with cached results."""
    return io.Schema(category=CATEGORY, has_intermediate_output=True, **fields)


def setting_input(name: str, tooltip: str = "", id: str = "", **more: Any) -> Any:
    """A widget for a setting of the ways, with that setting's kind, default, bounds and choices.

    Args:
        tooltip: the setting's own sentence unless given. id: the input's, the setting's name unless given.
    """
    field, id = FIELDS[name], id or name
    shown = {"default": getattr(Settings, name), "tooltip": tooltip or field.meaning, **more}
    if field.kind is bool:
        return io.Boolean.Input(id, **shown)
    if field.kind is str:
        return io.Combo.Input(id, **{"options": list(field.choices()), **shown})
    kind = io.Int if field.kind is int else io.Float
    return kind.Input(id, **{"min": field.low, "max": field.high, **shown})


def encoder_input(id: str = "encoder") -> io.MultiType.Input:
    return io.MultiType.Input(
        id, [Qwen3VL, io.Clip],
        tooltip="What looks at the picture: Load Qwen3-VL, or Load CLIP (type lumina2) with a Qwen3-VL-4B file.",
    )


def judge_input() -> io.MultiType.Input:
    return io.MultiType.Input(
        "judge", [Qwen3VL, io.Clip], optional=True,
        tooltip="A Qwen3-VL that writes below each picture how far the prompt and the reference's look are in it.",
    )


def pictures_input(alone: str = "with none the prompt is read alone") -> io.Autogrow.Input:
    """Sockets for pictures; ``alone`` says what comes of none."""
    return io.Autogrow.Input(
        "images",
        template=io.Autogrow.TemplatePrefix(
            io.Image.Input("image", tooltip="A reference picture. A batch counts as several."), "image", min=0, max=16
        ),
        tooltip=f"Reference pictures. Connect one and a further socket appears; {alone}.",
    )


def prompt_input() -> io.String.Input:
    return io.String.Input(
        "prompt", multiline=True, dynamic_prompts=True,
        tooltip="What to paint. The picture is read together with these words.",
    )


def layer_input(default: int) -> io.Int.Input:
    return io.Int.Input(
        "layer", default=default, min=-37, max=-1, advanced=True,
        tooltip="Which layer to take, counted from the end. Z-Image was trained on -2; -6 and -8 are more abstract.",
    )


def budget_input() -> io.Int.Input:
    return setting_input(
        "image_tokens", "Most tokens a picture may take (32 × 32 pixels each). Larger pictures are scaled down; fewer "
        "tokens encode faster and carry less detail.", advanced=True,
    )


def system_prompt_input() -> io.String.Input:
    return io.String.Input(
        "system_prompt", default="", multiline=True, optional=True, advanced=True,
        tooltip="Tells Qwen3-VL what to look for, e.g. 'Attend to the lighting.' Empty is Z-Image's own template.",
    )


def sinks_input() -> io.Combo.Input:
    return setting_input(
        "sinks", "exclude: leave attention sinks (tokens hundreds of times larger than the rest) as they are. "
        "include: treat them like any token.", advanced=True,
    )


def layer_choice() -> io.Int.Input:
    return setting_input(
        "layer", "Which hidden state of Qwen3-VL to take, counted from the end; 0 lets the way choose.", advanced=True
    )


def text_clip_input() -> io.Clip.Input:
    return io.Clip.Input(
        "clip",
        tooltip="Z-Image's text encoder: Load CLIP, qwen_3_4b, type lumina2. Or FLUX.2 klein's: type flux2.",
    )


def words_input() -> io.String.Input:
    return io.String.Input(
        "words", optional=True, force_input=True,
        tooltip="Words about the picture, from Describe Picture or your own: then nothing is written.",
    )


def window_inputs(before: str, end: str, **more: Any) -> list:
    """When the picture acts: a sentence about the time before, and one about the end."""
    return [
        setting_input(
            "start_percent", f"When the picture starts to act, as a share of the steps. {before}", step=0.01,
            advanced=True, **more,
        ),
        setting_input("end_percent", f"When the picture stops acting. {end}", step=0.01, advanced=True, **more),
    ]


def with_pictures(text: str, pictures: Tensor | None, cls: type[io.ComfyNode]) -> dict:
    """What a node shows: words, and pictures if there are any."""
    shown = ui.PreviewImage(pictures, cls=cls).as_dict() if pictures is not None else {}
    return {**shown, **ui.PreviewText(text).as_dict()}


def report(*parts: str | Iterable[str]) -> ui.PreviewText:
    """Lines shown on the node after it ran."""
    lines = [part if isinstance(part, str) else "\n".join(part) for part in parts]
    return ui.PreviewText("\n".join(line for line in lines if line))


Follow = Literal["as ComfyUI"]
FOLLOW: Follow = "as ComfyUI"  # the colours of plots and pages: those of the theme that is chosen in ComfyUI's settings


def theme_options() -> list[str]:
    return [FOLLOW, *THEMES]


def theme_of(name: Follow | ThemeName) -> ThemeName:
    """The theme of plots that an option names."""
    return ("light" if folders.light_theme() else "dark") if name == FOLLOW else name


BLANK = (1, 64, 64, 3)  # what a node without its plots hands on


def draw(figures: Callable[[], np.ndarray]) -> tuple[Tensor | None, str]:
    """Plots as an IMAGE ``(N, H, W, 3)`` in [0, 1]; where nothing can be drawn, None and how to mend that.

    Args:
        figures: draws them, uint8 ``(N, H, W, 3)``.
    """
    try:
        return torch.from_numpy(figures()).float() / 255, ""
    except ImportError as error:  # only what is needed to draw is imported that late
        python = Path(sys.executable)
        portable = any("python_embed" in folder for folder in python.parts)
        shown = r".\python_embeded\python.exe" if portable else f'"{python}"'
        where = "in the folder of ComfyUI portable" if portable else "in a terminal"
        return None, (
            f"Plots are left out: {error}. To have them, run {shown} -m pip install matplotlib {where}, then start "
            "ComfyUI again."
        )


class Names(list):
    """Options of a list that also takes what it does not show, such as names of earlier versions.

    ComfyUI asks whether a value is ``in`` them and marks the input that holds another. What ``validate_inputs`` refuses
    is marked at every input that it looks at.

    Attributes:
        also: whether a name that is not shown is taken.
    """

    also: Callable[[str], bool] = staticmethod(lambda name: False)

    @classmethod
    def taking(cls, shown: Iterable[str], find: Callable[[str], Any]) -> Names:
        """The names ``shown``, and all that ``find`` knows; it raises ValueError for the others."""

        def also(name: str) -> bool:
            try:
                find(name)
            except ValueError:
                return False
            return True

        names = cls(shown)
        names.also = also
        return names

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and self.also(name))


def known(otherwise: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For ``validate_inputs`` and ``fingerprint_inputs``, under ``@classmethod``: what is not known yet is not judged.

    ComfyUI hands over None for a widget that is wired to another node, nothing for one that is missing, and growing
    sockets whether asked for or not. A parameter with a default falls back to it; where one without is not known, the
    answer is ``otherwise``.

    Args:
        otherwise: True for ``validate_inputs``, any constant for ``fingerprint_inputs``.

    Raises:
        ValueError: from ``validate_inputs``, if a parameter without a default is missing and the function has something
            to say about an empty one: ComfyUI shows what a validation returns beside inputs that are there only.
    """

    def decorate(judge: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(judge)
        named = [one for one in list(signature.parameters.values())[1:] if one.kind is not one.VAR_KEYWORD]
        required = [one.name for one in named if one.default is one.empty]

        @functools.wraps(judge)
        def judged(cls: type, *values: Any, **inputs: Any) -> Any:
            inputs = dict(zip([one.name for one in named], values, strict=False)) | inputs
            given = {one.name: inputs[one.name] for one in named if inputs.get(one.name) is not None}
            missing = [name for name in required if name not in inputs]
            if missing and otherwise is True:
                answer = judge(cls, **{name: "" for name in required} | given)
                if isinstance(answer, str):
                    raise ValueError(answer)
            return judge(cls, **given) if set(required) <= set(given) else otherwise

        # ComfyUI reads here which inputs to hand over, and checks ranges and lists of all others itself.
        optional = [one.replace(default=None) if one.default is one.empty else one for one in named]
        judged.__signature__ = signature.replace(parameters=[*list(signature.parameters.values())[:1], *optional])  # type: ignore[attr-defined]
        return judged

    return decorate


def weights_input() -> io.String.Input:
    return io.String.Input(
        "weights", default="", optional=True, advanced=True,
        tooltip="How much each picture counts, in order: 1, 0.5. Empty: all alike. 0 leaves a picture out.",
    )


def combine_input() -> io.Combo.Input:
    return setting_input(
        "combine", "What several pictures become. concat: read together. The others read each alone: their mean, sum, "
        "difference, or the strongest per word.", optional=True, advanced=True,
    )


def masks_input() -> io.Autogrow.Input:
    return io.Autogrow.Input(
        "masks",
        template=io.Autogrow.TemplatePrefix(
            io.Mask.Input("mask", tooltip="What counts of the picture with the same number, in white."), "mask", min=0,
            max=16,
        ),
        optional=True,
        tooltip="What counts of each picture: mask0 belongs to image0. Pictures without one count whole.",
    )


def mask_use_input() -> io.Combo.Input:
    return setting_input(
        "mask_use", "crop to the box: Qwen3-VL sees the box around the white part. keep covered tokens: it sees all, "
        "only tokens under the white go on.", optional=True, advanced=True,
    )
