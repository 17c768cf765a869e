"""Load Qwen3-VL from a Hugging Face folder."""

from __future__ import annotations

from comfy_api.latest import io

from .host import folders, loaded
from .node import Node
from .widgets import Qwen3VL, known, node_schema, report


class ZImageVLLoader(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLLoader",
            display_name="Load Qwen3-VL",
            description="Load Qwen3-VL-4B from a Hugging Face folder. For a single file use Load CLIP, type lumina2.",
            search_aliases=["qwen3vl loader", "vision encoder", "vlm"],
            inputs=[
                io.Combo.Input(
                    "folder", options=list(folders.encoder_folders()),
                    tooltip="A Qwen3-VL folder below models/text_encoders, models/LLM, models/VLM or models/Qwen. A "
                    "quantised one needs its method's library.",
                ),
                io.Combo.Input(
                    "dtype", options=["auto", *loaded.DTYPES], default="auto", advanced=True,
                    tooltip="Number format of weights that are not quantised. auto: bf16 where the GPU has it, fp32 on "
                    "the CPU. fp16 can overflow.",
                ),
                io.Int.Input(
                    "deepest_layer", default=-1, min=-37, max=-1, advanced=True,
                    tooltip="Deepest hidden state you will ask for; writing descriptions needs -1. Blocks after it are "
                    "never read from disk: -6 saves about 1 GB.",
                ),
                io.Combo.Input(
                    "cache", options=list(loaded.CACHES), default="on", optional=True, advanced=True,
                    tooltip="What to keep of pictures seen before, so that a new prompt runs sooner. every layer: a "
                    "new layer runs nothing as well.",
                ),
                io.Boolean.Input(
                    "compile", default=False, optional=True, advanced=True,
                    tooltip="Replay the model as CUDA graphs: faster, and more GPU memory for each size of picture "
                    "and prompt.",
                ),
            ],
            outputs=[Qwen3VL.Output(display_name="qwen3-vl")],
        )

    @classmethod
    @known(True)
    def validate_inputs(cls, folder: str) -> bool | str:
        if folder in folders.encoder_folders():
            return True
        return loaded.no_folder(folder)

    @classmethod
    def execute(
        cls, folder: str, dtype: str = "auto", deepest_layer: int = -1, cache: str = "on", compile: bool = False
    ) -> io.NodeOutput:
        encoder = loaded.load_encoder(folder, dtype, deepest_layer, cache, compile)
        return io.NodeOutput(encoder, ui=report("Qwen3-VL is ready.", encoder.describe()))
