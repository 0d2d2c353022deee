"""Processes that write one checkpoint together and meet at a key-value store.

The processes that train have collective operations for it; the ones that write in the background
must not disturb those, and have only the store at which all met.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from torch.distributed import FileStore, PrefixStore, Store, TCPStore

from megacore.errors import CheckpointError

_ABANDONED = "abandoned"
# A process that waits looks again after a pause, which grows: a save takes seconds or minutes.
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.25


@dataclass(frozen=True)
class StoreAddress:
    """Where a store is.

    Attributes:
        host: Machine that serves it; None for a store in a file.
        port: Its port.
        path: The file.
        prefix: Of all keys.
    """

    prefix: str
    host: str | None = None
    port: int = 0
    path: str = ""

    def connect(self) -> Store:
        """The store.

        Raises:
            CheckpointError: It cannot be reached.
        """
        try:
            if self.host is None:
                return PrefixStore(self.prefix, FileStore(self.path, -1))
            store = TCPStore(self.host, self.port, is_master=False, wait_for_workers=False)
        except RuntimeError as error:
            where = self.path or f"{self.host}:{self.port}"
            raise CheckpointError(
                f"the processes that save in the background cannot meet at {where}: {error}"
            ) from error
        return PrefixStore(self.prefix, store)


def address_of(store: Store, prefix: str) -> StoreAddress:
    """Where another process finds a store.

    Args:
        store: The store of this process.
        prefix: Of the keys, in a name space of its own.

    Raises:
        CheckpointError: Only this process can reach it.
    """
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if isinstance(store, TCPStore):
        return StoreAddress(prefix, host=store.host, port=store.port)
    if isinstance(store, FileStore):
        # The stubs of PyTorch leave its path out.
        path: str = store.path  # type: ignore[attr-defined]
        return StoreAddress(prefix, path=str(Path(path).absolute()))
    raise CheckpointError(
        f"--async-save: other processes cannot reach the {type(store).__name__} of this run"
    )


class StoreWriters:
    """The writers of a checkpoint, meeting at a store.

    Args:
        store: The store, with keys of their own.
        rank: Which of them this process is.
        size: How many there are.
        ending: Set from outside when this process is to give up.
    """

    def __init__(self, store: Store, *, rank: int, size: int, ending: Event) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._ending = ending
        self._round = 0

    def exchange(self, value: Any) -> list[Any]:
        """The values, which JSON can hold, that all of them gave, in order.

        Raises:
            CheckpointError: One of them has given up, or the store is gone.
        """
        turn, self._round = self._round, self._round + 1
        own = [f"{turn}/{rank}" for rank in range(self.size)]
        try:
            self._store.set(own[self.rank], json.dumps(value))
            if self.rank == 0:
                # One process collects: each of the others then asks once, not once per process.
                self._wait(own)
                texts = [self._store.get(key).decode() for key in own]
                self._store.set(f"{turn}/all", json.dumps(texts))
                self._forget(turn - 1)
            else:
                self._wait([f"{turn}/all"])
                texts = json.loads(self._store.get(f"{turn}/all"))
        except RuntimeError as error:
            raise CheckpointError(
                f"the processes that save in the background lost each other: {error}"
            ) from error
        return [json.loads(text) for text in texts]

    def _forget(self, turn: int) -> None:
        """Removes the keys of an exchange that everybody has left: all are in the next one."""
        for key in (*(str(rank) for rank in range(self.size)), "all"):
            if turn >= 0:
                self._store.delete_key(f"{turn}/{key}")

    def _wait(self, keys: list[str]) -> None:
        # Not the store's own waiting: it cannot be left when another process gives up.
        pause = _FIRST_PAUSE_S
        while not self._store.check(keys):
            if self._ending.is_set() or self._store.check([_ABANDONED]):
                raise CheckpointError("another process of the run has ended")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def abandon(self) -> None:
        """Tells the others that this process will not take part any more."""
        self._store.set(_ABANDONED, str(self.rank))
