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
from .steering import entry_of, text_of
from .widgets import known, node_schema, report


class ZImageVLLookApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLLookApply",
            display_name="Apply Look",
            description="Paint your prompt in a look that was learned on a picture with `python -m vl_core learn`.",
            search_aliases=["style", "textual inversion", "learned look", "reference"],
            inputs=[
                io.Conditioning.Input(
                    "text", tooltip="Your prompt, from CLIP Text Encode with Z-Image's text encoder."
                ),
                io.Combo.Input(
                    "file", options=list(folders.saved_looks()),
                    tooltip="A look in models/zimage_vl_looks. Press R to see new ones.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=MAX_STRENGTH, step=0.01,
                    tooltip="How much the look counts. 0 is your words alone, 1 is what was learned.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    @known(True)
    def validate_inputs(cls, file: str) -> bool | str:
        return True if file in folders.saved_looks() else _not_found(file)

    @classmethod
    @known("")
    def fingerprint_inputs(cls, file: str, **_: Any) -> str:
        path = folders.saved_looks().get(file)
        return str(path.stat().st_mtime_ns) if path else ""

    @classmethod
    def execute(cls, text, file: str, strength: float = 1.0) -> io.NodeOutput:
        check_conditioning(text, "text")
        saved = folders.saved_looks()
        if file not in saved:
            raise ValueError(_not_found(file))
        look, way = Look.load(saved[file]), find_way("learned look")
        settings = Settings(way=way.name, strength=strength)

        def steer(entry: Entry) -> tuple[Entry, str]:
            if strength == 0:
                return entry, "Words only: strength 0."
            given = Given(look=look, family=entry_family(entry))
            steered = way.act(text_of(entry), Readings(), settings, given)
            return entry_of(steered), "\n".join(steered.lines)

        entries, lines = map_entries(text, steer)
        return io.NodeOutput(entries, ui=report(lines))


def look_file_input() -> io.Combo.Input:
    return io.Combo.Input(
        "look_file", options=[NO_FILE, *folders.saved_looks()], default=NO_FILE, optional=True, advanced=True,
        tooltip="A look in models/zimage_vl_looks, for the way learned look; automatic prefers it.",
    )


def load_look(file: str) -> Look | None:
    """The look of that name in models/zimage_vl_looks, None for no name.

    Raises:
        ValueError: if there is none.
    """
    if file in (NO_FILE, None):
        return None
    saved = folders.saved_looks()
    if file not in saved:
        raise ValueError(_not_found(file).replace("file:", "look_file:", 1))
    return Look.load(saved[file])


def _not_found(file: str) -> str:
    known_looks = ", ".join(folders.saved_looks()) or "none is there yet"
    return (
        f"file: expected a look in {folders.looks_folder()} ({known_looks}), got {file!r}. Learn one with `python -m "
        "vl_core learn`, put it there and press R."
    )
