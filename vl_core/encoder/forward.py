"""Qwen3-VL's forward pass with few kernel launches and few copies.

At batch 1 a GPU waits for the next kernel to be launched, so every operation that is merged with another counts. Works
on the modules of transformers and of ComfyUI, which name their parts alike. The results are those of the modules' own
``forward`` up to rounding, and with :data:`EXACT` those of transformers bit for bit;
``tests/unit/encoder/test_prefix.py`` holds them together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..states.layout import TokenLayout, TokenRole
from .kernels import MERGED, Kernels, rotate
from .modules import Block, Language, Vision
from .sight import are_plain, hooked_everywhere, modules_of

# Parts by name from a module's own dict: a tenth of the time that its attributes take, hundreds of times an encode.
BLOCK = itemgetter("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
ATTENTION = itemgetter("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
MLP = itemgetter("gate_proj", "up_proj", "down_proj")
TORCH_LAYERS = {nn.Linear, nn.LayerNorm, nn.Conv3d}
KeyValues = list[tuple[Tensor, Tensor]]  # per block the keys and values (T, heads, size), keys already rotated


def fits(visual: Vision, language: Language) -> bool:
    """Whether these are the modules this file knows, and nobody has wrapped or hooked anything in them or below."""
    try:
        _look_for_parts(visual, language)
    except AttributeError:  # an unknown model lacks a part
        return False
    return not hooked_everywhere() and are_plain(modules_of(visual, language))


def _look_for_parts(visual: Vision, language: Language) -> None:
    """Raise AttributeError unless all that :func:`run_vision` and :func:`run_blocks` read is there, and is of its kind.

    What the merged passes put in the place of an activation has to be that activation.
    """
    _ = visual.patch_embed.proj, visual.pos_embed, visual.merger, visual.rotary_pos_emb.inv_freq
    _ = visual.deepstack_merger_list, visual.deepstack_visual_indexes, language.norm, language.embed_tokens
    for block in language.layers:
        attention, mlp = block.self_attn, block.mlp
        _ = block.input_layernorm, block.post_attention_layernorm
        _ = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, attention.q_norm, attention.k_norm
        _ = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        _expect_activation(mlp, "silu")
    for block in visual.blocks:
        _ = block.norm1, block.norm2, block.attn.qkv, block.attn.proj, block.mlp.linear_fc1, block.mlp.linear_fc2
        _expect_activation(block.mlp, "gelu")


def _expect_activation(mlp: nn.Module, name: str) -> None:
    activation = mlp._modules.get("act_fn")
    if activation is not None and name not in type(activation).__name__.lower():
        raise AttributeError(f"act_fn: expected {name}, got {type(activation).__name__}")


# --- parts ----------------------------------------------------------------------------------------------------------


@cache
def _is_rms_norm(kind: type) -> bool:
    return kind.__name__.endswith("RMSNorm")


def bare(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias, if the module's result is what these alone say: not quantised, patched, offloaded or to be cast.

    ComfyUI's layers (which know ``comfy_cast_weights``) then do what torch's own do, after looking for all of that.
    """
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None:
        return None
    for one in (weight,) if bias is None else (weight, bias):
        if type(one) is not nn.Parameter or one.dtype != x.dtype or one.device != x.device:
            return None
    kind = type(module)
    if kind in TORCH_LAYERS:
        return weight, bias
    known = kind.__module__.startswith("torch.nn.") or hasattr(module, "comfy_cast_weights")
    if not known or getattr(module, "weight_function", None) or getattr(module, "bias_function", None):
        return None
    return weight, bias


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``, past everything that looks for reasons to do more than that."""
    parts = bare(module, x) if isinstance(module, nn.Linear) else None
    return module(x) if parts is None else functional.linear(x, *parts)


def add_linear(residual: Tensor, module: nn.Module, x: Tensor, merge: bool) -> None:
    """``residual += module(x)`` in place; merged where the module is bare and has no bias."""
    parts = bare(module, x) if merge and isinstance(module, nn.Linear) else None
    if parts is None or parts[1] is not None:
        residual.add_(linear(module, x))
    else:
        residual.addmm_(x, parts[0].t())


def linear_gelu(module: nn.Module, x: Tensor, merge: bool) -> Tensor:
    """``gelu(module(x))``, tanh's approximation: merged on a GPU, else in place."""
    parts = bare(module, x) if merge and x.is_cuda and isinstance(module, nn.Linear) else None
    if parts is None or parts[1] is None:
        return torch.ops.aten.gelu_(linear(module, x), approximate="tanh")
    return torch.ops.aten._addmm_activation(parts[1], x, parts[0].t(), use_gelu=True)


