"""Unpack CONDITIONING for vl_core and pack it again: entries in, entries out, nothing modified in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..vl_core import ReferenceStatistics, TokenLayout, TokenRole
from ..vl_core.states.families import ZIMAGE, Family, find_family
from ..vl_core.states.stacks import Padding, by_layer, restore_padding, split_padding
from ..vl_core.states.statistics import ENCODER_LAYER
from ..vl_core.states.vl_states import LAYOUT_KEY

Entry = list  # [tensor (B, L, D), dict]
Measured = ReferenceStatistics | tuple[ReferenceStatistics, ...] | None  # of one layer, or of each that a family reads
TENSOR_OPTIONS = {LAYOUT_KEY, "attention_mask", "pooled_output"}  # what says something about the tokens themselves

EDGE = 1e-6  # share of the schedule between two ranges: the host's include both ends, and steps fall on round shares


def check_conditioning(conditioning: list[Entry], name: str = "conditioning") -> None:
    """Refuse what the sampler would choke on or paint black with.

    Raises:
        ValueError: no entries, no tokens, NaN or infinite values.
    """
    if not conditioning:
        raise ValueError(f"{name}: expected at least one entry, got an empty CONDITIONING.")
    for index, (states, _) in enumerate(conditioning):
        if states.ndim != 3 or not states.shape[1]:
            raise ValueError(
                f"{name}: expected states of shape (batch, tokens, width), got {tuple(states.shape)} in entry {index}."
            )
        if not states.isfinite().all():
            broken = int((~states.isfinite()).sum())
            raise ValueError(
                f"{name}: entry {index} holds {broken} NaN or infinite values. The encoder that made it overflowed: "
                "load it in bf16 or fp32."
            )


def check_one_layer(reference: Measured) -> ReferenceStatistics | None:
    """Refuse statistics of layers that lie side by side, one for each.

    Raises:
        ValueError: naming the layers.
    """
    if isinstance(reference, tuple):
        raise ValueError(
            f"reference: expected statistics of one layer ({ENCODER_LAYER}), got those of layers "
            f"{', '.join(str(one.layer) for one in reference)}, which FLUX.2 klein reads. Measure Z-Image's encoder."
        )
    return reference


def references_of(reference: Measured, family: Family) -> tuple[ReferenceStatistics | None, ...]:
    """Statistics for each layer of a family, as Text Encoder Statistics measured them; an unknown layer is taken.

    Raises:
        ValueError: if they are of another family, or of a layer that it does not read; naming both.
    """
    if not family.stacked:
        known = check_one_layer(reference)
        if known is not None and known.layer not in (None, ENCODER_LAYER):
            raise ValueError(
                f"reference: expected statistics of layer {ENCODER_LAYER}, which Z-Image reads, got {known.layer}. "
                "Measure the text encoder without CLIP Set Last Layer before it."
            )
        return (known,)
    if reference is None:
        return (None,) * len(family.layers)
    if not isinstance(reference, tuple) or tuple(one.layer for one in reference) != family.layers:
        layer = "s of another family" if isinstance(reference, tuple) else f" {reference.layer}"
        raise ValueError(
            f"reference: expected statistics of {family.describe_layers()}, which {family.name} reads, got layer"
            f"{layer}. Connect Load CLIP, type flux2, to Text Encoder Statistics."
        )
    return reference


def entry_family(entry: Entry) -> Family:
    """The family of an entry's states; a single layer if nothing tells."""
    return find_family(entry[0].shape[-1], layout_of(entry)) or ZIMAGE


def take_padding(entry: Entry, family: Family) -> tuple[Entry, Padding | None]:
    """An entry without its padding, and the padding."""
    words = words_of(entry) if family.padded_to else None
    states, layout, padding = split_padding(entry[0], layout_of(entry), words)
    return (repack(entry, states, layout), padding) if padding else (entry, None)


def put_padding(entry: Entry, states: Tensor, layout: TokenLayout | None, padding: Padding | None) -> Entry:
    """A new entry with other states and the padding behind them again; ``entry`` is the one that had it."""
    changed = repack(entry, *restore_padding(states, layout, padding))
    return attend_words(changed, states.shape[1]) if padding else changed


def describe_layers(infos: Sequence[Any], family: Family) -> str:
    """What was done in each layer, in the words of its info; layers that lie side by side are numbered."""
    if not family.stacked:
        return infos[0].describe()
    return "\n".join(f"layer {layer}: {info.describe()}" for layer, info in zip(family.layers, infos, strict=True))


def layout_of(entry: Entry) -> TokenLayout | None:
    """The entry's layout, or None for text from core nodes.

    Raises:
        ValueError: if the layout is of another length, because a node in between changed the tokens.
    """
    layout = entry[1].get(LAYOUT_KEY)
    if layout is not None and len(layout) != entry[0].shape[1]:
        raise ValueError(
            f"conditioning: expected {len(layout)} tokens, as the node before described them, got {entry[0].shape[1]}: "
            "a node in between changed them. Place it after the last Z-Image VL node."
        )
    return layout


