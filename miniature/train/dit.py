"""Stage ``dit``: a Z-Image DiT by flow matching on the VAE's latents, conditioned on the text encoder's layer −2.

The prototype painted the right colours and styles but the right shape only in 28 % of cases after 340 s, its loss
still falling. What is different here, all within half an hour of one GPU:

- two and a half times the training, and cheaper steps: text states and latents are computed once and stay on the GPU,
  and the blocks are compiled;
- an auxiliary loss on the way (in the spirit of REPA, arXiv 2410.06940): after half the blocks each image token must
  say which shape and which colour it shows. The noise seldom tells that, the caption does, so the path from words to
  places is learnt from the first minutes; its heads are thrown away;
- captions keep their padded length (32 or 64), as in the stock forward; a quarter tell everything, as the tests do;
  single shapes are more frequent than in the world;
- the weights that are kept are an average over the last thousand steps.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import world
from . import judge as judge_stage
from . import models, text, tokens
from . import vae as vae_stage
from .forwards import autocast, decode, dit_block, dit_forward, dit_rotary, sample, text_states
from .training import Average, Options, Training, begin, in_processes, log

BATCH = 512
RATE = 1.5e-3
SCENES, CAPTIONS = 200_000, 2  # captions per scene
LENGTHS = (32, 64)
UNTOLD = 0.1  # share of empty captions, for guidance
TWO_SHAPES = 0.25
LABEL_WEIGHT, LABEL_UNTIL = 0.2, 0.8  # of the auxiliary loss, and the progress at which it ends
STEPS, GUIDANCE = 8, 1.0  # how the miniature is meant to be sampled


class Bucket(NamedTuple):
    """Captions of one padded length: states ``(N, L, D)``, counts ``(N,)``, index of their scene ``(N,)``."""

    states: Tensor
    counts: Tensor
    scene: Tensor


class Labels(nn.Module):
    """Which shape and colour an image token shows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.shape = nn.Linear(width, len(world.SHAPES) + 1)
        self.color = nn.Linear(width, len(world.COLORS) + 1)

    def forward(self, tokens_: Tensor, wanted: Tensor) -> Tensor:
        x = self.norm(tokens_.float())
        return sum(
            F.cross_entropy(head(x).float().flatten(0, 1), wanted[:, index].long().flatten())
            for index, head in enumerate((self.shape, self.color))
        )


