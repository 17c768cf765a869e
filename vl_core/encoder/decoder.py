"""Writing answers: openings that were read go in, tokens come out, several answers at a time.

On an NVIDIA GPU the step of :mod:`.decoding` is captured once for a number of answers, a length and a way of choosing,
and replayed; the tokens are looked at every few steps, since each look waits for the device.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cache import ByteCache
from .decoding import (
    Desk,
    Plan,
    Projection,
    after_attention,
    before_attention,
    knows_filled,
    pick,
    plan_of,
    set_desk,
    step,
)
from .forward import KeyValues
from .graphs import capture
from .identity import WeightsIdentity
from .kernels import compiles
from .sampling import Sampling
from .sight import Tree, weights_of

log = logging.getLogger(__name__)

LOOK_EVERY = 4  # steps between two looks at what a GPU has written: 20 ms of the 4B on an H100
LENGTHS = 128  # buffers are of a length in multiples of this, so that prompts of like lengths share a graph
MOST_GRAPHS = 4
DESK = ("desk",)  # what the buffers are kept under
PLAIN = before_attention, after_attention

# (answer, token) -> whether to stop: called for every token, in the order in which they were written
Hear = Callable[[int, int], bool]


@dataclass(frozen=True, eq=False)
class Opening:
    """A sequence that was read to its end into a row of a desk, ready to be continued.

    Attributes:
        state: ``(D,)``, the last position's after the last norm.
        rotary: cosines and signed sines ``(M, 1, d)`` of the positions to come.
        token_ids: int64 ``(L,)``.
    """

    state: Tensor
    rotary: tuple[Tensor, Tensor]
    token_ids: Tensor


def can_capture(device: torch.device) -> bool:
    return device.type == "cuda"


class Decoder:
    """Continues openings with one language model; keeps its buffers, and graphs with them, for the next time.

    Attributes:
        lock: held while a desk is filled and written on.
        captures: whether steps are captured where the device can.
        reason: why they are not, for people; empty if they are, or if no GPU is there.
    """

    def __init__(
        self, language: nn.Module, cache: ByteCache, *, compile: bool = False,
        spill: Callable[[Hashable, int, KeyValues], None] = lambda *_: None,
    ) -> None:
        """Continue nothing yet.

        Args:
            cache: where buffers are kept.
            compile: merge the operations around the matrix products (``torch.compile``); slow the first time.
            spill: called with the name, the number of positions and the keys and values that a row held, before
                they are written over.
        """
        self._language, self._cache, self._compile = language, cache, compile
        self.lock = threading.RLock()
        self._spill = spill
        self._plan: Plan | None = None
        self._planned_for: tuple = ()
        self._weights_identity, self._tree = WeightsIdentity(), Tree(language)
        self._halves: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None
        self.captures, self.reason = True, ""

    def forget(self) -> None:
        """Give back buffers and graphs, and look at the weights anew."""
        with self.lock:
            self._cache.take(DESK)
            self._plan = None

    @property
    def desk(self) -> Desk | None:
        """The buffers that are kept."""
        return self._cache.get(DESK)

    def plan(self, head: Projection | None, dtype: torch.dtype, device: torch.device) -> Plan | None:
        """See :func:`~.decoding.plan_of`; made once as long as the weights are the same."""
        sight = self._tree()
        weights = list(sight.parameters)
        weights += [head] if isinstance(head, Tensor) else weights_of(head) if isinstance(head, nn.Module) else []
        asked = self._weights_identity.of(sight, weights), dtype, device
        if asked != self._planned_for:
            self.forget()
        if self._plan is None:
            self._plan, self._planned_for = plan_of(self._language, head, dtype, device), asked
        return self._plan

    def reserve(
        self, plan: Plan, rows: int, longest: int, room: int, dtype: torch.dtype, device: torch.device
    ) -> Desk:
        """Buffers for so many answers, the ones of before where they fit; :meth:`keep` them afterwards.

        Args:
            longest: most positions of an answer, what is read before it included; ``room``: most that are written.
        """
        desk, length = self._cache.take(DESK), -(-longest // LENGTHS) * LENGTHS
        if desk is not None:
            if desk.rows == rows and length <= desk.length <= 2 * length and desk.room >= room:
                return desk
            for row in range(desk.rows):
                self.clear(desk, row)
            del desk  # before the new ones are taken
        return set_desk(plan, rows, length, room, dtype, device)

    def keep(self, desk: Desk) -> None:
        """Keep buffers for the next answers; of those that take more than may be kept, what their rows hold."""
        if not self._cache.put(DESK, desk, desk.tensors()):
            for row in range(desk.rows):
                self.clear(desk, row)

    def holds(self, name: Hashable, length: int) -> bool:
        """Whether a row of the desk has the keys and values of so many positions by that name."""
        desk = self.desk
        return desk is not None and (name, length) in desk.holds

    def clear(self, desk: Desk, row: int) -> None:
        """Give a row for other contents; what it holds is handed to whoever keeps such things."""
        held, desk.holds[row] = desk.holds[row], None
        if held is not None:
            self._spill(*held, desk.row(row, 0, held[1]))

    def write(
        self, desk: Desk, openings: Sequence[Opening], plan: Plan, sampling: Sampling, seeds: Sequence[int],
        max_tokens: int, ends: Sequence[int], hear: Hear, check: Callable[[], None] = lambda: None,
    ) -> list[list[int]]:
        """The tokens written after each opening, the one that ended it included.

        Args:
            desk: what :meth:`reserve` gave; its rows hold the openings.
            plan: what :meth:`plan` gave.
            seeds: one an opening. Its tokens are those it would draw alone.
            ends: tokens that end an answer.
            check: called before each block of a step that is not replayed; what it raises is raised.
        """
        device = openings[0].state.device
        with self.lock, torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for row, opening in enumerate(openings):
                for table, rotary in zip((desk.cos, desk.sin), opening.rotary, strict=True):
                    table[row, : len(rotary)] = rotary[:, 0]
                desk.filled[row] = len(opening.token_ids)
                desk.generators[row].manual_seed(seeds[row])
            desk.turn.zero_()
            if desk.said.numel() and sampling.penalises:
                desk.said.zero_()
                for said, opening in zip(desk.said, openings, strict=True):
                    said[opening.token_ids.to(said.device)] = True
            longest = max(len(opening.token_ids) for opening in openings)
            pick(desk, torch.stack([opening.state for opening in openings]), plan, sampling)
            return self._continue(desk, plan, sampling, longest, max_tokens, frozenset(ends), hear, check)

    def _continue(
        self, desk: Desk, plan: Plan, sampling: Sampling, longest: int, max_tokens: int, ends: frozenset[int],
        hear: Hear, check: Callable[[], None],
    ) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in range(desk.rows)]
        open_ones, stopped, looked, written = set(range(desk.rows)), False, 0, 1
        replay = self._graph(desk, plan, sampling) if max_tokens > 1 else None
        halves = self._halves_for(plan, desk)
        while True:
            for tokens in desk.tokens[:, looked:written].t().tolist():
                for row in sorted(open_ones):
                    answers[row].append(tokens[row])
                    stopped |= hear(row, tokens[row])
                    if tokens[row] in ends:
                        open_ones.discard(row)
                if stopped or not open_ones:
                    return answers
            if written == max_tokens:
                return answers
            looked = written
            for _ in range(min(LOOK_EVERY if desk.token.is_cuda else 1, max_tokens - written)):
                if replay is not None:
                    replay()
                else:
                    step(desk, plan, sampling, longest + written, *halves, check)
                written += 1

    def _halves_for(self, plan: Plan, desk: Desk) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """The two halves of a block, compiled where that is asked for and possible."""
        if not self._compile or desk.token.device.type != "cuda":
            return PLAIN
        if not all(isinstance(part, Tensor) for parts in plan.blocks for part in parts):
            return PLAIN
        if self._halves is None:
            self._halves = PLAIN
            if compiles(desk.token.device):
                # Tuned, a product with one row is a kernel of its own that also does what stands around it.
                tuned = dict.fromkeys(("coordinate_descent_tuning", "max_autotune", "combo_kernels"), True)
                options = {**tuned, "compile_threads": 1}
                before, after = (torch.compile(half, dynamic=False, options=options) for half in PLAIN)
                self._halves = before, after
        return self._halves

    def _graph(self, desk: Desk, plan: Plan, sampling: Sampling) -> Callable[[], None] | None:
        """What replays a step on this desk, None where none can be captured."""
        if not self.captures or not can_capture(desk.token.device):
            return None
        if not plan.resident:
            self.reason = "its weights come and go from step to step"
            return None
        self.reason = ""
        if sampling not in desk.graphs:
            knows_filled(desk.cos.device, desk.cos.dtype, plan.heads, plan.groups, plan.size)  # not while capturing
            replay = self._capture(desk, plan, sampling, self._halves_for(plan, desk))
            if replay is None and self._halves is not None:
                self._halves = PLAIN
                replay = self._capture(desk, plan, sampling, PLAIN)
            if replay is None:
                self.captures = False
                log.warning("Words are written without a captured step: %s.", self.reason)
                return None
            self.reason = ""
            desk.graphs[sampling] = replay
            while len(desk.graphs) > MOST_GRAPHS:
                desk.graphs.popitem(last=False)
        desk.graphs.move_to_end(sampling)
        return desk.graphs[sampling]

    def _capture(
        self, desk: Desk, plan: Plan, sampling: Sampling, halves: tuple[Callable[..., Tensor], Callable[..., Tensor]]
    ) -> Callable[[], None] | None:
        """What replays a step; leaves the desk as it was, but for places that the next step writes first."""
        changed = desk.tokens, desk.token, desk.turn, desk.filled, desk.said
        before = [part.clone() for part in changed]
        generators = desk.generators if sampling.draws else ()
        states = [generator.get_state() for generator in generators]
        replay = None
        try:
            replay = capture(lambda: step(desk, plan, sampling, None, *halves), generators)
        except (RuntimeError, AttributeError) as error:  # a capture, or a compiler, can trip over anything
            self.reason = str(error).strip().partition("\n")[0]
        for part, value in zip(changed, before, strict=True):
            part.copy_(value)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return replay
