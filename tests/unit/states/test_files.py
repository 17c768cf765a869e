"""Text and JSON as people's editors write them, and pictures of every kind that a folder may hold."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch

from vl_core.pictures import as_tensor, read_picture
from vl_core.states import files
from vl_core.states.files import decode_text, fits_a_file, parse_json, read_json_object, read_text, write_whole

Image = pytest.importorskip("PIL.Image", reason="pictures are read with pillow")

WORDS = "style: gouache, naïve café “très” light\npalette: blue, ochre\n"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_text_is_read_as_what_it_says_in_every_usual_encoding(tmp_path, encoding):
    path = tmp_path / "caption.txt"
    path.write_bytes(WORDS.encode(encoding))
    assert read_text(path) == WORDS


@pytest.mark.parametrize("words", ["雪の中の狐", "рыжая лиса в снегу", "a fox, 雪"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_other_scripts_are_read_in_unicode(words, encoding):
    assert decode_text(words.encode(encoding), "caption.txt") == words


@pytest.mark.parametrize(
    "words, encoding", [("水彩画和柔和的光线", "gbk"), ("лиса в снегу", "cp1251"), ("雪の中の狐", "shift_jis")]
)
def test_an_encoding_that_cannot_be_told_is_an_error_that_names_the_file(words, encoding):
    with pytest.raises(ValueError, match=r"caption\.txt: expected a text in .*Save it as UTF-8"):
        decode_text(words.encode(encoding), "caption.txt")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xfea", b"\xef\xbb\xbf\xff", b"a\0\0\0b"])
def test_what_is_no_text_is_an_error_that_names_the_file(content):
    with pytest.raises(ValueError, match=r"caption\.txt: expected a text"):
        decode_text(content, "caption.txt")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": ' * 90_000, "[" * 200 + "]" * 200, "9" * 5000])
def test_json_that_is_damaged_or_nested_without_end_is_an_error_that_names_the_file(text, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: expected JSON"):
        parse_json(text, "config.json")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"list\.json: expected a JSON object, got list"):
        read_json_object(tmp_path / "list.json")


def test_json_that_an_editor_gave_a_mark_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"a": [1, {"b": null}]}', encoding="utf-16")
    assert read_json_object(tmp_path / "config.json") == {"a": [1, {"b": None}]}


# --- files that are whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_the_same_whatever_system_wrote_them(tmp_path, end):
    path = tmp_path / "caption.txt"
    path.write_bytes(WORDS.replace("\n", end).encode())
    assert read_text(path) == WORDS


def test_a_text_is_written_with_the_same_bytes_everywhere(tmp_path):
    write_whole(tmp_path / "deep" / "er" / "words.txt", "雪\n的\n")
    assert (tmp_path / "deep" / "er" / "words.txt").read_bytes() == "雪\n的\n".encode()
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["words.txt"]


def test_a_file_that_another_program_has_open_is_replaced_once_it_lets_go(tmp_path, monkeypatch):
    """Windows refuses meanwhile, with a PermissionError."""
    path, replace, refused = tmp_path / "words.txt", os.replace, [PermissionError(13, "in use")] * 2
    path.write_text("before", encoding="utf-8")

    def held(source, target):
        if refused:
            raise refused.pop()
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", held)
    write_whole(path, "after")
    assert path.read_text(encoding="utf-8") == "after" and not refused

    monkeypatch.setattr(files, "WAITS", (0.0,))
    refused += [PermissionError(13, "in use")] * 9
    with pytest.raises(PermissionError, match="in use"):
        write_whole(path, "never")
    assert path.read_text(encoding="utf-8") == "after"
    assert [one.name for one in tmp_path.iterdir()] == ["words.txt"]


@pytest.mark.parametrize("letter", ["a", "雪"])
def test_a_name_as_long_as_file_systems_take_can_be_written(tmp_path, letter):
    name = letter * ((255 - 4) // len(letter.encode())) + ".txt"
    write_whole(tmp_path / name, "words")
    assert (tmp_path / name).read_text(encoding="utf-8") == "words"


@pytest.mark.parametrize(
    "name", ["a look", "näme", "雪", "console", "a.b.c", "com0", "2026-11-26/look", "%year%", "x" * 200]
)
def test_names_that_every_system_takes(name):
    assert fits_a_file(name)


@pytest.mark.parametrize(
    "name", ["", "  ", "a:b", "what?", "a*", "a|b", 'say "a"', "<a>", "a\0", "a\nb", "con", "NUL", "aux.txt", "COM1",
             "looks/lpt9.safetensors", "looks\\nul", "x" * 201, "looks/" + "雪" * 67, "a/" * 1000 + "b"],
    ids=lambda name: name[:30],
)  # fmt: skip
def test_names_that_some_system_does_not_take(name):
    assert not fits_a_file(name)


# --- pictures -------------------------------------------------------------------------------------------------------

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], -1)


def saved(tmp_path, image, suffix: str = ".png", **options):
    path = tmp_path / f"picture{suffix}"
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_of_grey_are_the_same_picture_as_eight(tmp_path, suffix):
    grey = Image.fromarray((RAMP.astype(np.uint32) * 257).astype(np.uint16))
    pixels = read_picture(saved(tmp_path, grey, suffix))
    assert torch.equal(pixels, torch.from_numpy(RAMP)[..., None].expand(-1, -1, 3))
    assert abs(float(pixels.float().mean()) - 127.5) < 1e-3


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_floats_of_either_convention_are_the_same_picture(tmp_path, scale):
    path = saved(tmp_path, Image.fromarray(RAMP.astype(np.float32) * scale), ".tif")
    assert torch.equal(read_picture(path)[..., 0], torch.from_numpy(RAMP))


def test_values_of_no_convention_are_refused(tmp_path):
    for values in (RAMP.astype(np.float32) * 9, RAMP.astype(np.float32) - 5, np.full((4, 4), np.nan, np.float32)):
        with pytest.raises(ValueError, match=r"picture\.tif: cannot be read as a picture"):
            read_picture(saved(tmp_path, Image.fromarray(values), ".tif"))


def test_palettes_alpha_black_and_white_and_cmyk_are_rgb(tmp_path):
    colours = Image.fromarray(COLOURS)
    palette = colours.quantize(16)
    expected = torch.from_numpy(np.array(palette.convert("RGB")))
    assert torch.equal(read_picture(saved(tmp_path, palette)), expected)
    assert torch.equal(read_picture(saved(tmp_path, palette, transparency=0)), expected)
    clear = Image.fromarray(np.concatenate([COLOURS, RAMP[..., None]], -1))
    assert torch.equal(read_picture(saved(tmp_path, clear)), torch.from_numpy(COLOURS))
    both = Image.fromarray(np.stack([RAMP, RAMP.T], -1), "LA")
    assert torch.equal(read_picture(saved(tmp_path, both))[..., 1], torch.from_numpy(RAMP))
    bits = Image.fromarray(RAMP > 127)
    assert set(read_picture(saved(tmp_path, bits)).flatten().tolist()) == {0, 255}
    inks = colours.convert("CMYK")
    found = read_picture(saved(tmp_path, inks, ".tif"))
    assert torch.equal(found, torch.from_numpy(np.array(inks.convert("RGB"))))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_camera_noted(tmp_path, turn, suffix):
    """Pixel (row, column) of the file is where the standard's table says: checked on one bright corner."""
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:8, :16] = 255  # at the top left of what is stored
    exif = Image.Exif()
    exif[0x0112] = turn
    pixels = read_picture(saved(tmp_path, Image.fromarray(stored), suffix, exif=exif)).float().mean(-1)
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[turn]
    assert tuple(pixels.shape) == ((32, 64) if turn < 5 else (64, 32))
    brightest = [float(pixels[row, column]) for row in (2, -3) for column in (2, -3)]
    assert int(np.argmax(brightest)) == corner[0] * 2 + corner[1] and max(brightest) > 200


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_picture_cut_short_is_an_error_that_names_it(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), suffix)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"picture\{suffix}: cannot be read as a picture"):
        read_picture(path)


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    path = saved(tmp_path, frames[0], ".webp", save_all=True, append_images=frames[1:], lossless=True)
    assert read_picture(path).unique().tolist() == [10]


def test_a_picture_of_another_program_is_read_as_from_a_file():
    buffer = io.BytesIO()
    Image.fromarray((RAMP.astype(np.uint32) * 257).astype(np.uint16)).save(buffer, "PNG")
    values = as_tensor(Image.open(buffer))
    assert values.dtype == torch.float32 and float(values.max()) == 1.0
