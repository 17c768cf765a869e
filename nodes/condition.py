"""Picture and prompt in, CONDITIONING out: the one node most people need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..vl_core.adapters.picture_adapter import PictureAdapter
from ..vl_core.looks.look import Look
from ..vl_core.states.fields import quoted
from ..vl_core.steering.recipes import Recipe, load_recipes
from ..vl_core.steering.settings import (
    AUTOMATIC,
    CROP,
    DEFAULT_TAKE,
    JOINED,
    OPEN_BLEND,
    Settings,
)
from ..vl_core.steering.steer import steer
from ..vl_core.steering.takes import take_names
from ..vl_core.steering.way import Given, Way, find_way, ways
from . import widgets
from .adapter import NO_FILE, load_adapter
from .entries import check_conditioning
from .host import folders
from .look import look_file_input, look_input, pick_look
from .node import Node
from .steering import ComfyHost, collect, entries_of
from .widgets import Adapter, Names, budget_input, encoder_input, node_schema, pictures_input, prompt_input, report

SLIDER = (0.0, 1.5)
NO_RECIPE = "none"  # what version 0.1 called no recipe: now the default take


def offered_ways() -> list[str]:
    """The ways that this node has inputs for."""
    return [name for name in ways() if name != OPEN_BLEND]


def strength_ranges() -> dict[str, tuple[float, float]]:
    """How far the slider goes with each way: to ``SLIDER``, further where the way takes more."""
    return {
        name: (min(SLIDER[0], way.low), max(SLIDER[1], way.high)) for name, way in ways().items()
        if name in offered_ways()
    }


def listed_recipes() -> list[str]:
    """Takes, then recipes of one's own; those of version 0.1 can still be named."""
    found = load_recipes(folders.recipe_folder())[0]
    return [*take_names(), *(name for name, recipe in found.items() if not recipe.instead)]


