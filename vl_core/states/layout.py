"""What each position of an encoded sequence is: roles, token ids and picture grids.

Z-Image's text encoder reads ``<|im_start|>user\\n{prompt}<|im_end|>\\n<|im_start|>assistant\\n`` (diffusers
``ZImagePipeline``, ComfyUI ``ZImageTokenizer``). Our vision-language sequence is that very list of token ids with
the picture block inserted after the user header, so the positions that are not part of a picture carry the same
tokens as the text sequence and align with it one to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import reduce

import torch
from torch import Tensor

SYSTEM_TURN = "<|im_start|>system\n{}<|im_end|>\n"
USER_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
HEADER_TOKENS = 3  # <|im_start|> user \n
PAD_TOKEN = 151643  # fills texts up to a length, in every Qwen3 and Qwen3-VL tokenizer
TAIL_TOKENS = 5  # <|im_end|> \n <|im_start|> assistant \n


class TokenRole(IntEnum):
    """What a position holds. The values are what is stored in files; never renumber."""

    TEMPLATE = 0
    TEXT = 1
    MARKER = 2
    IMAGE = 3


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that carry structure. Defaults are those of every Qwen3 and Qwen3-VL tokenizer."""

    im_start: int = 151644
    im_end: int = 151645
    vision_start: int = 151652
    vision_end: int = 151653
    image_pad: int = 151655


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Roles and ids of the ``L`` positions of one sequence.

    Attributes:
        roles: uint8 ``(L,)`` of :class:`TokenRole`, on the CPU.
        token_ids: int64 ``(L,)``, on the CPU; image positions hold the image-pad id.
        grids: per picture ``(rows, columns)`` of merged image tokens, in sequence order. Their areas sum to the
            number of IMAGE positions. A picture cut by a mask is a strip: ``(1, kept tokens)``.
        layer: Hugging Face ``hidden_states`` index counted from the end (-2 is what Z-Image reads); None if unknown.
        source: which encoder the states came from: ``"qwen3-vl"``, ``"text"``, or ``"blend"`` for a mixture.
        cut: whether a mask took tokens out of a picture, so that its grid is a strip and says no more what is where.
        masks: per picture, boolean ``(rows, columns)`` of the grid it had whole, true where a token stayed: what is
            where in a cut picture. None for a picture that is whole, or where that is not known.
        prompt: the user's words; ``model``: the encoder's name. Both are provenance only.

    Raises:
        ValueError: if the parts contradict each other.
    """

    roles: Tensor
    token_ids: Tensor
    grids: tuple[tuple[int, int], ...] = ()
    layer: int | None = None
    source: str = "qwen3-vl"
    prompt: str = ""
    model: str = ""
    cut: bool = False
    masks: tuple[Tensor | None, ...] = ()

    def __post_init__(self) -> None:
        roles = torch.as_tensor(self.roles, device="cpu")
        token_ids = torch.as_tensor(self.token_ids, dtype=torch.int64, device="cpu")
        grids = tuple((int(rows), int(columns)) for rows, columns in self.grids)
        if roles.ndim != 1 or roles.shape != token_ids.shape:
            raise ValueError(
                f"TokenLayout: expected roles and token_ids of one equal length, got {tuple(roles.shape)} and "
                f"{tuple(token_ids.shape)}."
            )
        if roles.numel() and not 0 <= int(roles.min()) <= int(roles.max()) <= max(TokenRole):
            found = sorted(set(roles.tolist()))
            raise ValueError(f"TokenLayout: expected roles 0 to {max(TokenRole):d}, got {found}.")
        if any(rows < 1 or columns < 1 for rows, columns in grids):
            raise ValueError(f"TokenLayout: expected grids of at least 1×1, got {grids}.")
        pictured = sum(rows * columns for rows, columns in grids)
        image_tokens = int((roles == TokenRole.IMAGE).sum())
        if pictured != image_tokens:
            raise ValueError(f"TokenLayout: grids {grids} hold {pictured} image tokens, roles count {image_tokens}.")
        masks = tuple(self.masks) if any(mask is not None for mask in self.masks) else (None,) * len(grids)
        stayed = [None if mask is None else (1, int(mask.sum())) for mask in masks]
        if len(masks) != len(grids) or any(one not in (None, grid) for one, grid in zip(stayed, grids, strict=True)):
            raise ValueError(f"TokenLayout: expected masks of the pictures that were cut, {grids}, got {stayed}.")
        object.__setattr__(self, "masks", masks)
        object.__setattr__(self, "roles", roles.to(torch.uint8))
        object.__setattr__(self, "token_ids", token_ids)
        object.__setattr__(self, "grids", grids)

    def __len__(self) -> int:
        return self.roles.numel()

    @property
    def places_known(self) -> bool:
        """Whether it is known of every picture what is where in it: none is cut, or their masks tell."""
        return not self.cut or any(mask is not None for mask in self.masks)

    def mask(self, *roles: TokenRole) -> Tensor:
        """Boolean ``(L,)``: positions that have one of ``roles``."""
        nowhere = torch.zeros_like(self.roles, dtype=torch.bool)
        return reduce(torch.bitwise_or, [self.roles == role for role in roles], nowhere)

    def counts(self) -> dict[TokenRole, int]:
        """Positions per role, roles that do not occur left out."""
        return {role: int(count) for role in TokenRole if (count := (self.roles == role).sum())}

    def describe(self) -> str:
        """The counts in words: ``"8 template, 5 text, 2 marker, 64 image (8×8)"``, padding apart."""
        padding = int(self.padding().sum())
        counts = {role.name.lower(): count for role, count in self.counts().items()}
        if padding:
            counts["template"] -= padding
            counts["padding"] = padding
        parts = [f"{count} {name}" for name, count in counts.items() if count]
        sizes = ", ".join(f"{rows}×{columns}" for rows, columns in self.grids)
        return (", ".join(parts) or "no tokens") + (f" ({sizes})" if sizes else "")

    def padding(self) -> Tensor:
        """Boolean ``(L,)``: the template's positions at the very end that only fill a text up to a length."""
        fills = (self.roles == TokenRole.TEMPLATE) & (self.token_ids == PAD_TOKEN)
        return fills.flip(0).to(torch.uint8).cumprod(0).flip(0).bool()

    def picture_positions(self) -> list[Tensor]:
        """Per picture the int64 indices of its IMAGE positions, in raster order."""
        positions = self.mask(TokenRole.IMAGE).nonzero().flatten()
        return list(positions.split([rows * columns for rows, columns in self.grids]))

    def select(self, keep: Tensor) -> TokenLayout:
        """The layout of the positions where boolean ``keep`` ``(L,)`` is true.

        Raises:
            ValueError: if ``keep`` is of another length.
        """
        keep = keep.to("cpu", torch.bool)
        if keep.shape != self.roles.shape:
            raise ValueError(f"keep: expected shape ({len(self)},), one per position, got {tuple(keep.shape)}.")
        grids, masks, cut = [], [], self.cut
        for index, (grid, positions) in enumerate(zip(self.grids, self.picture_positions(), strict=True)):
            stays = keep[positions]
            if stays.all():
                grids.append(grid)
                masks.append(self.masks[index])
            elif stays.any():
                grids.append((1, int(stays.sum())))
                masks.append(_narrowed(self.masks[index], stays, grid, self.cut))
                cut = True
        return replace(
            self, roles=self.roles[keep], token_ids=self.token_ids[keep], grids=tuple(grids), cut=cut,
            masks=tuple(masks),
        )

    def copy(self) -> TokenLayout:
        """The same with roles and ids of its own, which were checked before."""
        same = object.__new__(type(self))
        same.__dict__.update(self.__dict__, roles=self.roles.clone(), token_ids=self.token_ids.clone())
        return same

    def with_layer(self, layer: int | None) -> TokenLayout:
        return replace(self, layer=layer)


