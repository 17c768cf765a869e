"""Pictures of an evaluation: read as any, whatever has happened to them."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from vl_core.headless.evaluate.own import read_own_picture
from vl_core.pictures import read_picture

Image = pytest.importorskip("PIL.Image", reason="pictures are read with pillow")
PngImagePlugin = pytest.importorskip("PIL.PngImagePlugin", reason="pictures are read with pillow")


def saved(folder: Path, image) -> Path:
    image.save(path := folder / "cell.png")
    return path


def test_our_own_pictures_are_read_as_any_by_one_call_and_without_it(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels))
    with monkeypatch.context() as patch:
        patch.setattr("vl_core.headless.evaluate.own.read_picture", lambda _: pytest.fail("PIL was asked"))
        found = read_own_picture(path)
    assert found.is_contiguous() and torch.equal(found, torch.from_numpy(pixels))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchvision.io", None)  # a build that lacks it
        assert torch.equal(read_own_picture(path), found)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"^{path.name}: cannot be read as a picture"):
        read_own_picture(path)


def test_without_a_torchvision_that_loads_its_libraries_pillow_reads_our_pictures(tmp_path, monkeypatch):
    def lacking(*_):
        raise AttributeError("'_OpNamespace' 'image' object has no attribute 'decode_png'")  # of torchvision

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for call in ("decode_png", "read_image"):
        monkeypatch.setattr(f"torchvision.io.{call}", lacking)
    assert torch.equal(read_own_picture(saved(tmp_path, Image.fromarray(pixels))), torch.from_numpy(pixels))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def edited(how):
    """A PNG of ours after another program, or a disk."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    image, options, deep = Image.fromarray(pixels), {}, np.arange(40 * 64, dtype=np.uint16).reshape(40, 64) * 25
    camera = Image.Exif()
    camera[0x0112] = 6
    if how == "turned":
        options = {"exif": camera}
    if how == "turned in XML":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    if how == "palette":
        image = image.quantize(16)
    if how == "16 bits":
        image = Image.fromarray(deep)
    if how == "transparent":
        image.putalpha(Image.fromarray(pixels[..., 0]))
    kind = {"JPEG": "JPEG", "WebP": "WEBP"}.get(how, "PNG")
    image.save(buffer := io.BytesIO(), kind, **options)
    content = buffer.getvalue()
    last, middle = content.find(b"IEND") - 4, len(content) // 2
    changed = {
        "turned afterwards": content[:last] + chunk(b"eXIf", camera.tobytes()[6:]) + content[last:],
        "brighter": content[:33] + chunk(b"gAMA", struct.pack(">I", 22000)) + content[33:],
        "more behind it": content + b"more",
        "16 bits of colours": content[:16] + struct.pack(">IIBBBBB", 64, 40, 16, 2, 0, 0, 0),
        "zeros": content[:middle] + bytes(len(content) - middle),
        "a bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "cut": content[:middle], "no end": content[:-12], "empty": b"", "no sizes": content[:20],
    }
    if how == "16 bits of colours":
        lines = b"".join(b"\0" + bytes(row) for row in np.repeat(pixels, 2, axis=2).reshape(40, -1))
        return content[:8] + chunk(b"IHDR", changed[how][16:]) + chunk(b"IDAT", zlib.compress(lines)) + content[last:]
    return changed.get(how, content)


@pytest.mark.parametrize("how", [
    "turned", "turned in XML", "turned afterwards", "palette", "16 bits", "16 bits of colours", "transparent",
    "brighter", "JPEG", "WebP", "more behind it", "zeros", "a bit", "cut", "no end", "empty", "no sizes",
])
def test_what_was_ours_and_was_edited_or_damaged_is_read_as_any_picture(how, tmp_path):
    path = tmp_path / "cell.png"
    path.write_bytes(edited(how))
    try:
        expected = read_picture(path)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            read_own_picture(path)
    else:
        assert torch.equal(read_own_picture(path), expected)
