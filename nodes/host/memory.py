"""ComfyUI's memory, progress and Stop."""

from __future__ import annotations

import gc
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from PIL import Image

from ...vl_core.encoder.generate import asking
from ...vl_core.encoder.home import Home
from ...vl_core.encoder.quantised import fingerprint
from ...vl_core.encoder.qwen3vl import Qwen3VLEncoder
from ...vl_core.encoder.reader import Reader
from ...vl_core.encoder.reread import NOWHERE, is_read, read_to
from .folders import EMBEDDINGS

Result = TypeVar("Result")

WORDS = "zimagevl.words"  # a message to the page: the words that a node has written so far; web/report.js shows them
SAY_EVERY = 0.25  # seconds
HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # at the end, until the next token brings the rest
FAST_VARIABLE = "ZIMAGE_VL_FAST"  # environment: 0 runs every model's own forward and keeps nothing


def fast_allowed() -> bool:
    """Whether the merged forward pass and what it keeps may be used."""
    return os.environ.get(FAST_VARIABLE, "1").strip() != "0"


class EncoderPatcher(comfy.model_patcher.ModelPatcher):
    """Gives back what is kept before weights, and forgets a GPU's copies of weights: the host would bring them back.

    Attributes:
        forget: gives back what is kept.
        home: where the weights lie on the CPU; None leaves all moves to the host.
    """

    forget: Callable[[], None] = staticmethod(lambda: None)
    home: Home | None = None

    def load(
        self, device_to: Any = None, lowvram_model_memory: Any = 0, force_patch_weights: bool = False,
        full_load: bool = False,
    ) -> None:
        if self.home is not None and full_load and device_to is not None and torch.device(device_to).type != "cpu":
            self.home.send(torch.device(device_to), leave=self.patches)
        super().load(device_to, lowvram_model_memory, force_patch_weights, full_load)

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights and self.home is not None:
            self.home.give_back()
        super().unpatch_model(device_to, unpatch_weights)

    def partially_unload(self, device_to: Any, memory_to_free: Any = 0, *arguments: Any, **options: Any) -> int:
        self.forget()
        freed = 0 if self.home is None else self.home.give_back(memory_to_free, leave=self.backup)
        if not freed:
            return super().partially_unload(device_to, memory_to_free, *arguments, **options)
        self.model.model_lowvram = True  # so that the host loads it again, whole
        self.model.model_loaded_weight_memory = max(0, self.model.model_loaded_weight_memory - freed)
        return freed


class RereadPatcher(comfy.model_patcher.ModelPatcher):
    """Has quantised weights read from their folder where they are used, and let go of where their room is wanted.

    They are neither moved nor cast nor patched: what a quantiser made of a file is bound to its device, and only its
    library knows all of it. The host therefore sees a module without tensors, and how much they take.

    Attributes:
        fingerprint: what tells the weights from others, whether they are there or not.
    """

    def __init__(self, encoder: Qwen3VLEncoder, weights: Sequence[Path], load_device: Any, offload_device: Any) -> None:
        """``encoder``: one that has not read its weights yet, which are in these files."""
        super().__init__(torch.nn.Sequential(), load_device, offload_device, sum(one.stat().st_size for one in weights))
        self._encoder, self._weights = encoder, weights
        self.fingerprint = fingerprint(weights)

    def load(
        self, device_to: Any = None, lowvram_model_memory: Any = 0, force_patch_weights: bool = False,
        full_load: bool = False,
    ) -> None:
        if not is_read(self._encoder):
            if fingerprint(self._weights) != self.fingerprint:
                raise ValueError(
                    f"{self._encoder.name}: expected the weights that Load Qwen3-VL read, got files that were changed "
                    "since. Change a setting of Load Qwen3-VL or restart ComfyUI, so that it reads them."
                )
            read_to(self._encoder, device_to)
            self.size = comfy.model_management.module_size(self._encoder.model)
        super().load(device_to, lowvram_model_memory, force_patch_weights, full_load)
        self.model.model_loaded_weight_memory = self.size

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights and is_read(self._encoder):
            read_to(self._encoder, NOWHERE)
            gc.collect()  # quantisers wrap modules in what refers back to them
        super().unpatch_model(device_to, unpatch_weights)

    def partially_unload(self, device_to: Any, memory_to_free: Any = 0, *_arguments: Any, **_options: Any) -> int:
        return 0  # so that the host unloads all of it


