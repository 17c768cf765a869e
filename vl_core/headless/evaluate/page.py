from pathlib import Path


def write_page(evaluation, evidence, recipes) -> Path:
    return evaluation.folder / "index.html"
