"""Descriptions are found again by content, bounded in memory and on disk."""

from __future__ import annotations

import os

import pytest
import torch

from vl_core.encoder.sampling import Sampling
from vl_core.encoder.writing import Description
from vl_core.encoder.written import WrittenStore, description_key

TOLD = Description("a red hat", " a red hat<end>", 5, True, ("cut", "“quoted” 红"))


def key(**changes) -> bytes:
    given = {
        "encoder": "one", "instruction": "tell", "pictures": [torch.zeros(1, 4, 4, 3)], "max_tokens": 9, "budget": 16,
        "sampling": Sampling(0.7), "seed": 1, "system_prompt": "", **changes,
    }
    return description_key(given.pop("encoder"), given.pop("instruction"), given.pop("pictures"), **given)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "two"}, {"instruction": "ask"}, {"max_tokens": 10}, {"budget": 17}, {"seed": 2},
        {"system_prompt": "s"}, {"pictures": [torch.ones(1, 4, 4, 3)]}, {"pictures": []},
        {"pictures": [torch.zeros(1, 4, 4, 3)] * 2}, {"pictures": [torch.zeros(1, 2, 8, 3)]},
        *({"sampling": Sampling(**{"temperature": 0.7, **one})} for one in (
            {"temperature": 0.8}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"repetition_penalty": 1.2},
        )),
    ],
    ids=str,
)
def test_all_that_a_description_depends_on_is_in_its_key(change):
    assert key() == key() != key(**change)


def test_words_of_an_instruction_and_a_system_prompt_do_not_run_together():
    assert key(instruction="ab", system_prompt="c") != key(instruction="b", system_prompt="ca")


def test_without_chance_a_seed_is_no_part_of_the_key_but_the_penalty_is():
    greedy = key(sampling=None)
    assert greedy == key(sampling=None, seed=5) == key(sampling=Sampling(top_k=3))
    assert greedy != key(sampling=Sampling(repetition_penalty=1.1))


def test_what_was_put_is_found_and_the_least_recently_used_goes_first():
    store = WrittenStore(most=2)
    store.put(b"1", TOLD)
    store.put(b"2", TOLD)
    assert store.get(b"1") == TOLD and store.get(b"9") is None
    store.put(b"3", TOLD)
    assert len(store) == 2 and store.get(b"2") is None and store.get(b"1") == store.get(b"3") == TOLD


def test_another_process_finds_it_on_disk(tmp_path):
    WrittenStore(tmp_path / "words").put(key(), TOLD)
    assert WrittenStore(tmp_path / "words").get(key()) == TOLD
    assert WrittenStore().get(key()) is None
    assert [file.suffix for file in (tmp_path / "words").iterdir()] == [".json"]


def test_the_oldest_files_go_first(tmp_path):
    store = WrittenStore(tmp_path, most=1, most_files=2)
    for number in range(4):
        store.put(bytes([number]), TOLD)
        os.utime(tmp_path / f"{number:02x}.json", ns=(number, number))
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["02", "03"]
    assert store.get(bytes([2])) == TOLD and store.get(bytes([0])) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"words": "a"}', '{"notes": 3}'])
def test_a_damaged_file_is_as_good_as_none(content, tmp_path):
    (tmp_path / f"{key().hex()}.json").write_text(content, encoding="utf-8")
    store = WrittenStore(tmp_path)
    assert store.get(key()) is None
    store.put(key(), TOLD)
    assert WrittenStore(tmp_path).get(key()) == TOLD


def test_a_disk_that_takes_nothing_leaves_memory(tmp_path, caplog):
    (tmp_path / "file").write_text("", encoding="utf-8")
    store = WrittenStore(tmp_path / "file")
    store.put(key(), TOLD)
    assert store.get(key()) == TOLD and "not kept on disk" in caplog.text


def test_a_store_without_room_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        WrittenStore(most=0)
