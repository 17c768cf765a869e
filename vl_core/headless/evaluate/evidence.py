"""``evidence.json``: every figure of an evaluation in one small file, with what it was measured on.

The file names the weights by their hashes and holds no picture and no words of its owner's, unless they are asked for.
A digest over its figures finds edits and damage. It is no signature: who wants to forge a file can.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...states.files import check_content

KIND, VERSION = "zimage-vl evidence", 1
PROMPT = "prompt"  # among scores
SHARE = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """Strict: a file of another shape is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Record(Part):
    """One painting.

    Attributes:
        kind: "words" alone, a picture's own "caption", a "way" or its null.
        picture, prompt: their places in the lists that were asked; -1 for none.
        look: by the place of a reference how far each part of its look is there; ``leak``: how far what it shows is.
        scores: by a second judge the cosine to each reference, by its place, and to what was painted from, "prompt".
    """

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    kind: Literal["words", "caption", "way"]
    arm: str
    null: Literal["", "noise"]
    picture: Annotated[int, Field(ge=-1)]
    prompt: Annotated[int, Field(ge=-1)]
    seed: Annotated[int, Field(ge=0)]
    weights: str
    adherence: SHARE | None
    look: dict[str, dict[str, SHARE]]
    leak: dict[str, SHARE]
    mass: SHARE
    artifacts: dict[str, float] | None
    fidelity: dict[str, float]
    scores: dict[str, float] = {}
    seconds: dict[str, float]


class Figures(Part):
    """One setting; None where there is nothing to tell.

    Attributes:
        transfer: mean of ``parts``; ``nulls``: by name the transfer that a null reaches, and its error.
        leak: what the reference shows is there by so much more than with the words alone.
        second: transfer by a second judge, by name what it and its nulls reach, each with its error.
        artifacts: by kind how many times those of the words alone; ``artifacts_log``: the natural logarithm of that, a
            mean over kinds, and its error.
    """

    arm: str
    cells: int
    pairs: int
    transfer: float | None
    transfer_error: float | None
    parts: dict[str, float]
    adherence: float | None
    adherence_error: float | None
    words_adherence: float | None
    leak: float | None
    leak_error: float | None
    nulls: dict[str, list[float | None]]
    artifacts: dict[str, float]
    artifacts_log: list[float | None]
    seconds: float
    second: dict[str, list[float | None]] = {}


class ArmSaid(Part):
    """A setting that was tried: every value that makes a difference."""

    id: str
    group: str
    label: str
    settings: dict[str, Any]
    about: list[str]


class Asked(Part):
    """What was asked: built-in prompts and pictures by name, others by a hash.

    Attributes:
        looks: how looks were learned, or why not; "" where they were given, or not wanted.
        score: name of a second judge and what its files are; "" for none.
    """

    prompts: list[dict[str, Any]]
    pictures: list[dict[str, Any]]
    seeds: int
    minutes: float
    painting: dict[str, Any]
    parts: list[str]
    rungs: list[dict[str, Any]]
    looks: str = ""
    score: str = ""


class Evidence(Part):
    """The whole file."""

    kind: Literal["zimage-vl evidence"]
    version: Literal[1]
    made: dict[str, str]
    machine: dict[str, Any]
    weights: dict[str, dict[str, str]]
    weights_id: str
    asked: Asked
    trust: dict[str, Any]
    arms: list[ArmSaid]
    records: list[Record]
    figures: list[Figures]
    layers: str
    digest: str


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of all but the digest itself."""
    plain = {name: value for name, value in content.items() if name != "digest"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_id(weights: Mapping[str, Mapping[str, str]]) -> str:
    """One short name for all files of weights: cells of others have another."""
    text = json.dumps(weights, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seal(content: Mapping[str, Any]) -> Evidence:
    """The evidence of a content, its digest put in.

    Raises:
        ValueError: if it lacks or garbles something.
    """
    whole = check_content(Evidence, {**content, "digest": ""}, "evidence").model_dump()
    return Evidence.model_validate({**whole, "digest": digest_of(whole)})


def to_json(evidence: Evidence) -> str:
    return json.dumps(evidence.model_dump(), ensure_ascii=False, indent=None, separators=(",", ":")) + "\n"


def check(content: Any, name: str) -> Evidence:
    """A file's content as evidence, if nothing in it was changed.

    Raises:
        ValueError: for a file of another kind, figures that were edited, records of other weights, or figures that do
            not follow from the records.
    """
    from .figures import Ground, figures_of

    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise ValueError(f"{name}: expected the evidence of an evaluation, got another file.")
    if content.get("version") != VERSION:
        raise ValueError(f"{name}: expected version {VERSION}, got {content.get('version')!r}. Update zimage-vl.")
    found = check_content(Evidence, content, name)
    if digest_of(content) != found.digest:
        raise ValueError(f"{name}: was changed after it was written: its digest is that of other figures.")
    if weights_id(found.weights) != found.weights_id:
        raise ValueError(f"{name}: names weights whose hashes give another id than it says.")
    others = sorted({record.weights for record in found.records} - {found.weights_id})
    if others:
        raise ValueError(f"{name}: mixes weights: records of {', '.join(others)} beside {found.weights_id}.")
    ground = Ground.of(found.records, len(found.asked.pictures))
    for said in found.figures:
        again = figures_of(said.arm, found.records, ground)
        if again is None or not alike(said.model_dump(), again.model_dump()):
            raise ValueError(f"{name}: the figures of {said.arm} are not those of its records.")
    return found


def alike(one: Any, other: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return abs(one - other) <= 1e-6 * max(1.0, abs(one))
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other
