"""Work beside the GPU's: in its order, no more waiting than is allowed, and nothing after what failed."""

from __future__ import annotations

import threading

import pytest
import torch

from vl_core.headless.evaluate.beside import Ahead, Beside, Shares, one_core_each


def test_acts_are_done_in_their_order_in_another_thread():
    done: list[tuple[int, int]] = []
    with Beside(2) as beside:
        for number in range(20):
            beside.do(lambda number: done.append((number, threading.get_ident())), number)
    assert [number for number, _ in done] == list(range(20))
    assert {thread for _, thread in done}.isdisjoint({threading.get_ident()}) and len({one for _, one in done}) == 1


def test_only_so_many_wait():
    may_go, three, given = threading.Event(), threading.Event(), []

    def fill(beside: Beside) -> None:
        for number in range(5):
            beside.do(may_go.wait)
            given.append(number)
            if number == 2:
                three.set()

    with Beside(3) as beside:
        filler = threading.Thread(target=fill, args=(beside,))
        filler.start()
        assert three.wait(30)
        filler.join(0.1)  # in which a fourth would be taken
        assert given == [0, 1, 2] and filler.is_alive()
        may_go.set()
        filler.join(30)
    assert given == list(range(5))


def test_a_few_items_are_made_ahead_in_their_order():
    made: list[int] = []
    three = threading.Event()

    def make(item: int) -> int:
        made.append(item)
        if item == 2:
            three.set()
        return item * item

    with Ahead(make, range(9), 3) as coming:
        assert three.wait(30)  # though nobody has taken any
        assert next(coming) == 0
        assert list(coming) == [item * item for item in range(1, 9)]
        assert next(coming, None) is None
    assert made == list(range(9))


def test_no_more_than_a_few_are_made_ahead_and_none_when_the_block_ends():
    made: list[int] = []
    may_go, begun = threading.Event(), threading.Event()

    def make(item: int) -> int:
        made.append(item)
        begun.set()
        assert may_go.wait(30)
        return item

    def shut_down(**options) -> None:
        whole(wait=False, **options)
        may_go.set()  # the first one ends when the others have been called off
        whole()

    with Ahead(make, range(9), 3) as coming:
        whole, coming._thread.shutdown = coming._thread.shutdown, shut_down
        assert begun.wait(30)
    assert made == [0]


def test_what_making_an_item_did_is_raised_where_it_is_taken():
    with Ahead(lambda item: 1 // item, [1, 0, 2], 3) as coming:
        assert next(coming) == 1
        with pytest.raises(ZeroDivisionError):
            next(coming)


def test_what_fails_is_raised_and_nothing_after_it_is_done():
    done: list[int] = []

    def act(number: int) -> None:
        if number == 1:
            raise OSError("no space left")
        done.append(number)

    with pytest.raises(OSError, match="no space"), Beside(10) as beside:
        for number in range(4):
            beside.do(act, number)
    assert done == [0]
    with pytest.raises(OSError, match="no space"), Beside(1) as beside:
        for number in range(1, 4):
            beside.do(act, number)
    assert done == [0]


def test_what_was_handed_over_is_done_where_the_block_itself_fails():
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), Beside(10) as beside:
        for number in range(3):
            beside.do(done.append, number)
        raise KeyboardInterrupt
    assert done == [0, 1, 2]


def test_shares_are_added_up_by_name_from_every_thread():
    shares = Shares()

    def count() -> None:
        for _ in range(100):
            with shares("steps"):
                pass

    threads = [threading.Thread(target=count) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    with pytest.raises(ValueError, match="wrong"), shares("failing"):
        raise ValueError("wrong")
    assert shares.seconds.keys() == {"steps", "failing"} and min(shares.seconds.values()) > 0


def test_beside_a_gpu_every_thread_computes_alone_and_afterwards_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_core_each(torch.device("cpu")):
            assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="on the way"), one_core_each(torch.device("cuda")):
            assert torch.get_num_threads() == 1
            raise RuntimeError("on the way")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
