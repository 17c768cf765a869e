"""ComfyUI's own Qwen3-VL, as Load CLIP gives it."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils
import torch
from comfy.text_encoders import qwen3vl, z_image

from ...vl_core import TokenLayout, VLStates
from ...vl_core.encoder.cache import ByteCache, default_limit
from ...vl_core.encoder.forward import mrope_rotary
from ...vl_core.encoder.reader import Reader
from ...vl_core.encoder.room import is_out_of_memory, with_room
from ...vl_core.pictures import FACTOR, Picture, prepare_picture, to_float
from ...vl_core.states.families import ZIMAGE, Family, published
from ...vl_core.states.layout import (
    PAD_TOKEN,
    SYSTEM_TURN,
    SpecialTokens,
    insert_pictures,
    mrope_positions,
    picture_insertion_point,
    text_layout,
)
from ...vl_core.states.vl_states import resolve_layer
from .held import held
from .memory import (
    activation_bytes,
    buffer_bytes,
    check_interrupted,
    fast_allowed,
    forget_when_unloaded,
    stoppable,
)
from .text_encoder import NATIVE_NAME, SIBLINGS, as_host_reads

log = logging.getLogger(__name__)

Result = TypeVar("Result")
# Fewest and most pixels of a picture in comfy.text_encoders.qwen_vl.process_qwen2vl_images, which resizes all others.
NATIVE_PIXELS = (3136, 12845056)
LOAD_NATIVE = "Load Qwen3-VL-4B with Load CLIP, type lumina2 (ComfyUI 0.28 or newer), or use Load Qwen3-VL."


def native_model(clip: Any) -> Any:
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


def encode_native(clip, pictures, prompt, layers, system_prompt, budget, notes, mute, family) -> VLStates:
    check_interrupted()
    model = native_model(clip)
    num_layers = model.num_layers
    wanted = sorted({resolve_layer(layer, num_layers) for layer in layers})
    prepared, grids, images = native_pictures(pictures, budget, notes)
    if mute:
        width = model.transformer.model.config.hidden_size
        images = [{"type": "embedding", "data": torch.zeros(rows * columns, width)} for rows, columns in grids]
    layout, tokens = native_tokens(clip, prompt, system_prompt, images, grids, family)
    said = as_host_reads(prompt), as_host_reads(system_prompt), clip.cond_stage_model.clip_name
    if fast_allowed() and [picture.grid for picture in prepared] == grids:
        states = _read_native(clip, layout, prepared, wanted, mute)
        if states is not None:
            return VLStates(states, tuple(wanted), num_layers, layout, *said)
    states = _native_states(clip, layout, tokens, wanted, mute)
    return VLStates(states, tuple(wanted), num_layers, layout, *said)


def native_pictures(pictures, budget, notes) -> tuple[list[Picture], list[tuple[int, int]], list[dict]]:
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
    model = native_model(clip)
    capturing = clip.clone()
    # A list makes the host capture Hugging Face's hidden_states[k] for every k in it, in one forward.
    capturing.clip_layer(wanted)

    def encode() -> torch.Tensor:
        positions = _rotary_positions(model.transformer, layout) if mute else nullcontext()
        with positions, stoppable(model.transformer.visual.blocks, model.transformer.model.layers):
            return capturing.encode_from_tokens(tokens, return_dict=True)["cond"]

    states = room_for(clip, encode)
    if tuple(states.shape[:3]) != (1, len(wanted), len(layout)):
        raise RuntimeError(
            f"This ComfyUI gives Qwen3-VL states of shape {tuple(states.shape)} where (1, {len(wanted)}, "
            f"{len(layout)}, width) was expected. Update ComfyUI to 0.28 or newer, or use Load Qwen3-VL."
        )
    return states[0]


def room_for(clip: Any, act: Callable[[], Result]) -> Result:
    """What the host's own code gives, tried again without what is kept of the CLIP if memory ran out.

    Raises:
        torch.cuda.OutOfMemoryError: see :func:`with_room`.
    """
    native = _native_readers.get(clip.cond_stage_model)
    if native is None:
        return with_room(act)
    return with_room(act, native.reader.cache, native.reader.forget)


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
        states = self.reader.known(layout, pictures, wanted, mute=mute, **self.options(clip))
        if states is None:
            options = self.load(clip, len(layout))
            with comfy.model_management.cuda_device_context(self.device), held(native_model(clip), self.device):
                states = self.reader.read(layout, pictures, wanted, mute=mute, **options)
        return torch.stack(states).to(comfy.model_management.intermediate_device(), torch.float32)

    def load(self, clip, tokens: int, more: int = 0, answers: int = 1) -> dict[str, Any]:
        """Have the CLIP on its device, with room for so many tokens and as many ``more`` to write in each answer.

        Returns:
            what the reader needs to know of it.
        """
        config = native_model(clip).transformer.model.config
        buffers = answers * buffer_bytes(config, tokens + more) if more else 0
        room = activation_bytes(config.hidden_size, tokens) + buffers
        comfy.model_management.load_models_gpu([clip.patcher], memory_required=room)
        forget_when_unloaded(clip.patcher, self.reader)
        return self.options(clip)

    def options(self, clip: Any) -> dict[str, Any]:
        """What the reader needs to know of a CLIP, as it is now."""
        self.device = torch.device(clip.patcher.load_device)
        on_cpu = comfy.model_management.is_device_cpu(self.device)
        self.dtype = (
            torch.bfloat16 if not on_cpu and comfy.model_management.should_use_bf16(self.device) else torch.float32
        )
        return {
            "dtype": self.dtype, "device": self.device, "identity": clip.patcher.patches_uuid,
            # Looked at here, before weights are held: modules that hold others would be others each time.
            "number": self.reader.watched.number(_sources(clip)), "check": check_interrupted,
        }


def _sources(clip: Any) -> list[torch.Tensor]:
    """Weights and buffers before ComfyUI patched them or, with dynamic memory, copied them anew for this load."""
    model, patcher = clip.cond_stage_model, clip.patcher
    weights = {name: kept.weight for name, kept in patcher.backup.items()}
    buffers = getattr(patcher, "backup_buffers", {})
    return [
        *(weights.get(name, one) for name, one in model.named_parameters()),
        *(buffers.get(name, one) for name, one in model.named_buffers()),
    ]


_native_readers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
SELF_CHECK_PROMPT = "a cat"
# Largest median over tokens of |difference| / |state| between our reading and the host's. Rounding stays far below;
# another rotary base, template or order of blocks gives about 1.
SELF_CHECK_TOLERANCE = {torch.bfloat16: 0.1, torch.float32: 1e-3}


def _read_native(clip, layout, pictures, wanted, mute) -> torch.Tensor | None:
    """States ``(K, L, D)`` by our own forward on ComfyUI's modules; None where that cannot be relied on."""
    native = trusted_reader(clip, layout)
    return None if native is None else native.read(clip, layout, pictures, wanted, mute)


