"""Words from a picture, against transformers' own generate on the same weights."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")

from miniature import world
from vl_core import Qwen3VLEncoder, describe
from vl_core.encoder.answers import append_words, finish, last_complete, strip_thoughts
from vl_core.encoder.writing import INSTRUCTIONS
from vl_core.pictures import patchify, prepare_picture
from vl_core.steering.takes import TAKES

ROOT = Path(__file__).resolve().parents[3]
MINIATURE = ROOT / "miniature" / "models" / "qwen3-vl-mini"
REQUEST = "describe the light of the sea"


def lively(path: Path) -> Path:
    """Shrinks a folder's embeddings: scored by themselves at full size, each token would be followed by itself."""
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if "embed_tokens" in name:
                tensors[name] *= 0.05
        save_file(tensors, file)
    return path


def set_tied(path: Path, tied: bool) -> None:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = tied
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tiny_models, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("describe") / "tied"
    tiny_models.write_folder(path)
    return lively(path)


@pytest.fixture(scope="module")
def encoder(folder) -> Qwen3VLEncoder:
    return Qwen3VLEncoder.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def untied(tiny_models, tmp_path_factory) -> Path:
    """A folder in shards whose head is not its embeddings."""
    path = tmp_path_factory.mktemp("describe") / "untied"
    model = tiny_models.write_folder(path, shards=2)
    set_tied(path, False)
    lively(path)
    index = json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8")) | {"metadata": {}}
    file = index["weight_map"]["lm_head.weight"] = max(index["weight_map"].values())
    head = torch.randn(model.get_input_embeddings().weight.shape, generator=torch.Generator().manual_seed(9))
    save_file({**load_file(path / file), "lm_head.weight": head}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return path


def noise(seed: int = 1, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def stock(folder: Path, pictures: list[torch.Tensor], request: str, longest: int = 12) -> list[int]:
    """What transformers writes, loaded by transformers: greedy, without a cache, one full forward a token."""
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ready = [prepare_picture(picture)[0] for picture in pictures]
    shown = "".join(f"<|vision_start|>{'<|image_pad|>' * one.tokens}<|vision_end|>" for one in ready)
    text = f"<|im_start|>user\n{shown}{request}<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    start = ids.shape[1]
    pixels, grids = (torch.cat(parts) for parts in zip(*map(patchify, ready), strict=True))
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    typed = "mm_token_type_ids" in inspect.signature(model.forward).parameters  # transformers 5
    with torch.no_grad():
        for _ in range(longest):
            types = (ids == model.config.image_token_id).int()
            extra = {"mm_token_type_ids": types} if typed else {}
            output = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, image_grid_thw=grids,
                use_cache=False, **extra,
            )
            ids = torch.cat([ids, output.logits[:, -1].argmax(-1, keepdim=True)], 1)
            if ids[0, -1] in ends:
                break
    return tokenizer.decode([token for token in ids[0, start:].tolist() if token not in ends])


# --- the words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [((64, 96),), ((96, 64), (33, 127))], ids=["one picture", "two pictures"])
def test_greedy_words_are_those_of_transformers_without_a_cache(sizes, folder, encoder):
    pictures = [noise(seed, *size) for seed, size in enumerate(sizes)]
    found = describe(encoder, pictures, REQUEST, max_tokens=12)
    assert found.raw == stock(folder, pictures, REQUEST)
    assert found.tokens <= 12 and found.raw


def test_an_untied_head_is_read_from_the_folder_and_used(untied):
    encoder = Qwen3VLEncoder.from_pretrained(untied, dtype=torch.float32)
    found = describe(encoder, [noise()], REQUEST, max_tokens=12)
    assert found.raw == stock(untied, [noise()], REQUEST)
    encoder.model.config.tie_word_embeddings = True
    assert describe(encoder, [noise()], REQUEST, max_tokens=12).raw != found.raw


def test_another_picture_gives_other_words_and_the_same_one_the_same(encoder):
    first, again, other = (describe(encoder, [noise(seed)], REQUEST, max_tokens=12).raw for seed in (1, 1, 2))
    assert first == again != other


def test_the_encoder_reads_the_same_states_after_it_has_written(folder):
    encoder = Qwen3VLEncoder.from_pretrained(folder, dtype=torch.float32, cache_bytes=0)
    before = encoder.encode([noise()], "a cat", [-6, -2, -1])
    weights = sum(one.numel() for one in encoder.model.parameters())
    describe(encoder, [noise(2)], REQUEST, max_tokens=4)
    assert torch.equal(encoder.encode([noise()], "a cat", [-6, -2, -1]).states, before.states)
    assert sum(one.numel() for one in encoder.model.parameters()) == weights


def test_nothing_is_copied_to_write(encoder):
    from vl_core.encoder.generate import speaker_of

    own = {one.data_ptr() for one in encoder.model.parameters()}
    assert {one.data_ptr() for one in speaker_of(encoder).parameters()} == own


# --- sampling -------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_words_again_and_another_seed_others(encoder):
    def words(seed):
        return describe(encoder, [noise()], REQUEST, max_tokens=12, temperature=1.0, top_k=0, seed=seed).raw

    assert words(3) == words(3)
    assert len({words(seed) for seed in range(6)}) > 3


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}], ids=str)
def test_drawing_from_the_likeliest_token_alone_is_greedy(narrow, encoder):
    greedy = describe(encoder, [noise()], REQUEST, max_tokens=12)
    drawn = describe(encoder, [noise()], REQUEST, max_tokens=12, **{"temperature": 1.0, "seed": 5, **narrow})
    assert drawn.raw == greedy.raw


