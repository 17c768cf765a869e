"""What an evaluation comes to: records of its cells, which settings are better, evidence, recipes, and the page."""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import json
import math
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from ...steering.recipes import parse_recipe
from ...steering.settings import Settings
from ...steering.sweep import Cell
from ..compare.nulls import NULL
from .arms import NOTE
from .evidence import KIND, VERSION, Evidence, Record, seal, to_json
from .figures import Ground, beats_nulls, figures_of, keeps, score
from .ground import JUDGED, MEASURED, PAINTED, SCORED
from .judging import adherence, leak, look
from .kept import write_whole
from .layers import layers_of
from .plan import Rung
from .runner import Evaluation

Kind = Literal["words", "caption", "way"]
EVIDENCE, RECIPES = "evidence.json", "recipes"
THUMBNAIL = 96  # pixels
PACKAGES = ("torch", "diffusers", "transformers")
NEEDS_FILE = ("picture adapter", "learned look")


def records_of(evaluation: Evaluation) -> list[Record]:
    """A record for every painting that is whole: painted, measured and asked about."""
    done = set.intersection(*(set(evaluation.rows[name]) for name in (PAINTED, MEASURED, JUDGED)))
    cells: dict[str, tuple[Kind, str, Cell]] = {}
    seeds = 1 + max((trial.seed for trial in evaluation.trials), default=0)
    for seed in range(seeds):
        for prompt in range(len(evaluation.sheet.prompts)):
            cell = evaluation.sheet.words_alone(prompt, seed)
            cells[cell.id] = "words", "", cell
    for rung in evaluation.rungs:
        for arm, row in zip(
            (*rung.arms, *rung.arms), rung.cells(evaluation.sheet, evaluation.by_id, evaluation.trials), strict=False
        ):
            for cell in row:
                cells[cell.id] = "way", arm, cell
    found = [
        _record(evaluation, kind, arm, cell) for id, (kind, arm, cell) in cells.items() if id in done
    ]
    for place, told in enumerate(evaluation.told):
        for seed in range(seeds):
            cell = evaluation.sheet.bound(told.caption, seed)
            if cell.id in done:
                found.append(_record(evaluation, "caption", "", cell, place))
    return found


def _record(evaluation: Evaluation, kind: Kind, arm: str, cell: Cell, caption_of: int = -1) -> Record:
    measured, judged = evaluation.rows[MEASURED][cell.id], evaluation.rows[JUDGED][cell.id]
    answers, form, told = judged["answers"], evaluation.form, evaluation.told
    extra: dict[str, Any] = dict(cell.extra)
    null = extra.get(NULL, "")
    if kind == "way":
        picture, prompt = evaluation.places(cell)
        about = [picture] if null else [picture, (picture - 1) % len(told)]
    elif kind == "words":
        picture, prompt = -1, [one.text for one in evaluation.sheet.prompts].index(extra["prompt"])
        about = list(range(len(told)))
    else:
        picture, prompt, about = caption_of, -1, [caption_of]
    leaks = {str(place): leak(form, told[place], answers) for place in about}
    return Record(
        id=cell.id, kind=kind, arm=arm, null=null, picture=picture, prompt=prompt, seed=cell.seed,
        weights=evaluation.rows[PAINTED][cell.id]["weights"],
        adherence=None if prompt < 0 else adherence(form, evaluation.sheet.prompts[prompt].things, answers),
        look={str(place): look(form, told[place], answers) for place in about},
        leak={place: value for place, value in leaks.items() if not math.isnan(value)},
        mass=min((one[1] for one in answers.values()), default=0.0), artifacts=measured["artifacts"],
        fidelity=measured["fidelity"], scores=evaluation.rows[SCORED].get(cell.id, {}).get("scores", {}),
        seconds={"painting": evaluation.rows[PAINTED][cell.id]["seconds"], "asking": judged["seconds"]},
    )


def scores(evaluation: Evaluation, rung: Rung) -> dict[str, tuple[bool, float]]:
    """Of a rung's arms which is better, see :func:`~.figures.score`."""
    records = records_of(evaluation)
    ground = Ground.of(records, len(evaluation.pictures))
    found = {id: figures_of(id, records, ground) for id in rung.arms}
    return {id: score(one) if one is not None else (False, -math.inf) for id, one in found.items()}


