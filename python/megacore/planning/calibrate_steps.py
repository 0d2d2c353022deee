"""Whole training steps of small models, as the training loop runs and times them."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megacore.parallel.groups import single_process_groups
from megacore.training.live_view import Screen
from megacore.training.pretrain import pretrain
from megacore.training.run_config import RunConfig, parse_run

_WARM_UP = 2
_MIN_STEPS, _MAX_STEPS = 3, 200
_VOCABULARY = 4096


@dataclass(frozen=True, kw_only=True)
class SmallModel:
    """A model and a batch whose step is timed.

    Attributes:
        layers: Number of layers.
        hidden: Width; heads are of width 64.
        length: Tokens of a sequence.
        micro_batch: Sequences of a micro-batch.
        num_microbatches: Of a step.
    """

    layers: int
    hidden: int
    length: int
    micro_batch: int
    num_microbatches: int

    def flags(self, dtype: str) -> list[str]:
        """Flags of `megacore train`; data is made up."""
        batch = self.micro_batch * self.num_microbatches
        words = (
            f"--num-layers {self.layers} --hidden-size {self.hidden} "
            f"--num-attention-heads {self.hidden // 64} --seq-length {self.length} "
            f"--max-position-embeddings {self.length} --micro-batch-size {self.micro_batch} "
            f"--global-batch-size {batch} --hidden-dropout 0 --attention-dropout 0 "
            f"--tokenizer-type NullTokenizer --vocab-size {_VOCABULARY - 1} --mock-data "
            "--lr 1e-4 --train-iters 1 --eval-iters 0 --log-interval 1 --peak-tflops 1"
        )
        return words.split() + ([] if dtype == "fp32" else [f"--{dtype}"])


# Each quantity dominates somewhere: products, attention, memory, starting operations, the step.
CPU_MODELS = (
    SmallModel(layers=2, hidden=512, length=256, micro_batch=1, num_microbatches=2),
    SmallModel(layers=2, hidden=128, length=1024, micro_batch=1, num_microbatches=1),
    SmallModel(layers=2, hidden=128, length=128, micro_batch=8, num_microbatches=1),
    SmallModel(layers=8, hidden=64, length=16, micro_batch=1, num_microbatches=4),
    SmallModel(layers=1, hidden=64, length=16, micro_batch=1, num_microbatches=1),
    SmallModel(layers=2, hidden=640, length=64, micro_batch=1, num_microbatches=1),
    SmallModel(layers=4, hidden=256, length=256, micro_batch=2, num_microbatches=1),
)
GPU_MODELS = (
    SmallModel(layers=4, hidden=4096, length=2048, micro_batch=1, num_microbatches=2),
    SmallModel(layers=4, hidden=1024, length=8192, micro_batch=1, num_microbatches=1),
    SmallModel(layers=4, hidden=1024, length=1024, micro_batch=8, num_microbatches=1),
    SmallModel(layers=16, hidden=256, length=64, micro_batch=1, num_microbatches=4),
    SmallModel(layers=1, hidden=256, length=64, micro_batch=1, num_microbatches=1),
    SmallModel(layers=4, hidden=6144, length=512, micro_batch=1, num_microbatches=1),
    SmallModel(layers=8, hidden=2048, length=2048, micro_batch=2, num_microbatches=1),
)


def small_models(device: torch.device) -> Sequence[SmallModel]:
    """What is timed on a device."""
    return GPU_MODELS if device.type == "cuda" else CPU_MODELS


def small_run(model: SmallModel, dtype: str) -> RunConfig:
    """The run of a model, for one process."""
    return parse_run(model.flags(dtype), environment={})[0]


def vocabulary() -> int:
    """Rows of their word embeddings."""
    return _VOCABULARY


def step_seconds(model: SmallModel, dtype: str, *, budget_s: float) -> float:
    """Median time of a step of one process, seconds.

    Args:
        model: What is trained.
        dtype: "fp32", "bf16" or "fp16".
        budget_s: About how long to train, after a few steps that warm up and tell how many fit.
    """
    first = _train(model, dtype, _MIN_STEPS)
    steps = min(_MAX_STEPS, round(budget_s / first))
    return first if steps <= _MIN_STEPS else _train(model, dtype, steps)


def _train(model: SmallModel, dtype: str, steps: int) -> float:
    with tempfile.TemporaryDirectory(prefix="megacore_calibrate_") as folder:
        metrics = Path(folder) / "metrics.jsonl"
        words = [*model.flags(dtype), "--metrics-jsonl", str(metrics)]
        words += ["--train-iters", str(steps + _WARM_UP)]
        run = parse_run(words, environment={})[0]
        pretrain(run, screen=Screen(silent=True), groups=single_process_groups())
        return median_step(metrics, skip=_WARM_UP)


def median_step(metrics: Path, *, skip: int) -> float:
    """Median time of a step in a file of metrics with one line per step, seconds.

    Args:
        metrics: As `--metrics-jsonl` wrote it.
        skip: First steps that do not count.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    times = [
        line["elapsed time per iteration (ms)"] / 1e3
        for line in lines
        if line.get("event") == "train"
    ]
    return statistics.median(times[skip:])
