"""The world the miniature lives in: procedural scenes, their pictures, their captions, and questions about them.

A scene is one or two shapes on a plain ground, in one of eight styles (textures) and five moods (palettes). Everything
is drawn from a seed; :class:`HoldOut` splits the world into what may be fitted on and what is kept for testing.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black")
STYLES = ("flat", "outlined", "striped", "dotted", "grainy", "gradient", "checkered", "blurry")
MOODS = ("neutral", "warm", "cool", "pastel", "dark")
SIZES = ("small", "medium", "large")
POSITIONS = ("center", "left", "right", "top", "bottom")
ARRANGEMENTS = (("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top"))
LOOK = ("background", "style", "mood")  # what a reference picture lends to a prompt

SIDE = 128  # pixels
PATCH_GRID = 8  # the DiT's image tokens per side, 16 × 16 pixels each
TWO_SHAPES = 0.35  # share of scenes with two shapes
COVERED = 0.25  # a patch belongs to a shape that covers at least this share of it
HELD_COMBINATIONS = 8  # one in so many (background, style, mood) triples is kept for testing

RGB = (
    (0.86, 0.10, 0.10), (0.95, 0.50, 0.05), (0.95, 0.88, 0.10), (0.10, 0.62, 0.20), (0.10, 0.80, 0.85),
    (0.12, 0.25, 0.88), (0.48, 0.14, 0.72), (0.98, 0.42, 0.72), (0.96, 0.96, 0.96), (0.06, 0.06, 0.06),
)
# A mood is an affine map of RGB: multiplied, then added.
MOOD_GAIN = ((1.0, 1.0, 1.0), (1.05, 0.90, 0.62), (0.62, 0.90, 1.05), (0.42, 0.42, 0.42), (0.40, 0.40, 0.40))
MOOD_LIFT = ((0.0, 0.0, 0.0), (0.08, 0.02, 0.0), (0.0, 0.03, 0.08), (0.54, 0.54, 0.54), (0.0, 0.0, 0.0))
CENTRES = ((64.0, 64.0), (36.0, 64.0), (92.0, 64.0), (64.0, 36.0), (64.0, 92.0))  # of POSITIONS, x and y
RADII_ONE, RADII_TWO = (19.0, 27.0, 36.0), (16.0, 21.0, 26.0)


class Scene(NamedTuple):
    """One scene in plain numbers: indices into the tuples above."""

    objects: tuple[tuple[int, int, int], ...]  # (shape, colour, size) each
    background: int
    style: int
    mood: int
    arrangement: int
    position: int


@dataclass(frozen=True, eq=False)
class Scenes:
    """``N`` scenes as int64 tensors on one device; the second object is unused where ``count`` is 1."""

    shape: Tensor  # (N, 2)
    color: Tensor  # (N, 2)
    size: Tensor  # (N, 2)
    count: Tensor  # (N,): 1 or 2
    background: Tensor  # (N,), like the rest
    style: Tensor
    mood: Tensor
    arrangement: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index) -> Scenes:
        return self._each(lambda values: values[index])

    def to(self, device) -> Scenes:
        return self._each(lambda values: values.to(device))

    def _each(self, change) -> Scenes:
        return Scenes(**{field.name: change(getattr(self, field.name)) for field in fields(self)})

    def records(self) -> list[Scene]:
        """Plain numbers, for captions."""
        columns = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        return [
            Scene(
                tuple(zip(columns["shape"][i], columns["color"][i], columns["size"][i], strict=True))[:count],
                *(columns[name][i] for name in ("background", "style", "mood", "arrangement", "position")),
            )
            for i, count in enumerate(columns["count"])
        ]


@dataclass(frozen=True)
class HoldOut:
    """What is kept from fitting and asked in testing; nothing by default.

    Attributes:
        combinations: one in eight (background, style, mood) triples; every value and pair of values stays.
        style, background: one name left out altogether.
    """

    combinations: bool = False
    style: str | None = None
    background: str | None = None

    def kept(self, scenes: Scenes) -> Tensor:
        """Boolean ``(N,)``: scenes that belong to testing."""
        kept = torch.zeros_like(scenes.style, dtype=torch.bool)
        if self.combinations:
            kept |= (3 * scenes.background + 5 * scenes.style + 7 * scenes.mood) % HELD_COMBINATIONS == 0
        if self.style is not None:
            kept |= scenes.style == _index(STYLES, self.style, "style")
        if self.background is not None:
            kept |= scenes.background == _index(COLORS, self.background, "background")
        return kept

    @property
    def active(self) -> bool:
        return self.combinations or self.style is not None or self.background is not None


def _index(names: Sequence[str], name: str, what: str) -> int:
    if name not in names:
        raise ValueError(f"{what}: expected one of {', '.join(names)}, got {name!r}.")
    return names.index(name)


def sample_scenes(
    count: int,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
    *,
    two_shapes: float = TWO_SHAPES,
    hold_out: HoldOut = HoldOut(),
    testing: bool = False,
) -> Scenes:
    """Draw scenes; no shape has the background's colour.

    Args:
        generator: on ``device``.
        two_shapes: share of scenes with two shapes.
        hold_out, testing: draw only what may be fitted on, or with ``testing`` only what is kept from that.

    Raises:
        ValueError: for an unknown name in ``hold_out``.
    """

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator, device=device)

    if hold_out.active:
        parts, missing = [], count
        while missing > 0:
            batch = sample_scenes(max(64, 2 * missing), generator, device, two_shapes=two_shapes)
            parts.append(batch[hold_out.kept(batch) == testing])
            missing -= len(parts[-1])
        return join_scenes(parts)[slice(0, count)]
    background = draw(10, count)
    return Scenes(
        shape=draw(8, count, 2),
        color=(background[:, None] + 1 + draw(9, count, 2)) % 10,
        size=draw(3, count, 2),
        count=1 + (torch.rand(count, generator=generator, device=device) < two_shapes).long(),
        background=background, style=draw(8, count), mood=draw(5, count), arrangement=draw(4, count),
        position=draw(5, count),
    )


def join_scenes(parts: Sequence[Scenes]) -> Scenes:
    return Scenes(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Scenes)})


# --------------------------------------------------------------------------------------------------------- pictures


@torch.no_grad()
def render(scenes: Scenes, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Paint scenes, with small random shifts, turns and phases.

    Args:
        generator: on the scenes' device.

    Returns:
        float32 ``(N, 3, 128, 128)`` in [-1, 1], and each object's cover float32 ``(N, 2, 128, 128)`` in [0, 1].
    """
    count, device = len(scenes), scenes.style.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    line = torch.arange(SIDE, device=device) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    centres, radii = _place(scenes, uniform)
    palette = torch.tensor(RGB, device=device)
    colors = palette[scenes.color] + (uniform(count, 2, 3) - 0.5) * 0.06
    ground = palette[scenes.background] + (uniform(count, 3) - 0.5) * 0.06
    style = scenes.style.view(count, 1, 1)
    softness = torch.where(style == STYLES.index("blurry"), 5.0, 0.8)  # pixels
    outline = (ground.mean(1) < 0.3).float().view(count, 1, 1, 1)  # white on dark grounds, black on light ones
    picture = ground.view(count, 3, 1, 1).expand(-1, -1, SIDE, SIDE).clone()
    covers = []
    for j in range(2):
        present = (scenes.count > j).view(count, 1, 1).float()
        turn = (uniform(count, 1, 1) - 0.5) * 0.3
        radius = radii[:, j].view(count, 1, 1)
        u, v = ((p - centres[:, j, k].view(count, 1, 1)) / radius for k, p in enumerate((x, y)))
        distance = radius * _distance(
            u * turn.cos() + v * turn.sin(), v * turn.cos() - u * turn.sin(), scenes.shape[:, j]
        )
        cover = torch.sigmoid(-1.7 * distance / softness) * present
        picture = torch.lerp(picture, colors[:, j].view(count, 3, 1, 1), cover.unsqueeze(1))
        edge = torch.sigmoid((2.2 - distance.abs()) * 2) * (style == STYLES.index("outlined")) * present
        picture = torch.lerp(picture, outline.expand_as(picture), edge.unsqueeze(1))
        covers.append(cover)
    picture = _texture(picture, style, x, y, uniform, generator)
    gain, lift = (
        torch.tensor(table, device=device)[scenes.mood].view(count, 3, 1, 1) for table in (MOOD_GAIN, MOOD_LIFT)
    )
    return (picture.clamp(0, 1) * gain + lift).clamp(0, 1) * 2 - 1, torch.stack(covers, 1)


