"""What every node is made of."""

from __future__ import annotations

import functools
import inspect
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

    class Node(io.ComfyNode):
        """The host's node, that says in words what is wired to an input that it does not have.

        The host hands any wire of a prompt to ``execute``, which Python would refuse in words of its own.
        """

        def __init_subclass__(cls, **options: Any) -> None:
            super().__init_subclass__(**options)
            own = vars(cls).get("execute")
            if own is not None and not hasattr(own.__func__, "__wrapped__"):  # not in the host's copies
                cls.execute = classmethod(_with_known_inputs(own.__func__))


def _with_known_inputs(execute: Callable[..., Any]) -> Callable[..., Any]:
    """``execute`` that raises ValueError for an input that it does not take, naming the input."""
    known = set(inspect.signature(execute).parameters)

    @functools.wraps(execute)
    def run(cls: Any, *args: Any, **inputs: Any) -> Any:
        for name in inputs:
            if name not in known:
                raise ValueError(_what_is_there(cls, name, sorted(known - {"cls"})))
        return execute(cls, *args, **inputs)

    return run


def _what_is_there(cls: Any, name: str, known: list[str]) -> str:
    socket = name.partition(".")[0]
    for one in cls.define_schema().inputs:
        if isinstance(one, io.Autogrow.Input) and one.id == socket:
            most = one.template.as_dict()["max"]
            return (
                f"{socket}: expected at most {most} sockets, got {name.partition('.')[2]} as well. Put several into "
                f"one batch (Batch Images), which counts as so many."
            )
    return (
        f"{name}: this node has no such input, its inputs are {', '.join(known)}. Take away what is wired to it, or "
        "make the node anew."
    )
