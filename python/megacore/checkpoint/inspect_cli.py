"""`megacore checkpoint verify|show|diff`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from megacore.config.faults import fault, required
from megacore.config.fields import flag
from megacore.config.parser import parse
from megacore.config.settings import value_faults
from megacore.errors import EXIT_FAILURE, EXIT_OK, Fault, Information, UsageError

_HELP = """\
usage: megacore checkpoint VERB DIR [flags]

  verify DIR          read every byte; name damaged files and tensors, and end with exit code 1
  show DIR            iteration, layout, settings, tensors with shapes, dtypes, chunks and files
  diff DIR DIR2       settings and tensors in which two checkpoints differ; exit code 1 if any do

DIR is a directory that --save names, or one checkpoint in it; torch_dist and torch, written by
megacore or by Megatron-LM.

megacore checkpoint VERB --help lists the flags of a verb."""


@dataclass(frozen=True, kw_only=True)
class _PlaceConfig:
    """Which checkpoints."""

    GROUP: ClassVar[str] = "checkpoint"
    COUNT: ClassVar[int] = 1

    directory: tuple[str, ...] | None = flag(
        "directory", default=None, nargs="*", help="what --save named, or one checkpoint in it"
    )
    step: int | None = flag(
        "--step",
        "--ckpt-step",
        default=None,
        help="iteration instead of the newest",
        bounds="[0, inf)",
    )
    json: bool = flag("--json", default=False, help="print JSON for other programs")

    def faults(self) -> Iterator[Fault]:
        """The directories that are not given."""
        yield from value_faults(self)
        found = self.directory or ()
        if len(found) < self.COUNT:
            yield required("DIR" if self.COUNT == 1 else "DIR DIR2")
        if len(found) > self.COUNT:
            yield fault("MC0007", dict.fromkeys(found[self.COUNT :], ""))


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(_PlaceConfig):
    """What to verify."""

    threads: int | None = flag(
        "--threads", default=None, help="how many to read with", bounds="[1, 256]"
    )


@dataclass(frozen=True, kw_only=True)
class ShowConfig(_PlaceConfig):
    """What to show."""

    settings: bool = flag("--settings", default=False, help="also list all settings")


@dataclass(frozen=True, kw_only=True)
class DiffConfig(_PlaceConfig):
    """What to compare."""

    COUNT: ClassVar[int] = 2

    tolerance: float = flag(
        "--tolerance",
        default=0.0,
        help="largest absolute difference of two elements that counts as equal",
        bounds="[0, inf)",
    )
    tensors_only: bool = flag(
        "--tensors-only", default=False, help="settings that differ do not count"
    )
    model_only: bool = flag("--model-only", default=False, help="compare the weights alone")


_VERBS = {
    "verify": (VerifyConfig, "Read every byte of a checkpoint and name what is damaged."),
    "show": (ShowConfig, "Show what a checkpoint holds."),
    "diff": (DiffConfig, "Show in what two checkpoints differ."),
}


def main(argv: list[str]) -> int:
    """Entry of the verb `checkpoint`; returns the exit code."""
    if not argv:
        raise UsageError(_HELP)
    verb, rest = argv[0], argv[1:]
    if verb in ("-h", "--help"):
        raise Information(_HELP)
    if verb not in _VERBS:
        raise UsageError(f"megacore checkpoint: there is no verb {verb!r}\n\n{_HELP}")
    kind, summary = _VERBS[verb]
    parsed = parse([kind], rest, prog=f"megacore checkpoint {verb}", description=summary)
    config = parsed.configs[kind]
    if isinstance(config, VerifyConfig):
        return _verify(config)
    return _show(config) if isinstance(config, ShowConfig) else _diff(config)


def _places(config: _PlaceConfig) -> list[Path]:
    from megacore.checkpoint.find import locate

    return [locate(Path(name), step=config.step) for name in config.directory or ()]


def _verify(config: VerifyConfig) -> int:
    from megacore.checkpoint.show import size_text
    from megacore.checkpoint.verify import verify

    found = verify(_places(config)[0], threads=config.threads)
    if config.json:
        rows = [vars(damage) for damage in found.damages]
        print(json.dumps({**vars(found), "path": str(found.path), "damages": rows}, indent=1))
        return EXIT_FAILURE if found.damages else EXIT_OK
    for damage in found.damages:
        print(f"DAMAGED {damage}")
    rate = size_text(found.num_bytes / max(found.seconds, 1e-9))
    verdict = f"{len(found.damages)} faults" if found.damages else "nothing is damaged"
    print(
        f"{found.path}: {verdict}; {size_text(found.num_bytes)} in {found.num_files} files read "
        f"and compared in {found.seconds:.2f} s ({rate}/s)"
    )
    if not found.has_checksums:
        print(
            "note: without checksums of megacore only what each file says about itself was compared"
        )
    return EXIT_FAILURE if found.damages else EXIT_OK


def _show(config: ShowConfig) -> int:
    from megacore.checkpoint.show import format_summary, summarize

    summary = summarize(_places(config)[0])
    if config.json:
        print(json.dumps(summary.as_json(), indent=1, default=str))
    else:
        print(format_summary(summary, settings=config.settings))
    return EXIT_OK


def _diff(config: DiffConfig) -> int:
    from megacore.checkpoint.diff import compare, format_comparison

    first, second = _places(config)
    comparison = compare(first, second, groups=("model",) if config.model_only else None)
    if config.json:
        rows = {
            "tensors_compared": comparison.num_tensors,
            "settings": [vars(d) for d in comparison.settings],
            "tensors": [vars(d) for d in comparison.tensors],
        }
        print(json.dumps(rows, indent=1, default=str))
    else:
        print(format_comparison(comparison, tolerance=config.tolerance))
    differs = bool(comparison.beyond(config.tolerance))
    differs |= bool(comparison.settings) and not (config.tensors_only or config.model_only)
    return EXIT_FAILURE if differs else EXIT_OK
