"""What is wrong with a picture, and how much of a reference picture is in it: figures about pixels alone.

Artifacts: seams of the 16-px tokens Z-Image paints and of the 8-px pixels of its latents, a noisy border, colour that
left its edges, clipping. They mean most next to the picture of the same seed at alpha 0 (:func:`compare_artifacts`):
a fence photographed at 16 px a post is a grid too. Fidelity: distance of the palettes and likeness of the layouts.

All but clipping are ratios, so neither brightness nor contrast matters. Everything runs on the CPU in float32 or 64.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..pictures import check_picture

TOKEN = 16  # pixels per side of an image token of Z-Image: 2 × 2 latent pixels
TILE = 64  # spectra are taken over tiles of this side, half overlapping; also the smallest side of a picture
RING = 0.08  # the border is this share of each side
EDGE_REACH = 1  # colour belongs to an edge at most this many pixels of the halved picture away
COLOUR_PER_LUMA = 0.5  # a luma edge accounts for colour edges up to this times its height
LAYOUT = 16  # cells per side that layouts are compared in
LEVEL = 1 / 255  # one step of an 8-bit picture; contrasts below it are not seen

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BLUE_SCALE, RED_SCALE = 1.772, 1.402  # 2 (1 − weight of blue), 2 (1 − weight of red), BT.601

# Above these a picture is called out by itself; photographs without JPEG blocks stay below.
NOTABLE = {"grid_16": 2.0, "grid_8": 2.0, "border": 4.0, "loose_chroma": 0.2, "clipped": 0.2}
# Below these pictures count as equal: 0.0002 is not twice as bad as 0.0001, nor a border calmer than the inside bad.
FLOORS = {"grid_16": 1.0, "grid_8": 1.0, "border": 1.0, "loose_chroma": 0.02, "clipped": 0.01}
WORSE = 2.0  # this many times the baseline is worth a word
NAMES = {
    "grid_16": "16-px grid (tokens)",
    "grid_8": "8-px grid (latent pixels)",
    "border": "border",
    "loose_chroma": "colour off its edges",
    "clipped": "clipped values",
}
ADVICE = {
    "grid_16": "try a lower alpha, outlier masking or another normalization",
    "grid_8": "look at the VAE, then try a lower alpha",
    "border": "try a layer nearer the end (-2 … -8) or a lower alpha",
    "loose_chroma": "try a lower alpha or an earlier end",
    "clipped": "try a lower alpha or normalization rms",
}

# Björn Ottosson, "A perceptual color space for image processing" (2020), bottosson.github.io/posts/oklab
LINEAR_TO_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
LMS_TO_OKLAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


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
    """

    grid_16: float
    grid_8: float
    border: float
    loose_chroma: float
    clipped: float

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


@dataclass(frozen=True)
class Fidelity:
    """How much of a reference picture is in a picture.

    Attributes:
        palette_distance: between the colours of both, wherever they are, in units of OKLab: black to white is 1.
        lightness_layout, chroma_layout: correlation of lightness and of the colours over 16 × 16 cells, in [-1, 1];
            0 where either picture is flat.
    """

    palette_distance: float
    lightness_layout: float
    chroma_layout: float

    def describe(self) -> str:
        """The report, one figure a line."""
        return (
            f"palette: {_graded(-self.palette_distance, (-0.15, -0.08, -0.04))} "
            f"(distance {self.palette_distance:.3f} in OKLab)\n"
            f"light and dark: {_graded(self.lightness_layout, (0.3, 0.6, 0.85))} layout "
            f"(correlation {self.lightness_layout:.2f})\n"
            f"colours: {_graded(self.chroma_layout, (0.3, 0.6, 0.85))} layout (correlation {self.chroma_layout:.2f})"
        )


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
    return Artifacts(grid_16, grid_8, _border_ratio(luma), _loose_chroma(blue_and_red, luma), clipped)


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
    return ArtifactComparison(measure_artifacts(ours), measure_artifacts(theirs))


