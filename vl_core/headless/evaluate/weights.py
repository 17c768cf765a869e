"""Which weights they are: SHA-256 of every file of them, read once and kept by size and date."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ...states.files import parse_json
from .kept import write_whole

CACHE = "hashes.json"
ENDINGS = (".safetensors", ".gguf", ".bin", "config.json")


def hashes_of(folders: dict[str, Path], cache: Path) -> dict[str, dict[str, str]]:
    """By folder and file the hash of what decides pictures: weights and configs.

    Args:
        cache: where hashes are kept, so that 30 GB are read once.
    """
    known = parse_json(cache.read_text(encoding="utf-8"), cache.name) if cache.is_file() else {}
    found: dict[str, dict[str, str]] = {}
    for role, folder in folders.items():
        files = [folder] if folder.is_file() else sorted(
            file for file in folder.rglob("*") if file.is_file() and file.name.endswith(ENDINGS)
        )
        found[role] = {}
        for file in files:
            state = file.stat()
            key = f"{file.resolve()} {state.st_size} {state.st_mtime_ns}"
            if key not in known:
                known[key] = _hash(file)
            found[role][file.name if folder.is_file() else file.relative_to(folder).as_posix()] = known[key]
    write_whole(cache, json.dumps(known, indent=1) + "\n")
    return found


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(1 << 24):
            digest.update(part)
    return digest.hexdigest()
