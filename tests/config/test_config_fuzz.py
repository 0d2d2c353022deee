"""Whatever the words are: a run, or an error that a user can read; never another exception."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from command_lines import small
from hypothesis import given, settings
from hypothesis import strategies as st

from megacore.config.files import read_file
from megacore.config.megatron import MegatronFlags
from megacore.config.settings import all_settings
from megacore.errors import ConfigError, MegacoreError
from megacore.training.run_config import RunConfig, config_types, parse_run

NAMES = sorted(
    {name for s in all_settings(config_types().values()) for name in s.names}
    | {name for row in MegatronFlags.load().rows for name in row.names}
    | {"--print-config", "--unset", "--help", "--", "-x", "--config"}
)
NUMBERS = ("0", "1", "2", "3", "7", "-1", "0.5", "1e-3", "1e400", "9" * 30, "nan", "")
WORDS = ("full", "uniform", "rope", "cosine", "WSD", "GPT2BPETokenizer", "a", "=", "--x=y", "1,2,3")
WORD = st.sampled_from(NAMES) | st.sampled_from(NUMBERS + WORDS) | st.text(max_size=3)


def outcome(argv: list[str]) -> None:
    run = None
    with contextlib.suppress(MegacoreError):
        run, _ = parse_run(argv, environment={})
    if run is not None:
        assert isinstance(run, RunConfig)
        assert not list(run.faults())
        assert run.resolved() == run


@settings(max_examples=400, deadline=None)
@given(st.lists(WORD, max_size=12))
def test_any_words(words: list[str]) -> None:
    outcome(words)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NUMBERS + WORDS)), max_size=4))
def test_a_valid_line_with_changes(changes: list[tuple[str, str]]) -> None:
    outcome([*small(), *(word for pair in changes for word in pair)])


KEYS = st.sampled_from([name[2:] for name in NAMES]) | st.text(max_size=4)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS)
GROUPS = st.sampled_from(["model", "learning rate", "mixed_precision", "nothing"])


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(KEYS, VALUES, max_size=5),
    st.dictionaries(GROUPS, st.dictionaries(KEYS, VALUES, max_size=3), max_size=2),
)
def test_any_file(
    tmp_path_factory: pytest.TempPathFactory, flat: dict[str, object], grouped: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "run.yaml"
    path.write_text(yaml.safe_dump({**flat, **grouped}), encoding="utf-8")
    outcome([*small(), "--config", str(path)])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["yaml", "toml"]))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"run.{kind}"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        assert isinstance(read_file(str(path)), dict)


@pytest.mark.parametrize("text", ["? {a: 1}\n: 2\n", "&a [*a]\n", "<<: 3\n", "? [1, 2]\n: 3\n"])
def test_strange_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    outcome([*small(), "--config", str(tmp_path / "run.yaml")])
