"""One parser for every command: dataclasses in, typed instances with origins out.

Precedence: defaults < files (the last one wins) < command line. All faults are reported at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megacore.config.faults import fault
from megacore.config.files import read_file
from megacore.config.layers import (
    Controls,
    Layer,
    Origin,
    canonical,
    command_line_layer,
    file_layer,
    nearest,
)
from megacore.config.megatron import MegatronFlags
from megacore.config.report import format_config
from megacore.config.settings import Setting, all_settings, value_faults
from megacore.config.usage import format_help, wanted_help
from megacore.errors import ConfigError, Fault, Information

__all__ = ["Origin", "Parsed", "merge_faults", "parse", "read_layers", "show_notes"]

_LOGGER = logging.getLogger("megacore.config")


@dataclass(frozen=True)
class Parsed:
    """What a command line and its files say.

    Attributes:
        configs: Configuration dataclass -> instance.
        origins: Name of a field -> where its value came from.
        notes: Remarks for the user, one line each.
        print_config: Whether `--print-config` was given.
    """

    configs: dict[type, Any]
    origins: dict[str, Origin]
    notes: tuple[str, ...] = ()
    print_config: bool = False


def parse(
    config_types: Sequence[type],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    abbreviations: bool = False,
    megatron: bool = False,
) -> Parsed:
    """Parses, validates and resolves the settings of a command.

    Args:
        config_types: Dataclasses whose fields are the flags; `faults()` and `resolved()` are used
            where a class has them.
        argv: Words of the command line, without the program name.
        prog: Name of the command.
        description: One sentence for `--help`.
        abbreviations: Whether unambiguous prefixes of flags are accepted (tools only).
        megatron: Whether Megatron's other flags are known, to be accepted or refused by name.

    Returns:
        Resolved instances, with the origin of every value.

    Raises:
        ConfigError: Every fault that could be found.
        Information: `--help` or `--print-config` was given.
    """
    parsed, faults, doubtful = read_layers(
        config_types,
        argv,
        prog=prog,
        description=description,
        abbreviations=abbreviations,
        megatron=megatron,
    )
    for config in parsed.configs.values():
        faults.extend(_config_faults(config))
    merge_faults(faults, doubtful)
    configs = {
        kind: config.resolved() if hasattr(config, "resolved") else config
        for kind, config in parsed.configs.items()
    }
    show_notes(parsed.notes)
    if parsed.print_config:
        raise Information(format_config(list(configs.values()), parsed.origins))
    return replace(parsed, configs=configs)


def _config_faults(config: Any) -> list[Fault]:
    return list(config.faults() if hasattr(config, "faults") else value_faults(config))


def merge_faults(faults: Sequence[Fault], doubtful: set[str]) -> None:
    """Raises all faults as one error, if there are any.

    Args:
        faults: What was found.
        doubtful: Flags that were given but not understood; that they are missing is not a
            second fault.

    Raises:
        ConfigError: There is at least one fault.
    """
    unique: dict[str, Fault] = {}
    for one in faults:
        if one.id == "MC0101" and doubtful.intersection(one.given):
            continue
        unique.setdefault(str(one), one)
    if unique:
        raise ConfigError(sorted(unique.values(), key=lambda f: f.id))


def show_notes(notes: Sequence[str]) -> None:
    """Logs each remark once."""
    for note in dict.fromkeys(notes):
        _LOGGER.warning("note: %s", note)


def read_layers(
    config_types: Sequence[type],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    abbreviations: bool = False,
    megatron: bool = False,
) -> tuple[Parsed, list[Fault], set[str]]:
    """Reads all layers without judging the values together, as `parse` describes.

    Returns:
        The instances as given (not resolved), the faults of reading, and the doubtful flags.

    Raises:
        Information: `--help` was given.
    """
    settings = all_settings(config_types)
    table = MegatronFlags.load() if megatron else None
    hidden = table.hidden_settings(settings) if table else []
    topic = wanted_help(argv)
    if topic is not None:
        raise Information(
            format_help(
                [*settings, *hidden], topic, prog=prog, description=description, table=table
            )
        )
    line, controls = command_line_layer(
        argv, settings, prog=prog, abbreviations=abbreviations, hidden=hidden
    )
    known = [*settings, *hidden]
    layers, faults = _file_layers(controls, known)
    layers.append(line)
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {setting.dest: Origin() for setting in settings}
    doubtful: set[str] = set()
    notes: list[str] = []
    for layer in layers:
        faults.extend(layer.faults)
        doubtful |= layer.doubtful
        values.update(layer.values)
        origins.update(dict.fromkeys(layer.values, layer.origin))
    if table:
        refused, notes = table.judge(values, known)
        faults.extend(refused)
    hidden_dests = {setting.dest for setting in hidden}
    origins = {dest: origin for dest, origin in origins.items() if dest not in hidden_dests}
    configs = {kind: _build(kind, settings, values) for kind in config_types}
    return Parsed(configs, origins, tuple(notes), controls.print_config), faults, doubtful


def _build(kind: type, settings: Sequence[Setting], values: Mapping[str, Any]) -> Any:
    own = [s.dest for s in settings if s.config is kind and s.dest in values]
    return kind(**{dest: values[dest] for dest in own})


def _file_layers(
    controls: Controls, settings: Sequence[Setting]
) -> tuple[list[Layer], list[Fault]]:
    """The layers of all files, without what `--unset` names, and the faults of reading them."""
    layers: list[Layer] = []
    faults: list[Fault] = []
    for path in controls.files:
        try:
            layers.append(file_layer(path, read_file(path), settings))
        except ConfigError as error:
            faults.extend(error.faults)
    names = {canonical(name): s.dest for s in settings for name in (*s.names, s.dest)}
    for name in controls.unset:
        dest = names.get(canonical(name))
        if dest is None:
            guess = nearest(name, list(names))
            more = name + (f"; did you mean {guess}?" if guess else "")
            faults.append(fault("MC0013", more=more))
        for layer in layers:
            layer.values.pop(dest or "", None)
    return layers, faults
