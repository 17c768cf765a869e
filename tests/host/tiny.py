"""Tiny random models as ComfyUI's own loaders return them: the real classes, tokenizers and templates, 64 wide.

Imported only once ComfyUI is on the path. Weights are large enough that every layer, token and picture matters.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.supported_models
import torch
from comfy.text_encoders import flux, qwen3vl, z_image
from safetensors.torch import save_file

WIDTH = 64
BLOCKS = 6
DEEP = 28  # FLUX.2 klein reads layers 9, 18 and 27
HEAD = 128  # not configurable in the host's Qwen3
TEXT = {
    "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "intermediate_size": 128, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
VISION = {"hidden_size": 64, "intermediate_size": 128, "depth": 4, "deepstack_visual_indexes": [0, 1, 2]}
TOKENIZER = Path(qwen3vl.__file__).parent / "qwen25_tokenizer"

qwen3vl.QWEN3VL_VISION.update(qwen3vl_4b=VISION, qwen3vl_8b=VISION)  # the one part no model option reaches


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Unit-variance embeddings, fan-in scaled matrices, norms near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("logit_scale"):
                continue
            noise = torch.empty(weight.shape).normal_(generator=generator)
            if "embed_tokens" in name or "pos_embed" in name:
                weight.copy_(noise)
            elif weight.ndim > 1:
                weight.copy_(noise * weight[0].numel() ** -0.5)
            else:
                weight.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))


class Target:
    """What the host's CLIP is built from."""

    def __init__(self, clip, tokenizer):
        self.params, self.clip, self.tokenizer = {}, clip, tokenizer


vision_tokenizer = cache(qwen3vl.tokenizer)


@cache
def only(tokenizer):
    """The one tokenizer of its class, which CLIPs share as copies of a CLIP do: it takes longer to build than they."""
    return tokenizer()


def build_clip(model, tokenizer, name: str, seed: int, **text) -> comfy.sd.CLIP:
    """A CLIP around a text encoder of any class; ``name`` is what its config is called."""
    options = {f"{name}_model_config": {**TEXT, **text}, "dtype": torch.float32}
    clip = comfy.sd.CLIP(Target(model, lambda **_: only(tokenizer)), model_options=options)
    randomize(clip.cond_stage_model, seed)
    return clip


def text_clip(seed: int = 2, **text) -> comfy.sd.CLIP:
    """Z-Image's text encoder, as Load CLIP (type lumina2) returns it."""
    return build_clip(z_image.te(), z_image.ZImageTokenizer, "qwen3_4b", seed, **text)


def vision_clip(seed: int = 1, model_type: str = "qwen3vl_4b", **text) -> comfy.sd.CLIP:
    """Qwen3-VL, as Load CLIP (type lumina2) returns it."""
    return build_clip(qwen3vl.te(model_type=model_type), vision_tokenizer(model_type), model_type, seed, **text)


def writing_clip(seed: int = 7, **text) -> comfy.sd.CLIP:
    """Qwen3-VL so weighed that, asked for words, it does not say one over and over."""
    clip = vision_clip(seed=seed, **text)
    language = clip.cond_stage_model.qwen3vl_4b.transformer.model
    with torch.no_grad():
        language.embed_tokens.weight.mul_(0.1)
        for block in language.layers:
            block.self_attn.o_proj.weight.mul_(0.5)
    return clip


def klein_clip(seed: int = 2, **text) -> comfy.sd.CLIP:
    """FLUX.2 klein's text encoder, as Load CLIP (type flux2) returns it."""
    return build_clip(flux.klein_te(), flux.KleinTokenizer, "qwen3_4b", seed, **{"num_hidden_layers": DEEP, **text})


