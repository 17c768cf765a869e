"""Learned looks: their file, putting them after a prompt, learning them on a small painter and on tiny Z-Image."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vl_core import Look, Words, apply_look, learn_look
from vl_core.looks.batch import Pack
from vl_core.looks.learn import _adam, _Learning, learn_looks
from vl_core.looks.lesson import Lesson, fit_picture, make_ready
from vl_core.looks.look import Origin
from vl_core.looks.options import QUALITIES, LearnOptions
from vl_core.looks.start import begin, tell
from vl_core.looks.state import LearnState
from vl_core.looks.units import with_look
from vl_core.stages.description import bring_in
from vl_core.states.families import ZIMAGE
from vl_core.states.layout import text_layout

WIDTH, CHANNELS = 12, 4
FAMILY = replace(ZIMAGE, hidden=WIDTH)
FAST = LearnOptions(steps=12, draws=2, size=64)
WORDS = Words(("a cat",), "in oil, red")


class SmallPainter:
    """Texts are letters; what it paints is one colour: the mean direction of its caption, times a fixed matrix."""

    name, family, multiple = "small", FAMILY, 16

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.letters = torch.randn(256, WIDTH, generator=generator) * 3
        self.matrix = torch.randn(WIDTH, CHANNELS, generator=generator) / WIDTH**0.5
        self.most, self.seen = 10**9, []

    def text(self, prompt):
        body = [ord(letter) % 200 for letter in prompt]
        ids = [251, 240, 241, *body, 250, 241, 251, 242, 241]
        special = replace(_special(), im_start=251, im_end=250)
        layout = text_layout(ids, special=special, layer=-2, prompt=prompt)
        states = self.letters[torch.tensor(ids)]
        return states + 0.1 * states.cumsum(0), layout  # causal, as a text encoder is

    def latents(self, picture):
        small = picture.float().mean((0, 1)) / 127.5 - 1
        colour = torch.cat([small, small[:1]])
        return colour[:, None, None].expand(-1, picture.shape[0] // 8, picture.shape[1] // 8).clone()

    def levels(self, latents):
        return torch.linspace(1, 0.001, 1000)

    def velocity(self, noisy, levels, captions):
        self.seen.append((tuple(noisy.shape), [len(caption) for caption in captions]))
        if noisy.numel() > self.most:
            raise torch.cuda.OutOfMemoryError("no room")
        means = torch.stack([(c / c.square().mean(-1, keepdim=True).sqrt()).mean(0) for c in captions])
        clean = (means @ self.matrix)[:, :, None, None]
        return (clean - noisy) / levels[:, None, None, None]

    @contextmanager
    def learning(self):
        yield


def _special():
    from vl_core import SpecialTokens

    return SpecialTokens()


@pytest.fixture
def painter():
    return SmallPainter()


@pytest.fixture
def picture():
    return torch.full((64, 64, 3), 0.8)


def begun(painter, words=WORDS):
    """The look as words have it."""
    start = begin(painter, words)
    origin = Origin(
        family="Z-Image", model="small", look=words.look, shows=words.shows, pictures=("0",), sizes=((64, 64),),
        options={},
    )
    return Look(start.tokens, start.sizes, start.tail, origin)


# --- putting a look after a prompt ------------------------------------------------------------------------------------


def test_strength_0_is_the_prompt_itself(painter):
    text, layout = painter.text("a dog")
    mixed, found, info = apply_look(text, layout, begun(painter), 0)
    assert mixed is text and found is layout and info.added == 0


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0, 1.4])
def test_a_look_that_nothing_was_learned_for_acts_as_its_words_do(painter, strength):
    (text, layout), (whole, whole_layout) = painter.text("a cat"), painter.text("a cat, in oil, red")
    mixed, found, _ = apply_look(text, layout, begun(painter), strength)
    expected, _ = bring_in(text, layout, whole, whole_layout, strength)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)
    assert len(found) == len(mixed)
    assert torch.equal(found.roles, whole_layout.roles)


def test_batches_halves_and_texts_without_a_layout(painter):
    (text, layout), look = painter.text("a dog"), begun(painter)
    plain, _, _ = apply_look(text, layout, look)
    both, _, _ = apply_look(torch.stack([text, 2 * text]), layout, look)
    assert torch.equal(both[0], plain) and both.shape[0] == 2
    half, _, _ = apply_look(text.half(), layout, look)
    assert half.dtype == torch.float16
    blind, none, info = apply_look(text, None, look)
    assert torch.equal(blind, plain) and none is None and "Where your words end is not known" in info.describe()


def test_several_looks_bring_their_tokens_and_the_mean_change(painter):
    text, layout = painter.text("a dog")
    first, second = begun(painter), begun(painter, Words(("a cat",), "blue"))
    mixed, _, info = apply_look(text, layout, [first, second], 1.0, [3, 1])
    assert info.shares == (0.75, 0.25)
    count = len(first.tokens) + len(second.tokens)
    assert info.added == count and len(mixed) == len(text) + count
    tail, sizes = text[-5:], text[-5:].square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(mixed[-5:], tail + (0.75 * first.tail + 0.25 * second.tail) * sizes)
    alone, _, _ = apply_look(text, layout, first)
    torch.testing.assert_close(mixed[: len(text) - 5 + len(first.tokens)], alone[: -5])
    without, _, _ = apply_look(text, layout, [first, second], 1.0, [1, 0])
    assert torch.equal(without, alone)


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"strength": -0.5}, "negative prompt"), ({"strength": 3.0}, "0 to 2"), ({"strength": float("nan")}, "0 to 2"),
        ({"weights": [1, 2]}, "weights: expected 1"), ({"weights": [0]}, "not all 0"),
        ({"weights": [float("nan")]}, "weights"),
    ],
)
def test_what_cannot_be_asked_of_a_look(painter, options, fault):
    with pytest.raises(ValueError, match=fault):
        apply_look(*painter.text("a dog"), begun(painter), **options)


def test_a_look_of_another_width_says_where_it_is_from(painter):
    _, layout = painter.text("a dog")
    with pytest.raises(ValueError, match="learned on small, continues text states of width 12, got a text of width 24"):
        apply_look(torch.randn(len(layout), 24), layout, begun(painter))


def test_another_model_than_the_looks_is_remarked(painter):
    _, _, info = apply_look(*painter.text("a dog"), begun(painter), model="large")
    assert "Learned on 'small', this model is 'large'" in info.describe()


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_look_comes_back_from_its_file(painter, picture, tmp_path):
    look = learn_look(painter, [picture], WORDS, FAST)
    found = Look.load(look.save(tmp_path / "look.safetensors"))
    assert found.origin == look.origin
    for name in ("tokens", "sizes", "tail"):
        torch.testing.assert_close(getattr(found, name), getattr(look, name), atol=1e-6, rtol=1e-6)
    assert len(found.origin.losses) == FAST.steps and found.origin.sizes == ((64, 64),)
    assert (tmp_path / "look.safetensors").stat().st_size < 100_000


def rewritten(path, change):
    """The file with its tensors and header changed by ``change(tensors, header)``."""
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["zimage-vl"])
    change(tensors, header)
    save_file(tensors, path, metadata={"zimage-vl": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda t, h: h.update(version=99), "Update zimage-vl"),
        (lambda t, h: h.update(kind="states"), "expected saved look"),
        (lambda t, h: h.pop("origin"), "expected a look's header"),
        (lambda t, h: h["origin"].pop("look"), "look: field required"),
        (lambda t, h: h["origin"].update(losses=["0.1"]), "losses.0"),
        (lambda t, h: h["origin"].update(losses=[float("nan")]), "losses.0"),
        (lambda t, h: h["origin"].update(unknown=1), "unknown"),
        (lambda t, h: h["origin"].update(family="SDXL"), "expected one of Z-Image"),
        (lambda t, h: t.update(tokens=t["tokens"] * float("nan")), "finite"),
        (lambda t, h: t.update(sizes=-t["sizes"]), "sizes above 0"),
        (lambda t, h: t.update(tail=t["tail"][:2].clone()), "tail"),
        (lambda t, h: t.update(tokens=t["tokens"][0].clone()), "2 axes"),
        (lambda t, h: t.update(tail=t["tail"].half()), "float32"),
        (lambda t, h: t.pop("sizes"), "'sizes'"),
    ],
)
def test_a_damaged_or_newer_file_is_refused_by_name(painter, tmp_path, change, fault):
    path = rewritten(begun(painter).save(tmp_path / "mine.safetensors"), change)
    with pytest.raises(ValueError, match=fault) as error:
        Look.load(path)
    assert "mine.safetensors" in str(error.value)


def test_a_file_that_is_cut_short_is_refused(painter, tmp_path):
    path = begun(painter).save(tmp_path / "mine.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"mine\.safetensors"):
        Look.load(path)
    with pytest.raises(FileNotFoundError):
        Look.load(tmp_path / "none.safetensors")


# --- learning ---------------------------------------------------------------------------------------------------------


def test_the_caption_while_learning_is_what_the_look_makes_of_the_told_text(painter):
    look, start = begun(painter), begin(painter, WORDS)
    caption = with_look(start.told[0].head, start.told[0].tail, look.tokens, look.sizes, look.tail)
    expected, _, _ = apply_look(*painter.text("a cat"), look)
    torch.testing.assert_close(caption, expected, atol=1e-5, rtol=1e-5)


def test_a_caption_in_float64():
    generator = np.random.default_rng(0)
    head, tail, tokens, change = (generator.normal(size=(n, 6)) for n in (3, 5, 2, 5))
    sizes = generator.uniform(1, 2, (2, 3))  # three layers of width 2 side by side

    def rms(values):
        return np.sqrt((values.reshape(-1, 3, 2) ** 2).mean(-1)).repeat(2, -1)

    expected = np.concatenate([head, tokens / rms(tokens) * sizes.repeat(2, -1), tail + change * rms(tail)])
    found = with_look(*(torch.from_numpy(part) for part in (head, tail, tokens, sizes, change)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_learning_moves_what_is_painted_towards_the_picture(painter, picture):
    goal = painter.latents((picture * 255).to(torch.uint8))[:, 0, 0]

    def painted(look):
        caption, _, _ = apply_look(*painter.text("a cat"), look)
        noise = torch.zeros(1, CHANNELS, 1, 1)
        return painter.velocity(noise, torch.ones(1), [caption])[0, :, 0, 0]

    look = learn_look(painter, [picture], WORDS, replace(FAST, steps=200, anchor=0.0))
    before, after = ((painted(one) - goal).norm() for one in (begun(painter), look))
    assert after < 0.2 * before
    assert look.origin.losses[-1] < 0.1 * look.origin.losses[0]


def test_noise_levels_are_even_over_the_schedule_from_the_lowest_on(painter, picture):
    options = replace(FAST, draws=4, lowest=0.5)
    pack = Pack.of([make_ready(painter, Lesson((picture,), WORDS), options)])
    levels = torch.cat([batch.levels for step in range(200) for batch in pack.batches(painter, options, step)])
    assert levels.min() >= 0.5 and float(levels.mean()) == pytest.approx(0.75, abs=0.005)
    for part in range(4):  # one from each part
        assert float(levels[part::4].mean()) == pytest.approx(1 - (part + 0.5) / 8, abs=0.01)


def test_a_look_may_have_more_or_fewer_tokens_than_its_words(painter, picture):
    words = begun(painter).tokens
    for count, first, last in ((2, 0, -1), (3 * len(words), 0, -1), (1, 0, 0)):
        start = begin(painter, WORDS).with_tokens(count)
        assert start.tokens.shape == (count, WIDTH) and start.sizes.shape == (count, 1)
        torch.testing.assert_close(start.tokens[[0, -1]], words[[first, last]])
    for asked, count in ((len(words) + 3, len(words) + 3), (1, len(words))):  # fewer than the words have it never is
        assert len(learn_look(painter, [picture], WORDS, replace(FAST, tokens=asked)).tokens) == count


def test_adam_is_torchs(painter):
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(5, 1, 7, WIDTH, generator=generator)
    options = LearnOptions(steps=5, rate=0.1, average=0.4)
    weight = torch.zeros(1, 7, WIDTH, requires_grad=True)
    adam = torch.optim.Adam([weight], betas=(0.9, 0.99))
    state, path = LearnState.fresh(torch.zeros(1, 7, WIDTH)), []
    for step, gradient in enumerate(gradients):
        adam.param_groups[0]["lr"] = 0.1 * (1 - step / 5) ** 0.5
        weight.grad = gradient
        adam.step()
        path.append(weight.detach().clone())
        state = _adam(state, options, gradient, (0.0,))
    torch.testing.assert_close(state.values, path[-1])
    torch.testing.assert_close(state.total, path[3] + path[4])


def test_looks_learned_side_by_side_are_those_learned_alone(painter, picture):
    lessons = [Lesson((picture,), WORDS), Lesson((picture * 0.3, picture * 0.2), Words(("a dog", "a tree"), "blue"))]
    both = learn_looks(painter, lessons, FAST)
    for together, lesson in zip(both, lessons, strict=True):
        alone = learn_look(painter, lesson.pictures, lesson.words, FAST)
        torch.testing.assert_close(together.tokens, alone.tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.tail, alone.tail, atol=1e-5, rtol=1e-5)
    in_turn = learn_looks(painter, lessons, FAST, at_once=1)
    torch.testing.assert_close(in_turn[1].tokens, both[1].tokens, atol=1e-5, rtol=1e-5)


# --- leaving other prompts alone --------------------------------------------------------------------------------------


class AttentivePainter(SmallPainter):
    """Half of its channels each ask the caption's tokens in their own way, so a look can drown what a prompt says."""

    def velocity(self, noisy, levels, captions):
        self.seen.append((tuple(noisy.shape), [len(caption) for caption in captions]))
        asked = torch.randn(WIDTH, 2, generator=torch.Generator().manual_seed(4))
        clean = []
        for caption in captions:
            tokens = caption / caption.square().mean(-1, keepdim=True).sqrt()
            answers = (tokens @ asked).softmax(0).T @ tokens
            clean.append((answers.repeat_interleave(CHANNELS // 2, 0) * self.matrix.T).sum(1))
        return (torch.stack(clean)[:, :, None, None] - noisy) / levels[:, None, None, None]


def difference(painter, look):
    """What two prompts differ by in a look: ``(C,)``."""
    captions = [apply_look(*painter.text(prompt), look)[0] for prompt in ("a dog", "a cat")]
    found = painter.velocity(torch.zeros(2, CHANNELS, 1, 1), torch.ones(2), captions)[:, :, 0, 0]
    return found[0] - found[1]


def test_prompts_go_on_differing_as_they_did_with_words(picture):
    painter, options = AttentivePainter(), replace(FAST, steps=150, anchor=0.0, draws=4)
    before, changed = difference(painter, begun(painter)), {}
    for keep in (0.0, 1.0):
        look = learn_look(painter, [picture], WORDS, replace(options, keep=keep), others=("a dog", "a hat"))
        assert look.origin.losses[-1] < 0.02 * look.origin.losses[0]
        changed[keep] = (difference(painter, look) - before).norm()
    assert changed[0.0] > 0.5 * before.norm()  # learning alone drowns what they differ by
    assert changed[1.0] < 0.7 * changed[0.0]


@pytest.mark.parametrize("count", [1, 4])
def test_the_gradient_of_keeping_is_that_of_its_formula(picture, count):
    """At every fourth step, four times the weight, for as many noisy pictures as there are pictures."""
    painter, options = AttentivePainter(), replace(FAST, steps=12, draws=4, keep=0.7)
    pictures = tuple(picture * (1 - 0.1 * number) for number in range(count))
    ready = make_ready(painter, Lesson(pictures, Words(WORDS.shows * count, WORDS.look)), options)
    anchor = torch.cat([ready.start.tail, ready.start.tokens])[None]
    values = (anchor + 0.1 * torch.randn(anchor.shape, generator=torch.Generator().manual_seed(2))).requires_grad_()
    other = tell(painter, "a tree")
    learning = _Learning(painter, Pack.of([ready], [other]), options, anchor, torch.ones(1), 0)

    def painted(told, rows, batch):
        caption = with_look(told.head, told.tail, rows[5:], ready.start.sizes, rows[:5])
        return painter.velocity(batch.noisy, batch.levels, [caption])

    for step, weight in ((8, 4 * 0.7), (5, 0.0), (6, 0.0), (7, 0.0)):
        (batch,) = learning.pack.batches(painter, options, step)
        values.grad = None
        losses = learning.backward(step, values, batch)

        again, kept = values.detach().clone().requires_grad_(), []
        asked = learning.told_otherwise(step, batch)[0].tolist()
        assert len(asked) == (count if weight else 0)
        for at in range(4):
            one = batch.at(torch.tensor([at]))
            told = ready.start.told[(4 * step + at) % count]  # the pictures in turn
            own = painted(told, again[0], one)
            loss = (own - one.target).square().mean() / 4
            torch.testing.assert_close(losses[at], loss.detach())
            if at in asked:
                goal = own.detach() + painted(other, anchor[0], one) - painted(told, anchor[0], one)
                kept.append((painted(other, again[0], one) - goal).square().mean())
                loss = loss + weight * kept[-1]
            loss.backward()
        torch.testing.assert_close(values.grad, again.grad, atol=1e-6, rtol=1e-4)
        assert all(float(one.detach()) > 1e-4 for one in kept)
        values.grad = None
        replace(learning, at_once=1).backward(step, values, batch)  # one after the other
        torch.testing.assert_close(values.grad, again.grad, atol=1e-6, rtol=1e-4)


def test_every_fourth_step_asks_as_many_noisy_pictures_for_another_prompt_as_a_look_has_pictures(painter, picture):
    lessons = [Lesson((picture,), WORDS), Lesson((picture * 0.5, picture[:32]), Words(("a", "a tree"), "blue"))]
    looks = learn_looks(painter, lessons, replace(FAST, steps=5, draws=4, keep=1.0), others=("a rather long prompt",))
    count = len(painter.text("a rather long prompt")[0])
    asked = [length for _, lengths in painter.seen for length in lengths]
    for look, lesson in zip(looks, lessons, strict=True):  # in the words that it began as, and as learned
        assert asked.count(count + len(look.tokens)) == 2 * 2 * len(lesson.pictures)
    painter.seen.clear()
    learn_looks(painter, lessons, replace(FAST, steps=5, draws=4, keep=0.0), others=("a rather long prompt",))
    assert sum(len(lengths) for _, lengths in painter.seen) == 5 * 8


def test_goals_of_four_steps_are_asked_for_in_one_pass(painter, picture):
    options = replace(FAST, steps=18, draws=4, keep=1.0)
    learn_look(painter, [picture], WORDS, options, others=("a rather long prompt",))
    # Steps 0, 4, 8 and 12 ask; then 16.
    assert [len(lengths) for _, lengths in painter.seen] == [5, 8, *[4] * 3, *[5, 4, 4, 4] * 3, 5, 2, 4]
    painter.seen.clear()
    two = Words(WORDS.shows * 2, WORDS.look)
    learn_look(painter, [picture, picture * 0.5], two, options, others=("a rather long prompt",))
    assert max(len(lengths) for _, lengths in painter.seen) == 8  # two pictures hold no more at once than one


def test_a_prompt_that_is_told_already_changes_nothing(painter, picture):
    kept, plain = (
        learn_look(painter, [picture], WORDS, replace(FAST, keep=keep), others=WORDS.shows) for keep in (5.0, 0.0)
    )
    torch.testing.assert_close(kept.tokens, plain.tokens, atol=1e-4, rtol=1e-4)


# --- stopped, short of memory, refused --------------------------------------------------------------------------------


def test_a_learning_that_was_stopped_goes_on_where_it_was(painter, picture, tmp_path):
    class Stopped(Exception):
        pass

    def stop(state):
        if state.step == 5:
            state.save(tmp_path / "part", "mine")
            raise Stopped

    whole = learn_look(painter, [picture], WORDS, FAST)
    with pytest.raises(Stopped):
        learn_look(painter, [picture], WORDS, FAST, on_step=stop)
    steps = []
    state = LearnState.load(tmp_path / "part", "mine")
    again = learn_look(painter, [picture], WORDS, FAST, state=state, on_step=lambda state: steps.append(state.step))
    assert steps == list(range(6, FAST.steps + 1))
    assert torch.equal(again.tokens, whole.tokens) and torch.equal(again.tail, whole.tail)
    assert again.origin == whole.origin
    with pytest.raises(ValueError, match="another's"):
        LearnState.load(tmp_path / "part", "yours")
    with pytest.raises(ValueError, match="other pictures, words or another model"):
        learn_look(painter, [picture], Words(("a cat",), "in a style of many words"), FAST, state=state)


def test_where_memory_runs_out_fewer_at_once_then_a_smaller_picture(painter):
    picture = torch.rand(600, 600, 3, generator=torch.Generator().manual_seed(0))
    options = replace(FAST, size=512)
    whole = learn_look(painter, [picture], WORDS, options)
    painter.most = CHANNELS * 64 * 64  # one picture of 512 × 512, not two
    halved = learn_look(painter, [picture], WORDS, options)
    torch.testing.assert_close(halved.tokens, whole.tokens, atol=1e-5, rtol=1e-5)
    assert halved.origin.notes == () and halved.origin.sizes == ((512, 512),)
    painter.most = CHANNELS * 50 * 50
    smaller = learn_look(painter, [picture], WORDS, options)
    assert smaller.origin.sizes == ((384, 384),)
    assert smaller.origin.notes == ("Memory ran out at 512 × 512 pixels; learned at 384 × 384.",)
    painter.most = 1
    with pytest.raises(torch.cuda.OutOfMemoryError):
        learn_look(painter, [picture], WORDS, options)


def test_latents_that_are_not_finite_are_refused_before_the_model_runs(painter, picture):
    latents = painter.latents
    painter.latents = lambda pixels: latents(pixels) * float("nan")
    with pytest.raises(ValueError, match="image 1: expected finite latents"):
        learn_look(painter, [picture], WORDS, FAST)
    assert painter.seen == []


def test_a_model_without_a_gradient_is_refused_at_the_first_step(painter, picture):
    velocity = painter.velocity
    painter.velocity = lambda *inputs: velocity(*inputs).detach()
    with pytest.raises(ValueError, match="lets no gradient through to its caption"):
        learn_look(painter, [picture], WORDS, FAST)
    painter.velocity = lambda noisy, levels, captions: sum(c.sum() for c in captions) * float("inf") + noisy
    with pytest.raises(ValueError, match="step 1: expected a finite gradient"):
        learn_look(painter, [picture], WORDS, FAST)
    poisoned = iter(range(6))
    painter.velocity = lambda *inputs: velocity(*inputs) * (float("nan") if next(poisoned) == 4 else 1.0)
    with pytest.raises(ValueError, match="step 5: expected a finite gradient"):
        learn_look(painter, [picture], WORDS, replace(FAST, steps=5, keep=0.0))
    painter.velocity = lambda noisy, levels, captions: sum(c.sum() for c in captions) * 0 + noisy
    with pytest.raises(ValueError, match="finite gradient to the caption, got none"):
        learn_look(painter, [picture], WORDS, FAST)


@pytest.mark.parametrize(
    "pictures, shows, fault",
    [(0, 0, "1 to 16"), (17, 17, "1 to 16"), (2, 1, "expected 2 texts")],
)
def test_pictures_and_texts_go_together(painter, picture, pictures, shows, fault):
    with pytest.raises(ValueError, match=fault):
        learn_look(painter, [picture] * pictures, Words(("a cat",) * shows, "in oil"), FAST)


def test_a_look_needs_words_to_begin_with():
    with pytest.raises(ValueError, match="expected words for how the pictures look"):
        Words(("a cat",), "  ")


@pytest.mark.parametrize("name, value", [("steps", 0), ("rate", 2.0), ("lowest", 1.0), ("keep", -1), ("seed", -1)])
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        LearnOptions(**{name: value})


def test_options_come_back_from_their_header_and_from_an_older_one():
    options = QUALITIES["best"]
    assert LearnOptions.of(options.header()) == options
    older = {**options.header(), "spare": 0.0, "lean": 1.0}
    del older["keep"]
    assert LearnOptions.of(older) == replace(options, keep=0.0)


def test_a_strong_anchor_holds_the_words(painter, picture):
    loose, tight = (learn_look(painter, [picture], WORDS, replace(FAST, anchor=anchor)) for anchor in (0.0, 100.0))
    words = begun(painter)
    far, near = ((look.tail - words.tail).norm() for look in (loose, tight))
    assert near < 0.6 * far


@pytest.mark.parametrize(
    "size, at_most, expected",
    [
        ((64, 64), 512, (64, 64)), ((1024, 1024), 512, (512, 512)), ((600, 300), 512, (608, 304)),
        ((20, 20), 512, (16, 16)), ((1000, 2000), 512, (368, 720)),
    ],
)
def test_pictures_are_fitted_in_their_own_shape(size, at_most, expected):
    picture = torch.zeros(*size, 3)
    picture[:, : size[1] // 2] = 1.0
    found = fit_picture(picture, at_most, 16)
    assert tuple(found.shape) == (*expected, 3)
    assert found[:, : expected[1] // 2 - 4].min() == 255 and found[:, expected[1] // 2 + 4 :].max() == 0


def test_the_named_qualities_differ_in_steps_and_say_so():
    assert list(QUALITIES) == ["quick", "good", "best"]
    assert [options.steps for options in QUALITIES.values()] == [50, 100, 300]
