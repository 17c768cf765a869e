"""A prompt is tokenised and laid out once, and what an encode was vetted for is not vetted again."""

from __future__ import annotations

import pytest
import torch

from vl_core.encoder import qwen3vl
from vl_core.encoder.layouts import Layouts
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.states.layout import TokenLayout, insert_pictures, text_layout

pytest.importorskip("transformers", minversion="4.57", reason="the encoder runs on transformers")
PROMPT = "a cat in a red hat"


@pytest.fixture
def encoder(tiny_qwen3vl):
    return Qwen3VLEncoder.from_pretrained(tiny_qwen3vl[0], dtype=torch.float32)


@pytest.fixture
def asked(encoder, monkeypatch):
    """The texts that the tokenizer was given."""
    texts, real = [], encoder.tokenizer

    class Counting:
        def __call__(self, text, **options):
            texts.append(text)
            return real(text, **options)

        def __len__(self):
            return len(real)

    monkeypatch.setattr(encoder, "tokenizer", Counting())
    return texts


@pytest.fixture(scope="module")
def picture(photographs):
    return photographs[0][:64, :96]


def the_same(one: TokenLayout, other: TokenLayout) -> bool:
    parts = lambda layout: {**vars(layout), "roles": layout.roles.tolist(), "token_ids": layout.token_ids.tolist()}  # noqa: E731
    return parts(one) == parts(other)


def test_a_layout_is_what_its_parts_say_the_first_time_and_later(encoder, picture):
    special = encoder.special
    ids = encoder.tokenizer(f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    text = text_layout(ids, special=special, prompt=PROMPT, model=encoder.name)
    for _ in range(3):
        assert the_same(encoder.tokenize(PROMPT), text)
        states = encoder.encode([picture, picture.flip(1)], PROMPT, -2)
        assert the_same(states.layout, insert_pictures(text, [(2, 3), (2, 3)], special))
        assert the_same(encoder.encode([picture], PROMPT, -2).layout, insert_pictures(text, [(2, 3)], special))


def test_only_another_text_is_tokenised(encoder, asked, picture):
    for _ in range(2):
        encoder.encode([picture], PROMPT, -2)
        encoder.encode([picture], PROMPT, -3)
        encoder.encode([], PROMPT, -2)
    assert len(asked) == 1
    assert encoder.tokenize(PROMPT, "a system").counts() != encoder.tokenize(PROMPT).counts()
    assert len(asked) == 3  # the system turn is counted by itself
    encoder.forget()
    encoder.tokenize(PROMPT)
    assert len(asked) == 4


def test_what_an_evaluation_asks_about_many_references_is_laid_out_once(encoder, asked):
    """A hundred references, four parts of a look and what each shows; paintings of 1024 tokens."""
    for _ in range(2):
        for number in range(500):
            encoder.lay_out(f"is there thing {number}? Answer with yes or no.", [(32, 32)])
    assert len(asked) == 500


def test_a_tokenizer_that_learned_a_word_is_another(encoder):
    before = encoder.tokenize("a zebrafinch").token_ids
    encoder.tokenizer.add_tokens(["zebrafinch"])
    assert len(encoder.tokenize("a zebrafinch").token_ids) < len(before)
    vocabulary = encoder.tokenizer.get_vocab()
    words = sorted(one for one in vocabulary if one.isalpha() and one.islower())
    word, piece = next(
        (word, piece) for word in words for piece in words
        if piece in word[1:] and piece not in "system user assistant"  # words of the template stay whole
    )
    before, size = encoder.tokenize(word).token_ids, len(encoder.tokenizer)
    assert vocabulary[word] in before
    encoder.tokenizer.add_tokens([piece])  # which it has: no longer, but parted from what stands beside it
    after = encoder.tokenize(word).token_ids
    assert len(encoder.tokenizer) == size and vocabulary[piece] in after and vocabulary[word] not in after


def test_each_caller_has_tensors_of_its_own(encoder, picture):
    first = encoder.encode([picture], PROMPT, -2).layout
    kept = first.roles.tolist(), first.token_ids.tolist()
    first.roles.zero_(), first.token_ids.zero_()
    again = encoder.encode([picture], PROMPT, -2).layout
    assert (again.roles.tolist(), again.token_ids.tolist()) == kept


def test_what_was_laid_out_in_inference_mode_is_ordinary(encoder):
    with torch.inference_mode():
        encoder.tokenize(PROMPT)
    layout = encoder.tokenize(PROMPT)
    assert not layout.roles.is_inference() and not layout.token_ids.is_inference()


def test_bad_prompts_are_told_each_time(encoder):
    for _ in range(2):
        with pytest.raises(TypeError, match="prompt: expected a string, got list"):
            encoder.tokenize(["a"])
        with pytest.raises(ValueError, match="reserved for pictures"):
            encoder.tokenize("<|image_pad|>")


def test_what_is_kept_is_bounded():
    layouts = Layouts(limit=200)
    make = lambda: text_layout([151644, 872, 198, *range(9), 151645, 198, 151644, 77091, 198])  # noqa: E731
    for number in range(50):
        layouts(number, make)
    assert layouts._kept.bytes <= 200 and len(layouts._kept) == 1


# Vetting ------------------------------------------------------------------------------------------------------------


def test_states_are_looked_through_once(encoder, picture, monkeypatch):
    vetted, real = [], qwen3vl.all_finite
    monkeypatch.setattr(qwen3vl, "all_finite", lambda *states: vetted.append(len(states)) or real(*states))
    first = encoder.encode([picture], PROMPT, (-2, -3)).states
    assert vetted == [2]
    assert torch.equal(encoder.encode([picture], PROMPT, (-2, -3)).states, first) and vetted == [2]
    encoder.encode([picture], PROMPT, (-3, -4))
    assert vetted == [2, 2]  # what another layer needs is read again, and looked through
    encoder.encode([picture], PROMPT, -4)
    assert vetted == [2, 2]


@pytest.mark.parametrize("fast", [True, False])
def test_an_overflow_is_told_each_time(tiny_qwen3vl, picture, fast):
    encoder = Qwen3VLEncoder.from_pretrained(tiny_qwen3vl[0], dtype=torch.float32, fast=fast)
    with torch.no_grad():
        encoder.model.language_model.layers[0].mlp.down_proj.weight.fill_(float("inf"))
    for _ in range(2):
        with pytest.raises(ValueError, match="the states overflowed in torch"):
            encoder.encode([picture], PROMPT, -2)
