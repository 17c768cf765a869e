"""The workflows in the real frontend: they open, run, and every node of ours shows its report, in both designs."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need: pip install playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need chromium: apt install chromium")

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
START = WORKFLOWS / "1 Start here - reference picture.json"
SIMPLE = WORKFLOWS / "2 Take style, colours or light.json"
OPEN = WORKFLOWS / "Advanced 1 - every step a node.json"
SAVE = WORKFLOWS / "Advanced 3 - save what was read.json"
LEARN = WORKFLOWS / "5 Learn a look.json"
SWEEP = WORKFLOWS / "8 Compare settings side by side.json"
LAYERS = WORKFLOWS / "Advanced 5 - every layer measured.json"
TEMPLATES = sorted(WORKFLOWS.glob("*.json"))
BLUEPRINT = "Reference to Image (Z-Image-Turbo)"
SAVED = sorted(path for name in ("0_1_0", "0_1_1") for path in Path(__file__).with_name(f"saved_{name}").glob("*.json"))
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]
GOOD = {"boxes": 1, "readOnly": True, "uncovered": True, "inside": True, "high": True}  # how a report should look
# Boxes and notes of classic nodes are shown however far a template is zoomed out.
SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
HARMLESS = ("Failed to load resource", "graph accessed before initialization")  # said by the bare frontend, too

SHAPES = """() => [...document.images].map((one) => {
  const box = one.getBoundingClientRect();
  return [one.alt, one.naturalWidth / one.naturalHeight, box.width / box.height];
})"""

OPEN_FILE = "([name, text]) => app.handleFile(new File([text], name, { type: 'application/json' }))"

OPEN_PICTURE = "([name, bytes]) => app.handleFile(new File([new Uint8Array(bytes)], name, { type: 'image/png' }))"

# Look at little and paint small, so that a run takes seconds.
MAKE_QUICK = """() => {
  const small = {
    EmptySD3LatentImage: { width: 256, height: 256 }, KSampler: { steps: 2 },
    EmptyFlux2LatentImage: { width: 256, height: 256 }, Flux2Scheduler: { steps: 2, width: 256, height: 256 },
    ImageScaleToTotalPixels: { megapixels: 0.0625 },
    ZImageVLCondition: { image_tokens: 64 }, ZImageVLEncode: { image_tokens: 64 }, ZImageVLSweep: { image_tokens: 64 },
    ZImageVLLookLearn: { image_tokens: 64, steps: 4, size: 64 },
  };
  small.subgraph = { width: 256, height: 256, steps: 2 };
  const set = (nodes) => nodes.forEach((node) => {
    const values = small[node.subgraph ? "subgraph" : node.type];
    for (const widget of node.widgets ?? []) if (values?.[widget.name]) widget.value = values[widget.name];
    if (node.subgraph) set(node.subgraph.nodes);
  });
  set(app.graph.nodes);
}"""

# For each of our nodes: what its box says, and whether a reader sees it, inside of the node and under nothing else.
REPORTS = """(modern) => {
  const found = {}, canvas = app.canvas.canvas.getBoundingClientRect(), { scale, offset } = app.canvas.ds;
  for (const node of app.graph.nodes.filter((n) => n.type.startsWith("ZImageVL"))) {
    const boxes = node.widgets.filter((w) => w.name === "report");
    const element = modern
      ? [...document.querySelectorAll(`[data-node-id="${node.id}"] textarea[readonly]`)].at(-1)
      : boxes[0]?.element;
    const box = element?.getBoundingClientRect();
    const left = canvas.left + (node.pos[0] + offset[0]) * scale, top = canvas.top + (node.pos[1] + offset[1]) * scale;
    found[node.id] = {
      boxes: boxes.length,
      value: boxes[0]?.value,
      shown: element?.value,
      readOnly: element?.readOnly,
      uncovered: !!box && document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2) === element,
      high: !!box && box.height / scale >= 40,
      inside: !!box && box.left >= left - 1 && box.right <= left + node.size[0] * scale + 1 &&
        box.top >= top - 1 && box.bottom <= top + node.size[1] * scale + 1,
    };
  }
  return found;
}"""

SHOW_ALL = """() => {
  const boxes = app.graph.nodes.map((n) => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
  const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])));
  const [right, bottom] = [2, 3].map((i) => Math.max(...boxes.map((box) => box[i])));
  app.canvas.ds.fitToBounds([left, top, right - left, bottom - top], { zoom: 0.8 });
  app.canvas.setDirty(true, true);
}"""

SET_WIDGET = """([type, name, value]) => {
  app.graph.nodes.find((n) => n.type === type).widgets.find((w) => w.name === name).value = value;
}"""

OVERLAPS = """() => {
  const nodes = app.graph.nodes, found = [];
  for (const a of nodes) for (const b of nodes)
    if (a.id < b.id && a.pos[0] < b.pos[0] + b.size[0] && b.pos[0] < a.pos[0] + a.size[0] &&
        a.pos[1] - 30 < b.pos[1] + b.size[1] && b.pos[1] - 30 < a.pos[1] + a.size[1]) found.push([a.type, b.type]);
  return found;
}"""


# Wires that run behind a node, by their ends' and the nodes' places on the screen; drawn as LiteGraph draws them.
WIRES = """() => {
  const found = [];
  for (const link of app.graph.links.values()) {
    const [from, to] = [link.origin_id, link.target_id].map((id) => app.graph.getNodeById(id));
    const [a, b] = [from.getOutputPos(link.origin_slot), to.getInputPos(link.target_slot)];
    const reach = Math.hypot(a[0] - b[0], a[1] - b[1]) / 4;
    const corners = [a, [a[0] + reach, a[1]], [b[0] - reach, b[1]], b];
    for (let t = 0.02; t < 1; t += 0.01) {
      const shares = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];
      const [x, y] = [0, 1].map((axis) => corners.reduce((sum, corner, i) => sum + shares[i] * corner[axis], 0));
      const behind = app.graph.nodes.find((n) => x > n.pos[0] + 14 && x < n.pos[0] + n.size[0] - 14 &&
        y > n.pos[1] - 16 && y < n.pos[1] + n.size[1] - 14);
      if (behind) { found.push([from.title, to.title, behind.title]); break; }
    }
  }
  return found;
}"""

# Text of notes and of our nodes that does not fit where it stands. Long values of lists may end in dots.
CUT = """(modern) => {
  const found = [], pen = document.createElement("canvas").getContext("2d");
  const ours = (node) => node.type.startsWith("ZImageVL"), note = (node) => node.type === "MarkdownNote";
  for (const node of app.graph.nodes.filter((n) => ours(n) || note(n))) {
    const root = document.querySelector(`[data-node-id="${node.id}"]`);
    if (note(node)) {
      const text = modern ? root.querySelector(".tiptap, .comfy-markdown, [class*=markdown]") : node.widgets[0].element;
      text.style.paddingBottom = "20px";  // room for fonts in which a note's Chinese is taller
      for (const part of [text, ...text.querySelectorAll("*")])
        if (part.scrollHeight > part.clientHeight + 2 && getComputedStyle(part).overflowY.match(/auto|scroll|hidden/))
          found.push([node.title, part.className, part.scrollHeight, part.clientHeight]);
    } else if (modern) {
      for (const part of root.querySelectorAll("*"))
        if (!part.children.length && part.textContent.trim() && !part.closest("button, [role=combobox], textarea") &&
            part.scrollWidth > part.clientWidth + 1 && part.clientWidth) found.push([node.title, part.textContent]);
    } else {
      pen.font = "14px Inter, sans-serif";
      if (pen.measureText(node.title).width > node.size[0] - 40) found.push([node.title, "title"]);
      pen.font = "12px Inter, sans-serif";
      for (const { name, label, value, type } of node.widgets)
        if (["combo", "number", "slider", "text", "string", "toggle"].includes(type) &&
            pen.measureText(`${label ?? name}  ${value}`).width > node.size[0] - 60) found.push([node.title, name]);
    }
  }
  return found;
}"""

# Where on the screen the grid's node shows a picture of this size; null while it does not.
GRID_BOX = """([modern, width, height]) => {
  const node = app.graph.nodes.find((n) => n.type === "ZImageVLGrid");
  if (modern) {
    const fits = (image) => image.naturalWidth === width && image.naturalHeight === height;
    const image = [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)].find(fits);
    if (!image) return null;
    const box = image.getBoundingClientRect(), factor = Math.min(box.width / width, box.height / height);
    const [w, h] = [width * factor, height * factor];
    return { x: box.left + (box.width - w) / 2, y: box.top + (box.height - h) / 2, width: w, height: h };
  }
  if (node.imgs?.[0]?.naturalWidth !== width || node.imgs[0].naturalHeight !== height) return null;
  const canvas = app.canvas.canvas.getBoundingClientRect(), { scale, offset } = app.canvas.ds;
  const preview = node.widgets.find((w) => w.name.startsWith("$$"));
  const under = node.pos[1] + (preview?.last_y ?? preview?.y ?? 0), room = node.pos[1] + node.size[1] - under - 20;
  const factor = Math.min(node.size[0] / width, room / height), [w, h] = [width * factor, height * factor];
  const x = node.pos[0] + (node.size[0] - w) / 2, y = under + (room - h) / 2;
  return { x: canvas.left + (x + offset[0]) * scale, y: canvas.top + (y + offset[1]) * scale,
           width: w * scale, height: h * scale };
}"""


# Ten frames a second, not sixty: without a GPU, drawing the canvas takes more time than all else here.
FEW_FRAMES = """
window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 100);
window.cancelAnimationFrame = clearTimeout;
"""


class Frontend:
    """A page with ComfyUI's frontend, and what it complained about."""

    def __init__(self, page, server, modern: bool):
        self.page, self.server, self.modern, self.errors, self.fresh = page, server, modern, [], False
        page.on("console", lambda message: self.hear(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.hear(str(error)))
        for name, value in {**SETTINGS, "Comfy.VueNodes.Enabled": modern}.items():
            server.post(f"/settings/{name}", value)
        page.goto(server.url)
        page.wait_for_function("window.app?.extensionManager && window.app.isGraphReady", timeout=60_000)

    def hear(self, text: str) -> None:
        if not any(harmless in text for harmless in HARMLESS):
            self.errors.append(text)

    def open(self, path: Path) -> None:
        """As if the file were dropped onto the canvas; then all of it is brought into view."""
        if not self.fresh:  # files that the fixtures made since the page was loaded stand in the lists
            self.page.evaluate("app.refreshComboInNodes()")
            self.fresh = True
        self.page.evaluate(OPEN_FILE, [path.name, path.read_text(encoding="utf-8")])
        expected = len(json.loads(path.read_text(encoding="utf-8"))["nodes"])
        self.page.wait_for_function(f"app.graph.nodes.length === {expected}")
        self.show_all()

    def show_all(self) -> None:
        self.page.evaluate(SHOW_ALL)

    def set(self, node_type: str, widget: str, value) -> None:
        self.page.evaluate(SET_WIDGET, [node_type, widget, value])

    def prompt(self) -> dict[str, dict]:
        """What Run would send, without titles."""
        output = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in output.items()}

    def saved(self) -> dict:
        """What Save would write."""
        return self.page.evaluate("app.graph.serialize()")

    def run(self, seconds: float = 120) -> dict:
        """Press Run and wait; gives the history entry, in which every node of ours took part."""
        ours = set(self.page.evaluate(REPORTS, self.modern))
        for _ in range(3):
            # A node whose result the server still knows does not run and reports nothing; what it knows, it drops soon.
            self.server.post("/free", {"free_memory": True})
            time.sleep(0.3)
            history = self._run_once(seconds)
            if history["status"]["status_str"] != "success" or ours <= set(history["outputs"]):
                break
        return history

    def _run_once(self, seconds: float) -> dict:
        newest = "/history?max_items=1"  # with many, all of it takes longer to tell than a run
        before = set(self.server.get(newest))
        assert self.page.evaluate("app.queuePrompt(0)"), "the frontend could not queue the workflow"
        until = time.monotonic() + seconds
        while not (new := set(self.server.get(newest)) - before):
            assert time.monotonic() < until, f"not finished after {seconds} s: {self.server.tail()}"
            time.sleep(0.1)
        return self.server.get(f"/history/{new.pop()}").popitem()[1]

    def reports(self, history: dict) -> dict[str, dict]:
        """The boxes of our nodes, checked to say what the server says they should, where a reader sees it."""
        said = {number: "\n".join(output["text"]) for number, output in history["outputs"].items() if "text" in output}
        until = time.monotonic() + 20
        while True:
            found = self.page.evaluate(REPORTS, self.modern)
            wrong = {number: box for number, box in found.items() if box != {**box, **GOOD, "shown": said[number]}}
            if not wrong:
                return found
            assert time.monotonic() < until, (wrong, {number: said[number] for number in wrong})
            time.sleep(0.2)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def frontends(chromium, server):
    """One page per design, each in a profile of its own."""
    pages = {}

    def get(modern: bool) -> Frontend:
        if modern not in pages:
            context = chromium.new_context(viewport={"width": 1920, "height": 1080}, reduced_motion="reduce")
            context.add_init_script(FEW_FRAMES)
            pages[modern] = Frontend(context.new_page(), server, modern)
        return pages[modern]

    return get


