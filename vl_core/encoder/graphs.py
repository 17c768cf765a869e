"""Replaying a function of fixed shapes as a CUDA graph: one launch in place of thousands.

Opt-in, because every shape holds its own buffers on the GPU and its first run is slow.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MOST_GRAPHS = 6  # kept at a time: a few sizes of picture and prompt

Function = Callable[..., "list[Tensor]"]
# (function, its inputs) -> what replays it, and the outputs a replay writes to
Record = Callable[[Function, Sequence[Tensor]], "tuple[Callable[[], None], list[Tensor]]"]
# the function, which holds on to what it reads; its inputs; what replays it; the outputs
Captured = tuple[Function, "list[Tensor]", Callable[[], None], "list[Tensor]"]


class GraphPool:
    """Captured graphs by name, the least recently used dropped first.

    Where a capture fails, the function is run as it is from then on, and a line in the log says so.
    """

    def __init__(self, record: Record | None = None, most: int = MOST_GRAPHS) -> None:
        """``record`` captures a function; torch's CUDA graphs unless given."""
        self._record = record or _CudaRecorder()
        self._most = most
        self._graphs: OrderedDict[Hashable, Captured] = OrderedDict()
        self._lock = threading.RLock()
        self.works = True

    def run(self, name: Hashable, function: Function, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What ``function(*inputs)`` gives.

        Args:
            name: what the function does, shapes included: the same name must always stand for the same work.
            function: tensors -> tensors, without anything that waits for the device; may change its inputs.

        Returns:
            new tensors; the graph's own are written to by its next replay.
        """
        if not self.works or (isinstance(self._record, _CudaRecorder) and inputs[0].device.type != "cuda"):
            if self.works:
                self._give_up("CUDA graphs need an NVIDIA GPU")
            return function(*inputs)
        with self._lock:
            if name not in self._graphs:
                static = [part.clone() for part in inputs]
                try:
                    replay, outputs = self._record(function, static)
                except RuntimeError as error:  # a capture can trip over anything; without one the model runs as usual
                    self._give_up(str(error).strip().partition("\n")[0])
                    return function(*inputs)
                self._graphs[name] = function, static, replay, outputs
                while len(self._graphs) > self._most:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(name)
            _, static, replay, outputs = self._graphs[name]
            for buffer, part in zip(static, inputs, strict=True):
                buffer.copy_(part)
            replay()
            return [output.clone() for output in outputs]

    def clear(self) -> None:
        """Drop every graph and its memory."""
        with self._lock:
            self._graphs.clear()
            if isinstance(self._record, _CudaRecorder):
                self._record = _CudaRecorder()  # its pool went with the graphs

    def __len__(self) -> int:
        return len(self._graphs)

    def _give_up(self, reason: str) -> None:
        self.works = False
        self.clear()
        log.warning("compile: running without captured graphs: %s.", reason)


def capture(work: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
    """What replays ``work``, which reads and changes tensors in place, on the current CUDA device.

    Args:
        work: without anything that waits for the device; run once here before it is captured.
        generators: those it draws from; each replay goes on from where they are.

    Raises:
        RuntimeError: if something in it cannot be captured.
    """
    # Where everything else runs: on a stream of its own, cuBLAS would take 32 MiB more for it and keep them.
    work()
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class _CudaRecorder:
    """Captures after one plain run, which lets libraries set themselves up."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: Function, static: Sequence[Tensor]) -> tuple[Callable[[], None], list[Tensor]]:
        before = [part.clone() for part in static]
        function(*static)  # on the same stream as everything else, see capture
        for part, value in zip(static, before, strict=True):
            part.copy_(value)
        if self._pool is None:  # one for all: outputs stay alive, so no graph writes over another's
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = function(*static)
        return graph.replay, outputs
