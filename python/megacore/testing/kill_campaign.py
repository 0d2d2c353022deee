"""Kills processes that save together at random instants, and looks at what they leave behind.

One process has imported torch; writers are forks of it, which takes milliseconds.
"""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from megacore.checkpoint.background import BackgroundWriter
from megacore.checkpoint.background_process import serve
from megacore.checkpoint.channel import Channel
from megacore.checkpoint.content import Content
from megacore.checkpoint.layout import REMOVING, REPLACED, WRITING
from megacore.checkpoint.save import SaveDirectory
from megacore.checkpoint.shared_copy import SharedMemory
from megacore.checkpoint.store_writers import StoreAddress, StoreWriters
from megacore.errors import CheckpointError
from megacore.testing.checkpoint_states import content_of, stored_seed

MAX_WRITERS = 4
_SCALE = 256
# Killed within this time; several saves fit.
_WINDOW_S = 0.15
# How long processes may take to end after the kill: far more than they need on a loaded machine.
_END_S = 60.0


@dataclass(frozen=True)
class Trial:
    """One kill.

    Attributes:
        writers: Processes that save together.
        is_async: They save in the background.
        victim: "all" at once; "trainer": one of them, the others a moment later; "writer": the
            background process of one of them, then the same.
        from_start: The delay begins when the processes are started, not when they are ready.
        delay_s: Seconds until the kill.
        pause_s: Seconds until the others are killed.
    """

    writers: int
    is_async: bool
    victim: str
    from_start: bool
    delay_s: float
    pause_s: float


def random_trial(chance: random.Random) -> Trial:
    """A trial."""
    is_async = chance.random() < 0.5
    return Trial(
        writers=chance.randint(1, MAX_WRITERS),
        is_async=is_async,
        victim=chance.choice(["all", "trainer", "writer"] if is_async else ["all", "trainer"]),
        from_start=chance.random() < 0.1,
        delay_s=chance.uniform(0.0, _WINDOW_S),
        pause_s=chance.choice([0.0, chance.uniform(0.0, 0.03)]),
    )


@dataclass
class _Pipes:
    """What the writers tell: the newest iteration that was reported as saved, pids, their end."""

    reports: tuple[int, int]
    pids: tuple[int, int]
    alive: tuple[int, int]

    @classmethod
    def make(cls) -> _Pipes:
        pipes = cls(os.pipe(), os.pipe(), os.pipe())
        for reader, _ in (pipes.reports, pipes.pids):
            os.set_blocking(reader, False)
        return pipes

    @property
    def writing(self) -> tuple[int, ...]:
        return self.reports[1], self.pids[1], self.alive[1]

    def close(self) -> None:
        for pair in (self.reports, self.pids, self.alive):
            for descriptor in pair:
                with suppress(OSError):
                    os.close(descriptor)


class _ForkedWriter:
    """The background process of a trainer, as a fork: a new program would take seconds.

    Args:
        keep: Descriptors that it keeps open.
    """

    def __init__(self, channel: int, memory: int, keep: tuple[int, ...]) -> None:
        self.pid = os.fork()
        if self.pid:
            return
        try:
            kept = {0, 1, 2, channel, memory, *keep}
            for descriptor in range(3, 256):
                if descriptor not in kept:
                    with suppress(OSError):
                        os.close(descriptor)
            serve(Channel(socket.socket(fileno=channel)), SharedMemory(memory))
        finally:
            os._exit(1)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def _save_in_background(
    trial: Trial, rank: int, directory: Path, store: StoreAddress, pipes: _Pipes
) -> Callable[[Content], None]:
    keep = pipes.writing
    writer = BackgroundWriter(
        [directory],
        rank=rank,
        size=trial.writers,
        store=store if trial.writers > 1 else None,
        wait_s=_END_S,
        launch=lambda channel, memory: _ForkedWriter(channel, memory, keep),
    )
    os.write(pipes.pids[1], _encoded(rank, writer.pid))
    writer.wait_until_ready()

    def save(content: Content) -> None:
        writer.submit(content, retain_last=2)
        writer.wait()

    return save


def _save_directly(
    trial: Trial, rank: int, directory: Path, store: StoreAddress
) -> Callable[[Content], None]:
    writers = StoreWriters(store.connect(), rank=rank, size=trial.writers, ending=threading.Event())
    place = SaveDirectory(directory, writers=writers, wait_s=_END_S)

    def save(content: Content) -> None:
        place.write(content, retain_last=2)

    return save


def _train(
    trial: Trial, rank: int, directory: Path, store: StoreAddress, first: int, pipes: _Pipes
) -> None:
    """Saves one iteration after the other, until the kill."""
    if trial.is_async:
        save = _save_in_background(trial, rank, directory, store, pipes)
    else:
        save = _save_directly(trial, rank, directory, store)
    if rank == 0:
        os.write(pipes.reports[1], _encoded(first - 1))
    for iteration in itertools.count(first):
        content = content_of(iteration, iteration, rank=rank, size=trial.writers, scale=_SCALE)
        # Every third iteration is written twice, so that replacing is hit too.
        for _ in range(1 + (iteration % 3 == 0)):
            save(content)
        if rank == 0:
            os.write(pipes.reports[1], _encoded(iteration))