def require_layout(entry: Entry, purpose: str) -> TokenLayout:
    layout = layout_of(entry)
    if layout is None:
        raise ValueError(
            f"conditioning: {purpose} needs to know what each token is, but this conditioning does not say. "
            "Connect the output of Qwen3-VL Encode (or of a Z-Image VL node after it)."
        )
    return layout


def scope_positions(entry: Entry, scope: str) -> Tensor | None:
    """Positions a stage is limited to: None for all, or the boolean ``(L,)`` of image tokens.

    Raises:
        ValueError: if it is to be limited to image tokens and there are none.
    """
    if scope == "all tokens":
        return None
    positions = require_layout(entry, f"scope = {scope}").mask(TokenRole.IMAGE)
    if not positions.any():
        raise ValueError(f"scope: {scope} needs image tokens, but this conditioning has none. Choose all tokens.")
    return positions


def pack_states(states: Tensor, layout: TokenLayout) -> list[Entry]:
    """One fresh CONDITIONING entry."""
    return [[states, {LAYOUT_KEY: layout}]]


def repack(entry: Entry, states: Tensor, layout: TokenLayout | None) -> Entry:
    """A new entry with other states; every option stays, but an attention mask of another length would be stale."""
    options: dict[str, Any] = dict(entry[1])
    if states.shape[1] != entry[0].shape[1]:
        options.pop("attention_mask", None)
    options.pop(LAYOUT_KEY, None)
    if layout is not None:
        options[LAYOUT_KEY] = layout
    return [states, options]


def map_entries(conditioning: list[Entry], stage: Callable[[Entry], tuple[Entry, str]]) -> tuple[list[Entry], str]:
    """Run a stage over every entry; the reports of several entries are numbered."""
    check_conditioning(conditioning)
    entries, reports = zip(*(stage(entry) for entry in conditioning), strict=True)
    if len(reports) == 1:
        return list(entries), reports[0]
    return list(entries), "\n".join(f"[{index}] {report}" for index, report in enumerate(reports, 1))


def map_layers(
    conditioning: list[Entry],
    reference: Measured,
    scope: str,
    stage: Callable[[Tensor, ReferenceStatistics | None, Tensor | None, TokenLayout | None], tuple[Tensor, Any]],
) -> tuple[list[Entry], str]:
    """Run a stage over every entry, on each layer of a stack for itself, padding left as it is.

    ``stage`` takes a layer's states, its statistics, the positions it acts on and what the positions are, where known;
    it gives new states and what was done.
    """

    def change(entry: Entry) -> tuple[Entry, str]:
        family = entry_family(entry)
        references = references_of(reference, family)
        words, padding = take_padding(entry, family)
        positions, layout = scope_positions(words, scope), layout_of(words)
        states, infos = by_layer(
            words[0], family, lambda part, index: stage(part, references[index], positions, layout)
        )
        return put_padding(entry, states, layout, padding), describe_layers(infos, family)

    return map_entries(conditioning, change)


def timed(text: Entry, mixed: Entry, start: float, end: float) -> list[Entry]:
    """The mixture from ``start`` to ``end`` (shares of the schedule) and the text outside of it, never both at once.

    Ranges the text already had are kept: each part is cut to them, and empty parts are left out.
    """
    first, last = text[1].get("start_percent", 0.0), text[1].get("end_percent", 1.0)
    if first >= last:
        raise ValueError(
            f"text: acts from {first} to {last} of the steps, which is never. Mend its timestep range before this node."
        )
    parts = [(text, first, min(last, start)), (mixed, max(first, start), min(last, end)), (text, max(first, end), last)]
    ranged = [(entry, begin, stop if stop == last else stop - EDGE) for entry, begin, stop in parts if begin < stop]
    if len(ranged) == 1 and ranged[0][0] is mixed:
        return [mixed]  # acts all the time the text does: its options stay as they were
    return [[entry[0], {**entry[1], "start_percent": begin, "end_percent": stop}] for entry, begin, stop in ranged]


def words_of(entry: list) -> int | None:
    """How many tokens of a text entry come before its padding, None if it has no attention mask of its length."""
    mask = entry[1].get("attention_mask")
    if mask is None or mask.shape[-1] != entry[0].shape[1]:  # core nodes that join texts keep the first one's
        return None
    return int((mask.reshape(-1, mask.shape[-1])[0] != 0).sum())


def attend_words(entry: list, words: int | None = None) -> list:
    """The entry, its attention mask brought up to date where tokens have taken the places of padding.

    Args:
        words: how many tokens come before its padding, where that is known; else the layout says it.
    """
    states, options = entry
    mask, layout = options.get("attention_mask"), options.get(LAYOUT_KEY)
    if words is None and layout is not None and layout.padding().any():
        words = int((~layout.padding()).sum())
    if mask is None or words is None:
        return entry
    attended = torch.arange(mask.shape[-1]) < words
    return [states, {**options, "attention_mask": attended.to(mask).expand(mask.shape)}]
