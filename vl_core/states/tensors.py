"""What every stage does with tensors: checks on the way in, batches, dtypes, sizes of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from typing import get_args

import torch
from torch import Tensor

from .layout import TokenLayout


def paired_batches(text: Tensor, vl: Tensor, name: str = "vl") -> tuple[Tensor, Tensor]:
    """Both as ``(B, L, D)`` of one batch size and width, on the text's device; ``name`` is what errors call the VL.

    Raises:
        ValueError: for other shapes, widths or batches that differ, no tokens, values that are not finite.
    """
    y, (x,) = paired_with(text, {name: vl})
    return y, x


def paired_with(text: Tensor, sides: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """:func:`paired_batches` of the text and several VL sides by name; a GPU is waited for once."""
    check_all_embeddings({"text": text, **sides})
    y, brought = as_batch(text), []
    for name, vl in sides.items():
        if text.shape[-1] != vl.shape[-1]:
            raise ValueError(
                f"text and {name}: expected equal widths, got {text.shape[-1]} and {vl.shape[-1]}. Z-Image needs "
                "Qwen3-VL-4B, width 2560."
            )
        for side, tokens in (("text", text), (name, vl)):
            if not tokens.shape[-2]:
                raise ValueError(f"{side}: expected at least 1 token, got none.")
        x = as_batch(vl).to(text.device)
        if len(x) not in (1, len(y)):
            raise ValueError(f"{name}: expected a batch of {len(y)} like the text's, or of 1, got {len(x)}.")
        brought.append(x.expand(len(y), -1, -1))
    return y, brought


def check_layout(name: str, layout: TokenLayout | None, tokens: Tensor) -> None:
    """Raise ValueError unless ``layout`` is None or has a position for each of ``tokens`` ``(…, L, D)``."""
    if layout is not None and len(layout) != tokens.shape[-2]:
        raise ValueError(f"{name}_layout: expected {tokens.shape[-2]} positions like {name}, got {len(layout)}.")


def check_choice(name: str, value: str, choices: object) -> None:
    """Raise ValueError unless ``value`` is one of the strings of the ``Literal`` type ``choices``."""
    if value not in get_args(choices):
        raise ValueError(f"{name}: expected one of {', '.join(get_args(choices))}, got {value!r}.")


def check_embeddings(embeddings: Tensor, name: str = "embeddings") -> None:
    """Raise ValueError unless ``embeddings`` is a finite float tensor ``(L, D)`` or ``(B, L, D)``."""
    check_all_embeddings({name: embeddings})


def check_all_embeddings(named: dict[str, Tensor]) -> None:
    """:func:`check_embeddings` of several tensors, which waits for a GPU once."""
    for name, embeddings in named.items():
        check_shape(embeddings, name)
    if not all_finite(*named.values()):
        raise describe_not_finite(next(name for name, embeddings in named.items() if not all_finite(embeddings)))


def check_shape(embeddings: Tensor, name: str = "embeddings") -> None:
    """Raise ValueError unless ``embeddings`` is a float tensor ``(L, D)`` or ``(B, L, D)``."""
    if embeddings.ndim not in (2, 3) or not embeddings.is_floating_point():
        raise ValueError(
            f"{name}: expected floats of shape (tokens, width) or (batch, tokens, width), got {embeddings.dtype} of "
            f"shape {tuple(embeddings.shape)}."
        )


def describe_not_finite(name: str) -> ValueError:
    return ValueError(f"{name}: expected finite values, got NaN or infinity; the encoder overflowed.")


def as_batch(embeddings: Tensor) -> Tensor:
    """``(L, D)`` or ``(B, L, D)`` as a view ``(B, L, D)``."""
    return embeddings.unsqueeze(0) if embeddings.ndim == 2 else embeddings


def put_back(original: Tensor, changed: Tensor, kept: Tensor) -> Tensor:
    """``changed`` ``(B, L, D)``, in place: the tokens ``kept`` (boolean ``(B, L)``, CPU) as they were, bit for bit."""
    if kept.any():
        places = tuple(place.to(changed.device) for place in kept.nonzero(as_tuple=True))
        changed[places] = original[places]
    return changed


def without_tiniest(values: Tensor) -> Tensor:
    """Values whose square has no inverse in float32, denormal ones too, as 0: what is fitted on them is finite."""
    return torch.where(values.abs() < TINIEST, 0.0, values)


def to_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` in ``dtype``, held at its largest number: float16 ends at 65504, and infinity would spread."""
    if values.dtype == dtype:
        return values
    values = values.float()
    if dtype.itemsize < values.dtype.itemsize:
        limit = torch.finfo(dtype).max
        values = values.clamp(-limit, limit)
    return values.to(dtype)


