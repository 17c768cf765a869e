"""A labelled sheet: reference | words only | published | ours … | caption, and what the judge reads in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vl_core import condition

from . import world
from .chain import Chain

if TYPE_CHECKING:
    from PIL.Image import Image


class Reference(NamedTuple):
    """A picture ``(H, W, 3)`` in [0, 1], and its scene if it comes from the world (None: a photograph, say)."""

    picture: Tensor
    scene: world.Scene | None = None


class Column(NamedTuple):
    """A way to mix, as ``vl_core.condition`` takes it."""

    label: str
    mode: str
    layer: int
    strength: float


PUBLISHED = Column("published blend", "blend as published", -6, 0.3)
OURS = (
    Column("aligned blend", "blend aligned", -2, 0.7),
    Column("append picture", "append picture", -2, 0.5),
)


def sheet(
    chain: Chain,
    references: Sequence[Reference],
    prompts: Sequence[str],
    columns: Sequence[Column] = (PUBLISHED, *OURS),
    *,
    seed: int = 0,
    steps: int = 8,
    guidance: float = 1.0,
    progress: Callable[[], None] = lambda: None,
) -> Image:
    """One row per reference and its prompt, every picture from the same seed.

    Args:
        references, prompts: as many of each.
        progress: called after each row.

    Raises:
        ValueError: if there are not as many prompts as references.
    """
    if len(references) != len(prompts):
        raise ValueError(f"prompts: expected {len(references)}, one per reference, got {len(prompts)}.")
    titles = ["reference", "words only", *(column.label for column in columns), "caption in words"]
    rows = []
    for reference, prompt in zip(references, prompts, strict=True):
        words, layout = chain.words(prompt)
        seen = chain.look(reference.picture, prompt)
        states = [words]
        states += [condition(words, layout, seen, c.layer, c.mode, c.strength)[0] for c in columns]
        if reference.scene is not None:
            states.append(chain.words(", ".join([prompt, *world.look_phrases(reference.scene)]))[0])
        painted = chain.paint(states, [seed] * len(states), steps=steps, guidance=guidance)
        labels = readings(chain.read(painted))
        cells = [(reference.picture, "from the world" if reference.scene is not None else "out of the world")]
        cells += list(zip(((painted + 1) / 2).permute(0, 2, 3, 1), labels, strict=True))
        rows.append((prompt, cells + [None] * (len(titles) - len(cells))))
        progress()
    return _draw(titles, rows)


def readings(logits: dict[str, Tensor]) -> list[str]:
    """What the judge sees in each picture, two lines."""
    objects = (logits["pair"] > 0).int()
    lines = []
    for index, pair in enumerate(objects):
        named = [f"{world.COLORS[i % 10]} {world.SHAPES[i // 10]}" for i in pair.nonzero().flatten().tolist()][:2]
        ground, style, mood = (int(logits[name][index].argmax()) for name in world.LOOK)
        lines.append(
            f"{' + '.join(named) or 'no clear shape'}\n{world.COLORS[ground]} ground, {world.STYLES[style]}, "
            f"{world.MOODS[mood]}"
        )
    return lines


def _draw(titles: Sequence[str], rows: Sequence[tuple[str, list]]) -> Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(2.3 * len(titles), 2.9 * len(rows) + 0.6), dpi=100, layout="constrained")
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, (prompt, cells) in enumerate(rows):
        for column, cell in enumerate(cells):
            axes = grid[row, column]
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_frame_on(False)
            if row == 0:
                axes.set_title(titles[column], fontsize=11)
            if column == 0:
                axes.set_ylabel(f"“{prompt}”", fontsize=9, wrap=True)
            if cell is not None:
                axes.imshow(_pixels(cell[0]), interpolation="nearest")
                axes.set_xlabel(cell[1], fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _pixels(picture: Tensor) -> np.ndarray:
    if picture.dtype == torch.uint8:
        return picture.cpu().numpy()
    return (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