def _place(scenes: Scenes, uniform) -> tuple[Tensor, Tensor]:
    """Centres ``(N, 2, 2)`` as x, y and radii ``(N, 2)``, in pixels."""
    device = scenes.style.device
    spots = torch.tensor(CENTRES, device=device)
    pairs = torch.tensor([[POSITIONS.index(name) for name in pair] for pair in ARRANGEMENTS], device=device)
    two = (scenes.count == 2)[:, None]
    first = torch.where(two, spots[pairs[scenes.arrangement, 0]], spots[scenes.position])
    centres = torch.stack([first, spots[pairs[scenes.arrangement, 1]]], 1)
    radii = torch.where(
        two, torch.tensor(RADII_TWO, device=device)[scenes.size], torch.tensor(RADII_ONE, device=device)[scenes.size]
    )
    return centres + (uniform(len(scenes), 2, 2) - 0.5) * 10, radii * (0.95 + 0.1 * uniform(len(scenes), 2))


def _distance(x: Tensor, y: Tensor, shape: Tensor) -> Tensor:
    """Roughly signed distance to each shape of unit size, negative inside: ``(N, H, W)`` for shapes ``(N,)``."""

    def polygon(sides: int, turn: float, apothem: float) -> Tensor:
        angles = [turn + 2 * math.pi * side / sides for side in range(sides)]
        return torch.stack([x * math.cos(a) + y * math.sin(a) - apothem for a in angles]).amax(0)

    radius = torch.hypot(x, y)
    sector = 2 * math.pi / 5
    angle = (torch.remainder(torch.atan2(x, -y) + sector / 2, sector) - sector / 2).abs()
    tip, notch = 1.05, (0.42 * math.cos(sector / 2), 0.42 * math.sin(sector / 2))
    normal = (notch[1], tip - notch[0])
    star = (radius * angle.cos() - tip) * normal[0] + radius * angle.sin() * normal[1]
    across, up = x.abs() * 1.05, 0.10 - 1.05 * y
    heart = torch.hypot(across, up - 0.71 * across.sqrt()) - 0.78
    bars = (torch.maximum(x.abs() - a, y.abs() - b) for a, b in ((0.92, 0.30), (0.30, 0.92)))
    every = torch.stack([
        radius - 0.92,
        torch.maximum(x.abs(), y.abs()) - 0.80,
        polygon(3, math.pi / 2, 0.52),
        star / math.hypot(*normal),
        heart,
        (x.abs() * 1.25 + y.abs()) / 1.6 - 0.62,
        (radius - 0.70).abs() - 0.24,
        torch.minimum(*bars),
    ], 1)
    return every.gather(1, shape.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[1:]))[:, 0]


