"""Where models, adapters, recipes and saved embeddings lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import folder_paths

from ...vl_core import calibration_prompts
from ...vl_core.states.fields import quoted
from ...vl_core.states.files import LONGEST_NAME, UNFIT, fits_a_file, read_text

EMBEDDINGS = "vl_embeddings"  # folder of saved conditioning, below output/ and models/
ENCODER_SUBFOLDERS = ("LLM", "VLM", "Qwen")  # where other packs keep Hugging Face folders, below models/
ADAPTERS = "zimage_vl_adapters"  # folder of picture adapters, below models/
LOOKS = "zimage_vl_looks"
DEEPEST = 6  # folders below one another that are searched for models
MOST_FOLDERS = 5000


def encoder_folders() -> dict[str, Path]:
    """Qwen3-VL folders by the name shown in the loader, nested ones and links among them."""
    found: dict[str, Path] = {}
    for root in encoder_roots():
        for folder, files in _walk(root):
            if "config.json" not in files:
                continue
            try:
                model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
            except (OSError, ValueError, AttributeError, RecursionError):
                continue  # somebody else's broken folder is not ours to report
            if model_type == "qwen3_vl":
                name = root.name if folder == root else folder.relative_to(root).as_posix()
                found.setdefault(name, folder)
    return found


def encoder_roots() -> list[Path]:
    """Folders that are searched for Qwen3-VL, those of ``extra_model_paths.yaml`` among them."""
    own = [str(Path(folder_paths.models_dir) / name) for name in ENCODER_SUBFOLDERS]
    named = [root for name in ENCODER_SUBFOLDERS for root in _extra_folders(name)]
    return [Path(root) for root in dict.fromkeys([*folder_paths.get_folder_paths("text_encoders"), *own, *named])]


def _extra_folders(kind: str) -> list[str]:
    """Folders that ``extra_model_paths.yaml`` or another pack names for a kind of model, however it is capitalised."""
    return [
        root for name, (roots, _) in folder_paths.folder_names_and_paths.items() if name.lower() == kind.lower()
        for root in roots
    ]


def _walk(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders below a root, itself first, with the names of their files; links are followed, each place once.

    Ends after ``MOST_FOLDERS``, and looks no deeper than ``DEEPEST``: a link may lead to the whole disk.
    """
    seen: set[str] = set()
    for at, below, files in os.walk(root, followlinks=True):
        folder, real = Path(at), os.path.realpath(at)
        below.sort()
        if real in seen or len(seen) >= MOST_FOLDERS:
            below.clear()
            continue
        seen.add(real)
        if len(folder.relative_to(root).parts) >= DEEPEST:
            below.clear()
        yield folder, set(files)


def recipe_folder() -> Path:
    """Where a user's own recipes are looked for."""
    return Path(folder_paths.get_user_directory()) / "zimage_vl" / "recipes"


def input_folder(name: str) -> Path:
    """A folder below ComfyUI's input folder; see :func:`_below`."""
    return _below(folder_paths.get_input_directory(), name, "folder: expected a folder")


def output_folder(name: str) -> Path:
    """A folder below ComfyUI's output folder; see :func:`_below`."""
    return _below(folder_paths.get_output_directory(), name, "texts: expected a folder")


def _below(root: str | Path, name: str, expected: str) -> Path:
    """A place below a folder.

    Args:
        expected: how an error begins: the input, and what was expected.

    Raises:
        ValueError: if the name leads out of it, or can be no file's.
    """
    above = os.path.abspath(root)
    path = Path(os.path.abspath(os.path.join(above, name)))
    if not path.is_relative_to(above) or "\0" in name:
        raise ValueError(f"{expected} below {above}, got {quoted(name)}. Use a relative one without .. in it.")
    return path


