"""Write the tables of docs/performance.md from the JSON in benchmarks/results."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .common import RESULTS, table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- benchmark: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def add_arguments(parser) -> None:
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")


def run(arguments) -> None:
    old = PAGE.read_text(encoding="utf-8")
    new = fill(old)
    if arguments.check:
        raise SystemExit(f"{PAGE.name} is out of date: python -m benchmarks tables" if new != old else 0)
    PAGE.write_text(new, encoding="utf-8")
    print(f"{PAGE.name}: {len(BLOCK.findall(new))} tables")


def fill(page: str, results: Path = RESULTS) -> str:
    """The page with every block between ``<!-- benchmark: NAME -->`` and ``<!-- end -->`` made anew.

    A benchmark that was not run leaves its block empty.
    """
    return BLOCK.sub(lambda block: block[1] + _content(results / f"{block[2]}.json") + block[3], page)


def _content(path: Path) -> str:
    if not path.is_file():
        return ""
    result = json.loads(path.read_text(encoding="utf-8"))
    machine = result["machine"]
    threads = f", {machine['threads']} threads" if machine["threads"] else ""
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    head = f"`{result['command']}`: {machine['device']}{threads}, torch {machine['torch']}, {result['date']}"
    return f"{head}{f' ({settings})' if settings else ''}\n\n{table(result['rows'])}\n"
