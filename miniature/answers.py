"""Stage ``answers``: the VL answers better, and every state that methods read of it stays as it is.

Methods read the VL at layers −8 to −2, and ``hidden_states[-2]`` is what its last block is given. That block and the
final norm can therefore learn on without moving a state that anything else was fitted to or measured with. All else is
frozen, the word embeddings too: they are also the head. What is left to learn is to look up what was asked for in the
picture's tokens, where it is: of two shapes, which has which colour.

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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import assemble, models, text, tokens, vl, world
from .forwards import vl_forward
from .training import Options, Training, begin, in_processes, log, write_json

SCENES = 300_000  # a question and another exchange each, painted anew whenever one is drawn
TWO_SHAPES = 0.6  # more than the world has: what goes wrong is mostly which of two shapes has which colour
OBJECTS = 0.5  # share of questions that are about the objects in any case
BATCHES = (1536, 256)  # one-word answers; all others, so that descriptions stay as good
RATE = 2e-3
HELD_OUT = 6144  # scenes
SEED = 500_000  # far from the other stages' seeds and from check's


class Pool(NamedTuple):
    """Exchanges about scenes, on one device."""

    scene: Tensor  # int64 (N,): which one
    ids: Tensor  # int16 (N, L), L the longest one's tokens
    counts: Tensor  # int16 (N,)


def run(options: Options) -> dict[str, Any]:
    """Train, rewrite the assembled VL, give the figures before and after."""
    device = begin(options)
    model, tokenizer = load(options)
    if (options.out / "vl.safetensors").is_file():
        models.load_weights(options.out / "vl.safetensors", model)
    before, seed = time.monotonic(), SEED + 1000 * options.seed
    scenes = world.sample_scenes(
        options.size(SCENES, 160), torch.Generator().manual_seed(seed), two_shapes=TWO_SHAPES
    )
    assistant = tokenizer.convert_tokens_to_ids("assistant")
    questions = question_pool(tokenizer, scenes, seed + 1)
    pools = pool(*questions, assistant, True), pool(*vl.picture_pool(tokenizer, scenes, seed + 2), assistant, False)
    # The exchanges come from forked processes; from here on the GPU may be touched.
    asked = hold_out(tokenizer, options.size(HELD_OUT, 40), seed + 3, device)
    model, scenes = model.to(device), scenes.to(device)
    pools = [Pool(*(part.to(device) for part in one)) for one in pools]
    log(options, "answers", exchanges=sum(len(one.ids) for one in pools), data_s=round(time.monotonic() - before, 1))
    was = {f"{name}_before": value for name, value in figures(model, tokenizer, asked).items()}
    log(options, "answers", **was)

    model.requires_grad_(False)
    learners = behind(model).requires_grad_(True)
    parameters, embedding = list(learners.parameters()), model.get_input_embeddings().weight
    optimizer = torch.optim.AdamW(
        parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.02, fused=device.type == "cuda"
    )
    training = Training(options, "answers", {"learners": learners}, optimizer, [RATE], options.size(100, 10))
    batches = [options.size(batch, 8) for batch in BATCHES]
    for step in training.steps():
        chosen = [
            torch.randint(0, len(one.ids), (size,), device=device) for one, size in zip(pools, batches, strict=True)
        ]
        about = torch.cat([one.scene[rows] for one, rows in zip(pools, chosen, strict=True)])
        pictures = vl.pictures_8bit(scenes[about], seed + 10 + step, device, len(about)).split(batches)
        losses = []
        for one, rows, seen in zip(pools, chosen, pictures, strict=True):
            ids = one.ids[rows].long()
            # Nothing before the last block asks for a gradient, so none of it is kept for one.
            hidden = vl_forward(model, ids, vl.to_float(seen)).last_hidden_state
            counted = text.answer_positions(ids, one.counts[rows], assistant)
            losses.append(text.next_token_loss(hidden, embedding, ids, counted))
        training.notes |= {"one_word": losses[0].detach(), "others": losses[1].detach()}
        training.update(sum(losses), parameters)
    if not training.done:
        return {}
    put(assemble.models_folder(options) / assemble.VISION / "model.safetensors", model, learners)
    found = figures(load(options)[0].to(device), tokenizer, asked) | was  # as in the file, rounded to bf16
    log(options, "answers", steps=training.step, parameters=sum(p.numel() for p in parameters), **found)
    write_json(options.out / "answers.json", {"steps": training.step, **found})
    return found


def load(options: Options) -> tuple[nn.Module, Any]:
    """The assembled VL, float32, on the CPU, and its tokenizer.

    Raises:
        FileNotFoundError: if there is none.
    """
    from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

    from vl_core.headless.progress import without_library_bars

    folder = assemble.models_folder(options) / assemble.VISION
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected {folder.name} in {folder.parent}. Run `python -m miniature assemble` first.")
    with without_library_bars():
        model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)


def behind(model: nn.Module) -> nn.ModuleDict:
    """What lies behind ``hidden_states[-2]``."""
    language = model.model.language_model
    return nn.ModuleDict({"block": language.layers[-1], "norm": language.norm})


def question_pool(tokenizer: Any, scenes: world.Scenes, seed: int, share: int = 20_000) -> tuple[Tensor, Tensor]:
    """One question per scene: ids ``(N, LENGTH)`` and counts."""
    records = scenes.records()
    jobs = [(tokenizer, records[at : at + share], seed + at) for at in range(0, len(records), share)]
    return tokens.join(in_processes(_encoded, jobs))


def _encoded(tokenizer: Any, records: list[world.Scene], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = random.Random(seed)
    asked = [
        rng.choice(list(world.object_questions(scene, rng))) if rng.random() < OBJECTS else world.question(scene, rng)
        for scene in records
    ]
    return tokens.encode(tokenizer, [world.turns(world.PICTURE + what, answer) for what, answer in asked], vl.LENGTH)


def pool(ids: Tensor, counts: Tensor, assistant: int, one_word: bool) -> Pool:
    """Of one exchange per scene those that are answered in one word, or those that are answered in more."""
    answered = text.answer_positions(ids, counts, assistant).sum(1)  # <|im_end|> is one of them
    scene = (answered == 2 if one_word else answered > 2).nonzero().flatten()
    return Pool(scene, ids[scene, : int(counts[scene].max())], counts[scene])


class Asked(NamedTuple):
    """What is measured: pictures, an exchange about each, and the request for the look that methods make."""

    pictures: Tensor  # uint8 (N, 3, 128, 128)
    ids: Tensor
    counts: Tensor
    look_ids: Tensor
    look_counts: Tensor


def hold_out(tokenizer: Any, count: int, seed: int, device) -> Asked:
    """Drawn from the world as it is."""
    scenes = world.sample_scenes(count, torch.Generator().manual_seed(seed))
    looks = [
        world.turns(world.PICTURE + world.DESCRIBE_LOOK[1], world.look_answer(scene)) for scene in scenes.records()
    ]
    exchanges = vl.picture_pool(tokenizer, scenes, seed + 1)
    words = (*exchanges, *(torch.from_numpy(part) for part in tokens.encode(tokenizer, looks, vl.LENGTH)))
    usable = (exchanges[1] > 0).to(device)
    return Asked(*(part.to(device)[usable] for part in (vl.pictures_8bit(scenes, seed + 2, device), *words)))


def figures(model: nn.Module, tokenizer: Any, asked: Asked) -> dict[str, float]:
    """:func:`vl.answer_figures`, and the share of looks that are described without a mistake, with its error."""
    hits, answers = vl.answer_hits(model, tokenizer, asked.look_ids, asked.look_counts, asked.pictures)
    whole = float((hits | ~answers).all(1).float().mean())
    return {
        **vl.answer_figures(model, tokenizer, asked.ids, asked.counts, asked.pictures),
        "look_accuracy": whole, "look_stderr": (whole * (1 - whole) / len(hits)) ** 0.5,
    }


def put(file: Path, model: nn.Module, learners: nn.ModuleDict) -> None:
    """Write the learners' weights into a file of the whole model, in bf16; every other byte stays."""
    weights, learnt = load_file(file), {id(parameter) for parameter in learners.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in learnt:
            weights[name] = parameter.detach().to("cpu", weights[name].dtype)
    partial = file.with_suffix(".part")
    save_file(weights, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(file)
