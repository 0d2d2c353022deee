"""The help page: grouped, and by group with `--help GROUP`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from megacore.config.layers import canonical, nearest
from megacore.config.megatron import MegatronFlags
from megacore.config.settings import Setting
from megacore.config.values import describe_bounds
from megacore.errors import UsageError

_WIDTH = 96
_CONTROLS = """\
reading:
  --config FILE         YAML or TOML file of settings (keys are flag names without dashes); flags
                        on the command line win over it, a later file over an earlier one
  --unset NAME [...]    forget what files say about these settings
  --print-config        print every value with its origin, and stop
  --help [GROUP]        this page, or one group of it in full"""


def wanted_help(argv: Sequence[str]) -> str | None:
    """The topic of `--help [GROUP]`: "" for the whole page, None when help was not asked for."""
    for position, word in enumerate(argv):
        if word == "--":
            return None
        if word in ("-h", "--help"):
            topic = []
            for one in argv[position + 1 : position + 4]:
                if one.startswith("-"):
                    break
                topic.append(one)
            return " ".join(topic)
        if word.startswith("--help="):
            return word.partition("=")[2]
    return None


def format_help(
    settings: Sequence[Setting],
    topic: str,
    *,
    prog: str,
    description: str,
    table: MegatronFlags | None = None,
) -> str:
    """The help text.

    Args:
        settings: All settings, those of dataclasses and those only the table knows.
        topic: Name of a group (or the begin of it), or "" for everything that works.
        prog: Name of the command.
        description: One sentence.
        table: Megatron's flags, when the command knows them.

    Raises:
        UsageError: There is no such group.
    """
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.group, []).append(setting)
    if topic:
        chosen = _matching(topic, list(groups), prog)
        return "\n\n".join(_section(name, groups[name]) for name in chosen) + "\n"
    own = {name: [s for s in group if s.config is not None] for name, group in groups.items()}
    positionals = [s for s in settings if s.is_positional]
    words = " ".join(s.flag.upper() + (" ..." if s.value_type.many else "") for s in positionals)
    parts = [f"usage: {prog} [flags]{' ' + words if words else ''}", description, _CONTROLS]
    parts += [_section(name, group) for name, group in own.items() if group]
    if table is not None:
        others = [name for name, group in groups.items() if len(own[name]) < len(group)]
        parts.append(
            textwrap.fill(
                "Megatron-LM's other flags are known by name, and accepted without effect or "
                "refused with the reason; see --help GROUP with one of: " + ", ".join(others),
                _WIDTH,
            )
        )
    return "\n\n".join(parts) + "\n"


def _matching(topic: str, groups: Sequence[str], prog: str) -> list[str]:
    wanted = canonical(topic.lower().replace(" ", "-"))
    keys = {name: canonical(name.lower().replace(" ", "-")) for name in groups}
    for test in (str.__eq__, str.startswith, str.__contains__):
        chosen = [name for name, key in keys.items() if test(key, wanted)]
        if chosen:
            return chosen
    guess = nearest(wanted, list(keys.values()))
    hint = f"; did you mean {guess}?" if guess else ""
    raise UsageError(f"{prog}: no group of flags is called {topic!r}{hint} ({', '.join(groups)})")


def _section(name: str, settings: Sequence[Setting]) -> str:
    return "\n".join([f"{name}:", *(describe(setting) for setting in settings)])


def describe(setting: Setting) -> str:
    """One flag of the help page, with its value, choices and default."""
    head = ", ".join(setting.names)
    if not setting.is_switch and not setting.is_positional:
        value = setting.metavar or setting.value_type.base.__name__.upper()
        head += f" {value}" + (" ..." if setting.value_type.many else "")
    lines = textwrap.wrap(
        setting.help + details(setting),
        _WIDTH,
        initial_indent=" " * 24,
        subsequent_indent=" " * 24,
        break_on_hyphens=False,
    )
    if len(head) <= 20:
        return f"  {head:<22}" + "\n".join(lines)[24:]
    return f"  {head}\n" + "\n".join(lines)


def details(setting: Setting) -> str:
    """Choices, range and default of a setting in brackets, or nothing for a switch."""
    if setting.is_switch:
        return ""
    parts = []
    if setting.choices is not None:
        parts.append("one of " + ", ".join(str(c) for c in setting.choices))
    if setting.bounds is not None:
        parts.append(describe_bounds(setting.bounds))
    if setting.default not in (None, "", ()):
        default = setting.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        parts.append(f"default {shown}")
    return f" ({'; '.join(parts)})" if parts else ""