@pytest.fixture(params=[False, True], ids=["classic", "nodes-2.0"])
def frontend(request, frontends):
    """The frontend in either design; a test fails if anything of ours complained."""
    front = frontends(request.param)
    front.errors.clear()
    yield front
    assert front.errors == []


@pytest.fixture(scope="module")
def info(server) -> dict:
    """What the server knows of nodes; it takes most of a second to tell."""
    return server.get("/object_info")


@pytest.fixture(scope="module")
def saved_embeddings(server, server_module, info):
    """Something for the workflow that loads embeddings."""
    if not (server.base / "output" / "vl_embeddings" / "reference_00001.safetensors").is_file():
        workflow = json.loads(SAVE.read_text(encoding="utf-8"))
        server.run(server_module.to_prompt(workflow, info))


def slots(workflow: dict) -> dict[int, tuple]:
    """What makes a saved node: type, values, and which sockets are connected."""
    return {
        node["id"]: (
            node["type"],
            node.get("widgets_values") or [],
            sorted(slot["name"] for slot in node.get("inputs", []) if slot.get("link") is not None),
        )
        for node in workflow["nodes"]
        if "-" not in node["type"]  # but those that stand for a subgraph, whose values are inside
    }


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_opens_whole_with_nothing_red_or_cut_and_no_wire_behind_a_node_and_runs(
    path, frontend, saved_embeddings, server_module, info
):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    frontend.open(path)
    assert frontend.page.get_by_role("dialog").count() == 0  # nothing is missing
    assert frontend.page.evaluate("app.graph.nodes.filter((n) => n.has_errors).map((n) => n.type)") == []
    # What the frontend would queue is what the file says, and it would be saved again as it is.
    assert frontend.prompt() == server_module.to_prompt(workflow, info)
    values = slots(frontend.saved())
    assert values == slots(workflow)
    frontend.page.wait_for_timeout(400)  # Nodes 2.0 lays out by itself
    assert frontend.page.evaluate(OVERLAPS) == []
    assert frontend.page.evaluate(WIRES) == []
    assert settled(frontend.page, CUT, frontend.modern) == []

    # What takes time in a run is the same in both designs, so most templates run in one of them.
    if frontend.modern == bool(TEMPLATES.index(path) % 2) and path not in (START, SIMPLE):
        return
    frontend.page.evaluate(MAKE_QUICK)
    history = frontend.run()
    assert history["status"]["status_str"] == "success"
    assert frontend.reports(history) or path == START  # whose only node of ours is inside
    assert frontend.page.evaluate(OVERLAPS) == []
    # The reports are neither saved nor sent.
    assert not any("report" in node["inputs"] for node in frontend.prompt().values())
    assert {number: len(kept[1]) for number, kept in slots(frontend.saved()).items()} == {
        number: len(kept[1]) for number, kept in values.items()
    }


