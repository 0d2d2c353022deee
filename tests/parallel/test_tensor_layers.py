"""The table of splits, what cannot be split, weight gradients left for later, ids out of range."""

from __future__ import annotations

import pytest
import torch
from tensor_models import (
    LENGTH,
    PADDED_VOCAB,
    ROTARY,
    Case,
    build,
    reduce_partial_grads,
    run_step,
    single_step,
    split_model,
)
from torch import Tensor
from worker_pool import WorkerPools

from megacore.errors import UsageError
from megacore.parallel.config import ParallelConfig
from megacore.parallel.groups import Group
from megacore.parallel.layout import ParamLayout, full_tensor
from megacore.parallel.linear import Overlap
from megacore.parallel.splits import SPLITS, LayerSplit
from megacore.parallel.tensor import apply_tensor_parallel
from megacore.parallel.weight_grad import WeightGradStore


def layouts_of(
    case: Case, rank: int = 1, size: int = 2, **options: object
) -> dict[str, ParamLayout]:
    model, _ = build(case, "meta")
    group = Group("tp", tuple(range(size)), rank)
    return apply_tensor_parallel(model, group, **options)


def test_layouts() -> None:
    found = layouts_of(Case(ROTARY | {"add_bias_linear": True, "normalization": "LayerNorm"}))
    expected = {
        "embedding.word_embeddings.weight": (0, 1),
        "self_attention.linear_qkv.weight": (0, 1),
        "self_attention.linear_qkv.bias": (0, 1),
        "self_attention.linear_qkv.layer_norm_weight": (None, 1),
        "self_attention.q_layernorm.bias": (None, 1),
        "self_attention.linear_proj.weight": (1, 1),
        "self_attention.linear_proj.bias": (None, 1),
        "mlp.linear_fc1.weight": (0, 2),
        "mlp.linear_fc1.bias": (0, 2),
        "mlp.linear_fc2.weight": (1, 1),
        "decoder.final_layernorm.weight": (None, 1),
        "output_layer.weight": (0, 1),
    }
    for name, layout in found.items():
        assert layout.name == name
        assert not layout.is_copy
        for end, (dim, fold) in expected.items():
            if name.endswith(end):
                assert (layout.shard_dim, layout.fold) == (dim, fold), name
                assert (layout.num_shards, layout.shard) == ((1, 0) if dim is None else (2, 1))
    assert found["decoder.layers.1.mlp.linear_fc1.weight"].full_shape == (152, 60)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_partial_gradients(sequence_parallel: bool) -> None:
    case = Case({"qk_layernorm": True})
    found = layouts_of(case, sequence_parallel=sequence_parallel)
    partial = {name for name, layout in found.items() if layout.partial_grad}
    of_heads = {name for name in found if "q_layernorm" in name or "k_layernorm" in name}
    whole = {name for name, layout in found.items() if not layout.is_sharded}
    assert partial == (whole if sequence_parallel else of_heads)
    assert not any(
        layout.partial_grad
        for layout in layouts_of(case, 0, 1, sequence_parallel=sequence_parallel).values()
    )


def test_one_process_cuts_nothing() -> None:
    model, _ = build(Case(ROTARY), "meta")
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    layouts = apply_tensor_parallel(model, Group("tp"), sequence_parallel=True)
    assert {n: p.shape for n, p in model.named_parameters()} == before
    assert {n: layout.full_shape for n, layout in layouts.items()} == before
    assert not any(layout.is_sharded for layout in layouts.values())


