"""A study: pictures × prompts × a plan of settings, every cell of it known before anything is painted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ...reports.controls import shuffled
from ...states.fields import Field, Value
from ...states.files import parse_json
from ...steering.axes import SEED, SWEPT, Axis, parse_axis
from ...steering.settings import Settings
from ...steering.sweep import Cell, Plan, make_plan
from ...zimage import checks
from ...zimage.files import load_picture
from .nulls import NULLS, SHUFFLED, choose_nulls, null_cell, shuffled_key
from .presets import PRESETS, Preset

DENOISE, THINK = "denoise", "think"
# What a comparison can vary besides the settings of the way.
EXTRA: dict[str, Field] = {
    DENOISE: Field(float, 0.01, 1, meaning="Paint over the first picture; 1 starts from noise."),
    THINK: Field(bool, meaning="An empty think block after the prompt."),
}
PLAINLY: dict[str, Value] = {DENOISE: 1.0, THINK: False}
NEEDS_ADAPTER = "picture adapter"
# What the research note's runner calls its selections of tokens.
TOKEN_NAMES = {"full": "all", "text_only": "text", "image_only": "image", "image_no_special": "image_no_markers"}
MAX_CELLS = 4096
DIGITS = 16  # of a picture's hash
UNSEEN = ("device", "layer", "questions", "image_tokens")  # of the models: no difference, or a setting of its own


@dataclass(frozen=True)
class Models:
    """What paints, and how. Plain values: it travels to other machines, where the folders must be too.

    Attributes:
        zimage, vision: folders of Z-Image (diffusers) and Qwen3-VL (Hugging Face).
        reference, adapter: files of reference statistics and of a picture adapter; "" for none.
        questions: (take, what is asked, where the answer goes) for a Qwen3-VL that knows other words than the takes'.
        layer: the deepest hidden state that is needed, negative from the end; blocks above it are not loaded.
    """

    zimage: str
    vision: str
    reference: str = ""
    adapter: str = ""
    questions: tuple[tuple[str, str, str], ...] = ()
    device: str = "auto"
    dtype: str = "bfloat16"
    steps: int = 9
    guidance: float = 0.0
    negative: str = ""
    width: int = 1024
    height: int = 1024
    image_tokens: int = 1024
    layer: int = -1

    def identity(self) -> dict[str, Value]:
        """What makes a difference to pictures; names in place of paths."""
        plain = {name: value for name, value in asdict(self).items() if name not in UNSEEN}
        for name in ("zimage", "vision", "reference", "adapter"):
            plain[name] = Path(plain[name]).resolve().name if plain[name] else ""
        return {f"{name}_file" if name == "adapter" else name: value for name, value in plain.items()}


@dataclass(frozen=True)
class Group:
    """One set of pictures beside one prompt.

    Attributes:
        name: of files and headings. ``files``: names of the pictures. ``key``: stands for their content.
    """

    name: str
    prompt: str
    files: tuple[str, ...]
    key: str
    plan: Plan


@dataclass(frozen=True)
class Control:
    """The null of one cell.

    Attributes:
        kind: one of ``NULLS``. ``painted``: the cell that is painted for it.
    """

    group: Group
    cell: Cell
    kind: str
    painted: Cell

    @property
    def id(self) -> str:
        """Of its line in the results: among other pictures another one is the next."""
        return f"{self.cell.id}-{self.kind}-{self.painted.id}"


@dataclass(frozen=True)
class Study:
    """All groups, what paints them, and the kinds of null controls that every cell has."""

    title: str
    models: Models
    groups: tuple[Group, ...]
    nulls: tuple[str, ...] = ()

    @cached_property
    def cells(self) -> tuple[tuple[Group, Cell], ...]:
        """Every picture to paint, once, in order: baselines of a group before what is compared with them."""
        found: dict[str, tuple[Group, Cell]] = {}
        for group in self.groups:
            for cell in sorted(group.plan.unique, key=lambda cell: baseline_of(group.plan, cell).id != cell.id):
                found.setdefault(cell.id, (group, cell))
        return tuple(found.values())

    @cached_property
    def controls(self) -> tuple[Control, ...]:
        """The nulls of every cell that stands on an axis, each once."""
        keys = list(dict.fromkeys(group.key for group in self.groups))
        found: dict[str, Control] = {}
        for group in self.groups:
            for kind in self.nulls:
                for cell in group.plan.cells:
                    control = Control(group, cell, kind, null_cell(kind, cell, keys))
                    found.setdefault(control.id, control)
        return tuple(found.values())

    @cached_property
    def painted(self) -> tuple[Cell, ...]:
        """All that has to be painted, cells before what only nulls need: another picture's null is a cell itself."""
        found = {cell.id: cell for _, cell in self.cells}
        for control in self.controls:
            found.setdefault(control.painted.id, control.painted)
        return tuple(found.values())

    @property
    def settings(self) -> tuple[Settings, ...]:
        """Of every cell, each once."""
        return tuple(dict.fromkeys(cell.settings for _, cell in self.cells))

    def as_dict(self) -> dict[str, Any]:
        return {
            "title": self.title, "models": self.models.identity(), "nulls": list(self.nulls),
            "groups": [
                {
                    "name": group.name, "prompt": group.prompt, "pictures": list(group.files),
                    "plan": group.plan.as_dict(),
                }
                for group in self.groups
            ],
        }

    def describe(self) -> str:
        """A line for people."""
        plan = self.groups[0].plan.describe()
        many = f"{len(self.groups)} × " if len(self.groups) > 1 else ""
        line = f"{self.title}: {many}{plan}" + (f", {len(self.cells)} in all" if many else "")
        if self.nulls:
            kinds, more = ", ".join(NULLS[kind] for kind in self.nulls), len(self.painted) - len(self.cells)
            line += f"; null controls: {kinds}" + (f", {more} more to paint" if more else "")
        return line


