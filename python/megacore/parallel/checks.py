"""Whether all members of a group are about to call the same operation (`--check-collectives`).

Processes that call different operations, or with tensors of different shapes, hang, crash in the
transport or compute nonsense. Here they first describe their calls to each other through the
key-value store that they met at, and go on only when the descriptions agree. That costs a fraction
of a millisecond per process and call, so it is for finding a mistake and not for every day.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from torch.distributed import PrefixStore, Store

from megacore.errors import CommunicationError
from megacore.parallel.groups import StepRecord

_AGREED = "agreed"


class StoreChecker:
    """Compares the calls of the members of one group.

    Args:
        store: Shared by all processes of the run.
        group: Name of the group.
        ranks: Its members' ranks in the whole run.
        rank: This process among them.
        record: Where the current step is read from.
        timeout: How long the others are waited for.
    """

    def __init__(
        self,
        store: Store,
        *,
        group: str,
        ranks: Sequence[int],
        rank: int,
        record: StepRecord,
        timeout: timedelta,
    ) -> None:
        name = f"{group}-" + "-".join(map(str, ranks))
        self._store = PrefixStore(f"calls/{name}", store)
        self._latest = PrefixStore("calls/latest", store)
        self._group = group
        self._ranks = tuple(ranks)
        self._rank = rank
        self._record = record
        self._timeout = timeout
        self._number = 0
        self._transfers: Counter[str] = Counter()

    def check(self, operation: str, shape: Sequence[int], dtype: str) -> None:
        """Returns when all members have called it with the same arguments, in the same step.

        Args:
            operation: Name of a collective.
            shape: Of its tensor, where it is the same everywhere.
            dtype: Of its tensor.

        Raises:
            CommunicationError: Some called something else, or nothing within the timeout.
        """
        self._number += 1
        own = _describe(operation, shape, dtype, self._record.step)
        try:
            self._set_latest(f"{own} (number {self._number} of group {self._group})")
            self._store.set(f"{self._number}/{self._rank}", own)
            if self._store.add(f"{self._number}/count", 1) == len(self._ranks):
                self._store.set(f"{self._number}/verdict", self._verdict())
                self._forget(self._number - 1)
            verdict = self._wait_for_verdict()
        except RuntimeError as error:
            verdict = f"the calls could not be compared: {error}"
        if verdict != _AGREED:
            raise self._failure(operation, shape, dtype, verdict)

    def check_transfer(
        self, *, sender: int, receiver: int, tag: int, shape: Sequence[int], dtype: str
    ) -> None:
        """Compares a send with its receive, without waiting: whoever comes second does it.

        Args:
            sender: Index of the sending member.
            receiver: Index of the receiving member; one of the two is this process.
            tag: Of the message.
            shape: Of the tensor that is to be sent, or received into.
            dtype: Its dtype.

        Raises:
            CommunicationError: The other side has called it with another shape or dtype.
        """
        channel = f"{sender}-{receiver}-{tag}"
        self._transfers[channel] += 1
        key = f"{channel}/{self._transfers[channel]}"
        sends = self._rank == sender
        verb, other_verb = ("send", "recv") if sends else ("recv", "send")
        peer = self._ranks[receiver if sends else sender]
        operation = f"{verb} {'to' if sends else 'from'} rank {peer}"
        own, other = json.dumps([list(shape), dtype]), ""
        try:
            self._set_latest(_describe(operation, shape, dtype, self._record.step))
            self._store.set(f"{key}/{verb}", own)
            if self._store.check([f"{key}/{other_verb}"]):
                other = self._store.get(f"{key}/{other_verb}").decode()
        except RuntimeError as error:
            cause = f"the calls could not be compared: {error}"
            raise self._failure(operation, shape, dtype, cause) from error
        if other not in ("", own):
            found_shape, found_dtype = json.loads(other)
            cause = f"rank {peer} calls {other_verb} with a tensor {found_shape} {found_dtype}"
            raise self._failure(operation, shape, dtype, cause)
        if other:
            self._store.delete_key(f"{key}/{verb}")
            self._store.delete_key(f"{key}/{other_verb}")

    def _verdict(self) -> str:
        keys = [f"{self._number}/{index}" for index in range(len(self._ranks))]
        calls = [call.decode() for call in self._store.multi_get(keys)]
        if len(set(calls)) == 1:
            return _AGREED
        by_call: dict[str, list[int]] = {}
        for rank, call in zip(self._ranks, calls, strict=True):
            by_call.setdefault(call, []).append(rank)
        texts = [f"{_numbered(ranks)}: {call}" for call, ranks in by_call.items()]
        return "the members call different operations: " + "; ".join(texts)

    def _wait_for_verdict(self) -> str:
        key = f"{self._number}/verdict"
        try:
            self._store.wait([key], self._timeout)
        except RuntimeError:
            return self._missing()
        return self._store.get(key).decode()

    def _missing(self) -> str:
        missing = [
            rank
            for index, rank in enumerate(self._ranks)
            if not self._store.check([f"{self._number}/{index}"])
        ]
        texts = []
        for rank in missing[:8]:
            latest = "nothing"
            if self._latest.check([str(rank)]):
                latest = self._latest.get(str(rank)).decode()
            texts.append(f"the last call of rank {rank} was {latest}")
        seconds = f"{self._timeout.total_seconds():g} s"
        who = _numbered(missing) if missing else "nobody; the store was too slow"
        return "; ".join([f"not called within {seconds} by {who}", *texts])

    def _set_latest(self, text: str) -> None:
        self._latest.set(str(self._ranks[self._rank]), text)

    def _forget(self, number: int) -> None:
        """Deletes the keys of a call that all members have finished."""
        if number > 0:
            for name in ("count", "verdict", *map(str, range(len(self._ranks)))):
                with suppress(RuntimeError):
                    self._store.delete_key(f"{number}/{name}")

    def _failure(
        self, operation: str, shape: Sequence[int], dtype: str, cause: str
    ) -> CommunicationError:
        return CommunicationError(
            rank=self._ranks[self._rank],
            operation=operation,
            group=self._group,
            ranks=self._ranks,
            shape=shape if dtype else None,
            dtype=dtype or None,
            step=self._record.step,
            cause=cause,
        )


def _describe(operation: str, shape: Sequence[int], dtype: str, step: int | None) -> str:
    tensor = f" of a tensor {list(shape)} {dtype}" if dtype else ""
    when = "before the first step" if step is None else f"in step {step}"
    return f"{operation}{tensor} {when}"


def _numbered(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:16])) + (", ..." if len(ranks) > 16 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
