"""Our own step against transformers' generate on the same weights: the same tokens, one picture or several."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")

from torch.nn import functional

from vl_core import Qwen3VLEncoder
from vl_core.encoder import decoder as decoder_module
from vl_core.encoder import writing
from vl_core.encoder.cache import stored_bytes
from vl_core.encoder.decoding import attend_masked, plan_of
from vl_core.encoder.generate import generate
from vl_core.encoder.sampling import Sampling, choose
from vl_core.encoder.writing import describe, describe_each

REQUEST = "describe the light of the sea"
SIZES = [(64, 96), (96, 64), (33, 127)]


def lively(encoder: Qwen3VLEncoder) -> Qwen3VLEncoder:
    """A head that is not the embeddings: by those of random weights a token is mostly followed by itself."""
    encoder.model.config.tie_word_embeddings = False
    encoder._head = torch.randn(512, encoder.width, generator=torch.Generator().manual_seed(9))
    return encoder


@pytest.fixture(scope="module")
def of_a_kind(tiny_models, tmp_path_factory):
    """A function: the encoder of a kind, which its template makes; loaded once."""

    @cache
    def load(kind: str) -> Qwen3VLEncoder:
        path = tmp_path_factory.mktemp("writing") / kind
        template = tiny_models.THINKING_TEMPLATE if kind == "Thinking" else tiny_models.CHAT_TEMPLATE
        tiny_models.write_folder(path, template=template)
        found = Qwen3VLEncoder.from_pretrained(path, dtype=torch.float32)
        assert found.variant == kind
        return lively(found)

    return load


@pytest.fixture
def plain(of_a_kind) -> Qwen3VLEncoder:
    """An encoder, nothing kept from the test before."""
    of_a_kind("Instruct").forget()
    return of_a_kind("Instruct")


@pytest.fixture(params=["Instruct", "Thinking"])
def either(of_a_kind, request) -> Qwen3VLEncoder:
    """An encoder of either kind, nothing kept: where what it is asked counts, and not only how it is run."""
    of_a_kind(request.param).forget()
    return of_a_kind(request.param)


def noise(seed: int = 1, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def head_of(encoder):
    return None if encoder.model.config.tie_word_embeddings else encoder.head()


def theirs(encoder, pictures, sampling=None, seed=0, max_tokens=24, system_prompt=""):
    """The tokens that transformers' generate writes."""
    asked = writing.ask(encoder, pictures, REQUEST, system_prompt, 1024, max_tokens)
    ends = encoder.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return generate(encoder, asked.layout, asked.pictures, sampling or Sampling(), seed, max_tokens, ends)


def ours(encoder, pictures, sampling=None, seed=0, max_tokens=24, system_prompt=""):
    """The tokens that describe writes, which it hands out as text alone."""
    asked = writing.ask(encoder, pictures, REQUEST, system_prompt, 1024, max_tokens)
    ends = encoder.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    answers, note = writing.write_answers(
        encoder.reader, [(asked.layout, asked.pictures)], sampling or Sampling(), seed, max_tokens, ends,
        lambda _row, _token: False, head=head_of(encoder), dtype=encoder.dtype, device=encoder.device,
    )
    assert note == ""
    return answers[0]


# --- the same tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("system_prompt", ["", "a cat in a red hat"])
def test_the_likeliest_tokens_are_those_of_transformers(count, system_prompt, either):
    pictures = [noise(seed, *size) for seed, size in enumerate(SIZES[:count])]
    written = ours(either, pictures, system_prompt=system_prompt)
    assert written == theirs(either, pictures, system_prompt=system_prompt)
    assert len(set(written)) > 1  # one token over and over would agree cheaply


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, 0), Sampling(0.7, 20), Sampling(1.3, 0, top_p=0.8), Sampling(1.0, 50, 0.9, min_p=0.05),
        Sampling(1.0, 0, min_p=0.2), Sampling(0.8, 30, 0.95, 0.02, repetition_penalty=1.4),
        Sampling(0.0, repetition_penalty=1.5), Sampling(1.5, 5, repetition_penalty=0.7),
    ],
    ids=lambda one: ", ".join(f"{name} {value}" for name, value in asdict(one).items()),
)
def test_a_seed_draws_the_tokens_that_transformers_draws(sampling, either):
    for seed in (0, 7, 2**63):
        assert ours(either, [noise(seed % 5)], sampling, seed) == theirs(either, [noise(seed % 5)], sampling, seed)


def test_a_repetition_penalty_counts_the_prompt_and_changes_the_words(plain):
    without, penalised = (ours(plain, [noise()], Sampling(repetition_penalty=value)) for value in (1.0, 1.8))
    assert without != penalised
    assert len(set(penalised)) > len(set(without))


