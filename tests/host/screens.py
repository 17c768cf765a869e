"""Thumbnails of the workflows and screenshots of nodes, from a real ComfyUI that paints with the trained miniature.

    python tests/host/screens.py --out FOLDER [--only NAME ...]

with ComfyUI's own Python, playwright and Chromium; ComfyUI is found as the tests find it. Each workflow is opened as a
user opens it, given a prompt and pictures of the miniature's world (forty words, 128 × 128), run and photographed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
SEED, SIZE = 21, 128  # of the scenes; the only size that the miniature paints
LOOKS = ({"background": 6, "style": 2, "mood": 0}, {"background": 2, "style": 3, "mood": 0})  # of the two references
FIT_PICTURES, PROMPTS = 200, "prompts.txt"  # the built-in ones have words that the miniature does not know
PROMPT = "a red star"
SHOWN = "a medium black circle at the bottom"  # by the first of them, in the words of its world
CARD = (640, 480)
FONT, SMALL_FONT = ImageFont.load_default(20), ImageFont.load_default(15)
TINY_WIDGETS = {
    "EmptySD3LatentImage": {"width": SIZE, "height": SIZE},
    "ImageScaleToTotalPixels": {"megapixels": (SIZE / 1024) ** 2},
}
SET_ALL = """(wanted) => {
  for (const node of app.graph.nodes)
    for (const widget of node.widgets ?? [])
      if (wanted[node.type]?.[widget.name] !== undefined) {
        const value = wanted[node.type][widget.name];
        widget.value = value;
        widget.callback?.(value);
      }
}"""
SET_PICTURES = """(names) => {
  app.graph.nodes.filter((n) => n.type === "LoadImage").forEach((node, index) => {
    const widget = node.widgets.find((w) => w.name === "image");
    widget.value = names[index % names.length];
    widget.callback?.(widget.value);
  });
}"""
BOX = """(type) => {
  const node = app.graph.nodes.find((n) => n.type === type), { scale, offset } = app.canvas.ds;
  const canvas = app.canvas.canvas.getBoundingClientRect();
  return { x: canvas.left + (node.pos[0] + offset[0]) * scale - 8,
           y: canvas.top + (node.pos[1] - 30 + offset[1]) * scale - 8,
           width: node.size[0] * scale + 16, height: (node.size[1] + 30) * scale + 16 };
}"""
# The node alone and in full size, below the tabs and beside the side bar.
APART = """([type, size]) => {
  const node = app.graph.nodes.find((n) => n.type === type);
  node.pos = [9000, 0];
  node.setSize(size);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [-9000 + 120, 120];
  app.canvas.setDirty(true, true);
}"""
# Inspect what Qwen3-VL gives, not what the stages have made of it.
INSPECT_RAW = """() => {
  const [encode, inspect] = ["ZImageVLEncode", "ZImageVLInspect"].map((t) => app.graph.nodes.find((n) => n.type === t));
  encode.connect(0, inspect, 0);
}"""


@dataclass(frozen=True)
class Screen:
    """One workflow.

    Attributes:
        caption: below its picture. ``others``: below those it saves after that one, in the order of its nodes.
        widgets: to set beside the sizes, by node type. ``pictures``: how many it loads.
        node: photographed for the documentation, "all" for the whole graph; ``size``: that it is given.
        change: JavaScript to run on the graph first.
    """

    workflow: str
    caption: str = "with the picture"
    widgets: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: int = 1
    node: str = ""
    size: tuple[int, int] = (720, 900)
    change: str = ""
    others: tuple[str, ...] = ()


SCREENS = (
    Screen("1 Start here - reference picture", node="all"),
    Screen("3 The look in words", "its look in words"),
    Screen("5 Learn a look", "in the learned look", {
        "ZImageVLLookLearn": {"shows": SHOWN}, "ZImageVLLookApply": {"prompt": PROMPT},
    }, node="ZImageVLLookLearn", size=(420, 900)),
    Screen("6 Picture adapter", "picture adapter", {"ZImageVLAdapterFit": {"prompts": PROMPTS}}),
    Screen(
        "2 Take style, colours or light", "everything",
        {"ZImageVLCondition": {"recipe": "variation of the picture", "strength": 1.0}},
    ),
    Screen("Research 3 - image delta", "image delta"),
    Screen("4 Several pictures", "both, averaged", pictures=2),
    Screen("Advanced 1 - every step a node", "blend aligned"),
    Screen("Research 1 - append picture tokens", "every token of the picture", others=("a quarter of them",)),
    Screen(
        "Advanced 2 - where and when it acts", "the object's words kept, all the time",
        {"ZImageVLBlend": {"words": f"-{PROMPT[2:]}"}}, others=("second half only",),
    ),
    Screen("Research 2 - mean of layers", "mean of layers -4 and -8", others=("layer -4 alone",)),
    Screen(
        "Advanced 1 - every step a node", widgets={"ZImageVLInspect": {"plots": "all"}}, node="ZImageVLInspect",
        size=(640, 1060), change=INSPECT_RAW,
    ),
    Screen("7 Paint over a picture", "painted over"),
    Screen("Advanced 3 - save what was read"),
    Screen("Advanced 4 - paint with what was saved", "from the file"),
    Screen("Advanced 5 - every layer measured", node="ZImageVLLayerReport", size=(640, 1060)),
    Screen("8 Compare settings side by side", node="ZImageVLGrid", size=(700, 1060)),
)


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"zimage_vl_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="how workflows begin, such as 1")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    sys.path.append(str(PACK))  # for the miniature's world
    server_module, browser = load("server"), load("test_browser")
    (comfyui,) = [path for path in load("conftest").comfyui_candidates() if (path / "comfy" / "sd.py").is_file()][:1]
    with TemporaryDirectory() as folder, server_module.running(comfyui, Path(folder), "mini_pack") as server:
        names = write_world(server.base / "input")
        with browser.playwright.sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=browser.CHROMIUM, headless=True, args=browser.FLAGS)
            page = chromium.new_context(viewport={"width": 1920, "height": 1200}, device_scale_factor=1).new_page()
            front = browser.Frontend(page, server, modern=False)
            words = words_alone(server, server_module)
            for screen in SCREENS:
                if not chosen.only or any(screen.workflow.startswith(name) for name in chosen.only):
                    photograph(screen, front, server, names, words, chosen.out)
            chromium.close()
        for line in server.complaints():
            print("the server complained:", line)


def write_world(folder: Path) -> list[str]:
    """Two references as files, and a folder of scenes with their look in words for a picture adapter."""
    from miniature import world

    def scenes(count: int, seed: int):
        return world.sample_scenes(count, torch.Generator().manual_seed(seed), two_shapes=0.0)

    def pictures(found, seed: int) -> list[Image.Image]:
        rendered, _ = world.render(found, torch.Generator().manual_seed(seed))
        pixels = ((rendered + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(one) for one in pixels]

    looks = {name: torch.tensor([look[name] for look in LOOKS]) for name in world.LOOK}
    names = [f"reference_{index}.png" for index in range(len(LOOKS))]
    for name, picture in zip(names, pictures(replace(scenes(len(LOOKS), SEED), **looks), SEED), strict=True):
        picture.save(folder / name)
    prompts = [f"a {color} {shape}" for color in world.COLORS for shape in world.SHAPES]
    (folder / PROMPTS).write_text("\n".join(prompts), encoding="utf-8")
    folder, found = folder / "adapter_pictures", scenes(FIT_PICTURES, SEED + 100)
    for file in folder.iterdir():
        file.unlink()
    for index, (scene, picture) in enumerate(zip(found.records(), pictures(found, SEED + 100), strict=True)):
        picture.save(folder / f"{index:03}.png")
        (folder / f"{index:03}.txt").write_text(world.look_answer(scene), encoding="utf-8")
    return names


def words_alone(server, server_module) -> Image.Image:
    """The prompt painted without a picture, from the seed that every workflow uses."""
    workflow = json.loads((PACK / "workflows" / "1 Start here - reference picture.json").read_text(encoding="utf-8"))
    prompt = server_module.quick(server_module.to_prompt(workflow, server.get("/object_info")), SIZE, 8)
    for node in prompt.values():
        if node["class_type"] == "ZImageVLCondition":
            node["inputs"] |= {"prompt": PROMPT, "strength": 0.0}
    return painted(server, server.run(prompt)["outputs"])[0]


def painted(server, outputs: dict) -> list[Image.Image]:
    """The pictures that were saved, in the order of their nodes."""
    saved = [
        image for number in sorted(outputs, key=int) for image in outputs[number].get("images", [])
        if image["type"] == "output"
    ]
    return [
        Image.open(server.base / "output" / image["subfolder"] / image["filename"]).convert("RGB") for image in saved
    ]


def photograph(screen: Screen, front, server, names: list[str], words: Image.Image, out: Path) -> None:
    """Run one workflow; leaves its thumbnail, or the picture of one of its nodes, in ``out``."""
    print(screen.workflow, screen.node, flush=True)
    front.page.evaluate("app.refreshComboInNodes()")
    front.open(PACK / "workflows" / f"{screen.workflow}.json")
    prompted = ("ZImageVLCondition", "ZImageVLEncode", "ZImageVLSweep", "ZImageVLDescribe")
    prompts = {name: {"prompt": PROMPT} for name in prompted}
    prompts |= {"PrimitiveStringMultiline": {"value": PROMPT}, "CLIPTextEncode": {"text": PROMPT}}
    for wanted in ({**TINY_WIDGETS, **prompts}, screen.widgets):
        front.page.evaluate(SET_ALL, wanted)
    front.page.evaluate(SET_PICTURES, names)
    if screen.change:
        front.page.evaluate(screen.change)
    history = front.run()
    assert history["status"]["status_str"] == "success", history["status"]
    front.reports(history)
    front.page.wait_for_timeout(2500)  # pictures arrive after their reports, and a message goes away
    if screen.node == "all":
        save(front.page.screenshot(), out / "simple.jpg")
    elif screen.node:
        front.page.evaluate(APART, [screen.node, screen.size])
        front.page.wait_for_timeout(800)
        save(front.page.screenshot(clip=front.page.evaluate(BOX, screen.node)), out / f"{screen.node}.jpg")
    if not screen.change:
        panels = panels_of(screen, server, history["outputs"], names, words)
        card(panels).save(out / f"{screen.workflow}.jpg", quality=86)


def save(shot: bytes, path: Path) -> None:
    Image.open(io.BytesIO(shot)).convert("RGB").save(path, quality=82)


def panels_of(screen: Screen, server, outputs: dict, names: list[str], words: Image.Image) -> list[tuple]:
    """What a thumbnail shows, with a caption each."""
    references = [Image.open(server.base / "input" / name) for name in names[: screen.pictures]]
    panels = [("reference" if len(references) == 1 else f"picture {n}", one) for n, one in enumerate(references, 1)]
    results = painted(server, outputs)
    if screen.node == "ZImageVLGrid":
        return [("every setting, from one reading of the picture", results[-1])]
    if results:
        others = list(zip(screen.others, results[1:], strict=True))
        return [*panels, ("words alone", words), *others, (screen.caption, results[0])]
    shown = [image for output in outputs.values() for image in output.get("images", []) if image["type"] == "temp"]
    if screen.node and shown:
        plots = Image.open(server.base / "temp" / shown[-1]["subfolder"] / shown[-1]["filename"])
        return [*panels, ("every layer, measured", plots.crop((0, 0, plots.width, plots.width * 3 // 4)))]
    note = Image.new("RGB", (SIZE * 2, SIZE * 2), "#353535")
    ImageDraw.Draw(note).text((SIZE, SIZE), "reference_00001\n.safetensors", "#dddddd", FONT, "mm", align="center")
    return [*panels, ("its embeddings, kept", note)]


def card(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """A thumbnail: the last picture large, those before it in a column beside it, captions, and who painted them."""
    (width, height), margin, line = CARD, 12, 26
    made = Image.new("RGB", CARD, "#202020")
    draw, room, *column = ImageDraw.Draw(made), height - 2 * margin - line, *panels[:-1]
    side = room // len(column) - line if len(column) > 1 else 240
    left, top = margin, margin if len(column) > 1 else (room - side) // 2
    for title, one in column:
        made.paste(one.resize((side, side), Image.LANCZOS), (left, top))
        draw.text((left + side / 2, top + side + line / 2), title, "#dddddd", SMALL_FONT, anchor="mm")
        top += side + line
    title, last = panels[-1]
    free = width - 2 * margin - (side + margin if column else 0)
    factor = min(free / last.width, (room - line) / last.height)
    large = last.resize((round(last.width * factor), round(last.height * factor)), Image.LANCZOS)
    left, top = width - margin - free + (free - large.width) // 2, margin + (room - line - large.height) // 2
    made.paste(large, (left, top))
    draw.text((left + large.width / 2, top + large.height + line / 2), title, "#ffffff", FONT, anchor="mm")
    painter = f"prompt: {PROMPT} · painted by the pack's 40 MB miniature"
    draw.text((width / 2, height - line / 2 - 2), painter, "#909090", SMALL_FONT, anchor="mm")
    return made


if __name__ == "__main__":
    main()