def settled(page, script: str, argument) -> list:
    """What a script finds once the page has come to rest: nothing, or what is still there after seconds.

    Text has its place some time after a node has, on a busy machine.
    """
    for _ in range(20):
        found = page.evaluate(script, argument)
        if not found:
            break
        page.wait_for_timeout(300)
    return found


@pytest.mark.parametrize("path", [START, SIMPLE], ids=lambda path: path.stem)
def test_a_painted_picture_dropped_on_the_canvas_brings_its_workflow_back(path, frontend, server):
    frontend.open(path)
    frontend.page.evaluate(MAKE_QUICK)
    here = frontend.prompt()
    history = frontend.run()
    (image,) = next(
        output["images"] for output in history["outputs"].values()
        if output.get("images") and output["images"][0]["type"] == "output"
    )
    frontend.open(SAVE)
    file = server.base / "output" / image["subfolder"] / image["filename"]
    frontend.page.evaluate(OPEN_PICTURE, [file.name, list(file.read_bytes())])
    count = len(json.loads(path.read_text(encoding="utf-8"))["nodes"])
    frontend.page.wait_for_function(f"app.graph.nodes.length === {count}")
    seeds = {"seed", "noise_seed"}  # another one after each run
    bare = [
        {number: {name: node["inputs"][name] for name in {*node["inputs"]} - seeds} for number, node in one.items()}
        for one in (frontend.prompt(), here)
    ]
    assert bare[0] == bare[1]


