"""Apply a learned look to a prompt's conditioning."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..vl_core.looks.apply import MAX_STRENGTH
from ..vl_core.looks.look import Look
from ..vl_core.steering.settings import Settings
from ..vl_core.steering.way import Given, Readings, find_way
from .adapter import NO_FILE
from .entries import Entry, check_conditioning, entry_family, map_entries
from .host import folders
from .host.text_encoder import encode_text
from .node import Node
from .steering import entry_of, text_of
from .widgets import LearnedLook, known, node_schema, report

LEARN = "Learn one with Learn Look or `python -m vl_core learn`"


class ZImageVLLookApply(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLLookApply",
            display_name="Apply Look",
            description="Paint your prompt in a look that was learned on a picture.",
            search_aliases=["textual inversion", "learned look"],
            inputs=[
                io.Conditioning.Input(
                    "text", optional=True,
                    tooltip="Your prompt, from CLIP Text Encode with the text encoder of the look's model. Or connect "
                    "clip and write the prompt here.",
                ),
                io.Combo.Input(
                    "file", options=[NO_FILE, *folders.saved_looks()], default=NO_FILE,
                    tooltip="A look in models/zimage_vl_looks, if none is connected. Press R to see new ones.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=MAX_STRENGTH, step=0.01,
                    tooltip="How much the look counts. 0 is your words alone, 1 is what was learned.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The text encoder of the look's model, for the prompt below."
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, dynamic_prompts=True, optional=True,
                    tooltip="What to paint, where clip is connected in place of text.",
                ),
                look_input("From Learn Look; goes before the file."),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    @known(True)
    def validate_inputs(cls, file: str) -> bool | str:
        return True if file == NO_FILE or file in folders.saved_looks() else _not_found(file)

    @classmethod
    @known("")
    def fingerprint_inputs(cls, file: str, **_: Any) -> str:
        return folders.stamp(lambda: [folders.saved_looks().get(file)])

    @classmethod
    def execute(
        cls, text: list[Entry] | None = None, file: str = NO_FILE, strength: float = 1.0, clip: Any = None,
        prompt: str = "", look: Look | None = None,
    ) -> io.NodeOutput:
        if (text is None) == (clip is None):
            got = "both" if clip is not None else "neither"
            raise ValueError(f"text: expected either text, or clip with a prompt, got {got}. Connect one of them.")
        chosen = look if look is not None else load_look(file, "file")
        if chosen is None:
            raise ValueError(f"look: expected one on look or in file, got none. {LEARN}, or choose a file.")
        if text is None:
            text = encode_text(clip, prompt)
        check_conditioning(text, "text")
        way = find_way("learned look")
        settings = Settings(way=way.name, strength=strength)

        def steer(entry: Entry) -> tuple[Entry, str]:
            if strength == 0:
                return entry, "Words only: strength 0."
            given = Given(look=chosen, family=entry_family(entry))
            steered = way.act(text_of(entry), Readings(), settings, given)
            return entry_of(steered), "\n".join(steered.lines)

        entries, lines = map_entries(text, steer)
        return io.NodeOutput(entries, ui=report(lines))


def look_input(tooltip: str) -> Any:
    """The socket for a learned look."""
    return LearnedLook.Input("look", optional=True, tooltip=tooltip)


def look_file_input() -> io.Combo.Input:
    return io.Combo.Input(
        "look_file", options=[NO_FILE, *folders.saved_looks()], default=NO_FILE, optional=True, advanced=True,
        tooltip="A look in models/zimage_vl_looks, for the way learned look; automatic prefers it.",
    )


def pick_look(look: Look | None, file: str | None) -> Look | None:
    """A connected look, else the one of the input look_file, None for neither; ValueError as :func:`load_look`."""
    return look if look is not None else load_look(file)


def load_look(file: str | None, name: str = "look_file") -> Look | None:
    """The look of that name in models/zimage_vl_looks, None for no name.

    Raises:
        ValueError: if there is none; ``name`` is what the input is called.
    """
    if file in (NO_FILE, None):
        return None
    saved = folders.saved_looks()
    if file not in saved:
        raise ValueError(_not_found(file).replace("file:", f"{name}:", 1))
    return Look.load(saved[file])


def find_learned(key: str) -> tuple[Look, str] | None:
    """The saved look that was learned under a key, and its file's name; None if there is none."""
    for name, path in folders.saved_looks().items():
        try:
            look = Look.load(path)
        except (OSError, ValueError):
            continue  # a damaged file is not found, and said to be damaged where it is chosen
        if look.origin.key == key:
            return look, name
    return None


def _not_found(file: str | None) -> str:
    known_looks = ", ".join(folders.saved_looks()) or "none is there yet"
    return (
        f"file: expected a look in {folders.looks_folder()} ({known_looks}), got {file!r}. {LEARN}, put it there and "
        "press R."
    )
