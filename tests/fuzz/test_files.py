"""Files that were cut, flipped, garbled or written by somebody else: an error that names the file, or what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vl_core.adapters.examples import describe_examples, find_examples
from vl_core.adapters.features import PictureFeatures
from vl_core.adapters.fit import PictureAdapterFit
from vl_core.adapters.picture_adapter import PictureAdapter
from vl_core.adapters.space_adapter import SpaceAdapter, SpaceFit
from vl_core.adapters.spec import AdapterSpec
from vl_core.headless.compare.runner import read_rows
from vl_core.pictures import read_picture
from vl_core.stages.description import Slot
from vl_core.states.files import decode_text, parse_json
from vl_core.states.layout import insert_pictures, text_layout
from vl_core.states.storage import HEADER_KEY, read_tensors, write_tensors
from vl_core.states.vl_states import LAYOUT_KEY, VLStates, load_conditioning, save_conditioning

Image = pytest.importorskip("PIL.Image", reason="pictures are read with pillow")

WIDTH = 4
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=4),
    max_leaves=12,
)


def adapter_fit() -> PictureAdapterFit:
    spec = AdapterSpec(PictureFeatures("mean", tail=0), (Slot("style", 1),), WIDTH, 3, WIDTH)
    fit, generator = PictureAdapterFit(spec), torch.Generator().manual_seed(0)
    for index in range(14):
        features = torch.randn(spec.inputs, generator=generator)
        fit.add(features, torch.randn(spec.tokens, WIDTH, generator=generator), fold=index)
    return fit


def space_adapter() -> SpaceAdapter:
    fit, generator = SpaceFit(WIDTH, WIDTH), torch.Generator().manual_seed(0)
    for _ in range(6):
        fit.add(torch.randn(7, WIDTH, generator=generator), torch.randn(7, WIDTH, generator=generator))
    return fit.solve("procrustes")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One file of each kind, with what reads it."""
    folder = tmp_path_factory.mktemp("saved")
    layout = insert_pictures(text_layout([151644, 872, 198, 5, 151645, 198, 151644, 77091, 198]), [(2, 3)])
    states = torch.randn(1, len(layout), WIDTH)
    VLStates(states, (2,), 3, layout).save(folder / "states")
    save_conditioning(folder / "conditioning", [(states, {LAYOUT_KEY: layout, "more": [1, (2.0, "x")]})])
    fit = adapter_fit()
    fit.save(folder / "part")
    fit.solve().save(folder / "adapter")
    space_adapter().save(folder / "space")
    readers = {
        "states": VLStates.load, "conditioning": load_conditioning, "part": PictureAdapterFit.load,
        "adapter": PictureAdapter.load, "space": SpaceAdapter.load,
    }
    return {name: (folder / name, reader) for name, reader in readers.items()}


KINDS = st.sampled_from(["states", "conditioning", "part", "adapter", "space"])


def reads_or_says(path, reader) -> None:
    try:
        reader(path)
    except ValueError as error:
        assert str(error).startswith(path.name), f"does not name the file: {error!r}"


@given(st.data(), KINDS)
def test_flipped_cut_and_lengthened_files(saved, tmp_path_factory, data, kind):
    path, reader = saved[kind]
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 3000)))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    target = tmp_path_factory.mktemp("odd") / "odd.safetensors"
    target.write_bytes(bytes(content) + data.draw(st.binary(max_size=8)))
    reads_or_says(target, reader)


def garbled(draw, value):
    """A JSON value with one part of it replaced, removed or renamed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: garbled(draw, value[name])}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], garbled(draw, value[index]), *value[index + 1 :]]
    if isinstance(value, dict) and value and draw(st.booleans()):
        gone = draw(st.sampled_from(sorted(value)))
        return {name: each for name, each in value.items() if name != gone}
    return draw(JSON)


@given(st.data(), KINDS)
def test_badly_typed_headers(saved, tmp_path_factory, data, kind):
    path, reader = saved[kind]
    header = json.loads(_metadata(path))
    kept = {name: header[name] for name in ("kind", "version")}
    tensors, _ = read_tensors(path, header["kind"], finite=False)
    odd = garbled(data.draw, {name: value for name, value in header.items() if name not in kept})
    target = tmp_path_factory.mktemp("odd") / "odd.safetensors"
    write_tensors(target, header["kind"], tensors, odd if isinstance(odd, dict) else {})
    reads_or_says(target, reader)


def _metadata(path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()[HEADER_KEY]


@given(st.data(), KINDS)
def test_badly_typed_tensors(saved, tmp_path_factory, data, kind):
    """Tensors missing, of another shape or kind of numbers, or with NaN."""
    path, reader = saved[kind]
    header = json.loads(_metadata(path))
    tensors, _ = read_tensors(path, header["kind"], finite=False)
    name = data.draw(st.sampled_from(sorted(tensors)))
    one = tensors.pop(name)
    how = data.draw(st.sampled_from(["gone", "axes", "longer", "whole", "floats", "nan", "empty"]))
    if how != "gone":
        tensors[name] = {
            "axes": lambda: one[None], "longer": lambda: torch.cat([one, one]), "whole": lambda: one.to(torch.int16),
            "floats": lambda: one.to(torch.bfloat16), "nan": lambda: torch.full_like(one.float(), float("nan")),
            "empty": lambda: one[:0],
        }[how]()
    target = tmp_path_factory.mktemp("odd") / "odd.safetensors"
    write_tensors(target, header["kind"], tensors, header)
    reads_or_says(target, reader)


@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_texts(content):
    try:
        assert "\0" not in decode_text(content, "caption.txt")
    except ValueError as error:
        assert str(error).startswith("caption.txt: expected")


@given(JSON, st.integers(0, 40), st.booleans())
def test_json(value, kept, cut):
    text = json.dumps(value)
    try:
        found = parse_json(text[:kept] if cut else text, "x.json")
    except ValueError as error:
        assert str(error).startswith("x.json: expected JSON")
    else:
        assert cut or json.dumps(found) == text


@given(st.data(), st.sampled_from([("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tif")]))
def test_pictures(tmp_path_factory, data, kind):
    mode = data.draw(st.sampled_from(["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "LA"]))
    path = tmp_path_factory.mktemp("odd") / f"odd.{kind[1]}"
    try:
        NOISE.convert(mode).save(path, kind[0])
    except (OSError, ValueError, KeyError):  # this format has no such mode
        return
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        pixels = read_picture(path)
        assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    except ValueError as error:
        assert str(error).startswith(path.name)


LINES = [b'{"id": "%d"}', b"no json", b'{"id": 1}', b"[[[[", b"\xff", b"null", b""]


@given(st.lists(st.sampled_from(LINES), max_size=8))
def test_ledgers(tmp_path_factory, lines):
    """Every good line is there, wherever the bad ones are."""
    ledger = tmp_path_factory.mktemp("odd") / "results.jsonl"
    lines = [line % index if b"%d" in line else line for index, line in enumerate(lines)]
    ledger.write_bytes(b"".join(line + b"\n" for line in lines) + b'{"id": "torn')
    good = [str(index) for index, line in enumerate(lines) if line == b'{"id": "%d"}' % index]
    assert list(read_rows(ledger)) == good


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_kept_words(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("odd")
    for index in range(10):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    kept = folder / "words.jsonl"
    kept.write_bytes(b"\n".join(lines))
    examples = find_examples(folder, captions=False)
    found, _ = describe_examples(examples, lambda pixels: str(int(pixels[0, 0, 0])), kept=kept)
    assert [one.words for one in found] == [str(index) for index in range(10)]
