"""Image models whose text encoder has a Qwen3-VL sibling, and how each lays that encoder's states out.

Z-Image reads one hidden state of Qwen3-4B. FLUX.2 klein reads three, of Qwen3-4B or Qwen3-8B, put side by side in the
width, after a template that ends with an empty think block and is padded to 512 tokens (diffusers
``Flux2KleinPipeline``, ComfyUI ``KleinTokenizer``). The layers of such a stack have scales and attention sinks of their
own, so whatever measures a token looks at one layer at a time (:func:`by_layer`). The image model reads padding as it
reads words, so no stage may change it: it is taken off before and put back after (:func:`split_padding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .layout import TAIL_TOKENS, USER_TURN, TokenLayout, TokenRole

THINK_BLOCK = "<think>\n\n</think>\n\n"
THINK_TOKENS = 4  # <think> \n\n </think> \n\n
KLEIN_LAYERS = (9, 18, 27)
KLEIN_LENGTH = 512


@dataclass(frozen=True)
class Family:
    """One image model's view of its text encoder.

    Attributes:
        name: what people call it; ``group``: what it is called on nodes, where the encoder's size decides.
        text_encoder, vision_encoder: the two siblings.
        hidden: size of one hidden state of both.
        layers: ``hidden_states`` indices in the order of the width, negative from the end.
        turn: the user turn and what follows; ``tail_tokens``: how many tokens of it follow the words.
        padded_to: texts of fewer tokens are filled up to as many, at their end; 0 for none.
    """

    name: str
    group: str
    text_encoder: str
    vision_encoder: str
    hidden: int
    layers: tuple[int, ...]
    turn: str = USER_TURN
    tail_tokens: int = TAIL_TOKENS
    padded_to: int = 0

    @property
    def width(self) -> int:
        """Size of a token that the image model reads."""
        return self.hidden * len(self.layers)

    @property
    def stacked(self) -> bool:
        """Whether several layers lie side by side."""
        return len(self.layers) > 1

    def describe_layers(self) -> str:
        """``"layer -2"`` or ``"layers 9, 18, 27 side by side"``."""
        named = ", ".join(map(str, self.layers))
        return f"layers {named} side by side" if self.stacked else f"layer {named}"


def _klein(name: str, text_encoder: str, vision_encoder: str, hidden: int) -> Family:
    return Family(
        name, "FLUX.2 klein", text_encoder, vision_encoder, hidden, KLEIN_LAYERS, USER_TURN + THINK_BLOCK,
        TAIL_TOKENS + THINK_TOKENS, KLEIN_LENGTH,
    )


ZIMAGE = Family("Z-Image", "Z-Image", "Qwen3-4B", "Qwen3-VL-4B", 2560, (-2,))
KLEIN_4B = _klein("FLUX.2 klein 4B", "Qwen3-4B", "Qwen3-VL-4B", 2560)
KLEIN_9B = _klein("FLUX.2 klein 9B", "Qwen3-8B", "Qwen3-VL-8B", 4096)
FAMILIES = (ZIMAGE, KLEIN_4B, KLEIN_9B)
GROUPS = tuple(dict.fromkeys(family.group for family in FAMILIES))


def family_of(group: str, hidden: int, encoder: str = "") -> Family:
    """The family of a group for an encoder, by its name (``"Qwen3-8B"``, ``"Qwen3-VL-8B"``), else its hidden size.

    What was never published gives the group's first family; ``hidden`` becomes that of the encoder in any case, so
    that encoders of any size can be paired. Which pairs fit is for :func:`check_encoders` to say.

    Raises:
        ValueError: for a group there is not.
    """
    members = [family for family in FAMILIES if family.group == group]
    if not members:
        raise ValueError(f"family: expected one of {', '.join(GROUPS)}, got {group!r}.")
    named = [family for family in members if encoder in (family.text_encoder, family.vision_encoder)]
    sized = [family for family in members if family.hidden == hidden]
    return replace((named or sized or members)[0], hidden=hidden)


def published(family: Family) -> Family:
    """The family as published, whatever the size of the encoder at hand."""
    return next(one for one in FAMILIES if one.name == family.name)


def detect_text_family(layers: Sequence[int] | None, hidden: int, encoder: str = "", name: str = "clip") -> Family:
    """The family of a text encoder by the layers it puts side by side, None for a single one, its size and its name.

    Raises:
        ValueError: if no family reads these layers.
    """
    if layers is None:
        return family_of(ZIMAGE.group, hidden, encoder)
    for family in FAMILIES:
        if family.stacked and tuple(layers) == family.layers:
            return family_of(family.group, hidden, encoder)
    known = " or ".join(f"{one.describe_layers()} ({one.group})" for one in (ZIMAGE, KLEIN_4B))
    raise ValueError(
        f"{name}: expected a text encoder that reads {known}, got one that reads layers "
        f"{', '.join(map(str, layers))}. Load it with Load CLIP, type lumina2 for Z-Image or flux2 for FLUX.2 klein."
    )


def find_family(width: int, layout: TokenLayout | None = None) -> Family | None:
    """The family that states belong to, by their width, or by the template where the width is none that is published.

    Args:
        width: of the states; layout: what their tokens are, where known.

    Returns:
        the family, None if neither tells.
    """
    for family in FAMILIES:
        if family.width == width:
            return family
    tail = tail_length(layout) if layout is not None else 0
    for family in FAMILIES:
        if family.tail_tokens == tail and not width % len(family.layers):
            return family_of(family.group, width // len(family.layers))
    return None


def detect_family(width: int, layout: TokenLayout | None = None, name: str = "conditioning") -> Family:
    """:func:`find_family`, insisting.

    Raises:
        ValueError: if neither width nor template tells.
    """
    if family := find_family(width, layout):
        return family
    known = ", ".join(f"{family.width} ({family.name}, {family.describe_layers()})" for family in FAMILIES)
    raise ValueError(
        f"{name}: expected states of width {known}, got {width}. Encode with the encoders of one of them: "
        f"{', '.join(f'{family.vision_encoder} for {family.name}' for family in FAMILIES)}."
    )


def check_encoders(
    family: Family, text_hidden: int, vision_hidden: int, text_blocks: int, vision_blocks: int, vision: str = ""
) -> None:
    """Refuse a text and a vision encoder whose layers cannot be mixed.

    Args:
        family: of the text encoder.
        text_hidden, vision_hidden: sizes of one hidden state.
        text_blocks, vision_blocks: blocks of the whole models.
        vision: what the vision encoder is called.

    Raises:
        ValueError: if hidden sizes differ, or layers counted from the start stand at different depths.
    """
    called, usual = f" ({vision})" if vision else "", published(family)
    if vision_hidden != text_hidden:
        raise ValueError(
            f"vision: expected an encoder of width {text_hidden} like the text encoder's, got {vision_hidden}{called}. "
            f"{usual.name} needs {usual.vision_encoder}, width {usual.hidden}."
        )
    if family.stacked and vision_blocks != text_blocks:
        raise ValueError(
            f"vision: expected an encoder of {text_blocks} blocks like the text encoder's, whose "
            f"{family.describe_layers()} are read, got {vision_blocks}{called}. {family.name} needs "
            f"{family.vision_encoder}."
        )


def check_pair(
    text_width: int, vl_width: int, text_layout: TokenLayout | None = None, vl_layout: TokenLayout | None = None
) -> Family:
    """The family that text and VL states share; states of which nothing is known count as one layer.

    Raises:
        ValueError: if they are of two, with how to read the picture for the text's.
    """
    ours, theirs = find_family(text_width, text_layout), find_family(vl_width, vl_layout)
    if text_width == vl_width:  # a text from core nodes has no layout: then the VL's tells how the width is laid out
        ours, theirs = ours or theirs, theirs or ours
    if ours == theirs:
        return ours or family_of(ZIMAGE.group, text_width)
    if not any(family is not None and family.stacked for family in (ours, theirs)):
        return family_of(ZIMAGE.group, text_width)  # two widths of one layer: whoever mixes them will say so
    mend = ours or ZIMAGE
    raise ValueError(
        f"text and vl: expected states of one family, got a text of {_called(ours, text_width)} and a VL of "
        f"{_called(theirs, vl_width)}. Read the picture with {mend.vision_encoder} and family = {mend.group}."
    )


def _called(family: Family | None, width: int) -> str:
    if family is None:
        return f"width {width}"
    return f"{family.name} (width {width}, {family.describe_layers()})"


# --- layers in the width ----------------------------------------------------------------------------------------------


# --- padding ----------------------------------------------------------------------------------------------------------


def tail_length(layout: TokenLayout) -> int:
    """Tokens of the template that end a whole sequence, padding aside; 0 if it does not end with one."""
    ids, roles = layout.token_ids[~layout.padding()], layout.roles[~layout.padding()]
    template = (roles == TokenRole.TEMPLATE).nonzero().flatten()
    if not len(template):
        return 0
    # Every turn opens with the first template token, the assistant's two tokens into the tail.
    starts = template[ids[template] == ids[template[0]]]
    return len(ids) - int(starts[-1]) + 2 if len(starts) > 1 else 0
