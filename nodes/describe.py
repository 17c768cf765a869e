"""Have Qwen3-VL say in words what a picture is like."""

from __future__ import annotations

from comfy_api.latest import io

from ..vl_core.encoder.answers import append_words
from ..vl_core.encoder.asking import MAX_TOKENS
from ..vl_core.encoder.writing import INSTRUCTIONS, TOP_K, rewrite_request
from .host import encoders
from .node import Node
from .widgets import budget_input, encoder_input, node_schema, pictures_input, report

REWRITE = "rewrite the prompt"


class ZImageVLDescribe(Node):
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
                pictures_input("at least one"),
                io.Combo.Input(
                    "take", options=[*INSTRUCTIONS, REWRITE], default="everything",
                    tooltip="What the words are about. everything: subject and look. look: the look alone. slots: a "
                    "line each. rewrite the prompt: yours, told anew.",
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
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Which of the possible answers, where the temperature is above 0. It stays as it is.",
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
                io.Boolean.Input(
                    "one_by_one", default=False, optional=True,
                    tooltip="On: every picture is described by itself, and the nodes after this one run once for each "
                    "text. Off: one text about all of them.",
                ),
                io.Float.Input(
                    "min_p", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="Leave out tokens less likely than this part of the likeliest one's probability; 0 leaves "
                    "none out.",
                ),
                io.Float.Input(
                    "repetition_penalty", default=1.0, min=0.1, max=3.0, step=0.01, optional=True, advanced=True,
                    tooltip="Above 1: words that were said, or asked with, come less often again. 1 is none.",
                ),
                io.String.Input(
                    "system_prompt", default="", multiline=True, optional=True, advanced=True,
                    tooltip="Tells Qwen3-VL how to answer, e.g. 'Answer in French.' Empty is Z-Image's own template.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="words", is_output_list=True),
                io.String.Output(display_name="prompt_with_words", is_output_list=True),
            ],
        )

    @classmethod
    def execute(
        cls, encoder, take: str = "everything", instruction: str = "", prompt: str = "", max_tokens: int = MAX_TOKENS,
        seed: int = 0, temperature: float = 0.0, image_tokens: int = 1024, images: dict | None = None,
        top_p: float = 1.0, top_k: int = TOP_K, one_by_one: bool = False, min_p: float = 0.0,
        repetition_penalty: float = 1.0, system_prompt: str = "",
    ) -> io.NodeOutput:
        rewrites = take == REWRITE and not instruction.strip()
        request = rewrite_request(prompt) if rewrites else instruction if instruction.strip() else INSTRUCTIONS[take]
        pictures, lines, told = encoders.single_pictures(images), [], []
        for number, shown in enumerate(([one] for one in pictures) if one_by_one else [pictures], 1):
            found, before = encoders.known_words(
                encoder, {f"image{index}": one for index, one in enumerate(shown)}, request, max_tokens=max_tokens,
                seed=seed, temperature=temperature, top_p=top_p, top_k=top_k, budget=image_tokens, min_p=min_p,
                repetition_penalty=repetition_penalty, system_prompt=system_prompt,
            )
            told.append(found.words)
            notes = [*found.notes, *(["written before: the same words"] if before else [])]
            many = one_by_one and len(pictures) > 1
            lines += [f"{number}. {found.words}" if many else found.words, *notes]
        if not told:
            encoders.known_words(encoder, {}, request, max_tokens=max_tokens)  # says that there is no picture
        prompts = told if rewrites else [append_words(prompt, words) for words in told]
        return io.NodeOutput(told, prompts, ui=report(lines))
