"""The planner against the engine on this machine: time and peak tensor memory of training steps.

    python benchmarks/bench_planner.py [--processes 1,2,4] [--steps 12] [--rounds 3]
                                       [--only NAME ...] [--no-memory] [--markdown]

For each number of processes: calibrates as many processes at a time, one thread each (`megacore
plan calibrate --processes N --threads 1`), then runs every configuration with the training loop
over Gloo and compares the median step with the estimate. None of the calibrated models is among the
configurations. Peak memory is that of all tensors of the process with most of them, counted at
every operation while the same run trains two steps.

The machine must be quiet: everything is wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megacore.planning.calibrate import calibrate
from megacore.planning.calibrate_steps import median_step
from megacore.planning.estimates import StepEstimate, estimate
from megacore.planning.hardware import HardwareProfile, load_profile
from megacore.planning.layouts import Layout
from megacore.planning.model_shape import PlanModel
from megacore.training.run_config import parse_run

WARM_UP = 3
VOCABULARY = 8192


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run to predict and to measure."""

    name: str
    layers: int = 4
    hidden: int = 384
    length: int = 256
    batch: int = 4
    dtype: str = "fp32"
    more: str = ""
    layout: dict[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        made = Layout(**self.layout)
        return made.tp * made.pp * made.cp * made.dp

    def flags(self, steps: int) -> list[str]:
        """Flags of `megacore train` without those of the layout."""
        words = (
            f"--num-layers {self.layers} --hidden-size {self.hidden} "
            f"--num-attention-heads {self.hidden // 64} --seq-length {self.length} "
            f"--max-position-embeddings {self.length} --global-batch-size {self.batch} "
            f"--train-iters {steps} --lr 1e-4 --eval-iters 0 --mock-data --log-interval 1 "
            f"--tokenizer-type NullTokenizer --vocab-size {VOCABULARY - 1} --peak-tflops 1 "
            f"--hidden-dropout 0 --attention-dropout 0 {self.more}"
        )
        return words.split() + ([] if self.dtype == "fp32" else [f"--{self.dtype}"])


CASES = (
    Case(name="1: base", layout={"micro_batch": 2}),
    Case(name="1: wide", hidden=640, layers=2, layout={"micro_batch": 1}),
    Case(name="1: long", length=768, batch=2, layout={"micro_batch": 1}),
    Case(
        name="1: llama",
        more="--swiglu --normalization RMSNorm --position-embedding-type rope "
        "--disable-bias-linear --untie-embeddings-and-output-weights",
        layout={"micro_batch": 1},
    ),
    Case(name="1: full recompute", layout={"micro_batch": 2, "recompute": "full"}),
    Case(name="2: dp", batch=8, layout={"dp": 2, "micro_batch": 2}),
    Case(name="2: dp, ZeRO-1", batch=8, layout={"dp": 2, "micro_batch": 2, "sharding": "optim"}),
    Case(
        name="2: dp, sharded",
        batch=4,
        layout={
            "dp": 2,
            "micro_batch": 2,
            "sharding": "optim_grads_params",
            "overlap_grad_reduce": True,
            "overlap_param_gather": True,
        },
    ),
    Case(name="2: tp", layout={"tp": 2, "micro_batch": 2}),
    Case(name="2: tp, sp", layout={"tp": 2, "sequence_parallel": True, "micro_batch": 2}),
    Case(
        name="2: pp",
        batch=8,
        layout={"pp": 2, "schedule": "1f1b", "micro_batch": 1},
    ),
    Case(
        name="2: pp, interleaved",
        batch=8,
        layout={"pp": 2, "schedule": "interleaved", "virtual_stages": 2, "micro_batch": 1},
    ),
    Case(
        name="2: pp, zb-v",
        batch=8,
        layout={
            "pp": 2,
            "schedule": "zb-v",
            "virtual_stages": 2,
            "micro_batch": 1,
        },
    ),
    Case(name="2: cp", length=512, layout={"cp": 2, "micro_batch": 1}),
    Case(name="4: dp", batch=8, layout={"dp": 4, "micro_batch": 1, "sharding": "optim"}),
    Case(
        name="4: tp x dp",
        batch=8,
        layout={"tp": 2, "dp": 2, "sequence_parallel": True, "micro_batch": 2},
    ),
    Case(
        name="4: tp x pp",
        batch=8,
        layout={"tp": 2, "pp": 2, "schedule": "1f1b", "micro_batch": 1},
    ),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: seconds and bytes."""

    name: str
    predicted_s: float
    measured_s: float
    predicted_bytes: float
    measured_bytes: float

    @property
    def time_error(self) -> float:
        return self.predicted_s / self.measured_s - 1

    @property
    def memory_error(self) -> float:
        return self.predicted_bytes / self.measured_bytes - 1


def predict(case: Case, profile: HardwareProfile) -> StepEstimate:
    run = parse_run([*case.flags(1), "--micro-batch-size", "1"], environment={})[0]
    model = PlanModel.of(run, vocab_size=VOCABULARY)
    return estimate(Layout(**case.layout), model, profile, case.batch)


def launch(case: Case, steps: int, *, meters: bool) -> tuple[float, int]:
    """Trains; returns the median step and the peak of tensor memory (0 without meters)."""
    run = parse_run([*case.flags(1), "--micro-batch-size", "1"], environment={})[0]
    model = PlanModel.of(run, vocab_size=VOCABULARY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        words = [*case.flags(steps), *Layout(**case.layout).flags(model)]
        words += ["--metrics-jsonl", str(metrics)]
        size = case.processes
        workers = []
        for rank in range(size):
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            if size > 1:
                environment |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(size),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            output = str(Path(folder) / f"peak_{rank}") if meters else ""
            command = [sys.executable, __file__, "--worker", output, *words]
            workers.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
            )
        for worker in workers:
            _, errors = worker.communicate()
            if worker.returncode:
                raise SystemExit(f"{case.name}: {errors.decode()}")
        peaks = [int(path.read_text()) for path in Path(folder).glob("peak_*")]
        return median_step(metrics, skip=WARM_UP if steps > WARM_UP else 0), max(peaks, default=0)


def work(output: str, words: list[str]) -> None:
    """One process of a run: `megacore train`, with tensors counted if there is an output."""
    import torch

    from megacore.planning.measure import Meter
    from megacore.training.pretrain import pretrain

    torch.set_num_threads(1)
    run = parse_run(words)[0]
    if not output:
        pretrain(run)
        return
    meter = Meter()
    with meter, meter.measure() as use:
        pretrain(run)
    Path(output).write_text(str(use.peak_bytes))


def compare(case: Case, profile: HardwareProfile, args: argparse.Namespace) -> Row:
    plan = predict(case, profile)
    times = [launch(case, args.steps + WARM_UP, meters=False)[0] for _ in range(args.rounds)]
    if not times:
        times = [float("nan")]
    # Buffers of sharded parameters are emptied between their uses, which the meter does not see.
    is_seen = case.layout.get("sharding") not in ("optim_grads", "optim_grads_params")
    peak = launch(case, 2, meters=True)[1] if is_seen and not args.no_memory else 0
    tensors = sum(
        size for name, size in plan.memory.items() if name not in ("allocator", "reserve")
    )
    return Row(
        name=case.name,
        predicted_s=plan.step_s,
        measured_s=statistics.median(times),
        predicted_bytes=tensors,
        measured_bytes=peak or float("nan"),
    )


def profile_for(size: int, args: argparse.Namespace) -> HardwareProfile:
    """The profile of so many processes at a time, measured or from --profiles."""
    file = Path(args.profiles or ".") / f"cpu_{size}.toml"
    if args.profiles and file.exists():
        return load_profile(str(file))
    profile = calibrate(processes=size, threads=1, dtypes=("fp32",), budget_s=args.budget)
    if args.profiles:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(profile.to_toml())
    return profile


def line(row: Row, markdown: bool) -> str:
    cells = [
        f"{row.name:26s}",
        f"{row.measured_s * 1e3:8.1f}",
        f"{row.predicted_s * 1e3:8.1f}",
        f"{row.time_error:+7.1%}",
        f"{row.measured_bytes / 2**20:8.2f}",
        f"{row.predicted_bytes / 2**20:8.2f}",
        f"{row.memory_error:+7.1%}",
    ]
    return "| " + " | ".join(cells) + " |" if markdown else "  ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.3, help="seconds of each measurement")
    parser.add_argument("--profiles", help="folder of profiles, kept for the next time")
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of names")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()
    rows = []
    head = ("configuration", "measured", "estimate", "error", "MiB", "estimate", "error")
    print(" | ".join(head) if args.markdown else "  ".join(head))
    for size in map(int, args.processes.split(",")):
        cases = [
            case
            for case in CASES
            if case.processes == size
            and (not args.only or any(case.name.startswith(one) for one in args.only))
        ]
        if not cases:
            continue
        profile = profile_for(size, args)
        for case in cases:
            rows.append(compare(case, profile, args))
            print(line(rows[-1], args.markdown), flush=True)
    for what in ("time", "memory"):
        errors = sorted(abs(getattr(row, f"{what}_error")) for row in rows)
        errors = [error for error in errors if error == error]
        if errors:
            print(
                f"{what}: median error {statistics.median(errors):.1%}, worst {errors[-1]:.1%} "
                f"of {len(errors)} configurations"
            )
    if args.json:
        Path(args.json).write_text(json.dumps([row.__dict__ for row in rows], indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3:])
    else:
        main()
