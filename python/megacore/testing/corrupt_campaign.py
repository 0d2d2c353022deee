"""Damages copies of a checkpoint in many ways; each must be found before anything is used.

The checkpoint is written by two processes, and there is an earlier one of the same shapes: so
whole files can be exchanged for others of the same name and size.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megacore.checkpoint import layout
from megacore.checkpoint.load import Checkpoint
from megacore.checkpoint.manifest import SpanRecord, read_manifest
from megacore.checkpoint.save import SaveDirectory
from megacore.checkpoint.verify import verify
from megacore.checkpoint.writers import Writers
from megacore.errors import CheckpointError
from megacore.testing.checkpoint_states import content_of

_WRITERS = 2
_PAGE = 4096
OLD, NEW = 1, 2


class _Threads:
    """Writers that are threads of one process.

    Args:
        barrier: Of all of them.
        values: One place for each.
        rank: Which of them this is.
    """

    def __init__(self, barrier: threading.Barrier, values: list[object], rank: int) -> None:
        self._barrier = barrier
        self._values = values
        self.rank = rank
        self.size = len(values)

    def exchange(self, value: object) -> list[object]:
        """The values that all of them gave, in order."""
        self._values[self.rank] = value
        self._barrier.wait()
        answer = list(self._values)
        self._barrier.wait()
        return answer


def save_together(directory: Path, iterations: list[int], *, scale: int = 1) -> None:
    """Saves states of the seeds of their iterations, each written by two writers.

    Args:
        directory: Save directory.
        iterations: Which.
        scale: How large the tensors are.
    """
    barrier = threading.Barrier(_WRITERS)
    values: list[object] = [None] * _WRITERS

    def work(rank: int) -> None:
        writers: Writers = _Threads(barrier, values, rank)
        with SaveDirectory(directory, writers=writers) as place:
            for iteration in iterations:
                place.write(content_of(iteration, iteration, rank=rank, size=_WRITERS, scale=scale))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(_WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@dataclass(frozen=True)
class Corruption:
    """One way of damage.

    Attributes:
        kind: Its name.
        files: Names of the files whose content is not what it was.
        chunks: File, key and offsets of the chunks that are not what they were.
    """

    kind: str
    files: tuple[str, ...]
    chunks: frozenset[tuple[str, str, tuple[int, ...]]]


class Corruptor:
    """Damages a checkpoint and repairs it again.

    Args:
        root: Directory that is filled with the checkpoints.
        seed: Of what is random.
    """

    def __init__(self, root: Path, seed: int) -> None:
        save_together(root, [OLD, NEW])
        self.path = root / layout.iteration_name(NEW)
        self._older = _contents(root / layout.iteration_name(OLD))
        self._original = _contents(self.path)
        self._chance = random.Random(seed)
        self._names = sorted(self._original)
        self.spans = {name: record.spans for name, record in read_manifest(self.path).files.items()}
        self.kinds: dict[str, Callable[[], Sequence[str]]] = {
            "bit flip": self._flip,
            "bytes overwritten": self._overwrite,
            "page of zeros": self._zero_page,
            "cut off": self._cut_off,
            "extended": self._extend,
            "missing file": self._remove,
            "file of another rank": self._swap_ranks,
            "file of another iteration": self._older_file,
            "all but one file of another iteration": self._all_older_but_one,
            "all files of another iteration": self._all_older,
            "chunks exchanged in a file": self._exchange_chunks,
            "two bit flips in one chunk": self._flip_twice,
        }

    def corrupt(self, kind: str) -> Corruption | None:
        """Damages the checkpoint in one way; None when chance chose to change nothing."""
        content = {name: self._content(name) for name in self.kinds[kind]()}
        files = tuple(name for name, now in content.items() if now != self._original[name])
        chunks = {
            (name, span.key, span.offsets)
            for name in files
            for span in self.spans.get(name, ())
            if _cut(content[name] or b"", span) != _cut(self._original[name], span)
        }
        return Corruption(kind, files, frozenset(chunks)) if files else None

    def repair(self, done: Corruption) -> None:
        """Undoes what `corrupt` did."""
        for name in done.files:
            (self.path / name).write_bytes(self._original[name])

    def _content(self, name: str) -> bytes | None:
        path = self.path / name
        return path.read_bytes() if path.exists() else None

    def _any(self) -> tuple[str, bytearray]:
        # Mostly what is large: a byte of the checkpoint is damaged, not a file.
        weights = [len(self._original[name]) + 2000 for name in self._names]
        name = self._chance.choices(self._names, weights)[0]
        return name, bytearray(self._original[name])

    def _write(self, name: str, content: bytes | bytearray) -> None:
        (self.path / name).write_bytes(content)

    def _flip(self) -> Sequence[str]:
        name, content = self._any()
        at = self._chance.randrange(len(content))
        content[at] ^= 1 << self._chance.randrange(8)
        self._write(name, content)
        return (name,)

    def _flip_twice(self) -> Sequence[str]:
        name = self._chance.choice([name for name, spans in self.spans.items() if spans])
        content = bytearray(self._original[name])
        span = self._chance.choice(self.spans[name])
        places = [span.start + self._chance.randrange(span.length) for _ in range(2)]
        for at in places:
            content[at] ^= 1 << self._chance.randrange(8)
        self._write(name, content)
        return (name,)

    def _overwrite(self) -> Sequence[str]:
        name, content = self._any()
        at = self._chance.randrange(len(content))
        count = min(self._chance.randint(1, 64), len(content) - at)
        content[at : at + count] = self._chance.randbytes(count)
        self._write(name, content)
        return (name,)

    def _zero_page(self) -> Sequence[str]:
        name, content = self._any()
        at = self._chance.randrange(0, len(content), _PAGE)
        content[at : at + _PAGE] = bytes(len(content[at : at + _PAGE]))
        self._write(name, content)
        return (name,)

    def _cut_off(self) -> Sequence[str]:
        name, content = self._any()
        self._write(name, content[: self._chance.randrange(len(content))])
        return (name,)

    def _extend(self) -> Sequence[str]:
        name, content = self._any()
        self._write(name, content + self._chance.randbytes(self._chance.randint(1, 5000)))
        return (name,)

    def _remove(self) -> Sequence[str]:
        name = self._chance.choice(self._names)
        (self.path / name).unlink()
        return (name,)

    def _swap_ranks(self) -> Sequence[str]:
        names = [name for name in self._names if name.endswith(".distcp")]
        first, second = self._chance.sample(names, 2)
        self._write(first, self._original[second])
        if self._chance.random() < 0.5:
            return (first,)
        self._write(second, self._original[first])
        return (first, second)

    def _older_file(self) -> Sequence[str]:
        name = self._chance.choice(self._names)
        self._write(name, self._older[name])
        return (name,)

    def _all_older_but_one(self) -> Sequence[str]:
        kept = self._chance.choice(self._names)
        for name in self._names:
            if name != kept:
                self._write(name, self._older[name])
        return [name for name in self._names if name != kept]

    def _all_older(self) -> Sequence[str]:
        for name in self._names:
            self._write(name, self._older[name])
        return self._names

    def _exchange_chunks(self) -> Sequence[str]:
        """Two chunks of one length change places; each is as good as it was, in the wrong place."""
        choices = [
            (name, first, second)
            for name, spans in self.spans.items()
            for i, first in enumerate(spans)
            for second in spans[i + 1 :]
            if first.length == second.length
        ]
        name, first, second = self._chance.choice(choices)
        content = bytearray(self._original[name])
        a = content[first.start : first.start + first.length]
        b = content[second.start : second.start + second.length]
        content[first.start : first.start + first.length] = b
        content[second.start : second.start + second.length] = a
        self._write(name, content)
        return (name,)


def _cut(content: bytes, span: SpanRecord) -> bytes:
    return content[span.start : span.start + span.length]


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def load_everything(path: Path) -> None:
    """Opens a checkpoint and reads all of its tensors.

    Raises:
        CheckpointError: It is damaged.
    """
    checkpoint = Checkpoint(path)
    for group in checkpoint.groups:
        checkpoint.tensors(group)


def corrupt_campaign(
    directory: Path, *, count: int, seed: int, say: Callable[[str], None] = lambda _: None
) -> Counter[str]:
    """Damages a checkpoint many times.

    Args:
        directory: Empty or missing; made for it.
        count: Number of corruptions.
        seed: Of what is random.
        say: Told about progress.

    Returns:
        How often each kind of damage was found.

    Raises:
        AssertionError: Damage was not found before the data was used, or not where it is.
    """
    if directory.exists():
        shutil.rmtree(directory)
    corruptor = Corruptor(directory, seed)
    load_everything(corruptor.path)
    if verify(corruptor.path).damages:
        raise AssertionError("the checkpoint is damaged before anything was done to it")
    found: Counter[str] = Counter()
    kinds = list(corruptor.kinds)
    while found.total() < count:
        done = corruptor.corrupt(kinds[found.total() % len(kinds)])
        if done is None:
            continue
        try:
            _check(corruptor, done)
        finally:
            corruptor.repair(done)
        found[done.kind] += 1
        if found.total() % 5000 == 0:
            say(f"{found.total()} of {count} corruptions")
    load_everything(corruptor.path)
    return found


def _check(corruptor: Corruptor, done: Corruption) -> None:
    try:
        load_everything(corruptor.path)
    except CheckpointError as error:
        message = str(error)
    else:
        raise AssertionError(f"{done}: loaded as if nothing were wrong")
    if str(corruptor.path) not in message:
        raise AssertionError(f"{done}: the message does not say where: {message}")
    damages = verify(corruptor.path, threads=1).damages
    if not damages:
        raise AssertionError(f"{done}: not found by verify")
    if layout.CHECKSUMS in done.files:
        # Without true checksums nobody knows which of the other files are as they were.
        if not any(layout.CHECKSUMS in str(damage) for damage in damages):
            raise AssertionError(f"{done}: verify says {damages}")
        return
    if {damage.file for damage in damages} != set(done.files):
        raise AssertionError(f"{done}: verify says {damages}")
    told = {(d.file, d.tensor, d.offsets) for d in damages if d.tensor is not None}
    if told != done.chunks:
        raise AssertionError(f"{done}: verify says {damages}")