def test_embeddings_score_where_they_are_the_head(either):
    other = ours(either, [noise()])
    either.model.config.tie_word_embeddings = True
    try:
        assert ours(either, [noise()]) == theirs(either, [noise()]) != other
    finally:
        either.model.config.tie_word_embeddings = False


@pytest.fixture(scope="module")
def miniature():
    """The trained miniature's Qwen3-VL in bf16, and pictures of its world with what it was trained to be asked."""
    world = pytest.importorskip("miniature.world")
    folder = Path(world.__file__).parent / "models" / "qwen3-vl-mini"
    scenes = world.sample_scenes(3, torch.Generator().manual_seed(3))
    rendered, _ = world.render(scenes, torch.Generator().manual_seed(4))
    pictures = ((rendered + 1) / 2).permute(0, 2, 3, 1).split(1)
    requests = [request for _, request, _ in world.TAKE_QUESTIONS[:2]]
    return Qwen3VLEncoder.from_pretrained(folder, dtype=torch.bfloat16), pictures, requests


def test_in_bf16_tokens_are_transformers_own_where_the_two_best_scores_are_not_a_rounding_apart(miniature):
    """``python -m benchmarks words --device cpu --only same_tokens`` counts it on more."""
    encoder, pictures, requests = miniature
    ends = encoder.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    written = set()
    for picture in pictures:
        for request in requests:
            asked = writing.ask(encoder, [picture], request, max_tokens=24)
            expected = generate(encoder, asked.layout, asked.pictures, Sampling(), 0, 24, ends)
            (found,), _ = writing.write_answers(
                encoder.reader, [(asked.layout, asked.pictures)], Sampling(), 0, 24, ends, lambda *_: False, head=None,
                dtype=encoder.dtype, device=encoder.device,
            )
            written.add(tuple(found))
            at = next((at for at, pair in enumerate(zip(found, expected, strict=False)) if len(set(pair)) > 1), None)
            if at is None:
                assert found == expected
                continue
            state = encoder.last_state(writing.lengthen(asked.layout, expected[:at]), asked.pictures, lambda: None)
            scores = functional.linear(state, encoder.head()).float()
            best = float(scores.max())
            assert best - float(scores[[found[at], expected[at]]].min()) <= 2.0 ** (math.floor(math.log2(best)) - 7)
    assert len(written) > 3


# --- several together -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pictures_told_together_are_told_as_alone(temperature, either):
    pictures = [noise(seed, *SIZES[seed % 3]) for seed in range(5)]
    options = {"max_tokens": 16, "temperature": temperature, "top_k": 0, "seed": 3, "repetition_penalty": 1.2}
    together = describe_each(either, pictures, REQUEST, together=3, **options)
    assert together == [describe(either, [picture], REQUEST, **options) for picture in pictures]
    assert len({one.raw for one in together}) > 2


def test_an_answer_that_ends_does_not_end_the_others(either):
    pictures = [noise(seed, *SIZES[seed % 3]) for seed in range(4)]
    whole = [ours(either, [picture], max_tokens=12) for picture in pictures]
    end = whole[0][3]  # as if the model ended there
    asked = [writing.ask(either, [picture], REQUEST, "", 1024, 12) for picture in pictures]
    answers, _ = writing.write_answers(
        either.reader, [(one.layout, one.pictures) for one in asked], Sampling(), 0, 12, [end],
        lambda _row, _token: False, head=head_of(either), dtype=either.dtype, device=either.device,
    )
    cut = [one[: one.index(end) + 1] if end in one else one for one in whole]
    assert answers == cut and len(cut[0]) <= 4 < max(map(len, cut))


def test_stop_ends_all_of_them_and_leaves_what_there_is(plain):
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 5

    told = describe_each(plain, [noise(1), noise(2)], REQUEST, max_tokens=12, should_stop=stop)
    assert sum(one.tokens for one in told) <= 6 and all(one.truncated for one in told)


# --- nothing twice --------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(plain, monkeypatch):
    """How often the vision tower ran, and how many positions each pass of the blocks had.

    What comes up to a picture is a pass of its own, and so is each request after it.
    """
    from vl_core.encoder import reader

    seen: dict[str, list[int]] = {"vision": [], "blocks": []}
    vision, blocks = reader.run_vision, reader.run_blocks

    def run_vision(*args, **kwargs):
        seen["vision"].append(1)
        return vision(*args, **kwargs)

    def run_blocks(language, hidden, *args, **kwargs):
        seen["blocks"].append(len(hidden))
        return blocks(language, hidden, *args, **kwargs)

    monkeypatch.setattr(reader, "run_vision", run_vision)
    monkeypatch.setattr(reader, "run_blocks", run_blocks)
    return seen


