"""Small models of awkward sizes for the tests of this folder."""

import torch

from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.testing.random_vectors import randomize_vectors

VOCAB, BATCH, LENGTH = 101, 3, 17
PADDED_VOCAB = 128

SIZES = {
    "num_layers": 3,
    "hidden_size": 60,
    "num_attention_heads": 6,
    "kv_channels": 14,
    "ffn_hidden_size": 77,
    "max_position_embeddings": 23,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "init_method_std": 0.2,
}

ROTARY = {
    "position_embedding_type": "rope",
    "group_query_attention": True,
    "num_query_groups": 2,
    "normalization": "RMSNorm",
    "swiglu": True,
    "qk_layernorm": True,
    "untie_embeddings_and_output_weights": True,
}


def build(*, dtype=torch.float64, recompute=None, seed=5, **changes):
    """A model with random weights, norms and biases included."""
    config = ModelConfig(**SIZES | changes)
    model = GPTModel(config, padded_vocab_size=PADDED_VOCAB, dtype=dtype, recompute=recompute)
    init_weights(model, config, seed=seed)
    randomize_vectors(model, seed=seed)
    return model


def batch(seed=3):
    """Tokens and labels [BATCH, LENGTH]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (2, BATCH, LENGTH), generator=generator)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}