def _build_diffusion_model(
    config, seed: int, dtype: torch.dtype = torch.float32, cast: torch.dtype | None = None
) -> comfy.model_patcher.ModelPatcher:
    config.set_inference_dtype(dtype, cast)
    model = config.get_model({}, "")
    randomize(model.diffusion_model, seed)
    return comfy.model_patcher.CoreModelPatcher(
        model, load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def zimage_model(
    seed: int = 3, dtype: torch.dtype = torch.float32, cast: torch.dtype | None = None
) -> comfy.model_patcher.ModelPatcher:
    """Z-Image, as Load Diffusion Model returns it; ``cast``: the type that its weights are brought to for use."""
    config = comfy.supported_models.ZImage({
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "cap_feat_dim": WIDTH, "n_layers": 2,
        "qk_norm": True, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [16, 24, 24], "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
        "pad_tokens_multiple": 32,
    })
    return _build_diffusion_model(config, seed, dtype, cast)


def flux2_model(seed: int = 3) -> comfy.model_patcher.ModelPatcher:
    """FLUX.2 klein, as Load Diffusion Model returns it."""
    config = comfy.supported_models.Flux2({
        "image_model": "flux2", "patch_size": 1, "in_channels": 128, "out_channels": 128, "hidden_size": 128,
        "context_in_dim": 3 * WIDTH, "vec_in_dim": None, "num_heads": 1, "mlp_ratio": 3.0, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [32, 32, 32, 32], "theta": 2000, "qkv_bias": False, "ops_bias": False,
        "global_modulation": True, "mlp_silu_act": True, "guidance_embed": False, "txt_ids_dims": [3],
        "default_ref_method": "index", "ref_index_scale": 10.0,
    })
    return _build_diffusion_model(config, seed)


class Vae:
    """A VAE without weights: the first three latent channels are the colours of what lies under them."""

    def __init__(self, latent_channels: int = 16, scale: int = 8):
        self.latent_channels, self.latent_dim, self.scale = latent_channels, 2, scale

    def spacial_compression_encode(self) -> int:
        return self.scale

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        colours = torch.nn.functional.avg_pool2d(pixels[..., :3].movedim(-1, 1), self.scale) * 2 - 1
        rest = colours.new_zeros(len(colours), self.latent_channels - 3, *colours.shape[2:])
        return torch.cat([colours, rest], 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        colours = torch.nn.functional.interpolate(latents[:, :3].float(), scale_factor=self.scale, mode="nearest")
        return colours.movedim(1, -1).add(1).div(2).clamp(0, 1)


def sample(
    model, positive: list, negative: list | None = None, steps: int = 2, size: int = 8, channels: int = 16
) -> torch.Tensor:
    """A latent ``(1, channels, size, size)`` drawn from fixed noise, as KSampler (euler, simple, cfg 1) draws it."""
    noise = torch.empty(1, channels, size, size).normal_(generator=torch.Generator().manual_seed(1))
    return comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", positive, negative or positive, torch.zeros_like(noise), seed=1,
        disable_pbar=True,
    )


def write_folder(folder: Path, clip: comfy.sd.CLIP) -> Path:
    """A Qwen3-VL CLIP as the Hugging Face folder it would have been loaded from."""
    folder.mkdir(parents=True, exist_ok=True)  # files of tests write the same one into the same server
    encoder = clip.cond_stage_model.qwen3vl_4b.transformer
    common = qwen3vl.QWEN3VL_VISION_COMMON
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "tie_word_embeddings": True,
        "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "text_config": {
            **TEXT, "num_hidden_layers": len(encoder.model.layers), "model_type": "qwen3_vl_text",
            "vocab_size": 151936, "head_dim": HEAD, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144, "hidden_act": "silu", "attention_bias": False, "rope_theta": 5000000.0,
            "tie_word_embeddings": True,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        },
        "vision_config": {
            **VISION, "model_type": "qwen3_vl", "hidden_act": "gelu_pytorch_tanh", "out_hidden_size": WIDTH,
            **{key: common[key] for key in (
                "num_heads", "patch_size", "temporal_patch_size", "in_channels", "spatial_merge_size",
                "num_position_embeddings",
            )},
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    # The host calls language and vision part model.* and visual.*, the published files as here.
    parts = {"model.language_model.": encoder.model, "model.visual.": encoder.visual}
    tensors = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
