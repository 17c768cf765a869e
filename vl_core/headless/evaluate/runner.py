"""Runs an evaluation: each model in its turn, every painting and answer on disk as soon as it is there.

A run that is killed goes on where it was. What decides what is painted (how many settings go on, how many trials) is
written down once and read again, batches are those of an unbroken run, and finished lines are never written anew.

Whatever a core does (PNGs, lines, reading pictures again, artifacts) is done beside the GPU's work, a few batches of it
at most, in the order of the cells.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from ...encoder.judging import Ready
from ...reports.judge import Query
from ...states.files import parse_json
from ...steering.desk import Desk
from ...steering.settings import Settings
from ...steering.sweep import Cell
from ...zimage.files import save_png
from ...zimage.painting import Job
from ...zimage.progress import progress
from ..compare.fleet import ask_all, crew, shared_out
from ..compare.nulls import NULL
from ..compare.scores import cosine
from .beside import Ahead, Beside, Made, one_core_each
from .evidence import PROMPT
from .ground import CELLS, JUDGED, MEASURED, PAINTED, PLAN, SCORED, TOLD, Ground
from .judging import Told, trust
from .kept import NotItsTurn, write_whole
from .looks import bring_looks
from .own import read_own_picture
from .plan import Rung, first_rungs, next_rung
from .work import Asker, Brush, Worker, measure_file

SPENT_PAINTING = 0.9  # of the time; the rest is for loading, reading and describing
AHEAD = 4  # pictures that are written or read at the same time, and batches that wait for it
WITH_EACH = 2  # batches that a cluster's worker has at a time: while one is on the GPU another comes or goes
TOGETHER = 8  # pictures that are asked about in the same passes; each takes 0.2 GB of Qwen3-VL-4B

# What the time is counted to, beside what painting and asking are: of this thread WAITING, of others WRITING; MEASURING
# is what of it comes after the painting and asking.
MEASURING, WAITING, WRITING = "measuring", "waiting", "writing"

Batch = tuple[Cell, ...]
Scores = Callable[["Evaluation", Rung], Mapping[str, "tuple[bool, float]"]]


class Evaluation(Ground):
    """See :class:`Ground`; :meth:`run` does all of it."""

    def run(self, scores: Scores) -> None:
        """Describe, paint, ask, rung after rung; ``scores`` says of a rung's arms which is better."""
        with self.workers():
            self._run(scores)

    @contextmanager
    def workers(self) -> Iterator[None]:
        """Those of the cluster, if there is one, are there while the block lasts."""
        if not self.fleet.ray:
            yield
            return
        threads = 1 if self.turns.loaders.device.type == "cuda" else None  # see one_core_each
        with crew(
            self.fleet.ray, self.fleet.workers, Worker, (self.turns.loaders,), threads=threads, calls=WITH_EACH,
            stored=False,
        ) as self.crew:
            yield

    def _run(self, scores: Scores) -> None:
        for partial in self.folder.rglob(f"*.{'[0-9a-f]' * 32}.part"):
            partial.unlink()  # a run that was killed was writing it
        (self.folder / CELLS).mkdir(parents=True, exist_ok=True)
        self.write_references()
        self.text_turn(self.plain_words)
        self._describe()
        self.text_turn(lambda: [self.kept.words(told.caption) for told in self.told])
        bring_looks(self)
        self.settle(self.bases(1))
        for number in range(4):
            rung = self._decided(number, scores)
            if rung is None:
                break
            self.rungs.append(rung)
            used = self.trials[: rung.trials]
            self.settle(self.bases(1 + max(trial.seed for trial in used)))
            cells = [cell for arm in rung.cells(self.sheet, self.by_id, self.trials) for cell in arm]
            self.prepare(cells)
            self.settle(cells)
        self._show_nulls(self.rungs[-1])

    def _decided(self, number: int, scores: Scores) -> Rung | None:
        """The rung that stands in the plan, or a new one that is written into it; None after the last."""
        path = self.folder / PLAN
        plan = parse_json(path.read_text(encoding="utf-8"), PLAN) if path.is_file() else {"rungs": []}
        if number < len(plan["rungs"]):
            return Rung(**{**plan["rungs"][number], "arms": tuple(plan["rungs"][number]["arms"])})
        if self.rungs and self.rungs[-1].noise:
            return None
        left = self._cells_left()
        if number == 0:
            new = first_rungs(self.arms, left, len(self.trials))
        else:
            before = next(rung for rung in reversed(self.rungs) if rung.name != "note")
            new = [next_rung(before, self.by_id, scores(self, before), left, len(self.trials))]
        plan["rungs"] += [rung.as_dict() for rung in new]
        write_whole(path, json.dumps(plan, indent=1) + "\n")
        return new[0]

    def _cells_left(self) -> float:
        """How many more cells there is time for, by what they have taken so far."""
        spent = sum(row["seconds"] for rows in self.rows.values() for row in rows.values())
        many = max(1, len(self.rows[PAINTED]))
        beside = self.rows[MEASURED] if self.pool is not None else {}  # measured beside the painting
        each = (spent - sum(row["seconds"] for row in beside.values())) / many
        left = SPENT_PAINTING * 60 * self.minutes - self.looks_seconds - each * many
        return max(0.0, left / max(each, 1e-6))

    def _show_nulls(self, rung: Rung) -> None:
        """Another picture's painting beside each example; most of them are trials of their own."""
        pairs = [(self.by_id[id], trial) for id in rung.arms for trial in self.examples()]
        self.prepare([self.another(*pair) for pair in pairs])
        self.settle([self.another(*pair) for pair in pairs])

    def settle(self, cells: Sequence[Cell]) -> None:
        """Paint, measure and ask for what is not there yet."""
        # What an earlier rung has settled is in none of this one's batches, whether or not it was killed in between.
        cells = list({cell.id: cell for cell in cells if cell.id not in self.settled}.values())
        self.paint(cells)
        self.judge(cells)
        self.score(cells)
        self.measure(cells)
        self.settled |= {cell.id for cell in cells}

    # --- turns before the painting ----------------------------------------------------------------------------------

    def write_references(self) -> None:
        from PIL import Image

        for reference, picture in zip(self.sheet.references, self.pictures, strict=True):
            path = self.reference(reference.key)
            if not path.is_file():
                save_png(path, Image.fromarray(picture.numpy()), {"name": reference.name})

    def text_turn(self, act: Callable[[], Made]) -> Made:
        """Act from what is kept; where that lacks something, once more with the text encoder there."""
        return self._turn("text", act)

    def vision_turn(self, act: Callable[[], Made]) -> Made:
        """The same with Qwen3-VL."""
        return self._turn("vision", act)

    def _turn(self, name: str, act: Callable[[], Made]) -> Made:
        try:
            return act()
        except NotItsTurn:
            with self.turns(name) as model:
                setattr(self.kept, name, model)
                try:
                    return act()
                finally:
                    setattr(self.kept, name, None)

    def plain_words(self) -> None:
        self.kept.statistics()
        for text in (*(prompt.text for prompt in self.sheet.prompts), self.sheet.models.negative):
            self.kept.words(text)

    def _describe(self) -> None:
        """What Qwen3-VL says of the references, and whether it can be trusted as a judge of them."""
        path = self.folder / TOLD
        if not path.is_file():
            budget = self.sheet.models.image_tokens
            with self.turns("vision") as encoder, progress("Describing", len(self.pictures)) as move:
                told = []
                for picture in self.pictures:
                    told.append(Told.of(encoder, picture, self.form, budget))
                    move()
                trusted = trust(encoder, self.pictures, told, self.form, budget)
            content = {"references": [asdict(one) for one in told], "trust": trusted}
            write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    def prepare(self, cells: Sequence[Cell]) -> None:
        """All readings that cells need, then all their text states."""
        todo: dict[tuple[int, int], dict[Settings, None]] = {}
        for cell in cells:
            if self.unpainted(cell):
                todo.setdefault(self.places(cell), {})[cell.settings] = None
        if not todo:
            return

        def over_pairs(title: str, act: Callable[[Desk, Settings], object]) -> Callable[[], None]:
            def all_of_them() -> None:
                with progress(title, len(todo)) as move:
                    for pair, many in todo.items():
                        for settings in many:
                            act(self.desk(*pair, 0), settings)
                        move()

            return all_of_them

        self.vision_turn(over_pairs("Reading", lambda desk, settings: desk.fetch(settings)))
        self.text_turn(over_pairs("Encoding words", lambda desk, settings: desk.run(settings)))

    # --- painting ---------------------------------------------------------------------------------------------------

    def bases(self, seeds: int) -> list[Cell]:
        """The words alone and every picture's own caption, for so many seeds."""
        words = [
            self.sheet.words_alone(prompt, seed) for seed in range(seeds) for prompt in range(len(self.sheet.prompts))
        ]
        return words + [self.sheet.bound(told.caption, seed) for seed in range(seeds) for told in self.told]

    def jobs(self, batch: Batch) -> tuple[list[Job], list[str]]:
        found, reports = [], []
        for cell in batch:
            if cell.words_only:
                states = self.kept.words(str(dict(cell.extra)["prompt"]))[0].states
                found.append(Job(states, cell.seed))
                reports.append(cell.label)
                continue
            outcome = self.outcome(cell)
            found.append(Job(outcome.entries[0].states, cell.seed, outcome.texts[0].states))
            reports.append(outcome.report())
        return found, reports

    def paint(self, cells: Sequence[Cell]) -> None:
        batches = self.batches(cells)
        todo = [one for one in batches if any(map(self.unpainted, one))]
        done = sum(len(one) for one in batches) - sum(len(one) for one in todo)
        alone = one_core_each(self.turns.loaders.device)
        with progress("Painting", len(cells)) as move, ThreadPoolExecutor(AHEAD) as writers, \
                Beside(AHEAD) as beside, alone:
            move(done, len(cells))

            def keep(batch: Batch, pictures: Sequence[np.ndarray], seconds: float, reports: Sequence[str]) -> None:
                nonlocal done
                with self.shares(WRITING):
                    new = [number for number, cell in enumerate(batch) if self.unpainted(cell)]
                    written = [writers.submit(self.save, batch[one], pictures[one]) for one in new]
                    for number, one in zip(new, written, strict=True):
                        one.result()
                        cell, said = batch[number], {"report": reports[number], "seconds": seconds}
                        self.line(PAINTED, {"id": cell.id, **self.head(cell), **said})
                        if self.pool is not None:
                            self.measured[cell.id] = self.pool.submit(measure_file, *self._files_of(cell))
                done += len(batch)
                move(done, len(cells))

            for batch, painted, reports in self._painted(todo) if todo else ():
                with self.shares(WAITING):
                    beside.do(keep, batch, *painted, reports)
            with self.shares(WAITING):
                beside.finish()

    def batches(self, cells: Sequence[Cell]) -> list[Batch]:
        """Cells that are painted together: of one setting, so that they are of like length and act at the same time."""
        groups: dict[tuple, list[Cell]] = {}
        for cell in cells:
            groups.setdefault((cell.settings, dict(cell.extra).get(NULL)), []).append(cell)
        return [tuple(own[at : at + self.batch]) for own in groups.values() for at in range(0, len(own), self.batch)]

    def _painted(self, todo: Sequence[Batch]) -> Iterable[tuple[Batch, tuple[list, float], list[str]]]:
        unwanted = self.kept.words(self.sheet.models.negative)[0].states if self.sheet.models.guidance > 0 else None
        few = WITH_EACH * max(1, len(self.crew))
        with Ahead(self.jobs, todo, few) as coming:
            if self.fleet.ray:
                reports: dict[Batch, list[str]] = {}

                def send(worker: Any, batch: Batch) -> Any:
                    jobs, reports[batch] = next(coming)
                    return worker.paint.remote(jobs, batch[0].settings.window, unwanted)

                for batch, painted in zip(todo, self._by_workers("painter", send, todo), strict=True):
                    yield batch, painted, reports.pop(batch)
                return
            with self.turns("painter") as pipeline:
                brush = Brush(self.sheet.models, pipeline, self.shares)
                for batch in todo:
                    with self.shares(WAITING):
                        jobs, reports_of = next(coming)
                    yield batch, brush.paint(jobs, batch[0].settings.window, unwanted), reports_of

    def _by_workers(
        self, name: str, task: Callable[[Any, Batch], Any], todo: Sequence[Batch]
    ) -> Iterator[Any]:
        """What a cluster's workers make of batches, in a turn of the model ``name``."""
        start = time.perf_counter()
        ask_all(self.crew, "begin", name)
        self.turns.count_loading(name, time.perf_counter() - start)
        yield from shared_out(self.crew, task, todo, ordered=True, ahead=WITH_EACH)
        for peak, seconds in ask_all(self.crew, "end"):
            self.turns.count_peak(name, peak)
            self.shares.add(seconds)

    def measure(self, cells: Sequence[Cell]) -> None:
        """Artifacts and likeness of what was painted; with processes of their own it was begun meanwhile."""
        todo = [cell for cell in cells if cell.id not in self.rows[MEASURED]]
        with progress("Measuring", len(todo)) as move, self.shares(MEASURING):
            for cell in todo:
                start, coming = time.perf_counter(), self.measured.pop(cell.id, None)
                figures = measure_file(*self._files_of(cell)) if coming is None else coming.result()
                self.line(MEASURED, {"id": cell.id, **figures, "seconds": time.perf_counter() - start})
                move()

    def _files_of(self, cell: Cell) -> tuple[str, str, str]:
        """A cell's picture, the words alone beside it, and its reference; "" where there is none."""
        if cell.words_only:
            return str(self.file(cell.id)), "", ""
        words = self.sheet.words_alone(self.places(cell)[1], cell.seed)
        return str(self.file(cell.id)), str(self.file(words.id)), str(self.reference(str(dict(cell.extra)["pictures"])))

    # --- judging ----------------------------------------------------------------------------------------------------

    def judge(self, cells: Sequence[Cell]) -> None:
        batches = [tuple(cells[at : at + TOGETHER]) for at in range(0, len(cells), TOGETHER)]
        todo = [one for one in batches if any(cell.id not in self.rows[JUDGED] for cell in one)]
        if not todo:
            return
        alone = one_core_each(self.turns.loaders.device)
        with progress("Asking", sum(map(len, todo))) as move, Beside(AHEAD) as beside, alone:

            def keep(batch: Batch, told: Sequence[Mapping[str, Any]], seconds: float) -> None:
                with self.shares(WRITING):
                    for cell, answers in zip(batch, told, strict=True):
                        self.line(JUDGED, {"id": cell.id, "answers": answers, "seconds": seconds})
                        move()

            for batch, told in self._asked(todo):
                with self.shares(WAITING):
                    beside.do(keep, batch, *told)
            with self.shares(WAITING):
                beside.finish()

    def _asked(self, todo: Sequence[Batch]) -> Iterable[tuple[Batch, tuple[list, float]]]:
        def see(batch: Batch) -> tuple[list[Tensor], list[list[Query]]]:
            pictures = readers.map(lambda cell: read_own_picture(self.file(cell.id)), batch)
            return [*pictures], [self.queries(cell) for cell in batch]

        few = WITH_EACH * max(1, len(self.crew))
        with ThreadPoolExecutor(AHEAD) as readers, Ahead(see, todo, few) as seen:
            if self.fleet.ray:
                def send(worker: Any, batch: Batch) -> Any:
                    return worker.ask_about.remote(*next(seen))

                yield from zip(todo, self._by_workers("vision", send, todo), strict=True)
                return
            with self.turns("vision") as encoder:
                asker = Asker(self.sheet.models, encoder, self.shares)

                def lay_out(batch: Batch) -> tuple[list[Ready], list[list[Query]]]:
                    pictures, queries = next(seen)
                    return [asker.ready(*both) for both in zip(pictures, queries, strict=True)], queries

                with Ahead(lay_out, todo, 1) as coming:
                    for batch in todo:
                        with self.shares(WAITING):
                            asked = next(coming)
                        yield batch, asker.ask(*asked)

    def score(self, cells: Sequence[Cell]) -> None:
        """By a second judge, if there is one: how like every reference a painting is, and how like its prompt."""
        todo = [cell for cell in cells if cell.id not in self.rows[SCORED]]
        if not todo or not self.turns.loaders.judge:
            return
        with self.turns("score") as score, progress("Scoring", len(todo)) as move:
            references = [score.of_picture(picture) for picture in self.pictures]
            for cell in todo:
                start = time.perf_counter()
                own = score.of_picture(read_own_picture(self.file(cell.id)))
                found = {str(place): cosine(own, reference) for place, reference in enumerate(references)}
                if score.reads_text:
                    found[PROMPT] = cosine(own, score.of_text(str(dict(cell.extra)["prompt"])))
                self.line(SCORED, {"id": cell.id, "scores": found, "seconds": time.perf_counter() - start})
                move()
