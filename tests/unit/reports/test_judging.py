"""Questions with one-token answers: their probabilities are transformers' own, of many questions at once and of one."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch

from miniature import world
from miniature.measure.chain import as_image
from miniature.measure.judge_check import (
    AGREEMENT_GOAL,
    ORDER_GOAL,
    asked_by,
    compare,
    describe_all,
    table,
    verdict,
)
from miniature.measure.ledger import Ledger
from miniature.measure.vl_judge import WorldForm, thing_of
from miniature.train.assemble import MODELS, VISION
from vl_core.encoder.judging import Answer, Question, answer, answer_each, read_answers, ready, tokens_of
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.pictures import patchify, prepare_picture
from vl_core.reports.judge import Query, Sentences, ask_all, describe_parts, figure, shares_of
from vl_core.reports.trust import ranks, right_before_wrong

transformers = pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")
scipy_stats = pytest.importorskip("scipy.stats", reason="ranks are held against scipy's")

FORM = WorldForm()


@pytest.fixture(scope="module")
def encoder() -> Qwen3VLEncoder:
    return Qwen3VLEncoder.from_pretrained(MODELS / VISION, "cpu", torch.float32)


@pytest.fixture(scope="module")
def scene():
    scenes = world.sample_scenes(1, torch.Generator().manual_seed(5), two_shapes=0.0)
    pictures, _ = world.render(scenes, torch.Generator().manual_seed(5))
    return scenes.records()[0], ((pictures[0].permute(1, 2, 0) + 1) / 2)


def questions() -> list[Question]:
    return [
        Question("what style is it?", world.STYLES), Question("what is the background color?", world.COLORS),
        Question("is there a red star?"),
    ]


def own_probabilities(picture: torch.Tensor, question: Question) -> torch.Tensor:
    """transformers' next-token probabilities after the picture and the question, written in its own words."""
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(MODELS / VISION, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / VISION)
    ready = prepare_picture(picture)[0]
    pixels, grid = patchify(ready)
    ids = tokenizer(
        f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * ready.tokens}<|vision_end|>{question.ask}<|im_end|>\n"
        "<|im_start|>assistant\n", add_special_tokens=False, return_tensors="pt",
    )["input_ids"]
    types = (ids == model.config.image_token_id).long()
    extra = {"mm_token_type_ids": types} if int(transformers.__version__.partition(".")[0]) >= 5 else {}
    with torch.no_grad():
        scores = model(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, **extra).logits[0, -1]
    return scores.double().softmax(-1)


def test_probabilities_are_those_of_transformers_for_every_question_in_one_pass(encoder, scene):
    _, picture = scene
    told = answer(encoder, picture, questions())
    for question, found in zip(questions(), told, strict=True):
        theirs = own_probabilities(picture, question)
        ids = [encoder.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in question.answers]
        each = theirs[ids]
        assert found.mass == pytest.approx(float(each.sum()), abs=1e-4)
        assert found.shares == pytest.approx((each / each.sum()).tolist(), abs=1e-4)


def test_a_question_among_others_is_answered_as_alone_and_by_the_modules_own_forward(encoder, scene):
    _, picture = scene
    together = answer(encoder, picture, questions())
    alone = [answer(encoder, picture, [one])[0] for one in questions()]
    slow = Qwen3VLEncoder(encoder.model, encoder.tokenizer, encoder.num_layers, fast=False)
    stock = answer(slow, picture, questions())
    for one, other, third in zip(together, alone, stock, strict=True):
        assert one.shares == pytest.approx(other.shares, abs=1e-5)
        assert one.shares == pytest.approx(third.shares, abs=1e-4)


