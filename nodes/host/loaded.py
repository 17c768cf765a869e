"""Qwen3-VL from a Hugging Face folder under ComfyUI's memory management."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch

from ...vl_core import Description, VLStates
from ...vl_core.encoder.folder import is_quantised, weight_files
from ...vl_core.encoder.home import Home
from ...vl_core.encoder.judging import Answer, Question, answer
from ...vl_core.encoder.quantised import quantisation_of
from ...vl_core.encoder.qwen3vl import Qwen3VLEncoder
from ...vl_core.encoder.room import with_room
from ...vl_core.encoder.writing import describe, describe_each
from ...vl_core.pictures import FACTOR, check_picture, fit_size
from ...vl_core.states.families import ZIMAGE
from .folders import encoder_folders, encoder_roots
from .memory import (
    EncoderPatcher,
    RereadPatcher,
    activation_bytes,
    buffer_bytes,
    check_interrupted,
    fast_allowed,
    forget_when_unloaded,
    writing_bar,
)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CACHES = ("on", "every layer", "off")  # what Load Qwen3-VL lets an encoder keep


class LoadedEncoder:
    """A transformers Qwen3-VL under ComfyUI's memory management: what travels on a QWEN3VL wire."""

    def __init__(self, encoder: Qwen3VLEncoder, weights: Sequence[Path] = ()):
        """``weights``: the files of weights that are quantised, of an encoder that has not read them yet."""
        self.encoder = encoder
        device = comfy.model_management.text_encoder_device()
        offload_device = comfy.model_management.text_encoder_offload_device()
        if weights:
            self.patcher: EncoderPatcher | RereadPatcher = RereadPatcher(encoder, weights, device, offload_device)
            return
        # Not CoreModelPatcher: with dynamic VRAM that one copies plain torch weights to the GPU anew at every load.
        self.patcher = patcher = EncoderPatcher(
            torch.nn.Sequential(encoder.model),  # the patcher sets `device`, which transformers' models do not allow
            load_device=device, offload_device=offload_device,
            size=comfy.model_management.module_size(encoder.model),
        )
        patcher.forget = encoder.forget
        patcher.home = Home(patcher.model)
        forget_when_unloaded(patcher, encoder.reader)

    def encode(self, images, prompt, layers, system_prompt, budget, notes, mute, family=ZIMAGE) -> VLStates:
        self._load(images, len(self.encoder.tokenize(prompt, system_prompt, family)), budget)
        return self.encoder.encode(
            images, prompt, layers, system_prompt, budget=budget, mute=mute, notes=notes, check=check_interrupted,
            family=family,
        )

    def write(self, images, instruction, max_tokens, budget, **options) -> Description:
        """Words about pictures; see :func:`describe` for ``options``."""
        tell, pieces = writing_bar(max_tokens), []

        def hear(piece: str) -> None:
            pieces.append(piece)
            tell(lambda: "".join(pieces))

        self._load_to_write(images, instruction, max_tokens, budget, options.get("system_prompt"))
        return describe(
            self.encoder, images, instruction, max_tokens=max_tokens, budget=budget, on_text=hear,
            check=check_interrupted, **options,
        )

    def write_each(self, images, instruction, max_tokens, budget) -> list[Description]:
        """Words about each picture by itself, all written at the same time; see :func:`describe_each`."""
        self._load_to_write(images[:1], instruction, max_tokens, budget, None, len(images))

        def stop() -> bool:
            check_interrupted()
            return False

        return describe_each(
            self.encoder, images, instruction, max_tokens=max_tokens, budget=budget, together=len(images),
            should_stop=stop, check=check_interrupted,
        )

    def ask(self, picture: torch.Tensor, questions: Sequence[Question], budget: int) -> list[Answer]:
        """How likely it finds each answer of each question about a picture."""
        self._load([picture], sum(len(self.encoder.tokenize(question.ask)) for question in questions), budget)
        return answer(self.encoder, picture, questions, budget=budget, check=check_interrupted)

    def _load_to_write(self, images, instruction, max_tokens, budget, system_prompt, answers: int = 1) -> None:
        """:meth:`_load`, with room to write so many answers, each about these pictures."""
        config = self.encoder.model.config
        own_head = 0 if config.tie_word_embeddings else self.encoder.head().nbytes
        tokens = len(self.encoder.tokenize(instruction, system_prompt)) + max_tokens
        buffers = buffer_bytes(config.text_config, tokens + budget * len(images))
        self._load(images, tokens, budget, own_head + buffers * answers)

    def _load(self, images, tokens: int, budget: int, more_bytes: int = 0) -> None:
        """Have the model on its device, with room for the pictures and ``tokens`` beside them."""
        check_interrupted()
        for index, image in enumerate(images, 1):
            height, width = check_picture(image, f"image {index}")[0].shape[:2]
            rows, columns = fit_size(height, width, budget, f"image {index}")
            tokens += rows * columns // FACTOR**2
        self.load(activation_bytes(self.encoder.width, tokens) + more_bytes)

    def load(self, room: int) -> None:
        """Have the model on its device, and so many bytes beside it."""
        # Plain torch layers cannot be streamed in parts, so the model is loaded whole.
        with_room(
            lambda: comfy.model_management.load_models_gpu([self.patcher], memory_required=room, force_full_load=True),
            self.encoder.reader.cache, self.encoder.forget,
        )

    def describe(self) -> str:
        encoder, loaded = self.encoder, len(self.encoder.model.language_model.layers)
        dtype = str(encoder.dtype).removeprefix("torch.")
        method = quantisation_of(encoder.model.config.to_dict()) if isinstance(self.patcher, RereadPatcher) else ""
        dtype += f", quantised ({method})" if method else ""
        size = self.patcher.model_size() / 2**30
        return (
            f"{encoder.name}: {encoder.variant}, {dtype}, {loaded} of {encoder.num_layers} blocks, {size:.2f} GiB"
        )