def _captions(tokenizer: Any, records: list[world.Scene], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = random.Random(seed)
    texts = [
        world.prompt_turn("" if rng.random() < UNTOLD else world.caption(scene, rng)[0])
        for scene in records for _ in range(CAPTIONS)
    ]
    return tokens.encode(tokenizer, texts, LENGTHS[-1])


def caption_pool(tokenizer: Any, scenes: world.Scenes, seed: int) -> tuple[Tensor, Tensor]:
    """Ids ``(2 N, 64)`` and counts of the captions of N scenes, those of one scene side by side."""
    records = scenes.records()
    share = max(1, min(20_000, len(records)))
    jobs = [(tokenizer, records[at : at + share], seed + at) for at in range(0, len(records), share)]
    return tokens.join(in_processes(_captions, jobs))


@torch.no_grad()
def caption_buckets(reader: nn.Module, ids: Tensor, counts: Tensor, device) -> list[Bucket]:
    """Every caption's states at layer −2, bf16 on a GPU, by padded length."""
    scene = torch.arange(len(ids) // CAPTIONS).repeat_interleave(CAPTIONS)
    buckets, shortest = [], 0
    for length in LENGTHS:
        chosen = ((counts > shortest) & (counts <= length)).nonzero().flatten()
        shortest = length
        if not len(chosen):
            continue
        parts = []
        for part in chosen.split(2048):
            with autocast(device):
                states = text_states(reader, ids[part, :length].to(device).long())
            parts.append(states.to(torch.bfloat16) if torch.device(device).type == "cuda" else states)
        buckets.append(Bucket(torch.cat(parts), counts[chosen].to(device), scene[chosen].to(device)))
    return buckets


@torch.no_grad()
def latent_pool(vae: nn.Module, scenes: world.Scenes, seed: int, device) -> tuple[Tensor, Tensor]:
    """Scaled latents float16 ``(N, 16, 16, 16)`` and patch labels uint8 ``(N, 2, 64)``."""
    generator = torch.Generator(device).manual_seed(seed)
    latents, labels = [], []
    for start in range(0, len(scenes), 512):
        part = scenes[start : start + 512].to(device)
        pictures, covers = world.render(part, generator)
        with autocast(device):
            drawn = vae.encode(pictures).latent_dist.sample(generator).float()
        latents.append(((drawn - vae.config.shift_factor) * vae.config.scaling_factor).half())
        labels.append(world.patch_labels(part, covers).to(torch.uint8))
    return torch.cat(latents), torch.cat(labels)


def noise_levels(count: int, device) -> Tensor:
    """Share of noise per sample, logit-normal towards the noisy side where shapes are decided, a tenth uniform."""
    levels = torch.sigmoid(1.1 * torch.randn(count, device=device) + 0.4)
    return torch.where(torch.rand(count, device=device) < 0.1, torch.rand(count, device=device), levels)


def run(options: Options) -> dict[str, Any]:
    """Train, write ``dit.safetensors``, give the closing figures."""
    device = begin(options)
    tokenizer = tokens.load_tokenizer(options.out)
    before = time.monotonic()
    scenes = world.sample_scenes(
        options.size(SCENES, 48), torch.Generator().manual_seed(options.seed + 17), two_shapes=TWO_SHAPES
    )
    pool = caption_pool(tokenizer, scenes, options.seed + 19)  # in forked processes, so before the GPU is touched
    reader = text.load(options.out, options, tokenizer).model
    vae = vae_stage.load(options.out, options)
    buckets = caption_buckets(reader, *pool, device)
    latents, labels = latent_pool(vae, scenes, options.seed + 23, device)
    log(
        options, "dit", captions=[len(bucket.counts) for bucket in buckets], data_s=round(time.monotonic() - before, 1),
        latent_std=float(latents[:2048].float().std()),
    )
    torch.manual_seed(options.seed)
    model = models.make_dit(options.sizes).to(device)
    heads = Labels(options.sizes.dit_width).to(device)
    average = Average(model, models.make_dit(options.sizes).to(device))
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
    )
    rotary = {bucket.states.shape[1]: dit_rotary(model, bucket.states.shape[1], device) for bucket in buckets}
    block = fastest_block(options, model, rotary, device)
    modules = {"model": model, "heads": heads, "average": average.average}
    training = Training(options, "dit", modules, optimizer, [RATE], options.size(200, 10))
    batch, tap = options.size(BATCH, 4), max(1, options.sizes.dit_blocks // 2)
    if options.resume and not training.path.is_file() and (options.out / "dit.safetensors").is_file():
        warm_start(options, training, average)
    weights = torch.tensor([float(len(bucket.counts)) for bucket in buckets])
    for step in training.steps():
        bucket = buckets[int(torch.multinomial(weights, 1))]
        row = torch.randint(0, len(bucket.counts), (batch,), device=device)
        states, counts, scene = bucket.states[row].float(), bucket.counts[row], bucket.scene[row]
        clean = latents[scene].float()
        noise, level = torch.randn_like(clean), noise_levels(batch, device)
        mixed = torch.lerp(clean, noise, level.view(-1, 1, 1, 1))
        with autocast(device):
            velocity, tapped = dit_forward(
                model, mixed, 1 - level, states, counts, rotary[states.shape[1]], block=block, tap=tap
            )
        flow = (velocity.float() - (clean - noise)).square().mean()
        naming = heads(tapped, labels[scene])
        weight = LABEL_WEIGHT if training.progress < LABEL_UNTIL else 0.0
        training.update(flow + weight * naming, parameters)
        average.update(step)
        training.notes |= {"flow": flow.detach(), "naming": naming.detach()}
    # Written even if the budget is not spent yet: good enough to look at, and to go on from on another machine.
    header = {"step": training.step, "elapsed": training.elapsed}
    models.save_weights(options.out / "dit.safetensors", average.average, header)
    figures = {"flow": float(training.notes["flow"])} if "flow" in training.notes else {}
    if (options.out / "judge.safetensors").is_file():
        judge = judge_stage.load(options.out / "judge.safetensors", device)
        dit = load(options.out, options)
        for guidance in (0.0, 2.5, GUIDANCE):  # the last one is kept
            painted = painting_figures(
                reader, tokenizer, dit, vae, judge, options.size(512, 4), options.seed + 29, guidance=guidance
            )
            log(options, "dit", guidance=guidance, **painted)
        figures |= painted
    return training.finish(model.parameters(), figures) if training.done else figures


def warm_start(options: Options, training: Training, average: Average) -> None:
    """Go on from ``dit.safetensors`` where the checkpoint, too large to travel, was lost with its machine."""
    header = models.load_weights(options.out / "dit.safetensors", average.average)
    training.modules["model"].load_state_dict(average.average.state_dict())
    training.step, training.elapsed = header.get("step", 0), header.get("elapsed", 0.0)
    log(options, "dit", warm_start_at=training.step, elapsed=training.elapsed)


def fastest_block(options: Options, model: nn.Module, rotary: dict, device) -> Callable:
    """:func:`dit_block`, compiled if that works and is faster."""
    if not options.compile or device.type != "cuda":
        return dit_block
    import torch._dynamo

    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 64)
    eager = _seconds_per_step(model, rotary, device, dit_block)
    before = time.monotonic()
    try:
        compiled = torch.compile(dit_block, dynamic=False)
        fast = _seconds_per_step(model, rotary, device, compiled)
    except Exception as error:  # whatever the compiler trips over, training goes on without it
        log(options, "dit", compile_failed=repr(error)[:300], eager_ms=1e3 * eager)
        return dit_block
    log(options, "dit", eager_ms=1e3 * eager, compiled_ms=1e3 * fast, compile_s=time.monotonic() - before)
    return compiled if fast < eager else dit_block


def _seconds_per_step(model: nn.Module, rotary: dict, device, block: Callable, rounds: int = 10) -> float:
    """Of forward and backward, over every caption length; the model is left as it was."""
    state = torch.get_rng_state(), torch.cuda.get_rng_state_all()
    spent = 0.0
    for length, factors in rotary.items():
        latents = torch.randn(BATCH, models.LATENT_CHANNELS, *[models.LATENT_SIDE] * 2, device=device)
        states = torch.randn(BATCH, length, model.config.cap_feat_dim, device=device)
        counts, level = torch.full((BATCH,), length - 4, device=device), torch.rand(BATCH, device=device)
        for index in range(rounds):
            if index == 2:
                torch.cuda.synchronize()
                before = time.monotonic()
            with autocast(device):
                out, tapped = dit_forward(model, latents, level, states, counts, factors, block=block, tap=1)
            (out.float().square().mean() + tapped.float().square().mean()).backward()
        torch.cuda.synchronize()
        spent += (time.monotonic() - before) / (rounds - 2) / len(rotary)
    model.zero_grad(set_to_none=True)
    torch.set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1])
    return spent


