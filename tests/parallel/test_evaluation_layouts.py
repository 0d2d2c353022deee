"""Tasks on several processes give what one process gives."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
import torch
from training_worlds import groups_of
from worker_pool import WorkerPools

from megacore.data.tokenizers import Tokenizer
from megacore.evaluation.config import TaskConfig
from megacore.evaluation.finetuning import finetune
from megacore.evaluation.retrieval.ict import parse_ict, train_ict
from megacore.evaluation.settings import parse_task
from megacore.evaluation.zero_shot import SharedScorer, score_task
from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.parallel.groups import Group, single_process_groups
from megacore.training.live_view import Screen
from megacore.training.log_line import parse_iteration

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
from task_fixtures import train_word_pieces, write_mnli


class Letters(Tokenizer):
    """Ids are code points below 128."""

    class_name = "_Letters"

    @property
    def vocab_size(self) -> int:
        return 128

    def tokenize(self, text: str) -> list[int]:
        return [ord(letter) % 128 for letter in text]

    def detokenize(self, ids: object) -> str:
        raise NotImplementedError


def score(group: Group | None, task: TaskConfig) -> str:
    config = ModelConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=16,
        init_method_std=0.3,
    )
    model = GPTModel(config, padded_vocab_size=128, dtype=torch.float64).eval()
    init_weights(model, config, seed=3)
    scorer = SharedScorer(
        model,
        vocab_size=128,
        batch_size=3,
        group=group or single_process_groups().dp,
        device=torch.device("cpu"),
        say=lambda text: None,
    )
    return score_task(task, Letters(), scorer, length=16, say=lambda text: None)


@pytest.mark.parametrize("name", ["WIKITEXT103", "LAMBADA"])
def test_shares_of_a_zero_shot_task(world: WorkerPools, tmp_path: Path, name: str) -> None:
    path = tmp_path / "wiki.txt"
    # Windows and passages that two processes cannot share evenly.
    path.write_text(
        '{"text": "the cat and the dog"}\n{"text": "a b c b"}\n' * 5 + '{"text": "so so"}'
    )
    task = TaskConfig(task=name, valid_data=(str(path),), overlapping_eval=5)
    expected = score(None, task)
    assert world(2).run(score, task) == [expected] * 2


FLAGS = (
    "--task MNLI --num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 16 "
    "--max-position-embeddings 16 --tokenizer-type BertWordPieceLowerCase --num-workers 0 "
    "--lr 1e-3 --eval-iters 0 --log-interval 1 --seed 7 --init-method-std 0.1 --peak-tflops 1 "
    "--hidden-dropout 0 --attention-dropout 0 --epochs 1 --keep-last --global-batch-size 8"
)


def finetuned(group: Group | None, flags: str) -> str:
    size = 1 if group is None else group.size
    environment = {"RANK": "0", "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}
    evaluation = parse_task(f"{FLAGS} {flags}".split(), environment=environment)
    groups = groups_of(group, evaluation.finetuning_run(1, save_interval=1))
    printed = io.StringIO()
    screen = Screen(live=False, stream=printed, silent=not groups.world.is_first)
    finetune(evaluation, screen=screen, groups=groups)
    return printed.getvalue()


@pytest.mark.parametrize(
    "flags",
    [
        "--micro-batch-size 2",
        "--micro-batch-size 4 --use-distributed-optimizer",
        "--micro-batch-size 8 --tensor-model-parallel-size 2 --sequence-parallel",
    ],
)
def test_layouts_of_finetuning(
    world: WorkerPools, tmp_path_factory: pytest.TempPathFactory, flags: str
) -> None:
    home = tmp_path_factory.mktemp("mnli")
    train_word_pieces(home)
    # The last batch of the epoch and of the file are not full.
    train, valid = (
        write_mnli(home / name, count, seed=1) for name, count in (("a.tsv", 21), ("b.tsv", 11))
    )
    data = f"--vocab-file {home}/vocab.txt --train-data {train} --valid-data {valid}"
    alone = finetuned(None, f"{data} --micro-batch-size 8")
    shared = world(2).run(finetuned, f"{data} {flags}")[0]
    expected, found = (
        [record.losses for line in text.splitlines() if (record := parse_iteration(line))]
        for text in (alone, shared)
    )
    assert len(expected) == 3
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    pattern = r"metrics for b: correct / total = (\d+) / (\d+)"
    assert re.search(pattern, shared)[0] == re.search(pattern, alone)[0]  # type: ignore[index]


ICT_FLAGS = (
    "--num-layers 1 --hidden-size 32 --num-attention-heads 2 --seq-length 32 "
    "--max-position-embeddings 32 --num-workers 0 --lr 1e-3 --eval-iters 1 --eval-interval 2 "
    "--log-interval 1 --init-method-std 0.1 --peak-tflops 1 --mock-data --train-iters 3 "
    "--retriever-report-topk-accuracies 1 5 --hidden-dropout 0 --attention-dropout 0 --seed 4"
)


def trained_on_ict(group: Group | None, flags: str) -> str:
    size = 1 if group is None else group.size
    environment = {"RANK": "0", "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}
    ict = parse_ict(f"{ICT_FLAGS} {flags}".split(), environment=environment)
    groups = groups_of(group, ict.run)
    printed = io.StringIO()
    screen = Screen(live=False, stream=printed, silent=not groups.world.is_first)
    train_ict(ict, screen=screen, groups=groups)
    return printed.getvalue()


def test_replicas_learn_from_each_others_blocks(
    world: WorkerPools, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("ict")
    train_word_pieces(home)
    words = f"--vocab-file {home}/vocab.txt"
    alone = trained_on_ict(None, f"{words} --micro-batch-size 8")
    shared = world(2).run(trained_on_ict, f"{words} --micro-batch-size 4")[0]
    expected, found = (
        [record.losses for line in text.splitlines() if (record := parse_iteration(line))]
        for text in (alone, shared)
    )
    assert len(expected) == 3
    for mine, theirs in zip(found, expected, strict=True):
        # The second and third loss show the gradients of the steps before.
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert len({row["lm loss"] for row in expected}) == 3