def _encoded(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)


def _decoded(reader: int, group: int) -> list[tuple[int, ...]]:
    """All groups of numbers that were written to a pipe."""
    raw = b""
    with suppress(BlockingIOError):
        while piece := os.read(reader, 1 << 16):
            raw += piece
    numbers = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
    return [tuple(numbers[i : i + group]) for i in range(0, len(numbers), group)]


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
    except CheckpointError:
        # Another process was killed first.
        pass
    except BaseException as error:
        print(f"a writer failed: {error!r}", file=sys.stderr, flush=True)
    # Without its destructors: they belong to the process that it is a copy of.
    os._exit(1)


def kill_once(trial: Trial, directory: Path, scratch: Path, chance: random.Random) -> str:
    """Runs one trial.

    Args:
        trial: What to do.
        directory: Save directory, in whatever state trials before have left it.
        scratch: Directory for a store.
        chance: Chooses the victim.

    Returns:
        "old" or "new": the state that was found, against what was last reported as saved.

    Raises:
        AssertionError: Something else was found, or saving does not go on.
    """
    before = stored_seed(directory, scale=_SCALE) or 0
    pipes = _Pipes.make()
    handle, name = tempfile.mkstemp(dir=scratch)
    os.close(handle)
    store = StoreAddress("kill", path=name)
    try:
        first = before + 1
        trainers = [
            _fork(lambda rank=rank: _train(trial, rank, directory, store, first, pipes))  # type: ignore[misc]
            for rank in range(trial.writers)
        ]
        for descriptor in pipes.writing:
            os.close(descriptor)
        if not trial.from_start and not select.select([pipes.reports[0]], [], [], _END_S)[0]:
            raise AssertionError("the writers do not get ready")
        time.sleep(trial.delay_s)
        _kill(trial, trainers, pipes, chance)
        for trainer in trainers:
            os.waitpid(trainer, 0)
        # Background processes end by themselves; all hold this pipe open until they have.
        if not select.select([pipes.alive[0]], [], [], _END_S)[0]:
            raise AssertionError("a background process outlives its training process")
        reported = max((n for (n,) in _decoded(pipes.reports[0], 1)), default=before)
    finally:
        pipes.close()
        Path(name).unlink(missing_ok=True)
    found = stored_seed(directory, scale=_SCALE) or 0
    if found not in (reported, reported + 1):
        raise AssertionError(f"{trial}: {reported} was reported as saved, {found} is there")
    _go_on(directory, found + 1)
    return "old" if found == reported else "new"


def _kill(trial: Trial, trainers: list[int], pipes: _Pipes, chance: random.Random) -> None:
    if trial.victim == "writer":
        writers = [pid for _, pid in _decoded(pipes.pids[0], 2)]
        if writers:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(writers), signal.SIGKILL)
            time.sleep(trial.pause_s)
    elif trial.victim == "trainer":
        os.kill(chance.choice(trainers), signal.SIGKILL)
        time.sleep(trial.pause_s)
    for trainer in trainers:
        os.kill(trainer, signal.SIGKILL)


def _go_on(directory: Path, iteration: int) -> None:
    """The run after the kill: it claims the directory, clears it up, and saves."""
    with SaveDirectory(directory, wait_s=_END_S) as place:
        place.write(content_of(iteration, iteration, scale=_SCALE), retain_last=2)
    if stored_seed(directory, scale=_SCALE) != iteration:
        raise AssertionError(f"iteration {iteration} was saved after the kill and is not there")
    hidden = (WRITING, REPLACED, REMOVING, ".latest")
    left = [entry.name for entry in directory.iterdir() if entry.name.startswith(hidden)]
    if left:
        raise AssertionError(f"left over after a save: {left}")


def kill_campaign(
    directory: Path, *, count: int, seed: int, say: Callable[[str], None] = lambda _: None
) -> Counter[str]:
    """Kills many times.

    Args:
        directory: Empty or missing; made for it.
        count: Number of kills.
        seed: Of what is random.
        say: Told about progress.

    Returns:
        How often each kind of trial ended in which way, such as "async, 3 writers, trainer: old".

    Raises:
        AssertionError: A kill left something else than the old or the new state.
    """
    # Only a process without threads can be forked.
    torch.set_num_threads(1)
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(count):
            trial = random_trial(chance)
            end = kill_once(trial, directory, Path(scratch), chance)
            kind = "async" if trial.is_async else "sync"
            plural = "s" if trial.writers > 1 else ""
            outcomes[f"{kind}, {trial.writers} writer{plural}, {trial.victim} killed: {end}"] += 1
            if (number + 1) % 100 == 0:
                say(f"{number + 1} of {count} kills")
    return outcomes