def test_a_picture_described_for_another_take_is_not_read_again(plain, counted):
    describe(plain, [noise()], REQUEST, max_tokens=2)
    describe(plain, [noise()], "the colours", max_tokens=2)
    assert len(counted["vision"]) == 1
    assert len(counted["blocks"]) == 1 + 2


def test_a_picture_read_for_an_encode_is_not_seen_again_and_the_other_way_round(plain, counted):
    plain.encode([noise()], "a cat", -2)
    first = describe(plain, [noise()], REQUEST, max_tokens=12)
    plain.encode([noise()], "a dog", -2)
    second = describe(plain, [noise()], REQUEST, max_tokens=12)
    assert len(counted["vision"]) == 1 and first == second
    # The last block runs for words alone, so the picture does once more; what both keep is still there after them.
    assert len(counted["blocks"]) == 2 + 2 + 1 + 1


def test_a_picture_told_before_another_one_is_not_read_again(plain, counted):
    """What lay in the buffers is kept when another picture takes their place, and found there."""
    first = describe(plain, [noise(1)], REQUEST, max_tokens=12)
    describe(plain, [noise(2)], REQUEST, max_tokens=12)
    assert describe(plain, [noise(1)], REQUEST, max_tokens=12) == first
    assert len(counted["vision"]) == 2 and len(counted["blocks"]) == 2 + 2 + 1


def test_an_answer_begins_with_the_same_bits_whatever_was_read_before(either, monkeypatch):
    """Of a picture that is new, was read for an encode or told before, or lay in the buffers of another number."""
    begun = []
    write = decoder_module.Decoder.write
    monkeypatch.setattr(
        decoder_module.Decoder, "write",
        lambda self, desk, openings, *rest: begun.append(openings[0].state) or write(self, desk, openings, *rest),
    )
    picture, long = noise(1, 160, 192), "the light of a lamp, a painting of many words and more of them " * 6

    def told() -> torch.Tensor:
        describe(either, [picture], long, max_tokens=4)
        return begun[-1]

    new = told()
    for before in (
        lambda: either.encode([picture], "a cat", -1), lambda: describe(either, [picture], REQUEST, max_tokens=4),
        lambda: describe_each(either, [picture, noise(2)], REQUEST, max_tokens=4), lambda: None,
    ):
        either.forget()
        before()
        assert torch.equal(told(), new)


def test_one_picture_lies_in_memory_once(plain):
    """The buffers hold its keys and values: none are kept beside them until another picture needs the place."""
    def prefixes() -> int:
        return sum(key[0] == "prefix" for key in plain.reader.cache._entries)

    describe(plain, [noise(1)], REQUEST, max_tokens=4)
    describe(plain, [noise(1)], "the colours", max_tokens=4)
    assert prefixes() == 0
    describe(plain, [noise(2)], REQUEST, max_tokens=4)
    assert prefixes() == 1


def test_the_vision_tower_has_run_when_buffers_are_taken(plain, monkeypatch):
    """It needs as much room as they do, for a moment; so the two are not there at once."""
    from vl_core.encoder import reader

    order = []
    for owner, name in ((reader, "run_vision"), (decoder_module, "set_desk"), (reader, "run_blocks")):
        act = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _act=act, _name=name, **o: order.append(_name) or _act(*a, **o))
    describe_each(plain, [noise(1), noise(2, 96, 64)], REQUEST, max_tokens=12)
    assert order[:3] == ["run_vision", "run_vision", "set_desk"] and set(order[3:]) == {"run_blocks"}


def test_buffers_that_are_given_up_for_more_answers_leave_what_they_held(plain, counted):
    describe(plain, [noise(1)], REQUEST, max_tokens=4)
    describe_each(plain, [noise(1), noise(2)], "the colours", max_tokens=4)
    assert len(counted["vision"]) == 2 and len(counted["blocks"]) == 2 + 1 + 2
    describe(plain, [noise(2)], REQUEST, max_tokens=4)
    assert len(counted["vision"]) == 2 and len(counted["blocks"]) == 2 + 1 + 2 + 1


def test_an_error_while_a_picture_is_read_leaves_nothing_that_is_taken_for_it(plain):
    expected = describe(plain, [noise(1)], REQUEST, max_tokens=12)
    plain.forget()

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        describe(plain, [noise(1)], REQUEST, max_tokens=12, check=stop)
    assert describe(plain, [noise(1)], REQUEST, max_tokens=12) == expected