def stamp(find: Callable[[], Iterable[Path | None]]) -> str:
    """What files are now, for ``fingerprint_inputs``: they may have been changed or replaced since the last run.

    Args:
        find: gives files, and folders for all that lies in them; what it raises is told in their place.
    """
    try:
        there = [path for path in find() if path is not None and path.exists()]
        files = [file for path in there for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        return repr([(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files])
    except (OSError, ValueError) as error:
        return str(error)


def read_prompts(name: str, least: int = 1) -> tuple[str, ...]:
    """The built-in prompts for an empty name, else the lines of a text file in ComfyUI's input folder.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, it holds fewer than ``least``, or its encoding cannot
            be told.
    """
    if not name.strip():
        return tuple(calibration_prompts())
    path = input_folder(name)
    if not path.is_file():
        raise FileNotFoundError(f"prompts: expected a text file in ComfyUI's input folder, found none at {path}.")
    found = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if len(found) < least:
        raise ValueError(f"prompts: expected at least {least} in {path.name}, one a line, got {len(found)}.")
    return found


def light_theme() -> bool:
    """Whether a light theme is chosen in ComfyUI's settings; its own is dark."""
    try:
        file = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    palette = settings.get("Comfy.ColorPalette", "dark") if isinstance(settings, dict) else "dark"
    own = settings.get("Comfy.CustomColorPalettes") if isinstance(settings, dict) else None
    chosen = (own or {}).get(str(palette).removeprefix("custom_"), {})
    return palette == "light" or bool(isinstance(chosen, dict) and chosen.get("light_theme"))


def adapters_folder() -> Path:
    """Where picture adapters are kept."""
    return Path(folder_paths.models_dir) / ADAPTERS


def looks_folder() -> Path:
    """Where learned looks are kept."""
    return Path(folder_paths.models_dir) / LOOKS


def saved_looks() -> dict[str, Path]:
    """Learned looks by the name shown in the list."""
    return _saved(looks_folder(), *map(Path, _extra_folders(LOOKS)))


def saved_adapters() -> dict[str, Path]:
    """Picture adapters by the name shown in the list."""
    return _saved(adapters_folder(), *map(Path, _extra_folders(ADAPTERS)))


def _saved(*roots: Path) -> dict[str, Path]:
    """Our files below some folders, by the name shown in the list."""
    found: dict[str, Path] = {}
    for root in roots:
        for folder, files in _walk(root):
            for name in sorted(files):
                if name.endswith(".safetensors"):
                    found.setdefault((folder / name).relative_to(root).as_posix(), folder / name)
    return found


def adapter_path(name: str, replace: bool = False) -> Path:
    """The file for an adapter of that name; see :func:`_new_file`."""
    return _new_file(adapters_folder(), name, replace)


def look_path(name: str, replace: bool = False) -> Path:
    """The file for a learned look of that name; see :func:`_new_file`."""
    return _new_file(looks_folder(), name, replace)


def _new_file(folder: Path, name: str, replace: bool) -> Path:
    """The file of a name in a folder, which is there afterwards.

    Args:
        replace: take the name although there is a file of it; else a number is added: ``adapter_2``.

    Raises:
        ValueError: if it is no name for a file.
    """
    if set("/\\") & set(name) or not fits_a_file(name):
        raise ValueError(
            f"name: expected a plain file name that every system takes, of at most {LONGEST_NAME} bytes, got "
            f"{quoted(name)}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    stem, number = name.removesuffix(".safetensors"), 1
    path = folder / f"{stem}.safetensors"
    while path.exists() and not replace:
        number += 1
        path = folder / f"{stem}_{number}.safetensors"
    return path


def embeddings_folder() -> Path:
    """Where Save VL Embeddings writes and Load VL Embeddings looks first."""
    return Path(folder_paths.get_output_directory()) / EMBEDDINGS


def saved_embeddings() -> dict[str, Path]:
    """Saved files by the name shown in the loader."""
    return _saved(*embeddings_roots())


def embeddings_roots() -> list[Path]:
    """Folders that are searched for saved conditioning, those of ``extra_model_paths.yaml`` among them."""
    return [
        embeddings_folder(), Path(folder_paths.models_dir) / EMBEDDINGS, *map(Path, _extra_folders(EMBEDDINGS)),
    ]


def find_saved(name: str) -> Path:
    """Path of a saved file.

    Raises:
        ValueError: if there is none; the message lists where it looked.
    """
    found = saved_embeddings()
    if name not in found:
        looked = " and ".join(map(str, embeddings_roots()))
        raise ValueError(
            f"file: found no saved embeddings {quoted(name)} in {looked}. Save some with Save VL Embeddings, then "
            "press R."
        )
    return found[name]


def next_save_path(prefix: str) -> Path:
    """A file name that is not taken yet: ``<prefix>_00001.safetensors``; ComfyUI's %year% … %second% tokens work.

    Raises:
        ValueError: if the prefix leads out of the folder.
    """
    root = embeddings_folder()
    root.mkdir(parents=True, exist_ok=True)
    _below(root, prefix, "filename_prefix: expected a name")
    if not fits_a_file(prefix):
        raise ValueError(
            f"filename_prefix: expected a name that every system takes (no {UNFIT}, not con, nul or the like, which "
            f"Windows keeps for itself; at most {LONGEST_NAME} bytes), got {quoted(prefix)}."
        )
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    path = Path(folder) / f"{name}_{counter:05}.safetensors"
    while path.exists():  # the host's counter only knows names that end in an underscore
        counter += 1
        path = Path(folder) / f"{name}_{counter:05}.safetensors"
    return path