def load_encoder(
    folder: str, dtype: str, deepest_layer: int, cache: str = "on", compile: bool = False
) -> LoadedEncoder:
    """Load a Qwen3-VL folder by the name the loader shows.

    Args:
        cache: one of ``CACHES``.
        compile: see :class:`Qwen3VLEncoder`.

    Raises:
        ValueError: if there is no such folder, the message lists where it looked; for an unknown ``cache``.
    """
    if cache not in CACHES:
        raise ValueError(f"cache: expected one of {', '.join(CACHES)}, got {cache!r}.")
    folders = encoder_folders()
    if folder not in folders:
        raise ValueError(no_folder(folder))
    bar = comfy.utils.ProgressBar(1)

    def progress(done: int, total: int) -> None:
        check_interrupted()
        bar.update_absolute(done, total)

    path = folders[folder]
    quantised = is_quantised(path)
    encoder = Qwen3VLEncoder.from_pretrained(
        path, device="meta" if quantised else comfy.model_management.text_encoder_offload_device(),
        dtype=_pick_dtype(dtype), deepest_layer=deepest_layer, progress=progress,
        cache_bytes=0 if cache == "off" else None, every_layer=cache == "every layer", compile=compile,
        fast=fast_allowed(),
    )
    loaded = LoadedEncoder(encoder, weight_files(path) if quantised else ())
    if quantised:
        loaded.load(0)  # what cannot be read is told here
    return loaded


def no_folder(folder: str) -> str:
    """What to say where there is no Qwen3-VL folder of that name."""
    looked = "\n".join(f"  {root}" for root in encoder_roots())
    named = f"Qwen3-VL folder {folder!r}" if folder else "Qwen3-VL folder"
    return (
        f"folder: found no {named}. Put the Hugging Face folder of Qwen3-VL-4B (config.json, tokenizer and safetensors "
        f"files) in one of:\n{looked}\nthen press R to refresh the list."
    )


def _pick_dtype(name: str) -> torch.dtype:
    if name in DTYPES:
        return DTYPES[name]
    device = comfy.model_management.text_encoder_device()
    if comfy.model_management.is_device_cpu(device):
        return torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float16
