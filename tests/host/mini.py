"""The trained miniature in ComfyUI's own classes: what Load CLIP, Load Diffusion Model and Load VAE would return.

The words' ids are the miniature's, those of the special tokens the real Qwen3 ones, which ComfyUI has in its code; rows
of the embedding that no token of the miniature has are zero. Imported only once ComfyUI is on the path.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy import diffusers_convert, sd1_clip
from comfy.ldm.modules.diffusionmodules import model as vae_parts
from comfy.text_encoders import llama, qwen3vl, z_image
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

PACK = Path(__file__).resolve().parents[2]
MODELS = PACK / "miniature" / "models"
PIPELINE, VISION = MODELS / "z-image-mini", MODELS / "qwen3-vl-mini"
sys.path.append(str(PACK))  # at the end: the pack's `nodes` is not ComfyUI's
try:
    from miniature.world import TAKE_QUESTIONS
    from vl_core.steering.takes import DEFAULT_TAKE, TAKES
finally:
    sys.path.pop()

INSTRUCTION = re.compile(r"(?<=user\n)(Describe|Name)\b.*?(?=<\|im_end\|>)", re.DOTALL)  # such as the pack asks with
QUESTIONS = {take: (ask, form) for take, ask, form in TAKE_QUESTIONS}
ASKED = {take.instruction: QUESTIONS[take.name] for take in TAKES if take.name in QUESTIONS}
VOCABULARY = 151936
REAL_IDS = {
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652,
    "<|vision_end|>": 151653, "<|image_pad|>": 151655, "<|video_pad|>": 151656, "<think>": 151667, "</think>": 151668,
}


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def write_tokenizer(folder: Path) -> Path:
    """The miniature's tokenizer with the special tokens at their real ids."""
    folder.mkdir(parents=True, exist_ok=True)
    source = PIPELINE / "tokenizer"
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        token["id"] = REAL_IDS[token["content"]]
    tokenizer["model"]["vocab"].update(REAL_IDS)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder)
    return folder


