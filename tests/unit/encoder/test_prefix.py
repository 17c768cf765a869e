"""What is kept gives what a whole reading gives, and is never given for something else."""

from __future__ import annotations

import gc
import itertools
import logging
import shutil
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl_core.encoder import reader as prefix_module
from vl_core.encoder.forward import attend, fits, later_mask, mrope_rotary, prefix_length, signed
from vl_core.encoder.graphs import GraphPool
from vl_core.encoder.identity import WeightsIdentity
from vl_core.encoder.kernels import EXACT, MERGED, compiled_kernels, rotate
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.encoder.sight import weights_of
from vl_core.encoder.vision import run_vision, vision_tables
from vl_core.pictures import Picture, patchify, prepare_picture
from vl_core.states.layout import insert_pictures, mrope_positions, text_layout

pytest.importorskip("transformers", minversion="4.57", reason="the encoder runs on transformers")

BLOCKS = 6
PROMPT, OTHER = "a cat in a red hat", "the light of a lamp, a painting"
PLENTY = 1 << 30


@pytest.fixture(scope="module")
def folder(tiny_qwen3vl):
    return tiny_qwen3vl[0]


@pytest.fixture(scope="module")
def load(folder):
    return lambda **options: Qwen3VLEncoder.from_pretrained(folder, **{"dtype": torch.float32, **options})


@pytest.fixture(scope="module")
def plain(load):
    """The modules' own forward, nothing kept."""
    return load(fast=False)


@pytest.fixture
def keeping(load):
    return load(cache_bytes=PLENTY)


@pytest.fixture(scope="module")
def pictures(photographs):
    return [photographs[0][:96, :130].float()[None] / 255, photographs[1][100:164, 50:114].float()[None] / 255]


@pytest.fixture
def work(monkeypatch):
    """What ran: rows through each block, and patches through the vision tower."""
    done = {"rows": [], "patches": 0}
    run_blocks, vision = prefix_module.run_blocks, prefix_module.run_vision

    def count_blocks(language, hidden, *rest, **options):
        done["rows"].append(len(hidden))
        return run_blocks(language, hidden, *rest, **options)

    def count_patches(visual, patches, *rest):
        done["patches"] += patches.shape[0] * patches.shape[1]
        return vision(visual, patches, *rest)

    monkeypatch.setattr(prefix_module, "run_blocks", count_blocks)
    monkeypatch.setattr(prefix_module, "run_vision", count_patches)
    return done


def close(ours, theirs, tolerance: float = 2e-6) -> bool:
    return ours.states.shape == theirs.states.shape and float(
        (ours.states - theirs.states).norm() / theirs.states.norm()
    ) <= tolerance


