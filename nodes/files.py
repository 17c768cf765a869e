"""Save conditioning with its layout, and load it again."""

from __future__ import annotations

from comfy_api.latest import io

from ..vl_core import load_conditioning, save_conditioning
from .entries import check_conditioning, layout_of
from .host import folders
from .node import Node
from .widgets import known, node_schema, report


class ZImageVLSave(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLSave",
            display_name="Save VL Embeddings",
            description="Keep conditioning as a safetensors file that Load VL Embeddings lists.",
            search_aliases=["save conditioning", "export embeddings"],
            is_output_node=True,
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="What to keep; every entry and its options are saved."),
                io.String.Input(
                    "filename_prefix", default="reference",
                    tooltip="Name of the file in output/vl_embeddings; a number is added, nothing is overwritten.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, conditioning, filename_prefix: str = "reference") -> io.NodeOutput:
        check_conditioning(conditioning)
        for entry in conditioning:
            layout_of(entry)  # a file whose layout does not fit could not be loaded again
        path = folders.next_save_path(filename_prefix)
        left_out = save_conditioning(path, conditioning)
        missing = f"Not saved, no file can hold them: {', '.join(left_out)}." if left_out else ""
        size = path.stat().st_size / 2**20
        name = path.relative_to(folders.embeddings_folder())
        return io.NodeOutput(ui=report(f"Saved as {name}, {size:.1f} MiB.", missing))


class ZImageVLLoadSaved(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="ZImageVLLoadSaved",
            display_name="Load VL Embeddings",
            description="Conditioning that Save VL Embeddings kept; no encoder needed.",
            search_aliases=["load conditioning", "import embeddings"],
            inputs=[
                io.Combo.Input(
                    "file", options=list(folders.saved_embeddings()),
                    tooltip="A file in output/vl_embeddings or models/vl_embeddings. Press R to see new ones.",
                )
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    @known(True)
    def validate_inputs(cls, file: str) -> bool | str:
        try:
            folders.find_saved(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    @known("")
    def fingerprint_inputs(cls, file: str) -> str:
        return folders.stamp(lambda: [folders.find_saved(file)])

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        conditioning = load_conditioning(folders.find_saved(file))
        lines = [f"Loaded {file}."]
        for entry in conditioning:
            layout = layout_of(entry)
            lines.append(layout.describe() if layout else f"{entry[0].shape[1]} tokens, which is which is not known")
            if layout and layout.prompt:
                lines.append(f"prompt: {layout.prompt}")
        return io.NodeOutput(conditioning, ui=report(lines))
