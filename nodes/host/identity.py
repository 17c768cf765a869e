"""Which encoder it is that was read with: by what its weights are, so that what is kept belongs to it alone."""

from __future__ import annotations

import hashlib
import uuid
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from .loaded import LoadedEncoder
from .memory import RereadPatcher

SCHEDULE = "model_sampling"  # where ModelSamplingAuraFlow and its like put another noise schedule
SAMPLES = 64  # values of each tensor that are looked at
_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def identity_of(encoder: Any) -> str:
    """A fingerprint of an encoder's weights and of all that changes them; that of plain weights survives a restart.

    Names, shapes, types and 64 spread-out values of every parameter as they were loaded, then patches, hooks with
    their keyframes, weight wrappers, object patches and injections, in force or not yet: a fine-tune, another
    quantisation, a LoRA or a hook is another encoder. Cheap enough to take each time. Of a folder of quantised weights,
    which may not be there, pieces of its files.

    Args:
        encoder: a CLIP, or what travels on a QWEN3VL wire.

    Returns:
        64 hex digits. What only its own code can tell, a wrapper or a hooked function, counts by the object that it is.
    """
    if isinstance(encoder, LoadedEncoder):
        model = encoder.encoder
        if isinstance(encoder.patcher, RereadPatcher):
            told = f"{model.name} {model.dtype} {model.loaded_layers} {encoder.patcher.fingerprint}"
            return hashlib.sha256(told.encode()).hexdigest()
        return _identity(encoder.patcher, model.model, model.name)
    return _identity(encoder.patcher, encoder.cond_stage_model, "")


def identity_of_model(model: Any) -> str:
    """:func:`identity_of` for a MODEL; a shift of its noise schedule counts by its values and survives a restart."""
    return _identity(model, model.model, "")


def identity_of_vae(vae: Any) -> str:
    """:func:`identity_of` for a VAE; one that is not ComfyUI's own counts by the object that it is."""
    first_stage = getattr(vae, "first_stage_model", None)
    return _name(vae).decode() if first_stage is None else _identity(vae.patcher, first_stage, "")


def _identity(patcher: Any, model: torch.nn.Module, name: str) -> str:
    digest = hashlib.sha256(name.encode())
    # A LoRA or a hook, of this CLIP or of another one that shares its weights, is written into them while it is in use.
    # What `backup` holds is older than what `hook_backup` does.
    unpatched = {key: kept[0] for key, kept in patcher.hook_backup.items()}
    unpatched |= {key: kept.weight for key, kept in patcher.backup.items()}
    for name, parameter in sorted(model.named_parameters()):
        parameter = unpatched.get(name, parameter)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(_sample(parameter))
    _add_patches(digest, patcher.patches)
    for hook in patcher.forced_hooks.hooks if patcher.forced_hooks else ():
        keyframes = hook.hook_keyframe.keyframes
        frames = [(frame.strength, frame.start_percent, frame.guarantee_steps) for frame in keyframes]
        digest.update(f"hook {type(hook).__name__} {frames} {hook.strength}".encode())
        known = patcher.hook_patches.get(hook.hook_ref)
        if known is None:
            digest.update(_name(hook.hook_ref))
        else:
            _add_patches(digest, known)
    for key, wrapped in sorted(patcher.weight_wrapper_patches.items()):
        digest.update(f"wrapper {key}".encode() + b"".join(map(_name, _each(wrapped))))
    objects = dict(patcher.object_patches)
    if isinstance(getattr(objects.get(SCHEDULE), "sigmas", None), torch.Tensor):
        schedule = objects.pop(SCHEDULE)
        kinds = [f"{base.__module__}.{base.__qualname__}" for base in type(schedule).__mro__]
        digest.update(f"{SCHEDULE} {kinds} {len(schedule.sigmas)}".encode() + _sample(schedule.sigmas))
    for kind in (objects, patcher.injections, patcher.wrappers):
        for key, changes in sorted(kind.items(), key=lambda item: str(item[0])):
            found = [part for part in _each(changes) if part]
            if found:
                digest.update(f"changed {key}".encode() + b"".join(map(_name, found)))
    return digest.hexdigest()


def _add_patches(digest: Any, patches: dict) -> None:
    for key in sorted(patches, key=str):
        for strength, patch, strength_model, *rest in patches[key]:
            offset, function = (*rest, None, None)[:2]
            digest.update(f"{key} {strength} {strength_model} {offset}".encode())
            if function is not None:
                digest.update(_name(function))
            for part in _parts(getattr(patch, "weights", patch)):
                digest.update(_sample(part) if isinstance(part, torch.Tensor) else repr(part).encode())


def _parts(patch: Any) -> Iterable[Any]:
    """Tensors and plain values of a patch, which may lie in tuples within tuples."""
    if not isinstance(patch, (tuple, list)):
        return [patch]
    return [part for inner in patch for part in _parts(inner)]


def _each(changes: Any) -> list[Any]:
    """What a patcher keeps below a key: one thing, a list, or lists by key."""
    if isinstance(changes, dict):
        return [part for inner in changes.values() for part in _each(inner)]
    return list(changes) if isinstance(changes, (list, tuple)) else [changes]


def _name(thing: Any) -> bytes:
    """A plain value itself; for any other object a name, the same for as long as it lives, never used again."""
    if isinstance(thing, (torch.dtype, int, float, str)):
        return repr(thing).encode()
    try:
        return _names.setdefault(thing, uuid.uuid4().hex).encode()
    except TypeError:  # cannot be referred to weakly: another one each time
        return uuid.uuid4().hex.encode()


def _sample(tensor: torch.Tensor) -> bytes:
    # A quantised weight as it is stored: turning one into floats to look at 64 of them takes long.
    values = getattr(tensor.detach(), "_qdata", tensor.detach()).reshape(-1)
    return values[:: max(1, values.numel() // SAMPLES)].to("cpu", torch.float32).numpy().tobytes()
