"""The batched forwards give what the stock modules and the stock pipeline give, from the same weights."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers", reason="the DiT and the VAE are diffusers classes")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")

from miniature import world
from miniature.train import forwards, models, tokens
from vl_core import pictures as real_pictures
from vl_core.states.layout import insert_pictures, mrope_positions
from vl_core.zimage.pipeline import prompt_layout

SMALL = models.TOY

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.build_tokenizer()


@pytest.fixture(scope="module")
def vl(tokenizer):
    torch.manual_seed(0)
    return models.make_vl(tokenizer, SMALL).eval()


@pytest.fixture(scope="module")
def dit():
    torch.manual_seed(1)
    model = models.make_dit(SMALL).eval()
    with torch.no_grad():  # a fresh one gives zero
        for weight in model.all_final_layer.parameters():
            weight.normal_(0, 0.1)
        for name, weight in model.named_parameters():
            if "adaLN" in name:
                weight.normal_(0, 0.1)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def seen():
    scenes = world.sample_scenes(3, torch.Generator().manual_seed(2))
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(2))
    return (pictures * 127.5 + 127.5).round() / 127.5 - 1  # values an 8-bit file holds


def test_patches_are_those_of_the_encoder(seen):
    ours = forwards.patchify(seen)
    for picture, patches in zip(seen, ours, strict=True):
        pixels = ((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        expected, grid = real_pictures.patchify(real_pictures.Picture(pixels))
        torch.testing.assert_close(patches, expected, atol=1e-5, rtol=0)
        assert grid.tolist() == [[1, 8, 8]]


@torch.no_grad()
def test_the_vision_tower_gives_what_transformers_gives(vl, seen):
    out = vl.model.visual(forwards.patchify(seen).flatten(0, 1), grid_thw=torch.tensor([[1, 8, 8]] * 3))
    embeddings, levels = forwards.see(vl.model.visual, seen)
    torch.testing.assert_close(embeddings.flatten(0, 1), out.pooler_output, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(levels, out.deepstack_features, strict=True):
        torch.testing.assert_close(ours.flatten(0, 1), theirs, atol=1e-5, rtol=1e-4)


def sequence(tokenizer, words: str) -> torch.Tensor:
    return torch.tensor(tokenizer(world.prompt_turn(world.PICTURE + words), add_special_tokens=False)["input_ids"])


def test_positions_are_those_of_the_real_layout(tokenizer):
    layout = insert_pictures(prompt_layout(tokenizer, "a red star"), [(4, 4)], special(tokenizer))
    ours = forwards.picture_positions(len(layout), "cpu")
    assert torch.equal(ours, mrope_positions(layout))
    assert torch.equal(layout.token_ids, sequence(tokenizer, "a red star"))


def special(tokenizer):
    from vl_core.zimage.pipeline import special_tokens

    return special_tokens(tokenizer)


@torch.no_grad()
def test_the_language_model_sees_pictures_as_in_transformers(vl, tokenizer, seen):
    ids = sequence(tokenizer, "draw a red star").expand(3, -1)
    ours = forwards.vl_forward(vl, ids, seen, output_hidden_states=True).hidden_states
    theirs = vl.model(
        input_ids=ids, pixel_values=forwards.patchify(seen).flatten(0, 1),
        image_grid_thw=torch.tensor([[1, 8, 8]] * 3), output_hidden_states=True,
        mm_token_type_ids=(ids == vl.config.image_token_id).int(),
    ).hidden_states
    for mine, stock in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, stock, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_last_block_at_some_positions_gives_what_transformers_gives_there(vl, tokenizer, seen):
    ids = tokenizer([world.turns(world.PICTURE + "which palette?", "warm")] * len(seen), return_tensors="pt").input_ids
    with torch.no_grad():
        whole = forwards.vl_forward(vl, ids, seen, output_hidden_states=True)
        where = torch.randint(0, ids.shape[1], (len(seen), 5), generator=torch.Generator().manual_seed(2))
        states, attention = forwards.last_block(vl.model.language_model, whole.hidden_states[-2], where)
    rows = torch.arange(len(seen))[:, None]
    torch.testing.assert_close(states, whole.last_hidden_state[rows, where], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:3]))
    later = torch.arange(ids.shape[1]) > where[:, None, :, None]
    assert not attention[later.expand_as(attention)].any()


def test_texts_beside_pictures_are_read_as_alone(vl, tokenizer, seen):
    ids = sequence(tokenizer, "draw a red star").expand(3, -1)
    words = tokenizer(world.prompt_turn("a blue ring on a white background"), add_special_tokens=False)["input_ids"]
    padded = torch.tensor([words + [tokenizer.pad_token_id] * (ids.shape[1] - len(words))])
    both = forwards.vl_forward(vl, ids, seen, padded).last_hidden_state[3, : len(words)]
    alone = vl.model.language_model(input_ids=torch.tensor([words])).last_hidden_state[0]
    torch.testing.assert_close(both, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_vl_with_the_text_encoders_weights_reads_texts_as_it_does(vl, tokenizer):
    reader = models.make_text_encoder(tokenizer, SMALL).eval()
    reader.model.load_state_dict(vl.model.language_model.state_dict())
    ids = torch.tensor([tokenizer(world.prompt_turn("a red star"), add_special_tokens=False)["input_ids"]])
    for layer in (-8, -2, -1):
        torch.testing.assert_close(
            forwards.text_states(reader.model, ids, layer), forwards.text_states(vl.model.language_model, ids, layer),
            atol=1e-5, rtol=1e-4,
        )


@torch.no_grad()
@pytest.mark.parametrize("counts, side", [((11, 20, 32), 8), ((33, 40, 64), 8), ((11, 20, 32), 16)])
def test_the_dit_gives_what_diffusers_gives(dit, counts, side):
    generator = torch.Generator().manual_seed(3)
    length = forwards.padded_length(max(counts))
    latents = torch.randn(3, 16, 2 * side, 2 * side, generator=generator)
    captions = torch.randn(3, length, SMALL.width, generator=generator)
    time = torch.rand(3, generator=generator)
    stock = dit(
        [one[:, None] for one in latents], time,
        [caption[:count] for caption, count in zip(captions, counts, strict=True)], return_dict=False,
    )[0]
    rotary = forwards.dit_rotary(dit, length, "cpu", side)
    ours = forwards.dit_forward(dit, latents, time, captions, torch.tensor(counts), rotary)
    torch.testing.assert_close(ours, torch.stack(list(stock))[:, :, 0], atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_painting_many_gives_the_pictures_of_the_stock_pipeline(dit, tokenizer, guidance):
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    from miniature.measure.chain import noise

    torch.manual_seed(4)
    vae = models.make_vae(SMALL).eval()
    vae.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    reader = models.make_text_encoder(tokenizer, SMALL).model.eval()
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=forwards.SHIFT), vae=vae, text_encoder=reader,
        tokenizer=tokenizer, transformer=dit,
    )
    pipeline.set_progress_bar_config(disable=True)
    states = [torch.randn(count, SMALL.width, generator=torch.Generator().manual_seed(count)) for count in (9, 40)]
    unwanted = torch.randn(8, SMALL.width, generator=torch.Generator().manual_seed(8))
    ours = forwards.decode(vae, forwards.sample(
        dit, states, torch.cat([noise(5), noise(6)]), steps=3, guidance=guidance, unwanted=unwanted
    ))
    for index, seed in enumerate((5, 6)):
        stock = pipeline(
            prompt_embeds=[states[index]], negative_prompt_embeds=[unwanted] if guidance else None, height=128,
            width=128, num_inference_steps=3, guidance_scale=guidance, output_type="pt",
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        torch.testing.assert_close((ours[index] + 1) / 2, stock, atol=2e-3, rtol=0)


def test_names_are_single_tokens_and_the_template_is_z_images(tokenizer):
    for name in world.SHAPES + world.COLORS + world.STYLES + world.MOODS:
        assert len(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) == 1, name
    filled = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a red star"}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert filled == world.prompt_turn("a red star")


def test_the_tokenizer_is_always_the_same(tokenizer):
    assert tokens.build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_the_real_build_fits_into_forty_megabytes(tokenizer):
    with torch.device("meta"):
        parts = [
            models.make_text_encoder(tokenizer), models.make_vl(tokenizer), models.make_vae(), models.make_dit(),
            models.Judge(),
        ]
    tied = sum(part.get_input_embeddings().weight.numel() for part in parts[:2])
    count = sum(value.numel() for part in parts for value in part.state_dict().values()) - tied
    assert 2 * count < 39e6  # bf16, and a megabyte for tokenizers and configs
