"""Figures about pictures: planted artifacts, closed forms, and transcriptions in numpy float64."""

from __future__ import annotations

import functools
import io
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from vl_core.reports import artifacts
from vl_core.reports.artifacts import FLOORS, WORSE, ArtifactComparison, Artifacts, compare_artifacts, measure_artifacts
from vl_core.reports.fidelity import (
    Fidelity,
    layout_similarity,
    linear_to_oklab,
    measure_fidelity,
    palette_distance,
    sliced_wasserstein,
    to_linear,
)

FIGURES = tuple(FLOORS)


@pytest.fixture(autouse=True)
def one_thread():
    """Pictures this small gain nothing from threads, and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- pictures ---------------------------------------------------------------------------------------------------------


@functools.cache
def drawn_picture(seed: int = 0, height: int = 352, width: int = 416) -> torch.Tensor:
    """Soft discs of many colours over clouds with a natural 1/f spectrum, float ``(H, W, 3)`` within 0.1 … 0.9."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 1 / max(height, width)
    spectrum = np.fft.fft2(generator.normal(size=(height, width))) / frequency
    clouds = np.fft.ifft2(spectrum).real
    picture = 0.5 + 0.05 * np.repeat((clouds / clouds.std())[..., None], 3, 2)
    y, x = np.mgrid[:height, :width]
    for _ in range(60):
        radius = generator.uniform(8, 60)
        distance = np.hypot(y - generator.uniform(0, height), x - generator.uniform(0, width))
        cover = (0.5 + (radius - distance) / 4).clip(0, 1)[..., None]
        light, tint = generator.choice([-0.24, 0.24]), generator.uniform(-0.12, 0.12, 3)
        picture = (1 - 0.8 * cover) * picture + 0.8 * cover * (0.5 + light + tint)
    grain = generator.normal(0, 0.01, (height, width, 1))
    return torch.from_numpy((picture + grain).clip(0.1, 0.9)).float()


@pytest.fixture(scope="module")
def cat() -> torch.Tensor:
    """A photograph with room below and above, so that what is planted does not clip."""
    data = pytest.importorskip("skimage.data", reason="the photographs come with scikit-image")
    return 0.1 + 0.8 * torch.from_numpy(data.chelsea().copy()).float() / 255


@pytest.fixture(params=["drawn", "photograph"])
def clean(request) -> torch.Tensor:
    return drawn_picture() if request.param == "drawn" else request.getfixturevalue("cat")


def resized(picture: torch.Tensor, factor: float) -> torch.Tensor:
    planes = picture.permute(2, 0, 1)[None]
    larger = functional.interpolate(planes, scale_factor=factor, mode="bicubic", antialias=True)
    return larger[0].permute(1, 2, 0).clamp(0, 1)


# --- artifacts to plant: each takes a picture and an amount from 0 to 1 -----------------------------------------------


def lines(picture, amount, period):
    """A dark line of one pixel every ``period`` pixels, both ways."""
    y, x = torch.arange(picture.shape[0])[:, None], torch.arange(picture.shape[1])
    line = (y % period == 5) | (x % period == 3)
    return (picture - 0.1 * amount * line[..., None]).clamp(0, 1)


