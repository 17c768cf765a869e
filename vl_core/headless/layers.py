"""``layers``: every hidden state of Qwen3-VL from one forward, measured against Z-Image's own text encoder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from ..reports.layer_report import SEEN_BY_DIT, SINKS, LayerReport, layer_report, mean_report, standard_errors
from ..reports.plots import THEMES, ThemeName, layer_figure
from ..states.files import write_whole
from ..states.layers import parse_layers
from ..states.statistics import ReferenceStatistics, calibrate, calibration_prompts
from ..zimage import checks
from ..zimage.files import load_picture, save_png
from ..zimage.pipeline import prompt_layout
from ..zimage.progress import progress
from ..zimage.text import batch_reader, open_text_encoder, text_reader
from .compare.study import read_prompts
from .folders import add_folder_arguments, folders_of, vision_blocks
from .vision import load_encoder, steps_of_encode

SUMMARY = "measure every layer of Qwen3-VL against Z-Image's own text encoder: a table, a report, plots"

TABLE, REPORT, PLOT = "layers.csv", "layers.txt", "layers.png"
ERRORS, READINGS = "errors.csv", "readings.csv"

Reports = dict[tuple[str, str], LayerReport]  # by picture and prompt


def add_arguments(parser) -> None:
    parser.add_argument(
        "-i", "--image", action="extend", nargs="+", required=True, metavar="FILE",
        help="pictures; every one is read beside every prompt, and the table is the mean over these readings",
    )
    parser.add_argument("-p", "--prompt", action="append", default=[], metavar="TEXT", help="once for each prompt")
    parser.add_argument("--prompts", metavar="FILE", help="more prompts, *.yaml or *.json: a list, or names and texts")
    parser.add_argument("-o", "--output", default="layers", metavar="FOLDER", help="where to write")
    parser.add_argument(
        "--layers", default="all", metavar="LIST", help="such as --layers=-1,-2,-4:-12:-2; all come from one forward"
    )
    parser.add_argument(
        "--mute", action="store_true", help="null control: the pictures keep their places but nothing of them is seen"
    )
    parser.add_argument(
        "--threshold", type=float, default=10.0, metavar="X", help="std ratio from which a dimension is an outlier"
    )
    parser.add_argument("--sinks", choices=list(SINKS), default="exclude", help="attention sinks, in the plot")
    parser.add_argument("--theme", choices=list(THEMES), default="light", help="of the plot")
    parser.add_argument("--image-tokens", type=int, default=1024, metavar="N", help="most tokens of a picture")
    add_folder_arguments(parser.add_argument_group("models"))
    checks.add_device_arguments(parser)


def run(arguments) -> None:
    checks.require_packages("transformers", "matplotlib", "PIL", "tqdm")
    folder = checks.output_folder(arguments.output, "--output")
    checks.in_range(arguments.threshold, "--threshold", 1)
    checks.in_range(arguments.image_tokens, "--image-tokens", 1)
    prompts = prompts_of(arguments)
    pictures = {path: load_picture(path, "--image", arguments.image_tokens) for path in arguments.image}
    zimage, vision = folders_of(arguments.model, arguments.vision)
    model, tokenizer, width, _ = checks.text_encoder_folder(zimage, "--model")
    blocks = vision_blocks(vision, width)
    layers = [index - blocks - 1 for index in parse_layers(arguments.layers, blocks)]
    reference = None
    if arguments.reference is not None:
        reference = ReferenceStatistics.load(checks.readable_file(arguments.reference, "--reference"))
        reference.check_width(width)
    device, dtype = checks.pick_device(arguments.device), checks.DTYPES[arguments.dtype]

    text_encoder, tokens = open_text_encoder(model, tokenizer, device, dtype)
    read = text_reader(text_encoder, tokens)
    if reference is None:
        own = calibration_prompts()
        with progress("Measuring the text encoder", len(own)) as move:
            reference = calibrate(read, own, progress=move, encode_many=batch_reader(text_encoder, tokens))
    encoder = load_encoder(vision, device, dtype, max(layers))
    found: Reports = {}
    steps = steps_of_encode(encoder, 1, max(layers)) + len(layers)
    with progress("Reading", len(pictures) * len(prompts) * steps) as move:
        for path, picture in pictures.items():
            for prompt in prompts:
                seen = encoder.encode(
                    [picture], prompt, layers, budget=arguments.image_tokens, mute=arguments.mute, check=move
                )
                found[Path(path).name, prompt] = layer_report(
                    seen, reference, read(prompt), prompt_layout(tokens, prompt), threshold=arguments.threshold,
                    progress=move,
                )
    title = f"{encoder.name}, " + ("pictures muted" if arguments.mute else "pictures seen")
    for path in write(folder, title, found, arguments.sinks, arguments.theme):
        print(path)
    print(mean_report(list(found.values())).summary())


def prompts_of(arguments) -> list[str]:
    """Those of ``--prompt`` and ``--prompts``, each once.

    Raises:
        FileNotFoundError, ValueError: if there is none, or the file cannot be read.
    """
    prompts = [*arguments.prompt, *(read_prompts(arguments.prompts).values() if arguments.prompts else ())]
    if not prompts:
        raise ValueError("--prompt: expected at least one, or a file with --prompts, got none.")
    return list(dict.fromkeys(prompts))


def write(folder: Path, title: str, found: Reports, sinks: str, theme: ThemeName) -> list[Path]:
    """Table, report and plot of the mean, and beside them all single readings if there are several."""
    from PIL import Image

    report = mean_report(list(found.values()))
    many = len(found) > 1
    head = f"{title}\n" + "\n".join(f"{picture}: {prompt}" for picture, prompt in found)
    texts = {
        TABLE: report.csv(),
        REPORT: "\n\n".join([head, report.summary(), *[agreement(report, found)] * many, report.table()]) + "\n",
        **({ERRORS: standard_errors(list(found.values())).csv(), READINGS: readings_csv(found)} if many else {}),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    named = f"{title}, mean of {len(found)} readings" if many else title
    figure = Image.fromarray(layer_figure(report, named, sinks=sinks, theme=theme))
    save_png(folder / PLOT, figure, {"readings": [list(pair) for pair in found]})
    return [folder / name for name in (*texts, PLOT)]


def agreement(report: LayerReport, found: Reports) -> str:
    """In how many of the single readings the best layer of the mean is best too: a line per group of tokens."""
    lines = [f"So many of the {len(found)} readings have the same best layer:"]
    for group in report.groups:
        told = []
        for metric in report.metrics():
            best = report.best(metric, group, *SEEN_BY_DIT)
            if len(best) == 1:
                same = sum(best[0] in one.best(metric, group, *SEEN_BY_DIT) for one in found.values())
                told.append(f"{metric.column} {best[0]} in {same}")
        lines.append(f"{group} tokens: " + "; ".join(told))
    return "\n".join(lines)


def readings_csv(found: Mapping[tuple[str, str], LayerReport]) -> str:
    """All tables below one another, picture and prompt in front."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    for number, (pair, report) in enumerate(found.items()):
        head, *rows = csv.reader(io.StringIO(report.csv()))
        writer.writerows([["picture", "prompt", *head]] if number == 0 else [])
        writer.writerows([[*pair, *row] for row in rows])
    return written.getvalue()
