"""Pictures: checked, sized and cut into patches exactly as transformers' image processor does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vl_core.pictures import (
    FACTOR,
    Picture,
    check_picture,
    fit_size,
    patchify,
    prepare_picture,
    split_batch,
    to_float,
)


def transformers_pixels(picture, budget=1024):
    """pixel_values and grid of transformers' own processor (the torchvision one) for uint8 (H, W, 3)."""
    transformers = pytest.importorskip("transformers", minversion="4.57", reason="transformers is the oracle")
    pytest.importorskip("torchvision", reason="transformers' fast processor needs torchvision")
    # In 4.57 the torchvision processor is called Fast, in 5 it is the only one.
    old = transformers.__version__.startswith("4.")
    processor = (transformers.Qwen2VLImageProcessorFast if old else transformers.Qwen2VLImageProcessor)(
        size={"shortest_edge": 1024, "longest_edge": budget * 1024}, patch_size=16, merge_size=2,
        temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )
    output = processor(images=[picture.permute(2, 0, 1)], return_tensors="pt", input_data_format="channels_first")
    return output["pixel_values"], output["image_grid_thw"]


@pytest.mark.parametrize(
    ("crop", "budget"),
    [((512, 512), 1024), ((301, 451), 1024), ((100, 333), 1024), ((512, 512), 64), ((512, 447), 100), ((100, 500), 9)],
)
def test_a_photograph_becomes_the_patches_of_the_transformers_processor(photographs, crop, budget):
    photograph = photographs[0][: crop[0], : crop[1]]
    expected, expected_grid = transformers_pixels(photograph, budget)
    picture, _ = prepare_picture(photograph, budget)
    values, grid = patchify(picture)
    assert values.dtype == torch.float32 and grid.dtype == torch.int64
    assert torch.equal(grid, expected_grid)
    assert values.shape == (picture.tokens * 4, 1536)
    assert (values - expected).abs().max() <= 1e-6


def test_a_float_picture_gives_the_pixels_of_its_file(photographs):
    for photograph in photographs:
        assert torch.equal(check_picture(photograph.float() / 255)[0], photograph)


