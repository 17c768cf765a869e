"""Stage ``scenes``: pictures of the world as files, and prompts that disagree with every one of them.

What ``python -m vl_core compare`` and ``layers`` take::

    python -m miniature scenes --out scenes --count 12
    python -m vl_core compare -i scenes/*.png --prompts scenes/prompts.json --null --score judge --sweep alpha
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vl_core.zimage.files import save_png

from .. import world
from ..measure.chain import as_image
from ..measure.sheet import captions
from ..train.training import Options, write_json

COUNT, PROMPTS = 12, 2
CAPTIONS = 64
DRAWN = 4096  # scenes to choose from


def run(options: Options, count: int | None = None) -> dict[str, Any]:
    """Write PNGs named after their looks, ``prompts.json``, and ``captions.txt`` for ``calibrate --prompts``.

    Raises:
        ValueError: for fewer than 2 scenes or more than can be found.
    """
    from PIL import Image

    scenes, prompts = draw(COUNT if count is None else count, options.seed)
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(options.seed))
    options.out.mkdir(parents=True, exist_ok=True)
    for number, (picture, scene) in enumerate(zip(as_image(pictures), scenes.records(), strict=True), 1):
        look = "-".join((world.COLORS[scene.background], world.STYLES[scene.style], world.MOODS[scene.mood]))
        pixels = (picture * 255).round().to(torch.uint8).numpy()
        save_png(options.out / f"{number:02}-{look}.png", Image.fromarray(pixels), {"scene": scene._asdict()})
    write_json(options.out / "prompts.json", list(prompts))
    (options.out / "captions.txt").write_text("\n".join(captions(CAPTIONS)) + "\n", encoding="utf-8")
    print(f"{len(scenes)} pictures, and the prompts: {'; '.join(prompts)}")
    return {"scenes": len(scenes), "prompts": list(prompts)}


def draw(count: int, seed: int, prompts: int = PROMPTS) -> tuple[world.Scenes, tuple[str, ...]]:
    """Scenes of one large shape in the middle, and prompts for shapes and colours that none of them has.

    Every scene differs from the next, and the last from the first, in background, style and mood: the next picture is
    a null control that shares nothing of the look.
    """
    if count < 2:
        raise ValueError(f"--count: expected 2 scenes or more, got {count}.")
    generator = torch.Generator().manual_seed(seed)
    shapes, colors = (torch.randperm(len(names), generator=generator)[:prompts] for names in (
        world.SHAPES, world.COLORS,
    ))
    scenes = world.sample_scenes(DRAWN, generator, two_shapes=0.0)
    scenes = replace(scenes, size=torch.full_like(scenes.size, 2), position=torch.zeros_like(scenes.position))
    clash = torch.isin(scenes.shape[:, 0], shapes) | torch.isin(scenes.color[:, 0], colors)
    free = (~(clash | torch.isin(scenes.background, colors))).nonzero().flatten().tolist()
    looks = torch.stack([getattr(scenes, name) for name in world.LOOK], 1)
    chosen = [free[0]]
    for index in free[1:]:
        beside = [chosen[-1]] + ([chosen[0]] if len(chosen) == count - 1 else [])
        if all((looks[index] != looks[other]).all() for other in beside):
            chosen.append(index)
        if len(chosen) == count:
            break
    else:
        raise ValueError(f"--count: expected at most {len(chosen)} scenes, got {count}. Ask for fewer.")
    written = tuple(
        world.PROMPTS[number % 3].format(world.with_article(f"{world.COLORS[color]} {world.SHAPES[shape]}"))
        for number, (shape, color) in enumerate(zip(shapes.tolist(), colors.tolist(), strict=True))
    )
    return scenes[torch.tensor(chosen)], written
