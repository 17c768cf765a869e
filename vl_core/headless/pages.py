"""Pages that need no network, from the Jinja2 templates that lie beside the modules; what they are given is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..states.files import write_whole

FOLDER = Path(__file__).parent


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Fill a template, such as ``"compare/report.html"``, into a file."""
    write_whole(path, _environment().get_template(template).render(**values))
    return path