def load(folder: Path, options: Options) -> nn.Module:
    """The trained DiT, float32, on the options' device."""
    model = models.make_dit(options.sizes)
    models.load_weights(folder / "dit.safetensors", model)
    return model.to(options.pick_device()).eval().requires_grad_(False)


@torch.no_grad()
def painting_figures(
    reader: nn.Module, tokenizer: Any, dit: nn.Module, vae: nn.Module, judge: nn.Module, count: int, seed: int,
    *, steps: int = STEPS, guidance: float = GUIDANCE,
) -> dict[str, float]:
    """The judge's :func:`agreement` on pictures painted from full captions of scenes nobody trained on."""
    device = next(dit.parameters()).device
    scenes = world.sample_scenes(count, torch.Generator().manual_seed(seed))
    captions = [
        prompt_states(reader, tokenizer, world.canonical_caption(scene)) for scene in scenes.records()
    ]
    shape = (count, models.LATENT_CHANNELS, models.LATENT_SIDE, models.LATENT_SIDE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    latents = sample(
        dit, captions, noise, steps=steps, guidance=guidance, unwanted=prompt_states(reader, tokenizer, "")
    )
    return judge_stage.agreement(judge_stage.read(judge, decode(vae, latents)), scenes)


@torch.no_grad()
def prompt_states(reader: nn.Module, tokenizer: Any, prompt: str) -> Tensor:
    """States ``(L, D)`` at layer −2, as ZImagePipeline makes them."""
    ids = tokenizer(world.prompt_turn(prompt), add_special_tokens=False)["input_ids"]
    return text_states(reader, torch.tensor([ids], device=reader.device))[0].float()