def test_patches_hold_the_picture_bit_for_bit(photographs):
    photograph = photographs[0][:96, :64]
    values, grid = patchify(Picture(photograph))
    frames, rows, columns = grid[0].tolist()
    restored = torch.empty(96, 64, 3)
    # Patch by patch: group row, group column, row and column in the group; channel, frame, row, column in the patch.
    patches = values.reshape(rows // 2, columns // 2, 2, 2, 3, 2, 16, 16)
    for row in range(rows):
        for column in range(columns):
            patch = patches[row // 2, column // 2, row % 2, column % 2]
            assert torch.equal(patch[:, 0], patch[:, 1])
            restored[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = patch[:, 0].permute(1, 2, 0)
    assert frames == 1
    assert torch.equal((restored * 127.5 + 127.5).round().to(torch.uint8), photograph)


def test_a_picture_that_fits_is_not_resampled(photographs):
    picture, notes = prepare_picture(photographs[0])
    assert torch.equal(picture.pixels, photographs[0]) and notes == []
    assert picture.grid == (16, 16) and picture.tokens == 256


def test_the_native_encoder_gets_the_same_pixels_as_floats(photographs):
    picture, _ = prepare_picture(photographs[1])
    image = to_float(picture)
    assert image.shape == (1, 288, 448, 3) and image.dtype == torch.float32
    assert torch.equal((image[0] * 255).round().to(torch.uint8), picture.pixels)


def test_batches_and_single_pictures_come_apart_in_order():
    batch, single = torch.rand(3, 40, 50, 3), torch.rand(20, 30, 3)
    pictures = split_batch([batch, single])
    assert [tuple(picture.shape) for picture in pictures] == [(1, 40, 50, 3)] * 3 + [(1, 20, 30, 3)]
    assert torch.equal(torch.cat(pictures[:3]), batch)
    assert len(split_batch(batch)) == 3 and split_batch([]) == []


@pytest.mark.parametrize("picture", [torch.rand(0, 8, 8, 3), torch.rand(8, 8), torch.rand(1, 1, 8, 8, 3)])
def test_a_batch_of_nothing_or_of_another_shape_is_refused(picture):
    with pytest.raises(ValueError, match=r"image 2: expected \(batch, height, width, channels\)"):
        split_batch([torch.rand(1, 8, 8, 3), picture])


def test_alpha_and_grey_become_rgb_with_a_note():
    rgb = torch.rand(8, 9, 3)
    expected = check_picture(rgb)[0]
    pixels, notes = check_picture(torch.cat([rgb, torch.rand(8, 9, 1)], -1), "style")
    assert torch.equal(pixels, expected) and notes == ["style: alpha channel dropped"]
    grey = check_picture(rgb[..., :1].expand(8, 9, 3))[0]
    pixels, notes = check_picture(rgb[None, ..., :1], "style")
    assert torch.equal(pixels, grey) and notes == ["style: grey repeated to RGB"]
    pixels, notes = check_picture(rgb[..., :2], "style")
    assert torch.equal(pixels, grey) and notes == ["style: grey repeated to RGB, alpha channel dropped"]


def test_values_outside_the_range_are_clipped_with_a_note():
    pixels, notes = check_picture(torch.tensor([[[-0.5, 0.5, 1.25]]]))
    assert pixels.tolist() == [[[0, 128, 255]]]  # 127.5 rounds to even
    assert notes == ["image: values from -0.5 to 1.25 clipped to 0 … 1"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_is_taken(dtype):
    assert check_picture(torch.ones(2, 2, 3, dtype=dtype))[0].eq(255).all()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.rand(2, 8, 8, 3), "batch of 2"),
        (torch.rand(8, 8), r"got shape \(8, 8\)"),
        (torch.rand(8, 0, 3), "no pixels"),
        (torch.rand(0, 8, 8, 3), r"got shape \(0, 8, 8, 3\)"),
        (torch.rand(3, 8, 8), "got 8 channels.*channels last"),
        (torch.full((8, 8, 3), float("nan")), "NaN"),
        (torch.full((8, 8, 3), float("inf")), "NaN or infinite"),
        (torch.ones(8, 8, 3, dtype=torch.int64), "torch.int64"),
    ],
)
def test_a_picture_that_cannot_be_one_is_refused_by_name(picture, message):
    with pytest.raises(ValueError, match=f"(?s)^pose: .*{message}"):
        check_picture(picture, "pose")


def test_something_that_is_not_a_tensor_is_refused():
    with pytest.raises(TypeError, match=r"pose: expected a picture.*got list"):
        check_picture([[0.5]], "pose")
    with pytest.raises(TypeError, match="image 1: expected a picture"):
        split_batch(["cat.png"])


sides = st.integers(1, 4000)


@given(height=sides, width=sides, budget=st.integers(1, 4096))
def test_the_size_is_that_of_smart_resize_where_its_own_promises_hold(height, width, budget):
    pytest.importorskip("transformers", minversion="4.57", reason="transformers is the oracle")
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    aspect = max(height, width) / min(height, width)
    # Below 17 pixels a side rounds to nothing; a strip longer than the budget overruns it; a picture that only the
    # rounding takes above the budget is enlarged.
    assume(min(height, width) > 16 and aspect <= min(200, budget))
    rounded = round(height / FACTOR) * round(width / FACTOR)
    assume(height * width >= budget * FACTOR**2 or rounded <= budget)
    assert fit_size(height, width, budget) == smart_resize(height, width, FACTOR, 1, budget * FACTOR**2)


@example(height=48, width=401, budget=24)  # only rounding takes it above the budget
@given(height=sides, width=sides, budget=st.integers(1, 2048))
def test_the_size_keeps_its_promises(height, width, budget):
    assume(max(height, width) / min(height, width) <= 200)
    fitted = fit_size(height, width, budget)
    assert all(side % FACTOR == 0 and side >= FACTOR for side in fitted)
    assert fitted[0] * fitted[1] <= budget * FACTOR**2
    assert all(new <= max(FACTOR, old + FACTOR // 2) for new, old in zip(fitted, (height, width), strict=True))


def test_known_sizes():
    assert fit_size(256, 256) == (256, 256)  # 64 tokens
    assert fit_size(1024, 1024) == (1024, 1024)  # 1024 tokens
    assert fit_size(2160, 3840) == (768, 1344)
    assert fit_size(1, 1) == (32, 32)
    assert fit_size(32, 6400) == (32, 6400)
    assert fit_size(32, 6400, 16) == (32, 512)


def test_a_strip_longer_than_the_encoder_allows_is_refused():
    with pytest.raises(ValueError, match=r"banner: expected sides at most 200:1, got 6432×32\. Crop"):
        fit_size(32, 6432, name="banner")


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_of_nothing_is_refused(budget):
    with pytest.raises(ValueError, match="budget: expected at least 1"):
        fit_size(64, 64, budget)


def test_notes_tell_of_scaling_but_not_of_rounding():
    assert prepare_picture(torch.rand(70, 100, 3))[1] == []
    assert prepare_picture(torch.rand(128, 256, 3), 8, "style")[1] == [
        "style 256×128 scaled down to 128×64, 8 image tokens"
    ]
    assert prepare_picture(torch.rand(1, 1, 3), name="style")[1] == [
        "style 1×1 enlarged to 32×32, 32 is the smallest side the encoder takes"
    ]


def test_preparing_leaves_the_picture_alone(photographs):
    before = photographs[1].clone()
    prepare_picture(photographs[1], 16)
    assert torch.equal(photographs[1], before)
