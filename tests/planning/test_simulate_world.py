"""Simulated runs against closed forms of memory and communication, and their refusals."""

from __future__ import annotations

import math
import resource

import pytest

from megacore.errors import ConfigError, UsageError
from megacore.models.gpt import GPTModel
from megacore.planning.simulate_world import RankReport, WorldReport, simulate_world
from megacore.planning.world_text import format_world
from megacore.training.cli import main
from megacore.training.run_config import parse_run

LAYERS, HIDDEN, LENGTH, ROWS = 8, 64, 32, 1024
BASE = (
    f"--num-layers {LAYERS} --hidden-size {HIDDEN} --num-attention-heads 4 --seq-length {LENGTH} "
    "--micro-batch-size 2 --lr 1e-3 --train-iters 10 --mock-data --tokenizer-type NullTokenizer "
    f"--vocab-size {ROWS - 1} --make-vocab-size-divisible-by 1 --bf16 "
    "--position-embedding-type rope --untie-embeddings-and-output-weights "
)


def simulate(flags: str) -> WorldReport:
    run, _ = parse_run((BASE + flags).split(), environment={})
    return simulate_world(run)


def parameters_of_layers(count: int, tensor: int) -> int:
    matrices = 12 * HIDDEN * HIDDEN + 7 * HIDDEN
    whole = 4 * HIDDEN + 2 * HIDDEN
    return count * (matrices // tensor + whole)


def by_rank(report: WorldReport) -> dict[int, RankReport]:
    return {rank: kind for kind in report.ranks for rank in kind.pipeline_ranks}


def test_parameters_and_state() -> None:
    flags = "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 4 --simulate-world 32"
    report = simulate(flags + " --use-distributed-optimizer --global-batch-size 64")
    assert report.degrees == {"tp": 2, "cp": 1, "dp": 4, "pp": 4}
    ranks = by_rank(report)
    assert sorted(ranks) == [0, 1, 2, 3]
    assert ranks[1] is ranks[2]
    middle = parameters_of_layers(2, 2)
    vocabulary = ROWS * HIDDEN // 2
    counts = [ranks[rank].state.num_params for rank in range(4)]
    final_norm = 2 * HIDDEN
    assert counts == [middle + vocabulary, middle, middle, middle + vocabulary + final_norm]
    whole = GPTModel(parse_run(BASE.split(), environment={})[0].model, padded_vocab_size=ROWS)
    assert report.num_parameters == sum(p.numel() for p in whole.parameters())
    for rank in ranks.values():
        # 6 + 12 / d, and the padding of small buckets.
        assert rank.state.bytes_per_parameter == pytest.approx(6 + 12 / 4, rel=0.02)


def test_pipeline_memory_and_transfers() -> None:
    """1F1B: rank r of p holds the activations of p - r micro-batches."""
    report = simulate("--pipeline-model-parallel-size 4 --global-batch-size 16 --simulate-world 4")
    assert (report.schedule, report.num_stages, report.num_microbatches) == ("1f1b", 4, 8)
    ranks = by_rank(report)
    one = 2 * LENGTH * HIDDEN * 2
    assert ranks[0].traffic.sent_bytes["pp", "send"] == 8 * one
    assert ranks[1].traffic.sent_bytes["pp", "send"] == 2 * 8 * one
    assert ranks[3].traffic.calls["pp", "send"] == 8
    few = simulate("--pipeline-model-parallel-size 4 --global-batch-size 2 --simulate-world 4")
    alone = by_rank(few)
    assert ranks[0].activation_bytes == 4 * alone[0].activation_bytes
    # Ranks 1 and 2 are alike but for what they hold; the report says the larger.
    assert ranks[1].activation_bytes == 3 * alone[1].activation_bytes
    assert ranks[3].activation_bytes == alone[3].activation_bytes
    assert 0 < report.bubble < few.bubble < 1


@pytest.mark.parametrize("name", ["gpipe", "zb-h1", "zb-v", "v-half", "dualpipev"])
def test_schedules(name: str) -> None:
    flags = "--pipeline-model-parallel-size 4 --global-batch-size 16 --simulate-world 4"
    report = simulate(f"{flags} --pipeline-schedule {name}")
    assert report.schedule == name
    ranks = by_rank(report)
    assert sorted(ranks) == [0, 1, 2, 3]
    total = sum(kind.state.num_params * len(kind.pipeline_ranks) for kind in report.ranks)
    assert total == report.num_parameters
    base = by_rank(simulate(flags))
    if name == "gpipe":
        assert ranks[0].activation_bytes == 2 * base[0].activation_bytes
    if name in ("zb-v", "v-half"):
        # First and last stage are on one rank, and nothing leaves it at the turn of the V.
        assert len(report.ranks[0].stages) == 2
        assert report.ranks[0].stages[1].endswith("output")


def test_reduction_of_gradients() -> None:
    """Each process sends 2 (d - 1) / d of its fp32 gradients, or half and its parameters."""
    numel = parameters_of_layers(LAYERS, 1) + 2 * ROWS * HIDDEN + 2 * HIDDEN
    (plain,) = simulate("--simulate-world 8").ranks
    assert plain.traffic.sent_bytes["dp_cp", "all_reduce"] == pytest.approx(
        2 * 7 / 8 * 4 * numel, rel=0.01
    )
    (sharded,) = simulate("--simulate-world 8 --use-distributed-optimizer").ranks
    sent = sharded.traffic.sent_bytes
    assert sent["dp_cp", "reduce_scatter"] == pytest.approx(7 / 8 * 4 * numel, rel=0.01)
    assert sent["dp_cp", "all_gather"] == pytest.approx(7 / 8 * 2 * numel, rel=0.01)


@pytest.mark.parametrize("size", [2, 4])
def test_context_parallel_traffic(size: int) -> None:
    """The volumes that `context_ring` and `context_exchange` state."""
    tokens = 2 * LENGTH // size * HIDDEN
    flags = f"--context-parallel-size {size} --simulate-world {size}"
    (ring,) = simulate(flags).ranks
    wanted = LAYERS * (2 * 2 * tokens * (size - 1) * 2 + 2 * tokens * size * 4)
    assert ring.traffic.sent_bytes["cp", "all_to_all"] == wanted
    (exchange,) = simulate(flags + " --cp-comm-type a2a").ranks
    wanted = LAYERS * 2 * 4 * tokens * 2 * (size - 1) // size
    assert exchange.traffic.sent_bytes["cp", "all_to_all"] == wanted
    assert ("dp_cp", "all_reduce") in ring.traffic.calls


def test_tied_embeddings() -> None:
    flags = BASE.replace("--untie-embeddings-and-output-weights", "")
    flags += "--pipeline-model-parallel-size 4 --simulate-world 4"
    report = simulate_world(parse_run(flags.split(), environment={})[0])
    ranks = by_rank(report)
    assert ranks[0].traffic.sent_bytes["embedding", "all_reduce"] == ROWS * HIDDEN * 4
    assert ("embedding", "all_reduce") not in ranks[1].traffic.calls


def test_attention_dropout_can_be_simulated() -> None:
    flags = "--attention-dropout 0.1 --hidden-dropout 0.1 --context-parallel-size 2 "
    assert simulate(flags + "--simulate-world 2").ranks[0].total_bytes > 0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--tensor-model-parallel-size 3 --simulate-world 9", "MC0914"),
        ("--tensor-model-parallel-size 2 --simulate-world 5", "MC0901"),
        ("--pipeline-model-parallel-size 3 --simulate-world 3", "MC0925"),
        ("--global-batch-size 6 --simulate-world 2", "MC02"),
    ],
)
def test_refuses_what_the_run_would_refuse(flags: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        simulate(flags)


def test_schedule_files_are_checked(tmp_path: object) -> None:
    path = f"{tmp_path}/schedule.csv"
    with open(path, "w", encoding="utf-8") as file:
        file.write("0F0,0B0\n1B0,1F0\n")
    flags = f"--pipeline-model-parallel-size 2 --pipeline-schedule-file {path} --simulate-world 2"
    with pytest.raises(UsageError, match="pipeline schedule"):
        simulate(flags)


def test_command_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--tensor-model-parallel-size 4 --sequence-parallel --pipeline-model-parallel-size 8 "
    argv = (BASE + flags + "--global-batch-size 4096 --bf16 --simulate-world 16384").split()
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "simulated run of 16384 processes: tp 4 x cp 1 x dp 512 x pp 8" in text
    assert "pipeline rank 1-6: 1 layer" in text
    assert format_world(simulate(" ".join(argv[len(BASE.split()) :]))) in text
    seen = [line for line in text.splitlines() if "memory (GiB)" in line]
    assert len(seen) == 3
    for line in seen:
        total, parts = line.split(": ")[1].split(" = ")
        values = [float(part.split()[-1]) for part in parts.split(" + ")]
        assert math.isclose(float(total), sum(values), abs_tol=0.03)


def test_nothing_has_memory() -> None:
    """118 GiB of parameters are built in no memory worth speaking of."""
    flags = (
        "--num-layers 8 --hidden-size 25600 --num-attention-heads 160 --seq-length 2048 "
        "--micro-batch-size 1 --lr 1e-3 --train-iters 10 --mock-data --tokenizer-type "
        "NullTokenizer --vocab-size 51199 --bf16 --max-position-embeddings 2048 --simulate-world 8"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (rank,) = simulate_world(parse_run(flags.split(), environment={})[0]).ranks
    assert rank.state.parameters > 100 * 2**30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**20
