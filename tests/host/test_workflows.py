"""The workflows as shipped: complete, tidy, and they run to the end on a real server with tiny models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
FILES = sorted(WORKFLOWS.glob("*.json"))
SIMPLE = WORKFLOWS / "1 Start here - reference picture.json"
SAVE = WORKFLOWS / "Advanced 3 - save what was read.json"
REUSE = WORKFLOWS / "Advanced 4 - paint with what was saved.json"
NOTES = {"MarkdownNote", "Note"}
LOADERS = {"CLIPLoader": "text_encoders", "UNETLoader": "diffusion_models", "VAELoader": "vae"}
TITLE = 30  # height of a node's title, which lies above its position
NARROWEST = 225  # what Nodes 2.0 makes of a narrower node
SLOT = 20  # of a socket
CHINESE = re.compile(r"[\u4e00-\u9fff]")

every_workflow = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def working_nodes(workflow: dict) -> list[dict]:
    """All nodes that do something, those in subgraphs as well."""
    inside = {one["id"]: one["nodes"] for one in workflow.get("definitions", {}).get("subgraphs", [])}
    nodes = [*workflow["nodes"], *(node for nodes in inside.values() for node in nodes)]
    return [node for node in nodes if node["type"] not in NOTES and node["type"] not in inside]


def notes_of(workflow: dict) -> list[dict]:
    return [node for node in workflow["nodes"] if node["type"] in NOTES]


def graphs(workflow: dict) -> Iterator[tuple[list[dict], list[tuple], list[dict]]]:
    """Nodes, links and groups of a workflow and of each subgraph; links as (origin, output, target, input)."""
    yield workflow["nodes"], [tuple(link[1:5]) for link in workflow["links"]], workflow["groups"]
    for one in workflow.get("definitions", {}).get("subgraphs", []):
        links = [
            (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"]) for link in one["links"]
            if link["origin_id"] >= 0 <= link["target_id"]
        ]
        yield one["nodes"], links, one["groups"]


def box_of(node: dict) -> tuple[float, float, float, float]:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + max(width, NARROWEST), y + height


def wire(origin: dict, output: int, target: dict, number: int) -> list[tuple[float, float]]:
    """Points along a wire, as LiteGraph draws it: a Bézier curve that leaves and arrives level."""
    sockets = [index for index, slot in enumerate(target["inputs"]) if "widget" not in slot]
    row = sockets.index(number) if number in sockets else len(sockets) + 1
    start = origin["pos"][0] + origin["size"][0], origin["pos"][1] + (output + 0.7) * SLOT
    end = target["pos"][0], target["pos"][1] + (row + 0.7) * SLOT
    reach = math.dist(start, end) / 4
    corners = (start, (start[0] + reach, start[1]), (end[0] - reach, end[1]), end)
    points = []
    for step in range(1, 80):
        t = step / 80
        shares = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        mixed = list(zip(shares, corners, strict=True))
        points.append((sum(share * x for share, (x, _) in mixed), sum(share * y for share, (_, y) in mixed)))
    return points


@pytest.fixture(scope="module")
def info(server):
    return server.get("/object_info")


@pytest.fixture(scope="module")
def to_prompt(server_module, info):
    """The API prompt of a workflow file."""
    return lambda path: server_module.to_prompt(read(path), info)


@pytest.fixture(scope="module")
def finished(server, server_module, to_prompt):
    """Run a workflow once and give its prompt and history entry; the one that saves goes before the one that loads."""
    done = {}

    def run(path: Path) -> tuple[dict, dict]:
        if path == REUSE:
            run(SAVE)
        if path not in done:
            prompt = server_module.quick(to_prompt(path))
            done[path] = prompt, server.run(prompt)
        return done[path]

    return run


def test_the_workflows_read_in_the_order_to_learn_them_and_are_all_there():
    assert [path.stem for path in FILES] == [
        "1 Start here - reference picture",
        "2 Take style, colours or light",
        "3 The look in words",
        "4 Several pictures",
        "5 Learn a look",
        "6 Picture adapter",
        "7 Paint over a picture",
        "8 Compare settings side by side",
        "Advanced 1 - every step a node",
        "Advanced 2 - where and when it acts",
        "Advanced 3 - save what was read",
        "Advanced 4 - paint with what was saved",
        "Advanced 5 - every layer measured",
        "Other models - FLUX.2 klein",
        "Other models - Z-Image base",
        "Research 1 - append picture tokens",
        "Research 2 - mean of layers",
        "Research 3 - image delta",
    ]


@every_workflow
def test_a_workflow_uses_only_nodes_that_exist(path, info):
    assert {node["type"] for node in working_nodes(read(path))} - set(info) == set()


@every_workflow
def test_a_workflow_chooses_only_what_its_lists_offer(path, info, to_prompt):
    for node in to_prompt(path).values():
        if not node["class_type"].startswith("ZImageVL"):
            continue  # models and pictures are the user's
        specs = info[node["class_type"]]["input"]
        for name, (kind, *more) in {**specs.get("required", {}), **specs.get("optional", {})}.items():
            offered = kind if isinstance(kind, list) else more[0].get("options") if kind == "COMBO" else None
            value = node["inputs"].get(name)
            if isinstance(value, str) and offered and not value.endswith(".safetensors"):
                assert value in offered, f"{node['class_type']}.{name}"


@every_workflow
def test_a_workflow_names_the_models_it_needs_and_where_to_get_them(path):
    for node in working_nodes(read(path)):
        if node["type"] in LOADERS:
            (model,) = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0]
            assert model["directory"] == LOADERS[node["type"]]
            assert model["url"].startswith("https://huggingface.co/Comfy-Org/")
            assert model["url"].endswith("/" + model["name"])


@every_workflow
def test_a_workflow_says_what_to_do_in_english_and_chinese_left_of_everything(path):
    workflow = read(path)
    texts = [note["widgets_values"][0] for note in notes_of(workflow)]
    assert texts[0].startswith("## ")
    english, chinese = texts[0].split("\n---\n")
    assert not CHINESE.search(english)
    assert CHINESE.search(chinese) and chinese.strip().startswith("## ")
    assert chinese.count("\n") == english.count("\n")  # as many steps and paragraphs
    needed = [m["name"] for node in working_nodes(workflow) for m in node["properties"].get("models", [])]
    assert needed and all(name in "\n".join(texts) for name in needed)
    others = [node["pos"][0] for node in workflow["nodes"] if node["type"] not in NOTES]
    assert all(note["pos"][0] + note["size"][0] < min(others) for note in notes_of(workflow))


@every_workflow
def test_a_workflow_paints_another_picture_each_time_and_compares_by_one_seed(path):
    for nodes, links, _ in graphs(read(path)):
        named = {node["id"]: node for node in nodes}
        samplers = [node["id"] for node in nodes if node["type"] in ("KSampler", "RandomNoise")]
        seeds = {
            target: named.get(origin) for origin, _, target, number in links
            if target in samplers and named[target]["inputs"][number]["name"] == "seed"
        }
        # What is painted beside something else differs from it in one thing: both get the seed of a node of its own.
        if len(samplers) > 1:
            assert set(seeds) == set(samplers) and len({node["id"] for node in seeds.values()}) == 1
        for number in samplers:
            giver = seeds.get(number) or named[number]
            assert giver["type"] == "ZImageVLSweep" or giver["widgets_values"][1] == "randomize"


@every_workflow
def test_a_workflow_carries_nothing_private(path):
    text = path.read_text(encoding="utf-8")
    assert re.search(r'"(/|~|[A-Za-z]:)[^"]*[/\\]', text) is None  # a path of somebody's machine
    assert {slot["name"] for node in read(path)["nodes"] for slot in node["inputs"]}.isdisjoint({"report"})


@every_workflow
def test_no_node_lies_on_another_and_each_lies_in_a_group(path):
    for nodes, _, groups in graphs(read(path)):
        boxes = {f"{node['id']} {node['type']}": box_of(node) for node in nodes}
        for (one, a), (other, b) in combinations(boxes.items(), 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{one} and {other} overlap"
        bounds = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in groups)]
        assert all(group["title"] for group in groups)
        for name, (left, top, right, bottom) in boxes.items():
            if groups and name.split()[1] not in NOTES:
                assert any(g[0] <= left and g[1] <= top and right <= g[2] and bottom <= g[3] for g in bounds), name
        for a, b in combinations(bounds, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], "groups overlap"


@every_workflow
def test_no_wire_runs_behind_a_node(path):
    looked = 0
    for nodes, links, _ in graphs(read(path)):
        named = {node["id"]: node for node in nodes}
        for origin, output, target, number in links:
            for x, y in wire(named[origin], output, named[target], number):
                for left, top, right, bottom in map(box_of, nodes):
                    looked += 1
                    hidden = left + 4 < x < right - 4 and top + 4 < y < bottom - 4
                    assert not hidden, f"{named[origin]['type']} to {named[target]['type']}"
    assert looked


@every_workflow
def test_a_workflow_has_a_small_thumbnail_beside_it(path):
    thumbnails = [path.with_suffix(suffix) for suffix in (".jpg", ".webp") if path.with_suffix(suffix).is_file()]
    assert len(thumbnails) == 1
    assert thumbnails[0].stat().st_size < 60_000
    with Image.open(thumbnails[0]) as picture:
        assert picture.width == picture.height >= 400  # cards are square


def test_no_two_thumbnails_show_the_same_picture():
    shown = {path.stem: painting(path) for path in sorted(WORKFLOWS.glob("*.jpg"))}
    assert len(shown) == len(list(WORKFLOWS.glob("*.json")))
    for (name, one), (other, another) in combinations(shown.items(), 2):
        assert (np.abs(one - another).max(-1) > 24).mean() > 0.1, f"{name} and {other}"


def painting(path: Path) -> np.ndarray:
    """The large picture of a card, small; the card where it has none at its right."""
    with Image.open(path) as opened:
        card = opened.convert("RGB")
    paper = (np.abs(np.asarray(card)[300:460].astype(int) - 32) < 12).all((0, 2))  # columns beside the large picture
    right, bottom = card.width - 12, card.height - 12 - 32  # as cards.py leaves a margin, and room for a caption
    left = int(np.flatnonzero(paper[:right])[-1]) + 1
    if left < right:
        card = card.crop((left, bottom - (right - left), right, bottom))
    return np.asarray(card.resize((64, 64))).astype(int)


@every_workflow
def test_a_workflow_runs_to_the_end(path, finished, server):
    prompt, history = finished(path)
    assert history["status"]["status_str"] == "success"
    outputs = history["outputs"]
    painted = [number for number, node in prompt.items() if node["class_type"] == "SaveImage"]
    for number in painted:
        (saved,) = outputs[number]["images"]
        with Image.open(server.base / saved["type"] / saved["subfolder"] / saved["filename"]) as picture:
            is_grid = any(node["class_type"] == "ZImageVLGrid" for node in prompt.values())
            assert is_grid or picture.size == (128, 128)
            assert all(low < high for low, high in picture.convert("RGB").getextrema())
    if path == SAVE:
        assert (server.base / "output" / "vl_embeddings" / "reference_00001.safetensors").is_file()


@every_workflow
def test_every_node_of_ours_reports_what_it_did(path, finished):
    prompt, history = finished(path)
    ours = {number for number, node in prompt.items() if node["class_type"].startswith("ZImageVL")}
    assert ours
    assert {number for number in ours if not history["outputs"].get(number, {}).get("text")} == set(), history


def test_painting_over_starts_from_the_picture_and_keeps_more_of_it_the_less_is_painted_anew(
    server, server_module, to_prompt
):
    prompt = server_module.quick(to_prompt(WORKFLOWS / "7 Paint over a picture.json"))
    by_type = {node["class_type"]: node["inputs"] for node in prompt.values()}
    distances = []
    for denoise in (0.2, 0.9):
        by_type["KSampler"]["denoise"] = denoise
        outputs = server.run(prompt)["outputs"]
        (saved,) = next(output["images"] for output in outputs.values() if output.get("images"))
        with Image.open(server.base / "output" / saved["subfolder"] / saved["filename"]) as painted:
            found = np.asarray(painted.convert("RGB").resize((16, 16), Image.Resampling.BOX), float)
        with Image.open(server.base / "input" / by_type["LoadImage"]["image"]) as picture:
            given = np.asarray(picture.convert("RGB").resize((16, 16), Image.Resampling.BOX), float)
        distances.append(np.abs(found - given).mean())
    assert distances[0] < 0.7 * distances[1]


def test_the_open_pipeline_reads_one_prompt_with_both_encoders(to_prompt):
    prompt = to_prompt(WORKFLOWS / "Advanced 1 - every step a node.json")
    by_type = {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert by_type["ZImageVLEncode"]["prompt"] == by_type["CLIPTextEncode"]["text"]
    source, _ = by_type["CLIPTextEncode"]["text"]
    assert prompt[source]["class_type"] == "PrimitiveStringMultiline"


def test_reusing_saved_embeddings_needs_no_vision_model(to_prompt):
    prompt = to_prompt(REUSE)
    assert not any("qwen3vl" in str(node["inputs"]) for node in prompt.values())


@pytest.mark.parametrize(("name", "value", "choice"), [("mode", "telepathy", "words"), ("recipe", "x", "the look")])
def test_a_way_or_take_that_there_is_not_is_refused_before_anything_runs(name, value, choice, server, to_prompt):
    """The list itself takes the names of earlier versions (test_refusals.py), so the host says what it offers."""
    prompt = to_prompt(SIMPLE)
    (number,) = [key for key, node in prompt.items() if node["class_type"] == "ZImageVLCondition"]
    prompt[number]["inputs"] |= {name: value}
    status, answer = server.post("/prompt", {"prompt": prompt})
    assert status == 400
    (error,) = answer["node_errors"][number]["errors"]
    assert error["type"] == "value_not_in_list"
    assert name in error["details"] and repr(value) in error["details"] and repr(choice) in error["details"]


def test_embeddings_that_were_never_saved_are_refused_with_the_folder_that_was_searched(server, to_prompt):
    prompt = to_prompt(REUSE)
    (number,) = [key for key, node in prompt.items() if node["class_type"] == "ZImageVLLoadSaved"]
    prompt[number]["inputs"]["file"] = "nothing.safetensors"
    status, answer = server.post("/prompt", {"prompt": prompt})
    assert status == 400
    assert "vl_embeddings" in json.dumps(answer["node_errors"][number])


def test_all_of_this_left_no_exception_in_the_log(server):
    assert server.complaints() == []
