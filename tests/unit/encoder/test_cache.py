"""ByteCache: bounded in bytes, least recently used out first, safe from threads, off at 0."""

from __future__ import annotations

import hashlib
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vl_core.encoder import cache
from vl_core.encoder.cache import ByteCache, default_limit, digest, stored_bytes


def block(count: int) -> torch.Tensor:
    """A tensor of ``count`` bytes."""
    return torch.zeros(count, dtype=torch.uint8)


def put(store: ByteCache, key, size: int) -> bool:
    value = block(size)
    return store.put(key, value, [value])


def test_what_was_put_is_found_by_an_equal_key():
    store = ByteCache(100)
    value = block(10)
    assert store.put(("a", 1), value, [value])
    assert store.get(("a", 1)) is value and store.get(("a", 2)) is None
    assert (store.hits, store.misses, store.bytes, len(store)) == (1, 1, 10, 1)


def test_the_least_recently_used_goes_first():
    store = ByteCache(30)
    for key in "abc":
        put(store, key, 10)
    store.get("a")
    put(store, "d", 10)
    assert [key for key in "abcd" if store.get(key) is not None] == ["a", "c", "d"]


def test_what_is_larger_than_the_limit_is_not_kept_and_drops_nothing():
    store = ByteCache(30)
    put(store, "a", 20)
    assert not put(store, "b", 31)
    assert store.get("a") is not None and store.bytes == 20


def test_putting_again_replaces():
    store = ByteCache(30)
    put(store, "a", 30)
    put(store, "a", 12)
    assert (store.bytes, len(store)) == (12, 1)


def test_a_limit_of_zero_keeps_nothing_not_even_what_is_empty():
    store = ByteCache(0)
    assert not put(store, "a", 0) and store.get("a") is None
    with pytest.raises(ValueError, match="expected a limit of at least 0 bytes, got -1"):
        ByteCache(-1)


def test_clearing_gives_back():
    store = ByteCache(30)
    put(store, "a", 20)
    store.clear()
    assert (store.bytes, len(store), store.get("a")) == (0, 0, None)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans()), max_size=60))
def test_the_bound_holds_and_the_newest_survive(steps):
    """Against a plain list that is searched from its end."""
    store, order = ByteCache(50), []
    for key, size, is_put in steps:
        if is_put:
            assert put(store, key, size)
            order = [(other, of) for other, of in order if other != key] + [(key, size)]
            while sum(of for _, of in order) > 50:
                order.pop(0)
        else:
            found = store.get(key)
            assert (found is not None) == any(other == key for other, _ in order)
            order.sort(key=lambda entry: entry[0] == key)  # stable: moves it to the end
        assert store.bytes == sum(of for _, of in order) <= 50 and len(store) == len(order)


def test_threads_may_use_it_at_once():
    store, wrong = ByteCache(1000), []

    def work(seed: int) -> None:
        for step in range(400):
            key = (seed * step) % 37
            found = store.get(key)
            if found is not None and found.numel() != key + 1:
                wrong.append(key)
            put(store, key, key + 1)
            if step % 97 == 0:
                store.clear()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = [store.get(key) for key in range(37)]
    assert not wrong and store.bytes == sum(one.numel() for one in left if one is not None) <= 1000


def test_a_part_of_a_tensor_counts_as_the_whole_it_keeps_alive():
    whole = block(64)
    assert stored_bytes([whole[:4], whole[10:12], block(3)]) == 67


def test_a_full_device_keeps_nothing(monkeypatch):
    monkeypatch.setattr(cache, "has_room", lambda tensors: False)
    store = ByteCache(100)
    assert not put(store, "a", 10) and len(store) == 0


@pytest.mark.parametrize(("value", "expected"), [(None, 512 << 20), ("", 512 << 20), ("0", 0), ("64", 64 << 20)])
def test_the_environment_sets_the_limit(monkeypatch, value, expected):
    if value is None:
        monkeypatch.delenv("ZIMAGE_VL_CACHE_MIB", raising=False)
    else:
        monkeypatch.setenv("ZIMAGE_VL_CACHE_MIB", value)
    assert default_limit() == expected


def test_a_limit_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("ZIMAGE_VL_CACHE_MIB", "lots")
    with pytest.raises(ValueError, match=r"ZIMAGE_VL_CACHE_MIB: expected a number of MiB, .* got 'lots'"):
        default_limit()


# Digests ------------------------------------------------------------------------------------------------------------


def test_a_digest_is_sha256_of_shape_dtype_and_values():
    tensor = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    expected = hashlib.sha256(b"(2, 3) torch.int16" + tensor.numpy().tobytes()).digest()
    assert digest(tensor) == expected == digest(tensor.t().contiguous().t())


def test_a_digest_tells_values_shapes_dtypes_and_borders_apart():
    pixels = torch.zeros(4, 4, dtype=torch.uint8)
    changed = pixels.clone()
    changed[3, 3] = 1
    different = [
        digest(pixels), digest(changed), digest(pixels.reshape(2, 8)), digest(pixels.view(torch.int8)),
        digest("ab", "c"), digest("a", "bc"), digest(pixels, "a"), digest(pixels.bfloat16()),
    ]
    assert len(set(different)) == len(different)