def test_a_step_asks_before_each_block_and_what_was_read_is_whole_after_a_stop(plain, counted):
    """A token of a large model takes a second on a CPU: long to wait for a Stop."""
    expected = describe(plain, [noise(1)], REQUEST, max_tokens=12)
    blocks, asked = plain.num_layers, []

    def stop_in_the_second_step() -> None:
        asked.append(0)
        if len(asked) == blocks + blocks + 2:  # the words' own positions, a step, and into the next
            raise InterruptedError

    with pytest.raises(InterruptedError):
        describe(plain, [noise(1)], REQUEST, max_tokens=12, check=stop_in_the_second_step)
    assert describe(plain, [noise(1)], REQUEST, max_tokens=12) == expected
    assert len(counted["vision"]) == 1 and counted["blocks"][1:] == [counted["blocks"][-1]] * len(counted["blocks"][1:])


def test_what_is_kept_changes_no_state_and_no_word(plain):
    told = describe(plain, [noise()], REQUEST, max_tokens=12)
    kept = plain.encode([noise()], "a cat", [-6, -2, -1]).states
    plain.forget()
    assert torch.equal(plain.encode([noise()], "a cat", [-6, -2, -1]).states, kept)
    assert describe(plain, [noise()], REQUEST, max_tokens=12) == told


def test_changed_weights_are_seen(plain):
    before = ours(plain, [noise()])
    weight = plain.model.language_model.layers[2].self_attn.q_norm.weight
    kept = weight.clone()
    with torch.no_grad():
        weight.mul_(3.0)
    try:
        changed = ours(plain, [noise()])
        assert changed == theirs(plain, [noise()]) != before
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert ours(plain, [noise()]) == before


# --- where the step cannot be used ----------------------------------------------------------------------------------


def test_a_hooked_module_has_transformers_write_and_says_so(either):
    told = describe(either, [noise()], REQUEST, max_tokens=6)
    seen = []
    hook = either.model.language_model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    try:
        hooked = describe(either, [noise()], REQUEST, max_tokens=6)
    finally:
        hook.remove()
    assert seen and hooked.raw == told.raw
    assert "transformers' generate" in hooked.notes[-1] and "hooked" in hooked.notes[-1]
    assert not any("generate" in note for note in told.notes)


def test_a_projection_that_is_more_than_its_weight_is_called(plain):
    class Doubled(torch.nn.Linear):
        comfy_cast_weights, weight_function = True, ("doubled",)  # ComfyUI's mark, and that the weight is not all

        def forward(self, x):
            return super().forward(x) * 2

    mlp = plain.model.language_model.layers[3].mlp
    linear = mlp.down_proj
    doubled = Doubled(linear.in_features, linear.out_features, bias=False)
    doubled.weight = linear.weight
    before = ours(plain, [noise()])
    mlp.down_proj = doubled
    try:
        assert ours(plain, [noise()]) == theirs(plain, [noise()]) != before
    finally:
        mlp.down_proj = linear


def test_a_norm_that_is_more_than_its_weight_has_no_plan(plain):
    language = plain.model.language_model
    assert plan_of(language, None, torch.float32, torch.device("cpu")) is not None
    language.norm.add = True
    try:
        assert plan_of(language, None, torch.float32, torch.device("cpu")) is None
    finally:
        del language.norm.add


# --- the graph's bookkeeping, with a recorder that runs --------------------------------------------------------------


@pytest.fixture
def recorder(monkeypatch):
    """Stands in for a GPU's: runs the work once, as the warm-up before a capture does, and replays it by running it."""
    works = []

    def capture(work, generators=()):
        works.append(work)
        work()
        return work

    monkeypatch.setattr(decoder_module, "can_capture", lambda _device: True)
    monkeypatch.setattr(decoder_module, "capture", capture)
    return works


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0, 0.9, 0.0, 1.3)], ids=["greedy", "drawn"])
def test_a_captured_step_writes_what_steps_one_by_one_write(sampling, either, recorder):
    """It reads whole buffers, knows no length from Python, and its warm-up leaves no trace."""
    for seed in (4, 5):
        assert ours(either, [noise(seed)], sampling, seed) == theirs(either, [noise(seed)], sampling, seed)
    assert len(recorder) == 1  # the second answer replays


def test_captured_steps_write_several_answers_at_once(plain, recorder):
    pictures = [noise(seed, *SIZES[seed % 3]) for seed in range(3)]
    options = {"max_tokens": 16, "temperature": 1.0, "top_k": 0, "seed": 3}
    together = describe_each(plain, pictures, REQUEST, **options)
    assert len(recorder) == 1
    assert together == [describe(plain, [picture], REQUEST, **options) for picture in pictures]


