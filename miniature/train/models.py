"""Configs and constructors: the very classes of the real chain, a thousand times smaller.

=============  =======================================  ==========================================================
part           class                                    real size
=============  =======================================  ==========================================================
text encoder   transformers Qwen3ForCausalLM            Qwen3-4B: 36 blocks of width 2560
VL             transformers Qwen3VLForConditional…      Qwen3-VL-4B: the same language model and a vision tower
VAE            diffusers AutoencoderKL                  16 latent channels, factor 8
DiT            diffusers ZImageTransformer2DModel       30 blocks of width 3840, patch 2, captions RMS-normalised
judge          a small convolutional network            none: it reads off what was painted
=============  =======================================  ==========================================================
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vl_core.states.storage import save_whole

from .. import world


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of one build."""

    width: int = 192  # of a text state
    blocks: int = 12
    heads: int = 6
    feed_forward: int = 384
    vision_width: int = 96
    vision_heads: int = 3
    vae_channels: tuple[int, ...] = (24, 48, 64, 96)
    dit_width: int = 192
    dit_heads: int = 6
    dit_blocks: int = 8
    judge_channels: tuple[int, ...] = (24, 48, 96, 128, 160)
    sink: tuple[float, float] = (16000.0, -5400.0)  # the first token's values, see sink.py


REAL = Sizes()
# Small enough to run every stage on a CPU in seconds; deep enough for layers −8 … −2.
TOY = Sizes(
    width=64, blocks=10, heads=2, feed_forward=96, vision_width=48, vision_heads=2, vae_channels=(8, 8, 16, 16),
    dit_width=64, dit_heads=2, dit_blocks=2, judge_channels=(8, 8, 16, 16, 16),
)
HEAD = 32  # width of every attention head
LATENT_CHANNELS = 16
LATENT_SIDE = world.SIDE // 8


