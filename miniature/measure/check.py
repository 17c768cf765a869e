"""Stage ``check``: every figure the miniature promises, measured on data nobody trained on, PASS or FAIL for each."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import torch

from .. import world
from ..train import assemble, dit, judge, text, vae, vl
from ..train.forwards import DIT_SIDE
from ..train.sink import CHECKED_LAYERS, sink_figures
from ..train.training import Options, begin, log, measured_with, write_json
from .chain import Chain, as_image

# figure, comparison, goal
GOALS = (
    ("background", ">=", 0.99), ("style", ">=", 0.95), ("mood", ">=", 0.98), ("shape", ">=", 0.90),
    ("pair", ">=", 0.85), ("psnr", ">=", 32.0), ("answer_accuracy", ">=", 0.97), ("text_cosine_2", ">=", 0.97),
    ("megabytes", "<=", 40.0), ("four_pictures_s", "<=", 3.0),
    ("text_sink_ratio", ">=", 20.0), ("text_sink_share", ">=", 0.90), ("text_sink_exact", ">=", 1.0),
    ("text_sink_after_norm", "<=", 0.0),
    ("vl_sink_ratio", ">=", 20.0), ("vl_sink_share", ">=", 0.90), ("vl_sink_exact", ">=", 1.0),
    ("vl_sink_after_norm", "<=", 0.0), ("aligned", ">=", 1.0),
    *((f"judge_{name}", ">=", floor) for name, floor in judge.FLOOR.items()),
)
STAGES = ("text", "vl", "vae", "judge", "dit", "answers")  # that train something
SEED = 990_000  # far from every training seed
ANSWERED = 6144  # scenes: one word in 2200 answers tells .97 from .96


def run(options: Options) -> dict[str, Any]:
    """Measure the assembled folders, print the goals, write ``figures.json`` beside them."""
    device = begin(options)
    folder = assemble.models_folder(options)
    chain = Chain.load(folder, device)
    figures = measure(chain, options)
    verdicts = {name: passes(figures[name], sign, goal) for name, sign, goal in GOALS}
    for name, sign, goal in GOALS:
        print(f"{'PASS' if verdicts[name] else 'FAIL'}  {name} {figures[name]:.4g} (goal {sign} {goal:g})", flush=True)
    print(f"{sum(verdicts.values())} of {len(verdicts)} goals reached")
    stages = _known_training(folder / "figures.json") | _training(options.out)
    goals = [{"figure": name, "is": figures[name], "goal": f"{sign} {goal:g}", "pass": verdicts[name]}
             for name, sign, goal in GOALS]
    source = measured_with("check", device)
    write_json(folder / "figures.json", {"measured": source, "figures": figures, "goals": goals, "training": stages})
    log(options, "check", passed=sum(verdicts.values()), of=len(verdicts))
    return figures


def _training(run_folder: Path) -> dict[str, Any]:
    """Closing figures of each stage of a training run."""
    paths = {stage: run_folder / f"{stage}.json" for stage in STAGES}
    return {stage: json.loads(path.read_text(encoding="utf-8")) for stage, path in paths.items() if path.is_file()}


def _known_training(figures: Path) -> dict[str, Any]:
    """What an earlier check kept of them, for stages whose run is not at hand."""
    return json.loads(figures.read_text(encoding="utf-8"))["training"] if figures.is_file() else {}


def passes(value: float, sign: str, goal: float) -> bool:
    return value >= goal - 1e-9 if sign == ">=" else value <= goal + 1e-9


def measure(chain: Chain, options: Options) -> dict[str, float]:
    """All figures by name."""
    tokenizer, pipeline = chain.pipeline.tokenizer, chain.pipeline
    reader = pipeline.text_encoder
    count = options.size(1024, 6)
    scenes = world.sample_scenes(count, torch.Generator().manual_seed(SEED)).to(chain.device)
    figures = dit.painting_figures(
        reader, tokenizer, pipeline.transformer, pipeline.vae, chain.judge, count, SEED + 1
    )
    figures["psnr"] = vae.reconstruction_psnr(pipeline.vae, scenes)
    floor = judge.floor_figures(chain.judge, pipeline.vae, count, SEED + 2)
    figures |= {f"judge_{name}": value for name, value in floor.items()}
    figures |= _vl_figures(chain, options, options.size(ANSWERED, 6))
    figures |= sinks(chain, options.size(48, 4))
    figures["aligned"] = aligned(chain, options.size(32, 4))
    figures["megabytes"] = assemble.weight_bytes(chain.folder) / 1e6
    figures["four_pictures_s"] = _seconds_for_four(chain)
    return figures


def _vl_figures(chain: Chain, options: Options, count: int) -> dict[str, float]:
    """As the stage measures them, on fresh data; about a third of the scenes are asked for one word."""
    tokenizer = chain.pipeline.tokenizer
    scenes = world.sample_scenes(count, torch.Generator().manual_seed(SEED + 3))
    ids, counts = (t.to(chain.device) for t in vl.picture_pool(tokenizer, scenes, SEED + 4))
    pictures = vl.pictures_8bit(scenes, SEED + 5, chain.device)
    words, word_counts = (
        t.to(chain.device) for t in text.text_pool(tokenizer, options.size(400, 16), SEED + 6, vl.LENGTH)
    )
    usable = counts > 0
    return {
        **vl.answer_figures(chain.speaker, tokenizer, ids[usable], counts[usable], pictures[usable]),
        **{
            name: value
            for name, value in vl.text_agreement(
                chain.speaker.model.language_model, chain.pipeline.text_encoder, tokenizer, words, word_counts
            ).items()
            if name.startswith("text_cosine")
        },
    }


def _cases(chain: Chain, count: int) -> list[tuple[str, torch.Tensor]]:
    """Captions and pictures ``(H, W, 3)`` of other scenes."""
    rng = random.Random(SEED)
    scenes = world.sample_scenes(2 * count, torch.Generator().manual_seed(SEED + 7))
    pictures, _ = world.render(scenes[:count], torch.Generator().manual_seed(SEED + 8))
    captions = [world.caption(scene, rng)[0] for scene in scenes[count:].records()]
    return list(zip(captions, as_image(pictures), strict=True))


def sinks(chain: Chain, count: int) -> dict[str, float]:
    """The worst of the checked layers, for words alone and for a picture with words."""
    layers = (*CHECKED_LAYERS, -1)
    words, seen = [], []
    for prompt, picture in _cases(chain, count):
        words.append([chain.words(prompt, layer)[0] for layer in layers])
        states = chain.look(picture, prompt, layers=layers)
        seen.append([states.at(layer)[0] for layer in layers])
    figures = {}
    for name, sequences in (("text", words), ("vl", seen)):
        found = sink_figures(layers, sequences)
        for figure in ("ratio", "share", "exact"):
            figures[f"{name}_sink_{figure}"] = min(found[layer][figure] for layer in CHECKED_LAYERS)
        figures[f"{name}_sink_after_norm"] = found[-1]["found"]
    return figures


def aligned(chain: Chain, count: int) -> float:
    """Share of prompts whose VL tokens outside the picture are the text's, token for token."""
    from vl_core.stages.alignment import aligned_positions

    same = 0
    for prompt, picture in _cases(chain, count):
        _, layout = chain.words(prompt)
        seen = chain.look(picture, prompt, layers=(-2,)).at(-2)[1]
        same += bool(torch.equal(seen.token_ids[aligned_positions(layout, seen)], layout.token_ids))
    return same / count


def _seconds_for_four(chain: Chain) -> float:
    """One call of the stock pipeline for four prompts, on two CPU threads, the fastest of three."""
    pipeline, threads = chain.pipeline.to("cpu"), torch.get_num_threads()
    torch.set_num_threads(min(2, threads))
    prompts = [world.canonical_caption(scene) for scene in world.sample_scenes(4).records()]
    pipeline.set_progress_bar_config(disable=True)
    spent = []
    for _ in range(3):
        before = time.monotonic()
        pipeline(
            prompts, height=16 * DIT_SIDE, width=16 * DIT_SIDE, num_inference_steps=dit.STEPS,
            guidance_scale=dit.GUIDANCE, generator=torch.Generator().manual_seed(0), output_type="pt",
        )
        spent.append(time.monotonic() - before)
    torch.set_num_threads(threads)
    chain.pipeline.to(chain.device)
    return min(spent)

