"""Batched forwards of the stock modules' own weights, for training and measuring.

The stock forwards take one sequence or one list entry at a time; these take batches of equal shape, and
``tests/unit/miniature/test_miniature_forwards.py`` holds them to the stock ones. Pictures are
128 × 128: 16 image tokens, 64 image tokens of the DiT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import world
from . import models

PATCHES = world.SIDE // 16  # vision patches per side
MERGED = PATCHES // 2  # image tokens per side
PICTURE_AT = 4  # <|im_start|> user \n <|vision_start|>
CAPTION_MULTIPLE = 32  # Z-Image pads captions to a multiple of this
DIT_SIDE = models.LATENT_SIDE // 2
DIT_TOKENS = DIT_SIDE**2
SHIFT = 2.0  # of the sampler's sigmas

# ------------------------------------------------------------------------------------------------- vision and language


def patchify(pictures: Tensor) -> Tensor:
    """``(B, 3, 128, 128)`` in [-1, 1] -> ``(B, 64, 1536)`` as ``vl_core.pictures.patchify`` orders it."""
    batch = len(pictures)
    cut = pictures.view(batch, 3, MERGED, 2, 16, MERGED, 2, 16).permute(0, 2, 5, 3, 6, 1, 4, 7)
    frames = cut.reshape(batch, PATCHES**2, 3, 1, 256).expand(-1, -1, -1, 2, -1)
    return frames.reshape(batch, PATCHES**2, -1)


def _patch_places(device) -> tuple[Tensor, Tensor]:
    """Row and column of each patch in merge order, int64 ``(64,)``."""
    line = torch.arange(PATCHES, device=device)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"))
    rows, columns = grid.view(2, MERGED, 2, MERGED, 2).transpose(2, 3).flatten(1)
    return rows, columns


def see(visual: nn.Module, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Qwen3-VL's vision tower: embeddings ``(B, 16, D)`` and as many per deepstack level."""
    batch, device = len(pictures), pictures.device
    embed = visual.patch_embed.proj
    x = F.linear(patchify(pictures), embed.weight.flatten(1), embed.bias)
    rows, columns = _patch_places(device)
    x = x + visual.pos_embed.weight[rows * PATCHES + columns]
    heads = visual.blocks[0].attn.num_heads
    width = x.shape[-1]
    half = width // heads // 2
    rate = 1.0 / (10000.0 ** (torch.arange(0, half, 2, device=device).float() / half))
    angle = torch.cat([rows[:, None] * rate, columns[:, None] * rate], 1).repeat(1, 2)
    cosine, sine = angle.cos(), angle.sin()

    def turn(t: Tensor) -> Tensor:
        t32 = t.float()
        return (t32 * cosine + torch.cat([-t32[..., half:], t32[..., :half]], -1) * sine).to(t.dtype)

    levels = []
    for index, block in enumerate(visual.blocks):
        q, k, v = block.attn.qkv(block.norm1(x)).view(batch, -1, 3, heads, 2 * half).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(turn(q), turn(k), v).transpose(1, 2).reshape(x.shape)
        x = x + block.attn.proj(attended)
        x = x + block.mlp(block.norm2(x))
        if index in visual.deepstack_visual_indexes:
            level = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(index)]
            levels.append(level(x.reshape(-1, width)).view(batch, world.IMAGE_TOKENS, -1))
    return visual.merger(x.reshape(-1, width)).view(batch, world.IMAGE_TOKENS, -1), levels


