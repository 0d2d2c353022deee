"""Every `--log-*` flag does something, and the tags are the ones that dashboards know."""

from __future__ import annotations

import io
import json
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import iterations, metrics, stored, train

from megacore.training.live_view import BARS, Screen, sparkline
from megacore.training.log_line import parse_iteration
from megacore.training.peak import measure_peak, peak_speed

BY_SAMPLES = {"learning-rate", "batch-size", "lm loss", "loss-scale", "grad-norm"}


def read_events(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def test_tensorboard_tags_of_a_plain_run(tmp_path: Path) -> None:
    printed = train(f"--tensorboard-dir {tmp_path} --log-interval 4")
    events = read_events(tmp_path)
    both = BY_SAMPLES | {f"{tag} vs samples" for tag in BY_SAMPLES}
    assert set(events.Tags()["scalars"]) == both
    by_step = events.Scalars("lm loss")
    by_samples = events.Scalars("lm loss vs samples")
    assert [event.step for event in by_step] == list(range(1, 9))
    assert [event.step for event in by_samples] == list(range(4, 36, 4))
    assert [event.value for event in by_step] == [event.value for event in by_samples]
    # The log line holds the mean of four of them.
    mean = sum(event.value for event in by_step[:4]) / 4
    assert iterations(printed)[0].losses["lm loss"] == pytest.approx(mean, abs=1e-6)
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert {"num_layers", "lr", "padded_vocab_size", "seq_length"} <= texts


def test_tensorboard_tags_of_every_flag(tmp_path: Path) -> None:
    train(
        f"--tensorboard-dir {tmp_path} --log-params-norm --log-num-zeros-in-grad --log-throughput "
        "--log-timers-to-tensorboard --log-memory-to-tensorboard --log-world-size-to-tensorboard "
        "--log-validation-ppl-to-tensorboard --no-log-loss-scale-to-tensorboard "
        "--timing-log-level 2 --decoupled-lr 1e-3 --eval-interval 4 --eval-iters 1 "
        "--tensorboard-log-interval 2 --log-interval 4 --global-batch-size 5 "
        "--decrease-batch-size-if-needed --untie-embeddings-and-output-weights"
    )
    events = read_events(tmp_path)
    both = (BY_SAMPLES - {"loss-scale"}) | {
        "params-norm",
        "num-zeros",
        "world-size",
        "lm loss validation",
        "lm loss validation ppl",
    }
    alone = {
        "decoupled-learning-rate",
        "skipped-train-samples",
        "mem-reserved-bytes",
        "mem-allocated-bytes",
        "mem-allocated-count",
        "iteration-time",
        "throughput",
        "forward-backward-time",
        "forward-compute-time",
        "backward-compute-time",
        "batch-generator-time",
        "optimizer-time",
    }
    assert set(events.Tags()["scalars"]) == both | {f"{tag} vs samples" for tag in both} | alone
    assert [event.step for event in events.Scalars("num-zeros")] == [2, 4, 6, 8]
    assert [event.step for event in events.Scalars("iteration-time")] == [4, 8]
    seconds = events.Scalars("iteration-time")[1].value
    parts = [events.Scalars(f"{name}-time")[-1].value for name in ("forward-backward", "optimizer")]
    assert 0 < sum(parts) <= 1.5 * seconds
    loss, ppl = (events.Scalars(f"lm loss validation{end}")[0].value for end in ("", " ppl"))
    assert ppl == pytest.approx(2.718281828**loss, rel=1e-5)


def test_optional_parts_of_the_line() -> None:
    plain = iterations(train("--train-iters 2"))[-1]
    assert (plain.throughput_tflops, plain.num_zeros, plain.params_norm) == (None, None, None)
    assert plain.grad_norm is not None
    full = iterations(
        train("--train-iters 2 --log-throughput --log-num-zeros-in-grad --log-params-norm")
    )[-1]
    assert full.throughput_tflops is not None
    assert full.num_zeros is not None
    assert full.params_norm is not None
    assert full.params_norm > 0


def test_the_lines_around_training_in_their_order(tmp_path: Path) -> None:
    printed = train(f"--save {tmp_path} --save-interval 8 --eval-iters 1 --log-interval 4")
    patterns = [
        r"-+ arguments -+",
        r"  bf16 \.+ False",
        r" > padded vocab \(size: 97\) with 31 dummy tokens \(new size: 128\)",
        r"\[after megacore is initialized\] datetime: .*",
        r" > number of parameters on \(tensor, pipeline\) model parallel rank \(0, 0\): 30336",
        r"\[after model, optimizer, and learning rate scheduler are built\] datetime: .*",
        r"\[after dataloaders are built\] datetime: .*",
        r"\(min, max\) time across ranks \(ms\):",
        r"    model-and-optimizer-setup \.+: .*",
        r"    train/valid/test-data-iterators-setup \.+: .*",
        r"TFLOP/s and MFU count 12 B S L h\^2 .*",
        r"  MFU is relative to 1 TFLOP/s: --peak-tflops",
        r"\[before the start of training step\] datetime: .*",
        r" \[.*\] iteration        4/       8 \| .*",
        r"   tokens/s: .* \| model TFLOP/s: .* \| MFU: .*% of 1 TFLOP/s \| RSS .* \| ETA: .* \|",
        r"Theoretical memory footprints: weight and optimizer=.* MB",
        r"\[Rank 0\] \(after 4 iterations\) memory \(MB\) \| allocated: .*",
        r" \[.*\] iteration        8/       8 \| .*",
        r"  successfully saved checkpoint from iteration       8 to .*",
        r"    save-checkpoint \.+: .*",
        r"\[after training is done\] datetime: .*",
        r" validation loss at iteration 8 on validation set \| lm loss value: .*",
        r"    evaluate \.+: .*",
        r" validation loss at iteration 8 on test set \| lm loss value: .*",
    ]
    lines = iter(printed.splitlines())
    for pattern in patterns:
        assert any(re.fullmatch(pattern, line) for line in lines), pattern
    assert printed.count("Theoretical memory") == 1


def test_timer_reports_follow_the_option() -> None:
    printed = train("--timing-log-level 1 --timing-log-option max --train-iters 1")
    report = printed.split("max time across ranks (ms):")[-1].splitlines()
    assert [line.split()[0] for line in report[1:3]] == ["forward-backward", "optimizer"]
    assert re.fullmatch(r"    forward-backward \.+: \d+\.\d\d", report[1])


def test_metrics_hold_everything_the_lines_say(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "m.jsonl"
    printed = train(
        f"--metrics-jsonl {path} --log-interval 2 --eval-interval 4 --eval-iters 1 --log-throughput"
    )
    lines, events = iterations(printed), metrics(path, "train")
    assert [line.iteration for line in lines] == [event["iteration"] for event in events]
    for line, event in zip(lines, events, strict=True):
        assert event["lm loss"] == pytest.approx(line.losses["lm loss"], abs=1e-6)
        assert event["learning rate"] == pytest.approx(line.learning_rate, abs=1e-9)
        assert event["consumed samples"] == line.consumed_samples
        seconds = event["elapsed time per iteration (ms)"] / 1000
        assert event["tokens/s"] == pytest.approx(4 * 24 / seconds, rel=1e-6)
        assert event["MFU"] == pytest.approx(event["TFLOP/s"], rel=1e-9)
        assert event["TFLOP/s causal"] < event["TFLOP/s"] == event["TFLOP/s with recompute"]
        assert event["peak memory bytes"] >= event["memory bytes"] > 2**20
    evaluations = metrics(path, "evaluate")
    assert [event["iteration"] for event in evaluations] == [4, 8, 8, 8]
    assert "lm loss test" in evaluations[-1]


def test_progress_and_settings_files(tmp_path: Path) -> None:
    save, dumps = tmp_path / "save", tmp_path / "dumps"
    train(
        f"--log-progress --save {save} --save-interval 4 --config-logger-dir {dumps} "
        "--logging-level 40"
    )
    lines = [line.split("\t") for line in (save / "progress.txt").read_text().splitlines()]
    assert [line[3:5] for line in lines] == [
        ["Starting job"],
        ["Saved checkpoint", "Iteration: 4"],
        ["Saved checkpoint", "Iteration: 8"],
    ]
    operations = float(lines[-1][7].removeprefix("Floating-point operations: "))
    counted = stored(save).values["counters"]["floating_point_operations"]
    assert operations == pytest.approx(counted, rel=0.01)
    assert json.loads((dumps / "ModelConfig.rank_0.iter0.json").read_text())["hidden_size"] == 32


def wandb_records(content: bytes) -> Iterator[bytes]:
    """Records of an offline run: a 7-byte file head, then LevelDB's log format.

    Blocks of 32 KiB hold pieces with a head of checksum (4), length (2) and kind (1: whole,
    2: first, 3: middle, 4: last).
    """
    place, parts = 7, b""
    while place + 7 <= len(content):
        left_in_block = 32768 - place % 32768
        if left_in_block < 7:
            place += left_in_block
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_history(files: list[Path]) -> tuple[set[str], dict[int, dict[str, object]]]:
    """Ids of the runs, and step -> logged values, in the files of offline runs."""
    from wandb.proto import wandb_internal_pb2

    history: dict[int, dict[str, object]] = {}
    ids: set[str] = set()
    for file in files:
        for data in wandb_records(file.read_bytes()):
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(data)
            if entry.run.run_id:
                ids.add(entry.run.run_id)
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in entry.history.item
            }
            if values:
                history[int(values.get("_step", entry.history.step.num))] = values
    return ids, history


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(tmp_path / "unused"),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    save = tmp_path / "save"
    flags = (
        f"--wandb-project p --wandb-exp-name e --save {save} --save-interval 100 --load {save} "
        "--eval-interval 2 --eval-iters 1 --log-validation-ppl-to-tensorboard"
    )
    train(f"{flags} --exit-interval 4")
    train(flags)
    files = sorted((save / "wandb" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    # W&B's own process may still be writing when the run has returned.
    for _ in range(60):
        ids, history = wandb_history(files)
        if len(history) == 8:
            break
        time.sleep(0.5)
    # A resumed run goes on in the same W&B run.
    assert len(ids) == 1
    assert sorted(history) == list(range(1, 9))
    expected = BY_SAMPLES | {"samples vs steps"}
    for step, values in history.items():
        tags = {key for key in values if not key.startswith("_")}
        more = {"lm loss validation", "lm loss validation ppl"} if step % 2 == 0 else set()
        assert tags == expected | more, step
        assert values["samples vs steps"] == 4 * step


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_live_view_shows_figures_below_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    with Screen(stream=stream) as screen:
        assert screen.is_live
        screen.line(" a line of the run")
        for done, loss in enumerate([3.0, float("nan"), 2.0, 1.0], start=1):
            screen.update(done=done, total=8, loss=loss, figures={"tokens/s": "123", "ETA": "0:01"})
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert " a line of the run" in text
    for part in ("megacore train", "4/8 (50.0%)", "tokens/s", "123", "ETA", BARS[-1] + BARS[4]):
        assert part in text, part


@pytest.mark.parametrize("live", [False, True])
def test_plain_lines_where_there_is_no_terminal_or_no_wish(live: bool) -> None:
    stream = io.StringIO() if live else Terminal()
    with Screen(live=live, stream=stream) as screen:
        assert not screen.is_live
        screen.line("one\ntwo")
        screen.update(done=1, total=2, loss=1.0, figures={})
    assert stream.getvalue() == "one\ntwo\n"


def test_log_lines_on_a_terminal_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    printed = next(line for line in train("--train-iters 1").splitlines() if parse_iteration(line))
    stream = Terminal()
    with Screen(stream=stream) as screen:
        screen.line(printed)
    assert printed in stream.getvalue()


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0]) == BARS[0]
    assert sparkline([0.0, 7.0, 3.0]) == BARS[0] + BARS[7] + BARS[3]


def test_peak_speeds() -> None:
    import torch

    cpu = torch.device("cpu")
    assert peak_speed(cpu, torch.float32, given=12.5).tflops == 12.5
    state = torch.get_rng_state()
    peak = peak_speed(cpu, torch.bfloat16)
    assert peak.source.startswith("bf16 matmul measured on this CPU")
    assert 1e-4 < peak.tflops < 1e3
    assert torch.get_rng_state().equal(state)
    assert measure_peak(cpu, torch.float32) > 1e-3
