"""Settings of supervised finetuning on conversations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megacore.config.faults import fault
from megacore.config.fields import flag
from megacore.config.settings import value_faults
from megacore.errors import Fault


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """What is trained on, and how conversations become sequences."""

    GROUP: ClassVar[str] = "supervised finetuning"

    sft: bool = flag(
        "--sft",
        default=False,
        help="data paths name JSON lines of conversations; loss on the answers only, averaged over "
        "the answer tokens of the global batch",
    )
    chat_template: str | None = flag(
        "--chat-template",
        default=None,
        help="Jinja file that renders conversations; by default the template of the tokenizer",
    )
    sft_overlong: str = flag(
        "--sft-overlong",
        default="truncate",
        choices=("truncate", "drop", "refuse"),
        help="conversations longer than a sequence: lose their end, are left out, or end the run",
    )

    def faults(self) -> Iterator[Fault]:
        """Rules of finetuning that these values break."""
        yield from value_faults(self)
        if self.sft:
            return
        given: dict[str, object] = {}
        if self.chat_template is not None:
            given["--chat-template"] = self.chat_template
        if self.sft_overlong != "truncate":
            given["--sft-overlong"] = self.sft_overlong
        if given:
            yield fault("MC1111", given, allowed="--sft")
