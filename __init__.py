"""zimage-vl: reference images for Z-Image, without training."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import quote

WEB_DIRECTORY = "./web"
OLDEST_HOST = (0, 28)  # the first ComfyUI whose own Qwen3-VL reads pictures rightly


def check_host(version: str) -> None:
    """Refuse a ComfyUI whose parts ours are built on are missing, before one of them is looked for.

    Raises:
        ImportError: for a version before ``OLDEST_HOST``; ComfyUI writes the message into its log.
    """
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if len(numbers) == 2 and tuple(numbers) < OLDEST_HOST:
        needs = ".".join(map(str, OLDEST_HOST))
        raise ImportError(
            f"zimage-vl needs ComfyUI {needs} or newer, this is {version}. Update ComfyUI (portable: "
            "update\\update_comfyui.bat; git: git pull, then pip install -r requirements.txt) and start it again."
        )


def check_folder(folder: Path) -> None:
    """Say in the log if web files of a folder of that name cannot be served: ComfyUI looks for them unquoted."""
    if quote(folder.name) != folder.name:
        logging.getLogger(__name__).warning(
            "The folder %r has spaces or other letters in its name, under which ComfyUI does not serve the pack's "
            "reports and help pages. Rename it to zimage-vl and start ComfyUI again.", folder.name,
        )


try:
    from comfyui_version import __version__ as host_version
except ImportError:  # not inside of a ComfyUI
    pass
else:
    check_host(host_version)
    check_folder(Path(__file__).parent)


async def comfy_entrypoint():
    """What ComfyUI calls to get the nodes; they are imported only now, for they need ComfyUI."""
    from .nodes import ZImageVLExtension

    return ZImageVLExtension()
