"""Small BERT and T5 models of transformers, of awkward sizes, and their counterparts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from megacore.checkpoint.convert.hf.families import FAMILIES
from megacore.models.config import ModelConfig
from megacore.models.select import MODELS
from megacore.models.staged import StagedModel

VOCAB, BATCH, LENGTH, DECODED = 101, 3, 17, 11
LENGTHS = torch.tensor([17, 5, 12], dtype=torch.int32)

_BERT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 77,
    "max_position_embeddings": 23,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 77,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 6,
    "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 13,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}


def _bert(**changes: Any) -> nn.Module:
    return transformers.BertForPreTraining(transformers.BertConfig(**_BERT | changes))


def _megatron_bert(**changes: Any) -> nn.Module:
    config = transformers.MegatronBertConfig(**_BERT | changes)
    return transformers.MegatronBertForPreTraining(config)


def _t5(**changes: Any) -> nn.Module:
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**_T5 | changes))


CASES: dict[str, Callable[[], nn.Module]] = {
    "bert": _bert,
    "bert-tanh": lambda: _bert(hidden_act="gelu_new", layer_norm_eps=1e-5),
    "megatron-bert": _megatron_bert,
    "t5-1.0": _t5,
    "t5-1.1": lambda: _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def hf_model(name: str) -> Any:
    """The model of a case, with random norms and biases too."""
    torch.manual_seed(7)
    model: Any = CASES[name]()
    if name == "t5-1.1":
        # transformers 5 ties what the real models of this version have not tied.
        model.lm_head.weight = nn.Parameter(0.3 * torch.randn(VOCAB, _T5["d_model"]))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            elif "relative_attention_bias" in key:
                parameter.copy_(torch.randn(parameter.shape))
    norms: list[Any] = [m for m in model.modules() if isinstance(m, T5LayerNorm)]
    for norm in norms:
        # That of transformers takes the mean square in float32, whatever the dtype.
        norm.forward = partial(_rms_norm, norm)
    return model.eval()


def _rms_norm(module: T5LayerNorm, x: Tensor) -> Tensor:
    mean = x.square().mean(-1, keepdim=True)
    return module.weight * (x * torch.rsqrt(mean + module.variance_epsilon))


def config_of(model: Any) -> ModelConfig:
    """Our configuration of a model of transformers."""
    values = model.config.to_dict()
    config, remarks = FAMILIES[values["model_type"]].read(values, "config.json")
    assert remarks == []
    return config


def ours_from(model: Any, dtype: torch.dtype) -> tuple[StagedModel, dict[str, tuple[str, ...]]]:
    """Our model with the weights of theirs; and of each of our parameters where it came from."""
    config = config_of(model)
    built = MODELS[config.model_family](config, padded_vocab_size=VOCAB, dtype=dtype)
    rules = FAMILIES[model.config.model_type].rules(config)
    theirs = model.state_dict()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.copy_(rules[name].join([theirs[part] for part in rules[name].theirs]))
    return built, {name: rule.theirs for name, rule in rules.items()}


def their_gradients(model: Any) -> dict[str, Tensor]:
    """Gradients under our names and in our layout."""
    rules = FAMILIES[model.config.model_type].rules(config_of(model))
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: rule.join([grads[part] for part in rule.theirs]) for name, rule in rules.items()}


def batch() -> dict[str, Tensor]:
    """Tokens, types and labels; padded rows."""
    generator = torch.Generator().manual_seed(3)

    def draw(top: int, *shape: int) -> Tensor:
        return torch.randint(0, top, shape, generator=generator)

    visible = torch.arange(LENGTH) < LENGTHS[:, None]
    return {
        "tokens": draw(VOCAB, BATCH, LENGTH),
        "types": draw(2, BATCH, LENGTH),
        "labels": draw(VOCAB, BATCH, LENGTH),
        "order": draw(2, BATCH),
        "visible": visible,
        "decoded": draw(VOCAB, BATCH, DECODED),
        "decoded_labels": draw(VOCAB, BATCH, DECODED),
    }
