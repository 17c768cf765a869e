"""Out of memory: one more try with nothing kept, then a message that says what to change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from .cache import ByteCache

log = logging.getLogger(__name__)

Result = TypeVar("Result")
WHAT_TO_CHANGE = (
    "Qwen3-VL ran out of memory. Lower image_tokens (a quarter of them takes a quarter of the room), set cache to off, "
    "use the fp8 file or bf16, or close what else is on the GPU."
)
CPU_SAYS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_SAYS)


def with_room(
    act: Callable[[], Result], cache: ByteCache | None = None, forget: Callable[[], None] = lambda: None
) -> Result:
    """What ``act`` gives, tried again once if memory ran out.

    Args:
        cache: where something may be kept, None where nothing is. ``forget``: gives that back.

    Raises:
        torch.cuda.OutOfMemoryError: if it ran out with nothing kept, on whichever device: it is what hosts look for.
            The message says what to change.
    """
    try:
        return act()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if cache is None or not cache.bytes:
            raise torch.cuda.OutOfMemoryError(f"{WHAT_TO_CHANGE} ({error})") from error
    forget()  # out here, where the error holds none of the tensors any more
    log.info("Out of memory, reading again with nothing kept.")
    return with_room(act)