def layer_norm(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``, as :func:`linear`."""
    if not isinstance(module, nn.LayerNorm) or (parts := bare(module, x)) is None:
        return module(x)
    return functional.layer_norm(x, module.normalized_shape, *parts, module.eps)


def bare_epsilon(module: nn.Module, x: Tensor) -> float | None:
    """Epsilon of an RMS norm whose weight needs no cast; None if only the module itself can tell what it does."""
    weight, inside = module._parameters.get("weight"), module.__dict__
    if weight is None or not _is_rms_norm(type(module)) or inside.get("add"):
        return None
    if weight.dtype != x.dtype or weight.device != x.device:
        return None
    return inside.get("variance_epsilon") or inside.get("eps")


def rms_norm(module: nn.Module, x: Tensor, kernels: Kernels) -> Tensor:
    """``module(x)``, past everything else where its weight needs no cast."""
    epsilon, weight = bare_epsilon(module, x), module._parameters.get("weight")
    return module(x) if epsilon is None or weight is None else kernels.rms_norm(x, weight, epsilon)


def norm_and_rotate(
    norms: Sequence[nn.Module], query: Tensor, keys: Tensor, rotary: tuple[Tensor, Tensor], kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Queries and keys ``(L, H, d)`` as attention takes them."""
    epsilon, other = (bare_epsilon(norm, x) for norm, x in zip(norms, (query, keys), strict=True))
    if epsilon is None or epsilon != other:
        query, keys = (norm(x) for norm, x in zip(norms, (query, keys), strict=True))
        return rotate(query, *rotary), rotate(keys, *rotary)
    return kernels.norm_and_rotate(query, keys, (norms[0].weight, norms[1].weight), epsilon, *rotary)


def signed(sin: Tensor) -> Tensor:
    """The sines :func:`rotate` takes: those of the first half negated."""
    first, second = sin.chunk(2, -1)
    return torch.cat([-first, second], -1)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, count: int = 1) -> Tensor:
    """Grouped causal attention of ``(L, H, d)`` queries on ``(T, G, d)`` keys and values -> ``(L, H d)``.

    Args:
        mask: None if the queries are the last of the keys' own sequence from its start (L = T), else what
            :func:`later_mask` gives.
        count: sequences of one length that follow one another in L and T, each blind to the others.
    """
    heads, size = query.shape[1:]
    query, keys, values = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in (query, keys, values))
    groups, length = keys.shape[1], query.shape[2]
    if mask is not None:  # the heads of a group share their keys: as more queries on them they need no copies of them
        query = query.reshape(count, groups, heads // groups * length, size)
        seen = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        seen = seen.reshape(count, heads, length, size)
    else:
        seen = functional.scaled_dot_product_attention(
            query, keys, values, is_causal=True, enable_gqa=heads != groups
        )
    return seen.transpose(1, 2).reshape(count * length, heads * size)


def later_mask(past: int, length: int, per_group: int, device: torch.device) -> Tensor:
    """Which of ``past + length`` keys each of ``length`` later queries sees, once per head of a group."""
    keys = torch.arange(past + length, device=device)
    return (keys <= past + keys[:length, None]).repeat(per_group, 1)


def branch_mask(
    past: int, lengths: Sequence[Sequence[int]], padded: int, per_group: int, like: Tensor
) -> Tensor:
    """As :func:`later_mask` where several sequences follow the same past: each sees that and itself, no other.

    Args:
        lengths: of the sequences, for each of B pasts. padded: what those of a past are filled up to together.
        like: in whose dtype and on whose device.

    Returns:
        ``(B, 1, per_group * padded, past + padded)``, 0 where a key is seen and -∞ where not. What fills up sees the
        past, since the mean over nothing is no number.
    """
    own = torch.zeros(len(lengths), padded, padded, dtype=torch.bool)  # on the CPU, where it takes no launches
    for seen, each in zip(own, lengths, strict=True):
        for stop, length in zip(itertools.accumulate(each), each, strict=True):
            seen[stop - length : stop, stop - length : stop] = torch.ones(length, length, dtype=torch.bool).tril()
    seen = functional.pad(own.to(like.device), (past, 0), value=True).repeat(1, per_group, 1)[:, None]
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf)