def test_the_simple_node_shows_its_inputs_in_order_and_saves_them_as_ever(frontend):
    frontend.open(SIMPLE)
    shown = frontend.page.evaluate("""() => app.graph.nodes.find((n) => n.type === "ZImageVLCondition").widgets
        .map((w) => [w.name, !!w.options?.advanced])""")
    sight = [name for name, advanced in shown if not advanced and name != "report"]
    assert sight == ["prompt", "recipe", "mode", "strength"] == [name for name, _ in shown][:4]
    assert shown[-1][0] == "report"
    workflow = json.loads(SIMPLE.read_text(encoding="utf-8"))
    (own,) = [node for node in workflow["nodes"] if node["type"] == "ZImageVLCondition"]
    (kept,) = [node for node in frontend.saved()["nodes"] if node["type"] == "ZImageVLCondition"]
    assert kept["widgets_values"] == own["widgets_values"]


@pytest.mark.parametrize(
    ("way", "ends"), [("automatic", [0, 1.5]), ("aligned blend", [0, 1.5]), ("learned look", [0, 2])]
)
def test_the_slider_goes_as_far_as_the_way_takes_it_and_keeps_what_was_stored(way, ends, frontend):
    frontend.open(SIMPLE)
    found = frontend.page.evaluate("""(way) => {
      const node = app.graph.nodes.find((n) => n.type === "ZImageVLCondition");
      const [mode, strength] = ["mode", "strength"].map((name) => node.widgets.find((w) => w.name === name));
      strength.value = 2.5;
      mode.value = way;
      mode.callback?.(way);
      return [[strength.options.min, strength.options.max], strength.value];
    }""", way)
    assert found == [ends, 2.5]
    (sent,) = [one["inputs"] for one in frontend.prompt().values() if one["class_type"] == "ZImageVLCondition"]
    assert sent["strength"] == 2.5 and sent["mode"] == way


