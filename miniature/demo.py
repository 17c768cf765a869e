"""``demo``: the whole chain on the trained miniature, whose judge says what came through; no downloads."""

from __future__ import annotations

from importlib import resources

from PIL import Image

from vl_core.reports.inspection import inspect
from vl_core.reports.plots import inspection_figure
from vl_core.states.statistics import calibrate
from vl_core.states.vl_states import LAYOUT_KEY, save_conditioning
from vl_core.steering.condition import condition
from vl_core.zimage import checks
from vl_core.zimage.files import load_picture, save_png
from vl_core.zimage.progress import progress

from . import world
from .measure import sheet
from .measure.chain import Chain
from .train.assemble import MODELS

PHOTOGRAPH, PHOTOGRAPH_PROMPT = "chelsea.jpg", (6, 4)  # a cat, and the shape and colour asked for beside it
WORLDS, SEED = 2, 11
MODE, LAYER, STRENGTH = "aligned blend", -8, 0.7
NOTE = (
    "A trained miniature of the chain, a thousand times smaller than the real one: it knows ten colours, eight shapes, "
    "eight styles and five moods. It shows how the methods work, not how well they do on the real models."
)


def run(arguments) -> None:
    checks.require_packages("accelerate", "diffusers", "transformers", "tokenizers", "matplotlib", "PIL", "tqdm")
    folder = checks.output_folder(arguments.output, "--output")
    paths = {name: folder / name for name in ("demo.png", "statistics.png", "conditioning.safetensors")}
    for path in paths.values():
        checks.output_file(str(path), "--output", path.suffix)

    print(NOTE)
    with progress("Demo", total=WORLDS + 6) as move:
        chain = Chain.load(MODELS)
        move()
        references, prompts, wishes = sheet.from_the_world(WORLDS, SEED)
        with resources.as_file(resources.files(__package__) / "assets" / PHOTOGRAPH) as file:
            photograph = load_picture(str(file), "photograph", budget=1024)
        for kept, new in zip((references, prompts, wishes), sheet.without_a_name(chain), strict=True):
            kept.append(new)
        references.append(sheet.Reference(photograph))
        wishes.append(sheet.Wish(*PHOTOGRAPH_PROMPT))
        prompts.append(world.with_article(f"{world.COLORS[wishes[-1].color]} {world.SHAPES[wishes[-1].shape]}"))
        columns = (sheet.PUBLISHED, *sheet.OURS, sheet.FITTED, sheet.LEARNED)
        drawn = sheet.sheet(chain, references, prompts, wishes, columns, seed=SEED, progress=move)
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
