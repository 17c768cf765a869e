"""The engine before a host in plain Python: what is fetched, how often, and what becomes of each entry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vl_core.stages.description import bring_in
from vl_core.steering.desk import NOTHING
from vl_core.steering.references import Reference
from vl_core.steering.settings import DELTA, OPEN_BLEND, Settings
from vl_core.steering.steer import steer, steer_many
from vl_core.steering.store import Store
from vl_core.steering.takes import TAKES, find_take
from vl_core.steering.way import Given, candidates, find_way, ways

PROMPT = "a cat in a hat"
GIVEN = Given(words="thick paint")
MIXING = [name for name, way in ways().items() if way.layer]


@pytest.fixture
def references(picture) -> list[Reference]:
    return [Reference(picture)]


# --- nothing acts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ways())
def test_strength_0_is_the_text_and_asks_for_nothing_else(way, host, references):
    outcome = steer(host, PROMPT, references, Settings(way, strength=0))
    assert torch.equal(outcome.entries[0].states, host.words(PROMPT)[0].states)
    assert not outcome.way and outcome.report() == "Words only: strength 0."
    assert {one.kind for one in host.asked} == {"words"}


@pytest.mark.parametrize("way", ways())
def test_no_picture_or_none_that_counts_is_the_text_and_asks_for_nothing_else(way, host, picture):
    for given in ([], [Reference(picture, weight=0.0)]):
        outcome = steer(host, PROMPT, given, Settings(way))
        assert torch.equal(outcome.entries[0].states, host.words(PROMPT)[0].states)
        assert outcome.report() == "Words only: no picture."
    assert {one.kind for one in host.asked} == {"words"}


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("take", [take.name for take in TAKES])
def test_words_ask_for_the_take_and_are_the_described_prompt(take, host, references):
    outcome = steer(host, PROMPT, references, Settings("words", take))
    (asked,) = host.called("write")
    assert asked.instruction == find_take(take).instruction
    assert torch.equal(outcome.entries[0].states, host.words(PROMPT, "blue dusk")[0].states)
    assert outcome.words == "blue dusk" and outcome.report().startswith("Qwen3-VL saw: blue dusk.")
    assert not host.called("read") and not host.called("check")


def test_an_instruction_of_ones_own_comes_before_the_takes(host, references):
    steer(host, PROMPT, references, Settings("words", instruction="Name the hat."))
    assert host.called("write")[0].instruction == "Name the hat."


@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_words_at_another_strength_are_brought_in_by_it(strength, host, references):
    found = steer(host, PROMPT, references, Settings("words", strength=strength)).entries[0]
    own, whole = host.words(PROMPT)[0], host.words(PROMPT, "blue dusk")[0]
    expected, _ = bring_in(own.states, own.layout, whole.states, whole.layout, strength)
    assert torch.equal(found.states, expected)


@pytest.mark.parametrize("pictures", [0, 1])
def test_kept_words_need_neither_picture_nor_writing(pictures, host, references):
    outcome = steer(host, PROMPT, references[:pictures], Settings(), GIVEN)
    assert torch.equal(outcome.entries[0].states, host.words(PROMPT, "thick paint")[0].states)
    assert {one.kind for one in host.asked} == {"words"}
    assert outcome.report().startswith("Your words: thick paint.")


def test_every_entry_is_paired_with_its_own_described_one(make_host, references):
    host = make_host(entries=3)
    outcome = steer(host, PROMPT, references, Settings("words"))
    plain, whole = host.words(PROMPT), host.words(PROMPT, "blue dusk")
    for entry, text, described in zip(outcome.entries, plain, whole, strict=True):
        assert torch.equal(entry.states, described.states) and entry.text.origin == described.origin
        assert not torch.equal(entry.states[: len(text.states)], text.states)
    assert [text.origin for text in outcome.texts] == [text.origin for text in plain]
    assert len(host.called("write")) == 1


def test_entries_that_come_out_in_another_number_are_refused(make_host, references):
    host = make_host()
    plain = host.words
    host.words = lambda prompt, added="": plain(prompt, added) * (2 if added else 1)
    with pytest.raises(ValueError, match=r"prompt: expected as many entries .* 1, got 2"):
        steer(host, PROMPT, references, Settings("words"))


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_same_pictures_are_described_once_and_others_anew(host, references, other):
    first = steer(host, PROMPT, references, Settings("words"))
    again = steer(host, "another prompt", [Reference(references[0].picture.clone())], Settings("words", strength=0.3))
    assert len(host.called("write")) == 1
    assert "described before" not in first.report() and "described before: the same words" in again.report()
    changed = references[0].picture.clone()
    changed[0, 0, 0, 0] += 0.01
    for settings, pictures in (
        (Settings("words"), [Reference(changed)]), (Settings("words", "style"), references),
        (Settings("words", longest=60), references), (Settings("words", image_tokens=64), references),
        (Settings("words"), [*references, Reference(other)]),
    ):
        before = len(host.called("write"))
        steer(host, PROMPT, pictures, settings)
        assert len(host.called("write")) == before + 1


def test_another_encoder_under_the_same_store_is_another_answer(host, references):
    steer(host, PROMPT, references, Settings("words"))
    host.identity = lambda: "with a LoRA"
    steer(host, PROMPT, references, Settings("words"))
    assert len(host.called("write")) == 2


def test_a_store_is_keyed_by_content_and_bounded():
    store, made = Store(2), []

    def value(name: str):
        return store.look_up(str, (torch.tensor([float(len(name))]), name), lambda: made.append(name) or name)

    assert [value("a"), value("a"), value("bb"), value("a"), value("ccc")] == [
        ("a", False), ("a", True), ("bb", False), ("a", True), ("ccc", False)
    ]  # fmt: skip
    assert len(store) == 2 and value("a")[1] and not value("bb")[1]  # the one used longest ago went
    assert store.get(int, (torch.tensor([1.0]), "a"), lambda: 3) == 3  # another kind is another value
    with pytest.raises(KeyError):
        store.get(str, ("broken",), lambda: {}["x"])
    assert not Store(0).look_up(str, ("a",), lambda: "a")[1] and len(Store(0)) == 0
    store.clear()
    assert len(store) == 0


# --- several settings at once -----------------------------------------------------------------------------------------


def test_what_several_settings_need_is_read_once_with_all_layers(host, references):
    many = [
        Settings("aligned blend", strength=0.3), Settings("aligned blend", layer=-4), Settings("appended tokens"),
        Settings("blend and append"), Settings(DELTA), Settings("words"), Settings("words", strength=0.5),
        Settings(strength=0),
    ]
    outcomes = steer_many(host, PROMPT, references, many)
    assert [(one.layers, one.muted) for one in host.called("read")] == [([-6, -4, -2], False), ([-6, -4, -2], True)]
    assert len(host.called("write")) == 1
    assert sorted(one.prompt for one in host.called("words")) == [PROMPT, f"{PROMPT}, blue dusk"]
    for settings, outcome in zip(many, outcomes, strict=True):
        alone = steer(type(host)(), PROMPT, references, settings)
        assert torch.equal(outcome.entries[0].states, alone.entries[0].states), settings
        assert outcome.entries[0].lines == alone.entries[0].lines


def test_takes_that_show_or_ask_otherwise_are_read_for_themselves(host, references):
    steer_many(host, PROMPT, references, [Settings("aligned blend", take.name) for take in TAKES])
    shown = dict.fromkeys((take.attend, take.picture) for take in TAKES)
    assert [one.attend for one in host.called("read")] == [attend for attend, _ in shown]
    assert len(shown) == 5  # the look and everything look alike to it


def test_statistics_are_measured_once_and_only_where_they_are_needed(host, references):
    cleaned = [Settings("aligned blend", normalization=mode) for mode in ("rms", "per_dim")]
    outcomes = steer_many(host, PROMPT, references, [Settings("aligned blend"), *cleaned])
    assert len(host.called("statistics")) == 1
    assert ["reference statistics measured now" in one.lines for one in outcomes] == [False, True, True]
    (measured,), _ = host.statistics()
    given = steer(type(host)(), PROMPT, references, cleaned[0], Given(statistics=(measured,)))
    assert torch.equal(given.entries[0].states, outcomes[1].entries[0].states)
    assert not any("reference statistics" in line for line in given.lines)


def test_pictures_are_looked_at_before_the_text_encoder_runs(host, references):
    steer_many(host, PROMPT, references, [Settings("aligned blend"), Settings("words")])
    assert [one.kind for one in host.asked if one.kind != "check"] == ["read", "write", "words", "words"]


def test_errors_name_the_settings_they_are_about_and_stopping_ends_it(host, references):
    masked = [replace(references[0], weight=0.5)]
    with pytest.raises(ValueError, match=r"weights: expected 0 or 1 with words, .* In the cell way words"):
        steer_many(host, PROMPT, masked, [Settings("words")], names=["way words"])

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steer_many(host, PROMPT, references, [Settings("words")], step=stop)


def test_words_put_first_are_read_beside_the_picture(host, references):
    outcome = steer(host, PROMPT, references, Settings("aligned blend", strength=0.5, described=True))
    assert [one.prompt for one in host.called("read")] == [f"{PROMPT}, blue dusk"]
    assert outcome.texts[0].origin == (f"{PROMPT}, blue dusk", 0)
    alone = steer(host, PROMPT, references, Settings(strength=0, described=True))
    assert torch.equal(alone.entries[0].states, host.words(PROMPT, "blue dusk")[0].states)


# --- ways -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXING)
def test_a_way_that_mixes_states_asks_for_the_layers_it_declares(name, host, references):
    settings = Settings(name)
    outcome = steer(host, PROMPT, references, settings)
    needs = find_way(name).needs(settings, NOTHING)
    assert [one.layers for one in host.called("read")] == [list(needs.layers)] * (1 + needs.muted)
    assert outcome.way == name and not torch.equal(outcome.entries[0].states, outcome.texts[0].states)
    assert outcome.report()[0].isupper() and name in outcome.report()
    assert ("showed next to nothing where it was measured" in outcome.report()) == find_way(name).research


def test_a_picture_that_is_pushed_away_says_so(host, picture):
    outcome = steer(
        host, PROMPT, [Reference(picture, weight=-1.0)], Settings("aligned blend", strength=0.5, combine="average")
    )
    assert outcome.report().startswith("Pushed away from the picture by aligned blend at strength 0.5.")


def test_automatic_writes_words_where_there_is_no_adapter_and_says_why(host, references):
    outcome = steer(host, PROMPT, references, Settings())
    assert outcome.way == "words" and "automatic: words, because no picture adapter is connected" in outcome.report()
    named = steer(type(host)(), PROMPT, references, Settings("words"))
    assert torch.equal(outcome.entries[0].states, named.entries[0].states)


def test_automatic_stands_for_ways_that_there_are():
    assert [way.name for way in candidates(find_way("automatic"))][-2:] == ["picture adapter", "words"]
    assert all(way.meaning for way in ways().values())
    assert {name for name, way in ways().items() if not way.uses} == {"automatic", "learned look"}  # a look has all
    assert OPEN_BLEND in ways() and [way.rank for way in ways().values()] == sorted(way.rank for way in ways().values())


def test_a_way_without_what_it_needs_says_what_to_do(host, references):
    with pytest.raises(ValueError, match=r"adapter: the way picture adapter needs one, got none.*choose the way words"):
        steer(host, PROMPT, references, Settings("picture adapter"))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("learned look", "look: the way learned look needs one, got none. Connect Learn Look, choose a look_file"),
        ("picture adapter", "adapter: the way picture adapter needs one, got none. Connect Fit Picture Adapter"),
    ],
)
def test_a_way_that_lacks_what_it_needs_says_where_to_get_it(host, picture, way, message):
    with pytest.raises(ValueError, match=message):
        steer(host, "a fox", [Reference(picture)], Settings(way=way))