@pytest.mark.parametrize("asked", ["ip adapter", "style", "reference"])
def test_a_search_finds_the_start_before_any_other_node_of_ours(asked, frontend, info):
    frontend.open(SAVE)
    frontend.page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    box = frontend.page.locator("input:focus")
    box.fill(asked)
    frontend.page.wait_for_timeout(600)
    listed = "\n".join(frontend.page.locator("[role=option], [id^=result-item]").all_inner_texts())
    frontend.page.keyboard.press("Escape")
    titles = {*(told["display_name"] for name, told in info.items() if name.startswith("ZImageVL")), BLUEPRINT}
    ours = [line for line in map(str.strip, listed.splitlines()) if line in titles]
    assert ours and ours[0] in ("Z-Image Vision Conditioning", BLUEPRINT)


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.usefixtures("saved_embeddings")
def test_a_workflow_saved_before_keeps_its_values(path, frontends, server_module, info):
    frontend = frontends(bool(SAVED.index(path) % 2))  # either design reads values in the same way
    frontend.errors.clear()
    frontend.open(path)
    new = set()
    old = server_module.to_prompt(json.loads(path.read_text(encoding="utf-8")), info)
    for number, node in frontend.prompt().items():
        now, before = node["inputs"], old[number]["inputs"]
        assert {**now, **before} == now
        optional = info[node["class_type"]]["input"].get("optional", {})
        assert {name: now[name] for name in set(now) - set(before)} == {
            name: optional[name][1]["default"] for name in set(now) - set(before)
        }
        new |= set(now) - set(before)
    if path.parent.name == "saved_0_1_0":
        assert {"words", "recipe"} & new
    assert frontend.errors == []


