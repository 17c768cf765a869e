"""Have Qwen3-VL say in words what a picture is like."""

from __future__ import annotations

from comfy_api.latest import io

from ..vl_core.encoder.answers import append_words
from ..vl_core.encoder.writing import INSTRUCTIONS, MAX_TOKENS, TOP_K
from .host import encoders
from .widgets import budget_input, encoder_input, node_schema, pictures_input, report


class ZImageVLDescribe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLDescribe",
            display_name="Describe Picture with Qwen3-VL",
            description="Qwen3-VL writes down what the pictures are like, to paint from as words.",
            search_aliases=["caption image", "image to prompt", "interrogate", "describe image", "img2txt"],
            is_output_node=True,
            inputs=[
                encoder_input(),
                pictures_input(),
                io.Combo.Input(
                    "take", options=list(INSTRUCTIONS), default="everything",
                    tooltip="What the words are about. everything: subject and look. look: the look alone. The next "
                    "six are what the recipes of those names take from a picture. slots: one line each for style, "
                    "palette, light, background and composition.",
                ),
                io.String.Input(
                    "instruction", default="", multiline=True,
                    tooltip="Ask for something else in your own words, e.g. 'Describe the clothes.' Empty asks for "
                    "what is chosen above.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, dynamic_prompts=True,
                    tooltip="What to paint. The second output is these words with the description after them.",
                ),
                io.Int.Input(
                    "max_tokens", default=MAX_TOKENS, min=1, max=4096,
                    tooltip="Longest answer, in tokens. One that does not fit ends after its last whole sentence or "
                    "phrase.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Which of the possible answers; does nothing at temperature 0.",
                ),
                io.Float.Input(
                    "temperature", default=0.0, min=0.0, max=2.0, step=0.05,
                    tooltip="0: always the likeliest words. Above: other words with each seed, less likely ones the "
                    "higher it is.",
                ),
                budget_input(),
                io.Float.Input(
                    "top_p", default=1.0, min=0.01, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Draw only from the likeliest tokens that together have this probability; 1 leaves none "
                    "out.",
                ),
                io.Int.Input(
                    "top_k", default=TOP_K, min=0, max=1000, optional=True, advanced=True,
                    tooltip="Draw only from this many of the likeliest tokens; 0 leaves none out.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="words"),
                io.String.Output(display_name="prompt_with_words"),
            ],
        )

    @classmethod
    def execute(
        cls, encoder, take: str = "everything", instruction: str = "", prompt: str = "", max_tokens: int = MAX_TOKENS,
        seed: int = 0, temperature: float = 0.0, image_tokens: int = 1024, images: dict | None = None,
        top_p: float = 1.0, top_k: int = TOP_K,
    ) -> io.NodeOutput:
        found = encoders.write_words(
            encoder, images, instruction if instruction.strip() else INSTRUCTIONS[take], max_tokens=max_tokens,
            seed=seed, temperature=temperature, top_p=top_p, top_k=top_k, budget=image_tokens,
        )
        return io.NodeOutput(found.words, append_words(prompt, found.words), ui=report(found.words, found.notes))