def trusted_reader(clip, layout: TokenLayout) -> _NativeReader | None:
    """What runs ComfyUI's modules by our own forward; None where that cannot be relied on."""
    transformer = native_model(clip).transformer
    if clip.patcher.forced_hooks is not None or clip.patcher.weight_wrapper_patches:
        return None
    if (layout.token_ids == PAD_TOKEN).any():  # the host masks that token
        return None
    if clip.cond_stage_model not in _native_readers:
        _native_readers[clip.cond_stage_model] = _NativeReader(transformer)
    native = _native_readers[clip.cond_stage_model]
    if not native.reader.watched.fit():
        return None
    if native.trusted is None:
        native.trusted = _agrees_with_host(native, clip)
    return native if native.trusted else None


def _agrees_with_host(native: _NativeReader, clip) -> bool | None:
    """Whether a small picture and prompt read by our forward give what the host's own gives; None if memory ran out."""
    ramp = torch.linspace(0, 1, 96).expand(64, 96)
    picture = prepare_picture(torch.stack([ramp, ramp.flip(1), ramp.square()], -1))[0]
    image = {"type": "image", "data": to_float(picture), "original_type": "image"}
    layout, tokens = native_tokens(clip, SELF_CHECK_PROMPT, "", [image], [picture.grid], ZIMAGE)
    blocks = native_model(clip).num_layers
    wanted = sorted({1, blocks // 2, blocks})
    expected = _native_states(clip, layout, tokens, wanted, mute=False)
    try:
        ours = native.read(clip, layout, [picture], wanted, mute=False)
        error = ((ours - expected).norm(dim=-1) / expected.norm(dim=-1)).median(-1).values.max().item()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):  # says nothing about the encoder: the next reading asks again
            return None
        log.warning("Qwen3-VL is read through ComfyUI's own, slower encode: %s", error)
        return False
    if not error <= SELF_CHECK_TOLERANCE[native.dtype]:
        log.warning("Qwen3-VL is read through ComfyUI's own, slower encode: ours differs from it by %.2g.", error)
        return False
    return True


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


def native_tokens(clip, prompt, system_prompt, images, grids, family) -> tuple[TokenLayout, dict]:
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
