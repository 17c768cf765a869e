"""Fit a picture adapter on a folder of pictures, and apply one: a picture becomes description states without words."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io
from torch import Tensor

from ..vl_core import VLStates
from ..vl_core.adapters.examples import (
    FREE_TEXT,
    Example,
    clear_parts,
    describe_examples,
    examples_key,
    find_examples,
    fit_examples,
    probe_of,
    slots_of,
)
from ..vl_core.adapters.features import PictureFeatures
from ..vl_core.adapters.picture_adapter import MAX_STRENGTH, AdapterInfo, PictureAdapter
from ..vl_core.adapters.spec import AdapterSpec
from ..vl_core.stages.combine import parse_weights
from ..vl_core.stages.description import SLOTS, slot_request
from ..vl_core.states.fields import quoted
from ..vl_core.steering.ways.adapter import parse_slots
from . import told, widgets
from .entries import Entry, attend_words, check_conditioning, layout_of, repack, words_of
from .host import encoders, folders, memory, text_encoder
from .host.identity import identity_of
from .node import Node

CAPTIONS, DESCRIBED = "text files beside the pictures", "Qwen3-VL describes them"
NO_FILE = "none"
PROBE = "a cat"  # any prompt: what the encoders give for it says how wide and deep they are
LONGEST_ANSWER = 160  # tokens of a description in slots


class ZImageVLAdapterFit(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.node_schema(
            node_id="ZImageVLAdapterFit",
            display_name="Fit Picture Adapter",
            description="Learn from a folder of pictures what a description of a picture would be to Z-Image, or to "
            "FLUX.2 klein, in one solve.",
            search_aliases=["train adapter", "calibrate pictures"],
            is_output_node=True,
            inputs=[
                widgets.text_clip_input(),
                widgets.encoder_input("vision"),
                io.String.Input(
                    "folder", default="adapter_pictures",
                    tooltip="A folder of pictures below ComfyUI's input folder, 10 at least. More pictures of more "
                    "looks make the adapter follow more looks.",
                ),
                io.Combo.Input(
                    "captions", options=[CAPTIONS, DESCRIBED], default=CAPTIONS,
                    tooltip="Where the words come from. Text files: photo.txt beside photo.png says what its look is. "
                    "Qwen3-VL: it writes them now, picture by picture.",
                ),
                io.String.Input(
                    "name", default="adapter",
                    tooltip="Name of the file in models/zimage_vl_adapters; a number is added if there is one of that "
                    "name.",
                ),
                widgets.budget_input(),
                io.String.Input(
                    "prompts", default="", optional=True, advanced=True,
                    tooltip="A text file in ComfyUI's input folder with prompts such as you write, one a line. Empty "
                    "takes built-in ones.",
                ),
                io.Boolean.Input(
                    "replace", default=False, optional=True, advanced=True,
                    tooltip="Replace an adapter of that name, in place of adding a number.",
                ),
            ],
            outputs=[widgets.Adapter.Output(display_name="adapter")],
        )

    @classmethod
    @widgets.known("")
    def fingerprint_inputs(cls, folder: str, prompts: str = "", **_) -> str:
        return folders.stamp(lambda: [folders.input_folder(one) for one in (folder, prompts) if one.strip()])

    @classmethod
    def execute(
        cls, clip, vision, folder: str, captions: str = CAPTIONS, name: str = "adapter", image_tokens: int = 1024,
        prompts: str = "", replace: bool = False,
    ) -> io.NodeOutput:
        family = text_encoder.check_text_clip(clip, klein=True)
        encoders.check_widths(clip, vision)
        path, texts = folders.adapter_path(name, replace), folders.read_prompts(prompts)
        examples = find_examples(folders.input_folder(folder), captions == CAPTIONS)
        features, lines = PictureFeatures(), []

        def look(picture, prompt: str):
            seen, _ = encoders.encode_vision(
                vision, {"image": picture}, prompt, features.layers, budget=image_tokens, name="vision", family=family
            )
            return seen

        def read(text: str):
            return text_encoder.encode_words(clip, text)

        def tokenize(text: str):
            layout = text_encoder.tokenize_text(clip, text)
            return layout.select(~layout.padding())

        seen = look(examples[0].pixels(), PROBE)
        answers = path.with_name(f"{path.stem}_words.jsonl")
        if captions == DESCRIBED:
            examples, kept = _described(vision, examples, image_tokens, answers)
            if kept:
                lines.append(f"took the words of {kept} pictures from a fit that was stopped")
        slots = slots_of(examples)
        if slots == FREE_TEXT:
            names = ", ".join(slot.name for slot in SLOTS)
            lines.append(f"not every description has lines for {names}: taken as a whole")
        # Read beside no words at all: what is learnt does not hang on the prompts of the fit.
        spec = AdapterSpec(
            features, slots, seen.states.shape[-1], seen.num_layers, read(PROBE).shape[-1], vl_model=seen.model,
            text_model=tokenize(PROBE).model, own_prompt=False, prompt="", family=family.group,
        )
        # With other weights, a LoRA, another budget or other words a fit that was stopped is another fit.
        read_with = f"{identity_of(vision)} {identity_of(clip)} {image_tokens}"
        part = path.with_name(f"{path.stem}_{examples_key(examples, spec, texts, read_with)}.part")
        adapter, resumed = fit_examples(
            examples, spec, look, read, tokenize, prompts=texts, part=part, probe=probe_of(seen, read(PROBE)),
            step=memory.progress_bar(len(examples)), check=memory.check_interrupted,
        )
        adapter.save(path)
        clear_parts(path)
        answers.unlink(missing_ok=True)
        if resumed:
            lines.append(f"went on after {resumed} pictures of a fit that was stopped")
        head = told.fitted(adapter), f"Kept as {path.name}."
        return io.NodeOutput(adapter, ui=widgets.report(head, adapter.describe(), lines))


class ZImageVLAdapterApply(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.node_schema(
            node_id="ZImageVLAdapterApply",
            display_name="Apply Picture Adapter",
            description="Append to the prompt what the picture's description would be, without words for it.",
            search_aliases=["use adapter", "load adapter"],
            inputs=[
                widgets.encoder_input(),
                widgets.pictures_input("with none text comes out as it is"),
                widgets.prompt_input(),
                io.Conditioning.Input(
                    "text",
                    tooltip="Z-Image's own encoding of the same prompt, from CLIP Text Encode; it is added to. Or "
                    "FLUX.2 klein's, with an adapter fitted for it.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-MAX_STRENGTH, max=MAX_STRENGTH, step=0.05,
                    tooltip="How far the added tokens go from neutral to the picture's own description. 0 is the text "
                    "alone, 1 the picture, more exaggerates it.",
                ),
                io.Combo.Input(
                    "file", options=[NO_FILE, *folders.saved_adapters()], default=NO_FILE,
                    tooltip="An adapter in models/zimage_vl_adapters, if none is connected. Press R to see new ones.",
                ),
                widgets.budget_input(),
                widgets.Adapter.Input(
                    "adapter", optional=True, tooltip="From Fit Picture Adapter; goes before the file."
                ),
                io.String.Input(
                    "slots", default="", optional=True, advanced=True,
                    tooltip="Only these parts of the description, such as style, palette:0.5; empty takes all. The "
                    "node lists those that the adapter has.",
                ),
                io.String.Input(
                    "weights", default="", optional=True, advanced=True,
                    tooltip="How much each picture counts, such as 1, 0.5; empty counts all alike.",
                ),
                io.Combo.Input(
                    "combine", options=["average", "append", "parts"], default="average", optional=True, advanced=True,
                    tooltip="Several pictures: average is between them, append puts one after the other, parts takes "
                    "each part from another picture.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    @widgets.known("")
    def fingerprint_inputs(cls, file: str = NO_FILE, **_) -> str:
        return folders.stamp(lambda: [folders.saved_adapters().get(file)])

    @classmethod
    def execute(
        cls, encoder, prompt: str, text, strength: float = 1.0, file: str = NO_FILE, image_tokens: int = 1024,
        images: dict | None = None, adapter: PictureAdapter | None = None, slots: str = "", weights: str = "",
        combine: str = "average",
    ) -> io.NodeOutput:
        check_conditioning(text, "text")
        pictures = encoders.single_pictures(images)
        if not pictures or strength == 0:
            reason = "strength 0" if pictures else "no picture connected"
            return io.NodeOutput(text, ui=widgets.report(f"Words only: {reason}."))
        adapter = adapter or load_adapter(file)
        for entry in text:  # before the pictures are read
            adapter.spec.check_text(entry[0], layout_of(entry))
        chosen = parse_slots(slots) or None
        shares = parse_weights(weights, len(pictures)) if weights.strip() else None
        seen, notes = read_for(adapter, encoder, pictures, prompt, image_tokens)
        entries, lines = [], [adapter.describe(), *notes]
        for entry in text:
            mixed, info = apply_to(
                entry, adapter, seen, strength, weights=shares, slots=chosen, combine=combine
            )
            entries.append(mixed)
            lines.append(info.describe())
            if not info.familiar:
                lines.append("The adapter has not seen pictures like this: Describe Picture with Qwen3-VL needs none.")
        head = f"The picture's description added to your prompt at strength {strength:g}."
        return io.NodeOutput(entries, ui=widgets.report(head, lines))


def _described(vision, examples: list[Example], budget: int, kept: Path) -> tuple[list[Example], int]:
    """The examples with Qwen3-VL's words in slots, and how many of them were in the file ``kept``."""
    request = slot_request()

    def write(pixels: Tensor) -> str:
        return encoders.write_words(
            vision, {"image": pixels}, request, max_tokens=LONGEST_ANSWER, budget=budget, name="vision"
        ).words

    return describe_examples(
        examples, write, asked=f"{identity_of(vision)}\n{LONGEST_ANSWER}\n{budget}\n{request}", kept=kept,
        step=memory.progress_bar(len(examples)),
    )


