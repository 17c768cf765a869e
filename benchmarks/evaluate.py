"""What an evaluation costs beside its painting steps, where that goes, and how much memory each model's turn takes.

Weights are random and made on the device, in the sizes of Z-Image-Turbo, its text encoder and Qwen3-VL-4B; everything
else is what ``python -m vl_core evaluate`` runs.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.headless.compare.fleet import ask_all
from vl_core.headless.compare.study import Models
from vl_core.headless.evaluate.arms import ways_tried
from vl_core.headless.evaluate.command import GB, together
from vl_core.headless.evaluate.drawings import DRAWINGS, builtin_pictures
from vl_core.headless.evaluate.ground import KEPT, TOLD, Fleet
from vl_core.headless.evaluate.judging import trust
from vl_core.headless.evaluate.kept import Kept, write_whole
from vl_core.headless.evaluate.plan import Reference, Rung, Sheet, builtin_prompts, trials_of
from vl_core.headless.evaluate.runner import MEASURING, WAITING, WRITING, Evaluation
from vl_core.headless.evaluate.turns import Loaders, TextEncoder, Turns
from vl_core.headless.evaluate.work import ASKING, DECODING, STEPS, measuring
from vl_core.reports.judge import SHOWS, Sentences
from vl_core.states.statistics import calibrate
from vl_core.steering.sweep import Cell
from vl_core.steering.way import Given
from vl_core.zimage.painting import Job, decode_each, sample_many
from vl_core.zimage.text import text_reader

from .common import Report, add_output_argument, milliseconds
from .models import TEXT, TRANSFORMER, VOCABULARY, build_model, build_painter, filled, prose_tokenizer

SIDE = {"tiny": 128, "full": 1024}  # of a painting
COUNT = {"tiny": 2, "full": 9}  # of steps
WAYS = ("aligned blend", "appended tokens", "research: as published")  # random weights write no words
SETTINGS = 2  # of each way
TIMES, TIMES_ALONE = "× its painting steps", "× the first row"
ALONE = 64  # tokens of the words that the first rows' pictures are painted from


@dataclass(frozen=True)
class Random(Loaders):
    """The models in a size, made where they run."""

    size: str = "tiny"

    def vision(self) -> Qwen3VLEncoder:
        model, tokenizer = build_model(self.size, self.device, self.dtype, prose_tokenizer(self.size))
        return Qwen3VLEncoder(model.model, tokenizer, TEXT[self.size]["num_hidden_layers"], "random")

    def text(self) -> TextEncoder:
        from transformers import Qwen3Config, Qwen3Model

        options = {"vocab_size": VOCABULARY[self.size], "max_position_embeddings": 40960, "rope_theta": 1e6}
        with self.device:
            model = Qwen3Model._from_config(
                Qwen3Config(**TEXT[self.size], **options), attn_implementation="sdpa", dtype=self.dtype
            )
        tokenizer = prose_tokenizer(self.size)
        read = text_reader(filled(model, self.device), tokenizer)
        return TextEncoder(read, tokenizer, lambda: calibrate(read, ["a cat in a red hat", "the sea"]))

    def painter(self) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

        transformer, vae = build_painter(self.size, self.device, self.dtype)
        return ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, text_encoder=None, tokenizer=None,
            transformer=transformer,
        )

    def small(self) -> bool:
        return False


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=list(TRANSFORMER), help="full on a GPU, else tiny")
    parser.add_argument("--trials", type=int, default=6, metavar="N", help="pairs of a picture and a prompt")
    parser.add_argument("--batch", type=int, default=0, metavar="N", help="pictures painted together; 0 by --vram")
    parser.add_argument("--vram", type=float, default=15.0, metavar="GB", help="memory that is allowed")
    parser.add_argument("--ray", action="store_true", help="once more with two painters of a local Ray cluster")
    parser.add_argument("--work", default="build/evaluate", metavar="FOLDER", help="pictures and states; made anew")


def run(arguments) -> None:
    bench = Bench(arguments)
    bench.report.section("painting steps alone", bench.steps)
    bench.report.section("an evaluation", bench.evaluation)
    if arguments.ray:
        bench.report.section("with two painters", bench.two_painters)
    bench.report.write()


class Bench:
    """One plan, painted once or twice."""

    def __init__(self, arguments) -> None:
        self.arguments, self.device = arguments, torch.device(arguments.device)
        self.size = arguments.size or ("full" if self.device.type == "cuda" else "tiny")
        side = SIDE[self.size]
        self.models = Models(
            "random", "random", device=arguments.device, dtype="bfloat16" if self.device.type == "cuda" else "float32",
            steps=COUNT[self.size], width=side, height=side, layer=-1,
        )
        self.loaders = Random(self.models, size=self.size)
        self.batch = arguments.batch or (together(arguments.vram * GB - 12.5 * GB, side * side)
                                         if self.size == "full" else 2)
        name = "evaluate" + "_cpu" * (self.device.type != "cuda") + "_ray" * arguments.ray
        self.report = Report(
            name, self.device, arguments.out, size=self.size,
            steps=self.models.steps, side=side, batch=self.batch, vram_gb=arguments.vram,
        )
        self.step_seconds = float("nan")
        self.painted: dict[str, bytes] = {}

    def steps(self) -> None:
        """The transformer's steps and nothing else: what painting cannot do without."""
        turns = Turns(self.loaders)
        with turns("painter") as pipeline:
            self._steps_of(pipeline)
        self.report.add("loading: Z-Image", s=turns.loading["painter"])

    def _jobs(self) -> list[Job]:
        states = torch.randn(ALONE, TEXT[self.size]["hidden_size"]).to(self.loaders.dtype)
        return [Job(states, seed) for seed in range(self.batch)]

    def _steps_of(self, pipeline: Any) -> None:
        jobs, models = self._jobs(), self.models
        options = {"steps": models.steps, "guidance": 0.0, "width": models.width, "height": models.height}
        latents = sample_many(pipeline, jobs, **options)
        steps = milliseconds(lambda: sample_many(pipeline, jobs, **options), self.device, 3, 1)
        decoding = milliseconds(lambda: decode_each(pipeline, latents), self.device, 3, 1) / 1000 / self.batch
        self.step_seconds = steps / 1000 / self.batch
        self.report.add(f"a picture of {ALONE} tokens: steps", s=self.step_seconds)
        self.report.add("a picture: decoding", s=decoding)

    def plan(self, folder: Path, fleet: Fleet) -> tuple[Evaluation, Rung]:
        """Some settings of some ways on drawings, and what was said of these, which random weights cannot say."""
        shown = {name: one for name, one in builtin_pictures(256 if self.size == "tiny" else 768).items()
                 if name in DRAWINGS}
        references = [Reference(name, f"{number:016x}", True) for number, name in enumerate(shown)]
        blocks = TEXT[self.size]["num_hidden_layers"]
        every = ways_tried(Given(), blocks)
        arms = [arm for name in WAYS for arm in [one for one in every if one.group == name][:SETTINGS]]
        sheet = Sheet(self.models, tuple(references), tuple(builtin_prompts()), "0" * 16)
        kept = Kept(folder / KEPT, "random", prose_tokenizer(self.size))
        evaluation = Evaluation(
            folder, sheet, arms, trials_of(len(references), len(sheet.prompts), 1), list(shown.values()), Sentences(),
            [Given()] * (len(references) + 1), kept, Turns(self.loaders), 60.0, self.batch, fleet,
            measuring(self.device),
        )
        parts = [*Sentences().parts, SHOWS]
        told = [{"parts": {part: f"{part} of {name}" for part in parts}, "caption": f"a {name}"} for name in shown]
        write_whole(folder / TOLD, json.dumps({"references": told, "trust": {"verdict": []}}))
        return evaluation, Rung("first", tuple(arm.id for arm in arms), self.arguments.trials)

    def evaluation(self) -> None:
        self.painted = self._run("alone", Fleet())

    def two_painters(self) -> None:
        """What a cell takes of both painters' time: where they wait for nothing, its steps and what comes with them.
        The steps are those that the card takes which paints it."""
        found = self._run("two", Fleet("local", 2))
        same = sum(found[name] == pixels for name, pixels in self.painted.items())
        self.report.add("two painters: pictures that are the same bit for bit", count=same, of=len(self.painted))

    def _run(self, name: str, fleet: Fleet) -> dict[str, bytes]:
        folder = Path(self.arguments.work) / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "cells").mkdir(parents=True)
        evaluation, rung = self.plan(folder, fleet)
        with evaluation.workers():
            self._measure(evaluation, rung)
        return {file.name: pixels_of(file) for file in sorted((folder / "cells").glob("*.png"))}

    def _measure(self, evaluation: Evaluation, rung: Rung) -> None:
        turns, fleet = evaluation.turns, evaluation.fleet

        def timed(work) -> float:
            before, start = sum(turns.loading.values()), time.perf_counter()
            work()
            return time.perf_counter() - start - (sum(turns.loading.values()) - before)

        evaluation.write_references()
        words = timed(lambda: evaluation.text_turn(evaluation.plain_words))
        captions = [one.caption for one in evaluation.told]
        words += timed(lambda: evaluation.text_turn(lambda: [evaluation.kept.words(one) for one in captions]))
        bases = evaluation.bases(1)
        asking = timed(lambda: self._ask_about_references(evaluation))
        evaluation.settle(bases)
        cells = [cell for row in rung.cells(evaluation.sheet, evaluation.by_id, evaluation.trials) for cell in row]
        reading = timed(lambda: evaluation.prepare(cells))
        evaluation.shares.seconds.clear()
        acts = {"painted": evaluation.paint, "asked about": evaluation.judge, "measured, after all else":
                evaluation.measure}
        spent = {name: timed(lambda act=act: act(cells)) for name, act in acts.items()}
        if evaluation.pool is not None:
            evaluation.pool.shutdown()
        label = "two painters: " if fleet.ray else ""
        painters = fleet.workers or 1
        self._report_cells(label, evaluation, cells, {name: painters * seconds for name, seconds in spent.items()})
        self.report.add(f"{label}asking about the references, before all else", s=asking)
        self.report.add(f"{label}reading {rung.trials} pairs", s=reading)
        self.report.add(f"{label}text states", s=words)
        for model, seconds in turns.loading.items():
            self.report.add(f"{label}loading: {model}", s=seconds / turns.taken[model], times=turns.taken[model])
        for model, taken in turns.peak.items():
            self.report.add(f"{label}peak: {model}", gb=taken / GB)

    def _ask_about_references(self, evaluation: Evaluation) -> None:
        """As every evaluation begins; what these models answer means nothing."""
        with evaluation.turns("vision") as encoder:
            trust(encoder, evaluation.pictures, evaluation.told, evaluation.form, self.models.image_tokens)

    def _report_cells(self, label: str, evaluation: Evaluation, cells: list[Cell], spent: dict[str, float]) -> None:
        """All that a cell took, and what of it went where, beside its painting steps alone."""
        count, shares = len(cells), evaluation.shares.seconds
        steps, tokens = self._steps_alone(evaluation, cells)
        self.report.add(f"{label}cells", count=count, tokens=tokens)
        self.report.add(f"{label}a cell: its painting steps alone", s=steps, **{TIMES: 1.0})
        each = sum(spent.values()) / count
        self.report.add(f"{label}a cell, all of it", s=each, **{TIMES: each / steps, TIMES_ALONE:
                                                               each / self.step_seconds})
        for name, seconds in spent.items():
            self.report.add(f"{label}a cell: {name}", s=seconds / count, **{TIMES: seconds / count / steps})
        of = {STEPS: "its steps, among all else", DECODING: "decoding", ASKING: "asking"}
        if not evaluation.fleet.ray:  # where there are painters, this process waits beside them
            of |= {MEASURING: "waiting for what is measured", WAITING: "waiting for what is read, written and laid out"}
        counted = {told: shares.get(name, 0.0) for name, told in of.items()}
        counted["everything else"] = sum(spent.values()) - sum(counted.values())
        counted["beside it: writing"] = shares.get(WRITING, 0.0)
        for told, seconds in counted.items():
            self.report.add(f"{label}of a cell: {told}", s=seconds / count, **{TIMES: seconds / count / steps})

    def _steps_alone(self, evaluation: Evaluation, cells: list[Cell]) -> tuple[float, float]:
        """Seconds of a cell's painting steps, of the same words in the same batches with nothing beside them, and the
        tokens of its words and pictures in the mean. Batches of the same lengths take the same time."""
        kinds: dict[tuple, tuple[list[Job], tuple[float, float]]] = {}
        times: dict[tuple, int] = {}
        tokens = 0
        for batch in evaluation.batches(cells):
            jobs, window = evaluation.jobs(batch)[0], batch[0].settings.window
            lengths = [len(job.states) for job in jobs]
            kind = (window, *lengths, *(len(job.outside) for job in jobs if job.outside is not None))
            kinds.setdefault(kind, (jobs, window))
            times[kind] = times.get(kind, 0) + 1
            tokens += sum(lengths)
        of_kinds = self._by_painters if evaluation.fleet.ray else self._by_itself
        seconds = dict(zip(kinds, of_kinds(evaluation, list(kinds.values())), strict=True))
        return sum(seconds[kind] * many for kind, many in times.items()) / len(cells), tokens / len(cells)

    def _by_itself(
        self, evaluation: Evaluation, kinds: list[tuple[list[Job], tuple[float, float]]]
    ) -> list[float]:
        """Seconds of each batch's steps."""
        models = self.models
        options = {"steps": models.steps, "guidance": 0.0, "width": models.width, "height": models.height}
        with evaluation.turns("painter") as pipeline:
            return [
                milliseconds(
                    lambda jobs=jobs, window=window: sample_many(pipeline, jobs, window=window, **options),
                    self.device, 1, int(number == 0),
                ) / 1000
                for number, (jobs, window) in enumerate(kinds)
            ]

    def _by_painters(
        self, evaluation: Evaluation, kinds: list[tuple[list[Job], tuple[float, float]]]
    ) -> list[float]:
        """The same in the mean of the painters, which all paint it at the same time."""
        crew, found = evaluation.crew, []
        ask_all(crew, "begin", "painter")
        for jobs, window in [kinds[0], *kinds]:  # the first one twice: that is when memory is taken
            seconds = [each * len(jobs) for _, each in ask_all(crew, "paint", jobs, window, None)]
            found.append(sum(seconds) / len(crew))
        painted = len(kinds[0][0]) + sum(len(jobs) for jobs, _ in kinds)
        decoding = sum(shares[DECODING] for _, shares in ask_all(crew, "end")) / len(crew) / painted
        return [each - decoding * len(jobs) for each, (jobs, _) in zip(found[1:], kinds, strict=True)]


def pixels_of(file: Path) -> bytes:
    from PIL import Image

    with Image.open(file) as image:
        return image.tobytes()
