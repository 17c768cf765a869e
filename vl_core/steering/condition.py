"""One way on states that are at hand: for notebooks that read pictures themselves."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..states.layout import TokenLayout
from ..states.statistics import ReferenceStatistics
from ..states.vl_states import VLStates
from .settings import Settings
from .way import Given, Readings, Text, check_strength, find_way


def condition(
    text: Tensor,
    layout: TokenLayout | None,
    seen: VLStates,
    layer: int,
    mode: str,
    strength: float,
    *,
    muted: VLStates | None = None,
    settings: Settings | None = None,
    reference: ReferenceStatistics | None = None,
) -> tuple[Tensor, TokenLayout | None, str]:
    """Let what the VL model saw steer the prompt, by a way that mixes its states.

    Args:
        text: Z-Image's states of the prompt, ``(L, D)`` or ``(B, L, D)``; ``layout`` says what its tokens are.
        seen: a reading of the same prompt with pictures, in which the way's layers were captured.
        layer: the hidden state that is mixed, Hugging Face numbering; negative counts from the end.
        mode: the way's name, such as ``"aligned blend"``; names that it has had as well.
        strength: 0 returns the text bit for bit.
        muted: the same reading with its pictures muted, for ways that need it.
        settings: of the way; those it does not use are not looked at.
        reference: the text encoder's statistics, for settings that need them.

    Returns:
        the states for Z-Image, their layout, and a report of what was done.

    Raises:
        ValueError: for a way that needs more than a reading, a strength it does not take, a muted reading or
            statistics that are needed and not given, and see the way.
    """
    way = find_way(mode)
    check_strength(way, strength)
    if strength == 0:
        return text, layout, "Strength 0: words only."
    from_end = layer - seen.num_layers - 1 if layer >= 0 else layer
    own = replace(settings or Settings(), way=way.name, strength=strength, layer=from_end)
    needs = way.needs(own, Given())
    if not needs.layers:
        raise ValueError(f"mode: {way.name} needs more than a reading of the picture. Use steer().")
    if needs.muted and muted is None:
        raise ValueError(f"muted: {way.name} compares with the reading whose pictures are muted, got none.")
    readings = Readings(seen=seen, muted=muted, statistics=(reference,))
    steered = way.act(Text(text, layout), readings, own, Given())
    return steered.states, steered.layout, "\n".join(steered.lines)
