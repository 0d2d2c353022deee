"""Training in several processes prints what one process prints, and ends together."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from training_worlds import Trained, full_weights, run_config, train_here
from worker_pool import WorkerPools

from megacore._C import pipeline
from megacore.errors import MegacoreError
from megacore.parallel.groups import Group
from megacore.training.log_line import parse_iteration, parse_validation
from megacore.training.seeding import rank_seed

FULL = "--log-params-norm"
TIMERS = "--timing-log-level 2 --timing-log-option all"
PIPELINE = "--pipeline-model-parallel-size 2"
SHARDED = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
UNTIED = "--untie-embeddings-and-output-weights"
PER_TOKEN = "--calculate-per-token-loss --eod-mask-loss"
RAMP = "--rampup-batch-size 4 4 24 --train-samples 60"

LAYOUTS = [
    (2, SHARDED, "--clip-grad 0.3"),
    (2, "", PER_TOKEN),
    (2, "", RAMP),
    (2, PIPELINE, RAMP),
    (2, f"{PIPELINE} --pipeline-schedule zb-v", ""),
    (2, f"{PIPELINE} --pipeline-schedule zb-h1 --no-overlap-p2p-communication", UNTIED),
    (2, f"{PIPELINE} --standalone-embedding-stage --variable-seq-lengths", "--num-layers 2"),
    (2, "--context-parallel-size 2", PER_TOKEN),
    (2, "--tensor-model-parallel-size 2 --sequence-parallel --tp-comm-overlap", "--swiglu"),
    (4, f"{PIPELINE} --num-layers-per-virtual-pipeline-stage 1 {SHARDED}", PER_TOKEN),
    (4, f"{PIPELINE} --tensor-model-parallel-size 2 --sequence-parallel", "--eod-mask-loss"),
    (4, "--context-parallel-size 2 --tensor-model-parallel-size 2 --cp-comm-type a2a", ""),
]


@functools.cache
def single(flags: str) -> Trained:
    return train_here(None, f"{FULL} {flags}", "float64")


def figures(printed: str) -> list[object]:
    """What the log says but for times and speeds."""
    found: list[object] = []
    for line in printed.splitlines():
        record = parse_iteration(line)
        if record is not None:
            found.append({k: v for k, v in vars(record).items() if k not in ("time", "elapsed_ms")})
        validation = parse_validation(line)
        if validation is not None:
            found.append(validation)
    return found


@pytest.mark.parametrize(("size", "layout", "flags"), LAYOUTS)
def test_the_log_is_that_of_one_process(
    world: WorkerPools, size: int, layout: str, flags: str
) -> None:
    wanted = single(flags)
    results = world(size).run(train_here, f"{FULL} {flags} {layout}", "float64")
    assert figures(results[0].printed) == figures(wanted.printed)
    assert len(figures(wanted.printed)) >= 8
    assert [result.printed for result in results[1:]] == [""] * (size - 1)
    expected, found = full_weights([wanted]), full_weights(results)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).norm() <= 1e-10 * weight.norm(), name


def test_a_schedule_from_a_file(world: WorkerPools, tmp_path: Path) -> None:
    schedule = pipeline.make_schedule("v-half", num_ranks=2, num_microbatches=8)
    file = tmp_path / "mine.csv"
    file.write_text(pipeline.to_csv(schedule))
    flags = f"{FULL} {PIPELINE} --pipeline-schedule-file {file}"
    results = world(2).run(train_here, flags, "float64")
    assert figures(results[0].printed) == figures(single("").printed)


def test_what_else_is_printed(world: WorkerPools) -> None:
    flags = "--tensor-model-parallel-size 2 --lr-warmup-iters 0 --train-iters 2"
    printed = world(2).run(train_here, f"{flags} {TIMERS}")[0].printed
    lines = printed.splitlines()
    counts = [line for line in lines if line.startswith(" > number of parameters on")]
    assert [line.split("rank ")[1].split(":")[0] for line in counts] == ["(0, 0)", "(1, 0)"]
    whole, halves = single(""), [int(line.rsplit(":", 1)[1]) for line in counts]
    shapes = [layout.local_shape for layout, _ in whole.weights.values()]
    assert halves[0] == halves[1] < sum(map(_elements, shapes)) < sum(halves)
    memory = [line for line in lines if "(after 1 iterations) memory (MB)" in line]
    assert [line.split("]")[0] for line in memory] == ["[Rank 0", "[Rank 1"]
    timers = printed.split("times across ranks (ms):")[2]
    for name in ("forward-compute", "backward-compute", "optimizer"):
        after = timers.split(f"  {name}:\n")[1].splitlines()
        assert [line.split(":")[0].strip() for line in after[:2]] == ["rank  0", "rank  1"]


def _elements(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def failing(world: Group, flags: str) -> tuple[str, str, bool]:
    """How a run ends on this process: class of the error, message, whether all say the same."""
    try:
        train_here(world, flags)
    except MegacoreError as error:
        return type(error).__name__, str(error), error.is_common
    return "", "", False


DIVERGES = "--lr 1e30 --lr-warmup-iters 0 --clip-grad 0 --eval-iters 0"


@pytest.mark.parametrize(
    ("layout", "culprit"), [("", 0), (PIPELINE, 1), ("--tensor-model-parallel-size 2", 0)]
)
def test_a_nan_ends_all_processes_with_the_same_words(
    world: WorkerPools, layout: str, culprit: int
) -> None:
    one, other = world(2).run(failing, f"{DIVERGES} {layout}")
    assert one == other
    kind, message, is_common = one
    assert (kind, is_common) == ("NonFiniteError", True)
    count = 8 if layout else 4
    assert message.startswith("iteration 2: the loss is ")
    assert f"(rank {culprit}, micro-batch 1 of {count})" in message


def test_tracing_names_the_layer_on_each_replica(world: WorkerPools) -> None:
    one, other = world(2).run(failing, f"{DIVERGES} --trace-nan")
    assert one == other
    for rank in range(2):
        assert f"\nrank {rank}, micro-batch 1: first non-finite: output of " in one[1]


def test_tracing_across_a_model_is_refused() -> None:
    with pytest.raises(MegacoreError, match="--trace-nan"):
        run_config(f"--trace-nan {PIPELINE}", 2)


def test_data_that_cannot_be_read_is_said_once(world: WorkerPools, tmp_path: Path) -> None:
    flags = f"--train-data-path {tmp_path}/nothing"
    (first, second) = world(2).run(failing_on_files, flags)
    assert first[0] == "DataError"
    assert str(tmp_path) in first[1]
    assert not first[2]
    assert second[2]


def failing_on_files(world: Group, flags: str) -> tuple[str, str, bool]:
    import training_worlds

    training_worlds.SMALL = training_worlds.SMALL.replace("--mock-data", "")
    try:
        return failing(world, flags)
    finally:
        training_worlds.SMALL += " --mock-data"


def train_until_told(world: Group, flags: str) -> Trained:
    return train_here(world, flags, told_to_end=world.rank == 1)


def test_a_signal_to_one_process_ends_all(world: WorkerPools) -> None:
    printed = world(2).run(train_until_told, f"{PIPELINE} --exit-signal-handler")[0].printed
    assert "[exiting program after receiving SIGTERM.]" in printed
    assert len([line for line in printed.splitlines() if parse_iteration(line)]) == 1
    # Without the flag nobody asks the others.
    printed = world(2).run(train_until_told, PIPELINE)[0].printed
    assert len([line for line in printed.splitlines() if parse_iteration(line)]) == 5


def test_seeds_of_processes() -> None:
    assert rank_seed(1234, pipeline_rank=3) == 1534
    context = {
        rank_seed(1, pipeline_rank=p, context_parallel_rank=c) for p in range(64) for c in range(64)
    }
    assert len(context) == 64 * 64
