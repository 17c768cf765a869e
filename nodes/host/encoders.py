"""Everything that touches ComfyUI itself: folders, memory, progress, and its own Qwen3-VL and Qwen3 encoders."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy.patcher_extension import CallbacksMP
from comfy.text_encoders import flux, qwen3vl, z_image

from ..vl_core import Description, ReferenceStatistics, TokenLayout, VLStates, calibrate, calibration_prompts
from ..vl_core.cache import ByteCache, default_limit
from ..vl_core.describe import TOP_K, check_request, describe, finish, sampling
from ..vl_core.encoder import Qwen3VLEncoder
from ..vl_core.families import (
    FAMILIES,
    ZIMAGE,
    Family,
    check_encoders,
    detect_text_family,
    family_of,
    published,
    split_layers,
)
from ..vl_core.forward import fits, mrope_rotary
from ..vl_core.layout import (
    PAD_TOKEN,
    SYSTEM_TURN,
    SpecialTokens,
    insert_pictures,
    mrope_positions,
    pad_layout,
    picture_insertion_point,
    text_layout,
)
from ..vl_core.pictures import (
    DEFAULT_BUDGET,
    FACTOR,
    Picture,
    check_picture,
    fit_size,
    prepare_picture,
    split_batch,
    to_float,
)
from ..vl_core.prefix import Reader
from ..vl_core.states import LAYOUT_KEY, resolve_layer
from ..vl_core.statistics import ENCODER_LAYER, length_batches

log = logging.getLogger(__name__)

EMBEDDING_FILE = re.compile(r"(^|\s)embedding:")  # how ComfyUI's tokenizers are told to insert one
EMBEDDINGS = "vl_embeddings"  # folder of saved conditioning, below output/ and models/
ENCODER_SUBFOLDERS = ("LLM", "VLM", "Qwen")  # where other packs keep Hugging Face folders, below models/
UNFIT_FOR_FILES = set('<>:"|?*\0')  # no file name on Windows may hold them
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FAST_VARIABLE = "ZIMAGE_VL_FAST"  # environment: 0 runs every model's own forward and keeps nothing
CACHES = ("on", "every layer", "off")  # what Load Qwen3-VL lets an encoder keep


def fast_allowed() -> bool:
    """Whether the merged forward pass and what it keeps may be used."""
    return os.environ.get(FAST_VARIABLE, "1").strip() != "0"


class _EncoderPatcher(comfy.model_patcher.ModelPatcher):
    """Gives back what is kept before weights, when ComfyUI needs a part of an encoder's memory."""

    forget: Callable[[], None] = staticmethod(lambda: None)

    def partially_unload(self, *arguments: Any, **options: Any) -> int:
        self.forget()
        return super().partially_unload(*arguments, **options)


class LoadedEncoder:
    """A transformers Qwen3-VL under ComfyUI's memory management: what travels on a QWEN3VL wire."""

    def __init__(self, encoder: Qwen3VLEncoder):
        self.encoder = encoder
        # Not CoreModelPatcher: with dynamic VRAM that one copies plain torch weights to the GPU anew at every load.
        self.patcher = _EncoderPatcher(
            torch.nn.Sequential(encoder.model),  # the patcher sets `device`, which transformers' models do not allow
            load_device=comfy.model_management.text_encoder_device(),
            offload_device=comfy.model_management.text_encoder_offload_device(),
            size=comfy.model_management.module_size(encoder.model),
        )
        self.patcher.forget = encoder.forget
        _forget_when_unloaded(self.patcher, encoder.reader)

    def encode(self, images, prompt, layers, system_prompt, budget, notes, mute, family=ZIMAGE) -> VLStates:
        self._load(images, len(self.encoder.tokenize(prompt, system_prompt, family)), budget)
        return self.encoder.encode(
            images, prompt, layers, system_prompt, budget=budget, mute=mute, notes=notes, check=check_interrupted,
            family=family,
        )

    def write(self, images, instruction, max_tokens, budget, **options) -> Description:
        """Words about pictures; see :func:`~..vl_core.describe.describe` for ``options``."""
        step, encoder = progress_bar(max_tokens), self.encoder
        own_head = 0 if encoder.model.config.tie_word_embeddings else encoder.head().nbytes
        self._load(images, len(encoder.tokenize(instruction)) + max_tokens, budget, own_head)
        return describe(
            encoder, images, instruction, max_tokens=max_tokens, budget=budget, on_text=lambda _: step(), **options
        )

    def _load(self, images, tokens: int, budget: int, more_bytes: int = 0) -> None:
        """Have the model on its device, with room for the pictures and ``tokens`` beside them."""
        check_interrupted()
        for index, image in enumerate(images, 1):
            height, width = check_picture(image, f"image {index}")[0].shape[:2]
            rows, columns = fit_size(height, width, budget, f"image {index}")
            tokens += rows * columns // FACTOR**2
        # Plain torch layers cannot be streamed in parts, so the model is loaded whole.
        comfy.model_management.load_models_gpu(
            [self.patcher], memory_required=_activation_bytes(self.encoder.width, tokens) + more_bytes,
            force_full_load=True,
        )

    def describe(self) -> str:
        encoder, loaded = self.encoder, len(self.encoder.model.language_model.layers)
        dtype = str(encoder.dtype).removeprefix("torch.")
        size = comfy.model_management.module_size(encoder.model) / 2**30
        return (
            f"{encoder.name}: {encoder.variant}, {dtype}, {loaded} of {encoder.num_layers} blocks, {size:.2f} GiB"
        )


