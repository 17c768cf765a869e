"""Z-Image and Qwen3-VL in miniature, with random weights: every part and file layout of the real ones, a few megabytes.

The language model of the VL is the text encoder itself, as in the real family (both are a Qwen3-4B).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..encoder.qwen3vl import Qwen3VLEncoder

if TYPE_CHECKING:
    from .pipeline import ZImagePipeline

WIDTH = 64
BLOCKS = 6
VOCABULARY = 512
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]
# Qwen2's pre-tokenizer.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = ["user\nassistant\nsystem\n\n\na cat in a red hat, a painting of the sea, the light of a lamp\n\n"] * 20
# What Qwen3's own comes down to for one user turn.
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}{%- endif %}"
)
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
    "rope_theta": 1e6, "tie_word_embeddings": True,
}

VAE: dict[str, Any] = {
    "block_out_channels": (16, 32, 32, 32), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 1, "latent_channels": 16, "norm_num_groups": 8,
    "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
}


def build(seed: int = 0) -> tuple[ZImagePipeline, Qwen3VLEncoder]:
    """The whole family in float32 on the CPU, the same for the same seed."""
    from diffusers import (  # see pipeline.load_pipeline
        AutoencoderKL,  # pyright: ignore[reportPrivateImportUsage]
        FlowMatchEulerDiscreteScheduler,  # pyright: ignore[reportPrivateImportUsage]
        ZImagePipeline,  # pyright: ignore[reportPrivateImportUsage]
        ZImageTransformer2DModel,  # pyright: ignore[reportPrivateImportUsage]
    )
    from transformers import AutoModel, Qwen3Config, Qwen3Model

    tokenizer = build_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    seer = AutoModel.from_config(_vision_config(tokenizer), attn_implementation="sdpa", dtype=torch.float32)
    reader = Qwen3Model(Qwen3Config(**TEXT))
    transformer = ZImageTransformer2DModel(
        dim=96, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH, axes_dims=[16, 16, 16],
        axes_lens=[1536, 512, 512],
    )
    vae = AutoencoderKL(**VAE)
    for module in (seer, transformer, vae):
        _randomise(module, generator)
    reader.load_state_dict(seer.language_model.state_dict())
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae.eval(), text_encoder=reader.eval(),
        tokenizer=tokenizer, transformer=transformer.eval(),
    )
    return pipeline, Qwen3VLEncoder(seer.eval(), tokenizer, BLOCKS, "Qwen3-VL-Tiny")


def byte_level_bpe(corpus: list[str], vocabulary: int) -> Any:
    """A ``tokenizers.Tokenizer`` built like Qwen's, trained on ``corpus``, without added tokens; always the same."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def build_tokenizer(corpus: list[str] = CORPUS, vocabulary: int = 400) -> Any:
    """Byte-level BPE like Qwen's, with Qwen's structural tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_bpe(corpus, vocabulary)
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def _vision_config(tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig

    token = tokenizer.convert_tokens_to_ids
    rope = {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"}
    return Qwen3VLConfig(
        text_config={**TEXT, "rope_scaling": rope},
        vision_config={
            "depth": 4, "hidden_size": 48, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


@torch.no_grad()
def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Weights of a size that keeps activations at theirs, so that every layer and token differs."""
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "embed_tokens" in name or "pad_token" in name:
            weight.copy_(noise)
        elif weight.ndim > 1:
            weight.copy_(noise * weight[0].numel() ** -0.5)
        else:
            weight.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))