# --- the language model ---------------------------------------------------------------------------------------------


def run_block(
    block: Block,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    past: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    kernels: Kernels = MERGED,
    count: int = 1,
) -> tuple[Tensor, Tensor]:
    """One block on ``hidden (L, D)``, which it changes in place.

    Args:
        rotary: cosines and signed sines ``(L, 1, d)``.
        past: keys and values of the positions before, with ``mask`` from :func:`later_mask`.
        count: see :func:`attend`; of ``past`` too.

    Returns:
        the block's keys and values, those of ``past`` included.
    """
    attention, mlp, before_attention, before_mlp = BLOCK(block._modules)
    to_query, to_keys, to_values, to_output, *norms = ATTENTION(attention._modules)
    to_gate, up, down = MLP(mlp._modules)
    x = rms_norm(before_attention, hidden, kernels)
    shape = (len(hidden), -1, attention.head_dim)
    query, keys, values = (linear(projection, x).view(shape) for projection in (to_query, to_keys, to_values))
    query, keys = norm_and_rotate(norms, query, keys, rotary, kernels)
    if past is not None:
        keys, values = (_each_after(*pair, count) for pair in zip(past, (keys, values), strict=True))
    add_linear(hidden, to_output, attend(query, keys, values, mask, count), kernels.merges)
    x = rms_norm(before_mlp, hidden, kernels)
    add_linear(hidden, down, kernels.gate(linear(to_gate, x), linear(up, x)), kernels.merges)
    return keys, values


def heads_per_group(language: Language) -> int:
    """Heads of queries that share their keys."""
    first = language.layers[0].self_attn
    return first.q_proj.weight.shape[0] // first.k_proj.weight.shape[0]


def _each_after(before: Tensor, later: Tensor, count: int) -> Tensor:
    """The parts of ``count`` sequences one after the other, each its ``before`` and its ``later``."""
    return torch.cat([part.unflatten(0, (count, -1)) for part in (before, later)], 1).flatten(0, 1)


