"""What is wrong with a picture: figures about pixels alone.

Artifacts: seams of the 16-px tokens Z-Image paints and of the 8-px pixels of its latents, a noisy border, colour that
left its edges, blobs of colour that no light goes with, clipping. They mean most next to the picture of the same seed
at alpha 0 (:func:`compare_artifacts`): a fence photographed at 16 px a post is a grid too. What it holds of a reference
is :mod:`.fidelity`'s.

All but blobs and clipping are ratios, so neither brightness nor contrast matters. Everything runs on the CPU in float32
or 64.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..encoder.cache import digest
from ..pictures import check_picture
from ..states.tensors import sum_tensors
from .fidelity import LEVEL

TOKEN = 16  # pixels per side of an image token of Z-Image: 2 × 2 latent pixels
TILE = 64  # spectra are taken over tiles of this side, half overlapping; also the smallest side of a picture
RING = 0.08  # the border is this share of each side
EDGE_REACH = 1  # colour belongs to an edge at most this many pixels of the halved picture away
COLOUR_PER_LUMA = 0.5  # a luma edge accounts for colour edges up to this times its height

# Of blobs: steps between the means of two latent pixels side by side. These figures and the limit below were chosen on
# photographs of scikit-learn, ultralytics, gradio and matplotlib, none of which the tests know.
BLOB_CELL, BLOB_STRIDE = 8, 2  # pixels: over a latent pixel texture averages out, a blob does not
BLOB_STEP = 16 * LEVEL  # colour that nobody overlooks
BLOB_BOUNDS = 1.0, 2.0  # a step of luma accounts for a step of colour up to so many times its height, …
BLOB_REACH = 6  # … at most this many pixels away, in the direction of the step;
BLOB_PER_LUMA, BLOB_USUAL = 16.0, 0.8  # twice its height unless four fifths of the picture are all but grey

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BLUE_SCALE, RED_SCALE = 1.772, 1.402  # 2 (1 − weight of blue), 2 (1 − weight of red), BT.601

# Above these a picture is called out by itself; photographs without JPEG blocks stay below.
NOTABLE = {
    "grid_16": 2.0, "grid_8": 2.0, "border": 4.0, "loose_chroma": 0.2, "clipped": 0.2, "colour_blobs": 0.0033,
}  # fmt: skip
# Below these pictures count as equal: 0.0002 is not twice as bad as 0.0001, nor a border calmer than the inside bad.
FLOORS = {
    "grid_16": 1.0, "grid_8": 1.0, "border": 1.0, "loose_chroma": 0.02, "clipped": 0.01, "colour_blobs": 0.001,
}  # fmt: skip
WORSE = 2.0  # this many times the baseline is worth a word
NAMES = {
    "grid_16": "16-px grid (tokens)",
    "grid_8": "8-px grid (latent pixels)",
    "border": "border",
    "loose_chroma": "colour off its edges",
    "clipped": "clipped values",
    "colour_blobs": "blobs of colour",
}
ADVICE = {
    "grid_16": "try a lower alpha, outlier masking or another normalization",
    "grid_8": "look at the VAE, then try a lower alpha",
    "border": "try a layer nearer the end (-2 … -8) or a lower alpha",
    "loose_chroma": "try a lower alpha or an earlier end",
    "clipped": "try a lower alpha or normalization rms",
    "colour_blobs": "try a lower alpha or an earlier end",
}


@dataclass(frozen=True)
class Artifacts:
    """Figures about one picture; the larger the worse.

    Attributes:
        grid_16, grid_8: power at the 16-px and 8-px grid frequencies over that of their neighbours; 1 is none.
            ``grid_8`` counts only what a 16-px grid, which has harmonics there too, does not account for. JPEG's
            blocks are an 8-px grid.
        border: gradient energy per pixel of the outer 8 % of each side over that of the inside.
        loose_chroma: share of the chroma's gradient energy inside the border that has no luma edge near it, in [0, 1].
            Drawings in saturated colours of one lightness have much of it by nature; luma noise hides it.
        clipped: share of the ``3·H·W`` values at 0 or 255. Black and white backgrounds count.
        colour_blobs: share of the steps between the means of neighbouring latent pixels, inside the border, in which
            colour changes by more than 16 of 255 that no change of luma beside it accounts for, in [0, 1]. So blobs
            are found on busy pictures too, where there is a luma edge near everything; not on black, where every colour
            is light as well. Drawings in saturated colours of one lightness have much of it by nature.
    """

    grid_16: float
    grid_8: float
    border: float
    loose_chroma: float
    clipped: float
    colour_blobs: float = 0.0

    def notable(self) -> tuple[str, ...]:
        """The figures that stand out without anything to compare with, by attribute name."""
        return tuple(name for name, value in asdict(self).items() if value > NOTABLE[name])

    def describe(self) -> str:
        """The report, one figure a line."""
        said = {
            "grid_16": f"{self.grid_16:.3g}× the power of its surroundings",
            "grid_8": f"{self.grid_8:.3g}× the power of its surroundings",
            "border": f"{self.border:.3g}× the gradient energy of the inside",
            "loose_chroma": f"{self.loose_chroma:.1%} of its gradient energy",
            "clipped": f"{self.clipped:.1%} at 0 or 255",
            "colour_blobs": f"{self.colour_blobs:.2%} of its steps",
        }
        marked = self.notable()
        return "\n".join(
            f"{NAMES[name]}: {text}" + (f": stands out, {ADVICE[name]}" if name in marked else "")
            for name, text in said.items()
        )


@dataclass(frozen=True)
class ArtifactComparison:
    """A picture's artifacts next to those of its baseline, usually the same seed at alpha 0."""

    picture: Artifacts
    baseline: Artifacts

    @property
    def ratios(self) -> dict[str, float]:
        """Picture over baseline by attribute name, each side at least its entry in ``FLOORS``; 1 is no change."""
        ours, theirs = asdict(self.picture), asdict(self.baseline)
        return {name: max(ours[name], floor) / max(theirs[name], floor) for name, floor in FLOORS.items()}

    def worse(self) -> tuple[str, ...]:
        """Figures at least ``WORSE`` times the baseline's, largest ratio first."""
        ratios = self.ratios
        return tuple(sorted((name for name in ratios if ratios[name] >= WORSE), key=lambda name: -ratios[name]))

    def describe(self) -> str:
        """What got worse and what to try, what got better, what stayed."""
        ratios, worse = self.ratios, self.worse()
        better = [name for name, ratio in ratios.items() if ratio <= 1 / WORSE]
        same = [name for name in ratios if name not in worse and name not in better]
        ours, theirs = asdict(self.picture), asdict(self.baseline)
        lines = [
            f"{NAMES[name]}: {ratios[name]:.3g}× the baseline ({_shown(name, ours[name])} against "
            f"{_shown(name, theirs[name])}): {ADVICE[name]}"
            for name in worse
        ]
        lines += [f"{NAMES[name]}: {1 / ratios[name]:.3g}× less than the baseline" for name in better]
        if same:
            lines.append("like the baseline: " + ", ".join(NAMES[name] for name in same))
        return "\n".join(lines)