def test_a_second_run_replaces_the_report_and_a_visit_to_another_tab_keeps_it(frontend):
    frontend.open(SIMPLE)
    frontend.page.evaluate(MAKE_QUICK)
    texts = []
    for strength in (0.25, 0.75):
        frontend.set("ZImageVLCondition", "strength", strength)
        history = frontend.run()
        (box,) = frontend.reports(history).values()
        texts.append(box["shown"])
    assert "0.25" in texts[0] and "0.75" in texts[1] and "0.25" not in texts[1]

    visit_another_tab(frontend)
    assert frontend.reports(history)


# Notes what the node's box says whenever words arrive, after ours has heard of them.
WATCH_WORDS = """() => {
  window.soFar = [];
  const note = ({ detail }) => {
    const box = app.graph.getNodeById(Number(detail.node))?.widgets.find((w) => w.name === "report");
    window.soFar.push([detail.words, box?.value]);
  };
  window.app.api.addEventListener("zimagevl.words", note);
}"""
FOREIGN_WORDS = """(node) => {
  const before = app.rootGraph.id;
  app.rootGraph.id = crypto.randomUUID();
  window.app.api.dispatchCustomEvent("zimagevl.words", { node, words: "not mine" });
  app.rootGraph.id = before;
}"""


def test_words_so_far_stand_in_the_box_until_the_report_does(frontend, server):
    server.post("/free", {"free_memory": True, "unload_models": True})
    frontend.open(SIMPLE)
    frontend.page.evaluate(MAKE_QUICK)
    frontend.set("ZImageVLCondition", "image_tokens", 60 + frontend.modern)  # not words that were written before
    frontend.page.evaluate(WATCH_WORDS)
    boxes = frontend.reports(frontend.run())
    told = frontend.page.evaluate("window.soFar")
    assert told and all(shown == (words if len(words) <= 240 else f"… {words[-240:]}") for words, shown in told)
    (node,) = boxes
    frontend.page.evaluate(FOREIGN_WORDS, node)
    assert frontend.page.evaluate(BOX, ["ZImageVLCondition", frontend.modern]) == boxes[node]["shown"]


def visit_another_tab(frontend) -> None:
    """Open another workflow and come back."""
    here = "app.extensionManager.workflow.activeWorkflow.path"
    left = frontend.page.evaluate(here)
    frontend.open(SAVE)
    assert frontend.page.evaluate(here) != left
    frontend.page.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    painting = "app.graph.nodes.some((n) => n.type === 'KSampler')"
    frontend.page.wait_for_function(f"{here} === {json.dumps(left)} && {painting}")
    frontend.show_all()


def test_choices_that_bring_inputs_of_their_own_and_a_second_picture_work(frontend):
    frontend.open(OPEN)
    frontend.page.evaluate(MAKE_QUICK)
    frontend.set("ZImageVLMaskOutliers", "mode", "scale")
    frontend.set("ZImageVLNormalize", "mode", "hybrid")
    frontend.set("ZImageVLBlend", "method", "resample")
    frontend.page.evaluate("""() => {
      const [picture, encode] = ["LoadImage", "ZImageVLEncode"].map((t) => app.graph.nodes.find((n) => n.type === t));
      picture.connect(0, encode, encode.inputs.findIndex((slot) => slot.name === "images.image1"));
    }""")
    frontend.page.wait_for_function(
        "app.graph.nodes.find((n) => n.type === 'ZImageVLEncode').inputs.some((slot) => slot.name === 'images.image2')"
    )
    sent = {node["class_type"]: node["inputs"] for node in frontend.prompt().values()}
    assert sent["ZImageVLMaskOutliers"]["mode.gamma"] == 0.5
    assert {"mode.weight": 0.5, "mode.clip": 3}.items() <= sent["ZImageVLNormalize"].items()
    assert sent["ZImageVLBlend"]["method.antialias"] is True
    assert sent["ZImageVLEncode"]["images.image0"] == sent["ZImageVLEncode"]["images.image1"]

    history = frontend.run()
    assert history["status"]["status_str"] == "success"
    boxes = frontend.reports(history)
    assert any("hybrid" in box["shown"] for box in boxes.values())
    assert any("resample" in box["shown"] for box in boxes.values())


