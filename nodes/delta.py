"""Add what the picture did to each word to Z-Image's own text conditioning."""

from __future__ import annotations

from comfy_api.latest import io

from ..vl_core.delta import MAX_WEIGHT, baseline_picture, image_delta
from ..vl_core.pictures import split_batch
from . import host
from .common import budget_input, encoder_input, layer_input, node_schema, pictures_input, prompt_input, report
from .conditioning import check_conditioning, layout_of, repack


class ZImageVLDelta(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLDelta",
            display_name="Image Delta",
            description="Add to each word what the picture did to it: read with the picture, minus read without.",
            search_aliases=["difference", "image prompt", "negative reference", "push away", "style reference"],
            inputs=[
                encoder_input(),
                pictures_input(),
                prompt_input(),
                io.Conditioning.Input(
                    "text", tooltip="Z-Image's own encoding of the same prompt, from CLIP Text Encode; what is changed."
                ),
                io.Float.Input(
                    "weight", default=1.0, min=-MAX_WEIGHT, max=MAX_WEIGHT, step=0.05,
                    tooltip="How much of the difference is added: 1 is what the picture did, more exaggerates it. 0 is "
                    "the text alone; negative pushes away from the picture.",
                ),
                layer_input(-2),
                io.Combo.Input(
                    "baseline", options=["muted", "absent", "grey", "blurred"], default="muted", advanced=True,
                    tooltip="What the picture is compared with. muted: its places left empty, so only what it shows "
                    "counts. absent: the prompt alone. grey: an even grey picture. blurred: its own blurred colours, "
                    "so shapes and textures count and the light at large does not.",
                ),
                io.Boolean.Input(
                    "remove_prompt_direction", default=False, advanced=True,
                    tooltip="Leave out what only makes a word stronger or weaker and keep what turns its meaning.",
                ),
                io.Int.Input(
                    "rank", default=0, min=0, max=256, advanced=True,
                    tooltip="Keep only this many strongest directions of the difference; 0 keeps all. 1 moves every "
                    "word along one line, an overall mood; more lets each word go its own way.",
                ),
                budget_input(),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, encoder, prompt: str, text, weight: float = 1.0, layer: int = -2, baseline: str = "muted",
        remove_prompt_direction: bool = False, rank: int = 0, image_tokens: int = 1024, images: dict | None = None,
    ) -> io.NodeOutput:
        check_conditioning(text, "text")
        given = {name: image for name, image in (images or {}).items() if image is not None}
        if not given or weight == 0:
            reason = "weight 0" if given else "no picture connected"
            return io.NodeOutput(text, ui=report(f"Words only: {reason}."))
        seen, notes = host.encode_vision(encoder, given, prompt, [layer], budget=image_tokens)
        plus, layout = seen.at(layer)
        blind = _without(encoder, given, prompt, layer, image_tokens, baseline)
        zero, zero_layout = blind.at(layer)
        entries, lines = [], [*notes, f"{layout.describe()}; layer {layer}; baseline {baseline}"]
        for entry in text:
            states, info = image_delta(
                entry[0], plus, zero, weight, text_layout=layout_of(entry), vl_layout=layout,
                baseline_layout=zero_layout, remove_prompt_direction=remove_prompt_direction, rank=rank,
            )
            entries.append(repack(entry, states, info.layout))
            lines.append(info.describe())
        return io.NodeOutput(entries, ui=report(lines))


def _without(encoder, images: dict, prompt: str, layer: int, budget: int, baseline: str):
    """The same reading without what the pictures say."""
    if baseline == "absent":
        images = {}
    elif baseline != "muted":
        batches = {name: split_batch(image) for name, image in images.items()}
        images = {
            f"{name}.{index}": baseline_picture(picture, baseline, name)
            for name, batch in batches.items() for index, picture in enumerate(batch)
        }
    return host.encode_vision(encoder, images, prompt, [layer], budget=budget, mute=baseline == "muted")[0]