def baseline_of(plan: Plan, cell: Cell) -> Cell:
    """What a cell is compared with: the words alone at its seed, denoise and think; itself if there are none."""
    words = plan.baseline_of(cell)
    if words is not None:
        return words
    for other in plan.unique:
        if other.words_only and other.seed == cell.seed and other.extra == cell.extra:
            return other
    return cell


def choose_axes(
    preset: str | None, given: Mapping[str, Sequence[str]], seeds: Sequence[str] = ()
) -> tuple[list[Axis], dict[str, Value], str]:
    """Axes and base of a comparison; what is given explicitly always wins over the preset.

    Args:
        preset: one of ``PRESETS``, or None.
        given: name -> values as people write them. Several make an axis, in the preset's place for it if it has one;
            one holds throughout.
        seeds: likewise.

    Returns:
        the axes, what holds besides, and a title.

    Raises:
        ValueError: for a preset, a name or a value there is not.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--sweep: expected one of {', '.join(PRESETS)}, got {preset!r}.")
    chosen = PRESETS[preset] if preset is not None else Preset("chosen settings", {})
    axes = {name: parse_axis(name, text, EXTRA) for name, text in chosen.axes.items()}
    base = dict(chosen.base)
    for name, texts in [*given.items(), (SEED, seeds)]:
        if not texts:
            continue
        axis = parse_axis(name, ", ".join(TOKEN_NAMES.get(text, text) for text in texts), EXTRA)
        first, *more = axis.values
        if more:
            axes[axis.name] = axis
        else:
            axes.pop(axis.name, None)
            base[axis.name] = first
    return list(axes.values()), base, preset or "comparison"


def make_study(
    models: Models, pictures: Sequence[Sequence[str]], prompts: Mapping[str, str], axes: Sequence[Axis],
    base: Mapping[str, Value], title: str, nulls: Sequence[str] | None = None,
) -> tuple[Study, dict[str, list[Tensor]]]:
    """The study, checked to its last cell, and the pictures by key, those of nulls among them.

    Args:
        pictures: files of each set. ``prompts``: by name.
        nulls: see :func:`choose_nulls`.

    Raises:
        FileNotFoundError, ValueError: for pictures that cannot be read, settings that do not go together, two prompts
            that are the same.
    """
    if len(set(prompts.values())) < len(prompts):
        raise ValueError("--prompt: expected every prompt once, got one more often.")
    left: dict[str, Any] = dict(base)
    seed = left.pop(SEED, 0)
    besides = {name: left.pop(name, plain) for name, plain in PLAINLY.items()}
    settings = {name: value for name, value in left.items() if name in SWEPT}
    strengths = next((axis.values for axis in axes if axis.name == "strength"), (settings.get("strength", 1),))
    has_words = 0 in strengths  # then the words alone are cells of their own
    shown: dict[str, list[Tensor]] = {}
    groups = []
    for files in pictures:
        key = _content(files)
        shown[key] = [load_picture(path, "--image", models.image_tokens) for path in files]
        for name, prompt in prompts.items():
            extra = {**besides, **models.identity(), "prompt": prompt, "pictures": key}
            plan = make_plan(axes, settings, seed, extra=extra, baseline=not has_words, limit=MAX_CELLS)
            names = tuple(Path(path).name for path in files)
            groups.append(Group(f"{Path(names[0]).stem}, {name}", prompt, names, key, plan))
    kinds = choose_nulls(nulls, list(shown))
    if SHUFFLED in kinds:
        shown |= {shuffled_key(key): [shuffled(one, key) for one in each] for key, each in shown.items()}
    study = Study(title, models, tuple(groups), kinds)
    if not models.adapter and any(one.way == NEEDS_ADAPTER and one.strength for one in study.settings):
        raise ValueError("--adapter: the way picture adapter needs a file, got none. Make one with `fit`.")
    return study, shown


def read_prompts(path: str) -> dict[str, str]:
    """Prompts by name from a YAML or JSON file: a list of texts, or names and texts.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read, or holds anything else.
    """
    text = checks.readable_text(path, "--prompts")
    try:
        if path.lower().endswith(".json"):
            content = parse_json(text, "JSON")
        else:
            checks.require_packages("yaml")
            import yaml

            content = yaml.safe_load(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--prompts: {path} cannot be read ({error}).") from error
    except Exception as error:  # yaml's own errors are no ValueError
        if type(error).__module__.startswith("yaml"):
            raise ValueError(f"--prompts: {path} cannot be read ({' '.join(str(error).split())}).") from error
        raise
    if isinstance(content, list):
        content = {f"prompt {number}": text for number, text in enumerate(content, 1)}
    fits = isinstance(content, dict) and content and all(isinstance(value, str) for value in content.values())
    if not fits:
        raise ValueError(f"--prompts: expected a list of texts, or names and texts, in {path}.")
    return {str(name): text for name, text in content.items()}


def _content(files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(checks.readable_file(path, "--image").read_bytes()).digest())
    return digest.hexdigest()[:DIGITS]
