"""MB/s of `megacore preprocess` with GPT-2's BPE against a plain loop over `tokenizers`, same run.

    python benchmarks/bench_preprocess.py [--text FILE] [--megabytes 40] [--repeats 3]
        [--backend auto|gigatoken] [--workers N]

Both sides are whole processes, start-up and writing included, on the same JSON lines, in turns.
The peer is what a user writes first: one process per core, each with every n-th line, `json.loads`,
one `encode` per document, ids to a file. The ids of both sides are compared.

Text: `--text` (plain or .gz/.dz; the Debian package dict-gcide has 40 MB of varied English in
usr/share/dictd/gcide.dict.dz), else documentation and sources of this Python's standard library.
Vocabulary: encoder.json and vocab.bpe of GPT-2 from .cache/tokenizers, else one of the same size
learned from the text.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENT_CHARS = 3500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        run_peer(options.workers, *options.peer)
        return
    with tempfile.TemporaryDirectory() as name:
        compare(options, Path(name))


def compare(options: argparse.Namespace, folder: Path) -> None:
    source = folder / "text.jsonl"
    size = make_text(options.text, source, options.megabytes)
    vocabulary = find_vocabulary(folder, source)
    seconds: dict[str, list[float]] = {"megacore": [], "tokenizers loop": []}
    for _ in range(options.repeats):
        for side, command in (
            ("megacore", our_command(options, source, folder / "ours", vocabulary)),
            ("tokenizers loop", peer_command(options, source, folder / "peer", vocabulary)),
        ):
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            seconds[side].append(time.perf_counter() - begin)
    tokens = check_ids(folder, options.workers)
    cores = options.workers
    print(
        f"{size / 1e6:.1f} MB of JSON lines, {tokens:,} tokens (ids equal), {cores} processes, "
        f"median of {options.repeats}"
    )
    for side, times in seconds.items():
        middle = statistics.median(times)
        speed = size / 1e6 / middle
        spread = f"{min(times):.2f} to {max(times):.2f} s"
        print(f"{side:>16}: {speed:6.2f} MB/s, {speed / cores:5.2f} per core ({spread})")
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def our_command(
    options: argparse.Namespace, source: Path, out: Path, vocabulary: tuple[str, str]
) -> list[str]:
    return [
        *(sys.executable, str(REPOSITORY / "tools" / "preprocess_data.py")),
        *("--input", str(source), "--output-prefix", str(out)),
        *("--tokenizer-type", "GPT2BPETokenizer", "--tokenizer-backend", options.backend),
        *("--vocab-file", vocabulary[0], "--merge-file", vocabulary[1]),
        *("--workers", str(options.workers), "--append-eod"),
    ]


def peer_command(
    options: argparse.Namespace, source: Path, out: Path, vocabulary: tuple[str, str]
) -> list[str]:
    return [
        *(sys.executable, __file__, "--workers", str(options.workers)),
        *("--peer", str(source), str(out), *vocabulary),
    ]


def run_peer(workers: int, source: str, out: str, vocab_file: str, merge_file: str) -> None:
    arguments = [(source, out, vocab_file, merge_file, i, workers) for i in range(workers)]
    with multiprocessing.Pool(workers) as pool:
        pool.map(peer_loop, arguments)


def peer_loop(arguments: tuple[str, str, str, str, int, int]) -> None:
    source, out, vocab_file, merge_file, number, workers = arguments
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(vocab_file, merge_file))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    eod = tokenizer.token_to_id("<|endoftext|>")
    with open(source, encoding="utf-8") as lines, open(f"{out}_{number}", "wb") as file:
        for i, line in enumerate(lines):
            if i % workers == number:
                ids = tokenizer.encode(json.loads(line)["text"]).ids
                file.write(np.array([*ids, eod], dtype=np.uint16).tobytes())


def check_ids(folder: Path, workers: int) -> int:
    """Compares the ids of both sides, document by document; returns their number."""
    from megacore.data.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(folder / "ours_text_document"))
    streams = [np.fromfile(folder / f"peer_{i}", dtype=np.uint16) for i in range(workers)]
    positions = [0] * workers
    for i in range(len(dataset)):
        ids = dataset[i]
        begin = positions[i % workers]
        positions[i % workers] += len(ids)
        if not np.array_equal(ids, streams[i % workers][begin : begin + len(ids)]):
            raise SystemExit(f"document {i}: the ids differ")
    return dataset.num_tokens


def make_text(text: Path | None, target: Path, megabytes: float) -> int:
    limit, size = megabytes * 1e6, 0
    with open(target, "w", encoding="utf-8") as file:
        for document in documents(text):
            line = json.dumps({"text": document}) + "\n"
            file.write(line)
            size += len(line)
            if size >= limit:
                break
    return size


def documents(text: Path | None) -> Iterator[str]:
    if text is None:
        for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
            yield from pieces(path.read_text(encoding="utf-8", errors="replace"))
        return
    packed = text.suffix in (".gz", ".dz")
    content = gzip.decompress(text.read_bytes()) if packed else text.read_bytes()
    yield from pieces(content.decode("utf-8", "replace"))


def pieces(text: str) -> Iterator[str]:
    """The text in documents of some thousand characters that begin where a line does."""
    begin = 0
    for found in re.finditer(r"\n(?=\S)", text):
        if found.end() - begin >= DOCUMENT_CHARS:
            yield text[begin : found.end()]
            begin = found.end()
    if begin < len(text):
        yield text[begin:]


def find_vocabulary(folder: Path, source: Path) -> tuple[str, str]:
    cache = REPOSITORY / ".cache" / "tokenizers"
    files = str(cache / "encoder.json"), str(cache / "vocab.bpe")
    if all(map(os.path.isfile, files)):
        return files
    from megacore.cli import main as megacore

    words = ["data", "train-tokenizer", "--input", str(source), "--output", str(folder)]
    if megacore([*words, "--vocab-size", "50257"]):
        raise SystemExit("no vocabulary could be learned")
    return str(folder / "vocab.json"), str(folder / "merges.txt")


if __name__ == "__main__":
    main()
