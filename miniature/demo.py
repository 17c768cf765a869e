"""``demo``: the whole chain on the trained miniature, whose judge says what came through; no downloads."""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec

from ..metrics import inspect
from ..recipes import condition
from ..states import LAYOUT_KEY, save_conditioning
from ..statistics import calibrate
from . import checks
from .picture import load_picture, save_png
from .progress import progress

SUMMARY = "paint with the trained miniature of the whole chain and see what came through; needs no downloads"

PHOTOGRAPH, PHOTOGRAPH_PROMPT = "chelsea.jpg", (6, 4)  # a cat, and the shape and colour asked for beside it
WORLDS, SEED = 3, 11
MODE, LAYER, STRENGTH = "blend aligned", -8, 0.7
NOTE = (
    "A trained miniature of the chain, a thousand times smaller than the real one: it knows ten colours, eight shapes, "
    "eight styles and five moods. It shows how the methods work, not how well they do on the real models."
)


def add_arguments(parser) -> None:
    parser.add_argument("--output", "-o", default="demo_output", metavar="FOLDER", help="where to write")


def run(arguments) -> None:
    checks.require_packages("accelerate", "diffusers", "transformers", "tokenizers", "matplotlib", "PIL", "tqdm")
    folder = checks.output_folder(arguments.output, "--output")
    paths = {name: folder / name for name in ("demo.png", "statistics.png", "conditioning.safetensors")}
    for path in paths.values():
        checks.output_file(str(path), "--output", path.suffix)
    if find_spec("miniature") is None:
        raise ValueError(
            "The demo needs the folder miniature/ of the repository. Run `pip install -e .` in a clone of it."
        )

    from PIL import Image

    from miniature import sheet, world
    from miniature.assemble import MODELS
    from miniature.chain import Chain

    from ..plots import inspection_figure

    print(NOTE)
    with progress("Demo", total=WORLDS + 4) as move:
        chain = Chain.load(MODELS)
        move()
        references, prompts, wishes = sheet.from_the_world(WORLDS, SEED)
        with resources.as_file(resources.files(__package__) / "assets" / PHOTOGRAPH) as file:
            photograph = load_picture(str(file), "photograph", budget=1024)
        references.append(sheet.Reference(photograph))
        wishes.append(sheet.Wish(*PHOTOGRAPH_PROMPT))
        prompts.append(world.with_article(f"{world.COLORS[wishes[-1].color]} {world.SHAPES[wishes[-1].shape]}"))
        drawn = sheet.sheet(
            chain, references, prompts, wishes, (sheet.PUBLISHED, *sheet.OURS, sheet.FITTED), seed=SEED, progress=move
        )
        reference = calibrate(lambda text: chain.words(text)[0], sheet.captions(64), encoder="miniature")
        move()
        words, layout = chain.words(prompts[0])
        seen = chain.look(references[0].picture, prompts[0])
        mixed, mixed_layout, report = condition(words, layout, seen, LAYER, MODE, STRENGTH)
        figure = inspection_figure(inspect(*seen.at(LAYER), reference), f"Qwen3-VL's states at layer {LAYER}")
        move()

    notes = {"note": NOTE, "prompts": prompts, "seed": SEED}
    save_png(paths["demo.png"], drawn, notes)
    save_png(paths["statistics.png"], Image.fromarray(figure), notes)
    save_conditioning(paths["conditioning.safetensors"], [(mixed[None].float(), {LAYOUT_KEY: mixed_layout})])
    print(f"conditioning.safetensors holds the first row's: {report}")
    for path in paths.values():
        print(path)
