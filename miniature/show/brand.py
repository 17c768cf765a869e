"""Stage ``brand``: the icon and the banner that the Registry shows, painted by the miniature itself.

    python -m miniature brand --out docs/brand --models miniature/models

The banner shows three references and one prompt painted in the look of each, by the way *words*: the first scenes of a
draw, not chosen among paintings.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from vl_core.zimage.files import save_png

from .. import world
from ..measure.chain import Chain, as_image, look_of
from ..train import assemble
from ..train.training import Options, begin, measured_with

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

ICON, BANNER = 400, (1260, 540)  # the Registry takes icons of up to 400 pixels, and banners of 21:9
FINER = 4  # times, drawn larger and brought down
NIGHT, PAPER, FAINT = (24, 22, 38), (244, 242, 250), (168, 162, 190)
STRIPES, STAR = ((104, 58, 168), (132, 84, 200)), (226, 54, 62)
PROMPT, SEED = "a red star", 3
LOOKS = (("purple", "striped"), ("green", "checkered"), ("blue", "dotted"))
COLOURS = 256


def run(options: Options) -> None:
    """Write ``icon.png`` and ``banner.png``."""
    device = begin(options)
    chain = Chain.load(assemble.models_folder(options), device)
    notes = {"measured": measured_with("brand", device), "prompt": PROMPT, "seed": SEED}
    save_png(options.out / "icon.png", icon().quantize(COLOURS), notes)
    save_png(options.out / "banner.png", banner(chain).quantize(COLOURS), notes)


def icon() -> Image:
    """A star in the look of a striped picture."""
    from PIL import Image, ImageDraw

    side = ICON * FINER
    drawn = Image.new("RGB", (side, side), STRIPES[0])
    brush = ImageDraw.Draw(drawn)
    width = side // 9
    for start in range(-side, side, 2 * width):
        brush.polygon([(start, 0), (start + width, 0), (start + width + side, side), (start + side, side)], STRIPES[1])
    for size, colour in ((0.40, PAPER), (0.34, STAR)):
        brush.polygon(_star(side / 2, side * 0.53, side * size), colour)
    return _rounded(drawn, side // 6).resize((ICON, ICON), Image.Resampling.LANCZOS)


def banner(chain: Chain) -> Image:
    """The pack's name, and what it does."""
    from PIL import Image, ImageDraw

    references, painted = paint(chain)
    drawn = Image.new("RGB", BANNER, NIGHT)
    brush = ImageDraw.Draw(drawn)
    brush.text((56, 150), "zimage-vl", PAPER, _font(72, "bold"))
    brush.text((58, 250), "Reference pictures for Z-Image,", FAINT, _font(28))
    brush.text((58, 288), "seen by Qwen3-VL.", FAINT, _font(28))
    brush.text((58, 364), f"“{PROMPT}”", PAPER, _font(28))
    brush.text((58, 466), "painted by the miniature that comes with it", FAINT, _font(18))
    side, left, gap = 190, 604, 16
    for column, (above, below) in enumerate(zip(references, painted, strict=True)):
        x = left + column * (side + gap)
        for picture, y in ((above, 48), (below, 302)):
            tile = picture.resize((side, side), Image.Resampling.BICUBIC)
            drawn.paste(tile, (x, y), _corners(side, 18))
        middle = x + side // 2
        brush.polygon([(middle - 12, 258), (middle + 12, 258), (middle, 280)], FAINT)
    return drawn


def paint(chain: Chain) -> tuple[list[Image], list[Image]]:
    """References, and the prompt painted with what the VL says of each one's look."""
    generator = torch.Generator().manual_seed(SEED)
    scenes = world.sample_scenes(4096, generator, two_shapes=0.0)
    records = scenes.records()
    wanted = [
        next(
            index for index, scene in enumerate(records)
            if (world.COLORS[scene.background], world.STYLES[scene.style]) == look and scene.mood == 0
            and world.SHAPES[scene.objects[0][0]] != "star"
        )
        for look in LOOKS
    ]
    chosen = scenes[torch.tensor(wanted)].to(chain.device)
    pictures, _ = world.render(chosen, torch.Generator(chain.device).manual_seed(SEED))
    captions = [f"{PROMPT}, {look}" for look in look_of(chain, pictures)]
    painted = chain.paint([chain.words(caption)[0] for caption in captions], [SEED] * len(captions))
    return _images(pictures), _images(painted)


def _images(pictures: torch.Tensor) -> list[Image]:
    from PIL import Image

    return [
        Image.fromarray((one.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()) for one in as_image(pictures)
    ]


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Ten corners of a star of five points that stands upright."""
    corners = []
    for corner in range(10):
        reach, turn = radius * (1 if corner % 2 == 0 else 0.45), math.pi * (corner / 5 - 0.5)
        corners.append((x + reach * math.cos(turn), y + reach * math.sin(turn)))
    return corners


def _rounded(picture: Image, radius: int) -> Image:
    from PIL import Image

    round_one = Image.new("RGBA", picture.size)
    round_one.paste(picture, (0, 0), _corners(picture.width, radius, 1))
    return round_one


def _corners(side: int, radius: int, finer: int = FINER) -> Image:
    from PIL import Image, ImageDraw

    mask = Image.new("L", (side * finer, side * finer), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side * finer - 1, side * finer - 1), radius * finer, fill=255)
    return mask.resize((side, side), Image.Resampling.LANCZOS)


def _font(size: int, weight: str = "normal") -> FreeTypeFont:
    """matplotlib's own font, so that every machine draws the same."""
    from matplotlib.font_manager import FontProperties, findfont
    from PIL import ImageFont

    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight=weight)), size)