def read_for(
    adapter: PictureAdapter, encoder, pictures: list[Tensor], prompt: str, budget: int, name: str = "encoder"
) -> tuple[list[VLStates], list[str]]:
    """Each picture read alone, beside the prompt or beside the adapter's own, as it was fitted; and remarks."""
    beside = prompt if adapter.spec.own_prompt else adapter.spec.prompt
    family = encoders.pick_family(adapter.spec.family, encoder)
    seen, lines = [], []
    for picture in pictures:
        states, notes = encoders.encode_vision(
            encoder, {"image": picture}, beside, adapter.spec.features.layers, budget=budget, name=name, family=family
        )
        seen.append(states)
        lines += notes
    return seen, lines


def apply_to(
    entry: Entry, adapter: PictureAdapter, seen: list[VLStates], strength: float, **options
) -> tuple[Entry, AdapterInfo]:
    """A text entry with the description's states in it, and what was added; ``options`` go to the adapter."""
    words = words_of(entry)
    states, layout, info = adapter.apply(entry[0], layout_of(entry), seen, strength, words=words, **options)
    return attend_words(repack(entry, states, layout), words and words + info.tokens), info


def load_adapter(file: str, name: str = "file") -> PictureAdapter:
    """The adapter of that name in models/zimage_vl_adapters.

    Raises:
        ValueError: if there is none; ``name`` is what the input is called.
    """
    saved = folders.saved_adapters()
    if file not in saved:
        known = ", ".join(saved) or "the adapters in models/zimage_vl_adapters, there are none"
        raise ValueError(
            f"{name}: expected one of {known}, got {quoted(file)}. Connect an adapter, or fit one with Fit Picture "
            "Adapter."
        )
    return PictureAdapter.load(saved[file])
