"""Image delta, held against a numpy float64 transcription of its formula and sequences written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.pictures import baseline_picture
from vl_core.stages.delta import image_delta
from vl_core.states.families import Family
from vl_core.states.layout import TokenLayout, TokenRole, insert_pictures, text_layout
from vl_core.states.stacks import steer_layers

WIDTH = 9
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HEADER, TAIL = [151644, 872, 198], [151645, 198, 151644, 77091, 198]
TEXT = text_layout([*HEADER, 64, 2518, 38835, *TAIL], layer=-2, prompt="a red fox")
VL = insert_pictures(TEXT, [(2, 2)])
LENGTH = len(TEXT)
ALIGNED = [0, 1, 2, *range(9, 17)]  # header, then the words and the tail behind markers and four image tokens


def tokens(count: int = LENGTH, seed: int = 0, scale: float = 1.0, batch: int | None = None) -> torch.Tensor:
    shape = (count, WIDTH) if batch is None else (batch, count, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + 0.3


def numbers(x: torch.Tensor) -> np.ndarray:
    return x.double().numpy()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True))


def moved(text, plus, zero, weight, remove=False, rank=None, places=ALIGNED, zero_places=ALIGNED) -> np.ndarray:
    """mathematics, section 4: out = y + rms(y)·w·(x⁺/rms(x⁺) − x⁰/rms(x⁰)), float64."""
    y = numbers(text)
    delta = unit(numbers(plus)[places]) - unit(numbers(zero)[zero_places])
    if remove:
        direction = y / np.linalg.norm(y, axis=-1, keepdims=True)
        delta = delta - (delta * direction).sum(-1, keepdims=True) * direction
    if rank:
        u, s, v = np.linalg.svd(delta, full_matrices=False)
        delta = (u[:, :rank] * s[:rank]) @ v[:rank]
    return y + np.sqrt((y**2).mean(-1, keepdims=True)) * np.reshape(weight, (-1, 1)) * delta


def assert_close(ours: torch.Tensor, oracle: np.ndarray, tolerance: float = 1e-5) -> None:
    assert ours.shape == oracle.shape
    assert np.abs(numbers(ours) - oracle).max() <= tolerance * np.abs(oracle).max()


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """x⁺ and x⁰ of another scale than the text, equal before the picture as causal attention has it."""
    plus, zero = tokens(len(VL), 1, 5.0), tokens(len(VL), 2, 7.0)
    zero[:4] = plus[:4]
    return plus, zero


def delta(text, plus, zero, weight=1.0, **options):
    return image_delta(text, plus, zero, weight, **{"text_layout": TEXT, "vl_layout": VL, **options})


# --- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, -3.0, 0.25, 3.0])
def test_what_the_picture_changed_is_added_at_the_texts_scale(weight, pair):
    text = tokens(scale=30.0)
    result, info = delta(text, *pair, weight)
    assert_close(result, moved(text, *pair, weight))
    assert info.weight == (weight, weight) and info.tokens == LENGTH


@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("rank", [None, 1, 3])
def test_the_prompts_direction_and_all_but_some_directions_can_be_left_out(remove, rank, pair):
    text = tokens()
    result, info = delta(text, *pair, remove_prompt_direction=remove, rank=rank)
    assert_close(result, moved(text, *pair, 1.0, remove, rank))
    energies = [
        ((moved(text, *pair, 1.0, r, k) - numbers(text)) ** 2 / (numbers(text) ** 2).mean(-1, keepdims=True)).sum()
        for r, k in ((False, None), (remove, None), (remove, rank))
    ]
    assert info.direction_removed == pytest.approx(1 - energies[1] / energies[0], abs=1e-6)
    assert info.energy_kept == pytest.approx(energies[2] / energies[0], rel=1e-5)


def test_without_the_prompts_direction_the_delta_stands_upright_on_every_token(pair):
    text = tokens()
    added = numbers(delta(text, *pair, remove_prompt_direction=True)[0]) - numbers(text)
    sizes = np.linalg.norm(added, axis=-1) * np.linalg.norm(numbers(text), axis=-1)
    assert np.abs((added * numbers(text)).sum(-1)).max() <= 1e-5 * sizes.max()


def test_a_delta_of_rank_k_has_rank_k_and_the_prompts_direction_goes_first(pair):
    text = tokens()
    result = delta(text, *pair, remove_prompt_direction=True, rank=2)[0]
    added = (numbers(result) - numbers(text)) / np.sqrt((numbers(text) ** 2).mean(-1, keepdims=True))
    values = np.linalg.svd(added, compute_uv=False)
    assert values[1] > 1e-2 and values[2] < 1e-5 * values[0]


@pytest.mark.parametrize("rank", [0, None, WIDTH, 10_000])
def test_a_rank_that_limits_nothing_changes_nothing(rank, pair):
    assert torch.equal(delta(tokens(), *pair, rank=rank)[0], delta(tokens(), *pair)[0])


def test_the_scale_of_either_vl_side_does_not_matter(pair):
    plus, zero = pair
    scales = torch.linspace(0.5, 2, len(VL))[:, None]
    assert torch.allclose(delta(tokens(), plus * 40, zero * scales)[0], delta(tokens(), *pair)[0], atol=1e-5)


def test_a_negative_weight_goes_the_other_way_by_as_much(pair):
    text = tokens()
    there, back = (delta(text, *pair, weight)[0] - text for weight in (0.7, -0.7))
    assert torch.allclose(there, -back, atol=1e-6) and there.abs().max() > 0.1


def test_a_weight_per_token_acts_on_its_token_alone(pair):
    text, weight = tokens(), torch.linspace(-1, 2, LENGTH)
    weight[5] = 0
    result, info = delta(text, *pair, weight)
    assert_close(result, moved(text, *pair, weight.numpy()))
    assert torch.equal(result[5], text[5]) and info.weight == (-1.0, 2.0)
    assert "weight -1 to 2" in info.describe()


def test_a_baseline_without_picture_has_a_layout_of_its_own(pair):
    text, plain = tokens(), tokens(LENGTH, 4)
    result = delta(text, pair[0], plain, baseline_layout=TEXT)[0]
    assert_close(result, moved(text, pair[0], plain, 1.0, zero_places=list(range(LENGTH))))


def test_text_without_a_layout_is_aligned_by_count(pair):
    text = tokens()
    result, info = delta(text, *pair, text_layout=None)
    assert torch.equal(result, delta(text, *pair)[0])
    assert info.layout is None
    assert any("read the same prompt" in note or "prompts" in note for note in info.notes)


@pytest.mark.parametrize("vl_batch", [None, 2])
def test_a_batch_is_each_sequence_by_itself(vl_batch, pair):
    texts = tokens(batch=2)
    plus, zero = pair if vl_batch is None else (torch.stack([side, side * 2 + 1]) for side in pair)
    together = delta(texts, plus, zero, rank=2)[0]
    for n, text in enumerate(texts):
        alone = delta(text, *((plus, zero) if vl_batch is None else (plus[n], zero[n])), rank=2)[0]
        assert torch.allclose(together[n], alone, atol=1e-6)


# --- what stays bit for bit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"remove_prompt_direction": True}, {"rank": 1}, {"sinks": "include"}])
def test_weight_zero_and_an_unchanged_picture_give_the_text_bit_for_bit(dtype, options, pair):
    text = tokens().double().mul(1 / 3).to(dtype)
    plus, _ = pair
    unchanged, info = delta(text, plus, plus.clone(), 3.0, **options)
    wider = delta(text, plus, plus.double(), -1.0, **options)[0]
    for result in (unchanged, wider, delta(text, *pair, 0.0, **options)[0]):
        assert torch.equal(result, text) and result.dtype == dtype
        assert torch.equal(result.signbit(), text.signbit())
    assert info.moved == 0 and info.relative_size == 0 and info.energy_kept == 1
    assert info.describe() == "image delta: the picture changed no token, the text stays as it is."


def test_tokens_before_the_picture_stay_bit_for_bit_even_in_a_low_rank(pair):
    text = tokens()
    result, info = delta(text, *pair, 2.0, rank=1)
    assert torch.equal(result[:3], text[:3])
    assert info.moved == LENGTH - 3


@pytest.mark.parametrize("side", ["text", "with_picture", "without_picture"])
def test_a_sink_on_any_side_keeps_the_texts_vector(side, pair):
    sides = {"text": tokens(), "with_picture": pair[0], "without_picture": pair[1]}
    place = 5
    sides[side][place if side == "text" else ALIGNED[place], 4] = 1e5
    result, info = delta(*sides.values())
    assert info.sinks == 1 and torch.equal(result[place], sides["text"][place])
    others = [n for n in range(3, LENGTH) if n != place]
    assert_close(result[others], moved(*sides.values(), 1.0)[others])
    included, info = delta(*sides.values(), sinks="include")
    assert info.sinks == 0 and not torch.equal(included[place], sides["text"][place])


@pytest.mark.parametrize("side", ["text", "with_picture", "without_picture"])
def test_a_token_that_is_all_zero_keeps_the_texts_vector(side, pair):
    sides = {"text": tokens(), "with_picture": pair[0], "without_picture": pair[1]}
    sides[side][6 if side == "text" else ALIGNED[6]] = 0
    result, info = delta(*sides.values(), remove_prompt_direction=True, rank=2)
    assert result.isfinite().all() and torch.equal(result[6], sides["text"][6])
    assert info.notes == ("1 tokens are all zero and have no direction: the text's vector stays.",)


def test_inputs_are_left_alone(pair):
    sides = (tokens(), *pair)
    before = [side.clone() for side in sides]
    delta(*sides, remove_prompt_direction=True, rank=1)
    assert all(torch.equal(*both) for both in zip(sides, before, strict=True))


# --- what is reported -------------------------------------------------------------------------------------------------


def test_the_report_gives_the_median_size_in_units_of_the_token(pair):
    _, info = delta(tokens(), *pair, 2.0)
    sizes = np.sqrt(((unit(numbers(pair[0])[ALIGNED]) - unit(numbers(pair[1])[ALIGNED])) ** 2).mean(-1))
    assert info.relative_size == pytest.approx(np.median(sizes[3:]), rel=1e-5)
    assert info.layout.source == "blend" and info.layout.token_ids.tolist() == TEXT.token_ids.tolist()
    assert f"moved 8 tokens, by {info.relative_size:.2f} of their size" in info.describe()
    assert "energy" not in info.describe()


def test_the_report_says_what_was_left_out(pair):
    _, info = delta(tokens(), *pair, remove_prompt_direction=True, rank=2)
    assert f"{info.energy_kept:.0%} of the delta's energy is kept" in info.describe()
    assert f"{info.direction_removed:.0%} lay along the prompt's own direction, rank 2" in info.describe()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 3.01}, r"weight: expected -3 \(push away\) to 3, got 3.01"),
        ({"weight": -4}, "weight: expected .*got -4"),
        ({"weight": float("nan")}, "weight: expected .*got nan"),
        ({"weight": torch.ones(5)}, r"weight: .*\(11,\), got shape \(5,\)"),
        ({"rank": -1}, "rank: expected 1 or more"),
        ({"sinks": "keep"}, "sinks: expected one of"),
        ({"with_picture": tokens(len(VL))[:, :5]}, "text and with_picture: expected equal widths, got 9 and 5"),
        ({"without_picture": tokens(len(VL))[:, :5]}, "text and without_picture: expected equal widths"),
        ({"without_picture": tokens(LENGTH)}, "without_picture: expected 17 positions .* got 11.*baseline_layout"),
        ({"with_picture": tokens(len(VL)) * float("inf")}, "with_picture: expected finite"),
        ({"baseline_layout": TEXT}, "baseline_layout: expected 17 positions like baseline, got 11"),
        ({"vl_layout": TEXT}, "vl_layout: expected 17 positions"),
        ({"text_layout": VL}, "text_layout: expected 11 positions"),
        ({"text": tokens(3), "text_layout": None}, r"vl: expected 3 tokens outside the pictures.*got 11"),
        ({"text_layout": text_layout([*HEADER, 64, 2518, 1, *TAIL])}, r"same words.*position 5.*for both\.$"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "text": tokens(), "with_picture": tokens(len(VL), 1), "without_picture": tokens(len(VL), 2), "weight": 1.0,
        "text_layout": TEXT, "vl_layout": VL, **change,
    }
    with pytest.raises(ValueError, match=message):
        image_delta(**arguments)


@settings(max_examples=100, deadline=None)
@given(
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 3),
    kinds=st.tuples(*[st.sampled_from(["noise", "zeros", "constant", "huge", "tiny"])] * 3),
    batch=st.sampled_from([None, 1, 2]),
    weight=st.floats(-3, 3),
    remove=st.booleans(),
    rank=st.integers(0, 4),
    sinks=st.sampled_from(["exclude", "include"]),
)
def test_any_input_keeps_its_shape_and_type_and_stays_finite(dtypes, kinds, batch, weight, remove, rank, sinks):
    def nasty(count, dtype, kind, seed):
        x = tokens(count, seed, batch=batch)
        x = {"noise": x, "zeros": x * 0, "constant": x * 0 + 3, "huge": x, "tiny": x * 1e-7}[kind]
        if kind == "huge":
            x[..., 0, :2] = torch.tensor([1e4, -1e4])
        return x.to(dtype)

    lengths = (LENGTH, len(VL), len(VL))
    sides = [nasty(*side) for side in zip(lengths, dtypes, kinds, range(3), strict=True)]
    result, info = delta(*sides, weight, remove_prompt_direction=remove, rank=rank, sinks=sinks)
    assert result.shape == sides[0].shape and result.dtype == sides[0].dtype
    assert result.isfinite().all() and "nan" not in info.describe()
    assert 0 <= info.energy_kept <= 1 + 1e-6 and -1e-6 <= info.direction_removed <= 1


@pytest.mark.filterwarnings("error")
def test_states_that_carry_a_gradient_or_come_from_inference_mode_pass(pair):
    with torch.inference_mode():
        inferred = tokens()
    expected = delta(tokens(), *pair, rank=1)[0]
    for text in (inferred, tokens().requires_grad_()):
        assert torch.equal(delta(text, pair[0].clone().requires_grad_(), pair[1], rank=1)[0], expected)


# --- baselines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [torch.float32, torch.uint8, "batch", "alpha"])
def test_a_grey_picture_is_mid_grey_of_the_same_size(form):
    picture = torch.rand(40, 70, 3)
    picture = {"batch": picture[None], "alpha": torch.rand(40, 70, 4)}.get(form, picture)
    picture = (picture * 255).to(torch.uint8) if form == torch.uint8 else picture
    grey = baseline_picture(picture, "grey")
    assert grey.dtype == torch.uint8 and grey.shape == (40, 70, 3) and (grey == 128).all()


def test_a_blurred_picture_keeps_the_colours_of_its_fields():
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (64, 128, 3), generator=generator, dtype=torch.uint8)
    picture[:, :64] //= 4
    blurred = baseline_picture(picture, "blurred")
    fields = picture.float().reshape(4, 16, 4, 32, 3).mean((1, 3))
    corners = blurred[[0, 0, -1, -1], [0, -1, 0, -1]].float()  # outside the centres of the fields nothing is mixed
    assert torch.equal(corners, fields[[0, 0, -1, -1], [0, -1, 0, -1]].round())
    assert (blurred.float().mean((0, 1)) - picture.float().mean((0, 1))).abs().max() < 2
    assert blurred.float().diff(dim=1).abs().max() < picture.float().diff(dim=1).abs().max() / 20


@pytest.mark.parametrize("kind", ["grey", "blurred"])
def test_a_picture_that_is_its_own_baseline_stays_as_it_is(kind):
    assert (baseline_picture(torch.full((3, 50, 3), 0.5), kind) == 128).all()


def test_another_baseline_or_no_picture_is_refused():
    with pytest.raises(ValueError, match="kind: expected one of grey, blurred, got 'muted'"):
        baseline_picture(torch.zeros(8, 8, 3), "muted")
    with pytest.raises(TypeError, match="image 2: expected a picture"):
        baseline_picture("picture.png", "grey", "image 2")


# --- with an encoder --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tiny_qwen3vl):
    return Qwen3VLEncoder.from_pretrained(tiny_qwen3vl[0], dtype=torch.float32)


@pytest.fixture(scope="module")
def picture():
    return torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(3))


def test_a_muted_picture_leaves_the_layout_and_what_is_before_it_bit_for_bit(encoder, picture):
    for images in ([picture], [picture, picture[:32, :32]]):
        seen = encoder.encode(images, "a cat in a hat", layers=range(7))
        muted = encoder.encode(images, "a cat in a hat", layers=range(7), mute=True)
        assert torch.equal(muted.layout.roles, seen.layout.roles)
        assert torch.equal(muted.layout.token_ids, seen.layout.token_ids) and muted.layout.grids == seen.layout.grids
        first = int((seen.layout.roles == TokenRole.IMAGE).nonzero()[0])
        assert first == 4 and torch.equal(muted.states[:, :first], seen.states[:, :first])
        assert (muted.states[1:, first:] != seen.states[1:, first:]).any(-1).all()


def test_what_a_picture_adds_is_read_from_it_and_not_from_its_place(encoder, picture):
    seen, layout = encoder.encode([picture], "a cat", layers=-2).at(-2)
    muted, _ = encoder.encode([picture], "a cat", layers=-2, mute=True).at(-2)
    shuffled = picture.reshape(-1, 3)[torch.randperm(64 * 96)].reshape(picture.shape)
    other, _ = encoder.encode([shuffled], "a cat", layers=-2).at(-2)
    words: TokenLayout = encoder.tokenize("a cat")
    text, _ = encoder.encode([], "a cat", layers=-2).at(-2)
    options = {"text_layout": words, "vl_layout": layout}
    ours, info = image_delta(text, seen, muted, 1.0, **options)
    theirs, _ = image_delta(text, other, muted, 1.0, **options)
    assert info.moved == len(words) - 3 and torch.equal(ours[:3], text[:3])
    assert (ours - text).norm() > 0.1 * text.norm() and (ours - theirs).norm() > 0.01 * text.norm()
    assert torch.equal(image_delta(text, seen, seen, 1.0, **options)[0], text)


# --- layers side by side ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"remove_prompt_direction": True}, {"rank": 1}])
def test_the_delta_of_a_stack_is_the_layers_deltas_joined(options):
    family = Family("three", "three", "text", "vision", WIDTH, (1, 2, 3), padded_to=LENGTH + 4)
    text = torch.cat([tokens(LENGTH + 4, seed, scale) for seed, scale in ((0, 1), (1, 30), (2, 0.1))], -1)
    seen, blind = ([tokens(len(VL), seed + index, 5) for index in range(3)] for seed in (3, 6))

    def act(part, layout, index):
        moved_states, info = image_delta(
            part, seen[index], blind[index], 1.5, text_layout=layout, vl_layout=VL, **options
        )
        return moved_states, info.layout, info.describe()

    result, _, lines = steer_layers(text, None, family, act, words=LENGTH)
    assert len(lines) == 3 and torch.equal(result[LENGTH:], text[LENGTH:])
    for index in range(3):
        at = slice(index * WIDTH, (index + 1) * WIDTH)
        expected = moved(
            text[:LENGTH, at], seen[index], blind[index], 1.5, options.get("remove_prompt_direction", False),
            options.get("rank"),
        )
        np.testing.assert_allclose(numbers(result[:LENGTH, at]), expected, rtol=1e-4, atol=1e-4)
