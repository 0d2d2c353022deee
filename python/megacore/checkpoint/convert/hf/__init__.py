"""Hugging Face directories, both ways: one module per family, listed in `families`.

`open_source` and `make_target` are what `convert.registry` asks of a format.
"""

from __future__ import annotations

from pathlib import Path

from megacore.checkpoint.convert.hf.source import HuggingFaceSource
from megacore.checkpoint.convert.hf.target import HuggingFaceTarget
from megacore.checkpoint.convert.model_stream import SourceOptions, TargetOptions


def matches(path: Path) -> bool:
    """Whether a directory is one of Hugging Face."""
    return (path / "config.json").is_file()


def open_source(path: Path, options: SourceOptions | None = None) -> HuggingFaceSource:
    """Opens a Hugging Face directory.

    Raises:
        CheckpointError: It cannot be converted; the message says all of why.
    """
    return HuggingFaceSource(Path(path), options or SourceOptions())


def make_target(options: TargetOptions | None = None) -> HuggingFaceTarget:
    """A Hugging Face directory to be written.

    Raises:
        UsageError: There is no such family.
    """
    return HuggingFaceTarget(options or TargetOptions())
