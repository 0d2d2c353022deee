"""`megacore preprocess` and tools/preprocess_data.py."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from megacore.config.parser import parse
from megacore.data.preprocess.config import PreprocessConfig, PreprocessTokenizerConfig
from megacore.errors import EXIT_OK, EXIT_SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares text from a command line; returns the exit code."""
    parsed = parse(
        [PreprocessConfig, PreprocessTokenizerConfig],
        sys.argv[1:] if argv is None else argv,
        prog="megacore preprocess",
        description="Encode text files into PREFIX_KEY_document.bin/.idx for training.",
        abbreviations=True,
    )
    from megacore.data.preprocess.run import preprocess

    before = signal.signal(signal.SIGTERM, _stop)
    try:
        prefixes = preprocess(
            parsed.configs[PreprocessConfig], parsed.configs[PreprocessTokenizerConfig]
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    for prefix in prefixes:
        print(f"wrote {prefix}.bin and {prefix}.idx")
    return EXIT_OK


def _stop(number: int, frame: FrameType | None) -> None:
    # Leaves through the context managers, which remove the unfinished files and end the workers.
    raise SystemExit(EXIT_SIGTERM)
