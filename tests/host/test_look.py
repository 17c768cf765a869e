"""Apply Look: a look from a file, by the rules of words, and errors that name the input."""

from __future__ import annotations

import pytest
import torch

PROMPT = "a cat in a red hat"


@pytest.fixture
def look_file(part, core_text):
    """A look of the tiny text encoder's width, in the folder where looks are found."""
    width = core_text(PROMPT)[0][0].shape[-1]
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(3, width, generator=generator)
    tokens = tokens / tokens.square().mean(-1, keepdim=True).sqrt()
    module = part("vl_core.looks.look")
    origin = module.Origin(
        family="Z-Image", model="tiny", look="dusk", shows=("a boat",), pictures=("0" * 64,), sizes=((64, 64),),
        options={"steps": 1},
    )
    tail = 0.1 * torch.randn(5, width, generator=generator)
    folder = part("nodes.host.folders").looks_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dusk.safetensors"
    module.Look(tokens, torch.full((3, 1), 2.0), tail, origin).save(path)
    yield path
    path.unlink()


def test_strength_0_is_the_prompt_bit_for_bit_and_1_what_the_library_gives(run, part, core_text, look_file, told):
    text = core_text(PROMPT)
    assert torch.equal(run("LookApply", text, "dusk.safetensors", 0.0)[0][0][0], text[0][0])
    output = run("LookApply", text, "dusk.safetensors", 1.0)
    look = part("vl_core.looks.look").Look.load(look_file)
    expected = part("vl_core.looks.apply").apply_look(text[0][0], None, look, 1.0)[0]
    assert torch.equal(output[0][0][0], expected)
    assert output[0][0][0].shape[1] == text[0][0].shape[1] + 3
    assert "3 tokens added" in told(output)


def test_the_simple_node_and_the_sweep_take_the_look_by_its_file(run, text_clip, core_text, look_file):
    expected = run("LookApply", core_text(PROMPT), "dusk.safetensors", 0.7)[0][0][0]
    for mode in ("learned look", "automatic"):
        output = run("Condition", text_clip, None, PROMPT, 0.7, mode, look_file="dusk.safetensors")
        torch.testing.assert_close(output[0][0][0], expected)
    picture = torch.rand(1, 64, 64, 3)
    swept = run(
        "Sweep", text_clip, None, PROMPT, "strength", "0.7, 1", "none", "", method="learned look",
        images={"image0": picture}, look_file="dusk.safetensors",
    )
    torch.testing.assert_close(swept[0][1][0][0], expected)


def test_a_look_that_is_not_there_is_named_with_where_it_was_looked_for(run, core_text, look_file):
    with pytest.raises(ValueError, match=r"file: expected a look in .*zimage_vl_looks \(dusk.safetensors\), got 'x'"):
        run("LookApply", core_text(PROMPT), "x")