def test_plots_get_the_room_that_words_do_not_need(frontend):
    frontend.open(LAYERS)
    frontend.page.evaluate(MAKE_QUICK)
    frontend.set("ZImageVLLayerReport", "layers", "-1, -2")
    frontend.reports(frontend.run())
    if not frontend.modern:  # Nodes 2.0 lays out by itself
        heights = """app.graph.nodes.find((n) => n.type === "ZImageVLLayerReport").widgets
            .filter((w) => w.element?.tagName === "TEXTAREA").map((w) => w.computedHeight)"""
        frontend.page.wait_for_function(f"{heights}.every((height) => height <= 120)")


# How many pictures of a size a node shows.
PICTURES = """([type, modern, width, height]) => {
  const node = app.graph.nodes.find((n) => n.type === type);
  const images = modern ? document.querySelectorAll(`[data-node-id="${node.id}"] img`) : node.imgs ?? [];
  return [...images].filter((image) => image.naturalWidth === width && image.naturalHeight === height).length;
}"""


def test_a_learned_look_is_shown_once_and_a_visit_to_another_tab_keeps_it(frontend, server):
    frontend.open(LEARN)
    frontend.page.evaluate(MAKE_QUICK)
    frontend.set("ZImageVLLookLearn", "seed", 1 + frontend.modern)  # else it was learned before
    # A model that has learned nothing never ends what it writes; the template's own run asks it for words.
    frontend.set("ZImageVLLookLearn", "words", "flat colours")
    frontend.set("ZImageVLLookLearn", "shows", "a hill")
    history = frontend.run()
    frontend.reports(history)
    (shown,) = next(
        output["images"] for output in history["outputs"].values() if output.get("text", [""])[0].startswith("Learned")
    )
    with Image.open(server.base / shown["type"] / shown["subfolder"] / shown["filename"]) as picture:
        asked = ["ZImageVLLookLearn", frontend.modern, *picture.size]
    seen = []
    for move in (lambda: None, lambda: visit_another_tab(frontend)):
        move()
        frontend.page.wait_for_function(f"(asked) => ({PICTURES})(asked)", arg=asked)
        frontend.page.wait_for_timeout(1500)  # whatever else comes
        seen.append(frontend.page.evaluate(PICTURES, asked))
    assert seen == [1, 1]


def test_a_sweep_shows_its_grid_on_the_node(frontend, server, tmp_path):
    frontend.open(SWEEP)
    frontend.page.evaluate(MAKE_QUICK)
    frontend.set("ZImageVLGrid", "title", "a lighthouse on a hill by the sea")
    history = frontend.run()
    assert history["status"]["status_str"] == "success"
    (shown,) = next(output["images"] for number, output in history["outputs"].items() if number == "15")
    with Image.open(server.base / shown["type"] / shown["subfolder"] / shown["filename"]) as page:
        expected = np.asarray(page.convert("L").resize((64, 64), Image.Resampling.BOX)).astype(float)
        width, height = page.size
    # 3 columns beside the labels of 2 rows, under the reference and the words alone, none of them shrunk
    assert width > 3 * 256 and height > 3 * 256

    frontend.page.wait_for_function(GRID_BOX, arg=[frontend.modern, width, height])
    picture = tmp_path / "sweep_grid.png"
    until = time.monotonic() + 20
    while True:  # the node grows to hold its picture, and is drawn some frames later on a busy machine
        box = frontend.page.evaluate(GRID_BOX, [frontend.modern, width, height])
        frontend.page.screenshot(path=picture, clip=box)
        with Image.open(picture) as seen:
            found = np.asarray(seen.convert("L").resize((64, 64), Image.Resampling.BOX)).astype(float)
        likeness, of_mirrored = (
            np.corrcoef(side.flatten(), expected.flatten())[0, 1] for side in (found, found[:, ::-1])
        )
        if likeness > 0.8 and of_mirrored < 0.5:
            return
        assert time.monotonic() < until, (likeness, of_mirrored, box)
        frontend.page.wait_for_timeout(300)


