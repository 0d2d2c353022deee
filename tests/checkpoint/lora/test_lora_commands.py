"""Command lines of `megacore lora` that are refused."""

from __future__ import annotations

import pytest

from megacore.checkpoint.lora.cli import main
from megacore.errors import EXIT_USAGE, ConfigError
from megacore.models.lora import LoraConfig
from megacore.training.run_config import RunConfig, with_checkpoint

TRIGGERS = {
    "MC1105": ["", "melt a b", "merge a b", "export a", "import a b c d"],
    "MC1106": [
        "export a b --to hf",
        "import a b c --to core",
        "merge a b c --to peft",
        "merge a b c --base d",
        "export a b --any-base",
        "import a b c --base-name x",
    ],
}


@pytest.mark.parametrize(
    ("fault_id", "words"), [(i, words) for i, ways in TRIGGERS.items() for words in ways]
)
def test_command_line_triggers(fault_id: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        main(words.split())
    assert {one.id for one in caught.value.faults} == {fault_id}
    assert caught.value.exit_code == EXIT_USAGE


def test_settings_of_adapters_come_from_their_checkpoint() -> None:
    stored = {"lora_rank": 4, "lora_alpha": 6.0, "lora_targets": ["linear_qkv"]}
    found = with_checkpoint(RunConfig(), {}, stored)[0].lora
    assert found == LoraConfig(lora_rank=4, lora_alpha=6.0, lora_targets=("linear_qkv",))
    # New adapters of a whole model are those of the command line.
    given = RunConfig(lora=LoraConfig(lora_rank=8))
    assert with_checkpoint(given, {}, dict.fromkeys(stored))[0].lora == given.lora
    assert LoraConfig(
        lora_rank=8, lora_targets=("linear_fc2,linear_qkv",)
    ).resolved() == LoraConfig(
        lora_rank=8, lora_alpha=16.0, lora_targets=("linear_qkv", "linear_fc2")
    )
