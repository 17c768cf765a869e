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
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
SEED, SIZE = 21, 128  # of the scenes; the only size that the miniature paints
STRIPED, DOTTED, OUTLINED, GRADIENT, CHECKERED, UNNAMED = (
    f"{style}.png" for style in ("striped", "dotted", "outlined", "gradient", "checkered", "unnamed")
)
LOOKS = {  # background and style of the references; each row is drawn from a seed of its own
    SEED: {STRIPED: (6, 2), DOTTED: (2, 3)},
    SEED + 3: {OUTLINED: (4, 1), GRADIENT: (5, 5), CHECKERED: (7, 6)},
}
FIT_PICTURES, PROMPTS = 200, "prompts.txt"  # the built-in ones have words that the miniature does not know
PROMPT = "a red star"
PATIENCE = 900  # seconds for one workflow: learning takes a hundred steps
SHOWN = "a medium black circle at the bottom"  # by the one that no word means, in words of its world
DEFAULT_TAKE = "the look"
TINY_WIDGETS = {
    "EmptySD3LatentImage": {"width": SIZE, "height": SIZE},
    "ImageScaleToTotalPixels": {"megapixels": (SIZE / 1024) ** 2},
}
# Also inside of subgraphs, where what a subgraph's node offers itself is set there, under "subgraph".
SET_ALL = """(wanted) => {
  const set = (nodes) => nodes.forEach((node) => {
    const values = wanted[node.subgraph ? "subgraph" : node.type];
    for (const widget of node.widgets ?? [])
      if (values?.[widget.name] !== undefined) {
        widget.value = values[widget.name];
        widget.callback?.(widget.value);
      }
    if (node.subgraph) set(node.subgraph.nodes);
  });
  set(app.graph.nodes);
}"""
SET_PICTURES = """(names) => {
  app.graph.nodes.filter((n) => n.type === "LoadImage").forEach((node, index) => {
    const widget = node.widgets.find((w) => w.name === "image");
    widget.value = names[index % names.length];
    widget.callback?.(widget.value);
  });
}"""
# The node alone and in full size, below the tabs and beside the side bar; one that is in no template is made.
APART = """([type, size]) => {
  let node = app.graph.nodes.find((n) => n.type === type);
  if (!node) app.graph.add((node = LiteGraph.createNode(type)));
  node.pos = [9000, 0];
  node.setSize(size);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [-9000 + 120, 120];
  app.canvas.setDirty(true, true);
  return node.id;
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
        widgets: to set beside the sizes, by node type.
        pictures: that it loads. What is painted is shown beside what the prompt alone paints; for the picture whose
            background no word means, beside what its words paint.
        takes: other takes, each shown with a caption and what it makes of the first picture.
        told: the prompt is shown with the words that the workflow found for the picture.
        nodes: photographed for their help pages, each with the size that it is given.
        change: JavaScript to run on the graph first.
    """

    workflow: str
    caption: str = "with the picture"
    widgets: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: tuple[str, ...] = (STRIPED,)
    takes: dict[str, str] = field(default_factory=dict)
    told: bool = False
    nodes: dict[str, tuple[int, int]] = field(default_factory=dict)
    change: str = ""
    others: tuple[str, ...] = ()


