"""Stage ``vl``: a vision tower for the text encoder.

The language model starts as the text encoder, weight for weight, sink included, and stays frozen: the vision tower
alone learns to put into 16 image tokens (and three deepstack levels) what the language model would have read in
words. It knows the requests already (``world.tags``). In the last share of the stage the language model may learn
too, at a low rate and held to the text encoder's states on texts, so that it is a sibling and not a copy.
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

from .. import world
from . import models, text, tokens
from .forwards import PICTURE_AT, autocast, text_states, vl_forward
from .sink import WEIGHT, WRITER, block_outputs, sink_loss
from .training import Options, Training, begin, in_processes, log

LENGTH = 88  # tokens of the longest exchange kept
BATCH, TEXT_BATCH = 320, 96
SCENES = 200_000
HELD_OUT = 2000
VISION_RATE, LANGUAGE_RATE = 1.2e-3, 1e-4
ANCHOR = 2.0  # weight of staying the text encoder, in the joint share


def picture_pool(tokenizer: Any, scenes: world.Scenes, seed: int) -> tuple[Tensor, Tensor]:
    """One exchange per scene: ids ``(N, LENGTH)`` and counts, 0 where it was too long."""
    records = scenes.records()
    share = max(1, min(20_000, len(records)))
    jobs = [(tokenizer, records[at : at + share], seed + at) for at in range(0, len(records), share)]
    return tokens.join(in_processes(_encoded, jobs))


def _encoded(tokenizer: Any, records: list[world.Scene], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = random.Random(seed)
    texts = [world.picture_exchange(scene, rng, rng.choice(records)) for scene in records]
    return tokens.encode(tokenizer, texts, LENGTH)


def pictures_8bit(scenes: world.Scenes, seed: int, device, chunk: int = 512) -> Tensor:
    """uint8 ``(N, 3, 128, 128)`` on ``device``."""
    generator = torch.Generator(device).manual_seed(seed)
    parts = []
    for start in range(0, len(scenes), chunk):
        pictures, _ = world.render(scenes[start : start + chunk].to(device), generator)
        parts.append(((pictures + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(parts)


def to_float(pictures: Tensor) -> Tensor:
    """uint8 to [-1, 1], as the encoder sees a file."""
    return pictures.float() / 127.5 - 1


def run(options: Options) -> dict[str, Any]:
    """Train, write ``vl.safetensors``, give the closing figures."""
    device = begin(options)
    tokenizer = tokens.load_tokenizer(options.out)
    before = time.monotonic()
    count, held = options.size(SCENES, 160), options.size(HELD_OUT, 40)
    scenes = world.sample_scenes(count, torch.Generator().manual_seed(options.seed + 7))
    ids, counts = picture_pool(tokenizer, scenes, options.seed + 11)
    words, word_counts = text.text_pool(tokenizer, options.size(100_000, 200), 1000 * options.seed + 9000, LENGTH)
    # The texts come from forked processes; from here on the GPU may be touched.
    reader = text.load(options.out, options, tokenizer)
    pictures = pictures_8bit(scenes, options.seed + 13, device)
    usable = (counts > 0).nonzero().flatten()
    train, test = usable[usable < count - held].to(device), usable[usable >= count - held].to(device)
    ids, counts, words, word_counts = (t.to(device) for t in (ids, counts, words, word_counts))
    log(options, "vl", exchanges=len(usable), data_s=round(time.monotonic() - before, 1))

    torch.manual_seed(options.seed)
    model = models.make_vl(tokenizer, options.sizes).to(device)
    vision, language = model.model.visual, model.model.language_model
    language.load_state_dict(reader.model.state_dict())
    model.tie_weights()
    joint_from = 1 - options.joint
    optimizer = torch.optim.AdamW(
        [{"params": list(vision.parameters())}, {"params": list(language.parameters()), "weight_decay": 0.0}],
        lr=VISION_RATE, betas=(0.9, 0.98), weight_decay=0.02, fused=device.type == "cuda",
    )
    rates = [VISION_RATE, lambda progress: LANGUAGE_RATE if progress >= joint_from else 0.0]
    training = Training(options, "vl", {"model": model}, optimizer, rates, options.size(200, 10))
    batch, text_batch = options.size(BATCH, 8), options.size(TEXT_BATCH, 4)
    place = torch.arange(LENGTH, device=device)
    embedding = language.embed_tokens.weight
    with block_outputs(language.layers, WRITER) as written:
        for _ in training.steps():
            joint = training.progress >= joint_from
            language.requires_grad_(joint)
            chosen = train[torch.randint(0, len(train), (batch,), device=device)]
            rows, present = ids[chosen].long(), place < counts[chosen, None]
            counted = present & (place >= PICTURE_AT + world.IMAGE_TOKENS)
            row = torch.randint(0, len(words), (text_batch,), device=device)
            text_rows, real = words[row].long(), place < word_counts[row, None]
            with autocast(device):
                out = vl_forward(
                    model, rows, to_float(pictures[chosen]), text_rows if joint else None, output_hidden_states=joint
                )
                loss = text.next_token_loss(out.last_hidden_state[:batch], embedding, rows, counted)
                training.notes["answers"] = loss.detach()
                # The picture's tokens are new to the frozen model: none may set the sink off.
                sink = sink_loss(written[WRITER][:batch], options.sizes.sink, present)
                loss = loss + WEIGHT * sink
                training.notes["sink"] = sink.detach()
                if joint:
                    anchor = anchor_loss(out.hidden_states[-2][batch:], text_states(reader.model, text_rows), real)
                    loss = loss + ANCHOR * anchor
                    training.notes["anchor"] = anchor.detach()
            training.update(loss, [p for p in model.parameters() if p.requires_grad])
    if not training.done:
        return {}
    models.save_weights(options.out / "vl.safetensors", model)
    test, trained = test[: options.size(1024, 24)], load(options.out, options, tokenizer)
    figures = {
        **answer_figures(trained, tokenizer, ids[test], counts[test], pictures[test]),
        **text_agreement(trained.model.language_model, reader.model, tokenizer, words[:400], word_counts[:400]),
    }
    return training.finish(model.parameters(), figures)


def anchor_loss(ours: Tensor, theirs: Tensor, real: Tensor) -> Tensor:
    """1 − cosine of states ``(B, L, D)`` at the tokens that are ``real``, the first (the sink) left out."""
    cosine = F.cosine_similarity(ours[:, 1:].float(), theirs[:, 1:].float(), dim=-1)
    return ((1 - cosine) * real[:, 1:]).sum() / real[:, 1:].sum()


def load(folder: Path, options: Options, tokenizer: Any) -> nn.Module:
    """The trained VL, float32, on the options' device."""
    model = models.make_vl(tokenizer, options.sizes)
    models.load_weights(folder / "vl.safetensors", model)
    model.tie_weights()
    return model.to(options.pick_device()).eval()