def evidence_of(evaluation: Evaluation, layers: str, with_pictures: bool = False) -> Evidence:
    """All figures, sealed."""
    records, sheet = records_of(evaluation), evaluation.sheet
    ground = Ground.of(records, len(evaluation.pictures))
    figures = [figures_of(arm.id, records, ground) for arm in evaluation.arms]
    prompts = [
        {"name": one.name, "language": one.language, "things": list(one.things), "text": one.text}
        if one.builtin or with_pictures else {"name": one.name, "text_hash": _hash(one.text)} for one in sheet.prompts
    ]
    pictures = []
    for one, told in zip(sheet.references, evaluation.told, strict=True):
        said: dict[str, Any] = {}
        if one.builtin or with_pictures:
            said = {"parts": dict(told.parts), "caption": told.caption}
        if with_pictures:
            said["thumbnail"] = thumbnail(evaluation.reference(one.key))
        pictures.append({"name": one.name if one.builtin or with_pictures else one.key, "key": one.key, **said})
    return seal({
        "kind": KIND, "version": VERSION, "made": made(sheet.models.identity()), "machine": machine(evaluation),
        "weights": evaluation.hashes, "weights_id": sheet.weights,
        "asked": {
            "prompts": prompts, "pictures": pictures, "seeds": 1 + max(trial.seed for trial in evaluation.trials),
            "minutes": evaluation.minutes, "painting": sheet.models.identity(), "parts": list(evaluation.form.parts),
            "rungs": [rung.as_dict() for rung in evaluation.rungs], "looks": evaluation.looks_said,
            "score": evaluation.scored_by,
        },
        "trust": evaluation.trust, "layers": layers,
        "arms": [
            {"id": arm.id, "group": arm.group, "label": arm.label, "settings": arm.settings.effective(),
             "about": list(arm.about)} for arm in evaluation.arms
        ],
        "records": [one.model_dump() for one in records],
        "figures": [one.model_dump() for one in figures if one is not None],
    })


def thumbnail(file: Path) -> str:
    """A picture of 96 pixels as a JPEG in base64."""
    from PIL import Image

    written = io.BytesIO()
    with Image.open(file) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(written, "JPEG", quality=80)
    return base64.b64encode(written.getvalue()).decode("ascii")


def made(identity: Mapping[str, Any]) -> dict[str, str]:
    """When and with which versions, and what the models are called."""
    found = {"date": datetime.date.today().isoformat(), "python": platform.python_version()}
    for name in ("zimage-vl", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return {**found, "zimage": str(identity["zimage"]), "vision": str(identity["vision"])}


def machine(evaluation: Evaluation) -> dict[str, Any]:
    """What it was painted on, and the most memory that each model's turns took."""
    device = evaluation.turns.loaders.device
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "memory_gb": round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1) if on_gpu else None,
        "dtype": evaluation.sheet.models.dtype, "batch": evaluation.batch,
        "peak_gb": {name: round(taken / 1e9, 2) for name, taken in evaluation.turns.peak.items()},
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- recipes --------------------------------------------------------------------------------------------------------


def finalists(evidence: Evidence) -> list[tuple[Any, Any]]:
    """Each way's best setting with its figures, the best way first."""
    arms, last = {arm.id: arm for arm in evidence.arms}, evidence.asked.rungs[-1]["arms"]
    found = [(arms[one.arm], one) for one in evidence.figures if one.arm in last and arms[one.arm].group != NOTE]
    return sorted(found, key=lambda both: score(both[1]), reverse=True)


def recipes_of(evidence: Evidence, settings: Mapping[str, Settings]) -> dict[str, dict[str, Any]]:
    """The best setting as a recipe by its file's name; beside it the best that needs no further file.

    Only of ways that keep to the prompt and lie above their nulls.
    """
    good = [(arm, figures) for arm, figures in finalists(evidence) if keeps(figures) and beats_nulls(figures)]
    chosen = good[:1] + [both for both in good[1:] if both[0].group not in NEEDS_FILE][:1]
    if chosen and chosen[0][0].group not in NEEDS_FILE:
        chosen = chosen[:1]
    found = {}
    for arm, figures in chosen:
        needs = f" It needs a {arm.group}." if arm.group in NEEDS_FILE else ""
        name = f"measured: {arm.group} ({evidence.made['zimage']})"[:60]
        values = settings[arm.id].effective()
        content = {
            "name": name,
            "meaning": f"The best setting found with {evidence.made['zimage']} and {evidence.made['vision']}: "
            f"{figures.transfer:.2f} of what a caption brings, {figures.pairs} pairs, {evidence.made['date']}.{needs}",
            "settings": {
                key: value for key, value in values.items()
                if key in ("way", "strength", "take") or value != getattr(Settings, key)
            },
        }
        parse_recipe(content, name)
        found[f"measured_{arm.group.replace(' ', '_').replace(':', '')}.json"] = content
    return found


def write_results(evaluation: Evaluation, arguments: Any) -> list[Path]:
    """Evidence, recipes and page; their paths."""
    from .page import write_page

    folder = evaluation.folder
    evidence = evidence_of(evaluation, layers_of(evaluation), arguments.with_pictures)
    write_whole(folder / EVIDENCE, to_json(evidence))
    recipes = recipes_of(evidence, {arm.id: arm.settings for arm in evaluation.arms})
    shutil.rmtree(folder / RECIPES, ignore_errors=True)
    written = []
    for name, content in recipes.items():
        for place in (folder / RECIPES, *([Path(arguments.recipes)] if arguments.recipes else [])):
            write_whole(place / name, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
            written.append(place / name)
    return [*written, folder / EVIDENCE, write_page(evaluation, evidence, recipes)]
