"""The steps of the demo, each one a `megacore` command that is printed before it runs."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from rich.console import Console
from rich.panel import Panel

from megacore.demo.corpus import write_corpus
from megacore.errors import MegacoreError

_SPLIT = "950,50,0"
_PROBE_ITERS = 12
_RESUME_ITERS = 20
_PROMPTS = ("The function returns", "Create a new", "If the file does not exist,")


@dataclass(frozen=True)
class Recipe:
    """Sizes of the demo run; everything else is the same on every machine.

    Attributes:
        vocab_size: Entries of the trained BPE vocabulary.
        model: Architecture flags.
        seq_length: Tokens per sequence.
        micro_batch_size: Sequences per forward pass.
        global_batch_size: Sequences per optimizer step.
        lr: Peak learning rate.
        max_epochs: Bound on passes over the text, so that a fast machine does not overfit.
    """

    vocab_size: int
    model: str
    seq_length: int
    micro_batch_size: int
    global_batch_size: int
    lr: float
    max_epochs: float


_COMMON_MODEL = (
    " --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear"
    " --attention-dropout 0 --hidden-dropout "
)

# Many small steps learn the most from a few minutes; a text seen hardly more than once needs no
# dropout, one that a GPU reads many times does.
CPU_RECIPE = Recipe(
    vocab_size=4096,
    model="--num-layers 4 --hidden-size 256 --num-attention-heads 4" + _COMMON_MODEL + "0",
    seq_length=256,
    micro_batch_size=4,
    global_batch_size=4,
    lr=3e-3,
    max_epochs=6,
)
GPU_RECIPE = Recipe(
    vocab_size=8192,
    model="--num-layers 12 --hidden-size 512 --num-attention-heads 8" + _COMMON_MODEL + "0.1",
    seq_length=512,
    micro_batch_size=32,
    global_batch_size=64,
    lr=1e-3,
    max_epochs=12,
)


class Demo:
    """One run of the demo in one directory."""

    def __init__(self, directory: Path, recipe: Recipe, minutes: float, console: Console) -> None:
        self.directory = directory
        self.recipe = recipe
        self.seconds = 60.0 * minutes
        self.console = console
        self.text = directory / "corpus.jsonl"
        self.tokenizer = directory / "tokenizer"
        self.data = directory / "data"
        self.checkpoints = directory / "checkpoints"
        self.resumed = directory / "resumed"

    def run(self) -> None:
        """Prepares text, trains, resumes, plots and generates; prints where everything is."""
        started = time.monotonic()
        self._step("Gathering English text from the standard library of this Python")
        documents, size = write_corpus(self.text)
        self.console.print(f"  {documents} documents, {size / 1e6:.1f} MB in {self.text}")

        self._step("Training a byte-level BPE tokenizer")
        self._megacore(
            "data", "train-tokenizer", "--input", self.text, "--output", self.tokenizer,
            "--vocab-size", self.recipe.vocab_size,
        )  # fmt: skip
        self._step("Tokenizing")
        self._megacore(
            "preprocess", "--input", self.text, "--output-prefix", self.data,
            *self._tokenizer_flags(), "--append-eod",
        )  # fmt: skip

        self._step("Measuring this machine to choose the length of the run")
        iterations = self._choose_iterations()
        self._step(f"Training for {iterations} iterations")
        self._train(iterations, "--save", self.checkpoints)

        self._step("Proving that resume is bitwise exact")
        self._prove_resume(iterations)

        self._step("Drawing the curves")
        picture = self.directory / "curves.png"
        self._megacore("plot", self.checkpoints, "--output", picture)

        self._step("Generating")
        prompts = [item for prompt in _PROMPTS for item in ("--prompt", prompt)]
        self._megacore(
            "generate", "--load", self.checkpoints, *prompts, "--tokens-to-generate", 60,
            "--temperature", 0.7, "--top-p", 0.9, "--seed", 1,
        )  # fmt: skip
        self._summary(picture, time.monotonic() - started)

    def _step(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left")

    def _megacore(self, *arguments: object) -> None:
        words = [str(argument) for argument in arguments]
        self.console.print("  $ " + shlex.join(["megacore", *words]), style="cyan", highlight=False)
        sys.stdout.flush()
        result = subprocess.run([sys.executable, "-m", "megacore", *words], check=False)
        if result.returncode != 0:
            raise MegacoreError(
                f"`megacore {words[0]}` ended with exit code {result.returncode}; "
                "its message is above"
            )

    def _tokenizer_flags(self) -> list[str]:
        return [
            "--tokenizer-type", "GPT2BPETokenizer",
            "--vocab-file", str(self.tokenizer / "vocab.json"),
            "--merge-file", str(self.tokenizer / "merges.txt"),
        ]  # fmt: skip

    def _train(self, iterations: int, *extra: object) -> None:
        recipe = self.recipe
        self._megacore(
            "train", *shlex.split(recipe.model), "--seq-length", recipe.seq_length,
            "--max-position-embeddings", recipe.seq_length,
            "--micro-batch-size", recipe.micro_batch_size,
            "--global-batch-size", recipe.global_batch_size,
            "--train-iters", iterations, "--lr", recipe.lr, "--min-lr", recipe.lr / 10,
            "--lr-decay-style", "cosine", "--lr-warmup-iters", max(1, iterations // 20),
            "--weight-decay", 0.1, "--adam-beta2", 0.95, "--bf16",
            "--data-path", f"{self.data}_text_document", "--split", _SPLIT,
            *self._tokenizer_flags(),
            "--log-interval", 10, "--eval-interval", max(1, iterations // 8), "--eval-iters", 8,
            "--save-interval", max(1, iterations - _RESUME_ITERS), *extra,
        )  # fmt: skip

    def _choose_iterations(self) -> int:
        """Iterations that fill the time given, from the step time of a short run."""
        log = self.directory / "probe.jsonl"
        log.unlink(missing_ok=True)
        self._train(
            _PROBE_ITERS, "--log-interval", 1, "--eval-iters", 0, "--no-live-view",
            "--metrics-jsonl", log,
        )  # fmt: skip
        records = [json.loads(line) for line in log.read_text().splitlines()]
        times = sorted(
            record["elapsed time per iteration (ms)"]
            for record in records
            if "elapsed time per iteration (ms)" in record
        )
        step_seconds = times[len(times) // 2] / 1000.0
        tokens_per_step = self.recipe.global_batch_size * self.recipe.seq_length
        most = self.recipe.max_epochs * self._train_tokens() / tokens_per_step
        chosen = max(4 * _RESUME_ITERS, min(int(self.seconds / step_seconds), int(most)))
        self.console.print(
            f"  {step_seconds * 1000:.0f} ms per iteration: {chosen} iterations, "
            f"{chosen * tokens_per_step / 1e6:.2f} M tokens"
        )
        return chosen

    def _prove_resume(self, iterations: int) -> None:
        """Repeats the last iterations from the earlier checkpoint and compares the files."""
        step = iterations - _RESUME_ITERS
        shutil.rmtree(self.resumed, ignore_errors=True)
        self._train(
            iterations, "--save", self.resumed, "--load", self.checkpoints, "--ckpt-step", step,
            "--no-live-view",
        )  # fmt: skip
        name = f"iter_{iterations:07d}"
        # All tensors: weights, optimizer state and random states.
        files = sorted(path.name for path in (self.checkpoints / name).glob("*.distcp"))
        for file in files:
            first, second = self.checkpoints / name / file, self.resumed / name / file
            digests = [xxhash.xxh3_128(path.read_bytes()).hexdigest() for path in (first, second)]
            if digests[0] != digests[1]:
                raise MegacoreError(
                    f"resume is not exact: {first} and {second} differ "
                    f"(xxh3 {digests[0]} and {digests[1]})"
                )
            self.console.print(f"  {file}: uninterrupted == resumed, xxh3 {digests[0]}")

    def _train_tokens(self) -> int:
        return int(self._split_tokens(0).size)

    def _split_tokens(self, which: int) -> np.ndarray:
        """The tokens of the training (0) or validation (1) split, in file order."""
        from megacore.data import IndexedDataset, split_ranges

        dataset = IndexedDataset(f"{self.data}_text_document")
        first, last = split_ranges(_SPLIT, len(dataset))[which]
        return np.concatenate([dataset[index] for index in range(first, last)])

    def _summary(self, picture: Path, seconds: float) -> None:
        tokens = self._split_tokens(1)
        shares = np.bincount(tokens)[np.unique(tokens)] / tokens.size
        unigram = float(-(shares * np.log(shares)).sum())
        losses = _validation_losses(self.checkpoints / "metrics.jsonl")
        rows = [
            f"validation loss  {losses[-1]:.3f} nats/token (perplexity {math.exp(losses[-1]):.1f})",
            f"unigram entropy  {unigram:.3f} nats/token (perplexity {math.exp(unigram):.1f})",
            f"time             {seconds / 60:.1f} minutes",
            "",
            f"text             {self.text}",
            f"tokenizer        {self.tokenizer}",
            f"token files      {self.data}_text_document.bin, .idx",
            f"checkpoints      {self.checkpoints}",
            f"metrics          {self.checkpoints / 'metrics.jsonl'}",
            f"curves           {picture}",
            "",
            f"more text:       megacore generate --load {self.checkpoints} --prompt 'Return the'",
        ]
        self.console.print()
        self.console.print(Panel("\n".join(rows), title="megacore demo", expand=False))
        if losses[-1] >= unigram:
            raise MegacoreError(
                f"the model learned nothing: validation loss {losses[-1]:.3f} is not below "
                f"the unigram entropy {unigram:.3f}"
            )


def _validation_losses(metrics: Path) -> list[float]:
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [record["lm loss validation"] for record in records if "lm loss validation" in record]


def main(argv: list[str]) -> int:
    """Runs the demo; exit code 0 when every step worked and resume was exact."""
    parser = argparse.ArgumentParser(prog="megacore demo", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("demo_run"), help="where everything goes")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="time for the training itself, in minutes"
    )
    options = parser.parse_args(argv)
    import torch

    recipe = GPU_RECIPE if torch.cuda.is_available() else CPU_RECIPE
    if options.dir.exists() and not (options.dir / "corpus.jsonl").exists():
        raise MegacoreError(f"{options.dir} exists and is not a demo directory; choose another")
    shutil.rmtree(options.dir, ignore_errors=True)
    Demo(options.dir, recipe, options.minutes, Console(width=100)).run()
    return 0
