"""Pictures that an evaluation painted, read again beside the GPU's work."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...pictures import read_picture

PNG_BEGINS = b"\x89PNG\r\n\x1a\n"
RGB_OF_8_BIT = bytes((8, 2, 0, 0, 0))  # the end of a PNG's IHDR, not interlaced


def read_own_picture(path: Path) -> Tensor:
    """:func:`read_picture` of a PNG that this pack wrote, by one call that leaves Python to other threads.

    PIL comes back to Python for every 64 KiB: a thread that reads so beside one that launches a GPU's work made that
    take half as long again. What has passed through another program since, or is damaged, is read by PIL: torchvision
    does not turn what a camera noted and gives 16 bits as they are, and damaged bytes end its process.

    Raises:
        ValueError: see there.
    """
    try:
        content = path.read_bytes()
        if not _written_by_us(content):
            return read_picture(path)
        from torchvision.io import ImageReadMode, decode_png

        pixels = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except (ImportError, AttributeError, OSError, RuntimeError):  # no such file, or no torchvision that reads PNGs
        return read_picture(path)
    # By numpy, which takes this thread alone.
    return torch.from_numpy(np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0)))


def _written_by_us(content: bytes) -> bool:
    """Whether bytes are a whole PNG of 8-bit RGB, undamaged and with nothing but words beside its pixels."""
    if content[:8] != PNG_BEGINS:
        return False
    at, kinds, view = 8, [], memoryview(content)
    while at + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        body, at = view[at + 8 : at + 8 + size], at + 12 + size
        if at > len(content) or zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", content, at - 4)[0]:
            return False
        # A camera's notes may stand in XML.
        if (kind == b"IHDR" and body[8:] != RGB_OF_8_BIT) or (kind == b"iTXt" and body[:4] == b"XML:"):
            return False
        if kind != b"IDAT" or kinds[-1:] != [kind]:
            kinds.append(kind)
    words = kinds[1:-2]
    return at == len(content) and kinds == [b"IHDR", *words, b"IDAT", b"IEND"] and {*words} <= {b"iTXt"}