def _texture(picture: Tensor, style: Tensor, x: Tensor, y: Tensor, uniform, generator) -> Tensor:
    """The styles that run over the whole picture: stripes, dots, checks, grain and a gradient."""
    count = len(picture)
    period, turn = 11 + 3 * uniform(count, 1, 1), math.pi / 4 + (uniform(count, 1, 1) - 0.5) * 0.5
    shift_x, shift_y = uniform(count, 1, 1) * 20, uniform(count, 1, 1) * 20
    wave = 2 * math.pi / period
    stripes = torch.sigmoid(5 * torch.sin(wave * (x * turn.cos() + y * turn.sin() + shift_x)))
    dot_x, dot_y = (torch.remainder(p + s, period) - period / 2 for p, s in ((x, shift_x), (y, shift_y)))
    dots = torch.sigmoid((0.30 * period - torch.hypot(dot_x, dot_y)) * 1.5)
    checks = torch.sigmoid(8 * torch.sin(wave / 1.5 * (x + shift_x)) * torch.sin(wave / 1.5 * (y + shift_y)))
    pattern = sum(
        where * (style == STYLES.index(name))
        for name, where in (("striped", stripes), ("dotted", dots), ("checkered", checks))
    ).unsqueeze(1)
    dark = torch.sigmoid((0.30 - picture.mean(1, keepdim=True)) * 20)  # dark places are lightened, others darkened
    picture = picture + 0.33 * pattern * (0.8 * dark - (1 - dark) * picture)
    grain = torch.randn(count, 1, SIDE // 4, SIDE // 4, generator=generator, device=picture.device)
    grain = F.interpolate(grain, scale_factor=4, mode="nearest")
    picture = picture + 0.13 * grain * (style == STYLES.index("grainy")).unsqueeze(1)
    tilt = (uniform(count, 1, 1) - 0.5) * 0.6
    ramp = ((y - SIDE / 2) * tilt.cos() + (x - SIDE / 2) * tilt.sin()) / (SIDE / 2)
    return picture - 0.30 * (ramp * (style == STYLES.index("gradient"))).unsqueeze(1)


def patch_labels(scenes: Scenes, covers: Tensor) -> Tensor:
    """Which shape and which colour each of the DiT's image tokens shows; 0 is the ground, else 1 + index.

    Args:
        covers: what :func:`render` gave, ``(N, 2, 128, 128)``.

    Returns:
        int64 ``(N, 2, 64)``: shape and colour per token, raster order.
    """
    share = F.avg_pool2d(covers, SIDE // PATCH_GRID).flatten(2)  # (N, 2, 64)
    most, owner = share.max(1)
    named = torch.stack([scenes.shape.gather(1, owner), scenes.color.gather(1, owner)], 1) + 1
    return torch.where((most >= COVERED).unsqueeze(1), named, 0)


# --------------------------------------------------------------------------------------------------------- captions


class Mentions(NamedTuple):
    """What a caption tells."""

    shape: bool = True
    color: bool = True
    size: bool = True
    position: bool = True
    background: bool = True
    style: bool = True
    mood: bool = True


EVERYTHING = Mentions()
ONLY_OBJECTS = Mentions(size=False, position=False, background=False, style=False, mood=False)

PROMPTS = ("a picture with {}", "draw {}", "{}", "paint {}")  # the openings captions are trained with
OTHER_PROMPTS = ("please show me {} here", "an illustration of {}", "i would like to see {}")  # words never trained


def with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def choose_mentions(rng: random.Random) -> Mentions:
    """What a training caption tells: everything, only the objects, or some of it."""
    kind = rng.random()
    if kind < 0.25:
        return EVERYTHING
    if kind < 0.38:
        return ONLY_OBJECTS
    chances = Mentions(0.97, 0.9, 0.25, 0.3, 0.5, 0.5, 0.35)
    return Mentions(*(rng.random() < chance for chance in chances))


def describe_object(scene: Scene, index: int, told: Mentions) -> str:
    shape, color, size = scene.objects[index]
    words = [SIZES[size]] * told.size + [COLORS[color]] * told.color + [SHAPES[shape] if told.shape else "shape"]
    text = with_article(" ".join(words))
    if not told.position:
        return text
    if len(scene.objects) == 2:
        return f"{text} at the {ARRANGEMENTS[scene.arrangement][index]}"
    place = POSITIONS[scene.position]
    return f"{text} {'in' if place == 'center' else 'at'} the {place}"


def look_phrases(scene: Scene, told: Mentions = EVERYTHING) -> list[str]:
    """Background, style and mood in the canonical words."""
    phrases = [f"on {with_article(COLORS[scene.background])} background"] * told.background
    phrases += [f"in {STYLES[scene.style]} style"] * told.style
    return phrases + [f"with {MOODS[scene.mood]} colors"] * told.mood


def canonical_caption(scene: Scene, told: Mentions = EVERYTHING) -> str:
    """The one wording that answers are given in."""
    objects = " and ".join(describe_object(scene, index, told) for index in range(len(scene.objects)))
    return ", ".join([objects, *look_phrases(scene, told)])


def caption(scene: Scene, rng: random.Random, told: Mentions | None = None) -> tuple[str, Mentions]:
    """One of many wordings, and what it tells."""
    told = choose_mentions(rng) if told is None else told
    if rng.random() < 0.3:
        return rng.choice(PROMPTS).format(canonical_caption(scene, told)), told
    objects = [describe_object(scene, index, told) for index in range(len(scene.objects))]
    rng.shuffle(objects)
    style, mood, ground = STYLES[scene.style], MOODS[scene.mood], COLORS[scene.background]
    opening, style_left, mood_left = "", told.style, told.mood
    kind = rng.random()
    if style_left and kind < 0.35:
        opening, style_left = rng.choice(
            [f"{with_article(style)} picture of ", f"{with_article(style)} drawing of ", f"{style} style, "]
        ), False
    elif mood_left and kind < 0.55:
        opening, mood_left = rng.choice([f"{with_article(mood)} picture of ", f"{mood} colors, "]), False
    elif kind > 0.7:
        opening = rng.choice(["draw ", "picture of ", "make an image of ", "a picture with ", "paint "])
    text, rest = opening + " and ".join(objects), []
    if told.background:
        place = rng.random()
        if place < 0.5:
            text += f" on {with_article(ground)} background"
        else:
            rest.append(rng.choice([f"{ground} background", f"the background is {ground}"]))
    if style_left:
        rest.append(rng.choice([f"in {style} style", f"{style} style", f"{style} texture"]))
    if mood_left:
        rest.append(rng.choice([f"with {mood} colors", f"{mood} palette", f"{mood} mood"]))
    rng.shuffle(rest)
    return ", ".join([text, *rest]) + "." * (rng.random() < 0.1), told


def question(scene: Scene, rng: random.Random, told: Mentions = EVERYTHING) -> tuple[str, str]:
    """A question that what was told can answer, and the answer."""
    asked = [("how many shapes?", ("one", "two")[len(scene.objects) - 1])]
    if told.background:
        asked.append((rng.choice(["what is the background color?", "which background?"]), COLORS[scene.background]))
    if told.style:
        asked.append((rng.choice(["what style is it?", "which texture?"]), STYLES[scene.style]))
    if told.mood:
        asked.append((rng.choice(["what mood is it?", "which palette?"]), MOODS[scene.mood]))
    if told.size and len(scene.objects) == 1:
        asked.append(("how large is it?", SIZES[scene.objects[0][2]]))
    if told.color and told.shape:
        asked += object_questions(scene, rng.randrange(len(scene.objects)), rng)
    return rng.choice(asked)


def object_questions(scene: Scene, index: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Questions about one of the objects, and the answers."""
    shape, color, _ = scene.objects[index]
    shapes, colors = ([thing[k] for thing in scene.objects] for k in (0, 1))
    if shapes.count(shape) == 1:
        yield f"what color is the {SHAPES[shape]}?", COLORS[color]
    if colors.count(color) == 1:
        yield f"what shape is {COLORS[color]}?", SHAPES[shape]
    asked = color if rng.random() < 0.5 else rng.randrange(len(COLORS))
    there = (shape, asked) in [thing[:2] for thing in scene.objects]
    yield f"is there {with_article(COLORS[asked])} {SHAPES[shape]}?", "yes" if there else "no"


# --------------------------------------------------------------------------------------------------- training texts

USER, ASSISTANT, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"
IMAGE_TOKENS = (SIDE // 32) ** 2
PICTURE_START, PICTURE_END = "<|vision_start|>", "<|vision_end|>"
PICTURE = PICTURE_START + "<|image_pad|>" * IMAGE_TOKENS + PICTURE_END
DESCRIBE = (
    "describe the image.", "describe this picture.", "what do you see?", "caption this image.",
    "write a prompt for this image.",
)
DESCRIBE_LOOK = ("describe the style.", "describe the look.")
# What the VL was trained to answer about a take, and where the answer goes. It was never asked where things are: there
# is no question for the composition.
TAKE_QUESTIONS = (
    ("the look", "describe the look.", "{}"), ("style", "what style is it?", "{} style"),
    ("colours", "what is the background color?", "{} background"), ("light and mood", "what mood is it?", "{} colors"),
    ("everything", "describe the image.", "{}"),
)

LOOK_BEGINS = ", on "  # in a description, behind what the picture shows


def things_of(description: str) -> str:
    """What a description names before the look, without sizes and places: "an orange cross and a red cross"."""
    things = []
    for thing in description.split(LOOK_BEGINS)[0].split(" and "):
        named = re.sub(r" (in|at) the \w+$", "", thing)
        things.append(with_article(re.sub(rf"^an? ({'|'.join(SIZES)}) ", "", named)) if named != thing else named)
    return " and ".join(things)


def other_things(count: int = 24) -> tuple[str, ...]:
    """Prompts that a learned look leaves alone: things with their sizes, as no prompt of a bench has them."""
    told = ONLY_OBJECTS._replace(size=True)
    scenes = sample_scenes(count, torch.Generator().manual_seed(3), two_shapes=0.25).records()
    return tuple(
        " and ".join(describe_object(scene, index, told) for index in range(len(scene.objects))) for scene in scenes
    )


# For a learned look: how a picture looks, what it shows, and what of that answer is told.
LOOK_QUESTIONS = ("describe the look.", "describe the image.", things_of)


def turns(request: str, answer: str) -> str:
    """A whole exchange in the chat template."""
    return USER + request + ASSISTANT + answer + END


def prompt_turn(prompt: str) -> str:
    """What Z-Image's text encoder reads for a prompt."""
    return USER + prompt + ASSISTANT


def look_answer(scene: Scene) -> str:
    """What is asked for by "describe the look."."""
    return f"{STYLES[scene.style]} style, {COLORS[scene.background]} background, {MOODS[scene.mood]} colors"


def request_about(scene: Scene, rng: random.Random, other: Scene | None = None) -> tuple[str, str]:
    """Something to ask about a scene that is fully known, and the answer.

    With ``other`` a request may be another scene's caption: what it leaves open about the look is taken from the
    scene. That is the conflict a reference picture brings.
    """
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(DESCRIBE), canonical_caption(scene)
    if kind < 0.72:
        return question(scene, rng)
    if kind < 0.80:
        return rng.choice(DESCRIBE_LOOK), look_answer(scene)
    if other is None or kind < 0.88:
        return caption(scene, rng)[0], canonical_caption(scene)
    text, told = caption(other, rng)
    open_look = {name: getattr(scene, name) for name in LOOK if not getattr(told, name)}
    return text, canonical_caption(other._replace(**open_look), told._replace(background=True, style=True, mood=True))


def tags(scene: Scene, rng: random.Random) -> str:
    """Everything about a scene in a few words in any order: what the VL's image tokens stand in for."""
    words = [
        " ".join((SIZES[size], COLORS[color], SHAPES[shape], _place_word(scene, index)))
        for index, (shape, color, size) in enumerate(scene.objects)
    ] + [f"{COLORS[scene.background]} background", f"{STYLES[scene.style]} style", f"{MOODS[scene.mood]} colors"]
    rng.shuffle(words)
    return " ".join(words)


def _place_word(scene: Scene, index: int) -> str:
    return ARRANGEMENTS[scene.arrangement][index] if len(scene.objects) == 2 else POSITIONS[scene.position]


def text_exchange(scene: Scene, rng: random.Random, other: Scene | None = None) -> str:
    """One training text for the text encoder.

    A third has the scene as tags where a picture will be, between its markers, and the very requests that pictures
    come with later: the frozen language model already knows what to do with a described scene, and the vision tower
    only has to learn to describe. (Markers it had never read would also look like sinks to it.)
    """
    kind = rng.random()
    if kind < 0.35:
        request, answer = request_about(scene, rng, other)
        return turns(f"{PICTURE_START}{tags(scene, rng)}{PICTURE_END}{request}", answer)
    text, told = caption(scene, rng)
    if kind < 0.38:
        return turns("", canonical_caption(scene))
    if kind < 0.62:
        return turns(text, canonical_caption(scene, told))
    if kind < 0.75:
        return turns(text, caption(scene, rng, told)[0])
    asked, answer = question(scene, rng, told)
    return turns(rng.choice([f"{text} {asked}", f"{asked} {text}"]), answer)


def picture_exchange(scene: Scene, rng: random.Random, other: Scene | None = None) -> str:
    """One training text for the VL, the picture's tokens in place."""
    request, answer = request_about(scene, rng, other)
    return turns(PICTURE + request, answer)


# --------------------------------------------------------------------------------------------------- conflict pairs


@dataclass(frozen=True, eq=False)
class Pairs:
    """Prompts and reference pictures that disagree: another shape and another colour.

    Attributes:
        references: single large centred shapes.
        shape, color: int64 ``(N,)``, what the prompts ask for; the colour is not the reference's background either.
        prompts: the words.
    """

    references: Scenes
    shape: Tensor
    color: Tensor
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)


def conflict_pairs(
    count: int, seed: int, *, other_words: bool = False, hold_out: HoldOut = HoldOut(), testing: bool = True
) -> Pairs:
    """Pairs over all prompt openings in turn.

    Args:
        other_words: openings that no model was trained with.
        hold_out, testing: which part of the world the references come from (:func:`sample_scenes`).
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(count, generator, two_shapes=0.0, hold_out=hold_out, testing=testing)
    scenes = replace(scenes, size=torch.full_like(scenes.size, 2), position=torch.zeros_like(scenes.position))
    shape = (scenes.shape[:, 0] + 1 + torch.randint(0, 7, (count,), generator=generator)) % 8
    free = torch.ones(count, len(COLORS))
    free.scatter_(1, torch.stack([scenes.color[:, 0], scenes.background], 1), 0.0)
    color = torch.multinomial(free, 1, generator=generator)[:, 0] if count else scenes.background
    openings = OTHER_PROMPTS if other_words else PROMPTS[:3]
    prompts = tuple(
        openings[i % len(openings)].format(with_article(f"{COLORS[c]} {SHAPES[s]}"))
        for i, (s, c) in enumerate(zip(shape.tolist(), color.tolist(), strict=True))
    )
    return Pairs(scenes, shape, color, prompts)
