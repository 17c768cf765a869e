"""A labelled sheet: reference | words only | published | ours … | caption, and what the judge reads in each.

A reference may be on a background between two colours that have names; then the verdict is how far off the painted one
is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vl_core import Look, PictureAdapter, Words, apply_look, condition
from vl_core.looks.learn import learn_looks
from vl_core.looks.lesson import Lesson
from vl_core.looks.options import QUALITIES

from .. import world
from . import adapters
from .between import BetweenColours, ring_colour
from .chain import Chain, as_image, look_of
from .look_painter import MiniaturePainter, shows_of

if TYPE_CHECKING:
    from PIL.Image import Image

NOTE = (
    "Under each picture: what the judge reads. Above it: the prompt's colour and shape, and the reference's "
    "background, style and mood, as far as they are there; of a background that has no name, its distance in RGB."
)
GOOD, BAD, PLAIN = "#00684A", "#A63D00", "#222222"  # told apart by the colour-blind; the words say the same


class Reference(NamedTuple):
    """A picture ``(H, W, 3)`` in [0, 1], and its scene if it comes from the world (None: a photograph, say).

    ``ground``: RGB ``(3,)`` of a background that has no name; the scene's then is the nearest that has one.
    """

    picture: Tensor
    scene: world.Scene | None = None
    ground: Tensor | None = None


class Wish(NamedTuple):
    """The shape and colour a prompt asks for."""

    shape: int
    color: int


class Column(NamedTuple):
    """A way to mix, as ``vl_core.condition`` takes it; or DESCRIBE (the VL's own words), ADAPTER or LOOK."""

    label: str
    mode: str
    layer: int
    strength: float


DESCRIBE, ADAPTER, LOOK = "describe", "picture adapter", "learned look"
PUBLISHED = Column("published blend\nlayer -6, α 0.3", "blend as published", -6, 0.3)
OURS = (
    Column("aligned blend\nlayer -8, α 0.7", "blend aligned", -8, 0.7),
    Column("append picture\nlayer -2, all tokens", "append picture", -2, 1.0),
    Column("described\nby the VL, as words", DESCRIBE, -2, 1.0),
)
FITTED = Column("picture adapter\nstrength 1", ADAPTER, -2, 1.0)
QUALITY = "quick"  # of the sheet's looks
LEARNED = Column(f"learned look\n{QUALITY}: {QUALITIES[QUALITY].steps} steps", LOOK, -2, 1.0)


class Cell(NamedTuple):
    """A picture, what stands under it, and its verdict with its colour."""

    picture: Tensor
    label: str
    verdict: str = ""
    colour: str = PLAIN


def from_the_world(count: int, seed: int) -> tuple[list[Reference], list[str], list[Wish]]:
    """References, and prompts that ask for another shape in another colour (:func:`conflict_pairs`)."""
    pairs = world.conflict_pairs(count, seed)
    pictures, _ = world.render(pairs.references, torch.Generator().manual_seed(seed))
    references = [Reference(*both) for both in zip(as_image(pictures), pairs.references.records(), strict=True)]
    wishes = [Wish(*both) for both in zip(pairs.shape.tolist(), pairs.color.tolist(), strict=True)]
    return references, list(pairs.prompts), wishes


def without_a_name(chain: Chain) -> tuple[Reference, str, Wish]:
    """A reference on the background between two names that lies farthest from every name, and a prompt.

    The prompt asks for another shape than the reference's, in the colour that is farthest from the background.
    """
    between = BetweenColours.draw(chain)
    off = torch.cdist(between.goal, torch.tensor(world.RGB))
    index = int(off.amin(1).argmax())
    scene = between.scenes.records()[index]._replace(background=int(off[index].argmin()))
    shape, thing, _ = scene.objects[0]
    color = next(one for one in off[index].argsort(descending=True).tolist() if one != thing)
    wish = Wish((shape + 1) % len(world.SHAPES), color)
    prompt = world.with_article(f"{world.COLORS[wish.color]} {world.SHAPES[wish.shape]}")
    return Reference(between.images[index], scene, between.goal[index]), prompt, wish


def learned(chain: Chain, references: Sequence[Reference]) -> list[Look]:
    """A look of each picture, begun with what the VL says of it, all side by side."""
    pictures = torch.cat([_small(reference.picture) for reference in references]).to(chain.device)
    lessons = [
        Lesson((picture,), Words((world.things_of(shows),), said))
        for picture, shows, said in zip(
            as_image(pictures), shows_of(chain, pictures), look_of(chain, pictures), strict=True
        )
    ]
    return learn_looks(MiniaturePainter(chain), lessons, QUALITIES[QUALITY], others=world.other_things())


def captions(count: int) -> list[str]:
    """Captions to measure the text encoder's statistics on."""
    return [world.canonical_caption(scene) for scene in world.sample_scenes(count, _fixed(5)).records()]


def _fixed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sheet(
    chain: Chain,
    references: Sequence[Reference],
    prompts: Sequence[str],
    wishes: Sequence[Wish] | None = None,
    columns: Sequence[Column] = (PUBLISHED, *OURS),
    *,
    seed: int = 0,
    steps: int = 8,
    guidance: float = 1.0,
    progress: Callable[[], None] = lambda: None,
) -> Image:
    """One row per reference and its prompt, every picture of a row from the same seed.

    Args:
        references, prompts: as many of each.
        wishes: what the prompts ask for; with them and a reference from the world every picture gets a verdict.
        progress: called after each row, and after looks were learned.

    Raises:
        ValueError: if there are not as many prompts (or wishes) as references.
    """
    for name, given in (("prompts", prompts), ("wishes", wishes)):
        if given is not None and len(given) != len(references):
            raise ValueError(f"{name}: expected {len(references)}, one per reference, got {len(given)}.")
    titles = ["reference", "words only", *(column.label for column in columns), "bound: the look\nin true words"]
    adapter = adapters.load(chain.folder) if any(column.mode == ADAPTER for column in columns) else None
    looks: list[Look | None] = [None] * len(references)
    if any(column.mode == LOOK for column in columns):
        looks[:] = learned(chain, references)
        progress()
    rows = []
    for index, (reference, prompt) in enumerate(zip(references, prompts, strict=True)):
        states, said = _mixed(chain, reference, prompt, columns, adapter, looks[index])
        painted = chain.paint(states, [seed + index] * len(states), steps=steps, guidance=guidance)
        logits = chain.read(painted)
        if reference.scene is None:
            first = Cell(reference.picture, f"out of the world\nthe VL: “{said}”")
        elif reference.ground is None:
            first = Cell(reference.picture, f"from the world\nthe VL: “{said}”")
        else:
            nearest = world.COLORS[reference.scene.background]
            first = Cell(reference.picture, f"no name, nearest is {nearest}\nthe VL: “{said}”")
        cells = [first]
        for at, (picture, label) in enumerate(zip(as_image(painted), readings(logits), strict=True)):
            verdict = ("", PLAIN)
            if wishes is not None:
                ground = None if reference.ground is None else (reference.ground, ring_colour(painted[at]))
                verdict = verdict_of(logits, at, wishes[index], reference.scene, ground)
            cells.append(Cell(picture, label, *verdict))
        rows.append((f"“{prompt}”", cells))
        progress()
    return draw(titles, rows)


def _mixed(
    chain: Chain, reference: Reference, prompt: str, columns: Sequence[Column], adapter: PictureAdapter | None,
    look: Look | None,
) -> tuple[list[Tensor], str]:
    """States per column, the words alone first and the true caption last, and what the VL says of the look."""
    words, layout = chain.words(prompt)
    seen = chain.look(reference.picture, prompt)
    muted = chain.look(reference.picture, prompt, mute=True)
    (said,) = look_of(chain, _small(reference.picture).to(chain.device))
    states = [words]
    for column in columns:
        if column.mode == DESCRIBE:
            states.append(chain.words(f"{prompt}, {said}")[0])
        elif column.mode == ADAPTER:
            states.append(adapter.apply(words, layout, seen, column.strength)[0])
        elif column.mode == LOOK:
            states.append(apply_look(words, layout, look, column.strength)[0])
        else:
            states.append(condition(words, layout, seen, column.layer, column.mode, column.strength, muted=muted)[0])
    if reference.scene is not None:
        states.append(chain.words(", ".join([prompt, *world.look_phrases(reference.scene)]))[0])
    return states, said


def _small(picture: Tensor) -> Tensor:
    """``(1, 3, 128, 128)`` in [-1, 1] of a picture ``(H, W, 3)`` in [0, 1]."""
    planes = picture.permute(2, 0, 1)[None].float()
    return 2 * torch.nn.functional.interpolate(planes, (world.SIDE, world.SIDE), mode="area") - 1


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


def verdict_of(
    logits: dict[str, Tensor], index: int, wish: Wish, scene: world.Scene | None,
    ground: tuple[Tensor, Tensor] | None = None,
) -> tuple[str, str]:
    """What a picture kept of the wish and took of the scene, in words, and the colour they are written in.

    Args:
        ground: RGB of a background without a name, and of the painted one, each ``(3,)``. It is met if the painted one
            is nearer to it than to every colour that has a name.
    """
    kept = bool(logits["color"][index, wish.color] > 0), bool(logits["shape"][index, wish.shape] > 0)
    text = f"prompt {sum(kept)} of 2"
    if scene is None:
        return text, GOOD if all(kept) else BAD
    if ground is not None:
        goal, found = ground
        off = float((found - goal).norm())
        met = off < float((torch.tensor(world.RGB) - found).norm(dim=1).min())
        return f"{text} · ground {off:.2f} off", GOOD if all(kept) and met else BAD if not all(kept) else PLAIN
    taken = sum(int(logits[name][index].argmax()) == getattr(scene, name) for name in world.LOOK)
    return f"{text} · look {taken} of 3", GOOD if all(kept) and taken == 3 else BAD if not all(kept) else PLAIN


def draw(titles: Sequence[str], rows: Sequence[tuple[str, list[Cell]]], note: str = NOTE, head: str = "") -> Image:
    """Cells under their titles, each row beside its prompt, a head above and a note below all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(
        figsize=(2.3 * len(titles), 2.95 * len(rows) + 0.9), dpi=100, layout="constrained", facecolor="white"
    )
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, (prompt, cells) in enumerate(rows):
        for column, axes in enumerate(grid[row]):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_frame_on(False)
            if row == 0:
                axes.set_title(titles[column], fontsize=11, pad=20)  # room for the verdict
            if column == 0:
                axes.set_ylabel(prompt, fontsize=10)
            if column < len(cells):
                cell = cells[column]
                axes.imshow(_pixels(cell.picture), interpolation="nearest", extent=(0, 1, 0, 1))
                axes.set_xlabel(_wrapped(cell.label), fontsize=8)
                axes.text(
                    0.5, 1.02, cell.verdict, color=cell.colour, fontsize=8, ha="center", va="bottom",
                    fontweight="bold" if cell.colour == GOOD else "normal",
                )
    figure.supxlabel(note, fontsize=9)
    if head:
        figure.suptitle(head, fontsize=14, fontweight="bold")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _wrapped(label: str, width: int = 34) -> str:
    from textwrap import fill

    return "\n".join(fill(line, width) for line in label.splitlines())


def _pixels(picture: Tensor) -> np.ndarray:
    if picture.dtype == torch.uint8:
        return picture.cpu().numpy()
    return (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