def test_torchs_own_generator_is_left_as_it_was(encoder):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    describe(encoder, [noise()], REQUEST, max_tokens=3, temperature=1.0, seed=2**64 - 1)
    assert torch.equal(torch.get_rng_state(), before)


# --- progress and interruption --------------------------------------------------------------------------------------


def test_the_text_arrives_token_by_token_and_adds_up_to_the_answer(encoder):
    parts: list[str] = []
    found = describe(encoder, [noise()], REQUEST, max_tokens=12, on_text=parts.append)
    assert len(parts) == found.tokens
    assert found.raw.startswith("".join(parts))


def test_it_stops_when_it_is_asked_to(encoder):
    calls = iter([False, False, True])
    found = describe(encoder, [noise()], REQUEST, max_tokens=12, should_stop=lambda: next(calls))
    assert found.tokens == 3 and found.truncated
    assert "stopped" in found.notes[-1]


def test_what_the_listener_raises_ends_the_writing(encoder):
    class Stop(Exception):
        pass

    def listen(_text):
        raise Stop

    with pytest.raises(Stop):
        describe(encoder, [noise()], REQUEST, max_tokens=12, on_text=listen)
    assert describe(encoder, [noise()], REQUEST, max_tokens=2).tokens == 2


# --- finishing an answer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw, words",
    [
        ("  warm light \n", "warm light"),
        ("<think>a lamp?</think>\n\nwarm light", "warm light"),
        ("<think>\n\n</think>\n\nwarm light", "warm light"),
        ("the user wants light.\n</think>\nwarm light", "warm light"),
        ("warm light<think>or cold", "warm light"),
        ("<think>never ends", ""),
        ("a < b, c > d", "a < b, c > d"),
    ],
)
def test_thoughts_are_stripped(raw, words):
    assert strip_thoughts(raw) == words


@pytest.mark.parametrize(
    "text, kept",
    [
        ("A red hat. A blue sea. And then a", "A red hat. A blue sea."),
        ('He says "look!" and then', 'He says "look!"'),
        ("an f/1.8 lens at 3.5 metres, soft light, and a", "an f/1.8 lens at 3.5 metres, soft light"),
        ("style: oil\npalette: warm\nlig", "style: oil\npalette: warm"),
        ("one two thr", "one two"),
        ("alone", "alone"),
        ("红色的帽子。蓝色的海", "红色的帽子。"),
        ("红色的帽子，蓝色的", "红色的帽子"),
        ("", ""),
    ],
)
def test_a_truncated_answer_ends_at_its_last_complete_part(text, kept):
    assert last_complete(text) == kept


def test_only_a_truncated_answer_is_cut_and_says_so():
    assert finish("A hat. A sea and", 5, truncated=False) == ("A hat. A sea and", [])
    words, (note,) = finish("A hat. A sea and", 5, truncated=True)
    assert words == "A hat." and "5 tokens" in note


def test_an_answer_without_words_is_refused_unless_it_was_stopped():
    with pytest.raises(ValueError, match=r"only thoughts.*max_tokens"):
        finish("<think>hm", 9, truncated=True)
    with pytest.raises(ValueError, match="wrote nothing"):
        finish("  ", 1, truncated=False)
    assert finish("", 0, truncated=True, stopped=True)[0] == ""


@pytest.mark.parametrize(
    "prompt, words, joined",
    [
        ("a cat.", " warm light.\n", "a cat, warm light"),
        ("", "warm light", "warm light"),
        ("a cat", "", "a cat"),
        ("a cat", "style: oil\nlight: warm", "a cat, style: oil light: warm"),
    ],
)
def test_words_are_appended_to_a_prompt(prompt, words, joined):
    assert append_words(prompt, words) == joined


