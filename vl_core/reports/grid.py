"""The pictures of a sweep on labelled pages: columns, rows, and a page for every value of further axes.

Each page begins with the reference pictures and the words alone, so that a cell can be compared without turning back.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..pictures import check_picture
from ..states.tensors import check_choice
from ..steering.sweep import Cell, Plan
from .plots import THEMES, Theme, ThemeName, stack_figures

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

Picture = np.ndarray | Tensor  # (H, W, 3) or (1, H, W, 3), uint8 or float in [0, 1]

ACROSS = 6  # cells side by side while a single axis is broken into lines
SMALLEST, LARGEST = 12, 28  # pixels of the letters; between them a 16th of a cell's width
NARROWEST = 96  # pixels in which a label is still legible
LINE = 1.3  # of a letter's height
REFERENCE = "reference"


@dataclass(frozen=True)
class Box:
    """Where a picture is: pixels of a page, right and bottom not included."""

    page: int
    left: int
    top: int
    right: int
    bottom: int

    def cut(self, pages: Sequence[np.ndarray]) -> np.ndarray:
        """The pixels in it."""
        return pages[self.page][self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True, eq=False)
class Grid:
    """Drawn pages and what is where on them.

    Attributes:
        pages: uint8 ``(height, width, 3)``, all of one size.
        boxes: of every cell of the plan, in its order.
        baselines: the words alone with their boxes, for every page that compares with them.
        references: of the reference pictures, page by page.
    """

    pages: tuple[np.ndarray, ...]
    boxes: tuple[Box, ...]
    baselines: tuple[tuple[Cell, Box], ...]
    references: tuple[Box, ...]


@dataclass(frozen=True)
class _Tile:
    """A picture (None: nothing was painted) under its label."""

    label: str
    pixels: np.ndarray | None
    cell: Cell | None = None


@dataclass(frozen=True, eq=False)
class _Style:
    """What all pages share: the largest picture, the letters, colours, distances."""

    width: int
    height: int
    font: Any
    line: int
    gap: int
    colours: Theme
    notes: Mapping[str, str]

    @property
    def note_height(self) -> int:
        """What is written below pictures, with some room before it; 0 if nothing is."""
        return self.text_height(list(self.notes.values()), _slot(self)) + self.gap // 2 if self.notes else 0

    def lines(self, text: str, width: int) -> list[str]:
        return wrap(text, self.font.getlength, width)

    def text_height(self, texts: Sequence[str], width: int) -> int:
        return self.line * max((len(self.lines(text, width)) for text in texts), default=0)


def pictures_by_id(plan: Plan, pictures: Sequence[Picture]) -> dict[str, Picture]:
    """Pictures painted in the order of ``plan.unique``, by the id of their cell.

    Raises:
        ValueError: if they are not exactly as many.
    """
    if len(pictures) != len(plan.unique):
        raise ValueError(
            f"images: expected {len(plan.unique)} pictures, one for each of the plan ({len(plan.cells)} cells, the "
            f"words alone first, equal ones once), got {len(pictures)}. Connect what was painted from this very sweep, "
            "one picture for each of its outputs."
        )
    return {cell.id: picture for cell, picture in zip(plan.unique, pictures, strict=True)}


def draw_grid(
    plan: Plan,
    pictures: Mapping[str, Picture],
    references: Sequence[Picture] = (),
    *,
    cell_size: int | None = None,
    title: str = "",
    theme: ThemeName = "light",
    missing_ok: bool = False,
    notes: Mapping[str, str] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Grid:
    """Every cell of a plan where its labels say.

    The first axis goes along columns, the second along rows, further ones over pages. A single axis is broken into
    lines of 6. Labels and titles are wrapped, never cut. A picture with NaN in it is shown as that word.

    Args:
        pictures: by :attr:`~.sweep.Cell.id`; cells of one id show the same picture. Sizes may differ.
        references: shown at the head of every page, brought into the size of a cell.
        cell_size: longest side of a picture in pixels; larger ones are averaged down, none is enlarged. None draws all
            at full size, pixel for pixel.
        title: above the values of the page.
        notes: by :attr:`~.sweep.Cell.id` what is written below a picture.
        missing_ok: leave cells without a picture empty and say so on them.
        check: called before each picture and page; may raise to interrupt.

    Raises:
        TypeError, ValueError: for cells without a picture, what is no picture, a cell size below 1, another theme.
    """
    check_choice("theme", theme, ThemeName)
    if cell_size is not None and cell_size < 1:
        raise ValueError(f"cell_size: expected at least 1 pixel, or None for full size, got {cell_size}.")
    missing = [cell for cell in plan.unique if cell.id not in pictures]
    if missing and not missing_ok:
        raise ValueError(
            f"pictures: expected one for every cell, got none for {len(missing)} of {len(plan.unique)}, the first "
            f"being: {missing[0].label}."
        )
    painted: dict[str, np.ndarray | None] = {}
    for cell in plan.unique:
        check()
        if cell.id in pictures:
            painted[cell.id] = _pixels(pictures[cell.id], cell.label, cell_size)
    sizes = [pixels.shape[:2] for pixels in painted.values() if pixels is not None]
    height, width = (max((size[axis] for size in sizes), default=cell_size or NARROWEST) for axis in (0, 1))
    shown = [_fitted(reference, number, height, width) for number, reference in enumerate(references, 1)]
    letters = min(LARGEST, max(SMALLEST, width // 16))
    style = _Style(
        width, height, _font(letters), round(letters * LINE), max(6, width // 32), THEMES[theme], dict(notes or {})
    )

    pages, boxes, baselines, reference_boxes = [], {}, [], []
    for number, (name, table) in enumerate(plan.pages()):
        check()
        page = _Page(number, style, painted)
        page.add_title("\n".join(filter(None, (title, name))), _page_width(plan, style))
        words = {one.id: one for row in table for cell in row if (one := plan.baseline_of(cell))}
        names = [REFERENCE] if len(shown) == 1 else [f"{REFERENCE} {index + 1}" for index in range(len(shown))]
        head = [_Tile(*both) for both in zip(names, shown, strict=True)]
        head += [_Tile(one.label, painted.get(one.id), one) for one in words.values()]
        placed = page.add_head(head)
        reference_boxes += placed[: len(shown)]
        baselines += zip(words.values(), placed[len(shown) :], strict=True)
        boxes |= page.add_line_broken(table[0]) if len(plan.axes) < 2 else page.add_table(plan, table)
        pages.append(page.draw())
    ordered = tuple(boxes[cell.place] for cell in plan.cells)
    return Grid(tuple(stack_figures(pages)), ordered, tuple(baselines), tuple(reference_boxes))


class _Page:
    """A page that grows downwards; drawn once everything has its place."""

    def __init__(self, number: int, style: _Style, painted: Mapping[str, np.ndarray | None]):
        self.number, self.style, self.painted = number, style, painted
        self.texts: list[tuple[int, int, list[str]]] = []
        self.pictures: list[tuple[Box, np.ndarray]] = []
        self.y, self.right = style.gap, 0

    def add_title(self, text: str, width: int) -> None:
        if text:
            lines = self.style.lines(text, width)
            self._write(self.style.gap, lines)
            self.y += self.style.line * len(lines) + self.style.gap

    def add_head(self, tiles: Sequence[_Tile]) -> list[Box]:
        """Pictures in lines of 6, each under its label, and some room below."""
        boxes = []
        for start in range(0, len(tiles), ACROSS):
            boxes += self._add_tiles(tiles[start : start + ACROSS])
        self.y += self.style.gap if tiles else 0
        return boxes

    def add_line_broken(self, row: Sequence[Cell]) -> dict[tuple[int, ...], Box]:
        """The cells of a single axis, or of none."""
        boxes = {}
        for start in range(0, len(row), ACROSS):
            cells = row[start : start + ACROSS]
            tiles = [_Tile(cell.label, self.painted.get(cell.id), cell) for cell in cells]
            placed = self._add_tiles(tiles)
            boxes |= {cell.place: box for cell, box in zip(cells, placed, strict=True)}
        return boxes

    def add_table(self, plan: Plan, table: Sequence[Sequence[Cell]]) -> dict[tuple[int, ...], Box]:
        """Columns under their labels, rows beside theirs."""
        style, (across, down) = self.style, plan.axes[:2]
        columns = [across.label(value) for value in across.values]
        rows = [down.label(value) for value in down.values]
        margin, room = _row_label_width(plan, style), _slot(style)
        lefts = [style.gap + margin + style.gap + index * (room + style.gap) for index in range(len(columns))]
        for left, label in zip(lefts, columns, strict=True):
            self._write(left, style.lines(label, room))
        self.y += style.text_height(columns, room) + style.gap // 2
        boxes = {}
        for label, cells in zip(rows, table, strict=True):
            lines = style.lines(label, margin)
            self._write(style.gap, lines)
            for left, cell in zip(lefts, cells, strict=True):
                boxes[cell.place] = self._place(left, self.painted.get(cell.id), cell)
            self.y += max(style.height + style.note_height, style.line * len(lines)) + style.gap
        return boxes

    def _add_tiles(self, tiles: Sequence[_Tile]) -> list[Box]:
        style, room = self.style, _slot(self.style)
        lefts = [style.gap + index * (room + style.gap) for index in range(len(tiles))]
        for left, tile in zip(lefts, tiles, strict=True):
            self._write(left, style.lines(tile.label, room))
        self.y += style.text_height([tile.label for tile in tiles], room) + style.gap // 2
        boxes = [self._place(left, tile.pixels, tile.cell) for left, tile in zip(lefts, tiles, strict=True)]
        noted = any(tile.cell is not None for tile in tiles)
        self.y += style.height + style.note_height * noted + style.gap
        return boxes

    def _write(self, left: int, lines: list[str]) -> None:
        self.texts.append((left, self.y, lines))
        self.right = max([self.right, *(left + round(self.style.font.getlength(line)) for line in lines)])

    def _place(self, left: int, pixels: np.ndarray | None, cell: Cell | None) -> Box:
        """A picture at the height reached so far; where there is none, the reason in its place."""
        style = self.style
        if pixels is None:
            why = "holds NaN" if cell and cell.id in self.painted else "not painted"
            self.texts.append((left + style.gap, self.y + style.gap, style.lines(why, style.width)))
            pixels = np.zeros((0, 0, 3), np.uint8)
            box = Box(self.number, left, self.y, left + style.width, self.y + style.height)
        else:
            height, width = pixels.shape[:2]
            box = Box(self.number, left, self.y, left + width, self.y + height)
        if cell is not None and cell.id in style.notes:
            below = self.y + style.height + style.gap // 2
            self.texts.append((left, below, style.lines(style.notes[cell.id], _slot(style))))
        self.pictures.append((box, pixels))
        self.right = max(self.right, box.right)
        return box

    def draw(self) -> np.ndarray:
        from PIL import Image, ImageDraw

        style = self.style
        image = Image.new("RGB", (self.right + style.gap, self.y), style.colours.background)
        pen = ImageDraw.Draw(image)
        for box, pixels in self.pictures:
            if pixels.size:
                image.paste(Image.fromarray(pixels), (box.left, box.top))
            else:
                edges = (box.left, box.top, box.right - 1, box.bottom - 1)
                pen.rectangle(edges, style.colours.panel, style.colours.ink)
        for left, top, lines in self.texts:
            _write_lines(pen, left, top, lines, style)
        return np.asarray(image).copy()


def wrap(text: str, length: Callable[[str], float], width: int) -> list[str]:
    """Lines no longer than ``width`` by the measure ``length``; broken at spaces, and within a word that is too long.

    A single letter that is wider than that has a line of its own. Line breaks of the text stay.
    """
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            while word:
                joined = f"{line} {word}".strip()
                if length(joined) <= width:
                    line, word = joined, ""
                elif line:
                    lines.append(line)
                    line = ""
                else:
                    fits = _fitting(word, length, width)
                    lines.append(word[:fits])
                    word = word[fits:]
        lines.append(line)
    return lines


def _fitting(word: str, length: Callable[[str], float], width: int) -> int:
    """How many letters of a word fit, at least one; measured in few steps, for Chinese has no spaces to break at."""
    size = 1
    while size < len(word) and length(word[:size]) <= width:
        size *= 2
    return max(1, bisect_right(range(1, min(size, len(word)) + 1), width, key=lambda one: length(word[:one])))


def _write_lines(pen: ImageDraw, left: int, top: int, lines: Sequence[str], style: _Style) -> None:
    for index, line in enumerate(lines):
        pen.text((left, top + index * style.line), line, fill=style.colours.ink, font=style.font)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _slot(style: _Style) -> int:
    """Width of a column: small pictures leave room for their labels."""
    return max(style.width, NARROWEST)


def _row_label_width(plan: Plan, style: _Style) -> int:
    labels = [plan.axes[1].label(value) for value in plan.axes[1].values]
    longest = max(round(style.font.getlength(label)) + 1 for label in labels)
    return min(longest, max(NARROWEST, style.width * 3 // 4))


def _page_width(plan: Plan, style: _Style) -> int:
    """Between the margins, without the title."""
    columns = plan.shape[2] if len(plan.axes) > 1 else min(ACROSS, plan.shape[2])
    beside = _row_label_width(plan, style) + style.gap if len(plan.axes) > 1 else 0
    return max(beside + columns * (_slot(style) + style.gap) - style.gap, 3 * NARROWEST)


def _pixels(picture: Picture, name: str, longest: int | None) -> np.ndarray | None:
    """uint8 ``(H, W, 3)``, sides up to ``longest``; None if it holds NaN."""
    values = _tensor(picture)
    if values.is_floating_point() and not values.isfinite().all():
        return None
    pixels = check_picture(values, name)[0].numpy()
    return pixels if longest is None else _shrunk(pixels, longest / max(pixels.shape[:2]))


def _fitted(picture: Picture, number: int, height: int, width: int) -> np.ndarray:
    pixels = check_picture(_tensor(picture), f"{REFERENCE} {number}")[0].numpy()
    return _shrunk(pixels, min(height / pixels.shape[0], width / pixels.shape[1]))


def _tensor(picture: Picture) -> Tensor:
    return picture if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture))  # a copy: some are read-only


def _shrunk(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Averaged down to ``factor`` of its sides; never enlarged."""
    if factor >= 1:
        return pixels
    from PIL import Image

    size = [max(1, round(side * factor)) for side in (pixels.shape[1], pixels.shape[0])]
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)).copy()
