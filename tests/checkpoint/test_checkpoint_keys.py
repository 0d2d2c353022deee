"""Names of tensors here and in a `torch_dist` checkpoint."""

from __future__ import annotations

import pytest

from megacore.checkpoint.sharded_keys import (
    ShardedKey,
    is_unambiguous,
    layer_names,
    place_of,
    single_key,
    stacked_key,
)

FC1 = "mlp.linear_fc1.weight"


@pytest.mark.parametrize(
    ("group", "name", "key", "layer"),
    [
        ("model", f"decoder.layers.3.{FC1}", f"decoder.layers.{FC1}", 3),
        ("model", f"layers.0.{FC1}", f"layers.{FC1}", 0),
        ("model", "embedding.word_embeddings.weight", "embedding.word_embeddings.weight", None),
        ("model", "decoder.final_layernorm.weight", "decoder.final_layernorm.weight", None),
        ("model", "decoder.layers.03.x", "decoder.layers.03.x", None),
        (
            "model",
            "decoder.layers.7.cross_attention.encoder.layers.1.w",
            "decoder.layers.cross_attention.encoder.layers.1.w",
            7,
        ),
        (
            "optimizer",
            f"exp_avg.decoder.layers.12.{FC1}",
            f"optimizer.state.exp_avg.decoder.layers.{FC1}",
            12,
        ),
        (
            "optimizer",
            "main_param.output_layer.weight",
            "optimizer.state.fp32_param.output_layer.weight",
            None,
        ),
        ("optimizer", "momentum_buffer.a", "optimizer.state.momentum_buffer.a", None),
        ("optimizer", "plain", "optimizer.state.plain", None),
        ("rng", "rank00003.torch_cpu", "rng_state.rank00003.torch_cpu", None),
    ],
)
def test_there_and_back(group: str, name: str, key: str, layer: int | None) -> None:
    assert stacked_key(group, name) == ShardedKey(key, layer)
    found = place_of(key)
    assert found[0] == group
    assert found[2] == (layer is not None)
    if layer is None:
        assert found[1] == name
    else:
        assert list(layer_names(found[1], layer + 1))[-1] == name
    assert place_of(single_key(group, name).key) == (group, name, False)
    assert is_unambiguous(group, name)


@pytest.mark.parametrize(
    "name", ["optimizer.state.exp_avg.w", "rng_state.x", "decoder.layers.mlp.weight"]
)
def test_names_that_would_be_read_as_others(name: str) -> None:
    assert not is_unambiguous("model", name)


def test_states_of_chained_optimizers_are_recognised() -> None:
    key = f"chained_0.optimizer.state.exp_avg.decoder.layers.{FC1}"
    assert place_of(key) == ("optimizer", f"exp_avg.decoder.layers.{{}}.{FC1}", True)
    assert place_of("chained_0.weight") == ("model", "chained_0.weight", False)
