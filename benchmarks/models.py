"""Qwen3-VL with random weights, in the size of the real 4B or smaller."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vl_core.zimage.tiny import build_tokenizer

ROOT = Path(__file__).parents[1]
# Words the miniature tokenizer has a token for: 36 tokens, 46 with the template and the picture's markers.
PROMPT = "a cat in a red hat, a painting of the sea, the light of a lamp" * 2
OTHER_PROMPT = "the sea in the light of a red lamp, a cat of a painting, a hat" * 2

TEXT = {
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 32},
    "medium": {"hidden_size": 640, "intermediate_size": 2432, "num_hidden_layers": 12, "num_attention_heads": 8,
               "num_key_value_heads": 2, "head_dim": 80},
    "full": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
             "num_key_value_heads": 8, "head_dim": 128},
}  # fmt: skip
VOCABULARY = {"tiny": 512, "medium": 16384, "full": 151936}
SECTIONS = {32: [6, 5, 5], 80: [16, 12, 12], 128: [24, 20, 20]}
VISION = {
    "tiny": {"depth": 4, "hidden_size": 48, "intermediate_size": 64, "num_heads": 2, "num_position_embeddings": 64,
             "deepstack_visual_indexes": [0, 1, 2]},
    "medium": {"depth": 8, "hidden_size": 256, "intermediate_size": 1024, "num_heads": 4,
               "num_position_embeddings": 2304, "deepstack_visual_indexes": [1, 3, 5]},
    "full": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
             "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]},
}  # fmt: skip
TRANSFORMER = {
    "tiny": {"dim": 96, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 64,
             "axes_dims": [16, 16, 16], "axes_lens": [1536, 512, 512]},
    "full": {"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560,
             "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512]},
}  # fmt: skip
VAE = {
    "tiny": {"block_out_channels": (16, 32, 32, 32), "layers_per_block": 1, "norm_num_groups": 8},
    "full": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32},
}
# Picture tokens per side at which a size is measured.
SIDE = {"tiny": 8, "medium": 32, "full": 32}


@functools.cache
def prose_tokenizer(size: str) -> Any:
    """One for sentences, learned from this project's pages: it takes a quarter more tokens than Qwen's for what the
    judge asks, where :func:`build_tokenizer` takes four times as many. Tiny models have no room for its words."""
    if size == "tiny":
        return build_tokenizer()
    pages = [path for part in ("docs", "web/docs") for path in sorted((ROOT / part).rglob("*.md"))]
    return build_tokenizer([path.read_text(encoding="utf-8") for path in pages], 16000)


def build_config(size: str, tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig

    text, token = TEXT[size], tokenizer.convert_tokens_to_ids
    rope = {"mrope_interleaved": True, "mrope_section": SECTIONS[text["head_dim"]], "rope_type": "default"}
    return Qwen3VLConfig(
        text_config={
            **text, "vocab_size": VOCABULARY[size], "max_position_embeddings": 262144, "rope_theta": 5e6,
            "rope_scaling": rope, "tie_word_embeddings": True,
        },
        vision_config={
            **VISION[size], "out_hidden_size": text["hidden_size"], "patch_size": 16, "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(
    size: str, device: torch.device, dtype: torch.dtype, tokenizer: Any = None
) -> tuple[nn.Module, Any]:
    """transformers' ``Qwen3VLForConditionalGeneration`` made on the device, and a tokenizer with Qwen's structure."""
    from transformers import Qwen3VLForConditionalGeneration

    tokenizer = build_tokenizer() if tokenizer is None else tokenizer
    with device:
        model = Qwen3VLForConditionalGeneration._from_config(
            build_config(size, tokenizer), attn_implementation="sdpa", dtype=dtype
        )
    return filled(model, device), tokenizer


@torch.no_grad()
def filled(module: nn.Module, device: torch.device, spared: str = "embed") -> nn.Module:
    """With weights of a size that keeps activations at theirs, as training does; the same ones each time.

    ``spared``: matrices of such names keep their size.
    """
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in module.named_parameters():
        weight.normal_(generator=generator)
        if weight.ndim > 1 and spared not in name:
            weight.mul_(weight[0].numel() ** -0.5)
        elif weight.ndim == 1:
            weight.mul_(0.1).add_(0.0 if name.endswith("bias") else 1.0)
    return module.eval().requires_grad_(False)


def build_painter(size: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """diffusers' transformer of Z-Image and its VAE, made on the device: tiny or full."""
    from diffusers import AutoencoderKL, ZImageTransformer2DModel

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    before = torch.get_default_dtype()
    with device:
        torch.set_default_dtype(dtype)
        try:
            transformer = ZImageTransformer2DModel(**TRANSFORMER[size])
            vae = AutoencoderKL(
                **VAE[size], **blocks, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159,
                use_quant_conv=False, use_post_quant_conv=False,
            )
        finally:
            torch.set_default_dtype(before)
    return tuple(filled(module, device, "embed_tokens") for module in (transformer, vae))


def picture(size: str, seed: int = 0) -> torch.Tensor:
    """An IMAGE ``(1, H, W, 3)`` of noise."""
    side = 32 * SIDE[size]
    return torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(seed))
