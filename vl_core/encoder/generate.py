"""Words by transformers' own ``generate``: where the pack's step cannot be used, and what it is held to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..pictures import Picture, patchify
from ..states.layout import TokenLayout
from .sampling import Sampling

if TYPE_CHECKING:
    from .qwen3vl import Qwen3VLEncoder


def speaker_of(encoder: Qwen3VLEncoder) -> Any:
    """transformers' model that writes, around the encoder's own modules."""
    from transformers import Qwen3VLForConditionalGeneration

    head = encoder.head().to(encoder.device)
    model: Any = encoder.model
    with torch.device("meta"):
        speaker: Any = Qwen3VLForConditionalGeneration(model.config)
    speaker.model = model
    speaker.lm_head.weight = nn.Parameter(head, requires_grad=False)
    return speaker.eval()


@contextmanager
def asking(check: Callable[[], None], *parts: Iterable[nn.Module]) -> Iterator[None]:
    """Have ``check`` called before each module of ``parts`` runs, while this lasts: by themselves they never ask.

    What it raises ends the pass.
    """
    hooks = [module.register_forward_pre_hook(lambda *_: check()) for part in parts for module in part]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def generate(
    encoder: Qwen3VLEncoder, layout: TokenLayout, pictures: Sequence[Picture], sampling: Sampling, seed: int,
    max_tokens: int, ends: Sequence[int], stream: Any = None, stop: Callable[[], bool] = lambda: False,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """The tokens that transformers writes after a sequence, the one that ended it included.

    Args:
        layout: ends where the answer begins.
        stream: what transformers calls a streamer; ``stop`` is asked after each token, ``check`` before each block.
    """
    from transformers import GenerationConfig

    speaker, device = speaker_of(encoder), encoder.device
    ids = layout.token_ids[None].to(device)
    pixels, grids = (torch.cat(parts) for parts in zip(*map(patchify, pictures), strict=True))
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "image_grid_thw": grids.to(device),
        "pixel_values": pixels.to(device, encoder.dtype),
    }
    if "mm_token_type_ids" in inspect.signature(speaker.forward).parameters:  # transformers 5
        inputs["mm_token_type_ids"] = (ids == encoder.special.image_pad).int()
    config = GenerationConfig(
        eos_token_id=list(ends), pad_token_id=ends[0], use_cache=True, max_new_tokens=max_tokens, **sampling.options()
    )

    def stops(tokens: Tensor, _scores: Any, **_: Any) -> Tensor:
        return torch.full((len(tokens),), stop(), device=tokens.device)

    # generate draws from torch's global generators.
    parts, model = [device] if device.type == "cuda" else [], encoder.model
    blocks = model.visual.blocks, model.language_model.layers
    with torch.inference_mode(), torch.random.fork_rng(parts), asking(check, *blocks):
        torch.manual_seed(seed)
        written = speaker.generate(**inputs, generation_config=config, streamer=stream, stopping_criteria=[stops])
    return written[0, ids.shape[1] :].tolist()