def _narrowed(mask: Tensor | None, stays: Tensor, grid: tuple[int, int], cut: bool) -> Tensor | None:
    """The mask of a picture of which only the tokens ``stays`` are left; None where what is where was lost before."""
    if mask is None:
        return None if cut and grid[0] == 1 else stays.reshape(grid)
    narrowed = mask.clone()
    narrowed[mask] = stays
    return narrowed


def concatenate_layouts(layouts: Sequence[TokenLayout], source: str) -> TokenLayout:
    """One layout after another; layer, prompt and model are the first one's."""
    return replace(
        layouts[0],
        roles=torch.cat([layout.roles for layout in layouts]),
        token_ids=torch.cat([layout.token_ids for layout in layouts]),
        grids=sum((layout.grids for layout in layouts), ()),
        source=source,
        cut=any(layout.cut for layout in layouts),
        masks=sum((layout.masks for layout in layouts), ()),
    )


def text_layout(
    token_ids: Sequence[int],
    *,
    system_tokens: int = 0,
    special: SpecialTokens = SpecialTokens(),
    source: str = "text",
    turn: str = USER_TURN,
    tail_tokens: int = TAIL_TOKENS,
    **provenance,
) -> TokenLayout:
    """Layout of a text sequence: user header, words, assistant header.

    Args:
        token_ids: ids of the filled template, a leading system turn included.
        system_tokens: how many of them are the system turn.
        special: ids that carry structure.
        turn, tail_tokens: the template, Z-Image's unless told otherwise, and how many of its tokens follow the words.
        provenance: ``layer``, ``prompt`` and ``model`` of the layout.

    Raises:
        ValueError: if the ids are not this template, or the prompt contains an image placeholder.
    """
    ids = torch.as_tensor(list(token_ids), dtype=torch.int64)
    length, start = ids.numel(), system_tokens
    head_fits = length >= start + HEADER_TOKENS + tail_tokens and int(ids[start]) == special.im_start
    if not head_fits or int(ids[-tail_tokens]) != special.im_end or int(ids[2 - tail_tokens]) != special.im_start:
        owner = "Z-Image's" if turn == USER_TURN else "this family's"
        raise ValueError(
            f"Expected the token ids of {owner} chat template ({turn!r}), got {length} ids that are not: "
            "the tokenizer belongs to another model family."
        )
    reserved = {special.image_pad: "<|image_pad|>", special.vision_start: "<|vision_start|>",
                special.vision_end: "<|vision_end|>"}
    for token, name in reserved.items():
        if (ids == token).any():
            raise ValueError(f"prompt: contains {name}, a token reserved for pictures. Remove it from the prompt.")
    roles = torch.full((length,), TokenRole.TEMPLATE, dtype=torch.uint8)
    roles[start + HEADER_TOKENS : length - tail_tokens] = TokenRole.TEXT
    return TokenLayout(roles, ids, source=source, **provenance)