def _forget_when_unloaded(patcher: Any, reader: Reader) -> None:
    """Have a reader give its memory back when ComfyUI unloads the model it reads with."""
    reference = weakref.ref(reader)

    def forget(_patcher: Any, unpatched: bool) -> None:
        kept = reference()
        if unpatched and kept is not None:  # the host also detaches, without this, when it loads a model again
            kept.forget()

    patcher.remove_callbacks_with_key(CallbacksMP.ON_DETACH, EMBEDDINGS)
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, EMBEDDINGS, forget)


def _activation_bytes(width: int, tokens: int) -> int:
    """Room the forward needs over its weights: about 64 float32 rows of ``width`` per token covers every layer."""
    return 256 * width * tokens


def check_interrupted() -> None:
    """Raise if the user pressed Stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress_bar(total: int) -> Callable[[], None]:
    """A bar on the running node; each call is one step and a chance to stop."""
    bar = comfy.utils.ProgressBar(total)

    def step() -> None:
        check_interrupted()
        bar.update(1)

    return step


# --- Qwen3-VL as a Hugging Face folder ------------------------------------------------------------------------------


def encoder_folders() -> dict[str, Path]:
    """Qwen3-VL folders by the name shown in the loader."""
    found: dict[str, Path] = {}
    for root in encoder_roots():
        for config in sorted([*root.glob("*/config.json"), *root.glob("*/*/config.json")]):
            try:
                model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
            except (OSError, ValueError, AttributeError):
                continue  # somebody else's broken folder is not ours to report
            if model_type == "qwen3_vl":
                found.setdefault(config.parent.relative_to(root).as_posix(), config.parent)
    return found


def encoder_roots() -> list[Path]:
    """Folders that are searched for Qwen3-VL."""
    below_models = [str(Path(folder_paths.models_dir) / name) for name in ENCODER_SUBFOLDERS]
    return [Path(root) for root in dict.fromkeys([*folder_paths.get_folder_paths("text_encoders"), *below_models])]


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
        looked = "\n".join(f"  {root}" for root in encoder_roots())
        raise ValueError(
            f"folder: found no Qwen3-VL folder {folder!r}. Put the Hugging Face folder of Qwen3-VL-4B (config.json, "
            f"tokenizer and safetensors files) in one of:\n{looked}\nthen press R to refresh the list."
        )
    bar = comfy.utils.ProgressBar(1)

    def progress(done: int, total: int) -> None:
        check_interrupted()
        bar.update_absolute(done, total)

    encoder = Qwen3VLEncoder.from_pretrained(
        folders[folder], device=comfy.model_management.text_encoder_offload_device(), dtype=_pick_dtype(dtype),
        deepest_layer=deepest_layer, progress=progress, cache_bytes=0 if cache == "off" else None,
        every_layer=cache == "every layer", compile=compile, fast=fast_allowed(),
    )
    return LoadedEncoder(encoder)


def _pick_dtype(name: str) -> torch.dtype:
    if name in DTYPES:
        return DTYPES[name]
    device = comfy.model_management.text_encoder_device()
    if comfy.model_management.is_device_cpu(device):
        return torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float16


# --- any encoder ----------------------------------------------------------------------------------------------------


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
    return _encode_native(encoder, pictures, prompt, layers, system_prompt, budget, notes, mute, family), notes


def write_words(
    encoder: Any,
    images: dict[str, torch.Tensor] | None,
    instruction: str,
    *,
    max_tokens: int,
    seed: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = TOP_K,
    budget: int = DEFAULT_BUDGET,
    name: str = "encoder",
) -> Description:
    """What the Qwen3-VL on the socket writes about pictures, with a bar on the node; Stop ends it between two tokens.

    Args:
        encoder, images: as :func:`encode_vision` takes them; Qwen3-VL-4B and 8B can write.
        instruction … budget: see :func:`~..vl_core.describe.describe`.

    Raises:
        ValueError: see there and :func:`check_vision_clip`; without a picture.
    """
    check_request(instruction, max_tokens, temperature, top_p, top_k)
    if EMBEDDING_FILE.search(instruction):
        raise ValueError("instruction: contains an embedding: file; Qwen3-VL has none. Remove it from the words.")
    pictures = single_pictures(images)
    if not pictures:
        raise ValueError("images: expected at least one picture to describe, got none. Connect an image.")
    if isinstance(encoder, LoadedEncoder):
        return encoder.write(
            pictures, as_host_reads(instruction), max_tokens, budget, seed=seed, temperature=temperature, top_p=top_p,
            top_k=top_k,
        )
    clip_name = getattr(getattr(encoder, "cond_stage_model", None), "clip_name", None)
    families = [family for family in FAMILIES if family.vision_encoder == SIBLINGS.get(clip_name)]
    check_vision_clip(encoder, name, families[0] if families else ZIMAGE)
    return _write_native(encoder, pictures, instruction, max_tokens, budget, seed, temperature, top_p, top_k)


def as_host_reads(prompt: str) -> str:
    """A prompt as ComfyUI's tokenizers see it: they drop the backslash of an escaped parenthesis."""
    return prompt.replace("\\)", ")").replace("\\(", "(")


