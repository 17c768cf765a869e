"""``demo``: the whole chain on tiny untrained models and a bundled photograph, without files or network."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from ..metrics import inspect
from ..recipes import condition
from ..states import LAYOUT_KEY, save_conditioning
from ..statistics import ENCODER_LAYER, calibrate
from . import checks
from .calibrate import text_reader
from .picture import load_picture, save_png
from .progress import progress
from .zimage import encode_text, paint

if TYPE_CHECKING:
    from PIL.Image import Image

SUMMARY = "run the whole chain in seconds on tiny untrained models and a bundled photograph; needs no downloads"

PHOTOGRAPH = "chelsea.jpg"
PROMPT = "a cat in a red hat, by the light of a lamp"
MODE, STRENGTH = "blend aligned", 0.7
SIDE, STEPS, SEED = 128, 4, 1
UNTRAINED = "The models are tiny and untrained (random weights): they paint noise. This only shows that the chain runs."


def add_arguments(parser) -> None:
    parser.add_argument("--output", "-o", default="demo_output", metavar="FOLDER", help="where to write")


def run(arguments) -> None:
    checks.require_packages("accelerate", "diffusers", "transformers", "tokenizers", "matplotlib", "PIL", "tqdm")
    folder = checks.output_folder(arguments.output, "--output")
    paths = {name: folder / name for name in ("demo.png", "statistics.png", "conditioning.safetensors")}
    for path in paths.values():
        checks.output_file(str(path), "--output", path.suffix)

    from PIL import Image

    from ..plots import inspection_figure
    from . import tiny

    print(UNTRAINED)
    with progress("Demo", total=3 + 3 * STEPS) as move:
        pipeline, encoder = tiny.build()
        move()
        with resources.as_file(resources.files(__package__) / "assets" / PHOTOGRAPH) as file:
            photograph = load_picture(str(file), "photograph", budget=1024)
        seen = encoder.encode([photograph], PROMPT, (ENCODER_LAYER,))
        words, layout = encode_text(pipeline, PROMPT, "tiny")
        move()
        reference = calibrate(text_reader(pipeline.text_encoder, pipeline.tokenizer), encoder="tiny")
        move()
        mixed, mixed_layout, report = condition(words, layout, seen, ENCODER_LAYER, MODE, STRENGTH)
        unmixed, _, _ = condition(words, layout, seen, ENCODER_LAYER, MODE, 0.0)
        settings = {"steps": STEPS, "guidance": 0.0, "width": SIDE, "height": SIDE, "seed": SEED}
        plain, steered, control = (
            paint(pipeline, states, **settings, progress=move) for states in (words, mixed, unmixed)
        )

    moved, still = mean_difference(plain, steered), mean_difference(plain, control)
    note = f"Mean difference of the two paintings: {moved:.2f} of 255. Null control, the same at strength 0: {still:g}."
    panels = [
        (Image.fromarray(photograph.numpy()), "reference picture\nwhat Qwen3-VL sees"),
        (plain, f"words only\nseed {SEED}"),
        (steered, f"words and picture\n{MODE}, strength {STRENGTH:g}, seed {SEED}"),
    ]
    notes = {"note": UNTRAINED, "prompt": PROMPT, "mode": MODE, "strength": STRENGTH, **settings}
    save_png(paths["demo.png"], draw_sheet(panels, f"“{PROMPT}”", f"{UNTRAINED}\n{note}"), notes)
    states, seen_layout = seen.at(ENCODER_LAYER)
    figure = inspection_figure(inspect(states, seen_layout, reference), "What the untrained Qwen3-VL made of it")
    save_png(paths["statistics.png"], Image.fromarray(figure), notes)
    save_conditioning(paths["conditioning.safetensors"], [(mixed[None].float(), {LAYOUT_KEY: mixed_layout})])

    print(report)
    print(note)
    for path in paths.values():
        print(path)


def mean_difference(a: Image, b: Image) -> float:
    """Mean absolute difference of two pictures of one size, in steps of 255."""
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).mean())


def draw_sheet(panels: list[tuple[Image, str]], title: str, footer: str) -> Image:
    """Pictures side by side with a label over each, a title above and a note below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(4 * len(panels), 5.7), dpi=100, layout="constrained", facecolor="white")
    for axes, (picture, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(np.asarray(picture), interpolation="nearest")
        axes.set_title(label, fontsize=13)
        axes.axis("off")
    figure.suptitle(title, fontsize=15)
    figure.supxlabel(footer, fontsize=11)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
