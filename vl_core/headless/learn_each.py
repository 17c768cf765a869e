"""``learn --each``: a look of its own for every picture, one after another or side by side on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..looks.look import Look
from ..looks.options import LearnOptions
from ..looks.resumed import learn_resumed, part_of, stopped_at
from ..looks.start import Words
from ..zimage import checks
from ..zimage.look_painter import PipelinePainter
from ..zimage.pipeline import load_pipeline
from ..zimage.progress import progress
from .compare.fleet import on_ray


@dataclass(frozen=True, eq=False)
class Job:
    """One look to learn: of which picture, from which words, and the file that it goes to.

    Attributes:
        key: a name for this learning; a file that has it in its header is done.
    """

    picture: Tensor
    words: Words
    options: LearnOptions
    output: Path
    key: str


class Learner:
    """Z-Image on one device, learning look after look.

    Args:
        model: its folder. device: where, or None to pick one. kind: name of the weights' type.
    """

    def __init__(self, model: str, device: str | None, kind: str) -> None:
        pipeline = load_pipeline(Path(model), checks.pick_device(device or "auto"), checks.DTYPES[kind])
        self.painter = PipelinePainter(pipeline, Path(model).name)

    def learn(self, job: Job) -> Path:
        """Learn one look and write its file; stopped, it goes on from the ``.part`` file beside it."""
        part = part_of(job.output, job.key)
        look = learn_resumed(
            self.painter, [job.picture], job.words, job.options, part, job.key, on_step=lambda state: None,
            state=stopped_at(part, job.key),
        )
        return keyed(look, job.key).save(job.output)


def keyed(look: Look, key: str) -> Look:
    """The look with the name of its learning in its header."""
    return replace(look, origin=look.origin.model_copy(update={"key": key}))


def files_for(pictures: Sequence[str], folder: Path) -> list[Path]:
    """The file of each picture's look, by the picture's name.

    Raises:
        ValueError: if two pictures have the same name.
    """
    names = [Path(picture).stem for picture in pictures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"--image: expected pictures of different names with --each, got {twice[0]} twice. Rename one."
        )
    return [folder / f"{name}.safetensors" for name in names]


def left_to_do(jobs: Sequence[Job]) -> list[Job]:
    """The jobs whose file is not there yet.

    Raises:
        ValueError: if a file of that name holds another look.
    """
    left = []
    for job in jobs:
        if not job.output.is_file():
            left.append(job)
        elif Look.load(job.output).origin.key != job.key:
            raise ValueError(f"--output: {job.output} holds another look. Name another folder, or move the file away.")
    return left


def learn_each(
    jobs: Sequence[Job], model: str, device: str | None, kind: str, *, ray: str | None, workers: int = 0
) -> None:
    """Learn what is left to do.

    Args:
        ray: address of a cluster, None to do it in this process. workers: see :func:`on_ray`.

    The model and the folder of looks must lie in the same places on every machine.
    """
    made: Iterator[Path]
    if not jobs:
        return
    jobs[0].output.parent.mkdir(parents=True, exist_ok=True)
    if ray is None:
        learner = Learner(model, device, kind)
        made = (learner.learn(job) for job in jobs)
    else:
        made = on_ray(
            ray, workers, Learner, (model, device, kind), lambda worker, job: worker.learn.remote(job), jobs
        )
    with progress("Looks", len(jobs)) as move:
        for path in made:
            move(note=path.name)
