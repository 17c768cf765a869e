"""Whatever encoder hangs on a socket: reading pictures and writing about them, by a folder or by Load CLIP."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...vl_core import Description, VLStates
from ...vl_core.encoder.asking import check_request
from ...vl_core.encoder.sampling import Sampling
from ...vl_core.encoder.written import WrittenStore, description_key
from ...vl_core.pictures import DEFAULT_BUDGET, split_batch
from ...vl_core.states.families import FAMILIES, ZIMAGE, Family, check_encoders, family_of
from . import memory
from .identity import identity_of
from .loaded import LoadedEncoder
from .native import check_vision_clip, encode_native, native_model
from .native_words import write_each_native, write_native
from .text_encoder import EMBEDDING_FILE, SIBLINGS, as_host_reads, check_text_clip


def single_pictures(images: dict[str, torch.Tensor] | None) -> list[torch.Tensor]:
    """The connected pictures of an Autogrow input, each ``(1, H, W, C)``."""
    return [one for image in (images or {}).values() if image is not None for one in split_batch(image)]


def encode_vision(
    encoder: Any,
    images: dict[str, torch.Tensor] | None,
    prompt: str,
    layers: Sequence[int],
    *,
    system_prompt: str = "",
    budget: int = DEFAULT_BUDGET,
    mute: bool = False,
    name: str = "encoder",
    family: Family = ZIMAGE,
) -> tuple[VLStates, list[str]]:
    """Read pictures and a prompt with whatever hangs on the socket.

    Args:
        encoder: a QWEN3VL, or a CLIP that holds Qwen3-VL.
        images: name -> IMAGE ``(B, H, W, C)``, as an Autogrow input gives them; each of a batch is a picture.
        layers: Hugging Face numbering.
        mute: leave the pictures' places empty: zeros for their embeddings and no deepstack features.
        family: whose template.

    Returns:
        the states, and remarks for the node about what was changed on the way in.

    Raises:
        ValueError: see :func:`check_vision_clip` and :meth:`Qwen3VLEncoder.encode`.
    """
    if EMBEDDING_FILE.search(prompt):
        raise ValueError("prompt: contains an embedding: file; Qwen3-VL has none. Remove it from the prompt.")
    pictures = single_pictures(images)
    notes: list[str] = []
    if isinstance(encoder, LoadedEncoder):
        system = as_host_reads(system_prompt) or None
        return encoder.encode(pictures, as_host_reads(prompt), layers, system, budget, notes, mute, family), notes
    check_vision_clip(encoder, name, family)
    return encode_native(encoder, pictures, prompt, layers, system_prompt, budget, notes, mute, family), notes


def write_words(
    encoder: Any, images: dict[str, torch.Tensor] | None, instruction: str, *, max_tokens: int, seed: int = 0,
    system_prompt: str = "", budget: int = DEFAULT_BUDGET, name: str = "encoder", **sampling: Any,
) -> Description:
    """What the Qwen3-VL on the socket writes about pictures, with a bar on the node; Stop ends it between two tokens.

    Args:
        encoder, images: as :func:`encode_vision` takes them; Qwen3-VL-4B and 8B can write.
        instruction … budget: see :func:`describe`. sampling: settings of :class:`Sampling`.

    Raises:
        ValueError: see there and :func:`check_vision_clip`; without a picture.
    """
    drawn = Sampling(**sampling)
    _check_asked(encoder, instruction, max_tokens, name)
    pictures = single_pictures(images)
    if not pictures:
        raise ValueError("images: expected at least one picture to describe, got none. Connect an image.")
    if isinstance(encoder, LoadedEncoder):
        return encoder.write(
            pictures, as_host_reads(instruction), max_tokens, budget, seed=seed,
            system_prompt=as_host_reads(system_prompt), **sampling,
        )
    return write_native(encoder, pictures, instruction, system_prompt, max_tokens, budget, seed, drawn)


def write_each(
    encoder: Any, pictures: Sequence[torch.Tensor], instruction: str, *, max_tokens: int, budget: int = DEFAULT_BUDGET,
) -> list[Description]:
    """The likeliest words about each picture by itself, written at the same time; Stop ends them between two tokens.

    Args:
        pictures: ``(1, H, W, C)`` or ``(H, W, C)`` each.
    """
    _check_asked(encoder, instruction, max_tokens, "encoder")
    if isinstance(encoder, LoadedEncoder):
        return encoder.write_each(pictures, as_host_reads(instruction), max_tokens, budget)
    groups = [[one if one.ndim == 4 else one[None]] for one in pictures]
    return write_each_native(encoder, groups, instruction, "", max_tokens, budget, 0, Sampling())


def _check_asked(encoder: Any, instruction: str, max_tokens: int, name: str) -> None:
    """Refuse what cannot be asked for, and what cannot write; see :func:`check_writer`."""
    check_request(instruction, max_tokens)
    if EMBEDDING_FILE.search(instruction):
        raise ValueError("instruction: contains an embedding: file; Qwen3-VL has none. Remove it from the words.")
    check_writer(encoder, name)


def check_writer(encoder: Any, name: str = "encoder") -> None:
    """Refuse what is no Qwen3-VL of a size that this pack knows.

    Raises:
        ValueError: see :func:`check_vision_clip`.
    """
    if isinstance(encoder, LoadedEncoder):
        return
    clip_name = getattr(getattr(encoder, "cond_stage_model", None), "clip_name", "")
    families = [family for family in FAMILIES if family.vision_encoder == SIBLINGS.get(clip_name)]
    check_vision_clip(encoder, name, families[0] if families else ZIMAGE)


WORDS_VARIABLE = "ZIMAGE_VL_WORDS"  # environment: a folder where descriptions outlive ComfyUI
_written: dict[Path | None, WrittenStore] = {}


def written_store() -> WrittenStore:
    """Descriptions that were written before: in memory, and in the folder that ``ZIMAGE_VL_WORDS`` names."""
    named = os.environ.get(WORDS_VARIABLE, "").strip()
    folder = Path(named).expanduser() if named else None
    return _written.setdefault(folder, WrittenStore(folder))


def known_words(
    encoder: Any, images: dict[str, torch.Tensor] | None, instruction: str, *, max_tokens: int, seed: int = 0,
    system_prompt: str = "", budget: int = DEFAULT_BUDGET, name: str = "encoder",
    write: Callable[..., Description] = write_words, **sampling: Any,
) -> tuple[Description, bool]:
    """:func:`write_words`, and whether they had been written before: then no model is loaded.

    What one encoder wrote is never taken for another's: the key has its weights' fingerprint.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed, "system_prompt": system_prompt, "budget": budget}
    pictures = single_pictures(images)
    known_kind = isinstance(encoder, LoadedEncoder) or native_model(encoder) is not None
    if not (pictures and known_kind and memory.fast_allowed()):
        return write(encoder, images, instruction, **options, name=name, **sampling), False
    key = description_key(
        identity_of(encoder), instruction, pictures, max_tokens=max_tokens, budget=budget, seed=seed,
        system_prompt=system_prompt, sampling=Sampling(**sampling),
    )
    store = written_store()
    found = store.get(key)
    if found is not None:
        return found, True
    found = write(encoder, images, instruction, **options, name=name, **sampling)
    store.put(key, found)
    return found, False