# Equal to the plain path --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes", [0, PLENTY])
@pytest.mark.parametrize("every_layer", [False, True])
@pytest.mark.parametrize("mute", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_path_gives_the_states_of_the_plain_one(load, plain, pictures, cache_bytes, every_layer, mute, count):
    encoder = load(cache_bytes=cache_bytes, every_layer=every_layer)
    asked = [(PROMPT, -2), (OTHER, -2), (OTHER, (1, 3)), (PROMPT, range(BLOCKS + 1)), ("", -1), (PROMPT, 0)]
    for prompt, layers in asked + asked:
        ours = encoder.encode(pictures[:count], prompt, layers, mute=mute)
        theirs = plain.encode(pictures[:count], prompt, layers, mute=mute)
        assert ours.layers == theirs.layers and torch.equal(ours.layout.token_ids, theirs.layout.token_ids)
        assert close(ours, theirs), (prompt, layers)


@pytest.mark.parametrize("prompt, count", [("", 1), (PROMPT, 0), (PROMPT, 1), (PROMPT, 2), (9 * PROMPT, 1)])
def test_exact_kernels_round_where_transformers_rounds(load, pictures, monkeypatch, prompt, count):
    monkeypatch.setattr(prefix_module.Reader, "_plain_kernels", lambda *_: EXACT)
    ours, theirs = (
        load(dtype=torch.bfloat16, **options).encode(pictures[:count], prompt, range(BLOCKS + 1))
        for options in ({"cache_bytes": 0}, {"fast": False})
    )
    assert torch.equal(ours.states, theirs.states)


def test_what_may_be_kept_is_what_transformers_gives_for_it_alone(load, pictures, monkeypatch):
    monkeypatch.setattr(prefix_module.Reader, "_plain_kernels", lambda *_: EXACT)
    ours = load(dtype=torch.bfloat16, cache_bytes=PLENTY).encode(pictures, 9 * PROMPT, range(BLOCKS + 1))
    theirs, length = load(dtype=torch.bfloat16, fast=False), prefix_length(ours.layout)
    layout = replace(ours.layout, roles=ours.layout.roles[:length], token_ids=ours.layout.token_ids[:length])
    prepared = [prepare_picture(one[0])[0] for one in pictures]
    with torch.inference_mode():
        seen = theirs._see(prepared, False, lambda: None)
        expected = theirs._run_blocks(layout, *seen, tuple(range(BLOCKS + 1)), lambda: None)
    assert torch.equal(ours.states[:, :length], torch.cat(expected))


def test_merged_kernels_are_as_near_to_float32_as_transformers(load, pictures):
    exact = load(dtype=torch.float32, fast=False).encode(pictures, PROMPT, -2).states
    ours, theirs = (
        load(dtype=torch.bfloat16, **options).encode(pictures, PROMPT, -2).states.float()
        for options in ({}, {"fast": False})
    )
    assert (ours - exact).norm() < 1.2 * (theirs - exact).norm()


def test_with_a_system_prompt_as_well(keeping, plain, pictures):
    for system, prompt in (("paint it", PROMPT), ("paint it", OTHER), (None, OTHER), ("look", OTHER)):
        options = {"layers": (-2, -4), "system_prompt": system}
        assert close(keeping.encode(pictures, prompt, **options), plain.encode(pictures, prompt, **options))


@settings(max_examples=15)
@given(st.data())
def test_any_order_of_questions_gives_the_plain_answers(load, plain, photographs, data):
    encoder = load(cache_bytes=data.draw(st.sampled_from([20_000, 200_000, PLENTY])))
    sizes = st.tuples(st.sampled_from([32, 64, 96]), st.sampled_from([32, 64, 128]))
    crops = [photographs[0][:height, :width] for height, width in data.draw(st.lists(sizes, min_size=1, max_size=3))]
    for _ in range(6):
        images = data.draw(st.lists(st.sampled_from(crops), max_size=3))
        prompt = data.draw(st.sampled_from(["", "a cat", PROMPT, OTHER]))
        layers = data.draw(st.lists(st.integers(0, BLOCKS), min_size=1, max_size=3))
        assert close(encoder.encode(images, prompt, layers), plain.encode(images, prompt, layers))
        assert encoder.reader.cache.bytes <= encoder.reader.cache.limit


def test_in_bf16_both_paths_are_as_near_to_float32(load, plain, pictures):
    exact = plain.encode(pictures, PROMPT, -2).states

    def error(**options) -> float:
        states = load(dtype=torch.bfloat16, **options).encode(pictures, PROMPT, -2).states.float()
        return float((states - exact).norm() / exact.norm())

    assert error() <= 1.25 * error(fast=False)


def test_states_taken_from_what_is_kept_may_be_changed(keeping, pictures):
    first = keeping.encode(pictures, PROMPT, -2).states
    expected = first.clone()
    first.zero_()
    second = keeping.encode(pictures, PROMPT, -2).states
    assert torch.equal(second, expected)
    second += 1
    assert torch.equal(keeping.encode(pictures, PROMPT, -2).states, expected)


# Nothing runs twice -------------------------------------------------------------------------------------------------


def test_the_same_again_runs_nothing(keeping, pictures, work):
    before = keeping.encode(pictures, PROMPT, -2).states
    work.update(rows=[], patches=0)
    assert torch.equal(keeping.encode([one.clone() for one in pictures], PROMPT, -2).states, before)
    assert work == {"rows": [], "patches": 0}


def test_a_new_prompt_runs_its_own_positions_only(keeping, pictures, work):
    keeping.encode(pictures, PROMPT, -2)
    work.update(rows=[], patches=0)
    layout = keeping.encode(pictures, OTHER, -2).layout
    words = len(keeping.tokenizer(OTHER, add_special_tokens=False)["input_ids"])
    assert work == {"rows": [words + 5], "patches": 0}  # <|im_end|> \n <|im_start|> assistant \n
    assert prefix_length(layout) == len(layout) - words - 5


def test_a_layer_that_was_captured_runs_nothing(load, pictures, work):
    encoder = load(cache_bytes=PLENTY, every_layer=True)
    encoder.encode(pictures, PROMPT, -2)
    work.update(rows=[], patches=0)
    for layer in range(BLOCKS):
        encoder.encode(pictures, PROMPT, layer)
    encoder.encode(pictures, PROMPT, (1, 4))
    assert work == {"rows": [], "patches": 0}
    encoder.encode(pictures, OTHER, 3)
    assert len(work["rows"]) == 1 and work["rows"][0] < 20  # and another prompt on any of them its own positions


def test_another_system_prompt_sees_the_picture_only_once(keeping, pictures, work):
    keeping.encode(pictures, PROMPT, -2)
    assert work["patches"] == sum(4 * rows * columns for rows, columns in ((3, 4), (2, 2)))
    keeping.encode(pictures, PROMPT, -2, system_prompt="paint it")
    keeping.encode(pictures[::-1], PROMPT, -2)
    assert work["patches"] == 4 * (12 + 4)


def test_with_nothing_kept_everything_runs_each_time(load, pictures, work):
    encoder = load(cache_bytes=0)
    for _ in range(2):
        encoder.encode(pictures, PROMPT, -2)
    assert len(work["rows"]) == 2 and work["rows"][0] == work["rows"][1] and work["patches"] == 2 * 4 * 16
    assert encoder.reader.cache.bytes == 0


def test_cells_that_differ_in_their_stages_share_one_forward(keeping, pictures, work):
    """What a sweep does: many settings, few prompts."""
    for _, prompt in itertools.product(range(5), (PROMPT, OTHER)):
        keeping.encode(pictures, prompt, -2)
    assert len(work["rows"]) == 1 + 2 and work["patches"] == 4 * 16  # the pictures, then each prompt's own positions


def test_every_picture_has_a_pass_of_its_own(load, plain, photographs, monkeypatch):
    passes = []
    monkeypatch.setattr(
        prefix_module, "run_vision", lambda visual, patches, *rest: passes.append(tuple(patches.shape[:2]))
        or run_vision(visual, patches, *rest),
    )
    crops = [photographs[0][at : at + 64, at : at + 64] for at in (0, 32, 64)] + [photographs[1][:32, :96]]
    order = [crops[0], crops[3], *crops[1:3]]
    assert close(load().encode(order, PROMPT, -2), plain.encode(order, PROMPT, -2))
    assert passes == [(1, 16), (1, 12), (1, 16), (1, 16)]


# The same bits ------------------------------------------------------------------------------------------------------

LONG = "the light of a lamp, a painting of many words and more of them " * 6
QUESTIONS = [(1, "a cat", -2), (1, LONG, -2), (2, "a cat", (1, 3)), (2, LONG, -1), (1, "a cat", -1), (0, LONG, -2)]


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("cache_bytes", [0, 300_000, PLENTY])
def test_a_reading_has_the_same_bits_whatever_was_read_before(load, pictures, compile, cache_bytes):
    """Of a picture that was read with longer words, with another picture, to another layer, or not at all."""
    def fresh() -> Qwen3VLEncoder:
        encoder = load(cache_bytes=cache_bytes, compile=compile)
        encoder.reader._graphs = GraphPool(replaying()[0]) if compile else None
        return encoder

    # A picture of each size is large: a product of few rows is often rounded like one of a few more.
    pictures = [torch.cat([one, one.flip(2)], 2).repeat(1, 2, 1, 1) for one in pictures]
    expected = [fresh().encode(pictures[:count], prompt, layers).states for count, prompt, layers in QUESTIONS]
    for order in (QUESTIONS, QUESTIONS[::-1]):
        encoder = fresh()
        for count, prompt, layers in [*order, *order]:
            states = encoder.encode(pictures[:count], prompt, layers).states
            assert torch.equal(states, expected[QUESTIONS.index((count, prompt, layers))]), (count, prompt, layers)


# Never something else -----------------------------------------------------------------------------------------------


def changed_pixel(picture):
    other = picture.clone()
    other[0, 5, 7, 1] = 1.0 - other[0, 5, 7, 1].round()
    return other


@pytest.mark.parametrize(
    "change",
    [
        {"images": "pixel"}, {"images": "order"}, {"images": "fewer"}, {"prompt": PROMPT + "."}, {"prompt": ""},
        {"system_prompt": "paint it"}, {"mute": True}, {"layers": (-3,)}, {"layers": (-2, 1)}, {"budget": 6},
    ],
    ids=str,
)
def test_whatever_is_changed_is_read_anew(keeping, plain, pictures, change):
    """A pixel, the order, the prompt, the system prompt, the layers, the budget: each against the plain path."""
    images = {"pixel": [changed_pixel(pictures[0]), pictures[1]], "order": pictures[::-1], "fewer": pictures[:1]}
    asked = {"images": pictures, "prompt": PROMPT, "layers": (-2,), "system_prompt": None, "mute": False}
    before = keeping.encode(**asked)
    changed = {**asked, **change}
    changed["images"] = images.get(change.get("images"), pictures)
    ours, theirs = keeping.encode(**changed), plain.encode(**changed)
    assert close(ours, theirs)
    different = ours.states.shape != before.states.shape or not torch.equal(ours.states, before.states)
    assert different, "the change made no difference, so nothing was tested"


def test_changed_weights_are_noticed(load, pictures):
    encoder, fresh = load(cache_bytes=PLENTY), load(fast=False)
    with torch.no_grad():
        for number, change in enumerate(
            [
                lambda model: model.language_model.layers[0].mlp.up_proj.weight.mul_(1.5),
                lambda model: model.visual.blocks[1].attn.qkv.bias.add_(0.5),
                lambda model: setattr(
                    model.language_model.layers[2].mlp.down_proj, "weight",
                    torch.nn.Parameter(-model.language_model.layers[2].mlp.down_proj.weight, requires_grad=False),
                ),
                lambda model: model.double(),
                lambda model: model.load_state_dict(
                    {name: 0.5 * weight for name, weight in model.state_dict().items()}, assign=True
                ),
            ]
        ):
            before = encoder.encode(pictures, PROMPT, -2).states
            change(encoder.model), change(fresh.model)
            ours, theirs = encoder.encode(pictures, PROMPT, -2), fresh.encode(pictures, PROMPT, -2)
            assert close(ours, theirs), number
            assert not torch.equal(ours.states.float(), before.float()), number


def test_the_identity_stays_while_the_weights_do():
    module = torch.nn.Linear(4, 4)
    identity = WeightsIdentity()
    first = identity(module.parameters())
    module(torch.zeros(1, 4))
    assert identity(module.parameters()) == first
    with torch.no_grad():
        module.weight[0, 0] = 7
    assert identity(module.parameters()) == first + 1 == identity(module.parameters())


def test_weights_made_in_inference_mode_have_an_identity():
    with torch.inference_mode():
        identity, module = WeightsIdentity(), torch.nn.Linear(4, 4)
        assert identity(module.parameters()) == identity(module.parameters())


def test_a_hook_is_honoured_and_nothing_is_kept(load, plain, pictures):
    encoder = load(cache_bytes=PLENTY)
    encoder.encode(pictures, PROMPT, -2)
    hook = encoder.model.language_model.layers[1].register_forward_hook(lambda _module, _inputs, output: 2 * output)
    assert not fits(encoder.model.visual, encoder.model.language_model)
    doubled = encoder.encode(pictures, PROMPT, -2)
    hook.remove()
    assert not close(doubled, plain.encode(pictures, PROMPT, -2), 0.1)
    assert close(encoder.encode(pictures, PROMPT, -2), plain.encode(pictures, PROMPT, -2))


# Memory -------------------------------------------------------------------------------------------------------------


def test_forgetting_gives_every_tensor_back(keeping, pictures):
    keeping.encode(pictures, PROMPT, -2)
    kept = [
        weakref.ref(pair[0]) for key, (entry, _) in keeping.reader.cache._entries.items() if key[0] == "prefix"
        for pair in entry.pairs
    ]
    assert kept and all(reference() is not None for reference in kept)
    keeping.forget()
    gc.collect()
    assert keeping.reader.cache.bytes == 0 and all(reference() is None for reference in kept)


def test_out_of_memory_is_tried_again_with_nothing_kept(keeping, plain, pictures, monkeypatch, caplog):
    keeping.encode(pictures, OTHER, -2)
    run_blocks, failures = prefix_module.run_blocks, iter([True, False, False])

    def fail_once(*arguments, **options):
        if next(failures):
            raise torch.cuda.OutOfMemoryError("no room")
        assert keeping.reader.cache.bytes < 200_000  # the new reading's own picture at most
        return run_blocks(*arguments, **options)

    monkeypatch.setattr(prefix_module, "run_blocks", fail_once)
    with caplog.at_level(logging.INFO):
        ours = keeping.encode(pictures, PROMPT, -2)
    assert close(ours, plain.encode(pictures, PROMPT, -2)) and "nothing kept" in caplog.text


def test_out_of_memory_with_nothing_kept_is_raised(load, pictures, monkeypatch):
    def fail(*_arguments, **_options):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(prefix_module, "run_blocks", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        load(cache_bytes=0).encode(pictures, PROMPT, -2)


def test_an_encode_that_was_stopped_leaves_nothing_half_done(keeping, plain, pictures):
    for stop_at in range(1, 8):
        calls = itertools.count(1)

        def check(calls=calls, stop_at=stop_at):
            if next(calls) == stop_at:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            keeping.encode(pictures, PROMPT, -2, check=check)
    assert close(keeping.encode(pictures, PROMPT, -2), plain.encode(pictures, PROMPT, -2))


def test_threads_may_encode_at_once(load, plain, pictures):
    encoder = load(cache_bytes=400_000)
    questions = [(pictures[: 1 + n % 2], prompt, layer) for n, (prompt, layer) in enumerate(
        itertools.product((PROMPT, OTHER, "", "a cat"), (-2, 1, -4))
    )]
    expected = [plain.encode(*question) for question in questions]
    wrong = []

    def ask(start: int) -> None:
        for at in range(2 * len(questions)):
            number = (start + 5 * at) % len(questions)
            if not close(encoder.encode(*questions[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_weights_of_a_model_are_its_parameters(plain):
    ours, theirs = weights_of(plain.model), list(plain.model.parameters())
    assert len(ours) == len(theirs) and {id(weight) for weight in ours} == {id(weight) for weight in theirs}


# The merged arithmetic against its definition -----------------------------------------------------------------------


@pytest.mark.parametrize(("past", "length"), [(0, 7), (5, 3), (9, 1)])
def test_attention_on_a_prefix_is_the_end_of_attention_on_all(past, length):
    heads, groups, size = 6, 2, 8
    generator = torch.Generator().manual_seed(1)
    query, keys, values = (
        torch.randn(past + length, count, size, generator=generator, dtype=torch.float64)
        for count in (heads, groups, groups)
    )
    expected = torch.empty(past + length, heads, size, dtype=torch.float64)
    for at, head in itertools.product(range(past + length), range(heads)):
        group = head // (heads // groups)
        scores = keys[: at + 1, group] @ query[at, head] / size**0.5
        expected[at, head] = scores.softmax(0) @ values[: at + 1, group]
    mask = later_mask(past, length, heads // groups, torch.device("cpu"))
    torch.testing.assert_close(attend(query[past:], keys, values, mask), expected[past:].flatten(1))
    torch.testing.assert_close(attend(query, keys, values, None), expected.flatten(1))


def test_rotating_is_turning_pairs_by_their_angle():
    size = 6
    x = torch.randn(4, 2, size, dtype=torch.float64)
    angles = torch.rand(4, 1, size // 2, dtype=torch.float64)
    pairs = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * torch.exp(1j * angles)
    both = torch.cat([angles, angles], -1)
    turned = rotate(x, both.cos(), signed(both.sin()))
    torch.testing.assert_close(turned, torch.cat([pairs.real, pairs.imag], -1))


def test_rotary_tables_are_those_of_transformers(plain):
    ids = [151644, 872, 198, 5, 6, 151645, 198, 151644, 77091, 198]
    layout = insert_pictures(text_layout(ids), [(3, 5), (2, 2)])
    rotary = plain.model.language_model.rotary_emb
    expected = rotary(torch.empty(0), mrope_positions(layout)[:, None])
    section = plain.model.config.text_config.rope_parameters["mrope_section"]
    cos, sin = mrope_rotary(mrope_positions(layout), 32, 5e6, section, torch.float32)
    torch.testing.assert_close(cos[:, 0], expected[0][0])
    torch.testing.assert_close(sin[:, 0], signed(expected[1][0]))


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 2), (16, 16)])
def test_the_vision_tower_gives_what_transformers_gives(plain, grid):
    generator = torch.Generator().manual_seed(2)
    shape = (32 * grid[0], 32 * grid[1], 3)
    pictures = [Picture(torch.randint(256, shape, dtype=torch.uint8, generator=generator)) for _ in range(2)]
    visual = plain.model.visual
    side = round(visual.pos_embed.weight.shape[0] ** 0.5)
    tables = vision_tables(grid, side, visual.rotary_pos_emb.inv_freq, torch.device("cpu"))
    with torch.no_grad():
        ours = run_vision(visual, torch.stack([patchify(one)[0] for one in pictures]), tables)
        for number, one in enumerate(pictures):
            values, grid_thw = patchify(one)
            theirs = visual(values, grid_thw=grid_thw)
            theirs = theirs[-2:] if isinstance(theirs, tuple) else (theirs.pooler_output, theirs.deepstack_features)
            torch.testing.assert_close(ours[0][number], theirs[0], rtol=1e-4, atol=1e-5)
            for level, features in enumerate(theirs[1]):
                torch.testing.assert_close(ours[1][level][number], features, rtol=1e-4, atol=1e-5)


# Captured graphs ----------------------------------------------------------------------------------------------------


def replaying():
    """A recorder that runs the function again on its static inputs, as a graph does, and counts."""
    counts = {"recorded": 0, "replayed": 0}

    def record(function, static):
        outputs = [torch.empty_like(output) for output in function(*[part.clone() for part in static])]
        counts["recorded"] += 1

        def replay():
            counts["replayed"] += 1
            for buffer, output in zip(outputs, function(*[part.clone() for part in static]), strict=True):
                buffer.copy_(output)

        return replay, outputs

    return record, counts


@pytest.mark.parametrize("cache_bytes", [0, PLENTY])
def test_replayed_passes_give_the_states_of_the_plain_path(load, plain, pictures, cache_bytes):
    encoder = load(cache_bytes=cache_bytes, compile=True)
    record, counts = replaying()
    encoder.reader._graphs = GraphPool(record)
    asked = [(pictures, PROMPT, -2), (pictures[:1], PROMPT, -2), (pictures, OTHER, -2), ([], PROMPT, (1, 3))]
    results = [encoder.encode(*question) for question in asked + asked]
    for ours, question in zip(results, asked + asked, strict=True):
        assert close(ours, plain.encode(*question))
    assert 0 < counts["recorded"] <= 6 and counts["replayed"] >= counts["recorded"]


def test_prompts_of_like_length_share_a_graph(load, pictures):
    encoder = load(cache_bytes=0, compile=True)
    record, counts = replaying()
    encoder.reader._graphs = GraphPool(record)
    for prompt in (PROMPT, OTHER, "a cat"):
        encoder.encode(pictures, prompt, -2)
    assert counts["recorded"] == 3  # two pictures and one length in multiples of 64


def test_graphs_are_dropped_with_the_weights_and_with_what_is_kept(load, pictures):
    encoder = load(cache_bytes=0, compile=True)
    encoder.reader._graphs = GraphPool(replaying()[0])
    encoder.encode(pictures, PROMPT, -2)
    assert len(encoder.reader._graphs) == 3
    with torch.no_grad():
        encoder.model.language_model.norm.weight.mul_(2)
    encoder.encode([], PROMPT, -2)
    assert len(encoder.reader._graphs) == 1
    encoder.forget()
    assert len(encoder.reader._graphs) == 0


def test_only_so_many_graphs_are_held():
    pool = GraphPool(replaying()[0], most=2)
    for size in (1, 2, 3):
        pool.run(size, lambda x: [x + 1], [torch.zeros(size)])
    assert len(pool) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_the_model_runs_as_usual_and_the_log_says_so(load, plain, pictures, caplog):
    encoder = load(compile=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert close(encoder.encode(pictures, PROMPT, -2), plain.encode(pictures, PROMPT, -2))
            encoder.forget()
    assert caplog.text.count("compile: running without captured graphs: CUDA graphs need an NVIDIA GPU.") == 1


def test_a_capture_that_fails_falls_back_for_good(caplog):
    def refuse(function, static):
        raise RuntimeError("operation not permitted when stream is capturing")

    pool = GraphPool(refuse)
    with caplog.at_level(logging.WARNING):
        assert pool.run("a", lambda x: [x + 1], [torch.ones(2)])[0].tolist() == [2, 2]
        assert pool.run("a", lambda x: [x + 1], [torch.ones(2)])[0].tolist() == [2, 2]
    assert not pool.works and caplog.text.count("operation not permitted") == 1


# Compiled kernels ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++")
def test_compiled_kernels_are_the_plain_ones_at_every_size():
    compiled = compiled_kernels(torch.device("cpu"))
    assert compiled is not MERGED
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    for length in (5, 9):
        both, weights = (draw(length, 4, 8), draw(length, 2, 8)), (draw(8), draw(8))
        turns = draw(length, 1, 8), draw(length, 1, 8)
        results = compiled.norm_and_rotate(*both, weights, 1e-6, *turns)
        for ours, x, weight in zip(results, both, weights, strict=True):
            size = (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
            torch.testing.assert_close(ours, rotate((x.double() / size * weight).float(), *turns))
    for batch, length in ((1, 6), (2, 10)):
        mixed, turns = draw(batch, length, 3, 4, 8), (draw(length, 1, 1, 8), draw(length, 1, 1, 8))
        for ours, number in zip(compiled.rotate_patches(mixed, *turns), (0, 1), strict=True):
            torch.testing.assert_close(ours, rotate(mixed[:, :, number], *(t[:, 0] for t in turns)).transpose(1, 2))
    for shape in ((3, 8), (7, 8)):
        x, up = draw(*shape), draw(*shape)
        expected = (x.double() / (1 + (-x.double()).exp()) * up).float()
        torch.testing.assert_close(compiled.gate(x, up), expected)
        torch.testing.assert_close(x, expected)  # in place, so no third tensor of this size


def test_where_nothing_compiles_the_kernels_are_the_merged_ones_and_the_log_says_so(monkeypatch, caplog):
    def refuse(function, options):
        raise RuntimeError("Cannot find a working triton installation\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    with caplog.at_level(logging.WARNING):
        assert compiled_kernels(torch.device("cpu")) is MERGED
    assert "compile: running without compiled kernels: Cannot find a working triton installation." in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
def test_cuda_graphs_give_the_states_of_the_plain_path(folder, pictures):
    options = {"device": "cuda", "dtype": torch.float32}
    plain = Qwen3VLEncoder.from_pretrained(folder, fast=False, **options)
    for cache_bytes in (0, PLENTY):
        encoder = Qwen3VLEncoder.from_pretrained(folder, compile=True, cache_bytes=cache_bytes, **options)
        for prompt in (PROMPT, OTHER, PROMPT):
            assert close(encoder.encode(pictures, prompt, -2), plain.encode(pictures, prompt, -2), 1e-4)
        assert encoder.reader._graphs.works