TINIEST = 1e-30  # below it 1/x² has no float32, and no encoder means anything
EPSILON = 1e-6  # floor of a std, as in the note
ROWS_AT_A_TIME = 64  # of 2560 float64: what stays in a processor's cache between the steps of a sum


def unit_rms(tokens: Tensor) -> Tensor:
    """Each token ``(…, D)`` over its RMS, all Z-Image sees of its scale; same dtype, zeros stay zeros."""
    return tokens / tokens.square().mean(-1, keepdim=True).sqrt().clamp_min(EPSILON)


def token_rms(embeddings: Tensor) -> Tensor:
    """Root mean square of each token: ``(…, L, D)`` -> float32 ``(…, L)``.

    Beyond 1e18, where float32 has no squares, of the token divided by its largest value, so that finite values have a
    finite RMS.
    """
    values, root = embeddings.float(), math.sqrt(embeddings.shape[-1])
    size = torch.linalg.vector_norm(values, dim=-1)
    if not values.numel() or _sums_up(size):
        return size / root
    peak = values.detach().abs().amax(-1)  # a GPU is not waited for to see whether it is needed
    scaled = torch.linalg.vector_norm(values / peak.clamp_min(1).unsqueeze(-1), dim=-1) / root * peak.clamp_min(1)
    return torch.where(size.isinf() & peak.isfinite(), scaled, size / root)


def median(values: Tensor) -> Tensor:
    """Median over the last axis, the mean of the middle two for an even count (``torch.median`` takes the lower)."""
    ordered = values.sort(-1).values
    count = ordered.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2


def sum_tensors(parts: Iterable[Tensor]) -> Tensor:
    """``sum`` of one tensor or more, which begins with the first of them and not with the number 0."""
    return reduce(torch.add, parts)


def all_finite(*tensors: Tensor) -> bool:
    """Whether no value is NaN or infinite in float32: the extremes say so, without a mask as large as the values.

    However many tensors there are, a GPU is waited for once.
    """
    if all(map(_sums_up, tensors)):
        return True
    extremes = [extreme.float() for values in tensors if values.numel() for extreme in values.detach().aminmax()]
    if not extremes:
        return True
    return bool(torch.stack([extreme.to(extremes[0].device) for extreme in extremes]).isfinite().all())


def _sums_up(values: Tensor) -> bool:
    """Whether values on a CPU have a finite sum: then all of them are finite, which is the quickest way to know it."""
    return values.device.type == "cpu" and math.isfinite(values.detach().sum(dtype=torch.float32))


def to_float64(tokens: Tensor) -> Tensor:
    """float64, without a gradient: where the tokens are, or on the CPU if that device has none."""
    return tokens.detach().to("cpu" if tokens.device.type == "mps" else tokens.device, torch.float64)


def overall_std(tokens: Tensor) -> float:
    """Unbiased std over all elements, in float64; 0 for fewer than 2.

    √((Σy² − N·ȳ²)/(N − 1)) with y = x − m and m the mean rounded to float32, so that equal values give 0 exactly and a
    large mean costs no precision; only sums are in float64, not a copy of the values.
    """
    count = tokens.numel()
    if count < 2:
        return 0.0
    wide = torch.float32 if tokens.device.type == "mps" else torch.float64  # MPS has no float64
    values = tokens.detach().float()
    shifted = values - (values.sum(dtype=wide) / count).float()
    norm, total = torch.stack([torch.linalg.vector_norm(shifted, dtype=wide), shifted.sum(dtype=wide)]).tolist()
    return max(0.0, (norm * norm - total * total / count) / (count - 1)) ** 0.5