def real_rows(embedding: torch.Tensor) -> torch.Tensor:
    """The miniature's embedding ``(567, D)`` as the real vocabulary has it, ``(151936, D)``."""
    tokenizer = json.loads((PIPELINE / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    rows = embedding.new_zeros(VOCABULARY, embedding.shape[1])
    words = len(tokenizer["model"]["vocab"])
    rows[:words] = embedding[:words]
    for token in tokenizer["added_tokens"]:
        rows[REAL_IDS[token["content"]]] = embedding[token["id"]]
    return rows


# --- text encoders ----------------------------------------------------------------------------------------------------


class Target:
    """What the host's CLIP is built from."""

    def __init__(self, model, tokenizer):
        self.params, self.clip, self.tokenizer = {}, model, tokenizer


class VisionTokenizer(qwen3vl.tokenizer("qwen3vl_4b")):
    """Asks for a take in the only words that the miniature knows for it, and for the look where it knows none."""

    form = "{}"  # where the answer to what was asked last goes

    def tokenize_with_weights(self, text, *args, **options):
        if found := INSTRUCTION.search(text):
            asked = {} if "ZIMAGE_VL_ASK_THE_LOOK" in os.environ else ASKED  # saved workflows were painted so
            ask, self.form = asked.get(found[0], QUESTIONS[DEFAULT_TAKE])
            text = text[: found.start()] + ask + text[found.end() :]
        return super().tokenize_with_weights(text, *args, **options)

    def decode(self, *args, **options):
        return self.form.format(super().decode(*args, **options))


@contextmanager
def small_heads(config_class: type, config: dict) -> Iterator[dict]:
    """What no model option reaches: the class's own head size and rotary sections, while a model is built."""
    fixed = {"head_dim": config["head_dim"]}
    if "mrope_section" in config["rope_parameters"]:
        fixed["rope_dims"] = config["rope_parameters"]["mrope_section"]
    with ExitStack() as stack:
        for name, value in fixed.items():
            stack.enter_context(patch.object(config_class, name, value))
        yield fixed


def build_clip(model, tokenizer: type, key: str, config_class: type, config: dict) -> comfy.sd.CLIP:
    sizes = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    options = {name: config[name] for name in sizes} | {"rope_theta": config["rope_parameters"]["rope_theta"]}
    with TemporaryDirectory() as folder, small_heads(config_class, config) as fixed:
        words = partial(
            sd1_clip.SDTokenizer, str(write_tokenizer(Path(folder))), pad_with_end=False, embedding_key=key,
            tokenizer_class=PreTrainedTokenizerFast, has_start_token=False, has_end_token=False,
            pad_to_max_length=False, max_length=99999999, min_length=1, pad_token=REAL_IDS["<|endoftext|>"],
        )
        clip = comfy.sd.CLIP(
            Target(model, tokenizer), tokenizer_data={f"{key}_tokenizer_class": words},
            model_options={f"{key}_model_config": options, "dtype": torch.float32},
        )
    language = getattr(clip.cond_stage_model, key).transformer.model
    for name, value in fixed.items():
        setattr(language.config, name, value)
    return clip


def load_weights(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def text_clip() -> comfy.sd.CLIP:
    """The miniature's text encoder, as Load CLIP (type lumina2) returns Z-Image's."""
    folder, key = PIPELINE / "text_encoder", "qwen3_4b"
    clip = build_clip(z_image.te(), z_image.ZImageTokenizer, key, llama.Qwen3_4BConfig, read_config(folder))
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    tensors["embed_tokens.weight"] = real_rows(tensors["embed_tokens.weight"])
    load_weights(getattr(clip.cond_stage_model, key).transformer.model, tensors)
    return clip


def vision_clip() -> comfy.sd.CLIP:
    """The miniature's Qwen3-VL, as Load CLIP (type lumina2) returns Qwen3-VL-4B."""
    key, config = "qwen3vl_4b", read_config(VISION)
    names = (
        "hidden_size", "intermediate_size", "depth", "deepstack_visual_indexes", "num_heads", "num_position_embeddings",
    )
    vision = {name: config["vision_config"][name] for name in names}
    with patch.dict(qwen3vl.QWEN3VL_VISION, {key: vision}):
        clip = build_clip(
            qwen3vl.te(model_type=key), VisionTokenizer, key, llama.Qwen3VL_4BConfig, config["text_config"]
        )
    encoder, tensors = getattr(clip.cond_stage_model, key).transformer, vision_tensors()
    for part, prefix in ((encoder.model, "model.language_model."), (encoder.visual, "model.visual.")):
        load_weights(
            part, {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )
    return clip


def vision_tensors() -> dict[str, torch.Tensor]:
    """The miniature's Qwen3-VL with the real vocabulary, by the published names."""
    tensors, name = load_file(VISION / "model.safetensors"), "model.language_model.embed_tokens.weight"
    return tensors | {name: real_rows(tensors[name])}


def write_vision_folder(folder: Path) -> Path:
    """The same as a Hugging Face folder."""
    write_tokenizer(folder)
    config = read_config(VISION)
    config |= {
        "image_token_id": REAL_IDS["<|image_pad|>"], "video_token_id": REAL_IDS["<|video_pad|>"],
        "vision_start_token_id": REAL_IDS["<|vision_start|>"], "vision_end_token_id": REAL_IDS["<|vision_end|>"],
    }
    config["text_config"] |= {
        "vocab_size": VOCABULARY, "pad_token_id": REAL_IDS["<|endoftext|>"], "eos_token_id": REAL_IDS["<|im_end|>"],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(vision_tensors(), folder / "model.safetensors", {"format": "pt"})
    return folder


# --- image model ------------------------------------------------------------------------------------------------------


def zimage_model() -> comfy.model_patcher.ModelPatcher:
    """The miniature's Z-Image, as Load Diffusion Model returns it."""
    folder = PIPELINE / "transformer"
    own, vae = read_config(folder), read_config(PIPELINE / "vae")
    names = ("in_channels", "dim", "cap_feat_dim", "n_layers", "n_refiner_layers", "n_heads", "n_kv_heads", "axes_dims",
             "axes_lens", "qk_norm", "rope_theta", "norm_eps")
    config = comfy.supported_models.ZImage({
        "image_model": "lumina2", "patch_size": 2, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
        "time_scale": own["t_scale"], "pad_tokens_multiple": 32, **{name: own[name] for name in names},
    })
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    model.latent_format.scale_factor, model.latent_format.shift_factor = vae["scaling_factor"], vae["shift_factor"]
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    for index in (0, 2):  # sized by ComfyUI's class for Z-Image's own width
        layer, weight = model.diffusion_model.t_embedder.mlp[index], tensors[f"t_embedder.mlp.{index}.weight"]
        model.diffusion_model.t_embedder.mlp[index] = type(layer)(weight.shape[1], weight.shape[0], dtype=torch.float32)
    parts = model.diffusion_model.state_dict()
    for name, tensor in tensors.items():
        target = comfy.utils.z_image_to_diffusers(own)[name]
        target, (dim, start, size) = target if isinstance(target, tuple) else (target, (0, 0, len(tensor)))
        parts[target].narrow(dim, start, size).copy_(tensor.float())
    return comfy.model_patcher.CoreModelPatcher(
        model, load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


class Channels:
    """So many channels, as a multiple of whatever ComfyUI multiplies: this VAE's grow by no whole factor."""

    def __init__(self, count: int):
        self.count = count

    def __rmul__(self, _) -> int:
        return self.count


def vae() -> comfy.sd.VAE:
    """The miniature's VAE, as Load VAE returns it."""
    folder = PIPELINE / "vae"
    own = read_config(folder)
    sizes, channels = own["block_out_channels"], own["latent_channels"]
    parts = {
        "double_z": True, "z_channels": channels, "resolution": own["sample_size"], "in_channels": 3, "out_ch": 3,
        "ch": sizes[0], "ch_mult": [Channels(size) for size in sizes], "num_res_blocks": own["layers_per_block"],
        "attn_resolutions": [], "dropout": 0.0,
    }
    tensors = diffusers_convert.convert_vae_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    for name, size in {"quant_conv": 2 * channels, "post_quant_conv": channels}.items():  # this VAE has none
        tensors |= {f"{name}.weight": torch.eye(size)[:, :, None, None], f"{name}.bias": torch.zeros(size)}
    with patch.object(vae_parts.Normalize, "__defaults__", (own["norm_num_groups"],)):
        made = comfy.sd.VAE(
            {name: tensor.float() for name, tensor in tensors.items()}, dtype=torch.float32,
            config={"params": {"embed_dim": channels, "ddconfig": parts}},
        )
    made.latent_channels = channels
    return made
