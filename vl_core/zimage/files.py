"""Pictures from and to files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..pictures import fit_size, read_picture
from ..states.files import whole_file
from .checks import readable_file

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS_KEY = "zimage-vl"  # text chunk of our PNGs that holds the settings as JSON


def load_picture(path: str, option: str, budget: int) -> Tensor:
    """Read a picture, turned as its camera noted, and check that the encoder can take it.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, it is no picture, or its sides do not fit.
    """
    file = readable_file(path, option)
    try:
        pixels = read_picture(file)
    except ValueError as error:
        raise ValueError(f"{option}: expected a picture (PNG, JPEG, WebP …), {path} cannot be read as one.") from error
    height, width = pixels.shape[:2]
    fit_size(height, width, budget, file.name)
    return pixels


def save_png(path: Path, image: Image, settings: Mapping[str, Any]) -> Path:
    """Write a PNG that carries ``settings`` as a JSON text chunk; the file appears whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(SETTINGS_KEY, json.dumps(settings, ensure_ascii=False))
    with whole_file(path) as partial:
        image.save(partial, format="PNG", pnginfo=info)
    return path