def test_frozen_parameters_stay_frozen() -> None:
    model, _ = build(Case(), "meta")
    model.requires_grad_(False)
    apply_tensor_parallel(model, Group("tp", (0, 1), 0))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        ({}, 3, ["8 groups of query heads"]),
        ({"ffn_hidden_size": 78}, 4, ["dimension 1 of decoder.layers.1.mlp.linear_fc2.weight"]),
        # 76 = 2 * 38 rows of gate and of value: 8 processes cannot have whole rows of both.
        ({"swiglu": True}, 8, ["dimension 0 of decoder.layers.0.mlp.linear_fc1.weight [152, 60]"]),
        (ROTARY, 8, ["4 groups of query heads", "[132, 60] cannot be divided among 8"]),
    ],
)
def test_what_cannot_be_divided(settings: dict[str, object], size: int, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        layouts_of(Case(settings), 0, size)
    for word in words:
        assert word in str(caught.value)


def test_every_layer_must_be_in_the_table() -> None:
    splits = [row for row in SPLITS if "final" not in row.layers]
    with pytest.raises(UsageError, match=r"decoder\.final_layernorm is in no row"):
        layouts_of(Case(), splits=splits)
    extended = [LayerSplit(layers="decoder.final*", split="tokens"), *splits]
    assert layouts_of(Case(), splits=extended) == layouts_of(Case())


def test_sequence_that_cannot_be_divided(world: WorkerPools) -> None:
    for message in world(4).run(step_of_odd_length):
        assert message.startswith("dimension 1 of a tensor [3, 22, 60] cannot be divided among 4")


def step_of_odd_length(group: Group) -> str:
    model, _ = split_model(Case(sequence_parallel=True), group)
    with pytest.raises(UsageError) as caught:
        model(torch.zeros(3, LENGTH - 2, dtype=torch.int64))
    return str(caught.value)


def ids_out_of_range(group: Group, where: str, value: int) -> str:
    model, _ = split_model(Case(), group)
    tokens, labels = torch.zeros(2, 1, LENGTH, dtype=torch.int64)
    (tokens if where == "token" else labels)[0, 5] = value
    with pytest.raises(UsageError) as caught:
        model(tokens, labels=labels)
    return str(caught.value)


@pytest.mark.parametrize("value", [-1, PADDED_VOCAB])
@pytest.mark.parametrize("where", ["token", "label"])
def test_ids_outside_the_vocabulary(world: WorkerPools, where: str, value: int) -> None:
    for message in world(2).run(ids_out_of_range, where, value):
        assert f"{where} {value} lies outside the vocabulary of {PADDED_VOCAB}" in message


def deferred_step(group: Group, case: Case) -> list[dict[str, Tensor]]:
    """Gradients behind I, and behind W."""
    model, _ = build(case, "meta")
    store = WeightGradStore()
    apply_tensor_parallel(model, group, sequence_parallel=case.sequence_parallel, store=store)
    model.to_empty(device="cpu")
    whole, _ = split_model(case, group)
    model.load_state_dict(whole.state_dict())
    with store.deferring(0, 0):
        run_step(model, case)
    first = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    store.run(0, 0)
    second = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    run_step(whole, case)
    direct = {n: p.grad for n, p in whole.named_parameters() if p.grad is not None}
    return [first, second, direct]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_weight_gradients_left_for_later(
    world: WorkerPools, size: int, sequence_parallel: bool, tied: bool
) -> None:
    settings = ROTARY | {"untie_embeddings_and_output_weights": not tied}
    case = Case(settings, sequence_parallel=sequence_parallel)
    if size == 1:
        results = [deferred_step(Group("tp"), case)]
    else:
        results = world(size).run(deferred_step, case)
    for first, second, direct in results:
        late = {n for n in direct if n.endswith(".weight") and ".linear_" in n}
        late |= set() if tied else {"output_layer.weight"}
        assert second.keys() - first.keys() == late
        assert second.keys() == direct.keys()
        for name, grad in direct.items():
            assert torch.equal(grad, second[name]), name


def frozen_step(group: Group, case: Case, frozen: str) -> dict[str, Tensor | None]:
    model, layouts = split_model(case, group)
    for name, parameter in model.named_parameters():
        if frozen in name:
            parameter.requires_grad_(False)
    run_step(model, case)
    grads = {n: p.grad for n, p in model.named_parameters()}
    reduce_partial_grads({n: g for n, g in grads.items() if g is not None}, layouts, group)
    return grads


@pytest.mark.parametrize("frozen", ["linear_fc2.weight", "linear_qkv", "bias", "embedding"])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_frozen_parameters(world: WorkerPools, frozen: str, sequence_parallel: bool) -> None:
    case = Case(sequence_parallel=sequence_parallel)
    _, wanted = single_step(case)
    results = world(2).run(frozen_step, case, frozen)
    layouts = [layouts_of(case, rank) for rank in range(2)]
    for name, grad in wanted.items():
        parts = [result[name] for result in results]
        if frozen in name:
            assert parts == [None, None]
            continue
        found = parts[0]
        if layouts[0][name].is_sharded:
            found = full_tensor([layout[name] for layout in layouts], parts)
        assert (found - grad).abs().max() <= 1e-10 * grad.abs().max() + 1e-15, name


def flags(**changes: object) -> Overlap:
    return Overlap.from_flags(ParallelConfig(tensor_model_parallel_size=2, **changes))


def test_overlap_from_flags() -> None:
    assert flags() == flags(sequence_parallel=True) == Overlap()
    assert flags(async_tensor_model_parallel_allreduce=False) == Overlap(reduce_input_grad=False)
    nothing = flags(sequence_parallel=True, tp_comm_bulk_wgrad=False, tp_comm_bulk_dgrad=False)
    assert nothing == Overlap(reduce_input_grad=False, gather_input=False)
    pieces = {"sequence_parallel": True, "tp_comm_overlap": True}
    assert flags(**pieces) == Overlap(gather_pieces=True, scatter_pieces=True)
    assert flags(**pieces, tp_comm_overlap_ag=False) == Overlap(scatter_pieces=True)
    assert flags(**pieces, tp_comm_overlap_rs=False) == Overlap(gather_pieces=True)
    assert flags(**pieces, tp_comm_overlap_rs_dgrad=True) == Overlap(
        gather_pieces=True, scatter_pieces=True, scatter_grad_pieces=True
    )
    without = flags(sequence_parallel=True, tp_comm_overlap_rs_dgrad=True)
    assert without == Overlap()
