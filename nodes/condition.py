"""Picture and prompt in, CONDITIONING out: the one node most people need."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..vl_core import TokenLayout
from ..vl_core.adapters.picture_adapter import PictureAdapter
from ..vl_core.stages.delta import MAX_WEIGHT
from ..vl_core.states.families import Family
from ..vl_core.states.stacks import steer_layers
from ..vl_core.steering.modes import MODES, ModeSettings, condition
from ..vl_core.steering.recipes import Recipe, load_recipes
from . import references, told, widgets
from .adapter import NO_FILE, load_adapter
from .entries import Entry, attend_words, check_conditioning, layout_of, repack, timed, words_of
from .host import calibration, encoders, folders, text_encoder
from .widgets import Adapter, budget_input, encoder_input, node_schema, pictures_input, prompt_input, report

NO_RECIPE = "none"
PUBLISHED = "blend as published"


class ZImageVLCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLCondition",
            display_name="Z-Image Vision Conditioning",
            description="Let a reference picture steer Z-Image: connect both encoders, a picture and your prompt.",
            search_aliases=["ip adapter", "reference image", "image prompt", "redux", "style reference"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="Z-Image's text encoder: Load CLIP, qwen_3_4b, type lumina2. Or FLUX.2 klein's: type "
                    "flux2.",
                ),
                encoder_input("vision"),
                pictures_input(),
                prompt_input(),
                io.Float.Input(
                    "strength", default=1.0, min=-MAX_WEIGHT, max=MAX_WEIGHT, step=0.01,
                    tooltip="How much the picture counts, 0 to 1; automatic and describe take up to 1.5. 0 is your "
                    "words alone, exactly; higher follows the picture more. image delta and picture adapter take -3 to "
                    "3: below 0 pushes away from the picture.",
                ),
                io.Combo.Input(
                    "mode", options=[*told.RANGES, *MODES], default=told.AUTOMATIC,
                    tooltip="automatic: picture adapter if one is given and knows such pictures, else describe. "
                    "describe: Qwen3-VL puts the picture's look into words after your prompt. picture adapter: the "
                    "same without words, by a fit on a folder of pictures. blend aligned: mix into each word what it "
                    "means beside the picture. append picture: leave the words as they are and put the picture's "
                    "tokens after them. blend and append: both, the words half as much. blend as published: the "
                    "research note's arithmetic, for comparison. image delta: add to each word what the picture did "
                    "to it.",
                ),
                io.Int.Input(
                    "layer", default=0, min=-37, max=0, advanced=True,
                    tooltip="Which hidden state of Qwen3-VL to take, counted from the end; 0 lets the mode choose (-6 "
                    "for the blends, else -2).",
                ),
                budget_input(),
                io.Combo.Input(
                    "recipe", options=[NO_RECIPE, *load_recipes(folders.recipe_folder())[0]], default=NO_RECIPE,
                    optional=True,
                    tooltip="What to take from the picture, in plain words. A recipe sets mode, layer and timing in "
                    "place of the inputs here and scales the strength; the numbers are shown on the node.",
                ),
                widgets.weights_input(),
                widgets.combine_input(),
                widgets.masks_input(),
                widgets.mask_use_input(),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="When the picture starts to act, as a share of the steps. Your words alone before.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="When the picture stops acting. Your words alone after.",
                ),
                Adapter.Input(
                    "adapter", optional=True, tooltip="From Fit Picture Adapter, for mode picture adapter or automatic."
                ),
                io.Combo.Input(
                    "adapter_file", options=[NO_FILE, *folders.saved_adapters()], default=NO_FILE, optional=True,
                    advanced=True,
                    tooltip="An adapter in models/zimage_vl_adapters, if none is connected. Press R to see new ones.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def validate_inputs(
        cls, strength: float = 0.0, mode: str = told.AUTOMATIC, recipe: str = NO_RECIPE, images: dict | None = None,
        masks: dict | None = None,
    ) -> bool | str:
        """Which strengths are allowed depends on the mode; the host knows only one range for all.

        It hands over sockets that grow as well, whether asked for or not.
        """
        try:
            chosen = _find_recipe(recipe)[0]
            told.check_mode(chosen.mode if chosen else mode, strength * (chosen.scale if chosen else 1))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, recipe: str = NO_RECIPE, adapter_file: str = NO_FILE, **_) -> str:
        """What a recipe and an adapter's file say now: they may have been changed since the last run."""
        path = folders.saved_adapters().get(adapter_file)
        stamp = path.stat().st_mtime_ns if path else ""
        return f"{load_recipes(folders.recipe_folder())[0].get(recipe)!r} {stamp}"

    @classmethod
    def execute(
        cls, clip, vision, prompt: str, strength: float = 1.0, mode: str = told.AUTOMATIC, layer: int = 0,
        image_tokens: int = 1024, images: dict | None = None, recipe: str = NO_RECIPE, weights: str = "",
        combine: str = widgets.JOINED, masks: dict | None = None, mask_use: str = widgets.CROP,
        start_percent: float = 0.0, end_percent: float = 1.0, adapter: PictureAdapter | None = None,
        adapter_file: str = NO_FILE,
    ) -> io.NodeOutput:
        chosen, lines = _find_recipe(recipe)
        if chosen:
            lines.append(chosen.describe(strength))
            mode, layer, strength = chosen.mode, chosen.layer, chosen.scale * strength
            start_percent, end_percent = chosen.start_percent, chosen.end_percent
        told.check_mode(mode, strength)
        if not start_percent < end_percent:
            raise ValueError(f"start_percent: expected less than end_percent ({end_percent}), got {start_percent}.")
        family = text_encoder.check_text_clip(clip, klein=True)
        if family.stacked and mode == PUBLISHED:
            raise ValueError(
                f"mode: {PUBLISHED} is Z-Image's (it scales to the spread of its layer -2), got a text encoder of "
                f"{family.name}. Choose another mode."
            )
        given = references.collect(images, weights, masks) if strength else []
        if not given:
            text = text_encoder.encode_text(clip, prompt)
            check_conditioning(text, "clip")
            return io.NodeOutput(text, ui=report(lines, f"Words only: {_why_no_picture(strength, images)}."))
        if mode in told.RANGES:  # look first: it checks the pictures before the text encoder runs
            if adapter is None and adapter_file != NO_FILE and mode != told.DESCRIBE:
                adapter = load_adapter(adapter_file, "adapter_file")
            mix, notes = told.choose(
                mode, clip, vision, given, prompt, strength, family=family, adapter=adapter, mask_use=mask_use,
                budget=image_tokens,
            )
            if combine != widgets.JOINED and len(given) > 1:
                notes.append(f"combine: {combine} is not used by this mode")
        else:
            mix, notes = _blended(
                mode, clip, vision, given, prompt, strength, chosen, layer, family, combine, mask_use, image_tokens
            )
        lines += notes
        text = text_encoder.encode_text(clip, prompt)
        check_conditioning(text, "clip")
        entries = []
        for entry in text:
            mixed, done = mix(entry)
            entries += timed(entry, mixed, start_percent, end_percent)
            lines.append(done)
        if (start_percent, end_percent) != (0, 1):
            lines.append(f"acts from {start_percent:.0%} to {end_percent:.0%} of the steps, words only outside")
        return io.NodeOutput(entries, ui=report(lines))


