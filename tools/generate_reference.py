"""Writes docs/errors.md and docs/flags.md from the fault registry, the dataclasses and the table.

`python tools/generate_reference.py` writes, `--check` only says whether they are current (exit 1).
"""

from __future__ import annotations

import sys
from pathlib import Path

from megacore.cli import run
from megacore.config.megatron import MegatronFlags
from megacore.config.reference import errors_page, flags_page
from megacore.errors import UsageError
from megacore.training.run_config import config_types

DOCS = Path(__file__).resolve().parent.parent / "docs"


def pages() -> dict[Path, str]:
    """File -> the content it should have."""
    return {
        DOCS / "errors.md": errors_page(),
        DOCS / "flags.md": flags_page(list(config_types().values()), MegatronFlags.load()),
    }


def main(argv: list[str]) -> int:
    """Writes or checks the pages; returns the exit code."""
    if argv not in ([], ["--check"]):
        raise UsageError("usage: generate_reference.py [--check]")
    stale = [path for path, text in pages().items() if not _is_current(path, text)]
    for path in stale:
        if argv:
            print(f"{path} is not current: run python tools/generate_reference.py", file=sys.stderr)
        else:
            path.write_text(pages()[path], encoding="utf-8")
            print(f"wrote {path}")
    return 1 if argv and stale else 0


def _is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
