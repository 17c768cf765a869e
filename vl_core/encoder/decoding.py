"""One token after the other: what the language model computes for the newest position alone.

Keys and values lie in buffers of a fixed size, and everything that changes from token to token (the position, how much
of the buffers is filled, the token itself) in tensors. So a step is the same work each time: on an NVIDIA GPU it is
captured once as a graph and replayed, without a word from the CPU. Elsewhere the same functions run one by one.

The results are those of the modules' own ``forward`` up to rounding; ``tests/unit/encoder/test_writing.py`` holds them
to transformers' ``generate`` token by token.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .forward import ATTENTION, BLOCK, MLP, KeyValues, bare
from .sampling import Sampling, choose
from .stored import Stored, stored_weight

log = logging.getLogger(__name__)


# a weight (out, in) without a bias, one in 8 bits, or a module that is more than its weight
Projection = Tensor | Stored | nn.Module


class Parts(NamedTuple):
    """A block without the norms of its heads."""

    norm: Tensor
    query: Projection
    keys: Projection
    values: Projection
    output: Projection
    later_norm: Tensor
    gate: Projection
    up: Projection
    down: Projection


@dataclass(frozen=True, eq=False)
class Plan:
    """A language model as a step reads it; holds its weights, copies none but the small ones of the heads' norms.

    Attributes:
        blocks: all of them.
        turns, opposite: ``(blocks, H + G, d)``: weights of the heads' norms, queries' before keys', and the same
            rolled by half a head. Times the rotary tables they are norm and rotation in one.
        heads, groups: of the queries, and of the keys and values; ``size``: of a head.
        norm: the weight after the last block; ``epsilon`` of every norm.
        embeddings: ``(vocabulary, D)``, or the module that gives them; ``head``: what turns states into scores of
            ``vocabulary`` tokens.
        resident: whether every weight stays where it is, so that a graph may hold its address.
    """

    blocks: tuple[Parts, ...]
    turns: Tensor
    opposite: Tensor
    heads: int
    groups: int
    size: int
    norm: Tensor
    epsilon: float
    embeddings: Tensor | nn.Module
    head: Projection
    vocabulary: int
    resident: bool

    @property
    def width(self) -> int:
        return len(self.norm)


def plan_of(language: Any, head: Projection | None, dtype: torch.dtype, device: torch.device) -> Plan | None:
    """How to run a step on these modules; None if a norm of theirs is more than its weight, or no head is to be had.

    Args:
        language: what holds ``layers``, ``norm`` and ``embed_tokens``.
        head: what turns states into scores, put on the device if it is a tensor elsewhere; the embeddings if None.
    """
    like = torch.empty(1, 0, dtype=dtype, device=device)
    blocks, turns, epsilons = [], [], set()

    def weight(norm: Any) -> Tensor:
        epsilons.add(_epsilon(norm))
        return norm.weight.detach().to(device, dtype)

    for layer in language.layers:
        attention, mlp, before, later = BLOCK(layer._modules)
        *modules, query_norm, key_norm = ATTENTION(attention._modules)
        query, keys, values, output = (_projection(module, like) for module in modules)
        gate, up, down = (_projection(module, like) for module in MLP(mlp._modules))
        blocks.append(Parts(weight(before), query, keys, values, output, weight(later), gate, up, down))
        turns.append((weight(query_norm), weight(key_norm)))
    last, table = weight(language.norm), bare(language.embed_tokens, like)
    embeddings = language.embed_tokens if table is None else table[0]
    if head is None:
        head = embeddings if isinstance(embeddings, Tensor) else None
    elif isinstance(head, Tensor):
        head = head.to(device)
    elif isinstance(head, nn.Module):
        head = _projection(head, like)
    if head is None or None in epsilons or len(epsilons) > 1:
        return None
    first = language.layers[0].self_attn
    size = first.head_dim
    heads, groups = (module.weight.shape[0] // size for module in (first.q_proj, first.k_proj))
    weights = torch.stack([torch.cat([query.expand(heads, -1), keys.expand(groups, -1)]) for query, keys in turns])
    modules = [part for block in blocks for part in block if isinstance(part, nn.Module)]
    modules += [part for part in (embeddings, head) if isinstance(part, nn.Module)]
    return Plan(
        tuple(blocks), weights, weights.roll(size // 2, -1), heads, groups, size, last, epsilons.pop(), embeddings,
        head, language.embed_tokens.weight.shape[0], all(_stays(module, device) for module in modules),
    )


def _epsilon(norm: nn.Module) -> float | None:
    """Of an RMS norm whose result its weight and this number say; None of another."""
    inside = norm.__dict__
    return None if inside.get("add") else inside.get("variance_epsilon") or inside.get("eps")


def _projection(module: nn.Module, like: Tensor) -> Projection:
    parts = bare(module, like)
    if parts is not None:
        return module if parts[1] is not None else parts[0]
    return stored_weight(module, like) or module


def _stays(module: nn.Module, device: torch.device) -> bool:
    """Whether a module that is not bare reads its weights on the device, and the same ones each time."""
    weights = [weight for weight in module.parameters() if weight is not None]
    patched = getattr(module, "weight_function", None) or getattr(module, "bias_function", None)
    return not patched and all(weight.device == device for weight in weights)


def project(part: Projection, x: Tensor) -> Tensor:
    if isinstance(part, Tensor):
        return functional.linear(x, part)
    return part.project(x) if isinstance(part, Stored) else part(x)


def add_projected(hidden: Tensor, part: Projection, x: Tensor) -> Tensor:
    """``hidden`` plus the projection of ``x``; as one product where that is not a compiler's to say."""
    if isinstance(part, Tensor) and not torch.compiler.is_compiling():
        return hidden.addmm_(x, part.t())
    return hidden + project(part, x)


