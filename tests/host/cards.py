"""Thumbnails of the templates: square, as ComfyUI shows them, with captions that can be read at half their size."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN, LINE = 512, 12, 32  # of a card, between pictures, of a caption; in pixels
SMALL = 150  # side of the pictures in the column
INK, PALE, PAPER = "#ffffff", "#c8c8c8", "#202020"
Panel = tuple[str, Image.Image]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def card(panels: list[Panel], said: str) -> Image.Image:
    """The last picture large, those before it in a column beside it, a caption below each.

    Args:
        said: above the large picture, where there is room: what was asked for.
    """
    made = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw, column = ImageDraw.Draw(made), panels[:-1]
    side = min(SMALL, (SIDE - MARGIN) // max(len(column), 1) - LINE - MARGIN // 2)
    for index, (title, picture) in enumerate(column):
        top = MARGIN + index * (side + LINE + MARGIN // 2)
        made.paste(fitted(picture, side), (MARGIN, top))
        write(draw, (MARGIN + side / 2, top + side + LINE / 2), title, side + MARGIN, 23, PALE)
    title, picture = panels[-1]
    left = MARGIN * 2 + side if column else MARGIN
    room = SIDE - MARGIN - left
    large = fitted(picture, room)
    top = SIDE - MARGIN - LINE - large.height
    made.paste(large, (left + (room - large.width) // 2, top))
    write(draw, (left + room / 2, SIDE - MARGIN - LINE / 2 + 4), title, room, 28, INK)
    if top > 90:
        write(draw, (left + room / 2, top / 2), said, room, 26, INK)
    return made


def sheet(title: str, said: str, picture: Image.Image) -> Image.Image:
    """A card of one picture and words: for what cannot be painted here."""
    made = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw = ImageDraw.Draw(made)
    made.paste(fitted(picture, 250), ((SIDE - 250) // 2, MARGIN))
    write(draw, (SIDE / 2, 340), said, SIDE - 4 * MARGIN, 28, INK)
    write(draw, (SIDE / 2, SIDE - 50), title, SIDE - 4 * MARGIN, 30, PALE)
    return made


def file_picture(name: str, side: int = 330) -> Image.Image:
    """A page with a file's name."""
    made = Image.new("RGB", (side, side), "#2c2c2c")
    draw = ImageDraw.Draw(made)
    draw.polygon([(75, 30), (215, 30), (260, 75), (260, 300), (75, 300)], fill="#3d5a80")
    draw.polygon([(215, 30), (260, 75), (215, 75)], fill="#98c1d9")
    for row in range(6):
        draw.rectangle((100, 110 + row * 18, 100 + 130 - (row % 3) * 20, 118 + row * 18), fill="#7f9fc1")
    write(draw, (side / 2 + 2, 260), name, 180, 22, INK)
    return made


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """As large as it can be within a square."""
    factor = side / max(picture.size)
    return picture.convert("RGB").resize(tuple(round(length * factor) for length in picture.size), Image.LANCZOS)


def write(draw: ImageDraw.ImageDraw, middle: tuple[float, float], text: str, width: float, size: int, ink: str) -> None:
    """Words around a point, in as many lines as they need, smaller if one word is too long."""
    while max(draw.textlength(word, font(size)) for word in text.split() or [""]) > width:
        size -= 1
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font(size)) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    draw.multiline_text(middle, "\n".join(lines), ink, font(size), "mm", align="center")


def save(picture: Image.Image, path: Path, width: int = 0) -> None:
    """As JPEG, brought to a width if it is wider."""
    picture = picture.convert("RGB")
    if width and picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.LANCZOS)
    picture.save(path, quality=84, optimize=True)
