"""Which parts of Qwen3-VL's modules are read, as a type checker knows them; transformers and ComfyUI name them alike.

No module is made of these classes. :func:`~.forward.fits` looks at run time whether a model has what they name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Attention(nn.Module):
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module
    head_dim: int


class Mlp(nn.Module):
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear


class Block(nn.Module):
    self_attn: Attention
    mlp: Mlp
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module


class Language(nn.Module):
    layers: Sequence[Block]
    norm: nn.Module
    embed_tokens: nn.Embedding
    rotary_emb: nn.Module
    config: Any


class VisionAttention(nn.Module):
    qkv: nn.Module
    proj: nn.Module
    num_heads: int


class VisionMlp(nn.Module):
    linear_fc1: nn.Module
    linear_fc2: nn.Module


class VisionBlock(nn.Module):
    norm1: nn.Module
    norm2: nn.Module
    attn: VisionAttention
    mlp: VisionMlp


class PatchEmbedding(nn.Module):
    proj: nn.Module


class VisionRotary(nn.Module):
    inv_freq: Tensor


class Vision(nn.Module):
    patch_embed: PatchEmbedding
    pos_embed: nn.Embedding
    rotary_pos_emb: VisionRotary
    blocks: Sequence[VisionBlock]
    merger: nn.Module
    deepstack_visual_indexes: Sequence[int]
    deepstack_merger_list: Sequence[nn.Module]


class Qwen3VL(nn.Module):
    """``Qwen3VLModel`` of transformers."""

    visual: Vision
    language_model: Language
    config: Any