def picture_positions(length: int, device, at: int = PICTURE_AT) -> Tensor:
    """Rotary positions of a sequence with a picture, ``(3, length)``: see ``vl_core.layout.mrope_positions``."""
    place = torch.arange(length, device=device)
    after = at + world.IMAGE_TOKENS
    time = torch.where(place < at, place, (place - world.IMAGE_TOKENS + MERGED).clamp_min(at))
    at_picture = (place >= at) & (place < after)
    time = torch.where(at_picture, at, time)
    cell = (place - at).clamp(0, world.IMAGE_TOKENS - 1)
    return torch.stack([
        time, torch.where(at_picture, at + cell // MERGED, time), torch.where(at_picture, at + cell % MERGED, time),
    ])


def vl_forward(
    vl: nn.Module, ids: Tensor, pictures: Tensor | None, text_ids: Tensor | None = None, *, at: int = PICTURE_AT,
    **options,
):
    """Qwen3-VL's language model on a batch with one picture each, and optionally on texts without one.

    Args:
        vl: the whole model, or its part without the head.
        ids: int64 ``(B, L)``, the picture's tokens from position ``at`` on; right padding changes nothing before it.
        pictures: ``(B, 3, 128, 128)`` in [-1, 1]; None mutes them: zero embeddings, no deepstack.
        text_ids: ``(T, L)``, run in the same batch after the others.
        options: ``output_hidden_states`` and the like.

    Returns:
        transformers' output over ``B + T`` sequences.
    """
    model = getattr(vl, "model", vl)
    language, batch, device = model.language_model, len(ids), ids.device
    words = language.embed_tokens(ids)
    end = at + world.IMAGE_TOKENS
    embeddings, levels = (torch.zeros_like(words[:, at:end]), []) if pictures is None else see(model.visual, pictures)
    hidden = torch.cat([words[:, :at], embeddings.to(words.dtype), words[:, end:]], 1)
    positions = picture_positions(ids.shape[1], device, at)[:, None].expand(3, batch, -1)
    if text_ids is not None:
        hidden = torch.cat([hidden, language.embed_tokens(text_ids)])
        plain = torch.arange(ids.shape[1], device=device).expand(3, len(text_ids), -1)
        positions = torch.cat([positions, plain], 1)
    at_pictures = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=device)
    at_pictures[:batch, at:end] = True
    return language(
        inputs_embeds=hidden, position_ids=positions, visual_pos_masks=at_pictures, use_cache=False,
        deepstack_visual_embeds=[level.flatten(0, 1).to(hidden.dtype) for level in levels], **options,
    )


