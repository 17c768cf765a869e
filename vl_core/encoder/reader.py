"""Reading a sequence without doing anything twice.

Attention is causal and the pictures come before the words, so what the pictures' positions compute does not depend on
the words. Kept per content: what the vision tower gave for a picture, the keys and values of everything up to the last
picture, and the states that were asked for. A new prompt then runs its own positions only; the same question again runs
nothing.

The same question gives the same bits whatever was read before it, found again or not. How a product rounds depends on
its number of rows, so what may be kept is always computed by itself: each picture, then all up to the last one, then
the words that follow. Where nothing is kept, pictures and words are one pass, as in transformers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..pictures import Picture, patchify
from ..states.layout import TokenLayout
from .branching import branch
from .cache import ByteCache, digest, has_room
from .decoder import Decoder, Opening
from .decoding import Desk
from .forward import KeyValues, picture_spans, prefix_length, run_blocks
from .graphs import GraphPool
from .kernels import EXACT, MERGED, Kernels, compiled_kernels, quick_attention
from .modules import Language, Vision
from .prefix import Answered, Features, Prefix, fill, joined, lengthened, vetted
from .room import with_room
from .vision import VisionTables, run_vision, vision_tables
from .watched import Watched

# (layout, first position) -> cosines and signed sines (L, 1, d) from there on
Rotary = Callable[[TokenLayout, int], "tuple[Tensor, Tensor]"]
PADDED_TO = 64  # captured graphs are of a length in multiples of this


class Reader:
    """Runs a Qwen3-VL over sequences and keeps what can be used again.

    Attributes:
        cache: where it is kept; a limit of 0 turns that off.
        every_layer: capture all states on the way, so that asking for another layer runs nothing; takes as much memory
            per layer and picture as one layer's states.
        visual, language: the modules it runs, ``watched``; ``decoder`` writes on from what was read with them.
    """

    def __init__(
        self, visual: Vision, language: Language, num_layers: int, rotary: Rotary, cache: ByteCache, *,
        every_layer: bool = False, capture_before: bool = True, graphs: GraphPool | None = None, exact: bool = False,
    ) -> None:
        """``capture_before``: see :func:`run_blocks`; ``graphs``: replay whole passes from there; ``exact``:
        :data:`EXACT` on a GPU where no graph is replayed; its further launches cost a fifth of an encode."""
        self.visual, self.language, self.num_layers, self.rotary = visual, language, num_layers, rotary
        self.capture_before, self._graphs, self._exact = capture_before, graphs, exact
        self._compiled: Kernels | None = None
        self.watched = Watched(visual, language)
        # What is opened for words is named apart: a graph of a read's would hold each position's keys a second time.
        self._opening = "prefix" if graphs is None else "opening"
        self._last_weights = -1
        self.cache, self.every_layer = cache, every_layer
        self.decoder = Decoder(language, cache, compile=graphs is not None, spill=self._spill)

    def forget(self) -> None:
        """Give back everything that is kept, captured graphs and the decoder's buffers included.

        To be called by whoever changes weights in a way that :mod:`.identity` cannot see.
        """
        self.cache.clear()
        self.decoder.forget()
        if self._graphs is not None:
            self._graphs.clear()

    def read(
        self,
        layout: TokenLayout,
        pictures: Sequence[Picture],
        wanted: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        mute: bool = False,
        identity: Any = None,
        check: Callable[[], None] = lambda: None,
        number: int | None = None,
        vet: Callable[[Sequence[Tensor]], None] = lambda _: None,
    ) -> list[Tensor]:
        """Hidden states ``(L, D)`` at the ``wanted`` indices, ascending. They are kept: copy before changing them.

        Args:
            dtype, device: what to compute in, and where. mute: zero the pictures' embeddings and deepstack features.
            identity: anything else the states depend on, hashable.
            number: what :attr:`watched` said just now. vet: called with states that no call was given; may raise.
        """
        key = (*self._identify(identity, number), dtype, device, mute)
        with quick_attention(device):
            answers = with_room(
                lambda: self._read(layout, pictures, wanted, key, dtype, device, mute, check), self.cache, self.forget
            )
        return vetted(answers, vet)

    def known(
        self, layout: TokenLayout, pictures: Sequence[Picture], wanted: Sequence[int], *, dtype: torch.dtype,
        device: torch.device, mute: bool = False, identity: Any = None, number: int, **_: Any,
    ) -> list[Tensor] | None:
        """What :meth:`read` would find kept, for which no weight has to be at hand; None if something is not."""
        key = (*self._identify(identity, number), dtype, device, mute)
        kept = self._kept(layout, pictures, wanted, key)[1]
        return None if kept is None else [answer.states for answer in kept]

    def name_of(
        self, dtype: torch.dtype, device: torch.device, identity: Any = None, number: int | None = None
    ) -> tuple:
        """What everything that is kept of this model is called by, as it is now; see :meth:`read`."""
        return (*self._identify(identity, number), dtype, device, False)

    def look(
        self, asked: Sequence[tuple[TokenLayout, Sequence[Picture]]], key: tuple, check: Callable[[], None]
    ) -> list[list[Features] | None]:
        """What the vision tower gives for sequences to be opened, None where all is known. Before a desk is reserved:
        for a moment the tower needs as much room as one."""
        found: list[list[Features] | None] = []
        dtype, device = key[-3:-1]
        for layout, pictures in asked:
            seen = self._seen(pictures)
            length, name, prefix = self._prefix(layout, key, seen, self._opening)
            known = self.decoder.holds(name, length) or (prefix is not None and len(prefix.pairs) >= self.num_layers)
            found.append(None if known else self._features(pictures, key, seen, dtype, device, check))
        return found

    def _seen(self, pictures: Sequence[Picture]) -> tuple[bytes, ...]:
        """What pictures are kept by; nothing where nothing is kept."""
        return tuple(picture.digest for picture in pictures) if self.cache.limit else ()

    def open(
        self, layout: TokenLayout, pictures: Sequence[Picture], room: int, desk: Desk, row: int, key: tuple,
        check: Callable[[], None] = lambda: None, features: list[Features] | None = None,
    ) -> Opening:
        """Read a sequence to its end into a row of a desk, for :attr:`decoder` to write on.

        What reading shares with it is run once; what the row holds of the same pictures stays where it is.

        Args:
            room: positions to come that rotary tables are made for.
            key: what :meth:`name_of` gave. features: what :meth:`look` gave.
        """
        dtype, device = key[-3:-1]
        seen = self._seen(pictures)
        length, name, prefix = self._prefix(layout, key, seen, self._opening)
        last, total = (self.num_layers,), len(layout)
        past = self._past(desk, row, name, length, prefix)
        states: dict[int, Tensor] = {}
        if past is None:
            first = length or total
            features = features or self._features(pictures, key, seen, dtype, device, check)
            hidden, spans, deepstack = self._inputs(layout, first, features, dtype, device)
            past = desk.row(row, 0, first)
            states, _ = self._plain_blocks(hidden, layout, last, spans, deepstack, check, into=past)
        if length:
            # Nobody else is to find these: the fewest launches, each of which takes longer than its work.
            states, pairs = self._later(layout, length, past, last, dtype, device, check, keep=True, kernels=MERGED)
            fill(desk.row(row, length, total), pairs)
            desk.holds[row] = name, length
        rotary = self.rotary(lengthened(layout, room), total)
        return Opening(states[self.num_layers][-1].clone(), rotary, layout.token_ids)

    def branch(
        self, asked: Sequence[tuple[Sequence[TokenLayout], Picture]], *, dtype: torch.dtype, device: torch.device,
        check: Callable[[], None] = lambda: None, **_: Any,
    ) -> Tensor:
        """The last states ``(B, D)`` of sequences that begin with a picture, all in one pass after these.

        Nothing is kept, and nothing that was kept is used: the same sequences give the same bits whatever was read
        before. The same among other pictures' may differ in the last bits.

        Args:
            asked: of each picture the sequences that follow it; up to the end of the picture all are alike, its grid
                too. dtype … check: as :meth:`read` takes them.

        Returns:
            in their order, picture by picture.
        """
        with quick_attention(device):
            return with_room(lambda: branch(self, asked, dtype, device, check), self.cache, self.forget)

    def _past(self, desk: Desk, row: int, name: tuple, length: int, prefix: Prefix | None) -> KeyValues | None:
        """Keys and values of the positions up to the last picture, in their row, then nobody's; None if unknown."""
        if desk.holds[row] == (name, length):
            desk.holds[row] = None
            return desk.row(row, 0, length)
        self.decoder.clear(desk, row)
        if prefix is None or len(prefix.pairs) < self.num_layers:
            return None
        fill(desk.row(row, 0, length), prefix.pairs)
        return desk.row(row, 0, length)

    def _spill(self, name: Hashable, length: int, pairs: KeyValues) -> None:
        """Keep what a row of a desk held; what was kept of the same positions stays with it."""
        before, size = self.cache.get(name), sum(keys.nbytes + values.nbytes for keys, values in pairs)
        if before is not None and len(before.pairs) == len(pairs):
            return
        if size > self.cache.limit or not has_room([pairs[0][0]], size):
            return
        kept = [(keys.clone(), values.clone()) for keys, values in pairs]
        prefix = Prefix(kept, before.states if before is not None else {})
        self.cache.put(name, prefix, prefix.tensors())

    def _identify(self, identity: Any, number: int | None) -> tuple:
        number = self.watched.number() if number is None else number
        if number != self._last_weights:  # nothing kept will be found again, and graphs hold the old addresses
            self.forget()
            self._last_weights = number
        return number, identity

    def _read(
        self, layout: TokenLayout, pictures: Sequence[Picture], wanted: Sequence[int], key: tuple, dtype: torch.dtype,
        device: torch.device, mute: bool, check: Callable[[], None],
    ) -> list[Answered]:
        whole, kept = self._kept(layout, pictures, wanted, key)
        if kept is not None:
            return kept
        layers = tuple(range(wanted[-1] + 1)) if self.every_layer else tuple(wanted)
        states = self._run(layout, pictures, layers, key, self._seen(pictures), dtype, device, mute, check)
        answers = {layer: Answered(one) for layer, one in states.items()}
        for layer, answer in answers.items():
            self.cache.put((*whole, layer), answer, [answer.states])
        return [answers[layer] for layer in wanted]

    def _kept(
        self, layout: TokenLayout, pictures: Sequence[Picture], wanted: Sequence[int], key: tuple
    ) -> tuple[tuple, list[Answered] | None]:
        """The name of a question's states, and those of the wanted layers; None unless all are kept."""
        whole = ("states", *key, digest(layout.token_ids), self._seen(pictures), layout.grids)
        found: list[Any] = [self.cache.get((*whole, layer)) for layer in wanted] if self.cache.limit else [None]
        return whole, None if None in found else found

    def _run(
        self, layout: TokenLayout, pictures: Sequence[Picture], wanted: tuple[int, ...], key: tuple, seen: tuple,
        dtype: torch.dtype, device: torch.device, mute: bool, check: Callable[[], None],
    ) -> dict[int, Tensor]:
        """States ``(L, D)`` by index, with what is kept of the part up to the last picture."""
        length, name, prefix = self._prefix(layout, key, seen)
        if prefix is None or not prefix.serves(wanted):
            first = length or len(layout)
            features = [] if mute else self._features(pictures, key, seen, dtype, device, check)
            hidden, spans, deepstack = self._inputs(layout, first, features, dtype, device)
            states, pairs = self._all_blocks(hidden, layout, wanted, spans, deepstack, bool(length), check)
            if not length:
                return states
            if prefix is not None:
                pairs, states = max(prefix.pairs, pairs, key=len), {**prefix.states, **states}
            prefix = Prefix(pairs, states)
            self.cache.put(name, prefix, prefix.tensors())
        later, _ = self._later(layout, length, prefix.pairs, wanted, dtype, device, check)
        return {layer: torch.cat([prefix.states[layer], later[layer]]) for layer in wanted}

    def _prefix(
        self, layout: TokenLayout, key: tuple, seen: tuple, kind: str = "prefix"
    ) -> tuple[int, tuple, Prefix | None]:
        """Positions up to the last picture, 0 where nothing is kept; their name, and what is kept of them."""
        length = prefix_length(layout) if self.cache.limit else 0
        name = (kind, *key, digest(layout.token_ids[:length]), seen, layout.grids)
        return length, name, self.cache.get(name) if length else None

    def _later(
        self, layout: TokenLayout, length: int, past: KeyValues, wanted: tuple[int, ...], dtype: torch.dtype,
        device: torch.device, check: Callable[[], None], keep: bool = False, kernels: Kernels | None = None,
    ) -> tuple[dict[int, Tensor], KeyValues]:
        """The positions after a prefix: states by index, and their own keys and values."""
        rotary = self.rotary(layout, length)
        hidden = self.embed(layout.token_ids[length:], dtype, device)
        return run_blocks(
            self.language, hidden, rotary, wanted, self.num_layers, past=past, keep=keep,
            kernels=kernels or self._plain_kernels(hidden), check=check,
        )

    def _inputs(
        self, layout: TokenLayout, length: int, features: Sequence[Features], dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, list[tuple[int, int]], list[Tensor]]:
        """Embeddings ``(length, D)`` of the first positions with the pictures in place, where those are, and deepstack
        features per level; without features pictures are zeros."""
        hidden, spans = self.embed(layout.token_ids[:length], dtype, device), picture_spans(layout)
        deepstack = [joined(level) for level in zip(*features, strict=True)][1:]
        parts: Sequence[Tensor | int] = [one[0] for one in features] or [0] * len(spans)
        for (start, stop), part in zip(spans, parts, strict=True):
            hidden[start:stop] = part
        return hidden, spans, deepstack

    def embed(self, ids: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Token ids as they enter the first block, ``(…, D)``."""
        table = self.language.embed_tokens
        return table(ids.to(table.weight.device)).to(device, dtype)

    def _all_blocks(
        self, hidden: Tensor, layout: TokenLayout, wanted: tuple[int, ...], spans: Sequence[tuple[int, int]],
        deepstack: list[Tensor], keep: bool, check: Callable[[], None],
    ) -> tuple[dict[int, Tensor], KeyValues]:
        """The first positions, by a graph if there are any: states by index, keys and values per block."""
        if self._graphs is None:
            return self._plain_blocks(hidden, layout, wanted, spans, deepstack, check, keep=keep)
        check()
        # Later positions change nothing before them, so lengths share a graph.
        length = len(hidden)
        padding = -length % PADDED_TO
        kernels = self._kernels(hidden)
        # See _vision's tables.
        rotary = functools.cache(lambda: self.first_rotary(lengthened(layout, padding), length + padding))

        def run(hidden: Tensor, *deepstack: Tensor) -> list[Tensor]:
            captured, pairs = run_blocks(
                self.language, hidden, rotary(), wanted, self.num_layers, deepstack=deepstack, kernels=kernels,
                spans=spans, capture_before=self.capture_before, keep=keep,
            )
            return [*captured.values(), *itertools.chain.from_iterable(pairs)]

        name = ("blocks", length + padding, wanted, tuple(spans), layout.grids, len(deepstack), keep)
        hidden = functional.pad(hidden, (0, 0, 0, padding))
        outputs = [output[:length] for output in self._graphs.run(name, run, [hidden, *deepstack])]
        pairs = outputs[len(wanted) :]
        return dict(zip(wanted, outputs, strict=False)), list(zip(pairs[::2], pairs[1::2], strict=True))

    def _plain_blocks(
        self, hidden: Tensor, layout: TokenLayout, wanted: tuple[int, ...], spans: Sequence[tuple[int, int]],
        deepstack: list[Tensor], check: Callable[[], None], **options: Any,
    ) -> tuple[dict[int, Tensor], KeyValues]:
        return run_blocks(
            self.language, hidden, self.first_rotary(layout, len(hidden)), wanted, self.num_layers, spans=spans,
            deepstack=deepstack, capture_before=self.capture_before, kernels=self._plain_kernels(hidden),
            check=check, **options,
        )

    def first_rotary(self, layout: TokenLayout, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of the first ``length`` positions, ``(length, 1, d)``."""
        cos, sin = self.rotary(layout, 0)
        return cos[:length], sin[:length]

    def _features(
        self, pictures: Sequence[Picture], key: tuple, seen: tuple, dtype: torch.dtype, device: torch.device,
        check: Callable[[], None],
    ) -> list[Features]:
        """Of each picture, in a pass of its own. ``seen``: what they are kept by; nothing keeps none."""
        names = [("vision", *key, one) for one in seen] or [None] * len(pictures)
        found: list[Features] = []
        for name, picture in zip(names, pictures, strict=True):
            check()
            outputs = self.cache.get(name) if name else None
            if outputs is None:
                outputs = self._vision(picture, dtype, device, check)
                if name:  # pictures were named to be kept
                    self.cache.put(name, outputs, outputs)
            found.append(outputs)
        return found

    def _vision(
        self, picture: Picture, dtype: torch.dtype, device: torch.device, check: Callable[[], None]
    ) -> Features:
        """A picture's embeddings and deepstack features, ``(n, D)`` each."""
        grid = picture.grid
        # 8-bit pixels travel to the device, not the patches, which take eight times as much.
        patches = patchify(Picture(picture.pixels.to(device)))[0][None].to(dtype)
        if self._graphs is None:
            embeddings, deepstack = run_vision(
                self.visual, patches, self.tables(grid, device), self._plain_kernels(patches), check
            )
            return [embeddings[0], *(level[0] for level in deepstack)]
        kernels = self._kernels(patches)
        tables = functools.cache(lambda: self.tables(grid, device))  # a graph keeps its own, a replay needs none

        def run(patches: Tensor) -> list[Tensor]:
            embeddings, deepstack = run_vision(self.visual, patches, tables(), kernels)
            return [embeddings, *deepstack]

        return [output[0] for output in self._graphs.run(("vision", grid), run, [patches])]

    def _kernels(self, like: Tensor) -> Kernels:
        """What graphs on that device are captured with."""
        if self._graphs is None or not self._graphs.works or like.device.type != "cuda":
            return self._plain_kernels(like)
        if self._compiled is None:
            self._compiled = compiled_kernels(like.device)
        return self._compiled

    def _plain_kernels(self, like: Tensor) -> Kernels:
        """What is run without a graph: on a CPU a convolution over patches takes three times the product's time."""
        return EXACT if self._exact and like.device.type == "cuda" else MERGED

    def tables(self, grid: tuple[int, int], device: torch.device) -> VisionTables:
        """What the vision tower needs to know of a picture's merged ``(rows, columns)``; kept."""
        name = "tables", grid, device
        if (tables := self.cache.get(name) if self.cache.limit else None) is None:
            side = round(self.visual.pos_embed.weight.shape[0] ** 0.5)
            tables = vision_tables(grid, side, self.visual.rotary_pos_emb.inv_freq, device)
            self.cache.put(name, tables, tables.tensors())
        return tables
