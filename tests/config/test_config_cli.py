"""The console command: verbs, exit codes, messages, and what a launcher is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_lines import small

from megacore import __version__, cli
from megacore.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Information,
    MegacoreError,
    UsageError,
)
from megacore.parallel.launch import Process, current_process, report_to_launcher

ROOT = Path(__file__).parents[2]


def process(code: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "python"), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"\n  {verb} " in page


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"megacore {__version__}\n"


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_exists_and_explains_itself(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in ([verb, "--help"], ["help", verb]):
        try:
            code = cli.main(argv)
        except SystemExit as stop:
            code = int(stop.code or 0)
        assert code == 0
        assert capsys.readouterr().out.startswith("usage: ")


def test_no_verb_and_wrong_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: megacore VERB" in capsys.readouterr().err
    assert cli.main(["genrate", "--x"]) == 2
    message = "megacore: there is no verb 'genrate'; did you mean generate?\n"
    assert capsys.readouterr().err == message
    assert cli.main(["zzz"]) == 2
    assert "one of: preprocess, merge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("a.idx: truncated"), 1, "error: a.idx: truncated\n"),
        (CheckpointError("iter_7: damaged"), 1, "error: iter_7: damaged\n"),
        (MegacoreError("something"), 1, "error: something\n"),
        (UsageError("tool: no such mode"), 2, "tool: no such mode\n"),
        (ConfigError([]), 2, "0 configuration faults:\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: list[str]) -> int:
        raise error

    assert cli.run(command, []) == code
    captured = capsys.readouterr()
    assert captured.err == message
    assert captured.out == ""


def test_result_and_information(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda argv: len(argv), ["a", "--debug", "b"]) == 2

    def answer(argv: list[str]) -> int:
        raise Information("42\n")

    assert cli.run(answer, []) == 0
    assert capsys.readouterr().out == "42\n"


def test_a_programming_error_keeps_its_traceback() -> None:
    def command(argv: list[str]) -> int:
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        cli.run(command, [])


def test_debug_shows_where() -> None:
    code = (
        "import sys; from megacore.cli import run; from megacore.errors import DataError\n"
        "def command(argv):\n    raise DataError('broken')\n"
        "sys.exit(run(command, sys.argv[1:] + {extra}))"
    )
    quiet = process(code.replace("{extra}", "[]"))
    out, err = quiet.communicate()
    assert (quiet.returncode, out, err) == (1, "", "error: broken\n")
    loud = process(code.replace("{extra}", "['--debug']"))
    _, err = loud.communicate()
    assert loud.returncode == 1
    assert "Traceback" in err
    assert err.endswith("error: broken\n")


SLEEP = (
    "import sys, time; from megacore.cli import run\n"
    "def command(argv):\n    print('ready', flush=True); time.sleep(60); return 0\n"
    "sys.exit(run(command, []))"
)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_signals(number: signal.Signals, code: int) -> None:
    child = process(SLEEP)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == code  # the shell shows death by SIGTERM as 143
    assert "Traceback" not in err


def test_a_closed_pipe_is_quiet() -> None:
    child = process("import sys; from megacore.cli import main; sys.exit(main(['--help']))")
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait(timeout=30) == 0
    assert child.stderr is not None
    assert child.stderr.read() == ""


def test_script_and_verb_refuse_alike_without_a_traceback() -> None:
    argv = small("--num-experts 8 --typo 3")
    for command in (["pretrain_gpt.py"], ["-m", "megacore", "train"]):
        done = subprocess.run(
            [sys.executable, *command, *argv],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("2 configuration faults:\n[MC0001] Unknown flag: --typo\n")
        assert done.stdout == ""


def test_refusing_a_command_line_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys; from megacore.training.run_config import parse_run\n"
        "from megacore.errors import ConfigError\n"
        "try: parse_run(['--num-layers', '0'], environment={})\n"
        "except ConfigError: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert process(code).wait(timeout=60) == 0


def test_launcher_is_told_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rank0" / "error.json"
    before = int(time.time())
    report_to_launcher(DataError("a.idx: truncated"), {"TORCHELASTIC_ERROR_FILE": str(path)})
    message = json.loads(path.read_text())["message"]
    assert message["message"] == "DataError: a.idx: truncated"
    assert before <= int(message["extraInfo"]["timestamp"]) <= int(time.time())
    assert message["extraInfo"]["py_callstack"] == "a.idx: truncated"
    try:
        raise ZeroDivisionError("bug")
    except ZeroDivisionError as error:
        report_to_launcher(error, {"TORCHELASTIC_ERROR_FILE": str(path)})
    shown = json.loads(path.read_text())["message"]["extraInfo"]["py_callstack"]
    assert shown.startswith("Traceback")
    assert shown.endswith("ZeroDivisionError: bug\n")
    report_to_launcher(DataError("x"), {})
    report_to_launcher(DataError("x"), {"TORCHELASTIC_ERROR_FILE": "/proc/none/error.json"})


def test_torch_understands_the_error_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    multiprocessing = pytest.importorskip("torch.distributed.elastic.multiprocessing.errors")
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    assert cli.main(["trian"]) == 2
    failure = multiprocessing.ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(path))
    assert "there is no verb 'trian'" in failure.message["message"]
    assert (
        "there is no verb 'trian'"
        in multiprocessing.ChildFailedError("megacore", {0: failure}).format_msg()
    )
    assert failure.timestamp > 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Process()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Process(3, 8, 1)),
        ({"WORLD_SIZE": "1"}, Process()),
        (
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"},
            Process(2, 4, 0),
        ),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Process()),
        ({"WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4"}, Process()),
    ],
)
def test_current_process(environment: dict[str, str], expected: Process) -> None:
    assert current_process(environment) == expected
    assert expected.is_first == (expected.rank == 0)


@pytest.mark.parametrize(("rank", "prints"), [("0", True), ("1", False), ("x", True)])
def test_a_wrong_configuration_is_printed_once(
    rank: str, prints: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert cli.main(["train", "--typo"]) == 2
    assert ("[MC0001]" in capsys.readouterr().err) == prints


def test_only_one_module_reads_the_variables_of_launchers() -> None:
    for path in (ROOT / "python" / "megacore").rglob("*.py"):
        if path.name != "launch.py":
            text = path.read_text()
            for name in ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC", "SLURM_PROCID"):
                if path.parts[-2:] not in {("config", "faults.py"), ("config", "reference.py")}:
                    assert f'"{name}' not in text, path