def test_pictures_read_together_are_answered_as_alone_whatever_is_asked_of_each_and_how_large_they_are(encoder, scene):
    drawn = torch.Generator().manual_seed(3)
    pictures = [scene[1], torch.rand(128, 128, 3, generator=drawn), torch.rand(96, 64, 3, generator=drawn), scene[1]]
    asked = [questions(), questions()[:1], questions()[1:], [*questions()[::-1], Question("is there a blue ring?")]]
    told = answer_each(encoder, [ready(encoder, *both) for both in zip(pictures, asked, strict=True)])
    for picture, each, found in zip(pictures, asked, told, strict=True):
        alone = answer(encoder, picture, each)
        assert len(found) == len(each)
        for one, other in zip(found, alone, strict=True):
            assert one.shares == pytest.approx(other.shares, abs=1e-5)
            assert one.mass == pytest.approx(other.mass, abs=1e-5)


def test_what_was_read_before_changes_no_bit(encoder, scene):
    _, picture = scene
    encoder.forget()
    first = answer(encoder, picture, questions())
    encoder.encode([picture], "a blue ring", (-2, -1))
    assert answer(encoder, picture, questions()) == first


def test_the_miniature_knows_its_scene(encoder, scene):
    truth, picture = scene
    said = describe_parts(encoder, picture, FORM)
    assert (said["style"], said["background"]) == (world.STYLES[truth.style], world.COLORS[truth.background])
    shape, color, _ = truth.objects[0]
    own = FORM.thing(f"{world.COLORS[color]} {world.SHAPES[shape]}")
    other = FORM.thing(f"{world.COLORS[(color + 1) % 10]} {world.SHAPES[(shape + 1) % 8]}")
    answers = ask_all(encoder, picture, [*own, *other])
    assert figure(answers, own) > 0.9 > 0.1 > figure(answers, other)


def test_shares_sum_over_the_forms_of_a_word(encoder):
    scores = torch.full((1, 5), -50.0)
    scores[0, :3] = torch.tensor([0.2, 0.3, 0.5]).log()
    (found,) = read_answers(scores, [[[0, 1], [2]]])
    assert found.shares == pytest.approx((0.5, 0.5)) and found.mass == pytest.approx(1.0)


def test_answers_that_cannot_be_told_apart_are_refused(encoder):
    with pytest.raises(ValueError, match="two or more"):
        tokens_of(encoder.tokenizer, Question("which?", ("yes",)))
    with pytest.raises(ValueError, match="begin with the same"):
        tokens_of(encoder.tokenizer, Question("which?", ("red star", "red ring")))
    with pytest.raises(ValueError, match="at least one"):
        answer(encoder, torch.rand(64, 64, 3), [])


def test_things_are_found_in_words():
    assert thing_of("a large red star in the center") == (world.SHAPES.index("star"), world.COLORS.index("red"))
    with pytest.raises(ValueError, match="a colour and a shape"):
        thing_of("a cat")
    with pytest.raises(ValueError, match="style"):
        FORM.part("style", "impressionist")


def test_sentences_ask_for_what_the_reference_was_said_to_be():
    (query,) = Sentences().part("style", "oil painting")
    assert "oil painting" in query.question.ask and query.wanted == "yes"
    assert {*Sentences().parts} == {"style", "colours", "light and mood", "composition"}


def test_ranks_are_scipys():
    drawn = torch.rand(40, generator=torch.Generator().manual_seed(0)).numpy().round(1)
    other = torch.rand(40, generator=torch.Generator().manual_seed(1)).numpy()
    assert ranks(drawn, other) == pytest.approx(scipy_stats.spearmanr(drawn, other).statistic)
    assert ranks([1.0, 1.0], [0.0, 1.0]) is None


def test_right_before_wrong_counts_couples():
    assert right_before_wrong([0.9, 0.4], [0.1, 0.4]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)