def pad_layout(layout: TokenLayout, count: int) -> TokenLayout:
    """The layout with ``count`` padding positions behind it; they belong to the template."""
    return replace(
        layout,
        roles=torch.cat([layout.roles, torch.full((count,), TokenRole.TEMPLATE, dtype=torch.uint8)]),
        token_ids=torch.cat([layout.token_ids, torch.full((count,), PAD_TOKEN)]),
    )


def picture_insertion_point(layout: TokenLayout, special: SpecialTokens = SpecialTokens()) -> int:
    """Index in a text layout where the picture block goes: right after the user header.

    Raises:
        ValueError: if the layout has pictures already, or lacks the user and assistant headers.
    """
    starts = ((layout.token_ids == special.im_start) & (layout.roles == TokenRole.TEMPLATE)).nonzero().flatten()
    if layout.grids or len(starts) < 2:
        raise ValueError(f"layout: expected a whole text sequence without pictures, got {layout.describe()}.")
    return int(starts[-2]) + HEADER_TOKENS  # the last start belongs to the assistant, the one before to the user


def insert_pictures(
    layout: TokenLayout, grids: Sequence[tuple[int, int]], special: SpecialTokens = SpecialTokens(), source="qwen3-vl"
) -> TokenLayout:
    """The vision-language sequence of a text layout: per picture a start marker, its image tokens, an end marker.

    Args:
        layout: what :func:`text_layout` gave.
        grids: merged ``(rows, columns)`` per picture; none leaves the text alone.
    """
    at = picture_insertion_point(layout, special)
    roles, ids = [layout.roles[:at]], [layout.token_ids[:at]]
    for rows, columns in grids:
        role = torch.full((rows * columns + 2,), TokenRole.IMAGE, dtype=torch.uint8)
        role[0] = role[-1] = TokenRole.MARKER
        block = torch.full((rows * columns + 2,), special.image_pad)
        block[0], block[-1] = special.vision_start, special.vision_end
        roles.append(role)
        ids.append(block)
    return replace(
        layout,
        roles=torch.cat([*roles, layout.roles[at:]]),
        token_ids=torch.cat([*ids, layout.token_ids[at:]]),
        grids=tuple(grids),
        masks=(),
        source=source,
    )


def mrope_positions(layout: TokenLayout) -> Tensor:
    """Qwen3-VL's rotary positions (time, row, column), int64 ``(3, L)``.

    Words count up on all three axes; a picture that starts at ``s`` has time ``s``, rows ``s + r`` and columns
    ``s + c``, and the words after it go on at ``s + max(rows, columns)`` (Qwen2-VL, arXiv 2409.12191, section 2.1).
    """
    positions = torch.empty(3, len(layout), dtype=torch.int64)
    spans = {int(span[0]): grid for span, grid in zip(layout.picture_positions(), layout.grids, strict=True)}
    index, position = 0, 0
    while index < len(layout):
        if index not in spans:
            positions[:, index] = position
            index, position = index + 1, position + 1
            continue
        rows, columns = spans[index]
        block = slice(index, index + rows * columns)
        positions[0, block] = position
        positions[1, block] = position + torch.arange(rows).repeat_interleave(columns)
        positions[2, block] = position + torch.arange(columns).repeat(rows)
        index, position = block.stop, position + max(rows, columns)
    return positions