def test_longer_prompts_and_other_ways_of_choosing_are_captured_anew_and_few_are_kept(plain, recorder):
    decoder = plain.reader.decoder
    for top_k in range(1, 9):
        ours(plain, [noise()], Sampling(1.0, top_k))
    assert len(recorder) == 8 and len(decoder.desk.graphs) == decoder_module.MOST_GRAPHS
    assert ours(plain, [noise()], max_tokens=300) == theirs(plain, [noise()], max_tokens=300)
    assert len(decoder.desk.graphs) == 1  # those on the smaller buffers are gone


def test_where_nothing_can_be_captured_steps_are_run_one_by_one_and_a_note_says_so(plain, recorder, monkeypatch):
    def refuse(work, generators=()):
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    expected = describe(plain, [noise()], REQUEST, max_tokens=12)
    plain.forget()
    monkeypatch.setattr(decoder_module, "capture", refuse)
    told = describe(plain, [noise()], REQUEST, max_tokens=12)
    plain.reader.decoder.captures, plain.reader.decoder.reason = True, ""
    assert told.raw == expected.raw
    assert "not permitted when stream is capturing" in told.notes[-1] and "and more" not in told.notes[-1]


def test_buffers_are_used_again_and_given_back(plain):
    decoder = plain.reader.decoder
    first = ours(plain, [noise(1)])
    desk = decoder.desk
    ours(plain, [noise(2)])
    assert decoder.desk is desk is not None
    assert ours(plain, [noise(1)]) == first
    plain.forget()
    assert decoder.desk is None and decoder._plan is None


@pytest.mark.parametrize("long", [True, False], ids=["larger", "smaller"])
def test_buffers_are_kept_within_the_bound_of_all_that_is_kept(long, plain, monkeypatch):
    """Those of a long question may take gigabytes: they go with the answer. What is smaller than the bound stays."""
    request, decoder = REQUEST * (200 if long else 1), plain.reader.decoder
    desks, set_desk = [], decoder_module.set_desk

    def setting(*options):
        desk = set_desk(*options)
        desks.append(weakref.ref(desk))
        return desk

    monkeypatch.setattr(decoder_module, "set_desk", setting)
    monkeypatch.setattr(plain.reader.cache, "limit", 3 << 20)
    expected = describe(plain, [noise(1)], request, max_tokens=4)
    gc.collect()
    assert [one() for one in desks] == [decoder.desk] and (decoder.desk is None) == long
    assert (0 if long else stored_bytes(decoder.desk.tensors())) < plain.reader.cache.bytes <= 3 << 20
    assert describe(plain, [noise(1)], request, max_tokens=4) == expected


def test_after_a_stop_buffers_are_kept_within_the_bound_as_well(plain, monkeypatch):
    def stop(text: str) -> None:
        raise InterruptedError

    monkeypatch.setattr(plain.reader.cache, "limit", 3 << 20)
    for request in (REQUEST, REQUEST * 200):
        with pytest.raises(InterruptedError):
            describe(plain, [noise(1)], request, max_tokens=4, on_text=stop)
        assert (plain.reader.decoder.desk is None) == (request != REQUEST)


# --- one choice -----------------------------------------------------------------------------------------------------


def test_attention_of_one_query_is_that_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, 8), (2, 9, 3, 8), (2, 9, 3, 8)
    query, keys, values = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes)
    filled = torch.tensor([4, 9])
    mask = torch.zeros(2, 1, 1, 9, dtype=torch.float64)
    mask[0, ..., 4:] = -torch.inf
    found = attend_masked(query, keys, values, mask).view(2, 6, 8)
    for row in range(2):
        for head in range(6):
            part = slice(0, int(filled[row]))
            scores = keys[row, part, head // 2] @ query[row, head] / 8**0.5
            expected = functional.softmax(scores, 0) @ values[row, part, head // 2]
            torch.testing.assert_close(found[row, head], expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_drawing_is_what_multinomial_draws(rows):
    scores = torch.randn(rows, 1000, generator=torch.Generator().manual_seed(0))
    drawn = choose(scores, Sampling(1.0, 0), None, [torch.Generator().manual_seed(row) for row in range(rows)])
    for row in range(rows):
        generator = torch.Generator().manual_seed(row)
        assert drawn[row] == torch.multinomial(scores[row].softmax(-1), 1, generator=generator)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -1}, "temperature"), ({"temperature": float("inf")}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"), ({"min_p": 1.1}, "min_p"), ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"), ({"repetition_penalty": float("nan")}, "repetition_penalty"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
