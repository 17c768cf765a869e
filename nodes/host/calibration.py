"""Statistics of a text encoder, measured once and kept on disk."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import folder_paths

from ...vl_core import ReferenceStatistics, calibrate, calibration_prompts
from ...vl_core.states.stacks import split_layers
from ...vl_core.states.statistics import ENCODER_LAYER
from .identity import identity_of
from .memory import fast_allowed, progress_bar
from .text_encoder import check_text_clip, encode_many

log = logging.getLogger(__name__)

MOST_KEPT = 64  # files of statistics, of one encoder and layer each


def measure_layers(clip: Any) -> tuple[list[ReferenceStatistics], str]:
    """Statistics of a text encoder over the built-in prompts, from the cache on disk if it was measured before.

    Returns:
        of every layer that the encoder puts side by side one, padding left out, in the family's order; and where they
        came from.
    """
    family = check_text_clip(clip, "source", klein=True)
    own = ENCODER_LAYER if clip.layer_idx is None else clip.layer_idx
    layers, identity = family.layers if family.stacked else (own,), _measured_by(clip)
    files = [_reference_file(identity, layer) for layer in layers]
    names = ", ".join(file.name for file in files)
    found = [_read_reference(file, identity, layer) for file, layer in zip(files, layers, strict=True)]
    kept = [one for one in found if one is not None]
    if len(kept) == len(found):
        return kept, f"from the cache: {names}"
    prompts = calibration_prompts()
    if family.stacked:
        texts = [split_layers(text, family) for text in encode_many(clip, prompts)]
        each = [dict(zip(prompts, states, strict=True)) for states in zip(*texts, strict=True)]
        measured = [
            calibrate(states.__getitem__, prompts, encoder=identity, layer=layer)
            for states, layer in zip(each, layers, strict=True)
        ]
    else:
        measured = [calibrate(
            lambda prompt: clip.encode_from_tokens(clip.tokenize(prompt)).cpu(), prompts, encoder=identity, layer=own,
            progress=progress_bar(len(prompts)),
            encode_many=(lambda texts: encode_many(clip, texts)) if fast_allowed() else None,
        )]
    try:
        for reference, file in zip(measured, files, strict=True):
            reference.save(file)
        _make_room(files[0])
    except OSError as error:
        return measured, f"measured now, not kept for the next time: {error}"
    return measured, f"measured now, kept as {names}"


def _measured_by(clip: Any) -> str:
    """What statistics depend on: the encoder, and the built-in prompts."""
    return hashlib.sha256("\n".join([identity_of(clip), *calibration_prompts()]).encode()).hexdigest()


def _make_room(kept: Path) -> None:
    """Delete the statistics that were written first, so that experiments with weights do not fill the disk."""
    files = sorted(kept.parent.glob("reference_*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    for old in files[:-MOST_KEPT]:
        old.unlink(missing_ok=True)


def _reference_file(identity: str, layer: int) -> Path:
    folder = Path(folder_paths.get_user_directory()) / "zimage_vl"
    return folder / f"reference_{identity[:16]}_layer{layer}.safetensors"


def _read_reference(file: Path, identity: str, layer: int) -> ReferenceStatistics | None:
    """Statistics that were kept, None if there are none of this encoder and layer that can be read."""
    if not file.is_file():
        return None
    try:
        reference = ReferenceStatistics.load(file)
    except ValueError as error:
        log.warning("Measuring again, because the cached reference cannot be read: %s", error)
        return None
    return reference if reference.encoder == identity and reference.layer == layer else None
