"""Recipes: named sets of settings, as JSON files.

What can be taken from a picture is a take (:mod:`~vl_core.steering.takes`); a recipe says all settings at once. A
user's own lie in a folder of theirs. The pack's own of version 0.1 showed nothing on the miniature: they can still be
read by name, and say what to choose instead. A file that is not right is skipped, and its reason is told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ..states.files import decode_text, parse_json
from .settings import Settings, rename
from .takes import take_names
from .way import candidates

log = logging.getLogger(__name__)

REQUIRED = ("name", "meaning")
KNOWN = ("name", "meaning", "settings", "instead")
LONGEST_NAME = 60  # characters that fit a list
LARGEST = 1 << 20  # bytes of a file
# Version 0.1 kept some settings beside the others, and called some of those inside otherwise.
BESIDE = {
    "mode": "way", "scale": "strength", "layer": "layer", "picture": "picture", "system_prompt": "attend",
    "start_percent": "start_percent", "end_percent": "end_percent",
}
INSIDE = {"tokens": "changed", "outliers": "outlier_mode", "position": "append_position"}


@dataclass(frozen=True)
class Recipe:
    """What one file says.

    Attributes:
        name: shown in the list; ``meaning``: one line for people.
        settings: all of them; their strength is what strength 1 of the slider stands for, negative pushes away.
        instead: what to choose in its place, "" for a recipe that is still listed.
        source: the file's name.
    """

    name: str
    meaning: str
    settings: Settings
    instead: str = ""
    source: str = ""

    def at(self, strength: float) -> Settings:
        """The settings at a strength of the slider.

        Raises:
            ValueError: for a strength that the way does not take.
        """
        return self.settings.at(self.settings.strength * strength)

    def describe(self, strength: float) -> str:
        """The numbers it stands for at a strength of the slider, in one line, and what to choose instead."""
        own = {name: value for name, value in asdict(self.settings).items() if value != getattr(Settings, name)}
        scaled = f"{self.settings.strength:g} × {strength:g} = {self.settings.strength * strength:g}"
        parts = [f"strength {scaled}", *(f"{name} {value}" for name, value in own.items() if name != "strength")]
        line = f"Recipe {self.name}: {', '.join(parts)}."
        return f"{line} It showed nothing where it was measured: choose {self.instead}." if self.instead else line


def load_recipes(*folders: Path) -> tuple[dict[str, Recipe], list[str]]:
    """The recipes of some folders, and the pack's own of version 0.1, by name.

    Args:
        folders: searched for ``*.json``, not below; one that is not there is empty.

    Returns:
        the recipes; and for each file that was skipped one line with its reason, also logged once.
    """
    recipes: dict[str, Recipe] = {}
    problems: list[str] = []
    for path in [*_json_files(resources.files(__package__ or "") / "recipes_data"), *_user_files(folders)]:
        try:
            recipe = read_recipe(path)
            if recipe.name in take_names():
                raise ValueError(f"name: {recipe.name!r} is what can be taken from every picture. Choose another.")
            if recipe.name in recipes:
                raise ValueError(f"name: {recipe.name!r} is taken by {recipes[recipe.name].source}. Choose another.")
        except (ValueError, OSError) as error:
            problems.append(f"Recipe {path.name} skipped: {str(error).removeprefix(f'{path.name}: ')}")
            _warn_once(problems[-1])
        else:
            recipes[recipe.name] = recipe
    return recipes, problems


def read_recipe(path: Any) -> Recipe:
    """One recipe from a file.

    Args:
        path: a Path, or what :mod:`importlib.resources` gives in its place.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not JSON, or see :func:`parse_recipe`.
    """
    data = path.read_bytes()
    if len(data) > LARGEST:
        raise ValueError(f"expected JSON of a recipe, at most {LARGEST} bytes, got {len(data)}.")
    return parse_recipe(parse_json(decode_text(data, path.name), path.name), path.name)


def parse_recipe(content: Any, source: str = "") -> Recipe:
    """A recipe from decoded JSON, of this version or of 0.1.

    Raises:
        ValueError: naming what is missing, unknown or out of range, and what was expected.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {_kind(content)}.")
    _refuse_unknown(content, (*KNOWN, *BESIDE), "")
    missing = [name for name in REQUIRED if name not in content]
    if missing:
        raise ValueError(f"expected {', '.join(REQUIRED)}, {' and '.join(missing)} missing.")
    for name in (*REQUIRED, "instead"):
        if not isinstance(content.get(name, ""), str):
            raise ValueError(f"{name}: expected text, got {_kind(content[name])}.")
    name, meaning = content["name"].strip(), content["meaning"].strip()
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name == "none":
        raise ValueError(
            f"name: expected 1 to {LONGEST_NAME} printable characters in one line and not 'none', got {name!r}."
        )
    if not meaning:
        raise ValueError("meaning: expected one line that says what the recipe does, got none.")
    return Recipe(name, meaning, _settings(content), content.get("instead", ""), source)


def _settings(content: Mapping[str, Any]) -> Settings:
    inside: dict[str, Any] = content.get("settings", {})
    if not isinstance(inside, dict):
        raise ValueError(f"settings: expected a JSON object, got {_kind(inside)}.")
    beside = {new: content[old] for old, new in BESIDE.items() if old in content}
    if "mode" in content:  # a recipe of version 0.1
        inside = {INSIDE.get(name, name): value for name, value in inside.items()}
        beside.setdefault("picture", "as it is")
    values = rename({**beside, **inside})
    settings = Settings(**values)
    if settings.strength == 0:
        raise ValueError("scale: expected a number other than 0, at which every recipe is the words alone.")
    used = {"way", "take", "strength", "described", "start_percent", "end_percent"}
    used |= {name for way in candidates(settings.row) for name in way.uses}
    idle = [name for name in values if name not in used and values[name] != getattr(Settings, name)]
    if idle:
        raise ValueError(f"settings: {settings.way} does not use {', '.join(idle)}. Leave them out.")
    return settings


def _refuse_unknown(content: dict, known: Iterable[str], where: str) -> None:
    known = list(known)
    unknown = [name for name in content if name not in known]
    if unknown:
        raise ValueError(f"{where}expected only {', '.join(known)}, got {', '.join(map(repr, unknown))}.")


def _kind(value: Any) -> str:
    """What JSON calls it."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _json_files(folder: Any) -> list[Any]:
    return sorted((path for path in folder.iterdir() if path.name.endswith(".json")), key=lambda path: path.name)


def _user_files(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders if Path(folder).is_dir() for path in _json_files(Path(folder))]


@cache
def _warn_once(line: str) -> None:
    log.warning(line)