def states_to_host(states: torch.Tensor) -> torch.Tensor:
    """States ``(L, D)`` as a CONDITIONING tensor ``(1, L, D)``: float32 on the intermediate device."""
    return states.to(comfy.model_management.intermediate_device(), torch.float32, copy=True).unsqueeze(0)


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
    native = _native_model(encoder)
    if native is None:
        return family_of(group, ZIMAGE.hidden)  # check_vision_clip will say what is wrong with it
    name = SIBLINGS.get(encoder.cond_stage_model.clip_name, "")
    return family_of(group, native.transformer.model.config.hidden_size, name)


# --- Qwen3-VL as ComfyUI loads it ------------------------------------------------------------------------------------

NATIVE_NAME = "qwen3vl_4b"
# What ComfyUI calls the encoders, and what their makers do.
SIBLINGS = {"qwen3_4b": "Qwen3-4B", "qwen3_8b": "Qwen3-8B", NATIVE_NAME: "Qwen3-VL-4B", "qwen3vl_8b": "Qwen3-VL-8B"}
# Fewest and most pixels of a picture in comfy.text_encoders.qwen_vl.process_qwen2vl_images, which resizes all others.
NATIVE_PIXELS = (3136, 12845056)
LOAD_NATIVE = "Load Qwen3-VL-4B with Load CLIP, type lumina2 (ComfyUI 0.28 or newer), or use Load Qwen3-VL."


def _native_model(clip: Any) -> Any:
    """ComfyUI's Qwen3-VL in a CLIP, None if it holds another model."""
    model = getattr(clip, "cond_stage_model", None)
    return getattr(model, model.clip_name) if isinstance(model, qwen3vl.Qwen3VLTEModel) else None


def check_vision_clip(clip: Any, name: str = "encoder", family: Family = ZIMAGE) -> None:
    """Refuse a CLIP that cannot look at pictures the way the family needs.

    Raises:
        ValueError: for every other kind, saying which it is and what to load instead.
    """
    model = getattr(clip, "cond_stage_model", None)
    size = family.vision_encoder.rpartition("-")[2]
    load = LOAD_NATIVE.replace("4B", size, 1)
    if model is None:
        raise ValueError(f"{name}: expected a Qwen3-VL encoder, got {type(clip).__name__}. {load}")
    kind, clip_name = type(model).__name__, getattr(model, "clip_name", "?")
    if isinstance(model, qwen3vl.Qwen3VLTEModel):
        if SIBLINGS.get(clip_name) == family.vision_encoder:
            return
        width = published(family).hidden
        raise ValueError(f"{name}: got {clip_name}, but {family.name} needs the {size} (width {width}). {load}")
    if isinstance(model, z_image.ZImageTEModel):
        raise ValueError(
            f"{name}: got the text-only Qwen3-4B, which cannot see pictures (a Qwen3-VL file without its vision "
            f"weights loads as that too). {load}"
        )
    if clip_name == NATIVE_NAME or NATIVE_NAME in kind.lower() or kind.startswith(("Krea2", "Mage")):
        raise ValueError(
            f"{name}: got Qwen3-VL-4B wrapped for another image model ({kind}), which changes its template and "
            f"layers. {load}"
        )
    raise ValueError(f"{name}: expected {family.vision_encoder}, got {kind} ({clip_name}). {load}")


def _encode_native(clip, pictures, prompt, layers, system_prompt, budget, notes, mute, family) -> VLStates:
    check_interrupted()
    model = _native_model(clip)
    num_layers = model.num_layers
    wanted = sorted({resolve_layer(layer, num_layers) for layer in layers})
    prepared, grids, images = _native_pictures(pictures, budget, notes)
    if mute:
        width = model.transformer.model.config.hidden_size
        images = [{"type": "embedding", "data": torch.zeros(rows * columns, width)} for rows, columns in grids]
    layout, tokens = _native_tokens(clip, prompt, system_prompt, images, grids, family)
    said = as_host_reads(prompt), as_host_reads(system_prompt), clip.cond_stage_model.clip_name
    if fast_allowed() and [picture.grid for picture in prepared] == grids:
        states = _read_native(clip, layout, prepared, wanted, mute)
        if states is not None:
            return VLStates(states, tuple(wanted), num_layers, layout, *said)
    states = _native_states(clip, layout, tokens, wanted, mute)
    return VLStates(states, tuple(wanted), num_layers, layout, *said)


