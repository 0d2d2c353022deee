"""The command that runs a plan, word by word, from the settings of the run and the layout."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from megacore.config.settings import settings_of
from megacore.planning.layouts import Layout
from megacore.planning.model_shape import PlanModel
from megacore.training.run_config import RunConfig

_WIDTH = 96


def flags_of(run: RunConfig) -> list[str]:
    """Flags that make `run` from the defaults: those of every setting that is not its default.

    Args:
        run: As given on a command line or resolved.
    """
    words: list[str] = []
    for component in run.components:
        for setting in settings_of(component.__class__):
            value = getattr(component, setting.dest)
            if value == setting.default or value is None:
                continue
            if setting.is_switch:
                words.append(setting.flag)
            elif setting.value_type.many:
                words += [setting.flag, *map(_word, value)]
            elif _word(value).startswith("-"):
                words.append(f"{setting.flag}={_word(value)}")
            else:
                words += [setting.flag, _word(value)]
    return words


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def training_flags(base: RunConfig, model: PlanModel, layout: Layout) -> list[str]:
    """Flags of `megacore train` for a layout.

    Args:
        base: The run without a layout.
        model: What is trained.
        layout: Where it runs.
    """
    words = flags_of(base)
    position = words.index("--micro-batch-size")
    return [*words[:position], *words[position + 2 :], *layout.flags(model)]


def launch_lines(
    words: Sequence[str], *, processes: int, per_node: int, family: str = "gpt"
) -> list[str]:
    """The lines of a shell command that starts the run.

    Args:
        words: Flags of `megacore train`.
        processes: Of the whole run.
        per_node: Of one machine.
        family: Kind of model, which the script is named after.
    """
    script = f"pretrain_{family}.py"
    nodes = -(-processes // per_node)
    if processes == 1:
        head = [f"python {script}"]
    elif nodes == 1:
        head = [f"torchrun --standalone --nproc-per-node {processes} {script}"]
    else:
        head = [
            f"torchrun --nnodes {nodes} --nproc-per-node {per_node} --rdzv-backend c10d",
            f'--rdzv-endpoint "$HEAD_NODE:29500" {script}',
        ]
    return _continued([*head, *_wrapped(words)])


def check_lines(words: Sequence[str], *, processes: int) -> list[str]:
    """The lines of a command that checks the run on any machine, on meta tensors."""
    return _continued([f"megacore train --simulate-world {processes}", *_wrapped(words)])


def _wrapped(words: Sequence[str]) -> Iterator[str]:
    """The words in lines that begin with a flag."""
    line = ""
    for group in _groups(words):
        if line and len(line) + len(group) + 1 > _WIDTH:
            yield line
            line = ""
        line = f"{line} {group}".strip()
    if line:
        yield line


def _groups(words: Sequence[str]) -> Iterator[str]:
    """Each flag with its values."""
    group: list[str] = []
    for word in words:
        if word.startswith("--") and group:
            yield shlex.join(group)
            group = []
        group.append(word)
    if group:
        yield shlex.join(group)


def _continued(lines: Sequence[str]) -> list[str]:
    return [
        ("    " if index else "") + line + (" \\" if index < len(lines) - 1 else "")
        for index, line in enumerate(lines)
    ]