def measure_fidelity(picture: Tensor, reference: Tensor) -> Fidelity:
    """Compare palette and layout with a reference picture; see the two functions below.

    Args:
        picture, reference: ``(H, W, 3)`` or ``(1, H, W, 3)``, float in [0, 1] or uint8, each of any size.

    Raises:
        TypeError: if one is not a tensor.
        ValueError: for other shapes, NaN or infinity.
    """
    return Fidelity(palette_distance(picture, reference), *layout_similarity(picture, reference))


def palette_distance(picture: Tensor, reference: Tensor) -> float:
    """Sliced 2-Wasserstein distance of the pixels' colours in OKLab, wherever in the picture they are.

    Colours are first gathered in 32³ bins, each standing for the mean of its pixels. See :func:`sliced_wasserstein`.

    Args, raises: as :func:`measure_fidelity`.
    """
    ours, theirs = _palette(_check(picture, "picture")), _palette(_check(reference, "reference"))
    return sliced_wasserstein(*ours, *theirs)


def layout_similarity(picture: Tensor, reference: Tensor) -> tuple[float, float]:
    """Correlation of lightness, and of both colour axes together, over 16 × 16 cells in OKLab.

    Each picture is averaged over the cells whatever its size or aspect ratio, so pictures are compared in proportion.
    Pearson's ``Σ(x−m_x)(y−m_y) / sqrt(Σ(x−m_x)² Σ(y−m_y)²)``; a and b have a mean each and share one sum.

    Args, raises: as :func:`measure_fidelity`.

    Returns:
        ``(lightness, chroma)`` in [-1, 1]; 0 where either picture is flat.
    """
    ours, theirs = _cells(_check(picture, "picture")), _cells(_check(reference, "reference"))
    return _correlation(ours[:1], theirs[:1]), _correlation(ours[1:], theirs[1:])


def sliced_wasserstein(points: Tensor, weights: Tensor, other_points: Tensor, other_weights: Tensor) -> float:
    """Distance of two weighted clouds in 3-D: ``sqrt(3 · mean over θ of W2²(θ·x, θ·y))``.

    Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures" (2015), over the 16 axes through the corners
    of an icosahedron and a dodecahedron. Their ``mean θθᵀ`` is exactly I/3, so with the factor 3 a shift by v gives
    ``|v|``, growth by s about the mean ``|s − 1|·rms``, and no pair of clouds more than its true W2.

    Args:
        points, other_points: ``(N, 3)`` and ``(M, 3)``.
        weights, other_weights: ``(N,)`` and ``(M,)``, not negative, each with a positive sum; only shares count.

    Raises:
        ValueError: for other shapes or weights.
    """
    for cloud, mass in ((points, weights), (other_points, other_weights)):
        if cloud.ndim != 2 or cloud.shape[1] != 3 or mass.shape != cloud.shape[:1]:
            raise ValueError(f"points, weights: expected (N, 3) and (N,), got {(*cloud.shape,)} and {(*mass.shape,)}.")
        if not mass.numel() or mass.min() < 0 or not mass.sum() > 0:
            raise ValueError("weights: expected at least one positive and none negative.")
    axes = _axes()
    values, share = _sorted_along(axes, points, weights)
    other_values, other_share = _sorted_along(axes, other_points, other_weights)
    # Between two neighbouring steps of either distribution function both quantiles are constant.
    steps = torch.cat([share, other_share], 1).sort(1).values
    widths = steps.diff(dim=1, prepend=torch.zeros(len(axes), 1, dtype=steps.dtype))
    middle = steps - widths / 2
    ours = values.gather(1, torch.searchsorted(share, middle).clamp_max(share.shape[1] - 1))
    theirs = other_values.gather(1, torch.searchsorted(other_share, middle).clamp_max(other_share.shape[1] - 1))
    return math.sqrt(3 * float((widths * (ours - theirs).square()).sum(1).mean()))


