"""``evaluate``: how much of a picture arrives with these weights, by which way, layer and strength; one command."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...adapters.picture_adapter import PictureAdapter
from ...looks.look import Look
from ...pictures import fit_size
from ...reports.judge import Sentences
from ...states.files import parse_json
from ...states.statistics import ReferenceStatistics
from ...steering.way import RESEARCH, Given
from ...zimage import checks
from ...zimage.files import load_picture
from ...zimage.host import Question
from ...zimage.pipeline import ZImageFolder, load_tokenizer, prompt_layout
from ..compare.command import models_of
from ..compare.study import DIGITS, read_prompts
from ..embedded import embedded
from ..folders import DEMO, add_folder_arguments, vision_blocks
from .arms import NOTE, Arm, note_compared, ways_tried
from .arms import together as joined
from .collect import check_files
from .drawings import builtin_pictures
from .evidence import weights_id
from .ground import KEPT, Fleet, Ground
from .kept import Kept, write_whole
from .looks import WAY
from .outcome import scores, write_results
from .plan import Prompt, Reference, Sheet, builtin_prompts, trials_of
from .runner import Evaluation
from .turns import Loaders, Turns
from .weights import CACHE, hashes_of
from .work import measuring

SUMMARY = "find out how much of a picture arrives with your weights, and by which way: a page, a small file to share"

ASKED = "asked.json"
NOISE_LOOK, NONE = "noise.safetensors", "none"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GB = 10**9
# What each picture of 1024² takes beside the weights while it is painted, twice that with guidance, and what is left
# free. One is decoded at a time, for which both are enough. Of a whole card others, such as a desktop, have some, too.
PER_PICTURE, SPARE, OTHERS = 0.6 * GB, 1.0 * GB, 1.0 * GB
MOST_TOGETHER = 8


def add_arguments(parser) -> None:
    parser.add_argument(
        "-i", "--image", action="extend", nargs="+", default=[], metavar="PATH",
        help="reference pictures, or a folder of them; photographs of scikit-image and drawings if none is given",
    )
    parser.add_argument("-p", "--prompt", action="append", default=[], metavar="TEXT", help="once for each prompt")
    parser.add_argument(
        "--prompts", metavar="FILE",
        help="more prompts, *.yaml or *.json; without any, ten that come with this pack, in several languages",
    )
    parser.add_argument("-o", "--output", default="evaluation", metavar="FOLDER", help="what is there is gone on with")
    parser.add_argument("--minutes", type=float, default=480.0, metavar="N", help="what it may take")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="most seeds of a picture and a prompt")
    parser.add_argument(
        "--ways", nargs="+", default=[], metavar="WAY",
        help=f"only these ways; {NOTE} stands for the research note's comparisons",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be tried, and end")
    parser.add_argument(
        "--check", nargs="+", metavar="FILE", help="say whether evidence was changed or mixes weights, and end"
    )
    parser.add_argument(
        "--with-pictures", action="store_true",
        help="put small pictures, your prompts and what was said of your pictures into the evidence too",
    )
    parser.add_argument("--recipes", metavar="FOLDER", help="where the best settings are put as recipes besides")
    models = parser.add_argument_group("models")
    add_folder_arguments(models)
    models.add_argument("--adapter", metavar="FILE", help="a picture adapter, to be tried too")
    models.add_argument(
        "--looks", metavar="FOLDER",
        help=f"learned looks, each named as its picture, and {NOISE_LOOK} learned on noise as their null; without it "
        f"they are learned here where there is time for it, {NONE}: not at all",
    )
    models.add_argument(
        "--score", metavar="FOLDER", help="a CLIP or DINO on disk, asked beside Qwen3-VL how like its reference each is"
    )
    painting = parser.add_argument_group("painting")
    painting.add_argument("--steps", type=int, help="9 suits Z-Image-Turbo, 28 to 50 Z-Image")
    painting.add_argument("--guidance", type=float, help="0 suits Z-Image-Turbo, 3 to 5 Z-Image")
    painting.add_argument("--negative", default="", metavar="TEXT", help="what to stay away from; needs --guidance")
    painting.add_argument("--width", type=int, help="in pixels")
    painting.add_argument("--height", type=int, help="in pixels")
    painting.add_argument("--image-tokens", type=int, default=1024, metavar="N", help="most tokens of a picture")
    painting.add_argument("--batch", type=int, default=0, metavar="N", help="pictures painted together; 0 by memory")
    painting.add_argument("--vram", type=float, default=0.0, metavar="GB", help="memory that may be used; 0 is all")
    cluster = parser.add_argument_group("more than one machine")
    cluster.add_argument("--ray", metavar="ADDRESS", help="paint on a Ray cluster; local, auto, or its address")
    cluster.add_argument("--workers", type=int, default=0, metavar="N", help="painters; 0 is one per GPU")
    checks.add_device_arguments(parser)
    parser.set_defaults(dtype=None)


def run(arguments: argparse.Namespace) -> None:
    if arguments.check:
        check_files(arguments.check)
        return
    checks.require_packages("accelerate", "diffusers", "transformers", "PIL", "tqdm")
    evaluation = evaluation_of(arguments)
    many = len({arm.group for arm in evaluation.arms})
    print(
        f"{len(evaluation.arms)} settings in {many} groups, {len(evaluation.sheet.references)} pictures × "
        f"{len(evaluation.sheet.prompts)} prompts × {arguments.seeds} seeds, {evaluation.batch} painted together"
    )
    if arguments.dry_run:
        for arm in evaluation.arms:
            print(f"  {arm.group}: {arm.label}")
        return
    try:
        evaluation.run(scores)
        for path in write_results(evaluation, arguments):
            print(path)
    finally:
        if evaluation.pool is not None:
            evaluation.pool.shutdown(cancel_futures=True)


def evaluation_of(arguments: argparse.Namespace) -> Evaluation:
    """What the options ask for, checked, before any model is loaded.

    Raises:
        FileNotFoundError, ValueError: naming the option, what was expected and what was got.
    """
    demo = arguments.model == DEMO
    folder = checks.output_folder(arguments.output, "--output")
    for option, value, low in (("--workers", arguments.workers, 0), ("--batch", arguments.batch, 0),
                               ("--seeds", arguments.seeds, 1), ("--minutes", arguments.minutes, 0.1)):
        checks.in_range(value, option, low)
    arguments.dtype = arguments.dtype or ("float32" if demo else "bfloat16")
    models = models_of(arguments)
    zimage = ZImageFolder.check(models.zimage, "--model")
    zimage.check_size(models.width, models.height)
    blocks = vision_blocks(models.vision, zimage.width)
    shown, references = pictures_of(arguments, demo)
    prompts = prompts_of(arguments, demo)
    tokenizer = load_tokenizer(zimage.tokenizer)
    for prompt in prompts:
        zimage.check_caption(len(prompt_layout(tokenizer, prompt.text)))
    folder.mkdir(parents=True, exist_ok=True)
    hashes = hashes_of(
        {"zimage": Path(models.zimage), "vision": Path(models.vision)}
        | ({"adapter": Path(models.adapter)} if models.adapter else {}), folder / CACHE,
    )
    weights = weights_id(hashes)
    given = given_of(arguments, models.adapter, references)
    form = embedded("form")() if demo else Sentences()
    sheet = Sheet(replace(models, layer=-1), tuple(references), tuple(prompts), weights)
    coming = () if arguments.looks else (WAY,)
    arms = chosen(joined(ways_tried(given[0], blocks, coming), note_compared(blocks)), arguments.ways)
    scored_by = score_of(arguments.score, folder) if arguments.score else ""
    begun(folder, {
        "weights": weights, "models": models.identity(), "pictures": [one.key for one in references],
        "prompts": [one.text for one in prompts], "seeds": arguments.seeds, "arms": [arm.id for arm in arms],
        "judge": [form.describe(part) for part in form.parts]
        + [query.key for prompt in prompts for thing in prompt.things for query in form.thing(thing)],
        **({"score": scored_by} if scored_by else {}),
    })
    loaders = Loaders(sheet.models, arguments.score or "")
    kept = Kept(
        folder / KEPT, weights, tokenizer,
        statistics=ReferenceStatistics.load(models.reference) if models.reference else None,
        questions={take: Question(ask, form) for take, ask, form in models.questions},
    )
    evaluation = Evaluation(
        folder, sheet, arms, trials_of(len(references), len(prompts), arguments.seeds), shown, form,
        given, kept, Turns(loaders, keep=loaders.small()),
        arguments.minutes, arguments.batch or batch_for(loaders, arguments.vram),
        Fleet(arguments.ray or "", arguments.workers), None if arguments.dry_run else measuring(loaders.device),
        embedded("look questions") if demo else Ground.look_questions,
    )
    evaluation.hashes, evaluation.scored_by = hashes, scored_by
    return evaluation


def score_of(folder: str, output: Path) -> str:
    """A second judge's name and what its files are.

    Raises:
        FileNotFoundError: if it has no config.
    """
    path = Path(folder)
    checks.readable_file(os.path.join(folder, "config.json"), "--score")
    return f"{path.resolve().name} {weights_id(hashes_of({'score': path}, output / CACHE))}"


def chosen(arms: Sequence[Arm], names: Sequence[str]) -> list[Arm]:
    """The arms of some ways, of all if none is named.

    Raises:
        ValueError: for a way that does not compete.
    """
    groups = list(dict.fromkeys(arm.group for arm in arms))
    wanted = [name if name in groups else f"{RESEARCH}{name}" for name in names]
    for name, given in zip(wanted, names, strict=True):
        if name not in groups:
            raise ValueError(f"--ways: expected some of {', '.join(groups)}, got {given!r}.")
    return [arm for arm in arms if not names or arm.group in wanted]


def begun(folder: Path, asked: dict) -> None:
    """Refuse to go on in a folder that holds another evaluation.

    Raises:
        ValueError: naming what differs.
    """
    path = folder / ASKED
    if not path.is_file():
        write_whole(path, json.dumps(asked, ensure_ascii=False, indent=1) + "\n")
        return
    before = parse_json(path.read_text(encoding="utf-8"), ASKED)
    for name, value in asked.items():
        if json.loads(json.dumps(value)) != before.get(name):
            raise ValueError(
                f"--output: {folder} holds an evaluation with other {name}. Give the same options, or another folder."
            )


def pictures_of(arguments: argparse.Namespace, demo: bool) -> tuple[list[Tensor], list[Reference]]:
    """The reference pictures, uint8 ``(H, W, 3)``, and what they are called.

    Raises:
        ValueError: for fewer than two, since another one is every picture's null.
    """
    builtin = not arguments.image
    if builtin:
        named = embedded("ground")()[0] if demo else builtin_pictures()
    else:
        files = [file for path in arguments.image for file in _files_at(path)]
        named = {file.stem: load_picture(str(file), "--image", arguments.image_tokens) for file in files}
    found: dict[str, tuple[Tensor, Reference]] = {}
    for name, picture in named.items():
        height, width = picture.shape[:2]
        fit_size(height, width, arguments.image_tokens, name)
        key = hashlib.sha256(picture.numpy().tobytes() + str(tuple(picture.shape)).encode()).hexdigest()[:DIGITS]
        found.setdefault(key, (picture, Reference(name, key, builtin)))
    if len(found) < 2:
        raise ValueError(f"--image: expected two different pictures or more, got {len(found)}: another is the null.")
    return [picture for picture, _ in found.values()], [reference for _, reference in found.values()]


def _files_at(path: str) -> list[Path]:
    place = Path(path)
    if place.is_dir():
        return sorted(file for file in place.iterdir() if file.suffix.lower() in PICTURES)
    return [checks.readable_file(path, "--image")]


def prompts_of(arguments: argparse.Namespace, demo: bool) -> list[Prompt]:
    """The prompts that are given, each of which is itself what is asked for; else the built-in ones."""
    texts = list(dict.fromkeys(arguments.prompt))
    if arguments.prompts:
        texts += [text for text in read_prompts(arguments.prompts).values() if text not in texts]
    if texts:
        return [Prompt(f"prompt {number}", text, (text,)) for number, text in enumerate(texts, 1)]
    if demo:
        return [Prompt(text, text, (thing,), "en", True) for text, thing in embedded("ground")()[1]]
    return builtin_prompts()


def given_of(arguments: argparse.Namespace, adapter: str, references: Sequence[Reference]) -> list[Given]:
    """What ways may use of each picture, and last what stands in for it where that is to be noise.

    Raises:
        FileNotFoundError: if a picture has no look in the folder of looks, or there is none that was learned on noise.
    """
    fitted = PictureAdapter.load(adapter) if adapter else None
    if arguments.looks in (None, NONE):
        return [Given(adapter=fitted)] * (len(references) + 1)
    names = [f"{one.name}.safetensors" for one in references] + [NOISE_LOOK]
    files = [checks.readable_file(os.path.join(arguments.looks, name), "--looks") for name in names]
    return [Given(adapter=fitted, look=Look.load(file)) for file in files]


def batch_for(loaders: Loaders, vram: float) -> int:
    """How many pictures are painted together: as many as the GPU has room for beside the weights, 8 at most."""
    if loaders.device.type != "cuda":
        return 1
    total = torch.cuda.get_device_properties(loaders.device).total_memory - OTHERS
    limit = min(total, vram * GB) if vram else total
    folder, models = Path(loaders.models.zimage), loaders.models
    weights = sum(
        file.stat().st_size for part in ("transformer", "vae") for file in (folder / part).glob("*.safetensors")
    )
    return together(limit - weights, models.width * models.height, guided=models.guidance > 0)


def together(room: float, pixels: int, *, guided: bool = False) -> int:
    """Pictures for which so many bytes beside the weights are enough."""
    share = (1 + guided) * pixels / (1024 * 1024)
    return int(min(MOST_TOGETHER, max(1, (room - SPARE) // (PER_PICTURE * share))))
