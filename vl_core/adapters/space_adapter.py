"""Space adapters: closed-form maps from one encoder's states to another's, fitted on prompts that both have read.

Paired tokens (the same prompt, position by position) give an affine per dimension, a ridge map, a reduced-rank ridge
map or a rotation; unpaired ones give a whitening-colouring transform. Widths may differ, which opens Qwen3-VL-2B or 8B
to a text encoder of width 2560. Whole prompts are held out, and sinks are left out: one sink would be the whole fit.
Where an image model reads several layers side by side (:mod:`families`), each has an adapter of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..states.files import check_content
from ..states.headers import Header
from ..states.layout import TokenLayout
from ..states.sinks import Sinks, check_sinks, find_sinks
from ..states.storage import read_tensors, take, write_tensors
from ..states.tensors import EPSILON, as_batch, check_choice, check_embeddings, to_dtype, token_rms, without_tiniest
from .ridge import NormalEquations
from .watch import watched
from .whitening import Covariance, matrix_power

SpaceMethod = Literal["per_dimension", "ridge", "reduced_rank", "procrustes", "whitening"]

HELD_OUT = 5  # one prompt in so many is held out
MOST_HELD_OUT = 8192  # tokens: enough for three digits of R², and 170 MB at width 2560; more prompts are fitted on
BUDGET = 1536 * 2**20  # bytes of sums: 4096 -> 2560 in 5 folds takes 1.1 GB
FILE_KIND = "space adapter"


@dataclass(frozen=True)
class SpaceReport:
    """How states of held-out prompts come out, sinks left out.

    Attributes:
        prompts, tokens: fitted on. ``held_out``: tokens measured on.
        r2: 1 − squared error / spread about the fitted prompts' mean, both in units of each target token's RMS.
        cosine: mean over tokens with the target's; ``cosine_before``: of the untouched states, NaN for other widths.
        penalty, rank: of the ridge maps.
    """

    prompts: int
    tokens: int
    held_out: int = 0
    r2: float = float("nan")
    cosine: float = float("nan")
    cosine_before: float = float("nan")
    penalty: float | None = None
    rank: int | None = None

    def describe(self) -> str:
        """One line for people."""
        ridge = "" if self.penalty is None else f", penalty {self.penalty:.3g}, rank {self.rank}"
        if not self.held_out:
            return f"{self.prompts} prompts, {self.tokens} tokens{ridge}, nothing held out"
        return (
            f"{self.prompts} prompts, {self.tokens} tokens{ridge}; {self.held_out} held-out tokens: R² {self.r2:.3f}, "
            f"cosine {self.cosine_before:.3f} before, {self.cosine:.3f} after"
        )


@dataclass(frozen=True, eq=False)
class SpaceAdapter:
    """t ≈ (x − ``center``)·A + ``offset``, where A is ``gain`` per dimension, or ``left``·``right``.

    Attributes:
        gain: float32 ``(D,)`` or None. ``left``: ``(D_in, r)``, ``right``: ``(r, D_out)``, or None.
        source, target: names of the encoders. ``layers``: (source's, target's) hidden-state index, as they were asked
            for: negative from the end.
    """

    method: SpaceMethod
    center: Tensor
    offset: Tensor
    gain: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    source: str = ""
    target: str = ""
    layers: tuple[int | None, int | None] = (None, None)
    report: SpaceReport = field(default_factory=lambda: SpaceReport(0, 0))

    @property
    def widths(self) -> tuple[int, int]:
        return len(self.center), len(self.offset)

    def apply(self, states: Tensor, *, sinks: Sinks = "exclude", layout: TokenLayout | None = None) -> Tensor:
        """Bring states over.

        Args:
            states: ``(L, D_in)`` or ``(B, L, D_in)``, any float dtype.
            sinks: "exclude" keeps attention sinks as they are where the widths agree: they are far outside of what
                was fitted. With other widths they cannot stay, and are mapped like the rest.
            layout: of the ``L`` positions, so that sinks are found among tokens of their own kind.

        Returns:
            ``(…, L, D_out)`` in the dtype that came in, computed in float32.

        Raises:
            ValueError: for another width, or values that are not finite.
        """
        check_sinks(sinks)
        check_embeddings(states, "states")
        if states.shape[-1] != self.widths[0]:
            raise ValueError(
                f"states: the adapter was fitted on {self.source or 'an encoder'} of width {self.widths[0]}, got width "
                f"{states.shape[-1]}. Use the encoder of the fit, or fit an adapter for this one."
            )
        batch = as_batch(states)
        mapped = to_dtype(self._mapped(batch.float()), states.dtype)
        if sinks == "exclude" and self.widths[0] == self.widths[1]:
            mapped = torch.where(find_sinks(batch, layout).unsqueeze(-1), batch, mapped)
        return mapped.reshape(*states.shape[:-1], self.widths[1])

    def _mapped(self, x: Tensor) -> Tensor:
        center, offset = self.center.to(x.device), self.offset.to(x.device)
        if self.gain is not None:
            return (x - center) * self.gain.to(x.device) + offset
        assert self.left is not None and self.right is not None, "without a gain there are both"
        return (x - center) @ self.left.to(x.device) @ self.right.to(x.device) + offset

    def describe(self) -> str:
        """One line for people."""
        return f"Space adapter {self.method}, width {self.widths[0]} -> {self.widths[1]}: {self.report.describe()}"

    def save(self, path: str | os.PathLike) -> Path:
        """Write to a safetensors file."""
        parts = {name: getattr(self, name) for name in ("center", "offset", "gain", "left", "right")}
        header = {
            "method": self.method, "source": self.source, "target": self.target, "layers": list(self.layers),
            "report": asdict(self.report),
        }
        return write_tensors(path, FILE_KIND, {name: one for name, one in parts.items() if one is not None}, header)

    @classmethod
    def load(cls, path: str | os.PathLike) -> SpaceAdapter:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_tensors`; also for a garbled file.
        """
        tensors, header = read_tensors(path, FILE_KIND)
        ndims = {"center": 1, "offset": 1, "gain": 1, "left": 2, "right": 2}
        diagonal = "gain" in tensors
        names = ("center", "offset", "gain") if diagonal else ("center", "offset", "left", "right")
        parts = {name: take(tensors, name, path, ndims[name]) for name in names}
        told = check_content(SpaceHeader, header, Path(path).name)
        source, target = told.layers
        made = cls(
            told.method, **parts, source=told.source, target=told.target, layers=(source, target),
            report=check_content(SpaceReport, told.report, f"{Path(path).name}: report"),
        )
        shapes = (
            (parts["gain"].shape, parts["gain"].shape) if diagonal
            else (parts["left"].shape[:1], parts["right"].shape[1:])
        )
        inner = diagonal or parts["left"].shape[1] == parts["right"].shape[0]
        if not inner or shapes != (made.center.shape, made.offset.shape):
            raise ValueError(f"{Path(path).name}: expected parts of one shape, got {sorted(tensors)} that disagree.")
        return made