def _native_pictures(pictures, budget, notes) -> tuple[list[Picture], list[tuple[int, int]], list[dict]]:
    """Pictures ready for ComfyUI's Qwen3-VL: they, the grids it makes of them, and the entries among its tokens."""
    prepared, grids = [], []
    for index, picture in enumerate(pictures, 1):
        ready, remarks = prepare_picture(picture, min(budget, NATIVE_PIXELS[1] // FACTOR**2), f"image {index}")
        prepared.append(ready)
        grids.append(_native_grid(ready))
        notes += remarks
        if grids[-1] != ready.grid:
            rows, columns = grids[-1]
            notes.append(f"image {index}: enlarged to {rows}×{columns} image tokens, ComfyUI takes none smaller")
    return prepared, grids, [{"type": "image", "data": to_float(one), "original_type": "image"} for one in prepared]


def _native_states(clip, layout: TokenLayout, tokens: dict, wanted: list[int], mute: bool) -> torch.Tensor:
    """States ``(K, L, D)`` through ``encode_from_tokens``."""
    model = _native_model(clip)
    capturing = clip.clone()
    # A list makes the host capture Hugging Face's hidden_states[k] for every k in it, in one forward.
    capturing.clip_layer(wanted)
    with _rotary_positions(model.transformer, layout) if mute else nullcontext():
        states = capturing.encode_from_tokens(tokens, return_dict=True)["cond"]
    if tuple(states.shape[:3]) != (1, len(wanted), len(layout)):
        raise RuntimeError(
            f"This ComfyUI gives Qwen3-VL states of shape {tuple(states.shape)} where (1, {len(wanted)}, "
            f"{len(layout)}, width) was expected. Update ComfyUI to 0.28 or newer, or use Load Qwen3-VL."
        )
    return states[0]


class _NativeReader:
    """Reads with the modules of a CLIP's Qwen3-VL, in bf16 where the GPU has it; the host computes in float32.

    Attributes:
        reader: what runs them; ``trusted``: whether a first reading agreed with the host's own, None before it.
    """

    def __init__(self, transformer: Any) -> None:
        config = transformer.model.config

        def rotary(layout: TokenLayout, start: int) -> tuple[torch.Tensor, torch.Tensor]:
            positions = mrope_positions(layout)[:, start:].to(self.device)
            return mrope_rotary(positions, config.head_dim, config.rope_theta, config.rope_dims, self.dtype)

        self.device, self.dtype = torch.device("cpu"), torch.float32
        # The host adds deepstack before it captures a state.
        self.reader = Reader(
            transformer.visual, transformer.model, transformer.num_layers, rotary, ByteCache(default_limit()),
            capture_before=False,
        )
        self.trusted: bool | None = None

    def read(self, clip, layout: TokenLayout, pictures: list[Picture], wanted: list[int], mute: bool) -> torch.Tensor:
        """States ``(K, L, D)``, float32 on the intermediate device, as the host gives them."""
        width = _native_model(clip).transformer.model.config.hidden_size
        comfy.model_management.load_models_gpu([clip.patcher], memory_required=_activation_bytes(width, len(layout)))
        _forget_when_unloaded(clip.patcher, self.reader)
        self.device = torch.device(clip.patcher.load_device)
        on_cpu = comfy.model_management.is_device_cpu(self.device)
        self.dtype = (
            torch.bfloat16 if not on_cpu and comfy.model_management.should_use_bf16(self.device) else torch.float32
        )
        with comfy.model_management.cuda_device_context(self.device):
            states = self.reader.read(
                layout, pictures, wanted, dtype=self.dtype, device=self.device, mute=mute,
                identity=clip.patcher.patches_uuid, weights=_source_weights(clip), check=check_interrupted,
            )
        return torch.stack(states).to(comfy.model_management.intermediate_device(), torch.float32)


def _source_weights(clip: Any) -> list[torch.Tensor]:
    """The weights before ComfyUI patched them or, with dynamic VRAM, copied them anew for this load."""
    kept = clip.patcher.backup
    parameters = clip.cond_stage_model.named_parameters()
    return [kept[name].weight if name in kept else parameter for name, parameter in parameters]


_native_readers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
SELF_CHECK_PROMPT = "a cat"
# Largest median over tokens of |difference| / |state| between our reading and the host's. Rounding stays far below;
# another rotary base, template or order of blocks gives about 1.
SELF_CHECK_TOLERANCE = {torch.bfloat16: 0.1, torch.float32: 1e-3}


def _read_native(clip, layout, pictures, wanted, mute) -> torch.Tensor | None:
    """States ``(K, L, D)`` by our own forward on ComfyUI's modules; None where that cannot be relied on."""
    transformer = _native_model(clip).transformer
    if clip.patcher.forced_hooks is not None or clip.patcher.weight_wrapper_patches:
        return None
    if (layout.token_ids == PAD_TOKEN).any():  # the host masks that token
        return None
    if not fits(transformer.visual, transformer.model):
        return None
    if clip.cond_stage_model not in _native_readers:
        _native_readers[clip.cond_stage_model] = _NativeReader(transformer)
    native = _native_readers[clip.cond_stage_model]
    if native.trusted is None:
        native.trusted = _agrees_with_host(native, clip)
    if not native.trusted:
        return None
    return native.read(clip, layout, pictures, wanted, mute)


def _agrees_with_host(native: _NativeReader, clip) -> bool:
    """Whether a small picture and prompt read by our forward give what the host's own gives."""
    ramp = torch.linspace(0, 1, 96).expand(64, 96)
    picture = prepare_picture(torch.stack([ramp, ramp.flip(1), ramp.square()], -1))[0]
    image = {"type": "image", "data": to_float(picture), "original_type": "image"}
    layout, tokens = _native_tokens(clip, SELF_CHECK_PROMPT, "", [image], [picture.grid], ZIMAGE)
    blocks = _native_model(clip).num_layers
    wanted = sorted({1, blocks // 2, blocks})
    expected = _native_states(clip, layout, tokens, wanted, mute=False)
    try:
        ours = native.read(clip, layout, [picture], wanted, mute=False)
        error = ((ours - expected).norm(dim=-1) / expected.norm(dim=-1)).median(-1).values.max().item()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        log.warning("Qwen3-VL is read through ComfyUI's own, slower encode: %s", error)
        return False
    if not error <= SELF_CHECK_TOLERANCE[native.dtype]:
        log.warning("Qwen3-VL is read through ComfyUI's own, slower encode: ours differs from it by %.2g.", error)
        return False
    return True


def _write_native(clip, pictures, instruction, max_tokens, budget, seed, temperature, top_p, top_k) -> Description:
    """Words by ``clip.generate``, whose own progress bar asks for Stop after each token."""
    check_interrupted()
    notes: list[str] = []
    _, grids, images = _native_pictures(pictures, budget, notes)
    _, tokens = _native_tokens(clip, instruction, "", images, grids, ZIMAGE)
    # The host's own defaults would penalise repetitions and cut unlikely tokens, which transformers does not.
    written = clip.generate(
        tokens, max_length=max_tokens, seed=seed, min_p=0.0, repetition_penalty=1.0,
        **sampling(temperature, top_p, top_k),
    )
    truncated = not written or written[-1] not in _native_model(clip).transformer.model.config.stop_tokens
    raw = clip.decode(written)
    words, remarks = finish(raw, len(written), truncated)
    return Description(words, raw, len(written), truncated, (*notes, *remarks))


def _native_grid(picture: Picture) -> tuple[int, int]:
    """Merged ``(rows, columns)`` ComfyUI makes of a picture: it enlarges those of too few pixels."""
    (rows, columns), pixels = picture.grid, picture.tokens * FACTOR**2
    if pixels >= NATIVE_PIXELS[0]:
        return rows, columns
    scale = math.sqrt(NATIVE_PIXELS[0] / pixels)
    return math.ceil(rows * scale), math.ceil(columns * scale)


@contextmanager
def _rotary_positions(transformer: torch.nn.Module, layout: TokenLayout) -> Iterator[None]:
    """Have ComfyUI's Qwen3-VL use ``layout``'s positions while this lasts.

    It finds the places of pictures by their entries; ready-made embeddings in their stead would be counted as words.
    Its forward takes positions as an argument, but encoding passes none on, so a hook of torch's adds them.
    """
    positions = mrope_positions(layout)

    def add(module, args, kwargs):
        return args, {**kwargs, "position_ids": positions.to(kwargs["embeds"].device)}

    hook = transformer.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _native_tokens(clip, prompt, system_prompt, images, grids, family) -> tuple[TokenLayout, dict]:
    """Token ids of the family's template, with picture entries put after the user header."""
    # Text that starts with <|im_start|> is taken as it stands: no template, no think block.
    system = SYSTEM_TURN.format(system_prompt) if system_prompt else ""
    name = clip.cond_stage_model.clip_name
    pairs = clip.tokenize(system + family.turn.format(prompt))[name][0]
    system_tokens = len(clip.tokenize(system)[name][0]) if system else 0
    ids = [pair[0] for pair in pairs]
    if not all(isinstance(token, int) for token in ids):
        raise ValueError("prompt: contains an embedding: file; Qwen3-VL has none. Remove it from the prompt.")
    text = text_layout(
        ids, system_tokens=system_tokens, turn=family.turn, tail_tokens=family.tail_tokens,
        prompt=as_host_reads(prompt), model=name,
    )
    special, at = SpecialTokens(), picture_insertion_point(text)
    blocks = []
    for image in images:
        blocks += [(special.vision_start, 1.0), (image, 1.0), (special.vision_end, 1.0)]
    layout = insert_pictures(text, grids)
    return layout, {name: [pairs[:at] + blocks + pairs[at:]]}


# --- text encoders ---------------------------------------------------------------------------------------------------

TEXT_NAME = "qwen3_4b"
LOAD_TEXT = "Load qwen_3_4b.safetensors with Load CLIP, type lumina2."
LOAD_KLEIN = "For FLUX.2 klein the type is flux2."


def _is_klein(model: Any) -> bool:
    """Whether a text encoder is FLUX.2 klein's; FLUX.2 dev's Mistral is of the same class."""
    return isinstance(model, flux.Flux2TEModel) and model.clip_name in SIBLINGS


def check_text_clip(clip: Any, name: str = "clip", klein: bool = False) -> Family:
    """The family of a text encoder; a CLIP that is of none is refused.

    Args:
        klein: whether the caller can take FLUX.2 klein's as well as Z-Image's.

    Raises:
        ValueError: for every other kind, saying which it is and what to load instead; for other layers than the
            family's.
    """
    model = getattr(clip, "cond_stage_model", None)
    if klein and _is_klein(model):
        encoder = getattr(model, model.clip_name)
        hidden = encoder.transformer.model.config.hidden_size
        family = detect_text_family(encoder.options_default[0], hidden, SIBLINGS[model.clip_name], name)
        if encoder.num_layers < max(family.layers):
            raise ValueError(
                f"{name}: expected Z-Image's text encoder {ZIMAGE.text_encoder}, or {family.name}'s with the "
                f"{family.describe_layers()}, got {type(model).__name__} of {encoder.num_layers} blocks. {LOAD_TEXT} "
                f"{LOAD_KLEIN}"
            )
        return family
    if not isinstance(model, z_image.ZImageTEModel):
        kind = type(clip if model is None else model).__name__
        hint = " (that goes to the vision input)" if isinstance(model, qwen3vl.Qwen3VLTEModel) else ""
        load = f"{LOAD_TEXT} {LOAD_KLEIN}" if klein else LOAD_TEXT
        raise ValueError(f"{name}: expected Z-Image's text encoder Qwen3-4B, got {kind}{hint}. {load}")
    return family_of(ZIMAGE.group, getattr(model, TEXT_NAME).transformer.model.config.hidden_size)


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
        native = _native_model(vision)
        width = native.transformer.model.config.hidden_size
        name = vision.cond_stage_model.clip_name
        check_encoders(family, hidden, width, text.num_layers, native.num_layers, name)


def encode_text(clip: Any, prompt: str) -> list[list]:
    """A family's own encoding of the prompt, as CLIP Text Encode gives it, with a layout on every entry.

    Raises:
        ValueError: see :func:`check_text_clip`.
    """
    check_text_clip(clip, klein=True)
    tokens = clip.tokenize(prompt)
    layout = _layout_of_tokens(clip, prompt, tokens)
    entries = clip.encode_from_tokens_scheduled(tokens)
    return [[states, {**options, LAYOUT_KEY: layout} if layout else options] for states, options in entries]


def encode_words(clip: Any, prompt: str) -> torch.Tensor:
    """The states ``(L, D)`` of :func:`encode_text` without padding, which is not even read.

    Raises:
        ValueError: see :func:`check_text_clip`.
    """
    family = check_text_clip(clip, klein=True)
    return _encode_many(clip, [prompt])[0] if family.padded_to else encode_text(clip, prompt)[0][0][0]


def tokenize_text(clip: Any, prompt: str) -> TokenLayout:
    """What the tokens of :func:`encode_text` are, without running the encoder.

    Raises:
        ValueError: see :func:`check_text_clip`; for words that hold an embedding file or tokens of pictures.
    """
    check_text_clip(clip, klein=True)
    is_plain = not EMBEDDING_FILE.search(prompt)  # core leaves out one that it cannot find
    layout = _layout_of_tokens(clip, prompt, clip.tokenize(prompt)) if is_plain else None
    if layout is None:
        raise ValueError(f"words: expected plain words, got an embedding: file or tokens of pictures in {prompt!r}.")
    return layout


def _layout_of_tokens(clip: Any, prompt: str, tokens: dict) -> TokenLayout | None:
    """None where a token is no word: an embedding file, or those of pictures, which core reads all the same."""
    family, name = check_text_clip(clip, klein=True), clip.cond_stage_model.clip_name
    ids = [pair[0] for pair in tokens[name][0]]
    if not all(isinstance(token, int) for token in ids):
        return None
    words = _words(tokens[name][0], family)
    try:
        layout = text_layout(
            ids[:words], turn=family.turn, tail_tokens=family.tail_tokens,
            layer=None if family.stacked else ENCODER_LAYER if clip.layer_idx is None else clip.layer_idx,
            prompt=as_host_reads(prompt), model=name,
        )
    except ValueError:
        return None
    return pad_layout(layout, len(ids) - words) if words < len(ids) else layout


def words_of(entry: list) -> int | None:
    """How many tokens of a text entry come before its padding, None if it has no attention mask of its length."""
    mask = entry[1].get("attention_mask")
    stale = mask is None or mask.shape[-1] != entry[0].shape[1]  # core nodes that join texts keep the first one's
    return None if stale else int((mask.reshape(-1, mask.shape[-1])[0] != 0).sum())


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


def _words(row: list[tuple], family: Family) -> int:
    """Tokens of a row of ComfyUI's that come before its padding."""
    count = len(row)
    while family.padded_to and count and row[count - 1][0] == PAD_TOKEN:
        count -= 1
    return count


def measure_reference(clip: Any) -> tuple[ReferenceStatistics, str]:
    """Statistics of a text encoder over the built-in prompts, from the cache on disk if it was measured before.

    Returns:
        the statistics, and where they came from.
    """
    check_text_clip(clip, "source")
    layer = ENCODER_LAYER if clip.layer_idx is None else clip.layer_idx
    identity = clip_identity(clip)
    cached = _reference_file(identity, layer)
    if reference := _read_reference(cached, identity, layer):
        return reference, f"from the cache: {cached.name}"
    prompts = calibration_prompts()
    reference = calibrate(
        lambda prompt: clip.encode_from_tokens(clip.tokenize(prompt)).cpu(), prompts,
        encoder=identity, layer=layer, progress=progress_bar(len(prompts)),
        encode_many=(lambda texts: _encode_many(clip, texts)) if fast_allowed() else None,
    )
    try:
        reference.save(cached)
    except OSError as error:
        return reference, f"measured now, not kept for the next time: {error}"
    return reference, f"measured now, kept as {cached.name}"


def measure_layers(clip: Any) -> tuple[list[ReferenceStatistics], str]:
    """Statistics of every layer that a text encoder puts side by side, one for each, padding left out.

    Returns:
        the statistics in the family's order, and where they came from; for a single layer what
        :func:`measure_reference` gives.
    """
    family = check_text_clip(clip, "source", klein=True)
    if not family.stacked:
        reference, origin = measure_reference(clip)
        return [reference], origin
    identity = clip_identity(clip)
    files = [_reference_file(identity, layer) for layer in family.layers]
    names = ", ".join(file.name for file in files)
    found = [_read_reference(file, identity, layer) for file, layer in zip(files, family.layers, strict=True)]
    if all(found):
        return found, f"from the cache: {names}"
    prompts = calibration_prompts()
    texts = _encode_many(clip, prompts)
    measured = []
    for index, layer in enumerate(family.layers):
        states = dict(zip(prompts, (split_layers(text, family)[index] for text in texts), strict=True))
        measured.append(calibrate(states.__getitem__, prompts, encoder=identity, layer=layer))
    try:
        for reference, file in zip(measured, files, strict=True):
            reference.save(file)
    except OSError as error:
        return measured, f"measured now, not kept for the next time: {error}"
    return measured, f"measured now, kept as {names}"


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


def _encode_many(clip: Any, texts: list[str]) -> list[torch.Tensor]:
    """States ``(L, D)`` of every text without padding on the CPU, texts of like length in one forward."""
    name, family = clip.cond_stage_model.clip_name, check_text_clip(clip, klein=True)
    rows = [clip.tokenize(text)[name][0] for text in texts]
    if family.padded_to:
        rows = [row[: _words(row, family)] for row in rows]
    states = [torch.empty(0)] * len(rows)
    for batch in length_batches([len(row) for row in rows]):
        check_interrupted()
        longest = len(rows[batch[0]])
        # Padding is masked by the host, and comes last, where with causal attention nothing sees it anyway.
        padded = [rows[index] + [(PAD_TOKEN, 1.0)] * (longest - len(rows[index])) for index in batch]
        together = clip.encode_from_tokens({name: padded}).reshape(len(batch), longest, -1).cpu()
        for one, index in zip(together, batch, strict=True):
            states[index] = one[: len(rows[index])]
    return states


def clip_identity(clip: Any) -> str:
    """A fingerprint of an encoder's weights and patches, and of the built-in prompts, that survives a restart.

    Names, shapes, types and 64 spread-out values of every parameter, so a fine-tune, another quantisation or a LoRA is
    another encoder; cheap enough to take each time.
    """
    digest = hashlib.sha256("\n".join(calibration_prompts()).encode())
    # A LoRA, of this CLIP or of another one that shares its weights, is written into them while it is loaded.
    unpatched = {key: kept.weight for key, kept in clip.patcher.backup.items()}
    for name, parameter in sorted(clip.cond_stage_model.named_parameters()):
        parameter = unpatched.get(name, parameter)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(_sample(parameter))
    for key in sorted(clip.patcher.patches, key=str):
        for strength, patch, strength_model, *_ in clip.patcher.patches[key]:
            digest.update(f"{key} {strength} {strength_model}".encode())
            weights = getattr(patch, "weights", patch)
            for part in weights if isinstance(weights, (tuple, list)) else (weights,):
                digest.update(_sample(part) if isinstance(part, torch.Tensor) else repr(part).encode())
    return digest.hexdigest()


def _sample(tensor: torch.Tensor) -> bytes:
    # A quantised weight as it is stored: turning one into floats to look at 64 of them takes long.
    values = getattr(tensor.detach(), "_qdata", tensor.detach()).reshape(-1)
    return values[:: max(1, values.numel() // 64)].to("cpu", torch.float32).numpy().tobytes()


# --- words and recipes ----------------------------------------------------------------------------------------------


@cache
def _word_tokenizer() -> Any:
    return z_image.Qwen3Tokenizer().tokenizer


def tokenize_words(text: str) -> list[int]:
    """Token ids of a plain string; every Qwen3 and Qwen3-VL has the same."""
    return _word_tokenizer()(text)["input_ids"]


def recipe_folder() -> Path:
    """Where a user's own recipes are looked for."""
    return Path(folder_paths.get_user_directory()) / "zimage_vl" / "recipes"


# --- picture adapters -----------------------------------------------------------------------------------------------


def input_folder(name: str) -> Path:
    """A folder below ComfyUI's input folder.

    Raises:
        ValueError: if the name leads out of it.
    """
    root = os.path.abspath(folder_paths.get_input_directory())
    path = Path(os.path.abspath(os.path.join(root, name)))
    if not path.is_relative_to(root):
        raise ValueError(f"folder: expected a folder below {root}, got {name!r}. Use a relative one without .. in it.")
    return path


def read_prompts(name: str, least: int = 1) -> tuple[str, ...]:
    """The built-in prompts for an empty name, else the lines of a text file in ComfyUI's input folder.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it holds fewer than ``least``.
    """
    if not name.strip():
        return tuple(calibration_prompts())
    path = input_folder(name)
    if not path.is_file():
        raise FileNotFoundError(f"prompts: expected a text file in ComfyUI's input folder, found none at {path}.")
    found = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    if len(found) < least:
        raise ValueError(f"prompts: expected at least {least} in {path.name}, one a line, got {len(found)}.")
    return found


def adapters_folder() -> Path:
    """Where picture adapters are kept."""
    return Path(folder_paths.models_dir) / "zimage_vl_adapters"


def saved_adapters() -> dict[str, Path]:
    """Picture adapters by the name shown in the list."""
    return {path.name: path for path in sorted(adapters_folder().glob("*.safetensors"))}


def adapter_path(name: str) -> Path:
    """The file of an adapter of that name; its folder is there afterwards.

    Raises:
        ValueError: if it is no name for a file.
    """
    if not name.strip() or set("/" + os.sep) & set(name) or UNFIT_FOR_FILES.intersection(name):
        raise ValueError(f"name: expected a plain file name, got {name!r}.")
    adapters_folder().mkdir(parents=True, exist_ok=True)
    return adapters_folder() / f"{name.removesuffix('.safetensors')}.safetensors"


# --- saved conditioning ---------------------------------------------------------------------------------------------


def embeddings_folder() -> Path:
    """Where Save VL Embeddings writes and Load VL Embeddings looks first."""
    return Path(folder_paths.get_output_directory()) / EMBEDDINGS


def saved_embeddings() -> dict[str, Path]:
    """Saved files by the name shown in the loader."""
    found: dict[str, Path] = {}
    for root in (embeddings_folder(), Path(folder_paths.models_dir) / EMBEDDINGS):
        for path in sorted(root.rglob("*.safetensors")):
            found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def find_saved(name: str) -> Path:
    """Path of a saved file.

    Raises:
        ValueError: if there is none; the message lists where it looked.
    """
    found = saved_embeddings()
    if name not in found:
        looked = f"{embeddings_folder()} and {Path(folder_paths.models_dir) / EMBEDDINGS}"
        raise ValueError(
            f"file: found no saved embeddings {name!r} in {looked}. Save some with Save VL Embeddings, then press R."
        )
    return found[name]


def next_save_path(prefix: str) -> Path:
    """A file name that is not taken yet: ``<prefix>_00001.safetensors``; ComfyUI's %year% … %second% tokens work.

    Raises:
        ValueError: if the prefix leads out of the folder.
    """
    root = embeddings_folder()
    root.mkdir(parents=True, exist_ok=True)
    if not Path(os.path.abspath(root / prefix)).is_relative_to(os.path.abspath(root)):
        raise ValueError(
            f"filename_prefix: expected a name below {root}, got {prefix!r}. Use a relative one without .. in it."
        )
    if not prefix or UNFIT_FOR_FILES.intersection(prefix):
        raise ValueError(
            f"filename_prefix: expected a name without {' '.join(sorted(UNFIT_FOR_FILES - {chr(0)}))}, got {prefix!r}."
        )
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    path = Path(folder) / f"{name}_{counter:05}.safetensors"
    while path.exists():  # the host's counter only knows names that end in an underscore
        counter += 1
        path = Path(folder) / f"{name}_{counter:05}.safetensors"
    return path
