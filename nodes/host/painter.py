"""ComfyUI's MODEL, VAE and CLIP as what a look is learned on, for Z-Image and FLUX.2 klein alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.supported_models
import torch
from torch import Tensor

from ...vl_core.looks.padding import Paddings
from ...vl_core.states.families import ZIMAGE, Family
from ...vl_core.states.layout import TokenLayout
from ...vl_core.states.vl_states import LAYOUT_KEY
from . import gradients, identity
from .text_encoder import check_text_clip, encode_text

HELD = 4  # noisy pictures that room is asked for: as many as a step has
COMPILED = "torch.compile"  # ComfyUI's key for a compiled forward, which is left out while learning
PAINTED_IN = 8  # steps of a preview
SAMPLER, SCHEDULER = "euler", "simple"


class ComfyPainter:
    """A :class:`vl_core.looks.painter.Painter`.

    What it answers is made by ComfyUI's own functions, LoRA, schedule and other patches of the MODEL included: a look
    is learned on the model as it would paint.

    Args:
        model: MODEL, Z-Image or FLUX.2 klein. vae: its VAE. clip: its text encoder.

    Raises:
        ValueError: naming the input, if one of them is of another family, or no gradient can pass through the MODEL.
    """

    def __init__(self, model: Any, vae: Any, clip: Any) -> None:
        self.family = check_models(model, clip)
        check_vae(vae, model)
        gradients.check_gradients(model.model.diffusion_model)
        self.model, self.vae, self.clip = model.clone(), vae, clip
        self.name = model_name(model)
        self.multiple = _compression(vae, model) * int(model.model.diffusion_model.patch_size)
        self._first: tuple[int, int] | None = None
        self._largest: tuple[int, ...] = ()
        self._paddings = Paddings(self.family.tail_tokens)
        self._options: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return self.model.load_device

    def identity(self) -> str:
        """A fingerprint of all three, and of what is patched on them: the same after a restart."""
        parts = (
            identity.identity_of_model(self.model), identity.identity_of_vae(self.vae), identity.identity_of(self.clip)
        )
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def text(self, prompt: str) -> tuple[Tensor, TokenLayout]:
        with torch.inference_mode():
            states, options = encode_text(self.clip, prompt)[0]
        layout = options.get(LAYOUT_KEY)
        if layout is None:
            raise ValueError(
                f"words: expected plain words, got an embedding: file or tokens of pictures in {prompt!r}."
            )
        states = _usable(states[0])
        self._paddings.remember(states, layout)
        return states, layout

    def latents(self, picture: Tensor) -> Tensor:
        with torch.inference_mode():
            found = self.vae.encode(picture[None].float() / 255)
            wanted = _channels(self.model)
            if found.ndim != 4 or found.shape[1] != wanted:
                raise ValueError(
                    f"vae: expected latents of {wanted} channels for {self.family.name}, got shape "
                    f"{tuple(found.shape)}. Connect the VAE that belongs to the model."
                )
            found = self.model.model.process_latent_in(found)
        self._first = self._first or (found.shape[2], found.shape[3])
        self._largest = max(self._largest, tuple(found.shape[1:]), key=math.prod)
        with torch.inference_mode(False):
            return _usable(found[0]).to(self.device, torch.float32)

    def levels(self, latents: Tensor) -> Tensor:
        return _usable(self.model.get_model_object("model_sampling").sigmas).flip(0).float().cpu()

    def velocity(self, noisy: Tensor, levels: Tensor, captions: Sequence[Tensor]) -> Tensor:
        found: list[Tensor | None] = [None] * len(captions)
        for group in _alike(captions):
            same = all(captions[index] is captions[group[0]] for index in group)
            one = [self._paddings.behind(captions[index]) for index in (group[:1] if same else group)]
            painted = self._velocity(noisy[group], levels[group], torch.stack(one))
            for index, part in zip(group, painted, strict=True):
                found[index] = part
        return torch.stack([part for part in found if part is not None])

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The model is on its device, and gradients pass through it to the caption; see :mod:`.gradients`."""
        with ExitStack() as stack:
            stack.enter_context(gradients.gradients_through(self.model.model.diffusion_model))
            stack.callback(self._leave)
            self._load()
            yield

    def paint(self, caption: Tensor, size: int, seed: int) -> Tensor:
        """What the model paints of a caption ``(L, S·D)``, also while it is learned on.

        Returns:
            IMAGE ``(1, H, W, 3)`` in the shape of the first picture, of at most about size × size pixels.
        """
        training, self_options = comfy.model_management.in_training, self._options
        comfy.model_management.in_training = False
        try:
            with torch.inference_mode():
                empty = torch.zeros(1, _channels(self.model), *self._preview_sides(size))
                noise = comfy.sample.prepare_noise(empty, seed)
                positive = [[self._paddings.behind(caption.detach())[None].cpu(), {}]]
                latents = comfy.sample.sample(
                    self.model, noise, PAINTED_IN, 1.0, SAMPLER, SCHEDULER, positive, positive, empty, seed=seed,
                    disable_pbar=True,
                )
                return self.vae.decode(latents)[..., :3].float().clamp(0, 1).cpu()
        finally:
            comfy.model_management.in_training = training
            if self_options:  # the sampler has let go of the model, and the VAE may have taken its place
                self._load()

    def _preview_sides(self, size: int) -> tuple[int, int]:
        """Rows and columns of latents."""
        pixels, patch = _compression(self.vae, self.model), self.multiple // _compression(self.vae, self.model)
        rows, columns = self._first or (size // pixels, size // pixels)
        shrink = min(1.0, size / (pixels * math.sqrt(rows * columns)))
        rows, columns = (max(1, round(side * shrink / patch)) * patch for side in (rows, columns))
        return rows, columns

    # --- the model ----------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Have the model on its device, with room for a step, and all that is patched on it in force."""
        base = self.model.model
        shape = (HELD, *(self._largest or (_channels(self.model), 64, 64)))
        kept = gradients.checkpoint_bytes(base.diffusion_model, base.get_dtype_inference(), HELD, shape[2:])
        with torch.inference_mode():
            comfy.model_management.load_models_gpu(
                [self.model], memory_required=2 * base.memory_required(shape) + kept
            )
        options = comfy.model_patcher.create_model_options_clone(self.model.model_options)
        comfy.sampler_helpers.prepare_model_patcher(self.model, {}, options)
        of_model = options.setdefault("transformer_options", {})
        of_model["optimized_attention_override"] = gradients.differentiable_attention
        for kind in of_model.get("wrappers", {}).values():
            kind.pop(COMPILED, None)
        comfy.samplers.cast_to_load_options(options, device=self.device, dtype=self.model.model_dtype())
        self._options = options
        self.model.pre_run()

    def _leave(self) -> None:
        self._options = {}
        self.model.cleanup()

    def _velocity(self, noisy: Tensor, levels: Tensor, captions: Tensor) -> Tensor:
        """Of captions of one length ``(B, L, S·D)``, or one for all."""
        base = self.model.model
        cond = comfy.sampler_helpers.convert_cond([[captions, {}]])
        comfy.samplers.encode_model_conds(base.extra_conds, cond, noisy, noisy.device, "positive")
        (clean,) = comfy.samplers.calc_cond_batch(base, [cond], noisy, levels.to(noisy.device), self._options)
        return (clean - noisy) / levels.to(noisy.device)[:, None, None, None]


def _usable(tensor: Tensor) -> Tensor:
    """A copy that may take part in learning: what was made in inference mode may not."""
    with torch.inference_mode(False):
        return tensor.detach().clone()


def _alike(captions: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of captions of one length together."""
    by_length: dict[int, list[int]] = {}
    for index, caption in enumerate(captions):
        by_length.setdefault(len(caption), []).append(index)
    return list(by_length.values())


# --- what fits --------------------------------------------------------------------------------------------------------


def check_models(model: Any, clip: Any) -> Family:
    """The family of a MODEL and its text encoder.

    Raises:
        ValueError: for a MODEL that is neither Z-Image nor FLUX.2 klein, a CLIP of another family, or one of the other
            size.
    """
    base: Any = getattr(model, "model", None)
    family = check_text_clip(clip, klein=True)
    config = getattr(base, "model_config", None)
    pixels = getattr(comfy.supported_models, "ZImagePixelSpace", ())
    if isinstance(config, comfy.supported_models.ZImage) and not isinstance(config, pixels):
        group, width = ZIMAGE.group, base.diffusion_model.cap_embedder[0].normalized_shape[-1]
    elif isinstance(base, comfy.model_base.Flux2):
        params: Any = base.diffusion_model.params
        group, width = "FLUX.2 klein", params.context_in_dim
    else:
        kind = type(base).__name__ if base is not None else type(model).__name__
        raise ValueError(f"model: expected Z-Image or FLUX.2 klein, got {kind}. Load one with Load Diffusion Model.")
    if group != family.group:
        load = "lumina2" if group == ZIMAGE.group else "flux2"
        raise ValueError(
            f"clip: expected the text encoder of the model, which is {group}, got {family.name}'s. Load it with Load "
            f"CLIP, type {load}."
        )
    if width != family.width:
        raise ValueError(
            f"clip: expected states of width {width}, which the model reads, got {family.width} of {family.name}'s "
            "encoder. Use the encoder of the model's size."
        )
    schedule = model.get_model_object("model_sampling")
    if not isinstance(schedule, comfy.model_sampling.CONST) or getattr(schedule, "noise_scale", 1.0) != 1:
        raise ValueError(
            f"model: expected the noise schedule of {group}, a straight line from noise to picture, got "
            f"{', '.join(base.__name__ for base in type(schedule).__bases__)}. Take the patch of its sampling off."
        )
    return family


def check_vae(vae: Any, model: Any) -> None:
    """Refuse a VAE whose latents are another model's, by what it says of itself; ``latents`` looks at them as well.

    Raises:
        ValueError: saying what was expected.
    """
    wanted = _channels(model)
    channels, sides = getattr(vae, "latent_channels", wanted), getattr(vae, "latent_dim", 2)
    if not hasattr(vae, "encode") or channels != wanted or sides != 2:
        what = f"{channels} channels" + (" of video" if sides == 3 else "") if hasattr(vae, "encode") else "none"
        raise ValueError(
            f"vae: expected the VAE of {type(model.model).__name__} with {wanted} latent channels, got {what}. Connect "
            "the one that belongs to the model: ae.safetensors for Z-Image, flux2-vae.safetensors for FLUX.2 klein."
        )


def model_name(model: Any) -> str:
    """The file that a MODEL was loaded from, as far as ComfyUI says, and a mark of what is patched on its weights."""
    made = getattr(model, "cached_patcher_init", None)
    path = made[1][0] if made and made[1] and isinstance(made[1][0], str) else ""
    name = Path(path).stem if path else type(model.model).__name__
    if not model.patches:
        return name
    return f"{name} with LoRA {identity.identity_of_model(model)[:8]}"


def _channels(model: Any) -> int:
    return int(model.model.model_config.unet_config["in_channels"])


def _compression(vae: Any, model: Any) -> int:
    """Pixels per latent along a side."""
    if hasattr(vae, "spacial_compression_encode"):
        return int(vae.spacial_compression_encode())
    return int(model.model.latent_format.spacial_downscale_ratio)
