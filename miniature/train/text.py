"""Stage ``text``: the text encoder, a Qwen3 that reads, paraphrases and answers, with an attention sink from the start.

It learns next-token prediction on exchanges about scenes. Z-Image reads its layer −2, so the words must be worth
something there: paraphrases and answers need every attribute of the prompt.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vl_core.states.layout import HEADER_TOKENS

from .. import world
from . import models, tokens
from .forwards import autocast, text_states
from .sink import CHECKED_LAYERS, WEIGHT, WRITER, block_outputs, drift_loss, sink_figures, sink_loss
from .training import Options, Training, begin, in_processes, log

LENGTH = 80  # tokens of the longest exchange kept
BATCH = 512
RATE = 2e-3
TEXTS = 600_000
GARBLED = 1 / 16  # share of rows with random tokens
HELD_OUT = 2000  # texts at the end of the pool that are never trained on


def exchanges(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    scenes = world.sample_scenes(count, torch.Generator().manual_seed(seed)).records()
    return [world.text_exchange(scene, rng, scenes[rng.randrange(count)]) for scene in scenes]


def text_pool(tokenizer: Any, count: int, seed: int, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Token ids ``(N, length)`` and counts of about ``count`` exchanges."""
    share = max(1, min(30_000, count // 4))
    parts = in_processes(_encoded, [(tokenizer, seed + job, share, length) for job in range(-(-count // share))])
    ids, counts = tokens.join(parts)
    return ids[counts > 0], counts[counts > 0]


def _encoded(tokenizer: Any, seed: int, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    return tokens.encode(tokenizer, exchanges(seed, count), length)


def garble(rows: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Put random tokens into a few rows ``(B, L)``, after the header; tells which rows, boolean ``(B, 1)``.

    Nothing is to be learnt from them but that tokens the world never uses are no sinks either.
    """
    batch, length = rows.shape
    chosen = torch.rand(batch, 1, device=rows.device) < GARBLED
    swapped = chosen & (torch.rand(batch, length, device=rows.device) < 0.5)
    swapped[:, :HEADER_TOKENS] = False
    return torch.where(swapped, torch.randint_like(rows, vocabulary), rows), chosen


def next_token_loss(hidden: Tensor, embedding: Tensor, ids: Tensor, counted: Tensor) -> Tensor:
    """Cross entropy of ids ``(B, L)`` given what is before them, over positions where ``counted`` is true."""
    logits = F.linear(hidden[:, :-1], embedding)
    losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = counted[:, 1:].float().flatten()
    return (losses * weights).sum() / weights.sum().clamp_min(1)


def answer_positions(ids: Tensor, counts: Tensor, assistant: int) -> Tensor:
    """Boolean ``(B, L)``: the answer's tokens and the <|im_end|> after them."""
    place = torch.arange(ids.shape[1], device=ids.device)
    start = (ids == assistant).float().argmax(1) + 2  # after "assistant\n"
    return (place >= start[:, None]) & (place < counts[:, None] - 1)


def run(options: Options) -> dict[str, Any]:
    """Train, write ``text.safetensors``, give the closing figures."""
    device = begin(options)
    tokenizer = tokens.load_tokenizer(options.out)
    before = time.monotonic()
    ids, counts = text_pool(tokenizer, options.size(TEXTS, 1200), 1000 * options.seed + 100)
    log(options, "text", texts=len(ids), data_s=round(time.monotonic() - before, 1))
    torch.manual_seed(options.seed)
    model = models.make_text_encoder(tokenizer, options.sizes).to(device)
    held = options.size(HELD_OUT, 100)
    train = (ids[:-held].to(device), counts[:-held].to(device))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.02, fused=device.type == "cuda"
    )
    training = Training(options, "text", {"model": model}, optimizer, [RATE], options.size(200, 10))
    parameters, batch = list(model.parameters()), options.size(BATCH, 16)
    late = len(model.model.layers) - 2  # its output is layer −2
    with block_outputs(model.model.layers, WRITER, late) as written:
        for _ in training.steps():
            chosen = torch.randint(0, len(train[0]), (batch,), device=device)
            rows, lengths = train[0][chosen].long(), train[1][chosen].long()
            if device.type == "cpu":
                rows = rows[:, : int(lengths.max())]
            real = torch.arange(rows.shape[1], device=device) < lengths[:, None]
            rows, is_garbled = garble(rows, len(tokenizer))
            with autocast(device):
                hidden = model.model(input_ids=rows, use_cache=False).last_hidden_state
                language = next_token_loss(hidden, model.model.embed_tokens.weight, rows, real & ~is_garbled)
            sink = sink_loss(written[WRITER], options.sizes.sink, real) + drift_loss(written[late])
            training.update(language + WEIGHT * sink, parameters)
            training.notes |= {"language": language.detach(), "sink": sink.detach()}
    if not training.done:
        return {}
    models.save_weights(options.out / "text.safetensors", model)
    figures = evaluate(options.out, options, tokenizer, ids[-held:], counts[-held:])
    return training.finish(parameters, figures)


def load(folder: Path, options: Options, tokenizer: Any) -> nn.Module:
    """The trained encoder, float32, on the options' device."""
    model = models.make_text_encoder(tokenizer, options.sizes)
    models.load_weights(folder / "text.safetensors", model)
    model.tie_weights()
    return model.to(options.pick_device()).eval()


@torch.no_grad()
def evaluate(folder: Path, options: Options, tokenizer: Any, ids: Tensor, counts: Tensor) -> dict[str, Any]:
    """Answers and the sink, on texts that were never trained on."""
    model = load(folder, options, tokenizer)
    device = options.pick_device()
    rows, lengths = ids.to(device).long(), counts.to(device).long()
    right = asked = 0
    for part, sizes in zip(rows.split(250), lengths.split(250), strict=True):
        guess = F.linear(model.model(input_ids=part).last_hidden_state, model.model.embed_tokens.weight).argmax(-1)
        counted = answer_positions(part, sizes, tokenizer.convert_tokens_to_ids("assistant"))[:, 1:]
        right += int(((guess[:, :-1] == part[:, 1:]) & counted).sum())
        asked += int(counted.sum())
    return {"answer_tokens": right / max(1, asked), **sink_summary(model.model, tokenizer)}


@torch.no_grad()
def sink_summary(reader: nn.Module, tokenizer: Any, prompts: int = 24) -> dict[str, float]:
    """The sink's worst figures over the checked layers and its size after the final norm."""
    rng = random.Random(3)
    scenes = world.sample_scenes(prompts, torch.Generator().manual_seed(3)).records()
    texts = [world.prompt_turn(world.caption(scene, rng)[0]) for scene in scenes]
    sequences = []
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=reader.device)
        sequences.append([text_states(reader, ids, layer)[0] for layer in (*CHECKED_LAYERS, -1)])
    figures = sink_figures((*CHECKED_LAYERS, -1), sequences)
    checked = [figures[layer] for layer in CHECKED_LAYERS]
    return {
        "sink_ratio": min(one["ratio"] for one in checked), "sink_share": min(one["share"] for one in checked),
        "sink_exact": min(one["exact"] for one in checked), "sink_found_after_norm": figures[-1]["found"],
    }