def test_a_judge_that_is_not_good_enough_says_so():
    drawn = torch.Generator().manual_seed(0)
    rows = []
    for number in range(12):
        truth = (torch.rand(20, generator=drawn) < number / 11).float()
        each = {name: truth for name in ("thing", "background", "style", "mood", "leak")}
        read = {f"{mark} {name}": truth for name in each for mark in ("vl", "sure")}
        rows.append({"name": f"setting {number}", "each": each | read})
    fair = [with_means(row) for row in rows]
    assert verdict({**compare(fair), "planted": {"another prompt": 1.0}}) == []
    constant = [with_means({**row, "each": row["each"] | {
        f"vl {name}": torch.full((20,), 0.8) for name in ("thing", "background", "style", "mood", "leak")
    }}) for row in rows]
    lines = verdict({**compare(constant), "planted": {"another prompt": 0.5}})
    assert any("order" in line and str(ORDER_GOAL) in line for line in lines)
    assert any("read alike" in line and str(AGREEMENT_GOAL) in line for line in lines)
    assert any("another prompt" in line for line in lines)
    for told, word in ((fair, "yes"), (constant, "no")):
        compared = compare(told)
        assert f"| style | {word} |" in "\n".join(table({**compared, "planted": {}, "verdict": []}))
    alike = with_means({**rows[0], "each": dict.fromkeys(rows[0]["each"], torch.ones(20))})
    assert "| style | cannot tell |" in "\n".join(table({**compare([alike] * 3), "planted": {}, "verdict": []}))


def with_means(row: dict) -> dict:
    figures = ("thing", "background", "style", "mood", "leak")
    means = {
        judge: {name: float(row["each"][mark + name].mean()) for name in figures}
        for judge, mark in (("trained", ""), ("vl", "vl "))
    }
    for one in means.values():
        one["look"] = sum(one[name] for name in ("background", "style", "mood")) / 3
    return {**row, **means}


def test_a_query_is_known_by_its_words_and_its_answer():
    assert Query(Question("which?", ("a", "b")), "a").key != Query(Question("which?", ("a", "b")), "b").key
    # As older runs wrote it down: their answers to such a query are read on.
    assert Query(Question("is there a red star?"), "yes").key == "is there a red star? yes"


# What a VL says: by hand, so that products of shares are known.
COLOR, SHAPE, THERE = (
    Question("what color?", ("red", "blue")), Question("what shape?", ("star", "ring", "cross")), Question("there?"),
)
SAID = {COLOR: Answer((0.25, 0.75), 0.9), SHAPE: Answer((0.2, 0.3, 0.5), 0.4), THERE: Answer((0.6, 0.4), 0.7)}


def by_hand(queries: list[Query]) -> tuple[dict[str, tuple[float, float]], list[Question]]:
    """The shares, and what was asked for them."""
    asked: list[Question] = []

    def ask(questions: list[Question]) -> list[Answer]:
        asked.extend(questions)
        return [SAID[question] for question in questions]

    return shares_of(queries, ask), asked


def test_what_has_to_hold_together_has_the_product_of_the_shares_and_the_smallest_mass():
    color, shape = Query(COLOR, "blue"), Query(SHAPE, "cross")
    both, there = replace(color, also=(shape,)), Query(THERE, "yes")
    told, asked = by_hand([there, both, color])
    assert asked == [THERE, COLOR, SHAPE]  # each once
    assert told[both.key] == pytest.approx((0.75 * 0.5, 0.4))
    assert told[color.key] == pytest.approx((0.75, 0.9))  # by itself as ever
    assert figure(told, [there, both]) == pytest.approx((0.6 + 0.375) / 2)


def test_what_has_to_hold_may_ask_for_more_itself():
    inner = Query(SHAPE, "star", also=(Query(THERE, "no"),))
    told, asked = by_hand([Query(COLOR, "red", also=(inner,))])
    (found,) = told.values()
    assert asked == [COLOR, SHAPE, THERE] and found == pytest.approx((0.25 * 0.2 * 0.4, 0.4))


def test_answers_that_have_to_hold_together_are_never_taken_for_those_of_one_question():
    color, shape = Query(COLOR, "red"), Query(SHAPE, "star")
    many = [
        color, shape, replace(color, also=(shape,)), replace(color, also=(Query(SHAPE, "ring"),)),
        replace(color, also=(Query(THERE, "yes"),)), replace(shape, also=(color,)),
        replace(color, also=(shape, Query(THERE, "yes"))),
    ]
    assert len({query.key for query in many}) == len(many)
    told, _ = by_hand([color, shape])  # a record of an older run, which had each by itself
    with pytest.raises(KeyError):
        figure(told, [replace(color, also=(shape,))])


