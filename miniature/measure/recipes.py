"""A sheet and a table of the shipped recipes: what each does to a few pictures, and to many in figures.

The bench measures (:mod:`bench`). Transfer: background, style and mood of the reference, 0 = what
words alone give, 1 = what a caption of the look gives. The null control is the same recipe on another pair's picture;
``shows`` is transfer less the control's, pair by pair. The sheet's pairs are the first ones, not chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vl_core.zimage.files import save_png

from .. import world
from ..train import assemble
from ..train.training import Options, begin, measured_with, write_json
from . import sheet
from .bench import TOY, Painting, Switches, mixed, prepare, row_of, workers
from .chain import Chain, as_image
from .frontier import figure
from .methods import METHODS, TEXT_ONLY, Bench, Method

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 2  # pairs on the sheet, each with its null control in the row below
ANOTHER = "another picture"
SURE = 2.0  # standard errors from 0
COLOURS = 256  # of the file, which is a quarter of the size so and looks the same
NOTE = (
    "Strength 1, all pictures of a row from one seed. Under each: what the judge reads. Above it: the prompt's colour "
    "and shape, and the reference's background, style and mood, as far as they are there; in the rows of another "
    "picture still those of the reference above."
)


def run(options: Options, switches: Switches | None = None) -> dict[str, Any]:
    """Measure and draw; ``recipes.png`` goes to the run's folder, ``recipes.json`` beside the models."""
    switches = switches or (TOY if options.toy else Switches())
    device = begin(options)
    folder = assemble.models_folder(options)
    bench = prepare(Chain.load(folder, device), switches, options.seed)
    pool = workers()
    painting = Painting(bench, tuple(range(switches.seeds)), switches.steps, switches.guidance, pool)
    report = {
        "measured": measured_with("recipes", device),
        "asked": {**switches.describe(), "seed": options.seed, "weights": assemble.weight_bytes(folder)},
        **measure(painting),
    }
    if pool is not None:
        pool.shutdown()
    write_json(options.report("recipes.json"), report)
    print("\n".join(table(report["recipes"])))
    drawn = draw(painting, report["recipes"]).quantize(COLOURS)
    save_png(options.out / "recipes.png", drawn, {name: report[name] for name in ("measured", "asked")})
    return report


def recipe_methods() -> list[Method]:
    """The bench's row of each shipped recipe, at strength 1."""
    return [method for method in METHODS if method.way == "recipe file"]


def measure(painting: Painting) -> dict[str, Any]:
    """``words``: adherence of words alone; ``recipes``: an entry each, with its control and what it shows."""
    text, caption = Method(TEXT_ONLY, "none", "words"), METHODS[0]
    floor, ceiling = painting.hits([case.states for case in painting.bench.cases]), painting.measure(caption)
    entries = []
    for method in recipe_methods():
        right, wrong = painting.measure(method), painting.measure(method, ANOTHER)
        # The difference to the control, set on words alone, is read by the same formula and with its own error.
        beyond = {name: right[name] - wrong[name] + floor[name] for name in floor}
        found, control, shown = (row_of(method, hits, floor, ceiling) for hits in (right, wrong, beyond))
        entries.append({
            "name": method.setting["recipe"], "transfer": found["transfer"], "stderr": found["stderr"],
            "transfer_by": found["transfer_by"], "control": control["transfer"], "control_stderr": control["stderr"],
            "shows": shown["transfer"], "shows_stderr": shown["stderr"], "adherence": found["adherence"],
            "adherence_shape": found["adherence_shape"], "leak": found["leak"],
        })
        print(f"recipes: {entries[-1]['name']}", flush=True)
    words = row_of(text, floor, floor, ceiling)
    return {"words": {name: words[name] for name in ("adherence", "adherence_shape", "leak")}, "recipes": entries}


def is_shown(entry: dict[str, Any]) -> bool:
    """Whether the recipe's own picture does more than another one, by two standard errors either way."""
    return entry["shows"] is not None and bool(entry["shows_stderr"]) and (
        abs(entry["shows"]) > SURE * entry["shows_stderr"]
    )


def table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        "| recipe | transfer | another picture | difference | shows | adherence | reference's object |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| `{entry['name']}` | {figure(entry['transfer'], entry['stderr'])} | "
            f"{figure(entry['control'], entry['control_stderr'])} | "
            f"{figure(entry['shows'], entry['shows_stderr'])} | {'yes' if is_shown(entry) else 'nothing'} | "
            f"{figure(entry['adherence'])} | {figure(entry['leak'])} |"
            for entry in entries
        ),
    ]


# ------------------------------------------------------------------------------------------------------------- sheet


def draw(painting: Painting, entries: Sequence[dict[str, Any]]) -> Image:
    """Two rows per pair: its picture, words only and every recipe; then the same with another pair's picture."""
    bench = painting.bench
    shown = {control: _columns(painting, control) for control in ("", ANOTHER)}
    rows = []
    for index, case in enumerate(bench.cases[:SHOWN]):
        for control, columns in shown.items():
            number = (case.wrong if control else case.right).number
            look = ", ".join(world.look_phrases(bench.pairs.references.records()[number]))
            words = f"“{case.prompt}”" + (f"\n{control}" if control else "")
            rows.append((words, [sheet.Cell(bench.images[number].cpu(), look), *(cells[index] for cells in columns)]))
    return sheet.draw(["picture", "words only", *map(_title, entries)], rows, NOTE)


def _columns(painting: Painting, control: str) -> list[list[sheet.Cell]]:
    """Words only and each recipe, painted for the pairs that are shown."""
    bench, cases = painting.bench, painting.bench.cases[:SHOWN]
    words = [case.states for case in cases]
    found = [(words, (0.0, 1.0)), *((mixed(bench, way, control)[:SHOWN], way.act) for way in recipe_methods())]
    scenes, columns = bench.pairs.references.records(), []
    for states, act in found:
        pictures = bench.chain.paint(
            states, range(len(states)), steps=painting.steps, guidance=painting.guidance, outside=words, act=act
        )
        logits = bench.chain.read(pictures)
        columns.append([
            sheet.Cell(picture, label, *sheet.verdict_of(logits, at, _wish(bench, at), scenes[at]))
            for at, (picture, label) in enumerate(zip(as_image(pictures), sheet.readings(logits), strict=True))
        ])
    return columns


def _wish(bench: Bench, index: int) -> sheet.Wish:
    return sheet.Wish(int(bench.pairs.shape[index]), int(bench.pairs.color[index]))


def _title(entry: dict[str, Any]) -> str:
    """The recipe, and in figures what it shows over all pairs."""
    return f"{entry['name']}\ntransfer {figure(entry['transfer'], entry['stderr'])}\nnull control " + figure(
        entry["control"], entry["control_stderr"]
    )
