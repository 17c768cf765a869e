"""How much of a reference picture is in a picture: distance of the palettes and likeness of the layouts, in OKLab.

Everything runs on the CPU in float32 or 64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..pictures import check_picture

LAYOUT = 16  # cells per side that layouts are compared in
LEVEL = 1 / 255  # one step of an 8-bit picture; contrasts below it are not seen

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
    ours, theirs = _palette(_pixels(picture, "picture")), _palette(_pixels(reference, "reference"))
    return sliced_wasserstein(*ours, *theirs)


def layout_similarity(picture: Tensor, reference: Tensor) -> tuple[float, float]:
    """Correlation of lightness, and of both colour axes together, over 16 × 16 cells in OKLab.

    Each picture is averaged over the cells whatever its size or aspect ratio, so pictures are compared in proportion.
    Pearson's ``Σ(x−m_x)(y−m_y) / sqrt(Σ(x−m_x)² Σ(y−m_y)²)``; a and b have a mean each and share one sum.

    Args, raises: as :func:`measure_fidelity`.

    Returns:
        ``(lightness, chroma)`` in [-1, 1]; 0 where either picture is flat.
    """
    ours, theirs = _cells(_pixels(picture, "picture")), _cells(_pixels(reference, "reference"))
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


def _graded(value: float, steps: tuple[float, float, float]) -> str:
    return ("unlike", "remotely like", "similar", "almost the same")[sum(value > step for step in steps)]


def _pixels(picture: Tensor, name: str) -> Tensor:
    """uint8 ``(H, W, 3)``: what the picture is once saved."""
    return check_picture(picture, name)[0]
