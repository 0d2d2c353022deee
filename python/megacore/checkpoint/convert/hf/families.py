"""The registry of families.

A new family is a module with a `FAMILY` and a line here. Families whose models megacore does not
have yet are named in `NOT_YET`, so that the message says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megacore.checkpoint.convert.hf import (
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    phi3,
    qwen2,
    qwen3,
)
from megacore.checkpoint.convert.hf.bert import BERT, MEGATRON_BERT
from megacore.checkpoint.convert.hf.family import Family
from megacore.checkpoint.convert.hf.t5 import FAMILY as T5
from megacore.errors import CheckpointError, UsageError
from megacore.models.config import ModelConfig

# In the order in which a model of another source looks for one that can express it.
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        *(
            module.FAMILY
            for module in (
                llama,
                mistral,
                qwen2,
                qwen3,
                gemma,
                gemma2,
                gemma3,
                phi3,
                gpt_neox,
                gpt2,
            )
        ),
        BERT,
        MEGATRON_BERT,
        T5,
    )
}

NOT_YET = {
    "mixtral": "there is no mixture-of-experts model yet",
    "qwen2_moe": "there is no mixture-of-experts model yet",
    "qwen3_moe": "there is no mixture-of-experts model yet",
    "mamba": "there is no Mamba yet",
    "mamba2": "there is no Mamba yet",
    "gemma3": "only Gemma 3 without images (gemma3_text) can be converted",
}


def family_of(values: Mapping[str, Any], where: str) -> Family:
    """The family of a `config.json`.

    Args:
        values: Its values.
        where: What messages call it.

    Raises:
        CheckpointError: It is not known.
    """
    name = values.get("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    reason = NOT_YET.get(name) if isinstance(name, str) else None
    raise CheckpointError(
        f"{where}: model_type {name!r} cannot be converted"
        + (f": {reason}" if reason else "")
        + f"; these can: {', '.join(FAMILIES)}"
    )


def family_named(name: str) -> Family:
    """The family that a user names.

    Raises:
        UsageError: It is not known.
    """
    if name not in FAMILIES:
        reason = f" ({NOT_YET[name]})" if name in NOT_YET else ""
        raise UsageError(
            f"there is no Hugging Face family {name!r}{reason}; one of: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def family_for(config: ModelConfig, preferred: str | None = None) -> Family:
    """The first family that can express a model.

    Args:
        config: Resolved.
        preferred: Name of the one that is tried first, if it is known.

    Raises:
        CheckpointError: There is none; says of each why.
    """
    reasons = []
    for family in sorted(FAMILIES.values(), key=lambda family: family.name != preferred):
        try:
            family.rules(config)
            family.express(config)
        except CheckpointError as error:
            reasons.append(str(error))
        else:
            return family
    raise CheckpointError("no Hugging Face family can be this model:\n" + "\n".join(reasons))