PLAIN, TALL = (400, 420), (400, 640)
SCREENS = (
    Screen("1 Start here - reference picture"),
    Screen(
        "2 Take style, colours or light", "its style", pictures=(OUTLINED,), takes={"colours": "its colours"},
        nodes={"ZImageVLCondition": (400, 600)},
    ),
    Screen("3 The look in words", "its look in words", pictures=(DOTTED,), told=True,
           nodes={"ZImageVLDescribe": TALL}),
    Screen("4 Several pictures", "a bit of both", pictures=(STRIPED, DOTTED)),
    Screen(
        "5 Learn a look", "its look, learned",
        {"ZImageVLLookLearn": {"shows": SHOWN}, "ZImageVLLookApply": {"prompt": PROMPT}},
        nodes={"ZImageVLLookLearn": (400, 760), "ZImageVLLookApply": PLAIN}, pictures=(UNNAMED,),
    ),
    Screen(
        "6 Picture adapter", "by the adapter", {"ZImageVLAdapterFit": {"prompts": PROMPTS}},
        nodes={"ZImageVLAdapterFit": PLAIN},
    ),
    Screen("7 Paint over a picture", "painted over it"),
    Screen("8 Compare settings side by side", nodes={"ZImageVLSweep": (400, 760), "ZImageVLGrid": (480, 760)}),
    Screen(
        "Advanced 1 - every step a node", "step by step", {"ZImageVLInspect": {"plots": "token sizes"}},
        nodes=dict.fromkeys(
            ("ZImageVLEncode", "ZImageVLMaskOutliers", "ZImageVLNormalize", "ZImageVLBlend", "ZImageVLReference",
             "ZImageVLSelectTokens"), PLAIN,
        ) | {"ZImageVLInspect": (480, 620)},
        change=INSPECT_RAW, pictures=(CHECKERED,),
    ),
    Screen(
        "Advanced 2 - where and when it acts", "all the time",
        {"ZImageVLBlend": {"words": f"-{PROMPT[2:]}"}}, others=("second half",), pictures=(GRADIENT,),
    ),
    Screen("Advanced 3 - save what was read", "kept in a file", nodes={"ZImageVLSave": PLAIN}),
    Screen("Advanced 4 - paint with what was saved", "from the file", nodes={"ZImageVLLoadSaved": PLAIN}),
    Screen("Advanced 5 - every layer measured", "every layer", nodes={"ZImageVLLayerReport": (480, 700)}),
    Screen("Other models - Z-Image base", "with the picture", {"CLIPTextEncode": {"text": ""}}),
    Screen("Research 1 - append picture tokens", "every token", others=("a quarter",)),
    Screen("Research 2 - mean of layers", "layers -4 and -8", others=("-4 alone",)),
    Screen("Research 3 - image delta", "next to nothing"),
)
KLEIN = "Other models - FLUX.2 klein"
ALONE = {  # nodes of no template, and a size
    "ZImageVLLoader": PLAIN, "ZImageVLDelta": TALL, "ZImageVLAdapterApply": TALL, "ZImageVLMatchSpace": PLAIN,
    "ZImageVLDescribeFolder": TALL,
}


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"zimage_vl_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cards = load("cards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="how workflows begin, or nodes")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    sys.path.append(str(PACK))  # for the miniature's world
    server_module, browser = load("server"), load("test_browser")
    for folder in (chosen.out / "workflows", chosen.out / "help", chosen.out / "screens"):
        folder.mkdir(exist_ok=True)
    (comfyui,) = [path for path in load("conftest").comfyui_candidates() if (path / "comfy" / "sd.py").is_file()][:1]
    with TemporaryDirectory() as folder, server_module.running(comfyui, Path(folder), "mini_pack") as server:
        write_world(server.base / "input")
        with browser.playwright.sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=browser.CHROMIUM, headless=True, args=browser.FLAGS)
            page = chromium.new_context(viewport={"width": 1920, "height": 1200}, device_scale_factor=1).new_page()
            front = browser.Frontend(page, server, modern=True)
            for screen in SCREENS:
                if not chosen.only or any(screen.workflow.startswith(name) for name in chosen.only):
                    photograph(screen, front, server, beside(screen, server, server_module), chosen.out)
            if not chosen.only or "nodes" in chosen.only:
                known = server.get("/object_info")
                photograph_nodes(front, {node: size for node, size in ALONE.items() if node in known}, chosen.out)
            chromium.close()
        for line in server.complaints():
            print("the server complained:", line)


def scenes(count: int, seed: int):
    from miniature import world

    return world.sample_scenes(count, torch.Generator().manual_seed(seed), two_shapes=0.0)


