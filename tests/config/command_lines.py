"""Command lines that several tests start from."""

from __future__ import annotations

SMALL = {
    "--num-layers": "2",
    "--hidden-size": "64",
    "--num-attention-heads": "4",
    "--seq-length": "64",
    "--max-position-embeddings": "64",
    "--micro-batch-size": "2",
    "--train-iters": "10",
    "--lr": "1e-3",
    "--mock-data": "",
    "--tokenizer-type": "NullTokenizer",
    "--vocab-size": "100",
}


def small(extra: str = "", *, without: str = "") -> list[str]:
    """A command line of a small run that is valid.

    Args:
        extra: Words to add; they win over the flags of the small run.
        without: Flags of the small run to leave out.
    """
    left = {name: value for name, value in SMALL.items() if name not in without.split()}
    return " ".join(f"{name} {value}" for name, value in left.items()).split() + extra.split()
