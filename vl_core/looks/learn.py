"""Learning a look on an image model, by the model's own denoising loss.

Textual inversion (arXiv 2208.01618) in conditioning space, begun with words: a few tokens after what a picture shows,
and a change of the template's tail, are moved by Adam until the model, its weights untouched, removes noise from the
picture as well as it can. What the picture shows is told in words, so the tokens need only hold how it looks.

What other prompts say has to come through a look. So a second loss asks the model about the same noisy picture with
another prompt q in place of the picture's own p, and wants the two to differ as they do with the words E₀ that the look
E began as::

    ‖ v(q + E) − [ v(p + E) + v(q + E₀) − v(p + E₀) ] ‖²,    the bracket a goal that no gradient reaches.

It is asked at every fourth step of one noisy picture, and weighs four times as much there: the same pull in less time.
Of more pictures a look loses more of what other prompts say, so there as many are asked for as there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ..states.tensors import all_finite
from .batch import Batch, Pack
from .lesson import Lesson, Ready, chance, make_ready
from .look import Look, Origin
from .options import QUALITIES, LearnOptions
from .others import OTHERS
from .painter import Painter
from .start import Words, tell
from .state import TENSORS, LearnState
from .units import with_look

BETAS = (0.9, 0.99)  # of Adam; the steps are too few for a longer memory
ADAM_EPSILON = 1e-8
KEPT_EVERY = 4  # steps from one that asks for another prompt to the next
GOALS = 4  # such steps whose goals are asked for together: of so few rows a GPU would wait for the processor
SMALLEST = 256  # pixels: what a picture is brought to at the least where memory runs out


OnStep = Callable[[LearnState], None]
OnCaption = Callable[[int, Callable[[], Tensor]], None]  # steps done, and what gives the caption so far


def unseen(step: int, caption: Callable[[], Tensor]) -> None:
    """Nobody looks on."""


def learn_look(
    painter: Painter,
    pictures: Sequence[Tensor],
    words: Words,
    options: LearnOptions = QUALITIES["good"],
    *,
    others: Sequence[str] = OTHERS,
    on_step: OnStep = lambda state: None,
    on_caption: OnCaption = unseen,
    state: LearnState | None = None,
) -> Look:
    """Learn one look of 1 to 16 pictures.

    Where memory runs out, first fewer noisy pictures are held at once, which changes nothing; then the pictures are
    brought to a smaller size, which the look's notes say.

    Args:
        painter: the image model.
        pictures: ``(H, W, C)`` or ``(1, H, W, C)``, float in [0, 1] or uint8.
        words: what each shows, and how all of them look.
        options: one of ``QUALITIES``, or others.
        others: prompts that the look has to leave alone; the model should know what they say.
        on_step: called after each step; what it raises ends the learning.
        on_caption: called after each step as well, with the number of steps done and a function that gives the first
            picture's caption ``(L, S·D)`` in the look so far: to paint a preview of.
        state: go on from here; of the same pictures, words, options and model.

    Raises:
        TypeError, ValueError: for pictures, words or options that do not fit, latents that are not finite, a model
            that lets no gradient through.
        torch.OutOfMemoryError: if there is no room at the smallest size either.
    """
    lesson, at_once, notes = Lesson(tuple(pictures), words), 0, ()
    while True:
        try:
            (look,) = learn_looks(
                painter, [lesson], options, others=others, on_step=on_step, on_caption=on_caption, state=state,
                at_once=at_once,
            )
            return replace(look, origin=look.origin.model_copy(update={"notes": notes}))
        except torch.cuda.OutOfMemoryError:
            if at_once == 1 and options.size <= SMALLEST:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not at_once:
            at_once = 1
            continue
        smaller, state = max(SMALLEST, options.size * 3 // 4), None
        notes = (f"Memory ran out at {options.size} × {options.size} pixels; learned at {smaller} × {smaller}.",)
        options = replace(options, size=smaller)


def learn_looks(
    painter: Painter,
    lessons: Sequence[Lesson],
    options: LearnOptions = QUALITIES["good"],
    *,
    others: Sequence[str] = OTHERS,
    on_step: OnStep = lambda state: None,
    on_caption: OnCaption = unseen,
    state: LearnState | None = None,
    at_once: int = 0,
) -> list[Look]:
    """:func:`learn_look` of several looks side by side; each comes out as if it were learned alone.

    Args:
        at_once: how many noisy pictures the model sees at once; 0 for all of a step. The result is the same.
    """
    told = [tell(painter, prompt) for prompt in others] if options.keep else []
    ready = [make_ready(painter, lesson, options) for lesson in lessons]
    with painter.learning():
        anchor, shares = _packed(ready)
        pack = Pack.of(ready, [text.to(anchor.device) for text in told])
        learning = _Learning(painter, pack, options, anchor, shares, at_once)
        state = LearnState.fresh(anchor) if state is None else _taken_up(state, anchor)
        while state.step < options.steps:
            state = learning.step(state)
            on_step(state)
            on_caption(state.step, partial(_caption_so_far, ready[0], state, options))
    counted = options.steps - _first_averaged(options)
    values = (state.total / counted).cpu()
    return [
        _look(painter, one, options, found, [row[index] for row in state.losses])
        for index, (one, found) in enumerate(zip(ready, values, strict=True))
    ]


def _caption_so_far(ready: Ready, state: LearnState, options: LearnOptions) -> Tensor:
    """The caption of a lesson's first picture in the first look, averaged as far as it is averaged by now."""
    counted = state.step - _first_averaged(options)
    values = state.total[0] / counted if counted > 0 else state.values[0]
    told, tail = ready.start.told[0], len(ready.start.tail)
    tokens = values[tail : tail + len(ready.start.tokens)]
    return with_look(told.head, told.tail, tokens, ready.start.sizes, values[:tail])