MOST_KNOWN = 64  # pictures; of each a few numbers
_KNOWN: OrderedDict[bytes, Artifacts] = OrderedDict()
_LOCK = threading.Lock()


def measure_artifacts(picture: Tensor, name: str = "picture") -> Artifacts:
    """Look for artifacts in one picture.

    Args:
        picture: ``(H, W, 3)`` or ``(1, H, W, 3)``, float in [0, 1] or uint8, at least 64 × 64. It is judged as the
            8-bit picture it will be saved as; values outside [0, 1] come out clipped.
        name: what errors call it.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: for other shapes, smaller pictures, NaN or infinity.
    """
    pixels = _check_size(picture, name)
    blue_and_red, luma = _chroma_and_luma(pixels.float() * LEVEL)
    grid_16, grid_8 = _grid_strengths(luma)
    clipped = float(((pixels == 0) | (pixels == 255)).double().mean())
    loose, blobs = _loose_chroma(blue_and_red, luma), _colour_blobs(blue_and_red, luma)
    return Artifacts(grid_16, grid_8, _border_ratio(luma), loose, clipped, blobs)


def compare_artifacts(picture: Tensor, baseline: Tensor) -> ArtifactComparison:
    """Look for artifacts in a picture that its baseline lacks.

    Args:
        picture: as :func:`measure_artifacts` takes it.
        baseline: of the same size; the same prompt, settings and seed at alpha 0.

    Raises:
        TypeError, ValueError: see :func:`measure_artifacts`; ValueError for two sizes.
    """
    ours, theirs = _check_size(picture, "picture"), _check_size(baseline, "baseline")
    if ours.shape != theirs.shape:
        raise ValueError(
            f"baseline: expected {ours.shape[1]}×{ours.shape[0]} like the picture, got "
            f"{theirs.shape[1]}×{theirs.shape[0]}. Render it with the same seed and size at alpha 0."
        )
    return ArtifactComparison(_measured_once(ours), _measured_once(theirs))


