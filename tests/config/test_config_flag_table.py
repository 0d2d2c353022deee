"""Every Megatron flag is in exactly one state, and a flag that works is read by something."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from command_lines import small

from megacore.config.megatron import FlagRow, MegatronFlags
from megacore.config.settings import Setting, all_settings
from megacore.errors import ConfigError
from megacore.parallel.supported import UNSUPPORTED
from megacore.training.run_config import RunConfig, config_types, parse_run

PACKAGE = Path(__file__).parents[2] / "python" / "megacore"
TABLE = MegatronFlags.load()
SETTINGS = {name: s for s in all_settings(config_types().values()) for name in s.names}
WORKS = [row for row in TABLE.rows if row.state == "works"]
ACCEPTED = [row for row in TABLE.rows if row.state == "accepted"]
REFUSED = [row for row in TABLE.rows if row.state == "refused"]


def first(row: FlagRow) -> str:
    return row.names[0]


def words_for(row: FlagRow, value: str | None = None) -> str:
    """The flag with some value of its type."""
    if row.kind.startswith("store_"):
        return first(row)
    if value is None:
        value = row.choices[-1] if row.choices else {"str": "x", "bool": "x"}.get(row.kind[:4], "7")
        value = "true" if row.kind == "bool" else "x" if row.kind.startswith("str") else value
        value = row.choices[-1] if row.choices else value
    return f"{first(row)} {value}"


def test_table_has_every_flag_once_in_one_state() -> None:
    names = Counter(name for row in TABLE.rows for name in row.names)
    assert [name for name, count in names.items() if count > 1] == []
    assert len(TABLE.rows) == 346
    assert {row.state for row in TABLE.rows} == {"works", "accepted", "refused"}
    for row in TABLE.rows:
        assert bool(row.note) == (row.state != "works"), row
        assert row.kind.rstrip("*+") in ("int", "float", "str", "bool", "store_true", "store_false")
        assert not row.harmless or row.state == "refused", row


@pytest.mark.parametrize("row", WORKS, ids=first)
def test_working_flag_is_the_field_the_table_says(row: FlagRow) -> None:
    setting = SETTINGS[first(row)]
    expected = row.setting()
    assert setting.names == row.names
    assert setting.dest == row.dest
    assert setting.value_type.base is expected.value_type.base or (
        row.dest == "rampup_batch_size" and setting.value_type.base is int
    )
    assert setting.value_type.many == expected.value_type.many
    assert setting.nargs == expected.nargs
    if setting.value_type.many:
        default = () if setting.default is None else setting.default
        assert " ".join(map(str, default)) == row.default
    else:
        assert setting.default == expected.default or (
            setting.default in (False, "") and expected.default in (None, False)
        )
    if row.dest != "dataloader_type":
        assert set(map(str, setting.choices or ())) >= set(row.choices)


def test_fields_that_megatron_does_not_have_clash_with_none_of_its_flags() -> None:
    in_table = {name: row for row in TABLE.rows for name in row.names}
    for name, setting in SETTINGS.items():
        row = in_table.get(name)
        if row is not None:
            assert row.state == "works", (name, row.state, setting)


def attributes_read() -> set[str]:
    """Names read as attributes outside the configuration files themselves.

    What is called is a method, not a setting: `text.split(...)` does not read `--split`.
    """
    names: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name in ("config.py", "run_config.py") or path.parent.name == "config":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in called:
                names.add(node.attr)
    return names


# Resolved into another field by `resolved()`; that other field is what is read.
RESOLVED_INTO = {
    "encoder_num_layers": "num_layers",
    "encoder_seq_length": "seq_length",
    "use_rotary_position_embeddings": "position_embedding_type",
    "add_position_embedding": "position_embedding_type",
    "group_query_attention": "num_query_groups",
    "geglu": "gated",
    "non_persistent_global_ckpt_dir": "non_persistent_save",
    "recompute_activations": "recompute_granularity",
    "order": "axis_order",
    "use_tp_pp_dp_mapping": "axis_order",
    "pipeline_schedule": "schedule_name",
    "use_distributed_optimizer": "shards_optimizer",
    "distributed_timeout_minutes": "timeout",
    "distributed_timeout_seconds": "timeout",
}


def test_no_field_is_only_parsed() -> None:
    read = attributes_read() | {"use_checkpoint_args"}  # it acts while the run is parsed
    dests = {setting.dest for setting in SETTINGS.values()} - set(UNSUPPORTED)
    unread = {dest for dest in dests if RESOLVED_INTO.get(dest, dest) not in read}
    assert sorted(unread) == []


@pytest.mark.parametrize("row", ACCEPTED, ids=first)
def test_accepted_flag_passes_with_one_note(row: FlagRow, caplog: pytest.LogCaptureFixture) -> None:
    run, origins = parse_run(small(f"{words_for(row)} {words_for(row)}"), environment={})
    assert run == parse_run(small(), environment={})[0]
    assert row.dest not in origins
    notes = [record.getMessage() for record in caplog.records if first(row) in record.getMessage()]
    assert notes == [f"note: {first(row)} has no effect: {row.note}"]


@pytest.mark.parametrize("row", REFUSED, ids=first)
def test_refused_flag_is_refused_unless_its_value_changes_nothing(row: FlagRow) -> None:
    value = None
    if row.choices:
        value = next(c for c in row.choices if c not in (row.default, *row.harmless))
    with pytest.raises(ConfigError) as caught:
        parse_run(small(words_for(row, value)), environment={})
    (found,) = caught.value.faults
    assert found.id in ("MC0011", "MC0012")
    assert first(row) in str(found)
    assert row.note.removeprefix("removed: ") in str(found)
    if not row.kind.startswith("store_"):
        for harmless in filter(None, (row.default, *row.harmless)):
            run, _ = parse_run(small(f"{first(row)} {harmless}"), environment={})
            assert isinstance(run, RunConfig)


def test_refused_switch_that_is_on_by_default() -> None:
    row = next(row for row in REFUSED if row.kind == "store_false")
    setting: Setting = row.setting()
    assert setting.default is True
    assert row.refusal(setting, True) is None
    assert row.refusal(setting, False) is not None


def test_no_flag_is_hidden_from_the_help_page() -> None:
    from megacore.config.usage import format_help

    settings = [*all_settings(config_types().values())]
    hidden = TABLE.hidden_settings(settings)
    for group in {s.group for s in [*settings, *hidden]}:
        page = format_help([*settings, *hidden], group, prog="p", description="d", table=TABLE)
        for setting in [*settings, *hidden]:
            if setting.group == group:
                assert re.search(rf"^  {re.escape(setting.flag)}\b", page, re.M), setting.flag