def test_a_thing_is_there_if_the_vl_says_so_and_its_shape_and_colour_go_together(encoder, scene):
    truth, picture = scene
    shape, color, _ = truth.objects[0]
    for name in (world.SHAPES[shape], world.SHAPES[(shape + 1) % 8]):
        thing = f"{world.COLORS[color]} {name}"
        probabilities = {
            wanted: own_share(picture, Question(ask, answers), wanted) for ask, answers, wanted in (
                (f"is there {world.with_article(thing)}?", ("yes", "no"), "yes"),
                (f"what color is the {name}?", world.COLORS, world.COLORS[color]),
                (f"what shape is {world.COLORS[color]}?", world.SHAPES, name),
            )
        }
        there, same_color, same_shape = probabilities.values()
        queries = FORM.thing(thing)
        found = figure(ask_all(encoder, picture, queries), queries)
        assert found == pytest.approx((there + same_color * same_shape) / 2, abs=1e-4)


def own_share(picture: torch.Tensor, question: Question, wanted: str) -> float:
    """Of an answer among those that may be given, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / VISION)
    theirs = own_probabilities(picture, question)
    each = theirs[[tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in question.answers]]
    return float(each[question.answers.index(wanted)] / each.sum())


def test_a_report_says_by_which_questions_and_answers_to_others_are_asked_anew(tmp_path):
    """An older run had all three questions about a thing by themselves: its rows are not this one's."""
    assert "what color is the star? red\nwhat shape is red? star" in asked_by()
    rows = tmp_path / "judge_check_rows.jsonl"
    older = Ledger(rows, {"pairs": 4}, False, {"date": "before"})
    older.measured("row", lambda: {"vl thing": torch.ones(2)})
    now = Ledger(rows, {"pairs": 4, "judge": asked_by()}, True, {"date": "now"})
    assert now.measured("row", lambda: {"vl thing": torch.zeros(2)})["vl thing"].tolist() == [0, 0]


def test_pictures_described_many_at_a_time_are_told_as_each_by_itself(encoder):
    scenes = world.sample_scenes(3, torch.Generator().manual_seed(8), two_shapes=0.0)
    painted, _ = world.render(scenes, torch.Generator().manual_seed(8))
    pictures = as_image(painted)
    assert describe_all(encoder, pictures) == [describe_parts(encoder, picture, FORM) for picture in pictures]


def test_questions_about_another_picture_of_the_same_size_are_not_laid_out_again(encoder, monkeypatch):
    questions = [Question("is there a cat?"), Question("what color is the background?", world.COLORS)]
    first, second = (torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    expected = ready(encoder, first, questions)
    monkeypatch.setattr(type(encoder), "tokenize", lambda *_: pytest.fail("tokenised again"))
    found = ready(encoder, second, questions)
    assert found.picture.digest != expected.picture.digest
    for layout, other in zip(found.layouts, expected.layouts, strict=True):
        assert torch.equal(layout.token_ids, other.token_ids) and torch.equal(layout.roles, other.roles)
        assert layout.grids == other.grids == ((2, 3),)


def test_what_was_known_of_a_tokenizer_goes_with_it_and_nobody_can_change_it(encoder):
    tokenizer = copy.deepcopy(encoder.tokenizer)
    other = Qwen3VLEncoder(encoder.model, tokenizer, encoder.num_layers)
    found = ready(other, torch.rand(1, 64, 96, 3), [Question("is there a cat?")])
    assert found.tokens == (tuple(map(tuple, tokens_of(tokenizer, Question("", ("yes", "no"))))),)
    alive = weakref.ref(tokenizer)
    del other, tokenizer, found
    gc.collect()
    assert alive() is None
