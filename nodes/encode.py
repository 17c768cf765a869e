"""Read pictures and a prompt with Qwen3-VL and hand out its hidden states."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ..vl_core import VLStates
from ..vl_core.stages.combine import Combination
from ..vl_core.stages.mix_layers import mix_layers as weighted_mean
from ..vl_core.stages.mix_layers import parse_layers
from ..vl_core.stages.select import TokenSelection, select_tokens
from ..vl_core.states.families import GROUPS, ZIMAGE
from ..vl_core.states.stacks import stack_layers
from ..vl_core.steering.references import read_as_one
from ..vl_core.steering.settings import CROP, JOINED, Joined, Settings
from . import told, widgets
from .entries import pack_states
from .host import encoders, memory
from .node import Node
from .steering import collect


class ZImageVLEncode(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.node_schema(
            node_id="ZImageVLEncode",
            display_name="Qwen3-VL Encode",
            description="What Qwen3-VL thinks after looking at the pictures and reading the prompt, as CONDITIONING.",
            search_aliases=["vision encode", "image to conditioning"],
            inputs=[
                widgets.encoder_input(),
                widgets.pictures_input(),
                widgets.prompt_input(),
                widgets.layer_input(-6),
                widgets.setting_input(
                    "tokens", "Which tokens come out. text: those that match Z-Image's own. prompt: your words. image: "
                    "the picture's. Blends want all or text.",
                ),
                widgets.budget_input(),
                widgets.system_prompt_input(),
                widgets.weights_input(),
                widgets.combine_input(),
                widgets.masks_input(),
                widgets.mask_use_input(),
                io.String.Input(
                    "mix_layers", default="", optional=True, advanced=True,
                    tooltip="Several layers in place of one: -2, -4:0.5 is their weighted mean, each brought to unit "
                    "size first. Empty takes the layer above.",
                ),
                io.Combo.Input(
                    "family", options=list(GROUPS), default=ZIMAGE.group, optional=True, advanced=True,
                    tooltip="Which image model will paint from this. FLUX.2 klein reads three fixed layers, so layer "
                    "is not used there.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, encoder, prompt: str, layer: int = -6, tokens: TokenSelection = "all", image_tokens: int = 1024,
        system_prompt: str = "", images: dict | None = None, weights: str = "",
        combine: Joined | Combination = JOINED, masks: dict | None = None, mask_use: str = CROP,
        mix_layers: str = "", family: str = ZIMAGE.group,
    ) -> io.NodeOutput:
        chosen = encoders.pick_family(family, encoder)
        if chosen.stacked and mix_layers.strip():
            raise ValueError(
                f"mix_layers: {family} reads {chosen.describe_layers()}, expected none, got {mix_layers!r}. Empty it."
            )
        layers, shares = parse_layers(mix_layers) if mix_layers.strip() else ([layer], [1.0])
        given = collect(images, weights, masks)
        if tokens.startswith("image") and not given:
            raise ValueError(f"images: tokens = {tokens} needs at least one picture, got none. Connect an image.")
        if tokens == "prompt" and not prompt:
            raise ValueError("tokens: prompt leaves nothing, the prompt is empty. Write one, or choose other tokens.")
        wanted = list(chosen.layers) if chosen.stacked else layers

        def read(pictures: Sequence[Tensor], muted: bool = False) -> tuple[VLStates, list[str]]:
            named = {f"image{index}": picture for index, picture in enumerate(pictures)}
            return encoders.encode_vision(
                encoder, named, prompt, wanted, system_prompt=system_prompt, budget=image_tokens, mute=muted,
                family=chosen,
            )

        seen, _, notes = read_as_one(given, Settings(combine=combine, mask_use=mask_use), read, muted=False)
        whole = stack_layers(seen, chosen) if chosen.stacked else weighted_mean(seen, layers, shares)
        states, layout = select_tokens(*whole, tokens)
        conditioning = pack_states(memory.states_to_host(states), layout)
        read_at = ", ".join(f"{one} × {share:g}" for one, share in zip(layers, shares, strict=True))
        at = chosen.describe_layers() if chosen.stacked else f"layer {layer if not mix_layers.strip() else read_at}"
        figures = f"{layout.describe()}; {at}"
        lines = widgets.report(told.read(len(given), prompt), notes, figures, encoders.width_note(states, family))
        return io.NodeOutput(conditioning, ui=lines)
