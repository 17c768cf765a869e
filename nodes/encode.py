"""Read pictures and a prompt with Qwen3-VL and hand out its hidden states."""

from __future__ import annotations

from comfy_api.latest import io

from ..vl_core.select import SELECTIONS, select_tokens
from . import host
from .common import (
    budget_input,
    encoder_input,
    layer_input,
    node_schema,
    pictures_input,
    prompt_input,
    report,
    system_prompt_input,
)
from .conditioning import pack_states


class ZImageVLEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLEncode",
            display_name="Qwen3-VL Encode",
            description="What Qwen3-VL thinks after looking at the pictures and reading the prompt, as CONDITIONING.",
            search_aliases=["vision encode", "image to conditioning", "reference image", "ip adapter"],
            inputs=[
                encoder_input(),
                pictures_input(),
                prompt_input(),
                layer_input(-6),
                io.Combo.Input(
                    "tokens", options=list(SELECTIONS), default="all",
                    tooltip="Which tokens come out. text: the ones that match Z-Image's own encoding; prompt: your "
                    "words only; image: what each part of the picture became. Blend VL with Text (aligned) wants all "
                    "or text.",
                ),
                budget_input(),
                system_prompt_input(),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, encoder, prompt: str, layer: int = -6, tokens: str = "all", image_tokens: int = 1024,
        system_prompt: str = "", images: dict | None = None,
    ) -> io.NodeOutput:
        if tokens.startswith("image") and not any(image is not None for image in (images or {}).values()):
            raise ValueError(f"images: tokens = {tokens} needs at least one picture, got none. Connect an image.")
        if tokens == "prompt" and not prompt:
            raise ValueError("tokens: prompt leaves nothing, the prompt is empty. Write one, or choose other tokens.")
        seen, notes = host.encode_vision(
            encoder, images, prompt, [layer], system_prompt=system_prompt, budget=image_tokens
        )
        states, layout = select_tokens(*seen.at(layer), tokens)
        conditioning = pack_states(host.states_to_host(states), layout)
        found = f"{layout.describe()}; layer {layer}"
        return io.NodeOutput(conditioning, ui=report(notes, found, host.width_note(states)))
