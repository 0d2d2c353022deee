"""What SIGTERM does to a training run."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

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
        self._previous: signal.Handlers | object = signal.SIG_DFL

    def __enter__(self) -> TermSignal:
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A forked data worker inherits this handler but has nothing to save.
            os._exit(EXIT_SIGTERM)
        self.received = True
        if not self._save_and_exit:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            raise SystemExit(EXIT_SIGTERM)