def to_linear(values: Tensor) -> Tensor:
    """sRGB values in [0, 1] to linear light (IEC 61966-2-1)."""
    return torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_oklab(linear: Tensor) -> Tensor:
    """Linear sRGB ``(…, 3)`` of a float dtype to OKLab's L, a, b; colours outside sRGB (negative) are fine."""
    lms = linear @ linear.new_tensor(LINEAR_TO_LMS).T
    return (lms.sign() * lms.abs() ** (1 / 3)) @ linear.new_tensor(LMS_TO_OKLAB).T


def _check(picture: Tensor, name: str) -> Tensor:
    """uint8 ``(H, W, 3)``: what the picture is once saved."""
    return check_picture(picture, name)[0]


def _check_size(picture: Tensor, name: str) -> Tensor:
    pixels = _check(picture, name)
    height, width = pixels.shape[:2]
    if min(height, width) < TILE:
        raise ValueError(
            f"{name}: expected at least {TILE}×{TILE} pixels, got {width}×{height}. A grid needs "
            f"{TILE // TOKEN} periods to show: measure the picture before it is scaled down."
        )
    return pixels


# --- artifacts --------------------------------------------------------------------------------------------------------


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
    points = sum(_lattice_ratios(gradient, TOKEN // 2 + 1) for gradient in planes) / 2
    seams = sum(_lattice_ratios(gradient.abs(), 1) for gradient in planes) / 2
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


# --- fidelity ---------------------------------------------------------------------------------------------------------


def _palette(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """OKLab colours float64 ``(N, 3)`` and how many pixels each stands for: mean colours of the filled 32³ bins."""
    values = pixels.reshape(-1, 3)
    fives = (values >> 3).int()
    bins = (fives[:, 0] << 10) + (fives[:, 1] << 5) + fives[:, 2]
    counts = torch.bincount(bins, minlength=1 << 15)
    sums = torch.stack([torch.bincount(bins, channel.double(), 1 << 15) for channel in values.unbind(1)], 1)
    filled = counts > 0
    counts = counts[filled].double()
    return linear_to_oklab(to_linear(sums[filled] / counts[:, None] * LEVEL)), counts


def _axes() -> Tensor:
    """Unit vectors float64 ``(16, 3)``: 6 axes of an icosahedron and 10 of a dodecahedron."""
    golden = (1 + math.sqrt(5)) / 2
    corners = [(1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1)]
    for small, large in ((1, golden), (1 / golden, golden)):
        for sign in (1, -1):
            corner = (0, small, sign * large)
            corners += [corner[turn:] + corner[:turn] for turn in range(3)]
    return functional.normalize(torch.tensor(corners, dtype=torch.float64))


def _sorted_along(axes: Tensor, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Projections on each axis ``(A, N)`` in order, and the share of weight up to each."""
    values, order = (axes @ points.double().T).sort(1)
    share = weights.double()[order].cumsum(1)
    return values, share / share[:, -1:]


def _cells(pixels: Tensor) -> Tensor:
    """OKLab averaged over 16 × 16 cells, float64 ``(3, 16, 16)``."""
    linear = to_linear(torch.arange(256) * LEVEL)
    lab = linear_to_oklab(linear[pixels.int()])
    return functional.adaptive_avg_pool2d(lab.permute(2, 0, 1), LAYOUT).double()


def _correlation(ours: Tensor, theirs: Tensor) -> float:
    """Of ``(C, 16, 16)``: each channel has its mean, all share one sum."""
    ours, theirs = (cells - cells.mean((1, 2), keepdim=True) for cells in (ours, theirs))
    sizes = math.sqrt(float(ours.square().mean() * theirs.square().mean()))
    # Flat is a deviation of a thousandth: less than 8 bits hold.
    return float((ours * theirs).mean()) / max(sizes, 1e-6)


def _shown(name: str, value: float) -> str:
    return f"{value:.1%}" if name in ("loose_chroma", "clipped") else f"{value:.3g}"


def _graded(value: float, steps: tuple[float, float, float]) -> str:
    return ("unlike", "remotely like", "similar", "almost the same")[sum(value > step for step in steps)]