def _text_config(tokenizer: Any, sizes: Sizes) -> dict[str, Any]:
    return dict(
        vocab_size=len(tokenizer), hidden_size=sizes.width, intermediate_size=sizes.feed_forward,
        num_hidden_layers=sizes.blocks, num_attention_heads=sizes.heads, num_key_value_heads=max(1, sizes.heads // 3),
        head_dim=HEAD, max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-6, use_cache=False,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        initializer_range=0.05,
    )


def make_text_encoder(tokenizer: Any, sizes: Sizes = REAL) -> nn.Module:
    """Qwen3ForCausalLM with random weights, float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rope = {"rope_type": "default", "rope_theta": 1e4}
    return Qwen3ForCausalLM(Qwen3Config(**_text_config(tokenizer, sizes), rope_parameters=rope))


def make_vl(tokenizer: Any, sizes: Sizes = REAL) -> nn.Module:
    """Qwen3VLForConditionalGeneration with random weights, float32; its language model takes the text encoder's."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    token = tokenizer.convert_tokens_to_ids
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(
        text_config={**_text_config(tokenizer, sizes), "rope_parameters": rope},
        vision_config=dict(
            depth=4, hidden_size=sizes.vision_width, intermediate_size=2 * sizes.vision_width,
            num_heads=sizes.vision_heads, patch_size=16, spatial_merge_size=2, temporal_patch_size=2,
            out_hidden_size=sizes.width, num_position_embeddings=(world.SIDE // 16) ** 2,
            deepstack_visual_indexes=[0, 1, 2], initializer_range=0.04,
        ),
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    ))


def make_vae(sizes: Sizes = REAL) -> nn.Module:
    """AutoencoderKL with random weights; its latent scale and shift are set once they are measured."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=sizes.vae_channels, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=LATENT_CHANNELS,
        norm_num_groups=8, sample_size=world.SIDE, use_quant_conv=False, use_post_quant_conv=False,
        force_upcast=False, scaling_factor=1.0, shift_factor=0.0,
    )


def make_dit(sizes: Sizes = REAL) -> nn.Module:
    """ZImageTransformer2DModel with small modulation, half-open gates and a zero output, float32."""
    from diffusers import ZImageTransformer2DModel

    dit = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS, dim=sizes.dit_width, n_layers=sizes.dit_blocks, n_refiner_layers=1,
        n_heads=sizes.dit_heads, n_kv_heads=sizes.dit_heads, cap_feat_dim=sizes.width, axes_dims=[8, 12, 12],
        axes_lens=[1536, 512, 512],
    )
    width = sizes.dit_width
    with torch.no_grad():
        for name, weight in dit.named_parameters():
            if "adaLN_modulation" not in name:
                continue
            weight.mul_(0.1 if weight.ndim == 2 else 0.0)
            if weight.ndim == 1 and "final" not in name:  # scale, gate, scale, gate of attention and feed-forward
                weight[width : 2 * width] = 0.5
                weight[3 * width :] = 0.5
        output = dit.all_final_layer["2-1"].linear
        output.weight.zero_()
        output.bias.zero_()
        dit.cap_pad_token.normal_(0, 0.02)
        dit.x_pad_token.normal_(0, 0.02)
    return dit


class Judge(nn.Module):
    """Reads a picture ``(N, 3, 128, 128)`` in [-1, 1]; gives logits by name.

    ``pair`` 80 (shape × 10 + colour), ``shape`` 8 and ``color`` 10 are independent yes/no questions; ``background``
    10, ``style`` 8, ``mood`` 5 and ``count`` 2 are choices.
    """

    HEADS = (
        ("pair", 80), ("shape", 8), ("color", 10), ("background", 10), ("style", 8), ("mood", 5), ("count", 2),
    )

    def __init__(self, channels: tuple[int, ...] = REAL.judge_channels) -> None:
        super().__init__()
        layers, before = [], 3
        for index, after in enumerate(channels):
            stride = 2 if index < len(channels) - 1 else 1
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU()]
            before = after
        self.body = nn.Sequential(*layers)
        self.squeeze = nn.Conv2d(before, before // 4, 1)
        cells = (world.SIDE // 2 ** (len(channels) - 1)) ** 2
        self.features = nn.Linear(2 * before + cells * (before // 4), 256)
        self.heads = nn.ModuleDict({name: nn.Linear(256, width) for name, width in self.HEADS})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        maps = self.body(pictures)
        pooled = [maps.mean((2, 3)), maps.amax((2, 3)), self.squeeze(maps).flatten(1)]
        features = F.silu(self.features(torch.cat(pooled, 1)))
        return {name: head(features) for name, head in self.heads.items()}


def save_weights(path: Path, module: nn.Module, header: dict[str, Any] | None = None) -> None:
    """bf16 safetensors without tied copies; the file appears whole or not at all."""
    weights = {
        name: value.detach().to("cpu", torch.bfloat16 if value.is_floating_point() else value.dtype).contiguous()
        for name, value in module.state_dict().items()
        if not name.startswith("lm_head")
    }
    save_whole(path, weights, {"miniature": json.dumps(header or {})})


def load_weights(path: Path, module: nn.Module) -> dict[str, Any]:
    """Fill ``module`` with what :func:`save_weights` wrote; gives the header.

    Raises:
        FileNotFoundError: if the stage that makes the file has not been run.
        ValueError: if the file belongs to a module of another build.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected {path.name} in {path.parent}. Run `python -m miniature {path.stem}` first.")
    weights = {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    expected = {name: value.shape for name, value in module.state_dict().items() if not name.startswith("lm_head")}
    if {name: value.shape for name, value in weights.items()} != expected:
        raise ValueError(f"{path.name}: expected the weights of this build, got others. Was --toy used for one?")
    module.load_state_dict(weights, strict=False)
    return read_header(path)


def read_header(path: Path) -> dict[str, Any]:
    """What :func:`save_weights` was given to remember."""
    with safe_open(str(path), "pt") as file:
        return json.loads((file.metadata() or {}).get("miniature", "{}"))