def pictures(found, seed: int) -> list[Image.Image]:
    from miniature import world

    rendered, _ = world.render(found, torch.Generator().manual_seed(seed))
    pixels = ((rendered + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one) for one in pixels]


def write_references(folder: Path) -> None:
    """The pictures of ``LOOKS`` as files."""
    for seed, looks in LOOKS.items():
        drawn = dict(zip(("background", "style"), torch.tensor(list(looks.values())).T, strict=True))
        found = replace(scenes(len(looks), seed), **drawn, mood=torch.zeros(len(looks), dtype=torch.long))
        for name, picture in zip(looks, pictures(found, seed), strict=True):
            picture.save(folder / name)


def write_world(folder: Path) -> None:
    """References as files, and a folder of scenes with their look in words for a picture adapter."""
    from miniature import world

    write_references(folder)
    write_unnamed(scenes(len(LOOKS[SEED]), SEED)[:1], folder / UNNAMED)
    prompts = [f"a {color} {shape}" for color in world.COLORS for shape in world.SHAPES]
    (folder / PROMPTS).write_text("\n".join(prompts), encoding="utf-8")
    folder, found = folder / "adapter_pictures", scenes(FIT_PICTURES, SEED + 100)
    for file in folder.iterdir():
        file.unlink()
    for index, (scene, picture) in enumerate(zip(found.records(), pictures(found, SEED + 100), strict=True)):
        picture.save(folder / f"{index:03}.png")
        (folder / f"{index:03}.txt").write_text(world.look_answer(scene), encoding="utf-8")