BOX = """([type, modern]) => {
  const node = app.graph.nodes.find((n) => n.type === type);
  const element = modern
    ? [...document.querySelectorAll(`[data-node-id="${node.id}"] textarea[readonly]`)].at(-1)
    : node.widgets.find((w) => w.name === "report").element;
  return element?.value;
}"""


def wait_for_box(frontend, node_type: str, expected: str) -> str:
    """What a node's box says, once that has the words."""
    until = time.monotonic() + 30
    while expected not in (found := frontend.page.evaluate(BOX, [node_type, frontend.modern]) or ""):
        assert time.monotonic() < until, found
        time.sleep(0.1)
    return found


def test_an_error_is_said_in_the_nodes_own_box_and_goes_with_the_next_run(frontend):
    frontend.open(SIMPLE)
    frontend.page.evaluate(MAKE_QUICK)
    frontend.reports(frontend.run())
    before = frontend.page.evaluate(BOX, ["ZImageVLCondition", frontend.modern])
    frontend.set("ZImageVLCondition", "weights", "1, 2, nonsense")
    assert frontend.run()["status"]["status_str"] == "error"
    found = wait_for_box(frontend, "ZImageVLCondition", "Error: weights: expected numbers with commas")
    assert before not in found
    frontend.set("ZImageVLCondition", "weights", "")
    history = frontend.run()
    assert history["status"]["status_str"] == "success"
    assert all("Error" not in box["shown"] for box in frontend.reports(history).values())
    frontend.errors.clear()  # the frontend itself writes a failed run to the console


def test_a_refusal_is_said_in_the_nodes_own_box_and_marks_one_input(frontend):
    frontend.open(SIMPLE)
    frontend.page.evaluate(MAKE_QUICK)
    frontend.set("ZImageVLCondition", "image_tokens", 99999)
    frontend.page.evaluate("app.queuePrompt(0)")
    found = wait_for_box(frontend, "ZImageVLCondition", "bigger than max of 16384")
    assert found.splitlines()[0] == "Not run." and len(found.splitlines()) == 2
    frontend.errors.clear()


@pytest.mark.parametrize("width", [360, 1300])
def test_an_evaluations_pictures_keep_their_shape_beside_their_nulls(chromium, part, tmp_path, width):
    """Two nulls with their words are higher than the picture that they stand beside."""
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "cell.png")
    nulls = [("cell.png", name, name) for name in ("another", "noise")]
    nothing = dict.fromkeys(("doubt", "frontier", "recipes", "layers", "judge", "facts", "summary", "title"), "")
    empty = dict.fromkeys(("words", "claims", "artifacts", "best", "seconds", "second"), ())
    written = part("vl_core.headless.pages").write_page(
        tmp_path / "index.html", "evaluate/page.html", **nothing, **empty, side=140, prompts=["a boat"],
        pictures=[("words alone", "", [("cell.png", "alone", [])]), ("words", "", [("cell.png", "words", nulls)])],
        kinds={}, arms={}, parts={}, nulls=(), asked={}, evidence=SimpleNamespace(figures=[]),
    )
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(written.as_uri())
    page.wait_for_function("[...document.images].every((one) => one.complete)")
    found = page.evaluate(SHAPES)
    page.close()
    assert [name for name, *_ in found] == ["alone", "words", "another", "noise"]
    for _, natural, drawn in found:
        assert drawn == pytest.approx(natural, rel=0.02)


def test_the_server_logged_no_exception(server):
    assert server.complaints() == []