def _measured_once(pixels: Tensor) -> Artifacts:
    """A baseline is that of many pictures, one after the other: knowing it again takes a fiftieth of measuring it."""
    key = digest(pixels)
    with _LOCK:
        found = _KNOWN.pop(key, None)
    if found is None:
        found = measure_artifacts(pixels)
    with _LOCK:
        _KNOWN[key] = found
        while len(_KNOWN) > MOST_KNOWN:
            _KNOWN.popitem(last=False)
    return found


def _check_size(picture: Tensor, name: str) -> Tensor:
    pixels = check_picture(picture, name)[0]  # uint8: what it is once saved
    height, width = pixels.shape[:2]
    if min(height, width) < TILE:
        raise ValueError(
            f"{name}: expected at least {TILE}×{TILE} pixels, got {width}×{height}. A grid needs "
            f"{TILE // TOKEN} periods to show: measure the picture before it is scaled down."
        )
    return pixels


def _chroma_and_luma(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """BT.601 Cb and Cr ``(2, H, W)`` and Y ``(H, W)`` of ``(H, W, 3)``."""
    red, green, blue = rgb.unbind(-1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return torch.stack([(blue - luma) / BLUE_SCALE, (red - luma) / RED_SCALE]), luma


def _grid_strengths(luma: Tensor) -> tuple[float, float]:
    """Power at odd multiples of 1/16 cycles per pixel, and at multiples of 1/8, over their surroundings.

    A pattern that repeats in every token has power at the points (i/16, j/16) of the spectrum of the gradient, lines
    along the token's sides on the axis j = 0; block seams of random sign cancel there, but not in the spectrum of the
    gradient's size (after Tan and Ghanbari, ICIP 2000). Across and down are averaged, and the strongest of the three
    kinds counts. The gradient flattens the 1/f² spectra of pictures.
    """
    planes = [functional.pad(plane.diff(dim=1), (0, 1)) for plane in (luma, luma.T)]
    points = sum_tensors(_lattice_ratios(gradient, TOKEN // 2 + 1) for gradient in planes) / 2
    seams = sum_tensors(_lattice_ratios(gradient.abs(), 1) for gradient in planes) / 2
    i, j = torch.arange(1, TOKEN // 2), torch.arange(TOKEN // 2 + 1)[:, None]
    # A grid of 8 px is silent where i or j is odd, one of 16 px sounds everywhere; 4/16 is shared with 12 and 20 px.
    of_16, shared = (i % 2 == 1) | (j % 2 == 1), (i % 4 == 0) & (j % 4 == 0)
    kinds = [(points[:1], slice(0, 1)), (points[1:], slice(1, None)), (seams, slice(0, 1))]
    grid_16, grid_8 = (
        max(float(ratios[counted[rows]].mean()) for ratios, rows in kinds) for counted in (of_16, ~of_16 & ~shared)
    )
    # One token's texture may sound up to twice as loud at 2/16 as at 1/16, by chance.
    return grid_16, max(grid_8 / (2 * max(grid_16, 1) - 1), min(grid_8, 1))


def _lattice_ratios(signal: Tensor, rows: int) -> Tensor:
    """Power at (i/16, j/16) cycles per pixel across and down over that of its neighbours across, ``(rows, 7)``.

    Welch's method: Hann-windowed, half overlapping tiles, each brought to the same energy so that a grid in the sky
    counts as much as one in the grass. j runs from 0 to rows − 1, i from 1 to 7; (i, −j) is averaged with (i, j).
    """
    step = TILE // 2
    for axis in (0, 1):  # whole tiles, in the middle, so that flips change nothing
        spare = (signal.shape[axis] - TILE) % step
        signal = signal.narrow(axis, spare // 2, signal.shape[axis] - spare)
    window = torch.hann_window(TILE)
    phase = 2 * math.pi / TOKEN * torch.outer(torch.arange(rows), torch.arange(TILE))
    down = signal.unfold(0, TILE, step) @ torch.cat([window * phase.cos(), -window * phase.sin()]).T
    waves = torch.complex(down[..., :rows], down[..., rows:]).transpose(1, 2)  # (tiles down, rows, W)
    power = torch.fft.fft(waves.unfold(2, TILE, step) * window).abs().square()  # (tiles down, rows, tiles across, TILE)
    energy = functional.avg_pool2d(signal.square()[None], TILE, step)[0][:, None, :, None]
    # Noise of one 8-bit level is added to both sides: what is fainter cannot be told from rounding.
    level = LEVEL**2
    power = ((power + level * window.square().sum() ** 2) / (energy + level)).mean((0, 2))
    spacing = TILE // TOKEN
    peaks = spacing * torch.arange(1, TOKEN // 2)
    # Hann's window spreads a peak over its two neighbours, so the next bins tell its surroundings.
    apart = range(2, spacing // 2 + 1)
    ratios = [
        power[:, peak % TILE] / torch.stack([power[:, (peak + d) % TILE] for n in apart for d in (-n, n)]).mean(0)
        for peak in (peaks, -peaks)
    ]
    return (ratios[0] + ratios[1]) / 2


def _gradient_energy(planes: Tensor) -> Tensor:
    """Squared differences to the right and below, ``(…, H, W)``; 0 across the last column and row."""
    across = functional.pad(planes.diff(dim=-1).square(), (0, 1))
    return across + functional.pad(planes.diff(dim=-2).square(), (0, 0, 0, 1))


def _inside(plane: Tensor) -> Tensor:
    """``(H, W)`` without the outer 8 % of each side."""
    top, left = (round(RING * side) for side in plane.shape)
    return plane[top : plane.shape[0] - top, left : plane.shape[1] - left]


def _border_ratio(luma: Tensor) -> float:
    energy = _gradient_energy(luma).double()
    inside = _inside(energy)
    ring = (energy.sum() - inside.sum()) / (energy.numel() - inside.numel())
    return float((ring + LEVEL**2) / (inside.mean() + LEVEL**2))


def _loose_chroma(chroma: Tensor, luma: Tensor) -> float:
    """Of each chroma gradient what is above half the largest luma gradient nearby; squares over squares.

    At half size: finer colour than that neither latents nor JPEG hold in place. The border has a figure of its own.
    """
    energy = _gradient_energy(functional.avg_pool2d(torch.cat([chroma, luma[None]]), 2))
    nearby = functional.max_pool2d(energy[2:], 2 * EDGE_REACH + 1, 1, EDGE_REACH)[0].sqrt()
    colour = (energy[0] + energy[1]).sqrt()
    loose = _inside((colour - COLOUR_PER_LUMA * nearby).clamp_min(0)).double().square().mean()
    return float(loose / (_inside(colour).double().square().mean() + (LEVEL / 2) ** 2))


def _colour_blobs(chroma: Tensor, luma: Tensor) -> float:
    """Share of steps of colour without a step of luma, across and down averaged.

    A step is the difference of the means of two cells of 8 × 8 pixels that touch, at every second pixel. It counts if
    |(ΔCb, ΔCr)| − k·max|ΔY| > 16/255, the maximum over steps up to 6 pixels before and after along the same direction.
    k is 16 × the ratio of the 80th percentiles of |(ΔCb, ΔCr)| and |ΔY|, from 1 to 2: light accounts for less in a
    picture that is all but grey. The mean of a cell tells a change of light from a texture, in which there is an edge
    near any place.
    """
    top, left = (round(RING * side) for side in luma.shape)
    planes = torch.cat([chroma, luma[None]])[:, top : luma.shape[0] - top, left : luma.shape[1] - left]
    spare = [(side - BLOB_CELL) % BLOB_STRIDE for side in planes.shape[1:]]  # at most one pixel
    cells = functional.avg_pool2d(planes[:, spare[0] :, spare[1] :], BLOB_CELL, BLOB_STRIDE)
    apart, reach = BLOB_CELL // BLOB_STRIDE, BLOB_REACH // BLOB_STRIDE
    steps = [along[..., apart:] - along[..., :-apart] for along in (cells, cells.transpose(1, 2))]
    colour, light = ([of(step) for step in steps] for of in (lambda s: torch.hypot(s[0], s[1]), lambda s: s[2].abs()))
    usual_colour, usual_light = (_percentile(torch.cat([one.flatten() for one in of])) for of in (colour, light))
    least, most = BLOB_BOUNDS
    accounted = min(max(BLOB_PER_LUMA * usual_colour / (usual_light + LEVEL / 2), least), most)
    nearby = [functional.max_pool2d(one[None], (1, 2 * reach + 1), 1, (0, reach))[0] for one in light]
    bare = [one - accounted * other > BLOB_STEP for one, other in zip(colour, nearby, strict=True)]
    return sum(float(one.double().mean()) for one in bare) / 2


def _percentile(values: Tensor) -> float:
    """The smallest value that ``BLOB_USUAL`` of all do not exceed."""
    return float(values.kthvalue(math.ceil(BLOB_USUAL * values.numel())).values)


def _shown(name: str, value: float) -> str:
    if name == "colour_blobs":
        return f"{value:.2%}"
    return f"{value:.1%}" if name in ("loose_chroma", "clipped") else f"{value:.3g}"
