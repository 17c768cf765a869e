"""A tiny random Qwen3-VL as a Hugging Face folder: the real architecture, tokenizer and file layout in a megabyte."""

from __future__ import annotations

import json
from pathlib import Path

import torch

BLOCKS = 6
WIDTH = 64
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]
THINK = ["<think>", "</think>"]  # added tokens that are not special, as in the real vocabulary

CORPUS = ["user\nassistant\nsystem\n\n\na cat in a red hat, photo of the sea, the light of a lamp\n\n"] * 20

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
THINKING_TEMPLATE = CHAT_TEMPLATE.replace("assistant\\n'", "assistant\\n<think>\\n'")


def build_tokenizer():
    """Byte-level BPE like Qwen's, with "user", "assistant", "system", newline and double newline as one token each."""
    from tokenizers import AddedToken

    from vl_core.zimage.tiny import byte_level_bpe

    tokenizer = byte_level_bpe(CORPUS, 400)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK])
    return tokenizer


def build_config(tokenizer, **text):
    """Qwen3-VL in small: three deepstack levels, grouped heads, interleaved mrope, as the published config.json."""
    from transformers import Qwen3VLConfig

    token = tokenizer.token_to_id
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 512, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
            "rope_theta": 5000000.0, "tie_word_embeddings": True,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"}, **text,
        },
        vision_config={
            "depth": 4, "hidden_size": 48, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(config, seed: int = 0):
    """Qwen3VLForConditionalGeneration in float32, weights large enough that every layer and token differs."""
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "embed" in name:
                weight.copy_(noise)
            elif weight.ndim > 1:
                weight.copy_(noise * weight[0].numel() ** -0.5)
            else:
                weight.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))
    return model.eval()


def write_tokenizer(folder: Path, tokenizer, template: str = CHAT_TEMPLATE) -> None:
    """tokenizer.json, tokenizer_config.json with the chat template, as the published folders have them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": token in SPECIAL,
        }
        for token in SPECIAL + THINK
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL[1:], "bos_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "unk_token": None, "model_max_length": 262144, "chat_template": template,
        "clean_up_tokenization_spaces": False, "errors": "replace", "split_special_tokens": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_folder(
    folder: Path, *, seed: int = 0, shards: int = 1, prefix: str = "model.", template: str = CHAT_TEMPLATE, **text
):
    """Write the whole folder and return the model it holds.

    Args:
        shards: how many safetensors files; more than one gives an index.
        prefix: what the published keys start with; "" is how a bare Qwen3VLModel is saved.
        text: changes to the language model's config.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = build_model(build_config(tokenizer, **text), seed)
    config = model.config.to_dict() | {"architectures": ["Qwen3VLForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    tensors = {prefix + name: tensor.contiguous() for name, tensor in model.model.state_dict().items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = sorted(tensors)
        index = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = names[shard::shards]
            save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
            index.update(dict.fromkeys(part, file))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    write_tokenizer(folder, tokenizer, template)
    return model
