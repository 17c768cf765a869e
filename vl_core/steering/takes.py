"""What can be taken from a picture, in plain words: one row each, for every way.

A take holds what each way needs to know of it: what Qwen3-VL is asked, which slots of an adapter are used, and how the
picture is prepared where its states themselves are mixed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..encoder.writing import INSTRUCTIONS
from ..pictures import baseline_picture, check_picture
from ..states.fields import quoted

PictureUse = Literal["as it is", "blurred", "colourless"]
PICTURE_USES = get_args(PictureUse)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Take:
    """What to take from a picture.

    Attributes:
        name, meaning: for people.
        instruction: what Qwen3-VL is asked to write.
        slots: of a picture adapter, those of them that it has; none for all.
        picture: how the picture is shown where its own states are mixed in.
        attend: what Qwen3-VL is told to look for where its states are mixed in; empty is Z-Image's own template.
        until: the share of the steps after which the picture stops acting, where its states are mixed in.
    """

    name: str
    meaning: str
    instruction: str
    slots: tuple[str, ...] = ()
    picture: PictureUse = "as it is"
    attend: str = ""
    until: float = 1.0


TAKES = (
    Take(
        "the look", "style, colours, light, mood and background, but not what the picture shows", INSTRUCTIONS["look"]
    ),
    Take(
        "style", "how it is made: medium, technique, line and texture", INSTRUCTIONS["style hint"], slots=("style",),
        attend="Attend to the visual style of the picture: its medium, technique, line and texture.",
    ),
    Take(
        "colours", "which colours it has and how they are used", INSTRUCTIONS["colour palette"],
        slots=("palette", "colours", "background"), picture="blurred",
    ),
    Take(
        "light and mood", "where the light comes from, how hard it is, and the atmosphere",
        INSTRUCTIONS["light and mood"], slots=("light", "mood"),
        attend="Attend to the light and the mood of the picture.",
    ),
    Take(
        "everything", "all of it, what it shows included, as if it were to be painted again",
        INSTRUCTIONS["variation of the picture"],
    ),
    # Last, since nothing was seen of it: the miniature paints nothing where words say (docs/methods.md).
    Take(
        "composition", "what is where in it: viewpoint, distance, empty space; not shown to work on the miniature",
        INSTRUCTIONS["composition"], slots=("composition",), picture="colourless", until=0.4,
    ),
)
DEFAULT_TAKE = TAKES[0].name


def take_names() -> tuple[str, ...]:
    return tuple(take.name for take in TAKES)


def find_take(name: str) -> Take:
    """The take of a name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    for take in TAKES:
        if take.name == name:
            return take
    raise ValueError(f"take: expected one of {', '.join(take_names())}, got {quoted(name)}.")


def show(picture: Tensor, use: PictureUse, name: str = "image") -> Tensor:
    """A picture as the encoder gets to see it.

    Args:
        picture: as :func:`check_picture` takes it.
        use: "as it is"; "blurred" to the mean colours of 4 × 4 fields so that shapes cannot come along; "colourless"
            so that colours cannot.

    Raises:
        TypeError, ValueError: see :func:`check_picture`; for an unknown use.
    """
    if use == "as it is":
        return picture
    if use == "blurred":
        return baseline_picture(picture, "blurred", name)
    if use != "colourless":
        raise ValueError(f"picture: expected one of {', '.join(PICTURE_USES)}, got {use!r}.")
    pixels, _ = check_picture(picture, name)
    luma = (pixels.float() * torch.tensor(LUMA)).sum(-1, keepdim=True).round().to(torch.uint8)
    return luma.expand(-1, -1, 3).contiguous()