def _look(painter: Painter, ready: Ready, options: LearnOptions, values: Tensor, losses: Sequence[float]) -> Look:
    tail, count = len(ready.start.tail), len(ready.start.tokens)
    origin = Origin(
        family=painter.family.group, model=painter.name, look=ready.words.look, shows=tuple(ready.words.shows),
        pictures=ready.pictures, sizes=ready.sizes, options=options.header(), losses=tuple(losses),
    )
    return Look(values[tail : tail + count].clone(), ready.start.sizes.cpu(), values[:tail].clone(), origin)


def _packed(ready: Sequence[Ready]) -> tuple[Tensor, Tensor]:
    """Where every look begins, ``(N, T + K, S·D)``, and what each row counts in its look's anchor, ``(N, T + K, 1)``.

    The tail's rows count 1 together, and so do the tokens'; padding counts nothing.
    """
    longest = max(len(one.start.tokens) for one in ready)
    values, shares = [], []
    for one in ready:
        tail, tokens = one.start.tail, one.start.tokens
        share = torch.cat([part.new_full((len(part), 1), 1 / len(part)) for part in (tail, tokens)])
        fill = (0, 0, 0, longest - len(tokens))
        values.append(F.pad(torch.cat([tail, tokens]), fill))
        shares.append(F.pad(share, fill))
    return torch.stack(values), torch.stack(shares)


def _taken_up(state: LearnState, anchor: Tensor) -> LearnState:
    """The state on the anchor's device; ValueError if it is of other looks."""
    if state.values.shape != anchor.shape:
        raise ValueError(
            f"state: expected values of shape {tuple(anchor.shape)}, got {tuple(state.values.shape)}: it is of other "
            "pictures, words or another model. Begin anew."
        )
    tensors = {name: getattr(state, name).to(anchor.device) for name in TENSORS}
    return replace(state, **tensors)


def _first_averaged(options: LearnOptions) -> int:
    """The step from which on the looks are averaged: the last one at the latest."""
    return min(options.steps - 1, round(options.steps * (1 - options.average)))


