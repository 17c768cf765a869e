"""Learn a look from pictures on the very model that will paint with it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..vl_core import Description
from ..vl_core.encoder.writing import INSTRUCTIONS
from ..vl_core.looks.lesson import MOST_PICTURES
from ..vl_core.looks.look import Look, hash_picture
from ..vl_core.looks.options import LARGEST_SIDE, QUALITIES, LearnOptions
from ..vl_core.looks.resumed import learn_resumed, part_of, stopped_at
from ..vl_core.looks.start import Words
from ..vl_core.looks.state import LearnState
from ..vl_core.pictures import DEFAULT_BUDGET, check_picture
from ..vl_core.steering.axes import MAX_SEED
from .host import encoders, folders, memory
from .host.identity import identity_of
from .host.painter import ComfyPainter
from .look import find_learned
from .node import Node
from .steering import store_of
from .widgets import LearnedLook, budget_input, encoder_input, node_schema, pictures_input, with_pictures

LONGEST_ANSWER = 160  # tokens of a description
PREVIEWS = 4  # over one learning, the last of them when it is done
LARGEST_PREVIEW = 512  # pixels
NO_WORDS = "a picture"  # where learning begins if Qwen3-VL finds none
OWN = "the quality's own"


class ZImageVLLookLearn(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        vision = encoder_input("vision")
        vision.optional = True
        return node_schema(
            node_id="ZImageVLLookLearn",
            display_name="Learn Look",
            description="Learn from pictures what words cannot say of their look, on the model itself.",
            search_aliases=["textual inversion", "train a look", "learned look", "embedding"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Z-Image or FLUX.2 klein, with the LoRA and the shift that you paint with: the look is "
                    "that of this model.",
                ),
                io.Clip.Input(
                    "clip", tooltip="The model's text encoder. Z-Image's: Load CLIP, qwen_3_4b, type lumina2."
                ),
                io.Vae.Input("vae", tooltip="The model's VAE. Z-Image's: ae.safetensors."),
                pictures_input("at least one, and of one look"),
                io.Combo.Input(
                    "quality", options=list(QUALITIES), default="good",
                    tooltip="How long it learns. "
                    + ". ".join(f"{name}: {options.steps} steps" for name, options in QUALITIES.items()) + ".",
                ),
                budget_input(),
                vision,
                io.String.Input(
                    "name", default="look", optional=True, advanced=True,
                    tooltip="Name of the file in models/zimage_vl_looks; a number is added if there is one of that "
                    "name.",
                ),
                io.String.Input(
                    "words", default="", multiline=True, optional=True, advanced=True,
                    tooltip="How the pictures look, where learning begins. Empty: Qwen3-VL writes it.",
                ),
                io.String.Input(
                    "shows", default="", multiline=True, optional=True, advanced=True,
                    tooltip="What each picture shows, a line for each. What is told here stays out of the look. Empty: "
                    "Qwen3-VL writes it.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False, optional=True, advanced=True,
                    tooltip="Which noise is learned on. Another seed learns another look, about as good.",
                ),
                io.Int.Input(
                    "steps", default=0, min=0, max=10_000, optional=True, advanced=True,
                    tooltip=f"Steps of learning; 0 is {OWN}.",
                ),
                io.Int.Input(
                    "size", default=0, min=0, max=LARGEST_SIDE, step=16, optional=True, advanced=True,
                    tooltip=f"Pictures are learned at about size × size pixels; 0 is {OWN}. Larger takes longer and "
                    "more memory.",
                ),
                io.Boolean.Input(
                    "preview", default=True, optional=True, advanced=True,
                    tooltip="Paint the first picture's words in the look four times while it is learned, to watch it "
                    "come.",
                ),
                io.Boolean.Input(
                    "replace", default=False, optional=True, advanced=True,
                    tooltip="Replace a look of that name, in place of adding a number.",
                ),
            ],
            outputs=[LearnedLook.Output(display_name="look")],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, quality: str = "good", images: dict | None = None, vision=None, name: str = "look",
        words: str = "", shows: str = "", seed: int = 0, steps: int = 0, size: int = 0, preview: bool = True,
        image_tokens: int = DEFAULT_BUDGET, replace: bool = False,
    ) -> io.NodeOutput:
        began = time.monotonic()
        pictures = checked(encoders.single_pictures(images))
        told = told_words(words, shows, len(pictures), vision)
        options = options_of(quality, seed=seed, steps=steps, size=size)
        painter = ComfyPainter(model, vae, clip)
        path = folders.look_path(name, replace)
        asked = [told, None if None not in told else [identity_of(vision), _questions(), image_tokens]]
        key = learning_key(painter, pictures, asked, options)
        known = find_learned(key)
        if known is not None:
            look, file = known
            return io.NodeOutput(look, ui=_shown(f"Learned before: {file}.", look, (), None, cls))
        # Before the model comes to its device: what does not fit beside it is read first.
        whole = write_missing(told, vision, pictures, image_tokens)
        learning = Learning(painter, options, preview)
        with torch.inference_mode(False):
            look = learning.run(pictures, whole, path, key)
        look = _dated(look, key)
        look.save(path)
        count = len(pictures)
        head = (
            f"Learned the look of {count} picture{'s' * (count > 1)} in {options.steps} steps, "
            f"{time.monotonic() - began:.0f} s. Kept as {path.name}."
        )
        return io.NodeOutput(look, ui=_shown(head, look, learning.notes, learning.painted, cls))


class Learning:
    """One learning on the running node: its bar, its previews, and where it was stopped."""

    def __init__(self, painter: ComfyPainter, options: LearnOptions, preview: bool) -> None:
        self.painter, self.options, self.preview = painter, options, preview
        self.notes: list[str] = []
        self.painted: Tensor | None = None
        self._tell = memory.telling_bar(options.steps)
        self._words = ""

    def run(self, pictures: Sequence[Tensor], words: Words, path: Path, key: str) -> Look:
        part = part_of(path, key)
        try:
            state = stopped_at(part, key)
        except ValueError as error:
            part.unlink(missing_ok=True)
            self.notes.append(f"began anew: {error}")
            state = None
        if state is not None:
            self.notes.append(f"went on after {state.step} steps of a learning that was stopped")
        return learn_resumed(
            self.painter, pictures, words, self.options, part, key, on_step=self._on_step, on_caption=self._on_caption,
            state=state,
        )

    def _on_step(self, state: LearnState) -> None:
        first, last = state.losses[0][0], state.losses[-1][0]
        self._words = f"Step {state.step} of {self.options.steps}, loss {last:.4f} (began at {first:.4f})"
        self._tell(state.step, self._words, None)

    def _on_caption(self, step: int, caption: Any) -> None:
        every = max(1, self.options.steps // PREVIEWS)
        if self.preview and (step == self.options.steps or step % every == 0):
            size = min(self.options.size, LARGEST_PREVIEW)
            self.painted = self.painter.paint(caption(), size, self.options.seed)
            self._tell(step, self._words, self.painted)


def checked(pictures: list[Tensor]) -> list[Tensor]:
    """Pictures that can be learned from.

    Raises:
        ValueError, TypeError: for none, too many, or what is no picture.
    """
    if not 1 <= len(pictures) <= MOST_PICTURES:
        raise ValueError(
            f"images: expected 1 to {MOST_PICTURES} pictures of one look, got {len(pictures)}. Connect an image."
        )
    for number, picture in enumerate(pictures, 1):
        check_picture(picture, f"image {number}")
    return pictures


def options_of(quality: str, **chosen: int) -> LearnOptions:
    """The quality's numbers, with those in their place that are not 0.

    Raises:
        ValueError: naming what is out of range.
    """
    if quality not in QUALITIES:
        raise ValueError(f"quality: expected one of {', '.join(QUALITIES)}, got {quality!r}.")
    return replace(QUALITIES[quality], **{name: value for name, value in chosen.items() if value})


def told_words(words: str, shows: str, pictures: int, vision: Any) -> tuple[str | None, tuple[str, ...] | None]:
    """What somebody wrote for the look and for what each picture shows; None for what Qwen3-VL is to write.

    Raises:
        ValueError: for another number of lines than pictures, or without an encoder that could write the rest.
    """
    lines = tuple(line.strip() for line in shows.strip().splitlines()) if shows.strip() else None
    if lines is not None and len(lines) != pictures:
        raise ValueError(f"shows: expected {pictures} lines, one per picture, got {len(lines)}.")
    look = words.strip() or None
    if vision is None and (look is None or lines is None):
        missing = "words" if look is None else "shows"
        raise ValueError(
            f"vision: expected Qwen3-VL to write what {missing} does not say, got none. Connect it, or fill in "
            f"{missing}."
        )
    return look, lines


def write_missing(
    told: tuple[str | None, tuple[str, ...] | None], vision: Any, pictures: Sequence[Tensor], budget: int
) -> Words:
    """Words as told, and what was not told, written by Qwen3-VL; the same pictures are not described twice."""
    look, shows = told
    store = store_of(vision)

    def write(shown: Sequence[Tensor], ask: str) -> str:
        def make() -> Description:
            named = {f"image{index}": one for index, one in enumerate(shown)}
            return encoders.write_words(
                vision, named, ask, max_tokens=LONGEST_ANSWER, budget=budget, name="vision"
            )

        key = (identity_of(vision), ask, str(LONGEST_ANSWER), str(budget), *shown)
        return store.get(Description, key, make).words

    ask_look, ask_shows = _questions()
    if shows is None:
        shows = tuple(write([picture], ask_shows) for picture in pictures)
    return Words(shows, look if look is not None else write(pictures, ask_look).strip() or NO_WORDS)


def learning_key(
    painter: ComfyPainter, pictures: Sequence[Tensor], asked: Any, options: LearnOptions
) -> str:
    """A name for one learning, by content: the same only for the same weights, pictures, words and options."""
    parts = [painter.identity(), [hash_picture(one) for one in pictures], asked, options.header()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _questions() -> tuple[str, str]:
    return INSTRUCTIONS["look"], INSTRUCTIONS["shows"]


def _dated(look: Look, key: str) -> Look:
    return replace(look, origin=look.origin.model_copy(update={"key": key}))


def _shown(head: str, look: Look, notes: Sequence[str], painted: Tensor | None, cls: type[io.ComfyNode]) -> dict:
    """What the node shows: lines, the first one for people, and the last preview."""
    origin = look.origin
    shows = [f"picture {number} shows: {one or 'nothing that is told'}" for number, one in enumerate(origin.shows, 1)]
    sizes = ", ".join(dict.fromkeys(f"{width} × {height}" for width, height in origin.sizes))
    lines = [head, look.describe(), *shows, f"learned at {sizes} pixels", *origin.notes, *notes]
    return with_pictures("\n".join(lines), painted, cls)
