"""Layers of values: what a command line and what files set, each value with its origin."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from megacore.config.faults import fault
from megacore.config.settings import Setting, out_of_bounds
from megacore.config.values import convert
from megacore.errors import Fault, UsageError

_NO_VALUE = object()
CONTROL_FLAGS = ("--config", "--print-config", "--unset", "--help")


@dataclass(frozen=True)
class Origin:
    """Where the value of a setting came from.

    Attributes:
        kind: "default", "file", "command line" or "checkpoint".
        detail: The file, or that a default was derived from other values.
    """

    kind: str = "default"
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


@dataclass
class Layer:
    """The values that one source sets.

    Attributes:
        values: dest -> typed value.
        origin: Where they come from.
        faults: What was wrong in this source.
        doubtful: Flags that were meant but could not be read; they are not "missing" as well.
    """

    origin: Origin
    values: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    doubtful: set[str] = field(default_factory=set)

    def read(self, setting: Setting, given: Any, *, name: str) -> None:
        """Converts and stores one value, or records why it cannot be read.

        Args:
            setting: The setting that is set.
            given: Text, scalar, or a list of them for a setting that holds a tuple.
            name: How messages call it: the flag, or the file and its key.
        """
        if given is None and setting.default is None:
            self.values[setting.dest] = None
            return
        items = given if isinstance(given, (list, tuple)) else [given]
        if not setting.value_type.many and isinstance(given, (list, tuple, dict)):
            items = [dict(given) if isinstance(given, dict) else list(given)]
        try:
            typed = tuple(convert(item, setting.value_type.base) for item in items)
        except (ValueError, OverflowError):
            self.doubtful.update(setting.names)
            shown = " ".join(str(item) for item in items)
            self.faults.append(fault("MC0003", {name: shown}, allowed=setting.allowed))
            return
        if setting.nargs == "+" and not typed:
            self.doubtful.update(setting.names)
            self.faults.append(fault("MC0002", {name: "(nothing)"}, allowed=setting.allowed))
            return
        value = typed if setting.value_type.many else typed[0]
        if setting.config is None:
            found = out_of_bounds(setting, value)
            if found is not None:
                self.faults.append(found)
                return
        self.values[setting.dest] = value


@dataclass(frozen=True)
class Controls:
    """Flags that steer the reading itself.

    Attributes:
        files: Configuration files, the last one wins.
        unset: Names of settings whose value from a file is to be forgotten.
        print_config: Whether the resolved configuration is to be printed.
    """

    files: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    print_config: bool = False


def canonical(name: str) -> str:
    """A flag or key without leading dashes, underscores written as dashes."""
    return name.lstrip("-").replace("_", "-")


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The most similar name, or None when none is similar."""
    by_canonical = {canonical(name): name for name in names}
    close = difflib.get_close_matches(canonical(word), by_canonical, n=1, cutoff=0.6)
    return by_canonical[close[0]] if close else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _argparse_parser(
    settings: Sequence[Setting], *, prog: str, abbreviations: bool
) -> argparse.ArgumentParser:
    """An argparse parser that only splits words; values are read later, so all faults are seen."""
    parser = _Parser(
        prog=prog,
        add_help=False,
        allow_abbrev=abbreviations,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", dest="config files", nargs="?", const="", action="append")
    parser.add_argument("--unset", dest="unset names", nargs="*", action="extend")
    parser.add_argument("--print-config", dest="print config", action="store_true")
    for setting in settings:
        if setting.is_positional:
            parser.add_argument(setting.dest, nargs="*" if setting.value_type.many else "?")
        elif setting.is_switch:
            parser.add_argument(*setting.names, dest=setting.dest, action="store_true")
        elif setting.value_type.many:
            action = "extend" if setting.repeatable else "store"
            parser.add_argument(*setting.names, dest=setting.dest, nargs="*", action=action)
        else:
            parser.add_argument(*setting.names, dest=setting.dest, nargs="?", const=_NO_VALUE)
    return parser


def _spelled(
    argv: Sequence[str], settings: Sequence[Setting], layer: Layer, abbreviations: bool
) -> list[str]:
    """The words with every known flag in its declared spelling; switches with values are faults."""
    declared = {canonical(name): name for s in settings for name in s.names if not s.is_positional}
    switches = {name for s in settings if s.is_switch for name in s.names}
    declared.update({canonical(name): name for name in CONTROL_FLAGS})
    words: list[str] = []
    for position, word in enumerate(argv):
        if word == "--":
            return words + list(argv[position:])
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        key = canonical(name)
        if key not in declared and abbreviations and any(d.startswith(key) for d in declared):
            name = "--" + key
        name = declared.get(key, name)
        if equals and name in switches:
            layer.faults.append(fault("MC0006", {name: value}, allowed=name))
            layer.doubtful.add(name)
            continue
        words.append(name + equals + value)
    return words


def _leftovers(
    extras: Sequence[str], words: Sequence[str], names: Sequence[str], layer: Layer
) -> None:
    """Faults of the words that no flag took; those that follow an unknown flag are its values."""
    unknown = {word for word in extras if word.startswith("-")}
    excused: set[str] = set()
    after_unknown = False
    for word in words:
        if word.startswith("-"):
            after_unknown = word in unknown
        elif after_unknown:
            excused.add(word)
    for word in extras:
        if word in unknown and word not in ("-", "--"):
            name = word.partition("=")[0]
            guess = nearest(name, names)
            layer.faults.append(
                fault("MC0001", more=name + (f"; did you mean {guess}?" if guess else ""))
            )
            if guess:
                layer.doubtful.add(guess)
        elif word not in excused:
            layer.faults.append(fault("MC0007", more=repr(word)))


def command_line_layer(
    argv: Sequence[str],
    settings: Sequence[Setting],
    *,
    prog: str,
    abbreviations: bool = False,
    hidden: Sequence[Setting] = (),
) -> tuple[Layer, Controls]:
    """Reads the words of a command line.

    Args:
        argv: The words, without the program name.
        settings: Flags of the command.
        prog: Its name in messages.
        abbreviations: Whether unambiguous prefixes of flags are accepted.
        hidden: Flags that are understood but belong to no dataclass.

    Returns:
        The values with all faults, and the flags that steer the reading.

    Raises:
        UsageError: An abbreviation is ambiguous.
    """
    known = [*settings, *hidden]
    layer = Layer(Origin("command line"))
    words = _spelled(argv, known, layer, abbreviations)
    parser = _argparse_parser(known, prog=prog, abbreviations=abbreviations)
    # Positional words may stand before, between and behind flags.
    mixed = any(setting.is_positional for setting in known)
    split = parser.parse_known_intermixed_args if mixed else parser.parse_known_args
    namespace, extras = split(words)
    parsed: dict[str, Any] = vars(namespace)
    files = tuple(parsed.pop("config files", ()))
    if "" in files:
        layer.faults.append(fault("MC0002", {"--config": "(nothing)"}, allowed="a file"))
    controls = Controls(
        files=tuple(name for name in files if name),
        unset=tuple(parsed.pop("unset names", ())),
        print_config=bool(parsed.pop("print config", False)),
    )
    for setting in known:
        if setting.dest not in parsed:
            continue
        given = parsed[setting.dest]
        if given is _NO_VALUE:
            layer.doubtful.update(setting.names)
            layer.faults.append(
                fault("MC0002", {setting.flag: "(nothing)"}, allowed=setting.allowed)
            )
        elif setting.is_switch:
            layer.values[setting.dest] = not setting.default
        elif not (setting.is_positional and given in (None, [])):
            layer.read(setting, given, name=setting.flag)
    _leftovers(
        extras, words, [name for s in known for name in s.names] + list(CONTROL_FLAGS), layer
    )
    return layer, controls


def file_layer(path: str, content: Mapping[str, Any], settings: Sequence[Setting]) -> Layer:
    """Reads the content of a configuration file, flat or grouped under the names of groups.

    Args:
        path: The file, for messages.
        content: Its parsed content.
        settings: What can be set.

    Returns:
        The values with all faults.
    """
    layer = Layer(Origin("file", path))
    keys: dict[str, tuple[Setting, bool]] = {}
    # A field's own name comes before a flag that is spelled like it: a file says "x: true" of a
    # field x that only --no-x can change on a command line, where --x changes nothing.
    for setting in settings:
        keys.setdefault(canonical(setting.dest), (setting, False))
    for setting in settings:
        inverts = setting.is_switch and setting.default is True
        for name in setting.names:
            keys.setdefault(canonical(name), (setting, inverts))
    groups = {canonical(s.group.replace(" ", "-")): s.group for s in settings}
    seen: dict[str, str] = {}

    def take(key: str, value: Any, where: str) -> None:
        found = keys.get(canonical(key))
        shown = f"{path}: {where}{key}"
        if found is None:
            guess = nearest(key, list(keys))
            layer.faults.append(
                fault("MC0009", more=shown + (f"; did you mean {guess}?" if guess else ""))
            )
            if guess:
                layer.doubtful.update(keys[guess][0].names)
            return
        setting, inverted = found
        if setting.dest in seen:
            layer.faults.append(fault("MC0010", {seen[setting.dest]: "", shown: ""}))
            return
        seen[setting.dest] = shown
        if inverted and isinstance(value, bool):
            value = not value
        layer.read(setting, value, name=shown)

    for key, value in content.items():
        key = str(key)
        if not isinstance(value, Mapping):
            take(key, value, "")
        elif canonical(key.replace(" ", "-")) in groups:
            for inner, inner_value in value.items():
                take(str(inner), inner_value, f"{key}.")
        else:
            guess = nearest(key, list(groups))
            layer.faults.append(
                fault(
                    "MC0009", more=f"{path}: {key}" + (f"; did you mean {guess}?" if guess else "")
                )
            )
    return layer