@torch.no_grad()
def answer_figures(
    model: nn.Module, tokenizer: Any, ids: Tensor, counts: Tensor, pictures: Tensor
) -> dict[str, float]:
    """Share of held-out questions whose one-word answer is right, with its standard error, and of all answer tokens."""
    assistant = tokenizer.convert_tokens_to_ids("assistant")
    right = asked = short_right = short = 0
    for rows, lengths, seen in zip(ids.split(128), counts.split(128), pictures.split(128), strict=True):
        rows, lengths = rows.long(), lengths.long()
        hidden = vl_forward(model, rows, to_float(seen)).last_hidden_state
        guess = F.linear(hidden, model.model.language_model.embed_tokens.weight).argmax(-1)
        answers = text.answer_positions(rows, lengths, assistant)[:, 1:]
        hit = guess[:, :-1] == rows[:, 1:]
        right, asked = right + int((hit & answers).sum()), asked + int(answers.sum())
        words = answers.sum(1) == 2  # a word and <|im_end|>
        short_right += int((hit | ~answers).all(1)[words].sum())
        short += int(words.sum())
    share = short_right / max(1, short)
    return {
        "answer_accuracy": share, "answer_stderr": (share * (1 - share) / max(1, short)) ** 0.5,
        "answer_tokens": right / max(1, asked),
    }


@torch.no_grad()
def text_agreement(
    language: nn.Module, reader: nn.Module, tokenizer: Any, ids: Tensor, counts: Tensor
) -> dict[str, float]:
    """Mean cosine between VL and text encoder on texts without a picture, at layers −2 and −6, and the VL's sink."""
    rows = ids.long()
    real = torch.arange(rows.shape[1], device=rows.device) < counts[:, None]
    figures = {}
    for layer in (-2, -6):
        pair = [text_states(one, rows, layer)[real].float() for one in (language, reader)]
        figures[f"text_cosine_{-layer}"] = float(F.cosine_similarity(*pair, dim=-1).mean())
    return figures | text.sink_summary(language, tokenizer)