class ZImageVLCondition(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLCondition",
            display_name="Z-Image Vision Conditioning",
            description="Let a reference picture steer Z-Image: connect both encoders, a picture and your prompt.",
            search_aliases=["ip adapter", "ipadapter", "reference", "style", "image prompt", "redux", "revision"],
            inputs=[
                widgets.text_clip_input(),
                encoder_input("vision"),
                pictures_input("with none you get your words alone"),
                prompt_input(),
                widgets.setting_input(
                    "strength", "How much the picture counts. 0 is your words alone, 1 is all of it.", step=0.01,
                    display_mode=io.NumberDisplay.slider, extra_dict={"ranges": strength_ranges()},
                ),
                io.Combo.Input(
                    "mode", display_name="way", options=Names.taking(offered_ways(), named_way), default=AUTOMATIC,
                    tooltip="How it travels. automatic takes a learned look, else a good picture adapter, else "
                    "Qwen3-VL's words. The help page tells them all.",
                ),
                widgets.layer_choice(),
                budget_input(),
                io.Combo.Input(
                    "recipe", display_name="take", options=Names.taking(listed_recipes(), find_recipe),
                    default=DEFAULT_TAKE, optional=True,
                    tooltip="What to take: the look is all but what the picture shows, everything includes that. "
                    "composition was not shown to work.",
                ),
                widgets.weights_input(),
                widgets.combine_input(),
                widgets.masks_input(),
                widgets.mask_use_input(),
                *widgets.window_inputs("Your words alone before.", "Your words alone after.", optional=True),
                Adapter.Input(
                    "adapter", optional=True,
                    tooltip="From Fit Picture Adapter, for the ways picture adapter and automatic.",
                ),
                io.Combo.Input(
                    "adapter_file", options=[NO_FILE, *folders.saved_adapters()], default=NO_FILE, optional=True,
                    advanced=True,
                    tooltip="An adapter in models/zimage_vl_adapters, if none is connected. Press R to see new ones.",
                ),
                look_file_input(),
                widgets.words_input(),
                look_input("From Learn Look, for the way learned look; automatic prefers it. Goes before the file."),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def fingerprint_inputs(
        cls, recipe: Any = None, adapter_file: Any = None, look_file: Any = None, **_: Any
    ) -> str:
        """What a recipe and the files say now: they may have been changed since the last run."""
        files = folders.stamp(
            lambda: [folders.saved_adapters().get(adapter_file), folders.saved_looks().get(look_file)]
        )
        return f"{load_recipes(folders.recipe_folder())[0].get(recipe)!r} {files}"

    @classmethod
    def execute(
        cls, clip, vision, prompt: str, strength: float = 1.0, mode: str = AUTOMATIC, layer: int = 0,
        image_tokens: int = 1024, images: dict | None = None, recipe: str = DEFAULT_TAKE, weights: str = "",
        combine: str = JOINED, masks: dict | None = None, mask_use: str = CROP, start_percent: float = 0.0,
        end_percent: float = 1.0, adapter: PictureAdapter | None = None, adapter_file: str = NO_FILE,
        look_file: str = NO_FILE, words: str | None = None, look: Look | None = None,
    ) -> io.NodeOutput:
        chosen, lines = find_recipe(recipe)
        settings = Settings() if chosen is None else chosen.settings
        if chosen is None:
            take = DEFAULT_TAKE if recipe == NO_RECIPE else recipe
            settings = replace(
                settings, way=named_way(mode).name, take=take, layer=layer, start_percent=start_percent,
                end_percent=end_percent,
            )
        else:
            lines.append(chosen.describe(strength))
        settings = replace(settings, image_tokens=image_tokens, combine=combine, mask_use=mask_use)
        settings, clamped = within(settings, strength if chosen is None else settings.strength * strength)
        host = ComfyHost(clip, vision)
        if adapter is None and adapter_file != NO_FILE and "picture adapter" in (settings.way, *settings.row.tries):
            adapter = load_adapter(adapter_file, "adapter_file")
        kept = words if words and words.strip() else None
        given = Given(adapter=adapter, look=pick_look(look, look_file), words=kept)
        references = collect(images, weights, masks) if strength else []
        outcome = steer(host, prompt, references, settings, given)
        entries = entries_of(outcome, settings.window)
        check_conditioning(entries, "clip")
        if not outcome.way:
            why = why_no_picture(settings.strength, images)
            return io.NodeOutput(entries, ui=report(f"Words only: {why}.", lines, clamped))
        if settings.window != (0, 1):
            begin, end = settings.window
            clamped.append(f"It acts from {begin:.0%} to {end:.0%} of the steps, words only outside.")
        return io.NodeOutput(entries, ui=report(outcome.report(), lines, clamped))


def named_way(mode: str) -> Way:
    """The way of a name, as this input is called.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    try:
        return find_way(mode)
    except ValueError as error:
        raise ValueError(str(error).replace("way:", "mode:", 1)) from error


def within(settings: Settings, strength: float) -> tuple[Settings, list[str]]:
    """The settings at a strength, brought into what the way takes, and a line if that changed it."""
    way = settings.row
    kept = min(max(strength, way.low), way.high)
    if kept == strength:
        return settings.at(strength), []
    taken = f"{way.low:g} to {way.high:g}, which {way.name} takes"
    return settings.at(kept), [f"Strength {strength:g} is outside {taken}: {kept:g} was used."]


def find_recipe(name: str) -> tuple[Recipe | None, list[str]]:
    """The recipe of a name, None if it names a take, and a line for every file that had to be skipped.

    Raises:
        ValueError: if there is none of that name; the message lists those there are.
    """
    recipes, problems = load_recipes(folders.recipe_folder())
    if name in (NO_RECIPE, *take_names()):
        return None, problems
    if name not in recipes:
        raise ValueError(
            f"recipe: expected one of {', '.join(listed_recipes())}, got {quoted(name)}. Own recipes belong into "
            f"{folders.recipe_folder()}. {' '.join(problems)}".strip()
        )
    return recipes[name], problems


def why_no_picture(strength: float, images: dict | None) -> str:
    if strength == 0:
        return "strength 0"
    connected = any(image is not None for image in (images or {}).values())
    return "every weight is 0" if connected else "no picture connected"
