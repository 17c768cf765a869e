"""Stage ``answers``: the VL answers better, and every state that methods read of it stays as it is.

Methods read the VL at layers −8 to −2, and ``hidden_states[-2]`` is what its last block is given. That block and the
final norm can therefore learn on without moving a state that anything else was fitted to or measured with. All else is
frozen, the word embeddings too: they are also the head.

What is left to learn is to look up what was asked for in the picture's tokens: of two shapes, which has which colour.
The text encoder never learnt that from words, so the VL did not inherit it. Left alone, attention finds it late; so at
first some heads are told where the object is that a question is about (``pointing``). Nothing else is computed anew
at a step: the states before the last block are kept.

The stage needs no training run, only the assembled folder, whose ``model.safetensors`` it rewrites. If the run's own
``vl.safetensors`` is there, it starts from that, so that a second call does not train what the first one left.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vl_core.states.storage import save_whole

from .. import world
from . import assemble, models, text, tokens, vl
from .assemble import load_speaker
from .forwards import MERGED, PICTURE_AT, autocast, last_block, vl_forward
from .training import Options, Training, begin, in_processes, log

QUESTIONS, EXCHANGES = 400_000, 60_000  # answered in one word; as stage vl has them, so that descriptions stay as good
QUESTION_LENGTH = 40  # tokens
TWO_SHAPES = 0.75  # more than the world has: what goes wrong is mostly which of two shapes has which colour
OBJECTS = 0.7  # share of questions that are about an object in any case
BATCHES = (4096, 256)
RATE = 2e-3
POINTING = 1.0  # weight at the start; it falls to 0
HELD_OUT = 6144  # scenes
SEED = 500_000  # far from the other stages' seeds and from check's


class Kept(NamedTuple):
    """Exchanges about pictures up to the last block, on one device."""

    hidden: Tensor  # bf16 (N, L, D): hidden_states[-2]
    ids: Tensor  # int64 (N, L)
    answered: Tensor  # boolean (N, L): tokens of the answer and the <|im_end|> after it
    cells: Tensor  # (N, 16) in [0, 1]: where the object is that is asked about, all 0 where there is none


def run(options: Options) -> dict[str, Any]:
    """Train, rewrite the assembled VL, give the figures before and after."""
    device = begin(options)
    model, tokenizer = load(options)
    if (options.out / "vl.safetensors").is_file():
        models.load_weights(options.out / "vl.safetensors", model)
    model = model.requires_grad_(False)
    before, seed = time.monotonic(), SEED + 1000 * options.seed
    count, other_count = options.size(QUESTIONS, 160), options.size(EXCHANGES, 40)
    scenes = world.sample_scenes(count, torch.Generator().manual_seed(seed), two_shapes=TWO_SHAPES)
    others = world.sample_scenes(other_count, torch.Generator().manual_seed(seed + 1))
    asked = ask(tokenizer, scenes, seed + 2)
    exchanged = vl.picture_pool(tokenizer, others, seed + 3)
    unseen = world.sample_scenes(options.size(HELD_OUT, 40), torch.Generator().manual_seed(seed + 4))
    ids, counts = vl.picture_pool(tokenizer, unseen, seed + 5)
    # The exchanges come from forked processes; from here on the GPU may be touched.
    model, usable = model.to(device), counts > 0
    pictures = vl.pictures_8bit(unseen[usable], seed + 6, device)
    held = ids[usable].to(device), counts[usable].to(device), pictures
    pools = (
        keep(model, tokenizer, scenes, *asked, seed=seed + 7, device=device),
        keep(model, tokenizer, others, *exchanged, seed=seed + 8, device=device),
    )
    log(options, "answers", exchanges=sum(len(one.ids) for one in pools), data_s=round(time.monotonic() - before, 1))
    was = {f"{name}_before": value for name, value in vl.answer_figures(model, tokenizer, *held).items()}
    log(options, "answers", **was)

    language = model.model.language_model
    learners = behind(model).requires_grad_(True)
    parameters, embedding = list(learners.parameters()), language.embed_tokens.weight
    pointed = pointed_heads(language.config)
    optimizer = torch.optim.AdamW(
        parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.02, fused=device.type == "cuda"
    )
    training = Training(options, "answers", {"learners": learners}, optimizer, [RATE], options.size(500, 10))
    batches = [options.size(batch, 8) for batch in BATCHES]
    for _ in training.steps():
        questions, rest = (some(one, size) for one, size in zip(pools, batches, strict=True))
        with autocast(device):
            # A question's answer is one word and <|im_end|>: two positions say them, the others say nothing.
            first = questions.answered.float().argmax(1)[:, None]
            where = torch.cat([first - 1, first], 1)
            said, attention = last_block(language, questions.hidden.float(), where)
            logits = F.linear(said, embedding).float()
            one_word = F.cross_entropy(logits.flatten(0, 1), questions.ids.gather(1, where + 1).flatten())
            everywhere = torch.arange(rest.ids.shape[1], device=device).expand_as(rest.ids)
            told, _ = last_block(language, rest.hidden.float(), everywhere)
            exchange = text.next_token_loss(told, embedding, rest.ids, rest.answered)
        missed = pointing(attention[:, pointed, 0], questions.cells)
        training.notes |= {"one_word": one_word.detach(), "exchange": exchange.detach(), "pointing": missed.detach()}
        training.update(one_word + exchange + POINTING * (1 - training.progress) * missed, parameters)
    if not training.done:
        return {}
    put(assemble.models_folder(options) / assemble.VISION / "model.safetensors", model, learners)
    found = vl.answer_figures(load(options)[0].to(device), tokenizer, *held) | was  # as in the file, rounded to bf16
    return training.finish(parameters, found)


def load(options: Options) -> tuple[nn.Module, Any]:
    """The assembled VL, float32, on the CPU, and its tokenizer.

    Raises:
        FileNotFoundError: if there is none.
    """
    from transformers import PreTrainedTokenizerFast

    folder = assemble.models_folder(options) / assemble.VISION
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected {folder.name} in {folder.parent}. Run `python -m miniature assemble` first.")
    return load_speaker(folder.parent), PreTrainedTokenizerFast.from_pretrained(folder)


def behind(model: nn.Module) -> nn.ModuleDict:
    """What lies behind ``hidden_states[-2]``."""
    language = model.model.language_model
    return nn.ModuleDict({"block": language.layers[-1], "norm": language.norm})


def pointed_heads(config: Any) -> list[int]:
    """One query head of every key/value head; the others may go on looking where they look."""
    group = config.num_attention_heads // config.num_key_value_heads
    return list(range(group - 1, config.num_attention_heads, group))


def pointing(attention: Tensor, cells: Tensor) -> Tensor:
    """−log of the attention that is on the object asked about, a mean over questions that are about one.

    Args:
        attention: ``(B, H, L)``, from where the answer is said. ``cells``: ``(B, 16)``, see :class:`Kept`.
    """
    seen = attention[..., PICTURE_AT : PICTURE_AT + world.IMAGE_TOKENS]
    missed = -(seen * cells[:, None]).sum(-1).clamp_min(1e-6).log().mean(1)
    about_one = (cells.amax(1) > 0).float()
    return (missed * about_one).sum() / about_one.sum().clamp_min(1)


def ask(tokenizer: Any, scenes: world.Scenes, seed: int, share: int = 20_000) -> tuple[Tensor, Tensor, Tensor]:
    """One question per scene: ids ``(N, QUESTION_LENGTH)``, counts, and which object it is about, −1 for none."""
    records = scenes.records()
    jobs = [(tokenizer, records[at : at + share], seed + at) for at in range(0, len(records), share)]
    parts = in_processes(_asked, jobs)
    return *tokens.join([part[:2] for part in parts]), torch.from_numpy(np.concatenate([part[2] for part in parts]))


def _asked(tokenizer: Any, records: list[world.Scene], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, texts, about = random.Random(seed), [], []
    for scene in records:
        index = rng.randrange(len(scene.objects)) if rng.random() < OBJECTS else -1
        what, answer = (
            world.question(scene, rng) if index < 0 else rng.choice(list(world.object_questions(scene, index, rng)))
        )
        texts.append(world.turns(world.PICTURE + what, answer))
        about.append(index)
    return *tokens.encode(tokenizer, texts, QUESTION_LENGTH), np.array(about)


def keep(
    model: nn.Module, tokenizer: Any, scenes: world.Scenes, ids: Tensor, counts: Tensor, about: Tensor | None = None,
    *, seed: int, device: torch.device, chunk: int = 1024,
) -> Kept:
    """Paint the scenes and run the model up to its last block; exchanges that were too long are left out."""
    usable = (counts > 0).nonzero().flatten()
    scenes, ids, counts = scenes[usable].to(device), ids[usable].to(device).long(), counts[usable].to(device).long()
    ids = ids[:, : int(counts.max())]
    about = torch.full_like(counts, -1) if about is None else about[usable].to(device)
    generator, hidden, cells = torch.Generator(device).manual_seed(seed), [], []
    for at in range(0, len(ids), chunk):
        part = slice(at, at + chunk)
        pictures, covers = world.render(scenes[part], generator)
        seen = vl.to_float(((pictures + 1) * 127.5).round().to(torch.uint8))
        with torch.no_grad():
            hidden.append(vl_forward(model, ids[part], seen, output_hidden_states=True).hidden_states[-2].bfloat16())
        share = F.avg_pool2d(covers, world.SIDE // MERGED).flatten(2)
        share = share[torch.arange(len(share), device=device), about[part].clamp_min(0)]
        cells.append(share / share.amax(1, keepdim=True).clamp_min(1e-6) * (about[part, None] >= 0))
    answered = text.answer_positions(ids, counts, tokenizer.convert_tokens_to_ids("assistant"))
    return Kept(torch.cat(hidden), ids, answered, torch.cat(cells))


def some(kept: Kept, count: int) -> Kept:
    """That many of them, drawn at random."""
    rows = torch.randint(0, len(kept.ids), (count,), device=kept.ids.device)
    return Kept(*(part[rows] for part in kept))


def put(file: Path, model: nn.Module, learners: nn.ModuleDict) -> None:
    """Write the learners' weights into a file of the whole model, in its dtype; every other byte stays."""
    weights, learnt = load_file(file), {id(parameter) for parameter in learners.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in learnt:
            weights[name] = parameter.detach().to("cpu", weights[name].dtype)
    save_whole(file, weights, {"format": "pt"})