def write_unnamed(scene, path: Path) -> None:
    """The first reference's thing, flat, on the colour halfway between two names that is farthest from every name."""
    from miniature import world

    plain = replace(scene, style=torch.zeros(1, dtype=torch.long), mood=torch.zeros(1, dtype=torch.long))
    rendered, covers = world.render(plain, torch.Generator().manual_seed(SEED))
    names = torch.tensor(world.RGB)
    halfway = torch.stack([(one + other) / 2 for one, other in combinations(names, 2)])
    ground = halfway[torch.cdist(halfway, names).amin(1).argmax()] * 2 - 1
    thing = covers.sum(1, keepdim=True).clamp(0, 1)
    pixels = torch.lerp(ground[None, :, None, None].expand_as(rendered), rendered, thing)[0]
    Image.fromarray(((pixels + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 0).numpy()).save(path)


def beside(screen: Screen, server, server_module) -> list[cards.Panel]:
    """What its painting is compared with."""
    first = screen.pictures[0]
    plain = ("in words", 1.0) if first == UNNAMED else ("words alone", 0.0)
    wanted = [(*plain, DEFAULT_TAKE), *((caption, 1.0, take) for take, caption in screen.takes.items())]
    return [(caption, in_words(server, server_module, first, *inputs)) for caption, *inputs in wanted]


def in_words(server, server_module, picture: str, strength: float, take: str) -> Image.Image:
    """The prompt painted with a picture in words, from every workflow's seed; strength 0: the prompt alone."""
    workflow = json.loads((PACK / "workflows" / "1 Start here - reference picture.json").read_text(encoding="utf-8"))
    prompt = server_module.quick(server_module.to_prompt(workflow, server.get("/object_info")), SIZE, 8)
    for node in prompt.values():
        if node["class_type"] == "ZImageVLCondition":
            node["inputs"] |= {"prompt": PROMPT, "strength": strength, "recipe": take}
        elif node["class_type"] == "LoadImage":
            node["inputs"]["image"] = picture
    return painted(server, server.run(prompt)["outputs"])[0]


def painted(server, outputs: dict) -> list[Image.Image]:
    """The pictures that were saved, in the order of their nodes."""
    saved = [
        image for number in sorted(outputs, key=lambda name: [int(part) for part in name.split(":")])
        for image in outputs[number].get("images", []) if image["type"] == "output"
    ]
    return [
        Image.open(server.base / "output" / image["subfolder"] / image["filename"]).convert("RGB") for image in saved
    ]


def photograph(screen: Screen, front, server, compared: list[cards.Panel], out: Path) -> None:
    """Run one workflow; leaves its thumbnail, the whole of it after the run, and the pictures of its nodes."""
    print(screen.workflow, flush=True)
    front.page.evaluate("app.refreshComboInNodes()")
    front.open(PACK / "workflows" / f"{screen.workflow}.json")
    prompted = ("ZImageVLCondition", "ZImageVLEncode", "ZImageVLSweep", "ZImageVLDescribe")
    prompts = {name: {"prompt": PROMPT} for name in prompted}
    prompts |= {"PrimitiveStringMultiline": {"value": PROMPT}, "CLIPTextEncode": {"text": PROMPT}}
    prompts["subgraph"] = {"prompt": PROMPT, "width": SIZE, "height": SIZE}
    for wanted in ({**TINY_WIDGETS, **prompts}, screen.widgets):
        front.page.evaluate(SET_ALL, wanted)
    front.page.evaluate(SET_PICTURES, screen.pictures)
    if screen.change:
        front.page.evaluate(screen.change)
    history = front.run(PATIENCE)
    assert history["status"]["status_str"] == "success", history["status"]
    front.reports(history)
    front.page.wait_for_timeout(2500)  # pictures arrive after their reports, and a message goes away
    shot = Image.open(io.BytesIO(front.page.screenshot()))
    cards.save(shot, out / "screens" / f"{screen.workflow}.jpg")
    said = next(output["text"][0] for output in history["outputs"].values() if "text" in output).splitlines()[0]
    prompt = f'"{PROMPT}, {said}"' if screen.told else f'"{PROMPT}"'
    picture = cards.card(panels_of(screen, server, history["outputs"], compared), prompt)
    cards.save(picture, out / "workflows" / f"{screen.workflow}.jpg")
    if screen is SCREENS[0]:
        saw = said.partition(". ")[0]
        reference = Image.open(server.base / "input" / screen.pictures[0])
        cards.save(cards.sheet("for FLUX.2 klein", saw, reference), out / "workflows" / f"{KLEIN}.jpg")
    photograph_nodes(front, screen.nodes, out)


def photograph_nodes(front, nodes: dict[str, tuple[int, int]], out: Path) -> None:
    """Each node alone, for its help page."""
    for node, size in nodes.items():
        number = front.page.evaluate(APART, [node, size])
        front.page.wait_for_timeout(900)
        shown = front.page.locator(f'[data-node-id="{number}"]').first
        cards.save(Image.open(io.BytesIO(shown.screenshot())), out / "help" / f"{node}.jpg", 480)
        front.page.evaluate("(id) => app.graph.getNodeById(id).pos = [20000, 0]", number)


def panels_of(screen: Screen, server, outputs: dict, compared: list[cards.Panel]) -> list[cards.Panel]:
    """What a thumbnail shows, with a caption each."""
    references = [Image.open(server.base / "input" / name) for name in screen.pictures]
    panels = [("picture" if len(references) == 1 else f"picture {n}", one) for n, one in enumerate(references, 1)]
    results = painted(server, outputs)
    if "ZImageVLGrid" in screen.nodes:
        return [("settings side by side", results[-1])]
    if results:
        others = list(zip(screen.others, results[1:], strict=True))
        return [*panels, *compared, *others, (screen.caption, results[0])]
    shown = [image for output in outputs.values() for image in output.get("images", []) if image["type"] == "temp"]
    if shown and "ZImageVLLayerReport" in screen.nodes:
        plot = Image.open(server.base / "temp" / shown[-1]["subfolder"] / shown[-1]["filename"])
        return [*panels, (screen.caption, plot)]
    return [*panels, (screen.caption, cards.file_picture(".safetensors"))]


if __name__ == "__main__":
    main()
