"""What people read: tooltips, help pages and the Chinese texts name what the schemas have, no more and no less."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
WRITTEN_FOR = Path(__file__).with_name("chinese_of.json")
NODE_IDS = [
    f"ZImageVL{name}" for name in (
        "Condition", "Loader", "Encode", "SelectTokens", "MaskOutliers", "Normalize", "Blend", "Delta", "Describe",
        "DescribeFolder",
        "AdapterFit", "AdapterApply", "LookLearn", "LookApply",
        "Reference", "MatchSpace", "Inspect", "LayerReport", "Sweep", "Grid", "Save",
        "LoadSaved",
    )
]
COMPILED = set("@{}|")  # vue-i18n reads names, titles and descriptions as messages, in which these are syntax
CHINESE = re.compile(r"[\u4e00-\u9fff]")
ROW = re.compile(r"^- \*\*(?P<name>[\w.]+)\*\* \((?P<default>[^)]*)\): (?P<effect>.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def schemas(part) -> dict:
    """Every node's schema by its id."""
    return {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in part("nodes").NODES}


@pytest.fixture(params=NODE_IDS)
def schema(request, schemas):
    return schemas[request.param]


@pytest.fixture
def page(schema) -> str:
    """The node's help page, where the frontend looks for it: WEB_DIRECTORY/docs/<node id>.md."""
    return (PACK / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def chinese() -> dict:
    return json.loads((PACK / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))


def kind(input) -> str:
    return input.get_io_type()


def named_inputs(schema) -> Iterator[tuple[str, object]]:
    """Inputs as people name them: ``mode``, and ``mode.gamma`` once for every option that has it."""
    for input in schema.inputs:
        yield input.id, input
        if kind(input) == "COMFY_DYNAMICCOMBO_V3":
            yield from ((f"{input.id}.{inner.id}", inner) for option in input.options for inner in option.inputs)


def shown_inputs(schema) -> dict[str, object]:
    """Inputs by the names that the node shows."""
    return {getattr(input, "display_name", None) or name: input for name, input in named_inputs(schema)}


def sockets(schema) -> Iterator[tuple[str, object]]:
    """Inputs as the frontend names them: as above, and every socket that an Autogrow can grow."""
    yield from named_inputs(schema)
    for input in schema.inputs:
        if kind(input) == "COMFY_AUTOGROW_V3":
            yield from ((f"{input.id}.{name}", input.template.input) for name in input.template.names)


def default_in_words(input) -> str:
    """An input's default as a help page writes it."""
    if kind(input) == "COMFY_DYNAMICCOMBO_V3":
        return input.options[0].key
    if kind(input) == "COMFY_AUTOGROW_V3":
        return "optional" if input.template.min == 0 else "required"
    if kind(input) == "COMBO":
        return input.default or "first found"  # only lists of files have no default
    if kind(input) == "BOOLEAN":
        return "on" if input.default else "off"
    if kind(input) == "STRING":
        return input.default or "empty"
    if kind(input) in ("INT", "FLOAT"):
        return f"{input.default:g}"
    return "optional" if input.optional else "required"


def texts(entry: dict) -> Iterator[str]:
    for value in entry.values():
        yield from texts(value) if isinstance(value, dict) else [value]


def test_the_nodes_of_the_pack_are_the_ones_tested_here(schemas):
    assert list(schemas) == NODE_IDS


def test_every_node_says_what_it_does_and_every_input_what_turning_it_does(schema):
    assert schema.display_name and schema.description
    silent = [name for name, input in sockets(schema) if not (input.tooltip or "").strip()]
    assert not silent


# --- help pages -----------------------------------------------------------------------------------------------------


def test_there_is_no_help_page_for_a_node_that_is_gone():
    assert sorted(path.stem for path in (PACK / "web" / "docs").glob("*.md")) == sorted(NODE_IDS)


def test_a_help_page_has_the_nodes_title_and_every_section_filled(schema, page):
    title, *sections = re.split(r"^#+ (.+)$", page, flags=re.MULTILINE)[1:]
    assert title == schema.display_name
    summary, headings, bodies = sections[0], sections[1::2], sections[2::2]
    assert headings == ["When to use it", "Inputs", "Outputs", "Good to know", "A typical chain"]
    assert all(text.strip() for text in (summary, *bodies))


def test_a_help_page_explains_every_input_once_and_nothing_else(schema, page):
    explained = [row["name"] for row in ROW.finditer(page)]
    assert sorted(explained) == sorted(shown_inputs(schema))
    assert all(row["effect"].strip() for row in ROW.finditer(page))


def test_a_help_page_fits_into_its_panel(page):
    """It is as wide as a side bar: tables are cut off there."""
    assert not [line for line in page.splitlines() if line.lstrip().startswith("|")]


def test_a_help_page_has_one_picture_which_there_is(schema, page):
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert picture == f"images/{schema.node_id}.jpg" and (PACK / "web" / "docs" / picture).is_file()


def test_a_help_page_gives_the_schemas_defaults(schema, page):
    written = {row["name"]: row["default"] for row in ROW.finditer(page)}
    assert written == {name: default_in_words(input) for name, input in shown_inputs(schema).items()}


def test_a_help_page_marks_the_inputs_that_are_hidden_as_advanced(schema, page):
    marked = {row["name"] for row in ROW.finditer(page) if row["effect"].endswith("(advanced)")}
    assert marked == {name for name, input in shown_inputs(schema).items() if input.advanced}


def test_a_help_page_explains_every_option_of_a_choice(schema, page):
    effects = {row["name"]: row["effect"] for row in ROW.finditer(page)}
    for name, input in shown_inputs(schema).items():
        if kind(input) == "COMFY_DYNAMICCOMBO_V3":
            options = [option.key for option in input.options]
        elif kind(input) == "COMBO" and input.default:
            # Files that other tests have saved are no options to explain.
            options = [option for option in input.options if not option.endswith(".safetensors")]
        else:
            continue
        assert [option for option in options if f"`{option}`" not in effects[name]] == []


def test_a_help_page_names_every_output(schema, page):
    described = page.split("## Outputs")[1].split("\n## ")[0]
    assert all(f"`{output.display_name or kind(output)}`" in described for output in schema.outputs)
    assert schema.outputs or "None." in described


def test_help_pages_call_other_nodes_by_the_names_they_show(schemas, page):
    shown = {schema.display_name for schema in schemas.values()} | {"Load CLIP", "CLIP Text Encode"}
    templates = {path.stem for path in (PACK / "workflows").glob("*.json")}
    assert set(re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", page)) <= shown | templates


# --- plain words ----------------------------------------------------------------------------------------------------

# Words of the code, of which nobody at a node knows what they mean.
CODE = re.compile(
    r"curve_end|no layout|without a layout|its layout describes|\b1 (sinks|tokens|pictures|prompts|dimensions)\b|"
    r"\bhidden_states\b|\bdataclass\b|\bkwargs\b|\btensor\b|x/rms\(x\) raw"
)
LONGEST_TOOLTIP = 140  # letters: two lines


def said_in(folder: str) -> Iterator[tuple[str, str]]:
    """Every string of the code that can reach a node, with its file: all but what documents the code."""
    for path in sorted((PACK / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = {
            id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                yield path.name, node.value


def test_no_string_that_reaches_a_node_has_words_of_the_code():
    found = list(said_in("nodes"))
    for folder in ("stages", "adapters", "looks", "steering", "reports"):
        found += said_in(f"vl_core/{folder}")
    assert len(found) > 1000
    names = re.compile(r"[\w .-]{0,40}")  # of settings and options, which are no sentences
    assert [(name, text) for name, text in found if CODE.search(text) and not names.fullmatch(text)] == []


def test_a_tooltip_takes_two_lines_at_most(schema):
    assert [(name, len(one.tooltip)) for name, one in sockets(schema) if len(one.tooltip) > LONGEST_TOOLTIP] == []


# --- Chinese --------------------------------------------------------------------------------------------------------


@pytest.fixture
def chinese_page(schema) -> str:
    """The help page that the frontend asks for first where the language is Chinese."""
    return (PACK / "web" / "docs" / schema.node_id / "zh.md").read_text(encoding="utf-8")


def test_a_chinese_help_page_explains_every_input_and_every_output(schema, chinese_page, chinese):
    title, *_ = chinese_page.splitlines()
    assert title == f"# {chinese[schema.node_id]['display_name']}"
    explained = re.findall(r"^- \*\*[^*]+\*\* `([\w.]+)` \([^)]*\): .+$", chinese_page, re.MULTILINE)
    assert sorted(explained) == sorted(shown_inputs(schema))
    described = chinese_page.split("## 输出")[1].split("\n## ")[0]
    assert all(f"`{output.display_name or kind(output)}`" in described for output in schema.outputs)
    headings = re.findall(r"^## (.+)$", chinese_page, re.MULTILINE)
    assert headings == ["何时使用", "输入", "输出", "须知", "典型流程"]
    # Pictures are looked for beside the English pages, whatever the language.
    assert f"(images/{schema.node_id}.jpg)" in chinese_page


def test_a_chinese_help_page_says_of_inputs_what_their_tooltips_say(schema, chinese_page, chinese):
    told = [entry["tooltip"] for name, entry in chinese[schema.node_id]["inputs"].items() if not name[-1].isdigit()]
    assert [tooltip for tooltip in told if tooltip not in chinese_page] == []


def test_no_chinese_text_is_older_than_its_english(schemas):
    """Of each English text a checksum is kept that the Chinese beside it was written for.

    Who changes an English text reads its Chinese again, mends it, and then lets this test note the new checksums:
    ZIMAGE_VL_CHINESE=read, for one run.
    """
    english = {schema.node_id: f"{schema.display_name}\n{schema.description}" for schema in schemas.values()}
    for schema in schemas.values():
        for name, one in sockets(schema):
            english.setdefault(f"{schema.node_id}.{name}", "")
            english[f"{schema.node_id}.{name}"] += one.tooltip
    now = {name: f"{zlib.crc32(text.encode()):08x}" for name, text in sorted(english.items())}
    if os.environ.get("ZIMAGE_VL_CHINESE") == "read":
        WRITTEN_FOR.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(WRITTEN_FOR.read_text(encoding="utf-8"))
    assert [name for name in {**now, **kept} if now.get(name) != kept.get(name)] == []


def test_there_is_no_chinese_help_page_for_a_node_that_is_gone():
    assert sorted(path.parent.name for path in (PACK / "web" / "docs").glob("*/zh.md")) == sorted(NODE_IDS)


def test_the_chinese_texts_belong_to_our_nodes_and_leave_none_out(chinese):
    assert list(chinese) == NODE_IDS


def test_every_input_has_a_chinese_name_and_tooltip_and_none_is_left_over(schema, chinese):
    # The frontend looks an input up by its name with dots made underscores: mode.gamma is mode_gamma.
    expected = {name.replace(".", "_") for name, _ in sockets(schema)}
    inputs = chinese[schema.node_id]["inputs"]
    assert set(inputs) == expected
    assert all(set(entry) == {"name", "tooltip"} for entry in inputs.values())


def test_no_two_inputs_share_a_key_of_the_frontend(schema):
    names = {name for name, _ in sockets(schema)}
    assert len({name.replace(".", "_") for name in names}) == len(names)


def test_every_output_has_a_chinese_name_by_its_number(schema, chinese):
    outputs = chinese[schema.node_id].get("outputs", {})
    assert list(outputs) == [str(index) for index in range(len(schema.outputs))]
    assert all(entry["name"] for entry in outputs.values())


def test_no_chinese_text_is_empty_and_every_sentence_is_chinese(schema, chinese):
    entry = chinese[schema.node_id]
    assert all(text.strip() for text in texts(entry))
    sentences = [entry["description"], *(input["tooltip"] for input in entry["inputs"].values())]
    assert all(CHINESE.search(sentence) for sentence in sentences)


def test_chinese_tooltips_keep_the_options_by_the_names_the_node_shows(schema, chinese):
    # The frontend does not translate options, so a tooltip that explains them must call them what they are called.
    for name, input in named_inputs(schema):
        options = [option.key for option in input.options] if kind(input) == "COMFY_DYNAMICCOMBO_V3" else ()
        if kind(input) == "COMBO" and input.default:
            options = input.options
        tooltip = chinese[schema.node_id]["inputs"][name.replace(".", "_")]["tooltip"]
        explained = [option for option in options if f"{option}:" in input.tooltip]
        assert [option for option in explained if option not in tooltip] == []


def test_no_chinese_name_holds_what_the_frontend_takes_for_syntax(schema, chinese):
    entry = chinese[schema.node_id]
    named = [*entry["inputs"].values(), *entry.get("outputs", {}).values()]
    compiled = [entry["display_name"], entry["description"], *(item["name"] for item in named)]
    assert not [text for text in compiled if COMPILED & set(text)]


def test_the_category_has_a_chinese_name(schema):
    main = json.loads((PACK / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
    *above, ours = schema.category.split("/")
    assert above == ["model", "conditioning"]  # core translates these
    assert CHINESE.search(main["nodeCategories"][ours]) and list(main["nodeCategories"]) == [ours]


def test_comfyui_serves_the_chinese_texts(base_folder, schemas, tmp_path, monkeypatch):
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    shutil.copytree(PACK / "locales", tmp_path / "zimage-vl" / "locales")
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda name: [str(tmp_path)])
    served = CustomNodeManager().build_translations()
    assert list(served["zh"]["nodeDefs"]) == list(schemas)
    assert "nodeCategories" in served["zh"]
