"""Looking into an indexed dataset: what `megacore data info` and `show` print."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megacore.data.indexed_dataset import IndexedDataset
from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError

_BAR_WIDTH = 40
_SCAN_BYTES = 64 << 20


@dataclass(frozen=True)
class DatasetSummary:
    """Figures of an indexed dataset.

    Attributes:
        prefix: Path without extension.
        dtype: Item type.
        sequences: Number of sequences.
        documents: Number of documents.
        empty_documents: Documents without any sequence.
        tokens: Number of items.
        bytes_on_disk: Size of both files.
        shortest, longest: Sequence lengths, 0 without sequences.
        mean: Mean sequence length.
        histogram: (first length, last length, sequences) in powers of two.
        lowest_id, highest_id: Range of the items, None without items.
    """

    prefix: str
    dtype: str
    sequences: int
    documents: int
    empty_documents: int
    tokens: int
    bytes_on_disk: int
    shortest: int
    longest: int
    mean: float
    histogram: tuple[tuple[int, int, int], ...]
    lowest_id: float | None
    highest_id: float | None


def summarize(prefix: str, *, multimodal: bool = False) -> DatasetSummary:
    """Reads both files of a dataset completely.

    Raises:
        DataError: A file is missing or damaged; the message says where.
    """
    dataset = IndexedDataset(prefix, multimodal=multimodal)
    lengths = np.asarray(dataset.sequence_lengths)
    per_document = np.diff(np.asarray(dataset.document_indices))
    low, high = _range(prefix, dataset)
    return DatasetSummary(
        prefix=prefix,
        dtype=str(dataset.dtype),
        sequences=len(dataset),
        documents=dataset.num_documents,
        empty_documents=int((per_document == 0).sum()),
        tokens=dataset.num_tokens,
        bytes_on_disk=sum(os.path.getsize(prefix + end) for end in (".bin", ".idx")),
        shortest=int(lengths.min()) if len(lengths) else 0,
        longest=int(lengths.max()) if len(lengths) else 0,
        mean=float(lengths.mean()) if len(lengths) else 0.0,
        histogram=_histogram(lengths),
        lowest_id=low,
        highest_id=high,
    )


def _range(prefix: str, dataset: IndexedDataset) -> tuple[float | None, float | None]:
    low: float | None = None
    high: float | None = None
    with open(prefix + ".bin", "rb") as file:
        while len(block := np.fromfile(file, dataset.dtype, _SCAN_BYTES // dataset.dtype.itemsize)):
            first, last = block.min().item(), block.max().item()
            low = first if low is None else min(low, first)
            high = last if high is None else max(high, last)
    return low, high


def _histogram(lengths: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    if not len(lengths):
        return ()
    # Bin 0 holds length 0, bin b the lengths 2^(b-1) to 2^b - 1.
    bins = np.frexp(lengths.astype(np.float64))[1]
    counts = np.bincount(bins)
    rows = []
    for b in range(int(bins.min()), len(counts)):
        first, last = (1 << b >> 1, (1 << b) - 1)
        rows.append((first, last, int(counts[b])))
    return tuple(rows)


def format_summary(summary: DatasetSummary) -> str:
    """The figures as text."""
    lines = [
        summary.prefix,
        f"  sequences   {summary.sequences:,}",
        f"  documents   {summary.documents:,}"
        + (f" ({summary.empty_documents:,} empty)" if summary.empty_documents else ""),
        f"  tokens      {summary.tokens:,}",
        f"  item type   {summary.dtype}",
        f"  on disk     {summary.bytes_on_disk:,} bytes (.bin and .idx)",
    ]
    if summary.lowest_id is not None:
        lines.append(f"  token ids   {summary.lowest_id:,} to {summary.highest_id:,}")
    if summary.histogram:
        lines.append(
            f"  lengths     {summary.shortest:,} to {summary.longest:,}, mean {summary.mean:,.1f}"
        )
        most = max(count for _, _, count in summary.histogram)
        for first, last, count in summary.histogram:
            span = f"{first:,}" if first == last else f"{first:,} - {last:,}"
            bar = "#" * -(-count * _BAR_WIDTH // most)
            lines.append(f"    {span:>21}  {count:>12,}  {bar}".rstrip())
    lines.append("  damage      none found")
    return "\n".join(lines)


def show_sequences(
    prefix: str,
    first: int,
    count: int,
    *,
    tokenizer: Tokenizer | None = None,
    max_tokens: int = 0,
    multimodal: bool = False,
) -> Iterator[str]:
    """Some sequences, as ids and as text.

    Args:
        prefix: Path of the dataset without extension.
        first: First sequence; negative counts from the end.
        count: Number of sequences.
        tokenizer: Gives the text; None shows ids alone.
        max_tokens: Show only so many items of each; 0 shows all.
        multimodal: The dataset has modes.

    Raises:
        DataError: There is no such sequence, or an id is not in the vocabulary.
    """
    dataset = IndexedDataset(prefix, multimodal=multimodal)
    begin = first + len(dataset) if first < 0 else first
    if not 0 <= begin < len(dataset):
        raise DataError(f"{prefix}: there is no sequence {first}; it has {len(dataset)}")
    boundaries = np.asarray(dataset.document_indices)
    for index in range(begin, min(begin + count, len(dataset))):
        ids = dataset[index]
        document = int(np.searchsorted(boundaries, index, side="right")) - 1
        shown = ids[:max_tokens] if max_tokens else ids
        more = f" (the first {len(shown)})" if len(shown) < len(ids) else ""
        yield f"sequence {index}, document {document}: {len(ids)} tokens{more}"
        yield "  ids:  " + " ".join(map(str, shown.tolist()))
        if tokenizer is not None:
            yield "  text: " + repr(tokenizer.detokenize(shown.tolist()))
