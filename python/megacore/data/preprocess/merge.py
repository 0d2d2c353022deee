"""`megacore merge` and tools/merge_datasets.py: joins all datasets of a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from megacore.config.faults import required
from megacore.config.fields import flag
from megacore.config.parser import parse
from megacore.config.settings import value_faults
from megacore.errors import EXIT_OK, DataError, Fault


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Which datasets to join."""

    GROUP: ClassVar[str] = "merging"

    input: str | None = flag(
        "--input", default=None, help="folder whose .bin/.idx pairs are joined; required"
    )
    output_prefix: str | None = flag(
        "--output-prefix", default=None, help="prefix of the joined pair; required"
    )
    multimodal: bool = flag(
        "--multimodal", default=False, help="the datasets have a mode for every sequence"
    )

    def faults(self) -> Iterator[Fault]:
        """Required settings that are not given."""
        yield from value_faults(self)
        if not self.input:
            yield required("--input")
        if not self.output_prefix:
            yield required("--output-prefix")


def find_pairs(folder: str) -> list[str]:
    """Prefixes of all .bin/.idx pairs in a folder, sorted by name.

    Raises:
        DataError: There is no such folder, a pair is incomplete, or there is none.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot list the folder: {error.strerror or error}") from error
    found: dict[str, set[str]] = {}
    for name in names:
        stem, extension = os.path.splitext(name)
        if extension in (".bin", ".idx"):
            found.setdefault(stem, set()).add(extension)
    for stem, extensions in sorted(found.items()):
        for extension in (".bin", ".idx"):
            if extension not in extensions:
                raise DataError(
                    f"{folder}/{stem}{extension} is missing, "
                    f"but {stem}{min(extensions)} is there; remove or complete the pair"
                )
    if not found:
        raise DataError(f"{folder}: there is no .bin/.idx pair in the folder")
    return [str(Path(folder, stem)) for stem in sorted(found)]


def merge(config: MergeConfig) -> list[str]:
    """Joins datasets, copying them as they are.

    Args:
        config: Folder and output.

    Returns:
        The prefixes that were joined, in order.

    Raises:
        DataError: A dataset is missing, damaged or of another item type, or the disk is full.
    """
    from megacore.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter

    output = config.output_prefix or ""
    prefixes = find_pairs(config.input or "")
    if os.path.realpath(output) in {os.path.realpath(prefix) for prefix in prefixes}:
        raise DataError(
            f"{output}: the output is one of the inputs; choose a prefix outside {config.input}"
        )
    # All of them are looked at before any is copied.
    datasets = [IndexedDataset(prefix, multimodal=config.multimodal) for prefix in prefixes]
    dtype = datasets[0].dtype
    for dataset in datasets:
        if dataset.dtype != dtype:
            raise DataError(
                f"{dataset.prefix}.idx: expected items of type {dtype} as in "
                f"{datasets[0].prefix}.idx, found {dataset.dtype}"
            )
    del datasets
    with IndexedDatasetWriter(output, dtype, multimodal=config.multimodal) as writer:
        for prefix in prefixes:
            writer.append(prefix)
    return prefixes


def main(argv: Sequence[str] | None = None) -> int:
    """Joins datasets from a command line; returns the exit code."""
    parsed = parse(
        [MergeConfig],
        sys.argv[1:] if argv is None else argv,
        prog="megacore merge",
        description="Join all .bin/.idx datasets of a folder, in the order of their names.",
        abbreviations=True,
    )
    config: MergeConfig = parsed.configs[MergeConfig]
    prefixes = merge(config)
    print(f"joined {len(prefixes)} datasets into {config.output_prefix}.bin and .idx")
    return EXIT_OK
