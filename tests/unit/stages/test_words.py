"""Chosen words among a prompt's tokens, held against the character offsets that the tokenizer itself reports."""

from __future__ import annotations

import re

import pytest
import torch

from vl_core.stages.alpha import alpha_on_words, parse_words, positions_of_words, split_kept
from vl_core.stages.blend import blend
from vl_core.states.layout import USER_TURN, SpecialTokens, TokenRole, insert_pictures, text_layout

PROMPT = "a cat in a red hat, beside a catwalk: the red-haired one of 2 (old) sailors"


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    pytest.importorskip("tokenizers", reason="a byte-level BPE like Qwen's is trained for the test")
    return tiny_models.build_tokenizer()


@pytest.fixture(scope="module")
def tokenize(tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def special(tokenizer):
    names = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    return SpecialTokens(*map(tokenizer.token_to_id, names))


@pytest.fixture(scope="module")
def layout_of(tokenize, special):
    def layout(prompt: str, known: bool = True):
        return text_layout(tokenize(USER_TURN.format(prompt)), special=special, prompt=prompt if known else "")

    return layout


def covered(tokenizer, prompt: str, start: int, stop: int) -> list[int]:
    """Positions in the text sequence of the tokens that hold characters start to stop, by the tokenizer's offsets."""
    offsets = tokenizer.encode(USER_TURN.format(prompt), add_special_tokens=False).offsets
    shift = USER_TURN.index("{")
    return [n for n, (first, last) in enumerate(offsets) if first < stop + shift and last > start + shift]


@pytest.mark.parametrize(
    "phrase", ["a cat", "cat", "in", "red hat", "hat", "hat, beside a", "catwalk", "red-haired", "2", "old", "sailors",
               "(old) sailors", "one of 2", " cat "],
)  # fmt: skip
def test_a_phrase_is_found_where_the_tokenizers_offsets_have_it(phrase, tokenizer, tokenize, layout_of):
    start = PROMPT.index(phrase.strip())
    found = positions_of_words(layout_of(PROMPT), [phrase], tokenize)
    assert found.dtype == torch.bool and len(found) == len(layout_of(PROMPT))
    assert found.nonzero().flatten().tolist() == covered(tokenizer, PROMPT, start, start + len(phrase.strip()))


def test_several_phrases_are_all_marked(tokenizer, tokenize, layout_of):
    layout = layout_of(PROMPT)
    together = positions_of_words(layout, ["cat", "hat", "red hat"], tokenize)
    apart = [positions_of_words(layout, [word], tokenize) for word in ("cat", "red hat")]
    assert torch.equal(together, apart[0] | apart[1])


def test_python_keeps_no_expression_of_the_phrases_that_were_looked_for(tokenize, layout_of):
    phrases = [f"hat {number}" for number in range(30)]
    layout = layout_of(" and ".join(phrases))

    def look_for(some: list[str]) -> int:
        positions_of_words(layout, some, tokenize)
        return len(re._cache) if hasattr(re, "_cache") else 0

    look_for(phrases[:2])
    re.purge()
    assert look_for(phrases) == 0


def test_beside_pictures_the_words_are_found_behind_them(tokenize, layout_of, special):
    text = layout_of(PROMPT)
    found = positions_of_words(insert_pictures(text, [(2, 3)], special), ["red hat"], tokenize)
    assert found.nonzero().flatten().tolist() == [
        place + 8 for place in positions_of_words(text, ["red hat"], tokenize).nonzero().flatten().tolist()
    ]


@pytest.mark.parametrize("prompt", ["猫在一只戴红帽子的狗旁边", "the 帽子 of a cat", "\n\na cat\n\nin a hat"])
def test_other_scripts_and_line_breaks_are_found_too(prompt, tokenizer, tokenize, layout_of):
    phrase = "帽子" if "帽" in prompt else "hat"
    start = prompt.index(phrase)
    found = positions_of_words(layout_of(prompt), [phrase], tokenize)
    assert found.nonzero().flatten().tolist() == covered(tokenizer, prompt, start, start + len(phrase))


def test_a_word_that_is_there_twice_is_refused_with_its_places(tokenize, layout_of):
    with pytest.raises(ValueError, match=r"words: 'red' is in the prompt 2 times, at its tok.*\[red\] hat.*\[red\]-h"):
        positions_of_words(layout_of(PROMPT), ["red"], tokenize)
    with pytest.raises(ValueError, match=r"'sea' is in the prompt 2 times.*the prompt is not known.*longer phrase"):
        positions_of_words(layout_of("the sea, a sea", known=False), ["sea"], tokenize)
    with pytest.raises(ValueError, match="'the the' is in the prompt 2 times"):
        positions_of_words(layout_of("a the the the"), ["the the"], tokenize)


def test_a_word_at_the_start_and_later_is_there_twice(tokenize, layout_of):
    with pytest.raises(ValueError, match=r"2 times, at its tokens 1, 4"):
        positions_of_words(layout_of("cat of the cat"), ["cat"], tokenize)


def test_a_word_that_is_not_there_is_refused_with_the_prompts_words(tokenize, layout_of):
    with pytest.raises(ValueError, match="words: 'dog' is not in the prompt; its words are: a, cat, in, a, hat"):
        positions_of_words(layout_of("a cat in a hat"), ["cat", "dog"], tokenize)
    with pytest.raises(ValueError, match=r"'Cat' is not in the prompt; .*upper and lower case"):
        positions_of_words(layout_of("a cat in a hat"), ["Cat"], tokenize)
    with pytest.raises(ValueError, match=r"'dog' is not in the prompt\. Write"):
        positions_of_words(layout_of("a cat", known=False), ["dog"], tokenize)


def test_a_part_of_a_longer_word_does_not_count(tokenize, layout_of):
    with pytest.raises(ValueError, match="'cat' is not in the prompt as a whole word; its words are: a, catwalk"):
        positions_of_words(layout_of("a catwalk"), ["cat"], tokenize)


def test_the_template_is_not_the_prompt(tokenize, layout_of):
    with pytest.raises(ValueError, match="'user' is not in the prompt"):
        positions_of_words(layout_of("a cat"), ["user"], tokenize)


def test_a_phrase_whose_tokens_hold_more_is_refused(layout_of):
    whole = layout_of("a cat")

    def merging(text):  # a tokenizer that knows no "cat", only what the prompt's tokens are together
        return whole.token_ids[whole.roles == TokenRole.TEXT].tolist() if text == "a cat" else [9999] * len(text)

    with pytest.raises(ValueError, match="'cat' is in the prompt, but its tokens also hold"):
        positions_of_words(whole, ["cat"], merging)


@pytest.mark.parametrize("words", [[], [""], ["cat", "  "]])
def test_no_word_is_refused(words, tokenize, layout_of):
    with pytest.raises(ValueError, match="words: expected"):
        positions_of_words(layout_of("a cat"), words, tokenize)


def test_a_string_in_place_of_a_list_is_refused(tokenize, layout_of):
    with pytest.raises(TypeError, match="words: expected a list"):
        positions_of_words(layout_of("a cat"), "cat", tokenize)


# --- alpha ------------------------------------------------------------------------------------------------------------


def test_alpha_on_words_mixes_them_and_leaves_every_other_token_bit_for_bit(tokenize, layout_of):
    layout = layout_of(PROMPT)
    chosen = positions_of_words(layout, ["red hat"], tokenize)
    alpha = alpha_on_words(layout, chosen, 0.4)
    assert alpha.dtype == torch.float32 and alpha.tolist() == torch.where(chosen, 0.4, 0.0).tolist()
    generator = torch.Generator().manual_seed(0)
    text, vl = (torch.randn(len(layout), 8, generator=generator) for _ in range(2))
    mixed = blend(text, vl, alpha, "aligned", "raw", text_layout=layout, vl_layout=layout)[0]
    assert torch.equal(mixed[~chosen], text[~chosen])
    assert torch.allclose(mixed[chosen], 0.6 * text[chosen] + 0.4 * vl[chosen])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.01}, r"alpha: expected 0 \(text\) to 1"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"positions": torch.ones(3, dtype=torch.bool)}, r"positions: expected booleans of shape .*\(3,\)"),
        ({"positions": torch.ones(10)}, "positions: expected booleans.*float32"),
    ],
)
def test_an_alpha_or_positions_that_do_not_fit_are_refused(change, message, layout_of):
    layout = layout_of("a cat")
    arguments = {"positions": torch.ones(len(layout), dtype=torch.bool), "alpha": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        alpha_on_words(layout, **arguments)


# --- words as people write them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, expected", [
    ("", []), (" ,, \n", []), ("red hat", ["red hat"]), ("red hat, sea", ["red hat", "sea"]),
    ("red hat\nsea", ["red hat", "sea"]), ('"red, wet street", sea', ["red, wet street", "sea"]),
    ('a "hat"', ["a hat"]), ("红帽子，海", ["红帽子", "海"]),
])
def test_words_are_separated_by_commas_and_new_lines_and_quotes_keep_a_comma(text, expected):
    assert parse_words(text) == expected