# --- one step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Learning:
    """What a step needs; ``anchor`` and ``shares`` as :func:`_packed` has them."""

    painter: Painter
    pack: Pack
    options: LearnOptions
    anchor: Tensor
    shares: Tensor
    at_once: int
    _begun: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, init=False)  # by step, look and draw

    def step(self, state: LearnState) -> LearnState:
        """One step of Adam on both losses and the pull to the anchor."""
        options = self.options
        values = state.values.clone().requires_grad_()
        losses = values.new_zeros(len(values))
        for whole in self.pack.batches(self.painter, options, state.step):
            for batch in whole.split(self.at_once):
                losses.index_add_(0, batch.looks.to(losses.device), self.backward(state.step, values, batch))
        gradient = values.grad
        if gradient is None or not all_finite(gradient) or (state.step == 0 and not gradient.any()):
            found = "none" if gradient is None or not gradient.any() else "NaN or infinity"
            raise ValueError(
                f"step {state.step + 1}: expected a finite gradient to the caption, got {found}. Use weights in bf16 "
                "or float32, and the VAE of the image model."
            )
        moved = gradient + 2 * options.anchor * self.shares * (state.values - self.anchor) / self.anchor.shape[-1]
        return _adam(state, options, moved, tuple(losses.tolist()))

    def backward(self, step: int, values: Tensor, batch: Batch) -> Tensor:
        """Let the gradients of both losses of a batch reach values.

        Returns:
            what each noisy picture adds to its look's loss on the pictures, float32 ``(B,)``.
        """
        chosen, kept = self.told_otherwise(step, batch)
        together = not self.at_once or len(batch) + len(kept) <= self.at_once
        own, other = self.velocity(values, batch.joined(kept) if together else batch).tensor_split([len(batch)])
        losses = (own - batch.target).square().mean((1, 2, 3)) / self.options.draws
        if step == 0 and not losses.requires_grad:
            raise ValueError(
                "the image model lets no gradient through to its caption, so nothing can be learned on it. Use weights "
                "in bf16, fp16 or float32 instead of this quantised form."
            )
        total = losses.sum()
        if len(kept):
            if not together:
                total.backward()
                total, other = torch.zeros_like(total), self.velocity(values, kept)
            goal = own.detach()[chosen.to(own.device)] + self.begun(step, kept)
            total = total + self.options.keep * KEPT_EVERY * (other - goal).square().mean((1, 2, 3)).sum()
        total.backward()
        return losses.detach()

    def told_otherwise(self, step: int, batch: Batch) -> tuple[Tensor, Batch]:
        """Places in the batch of as many draws of a look as it has pictures, int64 ``(B',)``, told one of the others.

        None of a step between two that ask.
        """
        pictures, drawn = int(self.pack.counts.sum()), chance(self.options.seed, -1 - step)
        others = len(self.pack.texts.lengths) - pictures
        if not others or step % KEPT_EVERY:
            none = torch.empty(0, dtype=torch.long)
            return none, batch.at(none)
        draw, text = (int(torch.randint(count, (), generator=drawn)) for count in (self.options.draws, others))
        asked = (batch.draws - draw) % self.options.draws < self.pack.counts[batch.looks]
        chosen = asked.nonzero()[:, 0]
        part = batch.at(chosen)
        return chosen, replace(part, texts=torch.full_like(part.texts, pictures + text))

    def begun(self, step: int, kept: Batch) -> Tensor:
        """What two prompts differ by with the words that the looks began as: ``(B', C, h, w)``."""
        keys = _keys(step, kept)
        if keys[0] not in self._begun:
            self._begun.clear()
            self._begin(step - step % (KEPT_EVERY * GOALS))
        return torch.stack([self._begun[key] for key in keys])

    @torch.no_grad()
    def _begin(self, first: int) -> None:
        """Find it for several steps, all rows of a size at once: it does not depend on what is learned."""
        asked: dict[torch.Size, list[tuple[int, Batch, Batch]]] = {}
        for step in range(first, min(first + KEPT_EVERY * GOALS, self.options.steps), KEPT_EVERY):
            for batch in self.pack.batches(self.painter, self.options, step):
                chosen, kept = self.told_otherwise(step, batch)
                asked.setdefault(batch.noisy.shape[1:], []).append((step, kept, batch.at(chosen)))
        for parts in asked.values():
            keys = [key for step, kept, _ in parts for key in _keys(step, kept)]
            rows = reduce(Batch.joined, [kept for _, kept, _ in parts] + [own for *_, own in parts])
            at_once = self.at_once or 2 * GOALS * len(self.pack.counts)  # as many for several pictures as for one
            found = torch.cat([self.velocity(self.anchor, part) for part in rows.split(at_once)])
            other, told = found.chunk(2)
            self._begun.update(zip(keys, other - told, strict=True))

    def velocity(self, values: Tensor, batch: Batch) -> Tensor:
        """What the model makes of noisy pictures: float32 ``(B, C, h, w)``."""
        return self.painter.velocity(batch.noisy, batch.levels, self.pack.captions(values, batch))


def _keys(step: int, batch: Batch) -> list[tuple[int, int, int]]:
    """Step, look and draw of each noisy picture."""
    return [(step, look, draw) for look, draw in zip(batch.looks.tolist(), batch.draws.tolist(), strict=True)]


def _adam(state: LearnState, options: LearnOptions, gradient: Tensor, losses: tuple[float, ...]) -> LearnState:
    """Adam (arXiv 1412.6980), its rate falling with the root of the steps that are left."""
    step = state.step + 1
    first = torch.lerp(gradient, state.first, BETAS[0])
    second = torch.lerp(gradient.square(), state.second, BETAS[1])
    rate = options.rate * (1 - state.step / options.steps) ** 0.5
    along = first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + ADAM_EPSILON)
    values = state.values - rate * along
    total = state.total + values if state.step >= _first_averaged(options) else state.total
    return LearnState(step, values, first, second, total, (*state.losses, losses))

