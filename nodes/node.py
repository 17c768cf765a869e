"""What every node is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from comfy_api.latest import io

if TYPE_CHECKING:

    class Node(io.ComfyNode):
        """The host's node. Its own annotations say ``execute(**kwargs)``, which no node with named inputs would fit."""

        execute: ClassVar[Callable[..., io.NodeOutput]]  # pyright: ignore[reportIncompatibleMethodOverride]
        validate_inputs: ClassVar[Callable[..., bool | str]]  # pyright: ignore[reportIncompatibleMethodOverride]
        fingerprint_inputs: ClassVar[Callable[..., Any]]  # pyright: ignore[reportIncompatibleMethodOverride]

else:
    Node = io.ComfyNode
