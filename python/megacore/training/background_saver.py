"""Checkpoints that are written by other processes while training goes on (`--async-save`)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.distributed_c10d import _get_default_store

from megacore.checkpoint.background import BackgroundWriter
from megacore.checkpoint.config import CheckpointConfig
from megacore.checkpoint.content import collect
from megacore.checkpoint.pieces import Part
from megacore.checkpoint.store_writers import StoreAddress, address_of
from megacore.errors import CheckpointError
from megacore.parallel.groups import Group
from megacore.training.agreement import gathered_texts, largest
from megacore.training.saver import SaveRequest, retained, save_paths

# What an unfinished save may take when the run ends by an error or a signal: launchers kill after
# 30 seconds.
_GRACE_S = 20.0
# How long a process that has nothing else to do waits before it asks all again.
_LOOK_S = 0.1
# Keys of background processes in the store of the run.
_PREFIX = "background-save"


class BackgroundSaveError(CheckpointError):
    """A checkpoint could not be written in the background; all processes get the same message."""

    is_common = True


@dataclass(frozen=True)
class _Pending:
    iteration: int
    saved: Callable[[], None]


class BackgroundSaver:
    """Copies the state, and has it written by the background process of each process.

    One checkpoint is under way at most. Whether it is done is agreed upon between two iterations,
    so that all processes learn of a failure at the same place.

    Args:
        config: What is kept.
        start_iteration: Refuse directories that hold later iterations; None accepts them.
        group: The processes of the run.
        device: Where the group's backend wants its tensors.
        say: Prints a line.
        stack: Ends the background process with the run.

    Raises:
        CheckpointError: A directory cannot be claimed, or holds later iterations.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        *,
        start_iteration: int | None,
        group: Group,
        device: torch.device,
        say: Callable[[str], None],
        stack: ExitStack,
    ) -> None:
        self._config = config
        self._group = group
        self._device = device
        self._say = say
        self._pending: _Pending | None = None
        self._failure = ""
        self._writer = BackgroundWriter(
            save_paths(config),
            start_iteration=start_iteration,
            rank=group.rank,
            size=group.size,
            store=self._store_address() if group.size > 1 else None,
        )
        stack.callback(self._close)
        self._together(self._writer.wait_until_ready)

    def path(self, *, is_persistent: bool) -> Path:
        """The directory that such checkpoints go to."""
        return self._writer.directories[0 if is_persistent else 1]

    def prepare(self, parts: Sequence[Part]) -> None:
        """Finds the memory for the copies, so that the first save stalls no longer than others.

        Args:
            parts: What this process will write, about.

        Raises:
            CheckpointError: A process has not enough memory.
        """
        sizes = [part.data.nbytes for part in parts]
        pinned = any(part.data.is_cuda for part in parts)
        self._together(lambda: self._writer.prepare(sizes, pinned=pinned))

    def save(self, request: SaveRequest, saved: Callable[[], None]) -> None:
        """Copies the state; writing it goes on after this returns.

        Args:
            request: What to write.
            saved: Called when it is published, between two later iterations.

        Raises:
            CheckpointError: The one before could not be written.
        """
        if self._pending is not None:
            self.poll()
        if self._pending is not None:
            self._say(
                f"  waiting for the checkpoint of iteration {self._pending.iteration:7d}, which is "
                "still being written"
            )
            self.finish()
        content = collect(
            request.iteration,
            tensors=request.tensors,
            parts=request.parts,
            values=request.values,
        )
        try:
            self._writer.submit(
                content,
                directory=0 if request.is_persistent else 1,
                overwrite_newer=self._config.overwrite_newer_checkpoints,
                **retained(self._config, is_persistent=request.is_persistent),
            )
        except CheckpointError as error:
            # Raised by all processes together, when they look after this save.
            self._failure = str(error)
        self._pending = _Pending(request.iteration, saved)
        where = self.path(is_persistent=request.is_persistent)
        self._say(
            f"  scheduled an async checkpoint save at iteration {request.iteration:7d} to {where}"
        )

    def poll(self) -> None:
        """Notices a save that has ended; a collective operation while one is under way.

        Raises:
            CheckpointError: It could not be written.
        """
        self._look(0.0)

    def finish(self) -> None:
        """Waits until everything is published.

        Raises:
            CheckpointError: It could not be written.
        """
        while self._pending is not None:
            self._look(_LOOK_S)

    def _look(self, wait_s: float) -> None:
        pending = self._pending
        if pending is None:
            return
        failure, running = self._failure, not self._failure
        if running and self._writer.is_finished(wait_s):
            running = False
            try:
                if self._writer.in_flight is not None:
                    self._writer.wait()
            except CheckpointError as error:
                failure = str(error)
        # A process that failed and one that still waits for it must come to the same conclusion.
        state = [float(bool(failure)), float(running)]
        any_failed, any_running = largest(state, self._group, self._device)
        if any_failed:
            self._pending = None
            self._raise(pending.iteration, failure)
        if not any_running:
            self._pending = None
            pending.saved()

    def _raise(self, iteration: int, failure: str) -> None:
        failures = gathered_texts(failure, self._group, self._device)
        first = next(rank for rank, text in enumerate(failures) if text)
        where = f"rank {first}: " if self._group.size > 1 else ""
        raise BackgroundSaveError(
            f"the checkpoint of iteration {iteration} could not be saved in the background: "
            f"{where}{failures[first]}"
        )

    def _together(self, work: Callable[[], None]) -> None:
        """Does something that has to succeed in every process."""
        failure = ""
        try:
            work()
        except CheckpointError as error:
            failure = str(error)
        failures = gathered_texts(failure, self._group, self._device)
        found = next((text for text in failures if text), None)
        if found is not None:
            raise BackgroundSaveError(found)

    def _close(self) -> None:
        grace_s = 0.0
        if self._pending is not None:
            self._say(f"  finishing the checkpoint of iteration {self._pending.iteration:7d}")
            grace_s = _GRACE_S
        self._writer.close(grace_s=grace_s)

    def _store_address(self) -> StoreAddress:
        """Where the background processes of this run meet, with keys that no other run has used."""
        token = gathered_texts(secrets.token_hex(8), self._group, self._device)[0]
        return address_of(_get_default_store(), f"{_PREFIX}-{token}")
