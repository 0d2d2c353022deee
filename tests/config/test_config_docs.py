"""The generated pages of the documentation are current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megacore.config.faults import RULES
from megacore.config.megatron import MegatronFlags
from megacore.config.reference import errors_page, flags_page
from megacore.config.settings import all_settings
from megacore.training.run_config import config_types

DOCS = Path(__file__).parents[2] / "docs"
HINT = "run: python tools/generate_reference.py"


def test_errors_page_is_current_and_complete() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert text == errors_page(), HINT
    for fault_id, rule in RULES.items():
        assert text.count(f"### {fault_id}\n") == 1
        assert rule.fix in text


def test_flags_page_is_current_and_complete() -> None:
    text = (DOCS / "flags.md").read_text(encoding="utf-8")
    types = list(config_types().values())
    table = MegatronFlags.load()
    assert text == flags_page(types, table), HINT
    names = {s.flag for s in all_settings(types)} | {row.names[0] for row in table.rows}
    for name in names:
        assert sum(line.startswith(f"| `{name}`") for line in text.splitlines()) == 1, name


@pytest.mark.parametrize(("argv", "code"), [(["--check"], 0), (["--wrong"], 2)])
def test_generator_checks(argv: list[str], code: int) -> None:
    root = DOCS.parent
    command = [sys.executable, str(root / "tools" / "generate_reference.py"), *argv]
    done = subprocess.run(command, env={"PYTHONPATH": str(root / "python")}, check=False)
    assert done.returncode == code
