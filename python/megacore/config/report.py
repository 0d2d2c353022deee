"""Reports of a configuration: every value with its origin, all arguments, and a resumed run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from megacore.config.fields import METADATA_KEY
from megacore.config.layers import Origin
from megacore.config.settings import settings_of

_NAME_COLUMNS = 48


def flat_values(configs: Sequence[Any]) -> dict[str, Any]:
    """Name -> value of every flag of some configuration instances; tuples become lists."""
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for config in configs
        for field in fields(config)
        if METADATA_KEY in field.metadata
        for value in [getattr(config, field.name)]
    }


def format_config(configs: Sequence[Any], origins: Mapping[str, Origin]) -> str:
    """The configuration as YAML that `--config` reads again, each line with its origin.

    Args:
        configs: Configuration instances.
        origins: Name of a field -> its origin.
    """
    sections = []
    for config in configs:
        values = flat_values([config])
        lines = []
        for setting in settings_of(config.__class__):
            text = _scalar(values[setting.dest])
            origin = origins.get(setting.dest, Origin())
            if origin.kind == "default" and values[setting.dest] != _listed(setting.default):
                origin = Origin("default", "derived from other values")
            lines.append(f"  {setting.dest}: {text}  # {origin}")
        group = str(getattr(type(config), "GROUP", type(config).__name__)).replace(" ", "_")
        sections.append("\n".join([f"{group}:", *lines]))
    return "\n".join(sections) + "\n"


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _scalar(value: Any) -> str:
    """A value on one line of YAML: readable, or in escapes where some character needs them."""
    for readable in (True, False):
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=readable)
        text = text.removesuffix("\n").removesuffix("\n...")
        if yaml.safe_load(text) == value:
            break
    return text


def format_arguments(run: Any) -> str:
    """All arguments, sorted without regard to case, between two dashed title lines.

    Args:
        run: A dataclass whose fields are configuration instances, such as a `RunConfig`.

    Returns:
        Lines of two spaces, the name, dots up to column 48, and the value.
    """
    configs = [getattr(run, field.name) for field in fields(run)]
    values = flat_values([config for config in configs if is_dataclass(config)])
    title = " arguments "
    lines = [f"{'-' * 24}{title}{'-' * 24}"]
    for name in sorted(values, key=str.lower):
        dots = "." * max(0, _NAME_COLUMNS - len(name))
        lines.append(f"  {name} {dots} {values[name]}")
    lines.append(f"{'-' * 20} end of arguments {'-' * 21}")
    return "\n".join(lines)


def format_resume_table(rows: Sequence[tuple[str, Any, Any, Any]]) -> str:
    """What a resumed run takes from where: a table of four columns.

    Args:
        rows: Name, value in the checkpoint, value of the command line, value used.
    """
    head = ("setting", "checkpoint", "command line", "used")
    cells = [head, *(tuple(_shown(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)