def last_block(language: nn.Module, hidden: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """The language model's last block and final norm, of sequences with a picture, at some positions only.

    Args:
        hidden: ``hidden_states[-2]``, ``(B, L, D)``. ``where``: int64 ``(B, Q)``, positions whose states are wanted.

    Returns:
        those positions' ``last_hidden_state`` ``(B, Q, D)``, and what each head attends to there ``(B, H, Q, L)``.
    """
    block, length = language.layers[-1], hidden.shape[1]
    attention, rows = block.self_attn, torch.arange(len(hidden), device=hidden.device)[:, None]
    positions = picture_positions(length, hidden.device)[:, None].expand(3, len(hidden), -1)
    cosine, sine = language.rotary_emb(hidden, positions)

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    def turn(t: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        left, right = t.chunk(2, -1)
        return t * cosine[:, None] + torch.cat([-right, left], -1) * sine[:, None]

    given, chosen = block.input_layernorm(hidden), hidden[rows, where]
    asking, angle = attention.q_proj(given[rows, where]), (cosine[rows, where], sine[rows, where])
    queries = turn(attention.q_norm(heads(asking)), *angle)
    keys = turn(attention.k_norm(heads(attention.k_proj(given))), cosine, sine)
    values, group = heads(attention.v_proj(given)), attention.num_key_value_groups
    scores = queries.float() @ keys.float().repeat_interleave(group, 1).transpose(-1, -2) * attention.scaling
    later = torch.arange(length, device=hidden.device) > where[:, None, :, None]
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    mixed = weights.to(values.dtype) @ values.repeat_interleave(group, 1)
    chosen = chosen + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return language.norm(chosen + block.mlp(block.post_attention_layernorm(chosen))), weights


@torch.no_grad()
def text_states(reader: nn.Module, ids: Tensor, layer: int = -2) -> Tensor:
    """A text encoder's states ``(B, L, D)`` at ``hidden_states[layer]``; right padding changes nothing before it."""
    return reader(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[layer]


# --------------------------------------------------------------------------------------------------------------- DiT

Rotary = tuple[Tensor, Tensor]  # cosine and sine, float32 (64 + L, half a head): image tokens, then the caption's


def dit_rotary(dit: nn.Module, caption: int, device, side: int = DIT_SIDE) -> Rotary:
    """Rotary factors for captions padded to ``caption`` tokens and pictures of side × side tokens."""
    embedder = dit.rope_embedder
    frame, rows, columns = embedder.precompute_freqs_cis(embedder.axes_dims, embedder.axes_lens, embedder.theta)
    words = torch.cat(
        [frame[1 : caption + 1], rows[:1].expand(caption, -1), columns[:1].expand(caption, -1)], 1
    )
    line = torch.arange(side)
    grid_rows, grid_columns = torch.meshgrid(line, line, indexing="ij")
    image = torch.cat([
        frame[caption + 1].expand(side * side, -1), rows[grid_rows.flatten()], columns[grid_columns.flatten()],
    ], 1)
    factors = torch.cat([image, words]).to(device)
    return factors.real.float().contiguous(), factors.imag.float().contiguous()


def _rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    scaled = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + norm.eps)
    return scaled.to(x.dtype) * norm.weight.to(x.dtype)


def dit_block(block: nn.Module, x: Tensor, cosine: Tensor, sine: Tensor, condition: Tensor | None) -> Tensor:
    """One ZImageTransformerBlock on ``(B, L, D)``, every token attending to every other."""
    attention = block.attention
    batch, length, width = x.shape
    scale_1 = gate_1 = scale_2 = gate_2 = 1.0
    if condition is not None:
        parts = block.adaLN_modulation(condition).unsqueeze(1).chunk(4, dim=2)
        scale_1, gate_1, scale_2, gate_2 = 1 + parts[0], parts[1].tanh(), 1 + parts[2], parts[3].tanh()

    def heads(t: Tensor) -> Tensor:
        return t.view(batch, length, attention.heads, -1)

    def turn(t: Tensor) -> Tensor:
        real, imaginary = t.float().unflatten(-1, (-1, 2)).unbind(-1)
        c, s = cosine[:, None], sine[:, None]
        return torch.stack([real * c - imaginary * s, real * s + imaginary * c], -1).flatten(3).to(t.dtype)

    h = _rms_norm(x, block.attention_norm1) * scale_1
    q, k = (
        turn(_rms_norm(heads(project(h)), norm)).transpose(1, 2)
        for project, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k))
    )
    mixed = F.scaled_dot_product_attention(q, k, heads(attention.to_v(h)).to(q.dtype).transpose(1, 2))
    out = attention.to_out[0](mixed.transpose(1, 2).reshape(batch, length, width))
    x = x + gate_1 * _rms_norm(out, block.attention_norm2)
    feed = block.feed_forward
    h = _rms_norm(x, block.ffn_norm1) * scale_2
    return x + gate_2 * _rms_norm(feed.w2(F.silu(feed.w1(h)) * feed.w3(h)), block.ffn_norm2)