def _blended(
    mode: str, clip, vision, given: list[references.Reference], prompt: str, strength: float, chosen: Recipe | None,
    layer: int, family: Family, combine: str, mask_use: str, budget: int,
) -> tuple[told.Mix, list[str]]:
    """What a mode that mixes Qwen3-VL's own states makes of a text entry, and lines for the node."""
    settings, show, options = ModeSettings(), None, {}
    if chosen:
        settings, show, options = chosen.settings, chosen.show, {"system_prompt": chosen.system_prompt}
    layers = list(family.layers) if family.stacked else [layer or MODES[mode].layer]
    captured = layers if family.stacked else list(MODES[mode].layers(layers[0]))
    encoders.check_widths(clip, vision)
    seen, muted, lines = references.read(
        vision, given, prompt, captured, combine, mask_use, mute=MODES[mode].needs_muted, show=show, budget=budget,
        name="vision", family=family, **options,
    )
    measured = [None] * len(layers)
    if settings.needs_reference:
        measured, origin = calibration.measure_layers(clip)
        lines.append(f"reference statistics {origin}")
    if family.stacked:
        place = f" in place of layer {layer}" if layer else ""
        lines.append(
            f"{family.name}: {family.describe_layers()}{place}, each mixed for itself; padding stays as it is"
        )

    def act(part: Tensor, own: TokenLayout | None, index: int) -> tuple[Tensor, TokenLayout | None, str]:
        return condition(
            part, own, seen, layers[index], mode, strength, muted=muted, settings=settings, reference=measured[index],
            append_layer=layers[index] if family.stacked else None,
        )

    def mix(entry: Entry) -> tuple[Entry, str]:
        states, layout, done = steer_layers(entry[0], layout_of(entry), family, act, words=words_of(entry))
        return attend_words(repack(entry, states, layout)), "\n".join(done)

    return mix, lines


def _find_recipe(name: str) -> tuple[Recipe | None, list[str]]:
    """The recipe of a name, None for none, and a line for every file that had to be skipped.

    Raises:
        ValueError: if there is none of that name; the message lists those there are.
    """
    recipes, problems = load_recipes(folders.recipe_folder())
    if name == NO_RECIPE:
        return None, problems
    if name not in recipes:
        raise ValueError(
            f"recipe: expected one of {', '.join([NO_RECIPE, *recipes])}, got {name!r}. Own recipes belong into "
            f"{folders.recipe_folder()}. {' '.join(problems)}".strip()
        )
    return recipes[name], problems


def _why_no_picture(strength: float, images: dict | None) -> str:
    if strength == 0:
        return "strength 0"
    connected = any(image is not None for image in (images or {}).values())
    return "every weight is 0" if connected else "no picture connected"
