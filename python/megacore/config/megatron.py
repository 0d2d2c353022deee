"""What becomes of every flag of Megatron-LM: it works, is accepted without effect, or is refused.

The table `megatron_flags.tsv` holds one row per flag. Its columns: group; option strings; dest;
kind (int, float, str, bool; with * or + for lists; store_true, store_false); default; choices;
state; harmless (values of a refused flag that change nothing, so they pass); note.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from megacore.config.faults import fault
from megacore.config.settings import Setting
from megacore.config.values import ValueType, convert
from megacore.errors import Fault

_BASES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
_REMOVED = "removed: "


@dataclass(frozen=True)
class FlagRow:
    """One row of the table.

    Attributes:
        group: Heading under which the flag is documented.
        names: Option strings.
        dest: Name in reports.
        kind: Type and number of values, as in the table.
        default: Text of the default, "" for None.
        choices: Allowed values, empty for any.
        state: "works", "accepted" or "refused".
        harmless: Values of a refused flag that pass, besides the default.
        note: Why it is accepted or refused.
    """

    group: str
    names: tuple[str, ...]
    dest: str
    kind: str
    default: str
    choices: tuple[str, ...]
    state: str
    harmless: tuple[str, ...]
    note: str

    def setting(self) -> Setting:
        """The flag as a setting that belongs to no dataclass."""
        switch = self.kind.startswith("store_")
        base = bool if switch else _BASES[self.kind.rstrip("*+")]
        default: Any = self.kind == "store_false" if switch else None
        if self.default and not switch:
            many = self.kind[-1] in "*+"
            default = () if many else convert(self.default, base)
        return Setting(
            dest=self.dest,
            names=self.names,
            group=self.group,
            value_type=ValueType(base, self.kind[-1] in "*+", default is None),
            default=default,
            choices=tuple(convert(c, base) for c in self.choices) or None,
            nargs=self.kind[-1] if self.kind[-1] in "*+" else None,
            bounds=None,
            help=f"{self.state}: {self.note}",
            metavar=None,
            config=None,
        )

    def refusal(self, setting: Setting, value: Any) -> Fault | None:
        """The fault of a value of a refused flag, or None when the value changes nothing."""
        if self.note.startswith(_REMOVED):
            return fault("MC0012", {self.names[0]: value}, allowed=self.note[len(_REMOVED) :])
        given: dict[str, object]
        if setting.is_switch:
            if value == setting.default:
                return None
            given, allowed = {self.names[0]: ""}, "leave it out"
        else:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if value == setting.default or shown in self.harmless:
                return None
            passing = [text for text in (self.default, *self.harmless) if text]
            given = {self.names[0]: shown}
            allowed = ", ".join(dict.fromkeys(passing)) or "leave it out"
        return fault("MC0011", given, allowed=allowed, more=f"{self.names[0]}: {self.note}")


@dataclass(frozen=True)
class MegatronFlags:
    """The whole table.

    Attributes:
        rows: Its rows, in order of the groups.
    """

    rows: tuple[FlagRow, ...]

    @classmethod
    @functools.cache
    def load(cls) -> MegatronFlags:
        """Reads the table that is part of the package."""
        source = resources.files("megacore.config").joinpath("megatron_flags.tsv")
        lines = source.read_text(encoding="utf-8").splitlines()
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return cls(tuple(_row(record) for record in reader))

    def hidden_settings(self, settings: Sequence[Setting]) -> list[Setting]:
        """Settings for the flags that no dataclass has: to be accepted or refused by name."""
        taken = {name for setting in settings for name in setting.names}
        return [row.setting() for row in self.rows if not taken.intersection(row.names)]

    def judge(
        self, values: Mapping[str, Any], settings: Sequence[Setting]
    ) -> tuple[list[Fault], list[str]]:
        """Refuses and remarks on what was given.

        Args:
            values: dest -> value, only of what was given.
            settings: All settings, those of dataclasses and the hidden ones.

        Returns:
            Faults of refused flags, and one note for each flag that has no effect.
        """
        faults: list[Fault] = []
        notes: list[str] = []
        by_flag = {name: setting for setting in settings for name in setting.names}
        for row in self.rows:
            setting = by_flag.get(row.names[0])
            if setting is None or setting.dest not in values:
                continue
            if row.state == "refused":
                found = row.refusal(setting, values[setting.dest])
                if found is not None:
                    faults.append(found)
            elif row.state == "accepted":
                notes.append(f"{row.names[0]} has no effect: {row.note}")
        return faults, notes


def _row(record: Mapping[str, str]) -> FlagRow:
    return FlagRow(
        group=record["group"],
        names=tuple(record["flag"].split()),
        dest=record["dest"],
        kind=record["kind"],
        default=record["default"],
        choices=tuple(c for c in record["choices"].split(",") if c),
        state=record["state"],
        harmless=tuple(v for v in record["harmless"].split(",") if v),
        note=record["note"],
    )
