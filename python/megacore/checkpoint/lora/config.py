"""Settings of `megacore lora`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.faults import fault
from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault

# What is done -> the paths that it needs.
ACTIONS = {
    "merge": ("BASE", "ADAPTERS", "OUT"),
    "export": ("ADAPTERS", "OUT"),
    "import": ("PEFT", "BASE", "OUT"),
}


@dataclass(frozen=True, kw_only=True)
class LoraToolConfig:
    """What to do with adapters."""

    GROUP: ClassVar[str] = "adapters"

    words: tuple[str, ...] | None = flag(
        "words",
        default=None,
        nargs="*",
        help="merge BASE ADAPTERS OUT: a whole model out of a base model (of any format that "
        "megacore convert reads) and its adapters (a checkpoint, or a PEFT directory); "
        "export ADAPTERS OUT: adapters for Hugging Face PEFT; import PEFT BASE OUT: adapters of "
        "PEFT as a checkpoint that training starts from",
    )
    to: str | None = flag(
        "--to",
        default=None,
        choices=("core", "hf", "legacy", "peft"),
        help="format of the result: of merge core (default), hf or legacy; of export peft",
    )
    base: str | None = flag(
        "--base",
        default=None,
        help="of export: checkpoint of the base model, when it is not where it was",
    )
    base_name: str | None = flag(
        "--base-name",
        default=None,
        help="of export: base_model_name_or_path in adapter_config.json; default the path",
    )
    family: str | None = flag(
        "--family",
        default=None,
        help="Hugging Face family of the base model; default its own, or one that fits",
    )
    any_base: bool = flag(
        "--any-base",
        default=False,
        help="of merge: do not insist on the checkpoint that the adapters were trained on",
    )

    @property
    def action(self) -> str:
        """What is to be done."""
        return (self.words or ("",))[0]

    @property
    def paths(self) -> tuple[str, ...]:
        """Of what and where."""
        return (self.words or ())[1:]

    def faults(self) -> Iterator[Fault]:
        """Rules of the command that these values break."""
        yield from value_faults(self)
        if self.action not in ACTIONS:
            given = {"megacore lora": self.action or None}
            yield fault("MC1105", given, allowed=", ".join(ACTIONS))
            return
        needed = ACTIONS[self.action]
        if len(self.paths) != len(needed):
            given = {f"megacore lora {self.action}": " ".join(self.paths) or None}
            yield fault("MC1105", given, allowed=" ".join(needed))
        formats = {"merge": ("core", "hf", "legacy"), "export": ("peft",), "import": ()}
        if self.to is not None and self.to not in formats[self.action]:
            allowed = " | ".join(formats[self.action]) or "leave it out"
            yield fault("MC1106", {"--to": self.to}, allowed=allowed)
        belongs = {
            "--base": ("export", self.base),
            "--base-name": ("export", self.base_name),
            "--any-base": ("merge", self.any_base or None),
        }
        for name, (action, value) in belongs.items():
            if value is not None and self.action != action:
                yield fault("MC1106", {name: value}, allowed=f"megacore lora {action}")
