"""A small GPT of which each rank trains on a part of the sequences, for tests of this folder."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from megacore.data.loader import Batch
from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.parallel.context import apply_context_parallel, local_batch
from megacore.parallel.groups import Group
from megacore.testing.random_vectors import randomize_vectors

VOCAB, PADDED_VOCAB, BATCH, LENGTH = 101, 128, 3, 24

SIZES = {
    "num_layers": 2,
    "hidden_size": 40,
    "num_attention_heads": 8,
    "kv_channels": 6,
    "ffn_hidden_size": 52,
    "max_position_embeddings": 29,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "init_method_std": 0.2,
}
GROUPED = {"group_query_attention": True, "num_query_groups": 4}
ROTARY = {"position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True}

MODELS: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary": ROTARY,
    "interleaved": ROTARY | {"rotary_interleaved": True, "rotary_percent": 0.67},
    "grouped": ROTARY | GROUPED | {"qk_layernorm": True},
    "multi-query": ROTARY | {"group_query_attention": True, "num_query_groups": 1},
    "windows": ROTARY
    | GROUPED
    | {
        "window_size": "6,0",
        "window_attn_skip_freq": "2",
        "rotary_base_local": 300,
        "attn_logit_softcapping": 1.5,
        "softmax_scale": 0.5,
        "sandwich_norm": True,
    },
    "scaled": {"apply_query_key_layer_scaling": True, "position_embedding_type": "none"},
}

# Row 0: documents of one token; row 1: one document in all chunks; row 2: awkward ones.
DOCUMENTS = (1, 1, 22, 24, 5, 1, 7, 1, 1, 9)


def build(
    changes: dict[str, Any], *, dtype: torch.dtype, recompute: RecomputeConfig | None = None
) -> GPTModel:
    config = ModelConfig(**{**SIZES, **changes})
    model = GPTModel(config, padded_vocab_size=PADDED_VOCAB, dtype=dtype, recompute=recompute)
    init_weights(model, config, seed=5)
    randomize_vectors(model, seed=5)
    return model


def whole_batch(*, packed: bool) -> Batch:
    """Random tokens, some of which do not count; positions start again with each document."""
    generator = torch.Generator().manual_seed(3)
    tokens, labels = torch.randint(0, VOCAB, (2, BATCH, LENGTH), generator=generator)
    loss_mask = (torch.rand(BATCH, LENGTH, generator=generator) < 0.7).float()
    lengths = DOCUMENTS if packed else (LENGTH,) * BATCH
    positions = torch.cat([torch.arange(n) for n in lengths]).view(BATCH, LENGTH)
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return Batch(tokens, labels, loss_mask, positions, bounds if packed else None, max(lengths))


def train(
    group: Group,
    changes: dict[str, Any],
    *,
    comm_type: str = "p2p",
    packed: bool = False,
    dtype: torch.dtype = torch.float64,
    recompute: RecomputeConfig | None = None,
    seed: int = 11,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's part of the loss and of every gradient; on one process the whole."""
    model = build(changes, dtype=dtype, recompute=recompute)
    apply_context_parallel(model, group, comm_type=comm_type)
    torch.manual_seed(seed + group.rank)
    loss = loss_of(model, group, packed=packed)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


def loss_of(model: GPTModel, group: Group, *, packed: bool) -> Tensor:
    """This rank's part of the loss of the whole batch."""
    batch = whole_batch(packed=packed)
    tokens = batch.loss_mask.sum(dtype=torch.float64)
    local = local_batch(batch, group)
    losses = model(
        local.tokens, local.position_ids, labels=local.labels, cu_seqlens=local.cu_seqlens
    )
    total: Tensor = (losses * local.loss_mask).sum() / tokens
    return total


def train_remote(
    group: Group, changes: dict[str, Any], options: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    return train(group, changes, **options)


def summed(results: list[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Loss and gradients of all ranks together, added in float64 or the gradients' dtype."""
    total = {
        name: torch.stack([r[1][name].double() for r in results]).sum(0) for name in results[0][1]
    }
    return {"loss": torch.stack([r[0].double() for r in results]).sum(0), **total}