class SpaceHeader(Header):
    """Of a :class:`SpaceAdapter`."""

    method: SpaceMethod
    source: str
    target: str
    layers: Annotated[list[int | None], Field(min_length=2, max_length=2)]
    report: dict[str, Any]


class SpaceFit:
    """A space adapter that is still being fitted: prompts go in one by one, only sums are kept.

    One prompt in five is held out of the fit, its tokens are kept to measure on, up to 8192 tokens. The whole of
    the sums can make any method, so several can be compared on the same prompts.

    Args:
        width_in, width_out: of the source's and target's states.
        paired: tokens come in pairs; else only what whitening needs is kept.
    """

    def __init__(self, width_in: int, width_out: int, *, paired: bool = True, budget: int = BUDGET) -> None:
        self.widths, self.paired = (width_in, width_out), paired
        self.equations = NormalEquations(width_in, width_out, budget=budget) if paired else None
        self.sides = tuple(Covariance(width) for width in self.widths)
        self.prompts = self.tokens = 0
        self._seen = 0
        self._held: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, t: Tensor) -> None:
        """Take in the states of one prompt, sinks of either side left out.

        Args:
            x: the source's ``(L, D_in)`` or ``(1, L, D_in)``. ``t``: the target's, of the same tokens if paired.

        Raises:
            ValueError: for other shapes, or values that are not finite.
        """
        x, t = (_one_sequence(side, name, width) for side, name, width in zip((x, t), "xt", self.widths, strict=True))
        if self.paired and len(x) != len(t):
            raise ValueError(
                f"t: expected {len(x)} tokens like x, got {len(t)}. Let both encoders read the same prompt."
            )
        kept = [~find_sinks(side) for side in (x, t)]
        kept = [(kept[0] & kept[1].to(x.device)).to(side.device) for side in (x, t)] if self.paired else kept
        x, t = x[kept[0]].cpu(), t[kept[1]].cpu()
        self._seen += 1
        if self._seen % HELD_OUT == 0 and sum(len(one) for one, _ in self._held) < MOST_HELD_OUT:
            self._held.append((x, t))
            return
        self.prompts, self.tokens = self.prompts + 1, self.tokens + len(x)
        for side, tokens in zip(self.sides, (x, t), strict=True):
            side.add(tokens)
        if self.equations is not None and len(x):
            self.equations.add(x, t, fold=self.prompts)  # a prompt's tokens share a fold

    def solve(
        self, method: SpaceMethod, *, penalty: float | Literal["auto"] = "auto", rank: int | Literal["auto"] = "auto",
        source: str = "", target: str = "", layers: tuple[int | None, int | None] = (None, None),
        device: str | torch.device = "cpu", progress: Callable[[], None] = lambda: None,
    ) -> SpaceAdapter:
        """The adapter and its held-out report.

        - per_dimension: the least-squares line of each dimension; widths must agree. A source whose std is below 1e-6
          counts as constant, here and for procrustes, and gives the target's mean.
        - ridge: W = (XᵀX + λI)⁻¹XᵀT on standardised inputs. reduced_rank: see :meth:`NormalEquations.solve`.
        - procrustes: XᵀT = USVᵀ, A = c·UVᵀ: a rotation (Schönemann 1966) and one scale c = tr S / |X|².
        - whitening: cov(x)^(−1/2)·cov(t)^(1/2), each shrunk by 0.1 towards its mean variance; pairs are not used. The
          optimal-transport order of the factors is not defined between widths, so those must agree.

        Args:
            penalty, rank: of the ridge maps, "auto" by held-out error of folds of the fitted prompts.
            source, target, layers: provenance.
            progress: called between steps of the ridge maps; may raise to interrupt.

        Raises:
            ValueError: for a method that needs pairs or equal widths and has not got them, or fewer than 2 tokens.
        """
        check_choice("method", method, SpaceMethod)
        if min(side.count for side in self.sides) < 2:
            raise ValueError("Expected at least 2 tokens to fit on, got fewer. Give more prompts.")
        if method != "whitening" and not self.paired:
            raise ValueError(f"method: {method} needs paired tokens, these are unpaired. Choose whitening.")
        if method in ("per_dimension", "whitening") and self.widths[0] != self.widths[1]:
            raise ValueError(
                f"method: {method} needs equal widths, got {self.widths[0]} and {self.widths[1]}. Choose ridge, "
                "reduced_rank or procrustes."
            )
        extra: dict[str, Any] = {}
        if method in ("ridge", "reduced_rank"):
            wanted = rank if method == "reduced_rank" else min(self.widths)
            assert self.equations is not None, "refused above"
            found = self.equations.solve(penalty, wanted, device=device, progress=progress)
            parts = {"center": found.center, "offset": found.offset, "left": found.left, "right": found.right}
            extra = {"penalty": found.report.penalty, "rank": found.report.rank}
        else:
            parts = self._moments_map(method, device)
        plain = {"source": source, "target": target, "layers": tuple(layers)}
        adapter = SpaceAdapter(method, **parts, **plain)
        report = SpaceReport(self.prompts, self.tokens, **self._measured(adapter), **extra)
        return SpaceAdapter(method, **parts, **plain, report=report)

    def _moments_map(self, method: SpaceMethod, device: str | torch.device) -> dict[str, Tensor]:
        x, t = self.sides
        center, offset = x.mean, t.mean
        if method == "whitening":
            matrix = matrix_power(x.shrunk().to(device), -0.5) @ matrix_power(t.shrunk().to(device), 0.5)
        else:
            assert self.equations is not None, "only whitening does without pairs"
            cross = self.equations.centred_cross().to(device)
            if method == "per_dimension":
                spread, least = x.squares.diagonal(), EPSILON**2 * x.count
                gain = torch.where(spread > least, cross.diagonal().cpu() / spread.clamp_min(least), 0.0)
                return {"center": center.float(), "offset": offset.float(), "gain": gain.float()}
            u, s, vh = torch.linalg.svd(cross, full_matrices=False)
            spread = float(x.squares.trace())  # a source that says the same everywhere tells nothing of the target
            matrix = u @ vh * (s.sum() / spread if spread > EPSILON**2 * x.count * self.widths[0] else 0.0)
        if matrix.shape[0] <= matrix.shape[1]:
            left, right = torch.eye(matrix.shape[0]), matrix
        else:
            left, right = matrix, torch.eye(matrix.shape[1])
        return {
            "center": center.float(), "offset": offset.float(), "left": left.float().cpu(),
            "right": right.float().cpu(),
        }

    def _measured(self, adapter: SpaceAdapter) -> dict[str, Any]:
        """Of the held-out prompts, in dit space: what Z-Image's RMSNorm leaves."""
        if not self.paired or not self._held:
            return {}
        x, t = (torch.cat(side).float() for side in zip(*self._held, strict=True))
        size = token_rms(t).unsqueeze(-1).clamp_min(EPSILON)
        mapped = adapter._mapped(x)
        error = ((mapped - t) / size).double().square().sum()
        spread = ((t - adapter.offset) / size).double().square().sum()
        before = float("nan")
        if self.widths[0] == self.widths[1]:
            before = float(F.cosine_similarity(x, t, dim=-1).mean())
        return {
            "held_out": len(t), "r2": float(1 - error / spread) if spread else float("nan"),
            "cosine": float(F.cosine_similarity(mapped, t, dim=-1).mean()), "cosine_before": before,
        }