def embed(embeddings: Tensor | nn.Module, tokens: Tensor, like: Tensor) -> Tensor:
    """``(B, D)`` in the dtype and on the device of ``like``."""
    if isinstance(embeddings, Tensor):
        return functional.embedding(tokens, embeddings)
    device = next(embeddings.parameters()).device
    return embeddings(tokens.to(device)).to(like)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, epsilon)


# --- a block --------------------------------------------------------------------------------------------------------


def before_attention(
    hidden: Tensor, norm: Tensor, projections: Sequence[Projection], turn: tuple[Tensor, Tensor],
    kept: Tensor, rows: Tensor, groups: int, epsilon: float,
) -> Tensor:
    """Queries ``(B, H, d)``; keys and values go to their place.

    Args:
        norm, projections: of :class:`Parts`; the latter query, keys and values.
        turn: rotary tables times the norms' weights, cosines and signed sines ``(B, H + G, d)``.
        kept: keys and values ``(B T, 2 G, d)``; ``rows`` int64 ``(B,)`` of them are written.
    """
    x = rms_norm(hidden, norm, epsilon)
    cos, sin = turn
    size, heads = cos.shape[-1], cos.shape[-2] - groups
    mixed = torch.cat([project(part, x) for part in projections], -1).view(len(x), -1, size)
    unit = rms_norm(mixed[:, : heads + groups], None, epsilon)
    if torch.compiler.is_compiling():
        turned = unit * cos + unit.roll(size // 2, -1) * sin
        kept.index_copy_(0, rows, torch.cat([turned[:, heads:], mixed[:, heads + groups :]], 1))
        return turned[:, :heads]
    # In place: keys then lie before the values, and both go to their place at once.
    torch.mul(unit, cos, out=mixed[:, : heads + groups]).addcmul_(unit.roll(size // 2, -1), sin)
    kept.index_copy_(0, rows, mixed[:, heads:])
    return mixed[:, :heads]


def after_attention(
    hidden: Tensor, norm: Tensor, projections: Sequence[Projection], seen: Tensor, epsilon: float
) -> Tensor:
    """States ``(B, D)`` after the block; ``projections``: output, gate, up and down of :class:`Parts`."""
    output, gate, up, down = projections
    hidden = add_projected(hidden, output, seen)
    x = rms_norm(hidden, norm, epsilon)
    return add_projected(hidden, down, functional.silu(project(gate, x)) * project(up, x))


# (queries (B, H, d), keys and values (B, T, G, d)) -> (B, H d)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_masked(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one query a row and head; ``mask`` ``(B, 1, 1, T)`` is added to the scores."""
    rows, heads, size = query.shape
    grouped = query.reshape(rows, keys.shape[2], -1, size)  # heads of a group as queries on the same keys
    seen = functional.scaled_dot_product_attention(
        grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
    )
    return seen.reshape(rows, heads * size)


def attend_filled(
    query: Tensor, keys: Tensor, values: Tensor, starts: tuple[Tensor, Tensor], filled: Tensor
) -> Tensor:
    """The same by the kernel that takes how many keys are ``filled``, int32 ``(B,)``, and reads no others.

    Args:
        starts: int32 ``(B + 1,)``, where each row's queries and keys start.
    """
    seen = torch.ops.aten._flash_attention_forward(
        query.contiguous(), keys.flatten(0, 1), values.flatten(0, 1), *starts, 1, keys.shape[1], 0.0, False, False,
        seqused_k=filled,
    )[0]
    return seen.reshape(len(query), -1)


@functools.lru_cache(maxsize=8)
def knows_filled(device: torch.device, dtype: torch.dtype, heads: int, groups: int, size: int) -> bool:
    """Whether :func:`attend_filled` works here and agrees with :func:`attend_masked`: it is no public function."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    generator = torch.Generator(device).manual_seed(0)
    draw = functools.partial(torch.randn, device=device, dtype=dtype, generator=generator)
    query, keys, values = draw(2, heads, size), draw(2, 192, groups, size), draw(2, 192, groups, size)
    filled = torch.tensor([37, 150], dtype=torch.int32, device=device)
    mask = torch.zeros(2, 1, 1, 192, dtype=dtype, device=device)
    mask.masked_fill_(torch.arange(192, device=device) >= filled[:, None, None, None], -torch.inf)
    try:
        ours = attend_filled(query, keys, values, starts_of(2, 192, device), filled)
    except Exception as error:  # another version, another build, another GPU: whatever it is, there is another way
        log.info("Attention over filled keys only: %s", str(error).strip().partition("\n")[0])
        return False
    return torch.allclose(ours.float(), attend_masked(query, keys, values, mask).float(), atol=2e-2, rtol=2e-2)


def starts_of(rows: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each of so many rows' one query, and its ``length`` keys, start."""
    counts = torch.arange(rows + 1, dtype=torch.int32, device=device)
    return counts, counts * length


# --- a step ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Desk:
    """What a step reads and changes: ``B`` answers of which each may become ``T`` positions long.

    Attributes:
        kept: keys and values per block ``(B, T, 2 G, d)``.
        cos, sin: rotary tables of the positions to come, ``(B, M, d)``, sines signed.
        tokens: int64 ``(B, M)``, what is written; ``token`` ``(B,)``: the newest of each.
        turn: int64 ``(1,)``, how many steps were made; ``filled``: int32 ``(B,)``, positions in the buffers.
        said: bool ``(B, vocabulary)``, tokens of prompt and answer.
        generators: one a row.
        holds: what the first positions of each row are, by name and number; None where nobody needs to know.
        graphs: captured steps on these buffers by their way of choosing, the last used last.
    """

    kept: list[Tensor]
    cos: Tensor
    sin: Tensor
    tokens: Tensor
    token: Tensor
    turn: Tensor
    filled: Tensor
    said: Tensor
    generators: tuple[torch.Generator, ...]
    holds: list[tuple[Hashable, int] | None]
    graphs: OrderedDict[Hashable, Callable[[], None]] = field(default_factory=OrderedDict)

    def tensors(self) -> list[Tensor]:
        return [*self.kept, self.cos, self.sin, self.tokens, self.token, self.turn, self.filled, self.said]

    def row(self, row: int, start: int = 0, stop: int | None = None) -> KeyValues:
        """Keys and values of a row's positions, per block ``(length, G, d)``: the buffers themselves."""
        pairs = [kept[row, start:stop].chunk(2, 1) for kept in self.kept]
        return [(keys, values) for keys, values in pairs]

    @property
    def rows(self) -> int:
        return len(self.token)

    @property
    def length(self) -> int:
        return self.kept[0].shape[1]

    @property
    def room(self) -> int:
        return self.tokens.shape[1]


def set_desk(plan: Plan, rows: int, length: int, room: int, dtype: torch.dtype, device: torch.device) -> Desk:
    """Empty buffers for ``rows`` answers of ``length`` positions, the last ``room`` of them still to be written."""
    def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    return Desk(
        [empty(rows, length, 2 * plan.groups, plan.size) for _ in plan.blocks], empty(rows, room, plan.size),
        empty(rows, room, plan.size), empty(rows, room, kind=torch.long), empty(rows, kind=torch.long),
        empty(1, kind=torch.long), empty(rows, kind=torch.int32), empty(rows, plan.vocabulary, kind=torch.bool),
        tuple(torch.Generator(device) for _ in range(rows)), [None] * rows,
    )


def pick(desk: Desk, states: Tensor, plan: Plan, sampling: Sampling) -> None:
    """Write down the tokens that follow states ``(B, D)`` after the last norm."""
    token = choose(project(plan.head, states), sampling, desk.said, desk.generators if sampling.draws else ())
    if sampling.penalises:
        desk.said.scatter_(1, token[:, None], True)
    desk.token.copy_(token)
    desk.tokens.index_copy_(1, desk.turn, token[:, None])


def step(
    desk: Desk, plan: Plan, sampling: Sampling, longest: int | None = None,
    before: Callable[..., Tensor] = before_attention, after: Callable[..., Tensor] = after_attention,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Read the newest tokens and write the next ones.

    Args:
        longest: most positions that are filled, the newest included, where the caller knows it: no key beyond is
            read. None reads the whole buffers, as a captured step must.
        before, after: the two halves of a block, perhaps compiled. check: called before each; may raise, to stop.
    """
    rows = torch.arange(desk.rows, device=desk.token.device) * desk.length + desk.filled
    cos, sin = (table.index_select(1, desk.turn) for table in (desk.cos, desk.sin))
    cos, sin = plan.turns[:, None] * cos[None], plan.opposite[:, None] * sin[None]
    desk.turn.add_(1)
    desk.filled.add_(1)
    attend, length = _attention(desk, plan, longest)
    hidden = embed(plan.embeddings, desk.token, desk.cos)
    for index, parts in enumerate(plan.blocks):
        check()
        kept = desk.kept[index]
        query = before(
            hidden, parts.norm, (parts.query, parts.keys, parts.values), (cos[index], sin[index]),
            kept.flatten(0, 1), rows, plan.groups, plan.epsilon,
        )
        seen = attend(query, kept[:, :length, : plan.groups], kept[:, :length, plan.groups :])
        projections = parts.output, parts.gate, parts.up, parts.down
        hidden = after(hidden, parts.later_norm, projections, seen, plan.epsilon)
    pick(desk, rms_norm(hidden, plan.norm, plan.epsilon), plan, sampling)


def _attention(desk: Desk, plan: Plan, longest: int | None) -> tuple[Attention, int]:
    """How queries see the filled keys of each row, and how many keys of the buffers to look at."""
    device, dtype = desk.cos.device, desk.cos.dtype
    length = desk.length if longest is None else longest
    if knows_filled(device, dtype, plan.heads, plan.groups, plan.size) and length == desk.length:
        starts = starts_of(desk.rows, length, device)
        return functools.partial(attend_filled, starts=starts, filled=desk.filled), length
    if longest is not None and desk.rows == 1:
        return functools.partial(attend_masked, mask=None), length
    empty = torch.arange(length, device=device) >= desk.filled[:, None]
    mask = torch.zeros(empty.shape, dtype=dtype, device=device).masked_fill_(empty, -torch.inf)
    return functools.partial(attend_masked, mask=mask[:, None, None]), length
