"""What a run does with NaN, with overflow, and when it is asked to leave."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path

import pytest
import torch
from training_runs import arguments, iterations, losses, metrics, stored, train

from megacore.errors import UsageError
from megacore.training.live_view import Screen
from megacore.training.pretrain import pretrain
from megacore.training.run_config import parse_run
from megacore.training.step import NonFiniteError

# The first update throws every weight far away, so that the second forward overflows.
DIVERGES = "--lr 1e30 --clip-grad 0 --hidden-dropout 0 --attention-dropout 0"


def train_until_error(extra: str, error: type[Exception]) -> tuple[str, str]:
    """Message of the error that ends the run, and what was printed before it."""
    import io

    out = io.StringIO()
    run, origins = parse_run(arguments(extra))
    with pytest.raises(error) as caught:
        pretrain(run, origins, screen=Screen(live=False, stream=out))
    return str(caught.value), out.getvalue()


def test_a_nan_loss_stops_the_run_after_it_was_printed(tmp_path: Path) -> None:
    message, printed = train_until_error(
        f"{DIVERGES} --log-interval 100 --save {tmp_path} --save-interval 1000", NonFiniteError
    )
    assert message.startswith("iteration 2: the loss is ")
    assert "micro-batch 1 of 2" in message
    (record,) = iterations(printed)
    assert record.iteration == 2
    assert record.nan_iterations == 1
    assert not math.isfinite(record.losses["lm loss"])
    assert list(tmp_path.glob("iter_*")) == []
    (event,) = metrics(tmp_path / "metrics.jsonl", "train")
    assert event["lm loss"] in ("nan", "inf")


def test_tracing_names_the_layer() -> None:
    message, _ = train_until_error(f"{DIVERGES} --trace-nan", NonFiniteError)
    assert "micro-batch 1: first non-finite: output of " in message
    assert "shape [" in message


def test_without_the_check_the_run_goes_on_and_counts() -> None:
    records = iterations(train(f"{DIVERGES} --no-check-for-nan-in-loss-and-grad"))
    assert len(records) == 8
    assert [record.nan_iterations for record in records] == [0] + [1] * 7
    # A gradient that is not finite is never applied.
    assert [record.skipped_iterations for record in records] == [0] + [1] * 7
    assert all("lm loss" in record.losses for record in records)
    # Skipped iterations use up data but do not move the learning rate.
    assert {record.learning_rate for record in records} == {records[0].learning_rate}
    assert [record.consumed_samples for record in records] == list(range(4, 36, 4))


def test_tracing_does_not_change_a_run_that_goes_on() -> None:
    """An overflow in iteration 1 is traced; the run then goes on with the same random numbers."""
    flags = "--fp16 --initial-loss-scale 1e12 --hysteresis 1 --train-iters 30"
    assert losses(train(f"{flags} --trace-nan")) == losses(train(flags))
    flags = f"{DIVERGES} --no-check-for-nan-in-loss-and-grad"
    plain, traced = train(flags), train(f"{flags} --trace-nan")
    assert [r.nan_iterations for r in iterations(plain)] == [0] + [1] * 7
    assert [r.nan_iterations for r in iterations(traced)] == [0] + [1] * 7
    assert traced.count("first non-finite: output of ") == 7


def test_an_overflowing_gradient_is_named() -> None:
    message, printed = train_until_error("--fp16 --loss-scale 1e30 --trace-nan", NonFiniteError)
    assert message.startswith("iteration 1: the gradient norm is ")
    assert iterations(printed)[0].skipped_iterations == 1
    # At the scale of 1 that tracing uses there is nothing wrong, which is what it says.
    assert "first non-finite: no layer" in message


def test_the_dynamic_scale_skips_without_calling_it_nan() -> None:
    records = iterations(train("--fp16 --initial-loss-scale 1e12 --hysteresis 1 --train-iters 40"))
    skipped = [record.skipped_iterations for record in records]
    assert skipped[0] == 1
    assert skipped[-1] == 0
    assert sum(record.nan_iterations for record in records) == 0
    scales = [record.loss_scale for record in records]
    assert scales[0] == 5e11
    # Printed with one digit after the point.
    assert scales[-1] == pytest.approx(1e12 / 2 ** sum(skipped), abs=0.05)
    assert "lm loss" not in records[0].losses


def test_means_are_over_the_iterations_that_were_not_skipped() -> None:
    flags = "--fp16 --initial-loss-scale 1e12 --hysteresis 1 --train-iters 40"
    single = iterations(train(flags))
    (whole,) = iterations(train(f"{flags} --log-interval 40"))
    kept = [r.losses["lm loss"] for r in single if r.skipped_iterations == 0]
    assert whole.skipped_iterations == 40 - len(kept)
    assert whole.losses["lm loss"] == pytest.approx(sum(kept) / len(kept), abs=2e-6)


def test_exit_by_interval(tmp_path: Path) -> None:
    printed = train(f"--exit-interval 3 --save {tmp_path} --save-interval 100 --eval-iters 1")
    assert len(losses(printed)) == 3
    assert "[exiting program at iteration 3] datetime: " in printed
    assert stored(tmp_path).iteration == 3
    assert "validation set" not in printed


def test_exit_by_duration_saves_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import datetime, timedelta

    import megacore.training.pretrain as module

    class Earlier(datetime):
        """A clock that started two minutes ago."""

        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(minutes=2)

    monkeypatch.setattr(module, "datetime", Earlier)
    printed = train(f"--exit-duration-in-mins 1 --save {tmp_path} --save-interval 1")
    assert len(losses(printed)) == 1
    assert printed.count("successfully saved") == 1
    assert "[exiting program after 2.0" in printed
    assert stored(tmp_path).iteration == 1


def test_evaluation_order_and_counters(tmp_path: Path) -> None:
    printed = train(
        f"--eval-interval 3 --eval-iters 2 --save {tmp_path} --save-interval 3 "
        "--global-batch-size 6"
    )
    kinds = []
    for line in printed.splitlines():
        if " consumed samples:" in line:
            kinds.append("t")
        elif line.startswith(" validation loss at"):
            kinds.append("T" if "test set" in line else "v")
        elif "successfully saved" in line:
            kinds.append("s")
    # The evaluation of an iteration comes before its checkpoint, the last save before the end.
    assert "".join(kinds) == "tttvstttvsttsvT"
    assert stored(tmp_path).values["counters"]["consumed_valid_samples"] == 2 * 2 * 6
    assert stored(tmp_path, 3).values["counters"]["consumed_valid_samples"] == 2 * 6


def test_skip_train_evaluates_and_writes_nothing(tmp_path: Path) -> None:
    train(f"--save {tmp_path} --save-interval 8 --eval-iters 2")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    printed = train(f"--load {tmp_path} --skip-train --eval-iters 2")
    assert "skipping training" in printed
    assert losses(printed) == []
    assert "validation loss at iteration 8 on validation set" in printed
    assert "validation loss at iteration 8 on test set" in printed
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_validation_is_the_mean_over_tokens_with_dropout_off(tmp_path: Path) -> None:
    """With a learning rate of 0 every evaluation agrees, whatever the batches."""
    values = []
    for micro, size in ((1, 8), (4, 8), (8, 8)):
        path = tmp_path / f"m{micro}"
        train(
            f"--lr 0 --train-iters 1 --eval-iters 3 --micro-batch-size {micro} "
            f"--global-batch-size {size} --save {path} --save-interval 1"
        )
        (event,) = metrics(path / "metrics.jsonl", "evaluate")[-2:-1]
        values.append(event["lm loss validation"])
    # Sums of 576 token losses in fp32, in another order: far less than 576 roundings of 2^-24.
    assert max(values) - min(values) <= 576 * 2**-24 * max(values)


def test_decreased_batches_count_what_they_leave_out() -> None:
    records = iterations(train("--global-batch-size 5 --decrease-batch-size-if-needed"))
    assert {record.global_batch_size for record in records} == {4}
    assert [record.skipped_samples for record in records] == list(range(1, 9))


def test_manual_garbage_collection_is_given_back() -> None:
    assert gc.isenabled()
    train("--manual-gc --manual-gc-interval 2 --eval-iters 1 --eval-interval 3")
    assert gc.isenabled()


def test_deterministic_mode_is_given_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    one, two = (losses(train("--deterministic-mode")) for _ in range(2))
    assert one == two
    assert not torch.are_deterministic_algorithms_enabled()


def test_seeds_decide() -> None:
    assert losses(train("--seed 5")) == losses(train("--seed 5"))
    assert losses(train("--seed 5")) != losses(train("--seed 6"))


def test_accumulation_does_not_change_the_loss_without_dropout() -> None:
    flags = "--attention-dropout 0 --hidden-dropout 0 --global-batch-size 8 --train-iters 4"
    whole = losses(train(f"{flags} --micro-batch-size 8"))
    for extra in ("", "--calculate-per-token-loss"):
        parts = losses(train(f"{flags} --micro-batch-size 2 {extra}"))
        # Printed with 7 digits; the order of fp32 sums differs.
        assert parts == pytest.approx(whole, rel=5e-6)


def test_memory_history_needs_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine can record it")
    with pytest.raises(UsageError, match="--record-memory-history"):
        train("--record-memory-history")


def test_a_profile_on_cpu(tmp_path: Path) -> None:
    printed = train(
        f"--profile --profile-step-start 2 --profile-step-end 4 --save {tmp_path} "
        "--save-interval 100"
    )
    trace = tmp_path / "profile_rank0_iterations_3-4.trace.json"
    table = tmp_path / "profile_rank0_iterations_3-4.txt"
    assert f"trace {trace}, table {table}" in printed
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    # Two iterations of two micro-batches.
    assert names.count("forward") == names.count("backward") == names.count("data") == 4
    assert names.count("optimizer") == 2
    assert "Self CPU" in table.read_text()
    assert "aten::" in table.read_text()


def test_a_profile_that_the_end_of_training_cuts_off(tmp_path: Path) -> None:
    train(
        f"--profile --profile-step-start 6 --profile-step-end 100 --tensorboard-dir {tmp_path} "
        "--use-pytorch-profiler"
    )
    assert (tmp_path / "profile_rank0_iterations_7-8.trace.json").stat().st_size > 1000


def test_other_ranks_are_not_profiled(tmp_path: Path) -> None:
    train(
        f"--profile --profile-ranks 1 2 --save {tmp_path} --save-interval 100 "
        "--profile-step-start 1 --profile-step-end 2"
    )
    assert list(tmp_path.glob("profile*")) == []
