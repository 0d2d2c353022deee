"""The model that a configuration describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from megacore.models.bert import BertModel
from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.staged import StagedModel
from megacore.models.t5 import T5Model

# `--model-family` -> its class; all are made with the same arguments.
MODELS: Mapping[str, Callable[..., StagedModel]] = {
    "gpt": GPTModel,
    "bert": BertModel,
    "t5": T5Model,
}


def parameter_shapes(config: ModelConfig, *, padded_vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the whole model, in order.

    Args:
        config: Resolved.
        padded_vocab_size: Rows of the word embedding.
    """
    model = MODELS[config.model_family](config, padded_vocab_size=padded_vocab_size, device="meta")
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
