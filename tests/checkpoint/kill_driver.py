"""Kills writers in the middle of saving, and looks at what they leave. Run as a script.

    kill_driver.py random DIRECTORY COUNT SEED
    kill_driver.py each DIRECTORY SCENARIO

"random" kills a process that saves one checkpoint after the other, at COUNT random instants.
"each" kills between any two system calls that change the directory, and in the middle of a write.
One process imports torch; the writers are forks of it. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoint_cases import make_tensors, make_values, read_seed

from megacore.checkpoint import load_checkpoint, save_checkpoint
from megacore.checkpoint.layout import REMOVING, REPLACED, WRITING

# Every call through which saving changes the file system.
CALLS = (
    "open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir",
    "ftruncate", "pwrite",
)  # fmt: skip


def save(directory: Path, iteration: int, seed: int, *, size: int, **more: Any) -> None:
    save_checkpoint(
        directory,
        iteration,
        tensors=make_tensors(seed, size=size),
        values=make_values(seed),
        **more,
    )


def leftovers(directory: Path) -> list[str]:
    hidden = (WRITING, REPLACED, REMOVING, ".latest")
    return [entry.name for entry in directory.iterdir() if entry.name.startswith(hidden)]


def in_fork(work: Callable[[], None]) -> int:
    """Starts `work` in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        print(f"writer failed: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def random_kills(directory: Path, count: int, seed: int) -> dict[str, int]:
    """Kills one endless writer after the other; nothing reported as saved may be lost."""
    chance, size = random.Random(seed), 12_000
    old_kept = new_kept = 0
    started = time.monotonic()
    save(directory, 1, 1, size=size)
    pace = time.monotonic() - started
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    for _ in range(count):
        before = read_seed(directory, size=size)

        def work(start: int = (before or 0) + 1) -> None:
            for iteration in range(start, start + 1000):
                # Every third iteration is written twice, so that replacing is hit too.
                for _ in range(1 + (iteration % 3 == 0)):
                    save(directory, iteration, iteration, size=size, retain_last=2)
                os.write(writer, iteration.to_bytes(4, "little"))

        child = in_fork(work)
        # A few saves, at the speed that this machine has now.
        time.sleep(chance.uniform(0.0, 4 * pace))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise AssertionError("the writer ended by itself")
        reported = before or 0
        try:
            raw = os.read(reader, 1 << 16)
            reported = int.from_bytes(raw[-4:], "little")
        except BlockingIOError:
            pass
        found = read_seed(directory, size=size) or 0
        if found not in (reported, reported + 1):
            raise AssertionError(f"{reported} was reported as saved, {found} is there")
        old_kept += found == before
        new_kept += found != before
    save(directory, (found or 0) + 1, (found or 0) + 1, size=size, retain_last=2)
    if leftovers(directory):
        raise AssertionError(f"left over: {leftovers(directory)}")
    return {"kills": count, "old": old_kept, "new": new_kept, "iteration": found}


class Interceptor:
    """Replaces the `os` functions of CALLS; ends the process at the k-th call if told to.

    Args:
        moment: Number of the call to die at, from 0; None to note the calls only.
        halfway: Do half of a write before dying.
    """

    def __init__(self, moment: int | None = None, *, halfway: bool = False) -> None:
        self.moment = moment
        self.halfway = halfway
        self.names: list[str] = []
        for name in CALLS:
            setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def intercepted(*args: Any, **kwargs: Any) -> Any:
            if len(self.names) == self.moment:
                if self.halfway:
                    call(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
                os.kill(os.getpid(), signal.SIGKILL)
            self.names.append(name)
            return call(*args, **kwargs)

        return intercepted


def calls_of(work: Callable[[], None]) -> list[str]:
    """Names of the intercepted calls that `work` makes, in order."""
    reader, writer = os.pipe()
    send = os.write

    def noted() -> None:
        calls = Interceptor()
        work()
        send(writer, json.dumps(calls.names).encode())

    os.waitpid(in_fork(noted), 0)
    return json.loads(os.read(reader, 1 << 16))


# Name -> (iterations saved before, iteration to save, retain_last)
SCENARIOS: dict[str, tuple[tuple[int, ...], int, int | None]] = {
    "first": ((), 5, None),
    "next": ((4,), 5, None),
    "again": ((4, 5), 5, None),
    "retain": ((2, 3, 4), 5, 1),
}


def kill_each(directory: Path, scenario: str) -> dict[str, int]:
    """Kills at every boundary; the old or the new state must be there, and saving goes on."""
    earlier, iteration, retain = SCENARIOS[scenario]
    old, new, size = (max(earlier) if earlier else None), 77, 5
    template, place = directory / "template", directory / "trial"
    template.mkdir(parents=True)
    for number in earlier:
        save(template, number, number, size=size)

    def work() -> None:
        save(place, iteration, new, size=size, retain_last=retain)

    shutil.copytree(template, place)
    names = calls_of(work)
    if read_seed(place, size=size) != new:
        raise AssertionError("unharmed, but the new state is not there")
    # After a call is before the next one, so each boundary needs one kill; a write needs two.
    moments = [(k, False) for k in range(len(names))]
    moments += [(k, True) for k, name in enumerate(names) if name in ("write", "pwrite")]
    outcomes = {"kills": 0, "old": 0, "new": 0}
    for moment, halfway in moments:
        shutil.rmtree(place)
        shutil.copytree(template, place)

        def doomed(moment: int = moment, halfway: bool = halfway) -> None:
            Interceptor(moment, halfway=halfway)
            work()

        _, status = os.waitpid(in_fork(doomed), 0)
        found = read_seed(place, size=size)
        if not os.WIFSIGNALED(status) or found not in (old, new):
            raise AssertionError(f"call {moment}, {names[moment]}: {found}, not {old} or {new}")
        outcomes["kills"] += 1
        outcomes["new" if found == new else "old"] += 1
        later = max(iteration, load_checkpoint(place).iteration if found else 0) + 1
        save(place, later, 99, size=size)
        if read_seed(place, size=size) != 99 or leftovers(place):
            raise AssertionError(f"call {moment}, {names[moment]}: saving did not recover")
    return outcomes


def main(argv: list[str]) -> int:
    """Runs one mode."""
    mode, directory = argv[0], Path(argv[1])
    if mode == "random":
        result = random_kills(directory, int(argv[2]), int(argv[3]))
    else:
        result = kill_each(directory, argv[2])
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