def test_an_open_quote_is_refused():
    with pytest.raises(ValueError, match="words: expected double quotes in pairs"):
        parse_words('"red, hat')


def test_a_curve_acts_on_the_chosen_words_alone(layout_of, tokenize):
    layout = layout_of(PROMPT)
    positions = positions_of_words(layout, ["hat"], tokenize)
    curve = torch.linspace(0, 1, len(layout))
    assert torch.equal(alpha_on_words(layout, positions, curve), torch.where(positions, curve, 0))
    with pytest.raises(ValueError, match="alpha: expected one number, or one per token"):
        alpha_on_words(layout, positions, curve[:-1])
    with pytest.raises(ValueError, match=r"alpha: expected 0 \(text\) to 1"):
        alpha_on_words(layout, positions, curve + 0.1)


def test_a_minus_before_each_word_keeps_them_and_before_some_is_refused():
    assert split_kept(parse_words("red hat, sea")) == (["red hat", "sea"], False)
    assert split_kept(parse_words('-red hat, - "red, wet street"')) == (["red hat", "red, wet street"], True)
    assert split_kept([]) == ([], False)
    with pytest.raises(ValueError, match="expected a minus before each word that stays as it is, or before none"):
        split_kept(parse_words("-red hat, sea"))
    with pytest.raises(ValueError, match="words: expected words after the minus"):
        split_kept(["-"])