def dit_forward(
    dit: nn.Module,
    latents: Tensor,
    time: Tensor,
    captions: Tensor,
    counts: Tensor,
    rotary: Rotary,
    *,
    block: Callable = dit_block,
    tap: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """ZImageTransformer2DModel on a batch.

    Args:
        latents: ``(B, 16, 2·side, 2·side)``, scaled; the model was trained on a side of 8. Fewer image tokens are not
            padded to a multiple of 32, as the stock model pads them: nothing taught this one its padding.
        time: ``(B,)``, 0 noise to 1 clean.
        captions: states ``(B, L, D)``, L the multiple of 32 that each caption is padded to; ``counts``: ``(B,)``
            tokens that are real, each more than L − 32.
        rotary: :func:`dit_rotary` for L and the side.
        block: :func:`dit_block` or a compiled one.
        tap: also give the image tokens ``(B, side², width)`` after that many blocks.

    Returns:
        the velocity towards the clean latents, shaped like them (ZImagePipeline negates it for its scheduler).
    """
    batch, channels, _, high = latents.shape
    side = high // 2
    tokens = side * side
    cosine, sine = rotary
    embed = dit.t_embedder
    condition = embed.mlp(embed.timestep_embedding(time * dit.t_scale, embed.frequency_embedding_size))
    patches = latents.view(batch, channels, side, 2, side, 2).permute(0, 2, 4, 3, 5, 1)
    image = dit.all_x_embedder["2-1"](patches.reshape(batch, tokens, 4 * channels))
    for layer in dit.noise_refiner:
        image = block(layer, image, cosine[:tokens], sine[:tokens], condition)
    norm, project = dit.cap_embedder
    words = project(_rms_norm(captions, norm))
    is_padding = torch.arange(words.shape[1], device=words.device) >= counts[:, None]
    words = torch.where(is_padding.unsqueeze(-1), dit.cap_pad_token.to(words.dtype), words)
    for layer in dit.context_refiner:
        words = block(layer, words, cosine[tokens:], sine[tokens:], None)
    unified = torch.cat([image, words.to(image.dtype)], 1)
    tapped = None
    for index, layer in enumerate(dit.layers):
        unified = block(layer, unified, cosine, sine, condition)
        if index + 1 == tap:
            tapped = unified[:, :tokens]
    out = dit.all_final_layer["2-1"](unified[:, :tokens], c=condition)
    out = out.view(batch, side, side, 2, 2, channels).permute(0, 5, 1, 3, 2, 4).reshape(latents.shape)
    return out if tap is None else (out, tapped)


def padded_length(tokens: int) -> int:
    return -(-tokens // CAPTION_MULTIPLE) * CAPTION_MULTIPLE


def sigmas(steps: int) -> Tensor:
    """Noise levels of ZImagePipeline with a static shift, float32 ``(steps + 1,)``, the last 0."""
    plain = torch.linspace(1.0, 1 / steps, steps)
    return torch.cat([SHIFT * plain / (1 + (SHIFT - 1) * plain), torch.zeros(1)])


@torch.no_grad()
def sample(
    dit: nn.Module,
    captions: Sequence[Tensor],
    noise: Tensor,
    *,
    steps: int,
    guidance: float = 0.0,
    unwanted: Tensor | None = None,
    window: tuple[int, int] | None = None,
    chunk: int = 512,
) -> Tensor:
    """Euler sampling as ZImagePipeline does it, many captions at once.

    Args:
        captions: states ``(L_i, D)``, any lengths. ``unwanted``: states ``(L, D)`` that guidance leads away from.
        noise: ``(N, 16, 16, 16)``, one per caption.
        guidance: v + g·(v − v_unwanted); 0 turns it off.
        window: take only the steps from the first to before the second; None takes all.

    Returns:
        scaled latents ``(N, 16, 16, 16)``.
    """
    first, last = window or (0, steps)
    levels = sigmas(steps)[first : last + 1]
    painted = torch.empty_like(noise)
    by_length: dict[int, list[int]] = {}
    for index, states in enumerate(captions):
        by_length.setdefault(padded_length(len(states)), []).append(index)
    for length, members in by_length.items():
        for start in range(0, len(members), chunk):
            chosen = members[start : start + chunk]
            painted[chosen] = _sample_equal(
                dit, [captions[i] for i in chosen], length, noise[chosen], levels, guidance, unwanted
            )
    return painted


def _sample_equal(dit, captions, length, latents, levels, guidance, unwanted) -> Tensor:
    device = latents.device

    def prepare(states: Sequence[Tensor], padded: int):
        counts = torch.tensor([len(one) for one in states], device=device)
        stacked = torch.stack([F.pad(one.to(device).float(), (0, 0, 0, padded - len(one))) for one in states])
        return stacked, counts, dit_rotary(dit, padded, device)

    wanted = prepare(captions, length)
    other = prepare([unwanted] * len(captions), padded_length(len(unwanted))) if guidance else None
    for now, then in pairwise(levels.to(device)):
        time = (1 - now).expand(len(latents))
        with autocast(device):
            velocity = dit_forward(dit, latents, time, *wanted).float()
            if other is not None:
                velocity = velocity + guidance * (velocity - dit_forward(dit, latents, time, *other).float())
        latents = latents + (now - then) * velocity
    return latents


@torch.no_grad()
def decode(vae: nn.Module, latents: Tensor, chunk: int = 128) -> Tensor:
    """Pictures ``(N, 3, 128, 128)`` in [-1, 1] of scaled latents."""
    raw = latents / vae.config.scaling_factor + vae.config.shift_factor
    return torch.cat([vae.decode(part.to(vae.dtype)).sample.float().clamp(-1, 1) for part in raw.split(chunk)])


def autocast(device):
    """bf16 on a GPU, nothing elsewhere."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")
