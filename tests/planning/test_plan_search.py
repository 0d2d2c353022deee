"""The search: what it finds can be run, and what it rules out cannot."""

from __future__ import annotations

import pytest

from megacore.errors import UsageError
from megacore.planning.estimates import estimate
from megacore.planning.hardware import load_profile
from megacore.planning.layouts import Constraints
from megacore.planning.model_shape import PlanModel
from megacore.planning.plan_search import search
from megacore.planning.simulate_world import simulate_world
from megacore.training.run_config import parse_run

H100 = load_profile("h100-sxm")
LLAMA_8B = PlanModel(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_heads=32,
    num_groups=8,
    head_width=128,
    gated=True,
    untied=True,
    vocab_size=128001,
    seq_length=8192,
    linear_bias=False,
    qkv_bias=False,
    norm_bias=False,
    dropout=False,
)
FLAGS = (
    "--num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 "
    "--group-query-attention --num-query-groups 8 --swiglu --disable-bias-linear "
    "--untie-embeddings-and-output-weights --normalization RMSNorm --hidden-dropout 0 "
    "--attention-dropout 0 --position-embedding-type rope --seq-length 8192 --bf16 --lr 1e-3 "
    "--train-iters 10 --mock-data --tokenizer-type NullTokenizer --vocab-size 128000 "
    "--global-batch-size 128 --simulate-world 16"
)


def test_best_plans_pass_the_simulated_world_and_fit() -> None:
    result = search(LLAMA_8B, H100, Constraints(gpus=16, global_batch=128, top=4))
    assert len(result.plans) == 4
    assert result.is_proven
    times = [plan.step_s for plan in result.plans]
    assert times == sorted(times)
    for plan in result.plans[:1]:
        run, _ = parse_run([*FLAGS.split(), *plan.layout.flags(LLAMA_8B)], environment={})
        world = simulate_world(run)
        assert max(kind.total_bytes for kind in world.ranks) < H100.memory_bytes
        more_rows = LLAMA_8B.padded_vocab(plan.layout.tp) - LLAMA_8B.padded_vocab(1)
        expected = LLAMA_8B.num_parameters() + 2 * 4096 * more_rows
        assert world.num_parameters == expected
    again = estimate(result.plans[0].layout, LLAMA_8B, H100, 128)
    assert again.step_s == result.plans[0].step_s
    assert result.considered > result.legal > result.fitting > result.simulated > 0
    for loser in result.losers:
        assert loser.step_s >= times[0]
        assert loser.why


def test_choices_are_kept_and_reasons_are_given() -> None:
    choices = {"tp": (4,), "pp": (4,), "schedule": ("interleaved",), "virtual_stages": (3, 4)}
    result = search(LLAMA_8B, H100, Constraints(gpus=16, global_batch=128, choices=choices))
    assert {plan.layout.virtual_stages for plan in result.plans} == {4}
    reasons = {rejection.reason: rejection for rejection in result.rejected}
    example = reasons["layers do not divide among the pipeline stages"].example
    assert example is not None
    assert example.virtual_stages == 3


def test_what_does_not_fit_is_said_so() -> None:
    result = search(LLAMA_8B, H100, Constraints(gpus=2, global_batch=8, memory_bytes=20e9))
    assert result.plans == ()
    assert "does not fit into memory" in {rejection.reason for rejection in result.rejected}


def test_layers_that_do_not_divide_get_uneven_ends() -> None:
    choices = {"tp": (1,), "pp": (5,), "cp": (1,), "schedule": ("1f1b",)}
    result = search(LLAMA_8B, H100, Constraints(gpus=10, global_batch=20, choices=choices))
    layout = result.plans[0].layout
    assert (layout.first_layers, layout.last_layers) == (6, 5)
    assert "--decoder-first-pipeline-num-layers" in layout.flags(LLAMA_8B)


def test_constraints_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="along width"):
        search(LLAMA_8B, H100, Constraints(gpus=2, global_batch=8, choices={"width": (1,)}))
    with pytest.raises(UsageError, match="at least 1 GPU"):
        search(LLAMA_8B, H100, Constraints(gpus=0, global_batch=8))
