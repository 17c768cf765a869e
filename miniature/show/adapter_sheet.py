"""Stage ``adapter-sheet``: the picture adapter beside words and its null control, and two pictures through it.

Both blocks show the first pairs of their draw, not chosen; all pictures of a row are painted from one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vl_core.zimage.files import save_png

from .. import world
from ..measure import sheet
from ..measure.bench import Switches, mixed, prepare
from ..measure.chain import Chain, as_image
from ..measure.methods import Bench
from ..measure.rows import METHODS, Method
from ..measure.takes import ANOTHER
from ..train import assemble
from ..train.training import Options, begin, measured_with

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = 256  # of the file, which is a quarter of the size so and looks the same
DRAWN = 8  # pairs, so that every row has pictures that are not its own
ONE, TWO = 3, 3  # rows shown of a picture, and of two
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5)
NOTE = (
    "Under each picture: what the judge reads. Above it: the prompt's colour and shape, and the reference's "
    "background, style and mood, as far as they are there; in the last column still those of the reference on the left."
)
NOTE_TWO = (
    "Above each picture: the prompt's colour and shape, and how many of background, style and mood are those of one "
    "picture and not of the other. Green: the prompt is kept and something of both is there."
)


def run(options: Options, switches: Switches) -> Image:
    """Draw ``adapter_sheet.png`` into the run's folder."""
    device = begin(options)
    chain = Chain.load(assemble.models_folder(options), device)
    switches = replace(switches, pairs=DRAWN)
    bench = prepare(chain, switches, options.seed)
    drawn = stacked([one_picture(bench, switches), two_pictures(bench, switches)]).quantize(COLOURS)
    save_png(options.out / "adapter_sheet.png", drawn, {
        "measured": measured_with("adapter-sheet", device), "asked": {**switches.describe(), "seed": options.seed},
    })
    return drawn


def one_picture(bench: Bench, switches: Switches) -> Image:
    """A reference, words, and the adapter at several strengths."""
    caption, described = METHODS[:2]
    columns: dict[str, list[Tensor]] = {
        "words alone": [case.states for case in bench.cases],
        "caption\nin true words": mixed(bench, caption),
        "described by the VL,\nas words": mixed(bench, described),
    }
    for strength in STRENGTHS:
        columns[f"picture adapter\nstrength {strength:g}"] = mixed(bench, _adapter(strength))
    columns["adapter, strength 1,\nanother picture (null)"] = mixed(bench, _adapter(1.0), ANOTHER)
    scenes, painted = bench.pairs.references.records(), []
    for states in columns.values():
        pictures, logits = _painted(bench, states[:ONE], switches)
        painted.append([
            sheet.Cell(picture, label, *sheet.verdict_of(logits, at, _wish(bench, at), scenes[at]))
            for at, (picture, label) in enumerate(zip(pictures, sheet.readings(logits), strict=True))
        ])
    rows = [
        (f"“{bench.cases[at].prompt}”", [_reference(bench, at), *(cells[at] for cells in painted)]) for at in range(ONE)
    ]
    return sheet.draw(["reference", *columns], rows, NOTE, "One picture")


def two_pictures(bench: Bench, switches: Switches) -> Image:
    """Two references, and what each way to combine them shows."""
    ways = {
        "average": Method("", "adapter", "two adapted", None, {"combining": "average"}),
        "append": Method("", "adapter", "two adapted", None, {"combining": "append"}),
        "parts, with the\naverage of their tails": Method("", "adapter", "average tail"),
        "parts": Method("", "adapter", "two adapted", None, {"combining": "parts"}),
        "caption of both\nin true words": Method("", "caption", "words of both"),
        "parts of two\nother pictures (null)": Method("", "adapter", "two adapted", None, {
            "combining": "parts", "shift": 3,
        }),
    }
    painted = []
    for method in ways.values():
        pictures, logits = _painted(bench, mixed(bench, method)[:TWO], switches)
        painted.append([
            sheet.Cell(picture, label, *_both(bench, logits, at))
            for at, (picture, label) in enumerate(zip(pictures, sheet.readings(logits), strict=True))
        ])
    rows = [
        (
            f"“{bench.cases[at].prompt}”",
            [_reference(bench, at), _reference(bench, at + 1), *(cells[at] for cells in painted)],
        )
        for at in range(TWO)
    ]
    return sheet.draw(["first picture", "second picture", *ways], rows, NOTE_TWO, "Two pictures")


def stacked(parts: Sequence[Image]) -> Image:
    """One below the other, at the left."""
    from PIL import Image

    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    for index, part in enumerate(parts):
        whole.paste(part, (0, sum(before.height for before in parts[:index])))
    return whole


def _adapter(strength: float) -> Method:
    return Method("picture adapter", "adapter", "adapter", None, {"strength": strength})


def _painted(bench: Bench, states: Sequence[Tensor], switches: Switches) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Pictures, row by row from seeds 0, 1 …, and what the judge says of them."""
    pictures = bench.chain.paint(states, range(len(states)), steps=switches.steps, guidance=switches.guidance)
    return as_image(pictures), bench.chain.read(pictures)


def _reference(bench: Bench, number: int) -> sheet.Cell:
    look = ", ".join(world.look_phrases(bench.pairs.references.records()[number]))
    return sheet.Cell(bench.images[number].cpu(), look)


def _wish(bench: Bench, number: int) -> sheet.Wish:
    return sheet.Wish(int(bench.pairs.shape[number]), int(bench.pairs.color[number]))


def _both(bench: Bench, logits: dict[str, Tensor], at: int) -> tuple[str, str]:
    """What of the prompt and of each of two looks is there, in words, and the colour they are written in."""
    scenes, wish = bench.pairs.references.records(), _wish(bench, at)
    shown = torch.tensor([int(logits[name][at].argmax()) for name in world.LOOK])
    first, second = (torch.tensor([getattr(scenes[at + step], name) for name in world.LOOK]) for step in (0, 1))
    kept = bool(logits["color"][at, wish.color] > 0), bool(logits["shape"][at, wish.shape] > 0)
    of = [int(((shown == own) & (own != other)).sum()) for own, other in ((first, second), (second, first))]
    text = f"prompt {sum(kept)} of 2 · first {of[0]} · second {of[1]}"
    return text, sheet.GOOD if all(kept) and all(of) else sheet.BAD if not all(kept) else sheet.PLAIN