def seams(picture, amount, period):
    """Each block of ``period`` pixels a little lighter or darker than it should be."""
    rows, columns = (-(-side // period) for side in picture.shape[:2])
    blocks = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    blocks = blocks.repeat_interleave(period, 0).repeat_interleave(period, 1)
    return (picture + 0.04 * amount * blocks[: picture.shape[0], : picture.shape[1], None]).clamp(0, 1)


def pattern(picture, amount, period):
    """The same texture in every block."""
    block = torch.randn(period, period, generator=torch.Generator().manual_seed(2))
    rows, columns = (-(-side // period) for side in picture.shape[:2])
    texture = block.repeat(rows, columns)[: picture.shape[0], : picture.shape[1], None]
    return (picture + 0.03 * amount * texture).clamp(0, 1)


def noisy_border(picture, amount):
    """Colour noise in the outer 8 %."""
    height, width = picture.shape[:2]
    ring = torch.ones(height, width, 1)
    ring[round(0.08 * height) : height - round(0.08 * height), round(0.08 * width) : width - round(0.08 * width)] = 0
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(3))
    return (picture + 0.06 * amount * ring * noise).clamp(0.01, 0.99)


def shifted_chroma(picture, amount):
    """The colour, not the light, drawn up to 12 pixels too far right and down."""
    luma, pixels = (picture @ torch.tensor([0.299, 0.587, 0.114]))[..., None], round(12 * amount)
    planes = functional.pad((picture - luma).permute(2, 0, 1), (pixels, 0, pixels, 0), mode="replicate")
    return (luma + planes.permute(1, 2, 0)[: picture.shape[0], : picture.shape[1]]).clamp(0, 1)


def burnt(picture, amount):
    """Contrast that the range of values cannot hold."""
    gain = 1.3 + amount if amount else 1
    return (0.5 + gain * (picture - 0.5)).clamp(0, 1)


PLANTED = {
    "lines 16": ("grid_16", lambda picture, amount: lines(picture, amount, 16)),
    "seams 16": ("grid_16", lambda picture, amount: seams(picture, amount, 16)),
    "pattern 16": ("grid_16", lambda picture, amount: pattern(picture, amount, 16)),
    "lines 8": ("grid_8", lambda picture, amount: lines(picture, amount, 8)),
    "seams 8": ("grid_8", lambda picture, amount: seams(picture, amount, 8)),
    "pattern 8": ("grid_8", lambda picture, amount: pattern(picture, amount, 8)),
    "noisy border": ("border", noisy_border),
    "shifted chroma": ("loose_chroma", shifted_chroma),
    "burnt": ("clipped", burnt),
}
planted = pytest.mark.parametrize(("figure", "plant"), PLANTED.values(), ids=PLANTED)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "grass", "gravel", "hubble_deep_field", "camera"])
def test_photographs_are_left_in_peace(name):
    data = pytest.importorskip("skimage.data", reason="the photographs come with scikit-image")
    pixels = getattr(data, name)()
    found = measure_artifacts(torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).copy()))
    assert found.notable() == ()
    assert "stands out" not in found.describe()


@pytest.mark.parametrize("seed", range(4))
def test_drawn_pictures_are_left_in_peace(seed):
    assert measure_artifacts(drawn_picture(seed, 256, 320)).notable() == ()


@planted
def test_a_figure_rises_with_its_own_artifact(clean, figure, plant):
    rising = [asdict(measure_artifacts(plant(clean, amount)))[figure] for amount in (0, 0.25, 0.5, 0.75, 1)]
    assert rising == sorted(set(rising))


@planted
def test_a_figure_stays_put_for_the_artifacts_of_the_others(clean, figure, plant):
    comparison = compare_artifacts(plant(clean, 1.0), clean)
    assert comparison.worse() == (figure,)
    others = {name: ratio for name, ratio in comparison.ratios.items() if name != figure}
    assert all(ratio < 1.8 for ratio in others.values()), others
    # Detail everywhere gives loose colour edges to lean on: less of it, never more.
    assert all(ratio > (0.4 if name == "loose_chroma" else 1 / 1.2) for name, ratio in others.items()), others


@pytest.mark.parametrize("period", [16, 8])
def test_a_grid_of_faint_lines_stands_out_by_itself(clean, period):
    assert measure_artifacts(lines(clean, 0.3, period)).notable() == (f"grid_{period}",)


def test_both_grids_at_once_are_both_found():
    found = measure_artifacts(lines(seams(drawn_picture(), 1, 16), 0.5, 8))
    assert found.notable() == ("grid_16", "grid_8")


@pytest.mark.parametrize("period", [6, 12, 20, 24, 32])
def test_stripes_of_other_periods_are_no_grid(period):
    picture = drawn_picture()
    ratios = compare_artifacts(lines(picture, 1, period), picture).ratios
    assert ratios["grid_16"] < WORSE and ratios["grid_8"] < WORSE


def test_blocks_of_jpeg_are_an_8_px_grid():
    image = pytest.importorskip("PIL.Image", reason="Pillow writes the JPEG")
    pixels = (drawn_picture() * 255).round().to(torch.uint8)
    found = []
    for quality in (95, 75, 50, 25):
        file = io.BytesIO()
        image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality)
        found.append(measure_artifacts(torch.from_numpy(np.array(image.open(file)))))
    strengths = [figures.grid_8 for figures in found]
    assert strengths == sorted(strengths) and strengths[-1] > 5
    assert max(figures.grid_16 for figures in found) < 2


def test_grey_pictures_have_no_loose_chroma_and_no_blobs():
    grey = drawn_picture().mean(-1, keepdim=True).expand(-1, -1, 3)
    assert measure_artifacts(grey).loose_chroma == measure_artifacts(grey).colour_blobs == 0


# --- blobs of colour on photographs -----------------------------------------------------------------------------------

DISCS, AMPLITUDE, SEEDS = 14, 96, (1, 2, 3)
BLOBS = re.compile(r"<!-- colour blobs -->\n+((?:\|.*\n)+)")