def width_note(states: torch.Tensor, group: str = ZIMAGE.group) -> str:
    """A remark if these states cannot go to any image model of the group as they are."""
    width, members = states.shape[-1], [family for family in FAMILIES if family.group == group]
    if width in {family.width for family in members}:
        return ""
    takes = ", ".join(f"{one.name} takes {one.width}, which {one.vision_encoder} gives" for one in members)
    return f"Width {width}: {takes}."


def pick_family(group: str, encoder: Any) -> Family:
    """The family of a group that goes with an encoder's size.

    Raises:
        ValueError: for a group there is not.
    """
    if isinstance(encoder, LoadedEncoder):
        return family_of(group, encoder.encoder.width)
    native = native_model(encoder)
    if native is None:
        return family_of(group, ZIMAGE.hidden)  # check_vision_clip will say what is wrong with it
    name = SIBLINGS.get(encoder.cond_stage_model.clip_name, "")
    return family_of(group, native.transformer.model.config.hidden_size, name)


def check_widths(clip: Any, vision: Any) -> None:
    """Refuse a text and a vision encoder whose states cannot be mixed.

    Raises:
        ValueError: if their hidden states differ in width, or a family's layers are not at the same depth in both; see
            :func:`check_vision_clip` too.
    """
    family = check_text_clip(clip, klein=True)
    text = getattr(clip.cond_stage_model, clip.cond_stage_model.clip_name)
    hidden = text.transformer.model.config.hidden_size
    if isinstance(vision, LoadedEncoder):
        encoder = vision.encoder
        check_encoders(family, hidden, encoder.width, text.num_layers, encoder.num_layers, encoder.name)
    elif family.stacked:
        check_vision_clip(vision, "vision", family)
        native = native_model(vision)
        width = native.transformer.model.config.hidden_size
        name = vision.cond_stage_model.clip_name
        check_encoders(family, hidden, width, text.num_layers, native.num_layers, name)


