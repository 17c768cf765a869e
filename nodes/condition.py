"""Picture and prompt in, CONDITIONING out: the one node most people need."""

from __future__ import annotations

from comfy_api.latest import io

from ..vl_core.recipes import DEFAULT_LAYERS, check_recipe, condition
from . import host
from .common import budget_input, encoder_input, node_schema, pictures_input, prompt_input, report
from .conditioning import check_conditioning, layout_of, repack


class ZImageVLCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLCondition",
            display_name="Z-Image Vision Conditioning",
            description="Let a reference picture steer Z-Image: connect both encoders, a picture and your prompt.",
            search_aliases=["ip adapter", "reference image", "image prompt", "redux", "style reference"],
            inputs=[
                io.Clip.Input("clip", tooltip="Z-Image's text encoder: Load CLIP, qwen_3_4b, type lumina2."),
                encoder_input("vision"),
                pictures_input(),
                prompt_input(),
                io.Float.Input(
                    "strength", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="How much the picture counts. 0 is your words alone, exactly; higher follows the picture "
                    "more and your words less.",
                ),
                io.Combo.Input(
                    "mode", options=list(DEFAULT_LAYERS), default="blend aligned",
                    tooltip="blend aligned: mix into each word what it means beside the picture. append picture: leave "
                    "the words as they are and put the picture's tokens after them. blend as published: the research "
                    "note's arithmetic, for comparison.",
                ),
                io.Int.Input(
                    "layer", default=0, min=-37, max=0, advanced=True,
                    tooltip="Which hidden state of Qwen3-VL to take, counted from the end; 0 lets the mode choose (-2, "
                    "or -6 as published).",
                ),
                budget_input(),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, clip, vision, prompt: str, strength: float = 0.5, mode: str = "blend aligned", layer: int = 0,
        image_tokens: int = 1024, images: dict | None = None,
    ) -> io.NodeOutput:
        check_recipe(mode, strength)
        host.check_text_clip(clip)
        layer = layer or DEFAULT_LAYERS[mode]
        wanted = strength > 0 and any(image is not None for image in (images or {}).values())
        if wanted:  # look first: it checks the pictures before either encoder runs
            host.check_widths(clip, vision)
            seen, notes = host.encode_vision(vision, images, prompt, [layer], budget=image_tokens, name="vision")
        text = host.encode_text(clip, prompt)
        check_conditioning(text, "clip")
        if not wanted:
            reason = "strength 0" if strength == 0 else "no picture connected"
            return io.NodeOutput(text, ui=report(f"Words only: {reason}."))
        entries, lines = [], list(notes)
        for entry in text:
            states, layout, done = condition(entry[0], layout_of(entry), seen, layer, mode, strength)
            entries.append(repack(entry, states, layout))
            lines.append(done)
        return io.NodeOutput(entries, ui=report(lines))