def forget_when_unloaded(patcher: Any, reader: Reader) -> None:
    """Have a reader give its memory back when ComfyUI unloads the model it reads with."""
    reference = weakref.ref(reader)

    def forget(_patcher: Any, unpatched: bool) -> None:
        kept = reference()
        if unpatched and kept is not None:  # the host also detaches, without this, when it loads a model again
            kept.forget()

    patcher.remove_callbacks_with_key(CallbacksMP.ON_DETACH, EMBEDDINGS)
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, EMBEDDINGS, forget)


def activation_bytes(width: int, tokens: int) -> int:
    """Room the forward needs over its weights: about 64 float32 rows of ``width`` per token covers every layer."""
    return 256 * width * tokens


def buffer_bytes(config: Any, tokens: int) -> int:
    """Room for keys and values of ``tokens`` positions in two bytes a number, twice: as read, and as written on."""
    per_token = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return 2 * 2 * 2 * per_token * tokens


def check_interrupted() -> None:
    """Raise if the user pressed Stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def each(things: Iterable[Result]) -> Iterator[Result]:
    """The things one by one, and before each a chance to stop."""
    for thing in things:
        check_interrupted()
        yield thing


def stoppable(*blocks: Iterable[torch.nn.Module]) -> AbstractContextManager[None]:
    """Have Stop end a forward of the host's before its next block while this lasts; by itself it never asks."""
    return asking(check_interrupted, *blocks)


def progress_bar(total: int) -> Callable[[], None]:
    """A bar on the running node; each call is one step and a chance to stop."""
    bar = comfy.utils.ProgressBar(total)

    def step() -> None:
        check_interrupted()
        bar.update(1)

    return step


def writing_bar(total: int) -> Callable[[Callable[[], str]], None]:
    """A bar on the running node, and in its box the words so far, every ``SAY_EVERY`` seconds at most.

    Each call is a token and a chance to stop, and takes what gives the words; it is not asked more often than they are
    shown.
    """
    step, node, due = progress_bar(total), _running_node(), 0.0

    def tell(words: Callable[[], str]) -> None:
        nonlocal due
        step()
        server, now = _server(), time.monotonic()
        if server is None or not node or now < due or getattr(server, "client_id", None) is None:
            return
        due = now + SAY_EVERY
        # To whoever queued it alone: ComfyUI's own text for a node goes to everybody, and into a box of its own.
        server.send_sync(WORDS, {"node": node, "words": words().rstrip(HALF_A_CHARACTER)}, server.client_id)

    return tell


def telling_bar(total: int) -> Callable[[int, str, torch.Tensor | None], None]:
    """A bar on the running node with words below it, and now and then a picture ``(1, H, W, 3)`` in [0, 1].

    Each call takes the steps done, the words and the picture or None, and is a chance to stop.
    """
    bar, node = comfy.utils.ProgressBar(total), _running_node()

    def tell(done: int, words: str, picture: torch.Tensor | None = None) -> None:
        check_interrupted()
        shown = None
        if picture is not None:
            pixels = (picture[0] * 255).round().byte().cpu().numpy()
            shown = ("JPEG", Image.fromarray(pixels), None)
        bar.update_absolute(done, total, shown)
        say(words, node or None)

    return tell


def _running_node() -> str:
    """The id of the node that runs, "" where ComfyUI does not say."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:  # an older ComfyUI
        return ""
    context = get_executing_context()
    return context.node_id if context else ""


def say(text: str, node: str | None) -> None:
    """Show a line on the running node while it runs; nothing where no ComfyUI is there to show it."""
    server = _server()
    if node is not None and server is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node)


def _server() -> Any:
    """ComfyUI's server, None where there is none."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def states_to_host(states: torch.Tensor) -> torch.Tensor:
    """States ``(L, D)`` as a CONDITIONING tensor ``(1, L, D)``: float32 on the intermediate device."""
    return states.to(comfy.model_management.intermediate_device(), torch.float32, copy=True).unsqueeze(0)
