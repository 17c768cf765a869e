"""README and docs: their links lead somewhere, every page has its place, and what they quote is what the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from miniature.show.tables import fill_settings

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(DOCS.glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ (.*)$", re.M)
FENCE = re.compile(r"```.*?```", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for pair in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        link = unquote(pair[0] or pair[1])
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


def test_every_page_stands_in_the_reading_order():
    listed = {link.split("#")[0] for link, _ in LINK.findall((DOCS / "README.md").read_text(encoding="utf-8"))}
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= listed


TEMPLATES = [path.stem for path in sorted((ROOT / "workflows").glob("*.json"))]
HELP = sorted((ROOT / "web" / "docs").rglob("*.md"))
NAMED = re.compile(r"[*`]((?:\d|Advanced \d|Research \d|Other models -) [A-Za-z][^*`]*)[*`]|[Tt]emplate (\d)\b")


@pytest.mark.parametrize("page", [*PAGES, *HELP], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_names_templates_that_there_are(page):
    named = [name or number for name, number in NAMED.findall(FENCE.sub("", page.read_text(encoding="utf-8")))]
    assert [name for name in named if not any(template.startswith(name) for template in TEMPLATES)] == []


def test_readme_lists_every_template():
    rows = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    listed = [name for line in rows for name in re.findall(r"`([^`]+)`", line.split("|")[1])]
    assert sorted(name for name in listed if name in TEMPLATES) == TEMPLATES


def test_the_table_of_settings_is_the_engines():
    page = (DOCS / "parameters.md").read_text(encoding="utf-8")
    assert fill_settings(page) == page, "run python -m miniature tables --out docs --models miniature/models"


def sentences() -> str:
    """Every text in the code, what is filled in written as …; adjacent literals are one."""
    found = []
    files = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "vl_core").rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
    return "\n".join(found)


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages, said = re.findall(r"^### (.*)$", page, re.M), sentences()
    assert len(messages) > 20
    for message in messages:
        assert message.removesuffix("…").strip() in said, message


TESTS = re.compile(r"\btests/[\w/]+\.py\b")
PYTEST = re.compile(r"python -m pytest ([^`\n]*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    assert [name for name in TESTS.findall(text) if not (ROOT / name).is_file()] == []
    for command in PYTEST.findall(text):
        asked = re.search(r'-k (?:"([^"]*)"|(\S+))', command)
        files = [ROOT / name for name in TESTS.findall(command)]
        if not asked or not files:
            continue
        words = [word for word in re.split(r"\W+", asked[1] or asked[2]) if word not in ("or", "and", "not", "")]
        names = " ".join(name for file in files for name in re.findall(r"def (test_\w+)", file.read_text("utf-8")))
        assert any(word in names for word in words), command
