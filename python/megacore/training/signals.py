"""What SIGTERM does to a training run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from megacore.errors import EXIT_SIGTERM


class TermSignal:
    """Takes over SIGTERM inside a `with` block.

    With `save_and_exit` the signal is only noted: the loop looks at `received` after each
    iteration, saves and leaves with exit code 0. Otherwise the first signal unwinds the program
    with SystemExit(143), so that event files are flushed and the terminal is restored; whatever a
    save was writing stays unpublished. A second signal then ends the process at once.
    """

    def __init__(self, *, save_and_exit: bool) -> None:
        self.received = False
        self._save_and_exit = save_and_exit
        self._owner = os.getpid()
        self._previous: Callable[[int, FrameType | None], Any] | int | None = None

    def __enter__(self) -> TermSignal:
        if threading.current_thread() is not threading.main_thread():
            # Only the main thread may take over a signal; elsewhere the run cannot be told to stop.
            return self
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A forked data worker inherits this handler but has nothing to save.
            os._exit(EXIT_SIGTERM)
        self.received = True
        if not self._save_and_exit:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            raise SystemExit(EXIT_SIGTERM)