def fit_space_adapter(
    prompts: list[str], encode_source: Callable[[str], Tensor], encode_target: Callable[[str], Tensor],
    method: SpaceMethod = "ridge", *, progress: Callable[[], None] = lambda: None, **options: Any,
) -> SpaceAdapter:
    """Let both encoders read the prompts and solve; ``options`` go to :meth:`SpaceFit.solve`.

    Args:
        encode_source, encode_target: prompt -> states ``(L, D)`` or ``(1, L, D)`` of the same tokens.
        progress: called after each prompt; may raise to interrupt.
    """
    layers = [options.pop("layers", (None, None))]
    (adapter,) = fit_space_adapters(
        prompts, lambda prompt: [encode_source(prompt)], lambda prompt: [encode_target(prompt)], method, layers=layers,
        progress=progress, **options,
    )
    return adapter


def fit_space_adapters(
    prompts: list[str], encode_source: Callable[[str], Sequence[Tensor]],
    encode_target: Callable[[str], Sequence[Tensor]], method: SpaceMethod = "ridge", *,
    layers: Sequence[tuple[int | None, int | None]], progress: Callable[[], None] = lambda: None,
    check: Callable[[], None] | None = None, **options: Any,
) -> tuple[SpaceAdapter, ...]:
    """:func:`fit_space_adapter` for several layers, each mapped for itself, from one reading of the prompts.

    Args:
        encode_source, encode_target: prompt -> states of each layer, ``(L, D)`` or ``(1, L, D)``.
        layers: (source's, target's) hidden-state index of each.
        check: called five times a second while the maps are solved; may raise to interrupt.
    """
    check_choice("method", method, SpaceMethod)
    fits: list[SpaceFit] = []
    for prompt in prompts:
        pairs = list(zip(encode_source(prompt), encode_target(prompt), layers, strict=True))
        fits = fits or [SpaceFit(x.shape[-1], t.shape[-1]) for x, t, _ in pairs]
        for fit, (x, t, _) in zip(fits, pairs, strict=True):
            fit.add(x, t)
        progress()
    if not fits:
        raise ValueError("prompts: expected at least one, got none.")

    def solve(fit: SpaceFit, places: tuple[int | None, int | None]) -> SpaceAdapter:
        return watched(lambda step: fit.solve(method, layers=places, progress=step, **options), check)

    return tuple(map(solve, fits, layers))


def _one_sequence(states: Tensor, name: str, width: int) -> Tensor:
    """``(L, D)`` or ``(1, L, D)`` -> float32 ``(L, D)``, checked."""
    check_embeddings(states, name)
    if states.ndim == 3 and len(states) == 1:
        states = states[0]
    if states.ndim != 2 or states.shape[1] != width:
        raise ValueError(f"{name}: expected states of shape (tokens, {width}), got {tuple(states.shape)}.")
    return without_tiniest(states.detach().float())