def photograph(name: str) -> torch.Tensor:
    data = pytest.importorskip("skimage.data", reason="the photographs come with scikit-image")
    side = {"motorcycle": 0, "motorcycle, right": 1}.get(name)
    pixels = getattr(data, name.replace(" ", "_"))() if side is None else data.stereo_motorcycle()[side]
    pixels = pixels.reshape(*pixels.shape[:2], -1)[..., :3]
    return torch.from_numpy(np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))


def with_discs(pixels: torch.Tensor, seed: int, amplitude: float = AMPLITUDE) -> torch.Tensor:
    """Discs of any hue that leave luma alone (BT.601); the largest change of a channel is ``amplitude`` of 255."""
    draw = pytest.importorskip("skimage.draw", reason="the discs are scikit-image's")
    random = np.random.default_rng(seed)
    planted, (height, width) = pixels.double().numpy().copy(), pixels.shape[:2]
    for _ in range(DISCS):
        radius = random.uniform(0.03, 0.08) * min(height, width)
        centre = random.uniform(0.1, 0.9) * height, random.uniform(0.1, 0.9) * width
        blue, red = np.cos(hue := random.uniform(0, 2 * np.pi)), np.sin(hue)
        tint = np.array([1.402 * red, -(0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587, 1.772 * blue])
        assert abs(tint @ [0.299, 0.587, 0.114]) < 1e-12
        planted[draw.disk(centre, radius, shape=(height, width))] += amplitude * tint / np.abs(tint).max()
    return torch.from_numpy(planted.round().clip(0, 255).astype(np.uint8))


def blobs_row(name: str) -> list[str]:
    """A photograph as it is and with discs: the figure, its least over some seeds, how often it stands out."""
    pixels = photograph(name)
    clean, planted = measure_artifacts(pixels), [measure_artifacts(with_discs(pixels, seed)) for seed in SEEDS]
    alarm = "yes" if "colour_blobs" in clean.notable() else "no"
    found = sum("colour_blobs" in one.notable() for one in planted)
    least = min(one.colour_blobs for one in planted)
    return [name, f"{clean.colour_blobs:.2%}", alarm, f"{least:.2%}", f"{found} of {len(SEEDS)}"]


@pytest.mark.parametrize(
    "name",
    ["astronaut", "chelsea", "coffee", "motorcycle", "motorcycle, right", "rocket", "retina", "immunohistochemistry",
     "camera", "gravel", "grass", "brick", "moon", "coins", "hubble deep field"],
)
def test_blobs_of_colour_stand_out_on_busy_photographs_and_the_page_says_so(name):
    row = blobs_row(name)
    assert row[2] == "no"
    if name != "hubble deep field":  # on black every colour is light as well
        assert row[4] == "3 of 3"
        baseline = photograph(name)
        assert "colour_blobs" in compare_artifacts(with_discs(baseline, SEEDS[0]), baseline).worse()
    (table,) = BLOBS.findall((Path(__file__).parents[3] / "docs" / "interpreting.md").read_text(encoding="utf-8"))
    rows = [[cell.strip() for cell in line.strip(" |").split("|")] for line in table.splitlines()[2:]]
    assert row in rows


def test_more_colour_is_more_of_a_blob():
    pixels = photograph("astronaut")
    found = [measure_artifacts(with_discs(pixels, 1, amplitude)).colour_blobs for amplitude in (0, 24, 48, 96)]
    assert found == sorted(found) and found[-1] > 4 * found[0]


def test_discs_of_another_light_are_no_blobs():
    """The same places a third lighter in all channels: an edge of light, whatever the photograph is like there."""
    draw = pytest.importorskip("skimage.draw", reason="the discs are scikit-image's")
    pixels = photograph("chelsea").double().numpy() * 0.7
    pixels[draw.disk((150, 220), 60)] *= 1.33
    assert measure_artifacts(torch.from_numpy(pixels.round().astype(np.uint8))).colour_blobs < 0.0005


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_flat_picture_has_no_grid_no_border_and_no_colour(level):
    found = measure_artifacts(torch.full((100, 130, 3), level, dtype=torch.uint8))
    assert asdict(found) == pytest.approx(
        {"grid_16": 1, "grid_8": 1, "border": 1, "loose_chroma": 0, "clipped": float(level != 77), "colour_blobs": 0},
        abs=1e-4,
    )


@pytest.mark.parametrize("flip", [lambda p: p.flip(0), lambda p: p.flip(1), lambda p: p.flip(0, 1),
                                  lambda p: p.transpose(0, 1)], ids=["up", "left", "round", "transposed"])
@pytest.mark.parametrize("plant", [lambda picture, amount: picture, *(plant for _, plant in PLANTED.values())],
                         ids=["clean", *PLANTED])
def test_flips_change_nothing(plant, flip):
    picture = plant(drawn_picture(), 0.5)
    assert asdict(measure_artifacts(flip(picture))) == pytest.approx(asdict(measure_artifacts(picture)), rel=0.15)


@pytest.mark.parametrize("kind", [kind for kind in PLANTED if kind != "burnt"])  # clipping is a matter of brightness
def test_brightness_and_contrast_change_nothing(kind):
    picture = PLANTED[kind][1](drawn_picture(), 0.5)
    expected = asdict(measure_artifacts(picture))
    for gain, lift in ((0.7, 0.0), (0.7, 0.25), (1.15, -0.1)):
        assert asdict(measure_artifacts(gain * picture + lift)) == pytest.approx(expected, rel=0.1, abs=1e-3)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_clean_picture_of_another_size_has_about_the_same_figures(clean, factor):
    found, other = measure_artifacts(clean), measure_artifacts(resized(clean, factor))
    ratios = ArtifactComparison(other, found).ratios
    assert other.notable() == ()
    assert all(0.4 < ratio < WORSE for ratio in ratios.values()), ratios


@pytest.mark.parametrize("kind", ["lines 16", "seams 16", "pattern 16", "lines 8", "seams 8", "pattern 8"])
def test_a_grid_is_as_strong_in_a_large_picture_as_in_a_small_one(kind):
    figure, plant = PLANTED[kind]
    picture = drawn_picture(5, 640, 640)
    cut = picture[200:392, 250:442]
    small, large = (asdict(measure_artifacts(plant(part, 0.5)))[figure] for part in (cut, picture))
    assert 1 / 2 < small / large < 2


@pytest.mark.parametrize("size", [(64, 64), (65, 200), (127, 95)])
def test_small_pictures_have_figures_too(size):
    found = measure_artifacts(drawn_picture(0, *size))
    assert all(np.isfinite(value) for value in asdict(found).values())
    assert measure_artifacts(lines(drawn_picture(0, *size), 1, 16)).grid_16 > 2 * max(found.grid_16, 1)


# --- the same figures, transcribed ------------------------------------------------------------------------------------


def numpy_artifacts(pixels: np.ndarray) -> dict[str, float]:
    """The definitions in float64: whole 2-D spectra of tiles, plain masks, shifts instead of pooling."""
    rgb = pixels.astype(np.float64) / 255
    luma = rgb @ [0.299, 0.587, 0.114]
    points, edges = {}, {}
    for plane in (luma, luma.T):
        gradient = np.zeros_like(plane)
        gradient[:, :-1] = plane[:, 1:] - plane[:, :-1]
        for place, ratio in numpy_ratios(gradient).items():
            points[place] = points.get(place, 0) + ratio / 2
        for place, ratio in numpy_ratios(np.abs(gradient)).items():
            edges[place] = edges.get(place, 0) + ratio / 2
    kinds = [(points, range(1)), (points, range(1, 9)), (edges, range(1))]
    odd = max(
        np.mean([ratios[j, i] for j in rows for i in range(1, 8) if j % 2 or i % 2]) for ratios, rows in kinds
    )
    even = max(
        np.mean([ratios[j, i] for j in rows for i in (2, 4, 6) if j % 2 == 0 and (j % 4 or i % 4)])
        for ratios, rows in kinds
    )
    energy = numpy_gradient(luma)
    ring = np.ones(luma.shape, bool)
    top, left = (round(0.08 * side) for side in luma.shape)
    ring[top:-top, left:-left] = False
    floor = (1 / 255) ** 2
    height, width = (side // 2 for side in luma.shape)
    halves = [
        plane[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))
        for plane in ((rgb[..., 2] - luma) / 1.772, (rgb[..., 0] - luma) / 1.402, luma)
    ]
    colour = np.sqrt(numpy_gradient(halves[0]) + numpy_gradient(halves[1]))
    padded = np.pad(np.sqrt(numpy_gradient(halves[2])), 1)
    nearby = np.max([padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)], 0)
    inside = np.s_[round(0.08 * height) : -round(0.08 * height), round(0.08 * width) : -round(0.08 * width)]
    loose, colour = np.maximum(colour - 0.5 * nearby, 0)[inside], colour[inside]
    return {
        "grid_16": odd,
        "grid_8": max(even / (2 * max(odd, 1) - 1), min(even, 1)),
        "border": (energy[ring].mean() + floor) / (energy[~ring].mean() + floor),
        "loose_chroma": (loose**2).mean() / ((colour**2).mean() + floor / 4),
        "clipped": np.isin(pixels, [0, 255]).mean(),
        "colour_blobs": scipy_blobs(rgb, luma),
    }


