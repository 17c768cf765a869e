"""Recipes: what to take from a picture, in plain words, as JSON files that resolve to documented numbers.

The pack brings some (``recipes_data``); a user's own lie in a folder of theirs. A file that is not right is skipped,
and its reason is told.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor

from ..pictures import baseline_picture, check_picture
from .modes import MODES, ModeSettings

log = logging.getLogger(__name__)

PictureUse = Literal["as it is", "blurred", "colourless"]

REQUIRED = ("name", "meaning", "mode")
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LONGEST_NAME = 60  # characters that fit a list


@dataclass(frozen=True)
class Recipe:
    """What one file says.

    Attributes:
        name: shown in the list; ``meaning``: one line for people.
        mode: one of ``MODES``; ``settings``: those of its settings that the file names.
        scale: the mode's strength at strength 1; negative pushes away.
        layer: hidden state, counted from the end.
        picture: what Qwen3-VL gets to see: the picture "as it is", "blurred" to the mean colours of 4 × 4 fields so
            that shapes cannot come along, or "colourless" so that colours cannot.
        system_prompt: tells Qwen3-VL what to look for; empty is Z-Image's own template.
        start_percent, end_percent: when it acts, as shares of the steps.
        source: the file's name.
    """

    name: str
    meaning: str
    mode: str
    scale: float = 1.0
    layer: int = -2
    picture: PictureUse = "as it is"
    system_prompt: str = ""
    start_percent: float = 0.0
    end_percent: float = 1.0
    settings: ModeSettings = field(default_factory=ModeSettings)
    source: str = ""

    def describe(self, strength: float) -> str:
        """The numbers it stands for at a strength of the slider, in one line."""
        parts = [f"{self.mode} at {self.scale:g} × {strength:g} = {self.scale * strength:g}", f"layer {self.layer}"]
        parts.append(f"picture {self.picture}")
        parts += [f"{name} {getattr(self.settings, name)}" for name in MODES[self.mode].settings]
        parts.append(f"steps {self.start_percent:.0%} to {self.end_percent:.0%}")
        if self.system_prompt:
            parts.append(f"told to: {self.system_prompt!r}")
        return f"recipe {self.name}: {', '.join(parts)}."

    def show(self, picture: Tensor, name: str = "image") -> Tensor:
        """A picture as the encoder gets to see it.

        Args:
            picture: as :func:`check_picture` takes it.

        Raises:
            TypeError, ValueError: see :func:`check_picture`.
        """
        if self.picture == "as it is":
            return picture
        if self.picture == "blurred":
            return baseline_picture(picture, "blurred", name)
        pixels, _ = check_picture(picture, name)
        luma = (pixels.float() * torch.tensor(LUMA)).sum(-1, keepdim=True).round().to(torch.uint8)
        return luma.expand(-1, -1, 3).contiguous()


def load_recipes(*folders: Path) -> tuple[dict[str, Recipe], list[str]]:
    """The pack's recipes and those of further folders, by name.

    Args:
        folders: searched for ``*.json``, not below; one that is not there is empty.

    Returns:
        the recipes, the pack's first; and for each file that was skipped one line with its reason, also logged once.
    """
    recipes: dict[str, Recipe] = {}
    problems: list[str] = []
    for path in [*_json_files(resources.files(__package__) / "recipes_data"), *_user_files(folders)]:
        try:
            recipe = read_recipe(path)
            if recipe.name in recipes:
                raise ValueError(f"name: {recipe.name!r} is taken by {recipes[recipe.name].source}. Choose another.")
        except (ValueError, OSError) as error:
            problems.append(f"Recipe {path.name} skipped: {error}")
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text, got bytes that are not ({error.reason} at {error.start}).") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got an error in line {error.lineno}: {error.msg}.") from error
    except RecursionError as error:
        raise ValueError("expected JSON of a recipe, got one nested too deeply.") from error
    return parse_recipe(content, path.name)


def parse_recipe(content: Any, source: str = "") -> Recipe:
    """A recipe from decoded JSON.

    Raises:
        ValueError: naming what is missing, unknown or out of range, and what was expected.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {_kind(content)}.")
    _refuse_unknown(content, [field.name for field in fields(Recipe) if field.name != "source"], "")
    missing = [name for name in REQUIRED if name not in content]
    if missing:
        raise ValueError(f"expected {', '.join(REQUIRED)}, {' and '.join(missing)} missing.")
    values = {**content, "settings": ModeSettings()}
    for name in (*REQUIRED, "system_prompt"):
        if name in values and not isinstance(values[name], str):
            raise ValueError(f"{name}: expected text, got {_kind(values[name])}.")
    values["name"], values["meaning"] = values["name"].strip(), values["meaning"].strip()
    if not 0 < len(values["name"]) <= LONGEST_NAME or not values["name"].isprintable() or values["name"] == "none":
        raise ValueError(
            f"name: expected 1 to {LONGEST_NAME} printable characters in one line and not 'none', got "
            f"{values['name']!r}."
        )
    if not values["meaning"]:
        raise ValueError("meaning: expected one line that says what the recipe does, got none.")
    mode = MODES.get(values["mode"])
    if mode is None:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {values['mode']!r}.")
    values["scale"] = _number(values, "scale", mode.low, mode.high, 1.0)
    if values["scale"] == 0:
        raise ValueError("scale: expected a number other than 0, at which every recipe is the words alone.")
    values["layer"] = int(_number(values, "layer", -37, -1, mode.layer, whole=True))
    if "picture" in values:
        _choice("picture", values["picture"], get_args(PictureUse))
    for name, default in (("start_percent", 0.0), ("end_percent", 1.0)):
        values[name] = _number(values, name, 0, 1, default)
    if not values["start_percent"] < values["end_percent"]:
        raise ValueError(
            f"start_percent: expected less than end_percent ({values['end_percent']:g}), got "
            f"{values['start_percent']:g}."
        )
    values["settings"] = _settings(content.get("settings", {}), values["mode"])
    return Recipe(**values, source=source)


def _settings(content: Any, mode: str) -> ModeSettings:
    if not isinstance(content, dict):
        raise ValueError(f"settings: expected a JSON object, got {_kind(content)}.")
    _refuse_unknown(content, MODES[mode].settings, f"settings of {mode}: ")
    kinds, values = get_type_hints(ModeSettings), dict(content)
    limits = {"curve_end": (0, 1), "outlier_threshold": (1, 1e6), "rank": (0, 256)}
    for name, value in content.items():
        if name in limits:
            values[name] = _number(content, name, *limits[name], None, whole=kinds[name] is int)
        elif kinds[name] is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{name}: expected true or false, got {_kind(value)}.")
        else:
            _choice(name, value, get_args(kinds[name]))
    return ModeSettings(**values)


def _refuse_unknown(content: dict, known: Iterable[str], where: str) -> None:
    known = list(known)
    unknown = [name for name in content if name not in known]
    if unknown:
        allowed = f"only {', '.join(known)}" if known else "none"
        raise ValueError(f"{where}expected {allowed}, got {', '.join(map(repr, unknown))}.")


def _number(
    content: dict, name: str, low: float, high: float, default: float | None, whole: bool = False
) -> float:
    value = content.get(name, default)
    kind = "a whole number" if whole else "a number"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (whole and value != int(value)):
        shown = value if is_number else _kind(value)
        raise ValueError(f"{name}: expected {kind} from {low:g} to {high:g}, got {shown}.")
    return int(value) if whole else float(value)


def _choice(name: str, value: Any, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(options)}, got {value!r}.")


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