def test_a_thinking_model_is_told_that_its_thought_is_over(tiny_models, tmp_path):
    tiny_models.write_folder(tmp_path / "thinking", template=tiny_models.THINKING_TEMPLATE)
    lively(tmp_path / "thinking")
    encoder = Qwen3VLEncoder.from_pretrained(tmp_path / "thinking", dtype=torch.float32)
    read = []
    embed = encoder.model.language_model.embed_tokens
    hook = embed.register_forward_pre_hook(lambda _module, args: read.append(args[0].clone()))
    describe(encoder, [noise()], REQUEST, max_tokens=2)
    hook.remove()
    assert encoder.tokenizer.decode(read[0][0].tolist()).endswith("assistant\n<think>\n\n</think>\n\n")


def test_every_take_asks_for_one_of_the_instructions():
    assert {take.instruction for take in TAKES} <= set(INSTRUCTIONS.values())
    assert all(text.strip() for text in INSTRUCTIONS.values())


# --- refusals -------------------------------------------------------------------------------------------------------


def test_an_encoder_without_its_last_blocks_is_refused(folder):
    short = Qwen3VLEncoder.from_pretrained(folder, dtype=torch.float32, deepest_layer=-2)
    with pytest.raises(ValueError, match=r"all 6 blocks.*5 are.*`deepest layer` -1"):
        describe(short, [noise()], REQUEST)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"instruction": "  "}, "instruction: expected words"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
        ({"max_tokens": 5000}, "max_tokens: expected at most 40.. after"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"images": []}, "at least one picture"),
    ],
)
def test_what_nothing_can_be_written_from_is_refused(change, message, encoder):
    given = {"images": [noise()], "instruction": REQUEST, **change}
    with pytest.raises(ValueError, match=message):
        describe(encoder, given.pop("images"), given.pop("instruction"), **given)


def test_an_instruction_that_is_no_string_is_refused(encoder):
    with pytest.raises(TypeError, match="instruction: expected a string, got int"):
        describe(encoder, [noise()], 3)


def test_a_folder_that_promises_a_head_and_has_none_is_refused(tiny_models, tmp_path):
    tiny_models.write_folder(tmp_path / "headless")
    set_tied(tmp_path / "headless", False)
    encoder = Qwen3VLEncoder.from_pretrained(tmp_path / "headless", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        describe(encoder, [noise()], REQUEST)
    encoder.folder = None
    with pytest.raises(ValueError, match="from_pretrained"):
        encoder.head()


# --- a model that can see -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seer() -> Qwen3VLEncoder:
    pytest.importorskip("transformers", minversion="5", reason="the miniature's tokenizer was saved by transformers 5")
    if not MINIATURE.is_dir():
        pytest.skip(f"no trained miniature at {MINIATURE}")
    return Qwen3VLEncoder.from_pretrained(MINIATURE, dtype=torch.float32)


def test_the_miniature_tells_the_look_of_its_worlds_pictures(seer):
    scenes = world.sample_scenes(8, torch.Generator().manual_seed(41))
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(42))
    shown = (pictures.permute(0, 2, 3, 1) + 1) / 2
    told = [describe(seer, [picture], world.DESCRIBE_LOOK[1], max_tokens=40) for picture in shown]
    truth = [world.look_answer(scene) for scene in scenes.records()]

    def right(said):
        pairs = zip(*([text.replace(",", "").split() for text in texts] for texts in (said, truth)), strict=True)
        hits = [word in words for words, true in pairs for word in true]
        return sum(hits) / len(hits)

    assert right([one.words for one in told]) >= 0.95
    assert right([one.words for one in told[1:] + told[:1]]) < 0.7  # the words of other pictures
    assert not any(one.truncated for one in told)


def test_the_miniatures_words_are_cut_after_a_whole_phrase(seer):
    scenes = world.sample_scenes(1, torch.Generator().manual_seed(41))
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(42))
    picture = (pictures[0].permute(1, 2, 0) + 1) / 2
    whole = describe(seer, [picture], world.DESCRIBE_LOOK[1], max_tokens=40)
    short = describe(seer, [picture], world.DESCRIBE_LOOK[1], max_tokens=whole.tokens - 2)
    assert whole.words.startswith(short.words) and short.words != whole.words
    assert short.truncated and short.words.count(",") < whole.words.count(",")
    assert whole.words[len(short.words)] == ","
