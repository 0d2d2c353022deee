"""Every fault has a stable id, a page, and a command line that triggers it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from command_lines import small
from fault_triggers import ENVIRONMENTS, TRIGGERS, WORLDS

from megacore.config.faults import RULES, fault
from megacore.errors import EXIT_USAGE, ConfigError, Fault
from megacore.training.run_config import RunConfig, parse_run

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "megacore"

# Faults of processes that meet: tests/parallel/test_startup.py.
AT_START_UP = {"MC0905", "MC0906", "MC0907"}
# Of megacore convert; triggered in tests/checkpoint/convert/test_convert_commands.py.
OF_CONVERSION = {f"MC{number}" for number in range(1001, 1008)}
# Of megacore lora; triggered in tests/checkpoint/lora/test_lora_commands.py.
OF_ADAPTERS = {"MC1105", "MC1106"}
# Of pretrain_ict.py; triggered in tests/data/test_sentence_datasets.py.
OF_TITLES = {"MC1307"}
# Of megacore evaluate; triggered in tests/evaluation.
OF_TASKS = {f"MC{number}" for number in range(1340, 1349)}
# Of megacore plan; triggered in tests/planning.
OF_PLANNING = {f"MC{number}" for number in (*range(1420, 1424), 1425, 1426)}
FILES = {
    "unknown_key.yaml": "hiden_size: 32\n",
    "unknown_group.yaml": "modle:\n  hidden_size: 32\n",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "dash_and_underscore.yaml": "init-method-std: 1\nmodel: {init_method_std: 2}\n",
}
CASES = [(i, extra, without) for i, ways in TRIGGERS.items() for extra, without in ways]


def faults_of(argv: list[str], environment: dict[str, str] | None = None) -> tuple[Fault, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_run(argv, environment=environment or {})
    assert caught.value.exit_code == EXIT_USAGE
    return caught.value.faults


@pytest.mark.parametrize(("fault_id", "extra", "without"), CASES)
def test_command_line_triggers(
    fault_id: str, extra: str, without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    faults = faults_of(small(extra, without=without))
    assert {one.id for one in faults} == {fault_id}
    assert RULES[fault_id].title in str(faults[0])


@pytest.mark.parametrize(
    ("fault_id", "environment"), [(i, e) for i, ways in ENVIRONMENTS.items() for e in ways]
)
def test_environment_triggers(fault_id: str, environment: dict[str, str]) -> None:
    assert [one.id for one in faults_of(small(), environment)] == [fault_id]


@pytest.mark.parametrize(
    ("fault_id", "extra", "size"), [(i, *way) for i, ways in WORLDS.items() for way in ways]
)
def test_parallel_triggers(fault_id: str, extra: str, size: int) -> None:
    environment = {"WORLD_SIZE": str(size), "RANK": "0"}
    found = {one.id for one in faults_of(small(extra), environment)}
    assert found - {"MC0011"} == {fault_id}


def test_small_run_is_valid() -> None:
    run, _ = parse_run(small(), environment={})
    assert not list(run.faults())


def test_every_id_is_triggered() -> None:
    elsewhere = OF_TITLES | AT_START_UP | OF_CONVERSION | OF_ADAPTERS | OF_TASKS | OF_PLANNING
    assert set(TRIGGERS) | set(ENVIRONMENTS) | set(WORLDS) | elsewhere == set(RULES)


def test_every_id_in_the_source_is_registered_and_used() -> None:
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "config" and path.name.startswith("faults"):
            used.update(re.findall(r'fault\("(MC\d+)"', path.read_text()))
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch(r"MC\d{4}", str(node.value)):
                used.add(str(node.value))
    assert used == set(RULES)


def test_registry_is_in_order_and_complete() -> None:
    assert list(RULES) == sorted(RULES)
    for rule in RULES.values():
        assert rule.title
        assert not rule.title.endswith(".")
        assert rule.why.endswith((".", "`."))
        assert rule.fix.endswith((".", "`."))
    assert len({rule.title for rule in RULES.values()}) == len(RULES)


def test_unregistered_id_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        fault("MC9999")


def test_all_faults_come_at_once() -> None:
    words = "--bf16 --fp16 --num-attention-heads 7 --optimizer lamb --seq-length 1000 --save d"
    ids = [one.id for one in faults_of(small(f"{words} --tensor-model-parallel-size 3 --oops"))]
    expected = ["MC0001", "MC0004", "MC0103", "MC0501", "MC0603", "MC0701", "MC0901"]
    expected += ["MC0914"]
    assert ids == expected


def test_a_misspelled_required_flag_is_one_fault() -> None:
    assert [one.id for one in faults_of(small("--num_layer 2", without="--num-layers"))] == [
        "MC0001"
    ]
    assert [one.id for one in faults_of(small("--num_layers two"))] == ["MC0003"]


def test_message_names_rule_given_and_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run(small("--global-batch-size 5"), environment={})
    lines = str(caught.value).splitlines()
    assert lines[0] == "1 configuration fault:"
    assert lines[1].startswith("[MC0201] --global-batch-size must be a multiple")
    assert lines[2].strip() == "given:   --global-batch-size 5, --micro-batch-size 2"
    assert lines[3].strip() == "allowed: a multiple of 2"


def test_message_shows_what_was_not_given_and_switches() -> None:
    (found,) = faults_of(small("", without="--train-iters"))
    assert "given:   --train-iters (not given), --train-samples (not given)\n" in str(found)
    (found,) = faults_of(small("--fp16 --bf16"))
    assert "given:   --fp16, --bf16\n" in str(found)


def test_python_users_get_the_same_faults() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig().resolved()
    missing = {name for one in caught.value.faults if one.id == "MC0101" for name in one.given}
    assert missing == {
        "--num-layers",
        "--hidden-size",
        "--num-attention-heads",
        "--max-position-embeddings",
        "--seq-length",
        "--micro-batch-size",
        "--lr",
    }
