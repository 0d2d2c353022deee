"""The pool of worker processes: everything comes out, once, in order, within a bounded window."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from megacore.data.preprocess.pool import WorkerPool
from megacore.errors import DataError, MegacoreError


def double(item: tuple[int, float]) -> int:
    number, seconds = item
    time.sleep(seconds)
    if number < 0:
        raise DataError(f"item {number}")
    return 2 * number


def make_double():
    return double


def pool(num_workers: int) -> WorkerPool[tuple[int, float], int]:
    return WorkerPool(make_double, (), double, num_workers)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_all_items_in_order(num_workers, count):
    with pool(num_workers) as workers:
        assert list(workers.map((i, 0.0) for i in range(count))) == [2 * i for i in range(count)]


@pytest.mark.parametrize("slow", [{0}, {0, 20}, {1, 2, 3}, {49}])
def test_a_slow_item_fills_the_window_and_loses_nothing(slow):
    """The others wait for it, the window fills, and the rest follows when it opens again."""
    items = [(i, 0.15 if i in slow else 0.0) for i in range(50)]
    with pool(2) as workers:
        assert list(workers.map(items)) == [2 * i for i in range(50)]


def test_the_source_is_read_only_a_window_ahead():
    read = 0

    def source() -> Iterator[tuple[int, float]]:
        nonlocal read
        for i in range(1000):
            read += 1
            yield (i, 0.0)

    with pool(2) as workers:
        for given, _ in enumerate(workers.map(source())):
            assert read <= given + 2 * 4 + 2


def test_an_error_of_the_data_stays_one_and_others_show_where():
    with pool(2) as workers, pytest.raises(DataError, match="item -3"):
        list(workers.map([(1, 0.0), (-3, 0.0)]))
    with pool(2) as workers, pytest.raises(MegacoreError, match="TypeError"):
        list(workers.map([(1, 0.0), (None, 0.0)]))


def test_a_consumer_that_stops_ends_the_workers():
    with pool(3) as workers:
        processes = list(workers._processes)
        for given in workers.map((i, 0.01) for i in range(10_000)):
            if given > 20:
                break
    assert all(not process.is_alive() for process in processes)


def test_workers_end_with_their_parent():
    """A killed parent closes the pipes; workers that hold no end of another's see it."""
    import signal
    import subprocess
    import sys

    program = (
        "import sys, time\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from test_preprocess_pool import pool\n"
        "p = pool(3)\n"
        "print(*[one.pid for one in p._processes], flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = list(map(int, parent.stdout.readline().split()))
    assert len(pids) == 3
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(running, pids))


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