def scipy_blobs(rgb, luma) -> float:
    """Means of 8 × 8 pixels and the highest step of luma along a line by scipy's filters, in float64."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="means and maxima of another make")
    inside = np.s_[round(0.08 * luma.shape[0]) : -round(0.08 * luma.shape[0]),
                   round(0.08 * luma.shape[1]) : -round(0.08 * luma.shape[1])]  # fmt: skip
    means = []
    for plane in ((rgb[..., 2] - luma) / 1.772, (rgb[..., 0] - luma) / 1.402, luma):
        whole = ndimage.uniform_filter(plane[inside], 8)  # centred on pixel 4 of 8
        height, width = whole.shape
        means.append(whole[4 + height % 2 : height - 3 : 2, 4 + width % 2 : width - 3 : 2])
    turns = [[plane[:, 4:] - plane[:, :-4] for plane in turned] for turned in (means, [plane.T for plane in means])]
    colour, light = [np.hypot(*turn[:2]) for turn in turns], [np.abs(turn[2]) for turn in turns]
    usual = [
        np.percentile(np.concatenate([one.ravel() for one in steps]), 80, method="inverted_cdf")
        for steps in (colour, light)
    ]
    k = np.clip(16 * usual[0] / (usual[1] + 0.5 / 255), 1, 2)
    highest = [ndimage.maximum_filter(one, (1, 7), mode="nearest") for one in light]
    return sum(np.mean(one - k * other > 16 / 255) for one, other in zip(colour, highest, strict=True)) / 2


def numpy_gradient(plane):
    energy = np.zeros_like(plane)
    energy[:, :-1] += (plane[:, 1:] - plane[:, :-1]) ** 2
    energy[:-1] += (plane[1:] - plane[:-1]) ** 2
    return energy


def numpy_ratios(signal) -> dict[tuple[int, int], float]:
    height, width = signal.shape
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    window, floor = np.outer(hann, hann), (1 / 255) ** 2
    power = []
    for y in range((height - 64) % 32 // 2, height - 63, 32):
        for x in range((width - 64) % 32 // 2, width - 63, 32):
            tile = signal[y : y + 64, x : x + 64]
            spectrum = np.abs(np.fft.fft2(tile * window)) ** 2 + floor * (window**2).sum()
            power.append(spectrum / ((tile**2).mean() + floor))
    power = np.mean(power, 0)
    return {
        (j, i): np.mean([2 * power[4 * j, s * 4 * i] / (power[4 * j, s * 4 * i - 2] + power[4 * j, (s * 4 * i + 2)])
                         for s in (1, -1)])
        for j in range(9) for i in range(1, 8)
    }  # fmt: skip


@pytest.mark.parametrize("kind", [None, *PLANTED])
@pytest.mark.parametrize("size", [(160, 192), (171, 203)])
def test_figures_are_those_of_a_transcription_in_numpy(kind, size):
    picture = drawn_picture(7, *size)
    picture = picture if kind is None else PLANTED[kind][1](picture, 0.7)
    pixels = (picture * 255).round().to(torch.uint8)
    assert asdict(measure_artifacts(pixels)) == pytest.approx(numpy_artifacts(pixels.numpy()), rel=1e-3, abs=1e-6)


def test_clipped_is_the_share_of_values_at_either_end():
    pixels = torch.full((64, 100, 3), 128, dtype=torch.uint8)
    pixels[:16, :, 0], pixels[60:, :, 1] = 255, 0
    assert measure_artifacts(pixels).clipped == (16 + 4) / (64 * 3)


# --- in words ---------------------------------------------------------------------------------------------------------


def test_the_report_says_what_stands_out_and_what_to_try():
    text = Artifacts(14.8, 1.0, 0.7, 0.02, 0.3).describe().splitlines()
    assert text[0] == (
        "16-px grid (tokens): 14.8× the power of its surroundings: stands out, "
        "try a lower alpha, outlier masking or another normalization"
    )
    assert text[1] == "8-px grid (latent pixels): 1× the power of its surroundings"
    assert text[3] == "colour off its edges: 2.0% of its gradient energy"
    assert text[4].startswith("clipped values: 30.0% at 0 or 255: stands out, try ")


def test_a_comparison_says_what_got_worse_what_got_better_and_what_stayed():
    baseline = Artifacts(1.0, 1.0, 4.0, 0.02, 0.0)
    comparison = ArtifactComparison(Artifacts(14.8, 1.1, 0.5, 0.08, 0.0001), baseline)
    assert comparison.worse() == ("grid_16", "loose_chroma")
    assert comparison.describe().splitlines() == [
        "16-px grid (tokens): 14.8× the baseline (14.8 against 1): "
        "try a lower alpha, outlier masking or another normalization",
        "colour off its edges: 4× the baseline (8.0% against 2.0%): try a lower alpha or an earlier end",
        "border: 4× less than the baseline",
        "like the baseline: 8-px grid (latent pixels), clipped values, blobs of colour",
    ]


def test_a_picture_compared_with_itself_is_like_the_baseline(clean):
    comparison = compare_artifacts(clean, clean)
    assert comparison.ratios == dict.fromkeys(FIGURES, 1.0)
    assert comparison.worse() == ()
    assert comparison.describe().startswith("like the baseline: 16-px grid")


def test_what_many_pictures_are_compared_with_is_measured_once_and_known_by_its_pixels(monkeypatch):
    drawn = torch.Generator().manual_seed(11)
    baseline, *pictures = (torch.rand(96, 128, 3, generator=drawn) for _ in range(4))
    expected = [measure_artifacts(one) for one in (baseline, *pictures)]
    measured, real = [], measure_artifacts
    monkeypatch.setattr(artifacts, "measure_artifacts", lambda *given: measured.append(0) or real(*given))
    found = [compare_artifacts(picture, baseline.clone()) for picture in pictures]
    assert [one.picture for one in found] == expected[1:] and {one.baseline for one in found} == {expected[0]}
    assert len(measured) == 4
    baseline[40:48] = 1.0
    changed = compare_artifacts(pictures[0], baseline)
    assert (changed.picture, changed.baseline) == (expected[1], real(baseline)) and len(measured) == 5


def test_figures_go_into_json():
    picture = drawn_picture(0, 64, 64)
    comparison = compare_artifacts(picture, picture)
    kept = json.loads(json.dumps([asdict(comparison), comparison.ratios, asdict(measure_fidelity(picture, picture))]))
    assert kept[0]["picture"] == asdict(measure_artifacts(picture))


# --- what pictures may be ---------------------------------------------------------------------------------------------


def test_batches_of_one_floats_and_bytes_are_the_same_picture():
    pixels = (drawn_picture(0, 96, 96) * 255).round().to(torch.uint8)
    expected = measure_artifacts(pixels)
    assert measure_artifacts(pixels.float() / 255) == expected
    assert measure_artifacts(pixels[None].double() / 255) == expected
    assert measure_fidelity(pixels[None], pixels.float() / 255) == measure_fidelity(pixels, pixels)


@pytest.mark.parametrize(
    ("picture", "error", "words"),
    [
        (torch.zeros(2, 64, 64, 3), ValueError, "picture: expected one picture, got a batch of 2"),
        (torch.zeros(3, 64, 64), ValueError, "picture: expected a picture"),
        (torch.full((64, 64, 3), float("nan")), ValueError, "picture: .* got NaN"),
        (np.zeros((64, 64, 3)), TypeError, "picture: .* got ndarray"),
    ],
)
@pytest.mark.parametrize("measure", [measure_artifacts, lambda picture: compare_artifacts(picture, picture),
                                     lambda picture: measure_fidelity(picture, picture)])
def test_what_is_no_picture_is_refused_by_name(measure, picture, error, words):
    with pytest.raises(error, match=words):
        measure(picture)


def test_a_picture_too_small_for_a_grid_is_refused():
    with pytest.raises(ValueError, match="baseline: expected at least 64×64 pixels, got 100×63"):
        compare_artifacts(torch.zeros(64, 100, 3), torch.zeros(63, 100, 3))


def test_a_baseline_of_another_size_is_refused():
    with pytest.raises(ValueError, match="baseline: expected 100×64 like the picture, got 64×100"):
        compare_artifacts(torch.zeros(64, 100, 3), torch.zeros(100, 64, 3))


# --- OKLab ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xyz", "lab"),
    [
        ((0.950, 1.000, 1.089), (1.000, 0.000, 0.000)),
        ((1.000, 0.000, 0.000), (0.450, 1.236, -0.019)),
        ((0.000, 1.000, 0.000), (0.922, -0.671, 0.263)),
        ((0.000, 0.000, 1.000), (0.153, -1.415, -0.449)),
    ],
)
def test_oklab_gives_the_table_of_its_author(xyz, lab):
    # The inverse of the sRGB matrix, IEC 61966-2-1.
    to_srgb = [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560],
               [0.0556434, -0.2040259, 1.0572252]]  # fmt: skip
    linear = torch.tensor(to_srgb, dtype=torch.float64) @ torch.tensor(xyz, dtype=torch.float64)
    np.testing.assert_allclose(linear_to_oklab(linear).numpy(), lab, atol=1.1e-3)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (1, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (0.62796, 0.22486, 0.12585)),
        ((0, 255, 0), (0.86644, -0.23389, 0.17950)),
        ((0, 0, 255), (0.45201, -0.03246, -0.31153)),
        ((0, 128, 0), (0.51975, -0.14030, 0.10768)),
    ],
)
def test_oklab_gives_the_values_of_css_for_srgb(rgb, lab):
    found = linear_to_oklab(to_linear(torch.tensor(rgb, dtype=torch.float64) / 255))
    np.testing.assert_allclose(found.numpy(), lab, atol=2e-5)


# --- palette ----------------------------------------------------------------------------------------------------------


def cloud(seed: int, count: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64) @ mix


def distance(points, other_points):
    return sliced_wasserstein(points, torch.ones(len(points)), other_points, torch.ones(len(other_points)))


@pytest.mark.parametrize("shift", [(0.1, 0, 0), (0, -2, 0), (0.3, -0.4, 1.2)])
def test_a_shift_is_as_far_as_it_is_long(shift):
    shift = torch.tensor(shift, dtype=torch.float64)
    assert distance(cloud(0), cloud(0) + shift) == pytest.approx(float(shift.norm()), rel=1e-9)


def test_growth_about_the_mean_is_as_far_as_each_point_goes():
    points = cloud(1)
    centred = points - points.mean(0)
    expected = 0.7 * float(centred.square().sum(1).mean().sqrt())
    assert distance(points, points.mean(0) + 1.7 * centred) == pytest.approx(expected, rel=1e-9)


def test_on_a_line_it_is_the_exact_distance():
    generator = np.random.default_rng(4)
    a, b = generator.normal(size=400), generator.exponential(size=400)
    line = torch.tensor([0.48, -0.6, 0.64], dtype=torch.float64)
    found = distance(torch.from_numpy(a)[:, None] * line, torch.from_numpy(b)[:, None] * line)
    assert found == pytest.approx(np.sqrt(((np.sort(a) - np.sort(b)) ** 2).mean()), rel=1e-9)


def test_it_is_never_more_than_the_exact_distance_nor_far_less():
    optimize = pytest.importorskip("scipy.optimize", reason="scipy solves the transport exactly")
    for seed in range(5):
        a, b = cloud(seed, 200), cloud(seed + 50, 200)
        cost = torch.cdist(a, b).square().numpy()
        exact = np.sqrt(cost[optimize.linear_sum_assignment(cost)].mean())
        assert 0.5 * exact < distance(a, b) <= exact


def test_it_is_the_root_mean_square_of_exact_distances_along_the_axes():
    stats = pytest.importorskip("scipy.stats", reason="scipy's quantiles of weighted samples")
    a, b = cloud(2, 40), cloud(3, 60)
    golden = (1 + 5**0.5) / 2
    axes = [np.roll((0, s, sign * t), turn) for s, t in ((1, golden), (1 / golden, golden)) for sign in (1, -1)
            for turn in range(3)]  # fmt: skip
    axes = np.array([*axes, (1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1)])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    # 40 and 60 points repeat to 120 each: then quantiles pair off one to one.
    squares = [((np.sort(np.repeat(a @ axis, 3)) - np.sort(np.repeat(b @ axis, 2))) ** 2).mean() for axis in axes]
    assert distance(a, b) == pytest.approx(np.sqrt(3 * np.mean(squares)), rel=1e-9)
    widest = max(stats.wasserstein_distance(a @ axis, b @ axis) for axis in axes)
    assert max(squares) ** 0.5 >= widest  # the 1-distance is never more than the 2-distance


def test_weights_are_so_many_points():
    a, b, weights = cloud(5, 50), cloud(6, 30), torch.arange(50) % 4
    found = sliced_wasserstein(a, weights, b, torch.full((30,), 0.1))
    assert found == pytest.approx(distance(a.repeat_interleave(weights, 0), b), rel=1e-9)


def test_clouds_without_weight_or_of_another_shape_are_refused():
    ones = torch.ones(4)
    with pytest.raises(ValueError, match=r"expected \(N, 3\) and \(N,\), got \(4, 2\) and \(4,\)"):
        sliced_wasserstein(torch.zeros(4, 3), ones, torch.zeros(4, 2), ones)
    for weights in (torch.zeros(4), torch.tensor([1.0, 1, 1, -1])):
        with pytest.raises(ValueError, match="expected at least one positive and none negative"):
            sliced_wasserstein(torch.zeros(4, 3), weights, torch.zeros(4, 3), ones)


def test_two_flat_pictures_are_as_far_apart_as_their_colours():
    red, green = torch.tensor([255, 0, 0]), torch.tensor([0, 128, 0])
    found = palette_distance(red.expand(9, 7, 3).to(torch.uint8), green.expand(30, 20, 3).to(torch.uint8))
    assert found == pytest.approx(np.linalg.norm([0.62796 - 0.51975, 0.22486 + 0.14030, 0.12585 - 0.10768]), abs=2e-5)


def test_black_and_white_are_1_apart_and_half_of_each_in_between():
    black, white = torch.zeros(8, 8, 3), torch.ones(8, 8, 3)
    assert palette_distance(black, white) == pytest.approx(1, abs=1e-6)
    assert palette_distance(black, torch.cat([black, white])) == pytest.approx(0.5**0.5, abs=1e-6)


def test_the_palette_does_not_depend_on_where_colours_are_nor_on_size():
    picture = drawn_picture(0, 96, 128)
    order = torch.randperm(96 * 128, generator=torch.Generator().manual_seed(0))
    shuffled = picture.reshape(-1, 3)[order].reshape(128, 96, 3)
    enlarged = picture.repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert palette_distance(picture, shuffled) == pytest.approx(0, abs=1e-7)
    assert palette_distance(picture, enlarged) == pytest.approx(0, abs=1e-7)


def test_gathering_colours_in_bins_costs_next_to_nothing(clean):
    other = (0.8 * clean + torch.tensor([0.1, 0.02, -0.05])).clamp(0, 1)
    points = []
    for picture in (clean, other):
        pixels = (picture * 255).round().reshape(-1, 3)[::7].double() / 255
        points.append(linear_to_oklab(to_linear(pixels)))
    assert palette_distance(clean, other) == pytest.approx(distance(*points), rel=0.01)


def test_the_palette_distance_grows_with_a_cast_of_colour(clean):
    cast = torch.tensor([1.0, 0.2, -0.6])
    found = [palette_distance((clean + amount * cast).clamp(0, 1), clean) for amount in (0, 0.05, 0.1, 0.2)]
    assert found[0] == 0 and found == sorted(set(found))


# --- layout -----------------------------------------------------------------------------------------------------------


def mosaic(seed: int) -> torch.Tensor:
    """16 × 16 random colours, each 4 × 6 pixels, uint8."""
    cells = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return cells.repeat_interleave(4, 0).repeat_interleave(6, 1)


def test_layout_is_the_correlation_of_cells():
    ours, theirs = mosaic(0), mosaic(1)
    theirs[:32] = ours[:32]
    a, b = (linear_to_oklab(to_linear(p[::4, ::6].double() / 255)).numpy().reshape(256, 3) for p in (ours, theirs))
    lightness, chroma = layout_similarity(ours, theirs)
    assert lightness == pytest.approx(np.corrcoef(a[:, 0], b[:, 0])[0, 1], abs=1e-5)
    a, b = (p[:, 1:] - p[:, 1:].mean(0) for p in (a, b))
    assert chroma == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), abs=1e-5)


def test_a_picture_has_its_own_layout_blurred_noisy_or_squeezed(clean):
    noise = 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    squeezed = functional.interpolate(clean.permute(2, 0, 1)[None], (200, 100), mode="area")[0].permute(1, 2, 0)
    assert layout_similarity(clean, clean) == pytest.approx((1, 1), abs=1e-6)
    for other in (resized(clean, 0.25), (clean + noise).clamp(0, 1), squeezed):
        assert min(layout_similarity(other, clean)) > 0.95


def test_a_mirrored_layout_is_another_and_a_negative_the_opposite(clean):
    assert max(layout_similarity(clean.flip(1), clean)) < 0.6
    lightness, chroma = layout_similarity(1 - clean, clean)
    assert lightness < -0.9 and chroma < -0.6


def test_lightness_and_chroma_are_told_apart():
    picture = drawn_picture()
    grey = picture.mean(-1, keepdim=True).expand(-1, -1, 3)
    lightness, chroma = layout_similarity(grey, picture)
    assert lightness > 0.95 and chroma == pytest.approx(0, abs=1e-2)


def test_a_flat_picture_has_no_layout():
    assert layout_similarity(torch.full((50, 40, 3), 0.3), drawn_picture()) == pytest.approx((0, 0), abs=1e-2)
    assert layout_similarity(torch.zeros(9, 9, 3), torch.ones(20, 30, 3)) == pytest.approx((0, 0), abs=1e-2)


def test_fidelity_in_words():
    picture = drawn_picture()
    found = measure_fidelity(picture, picture)
    assert asdict(found) == pytest.approx({"palette_distance": 0, "lightness_layout": 1, "chroma_layout": 1}, abs=1e-6)
    assert found.describe().splitlines() == [
        "palette: almost the same (distance 0.000 in OKLab)",
        "light and dark: almost the same layout (correlation 1.00)",
        "colours: almost the same layout (correlation 1.00)",
    ]
    assert Fidelity(0.1, 0.7, -0.4).describe().splitlines() == [
        "palette: remotely like (distance 0.100 in OKLab)",
        "light and dark: similar layout (correlation 0.70)",
        "colours: unlike layout (correlation -0.40)",
    ]
