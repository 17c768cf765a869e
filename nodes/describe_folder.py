"""Have Qwen3-VL write a text for every picture of a folder, as Fit Picture Adapter reads them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..vl_core.adapters.captions import find_pictures, groups, tell_group, text_files, without_text, write_texts
from ..vl_core.encoder.asking import MAX_TOKENS
from ..vl_core.encoder.room import is_out_of_memory
from ..vl_core.encoder.writing import INSTRUCTIONS, TOGETHER
from .host import encoders, folders, memory
from .node import Node
from .widgets import budget_input, encoder_input, known, node_schema, report

SHOWN = 5  # reasons that an error names


class ZImageVLDescribeFolder(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLDescribeFolder",
            display_name="Describe Folder with Qwen3-VL",
            description="Qwen3-VL writes a text file for every picture of a folder, where Fit Picture Adapter reads "
            "them.",
            search_aliases=["caption folder", "batch caption", "caption dataset", "describe images", "interrogate"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                encoder_input(),
                io.String.Input(
                    "folder", default="adapter_pictures",
                    tooltip="A folder of pictures below ComfyUI's input folder. Pictures that have a text keep it.",
                ),
                io.Combo.Input(
                    "take", options=list(INSTRUCTIONS), default="slots",
                    tooltip="What the texts are about. slots: one line for each part of a look, which fits picture "
                    "adapters best. The others as in Describe Picture.",
                ),
                io.String.Input(
                    "instruction", default="", multiline=True,
                    tooltip="Ask for something else in your own words. Empty asks for what is chosen above.",
                ),
                io.String.Input(
                    "texts", default="",
                    tooltip="Where photo.txt of photo.png is written: empty is beside the picture, else a folder below "
                    "ComfyUI's output folder.",
                ),
                io.Int.Input(
                    "max_tokens", default=160, min=1, max=4096,
                    tooltip="Longest text, in tokens. One that does not fit ends after its last whole sentence or "
                    f"phrase. {MAX_TOKENS} are enough for a single sentence or two.",
                ),
                io.Int.Input(
                    "together", default=TOGETHER, min=1, max=64, advanced=True,
                    tooltip="How many pictures are described at the same time. Fewer take less memory; more are faster "
                    "on a GPU.",
                ),
                budget_input(),
            ],
            outputs=[
                io.String.Output(display_name="words", is_output_list=True),
            ],
        )

    @classmethod
    @known("")
    def fingerprint_inputs(cls, folder: str, texts: str = "", **_) -> str:
        places = [(folders.input_folder, folder), *([(folders.output_folder, texts)] if texts.strip() else [])]
        return folders.stamp(lambda: [find(name) for find, name in places])

    @classmethod
    def execute(
        cls, encoder, folder: str, take: str = "slots", instruction: str = "", texts: str = "", max_tokens: int = 160,
        together: int = TOGETHER, image_tokens: int = 1024,
    ) -> io.NodeOutput:
        encoders.check_writer(encoder)
        pictures = find_pictures(folders.input_folder(folder))
        place = folders.output_folder(texts) if texts.strip() else None
        files = text_files(pictures, place)
        left = without_text(files)
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
        request = instruction if instruction.strip() else INSTRUCTIONS[take]

        def tell(shown: Sequence[Any]) -> list[str]:
            return _tell(encoder, shown, request, max_tokens, image_tokens)

        start, step = time.monotonic(), _Steps(len(left), getattr(cls.hidden, "unique_id", None))
        failed = write_texts(files, _told(left, together, tell), step)
        seconds, told = time.monotonic() - start, len(left) - len(failed)
        if failed and not told:
            raise ValueError("\n".join(failed[:SHOWN]))
        lines = [f"{told} texts written, {len(pictures) - len(left)} were there: {(place or pictures[0].parent).name}"]
        if told:
            lines.append(f"{60 * told / max(seconds, 1e-9):.0f} pictures a minute")
        words = [path.read_text(encoding="utf-8").strip() for path in files.values() if path.is_file()]
        return io.NodeOutput(words, ui=report(lines, failed))


def _told(
    left: Sequence[Path], together: int, tell: Callable[[Sequence[Any]], list[str]]
) -> Iterator[tuple[Sequence[Path], Sequence[str | Exception]]]:
    for group in groups(left, together):
        memory.check_interrupted()
        yield group, tell_group(group, tell)


def _tell(encoder: Any, pictures: Sequence[Any], request: str, max_tokens: int, budget: int) -> list[str]:
    """The words of each picture; fewer at a time where memory runs out."""
    try:
        told = encoders.write_each(encoder, pictures, request, max_tokens=max_tokens, budget=budget)
        return [one.words for one in told]
    except (RuntimeError, MemoryError) as error:
        if len(pictures) == 1 or not is_out_of_memory(error):
            raise
    half = len(pictures) // 2
    parts = pictures[:half], pictures[half:]
    return [words for part in parts for words in _tell(encoder, part, request, max_tokens, budget)]


class _Steps:
    """A bar on the node that also says how fast it goes and how long it takes."""

    def __init__(self, total: int, node: Any) -> None:
        self.total, self.done, self.node, self.start = total, 0, node, time.monotonic()
        self.bar = memory.progress_bar(total)

    def __call__(self) -> None:
        self.done += 1
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        left = round((self.total - self.done) / rate)
        memory.say(
            f"{self.done} of {self.total}, {60 * rate:.0f} a minute, {left // 60}:{left % 60:02} left", self.node
        )
        self.bar()