def run_blocks(
    language: Language,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    wanted: Sequence[int],
    num_layers: int,
    *,
    spans: Sequence[tuple[int, int]] = (),
    deepstack: Sequence[Tensor] = (),
    capture_before: bool = True,
    past: KeyValues | None = None,
    mask: Tensor | None = None,
    count: int = 1,
    keep: bool = False,
    into: KeyValues | None = None,
    kernels: Kernels = MERGED,
    check: Callable[[], None] = lambda: None,
) -> tuple[dict[int, Tensor], KeyValues]:
    """Hidden states at the ``wanted`` indices, running no block beyond the last of them.

    Args:
        language: what holds ``layers`` and ``norm``.
        hidden: input embeddings ``(L, D)``; used as scratch.
        wanted: indices as Hugging Face's ``hidden_states`` counts, ascending.
        num_layers: blocks of the whole model: that index is taken after the final norm.
        spans: per picture where its positions start and stop; ``deepstack``: ``(n, D)`` per level for all of them.
        capture_before: take states 1 … 3 before a level is added (transformers 5) or after it (ComfyUI).
        past: keys and values of earlier positions, per block.
        mask: which keys are seen after ``past``, where that is not all before a position: see :func:`attend`.
        count: sequences that ``hidden`` is made of, see :func:`attend`; several of them keep nothing of what follows
            a past.
        keep: return keys and values, those of ``past`` left out.
        into: write them here instead, ``(L, G, d)`` each; they are not returned.

    Returns:
        states ``(L, D)`` by index, and keys and values per block if they are to be kept.
    """
    captured, kept = {}, []
    before = len(past[0][0]) if past else 0
    if before and mask is None:
        mask = later_mask(before, len(hidden), heads_per_group(language), hidden.device)
    if 0 in wanted:
        captured[0] = hidden.clone()
    for index in range(wanted[-1]):
        check()
        pair = run_block(language.layers[index], hidden, rotary, past[index] if past else None, mask, kernels, count)
        if into is not None:
            for buffer, part in zip(into[index], pair, strict=True):
                buffer.copy_(part[before:])
        elif keep:
            kept.append(tuple(part[before:].clone() if before else part.contiguous() for part in pair))
        number, adds = index + 1, index < len(deepstack) and bool(spans)
        if number in wanted and (capture_before or not adds):
            captured[number] = _capture(language, hidden, number, num_layers, wanted[-1], kernels)
        if adds:
            if number in captured and captured[number] is hidden:
                break  # the last state there is to take is the one before this level
            add_levels(hidden, deepstack[index], spans)
            if number in wanted and not capture_before:
                captured[number] = _capture(language, hidden, number, num_layers, wanted[-1], kernels)
    return captured, kept


def _capture(
    language: Language, hidden: Tensor, number: int, num_layers: int, last: int, kernels: Kernels
) -> Tensor:
    if number == num_layers:
        return rms_norm(language.norm, hidden, kernels)
    return hidden if number == last else hidden.clone()


def add_levels(hidden: Tensor, features: Tensor, spans: Sequence[tuple[int, int]]) -> None:
    """Add one deepstack level ``(n, D)`` at the pictures' places, in place."""
    done = 0
    for start, stop in spans:
        hidden[start:stop] += features[done : done + stop - start]
        done += stop - start


def picture_spans(layout: TokenLayout) -> list[tuple[int, int]]:
    """Per picture ``(start, stop)`` of its positions."""
    return [(int(positions[0]), int(positions[-1]) + 1) for positions in layout.picture_positions()]


def prefix_length(layout: TokenLayout) -> int:
    """Positions up to the end of the last picture, its end marker included; 0 without pictures."""
    markers = (layout.roles == TokenRole.MARKER).nonzero()
    return int(markers[-1]) + 1 if len(markers) else 0


def mrope_rotary(
    positions: Tensor, size: int, theta: float, section: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines ``(L, 1, size)`` of Qwen3-VL's interleaved rotary embedding.

    Frequencies ``theta^(-2i/size)`` turn with the time axis, except that of the first ``3 section[1]`` every third
    from 1 turns with the row and of the first ``3 section[2]`` every third from 2 with the column (Qwen3-VL,
    arXiv 2511.21631).

    Args:
        positions: int64 ``(3, L)`` on the device of the result.
    """
    steps = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None].float() / theta ** (steps / size)
    turned = angles[0].clone()
    for axis in (1, 2):
        places = slice(axis, 3 * section[axis], 3)
        turned[:, places] = angles[axis, :, places]
    angles = torch.cat([turned, turned], -1)[:, None]
    return angles.cos().to(dtype), signed(angles.sin()).to(dtype)


# --- the vision tower -----------------------------------------------------------------------------------------------


