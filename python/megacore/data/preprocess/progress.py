"""Progress lines of text preparation."""

from __future__ import annotations

import time
from typing import TextIO

# Broken records are shown one by one up to this many; all of them are counted.
_SHOWN_BROKEN = 20


class Progress:
    """Writes `Processed N documents (X docs/s, Y MB/s).` lines.

    Args of the constructor:
        stream: Where to, normally standard error.
        interval: Documents between two lines.
        total_bytes: Size of the input files on disk.
    """

    def __init__(self, stream: TextIO, interval: int, total_bytes: int) -> None:
        self._stream = stream
        self._interval = interval
        self._total_bytes = total_bytes
        self._start = time.monotonic()
        self._shown = 0
        self.documents = 0
        self.text_bytes = 0
        self.broken = 0

    def note(self, text: str) -> None:
        """One line of information."""
        print(text, file=self._stream, flush=True)

    def add(self, documents: int, text_bytes: int, consumed: int) -> None:
        """Counts what was done, and shows it when another interval is full.

        Args:
            documents: Documents that were added.
            text_bytes: Size of their text.
            consumed: Bytes of the input files read so far.
        """
        self.documents += documents
        self.text_bytes += text_bytes
        full = self.documents // self._interval
        if full > self._shown:
            self._shown = full
            done = min(consumed / self._total_bytes, 1.0) if self._total_bytes else 1.0
            elapsed = time.monotonic() - self._start
            left = _clock(elapsed * (1 - done) / done) if done > 0 else "?"
            self.note(f"{self._line(elapsed)} {100 * done:.0f} %, ETA {left}")

    def report_broken(self, what: str) -> None:
        """Shows a record that is left out: its file, line and fault."""
        self.broken += 1
        if self.broken <= _SHOWN_BROKEN:
            self.note(f"skipped {what}")
        elif self.broken == _SHOWN_BROKEN + 1:
            self.note("more records are skipped; only their number is shown")

    def finish(self) -> None:
        """The last line, with the totals."""
        elapsed = time.monotonic() - self._start
        skipped = f" Skipped {self.broken} broken records." if self.broken else ""
        self.note(f"{self._line(elapsed)} Done in {_clock(elapsed)}.{skipped}")

    def _line(self, elapsed: float) -> str:
        seconds = max(elapsed, 1e-9)
        return (
            f"Processed {self.documents} documents ({self.documents / seconds:.1f} docs/s, "
            f"{self.text_bytes / 1e6 / seconds:.2f} MB/s)."
        )


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
