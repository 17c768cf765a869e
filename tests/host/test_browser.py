"""The workflows in the real frontend: they open, run, and every node of ours shows its report, in both designs."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need: pip install playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need chromium: apt install chromium")

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
SIMPLE, OPEN = WORKFLOWS / "1 Start here - reference picture.json", WORKFLOWS / "Advanced 1 - every step a node.json"
SAVE = WORKFLOWS / "Advanced 3 - save what was read.json"
SWEEP = WORKFLOWS / "8 Compare settings side by side.json"
LAYERS = WORKFLOWS / "Advanced 5 - every layer measured.json"
SAVED = sorted(path for name in ("0_1_0", "0_1_1") for path in Path(__file__).with_name(f"saved_{name}").glob("*.json"))
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]
GOOD = {"boxes": 1, "readOnly": True, "uncovered": True, "inside": True, "high": True}  # how a report should look
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
HARMLESS = ("Failed to load resource", "graph accessed before initialization")  # said by the bare frontend, too

OPEN_FILE = "([name, text]) => app.handleFile(new File([text], name, { type: 'application/json' }))"

# Look at little and paint small, so that a run takes seconds.
MAKE_QUICK = """() => {
  const small = {
    EmptySD3LatentImage: { width: 256, height: 256 }, KSampler: { steps: 2 },
    EmptyFlux2LatentImage: { width: 256, height: 256 }, Flux2Scheduler: { steps: 2, width: 256, height: 256 },
    ImageScaleToTotalPixels: { megapixels: 0.0625 },
    ZImageVLCondition: { image_tokens: 64 }, ZImageVLEncode: { image_tokens: 64 }, ZImageVLSweep: { image_tokens: 64 },
  };
  for (const node of app.graph.nodes)
    for (const widget of node.widgets ?? [])
      if (small[node.type]?.[widget.name]) widget.value = small[node.type][widget.name];
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


class Frontend:
    """A page with ComfyUI's frontend, and what it complained about."""

    def __init__(self, page, server, modern: bool):
        self.page, self.server, self.modern, self.errors = page, server, modern, []
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

    def run(self) -> dict:
        """Press Run and wait; gives the history entry, in which every node of ours took part."""
        ours = set(self.page.evaluate(REPORTS, self.modern))
        for _ in range(3):
            # A node whose result the server still knows does not run and reports nothing; what it knows, it drops soon.
            self.server.post("/free", {"free_memory": True})
            time.sleep(0.3)
            history = self._run_once()
            if history["status"]["status_str"] != "success" or ours <= set(history["outputs"]):
                break
        return history

    def _run_once(self, seconds: float = 120) -> dict:
        before = set(self.server.get("/history"))
        assert self.page.evaluate("app.queuePrompt(0)"), "the frontend could not queue the workflow"
        until = time.monotonic() + seconds
        while not (new := set(self.server.get("/history")) - before):
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
            context = chromium.new_context(viewport={"width": 1920, "height": 1080})
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
def saved_embeddings(server, server_module):
    """Something for the workflow that loads embeddings."""
    if not (server.base / "output" / "vl_embeddings" / "reference_00001.safetensors").is_file():
        workflow = json.loads(SAVE.read_text(encoding="utf-8"))
        server.run(server_module.to_prompt(workflow, server.get("/object_info")))


def slots(workflow: dict) -> dict[int, tuple]:
    """What makes a saved node: type, values, and which sockets are connected."""
    return {
        node["id"]: (
            node["type"],
            node.get("widgets_values") or [],
            sorted(slot["name"] for slot in node.get("inputs", []) if slot.get("link") is not None),
        )
        for node in workflow["nodes"]
    }


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_a_workflow_opens_runs_and_shows_its_reports(path, frontend, saved_embeddings, server, server_module):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    frontend.page.evaluate("app.refreshComboInNodes()")
    frontend.open(path)
    assert frontend.page.get_by_role("dialog").count() == 0  # nothing is missing
    assert frontend.page.evaluate("app.graph.nodes.filter((n) => n.has_errors).map((n) => n.type)") == []
    # What the frontend would queue is what the file says, and it would be saved again as it is.
    assert frontend.prompt() == server_module.to_prompt(workflow, server.get("/object_info"))
    assert slots(frontend.saved()) == slots(workflow)
    assert frontend.page.evaluate(OVERLAPS) == []

    frontend.page.evaluate(MAKE_QUICK)
    history = frontend.run()
    assert history["status"]["status_str"] == "success"
    assert frontend.reports(history)
    assert frontend.page.evaluate(OVERLAPS) == []
    # The reports are neither saved nor sent.
    assert not any("report" in node["inputs"] for node in frontend.prompt().values())
    assert [len(values) for _, values, _ in slots(frontend.saved()).values()] == [
        len(values) for _, values, _ in slots(workflow).values()
    ]


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.usefixtures("saved_embeddings")
def test_a_workflow_saved_before_keeps_its_values(path, frontend, server, server_module):
    frontend.page.evaluate("app.refreshComboInNodes()")
    frontend.open(path)
    info, new = server.get("/object_info"), set()
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

    here = "app.extensionManager.workflow.activeWorkflow.path"
    left = frontend.page.evaluate(here)
    frontend.open(SAVE)
    assert frontend.page.evaluate(here) != left
    frontend.page.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    painting = "app.graph.nodes.some((n) => n.type === 'KSampler')"
    frontend.page.wait_for_function(f"{here} === {json.dumps(left)} && {painting}")
    frontend.show_all()
    assert frontend.reports(history)


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
    box = frontend.page.evaluate(GRID_BOX, [frontend.modern, width, height])
    picture = tmp_path / "sweep_grid.png"
    frontend.page.screenshot(path=picture, clip=box)
    with Image.open(picture) as seen:
        found = np.asarray(seen.convert("L").resize((64, 64), Image.Resampling.BOX)).astype(float)
    likeness, of_mirrored = (
        np.corrcoef(side.flatten(), expected.flatten())[0, 1] for side in (found, found[:, ::-1])
    )
    assert likeness > 0.8 and of_mirrored < 0.5


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


def test_the_server_logged_no_exception(server):
    assert server.complaints() == []
